//! A listener's certificate: read from PEM files, and again when they change.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::SystemTime,
};

use arc_swap::ArcSwapOption;
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
use x509_cert::{Certificate, der::Decode as _, time::Time};

/// The protocol of a challenge (RFC 8737 section 6.2).
pub const ACME_PROTOCOL: &[u8] = b"acme-tls/1";

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

/// What handshakes are answered with.
#[derive(Default)]
struct Current {
    pair: ArcSwapOption<CertifiedKey>,
    /// For an ACME server that looks whether this host is ours.
    challenge: ArcSwapOption<CertifiedKey>,
}

impl TlsFiles {
    /// Reads the pair and checks that its halves belong together.
    pub fn load(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        let changed = changed(cert, key);
        let current = Current::default();
        current.pair.store(Some(read(cert, key)?));
        Ok(Self {
            cert: cert.to_owned(),
            key: key.to_owned(),
            current: Arc::new(current),
            changed: Mutex::new(changed),
        })
    }

    /// Reads key and chain from one file of ours, where they may not be yet. Until they are, no handshake succeeds but
    /// an ACME server's.
    pub fn kept_in(file: &Path) -> Self {
        let current = Current::default();
        if file.exists() {
            match read(file, file) {
                Ok(pair) => current.pair.store(Some(pair)),
                Err(error) => tracing::error!("{error}; another one is wanted"),
            }
        }
        Self {
            cert: file.to_owned(),
            key: file.to_owned(),
            current: Arc::new(current),
            changed: Mutex::new(changed(file, file)),
        }
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
        // The challenge's protocol is agreed on only while there is a challenge: see `Current::resolve`.
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec(), ACME_PROTOCOL.to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }

    /// From when until when the certificate in use is good, if there is one and that can be read.
    pub fn validity(&self) -> Option<(Timestamp, Timestamp)> {
        let pair = self.current.pair.load_full()?;
        let leaf = Certificate::from_der(pair.cert.first()?).ok()?;
        let validity = leaf.tbs_certificate().validity();
        let timestamp = |time: Time| {
            let seconds = time.to_unix_duration().as_secs();
            Timestamp::from_second(i64::try_from(seconds).ok()?).ok()
        };
        Some((
            timestamp(validity.not_before)?,
            timestamp(validity.not_after)?,
        ))
    }

    /// Until when it is good.
    pub fn expires_at(&self) -> Option<Timestamp> {
        self.validity().map(|(_, until)| until)
    }

    /// What an ACME server is shown that looks whether this host is ours.
    pub fn answer_challenge(&self, proof: Option<CertifiedKey>) {
        self.current.challenge.store(proof.map(Arc::new));
    }

    /// Reads the files again. Files that can't be used change nothing but the log.
    pub fn reload(&self) {
        match read(&self.cert, &self.key) {
            Ok(pair) => {
                self.current.pair.store(Some(pair));
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
    /// A challenge is asked for by its protocol alone (RFC 8737 section 3).
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut protocols = hello.alpn().into_iter().flatten();
        if protocols.any(|protocol| protocol == ACME_PROTOCOL) {
            self.challenge.load_full()
        } else {
            self.pair.load_full()
        }
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
