//! What is counted and timed, under stable names.
//!
//! One [`Metrics`] per relay with a registry of its own, so that two relays can live in one test. Labels are
//! enums or matched routes, never a peer's text.

use std::cell::RefCell;

use prometheus::{
    Encoder as _, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder, process_collector::ProcessCollector,
};

/// All metrics of one relay. The doc comment of a field is its help text.
pub struct Metrics {
    registry: Registry,
    catalogue: Vec<Entry>,
    /// Requests answered, by listener, matched route, method and status.
    pub requests: IntCounterVec,
    /// Seconds from complete headers to the answer, by listener and matched route.
    pub request_duration: HistogramVec,
    /// Requests being answered now, by listener.
    pub requests_in_flight: IntGaugeVec,
    /// Requests refused, by reason (the `code` of the answer).
    pub rejections: IntCounterVec,
    /// Tokens that did not verify, by kind of token and reason.
    pub verify_failures: IntCounterVec,
    /// Lifecycle events from Jira that were taken, by event and what they changed.
    pub lifecycle_events: IntCounterVec,
    /// Delivery attempts to instances, by event and outcome (`delivered` or the cause).
    pub deliveries: IntCounterVec,
    /// Seconds of one delivery attempt, by event.
    pub delivery_duration: HistogramVec,
    /// Links, by state.
    pub links: IntGaugeVec,
    /// Connected instances, by what the last look at them found.
    pub instance_health: IntGaugeVec,
    /// Certificates ordered from the ACME server, by outcome.
    pub acme_orders: IntCounterVec,
    /// Installations, by state.
    pub installations: IntGaugeVec,
    /// Requests for one of our public keys, by whose key it was (`ours`, `atlassian`, `unknown`, ...).
    pub public_key_requests: IntCounterVec,
    /// Fetches from Atlassian's key server, by outcome.
    pub install_key_fetches: IntCounterVec,
    /// Fetches of Forge's key set, by outcome.
    pub forge_key_set_fetches: IntCounterVec,
    /// When Forge's key set was last fetched, in seconds since 1970; 0 before the first time.
    pub forge_key_set_fetched_at: IntGauge,
    /// Sites that are reached through Forge, by whether Jira would take a token now (`valid`, `missing`).
    pub forge_installations: IntGaugeVec,
    /// Sites that are reached through Forge, and nothing of Forge's has come for three hours.
    pub forge_silent: IntGauge,
    /// When the first of the tokens that are good now ends, in seconds since 1970; 0 if there is none.
    pub forge_token_expiry: IntGauge,
    /// Tokens of instances, by how their link was told: `friend`, `searched`, `unknown`, `refused`.
    pub recognitions: IntCounterVec,
    /// Reads of Atlassian's ranges, by outcome.
    pub ranges_reads: IntCounterVec,
    /// When Atlassian's ranges were last read, in seconds since 1970; 0 if they are not used.
    pub ranges_read_at: IntGauge,
    /// Callers with unknown tokens that are being slowed down now.
    pub strangers_waiting: IntGauge,
    /// Requests to Jira, by endpoint and outcome (a status, or why there was none).
    pub jira_requests: IntCounterVec,
    /// Seconds from a request to Jira to the head of its answer, by endpoint.
    pub jira_request_duration: HistogramVec,
    /// Tokens asked for with OAuth client credentials, by outcome.
    pub oauth_tokens: IntCounterVec,
    /// Jira sites whose OAuth client credentials Atlassian refuses.
    pub oauth_refused: IntGauge,
    /// Operators' sessions at the page outside Jira that are open.
    pub page_sessions: IntGauge,
    /// Bodies mended before they went to Jira, by what was wrong with them.
    pub mended: IntCounterVec,
    /// Pauses towards Jira, by scope.
    pub jira_pauses: IntCounterVec,
    /// Writes that wait for Jira.
    pub spool_writes: IntGauge,
    /// Bytes of the writes that wait.
    pub spool_bytes: IntGauge,
    /// Age of the oldest write that waits, in seconds.
    pub spool_oldest: IntGauge,
    /// Writes that went to the spool, by why.
    pub spooled: IntCounterVec,
    /// Attempts to replay a write, by outcome.
    pub replays: IntCounterVec,
    /// Acknowledged writes that will never reach Jira, by why.
    pub given_up: IntCounterVec,
    /// Waiting writes that a newer one replaced.
    pub superseded: IntCounter,
    /// Questions to instances for Jira's toolchain, by question and outcome.
    pub questions: IntCounterVec,
    /// Traces for the collector, by what became of them.
    pub exported: IntCounterVec,
    /// Age of the active signing key in seconds.
    pub signing_key_age: IntGauge,
    /// When the relay's own certificate expires, in seconds since 1970; 0 if TLS ends in front of it.
    pub certificate_expiry: IntGauge,
    /// Until when the OCSP response shown with it is good, in seconds since 1970; 1 if it can't be used, 0 if there is none.
    pub ocsp_expiry: IntGauge,
    /// Seconds to seal, write, flush and sync one batch of changes.
    pub store_flush: Histogram,
    /// Transactions that shared one sync.
    pub store_batch: Histogram,
    /// 1 if the last batch of changes was made durable.
    pub store_writable: IntGauge,
    /// Open connections, by listener.
    pub connections: IntGaugeVec,
    /// TLS handshakes and connections that failed, by listener and cause.
    pub connection_failures: IntCounterVec,
}

/// A metric as it is documented.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Without our prefix.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// The names of its labels.
    pub labels: Vec<String>,
}

/// A gauge that goes down again when dropped.
pub struct Counted(IntGauge);

const SECONDS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0,
];

impl Metrics {
    /// Registers everything.
    ///
    /// # Errors
    /// Two metrics with one name: a mistake in this file.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new_custom(Some("jira_connect_proxy".to_owned()), None)?;
        let catalogue = RefCell::new(Vec::new());
        let enter = |name: &str, kind: &'static str, labels: &[&str]| {
            catalogue.borrow_mut().push(Entry {
                name: name.to_owned(),
                kind,
                labels: labels.iter().map(ToString::to_string).collect(),
            });
        };
        let counter = |name: &str, help: &str, labels: &[&str]| {
            enter(name, "counter", labels);
            let metric = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let single = |name: &str, help: &str| {
            enter(name, "counter", &[]);
            let metric = IntCounter::new(name, help)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            enter(name, "gauge", labels);
            let metric = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let gauge = |name: &str, help: &str| {
            enter(name, "gauge", &[]);
            let metric = IntGauge::new(name, help)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let timers = |name: &str, help: &str, labels: &[&str]| {
            enter(name, "histogram", labels);
            let opts = HistogramOpts::new(name, help).buckets(SECONDS.to_vec());
            let metric = HistogramVec::new(opts, labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            enter(name, "histogram", &[]);
            let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            let metric = Histogram::with_opts(opts)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let build = gauges(
            "build_info",
            "Always 1; the version is the label.",
            &["version"],
        )?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let mut metrics = Self {
            requests: counter(
                "requests_total",
                "Requests answered, by listener, matched route, method and status.",
                &["listener", "route", "method", "status"],
            )?,
            request_duration: timers(
                "request_duration_seconds",
                "Seconds from complete headers to the answer, by listener and matched route.",
                &["listener", "route"],
            )?,
            requests_in_flight: gauges(
                "requests_in_flight",
                "Requests being answered now, by listener.",
                &["listener"],
            )?,
            rejections: counter(
                "rejections_total",
                "Requests refused, by listener and reason (the code of the answer).",
                &["listener", "reason"],
            )?,
            verify_failures: counter(
                "verify_failures_total",
                "Tokens that did not verify, by kind of token and reason.",
                &["kind", "reason"],
            )?,
            lifecycle_events: counter(
                "lifecycle_events_total",
                "Lifecycle events from Jira that were taken, by event and what they changed.",
                &["event", "change"],
            )?,
            deliveries: counter(
                "deliveries_total",
                "Delivery attempts to instances, by event and outcome.",
                &["event", "outcome"],
            )?,
            delivery_duration: timers(
                "delivery_duration_seconds",
                "Seconds of one delivery attempt, by event.",
                &["event"],
            )?,
            links: gauges("links", "Links, by state.", &["state"])?,
            instance_health: gauges(
                "instance_health",
                "Connected instances, by what the last look at them found.",
                &["verdict"],
            )?,
            acme_orders: counter(
                "acme_orders_total",
                "Certificates ordered from the ACME server, by outcome.",
                &["outcome"],
            )?,
            installations: gauges("installations", "Installations, by state.", &["state"])?,
            public_key_requests: counter(
                "public_key_requests_total",
                "Requests for public keys, by whose key was asked for.",
                &["owner"],
            )?,
            install_key_fetches: counter(
                "install_key_fetches_total",
                "Fetches from Atlassian's key server, by outcome.",
                &["outcome"],
            )?,
            forge_key_set_fetches: counter(
                "forge_key_set_fetches_total",
                "Fetches of Forge's key set, by outcome.",
                &["outcome"],
            )?,
            forge_key_set_fetched_at: gauge(
                "forge_key_set_fetched_timestamp_seconds",
                "When Forge's key set was last fetched, in seconds since 1970; 0 before the first time.",
            )?,
            forge_installations: gauges(
                "forge_installations",
                "Sites that are reached through Forge, by whether Jira would take a token now.",
                &["token"],
            )?,
            forge_silent: gauge(
                "forge_silent_installations",
                "Sites that are reached through Forge, and nothing of Forge's has come for three hours.",
            )?,
            forge_token_expiry: gauge(
                "forge_token_expiry_timestamp_seconds",
                "When the first of Forge's tokens that are good now ends, in seconds since 1970; 0 if there is none.",
            )?,
            recognitions: counter(
                "recognitions_total",
                "Tokens of instances, by how their link was told.",
                &["how"],
            )?,
            ranges_reads: counter(
                "atlassian_ranges_reads_total",
                "Reads of Atlassian's ranges, by outcome.",
                &["outcome"],
            )?,
            ranges_read_at: gauge(
                "atlassian_ranges_read_timestamp_seconds",
                "When Atlassian's ranges were last read, in seconds since 1970; 0 if they are not used.",
            )?,
            strangers_waiting: gauge(
                "strangers_waiting",
                "Callers with unknown tokens that are being slowed down now.",
            )?,
            jira_requests: counter(
                "jira_requests_total",
                "Requests to Jira, by endpoint and outcome (a status, or why there was none).",
                &["endpoint", "outcome"],
            )?,
            jira_request_duration: timers(
                "jira_request_duration_seconds",
                "Seconds from a request to Jira to the head of its answer, by endpoint.",
                &["endpoint"],
            )?,
            oauth_tokens: counter(
                "oauth_tokens_total",
                "Tokens asked for with OAuth client credentials, by outcome.",
                &["outcome"],
            )?,
            oauth_refused: gauge(
                "oauth_credentials_refused",
                "Jira sites whose OAuth client credentials Atlassian refuses.",
            )?,
            page_sessions: gauge(
                "page_sessions",
                "Operators' sessions at the page outside Jira that are open.",
            )?,
            mended: counter(
                "mended_total",
                "Bodies mended before they went to Jira, by what was wrong with them.",
                &["what"],
            )?,
            jira_pauses: counter(
                "jira_pauses_total",
                "Pauses towards Jira, by scope and way to the site.",
                &["scope", "upstream"],
            )?,
            spool_writes: gauge("spool_writes", "Writes that wait for Jira.")?,
            spool_bytes: gauge("spool_bytes", "Bytes of the writes that wait.")?,
            spool_oldest: gauge(
                "spool_oldest_seconds",
                "Age of the oldest write that waits, in seconds.",
            )?,
            spooled: counter(
                "spooled_total",
                "Writes that went to the spool, by why.",
                &["reason"],
            )?,
            replays: counter(
                "spool_replays_total",
                "Attempts to replay a write, by outcome.",
                &["outcome"],
            )?,
            given_up: counter(
                "spool_given_up_total",
                "Acknowledged writes that will never reach Jira, by why.",
                &["reason"],
            )?,
            superseded: single(
                "spool_superseded_total",
                "Waiting writes that a newer one replaced.",
            )?,
            questions: counter(
                "instance_questions_total",
                "Questions to instances for Jira's toolchain, by question and outcome.",
                &["question", "outcome"],
            )?,
            exported: counter(
                "otlp_traces_total",
                "Traces for the collector, by what became of them.",
                &["outcome"],
            )?,
            signing_key_age: gauge(
                "signing_key_age_seconds",
                "Age of the active signing key in seconds.",
            )?,
            certificate_expiry: gauge(
                "tls_certificate_expiry_timestamp_seconds",
                "When the relay's own certificate expires, in seconds since 1970; 0 if TLS ends in front of it.",
            )?,
            ocsp_expiry: gauge(
                "tls_ocsp_expiry_timestamp_seconds",
                "Until when the OCSP response shown with it is good, in seconds since 1970; 1 if it can't be used, 0 if there is none.",
            )?,
            store_flush: histogram(
                "store_flush_seconds",
                "Seconds to seal, write, flush and sync one batch of changes.",
                &SECONDS,
            )?,
            store_batch: histogram(
                "store_batch_transactions",
                "Transactions that shared one sync.",
                &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0],
            )?,
            store_writable: gauge(
                "store_writable",
                "1 if the last batch of changes was made durable.",
            )?,
            connections: gauges(
                "connections",
                "Open connections, by listener.",
                &["listener"],
            )?,
            connection_failures: counter(
                "connection_failures_total",
                "Connections that ended badly, by listener and cause.",
                &["listener", "cause"],
            )?,
            catalogue: Vec::new(),
            registry: registry.clone(),
        };
        metrics.catalogue = catalogue.take();
        metrics.store_writable.set(1);
        Ok(metrics)
    }

    /// Every metric there is, for whoever documents them.
    pub fn catalogue(&self) -> &[Entry] {
        &self.catalogue
    }

    /// Everything in Prometheus' text format, with the process's own numbers (`process_*`).
    pub fn render(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut families = self.registry.gather();
        // A registry with our prefix would rename `process_*`, which dashboards expect under that name.
        families.extend(prometheus::core::Collector::collect(
            &ProcessCollector::for_self(),
        ));
        let mut text = Vec::new();
        TextEncoder::new().encode(&families, &mut text)?;
        Ok(text)
    }
}

impl Counted {
    /// Counts one up.
    pub fn new(gauge: IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_its_prefix_and_the_process_its_own() {
        let metrics = Metrics::new().expect("metrics");
        let text = String::from_utf8(metrics.render().expect("render")).expect("text");
        assert!(text.contains("jira_connect_proxy_build_info{version="));
        assert!(text.contains("jira_connect_proxy_store_writable 1"));
        assert!(text.contains("\nprocess_open_fds "));
    }

    const README: &str = include_str!("../README.md");
    const RULES: &str = include_str!("../deploy/prometheus/rules.yml");

    /// Rows of the README's table of metrics, as cells: name, type, labels, meaning, alert.
    fn table() -> Vec<Vec<&'static str>> {
        let rows = README
            .lines()
            .skip_while(|line| !line.starts_with("| metric | type"));
        let rows = rows.skip(2).take_while(|line| line.starts_with('|'));
        rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect())
            .collect()
    }

    #[test]
    fn the_readme_has_every_metric_with_its_type_and_labels_and_no_other() {
        let metrics = Metrics::new().expect("metrics");
        let documented: Vec<Vec<&str>> = table();
        let mut names: Vec<String> = Vec::new();
        for row in &documented {
            let [name, kind, labels, meaning, _alert] = row.as_slice() else {
                panic!("five cells, not {row:?}");
            };
            let name = name.trim_matches('`');
            let entry = metrics.catalogue().iter().find(|entry| entry.name == name);
            let entry = entry.unwrap_or_else(|| panic!("there is no metric {name}"));
            assert_eq!(entry.kind, *kind, "{name}");
            assert!(!meaning.is_empty(), "{name}");
            // Values of a label may stand behind its name, in brackets.
            let mut bare = String::new();
            let mut depth = 0;
            for c in labels.chars() {
                match c {
                    '(' => depth += 1,
                    ')' => depth -= 1,
                    c if depth == 0 => bare.push(c),
                    _ => {}
                }
            }
            let told: Vec<&str> = bare
                .split(',')
                .map(str::trim)
                .filter(|l| !l.is_empty())
                .collect();
            assert_eq!(told, entry.labels, "{name}");
            names.push(name.to_owned());
        }
        for entry in metrics.catalogue() {
            assert!(
                names.contains(&entry.name),
                "{} is not documented",
                entry.name
            );
        }
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count, "one row for each");
    }

    #[test]
    fn every_alert_is_documented_and_no_other() {
        let alerts = RULES
            .lines()
            .filter_map(|line| line.trim().strip_prefix("- alert: "));
        let alerts: Vec<&str> = alerts
            .map(|alert| alert.strip_prefix("JiraConnectProxy").expect("a prefix"))
            .collect();
        assert!(alerts.len() > 10, "{alerts:?}");
        let rows = README
            .lines()
            .skip_while(|line| !line.starts_with("| alert |"));
        let rows: Vec<&str> = rows.take_while(|line| line.starts_with('|')).collect();
        let in_table = rows.join("\n");
        for alert in &alerts {
            assert!(
                in_table.contains(&format!("`{alert}`")),
                "{alert} is not in the table"
            );
        }
        for row in table() {
            let told = row.last().into_iter().flat_map(|cell| cell.split(','));
            for alert in told.map(|alert| alert.trim().trim_matches('`')) {
                assert!(
                    alert.is_empty() || alerts.contains(&alert),
                    "there is no alert {alert}"
                );
            }
        }
    }
}
