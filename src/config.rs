//! `proxy.toml` and the environment, turned into a [`Config`] that holds no mistake.
//!
//! The commented `proxy.toml` at the repository's root is embedded: it supplies every default and is the
//! manual. A file lies over it, environment variables over that. All mistakes are collected before anything
//! is bound, each with the place it stands in.

mod prove;
mod raw;

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::SignedDuration;

use crate::{
    domain::{
        CONNECT_PATH, ForgeAppId, ForgeEnvironmentType, InstancePolicy, JiraApiUrl, JiraSites,
        Networks, PublicUrl,
    },
    pace::Rate,
};

/// Every key with its default, commented.
pub const DEFAULTS: &str = include_str!("../proxy.toml");

/// What the names of our environment variables start with.
pub const ENV_PREFIX: &str = "JIRA_CONNECT_PROXY__";

/// `public.url` as it stands in the defaults: an address that belongs to nobody.
pub const PLACEHOLDER_URL: &str = "https://relay.example.com";

/// The settings of one relay, proven.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[public]`
    pub public: PublicConfig,
    /// `[admin]`
    pub admin: AdminConfig,
    /// `[access]`
    pub access: AccessConfig,
    /// `[store]`
    pub store: StoreConfig,
    /// `[app]`
    pub app: AppConfig,
    /// `[jira]`
    pub jira: JiraConfig,
    /// `[forge]`, if there is an app.
    pub forge: Option<ForgeConfig>,
    /// `[instances]`
    pub instances: InstancesConfig,
    /// `[spool]`
    pub spool: SpoolConfig,
    /// `[page]`
    pub page: PageConfig,
    /// `[keys] rotate_days`
    pub rotate_keys_after: SignedDuration,
    /// `[limits]`
    pub limits: LimitsConfig,
    /// `[log]`
    pub log: LogConfig,
    /// `[telemetry]`
    pub telemetry: TelemetryConfig,
    /// Legal, but probably not what the operator wants.
    pub warnings: Vec<String>,
}

/// `[public]`
#[derive(Clone, Debug)]
pub struct PublicConfig {
    /// Our address as others type it.
    pub url: PublicUrl,
    /// Where the public listener binds.
    pub listen: SocketAddr,
    /// Below the URL: starts with `/`, ends in `/-/jira_connect`.
    pub base_path: String,
    /// Certificate and key, if we end TLS ourselves.
    pub tls: Option<TlsFiles>,
    /// Whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Networks,
    /// Where to get a certificate, if the relay does that itself.
    pub acme: Option<AcmeConfig>,
}

impl PublicConfig {
    /// Whether the public listener speaks TLS, so that nobody before it need.
    pub fn ends_tls(&self) -> bool {
        self.tls.is_some() || self.acme.is_some()
    }
}

/// `[acme]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcmeConfig {
    /// Where the server tells its addresses.
    pub directory_url: String,
    /// Whom it may write to, like `mailto:ops@example.com`.
    pub contact: Option<String>,
    /// Account, key and certificate.
    pub folder: PathBuf,
}

/// PEM files of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate chain, leaf first.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
    /// What the certificate's OCSP responder said of it, DER.
    pub ocsp: Option<PathBuf>,
}

/// `[admin]`
#[derive(Clone, Debug)]
pub struct AdminConfig {
    /// Where the operators' listener binds.
    pub listen: SocketAddr,
    /// A second listener, at this path.
    pub socket: Option<PathBuf>,
    /// Who may connect to that, as a file mode.
    pub socket_mode: u32,
    /// Certificate and key of the first, if it ends TLS.
    pub tls: Option<TlsFiles>,
    /// Authorities, one of which must have signed the certificate of whoever connects to it.
    pub client_ca_file: Option<PathBuf>,
    /// Holds the bearer token.
    pub token_file: PathBuf,
}

/// `[access]`
#[derive(Clone, Debug)]
pub struct AccessConfig {
    /// Where Jira calls from; nothing: anywhere.
    pub jira: Networks,
    /// Where instances call from; nothing: anywhere.
    pub instances: Networks,
    /// Where Atlassian's published ranges are, if they are to count beside `jira`.
    pub ranges: Option<RangesSource>,
    /// From one fetch of them to the next.
    pub ranges_refresh: Duration,
}

/// Where a list of ranges is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RangesSource {
    /// Fetched from time to time.
    Url(String),
    /// Read when it changes.
    File(PathBuf),
}

/// `[store]`
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The store's folder.
    pub path: PathBuf,
    /// Seals the store.
    pub key_file: PathBuf,
    /// Upper limit.
    pub installations_max: usize,
    /// Upper limit.
    pub links_max: usize,
    /// Older entries are dropped.
    pub audit_entries_max: usize,
}

/// `[app]`
#[derive(Clone, Debug)]
pub struct AppConfig {
    /// As Jira lists it.
    pub name: String,
    /// As Jira knows it.
    pub key: String,
    /// In the development panel.
    pub display_name: String,
    /// One sentence.
    pub description: String,
    /// Who makes it.
    pub vendor_name: String,
    /// Where they are.
    pub vendor_url: String,
    /// Linked as documentation.
    pub documentation_url: String,
    /// Absolute; our own logo if absent.
    pub logo_url: Option<String>,
}

/// `[jira]`
#[derive(Clone, Debug)]
pub struct JiraConfig {
    /// Key server, without trailing slash.
    pub install_keys_url: String,
    /// Atlassian's API gateway.
    pub api_url: JiraApiUrl,
    /// Sites that may install us.
    pub sites: JiraSites,
    /// For the secret before a rotation.
    pub secret_grace: SignedDuration,
    /// For the tombstone of an uninstalled site.
    pub keep_uninstalled: SignedDuration,
    /// From a call to Jira to the head of its answer, and then for its body.
    pub answer_timeout: Duration,
    /// A search of Jira's in all instances, however many do not answer.
    pub search_deadline: Duration,
}

/// `[forge]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForgeConfig {
    /// The app whose invocations are believed.
    pub app_id: ForgeAppId,
    /// The environments of the app whose invocations are believed; not empty.
    pub environments: Vec<ForgeEnvironmentType>,
    /// The key set that invocation tokens are signed with.
    pub jwks_url: String,
    /// Where the app's page lives: the way back from signing in to an instance hands its code there.
    pub page_origins: Vec<String>,
    /// From one look at sites whose app may be gone to the next.
    pub check_every: Duration,
    /// A site whose app has been silent for so long is left, if Jira has refused its token too.
    pub gone_after: SignedDuration,
}

/// `[instances]`
#[derive(Clone, Debug)]
pub struct InstancesConfig {
    /// Who may be linked.
    pub policy: InstancePolicy,
    /// Certificate authorities beside the system's.
    pub extra_ca_file: Option<PathBuf>,
    /// DNS, TCP and TLS together.
    pub connect_timeout: Duration,
    /// A whole attempt.
    pub request_timeout: Duration,
    /// First pause between attempts.
    pub retry_min: Duration,
    /// Longest pause.
    pub retry_max: Duration,
    /// In flight at once.
    pub deliveries_max: usize,
    /// In flight at once to one instance.
    pub deliveries_per_instance_max: usize,
    /// A removed link whose instance never answers is gone after this.
    pub removal_give_up: SignedDuration,
    /// From one look at every connected instance to the next, if they are looked at.
    pub look_every: Option<Duration>,
}

/// `[spool]`
#[derive(Clone, Copy, Debug)]
pub struct SpoolConfig {
    /// Of all bodies that wait.
    pub max_bytes: u64,
    /// Of those for one installation.
    pub installation_max_bytes: u64,
    /// Older writes are given up.
    pub max_age: SignedDuration,
    /// First pause when Jira does not say how long.
    pub retry_min: Duration,
    /// Longest such pause.
    pub retry_max: Duration,
}

/// `[page]`
#[derive(Clone, Debug)]
pub struct PageConfig {
    /// Atlassian's script, absolute.
    pub ap_js_url: String,
    /// Origins that may frame the page beside Jira's own.
    pub frame_ancestors: Vec<String>,
    /// Of what operators have outside Jira.
    pub lifetimes: PageLifetimes,
}

/// How long operators have at the page outside Jira.
#[derive(Clone, Copy, Debug)]
pub struct PageLifetimes {
    /// To open an invitation.
    pub invitation: SignedDuration,
    /// Between two uses of a session.
    pub idle: SignedDuration,
    /// In one session.
    pub session: SignedDuration,
}

/// `[limits]`
#[derive(Clone, Copy, Debug)]
pub struct LimitsConfig {
    /// Of a request.
    pub body_max_bytes: usize,
    /// Of an instance's write.
    pub rest_body_max_bytes: usize,
    /// Of all headers together.
    pub header_max_bytes: usize,
    /// Per listener.
    pub connections_max: usize,
    /// Of one address on the public listener, if there is a limit.
    pub connections_per_address_max: Option<usize>,
    /// Requests of one address on the public listener, if there is a limit.
    pub requests_per_address: Option<Rate>,
    /// Requests of one installation's instances that go to Jira at once, if there is a limit.
    pub requests_per_installation: Option<Rate>,
    /// For the headers to be complete, and then again for the body.
    pub receive_timeout: Duration,
    /// From complete headers to the answer.
    pub request_timeout: Duration,
    /// After SIGTERM.
    pub drain_deadline: Duration,
}

/// `[log]`
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// One JSON object a line.
    pub json: bool,
    /// A tracing filter.
    pub filter: String,
}

/// `[telemetry]`
#[derive(Clone, Debug)]
pub struct TelemetryConfig {
    /// Of all that is remembered for `trace`.
    pub trace_max_bytes: usize,
    /// Where traces go.
    pub otlp: Option<OtlpConfig>,
}

/// A collector that speaks OTLP over HTTP.
#[derive(Clone, Debug)]
pub struct OtlpConfig {
    /// Its address, without trailing slash and without `/v1/traces`.
    pub endpoint: String,
    /// Headers for it, which may hold secrets.
    pub headers_file: Option<PathBuf>,
    /// The part of traces to send, 0 to 1.
    pub sample_ratio: f64,
}

/// Everything that is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub struct ConfigError {
    /// In the order they were found.
    pub mistakes: Vec<Mistake>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// File and line, variable, or nothing where only the whole is wrong.
    pub place: String,
    /// What is wrong, and what would be right.
    pub what: String,
}

impl Config {
    /// Reads the defaults, then `file` if there is one, then `environment`.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut layers = raw::Layers::with_defaults();
        if let Some(path) = file {
            layers.add_file(path);
        }
        layers.add_environment(environment);
        Self::prove(layers)
    }

    /// Reads the defaults, then `text`, which stands in a file of this name.
    pub fn parse(name: &str, text: &str) -> Result<Self, ConfigError> {
        let mut layers = raw::Layers::with_defaults();
        layers.add_text(name, text);
        Self::prove(layers)
    }

    fn prove(layers: raw::Layers) -> Result<Self, ConfigError> {
        let (raw, mut checks) = layers.finish()?;
        let config = prove::config(raw, &mut checks);
        match config {
            Some(config) if checks.mistakes.is_empty() => Ok(config),
            _ => Err(ConfigError {
                mistakes: checks.mistakes,
            }),
        }
    }

    /// The public URL with the base path: `baseUrl` of the descriptor, audience of Jira's tokens.
    pub fn app_base_url(&self) -> String {
        format!("{}{}", self.public.url, self.public.base_path)
    }

    /// What instance admins type into "Jira Connect Proxy URL": GitLab appends `/-/jira_connect` to it.
    pub fn proxy_url(&self) -> String {
        let base_url = self.app_base_url();
        base_url
            .strip_suffix(CONNECT_PATH)
            .unwrap_or(&base_url)
            .to_owned()
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mistakes.len() {
            1 => writeln!(f, "the configuration has a mistake:")?,
            n => writeln!(f, "the configuration has {n} mistakes:")?,
        }
        for mistake in &self.mistakes {
            writeln!(f, "  {mistake}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

/// Collects mistakes and warnings, and knows where each key was set.
#[derive(Debug, Default)]
struct Checks {
    mistakes: Vec<Mistake>,
    warnings: Vec<String>,
    places: BTreeMap<String, String>,
}

impl Checks {
    fn warn(&mut self, warning: impl Into<String>) {
        self.warnings.push(warning.into());
    }

    fn add(&mut self, key: &str, what: impl fmt::Display) {
        let place = self
            .places
            .get(key)
            .map_or_else(|| key.to_owned(), |place| format!("{place}: {key}"));
        self.mistakes.push(Mistake {
            place,
            what: what.to_string(),
        });
    }

    fn at_least(&mut self, key: &str, value: u32, least: u32) {
        if value < least {
            self.add(key, format!("it is {value}, it must be at least {least}"));
        }
    }

    fn at_most(&mut self, key: &str, value: u32, most: u32) {
        if value > most {
            self.add(key, format!("it is {value}, it must be at most {most}"));
        }
    }
}

#[cfg(test)]
mod tests;
