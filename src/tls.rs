//! A listener's certificate: read from PEM files, and again when they change.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::SystemTime,
};

use arc_swap::ArcSwapOption;
use der::Decode as _;
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
use x509_ocsp::{BasicOcspResponse, CertStatus, OcspResponse};

use crate::clock;

/// The protocol of a challenge (RFC 8737 section 6.2).
pub const ACME_PROTOCOL: &[u8] = b"acme-tls/1";

/// Certificate and key on disk, and the pair in use.
pub struct TlsFiles {
    cert: PathBuf,
    key: PathBuf,
    ocsp: Option<PathBuf>,
    current: Arc<Current>,
    /// When the files last changed, as far as we know.
    changed: Mutex<Changed>,
}

/// Modification times of certificate, key and OCSP response.
type Changed = [Option<SystemTime>; 3];

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
    /// Until when the OCSP response that is shown with it is good, in seconds since 1970; 1 if it should be shown and
    /// can't be used, 0 if none should.
    ocsp_until: AtomicI64,
    /// Why it can't.
    ocsp_fault: ArcSwapOption<String>,
    /// For an ACME server that looks whether this host is ours.
    challenge: ArcSwapOption<CertifiedKey>,
}

impl TlsFiles {
    /// Reads the pair and checks that its halves belong together. An OCSP response that can't be used is left out.
    pub fn load(cert: &Path, key: &Path, ocsp: Option<&Path>) -> Result<Self, TlsError> {
        let files = Self {
            cert: cert.to_owned(),
            key: key.to_owned(),
            ocsp: ocsp.map(Path::to_owned),
            current: Arc::default(),
            changed: Mutex::new(changed([Some(cert), Some(key), ocsp])),
        };
        files.show(read(cert, key)?);
        Ok(files)
    }

    /// Reads key and chain from one file of ours, where they may not be yet. Until they are, no handshake succeeds but
    /// an ACME server's.
    pub fn kept_in(file: &Path) -> Self {
        let files = Self {
            cert: file.to_owned(),
            key: file.to_owned(),
            ocsp: None,
            current: Arc::default(),
            changed: Mutex::new(changed([Some(file), None, None])),
        };
        if file.exists() {
            match read(file, file) {
                Ok(pair) => files.show(pair),
                Err(error) => tracing::error!("{error}; another one is wanted"),
            }
        }
        files
    }

    /// Answers handshakes with this pair from now on, and with what its OCSP responder says of it.
    fn show(&self, mut pair: CertifiedKey) {
        let mut until = 0;
        let mut fault = None;
        if let Some(path) = &self.ocsp {
            match read_ocsp(path, &pair, clock::now()) {
                Ok((response, good_until)) => {
                    pair.ocsp = Some(response);
                    until = good_until.as_second();
                }
                Err(cause) => {
                    let said = format!(
                        "the certificate is shown without the OCSP response in {}: {cause}",
                        path.display()
                    );
                    tracing::error!("{said}");
                    (until, fault) = (1, Some(Arc::new(said)));
                }
            }
        }
        self.current.pair.store(Some(Arc::new(pair)));
        self.current.ocsp_fault.store(fault);
        self.current.ocsp_until.store(until, Ordering::Relaxed);
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

    /// Until when the OCSP response shown with it is good, in seconds since 1970; 1 if the one that should be shown
    /// can't be used, 0 if none should.
    pub fn ocsp_until(&self) -> i64 {
        self.current.ocsp_until.load(Ordering::Relaxed)
    }

    /// Why the OCSP response is not shown.
    pub fn ocsp_fault(&self) -> Option<String> {
        let fault = self.current.ocsp_fault.load_full();
        fault.map(|fault| String::clone(&fault))
    }

    /// What an ACME server is shown that looks whether this host is ours.
    pub fn answer_challenge(&self, proof: Option<CertifiedKey>) {
        self.current.challenge.store(proof.map(Arc::new));
    }

    /// Reads the files again. Files that can't be used change nothing but the log.
    pub fn reload(&self) {
        match read(&self.cert, &self.key) {
            Ok(pair) => {
                self.show(pair);
                tracing::info!(cert = %self.cert.display(), "the TLS certificate was read again");
            }
            Err(error) => tracing::error!("{error}; the old certificate stays in use"),
        }
    }

    /// Reads the files again if they changed on disk, or the OCSP response ran out.
    pub fn reload_if_changed(&self) {
        let (cert, key) = (Some(self.cert.as_path()), Some(self.key.as_path()));
        let now = changed([
            cert,
            key.filter(|key| cert != Some(*key)),
            self.ocsp.as_deref(),
        ]);
        let ran_out = 2..=clock::now().as_second();
        let Ok(mut known) = self.changed.lock() else {
            return;
        };
        if *known != now || ran_out.contains(&self.ocsp_until()) {
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

fn changed(files: [Option<&Path>; 3]) -> Changed {
    files.map(|file| file?.metadata().ok()?.modified().ok())
}

/// A response that says that the certificate is good, and until when that counts (RFC 6960 section 4.2).
fn read_ocsp(
    path: &Path,
    pair: &CertifiedKey,
    now: Timestamp,
) -> Result<(Vec<u8>, Timestamp), String> {
    let leaf = pair
        .cert
        .first()
        .and_then(|der| Certificate::from_der(der).ok());
    let leaf = leaf.ok_or("the certificate can't be read")?;
    let serial = leaf.tbs_certificate().serial_number().as_bytes();
    let file = fs::read(path).map_err(|error| error.to_string())?;
    let odd = |error: der::Error| format!("it is no OCSP response in DER: {error}");
    let response = OcspResponse::from_der(&file).map_err(odd)?;
    let bytes = response
        .response_bytes
        .ok_or_else(|| format!("the responder answered {:?}", response.response_status))?;
    let basic = BasicOcspResponse::from_der(bytes.response.as_bytes()).map_err(odd)?;
    let answers = basic.tbs_response_data.responses;
    let mut answers = answers.iter();
    let answer = answers
        .find(|answer| answer.cert_id.serial_number.as_bytes() == serial)
        .ok_or("it is about another certificate")?;
    if !matches!(answer.cert_status, CertStatus::Good(_)) {
        return Err(format!("it says {:?}", answer.cert_status));
    }
    let until = answer
        .next_update
        .ok_or("it does not say until when it is good")?;
    let until = i64::try_from(until.0.to_unix_duration().as_secs()).unwrap_or(i64::MAX);
    let until = Timestamp::from_second(until).map_err(|error| error.to_string())?;
    if until <= now {
        return Err(format!("it was good until {until}"));
    }
    Ok((file, until))
}

fn read(cert: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
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
    CertifiedKey::from_der(chain, key, &provider).map_err(|cause| error(cause.to_string()))
}
