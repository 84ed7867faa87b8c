//! Instances send what GitLab sends, and a Jira that keys entities as Atlassian documents it gets it.

use serde_json::{Value, json};

use crate::{
    harness::{SECRET_2, code},
    stage::{Stage, call, instance_token},
};

#[tokio::test(flavor = "multi_thread")]
async fn two_instances_with_the_same_ids_live_side_by_side() {
    let stage = Stage::set(2).await;
    for (gitlab, issue) in stage.gitlabs.iter().zip(["ONE-1", "TWO-2"]) {
        let options = json!({"issue_key": issue, "merge_requests": 2, "branches": 1, "commits": 1});
        let sent = gitlab.sends("devinfo", options.clone()).await;
        let accepted = &sent["body"]["acceptedDevinfoEntities"];
        assert!(accepted.get("42").is_some(), "its own words: {sent:#}");
        for what in ["builds", "deployments", "feature_flags"] {
            gitlab.sends(what, options.clone()).await;
        }
        let user = gitlab
            .send("user", json!({"account_id": "557058:abc"}))
            .await;
        assert_eq!(user["status"], 200, "{user:#}");
        assert!(user["body"].to_string().contains("site-admins"));
    }
    let (one, two) = (stage.namespace(0), stage.namespace(1));
    for (family, key) in [
        ("devinfo", "42"),
        ("devinfo", "42/pull_request/NS-42001"),
        ("builds", "700/7"),
        ("deployments", "700/NS-30/3"),
        ("featureflags", "5"),
    ] {
        let keys = stage.site.keys(family);
        for namespace in [one, two] {
            let key = format!("{namespace}-{}", key.replace("NS", namespace));
            assert!(keys.contains(&key), "{key} is not among {keys:?}");
        }
        let entities = stage.site.entities(family);
        for (key, entity) in entities.as_object().expect("entities") {
            let namespace = key.split('-').next().unwrap_or_default();
            assert_eq!(
                entity["properties"]["relayNamespace"], namespace,
                "{key}: {entity:#}"
            );
        }
    }
    let flags = stage.site.entities("featureflags");
    let flag = &flags[format!("{one}-5")];
    assert_eq!(flag["properties"]["projectId"], format!("{one}-project-42"));

    // A branch that one instance deletes is still there for the other.
    let branches = |keys: &[String], ns: &str| {
        let of = format!("{ns}-42/branch/");
        keys.iter().filter(|key| key.starts_with(&of)).count()
    };
    let deleted = stage.gitlabs[0]
        .send("branch_delete", json!({"branch": "ONE-1-branch-1"}))
        .await;
    assert_eq!(deleted["status"], 202, "{deleted:#}");
    let keys = stage.site.keys("devinfo");
    assert_eq!(
        (branches(&keys, one), branches(&keys, two)),
        (0, 1),
        "{keys:?}"
    );

    // Who spoke when, and in which version.
    let links = stage
        .relay
        .until_links("both were seen", |links| {
            links.iter().all(|link| link["gitlab_version"] == "17.5.1")
        })
        .await;
    assert!(links.iter().all(|link| link["last_seen_at"].is_string()));

    // Unlinking with purge removes exactly one.
    let link = stage
        .relay
        .admin(
            "DELETE",
            &format!("{}?purge=true", stage.link_path(0)),
            None,
            202,
        )
        .await;
    assert_eq!(link["purge"]["state"], "pending", "{link:#}");
    stage
        .relay
        .until_links("one link", |links| links.len() == 1)
        .await;
    for family in ["devinfo", "builds", "deployments", "featureflags"] {
        let keys = stage.site.keys(family);
        assert!(!keys.is_empty());
        assert!(
            keys.iter().all(|key| key.starts_with(two)),
            "{family}: {keys:?}"
        );
    }
    let audit = stage.relay.admin("GET", "/api/v1/audit", None, 200).await;
    assert!(audit.to_string().contains("link_data_deleted"), "{audit:#}");
    assert_eq!(stage.site.violations(), json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_keeps_its_ids_passes_through_untouched() {
    let stage = Stage::set(1).await;
    let kept = crate::stage::GitLab::start(&stage.relay, "/gitlab", &[]);
    let wish =
        json!({"client_key": crate::stage::CLIENT_KEY, "instance_url": kept.url, "keep_ids": true});
    let link = stage
        .relay
        .admin("POST", "/api/v1/links", Some(wish), 201)
        .await;
    assert_eq!(link["state"], "connected", "{link:#}");
    stage.site.clear_requests();
    let sent = kept.sends("feature_flags", json!({})).await;
    let requests = stage.site.requests();
    let theirs = sent["sent"]["body"].clone();
    assert_eq!(requests[0]["body"], theirs);
    kept.sends("devinfo", json!({"branches": 1})).await;
    kept.send("branch_delete", json!({"branch": "ABC-1-branch-1"}))
        .await;
    let keys = stage.site.keys("devinfo");
    assert!(keys.contains(&"42".to_owned()), "{keys:?}");
    assert!(!keys.iter().any(|key| key.contains("/branch/")), "{keys:?}");
    // It stays out of the namespaces of others.
    let other = format!("{}-42", stage.namespace(0));
    let secret = kept.secret().await;
    let body = json!({"repositories": [{"id": other, "name": "x", "url": "https://x", "updateSequenceId": 9}]});
    for (method, path, body) in [
        (
            "POST",
            "/rest/devinfo/0.10/bulk".to_owned(),
            body.to_string(),
        ),
        (
            "DELETE",
            format!("/rest/devinfo/0.10/repository/{other}/branch/b"),
            String::new(),
        ),
    ] {
        let token = instance_token(&secret, method, &path, json!({}));
        let answer = call(&stage.relay, &token, method, &path, body).await;
        assert_eq!(code(&answer), "id_of_another_link", "{method}");
    }
    let path = format!(
        "/api/v1/links/{}?purge=true",
        link["id"].as_str().expect("id")
    );
    let refused = stage.relay.try_admin("DELETE", &path, None).await;
    assert_eq!(
        (refused.status().as_u16(), code(&refused).as_str()),
        (409, "link_unmarked")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_jira_refuses_as_a_whole_is_mended_and_divided() {
    let stage = Stage::set(1).await;
    let gitlab = &stage.gitlabs[0];
    gitlab
        .sends(
            "devinfo",
            json!({"title": "ship it \u{1f680}", "merge_requests": 1}),
        )
        .await;
    let ns = stage.namespace(0);
    let entities = stage.site.entities("devinfo");
    let merge_request = &entities[format!("{ns}-42/pull_request/{ns}-42001")]["data"];
    assert_eq!(merge_request["title"], "ABC-1 ship it \u{fffd}");

    // More than Jira takes at once.
    let many = json!({"merge_requests": 450, "branches": 450, "commits": 450});
    gitlab.sends("devinfo", many).await;
    let keys = stage.site.keys("devinfo");
    for kind in ["pull_request", "branch"] {
        let count = keys
            .iter()
            .filter(|key| key.contains(&format!("/{kind}/")))
            .count();
        assert_eq!(count, 450, "{kind}");
    }

    // Larger than Jira takes at once: it does not say how large that is.
    stage.site.ask(json!({
        "cmd": "configure", "app_key": crate::stage::APP_KEY, "secrets": [crate::harness::SECRET],
        "max_body_bytes": 20_000,
    }));
    gitlab
        .sends("devinfo", json!({"merge_requests": 100, "project_id": 43}))
        .await;
    let keys = stage.site.keys("devinfo");
    let count = keys
        .iter()
        .filter(|key| key.starts_with(&format!("{ns}-43/pull_request/")))
        .count();
    assert_eq!(count, 100);
    // What can't be divided is told in the form that GitLab digests.
    let big = gitlab
        .send("builds", json!({"state": "x".repeat(30_000)}))
        .await;
    assert_eq!(
        (&big["status"], &big["gitlab_ok"]),
        (&json!(413), &json!(true)),
        "{big:#}"
    );
    assert_eq!(stage.site.violations(), json!([]));
    assert!(
        stage
            .relay
            .metric("jira_connect_proxy_mended_total", "characters")
            .await
            >= 1.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_have_the_shape_that_every_gitlab_digests() {
    let stage = Stage::set(1).await;
    let gitlab = &stage.gitlabs[0];
    for (status, body) in [
        (400, json!("")),
        (400, json!({"errorMessages": ["no"]})),
        (400, json!([{"message": "no"}])),
        (413, json!("<html>too large</html>")),
        (401, json!("")),
        (403, json!("")),
        (410, json!("")),
        (500, json!("")),
        (202, json!("")),
        (200, json!("null")),
    ] {
        for call in ["devinfo", "builds", "deployments", "feature_flags"] {
            stage
                .site
                .fault(json!({"mode": "status", "status": status, "body": body}));
            let sent = gitlab.send(call, json!({})).await;
            stage.site.heal();
            assert_eq!(sent["status"], status, "{call}: {sent:#}");
            assert_eq!(sent["gitlab_ok"], true, "{call} {status} {body}: {sent:#}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_that_one_side_knows_first_loses_nothing() {
    let stage = Stage::set(1).await;
    let gitlab = &stage.gitlabs[0];
    // Jira's call has arrived here, and Jira itself still takes the old secret only.
    stage
        .jira
        .installed(&stage.relay.app_base_url(), SECRET_2)
        .await;
    gitlab.sends("builds", json!({"build_number": 1})).await;
    stage.site.secrets(&[SECRET_2]);
    gitlab.sends("builds", json!({"build_number": 2})).await;
    // It takes neither: the instance hears so.
    stage
        .site
        .secrets(&["third-secret-third-secret-third-secret"]);
    let refused = gitlab.send("builds", json!({"build_number": 3})).await;
    assert_eq!(refused["status"], 401, "{refused:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_gitlab_calls_is_passed_on() {
    let stage = Stage::set(2).await;
    let secret = stage.gitlabs[0].secret().await;
    stage.site.clear_requests();
    let (own, other) = (stage.namespace(0).to_owned(), stage.namespace(1).to_owned());
    for (method, path) in [
        ("GET", "/rest/api/3/myself"),
        ("POST", "/rest/api/3/issue"),
        ("GET", "/rest/api/3/user?accountId=a"),
        ("GET", "/rest/api/3/user?accountId=a&expand=groups&x=1"),
        ("GET", "/rest/devinfo/0.10/repository/42"),
        ("DELETE", "/rest/devinfo/0.10/repository/42"),
        ("PUT", "/rest/devinfo/0.10/bulk"),
        ("POST", "/rest/devinfo/0.10/bulk/"),
        ("POST", "/rest/atlassian-connect/1/addons/x/properties/y"),
        ("DELETE", "/rest/builds/0.1/pipelines/1/builds/1"),
        (
            "GET",
            "/rest/devinfo/0.10/existsByProperties?relayNamespace=x",
        ),
    ] {
        let token = instance_token(&secret, method, path, json!({}));
        let answer = call(&stage.relay, &token, method, path, "").await;
        assert_eq!(
            (answer.status().as_u16(), code(&answer).as_str()),
            (403, "call_not_allowed"),
            "{method} {path}"
        );
    }
    let path = format!("/rest/devinfo/0.10/bulkByProperties?relayNamespace={other}");
    let token = instance_token(&secret, "DELETE", &path, json!({}));
    assert_eq!(
        call(&stage.relay, &token, "DELETE", &path, "")
            .await
            .status(),
        403
    );
    // Encoded slashes and dots never mean what they hide.
    for (path, expected) in [
        ("/rest/devinfo/0.10/repository/42%2Fbranch/x", 403),
        ("/rest/devinfo/0.10/repository/42/branch/%2e%2e", 400),
        ("/rest/devinfo/0.10/repository/../../api/3/issue", 400),
        ("/rest//devinfo/0.10/bulk", 400),
        ("/rest/devinfo/0.10/bulk%00", 403),
    ] {
        let token = instance_token(&secret, "DELETE", path, json!({}));
        let answer = call(&stage.relay, &token, "DELETE", path, "").await;
        assert_eq!(
            answer.status().as_u16(),
            expected,
            "{path}: {:?}",
            answer.body()
        );
    }
    assert_eq!(
        stage.site.requests(),
        Vec::<Value>::new(),
        "nothing of it reached Jira"
    );

    // The other's ids are just more ids of one's own.
    let body = json!({"flags": [{"id": format!("{other}-5"), "key": "k", "updateSequenceId": 1, "displayName": "d", "issueKeys": ["A-1"], "summary": {"url": "https://x", "lastUpdated": "2026-01-01T00:00:00Z", "status": {"enabled": true}}, "details": []}]});
    let path = "/rest/featureflags/0.1/bulk";
    let token = instance_token(&secret, "POST", path, json!({}));
    let answer = call(&stage.relay, &token, "POST", path, body.to_string()).await;
    assert_eq!(answer.status(), 202);
    assert_eq!(
        stage.site.keys("featureflags"),
        [format!("{own}-{other}-5")]
    );
    for (body, expected) in [
        (
            json!({"flags": [], "properties": {"relayNamespace": other}}),
            "property_taken",
        ),
        (json!({"flags": [{"id": 5}]}), "ids_unreadable"),
        (json!([]), "body_malformed"),
    ] {
        let answer = call(&stage.relay, &token, "POST", path, body.to_string()).await;
        assert_eq!(
            (answer.status().as_u16(), code(&answer).as_str()),
            (400, expected)
        );
    }
    assert!(
        stage
            .relay
            .metric("jira_connect_proxy_rejections_total", "call_not_allowed")
            .await
            >= 12.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_judged_claim_by_claim() {
    let stage = Stage::set(1).await;
    let secret = stage.gitlabs[0].secret().await;
    let path = "/rest/api/3/user?accountId=a&expand=groups";
    let now = crate::fakes::jira::now().as_second();
    for (change, expected) in [
        (json!({}), None),
        (json!({"iss": "another-app"}), None),
        (
            json!({"exp": now - 100, "iat": now - 200}),
            Some("token_expired"),
        ),
        (
            json!({"iat": now + 100, "exp": now + 200}),
            Some("token_from_the_future"),
        ),
        (json!({"exp": null}), Some("token_claim_missing")),
        (json!({"qsh": null}), Some("token_claim_missing")),
        (json!({"qsh": "context-qsh"}), Some("token_context_refused")),
        (json!({"qsh": "0".repeat(64)}), Some("token_query_hash")),
    ] {
        let token = instance_token(&secret, "GET", path, change.clone());
        let answer = call(&stage.relay, &token, "GET", path, "").await;
        let refused = (answer.status() != 200).then(|| code(&answer));
        assert_eq!(refused.as_deref(), expected, "{change}");
    }
    let other_path = instance_token(
        &secret,
        "GET",
        "/rest/api/3/user?accountId=b&expand=groups",
        json!({}),
    );
    assert_eq!(
        code(&call(&stage.relay, &other_path, "GET", path, "").await),
        "token_query_hash"
    );
    let stranger = instance_token(&"s".repeat(64), "GET", path, json!({}));
    let answer = call(&stage.relay, &stranger, "GET", path, "").await;
    assert_eq!(
        (answer.status().as_u16(), code(&answer).as_str()),
        (401, "token_unknown_secret")
    );
    // Jira's own secret is not one of an instance.
    let jiras = instance_token(crate::harness::SECRET, "GET", path, json!({}));
    assert_eq!(
        code(&call(&stage.relay, &jiras, "GET", path, "").await),
        "token_unknown_secret"
    );
    // After a fresh secret the old one counts for the grace time, after the app is gone none does.
    stage
        .relay
        .admin("POST", &format!("{}/resend", stage.link_path(0)), None, 200)
        .await;
    let old = instance_token(&secret, "GET", path, json!({}));
    assert_eq!(
        call(&stage.relay, &old, "GET", path, "").await.status(),
        200
    );
    stage.jira.uninstalled(&stage.relay.app_base_url()).await;
    assert_eq!(
        code(&call(&stage.relay, &old, "GET", path, "").await),
        "link_removed"
    );
}

/// After a start nobody is known yet, and strangers are there first.
#[tokio::test(flavor = "multi_thread")]
async fn an_instance_gets_through_between_strangers_after_a_restart() {
    let mut stage = Stage::set(1).await;
    stage.relay.restart().await;
    stage.relay.new_client();
    let path = "/rest/api/3/user?accountId=a&expand=groups";
    let stranger = instance_token(&"s".repeat(64), "GET", path, json!({}));
    for _ in 0..45 {
        assert_eq!(
            call(&stage.relay, &stranger, "GET", path, "")
                .await
                .status(),
            401
        );
    }
    stage.gitlabs[0].sends("builds", json!({})).await;
    for _ in 0..20 {
        call(&stage.relay, &stranger, "GET", path, "").await;
    }
    stage.gitlabs[0]
        .sends("builds", json!({"build_number": 8}))
        .await;
    // A token longer than any of GitLab's is not tried on anything.
    let long = instance_token(&"s".repeat(64), "GET", path, json!({"x": "x".repeat(2000)}));
    let answer = call(&stage.relay, &long, "GET", path, "").await;
    assert_eq!(code(&answer), "token_malformed");
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_slowed_down_and_friends_behind_the_same_address_are_not() {
    let stage = Stage::set(1).await;
    let secret = stage.gitlabs[0].secret().await;
    let path = "/rest/api/3/user?accountId=a&expand=groups";
    let friend = instance_token(&secret, "GET", path, json!({}));
    assert_eq!(
        call(&stage.relay, &friend, "GET", path, "").await.status(),
        200
    );
    let stranger = instance_token(&"s".repeat(64), "GET", path, json!({}));
    let mut strangers = tokio::task::JoinSet::new();
    let url = format!("{}{path}", stage.relay.url());
    for _ in 0..150 {
        let request = http::Request::get(&url)
            .header("authorization", format!("JWT {stranger}"))
            .body(http_body_util::Full::default())
            .expect("request");
        strangers.spawn(async move {
            let answer = crate::fakes::http::send(&crate::fakes::http::client(), request).await;
            answer.status().as_u16()
        });
    }
    let mut statuses = Vec::new();
    while let Some(status) = strangers.join_next().await {
        statuses.push(status.expect("task"));
        let started = std::time::Instant::now();
        if statuses.len().is_multiple_of(30) {
            assert_eq!(
                call(&stage.relay, &friend, "GET", path, "").await.status(),
                200
            );
            assert!(
                started.elapsed() < std::time::Duration::from_secs(10),
                "a friend was slowed down"
            );
        }
    }
    let refused = statuses.iter().filter(|status| **status == 429).count();
    assert!(refused > 20, "{refused} of {} were refused", statuses.len());
    assert!(statuses.iter().all(|status| matches!(status, 401 | 429)));
}
