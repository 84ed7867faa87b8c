//! What no honest peer sends: each refused with its own reason, nothing stored, nothing sent.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use jira_connect_proxy::jwt::token::TOKEN_MAX_BYTES;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    fakes::{
        FakeInstance, FakeJira,
        http::{client, send},
        jira::{Call, new_key, now},
    },
    harness::{SECRET, SECRET_2, TestRelay, checked, code},
};

/// A relay with one installation and one link, and what was known of them before the attack.
struct Stage {
    jira: FakeJira,
    relay: TestRelay,
    instance: FakeInstance,
    before: (Value, Vec<Value>, usize),
}

impl Stage {
    async fn set() -> Self {
        let jira = FakeJira::start("tenant").await;
        let relay = TestRelay::start(&jira).await;
        jira.installed(&relay.app_base_url(), SECRET).await;
        let instance = FakeInstance::start(&relay.url(), "").await;
        relay.link("tenant", &instance.url()).await;
        let before = Self::look(&relay, &instance).await;
        Self {
            jira,
            relay,
            instance,
            before,
        }
    }

    async fn look(relay: &TestRelay, instance: &FakeInstance) -> (Value, Vec<Value>, usize) {
        let installations = relay.admin("GET", "/api/v1/installations", None, 200).await;
        (
            installations,
            relay.links().await,
            instance.state().events.len(),
        )
    }

    fn call(&self) -> Call {
        self.jira
            .call(&self.relay.app_base_url(), "installed", Some(SECRET_2))
    }

    /// Sends and expects a refusal with this reason, which the metrics tell too.
    async fn refused(&self, call: Call, status: u16, reason: &str) {
        let answer = self.jira.send(call).await;
        self.check(&answer, status, reason).await;
    }

    async fn check(&self, answer: &Response<Bytes>, status: u16, reason: &str) {
        let answer = checked(answer.clone());
        assert_eq!(
            (answer.status().as_u16(), code(&answer).as_str()),
            (status, reason)
        );
        let label = format!("reason=\"{reason}\"");
        assert!(
            self.relay
                .metric("jira_connect_proxy_rejections_total", &label)
                .await
                >= 1.0
        );
        if reason.starts_with("token_") && reason != "token_reused" {
            assert!(
                self.relay
                    .metric("jira_connect_proxy_verify_failures_total", &label)
                    .await
                    >= 1.0
            );
        }
    }

    /// Sends with this Authorization header and query instead of the call's own.
    async fn raw(&self, call: &Call, authorization: &[String], query: &str) -> Response<Bytes> {
        let mut request = Request::post(format!("{}{query}", call.url));
        for value in authorization {
            request = request.header("authorization", value);
        }
        let body = Full::from(call.body.to_string());
        send(&client(), request.body(body).expect("request")).await
    }

    async fn nothing_happened(&self) {
        assert_eq!(Self::look(&self.relay, &self.instance).await, self.before);
    }
}

#[tokio::test]
async fn tokens_that_prove_nothing() {
    let stage = Stage::set().await;
    let now = now().as_second();

    let answer = stage.raw(&stage.call(), &[], "").await;
    stage.check(&answer, 401, "token_missing").await;

    let none = format!(
        "{}.{}.",
        base64(&json!({"alg": "none", "kid": stage.jira.key.kid.as_str()})),
        base64(&stage.call().claims)
    );
    let answer = stage.raw(&stage.call(), &[format!("JWT {none}")], "").await;
    stage.check(&answer, 401, "token_algorithm").await;

    // The classic: HMAC with the public key's text as the secret.
    let mut confused = stage.call();
    let kid = confused.header.kid.clone();
    confused.header = Header::new(Algorithm::HS256);
    confused.header.kid = kid;
    confused.key = EncodingKey::from_secret(stage.jira.key.public_pem.as_bytes());
    stage.refused(confused, 401, "token_algorithm").await;

    let mut symmetric = stage.call();
    symmetric.header = Header::new(Algorithm::HS256);
    symmetric.key = EncodingKey::from_secret(SECRET.as_bytes());
    stage.refused(symmetric, 401, "token_algorithm").await;

    // RS256 in the header, an HMAC as the signature.
    let call = stage.call();
    let token = call.token();
    let (signed, _) = token.rsplit_once('.').expect("token");
    let answer = stage.raw(&call, &[format!("JWT {signed}.AAAA")], "").await;
    stage.check(&answer, 401, "token_signature").await;

    let mut stranger = stage.call();
    stranger.key = EncodingKey::from_rsa_der(new_key().await.pkcs8.expose());
    stage.refused(stranger, 401, "token_signature").await;

    let mut unknown = stage.call();
    unknown.header.kid = Some("0b0c0d0e-0000-4000-8000-000000000000".to_owned());
    stage.refused(unknown, 401, "token_unknown_key").await;

    let fetches = stage.jira.fetches();
    for kid in [
        "../admin",
        "..",
        "a/../../b",
        "a%2fb",
        "a?b",
        "http://evil.example/k",
        "a//b",
        "",
    ] {
        let mut tricky = stage.call();
        tricky.header.kid = Some(kid.to_owned());
        stage.refused(tricky, 401, "token_key_id").await;
    }
    assert_eq!(
        stage.jira.fetches(),
        fetches,
        "nobody was asked for such a thing"
    );
    let mut nameless = stage.call();
    nameless.header.kid = None;
    stage.refused(nameless, 401, "token_claim_missing").await;

    stage
        .refused(
            stage.call().with_claim("iss", "another-tenant"),
            401,
            "token_issuer_mismatch",
        )
        .await;
    stage
        .refused(
            stage.call().with_field("clientKey", "another-tenant"),
            401,
            "token_issuer_mismatch",
        )
        .await;
    for aud in [
        json!(["https://evil.example"]),
        json!("https://evil.example"),
        json!([]),
        json!([format!("{}/events", stage.relay.app_base_url())]),
    ] {
        stage
            .refused(stage.call().with_claim("aud", aud), 401, "token_audience")
            .await;
    }
    stage
        .refused(
            stage.call().with_claim("qsh", "0".repeat(64)),
            401,
            "token_query_hash",
        )
        .await;
    stage
        .refused(
            stage.call().with_claim("qsh", "context-qsh"),
            401,
            "token_context_refused",
        )
        .await;
    stage
        .refused(
            stage
                .call()
                .with_claim("exp", now - 61)
                .with_claim("iat", now - 241),
            401,
            "token_expired",
        )
        .await;
    stage
        .refused(
            stage
                .call()
                .with_claim("iat", now + 120)
                .with_claim("exp", now + 300),
            401,
            "token_from_the_future",
        )
        .await;
    stage
        .refused(
            stage.call().with_claim("nbf", now + 120),
            401,
            "token_not_yet_valid",
        )
        .await;
    for claim in ["exp", "iat", "iss", "aud", "qsh"] {
        stage
            .refused(
                stage.call().without_claim(claim),
                401,
                "token_claim_missing",
            )
            .await;
    }
    for (claim, value) in [
        ("exp", json!("9999999999")),
        ("exp", json!(1e10)),
        ("iss", json!(7)),
        ("qsh", json!(null)),
    ] {
        let answer = stage.jira.send(stage.call().with_claim(claim, value)).await;
        assert_eq!(answer.status(), 401, "{claim}");
    }
    stage
        .refused(
            stage
                .call()
                .with_claim("padding", "x".repeat(TOKEN_MAX_BYTES)),
            401,
            "token_too_large",
        )
        .await;
    for rubbish in ["JWT", "JWT x", "JWT ...", "JWT a.b.c", "JWT é.é.é"] {
        let answer = stage.raw(&stage.call(), &[rubbish.to_owned()], "").await;
        assert_eq!(answer.status(), 401, "{rubbish}");
    }
    stage.nothing_happened().await;
}

#[tokio::test]
async fn a_good_token_in_the_wrong_place() {
    let stage = Stage::set().await;
    let call = stage.call();
    let token = call.token();

    // Replayed to the other event: the path is in the hash.
    let mut replay = stage.call();
    replay.url = replay.url.replace("installed", "uninstalled");
    replay = replay.with_field("eventType", "uninstalled");
    let answer = stage.jira.send(replay).await;
    stage.check(&answer, 401, "token_query_hash").await;

    // Its path, with a query that was not signed.
    let answer = stage.raw(&call, &[format!("JWT {token}")], "?a=1").await;
    stage.check(&answer, 401, "token_query_hash").await;

    // The same token in two places is one token, two tokens are not.
    let other = stage.call().token();
    let other = format!("{}x", other.trim_end_matches('x'));
    let answer = stage
        .raw(&call, &[format!("JWT {token}"), format!("JWT {other}")], "")
        .await;
    stage.check(&answer, 400, "token_ambiguous").await;
    let answer = stage
        .raw(&call, &[format!("JWT {token}")], &format!("?jwt={other}"))
        .await;
    stage.check(&answer, 400, "token_ambiguous").await;

    // Duplicate and nameless parameters, dot segments and the like come from nobody honest.
    for (query, reason) in [
        ("?a=1&a=2", "repeated_parameter"),
        ("?=1", "nameless_parameter"),
        ("?a=%zz", "malformed_escape"),
    ] {
        let answer = stage.raw(&call, &[format!("JWT {token}")], query).await;
        stage.check(&answer, 400, reason).await;
    }
    let many: Vec<String> = (0..101).map(|n| format!("p{n}=1")).collect();
    let answer = stage
        .raw(
            &call,
            &[format!("JWT {token}")],
            &format!("?{}", many.join("&")),
        )
        .await;
    stage.check(&answer, 400, "too_many_parameters").await;

    // Another method, another path.
    let request = Request::get(&call.url).header("authorization", format!("JWT {token}"));
    let answer = send(&client(), request.body(Full::default()).expect("request")).await;
    stage.check(&answer, 405, "method_not_allowed").await;
    let request =
        Request::post(format!("{}/", call.url)).header("authorization", format!("JWT {token}"));
    let answer = send(
        &client(),
        request
            .body(Full::from(call.body.to_string()))
            .expect("request"),
    )
    .await;
    stage.check(&answer, 404, "not_found").await;
    stage.nothing_happened().await;
}

#[tokio::test]
async fn bodies_that_do_not_fit() {
    let stage = Stage::set().await;
    stage
        .refused(
            stage.call().with_field("key", "another-app"),
            400,
            "app_key_mismatch",
        )
        .await;
    stage
        .refused(
            stage.call().with_field("eventType", "enabled"),
            400,
            "event_type_mismatch",
        )
        .await;
    stage
        .refused(
            stage.call().with_field("sharedSecret", ""),
            400,
            "shared_secret_unusable",
        )
        .await;
    stage
        .refused(
            stage.call().with_field("sharedSecret", Value::Null),
            400,
            "body_field_missing",
        )
        .await;
    for site in [
        "https://evil.example",
        "http://acme.atlassian.net",
        "https://evilatlassian.net",
        "https://acme.atlassian.net.evil.example",
        "https://acme.atlassian.net:444",
    ] {
        stage
            .refused(
                stage.call().with_field("baseUrl", site),
                403,
                "site_not_allowed",
            )
            .await;
    }
    stage
        .refused(
            stage.call().with_field("padding", "x".repeat(300_000)),
            413,
            "body_too_large",
        )
        .await;
    let mut rubbish = stage.call();
    rubbish.body = json!([1, 2]);
    stage.refused(rubbish, 400, "body_malformed").await;

    // A field twice, and a body that lies about its length: by hand.
    let call = stage.call();
    let head = |length: usize| {
        format!(
            "POST /-/jira_connect/events/installed HTTP/1.1\r\nhost: relay\r\nauthorization: JWT {}\r\ncontent-length: {length}\r\n\r\n",
            call.token()
        )
    };
    let body = call.body.to_string();
    let twice = body.replacen('{', "{\"clientKey\":\"another\",", 1);
    let answer = by_hand(&stage, &format!("{}{twice}", head(twice.len())), false).await;
    assert!(
        answer.starts_with("HTTP/1.1 400") && answer.contains("body_malformed"),
        "{answer}"
    );
    let answer = by_hand(
        &stage,
        &format!("{}{}", head(body.len()), &body[..body.len() / 2]),
        true,
    )
    .await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 400"),
        "half a body, then gone: {answer}"
    );
    let answer = by_hand(
        &stage,
        &format!("{}{}", head(body.len()), &body[..body.len() / 2]),
        false,
    )
    .await;
    assert!(
        answer.starts_with("HTTP/1.1 408") && answer.contains("body_too_slow"),
        "half a body, then silence: {answer}"
    );
    let answer = by_hand(&stage, &format!("{}x", head(1_000_000_000)), false).await;
    assert!(
        answer.starts_with("HTTP/1.1 413"),
        "a huge body is refused before it comes: {answer}"
    );
    stage.nothing_happened().await;
}

#[tokio::test]
async fn sockets_that_waste_our_time() {
    let stage = Stage::set().await;
    // Headers that never end are cut; enormous ones are refused.
    let answer = by_hand(
        &stage,
        "POST /-/jira_connect/events/installed HTTP/1.1\r\nhost: relay\r\n",
        false,
    )
    .await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 408"),
        "{answer}"
    );
    let huge = format!(
        "GET / HTTP/1.1\r\nhost: relay\r\nx: {}\r\n\r\n",
        "x".repeat(100_000)
    );
    let answer = by_hand(&stage, &huge, false).await;
    assert!(
        answer.starts_with("HTTP/1.1 431") || answer.is_empty(),
        "{answer}"
    );
    let answer = by_hand(&stage, "\u{16}\u{3}\u{1}hello\r\n\r\n", false).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 400"),
        "{answer}"
    );
    stage.nothing_happened().await;
}

/// What stands behind a request and is no request gives a connection no more time than silence.
#[tokio::test]
async fn a_byte_behind_a_request_keeps_no_connection() {
    let jira = FakeJira::start("tenant").await;
    let relay = TestRelay::start_with(&jira, |settings| {
        settings.set("LIMITS__RECEIVE_TIMEOUT_SECS", "1");
    })
    .await;
    let address = ("127.0.0.1", relay.settings.public_port);
    let mut stream = TcpStream::connect(address).await.expect("connect");
    let request = "GET /-/jira_connect/app_descriptor HTTP/1.1\r\nhost: relay\r\n\r\nG";
    stream.write_all(request.as_bytes()).await.expect("write");
    let mut answer = Vec::new();
    let reading = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer));
    assert!(reading.await.is_ok(), "the connection is still open");
    assert!(answer.starts_with(b"HTTP/1.1 200"));
}

/// A connection is parked while it is idle, and a request that comes in pieces, or behind another, is whole.
#[tokio::test]
async fn a_parked_connection_loses_no_byte() {
    let jira = FakeJira::start("tenant").await;
    let relay = TestRelay::start(&jira).await;
    let address = ("127.0.0.1", relay.settings.public_port);
    let mut stream = TcpStream::connect(address).await.expect("connect");
    let request = "GET /-/jira_connect/app_descriptor HTTP/1.1\r\nhost: relay\r\n\r\n";
    let mut answers = 0;
    for cut in [0, 1, 20, request.len() - 1] {
        // One whole, and the first piece of the next one; then a pause longer than it takes to be parked.
        let (first, rest) = request.split_at(cut);
        let pieces = format!("{request}{first}");
        stream.write_all(pieces.as_bytes()).await.expect("write");
        tokio::time::sleep(Duration::from_millis(150)).await;
        stream.write_all(rest.as_bytes()).await.expect("write");
        answers += 2;
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    let mut text = String::new();
    let mut buffer = vec![0; 65_536];
    while text.matches("HTTP/1.1 200").count() < answers {
        let reading = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut buffer));
        let length = reading.await.expect("an answer").expect("read");
        assert!(length > 0, "closed after {text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
}

/// Three connections are all there are, and three peers take them without ever asking for anything.
#[tokio::test]
async fn silent_sockets_do_not_keep_others_out() {
    let jira = FakeJira::start("tenant").await;
    let mut relay = TestRelay::start_with(&jira, |settings| {
        settings.set("LIMITS__CONNECTIONS_MAX", "3");
        settings.set("LIMITS__RECEIVE_TIMEOUT_SECS", "1");
    })
    .await;
    let address = ("127.0.0.1", relay.settings.public_port);
    for first in ["", "P", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut silent = Vec::new();
        for _ in 0..3 {
            let mut stream = TcpStream::connect(address).await.expect("connect");
            stream.write_all(first.as_bytes()).await.expect("write");
            silent.push(stream);
        }
        let descriptor = relay
            .get(&format!("{}/app_descriptor.json", relay.app_base_url()))
            .await;
        assert_eq!(descriptor.status(), 200, "after {first:?}");
        // The keep-alive connection of the test's own client takes a permit too.
        relay.new_client();
    }
}

#[tokio::test]
async fn strangers_who_ask_for_keys_do_not_keep_jira_out() {
    let jira = FakeJira::start("tenant").await;
    let mut relay = TestRelay::start(&jira).await;
    let keys_url = format!("{}/public_keys", relay.app_base_url());
    let flood = async |relay: &TestRelay| {
        for _ in 0..200 {
            let kid = uuid::Uuid::new_v4();
            assert_eq!(relay.get(&format!("{keys_url}/{kid}")).await.status(), 404);
        }
        // Also for the very key that Jira is about to use.
        relay.get(&format!("{keys_url}/{}", jira.key.kid)).await;
    };
    flood(&relay).await;
    assert!(
        relay
            .metric("jira_connect_proxy_install_key_fetches_total", "throttled")
            .await
            >= 1.0
    );
    assert_eq!(
        jira.installed(&relay.app_base_url(), SECRET).await.status(),
        204
    );
    relay.restart().await;
    flood(&relay).await;
    assert_eq!(
        jira.installed(&relay.app_base_url(), SECRET_2)
            .await
            .status(),
        204
    );
}

/// Whole seconds and no `jti`: two honest calls of one second carry the same token.
#[tokio::test]
async fn a_token_again_is_a_repeat_or_the_next_call_of_the_same_second() {
    let stage = Stage::set().await;
    let call = stage.call();
    let token = format!("JWT {}", call.token());
    for _ in 0..2 {
        assert_eq!(
            stage
                .raw(&call, std::slice::from_ref(&token), "")
                .await
                .status(),
            204
        );
    }
    let mut next = stage
        .call()
        .with_field("sharedSecret", "third-secret-third-secret-third-secret");
    next.header = call.header.clone();
    assert_eq!(stage.raw(&next, &[token], "").await.status(), 204);
    let installations = stage
        .relay
        .admin("GET", "/api/v1/installations", None, 200)
        .await;
    assert_eq!(installations[0]["secret_generation"], 3);
}

#[tokio::test]
async fn the_admin_api_wants_its_token() {
    let stage = Stage::set().await;
    let admin = stage.relay.settings.admin_url();
    for path in [
        "/api/v1/links",
        "/api/v1/installations",
        "/api/v1/keys",
        "/api/v1/audit",
        "/api/v1/backup",
        "/api/v1/nothing",
        "/",
    ] {
        let answer = stage.relay.get(&format!("{admin}{path}")).await;
        assert_eq!(
            (answer.status().as_u16(), code(&answer).as_str()),
            (401, "admin_token"),
            "{path}"
        );
    }
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(
            stage.relay.get(&format!("{admin}{path}")).await.status(),
            200
        );
    }
    // The public listener knows nothing of it.
    for path in ["/api/v1/links", "/metrics", "/healthz", "/"] {
        let answer = stage
            .relay
            .get(&format!("{}{path}", stage.relay.url()))
            .await;
        assert_eq!(answer.status(), 404, "{path}");
    }
    stage.nothing_happened().await;
}

/// Writes bytes to the public listener and reads until it hangs up. `hang_up` closes our half first.
async fn by_hand(stage: &Stage, bytes: &str, hang_up: bool) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", stage.relay.settings.public_port))
        .await
        .expect("connect");
    // A server that refuses early may close before it has taken everything.
    let _ = stream.write_all(bytes.as_bytes()).await;
    if hang_up {
        let _ = stream.shutdown().await;
    }
    let mut answer = Vec::new();
    tokio::time::timeout(Duration::from_secs(20), async {
        let mut chunk = [0; 4096];
        loop {
            match stream.read(&mut chunk).await {
                Ok(0) | Err(_) => return,
                Ok(n) => answer.extend_from_slice(&chunk[..n]),
            }
            let text = String::from_utf8_lossy(&answer);
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head
                    .to_lowercase()
                    .split("content-length: ")
                    .nth(1)
                    .and_then(|rest| rest.split("\r\n").next()?.parse().ok())
                    .unwrap_or(0);
                if body.len() >= length {
                    return;
                }
            }
        }
    })
    .await
    .expect("the server never lets a connection hang");
    String::from_utf8_lossy(&answer).into_owned()
}

fn base64(value: &Value) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string())
}
