//! From what was written to what it means: every value proven, every mistake collected.

use std::{net::SocketAddr, num::NonZeroU32, path::PathBuf, time::Duration};

use jiff::SignedDuration;
use url::Url;

use super::{
    AccessConfig, AcmeConfig, AdminConfig, AppConfig, Checks, Config, ForgeConfig, InstancesConfig,
    JiraConfig, LimitsConfig, LogConfig, OtlpConfig, PLACEHOLDER_URL, PageConfig, PageLifetimes,
    PublicConfig, RangesSource, SpoolConfig, StoreConfig, TelemetryConfig, TlsFiles,
    raw::{self, RawConfig},
};
use crate::{
    domain::{
        CONNECT_PATH, ForgeAppId, ForgeEnvironmentType, InstancePolicy, InstanceUrl, JiraApiUrl,
        JiraSites, Networks, PublicUrl, cloud::is_sealed, instance_policy::AllowPattern,
    },
    pace::Rate,
};

/// Turns text and numbers into settings. `None` or a mistake in `checks`: not usable.
pub(super) fn config(raw: RawConfig, checks: &mut Checks) -> Option<Config> {
    let mut warnings = Vec::new();
    let public = public(&raw.public, &raw.acme, checks, &mut warnings);
    let sites = JiraSites::new(&raw.jira.extra_sites)
        .map_err(|(site, error)| checks.add("jira.extra_sites", format!("{site:?}: {error}")))
        .ok();
    let policy = policy(&raw.instances, checks, &mut warnings);
    let install_keys_url = base_address(&raw.jira.install_keys_url)
        .map_err(|what| checks.add("jira.install_keys_url", what))
        .ok();
    let api_url = JiraApiUrl::parse(&raw.jira.api_url)
        .map_err(|error| checks.add("jira.api_url", format!("{:?}: {error}", raw.jira.api_url)))
        .ok();
    let forge = forge(&raw.forge, checks);
    let ap_js_url = base_address(&raw.page.ap_js_url)
        .map_err(|what| checks.add("page.ap_js_url", what))
        .ok();
    let frame_ancestors = JiraSites::new(&raw.page.frame_ancestors)
        .map_err(|(origin, error)| {
            checks.add("page.frame_ancestors", format!("{origin:?}: {error}"));
        })
        .ok();
    checks.at_least("page.invitation_secs", raw.page.invitation_secs, 1);
    checks.at_least("page.session_idle_secs", raw.page.session_idle_secs, 1);
    checks.at_least("page.session_max_secs", raw.page.session_max_secs, 1);
    let otlp = otlp(&raw.telemetry, checks);
    let admin_listen = listen(&raw.admin.listen, "admin.listen", checks);
    checks.at_least(
        "instances.connect_timeout_ms",
        raw.instances.connect_timeout_ms,
        1,
    );
    checks.at_least("instances.retry_min_ms", raw.instances.retry_min_ms, 1);
    checks.at_least("instances.deliveries_max", raw.instances.deliveries_max, 1);
    checks.at_least(
        "instances.deliveries_per_instance_max",
        raw.instances.deliveries_per_instance_max,
        1,
    );
    let access = access(&raw.access, checks, &mut warnings);
    checks.at_least("keys.rotate_days", raw.keys.rotate_days, 1);
    // The newest token of a site is remembered with its records.
    checks.at_least(
        "jira.keep_uninstalled_days",
        raw.jira.keep_uninstalled_days,
        1,
    );
    checks.at_least("limits.body_max_bytes", raw.limits.body_max_bytes, 16_384);
    // hyper refuses a smaller read buffer.
    checks.at_least(
        "limits.header_max_bytes",
        raw.limits.header_max_bytes,
        16_384,
    );
    checks.at_least("limits.connections_max", raw.limits.connections_max, 1);
    checks.at_least(
        "limits.receive_timeout_secs",
        raw.limits.receive_timeout_secs,
        1,
    );
    checks.at_least(
        "limits.request_timeout_secs",
        raw.limits.request_timeout_secs,
        1,
    );
    checks.at_least("jira.answer_timeout_ms", raw.jira.answer_timeout_ms, 100);
    checks.at_least("jira.search_deadline_ms", raw.jira.search_deadline_ms, 100);
    checks.at_least(
        "limits.rest_body_max_bytes",
        raw.limits.rest_body_max_bytes,
        16_384,
    );
    checks.at_least("spool.max_age_hours", raw.spool.max_age_hours, 1);
    checks.at_least("forge.check_every_secs", raw.forge.check_every_secs, 1);
    checks.at_least("forge.gone_after_secs", raw.forge.gone_after_secs, 1);
    checks.at_least("spool.retry_min_ms", raw.spool.retry_min_ms, 1);
    if raw.spool.retry_max_ms < raw.spool.retry_min_ms {
        checks.add(
            "spool.retry_max_ms",
            "it is smaller than spool.retry_min_ms",
        );
    }
    if raw.spool.installation_max_bytes > raw.spool.max_bytes {
        checks.add(
            "spool.installation_max_bytes",
            "it is larger than spool.max_bytes, which is for all installations",
        );
    }
    if raw.spool.installation_max_bytes < u64::from(raw.limits.rest_body_max_bytes) {
        checks.add(
            "spool.installation_max_bytes",
            "it is smaller than limits.rest_body_max_bytes: the largest write could never wait",
        );
    }
    if raw.jira.answer_timeout_ms >= 20_000 {
        warnings.push(
            "jira.answer_timeout_ms is 20 s or more: GitLab gives up after 20 s, before the relay can keep what Jira did not take"
                .to_owned(),
        );
    }
    if raw.limits.request_timeout_secs.saturating_mul(1000) <= raw.jira.answer_timeout_ms {
        warnings.push(
            "limits.request_timeout_secs is not above jira.answer_timeout_ms: a write that Jira is slow to take is cut off before the relay can keep it"
                .to_owned(),
        );
    }
    if raw.store.key_file.starts_with(&raw.store.path) {
        warnings.push(
            "store.key_file is inside store.path: whoever copies that folder has the secrets and the key to them"
                .to_owned(),
        );
    }
    if raw.instances.retry_max_ms < raw.instances.retry_min_ms {
        checks.add(
            "instances.retry_max_ms",
            "it is smaller than instances.retry_min_ms",
        );
    }
    if raw.instances.request_timeout_ms < raw.instances.connect_timeout_ms {
        checks.add(
            "instances.request_timeout_ms",
            "it is smaller than instances.connect_timeout_ms, which is part of it",
        );
    }
    if !matches!(raw.log.format.as_str(), "text" | "json") {
        checks.add("log.format", "it must be \"text\" or \"json\"");
    }
    if let Err(error) = tracing_subscriber::EnvFilter::builder().parse(raw.log.filter.as_str()) {
        checks.add("log.filter", format!("it is no tracing filter: {error}"));
    }
    let admin_tls = tls(
        "admin",
        raw.admin.tls_cert.as_ref(),
        raw.admin.tls_key.as_ref(),
        checks,
    );
    if raw.admin.client_ca_file.is_some() && raw.admin.tls_cert.is_none() {
        checks.add(
            "admin.client_ca_file",
            "without admin.tls_cert nobody is asked for a certificate",
        );
    }
    let socket_mode = match raw.admin.socket_mode.as_str() {
        "0600" => 0o600,
        "0660" => 0o660,
        _ => {
            checks.add("admin.socket_mode", "it must be \"0600\" or \"0660\"");
            0o600
        }
    };
    let is_plain = raw.admin.tls_cert.is_none();
    if is_plain && admin_listen.is_some_and(|address| !address.ip().is_loopback()) {
        warnings.push(format!(
            "admin.listen {} is not on loopback: it speaks plain HTTP, so keep that network private",
            raw.admin.listen
        ));
    }
    let public = public?;
    if admin_listen == Some(public.listen) && public.listen.port() != 0 {
        checks.add(
            "admin.listen",
            "it is the same as public.listen: the two listeners need a port each",
        );
    }
    let app = app(raw.app, &public.url, checks);
    Some(Config {
        app,
        public,
        admin: AdminConfig {
            listen: admin_listen?,
            socket: raw.admin.socket,
            socket_mode,
            tls: admin_tls,
            client_ca_file: raw.admin.client_ca_file,
            token_file: raw.admin.token_file,
        },
        access: access?,
        store: StoreConfig {
            path: raw.store.path,
            key_file: raw.store.key_file,
            installations_max: raw.store.installations_max,
            links_max: raw.store.links_max,
            audit_entries_max: raw.store.audit_entries_max,
        },
        jira: JiraConfig {
            install_keys_url: install_keys_url?,
            api_url: api_url?,
            sites: sites?,
            secret_grace: SignedDuration::from_secs(i64::from(raw.jira.secret_grace_secs)),
            keep_uninstalled: SignedDuration::from_hours(
                24 * i64::from(raw.jira.keep_uninstalled_days),
            ),
            answer_timeout: millis(raw.jira.answer_timeout_ms),
            search_deadline: millis(raw.jira.search_deadline_ms),
        },
        forge: forge?,
        instances: InstancesConfig {
            policy: policy?,
            extra_ca_file: raw.instances.extra_ca_file,
            connect_timeout: millis(raw.instances.connect_timeout_ms),
            request_timeout: millis(raw.instances.request_timeout_ms),
            retry_min: millis(raw.instances.retry_min_ms),
            retry_max: millis(raw.instances.retry_max_ms),
            deliveries_max: raw.instances.deliveries_max as usize,
            deliveries_per_instance_max: raw.instances.deliveries_per_instance_max as usize,
            removal_give_up: SignedDuration::from_hours(i64::from(
                raw.instances.removal_give_up_hours,
            )),
            look_every: match raw.instances.look_every_secs {
                0 => None,
                every => Some(secs(every)),
            },
        },
        spool: SpoolConfig {
            max_bytes: raw.spool.max_bytes,
            installation_max_bytes: raw.spool.installation_max_bytes,
            max_age: SignedDuration::from_hours(i64::from(raw.spool.max_age_hours)),
            retry_min: millis(raw.spool.retry_min_ms),
            retry_max: millis(raw.spool.retry_max_ms),
        },
        page: PageConfig {
            ap_js_url: ap_js_url?,
            frame_ancestors: frame_ancestors?.listed().to_vec(),
            lifetimes: PageLifetimes {
                invitation: SignedDuration::from_secs(raw.page.invitation_secs.into()),
                idle: SignedDuration::from_secs(raw.page.session_idle_secs.into()),
                session: SignedDuration::from_secs(raw.page.session_max_secs.into()),
            },
        },
        rotate_keys_after: SignedDuration::from_hours(24 * i64::from(raw.keys.rotate_days)),
        limits: LimitsConfig {
            body_max_bytes: raw.limits.body_max_bytes as usize,
            rest_body_max_bytes: raw.limits.rest_body_max_bytes as usize,
            header_max_bytes: raw.limits.header_max_bytes as usize,
            connections_max: raw.limits.connections_max as usize,
            connections_per_address_max: match raw.limits.connections_per_address_max {
                0 => None,
                max => Some(max as usize),
            },
            requests_per_address: rate(
                raw.limits.requests_per_address_per_sec,
                raw.limits.requests_per_address_burst,
            ),
            requests_per_installation: rate(
                raw.limits.requests_per_installation_per_sec,
                raw.limits.requests_per_installation_burst,
            ),
            receive_timeout: secs(raw.limits.receive_timeout_secs),
            request_timeout: secs(raw.limits.request_timeout_secs),
            drain_deadline: secs(raw.limits.drain_deadline_secs),
        },
        log: LogConfig {
            json: raw.log.format == "json",
            filter: raw.log.filter,
        },
        telemetry: TelemetryConfig {
            trace_max_bytes: raw.telemetry.trace_max_bytes as usize,
            otlp: otlp?,
        },
        warnings,
    })
}

fn public(
    raw: &raw::RawPublic,
    raw_acme: &raw::RawAcme,
    checks: &mut Checks,
    warnings: &mut Vec<String>,
) -> Option<PublicConfig> {
    let url = PublicUrl::parse(&raw.url)
        .map_err(|error| checks.add("public.url", format!("{:?}: {error}", raw.url)))
        .ok();
    let listen = listen(&raw.listen, "public.listen", checks);
    let path = raw.base_path.as_str();
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~/".contains(&b);
    if !path.starts_with('/')
        || !path.ends_with(CONNECT_PATH)
        || path.contains("//")
        || path.split('/').any(|segment| matches!(segment, "." | ".."))
        || !path.bytes().all(plain)
    {
        checks.add(
            "public.base_path",
            "it must look like \"/-/jira_connect\" or \"/gitlab/-/jira_connect\": instances look for public keys there",
        );
    }
    let tls = tls(
        "public",
        raw.tls_cert.as_ref(),
        raw.tls_key.as_ref(),
        checks,
    );
    if tls.is_none() && raw.tls_ocsp.is_some() {
        checks.add(
            "public.tls_ocsp",
            "it belongs to a certificate: set tls_cert and tls_key too",
        );
    }
    let tls = tls.map(|tls| TlsFiles {
        ocsp: raw.tls_ocsp.clone(),
        ..tls
    });
    let trusted_proxies = networks(&raw.trusted_proxies, "public.trusted_proxies", checks);
    let acme = acme(raw_acme, checks);
    if acme.is_some() && tls.is_some() {
        checks.add(
            "acme.directory_url",
            "the certificate comes from public.tls_cert: set one or the other",
        );
    }
    let url = url?;
    if acme.is_some() && !url.is_https() {
        checks.add(
            "acme.directory_url",
            "a certificate makes sense only if public.url is https",
        );
    }
    if url.as_str() == PLACEHOLDER_URL {
        warnings.push(format!(
            "public.url is still the placeholder {PLACEHOLDER_URL}: neither Jira nor an instance can reach it"
        ));
    } else if !url.is_https() && !url.is_loopback() {
        warnings.push(format!(
            "public.url {url} is not https: Jira Cloud will not install it, and secrets travel in clear"
        ));
    } else if !url.is_https() {
        warnings.push(format!(
            "public.url {url} is good for trying out on this machine only"
        ));
    }
    let in_front =
        url.as_str() != PLACEHOLDER_URL && url.is_https() && tls.is_none() && acme.is_none();
    if in_front && raw.trusted_proxies.is_empty() {
        warnings.push(
            "public.trusted_proxies is empty, but somebody in front must end TLS: all clients look like that one address, in the log and to every limit"
                .to_owned(),
        );
    }
    Some(PublicConfig {
        url,
        listen: listen?,
        base_path: raw.base_path.clone(),
        tls,
        acme,
        trusted_proxies: trusted_proxies?,
    })
}

fn acme(raw: &raw::RawAcme, checks: &mut Checks) -> Option<AcmeConfig> {
    let directory_url = raw.directory_url.as_ref()?;
    if !Url::parse(directory_url).is_ok_and(|url| url.scheme() == "https") {
        checks.add(
            "acme.directory_url",
            format!("{directory_url:?} is no https URL (RFC 8555 wants one)"),
        );
    }
    if let Some(contact) = &raw.contact
        && !contact.starts_with("mailto:")
    {
        checks.add(
            "acme.contact",
            "it must look like \"mailto:ops@example.com\"",
        );
    }
    Some(AcmeConfig {
        directory_url: directory_url.clone(),
        contact: raw.contact.clone(),
        folder: raw.folder.clone(),
    })
}

fn access(
    raw: &raw::RawAccess,
    checks: &mut Checks,
    warnings: &mut Vec<String>,
) -> Option<AccessConfig> {
    let jira = networks(&raw.jira, "access.jira", checks);
    let instances = networks(&raw.instances, "access.instances", checks);
    checks.at_least("access.ranges_refresh_secs", raw.ranges_refresh_secs, 60);
    let text = raw.atlassian_ranges.as_str();
    let ranges = if text.is_empty() {
        None
    } else if text.contains("://") {
        base_address(text)
            .map_err(|what| checks.add("access.atlassian_ranges", what))
            .ok()?;
        if text.starts_with("http:") {
            warnings.push(
                "access.atlassian_ranges is fetched by plain http: whoever sits on the way decides who may call as Jira"
                    .to_owned(),
            );
        }
        Some(RangesSource::Url(text.to_owned()))
    } else {
        Some(RangesSource::File(text.into()))
    };
    Some(AccessConfig {
        jira: jira?,
        instances: instances?,
        ranges,
        ranges_refresh: secs(raw.ranges_refresh_secs),
    })
}

fn app(raw: raw::RawApp, url: &PublicUrl, checks: &mut Checks) -> AppConfig {
    let host = url.host();
    // As a GitLab under this URL would name itself (GitLab lib/atlassian/jira_connect.rb).
    let default_key: String = format!("gitlab-jira-connect-{host}")
        .chars()
        .filter(|&c| app_key_char(c))
        .take(64)
        .collect();
    let key = raw.key.unwrap_or(default_key);
    if key.is_empty() || key.len() > 64 || !key.chars().all(app_key_char) {
        checks.add(
            "app.key",
            format!("{key:?} is not 1 to 64 characters of [A-Za-z0-9._-], as Jira demands"),
        );
    }
    for (name, value) in [
        ("app.vendor_url", Some(&raw.vendor_url)),
        ("app.documentation_url", Some(&raw.documentation_url)),
        ("app.logo_url", raw.logo_url.as_ref()),
    ] {
        let https = |text: &String| Url::parse(text).is_ok_and(|url| url.scheme() == "https");
        if value.is_some_and(|text| !https(text)) {
            checks.add(name, "it must be an absolute https URL, as Jira demands");
        }
    }
    AppConfig {
        name: raw
            .name
            .unwrap_or_else(|| format!("GitLab for Jira ({host})")),
        key,
        display_name: raw
            .display_name
            .unwrap_or_else(|| format!("GitLab ({host})")),
        description: raw.description,
        vendor_name: raw.vendor_name,
        vendor_url: raw.vendor_url,
        documentation_url: raw.documentation_url,
        logo_url: raw.logo_url,
    }
}

/// Outer `None`: not usable.
fn forge(raw: &raw::RawForge, checks: &mut Checks) -> Option<Option<ForgeConfig>> {
    let app_id = match raw.app_id.as_str() {
        "" => Some(None),
        text => ForgeAppId::parse(text)
            .map_err(|error| checks.add("forge.app_id", format!("{text:?}: {error}")))
            .ok()
            .map(Some),
    };
    let environments = raw
        .environments
        .iter()
        .map(|text| {
            ForgeEnvironmentType::parse(text)
                .map_err(|error| checks.add("forge.environments", format!("{text:?}: {error}")))
                .ok()
        })
        .collect::<Option<Vec<_>>>();
    if raw.environments.is_empty() {
        checks.add(
            "forge.environments",
            "without one no invocation is taken: leave forge.app_id empty to take none",
        );
    }
    // Whoever can change it on the way can sign for every site.
    let jwks_url = base_address(&raw.jwks_url).and_then(|text| {
        if Url::parse(&text).is_ok_and(|url| is_sealed(&url)) {
            Ok(text)
        } else {
            Err(format!("{text:?} must be https (http only on loopback)"))
        }
    });
    let jwks_url = jwks_url
        .map_err(|what| checks.add("forge.jwks_url", what))
        .ok();
    let page_origins = JiraSites::new(&raw.page_origins)
        .map_err(|(origin, error)| {
            checks.add("forge.page_origins", format!("{origin:?}: {error}"));
        })
        .ok();
    let (app_id, environments, jwks_url) = (app_id?, environments?, jwks_url?);
    let page_origins = page_origins?.listed().to_vec();
    Some(app_id.map(|app_id| ForgeConfig {
        app_id,
        environments,
        jwks_url,
        page_origins,
        check_every: secs(raw.check_every_secs),
        gone_after: SignedDuration::from_secs(raw.gone_after_secs.into()),
    }))
}

fn policy(
    raw: &raw::RawInstances,
    checks: &mut Checks,
    warnings: &mut Vec<String>,
) -> Option<InstancePolicy> {
    let before = checks.mistakes.len();
    let mut policy = InstancePolicy {
        allow: Vec::new(),
        auto_link: Vec::new(),
        allow_http: raw.dangerous_allow_http,
        allow_private_addresses: raw.dangerous_allow_private_addresses,
    };
    for text in &raw.allow {
        match AllowPattern::parse(text) {
            Ok(pattern) => policy.allow.push(pattern),
            Err(what) => checks.add("instances.allow", what),
        }
    }
    for text in &raw.auto_link {
        match InstanceUrl::parse(text) {
            Ok(url) => match policy.check(&url) {
                Ok(()) => policy.auto_link.push(url),
                Err(error) => checks.add("instances.auto_link", error),
            },
            Err(error) => checks.add("instances.auto_link", format!("{text:?}: {error}")),
        }
    }
    if raw.allow.is_empty() {
        warnings.push("instances.allow is empty: no instance can be linked".to_owned());
    }
    if raw.dangerous_allow_http {
        warnings
            .push("instances.dangerous_allow_http is set: secrets may travel in clear".to_owned());
    }
    if raw.dangerous_allow_private_addresses && policy.allow.contains(&AllowPattern::Everybody) {
        warnings.push(
            "instances.dangerous_allow_private_addresses with instances.allow = [\"*\"]: whoever may add links can make the relay call anything in your network"
                .to_owned(),
        );
    }
    (checks.mistakes.len() == before).then_some(policy)
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

fn listen(text: &str, key: &str, checks: &mut Checks) -> Option<SocketAddr> {
    text.parse()
        .map_err(|_| {
            checks.add(
                key,
                format!("{text:?} is not an address and port like 127.0.0.1:8080 or [::]:8080"),
            );
        })
        .ok()
}

/// Both or neither.
fn tls(
    section: &str,
    cert: Option<&PathBuf>,
    key: Option<&PathBuf>,
    checks: &mut Checks,
) -> Option<TlsFiles> {
    if cert.is_some() != key.is_some() {
        checks.add(
            &format!("{section}.tls_cert"),
            "tls_cert and tls_key belong together: set both or neither",
        );
    }
    Some(TlsFiles {
        cert: cert?.clone(),
        key: key?.clone(),
        ocsp: None,
    })
}

fn networks(texts: &[String], key: &str, checks: &mut Checks) -> Option<Networks> {
    Networks::parse(texts)
        .map_err(|what| checks.add(key, what))
        .ok()
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

fn app_key_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

/// No more than so many a second; 0 is no limit. A burst is at least one second's.
fn rate(per_sec: u32, burst: u32) -> Option<Rate> {
    let burst = burst.max(per_sec);
    let (per_sec, burst) = (NonZeroU32::new(per_sec)?, NonZeroU32::new(burst)?);
    Some(Rate { per_sec, burst })
}

fn millis(n: u32) -> Duration {
    Duration::from_millis(u64::from(n))
}

fn secs(n: u32) -> Duration {
    Duration::from_secs(u64::from(n))
}
