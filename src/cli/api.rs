//! Speaks to the admin API of the relay that runs.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::Full;
use hyper::body::Incoming;
use jira_connect_proxy::{
    client::{Client, Destination, DialSettings, SendError, read_answer, root_certificates},
    config::Config,
    jwt::crypto,
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use zeroize::Zeroizing;

use super::Remote;

/// Longer than the relay takes for a first delivery.
const PATIENCE: Duration = Duration::from_secs(60);

const ANSWER_MAX_BYTES: usize = 64 * 1024 * 1024;

/// The admin API of one relay.
pub(super) struct Api {
    client: Client,
    url: String,
    token: Zeroizing<String>,
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
        Ok(Self {
            client: client()?,
            url,
            token,
        })
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
        let (status, body) = self.send(method, path, body).await?;
        if (200..300).contains(&status) {
            return serde_json::from_slice(&body).map_err(|_| self.stranger(status));
        }
        Err(self.refusal(status, &body))
    }

    /// Asks for something too large to be held at once.
    pub(super) async fn download(&self, path: &str) -> Result<Incoming, ApiError> {
        let request = self.request(Method::GET, path, None)?;
        let answer = self
            .client
            .send_for_stream(Destination::Configured, request, PATIENCE)
            .await
            .map_err(|cause| self.unreachable(cause))?;
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
        body: Option<&Value>,
    ) -> Result<(u16, Bytes), ApiError> {
        let request = self.request(method, path, body)?;
        let answer = self
            .client
            .send(Destination::Configured, request, PATIENCE, ANSWER_MAX_BYTES)
            .await
            .map_err(|cause| self.unreachable(cause))?;
        Ok((answer.status().as_u16(), answer.into_body()))
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Request<Full<Bytes>>, ApiError> {
        let body = body.map(Value::to_string).unwrap_or_default();
        Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header(
                header::AUTHORIZATION,
                format!("Bearer {}", self.token.as_str()),
            )
            .body(Full::new(Bytes::from(body)))
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
    let api = Api {
        client: client()?,
        url: url(remote, config),
        token: Zeroizing::default(),
    };
    let (status, _) = api.send(Method::GET, path, None).await?;
    Ok(status)
}

fn url(remote: &Remote, config: &Config) -> String {
    match &remote.admin_url {
        Some(url) => url.trim_end_matches('/').to_owned(),
        None => format!("http://{}", config.admin.listen),
    }
}

fn client() -> anyhow::Result<Client> {
    crypto::install();
    let roots = root_certificates(None).context("the system's certificate authorities")?;
    Ok(Client::new(&DialSettings {
        roots: Arc::new(roots),
        connect_timeout: Duration::from_secs(5),
        allow_private: true,
    }))
}

/// Takes from an answer what is used here.
pub(super) fn parsed<T: DeserializeOwned>(answer: Value) -> anyhow::Result<T> {
    serde_json::from_value(answer).context(
        "the relay answers in a way that this version does not know: are they of one version?",
    )
}
