//! An instance can neither read nor change anything of another instance or site, whatever it sends with its own valid
//! secret.

use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    fakes::secrets,
    harness::{SECRET, SECRET_2},
    stage::{APP_KEY, GitLab, JiraSite, Stage, call, instance_token},
};

const PATH: &str = "/rest/builds/0.1/bulk";

/// Sends bytes and returns what comes back until the relay closes or says nothing more.
async fn raw(stage: &Stage, text: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", stage.relay.settings.public_port))
        .await
        .expect("connect");
    stream.write_all(text.as_bytes()).await.expect("write");
    let mut answer = Vec::new();
    let reading = stream.read_to_end(&mut answer);
    let _ = tokio::time::timeout(std::time::Duration::from_millis(2500), reading).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    secrets::hear("public answer", "read as bytes", &answer);
    answer
}

fn statuses(answer: &str) -> Vec<&str> {
    answer
        .split("HTTP/1.1 ")
        .skip(1)
        .filter_map(|rest| rest.get(..3))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn smuggled_requests_go_nowhere() {
    let stage = Stage::set(2).await;
    let secret = stage.gitlabs[0].secret().await;
    let other = stage.namespace(1).to_owned();
    let token = instance_token(&secret, "POST", PATH, json!({}));
    let body = json!({"builds": []}).to_string();
    let length = body.len();
    // What an attacker would like Jira to take for a request of the app's own.
    let inner = format!(
        "DELETE /rest/builds/0.1/bulkByProperties?relayNamespace={other} HTTP/1.1\r\nHost: {}\r\n\r\n",
        &stage.site.url[7..]
    );
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nHost: relay\r\nAuthorization: JWT {token}\r\nContent-Type: application/json\r\n"
    );
    stage.site.clear_requests();
    for (name, text) in [
        (
            "two lengths",
            format!(
                "{head}Content-Length: {length}\r\nContent-Length: {}\r\n\r\n{body}{inner}",
                length + inner.len()
            ),
        ),
        (
            "two lengths in one",
            format!(
                "{head}Content-Length: {length}, {}\r\n\r\n{body}{inner}",
                length + 1
            ),
        ),
        (
            "a signed length",
            format!("{head}Content-Length: +{length}\r\n\r\n{body}{inner}"),
        ),
        (
            "a folded line",
            format!(
                "{head}X-A: b\r\n Content-Length: 0\r\nContent-Length: {length}\r\n\r\n{body}{inner}"
            ),
        ),
        (
            "a space before the colon",
            format!("{head}Content-Length : {length}\r\n\r\n{body}{inner}"),
        ),
        (
            "an odd encoding",
            format!("{head}Transfer-Encoding: xchunked\r\n\r\n{body}{inner}"),
        ),
        (
            "chunked is not last",
            format!("{head}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{inner}"),
        ),
        (
            "a bare line feed in a chunk size",
            format!(
                "{head}Transfer-Encoding: chunked\r\n\r\n{length:x}\n{body}\r\n0\r\n\r\n{inner}"
            ),
        ),
    ] {
        let answer = raw(&stage, &text).await;
        assert!(
            statuses(&answer)
                .iter()
                .all(|status| status.starts_with('4')),
            "{name}: {answer}"
        );
    }
    // Both framings at once: whatever is made of it, the inner request has no token of its own.
    let both = format!(
        "{head}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n{inner}"
    );
    let answer = raw(&stage, &both).await;
    assert!(
        statuses(&answer)
            .iter()
            .skip(1)
            .all(|status| status.starts_with('4')),
        "{answer}"
    );
    // A body that is a request, and a request right behind another: each is judged by itself.
    let pipelined = format!("{head}Content-Length: {length}\r\n\r\n{body}{inner}");
    let answer = raw(&stage, &pipelined).await;
    assert_eq!(statuses(&answer), ["202", "401"], "{answer}");
    let requests = stage.site.requests();
    assert!(
        requests
            .iter()
            .all(|request| request["method"] == "POST" && request["path"] == PATH),
        "{requests:#?}"
    );
    assert_eq!(stage.site.violations(), json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_the_instances_headers_reaches_jira() {
    let stage = Stage::set(1).await;
    let secret = stage.gitlabs[0].secret().await;
    let token = instance_token(&secret, "POST", PATH, json!({}));
    let body = json!({"builds": []}).to_string();
    stage.site.clear_requests();
    let text = format!(
        "POST {PATH} HTTP/1.1\r\nHost: other.atlassian.net\r\nAuthorization: JWT {token}\r\nX-Forwarded-Host: other.atlassian.net\r\nX-Original-URL: /rest/api/3/myself\r\nX-HTTP-Method-Override: DELETE\r\nCookie: a=b\r\nConnection: close, X-Gone\r\nX-Gone: 1\r\nTE: trailers\r\nUpgrade: h2c\r\nProxy-Authorization: Basic eA==\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    assert_eq!(statuses(&raw(&stage, &text).await), ["202"]);
    let requests = stage.site.requests();
    let mut headers: Vec<&str> = requests[0]["headers"]
        .as_array()
        .expect("names")
        .iter()
        .filter_map(|name| name.as_str())
        .collect();
    headers.sort_unstable();
    assert_eq!(
        headers,
        [
            "accept",
            "authorization",
            "content-length",
            "content-type",
            "host",
            "user-agent"
        ]
    );
    assert_eq!(stage.site.violations(), json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_is_chosen_by_the_secret_and_by_nothing_else() {
    let stage = Stage::set(1).await;
    // Another site of the same relay, with an instance of its own.
    let other_site = JiraSite::start();
    other_site.secrets(&[SECRET_2]);
    let mut stage = stage;
    stage.relay.stop().await;
    let sites = format!("{},{}", stage.site.url, other_site.url);
    stage.relay.settings.set("JIRA__EXTRA_SITES", &sites);
    stage.relay.restart().await;
    stage.relay.new_client();
    let call_of_other = stage
        .jira
        .site("other-tenant")
        .call(&stage.relay.app_base_url(), "installed", Some(SECRET_2))
        .with_field("baseUrl", other_site.url.as_str());
    assert_eq!(stage.jira.send(call_of_other).await.status(), 204);
    let other = GitLab::start(&stage.relay, "", &[]);
    let link = stage.relay.link("other-tenant", &other.url).await;
    assert_eq!(link["state"], "connected", "{link:#}");

    let secret = stage.gitlabs[0].secret().await;
    other_site.clear_requests();
    stage.site.clear_requests();
    let host = other_site.url[7..].to_owned();
    let path = "/rest/api/3/user?accountId=a&expand=groups";
    let token = instance_token(
        &secret,
        "GET",
        path,
        json!({"aud": "other-tenant", "sub": "other-tenant", "clientKey": "other-tenant"}),
    );
    for target in [path.to_owned(), format!("http://{host}{path}")] {
        let text = format!(
            "GET {target} HTTP/1.1\r\nHost: {host}\r\nAuthorization: JWT {token}\r\nConnection: close\r\n\r\n"
        );
        assert_eq!(statuses(&raw(&stage, &text).await), ["200"], "{target}");
    }
    assert_eq!(
        (stage.site.requests().len(), other_site.requests().len()),
        (2, 0)
    );
    // Jira's secret, which the app has for both, is no instance's.
    for jiras in [SECRET, SECRET_2] {
        let token = instance_token(jiras, "GET", path, json!({"iss": APP_KEY}));
        assert_eq!(
            call(&stage.relay, &token, "GET", path, "").await.status(),
            401
        );
    }
    assert_eq!(other_site.requests().len(), 0);
}
