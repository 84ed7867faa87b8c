//! A whole stage on the official libraries: a Jira site that judges what it gets with npm `atlassian-jwt`, instances
//! that sign with Debian's `ruby-atlassian-jwt`, and a relay between. See `tests/judges/README.md`.

use std::sync::Mutex;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use jira_connect_proxy::client::Client;
use serde_json::{Value, json};

use crate::{
    fakes::{
        FakeJira,
        http::{client, send, try_send},
        secrets,
    },
    harness::{Judge, SECRET, Settings, TestRelay},
};

pub use crate::fakes::instance::token as instance_token;

pub const CLIENT_KEY: &str = "judged-tenant";
pub const APP_KEY: &str = "gitlab-jira-connect-127.0.0.1";

/// The REST side of a Jira Cloud site.
pub struct JiraSite {
    pub url: String,
    judge: Mutex<Judge>,
}

/// The gems as a GitLab instance.
pub struct GitLab {
    pub url: String,
    /// The installation that it speaks of.
    pub client_key: String,
    control: String,
    client: Client,
    _judge: Judge,
}

/// A relay with an installation, a Jira behind it, and linked instances.
pub struct Stage {
    pub site: JiraSite,
    pub jira: FakeJira,
    pub relay: TestRelay,
    pub gitlabs: Vec<GitLab>,
    pub links: Vec<Value>,
}

impl JiraSite {
    /// A site that takes this secret of the app's.
    pub fn start() -> Self {
        let judge = Judge::start("node", &["jira_site.mjs"]);
        let url = judge.ready["url"].as_str().expect("url").to_owned();
        let site = Self {
            url,
            judge: Mutex::new(judge),
        };
        site.secrets(&[SECRET]);
        site
    }

    pub fn ask(&self, command: Value) -> Value {
        let mut judge = self.judge.lock().expect("judge");
        judge.ask(command)
    }

    pub fn secrets(&self, secrets: &[&str]) {
        self.ask(json!({"cmd": "configure", "app_key": APP_KEY, "secrets": secrets}));
    }

    /// What goes wrong from now on; `{"mode": "ok"}` heals everything.
    pub fn fault(&self, mut fault: Value) {
        fault["cmd"] = "fault".into();
        self.ask(fault);
    }

    pub fn heal(&self) {
        self.fault(json!({"mode": "ok"}));
    }

    /// The entities of a family, by key.
    pub fn entities(&self, family: &str) -> Value {
        self.ask(json!({"cmd": "state"}))["entities"][family].clone()
    }

    pub fn keys(&self, family: &str) -> Vec<String> {
        let entities = self.entities(family);
        let keys = entities
            .as_object()
            .map(|all| all.keys().cloned().collect());
        keys.unwrap_or_default()
    }

    pub fn requests(&self) -> Vec<Value> {
        let answer = self.ask(json!({"cmd": "requests"}));
        answer["requests"].as_array().cloned().unwrap_or_default()
    }

    pub fn clear_requests(&self) {
        self.ask(json!({"cmd": "clear_requests"}));
    }

    /// What no honest app does; must be empty at the end of each test that means no harm.
    pub fn violations(&self) -> Value {
        self.ask(json!({"cmd": "state"}))["violations"].clone()
    }
}

impl GitLab {
    pub fn start(relay: &TestRelay, root: &str, options: &[&str]) -> Self {
        Self::start_for(&relay.url(), root, options)
    }

    pub fn start_for(proxy_url: &str, root: &str, options: &[&str]) -> Self {
        let mut arguments = vec!["gitlab.rb", "--proxy-url", proxy_url];
        if !root.is_empty() {
            arguments.extend(["--relative-root", root]);
        }
        arguments.extend(options);
        let judge = Judge::start("ruby", &arguments);
        let url = judge.ready["url"].as_str().expect("url").to_owned();
        let control = url.strip_suffix(root).unwrap_or(&url).to_owned();
        Self {
            url,
            client_key: CLIENT_KEY.to_owned(),
            control,
            client: client(),
            _judge: judge,
        }
    }

    pub async fn state(&self) -> Value {
        let request = Request::get(format!("{}/_judge/state", self.control));
        let answer = send(
            &self.client,
            request.body(Full::default()).expect("request"),
        )
        .await;
        serde_json::from_slice(answer.body()).expect("JSON")
    }

    pub async fn mode(&self, mode: &str) {
        self.control("mode", json!({"mode": mode})).await;
    }

    /// Sends a call to Jira as GitLab does; how that went.
    pub async fn send(&self, call: &str, options: Value) -> Value {
        let mut command = options;
        command["client_key"] = self.client_key.as_str().into();
        command["call"] = call.into();
        self.control("send", command).await
    }

    /// The same, which Jira or the relay must take as done.
    pub async fn sends(&self, call: &str, options: Value) -> Value {
        let sent = self.send(call, options).await;
        assert_eq!(sent["status"], 202, "{call}: {sent:#}");
        assert_eq!(sent["gitlab_ok"], true, "{call}: {sent:#}");
        sent
    }

    pub async fn control(&self, what: &str, command: Value) -> Value {
        let request = Request::post(format!("{}/_judge/{what}", self.control))
            .header("content-type", "application/json")
            .body(Full::from(command.to_string()));
        let answer = send(&self.client, request.expect("request")).await;
        assert_eq!(answer.status(), 200, "{what}: {:?}", answer.body());
        serde_json::from_slice(answer.body()).expect("JSON")
    }

    /// The secret that it holds for the site.
    pub async fn secret(&self) -> String {
        let state = self.state().await;
        let secret = state["installations"][&self.client_key]["shared_secret"].as_str();
        let secret = secret.expect("secret");
        secrets::know("a secret that an instance was given", secret);
        secret.to_owned()
    }
}

impl Stage {
    /// The app installed, and so many instances linked.
    pub async fn set(instances: usize) -> Self {
        Self::set_with(instances, |_| {}).await
    }

    pub async fn set_with(instances: usize, change: impl FnOnce(&mut Settings)) -> Self {
        let site = JiraSite::start();
        let mut jira = FakeJira::start(CLIENT_KEY).await;
        jira.base_url = site.url.clone();
        let relay = TestRelay::start_with(&jira, |settings| {
            settings.set("JIRA__EXTRA_SITES", &site.url);
            change(settings);
        })
        .await;
        let answer = jira.installed(&relay.app_base_url(), SECRET).await;
        assert_eq!(answer.status(), 204);
        let (gitlabs, links) = linked(&relay, CLIENT_KEY, instances).await;
        Self {
            site,
            jira,
            relay,
            gitlabs,
            links,
        }
    }

    pub fn namespace(&self, instance: usize) -> &str {
        self.links[instance]["namespace"]
            .as_str()
            .expect("namespace")
    }

    pub fn link_path(&self, instance: usize) -> String {
        format!(
            "/api/v1/links/{}",
            self.links[instance]["id"].as_str().expect("id")
        )
    }

    pub async fn spool(&self) -> Value {
        self.relay.spool().await
    }

    pub async fn until_drained(&self) {
        self.relay.until_drained().await;
    }
}

/// So many instances, linked to an installation of the relay's, and the links.
pub async fn linked(
    relay: &TestRelay,
    client_key: &str,
    instances: usize,
) -> (Vec<GitLab>, Vec<Value>) {
    let (mut gitlabs, mut links) = (Vec::new(), Vec::new());
    for _ in 0..instances {
        let mut gitlab = GitLab::start(relay, "", &[]);
        client_key.clone_into(&mut gitlab.client_key);
        let link = relay.link(client_key, &gitlab.url).await;
        assert_eq!(link["state"], "connected", "{link:#}");
        gitlabs.push(gitlab);
        links.push(link);
    }
    (gitlabs, links)
}

/// A call of an instance to the relay, by our own hand.
pub async fn call(
    relay: &TestRelay,
    token: &str,
    method: &str,
    path_and_query: &str,
    body: impl Into<Bytes>,
) -> Response<Bytes> {
    let request = Request::builder()
        .method(method)
        .uri(format!("{}{path_and_query}", relay.url()))
        .header("authorization", format!("JWT {token}"))
        .header("content-type", "application/json")
        .body(Full::new(body.into()))
        .expect("request");
    try_send(&client(), request).await.expect("an answer")
}
