//! The addresses that Atlassian publishes for its cloud products (<https://ip-ranges.atlassian.com/>), read from there
//! or from a copy in a file, and again from time to time. What was good last counts until something better comes.

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use ipnet::IpNet;
use jiff::Timestamp;
use serde::Deserialize;
use tokio::{io::AsyncWriteExt as _, sync::Notify};

use crate::{
    client::{Client, Destination, SendError},
    clock,
    config::{AccessConfig, RangesSource},
    domain::Networks,
    lock::lock,
    metrics::Metrics,
};

/// Atlassian's own has about 1 MiB.
const DOCUMENT_MAX_BYTES: usize = 16 * 1024 * 1024;

const FETCH_DEADLINE: Duration = Duration::from_secs(30);

/// The pause after a fetch that failed.
const RETRY_EVERY: Duration = Duration::from_secs(60);

/// How often a file is looked at.
const FILE_CHECK_EVERY: Duration = Duration::from_secs(30);

/// A network that is wider lets half of the Internet in: a mistake, or worse.
const WIDEST_V4: u8 = 8;
const WIDEST_V6: u8 = 16;

/// Atlassian's addresses, kept up to date by [`AtlassianRanges::run`].
pub struct AtlassianRanges {
    source: RangesSource,
    refresh: Duration,
    client: Client,
    metrics: Arc<Metrics>,
    /// Over a restart, what was fetched last.
    kept: PathBuf,
    current: ArcSwapOption<Networks>,
    /// When the file last changed, as far as we know. A short std lock.
    changed: Mutex<Option<SystemTime>>,
    wake: Notify,
}

/// A list of ranges is of no use.
#[derive(Debug, thiserror::Error)]
pub enum RangesError {
    /// A file.
    #[error("access.atlassian_ranges {path} can't be read: {cause}", path = .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A fetch.
    #[error("access.atlassian_ranges {url} can't be fetched: {cause}")]
    Fetch {
        /// Whence.
        url: String,
        /// Why.
        cause: SendError,
    },
    /// Another answer than the document.
    #[error("access.atlassian_ranges {url} answered {status} instead of 200")]
    Status {
        /// Whence.
        url: String,
        /// With what.
        status: StatusCode,
    },
    /// Not what Atlassian publishes.
    #[error("access.atlassian_ranges is not in the form of https://ip-ranges.atlassian.com/: {0}")]
    Rubbish(String),
}

/// As Atlassian publishes it; what else is in it does not matter here.
#[derive(Deserialize)]
struct Document {
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    cidr: String,
    #[serde(default)]
    product: Option<Vec<String>>,
    #[serde(default)]
    direction: Option<Vec<String>>,
}

impl AtlassianRanges {
    /// Reads the file, or what was fetched last.
    ///
    /// # Errors
    /// The file can't be used. A URL is fetched later, by [`AtlassianRanges::run`].
    pub fn open(
        source: &RangesSource,
        config: &AccessConfig,
        kept: PathBuf,
        client: Client,
        metrics: Arc<Metrics>,
    ) -> Result<Self, RangesError> {
        let ranges = Self {
            source: source.clone(),
            refresh: config.ranges_refresh,
            client,
            metrics,
            kept,
            current: ArcSwapOption::empty(),
            changed: Mutex::default(),
            wake: Notify::new(),
        };
        match source {
            RangesSource::File(path) => {
                *lock(&ranges.changed) = modified(path);
                ranges.take(read_file(path)?, clock::now());
            }
            RangesSource::Url(_) => match read_file(&ranges.kept) {
                Ok(networks) => {
                    let fetched_at = modified(&ranges.kept).and_then(|at| at.try_into().ok());
                    ranges.take(networks, fetched_at.unwrap_or_else(clock::now));
                }
                // A first start has none.
                Err(RangesError::File { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => {
                }
                Err(error) => tracing::warn!(
                    "the ranges kept in {} are of no use: {error}",
                    ranges.kept.display()
                ),
            },
        }
        Ok(ranges)
    }

    /// Whether an address is Atlassian's; nothing if no list could be read yet.
    pub fn contains(&self, ip: IpAddr) -> Option<bool> {
        let current = self.current.load();
        current.as_ref().map(|networks| networks.contains(ip))
    }

    /// Reads again soon, whether it is time or not.
    pub fn refresh_now(&self) {
        lock(&self.changed).take();
        self.wake.notify_one();
    }

    /// Keeps the list up to date until `shutdown`.
    pub async fn run(&self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            let work = async {
                let pause = self.refresh().await;
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = self.wake.notified() => {}
                }
            };
            tokio::select! {
                () = &mut shutdown => return,
                () = work => {}
            }
        }
    }

    /// Reads once, and says when to look again.
    async fn refresh(&self) -> Duration {
        let (read, pause) = match &self.source {
            RangesSource::File(path) => {
                let now = modified(path);
                let before = std::mem::replace(&mut *lock(&self.changed), now);
                if now.is_some() && before == now {
                    return FILE_CHECK_EVERY;
                }
                (
                    read_file(path).map(|networks| (networks, None)),
                    FILE_CHECK_EVERY,
                )
            }
            RangesSource::Url(url) => (self.fetch(url).await, self.refresh),
        };
        match read {
            Ok((networks, document)) => {
                self.take(networks, clock::now());
                if let Some(document) = document {
                    self.keep(&document).await;
                }
                pause
            }
            Err(error) => {
                let stays = if self.current.load().is_some() {
                    "the last good list stays in use"
                } else {
                    "no list is known, so calls of Jira from addresses outside of access.jira are refused with 503"
                };
                tracing::error!("{error}; {stays}");
                self.count("failed");
                pause.min(RETRY_EVERY)
            }
        }
    }

    async fn fetch(&self, url: &str) -> Result<(Networks, Option<Bytes>), RangesError> {
        let failed = |cause| RangesError::Fetch {
            url: url.to_owned(),
            cause,
        };
        let request = Request::get(url)
            .header("accept", "application/json")
            .body(Full::default())
            .map_err(|error| failed(SendError::Broken(error.to_string())))?;
        let answer = self
            .client
            .send(
                Destination::Configured,
                request,
                FETCH_DEADLINE,
                DOCUMENT_MAX_BYTES,
            )
            .await
            .map_err(failed)?;
        if answer.status() != StatusCode::OK {
            return Err(RangesError::Status {
                url: url.to_owned(),
                status: answer.status(),
            });
        }
        let document = answer.into_body();
        Ok((parse(&document)?, Some(document)))
    }

    fn take(&self, networks: Networks, read_at: Timestamp) {
        let count = networks.len();
        let before = self.current.swap(Some(Arc::new(networks)));
        if before.as_deref() != self.current.load().as_deref() {
            tracing::info!(networks = count, "Atlassian's ranges were read");
        }
        self.metrics.ranges_read_at.set(read_at.as_second());
        self.count("read");
    }

    /// Whole or not at all: it is renamed into its place.
    async fn keep(&self, document: &[u8]) {
        let new = self.kept.with_extension("new");
        let written = async {
            let mut file = tokio::fs::File::create(&new).await?;
            file.write_all(document).await?;
            file.sync_all().await?;
            tokio::fs::rename(&new, &self.kept).await
        };
        if let Err(error) = written.await {
            tracing::warn!(
                "Atlassian's ranges could not be kept in {} for the next start: {error}",
                self.kept.display()
            );
        }
    }

    fn count(&self, outcome: &str) {
        self.metrics
            .ranges_reads
            .with_label_values(&[outcome])
            .inc();
    }
}

/// Reads a file once, as a start would.
pub fn read_file(path: &Path) -> Result<Networks, RangesError> {
    let file = |cause| RangesError::File {
        path: path.to_owned(),
        cause,
    };
    let size = path.metadata().map_err(file)?.len();
    if size > DOCUMENT_MAX_BYTES as u64 {
        return Err(RangesError::Rubbish(format!("it has {size} bytes")));
    }
    parse(&std::fs::read(path).map_err(file)?)
}

/// Where Atlassian's servers call from on behalf of Jira: `direction` has `egress`, `product` has `jira`. Forge calls
/// remotes from the same (Atlassian's "Forge Remote essentials", "IP address ranges"), or from its own, should it ever
/// have any. One entry that is no network spoils the whole.
fn parse(document: &[u8]) -> Result<Networks, RangesError> {
    let document: Document = serde_json::from_slice(document)
        .map_err(|error| RangesError::Rubbish(error.to_string()))?;
    let has = |list: &Option<Vec<String>>, word: &str| {
        let list = list.as_ref();
        list.is_some_and(|list| list.iter().any(|entry| entry.eq_ignore_ascii_case(word)))
    };
    let mut networks = Vec::new();
    for item in &document.items {
        let rubbish = |what: &str| {
            let cidr: String = item.cidr.chars().take(50).collect();
            RangesError::Rubbish(format!("{cidr:?} {what}"))
        };
        let net: IpNet = item.cidr.parse().map_err(|_| rubbish("is not a network"))?;
        let widest = match net {
            IpNet::V4(_) => WIDEST_V4,
            IpNet::V6(_) => WIDEST_V6,
        };
        if net.prefix_len() < widest {
            return Err(rubbish("is too wide to be Atlassian's alone"));
        }
        let calls_us = has(&item.product, "jira") || has(&item.product, "forge");
        if has(&item.direction, "egress") && calls_us {
            networks.push(net);
        }
    }
    if networks.is_empty() {
        return Err(RangesError::Rubbish(
            "it has no network from which Jira calls".to_owned(),
        ));
    }
    Ok(Networks::new(networks))
}

fn modified(path: &Path) -> Option<SystemTime> {
    path.metadata().and_then(|data| data.modified()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In the form of the real one.
    const DOCUMENT: &str = r#"{
        "creationDate": "2026-11-20T10:00:00.000000", "syncToken": 1763632800,
        "items": [
            {"network": "104.192.136.240", "mask_len": 28, "cidr": "104.192.136.240/28", "mask": "255.255.255.240",
             "region": ["us-east-1"], "product": ["confluence", "jira"], "direction": ["egress"], "perimeter": "commercial"},
            {"network": "13.35.248.0", "mask_len": 24, "cidr": "13.35.248.0/24", "mask": "255.255.255.0",
             "region": ["global"], "product": ["jira"], "direction": ["ingress"], "perimeter": "commercial"},
            {"network": "18.205.93.0", "mask_len": 25, "cidr": "18.205.93.0/25", "mask": "255.255.255.128",
             "region": ["us-east-1"], "product": ["bitbucket"], "direction": ["egress", "ingress"], "perimeter": "commercial"},
            {"network": "2401:1d80:3208:5::", "mask_len": 64, "cidr": "2401:1d80:3208:5::/64", "mask": "ffff:ffff:ffff:ffff::",
             "region": ["ap-southeast-2"], "product": ["jira", "trello"], "direction": ["ingress", "egress"], "perimeter": "commercial"}
        ]}"#;

    #[test]
    fn only_where_jira_calls_from_is_taken() {
        let networks = parse(DOCUMENT.as_bytes()).expect("ranges");
        for (ip, inside) in [
            ("104.192.136.241", true),
            ("2401:1d80:3208:5::9", true),
            ("13.35.248.1", false),
            ("18.205.93.1", false),
            ("104.192.137.1", false),
        ] {
            assert_eq!(networks.contains(ip.parse().expect("ip")), inside, "{ip}");
        }
    }

    #[test]
    fn rubbish_is_refused_whole() {
        let item = |cidr: &str| {
            format!(
                r#"{{"items": [{{"cidr": "{cidr}", "product": ["jira"], "direction": ["egress"]}}]}}"#
            )
        };
        assert!(parse(item("10.0.0.0/8").as_bytes()).is_ok());
        for rubbish in [
            String::new(),
            "<html>".to_owned(),
            "{}".to_owned(),
            r#"{"items": []}"#.to_owned(),
            r#"{"items": [{"network": "1.2.3.0"}]}"#.to_owned(),
            DOCUMENT.replace("\"egress\"", "\"ingress\""),
            DOCUMENT.replace("18.205.93.0/25", "18.205.93.0/64"),
            item("0.0.0.0/0"),
            item("::/0"),
            item("1.2.3.4"),
            DOCUMENT.chars().take(DOCUMENT.len() / 2).collect(),
        ] {
            assert!(parse(rubbish.as_bytes()).is_err(), "{rubbish}");
        }
    }
}
