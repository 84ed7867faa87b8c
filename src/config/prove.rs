//! From what was written to what it means: every value proven, every mistake collected.

mod doors;
mod peers;

use std::time::Duration;

use jiff::SignedDuration;
use url::Url;

use super::{
    Checks, Config, LogConfig, OtlpConfig, PageConfig, PageLifetimes, SpoolConfig, StoreConfig,
    TelemetryConfig,
    raw::{self, RawConfig},
};
use crate::domain::JiraSites;

/// Turns text and numbers into settings. `None` or a mistake in `checks`: not usable.
pub(super) fn config(raw: RawConfig, checks: &mut Checks) -> Option<Config> {
    across_sections(&raw, checks);
    checks.at_least("keys.rotate_days", raw.keys.rotate_days, 1);
    let public = doors::public(&raw.public, &raw.acme, checks);
    let admin = doors::admin(raw.admin, checks);
    let access = doors::access(&raw.access, checks);
    let limits = doors::limits(&raw.limits, checks);
    let jira = peers::jira(&raw.jira, checks);
    let forge = peers::forge(&raw.forge, checks);
    let instances = peers::instances(raw.instances, checks);
    let spool = spool(&raw.spool, checks);
    let page = page(&raw.page, checks);
    let log = log(raw.log, checks);
    let telemetry = telemetry(&raw.telemetry, checks);
    let public = public?;
    let app = peers::app(raw.app, &public.url, checks);
    if let Some(admin) = &admin
        && admin.listen == public.listen
        && public.listen.port() != 0
    {
        checks.add(
            "admin.listen",
            "it is the same as public.listen: the two listeners need a port each",
        );
    }
    Some(Config {
        app,
        public,
        admin: admin?,
        access: access?,
        store: store(raw.store),
        jira: jira?,
        forge: forge?,
        instances: instances?,
        spool,
        page: page?,
        rotate_keys_after: SignedDuration::from_hours(24 * i64::from(raw.keys.rotate_days)),
        limits,
        log,
        telemetry: telemetry?,
        warnings: std::mem::take(&mut checks.warnings),
    })
}

/// What values of one section mean for another.
fn across_sections(raw: &RawConfig, checks: &mut Checks) {
    if raw.spool.installation_max_bytes < u64::from(raw.limits.rest_body_max_bytes) {
        checks.add(
            "spool.installation_max_bytes",
            "it is smaller than limits.rest_body_max_bytes: the largest write could never wait",
        );
    }
    if raw.limits.request_timeout_secs.saturating_mul(1000) <= raw.jira.answer_timeout_ms {
        checks.warn(
            "limits.request_timeout_secs is not above jira.answer_timeout_ms: a write that Jira is slow to take is cut off before the relay can keep it",
        );
    }
    if raw.store.key_file.starts_with(&raw.store.path) {
        checks.warn(
            "store.key_file is inside store.path: whoever copies that folder has the secrets and the key to them",
        );
    }
}

fn store(raw: raw::RawStore) -> StoreConfig {
    StoreConfig {
        path: raw.path,
        key_file: raw.key_file,
        installations_max: raw.installations_max,
        links_max: raw.links_max,
        audit_entries_max: raw.audit_entries_max,
    }
}

fn spool(raw: &raw::RawSpool, checks: &mut Checks) -> SpoolConfig {
    checks.at_least("spool.max_age_hours", raw.max_age_hours, 1);
    checks.at_least("spool.retry_min_ms", raw.retry_min_ms, 1);
    if raw.retry_max_ms < raw.retry_min_ms {
        checks.add(
            "spool.retry_max_ms",
            "it is smaller than spool.retry_min_ms",
        );
    }
    if raw.installation_max_bytes > raw.max_bytes {
        checks.add(
            "spool.installation_max_bytes",
            "it is larger than spool.max_bytes, which is for all installations",
        );
    }
    SpoolConfig {
        max_bytes: raw.max_bytes,
        installation_max_bytes: raw.installation_max_bytes,
        max_age: SignedDuration::from_hours(i64::from(raw.max_age_hours)),
        retry_min: millis(raw.retry_min_ms),
        retry_max: millis(raw.retry_max_ms),
    }
}

fn page(raw: &raw::RawPage, checks: &mut Checks) -> Option<PageConfig> {
    let ap_js_url = base_address(&raw.ap_js_url)
        .map_err(|what| checks.add("page.ap_js_url", what))
        .ok();
    let frame_ancestors = JiraSites::new(&raw.frame_ancestors)
        .map_err(|(origin, error)| {
            checks.add("page.frame_ancestors", format!("{origin:?}: {error}"));
        })
        .ok();
    for (key, secs) in [
        ("page.invitation_secs", raw.invitation_secs),
        ("page.session_idle_secs", raw.session_idle_secs),
        ("page.session_max_secs", raw.session_max_secs),
    ] {
        checks.at_least(key, secs, 1);
    }
    Some(PageConfig {
        ap_js_url: ap_js_url?,
        frame_ancestors: frame_ancestors?.listed().to_vec(),
        lifetimes: PageLifetimes {
            invitation: SignedDuration::from_secs(raw.invitation_secs.into()),
            idle: SignedDuration::from_secs(raw.session_idle_secs.into()),
            session: SignedDuration::from_secs(raw.session_max_secs.into()),
        },
    })
}

fn log(raw: raw::RawLog, checks: &mut Checks) -> LogConfig {
    if !matches!(raw.format.as_str(), "text" | "json") {
        checks.add("log.format", "it must be \"text\" or \"json\"");
    }
    if let Err(error) = tracing_subscriber::EnvFilter::builder().parse(raw.filter.as_str()) {
        checks.add("log.filter", format!("it is no tracing filter: {error}"));
    }
    LogConfig {
        json: raw.format == "json",
        filter: raw.filter,
    }
}

fn telemetry(raw: &raw::RawTelemetry, checks: &mut Checks) -> Option<TelemetryConfig> {
    Some(TelemetryConfig {
        trace_max_bytes: raw.trace_max_bytes as usize,
        otlp: otlp(raw, checks)?,
    })
}

/// Outer `None`: not usable.
fn otlp(raw: &raw::RawTelemetry, checks: &mut Checks) -> Option<Option<OtlpConfig>> {
    let sample_ratio = raw.otlp_sample_ratio;
    if !(0.0..=1.0).contains(&sample_ratio) {
        checks.add(
            "telemetry.otlp_sample_ratio",
            format!("it is {sample_ratio}, it must be from 0 to 1"),
        );
    }
    if raw.otlp_endpoint.is_empty() {
        return Some(None);
    }
    if !cfg!(feature = "otlp") {
        checks.add(
            "telemetry.otlp_endpoint",
            "this program was built without OTLP (cargo feature \"otlp\")",
        );
    }
    match base_address(&raw.otlp_endpoint) {
        Ok(endpoint) => Some(Some(OtlpConfig {
            endpoint: endpoint.trim_end_matches("/v1/traces").to_owned(),
            headers_file: raw.otlp_headers_file.clone(),
            sample_ratio,
        })),
        Err(what) => {
            checks.add("telemetry.otlp_endpoint", what);
            None
        }
    }
}

fn base_address(text: &str) -> Result<String, String> {
    let url = Url::parse(text).map_err(|error| format!("{text:?} is not a URL ({error})"))?;
    if !matches!(url.scheme(), "https" | "http") || url.host_str().is_none_or(str::is_empty) {
        return Err(format!("{text:?} must be an https URL"));
    }
    if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() {
        return Err("leave out user, query and fragment".to_owned());
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

fn millis(n: u32) -> Duration {
    Duration::from_millis(u64::from(n))
}

fn secs(n: u32) -> Duration {
    Duration::from_secs(u64::from(n))
}
