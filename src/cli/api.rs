//! Speaks to the admin API of the relay that runs.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use jira_connect_proxy::{
    client::{
        Client, Destination, DialSettings, SendError, certificates, read_answer, root_certificates,
    },
    config::Config,
    jwt::crypto,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::net::UnixStream;
use zeroize::Zeroizing;

use super::Remote;

/// Longer than the relay takes for a first delivery.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the address of a socket starts with.
const UNIX: &str = "unix:";

const ANSWER_MAX_BYTES: usize = 64 * 1024 * 1024;

/// The admin API of one relay.
pub(super) struct Api {
    way: Way,
    url: String,
    token: Zeroizing<String>,
}

/// How it is reached.
enum Way {
    /// Over TCP.
    Network(Client),
    /// Over a socket in the file system.
    Unix(PathBuf),
}

/// Why the API did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    /// Nobody is there.
    #[error(
        "the relay can't be reached at {url}: {cause}\n  is it running? --admin-url or admin.listen of the configuration must name its admin listener"
    )]
    Unreachable {
        /// Where.
        url: String,
        /// Why.
        cause: SendError,
    },
    /// It says no.
    #[error("{message}\n  {hint}\n  ({code}, request id {id})")]
    Refused {
        /// Stable name.
        code: String,
        /// One sentence.
        message: String,
        /// What to do.
        hint: String,
        /// In the relay's log.
        id: String,
    },
    /// Something else answers there.
    #[error(
        "what answers at {url} is no relay's admin listener (status {status})\n  check --admin-url"
    )]
    Stranger {
        /// Where.
        url: String,
        /// With what.
        status: u16,
    },
}

#[derive(Deserialize)]
struct Envelope {
    error: Refusal,
}

#[derive(Deserialize)]
struct Refusal {
    code: String,
    message: String,
    hint: String,
    id: String,
}

impl Api {
    /// Finds out where the relay is and by which token it is spoken to.
    pub(super) fn new(remote: &Remote, config: &Config) -> anyhow::Result<Self> {
        let url = url(remote, config);
        let token = match &remote.admin_token {
            Some(token) => Zeroizing::new(token.trim().to_owned()),
            None => {
                let file = remote
                    .admin_token_file
                    .as_ref()
                    .unwrap_or(&config.admin.token_file);
                let read = std::fs::read_to_string(file).map(Zeroizing::new);
                let text = read.with_context(|| {
                    format!(
                        "the admin token in {} can't be read: run this as the relay's user and in its working directory, or give --admin-token-file",
                        file.display()
                    )
                })?;
                Zeroizing::new(text.trim().to_owned())
            }
        };
        let way = way(remote, &url)?;
        Ok(Self { way, url, token })
    }

    /// Where the relay is.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Asks for something.
    pub(super) async fn get(&self, path: &str) -> Result<Value, ApiError> {
        self.call(Method::GET, path, None).await
    }

    /// Asks for something, as it is used here.
    pub(super) async fn read<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        parsed(self.get(path).await?)
    }

    /// Changes something.
    pub(super) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, ApiError> {
        let body = body.map(Value::to_string).unwrap_or_default();
        self.call_with(method, path, body.as_bytes()).await
    }

    /// The same, with a body that is JSON already.
    pub(super) async fn call_with(
        &self,
        method: Method,
        path: &str,
        body: &[u8],
    ) -> Result<Value, ApiError> {
        let (status, body) = self.send(method, path, body).await?;
        if (200..300).contains(&status) {
            return serde_json::from_slice(&body).map_err(|_| self.stranger(status));
        }
        Err(self.refusal(status, &body))
    }

    /// Asks for something too large to be held at once.
    pub(super) async fn download(&self, path: &str) -> Result<Incoming, ApiError> {
        let request = self.request(Method::GET, path, &[])?;
        let answer = self.open(request).await;
        let answer = answer.map_err(|cause| self.unreachable(cause))?;
        let status = answer.status().as_u16();
        if status == 200 {
            return Ok(answer.into_body());
        }
        let answer = read_answer(answer, ANSWER_MAX_BYTES).await;
        let answer = answer.map_err(|cause| self.unreachable(cause))?;
        Err(self.refusal(status, answer.body()))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: &[u8],
    ) -> Result<(u16, Bytes), ApiError> {
        let request = self.request(method, path, body)?;
        let whole = async {
            let answer = self.open(request).await?;
            read_answer(answer, ANSWER_MAX_BYTES).await
        };
        let answer = tokio::time::timeout(PATIENCE, whole)
            .await
            .unwrap_or(Err(SendError::TimedOut(PATIENCE)))
            .map_err(|cause| self.unreachable(cause))?;
        Ok((answer.status().as_u16(), answer.into_body()))
    }

    /// The head of an answer; the body is still to be read.
    async fn open(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, SendError> {
        match &self.way {
            Way::Network(client) => {
                client
                    .send_for_stream(Destination::Configured, request, PATIENCE)
                    .await
            }
            Way::Unix(path) => tokio::time::timeout(PATIENCE, over_unix(path, request))
                .await
                .unwrap_or(Err(SendError::TimedOut(PATIENCE))),
        }
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: &[u8],
    ) -> Result<Request<Full<Bytes>>, ApiError> {
        let base = match &self.way {
            Way::Network(_) => self.url.as_str(),
            Way::Unix(_) => "",
        };
        Request::builder()
            .method(method)
            .uri(format!("{base}{path}"))
            .header(header::HOST, "localhost")
            .header(
                header::AUTHORIZATION,
                format!("Bearer {}", self.token.as_str()),
            )
            .body(Full::new(Bytes::copy_from_slice(body)))
            .map_err(|error| self.unreachable(SendError::Broken(error.to_string())))
    }

    fn unreachable(&self, cause: SendError) -> ApiError {
        ApiError::Unreachable {
            url: self.url.clone(),
            cause,
        }
    }

    fn refusal(&self, status: u16, body: &[u8]) -> ApiError {
        match serde_json::from_slice::<Envelope>(body) {
            Ok(Envelope { error }) => ApiError::Refused {
                code: error.code,
                message: error.message,
                hint: error.hint,
                id: error.id,
            },
            Err(_) => self.stranger(status),
        }
    }

    fn stranger(&self, status: u16) -> ApiError {
        ApiError::Stranger {
            url: self.url.clone(),
            status,
        }
    }
}

/// The status of an answer that wants no token.
pub(super) async fn open_status(
    remote: &Remote,
    config: &Config,
    path: &str,
) -> anyhow::Result<u16> {
    let url = url(remote, config);
    let api = Api {
        way: way(remote, &url)?,
        url,
        token: Zeroizing::default(),
    };
    let (status, _) = api.send(Method::GET, path, &[]).await?;
    Ok(status)
}

fn url(remote: &Remote, config: &Config) -> String {
    match &remote.admin_url {
        Some(url) => url.trim_end_matches('/').to_owned(),
        None => match (&config.admin.socket, &config.admin.tls) {
            (Some(path), _) => format!("{UNIX}{}", path.display()),
            (None, Some(_)) => format!("https://{}", config.admin.listen),
            (None, None) => format!("http://{}", config.admin.listen),
        },
    }
}

fn way(remote: &Remote, url: &str) -> anyhow::Result<Way> {
    Ok(match url.strip_prefix(UNIX) {
        Some(path) => Way::Unix(path.into()),
        None => Way::Network(client(remote)?),
    })
}

/// A client that trusts, and shows, what the arguments say.
fn client(remote: &Remote) -> anyhow::Result<Client> {
    crypto::install();
    let read = |path: &PathBuf| {
        std::fs::read(path).with_context(|| format!("{} can't be read", path.display()))
    };
    let roots = match &remote.admin_ca {
        Some(path) => certificates(&read(path)?)
            .with_context(|| format!("{} can't be used", path.display()))?,
        None => root_certificates(None).context("the system's certificate authorities")?,
    };
    let settings = DialSettings {
        roots: Arc::new(roots),
        connect_timeout: Duration::from_secs(5),
        allow_private: true,
    };
    let (Some(cert), Some(key)) = (&remote.admin_cert, &remote.admin_key) else {
        return Ok(Client::new(&settings));
    };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&read(cert)?)
        .collect::<Result<_, _>>()
        .with_context(|| format!("{} can't be used", cert.display()))?;
    let key_der = PrivateKeyDer::from_pem_slice(&read(key)?)
        .with_context(|| format!("{} can't be used", key.display()))?;
    Client::identified(&settings, chain, key_der)
        .with_context(|| format!("{} and {} can't be used", cert.display(), key.display()))
}

/// One request on a connection of its own.
async fn over_unix(
    path: &Path,
    request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, SendError> {
    let broken = |error: &dyn std::fmt::Display| SendError::Broken(error.to_string());
    let stream = UnixStream::connect(path)
        .await
        .map_err(|error| broken(&error))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| broken(&error))?;
    // It ends with the answer, or with this command.
    tokio::spawn(connection);
    let answer = sender.send_request(request).await;
    answer.map_err(|error| broken(&error))
}

/// Takes from an answer what is used here.
pub(super) fn parsed<T: DeserializeOwned>(answer: Value) -> anyhow::Result<T> {
    serde_json::from_value(answer).context(
        "the relay answers in a way that this version does not know: are they of one version?",
    )
}
