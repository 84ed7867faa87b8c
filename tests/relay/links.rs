//! Links through the admin API, and instances that misbehave.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    fakes::{FakeInstance, FakeJira, instance::Behaviour},
    harness::{SECRET, TestRelay, code, free_port},
};

async fn installed() -> (FakeJira, TestRelay) {
    let jira = FakeJira::start("tenant").await;
    let relay = TestRelay::start(&jira).await;
    jira.installed(&relay.app_base_url(), SECRET).await;
    (jira, relay)
}

#[tokio::test]
async fn an_instance_that_is_down_gets_it_when_it_is_up_and_delays_nobody() {
    let (_jira, relay) = installed().await;
    let mut down = FakeInstance::start(&relay.url(), "").await;
    let up = FakeInstance::start(&relay.url(), "").await;
    down.go_down().await;
    let link = relay.link("tenant", &down.url()).await;
    assert_eq!(
        (&link["state"], &link["last_error"]["code"]),
        (&json!("failing"), &json!("connection_failed"))
    );
    assert!(
        link["last_error"]["hint"]
            .as_str()
            .is_some_and(|hint| !hint.is_empty())
    );
    let started = Instant::now();
    assert_eq!(relay.link("tenant", &up.url()).await["state"], "connected");
    assert!(started.elapsed() < Duration::from_secs(10));
    down.go_up().await;
    down.until("installed", |state| !state.installations.is_empty())
        .await;
    relay
        .until_links("all connected", |links| {
            links.iter().all(|link| link["state"] == "connected")
        })
        .await;
}

#[tokio::test]
async fn failures_are_told_apart() {
    let (_jira, relay) = installed().await;
    let problem = |link: Value| {
        assert_eq!(link["state"], "failing", "{link:#}");
        let error = &link["last_error"];
        for field in ["message", "hint", "at", "id"] {
            assert!(
                error[field].as_str().is_some_and(|text| !text.is_empty()),
                "{field} in {error}"
            );
        }
        error["code"].as_str().expect("code").to_owned()
    };
    for (status, expected) in [
        (302, "redirected"),
        (403, "forbidden"),
        (404, "not_found"),
        (422, "unprocessable"),
        (429, "throttled"),
        (500, "instance_error"),
        (503, "instance_unavailable"),
        (201, "unexpected_status"),
        (204, "unexpected_status"),
        (401, "unauthorized_key_not_fetched"),
    ] {
        let instance = FakeInstance::start(&relay.url(), "").await;
        instance.behave(Behaviour::Status(status));
        assert_eq!(
            problem(relay.link("tenant", &instance.url()).await),
            expected
        );
    }
    // Its proxy URL is right, but its reverse proxy hands on another host name.
    let elsewhere = FakeInstance::start(&relay.url(), "/gitlab").await;
    let (_, port) = elsewhere
        .url()
        .rsplit_once(':')
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .expect("port");
    let port = port.trim_end_matches("/gitlab").to_owned();
    let deaf = FakeInstance::start("http://127.0.0.1:1", "").await;
    assert_eq!(
        problem(relay.link("tenant", &deaf.url()).await),
        "unauthorized_key_not_fetched"
    );
    let wrong_sub_path = relay
        .link("tenant", &format!("http://127.0.0.1:{port}/git"))
        .await;
    assert_eq!(problem(wrong_sub_path), "not_found");
    let silent = FakeInstance::start(&relay.url(), "").await;
    silent.behave(Behaviour::Silent(Duration::from_secs(10)));
    assert_eq!(
        problem(relay.link("tenant", &silent.url()).await),
        "answer_timed_out"
    );
    let not_tls = format!("https://127.0.0.1:{port}");
    assert_eq!(problem(relay.link("tenant", &not_tls).await), "tls_failed");
    assert_eq!(
        problem(relay.link("tenant", "http://gitlab.invalid").await),
        "dns_failed"
    );
}

#[tokio::test]
async fn a_401_after_the_key_was_fetched_is_another_matter() {
    let (_jira, relay) = installed().await;
    // It asks for the key, then refuses: the client key in its token check is wrong because the body's is
    // compared with a `Host` that it does not know itself by.
    let instance = FakeInstance::start(&relay.url(), "").await;
    let alias = instance.url().replace("127.0.0.1", "localhost");
    let through_alias = relay.link("tenant", &alias).await;
    assert_eq!(
        through_alias["state"], "connected",
        "the audience follows the linked name: {through_alias:#}"
    );
    let confused = crate::fakes::http::FakeServer::start({
        let relay_url = relay.url();
        move |request: http::Request<bytes::Bytes>| {
            let relay_url = relay_url.clone();
            async move {
                let form: std::collections::HashMap<String, String> =
                    form_urlencoded::parse(request.body())
                        .into_owned()
                        .collect();
                let kid = jsonwebtoken::decode_header(&form["jwt"])
                    .expect("header")
                    .kid
                    .expect("kid");
                let url = format!("{relay_url}/-/jira_connect/public_keys/{kid}");
                let key = http::Request::get(url)
                    .body(http_body_util::Full::default())
                    .expect("request");
                crate::fakes::http::send(&crate::fakes::http::client(), key).await;
                crate::fakes::http::answer(401, "")
            }
        }
    })
    .await;
    let link = relay.link("tenant", &confused.url()).await;
    assert_eq!(link["last_error"]["code"], "unauthorized_key_fetched");
    assert!(
        link["last_error"]["hint"]
            .as_str()
            .is_some_and(|hint| hint.contains("Host header"))
    );
}

#[tokio::test]
async fn a_lost_acknowledgement_is_made_good_by_a_repeat() {
    let (_jira, relay) = installed().await;
    let instance = FakeInstance::start(&relay.url(), "").await;
    instance.behave(Behaviour::StoresThenFails(500));
    relay.link("tenant", &instance.url()).await;
    instance.behave(Behaviour::Honest);
    relay
        .until_links("connected", |links| links[0]["state"] == "connected")
        .await;
    let secrets: Vec<_> = instance
        .state()
        .events
        .iter()
        .filter_map(|told| told.fields.get("sharedSecret").cloned())
        .collect();
    assert!(
        secrets.len() >= 2 && secrets.windows(2).all(|pair| pair[0] == pair[1]),
        "the same secret each time"
    );
    let ids: std::collections::HashSet<String> = instance
        .state()
        .events
        .iter()
        .map(|told| told.claims["jti"].to_string())
        .collect();
    assert_eq!(ids.len(), secrets.len(), "each attempt is signed anew");
}

#[tokio::test]
async fn resend_brings_a_fresh_secret() {
    let (_jira, relay) = installed().await;
    let instance = FakeInstance::start(&relay.url(), "").await;
    let link = relay.link("tenant", &instance.url()).await;
    let before = instance.known("tenant").expect("told");
    let path = format!("/api/v1/links/{}/resend", link["id"].as_str().expect("id"));
    let again = relay.admin("POST", &path, None, 200).await;
    assert_eq!(
        (&again["state"], &again["generation"]),
        (&json!("connected"), &json!(2))
    );
    assert_ne!(
        instance.known("tenant").expect("told").shared_secret,
        before.shared_secret
    );
}

#[tokio::test]
async fn a_removed_link_is_told_and_gone() {
    let (_jira, relay) = installed().await;
    let instance = FakeInstance::start(&relay.url(), "/gitlab").await;
    let link = relay.link("tenant", &instance.url()).await;
    let path = format!("/api/v1/links/{}", link["id"].as_str().expect("id"));
    let leaving = relay.admin("DELETE", &path, None, 202).await;
    assert_eq!(leaving["state"], "removing");
    instance
        .until("uninstalled", |state| state.installations.is_empty())
        .await;
    relay.until_links("gone", <[Value]>::is_empty).await;
    relay.admin("DELETE", &path, None, 404).await;
    relay.admin("GET", &path, None, 404).await;
}

#[tokio::test]
async fn a_removal_that_is_refused_ends_after_some_tries() {
    let (_jira, relay) = installed().await;
    for status in [401, 500] {
        let instance = FakeInstance::start(&relay.url(), "").await;
        let link = relay.link("tenant", &instance.url()).await;
        instance.behave(Behaviour::Status(status));
        let path = format!("/api/v1/links/{}", link["id"].as_str().expect("id"));
        relay.admin("DELETE", &path, None, 202).await;
        relay.until_links("gone", <[Value]>::is_empty).await;
        let tries = instance
            .state()
            .events
            .iter()
            .filter(|told| told.event == "uninstalled")
            .count();
        assert_eq!(tries, 5);
    }
    let audit = relay.admin("GET", "/api/v1/audit", None, 200).await;
    let given_up = audit
        .as_array()
        .expect("list")
        .iter()
        .filter(|entry| entry["action"] == "link_given_up")
        .count();
    assert_eq!(given_up, 2);
}

#[tokio::test]
async fn a_removal_can_be_taken_back_while_the_instance_is_down() {
    let (_jira, relay) = installed().await;
    let mut instance = FakeInstance::start(&relay.url(), "").await;
    let link = relay.link("tenant", &instance.url()).await;
    instance.go_down().await;
    let path = format!("/api/v1/links/{}", link["id"].as_str().expect("id"));
    relay.admin("DELETE", &path, None, 202).await;
    let again = relay.link("tenant", &instance.url()).await;
    assert_eq!(
        (&again["id"], &again["namespace"]),
        (&link["id"], &link["namespace"])
    );
    instance.go_up().await;
    relay
        .until_links("connected", |links| links[0]["state"] == "connected")
        .await;
}

#[tokio::test]
async fn rules_between_links_hold() {
    let (jira, relay) = installed().await;
    let (one, two) = (
        format!("http://127.0.0.1:{}", free_port()),
        format!("http://127.0.0.1:{}", free_port()),
    );
    let wish = |url: &str, extra: Value| {
        let mut wish = json!({"client_key": "tenant", "instance_url": url});
        wish.as_object_mut()
            .expect("object")
            .extend(extra.as_object().cloned().unwrap_or_default());
        wish
    };
    let refused = async |wish: Value, status: u16| {
        let answer = relay.try_admin("POST", "/api/v1/links", Some(wish)).await;
        assert_eq!(answer.status().as_u16(), status, "{:?}", answer.body());
        code(&answer)
    };
    relay
        .admin(
            "POST",
            "/api/v1/links",
            Some(wish(&one, json!({"keep_ids": true}))),
            201,
        )
        .await;
    assert_eq!(refused(wish(&one, json!({})), 409).await, "link_exists");
    assert_eq!(
        refused(wish(&format!("{one}/"), json!({})), 409).await,
        "link_exists",
        "spelling does not matter"
    );
    assert_eq!(
        refused(wish(&two, json!({"mode": "direct"})), 409).await,
        "link_not_alone"
    );
    assert_eq!(
        refused(wish(&two, json!({"keep_ids": true})), 409).await,
        "keep_ids_taken"
    );
    assert_eq!(
        refused(wish("not a url", json!({})), 400).await,
        "instance_url_malformed"
    );
    assert_eq!(
        refused(wish(&relay.url(), json!({})), 400).await,
        "instance_is_relay"
    );
    assert_eq!(
        refused(wish(&two, json!({"mode": "magic"})), 400).await,
        "body_malformed"
    );
    assert_eq!(
        refused(wish(&two, json!({"typo": 1})), 400).await,
        "body_malformed"
    );
    assert_eq!(
        refused(json!({"client_key": "nobody", "instance_url": two}), 404).await,
        "installation_unknown"
    );
    jira.uninstalled(&relay.app_base_url()).await;
    assert_eq!(
        refused(wish(&two, json!({})), 409).await,
        "installation_uninstalled"
    );
}

#[tokio::test]
async fn the_operators_policy_on_instances_holds_and_can_change() {
    let jira = FakeJira::start("tenant").await;
    let mut relay = TestRelay::start_with(&jira, |settings| {
        settings.set(
            "INSTANCES__ALLOW",
            "[\"gitlab.example.com\", \"127.0.0.1\", \"localhost\"]",
        );
        settings.set("INSTANCES__DANGEROUS_ALLOW_HTTP", "false");
        settings.set("INSTANCES__DANGEROUS_ALLOW_PRIVATE_ADDRESSES", "false");
    })
    .await;
    jira.installed(&relay.app_base_url(), SECRET).await;
    let refused = async |relay: &TestRelay, url: &str| {
        let wish = json!({"client_key": "tenant", "instance_url": url});
        let answer = relay.try_admin("POST", "/api/v1/links", Some(wish)).await;
        assert_eq!(answer.status(), 403, "{url}: {:?}", answer.body());
        code(&answer)
    };
    assert_eq!(
        refused(&relay, "http://gitlab.example.com").await,
        "instance_not_https"
    );
    assert_eq!(
        refused(&relay, "https://gitlab.example.org").await,
        "instance_not_allowed"
    );
    assert_eq!(
        refused(&relay, "https://127.0.0.1").await,
        "instance_address_not_public"
    );
    assert_eq!(
        refused(&relay, "https://localhost").await,
        "instance_address_not_public"
    );
    assert!(relay.links().await.is_empty());

    relay
        .settings
        .set("INSTANCES__DANGEROUS_ALLOW_HTTP", "true");
    relay
        .settings
        .set("INSTANCES__DANGEROUS_ALLOW_PRIVATE_ADDRESSES", "true");
    relay.reload.apply(&relay.settings.config()).await;
    let instance = FakeInstance::start(&relay.url(), "").await;
    let link = relay.link("tenant", &instance.url()).await;
    assert_eq!(link["state"], "connected");

    relay
        .settings
        .set("INSTANCES__ALLOW", "[\"gitlab.example.com\"]");
    relay.reload.apply(&relay.settings.config()).await;
    let path = format!("/api/v1/links/{}", link["id"].as_str().expect("id"));
    let again = relay
        .admin("POST", &format!("{path}/resend"), None, 200)
        .await;
    assert_eq!(again["last_error"]["code"], "not_allowed");
    relay.admin("DELETE", &path, None, 202).await;
    relay
        .until_links("told, though allowed no more", <[Value]>::is_empty)
        .await;
    assert!(instance.state().installations.is_empty());
}

#[tokio::test]
async fn a_changed_public_url_reaches_the_instances() {
    let (_jira, mut relay) = installed().await;
    let instance = FakeInstance::start(&relay.url(), "").await;
    relay.link("tenant", &instance.url()).await;
    let moved = relay.url().replace("127.0.0.1", "localhost");
    relay.settings.set("PUBLIC__URL", &moved);
    relay.restart().await;
    instance
        .until("the new base URL", |state| {
            state
                .installations
                .get("tenant")
                .is_some_and(|known| known.base_url == moved)
        })
        .await;
}

#[tokio::test]
async fn a_link_that_never_reached_anybody_goes_at_once() {
    let (_jira, relay) = installed().await;
    let link = relay.link("tenant", "http://gitlab.invalid").await;
    assert_eq!(link["last_error"]["code"], "dns_failed");
    let path = format!("/api/v1/links/{}", link["id"].as_str().expect("id"));
    relay.admin("DELETE", &path, None, 202).await;
    relay.until_links("gone", <[Value]>::is_empty).await;
}

#[tokio::test]
async fn one_instance_that_says_nothing_delays_no_other() {
    let jira = FakeJira::start("tenant").await;
    let relay = TestRelay::start_with(&jira, |settings| {
        settings.set("INSTANCES__REQUEST_TIMEOUT_MS", "30000");
        settings.set("INSTANCES__DELIVERIES_MAX", "4");
        settings.set("INSTANCES__DELIVERIES_PER_INSTANCE_MAX", "2");
    })
    .await;
    let silent = FakeInstance::start(&relay.url(), "").await;
    silent.behave(Behaviour::Silent(Duration::from_secs(60)));
    let base = relay.app_base_url();
    let sites: Vec<String> = (0..6).map(|n| format!("tenant-{n}")).collect();
    // More links to the silent one than attempts it may have at once.
    for site in &sites {
        jira.send(jira.site(site).call(&base, "installed", Some(SECRET)))
            .await;
        let wish = json!({"client_key": site, "instance_url": silent.url()});
        // The answer would wait for the first attempt; nobody waits for the answer.
        let answer = relay.try_admin("POST", "/api/v1/links", Some(wish));
        let _ = tokio::time::timeout(Duration::from_millis(100), answer).await;
    }
    let lively = FakeInstance::start(&relay.url(), "").await;
    let started = Instant::now();
    assert_eq!(
        relay.link("tenant-0", &lively.url()).await["state"],
        "connected"
    );
    assert!(
        started.elapsed() < Duration::from_secs(25),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn a_reload_leaves_what_is_under_way_alone() {
    let (_jira, mut relay) = installed().await;
    let mut instance = FakeInstance::start(&relay.url(), "").await;
    relay.link("tenant", &instance.url()).await;
    instance.go_down().await;
    let moved = relay.url().replace("127.0.0.1", "localhost");
    relay.settings.set("PUBLIC__URL", &moved);
    relay.restart().await;
    let links = relay
        .until_links("failing", |links| links[0]["state"] == "failing")
        .await;
    assert_eq!(links[0]["generation"], 2);
    for _ in 0..3 {
        relay.reload.apply(&relay.settings.config()).await;
    }
    let links = relay.links().await;
    assert_eq!(links[0]["generation"], 2, "told once what to do");
    let path = format!("/api/v1/links/{}", links[0]["id"].as_str().expect("id"));
    relay.admin("DELETE", &path, None, 202).await;
    relay.reload.apply(&relay.settings.config()).await;
    assert_eq!(relay.links().await[0]["desired"], "uninstalled");
}
