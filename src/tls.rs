//! A listener's certificate: read from PEM files, and again when they change.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::SystemTime,
};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use rustls::{
    ConfigBuilder, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{
        ClientHello, ResolvesServerCert, VerifierBuilderError, WantsServerCert,
        WebPkiClientVerifier,
    },
    sign::CertifiedKey,
};
use tokio_rustls::TlsAcceptor;
use x509_cert::{Certificate, der::Decode as _};

/// Certificate and key on disk, and the pair in use.
pub struct TlsFiles {
    cert: PathBuf,
    key: PathBuf,
    current: Arc<Current>,
    /// When the files last changed, as far as we know.
    changed: Mutex<Changed>,
}

/// Modification times of certificate and key.
type Changed = (Option<SystemTime>, Option<SystemTime>);

/// The files can't be used.
#[derive(Debug, thiserror::Error)]
#[error("the TLS files {cert} and {key} can't be used: {cause}", cert = .cert.display(), key = .key.display())]
pub struct TlsError {
    cert: PathBuf,
    key: PathBuf,
    cause: String,
}

struct Current(ArcSwap<CertifiedKey>);

impl TlsFiles {
    /// Reads the pair and checks that its halves belong together.
    pub fn load(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        let changed = changed(cert, key);
        Ok(Self {
            cert: cert.to_owned(),
            key: key.to_owned(),
            current: Arc::new(Current(ArcSwap::new(read(cert, key)?))),
            changed: Mutex::new(changed),
        })
    }

    /// Shakes hands with whatever pair is current: TLS 1.2 and 1.3, HTTP/2 and 1.1.
    pub fn acceptor(&self) -> TlsAcceptor {
        self.acceptor_by(ServerConfig::builder().with_no_client_auth())
    }

    /// The same, for those only who show a certificate that one of these authorities signed.
    ///
    /// # Errors
    /// There is no authority, or none that can be used.
    pub fn acceptor_for(
        &self,
        authorities: RootCertStore,
    ) -> Result<TlsAcceptor, VerifierBuilderError> {
        let clients = WebPkiClientVerifier::builder(Arc::new(authorities)).build()?;
        Ok(self.acceptor_by(ServerConfig::builder().with_client_cert_verifier(clients)))
    }

    fn acceptor_by(&self, builder: ConfigBuilder<ServerConfig, WantsServerCert>) -> TlsAcceptor {
        let mut config = builder.with_cert_resolver(Arc::<Current>::clone(&self.current));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }

    /// Until when the certificate in use is good, if that can be read.
    pub fn expires_at(&self) -> Option<Timestamp> {
        let pair = self.current.0.load();
        let leaf = Certificate::from_der(pair.cert.first()?).ok()?;
        let not_after = leaf.tbs_certificate().validity().not_after;
        let seconds = not_after.to_unix_duration().as_secs();
        Timestamp::from_second(i64::try_from(seconds).ok()?).ok()
    }

    /// Reads the files again. Files that can't be used change nothing but the log.
    pub fn reload(&self) {
        match read(&self.cert, &self.key) {
            Ok(pair) => {
                self.current.0.store(pair);
                tracing::info!(cert = %self.cert.display(), "the TLS certificate was read again");
            }
            Err(error) => tracing::error!("{error}; the old certificate stays in use"),
        }
    }

    /// Reads the files again if they changed on disk.
    pub fn reload_if_changed(&self) {
        let now = changed(&self.cert, &self.key);
        let Ok(mut known) = self.changed.lock() else {
            return;
        };
        if *known != now {
            *known = now;
            self.reload();
        }
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Current")
    }
}

fn changed(cert: &Path, key: &Path) -> Changed {
    let modified = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
    (modified(cert), modified(key))
}

fn read(cert: &Path, key: &Path) -> Result<Arc<CertifiedKey>, TlsError> {
    let error = |cause: String| TlsError {
        cert: cert.to_owned(),
        key: key.to_owned(),
        cause,
    };
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|cause| error(format!("certificate: {cause}")))?;
    if chain.is_empty() {
        return Err(error("there is no certificate in the first".to_owned()));
    }
    let key = PrivateKeyDer::from_pem_file(key).map_err(|cause| error(format!("key: {cause}")))?;
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(chain, key, &provider)
        .map(Arc::new)
        .map_err(|cause| error(cause.to_string()))
}
