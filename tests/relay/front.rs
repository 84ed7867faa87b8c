//! Who may talk, who a request comes from, and how much of it there may be.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use serde_json::Value;

use crate::{
    fakes::{
        FakeJira,
        http::{client, send},
    },
    harness::{SECRET, Settings, TestRelay, checked, code},
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
