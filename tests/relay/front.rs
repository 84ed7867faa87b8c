//! Who may talk, who a request comes from, and how much of it there may be.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::{io::AsyncReadExt as _, net::TcpStream};

use crate::{
    fakes::{
        FakeJira,
        http::{FakeServer, answer, client, send},
    },
    harness::{PATIENCE, SECRET, Settings, TestRelay, checked, code},
    stage::{Stage, call, instance_token},
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
    let path = "/rest/api/3/user?accountId=557058%3Aabc&expand=groups";
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
async fn a_peer_that_is_not_listed_is_not_believed() {
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
    for path in ["subscriptions", "links", "branches/new"] {
        let answer = get(&format!("{base}/{path}"), browser).await;
        assert_ne!(answer.status(), 403, "{path}");
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

fn retry_after(answer: &Response<Bytes>) -> u64 {
    let header = answer.headers().get("retry-after").expect("Retry-After");
    let seconds = header.to_str().ok().and_then(|text| text.parse().ok());
    seconds.expect("a number of seconds")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_asks_too_often_is_told_when_to_come_back() {
    let stage = Stage::set_with(1, |settings| {
        settings.set("PUBLIC__TRUSTED_PROXIES", "127.0.0.1");
        settings.set("LIMITS__REQUESTS_PER_ADDRESS_PER_SEC", "1");
        settings.set("LIMITS__REQUESTS_PER_ADDRESS_BURST", "20");
    })
    .await;
    let relay = &stage.relay;
    let descriptor = format!("{}/app_descriptor.json", relay.app_base_url());
    let flood = (0..100).map(|_| get(&descriptor, "198.51.100.9"));
    let answers = futures_util::future::join_all(flood).await;
    let refused: Vec<_> = answers.iter().filter(|a| a.status() == 429).collect();
    assert!((1..=80).contains(&refused.len()), "{}", refused.len());
    for answer in refused {
        assert_eq!(code(answer), "too_many_requests");
        assert!((1..=2).contains(&retry_after(answer)));
    }
    assert_eq!(get(&descriptor, "198.51.100.10").await.status(), 200);

    // A good token never pays for its neighbours, a bad one does.
    let secret = stage.gitlabs[0].secret().await;
    let forged = "no-secret-of-anybodys-no-secret-of-anybodys";
    let bad = (0..40).map(|_| read(relay, forged, "198.51.100.11"));
    let bad = futures_util::future::join_all(bad).await;
    assert!(bad.iter().any(|answer| answer.status() == 401));
    assert!(bad.iter().any(|answer| code(answer) == "too_many_requests"));
    for _ in 0..40 {
        let answer = read(relay, &secret, "198.51.100.11").await;
        assert_eq!(answer.status(), 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_that_is_too_fast_loses_nothing() {
    let stage = Stage::set_with(1, |settings| {
        settings.set("LIMITS__REQUESTS_PER_INSTALLATION_PER_SEC", "1");
        settings.set("LIMITS__REQUESTS_PER_INSTALLATION_BURST", "2");
    })
    .await;
    let writes = (0..30).map(|n| {
        let options = json!({"project_id": 100 + n, "issue_key": format!("ONE-{n}"), "commits": 1});
        stage.gitlabs[0].sends("devinfo", options)
    });
    futures_util::future::join_all(writes).await;
    stage.until_drained().await;
    let spooled = stage
        .relay
        .metric("jira_connect_proxy_spooled_total", "reason=\"over_rate\"")
        .await;
    assert!(spooled >= 1.0, "{spooled}");
    let entities = stage.site.entities("devinfo");
    let commits = entities.as_object().expect("entities").len();
    assert!(
        commits >= 30,
        "{commits} of 30 writes came through: {entities:#}"
    );

    // Reads have nobody to keep them: some wait, the others hear when to come back.
    let secret = stage.gitlabs[0].secret().await;
    let path = "/rest/api/3/user?accountId=557058%3Aabc&expand=groups";
    let token = instance_token(&secret, "GET", path, Value::Null);
    let reads = (0..60).map(|_| call(&stage.relay, &token, "GET", path, ""));
    let answers = futures_util::future::join_all(reads).await;
    assert!(answers.iter().any(|answer| answer.status() == 200));
    let refused = answers.iter().find(|answer| answer.status() == 429);
    let refused = refused.expect("too many");
    assert_eq!(code(refused), "too_many_requests");
    assert!(retry_after(refused) >= 1);
}

/// Reads until the peer closes; nothing, if it does not.
async fn is_closed(stream: &mut TcpStream) -> bool {
    let mut byte = [0];
    let read = tokio::time::timeout(PATIENCE, stream.read(&mut byte)).await;
    matches!(read, Ok(Ok(0) | Err(_)))
}

#[tokio::test]
async fn one_address_has_only_so_many_connections() {
    let jira = FakeJira::start("tenant").await;
    let settings = [
        ("LIMITS__CONNECTIONS_PER_ADDRESS_MAX", "3"),
        ("LIMITS__RECEIVE_TIMEOUT_SECS", "50"),
    ];
    let relay = with(&jira, &settings).await;
    let connect = |relay: &TestRelay| TcpStream::connect(("127.0.0.1", relay.settings.public_port));
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(connect(&relay).await.expect("connect"));
    }
    let mut fourth = connect(&relay).await.expect("connect");
    assert!(is_closed(&mut fourth).await, "one too many");
    let closed = relay
        .metric(
            "jira_connect_proxy_connection_failures_total",
            "too_many_of_address",
        )
        .await;
    assert_eq!(closed, 1.0);
    // There is room again as soon as one goes.
    drop(held.pop());
    let url = format!("{}/app_descriptor.json", relay.app_base_url());
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let request = Request::get(&url).body(Full::default()).expect("request");
        if crate::fakes::http::try_send(&client(), request)
            .await
            .is_some()
        {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "never room again");
    }

    let mut settings = settings.to_vec();
    settings.push(("PUBLIC__TRUSTED_PROXIES", "127.0.0.1"));
    let relay = with(&jira, &settings).await;
    let mut held = Vec::new();
    for _ in 0..10 {
        held.push(connect(&relay).await.expect("connect"));
    }
    let answer = get(
        &format!("{}/app_descriptor.json", relay.app_base_url()),
        "203.0.113.7",
    )
    .await;
    assert_eq!(answer.status(), 200, "a proxy has no such limit");
}
