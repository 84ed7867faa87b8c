//! A relay in this process or in one of its own, and a client that looks at every answer twice.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufRead as _, BufReader, Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{LazyLock, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use jira_connect_proxy::{
    client::Client,
    config::Config,
    relay::{Relay, Reload},
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{sync::oneshot, task::JoinHandle};

use crate::fakes::{
    FakeJira,
    http::{client, send, try_send},
    secrets,
};

pub use crate::fakes::http::free_port;

/// Long enough for a busy machine, short enough for a person.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const SECRET: &str = "first-secret-first-secret-first-secret";
pub const SECRET_2: &str = "second-secret-second-secret-second-secret";

/// Settings that make a relay fit for loopback, as environment variables.
pub struct Settings {
    pub folder: PathBuf,
    pub public_port: u16,
    pub admin_port: u16,
    variables: Vec<(String, String)>,
}

/// A relay in this process.
pub struct TestRelay {
    pub settings: Settings,
    pub reload: Reload,
    client: Client,
    token: String,
    stop: Option<oneshot::Sender<()>>,
    running: Option<JoinHandle<()>>,
    _folder: TempDir,
}

/// A relay in a process of its own, to be killed.
pub struct RelayProcess {
    pub child: Child,
}

impl Settings {
    pub fn new(folder: &Path, jira: &FakeJira) -> Self {
        secrets::watch();
        let (public_port, admin_port) = (free_port(), free_port());
        let mut settings = Self {
            folder: folder.to_owned(),
            public_port,
            admin_port,
            variables: Vec::new(),
        };
        let url = settings.url();
        for (key, value) in [
            ("PUBLIC__URL", url.as_str()),
            ("PUBLIC__LISTEN", &format!("127.0.0.1:{public_port}")),
            ("ADMIN__LISTEN", &format!("127.0.0.1:{admin_port}")),
            ("JIRA__INSTALL_KEYS_URL", &jira.keys.url()),
            ("INSTANCES__DANGEROUS_ALLOW_HTTP", "true"),
            ("INSTANCES__DANGEROUS_ALLOW_PRIVATE_ADDRESSES", "true"),
            ("INSTANCES__RETRY_MIN_MS", "50"),
            ("INSTANCES__RETRY_MAX_MS", "400"),
            ("INSTANCES__CONNECT_TIMEOUT_MS", "2000"),
            ("INSTANCES__REQUEST_TIMEOUT_MS", "3000"),
            ("JIRA__ANSWER_TIMEOUT_MS", "2000"),
            ("SPOOL__RETRY_MIN_MS", "50"),
            ("SPOOL__RETRY_MAX_MS", "400"),
            // All callers of a test have one address, and are in a hurry.
            ("LIMITS__REQUESTS_PER_ADDRESS_PER_SEC", "0"),
            ("LIMITS__REQUESTS_PER_INSTALLATION_PER_SEC", "0"),
            ("LIMITS__RECEIVE_TIMEOUT_SECS", "2"),
            ("LIMITS__DRAIN_DEADLINE_SECS", "3"),
        ] {
            settings.set(key, value);
        }
        for (key, file) in [
            ("ADMIN__TOKEN_FILE", "admin-token"),
            ("STORE__PATH", "store"),
            ("STORE__KEY_FILE", "store-key"),
        ] {
            let path = folder.join(file);
            settings.set(key, path.to_str().expect("path"));
        }
        settings
    }

    pub fn set(&mut self, key: &str, value: &str) {
        let name = format!("JIRA_CONNECT_PROXY__{key}");
        self.variables.retain(|(known, _)| *known != name);
        self.variables.push((name, value.to_owned()));
    }

    pub fn config(&self) -> Config {
        Config::load(None, self.variables.clone()).expect("configuration")
    }

    /// The admin token. From here on, what the relay made at its start must not be said.
    pub fn know_secrets(&self) -> String {
        let key = std::fs::read(self.folder.join("store-key")).expect("store key");
        secrets::know_bytes("store key", &key);
        let token = std::fs::read_to_string(self.folder.join("admin-token")).expect("token");
        secrets::know("admin token", &token);
        token
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.public_port)
    }

    pub fn app_base_url(&self) -> String {
        format!("{}/-/jira_connect", self.url())
    }

    pub fn admin_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.admin_port)
    }

    /// The program with these settings.
    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_jira-connect-proxy"));
        command
            .current_dir(&self.folder)
            .env_clear()
            .envs(self.variables.clone());
        command
    }
}

impl TestRelay {
    pub async fn start(jira: &FakeJira) -> Self {
        Self::start_with(jira, |_| {}).await
    }

    pub async fn start_with(jira: &FakeJira, change: impl FnOnce(&mut Settings)) -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let mut settings = Settings::new(folder.path(), jira);
        change(&mut settings);
        let relay = Relay::bind(settings.config()).await.expect("relay");
        let reload = relay.reload();
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(async move {
            relay
                .run(async {
                    let _ = stopped.await;
                })
                .await
                .expect("no part ends by itself");
        });
        let token = settings.know_secrets();
        Self {
            settings,
            reload,
            client: client(),
            token,
            stop: Some(stop),
            running: Some(running),
            _folder: folder,
        }
    }

    /// Stops in order, and starts again on the same folder and ports.
    pub async fn restart(&mut self) {
        self.stop().await;
        let relay = Relay::bind(self.settings.config()).await.expect("relay");
        self.reload = relay.reload();
        let (stop, stopped) = oneshot::channel();
        self.running = Some(tokio::spawn(async move {
            relay
                .run(async {
                    let _ = stopped.await;
                })
                .await
                .expect("no part ends by itself");
        }));
        self.stop = Some(stop);
    }

    pub async fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(running) = self.running.take() {
            tokio::time::timeout(PATIENCE, running)
                .await
                .expect("the relay stops")
                .expect("the relay did not panic");
        }
    }

    pub fn url(&self) -> String {
        self.settings.url()
    }

    pub fn app_base_url(&self) -> String {
        self.settings.app_base_url()
    }

    /// Lets go of the connections that were kept alive.
    pub fn new_client(&mut self) {
        self.client = client();
    }

    pub async fn get(&self, url: &str) -> Response<Bytes> {
        checked(
            send(
                &self.client,
                Request::get(url).body(Full::default()).expect("request"),
            )
            .await,
        )
    }

    /// A call to the admin API that must answer with this status.
    pub async fn admin(&self, method: &str, path: &str, body: Option<Value>, status: u16) -> Value {
        let answer = self.try_admin(method, path, body).await;
        let text = String::from_utf8_lossy(answer.body()).into_owned();
        assert_eq!(answer.status().as_u16(), status, "{method} {path}: {text}");
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    pub async fn try_admin(
        &self,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> Response<Bytes> {
        admin(
            &self.client,
            &self.settings.admin_url(),
            &self.token,
            method,
            path,
            body,
        )
        .await
        .map(checked)
        .expect("an answer from the admin listener")
    }

    /// A command of the program's against this relay.
    pub async fn command_line(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_jira-connect-proxy"));
        command
            .env_clear()
            .env("JIRA_CONNECT_PROXY_ADMIN_URL", self.settings.admin_url())
            .env("JIRA_CONNECT_PROXY_ADMIN_TOKEN_FILE", "admin-token")
            .current_dir(&self.settings.folder)
            .args(arguments);
        let output = tokio::task::spawn_blocking(move || command.output().expect("it runs"));
        let output = output.await.expect("task");
        hear_output(&output);
        output
    }

    pub async fn links(&self) -> Vec<Value> {
        self.admin("GET", "/api/v1/links", None, 200)
            .await
            .as_array()
            .cloned()
            .expect("a list")
    }

    /// Links an instance and returns the link.
    pub async fn link(&self, client_key: &str, instance_url: &str) -> Value {
        let wish = serde_json::json!({"client_key": client_key, "instance_url": instance_url});
        self.admin("POST", "/api/v1/links", Some(wish), 201).await
    }

    /// Waits until the links are as wanted.
    pub async fn until_links(&self, what: &str, wanted: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let links = self.links().await;
            if wanted(&links) {
                return links;
            }
            assert!(
                Instant::now() < deadline,
                "never came to: {what}; {links:#?}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn spool(&self) -> Value {
        self.admin("GET", "/api/v1/spool", None, 200).await
    }

    /// Has all that waits tried now, as an operator can: no pause lasts longer.
    pub async fn retry_spool(&self) -> Value {
        self.admin("POST", "/api/v1/spool/retry", None, 202).await
    }

    /// Waits until nothing waits for Jira.
    pub async fn until_drained(&self) {
        let drained = |spool: &Value| spool["waiting"] == 0;
        self.until_spool("drained", drained).await;
    }

    pub async fn until_spool(&self, what: &str, wanted: impl Fn(&Value) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let spool = self.spool().await;
            if wanted(&spool) {
                return;
            }
            assert!(Instant::now() < deadline, "never {what}: {spool:#}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The value of a metric, summed over its series that have this text in their labels.
    pub async fn metric(&self, name: &str, labels: &str) -> f64 {
        let answer = self
            .get(&format!("{}/metrics", self.settings.admin_url()))
            .await;
        String::from_utf8_lossy(answer.body())
            .lines()
            .filter(|line| line.starts_with(name) && line.contains(labels))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }
}

impl Drop for TestRelay {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            secrets::check();
        }
    }
}

/// What a command of the program's printed.
pub fn hear_output(output: &Output) {
    for text in [&output.stdout, &output.stderr] {
        secrets::hear("command", "output", &String::from_utf8_lossy(text));
    }
}

/// What a command against this relay printed; it must have ended with this code.
pub async fn printed(relay: &TestRelay, arguments: &[&str], code: i32) -> String {
    let output = relay.command_line(arguments).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let ended = output.status.code();
    assert_eq!(ended, Some(code), "{arguments:?}: {text}{errors}");
    format!("{text}{errors}")
}

impl RelayProcess {
    /// Starts and waits until it answers.
    pub async fn start(settings: &Settings, client: &Client) -> Self {
        // A file without a name: it is read when the relay ends, however it ends.
        let log = tempfile::tempfile().expect("log");
        let child = settings
            .command()
            .stdout(Stdio::null())
            .stderr(log.try_clone().expect("log"))
            .spawn()
            .expect("start the relay");
        LOGS.lock().expect("logs").insert(child.id(), log);
        let mut relay = Self { child };
        relay.until_ready(settings, client).await;
        settings.know_secrets();
        relay
    }

    pub async fn until_ready(&mut self, settings: &Settings, client: &Client) {
        let deadline = Instant::now() + PATIENCE;
        let url = format!("{}/readyz", settings.admin_url());
        loop {
            let request = Request::get(&url).body(Full::default()).expect("request");
            if try_send(client, request)
                .await
                .is_some_and(|a| a.status() == StatusCode::OK)
            {
                return;
            }
            if let Some(status) = self.child.try_wait().expect("wait") {
                panic!("the relay ended by itself: {status}");
            }
            assert!(Instant::now() < deadline, "the relay never got ready");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// kill -9.
    pub fn kill(mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }
}

impl Drop for RelayProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let log = LOGS.lock().ok();
        let log = log.and_then(|mut logs| logs.remove(&self.child.id()));
        if let Some(mut log) = log {
            let mut text = Vec::new();
            let read = log.rewind().and_then(|()| log.read_to_end(&mut text));
            if read.is_ok() {
                let pid = self.child.id().to_string();
                secrets::hear("log of a process", &pid, &String::from_utf8_lossy(&text));
            }
            if !std::thread::panicking() {
                secrets::check();
            }
        }
    }
}

/// Of relays in processes of their own, by process id.
static LOGS: LazyLock<Mutex<HashMap<u32, File>>> = LazyLock::new(Mutex::default);

pub async fn admin(
    client: &Client,
    admin_url: &str,
    token: &str,
    method: &str,
    path: &str,
    body: Option<Value>,
) -> Option<Response<Bytes>> {
    let request = Request::builder()
        .method(method)
        .uri(format!("{admin_url}{path}"))
        .header("authorization", format!("Bearer {token}"))
        .body(Full::from(
            body.map(|body| body.to_string()).unwrap_or_default(),
        ))
        .expect("request");
    try_send(client, request).await
}

/// Every answer has an id, only headers that we know of, no secret, and errors have one shape.
pub fn checked(answer: Response<Bytes>) -> Response<Bytes> {
    const KNOWN: [&str; 18] = [
        "allow",
        "cache-control",
        "connection",
        "content-encoding",
        "content-length",
        "content-security-policy",
        "content-type",
        "date",
        "etag",
        "location",
        "referrer-policy",
        "retry-after",
        "set-cookie",
        "transfer-encoding",
        "vary",
        "www-authenticate",
        "x-content-type-options",
        "x-request-id",
    ];
    for name in answer.headers().keys() {
        assert!(KNOWN.contains(&name.as_str()), "{name} leaked");
    }
    let id = answer.headers().get("x-request-id").expect("an id");
    let text = String::from_utf8_lossy(answer.body()).into_owned();
    for secret in [SECRET, SECRET_2, "PRIVATE KEY"] {
        assert!(!text.contains(secret), "a secret leaked: {text}");
    }
    if answer.status().as_u16() >= 400 {
        let body: Value = serde_json::from_str(&text).expect("an error in JSON");
        let error = &body["error"];
        for field in ["code", "message", "hint"] {
            assert!(
                error[field].as_str().is_some_and(|text| !text.is_empty()),
                "{field} in {text}"
            );
        }
        assert_eq!(error["id"].as_str(), id.to_str().ok());
    }
    answer
}

/// The `code` of an error answer.
pub fn code(answer: &Response<Bytes>) -> String {
    let body: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
    body["error"]["code"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// A judge of `tests/judges`: a program whose first line of output says where it is. It ends with its stdin.
pub struct Judge {
    pub child: Child,
    pub ready: Value,
    pub lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Judge {
    pub fn start(program: &str, arguments: &[&str]) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/judges");
        let mut child = Command::new(program)
            .args(arguments)
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| {
                panic!(
                    "{program} does not start ({error}): tests/run installs what the judges need"
                )
            });
        let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
        let first = lines.next().expect("a first line").expect("text");
        let ready = serde_json::from_str(&first).expect("JSON");
        Self {
            child,
            ready,
            lines,
        }
    }

    /// One command, one answer. Blocks.
    pub fn ask(&mut self, mut command: Value) -> Value {
        command["id"] = 1.into();
        let stdin = self.child.stdin.as_mut().expect("stdin");
        writeln!(stdin, "{command}").expect("write");
        let line = self.lines.next().expect("an answer").expect("text");
        let answer: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(answer["ok"], true, "{command} -> {answer}");
        answer
    }
}

impl Drop for Judge {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
