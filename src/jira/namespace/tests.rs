use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn namespace() -> Namespace {
    Namespace::parse("k3v9xq2m").expect("namespace")
}

fn rewritten(family: Family, body: &str) -> Result<String, BodyError> {
    let survey = survey(family, body)?;
    put_in(&namespace(), family, body, &survey)
        .map(|bytes| String::from_utf8(bytes).expect("UTF-8"))
}

const MARK: &str = r#""properties":{"relayNamespace":"k3v9xq2m"}"#;

#[test]
fn every_id_of_every_family_is_put_in_and_nothing_else_is_touched() {
    for (family, before, after) in [
        (
            Family::Devinfo,
            r#"{"repositories" : [ {"id":"42","forkOf":"41","name":"a","x":{"id":"1"},"updateSequenceId":1.50e3,
                "commits":[{"id":"c0ffee","hash":"c0ffee","associations":[{"associationType":"repository","values":[{"repositoryId":"7"}]}]}],
                "branches":[{"id":"5f","lastCommit":{"id":"c0ffee","author":{"id":"9"},"associations":[{"values":["A-1",{"commitHash":"c0ffee","repositoryId":"8"}]}]}}],
                "pullRequests":[{"id":"7","displayId":"g/p!7"},{"id":"8"}]},{"id":"43","forkOf":null}],"z":12345678901234567890.10}"#,
            r#"{"properties":{"relayNamespace":"k3v9xq2m"},"repositories" : [ {"id":"k3v9xq2m-42","forkOf":"k3v9xq2m-41","name":"a","x":{"id":"1"},"updateSequenceId":1.50e3,
                "commits":[{"id":"c0ffee","hash":"c0ffee","associations":[{"associationType":"repository","values":[{"repositoryId":"k3v9xq2m-7"}]}]}],
                "branches":[{"id":"5f","lastCommit":{"id":"c0ffee","author":{"id":"9"},"associations":[{"values":["A-1",{"commitHash":"c0ffee","repositoryId":"k3v9xq2m-8"}]}]}}],
                "pullRequests":[{"id":"k3v9xq2m-7","displayId":"g/p!7"},{"id":"k3v9xq2m-8"}]},{"id":"k3v9xq2m-43","forkOf":null}],"z":12345678901234567890.10}"#,
        ),
        (
            Family::Builds,
            r#"{"providerMetadata":{"product":"GitLab 17.5.1"},"builds":[{"pipelineId":"9","buildNumber":42,"references":[{"commit":{"id":"c0ffee","repositoryUri":"https://x"}}]}]}"#,
            r#"{"properties":{"relayNamespace":"k3v9xq2m"},"providerMetadata":{"product":"GitLab 17.5.1"},"builds":[{"pipelineId":"k3v9xq2m-9","buildNumber":42,"references":[{"commit":{"id":"c0ffee","repositoryUri":"https://x"}}]}]}"#,
        ),
        (
            Family::Deployments,
            r#"{"deployments":[{"deploymentSequenceNumber":3,"pipeline":{"id":"1"},"environment":{"type":"production","id":"2"},"associations":[{"associationType":"commit","values":[{"commitHash":"a","repositoryId":"42"}]},{"associationType":"issueIdOrKeys","values":["A-1"]}]}]}"#,
            r#"{"properties":{"relayNamespace":"k3v9xq2m"},"deployments":[{"deploymentSequenceNumber":3,"pipeline":{"id":"k3v9xq2m-1"},"environment":{"type":"production","id":"k3v9xq2m-2"},"associations":[{"associationType":"commit","values":[{"commitHash":"a","repositoryId":"k3v9xq2m-42"}]},{"associationType":"issueIdOrKeys","values":["A-1"]}]}]}"#,
        ),
        (
            Family::FeatureFlags,
            r#"{"flags":[{"id":"5","key":"new_ui"}],"properties":{"projectId":"project-42","colour":"red"}}"#,
            r#"{"flags":[{"id":"k3v9xq2m-5","key":"new_ui"}],"properties":{"relayNamespace":"k3v9xq2m","projectId":"k3v9xq2m-project-42","colour":"red"}}"#,
        ),
        (
            Family::RemoteLinks,
            r#"{"remoteLinks":[{"id":"5","associations":[{"values":[{"repositoryId":"42"}]}]}]}"#,
            r#"{"properties":{"relayNamespace":"k3v9xq2m"},"remoteLinks":[{"id":"k3v9xq2m-5","associations":[{"values":[{"repositoryId":"k3v9xq2m-42"}]}]}]}"#,
        ),
    ] {
        assert_eq!(rewritten(family, before).as_deref(), Ok(after));
    }
}

#[test]
fn the_mark_finds_its_place() {
    for (before, after) in [
        ("{}", format!("{{{MARK}}}")),
        (" {\n} ", format!(" {{{MARK}\n}} ")),
        (r#"{"a":1}"#, format!(r#"{{{MARK},"a":1}}"#)),
        (r#"{"properties":{}}"#, format!("{{{MARK}}}")),
        (r#"{"properties" : null }"#, r#"{"properties" : {"relayNamespace":"k3v9xq2m"} }"#.to_owned()),
        (r#"{"properties":{ }, "builds":[]}"#, r#"{"properties":{"relayNamespace":"k3v9xq2m" }, "builds":[]}"#.to_owned()),
        // The last of two counts in Jira's parser, so both are marked.
        (r#"{"properties":{"a":"b"},"properties":{}}"#, r#"{"properties":{"relayNamespace":"k3v9xq2m","a":"b"},"properties":{"relayNamespace":"k3v9xq2m"}}"#.to_owned()),
    ] {
        assert_eq!(rewritten(Family::Builds, before), Ok(after), "{before}");
    }
}

#[test]
fn what_could_hide_an_id_is_refused() {
    let code = |family, body: &str| match rewritten(family, body) {
        Ok(text) => text,
        Err(error) => Reject::from(error).code.to_owned(),
    };
    for body in [
        r#"{"repositories":[{"id":42}]}"#,
        r#"{"repositories":[{"id":"4\u0032"}]}"#,
        r#"{"repositories":[{"id":["42"]}]}"#,
        r#"{"repositories":[{"id":{"a":"42"}}]}"#,
        r#"{"repositories":{"id":"42"}}"#,
        r#"{"repositories":[[{"id":"42"}]]}"#,
        r#"{"properties":"x"}"#,
        r#"{"properties":7}"#,
        r#"{"properties":[]}"#,
        r#"{"propert\u0069es":{}}"#,
        r#"{"properties":{"projectId":42}}"#,
    ] {
        assert_eq!(code(Family::Devinfo, body), "ids_unreadable", "{body}");
    }
    // Keys are read as Jira reads them.
    assert_eq!(
        code(
            Family::Devinfo,
            r#"{"repos\u0069tories":[{"\u0069d":"42"}]}"#
        ),
        format!(r#"{{{MARK},"repos\u0069tories":[{{"\u0069d":"k3v9xq2m-42"}}]}}"#)
    );
    for body in [
        r#"{"properties":{"relayNamespace":"other"}}"#,
        r#"{"properties":{"relayN\u0061mespace":"other"}}"#,
    ] {
        assert_eq!(code(Family::Builds, body), "property_taken", "{body}");
    }
    let five = r#"{"properties":{"a":"","b":"","c":"","d":"","e":""}}"#;
    assert_eq!(code(Family::Builds, five), "too_many_properties");
    for body in [
        "",
        "[]",
        "1",
        "\"x\"",
        "null",
        "{",
        "{}{}",
        "{\"a\":}",
        "\u{feff}{}",
    ] {
        assert_eq!(code(Family::Builds, body), "body_malformed", "{body}");
    }
}

#[test]
fn an_id_that_would_be_too_long_is_refused_and_never_cut() {
    let body = |length| format!(r#"{{"flags":[{{"id":"{}"}}]}}"#, "x".repeat(length));
    assert!(rewritten(Family::FeatureFlags, &body(246)).is_ok());
    let error = Err(BodyError::IdTooLong { max: 246 });
    assert_eq!(rewritten(Family::FeatureFlags, &body(247)), error);
}

#[test]
fn entities_are_counted_and_the_version_is_noticed() {
    let body = json!({
        "repositories": [
            {"id": "1", "commits": [{}, {}, {}], "branches": [{}], "pullRequests": []},
            {"id": "2", "pullRequests": [{}, {}]},
        ],
        "providerMetadata": {"product": "GitLab 17.5.1-ee"},
    });
    let survey = survey(Family::Devinfo, &body.to_string()).expect("survey");
    assert_eq!((survey.entities, survey.longest_list), (8, 3));
    assert_eq!(survey.product.as_deref(), Some("GitLab 17.5.1-ee"));
}

#[test]
fn answers_speak_the_words_of_the_instance() {
    let answer = br#"{"acceptedDevinfoEntities":{"k3v9xq2m-42":{"pullRequests":["k3v9xq2m-7"]}},"m":"no k3v9xq2m-42 here, k3v9xq2m"}"#;
    assert_eq!(
        take_out(&namespace(), answer).as_deref(),
        Some(br#"{"acceptedDevinfoEntities":{"42":{"pullRequests":["7"]}},"m":"no 42 here, k3v9xq2m"}"#.as_slice())
    );
    assert_eq!(take_out(&namespace(), b"{}"), None);
    assert_eq!(id_out(&namespace(), "k3v9xq2m-42"), Some("42"));
    assert_eq!(id_out(&namespace(), "other999-42"), None);
    assert_eq!(id_out(&namespace(), "k3v9xq2m42"), None);
}

/// JSON of any shape that has our words in it.
fn any_json() -> impl Strategy<Value = Value> {
    let word = prop::sample::select(vec![
        "id",
        "forkOf",
        "repositories",
        "commits",
        "branches",
        "pullRequests",
        "lastCommit",
        "associations",
        "values",
        "repositoryId",
        "builds",
        "pipelineId",
        "deployments",
        "pipeline",
        "environment",
        "flags",
        "remoteLinks",
        "properties",
        "providerMetadata",
        "product",
        "other",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[ -~\u{e4}\u{1f600}]{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 48, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((word.clone(), inner), 0..5).prop_map(|pairs| {
                Value::Object(pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
            }),
        ]
    })
}

/// The slow and obvious way, for comparison.
fn expected(family: Family, body: &Value) -> Option<Value> {
    let ns = |value: &mut Value| {
        if let Value::String(text) = value {
            *text = format!("k3v9xq2m-{text}");
        }
    };
    fn each(value: Option<&mut Value>, change: impl FnMut(&mut Value)) {
        if let Some(Value::Array(list)) = value {
            list.iter_mut().for_each(change);
        }
    }
    let associations = |entity: &mut Value| {
        each(entity.get_mut("associations"), |association| {
            each(association.get_mut("values"), |value| {
                value.get_mut("repositoryId").into_iter().for_each(ns);
            });
        });
    };
    let mut body = body.clone();
    match family {
        Family::Devinfo => each(body.get_mut("repositories"), |repository| {
            for field in ["id", "forkOf"] {
                repository.get_mut(field).into_iter().for_each(ns);
            }
            associations(repository);
            each(repository.get_mut("commits"), associations);
            each(repository.get_mut("branches"), |branch| {
                associations(branch);
                branch
                    .get_mut("lastCommit")
                    .into_iter()
                    .for_each(associations);
            });
            each(repository.get_mut("pullRequests"), |pr| {
                pr.get_mut("id").into_iter().for_each(ns);
                associations(pr);
            });
        }),
        Family::Builds => each(body.get_mut("builds"), |build| {
            build.get_mut("pipelineId").into_iter().for_each(ns);
            associations(build);
        }),
        Family::Deployments => each(body.get_mut("deployments"), |deployment| {
            for part in ["pipeline", "environment"] {
                let id = deployment.get_mut(part).and_then(|part| part.get_mut("id"));
                id.into_iter().for_each(ns);
            }
            associations(deployment);
        }),
        Family::FeatureFlags | Family::RemoteLinks => {
            let list = if family == Family::FeatureFlags {
                "flags"
            } else {
                "remoteLinks"
            };
            each(body.get_mut(list), |flag| {
                flag.get_mut("id").into_iter().for_each(ns);
                associations(flag);
            });
        }
    }
    let object = body.as_object_mut()?;
    let properties = object.entry("properties").or_insert(Value::Null);
    if properties.is_null() {
        *properties = json!({});
    }
    let properties = properties.as_object_mut()?;
    for (key, value) in properties.iter_mut() {
        if key == "id" || key.ends_with("Id") || key.ends_with("_id") {
            ns(value);
        }
    }
    properties.insert("relayNamespace".to_owned(), json!("k3v9xq2m"));
    Some(body)
}

proptest! {
    #[test]
    fn any_body_is_refused_or_comes_out_as_the_slow_way_has_it(body in any_json(), pretty: bool) {
        let text = if pretty {
            serde_json::to_string_pretty(&body).expect("JSON")
        } else {
            body.to_string()
        };
        for family in Family::ALL {
            if let Ok(out) = rewritten(family, &text) {
                let out: Value = serde_json::from_str(&out).expect("still JSON");
                prop_assert_eq!(Some(out), expected(family, &body));
            }
        }
    }

    #[test]
    fn no_bytes_make_it_panic(text in "\\PC{0,200}") {
        for family in Family::ALL {
            let _ = rewritten(family, &text);
        }
    }
}
