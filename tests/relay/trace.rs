//! What an operator learns of one request or delivery by its id.

use http::Response;
use serde_json::{Value, json};

use crate::{
    fakes::{FakeInstance, FakeJira},
    harness::{SECRET, TestRelay},
    stage::{Stage, call, instance_token},
};

const PATH: &str = "/rest/builds/0.1/bulk";

fn id<T>(answer: &Response<T>) -> String {
    let id = answer.headers().get("x-request-id").expect("an id");
    id.to_str().expect("text").to_owned()
}

async fn trace(relay: &TestRelay, id: &str) -> Value {
    let path = format!("/api/v1/trace/{id}");
    relay.admin("GET", &path, None, 200).await
}

fn hops(part: &Value) -> Vec<&str> {
    let hops = part["hops"].as_array().expect("hops").iter();
    hops.filter_map(|hop| hop["hop"].as_str()).collect()
}

/// Whether a check of a token held.
fn held(hop: &Value, name: &str) -> Option<Value> {
    let checks = hop["checks"].as_array().expect("checks");
    let check = checks.iter().find(|check| check["name"] == name)?;
    Some(check["held"].clone())
}

fn build() -> String {
    json!({"builds": [{
        "schemaVersion": "1.0", "pipelineId": "7", "buildNumber": 1, "updateSequenceNumber": 1,
        "displayName": "b", "url": "https://gitlab.example.com", "state": "successful",
        "lastUpdated": "2026-11-25T00:00:00Z", "issueKeys": ["A-1"],
    }]})
    .to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_is_told_from_token_to_answer_and_its_replay_with_it() {
    let stage = Stage::set(1).await;
    let secret = stage.gitlabs[0].secret().await;
    let token = instance_token(&secret, "POST", PATH, json!({"sub": "user-7"}));
    let answer = call(&stage.relay, &token, "POST", PATH, build()).await;
    assert_eq!(answer.status(), 202);
    let told = trace(&stage.relay, &id(&answer)).await;
    let part = &told["parts"][0];
    assert_eq!(
        hops(part),
        ["token", "recognised", "prepared", "called", "answered"],
        "{told:#}"
    );
    assert_eq!(part["route"], "rest/builds");
    assert!(
        part["peer"]
            .as_str()
            .is_some_and(|peer| peer.starts_with("127.0.0.1:"))
    );
    let checks = &part["hops"][0];
    for name in ["signature", "exp", "iat", "qsh", "site"] {
        assert_eq!(
            held(checks, name),
            Some(json!(true)),
            "{name} in {checks:#}"
        );
    }
    // Nobody looks at these, so nobody says that they held.
    assert_eq!(held(checks, "sub"), Some(Value::Null), "{checks:#}");
    assert_eq!(held(checks, "aud"), None);
    assert_eq!(part["hops"][1]["instance_url"], stage.gitlabs[0].url);
    let called = &part["hops"][3];
    assert!(
        stage
            .site
            .url
            .ends_with(called["host"].as_str().expect("host")),
        "{called:#}"
    );
    assert_eq!(
        (&called["path"], &called["status"]),
        (&json!(PATH), &json!(202))
    );

    // Jira can't take the next one; what becomes of it stands under the same id.
    stage
        .site
        .fault(json!({"mode": "status", "status": 503, "times": 1}));
    let answer = call(&stage.relay, &token, "POST", PATH, build()).await;
    assert_eq!(answer.status(), 202);
    stage.until_drained().await;
    let told = trace(&stage.relay, &id(&answer)).await;
    let parts = told["parts"].as_array().expect("parts");
    assert_eq!(parts.len(), 2, "{told:#}");
    assert_eq!(
        hops(&parts[0]),
        [
            "token",
            "recognised",
            "prepared",
            "called",
            "waits",
            "kept",
            "answered"
        ]
    );
    assert_eq!(parts[0]["hops"][4]["reason"], "unavailable");
    assert_eq!(parts[1]["what"], "replay");
    assert_eq!(hops(&parts[1]), ["called", "ended"]);
    assert_eq!(parts[1]["hops"][1]["outcome"], "replayed");
    let text = told.to_string();
    let signature = token.rsplit('.').next().expect("signature");
    for hidden in [secret.as_str(), SECRET, signature] {
        assert!(!text.contains(hidden), "{hidden} in {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_not_believed_says_which_check_it_failed() {
    let stage = Stage::set(1).await;
    let secret = stage.gitlabs[0].secret().await;
    let past = json!({"iat": 1000, "exp": 1060});
    let expired = instance_token(&secret, "POST", PATH, past);
    let answer = call(&stage.relay, &expired, "POST", PATH, build()).await;
    let told = trace(&stage.relay, &id(&answer)).await;
    let part = &told["parts"][0];
    assert_eq!(hops(part), ["token", "answered"], "{told:#}");
    let token = &part["hops"][0];
    assert_eq!(token["refused"], "token_expired");
    let verdicts = ["signature", "exp", "qsh"].map(|name| held(token, name));
    let expected = [json!(true), json!(false), Value::Null].map(Some);
    assert_eq!(verdicts, expected, "{token:#}");
    assert_eq!(part["hops"][1]["code"], "token_expired");
    let hint = part["hops"][1]["hint"].as_str().expect("hint");
    assert!(hint.contains("clocks"), "{hint}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_is_found_by_its_own_id_and_by_its_cause() {
    let jira = FakeJira::start("tenant").await;
    let relay = TestRelay::start(&jira).await;
    let mut instance = FakeInstance::start(&relay.url(), "").await;
    jira.installed(&relay.app_base_url(), SECRET).await;
    instance.go_down().await;
    let wish = json!({"client_key": "tenant", "instance_url": instance.url()});
    let answer = relay.try_admin("POST", "/api/v1/links", Some(wish)).await;
    assert_eq!(answer.status(), 201);
    let link: Value = serde_json::from_slice(answer.body()).expect("JSON");
    let failed = link["last_error"]["id"].as_str().expect("id");
    let told = trace(&relay, failed).await;
    let part = &told["parts"][0];
    assert_eq!(part["what"], "delivery");
    assert_eq!(part["instance_url"], instance.url());
    assert_eq!(hops(part), ["called", "ended"]);
    assert_eq!(part["hops"][1]["code"], "connection_failed");

    instance.go_up().await;
    relay
        .until_links("connected", |links| links[0]["state"] == "connected")
        .await;
    let told = trace(&relay, &id(&answer)).await;
    let parts = told["parts"].as_array().expect("parts");
    let outcomes: Vec<&Value> = parts
        .iter()
        .filter(|part| part["what"] == "delivery")
        .filter_map(|part| part["hops"].as_array()?.last()?.get("outcome"))
        .collect();
    assert_eq!(hops(&parts[0]), ["wanted", "answered"], "{told:#}");
    assert!(outcomes.len() >= 2, "{told:#}");
    assert_eq!(outcomes.first(), Some(&&json!("connection_failed")));
    assert_eq!(outcomes.last(), Some(&&json!("delivered")));

    // Jira's `installed` that makes a direct link due is a cause as well.
    let direct = json!({"client_key": "tenant", "instance_url": instance.url(), "mode": "direct"});
    let link_path = format!("/api/v1/links/{}", link["id"].as_str().expect("id"));
    relay.admin("DELETE", &link_path, None, 202).await;
    relay.until_links("gone", <[Value]>::is_empty).await;
    relay
        .admin("POST", "/api/v1/links", Some(direct), 201)
        .await;
    let rotated = jira
        .installed(&relay.app_base_url(), crate::harness::SECRET_2)
        .await;
    instance
        .until("the new secret", |state| {
            let known = state.installations.get("tenant");
            known.is_some_and(|known| known.shared_secret == crate::harness::SECRET_2)
        })
        .await;
    relay
        .until_links("told", |links| links[0]["state"] == "connected")
        .await;
    let told = trace(&relay, &id(&rotated)).await;
    let parts = told["parts"].as_array().expect("parts");
    assert_eq!(
        hops(&parts[0]),
        ["token", "changed", "wanted", "answered"],
        "{told:#}"
    );
    assert_eq!(parts[1]["what"], "delivery", "{told:#}");
    assert_eq!(held(&parts[0]["hops"][0], "aud"), Some(json!(true)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_shows_it_and_status_lists_the_last_errors() {
    let jira = FakeJira::start("tenant").await;
    let relay = TestRelay::start(&jira).await;
    let mut instance = FakeInstance::start(&relay.url(), "").await;
    jira.installed(&relay.app_base_url(), SECRET).await;
    instance.go_down().await;
    relay.link("tenant", &instance.url()).await;
    let forged = jira
        .call(&relay.app_base_url(), "installed", Some(SECRET))
        .with_claim("aud", "https://other.example.com");
    let refused = jira.send(forged).await;
    let refused_id = id(&refused);

    let text = |output: &std::process::Output| {
        let both = [&output.stdout[..], &output.stderr[..]].concat();
        String::from_utf8_lossy(&both).into_owned()
    };
    let shown = relay.command_line(&["trace", &refused_id]).await;
    assert_eq!(shown.status.code(), Some(0), "{}", text(&shown));
    let shown = text(&shown);
    for part in [
        "request: POST events/installed on the public listener, from 127.0.0.1:",
        &refused_id,
        "lifecycle token: not believed (token_audience)",
        "aud https://other.example.com: DID NOT HOLD",
        "exp 20",
        ": held",
        "qsh ",
        ": not looked at",
        "401, token_audience",
        "public.base_path must be exactly",
    ] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    let machine = relay.command_line(&["trace", &refused_id, "--json"]).await;
    let machine: Value = serde_json::from_slice(&machine.stdout).expect("JSON");
    assert_eq!(machine["parts"][0]["id"], refused_id);

    let status = text(&relay.command_line(&["status"]).await);
    for part in [
        "last errors",
        &refused_id,
        "token_audience",
        "POST events/installed",
        "connection_failed",
        "installed to http://127.0.0.1:",
    ] {
        assert!(status.contains(part), "{part} in {status}");
    }

    for (unknown, expected) in [
        ("00000000000000000000000000000001", "remembered since"),
        ("not-an-id", "32 hexadecimal digits"),
    ] {
        let output = relay.command_line(&["trace", unknown]).await;
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output).contains(expected), "{}", text(&output));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_is_found_by_the_removal_that_wanted_it() {
    let stage = Stage::set(1).await;
    stage
        .site
        .fault(json!({"mode": "status", "status": 503, "times": 1, "match": {"method": "DELETE"}}));
    let path = format!("{}?purge=true", stage.link_path(0));
    let removal = stage.relay.try_admin("DELETE", &path, None).await;
    assert_eq!(removal.status(), 202);
    let error_id = |links: &[Value]| {
        let error = links
            .first()
            .map(|link| link["purge"]["last_error"].clone());
        error.and_then(|error| error["id"].as_str().map(str::to_owned))
    };
    let noted = |links: &[Value]| error_id(links).is_some();
    let failed = error_id(&stage.relay.until_links("noted", noted).await);
    stage.relay.until_links("gone", <[Value]>::is_empty).await;
    let told = trace(&stage.relay, &id(&removal)).await;
    let parts = told["parts"].as_array().expect("parts");
    let of = |what: &str| parts.iter().filter(|part| part["what"] == what).count();
    assert_eq!((of("request"), of("delivery")), (1, 1), "{told:#}");
    // One that Jira did not take, then five families in two rounds.
    assert_eq!(of("deletion"), 11, "{told:#}");
    let failed = trace(&stage.relay, &failed.expect("noted with the link")).await;
    assert_eq!(hops(&failed["parts"][0]), ["called", "ended"]);
    assert_eq!(failed["parts"][0]["hops"][1]["code"], "unavailable");
}
