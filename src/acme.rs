//! The public listener's certificate from an ACME server (RFC 8555), proven by TLS-ALPN-01 (RFC 8737).
//!
//! The server connects to port 443 of our host and wants a certificate with its challenge in it, by the protocol
//! `acme-tls/1`. So nothing but the public listener is needed, and what stands in front of it must pass TLS through.
//!
//! Key and chain lie in one file, so that one is never without the other. A certificate is renewed when a third of its
//! life is left.

use std::{path::PathBuf, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, BodyWrapper, BytesResponse, ChallengeType,
    HttpClient, Identifier, NewAccount, NewOrder, OrderStatus, RetryPolicy,
};
use jiff::Timestamp;
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::{pki_types::PrivateKeyDer, sign::CertifiedKey};

use crate::{
    backoff::{doubling, jitter},
    client::{Client, Destination},
    clock,
    config::AcmeConfig,
    digest::sha256_hex,
    metrics::Metrics,
    secret_file::{self, SecretFileError},
    tls::TlsFiles,
};

/// How often the certificate is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(3600);

/// After a failure. Let's Encrypt takes five failed validations of a host an hour.
const RETRY_MIN: Duration = Duration::from_secs(15 * 60);
const RETRY_MAX: Duration = Duration::from_secs(12 * 3600);

/// One call of the ACME server's.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
const ANSWER_MAX_BYTES: usize = 1024 * 1024;

/// Until an order is ready, and once more until its certificate is made.
const PATIENCE: RetryPolicy = RetryPolicy::new().timeout(Duration::from_secs(120));

/// Keeps a good certificate.
pub struct Acme {
    config: AcmeConfig,
    host: String,
    client: Client,
    tls: Arc<TlsFiles>,
    metrics: Arc<Metrics>,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
enum AcmeError {
    #[error("the ACME server says: {0}")]
    Server(#[from] instant_acme::Error),
    #[error(
        "the ACME server offers no TLS-ALPN-01 for this host, only {0}: use another server, or a certificate from files"
    )]
    NoChallenge(String),
    #[error(
        "the host could not be proven ({0}): port 443 of it must lead to public.listen, with TLS passed through"
    )]
    NotProven(String),
    #[error("a certificate could not be made: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("{0}")]
    Unusable(String),
    #[error(transparent)]
    File(#[from] SecretFileError),
}

impl AcmeConfig {
    /// Where key and chain for this host are.
    pub fn certificate_file(&self, host: &str) -> PathBuf {
        self.folder.join(format!("{host}-{}.pem", self.server()))
    }

    fn account_file(&self) -> PathBuf {
        self.folder.join(format!("account-{}.json", self.server()))
    }

    /// What one server gave is not what another one gives.
    fn server(&self) -> String {
        let mut server = sha256_hex(self.directory_url.as_bytes());
        server.truncate(16);
        server
    }
}

impl Acme {
    /// Keeps a certificate for this host in `tls`.
    pub fn new(
        config: AcmeConfig,
        host: &str,
        client: Client,
        tls: Arc<TlsFiles>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            config,
            host: host.to_owned(),
            client,
            tls,
            metrics,
        }
    }

    /// Looks at the certificate until `shutdown`, and gets another one in time.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = std::pin::pin!(shutdown);
        let mut failed = 0;
        loop {
            let pause = if self.is_due(clock::now()) {
                tokio::select! {
                    () = &mut shutdown => return,
                    renewed = self.renew() => match renewed {
                        Ok(()) => failed = 0,
                        Err(error) => {
                            failed += 1;
                            tracing::error!(host = self.host, "no new certificate: {error}");
                        }
                    }
                }
                match failed {
                    0 => LOOK_EVERY,
                    _ => doubling(RETRY_MIN, RETRY_MAX, failed - 1, jitter()),
                }
            } else {
                LOOK_EVERY
            };
            tokio::select! {
                () = &mut shutdown => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn is_due(&self, now: Timestamp) -> bool {
        self.tls
            .validity()
            .is_none_or(|(from, until)| until.duration_since(now) <= until.duration_since(from) / 3)
    }

    async fn renew(&self) -> Result<(), AcmeError> {
        let ordered = self.order().await;
        self.tls.answer_challenge(None);
        let outcome = if ordered.is_ok() { "ok" } else { "failed" };
        self.metrics.acme_orders.with_label_values(&[outcome]).inc();
        let pem = ordered?;
        let file = self.config.certificate_file(&self.host);
        tokio::task::spawn_blocking(move || secret_file::replace(&file, pem.as_bytes()))
            .await
            .map_err(|error| AcmeError::Unusable(error.to_string()))??;
        self.tls.reload();
        tracing::info!(host = self.host, "a new certificate is in use");
        Ok(())
    }

    /// Key and chain, PEM.
    async fn order(&self) -> Result<String, AcmeError> {
        let account = self.account().await?;
        let host = [Identifier::Dns(self.host.clone())];
        let mut order = account.new_order(&NewOrder::new(&host)).await?;
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            if authorization.status == AuthorizationStatus::Valid {
                continue;
            }
            let offered: Vec<_> = authorization
                .challenges
                .iter()
                .map(|challenge| format!("{:?}", challenge.r#type))
                .collect();
            let mut challenge = authorization
                .challenge(ChallengeType::TlsAlpn01)
                .ok_or_else(|| AcmeError::NoChallenge(offered.join(", ")))?;
            let proof = self.proof(challenge.key_authorization().digest().as_ref())?;
            self.tls.answer_challenge(Some(proof));
            challenge.set_ready().await?;
        }
        match order.poll_ready(&PATIENCE).await {
            Ok(OrderStatus::Ready) => {}
            Ok(status) => return Err(AcmeError::NotProven(format!("the order is {status:?}"))),
            Err(instant_acme::Error::Api(problem)) => {
                return Err(AcmeError::NotProven(problem.to_string()));
            }
            Err(error) => return Err(error.into()),
        }
        let key = order.finalize().await?;
        let chain = order.poll_certificate(&PATIENCE).await?;
        Ok(format!("{key}{chain}"))
    }

    async fn account(&self) -> Result<Account, AcmeError> {
        let builder = Account::builder_with_http(Box::new(Http(self.client.clone())));
        let file = self.config.account_file();
        if let Some(known) = secret_file::read(&file)? {
            let credentials: AccountCredentials = serde_json::from_slice(&known).map_err(|error| {
                AcmeError::Unusable(format!(
                    "the account in {} can't be read ({error}): remove the file to have one made",
                    file.display()
                ))
            })?;
            return Ok(builder.from_credentials(credentials).await?);
        }
        let contact: Vec<&str> = self.config.contact.as_deref().into_iter().collect();
        let wish = NewAccount {
            contact: &contact,
            // Said in proxy.toml: who names a server agrees to its terms.
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let server = self.config.directory_url.clone();
        let (account, credentials) = builder.create(&wish, server, None).await?;
        let credentials = serde_json::to_vec(&credentials)
            .map_err(|error| AcmeError::Unusable(error.to_string()))?;
        secret_file::create(&file, &credentials)?;
        Ok(account)
    }

    /// The certificate that answers a challenge (RFC 8737 section 3).
    fn proof(&self, digest: &[u8]) -> Result<CertifiedKey, AcmeError> {
        let mut parameters = CertificateParams::new([self.host.clone()])?;
        parameters.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
        let key = KeyPair::generate()?;
        let certificate = parameters.self_signed(&key)?;
        let key = PrivateKeyDer::try_from(key.serialize_der())
            .map_err(|error| AcmeError::Unusable(error.to_owned()))?;
        let key = rustls::crypto::ring::sign::any_supported_type(&key)
            .map_err(|error| AcmeError::Unusable(error.to_string()))?;
        // Not `from_der`: it refuses a certificate whose critical extension it does not know, and this one's is its sense.
        Ok(CertifiedKey::new(vec![certificate.der().clone()], key))
    }
}

/// Calls to the ACME server go the way of all others.
struct Http(Client);

impl HttpClient for Http {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        let client = self.0.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body = match body.collect().await {
                Ok(body) => body.to_bytes(),
                Err(never) => match never {},
            };
            let request = Request::from_parts(head, Full::new(body));
            let answer = client
                .send(
                    Destination::Configured,
                    request,
                    CALL_TIMEOUT,
                    ANSWER_MAX_BYTES,
                )
                .await
                .map_err(|error| instant_acme::Error::Other(Box::new(error)))?;
            let (parts, body) = answer.into_parts();
            Ok(BytesResponse {
                parts,
                body: Box::new(body),
            })
        })
    }
}

/// Reads the certificate of an earlier start, if there is one.
pub fn open(config: &AcmeConfig, host: &str) -> TlsFiles {
    TlsFiles::kept_in(&config.certificate_file(host))
}
