//! Who plays: the relay, Jira's side, two GitLab instances, an operator. Everybody listens on loopback.

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use http::Request;
use http_body_util::Full;
use jira_connect_proxy::{
    client::Client,
    config::Config,
    relay::{PartEnded, Relay},
    telemetry,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{sync::oneshot, task::JoinHandle, time::Instant};

use crate::fakes::{
    FakeInstance, FakeJira,
    http::{client, try_send},
    instance::{Known, State, Told},
};

/// The simulated site.
pub const CLIENT_KEY: &str = "acme-jira";

/// For anything that somebody else does. Shorter than the patience of the fakes, who panic at its end.
const PATIENCE: Duration = Duration::from_secs(20);

/// Between two looks at what can't wake us.
const PAUSE: Duration = Duration::from_millis(10);

/// Everybody.
pub struct Stage {
    pub jira: FakeJira,
    pub a: GitLab,
    pub b: GitLab,
    pub operator: Operator,
    /// The relay, as others reach it.
    pub url: String,
    folder: TempDir,
    relay: Option<Running>,
    _log: telemetry::Log,
}

/// The relay while it runs; dropping `stop` stops it.
struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), PartEnded>>,
}

/// A simulated instance with its name in the story.
pub struct GitLab {
    pub name: &'static str,
    /// Its relative URL root.
    pub root: &'static str,
    pub server: FakeInstance,
    /// Once it is linked.
    pub link_id: String,
}

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    A,
    B,
}

/// Both.
pub const BOTH: [Which; 2] = [Which::A, Which::B];

/// Whoever holds the admin token.
pub struct Operator {
    pub url: String,
    pub token: String,
    /// Where the token stands.
    pub token_file: PathBuf,
    /// Everything that the admin listener ever said.
    pub answers: Vec<String>,
    client: Client,
}

impl Stage {
    /// Starts everybody; nobody knows anybody yet.
    pub async fn set() -> anyhow::Result<Self> {
        let jira = FakeJira::start(CLIENT_KEY).await;
        let folder = tempfile::Builder::new()
            .prefix("jira-connect-proxy-demo-")
            .tempdir()
            .context("no temporary folder")?;
        let [public, admin] = free_addresses()?;
        let config = configuration(folder.path(), public, admin, &jira)?;
        let log = telemetry::install(&config.log);
        let (url, token_file) = (
            config.public.url.to_string(),
            config.admin.token_file.clone(),
        );
        let relay = Relay::bind(config).await?;
        let token = std::fs::read_to_string(&token_file)
            .with_context(|| format!("{} can't be read", token_file.display()))?;
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(relay.run(async {
            // An error means that the sender is gone, which is a stop too.
            let _ = stopped.await;
        }));
        Ok(Self {
            a: GitLab::start("GitLab A", &url, "").await,
            b: GitLab::start("GitLab B", &url, "/gitlab").await,
            operator: Operator {
                url: format!("http://{admin}"),
                token,
                token_file,
                answers: Vec::new(),
                client: client(),
            },
            jira,
            url,
            folder,
            relay: Some(Running { stop, task }),
            _log: log,
        })
    }

    /// The app as Jira knows it.
    pub fn app_base_url(&self) -> String {
        format!("{}/-/jira_connect", self.url)
    }

    pub fn gitlab(&self, which: Which) -> &GitLab {
        match which {
            Which::A => &self.a,
            Which::B => &self.b,
        }
    }

    pub fn gitlab_mut(&mut self, which: Which) -> &mut GitLab {
        match which {
            Which::A => &mut self.a,
            Which::B => &mut self.b,
        }
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The relay ends as it does on SIGTERM.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        let Some(Running { stop, task }) = self.relay.take() else {
            return Ok(());
        };
        drop(stop);
        within("the relay stops", task)
            .await?
            .context("the relay panicked")?
            .context("the relay")
    }
}

impl GitLab {
    async fn start(name: &'static str, relay_url: &str, root: &'static str) -> Self {
        Self {
            name,
            root,
            server: FakeInstance::start(relay_url, root).await,
            link_id: String::new(),
        }
    }

    /// What it holds of the site.
    pub fn known(&self) -> Option<Known> {
        self.server.known(CLIENT_KEY)
    }

    /// Everything that it was told.
    pub fn events(&self) -> Vec<Told> {
        self.server.state().events
    }

    /// Waits until it was told that it is over.
    pub async fn until_it_holds_nothing(&self) -> anyhow::Result<()> {
        let what = format!("{} holds nothing", self.name);
        let gone = |state: &State| state.installations.is_empty();
        within(&what, self.server.until(&what, gone))
            .await
            .map(drop)
    }

    /// Dies: nobody listens on its port once this is over.
    pub async fn go_down(&mut self) {
        self.server.go_down().await;
    }
}

impl Operator {
    /// One call of the admin API: status and answer.
    pub async fn call(
        &mut self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(u16, Value)> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header("authorization", format!("Bearer {}", self.token))
            .body(Full::from(body))?;
        let answer = try_send(&self.client, request)
            .await
            .with_context(|| format!("no answer to {method} {path}"))?;
        let text = String::from_utf8_lossy(answer.body()).into_owned();
        // Metrics are no JSON; they are read as text.
        let value = serde_json::from_str(&text).unwrap_or(Value::Null);
        self.answers.push(text);
        Ok((answer.status().as_u16(), value))
    }

    async fn get(&mut self, path: &str) -> anyhow::Result<Value> {
        let (status, value) = self.call("GET", path, None).await?;
        anyhow::ensure!(
            status == 200,
            "GET {path} was answered with {status}: {value}"
        );
        Ok(value)
    }

    /// The one installation, as the relay stored it.
    pub async fn installation(&mut self) -> anyhow::Result<Value> {
        let mut all = self.get("/api/v1/installations").await?;
        Ok(all.get_mut(0).map(Value::take).unwrap_or_default())
    }

    /// Which key signs.
    pub async fn active_kid(&mut self) -> anyhow::Result<String> {
        let keys = self.get("/api/v1/keys").await?;
        let active = keys
            .as_array()
            .into_iter()
            .flatten()
            .find(|key| key["state"] == "active");
        let kid = active
            .and_then(|key| key["kid"].as_str())
            .context("no active key")?;
        Ok(kid.to_owned())
    }

    /// A link, as soon as it is as wanted.
    pub async fn link_when(
        &mut self,
        id: &str,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let path = format!("/api/v1/links/{id}");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let link = self.get(&path).await?;
            if wanted(&link) {
                return Ok(link);
            }
            anyhow::ensure!(
                Instant::now() < deadline,
                "never came to pass: {what}; the link is {link:#}"
            );
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// How often instances fetched the relay's own public key.
    pub async fn key_fetches(&mut self) -> anyhow::Result<usize> {
        const SERIES: &str = "jira_connect_proxy_public_key_requests_total{owner=\"ours\"} ";
        self.call("GET", "/metrics", None).await?;
        let metrics = self.answers.last().map_or("", String::as_str);
        let count = metrics.lines().find_map(|line| line.strip_prefix(SERIES));
        Ok(count.map_or(Ok(0), str::parse)?)
    }
}

/// Waits for what others do, but not for ever.
async fn within<T>(what: &str, waiting: impl Future<Output = T>) -> anyhow::Result<T> {
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .with_context(|| format!("never came to pass: {what}"))
}

/// The relay's settings, as an operator could give them in the environment.
fn configuration(
    folder: &Path,
    public: SocketAddr,
    admin: SocketAddr,
    jira: &FakeJira,
) -> anyhow::Result<Config> {
    let file = |name: &str| folder.join(name).to_string_lossy().into_owned();
    let settings = [
        ("PUBLIC__URL", format!("http://{public}")),
        ("PUBLIC__LISTEN", public.to_string()),
        ("ADMIN__LISTEN", admin.to_string()),
        ("ADMIN__TOKEN_FILE", file("admin-token")),
        ("STORE__PATH", file("store")),
        ("STORE__KEY_FILE", file("store-key")),
        ("JIRA__INSTALL_KEYS_URL", jira.keys.url()),
        ("INSTANCES__DANGEROUS_ALLOW_HTTP", "true".to_owned()),
        (
            "INSTANCES__DANGEROUS_ALLOW_PRIVATE_ADDRESSES",
            "true".to_owned(),
        ),
        ("INSTANCES__RETRY_MIN_MS", "200".to_owned()),
        ("INSTANCES__RETRY_MAX_MS", "1000".to_owned()),
        ("LIMITS__DRAIN_DEADLINE_SECS", "3".to_owned()),
        ("LOG__FILTER", "error".to_owned()),
    ];
    let variables = settings.map(|(key, value)| (format!("JIRA_CONNECT_PROXY__{key}"), value));
    Ok(Config::load(None, variables)?)
}

/// Two addresses that were free a moment ago: `public.url` must name the port before the relay binds it.
fn free_addresses() -> anyhow::Result<[SocketAddr; 2]> {
    let listen = || TcpListener::bind("127.0.0.1:0").context("no free port on loopback");
    let (one, two) = (listen()?, listen()?);
    Ok([one.local_addr()?, two.local_addr()?])
}
