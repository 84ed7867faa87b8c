//! The page outside Jira, without a browser: invitations, sessions, and what the relay says of an operator to
//! instances. What a person sees is in `tests/browser`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use serde_json::{Value, json};

use crate::{
    fakes::{
        FakeInstance, FakeJira,
        http::{FakeServer, answer, client, send},
        instance,
    },
    harness::{PATIENCE, SECRET, SECRET_2, TestRelay, checked, code, printed},
};

/// A relay with the sites `tenant` and `other`, whose Jira counts what it is asked.
struct Stage {
    relay: TestRelay,
    jira: FakeJira,
    _site: FakeServer,
    asked: Arc<AtomicUsize>,
}

/// An operator's browser, as far as it matters.
pub struct Session {
    base_url: String,
    cookie: String,
    token: String,
}

impl Stage {
    async fn start() -> Self {
        Self::start_with(&[]).await
    }

    async fn start_with(settings: &[(&str, &str)]) -> Self {
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&asked);
        let site = FakeServer::start(move |request: Request<Bytes>| {
            let counter = Arc::clone(&counter);
            async move {
                counter.fetch_add(1, Ordering::SeqCst);
                match request.uri().path() {
                    "/rest/api/3/user" => answer(200, r#"{"accountId":"jiras-own"}"#),
                    _ => answer(404, ""),
                }
            }
        })
        .await;
        let mut jira = FakeJira::start("tenant").await;
        jira.base_url = site.url();
        let relay = TestRelay::start_with(&jira, |all| {
            all.set("JIRA__EXTRA_SITES", &site.url());
            for (key, value) in settings {
                all.set(key, value);
            }
        })
        .await;
        jira.installed(&relay.app_base_url(), SECRET).await;
        let other = jira.site("other");
        let other = other.call(&relay.app_base_url(), "installed", Some(SECRET_2));
        assert_eq!(jira.send(other).await.status(), 204);
        Self {
            relay,
            jira,
            _site: site,
            asked,
        }
    }

    /// The ticket of a new invitation.
    async fn invite(&self, client_key: &str) -> String {
        invite(&self.relay, client_key).await
    }

    /// Somebody presses the button.
    async fn press(&self, ticket: &str, headers: &[(&str, &str)]) -> Response<Bytes> {
        press(&self.relay, ticket, headers).await
    }

    async fn enter(&self, client_key: &str) -> Session {
        Session::enter(&self.relay, client_key).await
    }

    /// The newest entries of the audit trail with this action.
    async fn audit(&self, action: &str) -> Vec<Value> {
        let trail = self.relay.admin("GET", "/api/v1/audit", None, 200).await;
        let mut entries = trail.as_array().cloned().expect("a list");
        entries.retain(|entry| entry["action"] == action);
        entries
    }

    /// An instance asks about an account, with the secret of its link.
    async fn user(&self, instance: &FakeInstance, site: &str, account: &str) -> Response<Bytes> {
        let known = instance.known(site).expect("told");
        let path = format!("/rest/api/3/user?accountId={account}&expand=groups");
        let token = instance::token(&known.shared_secret, "GET", &path, json!({}));
        let url = format!("{}{path}", self.relay.url());
        let authorization = format!("JWT {token}");
        ask("GET", &url, &[("authorization", &authorization)], "").await
    }
}

impl Session {
    /// Invites, opens, and looks at the page.
    pub async fn enter(relay: &TestRelay, client_key: &str) -> Self {
        let ticket = invite(relay, client_key).await;
        let opened = press(relay, &ticket, SAME_ORIGIN).await;
        assert_eq!(opened.status(), 303, "{}", text(&opened));
        assert_eq!(opened.headers()["location"], "/-/jira_connect/page");
        let cookie = opened.headers()["set-cookie"].to_str().expect("text");
        let (cookie, attributes) = cookie.split_once(';').expect("attributes");
        // Without TLS there can be no prefix and no `Secure`.
        assert_eq!(
            attributes,
            " Path=/; Max-Age=28800; HttpOnly; SameSite=Strict"
        );
        let mut session = Self {
            base_url: relay.app_base_url(),
            cookie: cookie.to_owned(),
            token: String::new(),
        };
        let page = session.page().await;
        assert_eq!(page.status(), 200, "{}", text(&page));
        let html = text(&page);
        let (_, rest) = html.split_once("pageToken&quot;:&quot;").expect("a token");
        let (token, _) = rest.split_once("&quot;").expect("an end");
        session.token = token.to_owned();
        session
    }

    /// The account id that the relay puts into a token for this link.
    pub async fn account(&self, link: &Value) -> String {
        let path = format!("links/{}/context_token", link["id"].as_str().expect("id"));
        let minted = self.call("POST", &path, None, 200).await;
        let token = minted["token"].as_str().expect("token");
        let claims = token.split('.').nth(1).expect("claims");
        let claims = base64::Engine::decode(&base64::prelude::BASE64_URL_SAFE_NO_PAD, claims);
        let claims: Value = serde_json::from_slice(&claims.expect("base64")).expect("JSON");
        claims["sub"].as_str().expect("sub").to_owned()
    }

    pub async fn page(&self) -> Response<Bytes> {
        let url = format!("{}/page", self.base_url);
        ask("GET", &url, &[("cookie", &self.cookie)], "").await
    }

    async fn try_call(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> Response<Bytes> {
        let url = format!("{}/{path}", self.base_url);
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        ask(method, &url, headers, &body).await
    }

    /// What the page's script asks.
    pub async fn call(&self, method: &str, path: &str, body: Option<Value>, status: u16) -> Value {
        let headers = [
            ("cookie", self.cookie.as_str()),
            ("x-page-token", &self.token),
            ("sec-fetch-site", "same-origin"),
        ];
        let answer = checked(self.try_call(method, path, &headers, body).await);
        assert_eq!(
            answer.status(),
            status,
            "{method} {path}: {}",
            text(&answer)
        );
        serde_json::from_slice(answer.body()).unwrap_or_default()
    }
}

const SAME_ORIGIN: &[(&str, &str)] = &[("sec-fetch-site", "same-origin"), ("origin", "null")];

async fn invite(relay: &TestRelay, client_key: &str) -> String {
    let path = format!("/api/v1/installations/{client_key}/page");
    let invitation = relay.admin("POST", &path, None, 201).await;
    let url = invitation["url"].as_str().expect("url").to_owned();
    let start = format!("{}/page/open?ticket=", relay.app_base_url());
    url.strip_prefix(&start).expect("our address").to_owned()
}

async fn press(relay: &TestRelay, ticket: &str, headers: &[(&str, &str)]) -> Response<Bytes> {
    let url = format!("{}/page/open", relay.app_base_url());
    let form = form_urlencoded::Serializer::new(String::new())
        .append_pair("ticket", ticket)
        .finish();
    ask("POST", &url, headers, &form).await
}

async fn ask(method: &str, url: &str, headers: &[(&str, &str)], body: &str) -> Response<Bytes> {
    let mut request = Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::from(body.to_owned())).expect("request");
    send(&client(), request).await
}

fn text(answer: &Response<Bytes>) -> String {
    String::from_utf8_lossy(answer.body()).into_owned()
}

fn policy(answer: &Response<Bytes>) -> &str {
    let policy = answer.headers().get("content-security-policy");
    policy.expect("a policy").to_str().expect("text")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invitation_opens_the_page_once_and_looking_at_it_does_not_use_it_up() {
    let stage = Stage::start().await;
    let instance = FakeInstance::start(&stage.relay.url(), "").await;
    stage.relay.link("tenant", &instance.url()).await;
    let ticket = stage.invite("tenant").await;
    let url = format!("{}/page/open?ticket={ticket}", stage.relay.app_base_url());
    for method in ["HEAD", "GET", "GET", "HEAD"] {
        let shown = ask(method, &url, &[], "").await;
        assert_eq!(shown.status(), 200);
        assert!(!shown.headers().contains_key("set-cookie"));
        assert!(policy(&shown).contains("form-action 'self'; frame-ancestors 'none'"));
    }
    let shown = text(&ask("GET", &url, &[], "").await);
    assert!(!shown.contains("<script"), "{shown}");
    let opened = stage.press(&ticket, SAME_ORIGIN).await;
    assert_eq!(opened.status(), 303, "{}", text(&opened));

    let refused = |answer: Response<Bytes>, word: &str| {
        assert_eq!(answer.status(), 401, "{}", text(&answer));
        assert!(!answer.headers().contains_key("set-cookie"));
        assert!(policy(&answer).contains("frame-ancestors 'none'"));
        let html = text(&answer);
        assert!(
            html.starts_with("<!DOCTYPE html>") && html.contains(word),
            "{html}"
        );
    };
    refused(stage.press(&ticket, SAME_ORIGIN).await, "opened already");
    refused(ask("GET", &url, &[], "").await, "opened already");
    let other = stage.invite("other").await;
    let (claims, signature) = (
        other.split_once('.').expect("two parts").0,
        ticket.split_once('.').expect("two parts").1,
    );
    for odd in ["", "x", ".", &format!("{claims}.{signature}"), &other[1..]] {
        refused(stage.press(odd, SAME_ORIGIN).await, "no such address");
    }
    assert_eq!(stage.press(&other, SAME_ORIGIN).await.status(), 303);

    // What shows the page is as strict as inside Jira, and knows no Jira.
    let session = stage.enter("tenant").await;
    let page = session.page().await;
    let assets = format!("{}/assets/", stage.relay.app_base_url());
    assert_eq!(
        policy(&page),
        format!(
            "default-src 'none'; script-src {assets}; style-src {assets}; img-src 'self' data:; connect-src 'self' {}; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            instance.url()
        )
    );
    assert_eq!(page.headers()["cache-control"], "no-store");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_press_the_button_at_once_one_gets_in() {
    let stage = Stage::start().await;
    let ticket = stage.invite("tenant").await;
    let pressed = (0..12).map(|_| stage.press(&ticket, SAME_ORIGIN));
    let answers = futures_util::future::join_all(pressed).await;
    let mut statuses: Vec<_> = answers.iter().map(|one| one.status().as_u16()).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [vec![303], vec![401; 11]].concat());
    assert_eq!(stage.audit("page_opened").await.len(), 1);
}

/// Asks until the answer is a refusal.
async fn until_refused(url: &str, headers: &[(&str, &str)]) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = ask("GET", url, headers, "").await;
        if answer.status() == 401 {
            return text(&answer);
        }
        assert!(Instant::now() < deadline, "{url} was never refused");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invitation_has_its_time() {
    let stage = Stage::start_with(&[("PAGE__INVITATION_SECS", "1")]).await;
    let ticket = stage.invite("tenant").await;
    let url = format!("{}/page/open?ticket={ticket}", stage.relay.app_base_url());
    let html = until_refused(&url, &[]).await;
    assert!(html.contains("is over"), "{html}");
    let late = stage.press(&ticket, SAME_ORIGIN).await;
    assert_eq!(late.status(), 401);
    assert!(text(&late).contains("is over"), "{}", text(&late));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_has_its_time() {
    let stage = Stage::start_with(&[("PAGE__SESSION_MAX_SECS", "1")]).await;
    let ticket = stage.invite("tenant").await;
    let opened = stage.press(&ticket, SAME_ORIGIN).await;
    assert_eq!(opened.status(), 303);
    let cookie = opened.headers()["set-cookie"].to_str().expect("text");
    let (cookie, _) = cookie.split_once(';').expect("attributes");
    let url = format!("{}/page", stage.relay.app_base_url());
    let html = until_refused(&url, &[("cookie", cookie)]).await;
    assert!(html.contains("You are not logged in here"), "{html}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_of_another_site_opens_nothing() {
    let stage = Stage::start().await;
    let ticket = stage.invite("tenant").await;
    let ours = stage.relay.url();
    for headers in [
        vec![],
        vec![
            ("sec-fetch-site", "cross-site"),
            ("origin", "https://evil.example"),
        ],
        vec![("sec-fetch-site", "same-site"), ("origin", ours.as_str())],
        vec![("sec-fetch-site", "none")],
        vec![("origin", "https://evil.example")],
        vec![("origin", "null")],
        vec![("referer", ours.as_str())],
    ] {
        let refused = stage.press(&ticket, &headers).await;
        assert_eq!(refused.status(), 403, "{headers:?}");
        assert!(!refused.headers().contains_key("set-cookie"));
    }
    // It is good still: also for a browser without Fetch Metadata.
    let opened = stage.press(&ticket, &[("origin", &ours)]).await;
    assert_eq!(opened.status(), 303);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cookie_alone_counts_for_nothing() {
    let stage = Stage::start().await;
    let instance = FakeInstance::start(&stage.relay.url(), "").await;
    let link = stage.relay.link("tenant", &instance.url()).await;
    let id = link["id"].as_str().expect("id");
    let session = stage.enter("tenant").await;
    let second = stage.enter("tenant").await;
    let (cookie, token) = (session.cookie.as_str(), session.token.as_str());
    let same = ("sec-fetch-site", "same-origin");
    for (headers, expected) in [
        (vec![("cookie", cookie), same], "token_missing"),
        (vec![("x-page-token", token), same], "session_over"),
        (
            vec![("cookie", cookie), ("x-page-token", ""), same],
            "session_token",
        ),
        (
            vec![("cookie", cookie), ("x-page-token", &second.token), same],
            "session_token",
        ),
        (
            vec![
                ("cookie", cookie),
                ("x-page-token", token),
                ("sec-fetch-site", "cross-site"),
            ],
            "cross_site",
        ),
        (
            vec![
                ("cookie", cookie),
                ("x-page-token", token),
                ("sec-fetch-site", "same-site"),
            ],
            "cross_site",
        ),
        (
            vec![
                ("cookie", cookie),
                ("x-page-token", token),
                ("origin", "https://evil.example"),
            ],
            "cross_site",
        ),
        // A session's words in the place of Jira's.
        (
            vec![
                ("cookie", cookie),
                ("authorization", &format!("JWT {token}")),
            ],
            "token_malformed",
        ),
    ] {
        for (method, path) in [
            ("GET", "links".to_owned()),
            ("POST", "links".to_owned()),
            ("DELETE", format!("links/{id}")),
            ("POST", format!("links/{id}/resend")),
            ("POST", format!("links/{id}/context_token")),
        ] {
            let refused = session.try_call(method, &path, &headers, None).await;
            let refused = checked(refused);
            assert!(matches!(refused.status().as_u16(), 401 | 403));
            assert_eq!(code(&refused), expected, "{method} {path} {headers:?}");
        }
        if expected != "token_malformed" && expected != "token_missing" {
            let refused = session
                .try_call("DELETE", "page/session", &headers, None)
                .await;
            assert_eq!(code(&refused), expected);
        }
    }
    // Not where Jira's own tokens belong, either.
    let headers = [("cookie", cookie), ("x-page-token", token), same];
    let refused = session
        .try_call("GET", "installations", &headers, None)
        .await;
    assert_eq!(code(&refused), "token_missing");
    assert_eq!(
        session.call("GET", "links", None, 200).await["may_change"],
        true
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_does_what_an_admin_does_and_it_stands_in_the_audit_trail() {
    let stage = Stage::start().await;
    let instance = FakeInstance::start(&stage.relay.url(), "/gitlab").await;
    instance.front.lock().expect("front").groups = vec![(7, "Maps".to_owned())];
    let session = stage.enter("tenant").await;
    let wish = json!({"instance_url": instance.url()});
    let link = session.call("POST", "links", Some(wish), 201).await;
    assert_eq!(link["state"], "connected", "{link:#}");
    let path = format!("links/{}", link["id"].as_str().expect("id"));
    session
        .call("POST", &format!("{path}/resend"), None, 200)
        .await;
    session
        .call("POST", &format!("{path}/sign_in"), None, 200)
        .await;
    let account = session.account(&link).await;
    assert!(account.starts_with("relay-operator-"), "{account}");
    let groups = session
        .call("GET", &format!("{path}/groups"), None, 200)
        .await;
    assert_eq!(groups["groups"][0]["full_name"], "Maps");
    session
        .call("DELETE", &format!("{path}/groups/7"), None, 204)
        .await;
    let signed = instance.front.lock().expect("front").signed.clone();
    let (_, _, claims) = signed.last().expect("a signed call");
    assert_eq!(claims["sub"], account.as_str());
    session.call("DELETE", &path, None, 202).await;
    assert_eq!(stage.asked.load(Ordering::SeqCst), 0, "Jira was not asked");

    let [invited, opened] = [
        &stage.audit("page_invitation_created").await[0],
        &stage.audit("page_opened").await[0],
    ];
    assert_eq!(
        (&invited["actor"], &opened["actor"]),
        (&json!("admin"), &json!("operator"))
    );
    let number = opened["note"].as_str().expect("note");
    assert!(invited["note"].as_str().expect("note").starts_with(number));
    for action in [
        "page_opened",
        "link_created",
        "link_resend_requested",
        "group_unlinked",
        "link_removal_requested",
    ] {
        let entry = &stage.audit(action).await[0];
        assert_eq!(entry["actor"], "operator", "{entry:#}");
        assert_eq!(entry["account_id"], account.as_str(), "{entry:#}");
        assert_eq!(entry["client_key"], "tenant", "{entry:#}");
        assert_eq!(entry["peer"], "127.0.0.1", "{entry:#}");
    }
    let shown = printed(&stage.relay, &["audit"], 0).await;
    assert!(shown.contains(&account), "{shown}");
    printed(&stage.relay, &["audit", "verify"], 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_links_no_groups_of_an_instance_that_asks_jira_itself() {
    let stage = Stage::start().await;
    let instance = FakeInstance::start(&stage.relay.url(), "/gitlab").await;
    let wish = json!({
        "client_key": "tenant", "instance_url": instance.url(), "mode": "direct",
    });
    let link = stage
        .relay
        .admin("POST", "/api/v1/links", Some(wish), 201)
        .await;
    assert_eq!(link["state"], "connected", "{link:#}");
    let session = stage.enter("tenant").await;
    let path = format!("links/{}", link["id"].as_str().expect("id"));
    for (method, what) in [
        ("POST", "sign_in"),
        ("POST", "context_token"),
        ("DELETE", "groups/7"),
    ] {
        let path = format!("{path}/{what}");
        let refused = session.call(method, &path, None, 409).await;
        assert_eq!(refused["error"]["code"], "link_direct", "{what}");
    }
    // All else is the relay's to do.
    session
        .call("POST", &format!("{path}/resend"), None, 200)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_for_one_site_and_sees_no_other() {
    let stage = Stage::start().await;
    let instance = FakeInstance::start(&stage.relay.url(), "").await;
    let link = stage.relay.link("other", &instance.url()).await;
    let id = link["id"].as_str().expect("id");
    let session = stage.enter("tenant").await;
    let list = session.call("GET", "links", None, 200).await;
    assert_eq!(list["links"], json!([]));
    for (method, path) in [
        ("GET", format!("links/{id}")),
        ("DELETE", format!("links/{id}")),
        ("POST", format!("links/{id}/resend")),
        ("GET", format!("links/{id}/groups")),
        ("DELETE", format!("links/{id}/groups/1")),
        ("POST", format!("links/{id}/sign_in")),
        ("POST", format!("links/{id}/context_token")),
    ] {
        session.call(method, &path, None, 404).await;
    }
    assert!(!text(&session.page().await).contains(&instance.url()));
    let others = stage.enter("other").await;
    let list = others.call("GET", "links", None, 200).await;
    assert_eq!(list["links"].as_array().map(Vec::len), Some(1));
    let mixed = [
        ("cookie", others.cookie.as_str()),
        ("x-page-token", &session.token),
        ("sec-fetch-site", "same-origin"),
    ];
    let refused = session.try_call("GET", "links", &mixed, None).await;
    assert_eq!(code(&refused), "session_token");
}

#[tokio::test(flavor = "multi_thread")]
async fn logging_out_ends_a_session_and_so_does_a_restart() {
    let mut stage = Stage::start().await;
    let (session, second) = (stage.enter("tenant").await, stage.enter("tenant").await);
    let headers = [
        ("cookie", session.cookie.as_str()),
        ("x-page-token", &session.token),
    ];
    let ended = session
        .try_call("DELETE", "page/session", &headers, None)
        .await;
    assert_eq!(ended.status(), 204);
    let open = "jira_connect_proxy_page_sessions";
    assert_eq!(stage.relay.metric(open, "").await, 1.0, "of two");
    let cleared = ended.headers()["set-cookie"].to_str().expect("text");
    assert!(cleared.contains("=; Path=/; Max-Age=0;"), "{cleared}");
    assert_eq!(session.page().await.status(), 401);
    let gone = session.try_call("GET", "links", &headers, None).await;
    assert_eq!(
        (gone.status().as_u16(), code(&gone).as_str()),
        (401, "session_over")
    );
    let entry = &stage.audit("page_closed").await[0];
    assert_eq!(entry["actor"], "operator");
    second.call("GET", "links", None, 200).await;

    let ticket = stage.invite("tenant").await;
    stage.relay.restart().await;
    assert_eq!(second.page().await.status(), 401);
    let late = stage.press(&ticket, SAME_ORIGIN).await;
    assert_eq!(late.status(), 401);
    assert!(text(&late).contains("no such address"), "{}", text(&late));
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_hear_of_an_operator_while_the_page_is_open_and_only_their_own() {
    let stage = Stage::start().await;
    let instance = FakeInstance::start(&stage.relay.url(), "/gitlab").await;
    let mut links = Vec::new();
    for site in ["tenant", "other"] {
        links.push(stage.relay.link(site, &instance.url()).await);
    }
    let session = stage.enter("tenant").await;
    let account = session.account(&links[0]).await;
    for _ in 0..3 {
        let user = checked(stage.user(&instance, "tenant", &account).await);
        assert_eq!(user.status(), 200, "{}", text(&user));
        let user: Value = serde_json::from_slice(user.body()).expect("JSON");
        assert_eq!(user["accountId"], account.as_str());
        let groups = user["groups"]["items"].as_array().expect("groups");
        let names: Vec<_> = groups.iter().map(|group| group["name"].clone()).collect();
        assert_eq!(names, ["org-admins", "site-admins"]);
    }
    // Once for each link: an instance can't fill the trail.
    let told = stage.audit("operator_vouched_for").await;
    assert_eq!(told.len(), 1, "{told:#?}");
    assert_eq!(told[0]["account_id"], account.as_str());
    assert_eq!(told[0]["link_id"], links[0]["id"]);
    assert_eq!(told[0]["actor"], "relay");

    let unknown = async |site: &str, account: &str| {
        let user = stage.user(&instance, site, account).await;
        assert_eq!(user.status(), 404, "{}", text(&user));
        let body: Value = serde_json::from_slice(user.body()).expect("JSON");
        assert!(body["errorMessages"][0].is_string(), "{body:#}");
        assert_eq!(body["errors"], json!({}));
    };
    unknown("other", &account).await;
    unknown("tenant", "relay-operator-00000000000000000000000000000000").await;
    assert_eq!(stage.asked.load(Ordering::SeqCst), 0, "Jira was not asked");
    // All others are Jira's to know.
    let user = stage.user(&instance, "tenant", "557058:abc").await;
    assert_eq!(text(&user), r#"{"accountId":"jiras-own"}"#);
    assert_eq!(stage.asked.load(Ordering::SeqCst), 1);

    session.call("DELETE", "page/session", None, 204).await;
    unknown("tenant", &account).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_without_the_app_has_no_page() {
    let stage = Stage::start().await;
    let session = stage.enter("tenant").await;
    let ticket = stage.invite("tenant").await;
    let removed = stage.jira.uninstalled(&stage.relay.app_base_url()).await;
    assert_eq!(removed.status(), 204);
    let refused = session.call("GET", "links", None, 409).await;
    assert_eq!(refused["error"]["code"], "installation_uninstalled");
    assert_eq!(session.page().await.status(), 409);
    assert_eq!(stage.press(&ticket, SAME_ORIGIN).await.status(), 409);
    for (site, status, expected) in [
        ("tenant", 409, "installation_uninstalled"),
        ("stranger", 404, "installation_unknown"),
        ("%20", 404, "not_found"),
    ] {
        let path = format!("/api/v1/installations/{site}/page");
        let refused = stage.relay.admin("POST", &path, None, status).await;
        assert_eq!(refused["error"]["code"], expected);
    }
    let wrong = stage
        .relay
        .admin("GET", "/api/v1/installations/tenant/page", None, 405);
    assert_eq!(wrong.await["error"]["code"], "method_not_allowed");
    // Reinstalled, it is the same site, and the invitation is good still.
    let back = stage
        .jira
        .installed(&stage.relay.app_base_url(), SECRET_2)
        .await;
    assert_eq!(back.status(), 204);
    assert_eq!(stage.press(&ticket, SAME_ORIGIN).await.status(), 303);
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_https_the_cookie_belongs_to_this_host_alone() {
    let public_url = "https://relay.example.com";
    let mut jira = FakeJira::start("tenant").await;
    jira.app_key = "gitlab-jira-connect-relay.example.com".to_owned();
    let relay = TestRelay::start_with(&jira, |all| all.set("PUBLIC__URL", public_url)).await;
    let mut installed = jira.call(&relay.app_base_url(), "installed", Some(SECRET));
    installed.claims["aud"] = json!([format!("{public_url}/-/jira_connect")]);
    assert_eq!(jira.send(installed).await.status(), 204);
    let path = "/api/v1/installations/tenant/page";
    let invitation = relay.admin("POST", path, None, 201).await;
    let url = invitation["url"].as_str().expect("url");
    let start = format!("{public_url}/-/jira_connect/page/open?");
    let form = url.strip_prefix(&start).expect("the public address");
    let url = format!("{}/page/open", relay.app_base_url());
    let elsewhere = ask("POST", &url, &[("origin", &relay.url())], form).await;
    assert_eq!(elsewhere.status(), 403);
    let opened = ask("POST", &url, &[("origin", public_url)], form).await;
    let cookie = opened.headers()["set-cookie"].to_str().expect("text");
    assert!(cookie.starts_with("__Host-"), "{cookie}");
    assert!(cookie.ends_with("; Path=/; Max-Age=28800; HttpOnly; SameSite=Strict; Secure"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_prints_an_address_by_key_or_by_name() {
    let jira = FakeJira::start("jira:tenant/1").await;
    let relay = TestRelay::start(&jira).await;
    jira.installed(&relay.app_base_url(), SECRET).await;
    let start = format!("{}/page/open?ticket=", relay.app_base_url());
    for site in [
        "jira:tenant/1",
        "acme.atlassian.net",
        "https://acme.atlassian.net",
    ] {
        let shown = printed(&relay, &["page", site], 0).await;
        assert!(shown.starts_with(&start), "{shown}");
        assert!(
            shown.contains("opens the page of https://acme.atlassian.net once"),
            "{shown}"
        );
    }
    let answer = printed(&relay, &["page", "acme.atlassian.net", "--json"], 0).await;
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    assert!(
        answer["url"]
            .as_str()
            .is_some_and(|url| url.starts_with(&start))
    );
    assert!(answer["expires_at"].is_string());
    let nobody = printed(&relay, &["page", "other.atlassian.net"], 1).await;
    assert!(
        nobody.contains("no Jira site other.atlassian.net has the app"),
        "{nobody}"
    );
}
