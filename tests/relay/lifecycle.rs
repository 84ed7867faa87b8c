//! What Jira tells us, and what becomes of it.

use serde_json::json;

use crate::{
    fakes::{FakeInstance, FakeJira, jira::now},
    harness::{SECRET, SECRET_2, TestRelay, checked},
};

#[tokio::test]
async fn the_main_job_install_link_rotate_uninstall() {
    let jira = FakeJira::start("tenant").await;
    let relay = TestRelay::start(&jira).await;
    let (one, two) = (
        FakeInstance::start(&relay.url(), "").await,
        FakeInstance::start(&relay.url(), "/gitlab").await,
    );
    let base = relay.app_base_url();
    assert_eq!(checked(jira.installed(&base, SECRET).await).status(), 204);
    for instance in [&one, &two] {
        let link = relay.link("tenant", &instance.url()).await;
        assert_eq!(link["state"], "connected", "{link:#}");
        let known = instance.known("tenant").expect("told");
        assert_eq!(known.base_url, relay.url());
        assert_ne!(known.shared_secret, SECRET, "Jira's secret stays with us");
    }
    assert_ne!(
        one.known("tenant"),
        two.known("tenant"),
        "each link has its own secret"
    );
    let told = one.state().events.pop().expect("event");
    assert_eq!(told.content_type, "application/x-www-form-urlencoded");
    let names: Vec<&str> = told.fields.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        ["baseUrl", "clientKey", "eventType", "jwt", "sharedSecret"]
    );
    let (iat, exp) = (told.claims["iat"].as_i64(), told.claims["exp"].as_i64());
    assert_eq!(exp, iat.map(|iat| iat + 180));
    assert!(told.claims["jti"].is_string());

    let before = one.known("tenant");
    assert_eq!(jira.installed(&base, SECRET_2).await.status(), 204);
    let installations = relay.admin("GET", "/api/v1/installations", None, 200).await;
    assert_eq!(installations[0]["secret_generation"], 2);
    assert_eq!(installations[0]["links"], 2);
    assert_eq!(
        one.known("tenant"),
        before,
        "a rotation in Jira is none of a relayed instance's business"
    );

    assert_eq!(jira.uninstalled(&base).await.status(), 204);
    for instance in [&one, &two] {
        let state = instance
            .until("uninstalled", |state| state.installations.is_empty())
            .await;
        let last = state.events.last().expect("event");
        let names: Vec<&str> = last.fields.keys().map(String::as_str).collect();
        assert_eq!(
            (last.event.as_str(), names),
            ("uninstalled", vec!["clientKey", "eventType", "jwt"])
        );
    }
}

#[tokio::test]
async fn a_reinstall_revives_the_links_with_fresh_secrets() {
    let jira = FakeJira::start("tenant").await;
    let mut relay = TestRelay::start(&jira).await;
    let instance = FakeInstance::start(&relay.url(), "").await;
    let base = relay.app_base_url();
    jira.installed(&base, SECRET).await;
    let link = relay.link("tenant", &instance.url()).await;
    let before = instance.known("tenant").expect("told");
    jira.uninstalled(&base).await;
    instance
        .until("uninstalled", |state| state.installations.is_empty())
        .await;
    relay
        .until_links("told", |links| links[0]["acknowledged"] == "uninstalled")
        .await;
    relay.restart().await;
    let links = relay.links().await;
    assert_eq!(links[0]["state"], "removing");
    assert_eq!(jira.installed(&base, SECRET_2).await.status(), 204);
    let state = instance
        .until("installed again", |state| !state.installations.is_empty())
        .await;
    let after = state.installations.get("tenant").expect("told");
    assert_ne!(after.shared_secret, before.shared_secret);
    let links = relay
        .until_links("connected", |links| links[0]["state"] == "connected")
        .await;
    assert_eq!(
        (&links[0]["id"], &links[0]["namespace"]),
        (&link["id"], &link["namespace"])
    );
}

#[tokio::test]
async fn an_instance_that_was_down_during_the_uninstall_hears_of_it() {
    let jira = FakeJira::start("tenant").await;
    let relay = TestRelay::start(&jira).await;
    let mut instance = FakeInstance::start(&relay.url(), "").await;
    let base = relay.app_base_url();
    jira.installed(&base, SECRET).await;
    relay.link("tenant", &instance.url()).await;
    instance.go_down().await;
    jira.uninstalled(&base).await;
    relay
        .until_links("a failed attempt", |links| {
            links[0]["last_error"]["code"] == "connection_failed"
        })
        .await;
    instance.go_up().await;
    let links = relay
        .until_links("told", |links| links[0]["acknowledged"] == "uninstalled")
        .await;
    assert_eq!(links[0]["last_error"], json!(null));
    let audit = relay.admin("GET", "/api/v1/audit", None, 200).await;
    assert_eq!(audit[0]["action"], "link_disconnected");
}

#[tokio::test]
async fn a_direct_link_follows_secret_and_address_of_its_site() {
    let mut jira = FakeJira::start("tenant").await;
    let relay = TestRelay::start(&jira).await;
    let instance = FakeInstance::start(&relay.url(), "").await;
    let base = relay.app_base_url();
    jira.installed(&base, SECRET).await;
    let wish = json!({"client_key": "tenant", "instance_url": instance.url(), "mode": "direct"});
    relay.admin("POST", "/api/v1/links", Some(wish), 201).await;
    let known = instance.known("tenant").expect("told");
    assert_eq!(
        (known.shared_secret.as_str(), known.base_url.as_str()),
        (SECRET, "https://acme.atlassian.net")
    );
    jira.base_url = "https://renamed.atlassian.net".to_owned();
    jira.installed(&base, SECRET_2).await;
    let is_new = |known: &crate::fakes::instance::Known| {
        known.shared_secret == SECRET_2 && known.base_url == "https://renamed.atlassian.net"
    };
    instance
        .until("the new secret", |state| {
            state.installations.get("tenant").is_some_and(is_new)
        })
        .await;
    let installations = relay.admin("GET", "/api/v1/installations", None, 200).await;
    assert_eq!(
        installations[0]["base_url"],
        "https://renamed.atlassian.net"
    );
}

#[tokio::test]
async fn what_is_old_or_repeated_changes_nothing() {
    let jira = FakeJira::start("tenant").await;
    let relay = TestRelay::start(&jira).await;
    let base = relay.app_base_url();
    jira.installed(&base, SECRET).await;
    let old = now().as_second() - 30;
    let late = jira
        .call(&base, "installed", Some(SECRET_2))
        .with_claim("iat", old)
        .with_claim("exp", old + 180);
    assert_eq!(jira.send(late).await.status(), 204);
    let late = jira
        .call(&base, "uninstalled", None)
        .with_claim("iat", old)
        .with_claim("exp", old + 180);
    assert_eq!(jira.send(late).await.status(), 204);
    assert_eq!(
        jira.site("stranger")
            .call(&base, "uninstalled", None)
            .claims["iss"],
        "stranger"
    );
    assert_eq!(
        jira.send(jira.site("stranger").call(&base, "uninstalled", None))
            .await
            .status(),
        204
    );
    let installations = relay.admin("GET", "/api/v1/installations", None, 200).await;
    assert_eq!(installations.as_array().map(Vec::len), Some(1));
    assert_eq!(
        (
            &installations[0]["secret_generation"],
            &installations[0]["state"]
        ),
        (&json!(1), &json!("installed"))
    );
    assert_eq!(
        relay
            .metric("jira_connect_proxy_lifecycle_events_total", "unchanged")
            .await,
        3.0
    );
}

#[tokio::test]
async fn instances_of_auto_link_are_linked_by_themselves() {
    let jira = FakeJira::start("tenant").await;
    let port = crate::harness::free_port();
    let relay = TestRelay::start_with(&jira, |settings| {
        settings.set(
            "INSTANCES__AUTO_LINK",
            &format!("[\"http://127.0.0.1:{port}\"]"),
        );
    })
    .await;
    jira.installed(&relay.app_base_url(), SECRET).await;
    let links = relay.links().await;
    assert_eq!(links.len(), 1);
    assert_eq!(links[0]["instance_url"], format!("http://127.0.0.1:{port}"));
}

#[tokio::test]
async fn two_sites_live_side_by_side() {
    let jira = FakeJira::start("tenant-a").await;
    let relay = TestRelay::start(&jira).await;
    let instance = FakeInstance::start(&relay.url(), "").await;
    let base = relay.app_base_url();
    jira.installed(&base, SECRET).await;
    jira.send(
        jira.site("tenant-b")
            .call(&base, "installed", Some(SECRET_2)),
    )
    .await;
    relay.link("tenant-a", &instance.url()).await;
    relay.link("tenant-b", &instance.url()).await;
    jira.uninstalled(&base).await;
    instance
        .until("one gone", |state| state.installations.len() == 1)
        .await;
    assert!(instance.known("tenant-b").is_some());
    let of_b = relay
        .admin("GET", "/api/v1/links?client_key=tenant-b", None, 200)
        .await;
    assert_eq!(
        (of_b.as_array().map(Vec::len), &of_b[0]["state"]),
        (Some(1), &json!("connected"))
    );
}
