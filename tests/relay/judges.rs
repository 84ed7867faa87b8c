//! End to end with the official libraries as judges: Jira signs with npm `atlassian-jwt`, the instances verify
//! with Debian's `ruby-atlassian-jwt` and `ruby-jwt`. See `tests/judges/README.md`.

use std::sync::Arc;

use http::Request;
use http_body_util::Full;
use jira_connect_proxy::{
    domain::{
        ClientKey, Installation, JiraSites, SharedSecret,
        event::{EventStamp, SiteFacts},
    },
    jwt::{
        Target, UnverifiedToken, context,
        request::{self, Audiences},
    },
};
use serde_json::{Value, json};

use crate::{
    fakes::{
        FakeJira,
        http::{client, send},
        jira::now,
    },
    harness::{Judge, SECRET, SECRET_2, TestRelay},
    stage::GitLab,
};

/// The official JavaScript library as Jira Cloud.
struct JiraJudge(Judge);

impl JiraJudge {
    fn start() -> Self {
        Self(Judge::start("node", &["jira.mjs"]))
    }

    fn ask(&mut self, command: Value) -> Value {
        self.0.ask(command)
    }

    /// Signs and sends a lifecycle call; its status. Blocks, so not on the runtime's threads.
    async fn lifecycle(
        &mut self,
        relay: &TestRelay,
        event: &str,
        secret: Option<&str>,
        claims: Value,
        carrier: &str,
    ) -> u16 {
        let mut body = json!({
            "key": "gitlab-jira-connect-127.0.0.1", "clientKey": "judged-tenant", "eventType": event,
            "baseUrl": "https://acme.atlassian.net", "productType": "jira",
        });
        if let Some(secret) = secret {
            body["sharedSecret"] = secret.into();
        }
        let command = json!({
            "cmd": "lifecycle", "base_url": relay.app_base_url(), "event": event, "body": body,
            "claims": claims, "carrier": carrier,
        });
        let answer = tokio::task::block_in_place(|| self.ask(command));
        u16::try_from(answer["status"].as_u64().expect("status")).expect("status")
    }
}

async fn relay_for(judge: &JiraJudge) -> TestRelay {
    let keys_url = judge.0.ready["keys_url"]
        .as_str()
        .expect("keys url")
        .to_owned();
    // Only its address is used; the keys are the judge's.
    let jira = FakeJira::start("unused").await;
    TestRelay::start_with(&jira, |settings| {
        settings.set("JIRA__INSTALL_KEYS_URL", &keys_url)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_main_job_between_official_libraries() {
    let mut jira = JiraJudge::start();
    let relay = relay_for(&jira).await;
    assert_eq!(
        jira.lifecycle(&relay, "installed", Some(SECRET), json!({}), "header")
            .await,
        204
    );

    // An instance under its own name, one in a folder, one whose reverse proxy drops the port.
    let (port_dropped, plain_http) = (["--external-host", "127.0.0.1"], ["--http"]);
    let gitlabs = [
        GitLab::start(&relay, "", &[]),
        GitLab::start(&relay, "/gitlab", &[]),
        GitLab::start(&relay, "", &port_dropped),
        GitLab::start(&relay, "", &plain_http),
    ];
    for gitlab in &gitlabs {
        let link = relay.link("judged-tenant", &gitlab.url).await;
        assert_eq!(
            link["state"],
            "connected",
            "{link:#}\n{:#}",
            gitlab.state().await
        );
        let state = gitlab.state().await;
        let known = &state["installations"]["judged-tenant"];
        assert_eq!(known["base_url"], relay.url());
        assert!(
            known["shared_secret"]
                .as_str()
                .is_some_and(|secret| secret != SECRET && secret.len() == 64)
        );
        let event = &state["events"][0];
        assert_eq!(
            (&event["status"], &event["authorization"]),
            (&json!(200), &json!(false))
        );
        assert_eq!(event["content_type"], "application/x-www-form-urlencoded");
    }

    // A link's secret really is what the instance verifies us with: GET installations, HS256.
    for gitlab in &gitlabs {
        let state = gitlab.state().await;
        let secret = state["installations"]["judged-tenant"]["shared_secret"]
            .as_str()
            .expect("secret")
            .to_owned();
        let url = format!("{}/-/jira_connect/installations", gitlab.url);
        let signed = tokio::task::block_in_place(|| {
            jira.ask(json!({
            "cmd": "sign_request", "method": "GET", "url": url, "base_url": format!("{}/-/jira_connect", gitlab.url),
            "secret": secret, "claims": {"iss": "judged-tenant"},
        }))
        });
        let request = Request::get(&url).header(
            "authorization",
            format!("JWT {}", signed["token"].as_str().expect("token")),
        );
        let answer = send(&client(), request.body(Full::default()).expect("request")).await;
        assert_eq!(answer.status(), 200);
    }

    assert_eq!(
        jira.lifecycle(&relay, "installed", Some(SECRET_2), json!({}), "query")
            .await,
        204,
        "the token in the query"
    );
    tokio::task::block_in_place(|| jira.ask(json!({"cmd": "rotate_key"})));
    assert_eq!(
        jira.lifecycle(&relay, "installed", Some(SECRET), json!({}), "header")
            .await,
        204,
        "Atlassian's key rotated"
    );

    // A removed link, then the whole app.
    let links = relay.links().await;
    let first = links
        .iter()
        .find(|link| link["instance_url"] == gitlabs[0].url)
        .expect("link");
    relay
        .admin(
            "DELETE",
            &format!("/api/v1/links/{}", first["id"].as_str().expect("id")),
            None,
            202,
        )
        .await;
    relay
        .until_links("one gone", |links| links.len() == 3)
        .await;
    assert_eq!(gitlabs[0].state().await["installations"], json!({}));
    assert_eq!(
        jira.lifecycle(&relay, "uninstalled", None, json!({}), "header")
            .await,
        204
    );
    relay
        .until_links("all told", |links| {
            links
                .iter()
                .all(|link| link["acknowledged"] == "uninstalled")
        })
        .await;
    for gitlab in &gitlabs {
        let state = gitlab.state().await;
        assert_eq!(state["installations"], json!({}));
        let statuses: Vec<&Value> = state["events"]
            .as_array()
            .expect("events")
            .iter()
            .map(|event| &event["status"])
            .collect();
        assert_eq!(statuses, [200, 200], "each event once, and taken at once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_official_signer_signs_wrongly_is_refused() {
    let mut jira = JiraJudge::start();
    let relay = relay_for(&jira).await;
    for claims in [
        json!({"aud": ["https://evil.example/-/jira_connect"]}),
        json!({"iss": "another-tenant"}),
        json!({"qsh": "context-qsh"}),
        json!({"qsh": null}),
        json!({"exp": null}),
        json!({"exp": 1}),
    ] {
        assert_eq!(
            jira.lifecycle(&relay, "installed", Some(SECRET), claims.clone(), "header")
                .await,
            401,
            "{claims}"
        );
    }
    let installations = relay.admin("GET", "/api/v1/installations", None, 200).await;
    assert_eq!(installations, json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gitlab_that_comes_back_gets_what_it_missed() {
    let mut jira = JiraJudge::start();
    let relay = relay_for(&jira).await;
    jira.lifecycle(&relay, "installed", Some(SECRET), json!({}), "header")
        .await;
    let gitlab = GitLab::start(&relay, "/gitlab", &[]);
    for (mode, expected) in [
        ("error500", "instance_error"),
        ("unauthorized", "unauthorized_key_not_fetched"),
        ("unprocessable", "unprocessable"),
    ] {
        gitlab.mode(mode).await;
        let links = relay.links().await;
        let link = match links.first() {
            None => relay.link("judged-tenant", &gitlab.url).await,
            Some(link) => {
                let path = format!("/api/v1/links/{}/resend", link["id"].as_str().expect("id"));
                relay.admin("POST", &path, None, 200).await
            }
        };
        assert_eq!(
            (&link["state"], &link["last_error"]["code"]),
            (&json!("failing"), &json!(expected))
        );
    }
    gitlab.mode("ok").await;
    relay
        .until_links("connected", |links| links[0]["state"] == "connected")
        .await;
    let wrong_host = GitLab::start(&relay, "", &["--external-host", "internal.example"]);
    let link = relay.link("judged-tenant", &wrong_host.url).await;
    assert_eq!(link["last_error"]["code"], "unauthorized_key_fetched");
}

/// Request and context tokens have no address of their own yet, so the official signer meets the verifiers here.
#[tokio::test(flavor = "multi_thread")]
async fn symmetric_tokens_of_the_official_signer_verify() {
    let mut jira = JiraJudge::start();
    let base = "https://relay.example.com/-/jira_connect";
    let installation = Arc::new(installation());
    let find = |key: &ClientKey| (key.as_str() == "tenant").then(|| Arc::clone(&installation));
    let audiences = Audiences {
        base_url: base.to_owned(),
        app_key: "app".to_owned(),
    };
    let mut sign = |method: &str, path_and_query: &str, claims: Value| {
        let mut all = json!({"iss": "tenant", "sub": "5b10a2844c20165700ede21g"});
        all.as_object_mut()
            .expect("object")
            .extend(claims.as_object().cloned().unwrap_or_default());
        let command = json!({
            "cmd": "sign_request", "method": method, "url": format!("{base}{path_and_query}"),
            "base_url": base, "secret": SECRET, "claims": all,
        });
        let token = tokio::task::block_in_place(|| jira.ask(command))["token"]
            .as_str()
            .expect("token")
            .to_owned();
        UnverifiedToken::parse(&token).expect("token")
    };
    let verify = |token: &UnverifiedToken, method: &str, path_and_query: &str| {
        let target =
            Target::parse_strict(&format!("/-/jira_connect{path_and_query}"), &[]).expect("target");
        request::verify(
            token,
            method,
            "/-/jira_connect",
            &target,
            &audiences,
            find,
            now(),
        )
    };
    for (method, path_and_query) in [
        (
            "GET",
            "/subscriptions?xdm_e=https%3A%2F%2Facme.atlassian.net&xdm_c=channel-x&cp=&xdm_deprecated_addon_key_do_not_use=app&lic=none&cv=1001.0.0",
        ),
        ("GET", "/workspaces/search?searchQuery=my%20group"),
        (
            "GET",
            "/repositories/search?searchQuery=%E5%AE%AE&page=1&limit=20",
        ),
        ("POST", "/repositories/associate"),
        (
            "GET",
            "/branches/route?issue_key=ABC-1&issue_summary=it+is+%22quoted%22+%26+more&addonkey=app",
        ),
    ] {
        let token = sign(method, path_and_query, json!({}));
        let claims = verify(&token, method, path_and_query)
            .unwrap_or_else(|error| panic!("{path_and_query}: {error}"));
        assert_eq!(
            claims.account_id.as_deref(),
            Some("5b10a2844c20165700ede21g")
        );
        assert_eq!(
            verify(&token, "PUT", path_and_query)
                .err()
                .map(|e| e.code()),
            Some("token_query_hash")
        );
        assert_eq!(
            verify(&token, method, "/elsewhere").err().map(|e| e.code()),
            Some("token_query_hash")
        );
    }
    let token = sign("GET", "/x", json!({"iss": "stranger"}));
    assert_eq!(
        verify(&token, "GET", "/x").err().map(|e| e.code()),
        Some("token_unknown_issuer")
    );
    let token = sign("GET", "/x", json!({"aud": ["https://evil.example"]}));
    assert_eq!(
        verify(&token, "GET", "/x").err().map(|e| e.code()),
        Some("token_audience")
    );
    let token = sign("GET", "/x", json!({"exp": 1, "iat": 0}));
    assert_eq!(
        verify(&token, "GET", "/x").err().map(|e| e.code()),
        Some("token_expired")
    );

    let token = sign("GET", "/x", json!({"qsh": "context-qsh"}));
    assert_eq!(
        verify(&token, "GET", "/x").err().map(|e| e.code()),
        Some("token_context_refused")
    );
    assert!(context::verify(&token, &audiences, find, now()).is_ok());
    let token = sign("GET", "/x", json!({}));
    assert_eq!(
        context::verify(&token, &audiences, find, now())
            .err()
            .map(|e| e.code()),
        Some("token_not_context")
    );
}

fn installation() -> Installation {
    let now = now();
    let stamp = EventStamp {
        issued_at: now,
        token_digest: String::new(),
        body_digest: String::new(),
        received_at: now,
    };
    let site = SiteFacts {
        base_url: JiraSites::default()
            .parse("https://acme.atlassian.net")
            .expect("base URL"),
        display_url: None,
        shared_secret: SharedSecret::parse(SECRET).expect("secret"),
    };
    let key = ClientKey::parse("tenant").expect("key");
    Installation::install(None, &key, &stamp, &site, jiff::SignedDuration::ZERO, now)
        .expect("install")
        .0
}
