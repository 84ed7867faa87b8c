//! Who comes in, and how: the two listeners, their certificates, from where, and how much.

use std::{net::SocketAddr, num::NonZeroU32, path::PathBuf};

use url::Url;

use super::{base_address, secs};
use crate::{
    config::{
        AccessConfig, AcmeConfig, AdminConfig, Checks, LimitsConfig, PLACEHOLDER_URL, PublicConfig,
        RangesSource, TlsFiles, raw,
    },
    domain::{CONNECT_PATH, Networks, PublicUrl},
    pace::Rate,
};

pub(super) fn public(
    raw: &raw::RawPublic,
    raw_acme: &raw::RawAcme,
    checks: &mut Checks,
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
        checks.warn(format!(
            "public.url is still the placeholder {PLACEHOLDER_URL}: neither Jira nor an instance can reach it"
        ));
    } else if !url.is_https() && !url.is_loopback() {
        checks.warn(format!(
            "public.url {url} is not https: Jira Cloud will not install it, and secrets travel in clear"
        ));
    } else if !url.is_https() {
        checks.warn(format!(
            "public.url {url} is good for trying out on this machine only"
        ));
    }
    let in_front =
        url.as_str() != PLACEHOLDER_URL && url.is_https() && tls.is_none() && acme.is_none();
    if in_front && raw.trusted_proxies.is_empty() {
        checks.warn(
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

pub(super) fn admin(raw: raw::RawAdmin, checks: &mut Checks) -> Option<AdminConfig> {
    let listen = listen(&raw.listen, "admin.listen", checks);
    let tls = tls("admin", raw.tls_cert.as_ref(), raw.tls_key.as_ref(), checks);
    if raw.client_ca_file.is_some() && raw.tls_cert.is_none() {
        checks.add(
            "admin.client_ca_file",
            "without admin.tls_cert nobody is asked for a certificate",
        );
    }
    let socket_mode = match raw.socket_mode.as_str() {
        "0600" => 0o600,
        "0660" => 0o660,
        _ => {
            checks.add("admin.socket_mode", "it must be \"0600\" or \"0660\"");
            0o600
        }
    };
    let is_plain = raw.tls_cert.is_none();
    if is_plain && listen.is_some_and(|address| !address.ip().is_loopback()) {
        checks.warn(format!(
            "admin.listen {} is not on loopback: it speaks plain HTTP, so keep that network private",
            raw.listen
        ));
    }
    Some(AdminConfig {
        listen: listen?,
        socket: raw.socket,
        socket_mode,
        tls,
        client_ca_file: raw.client_ca_file,
        token_file: raw.token_file,
    })
}

pub(super) fn access(raw: &raw::RawAccess, checks: &mut Checks) -> Option<AccessConfig> {
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
            checks.warn(
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

pub(super) fn limits(raw: &raw::RawLimits, checks: &mut Checks) -> LimitsConfig {
    // hyper refuses a smaller read buffer than that of heads.
    for (key, value, least) in [
        ("limits.body_max_bytes", raw.body_max_bytes, 16_384),
        (
            "limits.rest_body_max_bytes",
            raw.rest_body_max_bytes,
            16_384,
        ),
        ("limits.header_max_bytes", raw.header_max_bytes, 16_384),
        ("limits.connections_max", raw.connections_max, 1),
        ("limits.receive_timeout_secs", raw.receive_timeout_secs, 1),
        ("limits.request_timeout_secs", raw.request_timeout_secs, 1),
    ] {
        checks.at_least(key, value, least);
    }
    LimitsConfig {
        body_max_bytes: raw.body_max_bytes as usize,
        rest_body_max_bytes: raw.rest_body_max_bytes as usize,
        header_max_bytes: raw.header_max_bytes as usize,
        connections_max: raw.connections_max as usize,
        connections_per_address_max: match raw.connections_per_address_max {
            0 => None,
            max => Some(max as usize),
        },
        requests_per_address: rate(
            raw.requests_per_address_per_sec,
            raw.requests_per_address_burst,
        ),
        requests_per_installation: rate(
            raw.requests_per_installation_per_sec,
            raw.requests_per_installation_burst,
        ),
        receive_timeout: secs(raw.receive_timeout_secs),
        request_timeout: secs(raw.request_timeout_secs),
        drain_deadline: secs(raw.drain_deadline_secs),
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

/// No more than so many a second; 0 is no limit. A burst is at least one second's.
fn rate(per_sec: u32, burst: u32) -> Option<Rate> {
    let burst = burst.max(per_sec);
    let (per_sec, burst) = (NonZeroU32::new(per_sec)?, NonZeroU32::new(burst)?);
    Some(Rate { per_sec, burst })
}
