//! The page inside Jira, without a browser: what Jira's frame gets, and what the page's calls may do. What a person
//! sees is in `tests/browser`.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, header};
use http_body_util::Full;
use jira_connect_proxy::jwt::{Target, qsh::Rule};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde_json::{Value, json};

use crate::{
    fakes::{
        FakeInstance, FakeJira,
        http::{FakeServer, answer, client, send},
        instance::Behaviour,
        jira::now,
        secrets,
    },
    harness::{SECRET, SECRET_2, TestRelay, checked, code},
};

const FRAME: &str =
    "xdm_e=https%3A%2F%2Facme.atlassian.net&xdm_c=channel-gitlab&cp=&lic=none&cv=1001.0.0";

/// A relay with one site installed, whose REST side says who is an admin.
struct Stage {
    relay: TestRelay,
    jira: FakeJira,
    site: Site,
}

struct Site {
    server: FakeServer,
    asked: Arc<AtomicUsize>,
    /// Answers with this status, if not 0.
    broken: Arc<AtomicU16>,
    /// Takes so many milliseconds for it.
    slow: Arc<AtomicU64>,
    questions: Arc<Mutex<Vec<Value>>>,
}

impl Site {
    /// `admin` is one, `member` is none.
    async fn start() -> Self {
        let (asked, broken) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU16::new(0)));
        let slow = Arc::new(AtomicU64::new(0));
        let questions = Arc::new(Mutex::new(Vec::new()));
        let pause = Arc::clone(&slow);
        let (counter, status, log) = (
            Arc::clone(&asked),
            Arc::clone(&broken),
            Arc::clone(&questions),
        );
        let server = FakeServer::start(move |request: Request<Bytes>| {
            let (counter, status) = (Arc::clone(&counter), status.load(Ordering::SeqCst));
            let log = Arc::clone(&log);
            let pause = Duration::from_millis(pause.load(Ordering::SeqCst));
            async move {
                counter.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(pause).await;
                if status != 0 {
                    return answer(status, "");
                }
                if request.uri().path() != "/rest/api/3/permissions/check" {
                    return answer(404, "");
                }
                let question: Value = serde_json::from_slice(request.body()).expect("JSON");
                let is_admin = question["accountId"] == "admin";
                log.lock().expect("questions").push(question);
                let granted: &[&str] = if is_admin { &["ADMINISTER"] } else { &[] };
                let body = json!({"globalPermissions": granted, "projectPermissions": []});
                answer(200, body.to_string())
            }
        })
        .await;
        Self {
            server,
            asked,
            broken,
            slow,
            questions,
        }
    }
}

impl Stage {
    async fn start() -> Self {
        Self::start_with(&[]).await
    }

    async fn start_with(settings: &[(&str, &str)]) -> Self {
        let site = Site::start().await;
        let mut jira = FakeJira::start("tenant").await;
        jira.base_url = site.server.url();
        let relay = TestRelay::start_with(&jira, |all| {
            all.set("JIRA__EXTRA_SITES", &site.server.url());
            for (key, value) in settings {
                all.set(key, value);
            }
        })
        .await;
        let installed = jira.call(&relay.app_base_url(), "installed", Some(SECRET));
        let installed = installed.with_field("displayUrl", "https://jira.acme.example");
        assert_eq!(jira.send(installed).await.status(), 204);
        Self { relay, jira, site }
    }

    /// A token of the site's for its page.
    fn context_token(&self, account: Option<&str>) -> String {
        let mut claims = context_claims("tenant");
        if let Some(account) = account {
            claims["sub"] = account.into();
        }
        sign(&claims, SECRET)
    }

    /// A call of the page's, as this user.
    async fn call(
        &self,
        account: &str,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> Response<Bytes> {
        let token = self.context_token(Some(account));
        self.call_with(&token, method, path, body).await
    }

    async fn call_with(
        &self,
        token: &str,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> Response<Bytes> {
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(format!("{}/{path}", self.relay.app_base_url()))
            .header("authorization", format!("JWT {token}"))
            .body(Full::from(body))
            .expect("request");
        send(&client(), request).await
    }

    /// The same by an admin, with this outcome.
    async fn admin(&self, method: &str, path: &str, body: Option<Value>, status: u16) -> Value {
        let answer = checked(self.call("admin", method, path, body).await);
        let text = String::from_utf8_lossy(answer.body()).into_owned();
        assert_eq!(answer.status().as_u16(), status, "{method} {path}: {text}");
        serde_json::from_str(&text).unwrap_or_default()
    }

    async fn links(&self) -> Vec<Value> {
        let links = self.admin("GET", "links", None, 200).await;
        links["links"].as_array().cloned().expect("links")
    }

    /// What Jira's frame gets.
    async fn open(
        &self,
        query: &str,
        secret: &str,
        change: impl FnOnce(&mut Value),
    ) -> Response<Bytes> {
        let target =
            Target::parse(&format!("/-/jira_connect/subscriptions?{query}")).expect("target");
        let now = now().as_second();
        let mut claims = json!({
            "iss": "tenant", "sub": "admin", "iat": now, "exp": now + 180,
            "qsh": Rule::JiraSigns.qsh("GET", &target, "/-/jira_connect").as_str(),
        });
        change(&mut claims);
        let token = sign(&claims, secret);
        self.get(&format!("subscriptions?{query}&jwt={token}"), &[])
            .await
    }

    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Response<Bytes> {
        let mut request = Request::get(format!("{}/{path}", self.relay.app_base_url()));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        send(&client(), request.body(Full::default()).expect("request")).await
    }
}

pub fn context_claims(issuer: &str) -> Value {
    let now = now().as_second();
    json!({"iss": issuer, "iat": now, "exp": now + 180, "qsh": "context-qsh"})
}

pub fn sign(claims: &Value, secret: &str) -> String {
    let key = EncodingKey::from_secret(secret.as_bytes());
    let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &key).expect("sign");
    secrets::know_token("a token that Jira signed", &token);
    token
}

fn text(answer: &Response<Bytes>) -> String {
    String::from_utf8_lossy(answer.body()).into_owned()
}

fn header_of<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

fn directive<'a>(answer: &'a Response<Bytes>, name: &str) -> Vec<&'a str> {
    header_of(answer.headers(), "content-security-policy")
        .split(';')
        .map(str::trim)
        .find_map(|directive| directive.strip_prefix(name)?.strip_prefix(' '))
        .unwrap_or_default()
        .split(' ')
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn jiras_frame_gets_the_page_and_nobody_else_does() {
    let stage =
        Stage::start_with(&[("PAGE__FRAME_ANCESTORS", "https://portal.acme.example")]).await;
    let instance = FakeInstance::start(&stage.relay.url(), "/gitlab").await;
    stage.relay.link("tenant", &instance.url()).await;

    let page = stage.open(FRAME, SECRET, |_| {}).await;
    assert_eq!(page.status(), 200, "{}", text(&page));
    assert_eq!(
        header_of(page.headers(), "content-type"),
        "text/html; charset=utf-8"
    );
    assert_eq!(header_of(page.headers(), "referrer-policy"), "no-referrer");
    assert!(!page.headers().contains_key("set-cookie"));
    let assets = format!("{}/assets/", stage.relay.app_base_url());
    assert_eq!(directive(&page, "default-src"), ["'none'"]);
    assert_eq!(
        directive(&page, "script-src"),
        [&assets, "https://connect-cdn.atl-paas.net/all.js"]
    );
    assert_eq!(
        directive(&page, "style-src"),
        [
            &assets,
            "https://connect-cdn.atl-paas.net/themes/",
            "https://connect-cdn.atl-paas.net/surfaces.css",
        ]
    );
    let origin = instance.url().replace("/gitlab", "");
    assert_eq!(directive(&page, "connect-src"), ["'self'", &origin]);
    assert_eq!(
        directive(&page, "frame-ancestors"),
        [
            "https://*.atlassian.net",
            "https://*.jira.com",
            &stage.site.server.url(),
            "https://portal.acme.example",
            "https://jira.acme.example",
        ]
    );
    let html = text(&page);
    assert!(
        !html.contains("<style") && !html.contains("style=") && !html.contains("eyJ"),
        "{html}"
    );

    // What is not proven gets a page too, because it is shown in a frame, and tells its cause.
    for (query, secret, claims, expected, cause) in [
        (
            "lic=active",
            SECRET_2,
            json!({}),
            "token_signature",
            "signs with another secret",
        ),
        (
            "lic=active",
            SECRET,
            json!({"qsh": "0"}),
            "token_query_hash",
            "was changed on its way",
        ),
        (
            "lic=active",
            SECRET,
            json!({"qsh": "context-qsh"}),
            "token_context_refused",
            "was changed on its way",
        ),
        (
            "lic=active",
            SECRET,
            json!({"iat": 1000, "exp": 1180}),
            "token_expired",
            "good for a few minutes only",
        ),
        (
            "lic=active",
            SECRET,
            json!({"iss": "stranger"}),
            "token_unknown_issuer",
            "does not know this Jira site",
        ),
        (
            "lic=a&lic=b",
            SECRET,
            json!({}),
            "repeated_parameter",
            "no address that Jira makes",
        ),
    ] {
        let before = stage
            .relay
            .metric("jira_connect_proxy_rejections_total", expected)
            .await;
        let refused = stage
            .open(query, secret, |all| {
                for (name, value) in claims.as_object().expect("claims") {
                    all[name] = value.clone();
                }
            })
            .await;
        let html = text(&refused);
        assert!(
            matches!(refused.status().as_u16(), 400 | 401),
            "{expected}: {html}"
        );
        assert!(html.starts_with("<!DOCTYPE html>"), "{html}");
        assert!(html.contains(cause), "{cause} in {html}");
        assert!(
            html.contains(header_of(refused.headers(), "x-request-id")),
            "{html}"
        );
        assert!(!directive(&refused, "frame-ancestors").contains(&"https://jira.acme.example"));
        let after = stage
            .relay
            .metric("jira_connect_proxy_rejections_total", expected)
            .await;
        assert!(after > before, "{expected} was not counted");
    }

    // What Jira says of its own address is not proven, so it can't open the frame to everybody.
    for display_url in [
        "https://*",
        "https://a;frame-ancestors",
        "http://jira.acme.example",
        "javascript:alert(1)",
    ] {
        let installed = stage
            .jira
            .call(&stage.relay.app_base_url(), "installed", Some(SECRET));
        let installed = installed.with_field("displayUrl", display_url);
        assert_eq!(stage.jira.send(installed).await.status(), 204);
        let page = stage.open(FRAME, SECRET, |_| {}).await;
        assert_eq!(page.status(), 200);
        assert_eq!(
            directive(&page, "frame-ancestors").len(),
            4,
            "{display_url}"
        );
    }

    for bare in ["subscriptions", "subscriptions?xdm_e=x&cp="] {
        let outside = stage.get(bare, &[]).await;
        assert_eq!(outside.status(), 401);
        assert!(
            text(&outside).contains("This page lives inside Jira"),
            "{}",
            text(&outside)
        );
        assert_eq!(directive(&outside, "script-src"), [&assets]);
    }

    let callback = stage.get("oauth_callbacks?code=c0de&state=s", &[]).await;
    assert_eq!(callback.status(), 200);
    assert_eq!(directive(&callback, "frame-ancestors"), ["'none'"]);
    assert!(!text(&callback).contains("c0de"));
    // Without a Forge app it hands its code to nobody but the page inside Jira.
    assert!(text(&callback).contains("<body>"), "{}", text(&callback));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_way_back_from_an_instance_names_where_the_page_in_forge_lives() {
    let app = "ari:cloud:ecosystem::app/8db33809-1f32-48bb-8c52-5877dab48107";
    let origins = "https://a1b2.cdn.prod.atlassian-dev.net,https://c3d4.cdn.prod.atlassian-dev.net";
    for (settings, body) in [
        (
            vec![("FORGE__APP_ID", app), ("FORGE__PAGE_ORIGINS", origins)],
            format!(
                r#"<body data-openers="{}" data-paste>"#,
                origins.replace(',', " ")
            ),
        ),
        (
            vec![("FORGE__APP_ID", app)],
            r#"<body data-openers="" data-paste>"#.to_owned(),
        ),
        // Without an app they mean nothing.
        (vec![("FORGE__PAGE_ORIGINS", origins)], "<body>".to_owned()),
    ] {
        let stage = Stage::start_with(&settings).await;
        let callback = stage.get("oauth_callbacks?code=c0de&state=s", &[]).await;
        let html = text(&callback);
        assert!(html.contains(&body), "{body} in {html}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_the_page_are_compressed_and_kept_for_ever() {
    let stage = Stage::start().await;
    let html = text(&stage.open(FRAME, SECRET, |_| {}).await);
    let names: Vec<&str> = html
        .split('"')
        .filter_map(|part| part.strip_prefix("/-/jira_connect/assets/"))
        .collect();
    assert_eq!(names.len(), 2, "{html}");
    for name in names {
        let path = format!("assets/{name}");
        let plain = checked(stage.get(&path, &[]).await);
        let packed = checked(stage.get(&path, &[("accept-encoding", "gzip, br")]).await);
        for answer in [&plain, &packed] {
            assert_eq!(answer.status(), 200);
            assert_eq!(
                header_of(answer.headers(), "cache-control"),
                "public, max-age=31536000, immutable"
            );
            assert_eq!(header_of(answer.headers(), "vary"), "accept-encoding");
        }
        assert_eq!(header_of(packed.headers(), "content-encoding"), "gzip");
        assert!(packed.body().len() * 2 < plain.body().len());
    }
    for path in [
        "assets/page.js",
        "assets/manifest.json",
        "assets/..%2f..%2fCargo.toml",
    ] {
        assert_eq!(stage.get(path, &[]).await.status(), 404, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_pages_own_tokens_count_and_only_for_their_site() {
    let stage = Stage::start().await;
    let other = stage.jira.site("other-tenant");
    let other = other.call(&stage.relay.app_base_url(), "installed", Some(SECRET_2));
    assert_eq!(stage.jira.send(other).await.status(), 204);
    let instance = FakeInstance::start(&stage.relay.url(), "").await;
    let theirs = stage.relay.link("other-tenant", &instance.url()).await;
    let theirs = theirs["id"].as_str().expect("id");

    let now = now().as_second();
    let target = Target::parse("/-/jira_connect/links").expect("target");
    let bound = json!({
        "iss": "tenant", "sub": "admin", "iat": now, "exp": now + 180,
        "qsh": Rule::JiraSigns.qsh("GET", &target, "/-/jira_connect").as_str(),
    });
    let link_secret = instance.known("other-tenant").expect("told").shared_secret;
    for (token, expected) in [
        (sign(&bound, SECRET), "token_not_context"),
        (sign(&context_claims("tenant"), SECRET_2), "token_signature"),
        (
            sign(&context_claims("tenant"), &link_secret),
            "token_signature",
        ),
        ("a.b.c".to_owned(), "token_malformed"),
    ] {
        let refused = checked(stage.call_with(&token, "GET", "links", None).await);
        assert_eq!(
            (refused.status().as_u16(), code(&refused).as_str()),
            (401, expected)
        );
    }
    assert_eq!(stage.get("links", &[]).await.status(), 401);

    for (method, path) in [
        ("GET", format!("links/{theirs}")),
        ("DELETE", format!("links/{theirs}")),
        ("POST", format!("links/{theirs}/look")),
        ("POST", format!("links/{theirs}/resend")),
        ("POST", format!("links/{theirs}/undo")),
        ("GET", format!("links/{theirs}/groups")),
        ("DELETE", format!("links/{theirs}/groups/1")),
        ("POST", format!("links/{theirs}/sign_in")),
        ("POST", format!("links/{theirs}/context_token")),
        ("GET", "links/no-id".to_owned()),
    ] {
        let answer = stage.admin(method, &path, None, 404).await;
        assert_eq!(answer["error"]["code"], "link_unknown", "{method} {path}");
    }
    assert_eq!(stage.links().await.len(), 0);
    assert!(instance.known("other-tenant").is_some());
    stage.admin("PATCH", "links", None, 405).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_jira_admins_change_anything() {
    let stage = Stage::start().await;
    let instance = FakeInstance::start(&stage.relay.url(), "").await;
    let link = stage.relay.link("tenant", &instance.url()).await;
    let id = link["id"].as_str().expect("id");
    let url = json!({"instance_url": "https://gitlab.example.com"});
    let check = json!({"instance_url": "https://gitlab.example.com", "check": "reachable"});
    let changes = [
        ("POST", "links".to_owned(), Some(url)),
        ("POST", "links/check".to_owned(), Some(check)),
        ("DELETE", format!("links/{id}"), None),
        ("POST", format!("links/{id}/look"), None),
        ("POST", format!("links/{id}/resend"), None),
        ("POST", format!("links/{id}/undo"), None),
        ("DELETE", format!("links/{id}/groups/1"), None),
        ("POST", format!("links/{id}/sign_in"), None),
        ("POST", format!("links/{id}/context_token"), None),
    ];
    for (method, path, body) in &changes {
        for token in [
            stage.context_token(Some("member")),
            stage.context_token(None),
        ] {
            let refused = checked(stage.call_with(&token, method, path, body.clone()).await);
            assert_eq!(refused.status(), 403, "{method} {path}");
            assert_eq!(code(&refused), "not_jira_admin");
        }
    }
    let list = checked(stage.call("member", "GET", "links", None).await);
    let list: Value = serde_json::from_slice(list.body()).expect("JSON");
    assert_eq!(list["may_change"], false);
    assert_eq!(list["reason"]["code"], "not_jira_admin");
    assert_eq!(list["links"][0]["state"], "connected");
    assert_eq!(list["site"], "https://jira.acme.example");

    // Jira is asked with the app's own token about a named user, and not at every poll.
    let before = stage.site.asked.load(Ordering::SeqCst);
    for _ in 0..5 {
        assert_eq!(
            stage.admin("GET", "links", None, 200).await["may_change"],
            true
        );
    }
    assert_eq!(stage.site.asked.load(Ordering::SeqCst), before + 1);
    let questions = stage.site.questions.lock().expect("questions").clone();
    assert!(
        questions.contains(&json!({"accountId": "admin", "globalPermissions": ["ADMINISTER"]}))
    );

    // While Jira says nothing, nobody new is an admin, and that is said.
    stage.site.broken.store(503, Ordering::SeqCst);
    let refused = checked(
        stage
            .call("second-admin", "DELETE", &format!("links/{id}"), None)
            .await,
    );
    assert_eq!(
        (refused.status().as_u16(), code(&refused).as_str()),
        (503, "jira_unavailable")
    );
    let list = checked(stage.call("second-admin", "GET", "links", None).await);
    let list: Value = serde_json::from_slice(list.body()).expect("JSON");
    assert_eq!(list["reason"]["code"], "jira_unavailable");
    assert_eq!(stage.relay.links().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_jira_keeps_an_admin_waiting_once() {
    let stage = Stage::start_with(&[("JIRA__ANSWER_TIMEOUT_MS", "20000")]).await;
    stage.site.slow.store(4000, Ordering::SeqCst);
    let list = stage.admin("GET", "links", None, 200).await;
    assert_eq!(list["reason"]["code"], "jira_unavailable", "{list:#}");
    // The question goes on, and whoever asks next waits for the same one.
    let list = stage.admin("GET", "links", None, 200).await;
    assert_eq!(list["may_change"], true, "{list:#}");
    assert_eq!(stage.site.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_is_added_removed_and_taken_back() {
    let stage = Stage::start().await;
    let instance = FakeInstance::start(&stage.relay.url(), "/gitlab").await;
    let typed = format!(" {}/users/sign_in?x=1 ", instance.url());
    let link = stage
        .admin("POST", "links", Some(json!({"instance_url": typed})), 201)
        .await;
    assert_eq!(link["state"], "connected", "{link:#}");
    assert_eq!(link["instance_url"], instance.url());
    assert_eq!(
        (&link["can_purge"], &link["can_undo"]),
        (&json!(true), &json!(false))
    );
    let wish = json!({"instance_url": instance.url()});
    let again = stage.admin("POST", "links", Some(wish.clone()), 409).await;
    assert_eq!(again["error"]["code"], "link_exists");
    let malformed = json!({"instance_url": "two words"});
    let malformed = stage.admin("POST", "links", Some(malformed), 400).await;
    assert_eq!(malformed["error"]["code"], "instance_url_malformed");

    // Removed with its data, and thought better of: the instance never hears of it, nothing is deleted.
    let path = format!("links/{}", link["id"].as_str().expect("id"));
    let removed = stage
        .admin("DELETE", &format!("{path}?purge=true"), None, 202)
        .await;
    assert_eq!(removed["state"], "removing");
    assert_eq!(removed["purge"]["state"], "pending");
    assert_eq!(removed["can_undo"], true);
    let undo = format!("{path}/undo");
    let before = instance.known("tenant").expect("linked").shared_secret;
    let back = stage.admin("POST", &undo, None, 200).await;
    assert_eq!(
        (&back["purge"], &back["can_undo"]),
        (&Value::Null, &json!(false))
    );
    // Pressed twice, it is as undone.
    let again = stage.admin("POST", &undo, None, 200).await;
    assert_eq!(again["id"], link["id"]);
    let is_connected = |links: &[Value]| links[0]["state"] == "connected";
    stage.relay.until_links("connected", is_connected).await;
    // It is told that it is linked, and nothing else.
    let events = instance.state().events;
    let events: Vec<&str> = events.iter().map(|told| &*told.event).collect();
    assert_eq!(events, ["installed", "installed"]);
    let now = instance.known("tenant").expect("linked").shared_secret;
    assert_eq!(now, before);

    // Added in place of undone, it is told again.
    stage.admin("DELETE", &path, None, 202).await;
    let back = stage.admin("POST", "links", Some(wish), 201).await;
    assert_eq!(back["id"], link["id"]);

    // Removed for good: some seconds later the instance is told, and the link is gone.
    stage.admin("DELETE", &path, None, 202).await;
    assert!(instance.known("tenant").is_some());
    instance.behave(Behaviour::StoresThenFails(502));
    instance
        .until("uninstalled", |state| {
            state.events.iter().any(|told| told.event == "uninstalled")
        })
        .await;
    // It may have been told, so that it was removed can't be undone.
    let shown = stage.admin("GET", &path, None, 200).await;
    assert_eq!(shown["can_undo"], false, "{shown:#}");
    let late = stage.admin("POST", &undo, None, 409).await;
    assert_eq!(late["error"]["code"], "too_late_to_undo");
    instance.behave(Behaviour::Honest);
    stage.relay.until_links("gone", <[Value]>::is_empty).await;
    let gone = stage.admin("POST", &undo, None, 404).await;
    assert_eq!(gone["error"]["code"], "link_unknown");

    let audit = stage.relay.admin("GET", "/api/v1/audit", None, 200).await;
    let by_admin: Vec<&str> = audit
        .as_array()
        .expect("audit")
        .iter()
        .filter(|entry| entry["actor"] == "jira_admin")
        .inspect(|entry| assert_eq!(entry["account_id"], "admin"))
        .filter_map(|entry| entry["action"].as_str())
        .collect();
    for action in [
        "link_created",
        "link_purge_requested",
        "link_removal_requested",
        "link_removal_undone",
    ] {
        assert!(by_admin.contains(&action), "{action} in {by_admin:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_back_is_as_it_was() {
    let stage = Stage::start().await;
    let instance = FakeInstance::start(&stage.relay.url(), "").await;
    let wish = json!({"client_key": "tenant", "instance_url": instance.url(), "keep_ids": true});
    let link = stage
        .relay
        .admin("POST", "/api/v1/links", Some(wish), 201)
        .await;
    let path = format!("links/{}", link["id"].as_str().expect("id"));
    let shown = stage.admin("GET", &path, None, 200).await;
    assert_eq!(shown["can_purge"], false);
    let unmarked = stage
        .admin("DELETE", &format!("{path}?purge=true"), None, 409)
        .await;
    assert_eq!(unmarked["error"]["code"], "link_unmarked");
    stage.admin("DELETE", &path, None, 202).await;
    let back = json!({"instance_url": instance.url()});
    stage.admin("POST", "links", Some(back), 201).await;
    let links = stage.relay.links().await;
    assert_eq!(
        (&links[0]["id"], &links[0]["keep_ids"], &links[0]["state"]),
        (&link["id"], &json!(true), &json!("connected"))
    );

    // Removed once more, and then with the data: the ten seconds are those of the first wish.
    let other = FakeInstance::start(&stage.relay.url(), "/gitlab").await;
    let link = stage.relay.link("tenant", &other.url()).await;
    let path = format!("links/{}", link["id"].as_str().expect("id"));
    let first = stage.admin("DELETE", &path, None, 202).await;
    let second = stage
        .admin("DELETE", &format!("{path}?purge=true"), None, 202)
        .await;
    assert_eq!(first["next_attempt_at"], second["next_attempt_at"]);
    assert_eq!(second["can_undo"], true);
    let back = json!({"instance_url": other.url()});
    let back = stage.admin("POST", "links", Some(back), 201).await;
    assert_eq!(back["state"], "connected");
    assert!(
        other
            .state()
            .events
            .iter()
            .all(|told| told.event == "installed")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn checks_tell_what_is_wrong_before_there_is_a_link() {
    let stage = Stage::start_with(&[("INSTANCES__ALLOW", "127.0.0.1")]).await;
    let mut instance = FakeInstance::start(&stage.relay.url(), "").await;
    let url = instance.url();
    let check = async |url: &str, check: &str| {
        let body = json!({"instance_url": url, "check": check});
        let found = stage.admin("POST", "links/check", Some(body), 200).await;
        assert_eq!(found["check"], check);
        let verdict = found["verdict"].as_str().unwrap_or_default().to_owned();
        if verdict != "ok" {
            assert!(
                found["hint"].as_str().is_some_and(|hint| !hint.is_empty()),
                "{found:#}"
            );
        }
        (
            verdict,
            found["code"].as_str().unwrap_or_default().to_owned(),
        )
    };
    let is = |verdict: &str, code: &str| (verdict.to_owned(), code.to_owned());

    for name in [
        "address",
        "reachable",
        "gitlab",
        "proxy_url",
        "public_key",
        "oauth_application",
    ] {
        assert_eq!(check(&url, name).await.0, "ok", "{name}");
    }
    assert!(
        instance.state().installations.is_empty(),
        "a check changes nothing"
    );

    // Somebody else's proxy, no application, an old GitLab, no GitLab.
    let change = |change: &dyn Fn(&mut crate::fakes::instance::Front)| {
        change(&mut instance.front.lock().expect("front"));
    };
    change(&|front| {
        front.allowed_origin = "https://gitlab.com".to_owned();
        front.application_id = None;
        front.descriptor = Some(json!({"key": "gitlab-jira-connect-x", "apiMigrations": {}}));
    });
    assert_eq!(
        check(&url, "proxy_url").await,
        is("fail", "proxy_url_missing")
    );
    assert_eq!(
        check(&url, "oauth_application").await,
        is("warn", "oauth_application_missing")
    );
    assert_eq!(check(&url, "gitlab").await, is("fail", "gitlab_too_old"));
    change(&|front| front.descriptor = None);
    assert_eq!(check(&url, "gitlab").await, is("fail", "not_gitlab"));
    instance.behave(Behaviour::Status(401));
    assert_eq!(
        check(&url, "public_key").await,
        is("fail", "public_key_not_fetched")
    );
    // Behind a reverse proxy that hides the name it was called by, it fetches the key and still refuses.
    instance.behave(Behaviour::Honest);
    change(&|front| front.own_host = Some("gitlab.internal".to_owned()));
    assert_eq!(
        check(&url, "public_key").await,
        is("fail", "unauthorized_key_fetched")
    );
    instance.behave(Behaviour::Status(404));
    assert_eq!(
        check(&url, "public_key").await,
        is("fail", "events_refused")
    );
    instance.go_down().await;
    for name in [
        "reachable",
        "gitlab",
        "proxy_url",
        "public_key",
        "oauth_application",
    ] {
        assert_eq!(
            check(&url, name).await,
            is("fail", "connection_failed"),
            "{name}"
        );
    }

    let denied = "https://gitlab.example.com";
    assert_eq!(
        check(denied, "address").await,
        is("fail", "instance_not_allowed")
    );
    assert_eq!(check(denied, "reachable").await.0, "fail");
    assert_eq!(
        check(&stage.relay.url(), "address").await,
        is("fail", "instance_is_relay")
    );
    let bad = json!({"instance_url": url, "check": "everything"});
    stage.admin("POST", "links/check", Some(bad), 400).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_is_looked_at_when_somebody_asks() {
    let stage = Stage::start_with(&[("INSTANCES__LOOK_EVERY_SECS", "60")]).await;
    let instance = FakeInstance::start(&stage.relay.url(), "").await;
    let link = stage.relay.link("tenant", &instance.url()).await;
    let path = format!("links/{}", link["id"].as_str().expect("id"));
    let look = async || {
        stage
            .admin("POST", &format!("{path}/look"), None, 200)
            .await
    };
    assert_eq!(look().await["faults"], json!([]));
    instance.front.lock().expect("front").allowed_origin = "https://gitlab.com".to_owned();
    let shown = look().await;
    assert_eq!(shown["state"], "connected");
    assert_eq!(shown["faults"][0]["code"], "proxy_url_missing", "{shown:#}");
    // Its id finds the look, and stays as long as the fault.
    let id = shown["faults"][0]["id"].as_str().expect("id").to_owned();
    assert_eq!(look().await["faults"][0]["id"], id);
    let found = stage
        .relay
        .admin("GET", &format!("/api/v1/trace/{id}"), None, 200)
        .await;
    assert_eq!(found["parts"][0]["what"], "look", "{found:#}");
    instance.front.lock().expect("front").allowed_origin = stage.relay.url();
    assert_eq!(look().await["faults"], json!([]));
    assert_eq!(
        stage.admin("GET", &path, None, 200).await["faults"],
        json!([])
    );
    // What is broken is looked at again long before the next round.
    instance.front.lock().expect("front").allowed_origin = "https://gitlab.com".to_owned();
    assert_eq!(look().await["faults"][0]["code"], "proxy_url_missing");
    instance.front.lock().expect("front").allowed_origin = stage.relay.url();
    let is_whole = |links: &[Value]| links[0]["health"]["verdict"] == "warn";
    stage.relay.until_links("whole again", is_whole).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_of_one_site_is_no_other_sites_and_ends_with_its_cause() {
    let stage = Stage::start().await;
    let mut instance = FakeInstance::start(&stage.relay.url(), "").await;
    let mut ours = Value::Null;
    for tenant in (0..10)
        .map(|n| format!("other-{n}"))
        .chain(["tenant".to_owned()])
    {
        if tenant != "tenant" {
            let other = stage.jira.site(&tenant);
            let other = other.call(&stage.relay.app_base_url(), "installed", Some(SECRET_2));
            assert_eq!(stage.jira.send(other).await.status(), 204);
        }
        ours = stage.relay.link(&tenant, &instance.url()).await;
    }
    let path = format!("links/{}", ours["id"].as_str().expect("id"));
    let look = async || {
        stage
            .admin("POST", &format!("{path}/look"), None, 200)
            .await
    };
    let codes = |link: &Value| -> Vec<String> {
        let faults = link["faults"].as_array().expect("faults").iter();
        faults
            .map(|fault| fault["code"].as_str().expect("code").to_owned())
            .collect()
    };

    // Others lose their record of it: that is nothing of ours, and our loss is no less seen.
    (0..10).for_each(|n| instance.forget(&format!("other-{n}")));
    assert_eq!(codes(&look().await), [""; 0]);
    instance.forget("tenant");
    let broken = look().await;
    assert_eq!(codes(&broken), ["instance_secret"]);
    assert!(
        !broken["faults"][0]["hint"]
            .as_str()
            .expect("hint")
            .contains("links resend"),
        "{broken:#}"
    );
    // What mends it shows at once.
    let mended = stage
        .admin("POST", &format!("{path}/resend"), None, 200)
        .await;
    assert_eq!(codes(&mended), [""; 0], "{mended:#}");

    // So does what an operator does, without anybody's look.
    instance.forget("tenant");
    assert_eq!(codes(&look().await), ["instance_secret"]);
    let resend = format!("/api/v1/{path}/resend");
    stage.relay.admin("POST", &resend, None, 200).await;
    let is_ours = |link: &&Value| link["id"] == ours["id"];
    let is_whole = |link: &Value| !link["health"].to_string().contains("instance_secret");
    stage
        .relay
        .until_links("mended", |links| {
            links.iter().find(is_ours).is_some_and(is_whole)
        })
        .await;

    // Out of reach for a moment, and heard again.
    instance.go_down().await;
    assert_eq!(codes(&look().await), ["connection_failed"]);
    instance.go_up().await;
    stage
        .admin("GET", &format!("{path}/groups"), None, 200)
        .await;
    let heard = stage.admin("GET", &path, None, 200).await;
    assert_eq!(codes(&heard), [""; 0], "{heard:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_site_learns_where_a_name_leads() {
    let stage = Stage::start().await;
    let mut instance = FakeInstance::start(&stage.relay.url(), "").await;
    let url = instance.url().replace("127.0.0.1", "localhost");
    let link = stage
        .admin("POST", "links", Some(json!({"instance_url": url})), 201)
        .await;
    assert_eq!(link["state"], "connected", "{link:#}");
    instance.go_down().await;
    let path = format!("links/{}", link["id"].as_str().expect("id"));
    let check = json!({"instance_url": url, "check": "reachable"});
    let mut told = Vec::new();
    for (method, path, body) in [
        ("POST", "links/check".to_owned(), Some(check)),
        ("POST", format!("{path}/look"), None),
        ("GET", format!("{path}/groups"), None),
        ("POST", format!("{path}/sign_in"), None),
        ("POST", format!("{path}/resend"), None),
        ("GET", path.clone(), None),
    ] {
        told.push(text(&stage.call("admin", method, &path, body).await));
    }
    let wish = json!({"installation": {"instance_url": "http://localhost:1"}});
    stage.admin("DELETE", &path, None, 202).await;
    told.push(text(
        &stage
            .call("admin", "PUT", "installations", Some(wish))
            .await,
    ));
    for told in told {
        assert!(told.contains("localhost can't be reached: "), "{told}");
        assert!(
            !told.contains("127.0.0.1") && !told.contains("::1"),
            "{told}"
        );
    }
    // An operator does.
    let links = stage.relay.links().await;
    let cause = links[0]["last_error"]["message"]
        .as_str()
        .unwrap_or_default();
    let audit = stage.relay.admin("GET", "/api/v1/status", None, 200).await;
    assert!(
        cause.contains("127.0.0.1") || audit.to_string().contains("localhost can't be reached at "),
        "{links:#?} {audit:#}"
    );

    let stage =
        Stage::start_with(&[("INSTANCES__DANGEROUS_ALLOW_PRIVATE_ADDRESSES", "false")]).await;
    let refused = stage
        .admin("POST", "links", Some(json!({"instance_url": url})), 403)
        .await;
    let message = refused["error"].to_string();
    assert!(
        message.contains("an address that is not public"),
        "{message}"
    );
    assert!(
        !message.contains("127.0.0.1") && !message.contains("dangerous"),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_are_listed_and_unlinked_and_the_browser_gets_a_token_of_the_link() {
    let stage = Stage::start().await;
    let mut instance = FakeInstance::start(&stage.relay.url(), "/gitlab").await;
    let link = stage.relay.link("tenant", &instance.url()).await;
    let path = format!("links/{}", link["id"].as_str().expect("id"));
    instance.front.lock().expect("front").groups =
        (1..=300).map(|id| (id, format!("Group {id}"))).collect();

    let groups = stage
        .admin("GET", &format!("{path}/groups"), None, 200)
        .await;
    let groups = groups["groups"].as_array().expect("groups");
    assert_eq!(groups.len(), 300);
    assert_eq!(
        (&groups[6]["id"], &groups[6]["full_name"]),
        (&json!(7), &json!("Group 7"))
    );
    stage
        .admin("DELETE", &format!("{path}/groups/7"), None, 204)
        .await;
    let gone = stage
        .admin("DELETE", &format!("{path}/groups/7"), None, 404)
        .await;
    assert_eq!(gone["error"]["code"], "group_unknown");
    {
        let front = instance.front.lock().expect("front");
        assert_eq!(front.groups.len(), 299);
        assert!(
            front
                .signed
                .iter()
                .all(|(_, _, claims)| claims["sub"] == "admin")
        );
    }

    let way = stage
        .admin("POST", &format!("{path}/sign_in"), None, 200)
        .await;
    let url = instance.url();
    assert_eq!(
        way,
        json!({
            "application_id": "application",
            "authorize_url": format!("{url}/oauth/authorize"),
            "token_url": format!("{url}/oauth/token"),
            "api_url": format!("{url}/api/v4"),
            "redirect_uri": format!("{}/oauth_callbacks", stage.relay.app_base_url()),
            "scope": "api",
            "private_network": true,
        })
    );
    let token = stage
        .admin("POST", &format!("{path}/context_token"), None, 200)
        .await;
    let known = instance.known("tenant").expect("told").shared_secret;
    let key = DecodingKey::from_secret(known.as_bytes());
    let token = token["token"].as_str().expect("token");
    let claims = jsonwebtoken::decode::<Value>(token, &key, &Validation::new(Algorithm::HS256));
    let claims = claims.expect("signed with the link's secret").claims;
    assert_eq!(
        (&claims["iss"], &claims["sub"], &claims["qsh"]),
        (&json!("tenant"), &json!("admin"), &json!("context-qsh"))
    );

    instance.front.lock().expect("front").application_id = None;
    let missing = stage
        .admin("POST", &format!("{path}/sign_in"), None, 409)
        .await;
    assert_eq!(missing["error"]["code"], "oauth_application_missing");
    instance.go_down().await;
    let down = stage
        .admin("GET", &format!("{path}/groups"), None, 502)
        .await;
    assert_eq!(down["error"]["code"], "connection_failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_that_know_gitlabs_proxy_find_the_one_instance() {
    let stage = Stage::start().await;
    let mut first = FakeInstance::start(&stage.relay.url(), "").await;
    let second = FakeInstance::start(&stage.relay.url(), "/gitlab").await;
    let put_json = async |account: &str, installation: Value| {
        let body = json!({
            "jwt": stage.context_token(Some(account)),
            "installation": installation,
        });
        let request = Request::put(format!("{}/installations", stage.relay.app_base_url()))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(body.to_string()))
            .expect("request");
        let answer = send(&client(), request).await;
        let body: Value = serde_json::from_slice(answer.body()).expect("JSON");
        (answer.status().as_u16(), body)
    };
    let put =
        async |account: &str, url: Value| put_json(account, json!({ "instance_url": url })).await;
    // As `curl -d` sends it, and a form.
    let put_form = async |fields: &[(&str, &str)]| {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("jwt", &stage.context_token(Some("admin")));
        form.extend_pairs(fields);
        let request = Request::put(format!("{}/installations", stage.relay.app_base_url()))
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Full::from(form.finish()))
            .expect("request");
        let answer = send(&client(), request).await;
        let body: Value = serde_json::from_slice(answer.body()).expect("JSON");
        (answer.status().as_u16(), body)
    };
    let none = json!({"gitlab_com": true, "instance_url": null});
    let shown = async || stage.admin("GET", "installations", None, 200).await;
    let is = |url: &str| json!({"gitlab_com": false, "instance_url": url});

    assert_eq!(shown().await, none);
    let (status, body) = put("member", json!(first.url())).await;
    assert_eq!(status, 403);
    assert!(
        body["errors"]
            .as_str()
            .expect("text")
            .contains("not a site or organization administrator")
    );
    assert_eq!(
        put("admin", json!(first.url())).await,
        (200, is(&first.url()))
    );
    assert_eq!(shown().await, is(&first.url()));

    let same = [("installation[instance_url]", first.url())];
    let same = same.each_ref().map(|(name, value)| (*name, value.as_str()));
    assert_eq!(put_form(&same).await, (200, is(&first.url())));
    // What is left out, or misspelt, is no wish to have none.
    assert_eq!(put_form(&[]).await.0, 400);
    for silent in [json!({}), json!({"instanceUrl": second.url()})] {
        assert_eq!(put_json("admin", silent.clone()).await.0, 400, "{silent}");
    }
    assert_eq!(shown().await, is(&first.url()));
    assert!(
        !stage
            .relay
            .links()
            .await
            .iter()
            .any(|link| link["state"] == "removing")
    );
    // A stranger hears what GitLab says to one.
    assert_eq!(stage.get("installations", &[]).await.status(), 403);

    // One that can't be told changes nothing.
    let (status, body) = put("admin", json!("http://127.0.0.1:1")).await;
    assert_eq!(status, 422);
    let errors = body["errors"].as_str().expect("text");
    assert!(
        errors.starts_with("Could not be installed on the instance."),
        "{errors}"
    );
    let (status, body) = put("admin", json!("ftp://gitlab.example.com")).await;
    assert_eq!(status, 422);
    assert!(
        body["errors"]["instance_url"][0]
            .as_str()
            .expect("text")
            .starts_with("is blocked")
    );
    assert_eq!(shown().await, is(&first.url()));

    // Another one takes its place, and the first is told.
    assert_eq!(
        put("admin", json!(second.url())).await,
        (200, is(&second.url()))
    );
    first
        .until("uninstalled", |state| state.installations.is_empty())
        .await;
    stage
        .relay
        .until_links("one", |links| links.len() == 1)
        .await;

    // With several, tools may look, and say once more what they see.
    stage.relay.link("tenant", &first.url()).await;
    for other in [Value::Null, json!(first.url())] {
        let (status, body) = put("admin", other).await;
        assert_eq!(status, 422, "{body}");
    }
    assert_eq!(shown().await, is(&second.url()));
    assert_eq!(
        put("admin", json!(second.url())).await,
        (200, is(&second.url()))
    );
    first.go_down().await;
    let link = stage.relay.links().await[1]["id"]
        .as_str()
        .expect("id")
        .to_owned();
    stage
        .relay
        .admin("DELETE", &format!("/api/v1/links/{link}"), None, 202)
        .await;
    assert_eq!(
        put_form(&[("installation[instance_url]", "")]).await,
        (200, none)
    );
    second
        .until("uninstalled", |state| state.installations.is_empty())
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_that_fails_leaves_a_removal_as_it_was() {
    let stage = Stage::start().await;
    let mut instance = FakeInstance::start(&stage.relay.url(), "").await;
    let link = stage.relay.link("tenant", &instance.url()).await;
    instance.go_down().await;
    let path = format!("/api/v1/links/{}", link["id"].as_str().expect("id"));
    let removal = format!("links/{}?purge=true", link["id"].as_str().expect("id"));
    stage.admin("DELETE", &removal, None, 202).await;

    let wish = json!({"installation": {"instance_url": instance.url()}});
    let refused = stage
        .call("admin", "PUT", "installations", Some(wish))
        .await;
    assert_eq!(refused.status(), 422, "{}", text(&refused));
    assert!(
        text(&refused).contains("can't be reached"),
        "{}",
        text(&refused)
    );
    let link = stage.relay.admin("GET", &path, None, 200).await;
    assert_eq!(link["state"], "removing", "{link:#}");
    assert!(link["purge"].is_object(), "{link:#}");
}
