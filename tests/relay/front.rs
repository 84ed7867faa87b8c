//! Who may talk, who a request comes from, and how much of it there may be.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use serde_json::Value;

use crate::{
    fakes::{
        FakeJira,
        http::{FakeServer, answer, client, send},
    },
    harness::{PATIENCE, SECRET, Settings, TestRelay, checked, code},
    stage::instance_token,
};

/// Jira's `installed`, with these `X-Forwarded-For` lines.
async fn installed(jira: &FakeJira, relay: &TestRelay, forwarded: &[&str]) -> Response<Bytes> {
    let call = jira.call(&relay.app_base_url(), "installed", Some(SECRET));
    let mut request = Request::post(&call.url)
        .header("authorization", format!("JWT {}", call.token()))
        .header("content-type", "application/json");
    for line in forwarded {
        request = request.header("x-forwarded-for", *line);
    }
    let body = Full::from(call.body.to_string());
    checked(send(&client(), request.body(body).expect("request")).await)
}

/// A read of an instance, or of somebody who pretends.
async fn read(relay: &TestRelay, secret: &str, forwarded: &str) -> Response<Bytes> {
    let path = "/rest/api/3/user?accountId=a";
    let token = instance_token(secret, "GET", path, Value::Null);
    let request = Request::get(format!("{}{path}", relay.url()))
        .header("authorization", format!("JWT {token}"))
        .header("x-forwarded-for", forwarded);
    send(&client(), request.body(Full::default()).expect("request")).await
}

async fn with(jira: &FakeJira, settings: &[(&str, &str)]) -> TestRelay {
    TestRelay::start_with(jira, |relay: &mut Settings| {
        for (key, value) in settings {
            relay.set(key, value);
        }
    })
    .await
}

#[tokio::test]
async fn the_client_behind_a_trusted_proxy_is_the_peer() {
    let jira = FakeJira::start("tenant").await;
    let relay = with(
        &jira,
        &[("PUBLIC__TRUSTED_PROXIES", "127.0.0.1, 10.0.0.0/8")],
    )
    .await;
    let lines = ["1.1.1.1, rubbish", "203.0.113.7, 10.1.2.3"];
    assert_eq!(installed(&jira, &relay, &lines).await.status(), 204);
    let audit = relay.admin("GET", "/api/v1/audit", None, 200).await;
    assert_eq!(audit[0]["peer"], "203.0.113.7", "{audit:#}");

    // One stranger uses up what strangers from one address may cost; a stranger from elsewhere has a budget still.
    let forged = "no-secret-of-anybodys-no-secret-of-anybodys";
    let flood = (0..200).map(|_| read(&relay, forged, "198.51.100.9, 10.9.9.9"));
    let answers = futures_util::future::join_all(flood).await;
    assert!(answers.iter().any(|answer| answer.status() == 429));
    let elsewhere = (0..40).map(|_| read(&relay, forged, "198.51.100.10"));
    for answer in futures_util::future::join_all(elsewhere).await {
        assert_eq!(answer.status(), 401, "{}", code(&answer));
    }
}

#[tokio::test]
async fn a_stranger_is_not_believed_and_told_of_once() {
    let jira = FakeJira::start("tenant").await;
    let relay = with(&jira, &[("PUBLIC__TRUSTED_PROXIES", "10.0.0.1")]).await;
    for line in ["203.0.113.7", "10.0.0.1", "rubbish"] {
        let answer = installed(&jira, &relay, &[line]).await;
        assert_eq!(answer.status(), 204, "{}", code(&answer));
    }
    let audit = relay.admin("GET", "/api/v1/audit", None, 200).await;
    assert_eq!(audit[0]["peer"], "127.0.0.1", "{audit:#}");
}

async fn get(url: &str, forwarded: &str) -> Response<Bytes> {
    let request = Request::get(url).header("x-forwarded-for", forwarded);
    send(&client(), request.body(Full::default()).expect("request")).await
}

#[tokio::test]
async fn each_group_of_routes_has_its_own_list() {
    let jira = FakeJira::start("tenant").await;
    let relay = with(
        &jira,
        &[
            ("PUBLIC__TRUSTED_PROXIES", "127.0.0.1"),
            ("ACCESS__JIRA", "198.51.100.0/24"),
            ("ACCESS__INSTANCES", "203.0.113.0/24, 2001:db8::/32"),
        ],
    )
    .await;
    let (jiras, instances, browser) = ("198.51.100.1", "203.0.113.1", "192.0.2.1");
    let base = relay.app_base_url();
    let keys = format!("{base}/public_keys/00000000-0000-4000-8000-000000000000");
    let search = format!("{base}/workspaces/search");

    assert_eq!(installed(&jira, &relay, &[jiras]).await.status(), 204);
    for from in [instances, browser] {
        let refused = installed(&jira, &relay, &[from]).await;
        assert_eq!(refused.status(), 403);
        assert_eq!(code(&refused), "address_not_allowed");
        let text = String::from_utf8_lossy(refused.body()).into_owned();
        assert!(text.contains("access.jira"), "{text}");
    }
    assert_eq!(get(&search, jiras).await.status(), 401);
    assert_eq!(get(&search, browser).await.status(), 403);

    let forged = "no-secret-of-anybodys-no-secret-of-anybodys";
    for from in [instances, "2001:db8::7"] {
        assert_eq!(read(&relay, forged, from).await.status(), 401);
        assert_eq!(get(&keys, from).await.status(), 404);
    }
    for from in [jiras, browser] {
        let refused = read(&relay, forged, from).await;
        let text = String::from_utf8_lossy(refused.body()).into_owned();
        assert_eq!(refused.status(), 403, "{text}");
        assert!(text.contains("access.instances"), "{text}");
        assert_eq!(get(&keys, from).await.status(), 403);
    }

    // Browsers are anywhere.
    for path in ["app_descriptor.json", "oauth_callbacks", "logo.svg"] {
        assert_eq!(get(&format!("{base}/{path}"), browser).await.status(), 200);
    }
    for (path, status) in [
        ("subscriptions", 401),
        ("links", 401),
        ("branches/new", 400),
    ] {
        let answer = get(&format!("{base}/{path}"), browser).await;
        assert_ne!(answer.status(), 403, "{path}");
        assert!(answer.status().as_u16() >= status, "{path}: {answer:?}");
    }
    let refusals = relay
        .metric(
            "jira_connect_proxy_rejections_total",
            "reason=\"address_not_allowed\"",
        )
        .await;
    assert!(refusals >= 7.0, "{refusals}");
}

/// In Atlassian's form, one network.
fn ranges(cidr: &str) -> String {
    format!(
        r#"{{"creationDate": "2026-11-20T10:00:00.000000", "syncToken": 1, "items": [{{"network": "-", "mask_len": 0,
        "cidr": "{cidr}", "region": ["global"], "product": ["jira"], "direction": ["egress"], "perimeter": "commercial"}}]}}"#
    )
}

/// Waits until the list was read, or could not be, more often than so many times.
async fn until_read(relay: &TestRelay, outcome: &str, more_than: f64) {
    let deadline = std::time::Instant::now() + PATIENCE;
    let name = "jira_connect_proxy_atlassian_ranges_reads_total";
    while relay.metric(name, outcome).await <= more_than {
        assert!(std::time::Instant::now() < deadline, "never {outcome}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn atlassians_ranges_are_fetched_and_the_last_good_ones_stay() {
    let jira = FakeJira::start("tenant").await;
    let document = Arc::new(Mutex::new((200, "<html>busy</html>".to_owned())));
    let served = Arc::clone(&document);
    let server = FakeServer::start(move |_| {
        let (status, text) = served.lock().expect("document").clone();
        async move { answer(status, text) }
    })
    .await;
    let mut relay = with(
        &jira,
        &[
            ("PUBLIC__TRUSTED_PROXIES", "127.0.0.1"),
            ("ACCESS__JIRA", "192.0.2.1"),
            ("ACCESS__ATLASSIAN_RANGES", &server.url()),
        ],
    )
    .await;
    let serve = |status: u16, text: String| *document.lock().expect("document") = (status, text);
    let call = async |relay: &TestRelay, from: &str| {
        let answer = installed(&jira, relay, &[from]).await;
        (answer.status().as_u16(), code(&answer))
    };
    let refused = (403, "address_not_allowed".to_owned());

    // Nothing good yet: whose calls they are is not known, but for those that the operator lists.
    until_read(&relay, "failed", 0.0).await;
    let unknown = (503, "ranges_unknown".to_owned());
    assert_eq!(call(&relay, "198.51.100.1").await, unknown);
    assert_eq!(call(&relay, "192.0.2.1").await.0, 204);

    serve(200, ranges("198.51.100.0/24"));
    relay.reload.apply(&relay.settings.config()).await;
    until_read(&relay, "\"read\"", 0.0).await;
    assert_eq!(call(&relay, "198.51.100.1").await.0, 204);
    assert_eq!(call(&relay, "203.0.113.1").await, refused);
    assert_eq!(call(&relay, "192.0.2.1").await.0, 204);
    let at = relay
        .metric("jira_connect_proxy_atlassian_ranges_read_timestamp", "")
        .await;
    assert!(at > 1e9, "{at}");

    // Rubbish, an error and half a document change nothing.
    let good = ranges("203.0.113.0/24");
    for (failed, (status, text)) in [
        (200, "{}".to_owned()),
        (500, good.clone()),
        (200, good[..good.len() / 2].to_owned()),
        (200, ranges("0.0.0.0/0")),
        (302, String::new()),
    ]
    .into_iter()
    .enumerate()
    {
        serve(status, text);
        relay.reload.apply(&relay.settings.config()).await;
        until_read(&relay, "failed", 1.0 + failed as f64).await;
        assert_eq!(call(&relay, "198.51.100.1").await.0, 204);
        assert_eq!(call(&relay, "203.0.113.1").await, refused);
    }

    // Also over a restart.
    relay.restart().await;
    until_read(&relay, "failed", 0.0).await;
    assert_eq!(call(&relay, "198.51.100.1").await.0, 204);
    assert_eq!(call(&relay, "203.0.113.1").await, refused);

    serve(200, good);
    relay.reload.apply(&relay.settings.config()).await;
    until_read(&relay, "\"read\"", 1.0).await;
    assert_eq!(call(&relay, "203.0.113.1").await.0, 204);
    assert_eq!(call(&relay, "198.51.100.1").await, refused);
}

#[tokio::test]
async fn atlassians_ranges_can_come_from_a_file() {
    let jira = FakeJira::start("tenant").await;
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("ranges.json");
    std::fs::write(&file, ranges("127.0.0.0/8")).expect("write");
    let path = file.to_str().expect("path");
    let relay = with(&jira, &[("ACCESS__ATLASSIAN_RANGES", path)]).await;
    assert_eq!(installed(&jira, &relay, &[]).await.status(), 204);
    std::fs::write(&file, "rubbish").expect("write");
    relay.reload.apply(&relay.settings.config()).await;
    until_read(&relay, "failed", 0.0).await;
    assert_eq!(installed(&jira, &relay, &[]).await.status(), 204);
    std::fs::write(&file, ranges("10.0.0.0/8")).expect("write");
    relay.reload.apply(&relay.settings.config()).await;
    until_read(&relay, "\"read\"", 1.0).await;
    assert_eq!(installed(&jira, &relay, &[]).await.status(), 403);

    // What can't be used is told before anything starts.
    std::fs::write(&file, "rubbish").expect("write");
    let mut settings = Settings::new(folder.path(), &jira);
    settings.set("ACCESS__ATLASSIAN_RANGES", path);
    for command in ["check", "serve"] {
        let output = settings.command().arg(command).output().expect("run");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(64), "{stderr}");
        assert!(stderr.contains("access.atlassian_ranges"), "{stderr}");
    }
}
