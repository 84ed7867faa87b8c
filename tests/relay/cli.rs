//! The commands that speak to a running relay: what they print, what they change, how they end.

use std::process::Command;

use serde_json::Value;

use crate::{
    fakes::{FakeInstance, FakeJira},
    harness::{SECRET, TestRelay, free_port, printed},
};

async fn json(relay: &TestRelay, arguments: &[&str]) -> Value {
    let arguments = [arguments, &["--json"]].concat();
    serde_json::from_str(&printed(relay, &arguments, 0).await).expect("JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_runs_a_relay_by_the_command_line() {
    let jira = FakeJira::start("tenant").await;
    let relay = TestRelay::start(&jira).await;
    let empty = printed(&relay, &["status"], 0).await;
    assert!(
        empty.contains("ready") && empty.contains("0 connected"),
        "{empty}"
    );
    let nobody = printed(&relay, &["links", "add", "https://gitlab.example.com"], 1).await;
    assert!(nobody.contains("no Jira site has the app yet"), "{nobody}");

    jira.installed(&relay.app_base_url(), SECRET).await;
    let sites = printed(&relay, &["installations"], 0).await;
    assert!(
        sites.contains("https://acme.atlassian.net") && sites.contains("tenant"),
        "{sites}"
    );

    let mut instance = FakeInstance::start(&relay.url(), "/gitlab").await;
    let url = instance.url();
    let added = printed(&relay, &["links", "add", &url], 0).await;
    assert!(added.contains(&format!("{url} is connected")), "{added}");
    let again = printed(&relay, &["links", "add", &url], 1).await;
    assert!(
        again.contains("link_exists") && again.contains("request id"),
        "{again}"
    );
    for site in [
        "tenant",
        "acme.atlassian.net",
        "https://acme.atlassian.net/",
    ] {
        let list = printed(&relay, &["links", "list", "--site", site], 0).await;
        assert!(list.contains(&url) && list.contains("connected"), "{list}");
    }
    printed(
        &relay,
        &["links", "list", "--site", "other.atlassian.net"],
        1,
    )
    .await;
    assert_eq!(
        json(&relay, &["links", "list"]).await[0]["instance_url"],
        url
    );
    printed(&relay, &["links", "resend", &url], 0).await;

    // The instance dies: its cause, its cure and the id are on the one screen, and a wait for it ends.
    instance.go_down().await;
    let failed = printed(&relay, &["links", "resend", &url], 1).await;
    assert!(
        failed.contains("connection_failed") && failed.contains("firewalls"),
        "{failed}"
    );
    let status = printed(&relay, &["status"], 0).await;
    assert!(
        status.contains("1 failing") && status.contains("connection_failed"),
        "{status}"
    );
    let watched = printed(&relay, &["links", "watch", "--seconds", "1"], 1).await;
    assert!(watched.contains("failing"), "{watched}");
    instance.go_up().await;
    printed(&relay, &["links", "watch", "--seconds", "30"], 0).await;

    let old = json(&relay, &["keys", "list"]).await;
    let new = json(&relay, &["keys", "rotate"]).await;
    assert_ne!(old[0]["kid"], new["kid"]);
    let keys = printed(&relay, &["keys", "list"], 0).await;
    assert!(
        keys.contains("active") && keys.contains("retired"),
        "{keys}"
    );
    let spool = printed(&relay, &["spool", "list"], 0).await;
    assert!(spool.contains("0 writes"), "{spool}");
    assert_eq!(json(&relay, &["spool", "retry"]).await["waiting"], 0);

    let id = json(&relay, &["links", "list"]).await[0]["id"].clone();
    let id = id.as_str().expect("id");
    let removed = printed(&relay, &["links", "remove", id, "--purge"], 0).await;
    assert!(removed.contains("deleted from Jira"), "{removed}");
    let audit = printed(&relay, &["audit"], 0).await;
    for action in [
        "link_created",
        "signing_key_rotated",
        "link_purge_requested",
    ] {
        assert!(audit.contains(action), "{action} in {audit}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_gets_no_answer_says_why() {
    let jira = FakeJira::start("tenant").await;
    let relay = TestRelay::start(&jira).await;
    let nobody = format!("http://127.0.0.1:{}", free_port());
    for (arguments, code, expected) in [
        (
            vec!["status", "--admin-url", &nobody],
            1,
            "can't be reached",
        ),
        (
            vec!["status", "--admin-url", &jira.keys.url()],
            1,
            "no relay's admin listener",
        ),
        (
            vec!["status", "--admin-token-file", "store-key"],
            1,
            "can't be read",
        ),
        (
            vec!["links", "remove", "https://gitlab.example.com"],
            1,
            "links list",
        ),
        (vec!["links"], 64, "Usage"),
        (vec!["links", "add"], 64, "required"),
        (vec!["audit", "--limit", "0"], 1, "limit_malformed"),
    ] {
        let output = relay.command_line(&arguments).await;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(text.contains(expected), "{arguments:?}: {text}");
    }
    let mut wrong = Command::new(env!("CARGO_BIN_EXE_jira-connect-proxy"));
    wrong
        .env_clear()
        .env("JIRA_CONNECT_PROXY_ADMIN_URL", relay.settings.admin_url())
        .env(
            "JIRA_CONNECT_PROXY_ADMIN_TOKEN",
            "sixteen-and-more-characters",
        )
        .arg("status");
    let output = tokio::task::spawn_blocking(move || wrong.output().expect("runs"))
        .await
        .expect("task");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("admin_token"), "{text}");
    assert!(!text.contains("sixteen-and-more"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_token_is_replaced_without_a_restart() {
    let jira = FakeJira::start("tenant").await;
    let relay = TestRelay::start(&jira).await;
    let file = relay.settings.folder.join("admin-token");
    std::fs::write(&file, "a-new-token-for-operators\n").expect("write");
    let refused = printed(&relay, &["status"], 1).await;
    assert!(refused.contains("admin_token"), "{refused}");
    relay.reload.apply(&relay.settings.config()).await;
    printed(&relay, &["status"], 0).await;

    // One that is too short changes nothing.
    std::fs::write(&file, "short").expect("write");
    relay.reload.apply(&relay.settings.config()).await;
    std::fs::write(&file, "a-new-token-for-operators").expect("write");
    printed(&relay, &["status"], 0).await;
}

#[test]
fn the_program_describes_itself_without_a_configuration() {
    for (arguments, expected) in [
        (vec!["man"], ".TH jira-connect-proxy"),
        (vec!["completions", "bash"], "_jira"),
        (vec!["completions", "zsh"], "#compdef"),
        (
            vec!["completions", "fish"],
            "complete -c jira-connect-proxy",
        ),
        (vec!["links", "add", "--help"], "Examples:"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_jira-connect-proxy"))
            .env_clear()
            .env("JIRA_CONNECT_PROXY__NO__KEY", "a mistake")
            .args(&arguments)
            .output()
            .expect("runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{arguments:?}");
        assert!(text.contains(expected), "{arguments:?}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whether_the_relay_is_well_can_be_asked_without_a_token() {
    let jira = FakeJira::start("tenant").await;
    let mut relay = TestRelay::start(&jira).await;
    let token = relay.settings.folder.join("admin-token");
    std::fs::remove_file(token).expect("remove");
    assert_eq!(printed(&relay, &["health"], 0).await, "alive\n");
    assert_eq!(printed(&relay, &["health", "--ready"], 0).await, "ready\n");
    relay.stop().await;
    let dead = printed(&relay, &["health"], 1).await;
    assert!(dead.contains("can't be reached"), "{dead}");
}
