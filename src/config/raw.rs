//! What was written, before it is understood: the layers of the configuration.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use toml::{Table, Value};

use super::{Checks, ConfigError, DEFAULTS, ENV_PREFIX, Mistake};

/// `proxy.toml` as text and numbers. What has no default is an `Option`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawConfig {
    pub(super) public: RawPublic,
    pub(super) acme: RawAcme,
    pub(super) admin: RawAdmin,
    pub(super) access: RawAccess,
    pub(super) store: RawStore,
    pub(super) app: RawApp,
    pub(super) jira: RawJira,
    pub(super) forge: RawForge,
    pub(super) instances: RawInstances,
    pub(super) spool: RawSpool,
    pub(super) page: RawPage,
    pub(super) keys: RawKeys,
    pub(super) limits: RawLimits,
    pub(super) log: RawLog,
    pub(super) telemetry: RawTelemetry,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPublic {
    pub(super) url: String,
    pub(super) listen: String,
    pub(super) base_path: String,
    pub(super) tls_cert: Option<PathBuf>,
    pub(super) tls_key: Option<PathBuf>,
    pub(super) tls_ocsp: Option<PathBuf>,
    pub(super) trusted_proxies: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAcme {
    pub(super) directory_url: Option<String>,
    pub(super) contact: Option<String>,
    pub(super) folder: PathBuf,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAdmin {
    pub(super) listen: String,
    pub(super) socket: Option<PathBuf>,
    pub(super) socket_mode: String,
    pub(super) tls_cert: Option<PathBuf>,
    pub(super) tls_key: Option<PathBuf>,
    pub(super) client_ca_file: Option<PathBuf>,
    pub(super) token_file: PathBuf,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAccess {
    pub(super) jira: Vec<String>,
    pub(super) instances: Vec<String>,
    pub(super) atlassian_ranges: String,
    pub(super) ranges_refresh_secs: u32,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawStore {
    pub(super) path: PathBuf,
    pub(super) key_file: PathBuf,
    pub(super) installations_max: usize,
    pub(super) links_max: usize,
    pub(super) audit_entries_max: usize,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawApp {
    pub(super) name: Option<String>,
    pub(super) key: Option<String>,
    pub(super) display_name: Option<String>,
    pub(super) description: String,
    pub(super) vendor_name: String,
    pub(super) vendor_url: String,
    pub(super) documentation_url: String,
    pub(super) logo_url: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawJira {
    pub(super) install_keys_url: String,
    pub(super) api_url: String,
    pub(super) extra_sites: Vec<String>,
    pub(super) secret_grace_secs: u32,
    pub(super) keep_uninstalled_days: u32,
    pub(super) answer_timeout_ms: u32,
    pub(super) search_deadline_ms: u32,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawForge {
    pub(super) app_id: String,
    pub(super) environments: Vec<String>,
    pub(super) jwks_url: String,
    pub(super) page_origins: Vec<String>,
    pub(super) check_every_secs: u32,
    pub(super) gone_after_secs: u32,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawInstances {
    pub(super) allow: Vec<String>,
    pub(super) auto_link: Vec<String>,
    pub(super) dangerous_allow_private_addresses: bool,
    pub(super) dangerous_allow_http: bool,
    pub(super) extra_ca_file: Option<PathBuf>,
    pub(super) connect_timeout_ms: u32,
    pub(super) request_timeout_ms: u32,
    pub(super) retry_min_ms: u32,
    pub(super) retry_max_ms: u32,
    pub(super) deliveries_max: u32,
    pub(super) deliveries_per_instance_max: u32,
    pub(super) removal_give_up_hours: u32,
    pub(super) look_every_secs: u32,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSpool {
    pub(super) max_bytes: u64,
    pub(super) installation_max_bytes: u64,
    pub(super) max_age_hours: u32,
    pub(super) retry_min_ms: u32,
    pub(super) retry_max_ms: u32,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPage {
    pub(super) ap_js_url: String,
    pub(super) frame_ancestors: Vec<String>,
    pub(super) invitation_secs: u32,
    pub(super) session_idle_secs: u32,
    pub(super) session_max_secs: u32,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawKeys {
    pub(super) rotate_days: u32,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLimits {
    pub(super) body_max_bytes: u32,
    pub(super) rest_body_max_bytes: u32,
    pub(super) header_max_bytes: u32,
    pub(super) connections_max: u32,
    pub(super) connections_per_address_max: u32,
    pub(super) requests_per_address_per_sec: u32,
    pub(super) requests_per_address_burst: u32,
    pub(super) requests_per_installation_per_sec: u32,
    pub(super) requests_per_installation_burst: u32,
    pub(super) receive_timeout_secs: u32,
    pub(super) request_timeout_secs: u32,
    pub(super) drain_deadline_secs: u32,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLog {
    pub(super) format: String,
    pub(super) filter: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTelemetry {
    pub(super) trace_max_bytes: u32,
    pub(super) otlp_endpoint: String,
    pub(super) otlp_headers_file: Option<PathBuf>,
    pub(super) otlp_sample_ratio: f64,
}

/// Defaults, file and environment on top of each other, with the mistakes met on the way.
///
/// Every key is tried alone on top of what already fits, so that one mistake does not hide the next.
#[derive(Debug)]
pub(super) struct Layers {
    table: Table,
    checks: Checks,
}

impl Layers {
    pub(super) fn with_defaults() -> Self {
        let mut layers = Self {
            table: Table::new(),
            checks: Checks::default(),
        };
        match DEFAULTS.parse() {
            Ok(table) => layers.table = table,
            Err(error) => layers.mistake("embedded defaults".to_owned(), error),
        }
        layers
    }

    pub(super) fn add_file(&mut self, path: &Path) {
        let name = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => self.add_text(&name, &text),
            Err(error) => self.mistake(name, format!("it can't be read: {error}")),
        }
    }

    /// Adds what a file of this name holds.
    pub(super) fn add_text(&mut self, name: &str, text: &str) {
        let document = match toml::de::DeTable::parse(text) {
            Ok(document) => document,
            Err(error) => {
                let line = error.span().map_or(1, |span| line_of(text, &span));
                return self.mistake(format!("{name}:{line}"), error.message());
            }
        };
        // The same text as plain values; it parsed just now.
        let values: Table = text.parse().unwrap_or_default();
        for (section, keys) in document.get_ref() {
            let place = format!("{name}:{}", line_of(text, &section.span()));
            let section: &str = section.get_ref();
            let toml::de::DeValue::Table(keys) = keys.get_ref() else {
                self.mistake(place, format!("{section:?} stands outside of a [section]"));
                continue;
            };
            if !self.table.contains_key(section) {
                self.mistake(place, format!("there is no section [{section}]"));
                continue;
            }
            for key in keys.keys() {
                let place = format!("{name}:{}", line_of(text, &key.span()));
                let value = values
                    .get(section)
                    .and_then(|keys| keys.get(key.get_ref().as_ref()));
                if let Some(value) = value {
                    self.set(section, key.get_ref(), std::slice::from_ref(value), place);
                }
            }
        }
    }

    pub(super) fn add_environment(
        &mut self,
        environment: impl IntoIterator<Item = (String, String)>,
    ) {
        for (variable, text) in environment {
            let Some(path) = variable.strip_prefix(ENV_PREFIX) else {
                continue;
            };
            match path.to_lowercase().split_once("__") {
                Some((section, key)) if self.table.contains_key(section) => {
                    self.set(section, key, &readings(&text), variable);
                }
                _ => self.mistake(
                    variable,
                    format!("it names no key: write {ENV_PREFIX}<SECTION>__<KEY>"),
                ),
            }
        }
    }

    pub(super) fn finish(mut self) -> Result<(RawConfig, Checks), ConfigError> {
        match RawConfig::deserialize(self.table.clone()) {
            Ok(raw) => Ok((raw, self.checks)),
            Err(error) => {
                self.mistake("embedded defaults".to_owned(), error.message());
                Err(ConfigError {
                    mistakes: self.checks.mistakes,
                })
            }
        }
    }

    /// Takes the first reading of a value that fits its key.
    fn set(&mut self, section: &str, key: &str, readings: &[Value], place: String) {
        let mut complaint = None;
        for value in readings {
            let mut table = self.table.clone();
            if let Some(Value::Table(keys)) = table.get_mut(section) {
                keys.insert(key.to_owned(), value.clone());
            }
            match RawConfig::deserialize(table.clone()) {
                Ok(_) => {
                    self.table = table;
                    self.checks.places.insert(format!("{section}.{key}"), place);
                    return;
                }
                Err(error) => {
                    complaint.get_or_insert_with(|| error.message().to_owned());
                }
            }
        }
        self.mistake(
            place,
            format!("{section}.{key}: {}", complaint.unwrap_or_default()),
        );
    }

    fn mistake(&mut self, place: String, what: impl ToString) {
        self.checks.mistakes.push(Mistake {
            place,
            what: what.to_string(),
        });
    }
}

/// How the text of a variable can be meant: as TOML, as plain text, as a list with commas.
fn readings(text: &str) -> Vec<Value> {
    let list = text
        .split(',')
        .map(|item| Value::String(item.trim().to_owned()))
        .filter(|item| item.as_str() != Some(""))
        .collect();
    format!("value = {text}")
        .parse::<Table>()
        .ok()
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("value"))
        .into_iter()
        .chain([Value::String(text.to_owned()), Value::Array(list)])
        .collect()
}

fn line_of(text: &str, span: &Range<usize>) -> usize {
    1 + text
        .bytes()
        .take(span.start)
        .filter(|&byte| byte == b'\n')
        .count()
}
