//! Jira asks for workspaces and repositories, and sends people who want a branch: several instances are one answer.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use serde_json::{Value, json};

use crate::{
    fakes::http::{client, send},
    harness::{Judge, PATIENCE, SECRET, checked, code},
    stage::{CLIENT_KEY, Stage},
};

/// Signs as Jira does, with npm `atlassian-jwt`.
struct Jira(Mutex<Judge>);

impl Jira {
    fn start() -> Self {
        Self(Mutex::new(Judge::start("node", &["jira.mjs"])))
    }

    /// A call of Jira's to the app, with a token in the header.
    async fn call(
        &self,
        stage: &Stage,
        method: &str,
        path_and_query: &str,
        body: Option<Value>,
    ) -> Response<Bytes> {
        let token = self.token(stage, method, path_and_query, json!({}));
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path_and_query}", stage.relay.app_base_url()))
            .header("authorization", format!("JWT {token}"))
            .header("content-type", "application/json")
            .body(Full::from(
                body.map(|body| body.to_string()).unwrap_or_default(),
            ));
        checked(send(&client(), request.expect("request")).await)
    }

    fn token(&self, stage: &Stage, method: &str, path_and_query: &str, claims: Value) -> String {
        let mut all = json!({"iss": CLIENT_KEY, "sub": "557058:abc"});
        all.as_object_mut()
            .expect("claims")
            .extend(claims.as_object().cloned().unwrap_or_default());
        let base_url = stage.relay.app_base_url();
        let signed = self.0.lock().expect("judge").ask(json!({
            "cmd": "sign_request", "method": method, "url": format!("{base_url}{path_and_query}"),
            "base_url": base_url, "secret": SECRET, "claims": all,
        }));
        signed["token"].as_str().expect("token").to_owned()
    }

    async fn get(&self, stage: &Stage, path_and_query: &str) -> Value {
        let answer = self.call(stage, "GET", path_and_query, None).await;
        let text = String::from_utf8_lossy(answer.body()).into_owned();
        assert_eq!(answer.status(), 200, "{path_and_query}: {text}");
        serde_json::from_str(&text).expect("JSON")
    }
}

async fn projects(stage: &Stage, instance: usize, names: &[&str]) {
    let projects: Vec<Value> = names
        .iter()
        .zip(42..)
        .map(|(name, id)| json!({"id": id, "name": name, "group": {"id": 7, "name": format!("group of {name}")}}))
        .collect();
    stage.gitlabs[instance]
        .control("projects", json!({"projects": projects}))
        .await;
}

fn ids(list: &Value) -> Vec<&str> {
    list.as_array()
        .expect("list")
        .iter()
        .map(|entry| entry["id"].as_str().expect("text"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn all_instances_answer_as_one() {
    let (stage, jira) = (Stage::set(2).await, Jira::start());
    projects(&stage, 0, &["roof", "door"]).await;
    projects(&stage, 1, &["roof", "wall"]).await;
    let (one, two) = (stage.namespace(0), stage.namespace(1));

    let found = jira
        .get(&stage, "/workspaces/search?searchQuery=group")
        .await;
    assert_eq!(found["success"], true);
    let workspaces = ids(&found["workspaces"]);
    assert!(
        workspaces.contains(&format!("{one}-7").as_str())
            && workspaces.contains(&format!("{two}-7").as_str()),
        "{found:#}"
    );

    let found = jira
        .get(
            &stage,
            "/repositories/search?searchQuery=roof&page=1&limit=20",
        )
        .await;
    assert_eq!(
        ids(&found["containers"]),
        [format!("{one}-42"), format!("{two}-42")]
    );
    assert_eq!(found["containers"], found["repositories"]);
    assert_eq!(
        found["containers"][1]["workspace"]["id"],
        format!("{two}-7")
    );
    // One list, page by page.
    let mut all = Vec::new();
    for page in 1..=3 {
        let found = jira
            .get(
                &stage,
                &format!("/repositories/search?searchQuery=&page={page}&limit=2"),
            )
            .await;
        all.extend(ids(&found["containers"]).into_iter().map(str::to_owned));
    }
    assert_eq!(
        all,
        [
            format!("{one}-42"),
            format!("{two}-42"),
            format!("{one}-43"),
            format!("{two}-43")
        ]
    );

    // Only the instance that has it is asked, in its own words.
    let id = format!("{two}-43");
    let answer = jira
        .call(
            &stage,
            "POST",
            "/repositories/associate",
            Some(json!({"id": id})),
        )
        .await;
    let repository: Value = serde_json::from_slice(answer.body()).expect("JSON");
    assert_eq!(
        (&repository["id"], &repository["name"]),
        (&json!(id), &json!("wall")),
        "{repository:#}"
    );
    for (asked, times) in [(0, 0), (1, 1)] {
        let state = stage.gitlabs[asked].state().await;
        let calls = state["toolchain"]
            .as_array()
            .expect("calls")
            .iter()
            .filter(|call| {
                call["path"]
                    .as_str()
                    .is_some_and(|path| path.ends_with("associate"))
            });
        assert_eq!(calls.count(), times);
    }
    for unknown in [
        format!("{two}-999"),
        "nobody999-42".to_owned(),
        "42".to_owned(),
    ] {
        let answer = jira
            .call(
                &stage,
                "POST",
                "/repositories/associate",
                Some(json!({"id": unknown})),
            )
            .await;
        assert_eq!(answer.status(), 404, "{unknown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_or_dead_instance_costs_only_its_own_results() {
    let stage = Stage::set_with(2, |settings| {
        settings.set("JIRA__SEARCH_DEADLINE_MS", "1500");
        settings.set("INSTANCES__REQUEST_TIMEOUT_MS", "20000");
    })
    .await;
    let jira = Jira::start();
    projects(&stage, 0, &["roof"]).await;
    projects(&stage, 1, &["roof"]).await;
    let (one, two) = (stage.namespace(0), stage.namespace(1));
    let search = "/repositories/search?searchQuery=roof&page=1&limit=20";
    stage.gitlabs[1]
        .control("mode", json!({"toolchain": "slow", "delay_ms": 6000}))
        .await;
    let started = Instant::now();
    let found = jira.get(&stage, search).await;
    assert!(
        started.elapsed() < Duration::from_millis(5500),
        "Jira had to wait"
    );
    assert_eq!(ids(&found["containers"]), [format!("{one}-42")]);
    // What came too late is there the next time, and what was there stands in for what fails.
    let both = [format!("{one}-42"), format!("{two}-42")];
    while ids(&jira.get(&stage, search).await["containers"]) != both {
        assert!(started.elapsed() < PATIENCE, "it never came");
    }
    stage.gitlabs[1]
        .control("mode", json!({"toolchain": "error500"}))
        .await;
    let found = jira.get(&stage, search).await;
    assert_eq!(ids(&found["containers"]), both);
    let found = jira
        .get(
            &stage,
            "/repositories/search?searchQuery=oof&page=1&limit=20",
        )
        .await;
    assert_eq!(ids(&found["containers"]), [format!("{one}-42")]);
    let answer = jira
        .call(
            &stage,
            "POST",
            "/repositories/associate",
            Some(json!({"id": format!("{two}-42")})),
        )
        .await;
    assert_eq!(
        (answer.status().as_u16(), code(&answer).as_str()),
        (503, "instance_unavailable")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn only_jira_may_ask() {
    let (stage, jira) = (Stage::set(1).await, Jira::start());
    let path = "/workspaces/search?searchQuery=a";
    let url = format!("{}{path}", stage.relay.app_base_url());
    for (claims, expected) in [
        (json!({"qsh": "context-qsh"}), "token_context_refused"),
        (json!({"qsh": "0".repeat(64)}), "token_query_hash"),
        (json!({"iss": "stranger"}), "token_unknown_issuer"),
        (json!({"exp": 1, "iat": 0}), "token_expired"),
    ] {
        let token = jira.token(&stage, "GET", path, claims);
        let request = Request::get(&url)
            .header("authorization", format!("JWT {token}"))
            .body(Full::default());
        let answer = checked(send(&client(), request.expect("request")).await);
        assert_eq!(
            (answer.status().as_u16(), code(&answer).as_str()),
            (401, expected)
        );
    }
    // An instance's secret opens nothing here.
    let secret = stage.gitlabs[0].secret().await;
    let token = crate::stage::instance_token(&secret, "GET", path, json!({"iss": CLIENT_KEY}));
    let request = Request::get(&url)
        .header("authorization", format!("JWT {token}"))
        .body(Full::default());
    assert_eq!(
        send(&client(), request.expect("request")).await.status(),
        401
    );
}

fn location(answer: &Response<Bytes>) -> String {
    answer.headers()["location"]
        .to_str()
        .expect("text")
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_instance_gets_the_branch_at_once_and_never_jiras_token() {
    let (stage, jira) = (Stage::set(1).await, Jira::start());
    let path = "/branches/route?issue_key=ABC-1&issue_summary=Mend%20the%20%3Croof%3E%20%26%20door&addonkey=app";
    for claims in [json!({}), json!({"qsh": "context-qsh"})] {
        let token = jira.token(&stage, "GET", path, claims);
        let answer = stage
            .relay
            .get(&format!("{}{path}&jwt={token}", stage.relay.app_base_url()))
            .await;
        assert_eq!(answer.status(), 302);
        assert_eq!(
            location(&answer),
            format!(
                "{}/-/jira_connect/branches/new?issue_key=ABC-1&issue_summary=Mend+the+%3Croof%3E+%26+door",
                stage.gitlabs[0].url
            )
        );
    }
    let answer = stage
        .relay
        .get(&format!("{}{path}", stage.relay.app_base_url()))
        .await;
    assert_eq!(
        (answer.status().as_u16(), code(&answer).as_str()),
        (401, "token_missing")
    );
    let token = jira.token(
        &stage,
        "GET",
        "/branches/route?issue_key=ABC-2&issue_summary=&addonkey=app",
        json!({}),
    );
    let answer = stage
        .relay
        .get(&format!("{}{path}&jwt={token}", stage.relay.app_base_url()))
        .await;
    assert_eq!(code(&answer), "token_query_hash");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_instances_are_a_choice_that_is_remembered() {
    let (stage, jira) = (Stage::set(3).await, Jira::start());
    let path = "/branches/route?issue_key=ABC-1&issue_summary=%3Cscript%3Ealert(1)%3C%2Fscript%3E&addonkey=app";
    let token = jira.token(&stage, "GET", path, json!({}));
    let url = format!("{}{path}&jwt={token}", stage.relay.app_base_url());
    let page = stage.relay.get(&url).await;
    assert_eq!(page.status(), 200);
    let html = String::from_utf8_lossy(page.body()).into_owned();
    assert!(
        !html.contains("<script") && html.contains("&lt;script&gt;"),
        "{html}"
    );
    assert!(
        !html.contains(&token) && !html.contains("jwt"),
        "the token stays here"
    );
    assert!(
        page.headers()["content-security-policy"]
            .to_str()
            .expect("text")
            .contains("default-src 'none'")
    );
    let hrefs: Vec<&str> = html
        .split("<a href=\"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .collect();
    assert_eq!(hrefs.len(), 3, "{html}");
    let second = hrefs[1].replace("&amp;", "&");
    let chosen = stage
        .relay
        .get(&format!("{}{second}", stage.relay.url()))
        .await;
    assert_eq!(chosen.status(), 302);
    assert!(location(&chosen).starts_with(&format!(
        "{}/-/jira_connect/branches/new?issue_key=ABC-1",
        stage.gitlabs[1].url
    )));
    let cookie = chosen.headers()["set-cookie"]
        .to_str()
        .expect("text")
        .to_owned();
    assert!(
        cookie.contains("HttpOnly") && cookie.contains("SameSite=Lax"),
        "{cookie}"
    );
    let cookie = cookie.split(';').next().expect("pair").to_owned();
    let request = Request::get(&url)
        .header("cookie", format!("a=b; {cookie}"))
        .body(Full::default());
    let page = checked(send(&client(), request.expect("request")).await);
    let html = String::from_utf8_lossy(page.body()).into_owned();
    let first = html
        .split("<a href=\"")
        .nth(1)
        .and_then(|rest| rest.split('"').next())
        .expect("link");
    assert_eq!(first, hrefs[1]);
    assert_eq!(html.matches("last used").count(), 1);

    for link in ["", "x", "00000000-0000-0000-0000-000000000000"] {
        let answer = stage
            .relay
            .get(&format!(
                "{}/branches/new?link={link}&issue_key=A-1",
                stage.relay.app_base_url()
            ))
            .await;
        assert_eq!(answer.status(), 404);
    }
}
