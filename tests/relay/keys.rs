//! Public keys: ours, and Atlassian's.

use serde_json::json;

use crate::{
    fakes::{FakeInstance, FakeJira, jira::new_key},
    harness::{SECRET, SECRET_2, TestRelay},
};

#[tokio::test]
async fn ours_and_atlassians_are_served_and_nothing_else() {
    let jira = FakeJira::start("tenant").await;
    let relay = TestRelay::start(&jira).await;
    let url = |kid: &str| format!("{}/public_keys/{kid}", relay.app_base_url());
    let keys = relay.admin("GET", "/api/v1/keys", None, 200).await;
    let kid = keys[0]["kid"].as_str().expect("kid");
    let answer = relay.get(&url(kid)).await;
    assert_eq!(answer.status(), 200);
    assert!(
        answer.headers()["content-type"]
            .to_str()
            .is_ok_and(|text| text.starts_with("text/plain"))
    );
    assert_eq!(answer.headers()["cache-control"], "private, max-age=60");
    assert!(answer.body().starts_with(b"-----BEGIN PUBLIC KEY-----\n"));

    let answer = relay.get(&url(jira.key.kid.as_str())).await;
    assert_eq!(
        (answer.status().as_u16(), answer.body().as_ref()),
        (200, jira.key.public_pem.as_bytes())
    );
    let fetches = jira.fetches();
    relay.get(&url(jira.key.kid.as_str())).await;
    assert_eq!(jira.fetches(), fetches, "remembered");

    for _ in 0..3 {
        assert_eq!(
            relay
                .get(&url("00000000-0000-4000-8000-000000000000"))
                .await
                .status(),
            404
        );
    }
    assert_eq!(
        jira.fetches(),
        fetches + 1,
        "an unknown kid is asked for once"
    );
    for bad in ["..", "%2e%2e", "a%2fb", "a:b", "%00"] {
        assert_eq!(relay.get(&url(bad)).await.status(), 404, "{bad}");
    }
    assert_eq!(
        jira.fetches(),
        fetches + 1,
        "what is no kid is not asked for at all"
    );
}

#[tokio::test]
async fn a_rotation_serves_the_old_key_on_and_signs_with_the_new() {
    let jira = FakeJira::start("tenant").await;
    let mut relay = TestRelay::start(&jira).await;
    jira.installed(&relay.app_base_url(), SECRET).await;
    let old = relay.admin("GET", "/api/v1/keys", None, 200).await[0]["kid"].clone();
    let new = relay.admin("POST", "/api/v1/keys/rotate", None, 201).await;
    assert_eq!(new["state"], "active");
    assert_ne!(new["kid"], old);
    relay.restart().await;
    let keys = relay.admin("GET", "/api/v1/keys", None, 200).await;
    assert_eq!(
        (&keys[0]["kid"], &keys[1]["kid"], &keys[1]["state"]),
        (&new["kid"], &old, &json!("retired"))
    );
    let url = format!(
        "{}/public_keys/{}",
        relay.app_base_url(),
        old.as_str().expect("kid")
    );
    assert_eq!(relay.get(&url).await.status(), 200);
    let instance = FakeInstance::start(&relay.url(), "").await;
    relay.link("tenant", &instance.url()).await;
    let told = instance.state().events.pop().expect("event");
    let header = jsonwebtoken::decode_header(&told.fields["jwt"]).expect("header");
    assert_eq!(header.kid.as_deref(), new["kid"].as_str());
    assert!(
        relay
            .metric("jira_connect_proxy_signing_key_age_seconds", "")
            .await
            < 60.0
    );
}

#[tokio::test]
async fn one_fetch_serves_many_callers() {
    let jira = FakeJira::start("tenant").await;
    let relay = TestRelay::start(&jira).await;
    let base = relay.app_base_url();
    let install = async |site: &str| {
        let call = jira.site(site).call(&base, "installed", Some(SECRET));
        jira.send(call).await.status()
    };
    let answers = tokio::join!(
        install("a"),
        install("b"),
        install("c"),
        install("d"),
        install("e")
    );
    let (a, b, c, d, e) = answers;
    assert!([a, b, c, d, e].iter().all(|status| status == &204));
    assert_eq!(jira.fetches(), 1);
}

#[tokio::test]
async fn known_keys_outlive_the_key_server_and_a_restart() {
    let jira = FakeJira::start("tenant").await;
    let mut relay = TestRelay::start(&jira).await;
    let base = relay.app_base_url();
    assert_eq!(jira.installed(&base, SECRET).await.status(), 204);
    relay.restart().await;
    jira.break_key_server(500);
    assert_eq!(
        jira.installed(&base, SECRET_2).await.status(),
        204,
        "the last good key serves"
    );

    let unknown = new_key().await;
    jira.publish(&unknown.kid, &unknown.public_pem);
    let call = || {
        let mut call = jira.call(&base, "installed", Some(SECRET));
        call.header.kid = Some(unknown.kid.to_string());
        call.key = jsonwebtoken::EncodingKey::from_rsa_der(unknown.pkcs8.expose());
        call
    };
    let answer = jira.send(call()).await;
    assert_eq!(
        answer.status(),
        503,
        "Jira should try again, this is not its fault"
    );
    assert_eq!(crate::harness::code(&answer), "key_server_unavailable");
    assert!(answer.headers().contains_key("retry-after"));
}

#[tokio::test]
async fn rubbish_from_the_key_server_is_no_key() {
    let jira = FakeJira::start("tenant").await;
    let relay = TestRelay::start(&jira).await;
    jira.publish(&jira.key.kid, "<html>maintenance</html>");
    let answer = jira.installed(&relay.app_base_url(), SECRET).await;
    assert_eq!(answer.status(), 503);
}

/// Something between us and the key server filters; that is no reason to throw away what we have.
#[tokio::test]
async fn a_403_takes_no_known_key_away() {
    let jira = FakeJira::start("tenant").await;
    let mut relay = TestRelay::start(&jira).await;
    let base = relay.app_base_url();
    assert_eq!(jira.installed(&base, SECRET).await.status(), 204);
    jira.break_key_server(403);
    for secret in [SECRET_2, SECRET] {
        relay.restart().await;
        assert_eq!(jira.installed(&base, secret).await.status(), 204);
    }
    relay.restart().await;
    jira.break_key_server(410);
    let answer = jira.installed(&base, SECRET_2).await;
    assert_eq!(answer.status(), 401, "gone is gone");
    jira.break_key_server(500);
    relay.restart().await;
    assert_eq!(
        jira.installed(&base, SECRET_2).await.status(),
        503,
        "and forgotten"
    );
}
