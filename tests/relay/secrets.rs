//! Nothing secret is ever said. Every test of this binary is watched for that (`tests/fakes/secrets.rs`); here stands
//! that the watch sees something, and notices a leak.

use serde_json::json;

use crate::{
    fakes::{
        FakeInstance, FakeJira,
        http::client,
        secrets::{Ledger, counts},
    },
    harness::{RelayProcess, SECRET, SECRET_2, Settings, TestRelay},
};

const DRAWN: &str = "q8Zr1LkPz0_wXc4-Tn7vB2mJd9sHf5gE";

#[test]
fn a_leak_is_noticed_whichever_comes_first_and_not_repeated() {
    for (before, after) in [
        (format!("{{\"secret\":\"{DRAWN}\"}}"), String::new()),
        (String::new(), format!("a line with secret={DRAWN}&more")),
        // A half of it is a leak as well, also inside of another word.
        (String::new(), format!("xx{}", &DRAWN[10..30])),
    ] {
        let mut ledger = Ledger::default();
        ledger.hear("admin answer", "/api/v1/links", &before);
        assert!(ledger.leaks.is_empty());
        ledger.know("a secret that an instance was given", DRAWN);
        ledger.hear("admin answer", "/api/v1/links", &after);
        assert_eq!(ledger.leaks.len(), 1, "{:?}", ledger.leaks);
        let leak = ledger.leaks.first().expect("a leak");
        assert!(
            leak.contains("a secret that an instance was given"),
            "{leak}"
        );
        assert!(leak.contains("admin answer: /api/v1/links"), "{leak}");
        assert!(!leak.contains(&DRAWN[..8]), "{leak}");
    }
}

#[test]
fn what_is_no_secret_is_none() {
    let mut ledger = Ledger::default();
    ledger.know("a secret that an instance was given", DRAWN);
    ledger.know("a secret that an instance was given", "short-secret");
    ledger.know("a secret that an instance was given", &"x".repeat(40));
    let other: String = DRAWN.chars().rev().collect();
    ledger.hear(
        "log",
        "",
        &format!("{other} {} short-secret {}", &DRAWN[..15], "x".repeat(99)),
    );
    assert!(ledger.leaks.is_empty(), "{:?}", ledger.leaks);
    assert_eq!(
        ledger.known.get("a secret that an instance was given"),
        Some(&1)
    );
}

/// One of everything, so that a watch that sees nothing fails here.
#[tokio::test(flavor = "multi_thread")]
async fn the_watch_sees_every_kind_of_secret_and_of_saying() {
    let jira = FakeJira::start("tenant").await;
    let relay = TestRelay::start(&jira).await;
    let instance = FakeInstance::start(&relay.url(), "").await;
    for secret in [SECRET, SECRET_2] {
        jira.installed(&relay.app_base_url(), secret).await;
    }
    relay.link("tenant", &instance.url()).await;
    let secret = instance.known("tenant").expect("told").shared_secret;
    let path = "/rest/builds/0.1/bulk";
    let token = crate::stage::instance_token(&secret, "POST", path, json!({}));
    crate::stage::call(&relay, &token, "POST", path, "{\"builds\": []}").await;
    relay.metric("jira_connect_proxy_links", "").await;
    relay.command_line(&["status", "--json"]).await;
    let folder = tempfile::tempdir().expect("folder");
    let settings = Settings::new(folder.path(), &jira);
    RelayProcess::start(&settings, &client()).await.kill();

    let (known, heard) = counts();
    for kind in [
        "Jira's shared secret",
        "a token that Jira signed",
        "a secret that an instance was given",
        "a token that the relay signed for an instance",
        "a token that an instance signed",
        "admin token",
        "store key",
    ] {
        assert!(known.get(kind) > Some(&0), "no {kind} in {known:#?}");
    }
    for source in [
        "log",
        "log of a process",
        "metrics",
        "admin answer",
        "public answer",
        "command",
    ] {
        assert!(heard.get(source) > Some(&0), "no {source} in {heard:#?}");
    }
}
