//! What a relay reads besides its configuration when it starts: certificates, authorities, ranges, the admin token.

use std::{path::Path, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::RootCertStore;
use tokio_rustls::TlsAcceptor;
use zeroize::Zeroizing;

use super::{StartError, start_error::internal};
use crate::{
    access::{self, AtlassianRanges, RangesError},
    acme,
    client::{Client, DialSettings, certificates, root_certificates},
    clock,
    config::{Config, RangesSource},
    doctor,
    gitlab::probe::Verdict,
    metrics::Metrics,
    secret_file,
    tls::TlsFiles,
};
#[cfg(feature = "otlp")]
use crate::{
    otlp::{self, Exporter},
    trace::Export,
};

/// Reads what a start would read besides the configuration, and tells what is odd about it.
pub fn check_files(config: &Config) -> Result<Vec<String>, StartError> {
    load_roots(config)?;
    if let Some(RangesSource::File(path)) = &config.access.ranges {
        access::read_file(path)?;
    }
    load_admin_tls(config)?;
    #[cfg(feature = "otlp")]
    if let Some(path) = config
        .telemetry
        .otlp
        .as_ref()
        .and_then(|otlp| otlp.headers_file.as_ref())
    {
        otlp::read_headers(path)?;
    }
    let Some(tls) = load_tls(config)? else {
        return Ok(Vec::new());
    };
    let mut odd = Vec::new();
    // What is still to be got is nothing odd.
    if config.public.acme.is_none() || tls.expires_at().is_some() {
        let certificate = doctor::certificate(tls.expires_at(), clock::now());
        if certificate.verdict != Verdict::Ok {
            odd.push(certificate.message);
        }
    }
    odd.extend(tls.ocsp_fault());
    Ok(odd)
}

/// Reads the public listener's certificate and key, if there are any.
pub fn load_tls(config: &Config) -> Result<Option<TlsFiles>, StartError> {
    if let Some(acme) = &config.public.acme {
        return Ok(Some(acme::open(acme, config.public.url.host())));
    }
    let files = config.public.tls.as_ref();
    Ok(files
        .map(|files| TlsFiles::load(&files.cert, &files.key, files.ocsp.as_deref()))
        .transpose()?)
}

/// Reads the admin listener's certificate and key, if there are any, and whose certificates let in.
pub(super) fn load_admin_tls(
    config: &Config,
) -> Result<Option<(TlsFiles, TlsAcceptor)>, StartError> {
    let Some(files) = &config.admin.tls else {
        return Ok(None);
    };
    let tls = TlsFiles::load(&files.cert, &files.key, None)?;
    let Some(path) = &config.admin.client_ca_file else {
        let acceptor = tls.acceptor();
        return Ok(Some((tls, acceptor)));
    };
    let unusable = |cause: String| StartError::ClientCa {
        path: path.clone(),
        cause,
    };
    let pem = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
    let authorities = certificates(&pem).map_err(|error| unusable(error.to_string()))?;
    let acceptor = tls
        .acceptor_for(authorities)
        .map_err(|error| unusable(error.to_string()))?;
    Ok(Some((tls, acceptor)))
}

pub(super) fn open_ranges(
    config: &Config,
    client: &Client,
    metrics: &Arc<Metrics>,
) -> Result<Option<Arc<AtlassianRanges>>, RangesError> {
    let Some(source) = &config.access.ranges else {
        return Ok(None);
    };
    let kept = config.store.path.with_file_name("atlassian-ranges.json");
    let (client, metrics) = (client.clone(), Arc::clone(metrics));
    let ranges = AtlassianRanges::open(source, &config.access, kept, client, metrics)?;
    Ok(Some(Arc::new(ranges)))
}

/// Reads the certificate authorities that instances are judged by.
pub fn load_roots(config: &Config) -> Result<RootCertStore, StartError> {
    let Some(path) = &config.instances.extra_ca_file else {
        return root_certificates(None).map_err(internal);
    };
    std::fs::read(path)
        .and_then(|pem| root_certificates(Some(&pem)))
        .map_err(|cause| StartError::ExtraCa {
            path: path.clone(),
            cause,
        })
}

/// What sends traces to the collector, if there is one.
#[cfg(feature = "otlp")]
pub(super) fn exporter(
    config: &Config,
    client: &Client,
    metrics: &Arc<Metrics>,
) -> Result<Option<(Export, Exporter)>, StartError> {
    let otlp = config.telemetry.otlp.as_ref();
    let exporter = otlp.map(|otlp| {
        let (client, metrics) = (client.clone(), Arc::clone(metrics));
        Exporter::new(otlp, config.public.url.as_str(), client, metrics)
    });
    Ok(exporter.transpose()?)
}

pub(super) fn dial_settings(config: &Config) -> Result<DialSettings, StartError> {
    Ok(DialSettings {
        roots: Arc::new(load_roots(config)?),
        connect_timeout: config.instances.connect_timeout,
        allow_private: config.instances.policy.allow_private_addresses,
    })
}

/// Reads the admin token, or makes one.
pub(super) fn admin_token(path: &Path) -> Result<Zeroizing<String>, StartError> {
    if let Some(content) = secret_file::read(path)? {
        let token = String::from_utf8_lossy(&content).trim().to_owned();
        return if token.len() < 16 {
            Err(StartError::ShortToken(path.to_owned()))
        } else {
            Ok(Zeroizing::new(token))
        };
    }
    let mut bytes = Zeroizing::new([0_u8; 32]);
    SystemRandom::new()
        .fill(&mut *bytes)
        .map_err(|_| StartError::Internal("no random bytes".to_owned()))?;
    let token = Zeroizing::new(URL_SAFE_NO_PAD.encode(*bytes));
    secret_file::create(path, token.as_bytes())?;
    Ok(token)
}
