//! Who the relay speaks to: Jira, as which app, and the instances.

use jiff::SignedDuration;
use url::Url;

use super::{base_address, millis, secs};
use crate::{
    config::{AppConfig, Checks, ForgeConfig, InstancesConfig, JiraConfig, raw},
    domain::{
        ForgeAppId, ForgeEnvironmentType, InstancePolicy, InstanceUrl, JiraApiUrl, JiraSites,
        PublicUrl, cloud::is_sealed, instance_policy::AllowPattern,
    },
};

pub(super) fn app(raw: raw::RawApp, url: &PublicUrl, checks: &mut Checks) -> AppConfig {
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

pub(super) fn jira(raw: &raw::RawJira, checks: &mut Checks) -> Option<JiraConfig> {
    let sites = JiraSites::new(&raw.extra_sites)
        .map_err(|(site, error)| checks.add("jira.extra_sites", format!("{site:?}: {error}")))
        .ok();
    let install_keys_url = base_address(&raw.install_keys_url)
        .map_err(|what| checks.add("jira.install_keys_url", what))
        .ok();
    let api_url = JiraApiUrl::parse(&raw.api_url)
        .map_err(|error| checks.add("jira.api_url", format!("{:?}: {error}", raw.api_url)))
        .ok();
    // The newest token of a site is remembered with its records.
    checks.at_least("jira.keep_uninstalled_days", raw.keep_uninstalled_days, 1);
    checks.at_least("jira.answer_timeout_ms", raw.answer_timeout_ms, 100);
    checks.at_least("jira.search_deadline_ms", raw.search_deadline_ms, 100);
    if raw.answer_timeout_ms >= 20_000 {
        checks.warn(
            "jira.answer_timeout_ms is 20 s or more: GitLab gives up after 20 s, before the relay can keep what Jira did not take",
        );
    }
    Some(JiraConfig {
        install_keys_url: install_keys_url?,
        api_url: api_url?,
        sites: sites?,
        secret_grace: SignedDuration::from_secs(i64::from(raw.secret_grace_secs)),
        keep_uninstalled: SignedDuration::from_hours(24 * i64::from(raw.keep_uninstalled_days)),
        answer_timeout: millis(raw.answer_timeout_ms),
        search_deadline: millis(raw.search_deadline_ms),
    })
}

/// Outer `None`: not usable.
pub(super) fn forge(raw: &raw::RawForge, checks: &mut Checks) -> Option<Option<ForgeConfig>> {
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
    checks.at_least("forge.check_every_secs", raw.check_every_secs, 1);
    // Jira has to refuse a token twice in its last quarter of an hour.
    checks.at_most("forge.check_every_secs", raw.check_every_secs, 300);
    checks.at_least("forge.gone_after_secs", raw.gone_after_secs, 1);
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

pub(super) fn instances(raw: raw::RawInstances, checks: &mut Checks) -> Option<InstancesConfig> {
    let policy = policy(&raw, checks);
    for (key, value) in [
        ("instances.connect_timeout_ms", raw.connect_timeout_ms),
        ("instances.retry_min_ms", raw.retry_min_ms),
        ("instances.deliveries_max", raw.deliveries_max),
        (
            "instances.deliveries_per_instance_max",
            raw.deliveries_per_instance_max,
        ),
    ] {
        checks.at_least(key, value, 1);
    }
    if raw.retry_max_ms < raw.retry_min_ms {
        checks.add(
            "instances.retry_max_ms",
            "it is smaller than instances.retry_min_ms",
        );
    }
    if raw.request_timeout_ms < raw.connect_timeout_ms {
        checks.add(
            "instances.request_timeout_ms",
            "it is smaller than instances.connect_timeout_ms, which is part of it",
        );
    }
    Some(InstancesConfig {
        policy: policy?,
        extra_ca_file: raw.extra_ca_file,
        connect_timeout: millis(raw.connect_timeout_ms),
        request_timeout: millis(raw.request_timeout_ms),
        retry_min: millis(raw.retry_min_ms),
        retry_max: millis(raw.retry_max_ms),
        deliveries_max: raw.deliveries_max as usize,
        deliveries_per_instance_max: raw.deliveries_per_instance_max as usize,
        removal_give_up: SignedDuration::from_hours(i64::from(raw.removal_give_up_hours)),
        look_every: match raw.look_every_secs {
            0 => None,
            every => Some(secs(every)),
        },
    })
}

fn policy(raw: &raw::RawInstances, checks: &mut Checks) -> Option<InstancePolicy> {
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
        checks.warn("instances.allow is empty: no instance can be linked".to_owned());
    }
    if raw.dangerous_allow_http {
        checks
            .warn("instances.dangerous_allow_http is set: secrets may travel in clear".to_owned());
    }
    if raw.dangerous_allow_private_addresses && policy.allow.contains(&AllowPattern::Everybody) {
        checks.warn(
            "instances.dangerous_allow_private_addresses with instances.allow = [\"*\"]: whoever may add links can make the relay call anything in your network"
                .to_owned(),
        );
    }
    (checks.mistakes.len() == before).then_some(policy)
}

fn app_key_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}
