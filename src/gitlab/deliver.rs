//! One attempt to tell an instance `installed` or `uninstalled`.
//!
//! Exactly as GitLab's own proxy does it (GitLab `proxy_lifecycle_event_service.rb`, `create_asymmetric_jwt_service.rb`): a form with the token in
//! it, to the instance's events address. Only HTTP 200 is success.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::Full;
use jiff::Timestamp;

use super::{KeyFetch, KeyFetches, Patience};
use crate::{
    client::{Client, Destination, DialError, SendError, TlsFault},
    domain::{
        CONNECT_PATH, Installation, InstancePolicy, InstanceUrl, LifecycleEventKind, Link,
        SharedSecret,
        instance_policy::PolicyError,
        link::{DeliveryProblem, Goal},
    },
    jwt::{
        Signer,
        qsh::AgreedTarget,
        signer::{InstanceClaims, SignError},
    },
};

/// Makes attempts; cheap to clone.
#[derive(Clone)]
pub struct Courier {
    /// Dials.
    pub client: Client,
    /// Signs.
    pub signer: Arc<Signer>,
    /// Knows who came for the key.
    pub key_fetches: Arc<KeyFetches>,
    /// Who may be dialled; the operator can change it at any time.
    pub policy: Arc<ArcSwap<InstancePolicy>>,
    /// Our own address: `baseUrl` of relayed links.
    pub public_url: Arc<str>,
    /// What instances have as their Jira Connect Proxy URL, for hints.
    pub proxy_url: Arc<str>,
    /// How long to wait; the operator can change it at any time.
    pub patience: Arc<ArcSwap<Patience>>,
}

/// What an instance confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// The `baseUrl` that it was given with `installed`.
    pub base_url: Option<String>,
}

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    /// No answer.
    #[error(transparent)]
    Send(SendError),
    /// An answer other than 200.
    #[error("{}", refusal(*status, *key_fetch))]
    Refused {
        /// What it answered.
        status: StatusCode,
        /// Who came for our key meanwhile.
        key_fetch: KeyFetch,
        /// Where it wants us to go.
        location: Option<String>,
        /// The audiences that the token named.
        audiences: Vec<String>,
        /// `Retry-After`, in its form in seconds.
        retry_after: Option<Duration>,
    },
    /// We could not sign.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The operator does not allow it (any more).
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A URL that can't be signed; parsed URLs never are.
    #[error("the instance's address can't be signed")]
    Address,
}

impl Courier {
    /// One attempt at what the link should know.
    pub async fn deliver(
        &self,
        link: &Link,
        goal: Goal,
        installation: &Installation,
        now: Timestamp,
    ) -> Result<Acknowledged, DeliveryError> {
        // An instance that is allowed no more is still told that it is over; that carries no secret, and the client
        // judges its address all the same.
        if goal.event == LifecycleEventKind::Installed {
            self.policy.load().check(&link.instance_url)?;
        }
        let audiences = audiences(&link.instance_url);
        let target = AgreedTarget::new(
            &format!("{}{CONNECT_PATH}", link.instance_url.path()),
            &format!("/events/{}", goal.event),
            &[],
        )
        .map_err(|_| DeliveryError::Address)?;
        let claims = InstanceClaims::new(
            audiences.clone(),
            link.client_key.to_string(),
            target.qsh("POST").as_str().to_owned(),
            now,
        );
        let signer = Arc::clone(&self.signer);
        // Two milliseconds of arithmetic are too many for a thread that serves requests.
        let token = tokio::task::spawn_blocking(move || signer.sign(&claims))
            .await
            .map_err(|error| SignError::Failed(error.to_string()))??;
        let (secret, base_url) = told(link, installation, &self.public_url);
        let form = form(link, goal.event, &token.text, secret, base_url);
        let request = Request::post(format!(
            "{}{}",
            link.instance_url.origin(),
            target.path_and_query()
        ))
        .header(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/x-www-form-urlencoded"),
        )
        .header(header::ACCEPT, HeaderValue::from_static("*/*"))
        .header(
            header::USER_AGENT,
            HeaderValue::from_static(concat!(
                env!("CARGO_PKG_NAME"),
                "/",
                env!("CARGO_PKG_VERSION")
            )),
        )
        .body(Full::new(Bytes::from(form)))
        .map_err(|_| DeliveryError::Address)?;
        let attempt = self.key_fetches.attempt();
        let answer = self
            .client
            .send_for_head(
                Destination::Named,
                request,
                self.patience.load().request_timeout,
            )
            .await
            .map_err(DeliveryError::Send)?;
        if answer.status() == StatusCode::OK {
            return Ok(Acknowledged {
                base_url: (goal.event == LifecycleEventKind::Installed)
                    .then(|| base_url.to_owned()),
            });
        }
        Err(DeliveryError::Refused {
            status: answer.status(),
            key_fetch: attempt.key_fetch(&token.kid),
            location: answer
                .headers()
                .get(header::LOCATION)
                .and_then(|location| location.to_str().ok())
                .map(|location| location.chars().take(255).collect()),
            audiences,
            retry_after: answer
                .headers()
                .get(header::RETRY_AFTER)
                .and_then(|seconds| seconds.to_str().ok()?.parse().ok())
                .map(Duration::from_secs),
        })
    }
}

/// The secret and the `baseUrl` that `installed` carries.
pub fn told<'a>(
    link: &'a Link,
    installation: &'a Installation,
    public_url: &'a str,
) -> (&'a SharedSecret, &'a str) {
    match installation.connect() {
        Some(connect) if link.is_told_jiras_own() => {
            (&connect.shared_secret, installation.base_url.as_str())
        }
        _ => (&link.secret, public_url),
    }
}

/// What the answer means, where the status alone does not tell.
fn refusal(status: StatusCode, key_fetch: KeyFetch) -> String {
    match (status, key_fetch) {
        (StatusCode::UNAUTHORIZED, KeyFetch::Nobody) => {
            "the instance did not fetch our public key, and answered 401".to_owned()
        }
        (StatusCode::UNAUTHORIZED, KeyFetch::By(_)) => {
            "the instance fetched our public key, but refused what it signs with 401".to_owned()
        }
        (status, _) => format!("the instance answered {status}"),
    }
}

/// The fields that GitLab's own proxy sends, and no others.
fn form(
    link: &Link,
    event: LifecycleEventKind,
    token: &str,
    secret: &SharedSecret,
    base_url: &str,
) -> String {
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.append_pair("clientKey", link.client_key.as_str())
        .append_pair("jwt", token)
        .append_pair("eventType", event.as_str());
    if event == LifecycleEventKind::Installed {
        form.append_pair("sharedSecret", secret.expose())
            .append_pair("baseUrl", base_url);
    }
    form.finish()
}

/// Every form under which an instance may know itself.
///
/// GitLab forces https onto its own address unless told
/// otherwise, and takes host and port from the `Host` header that its own reverse proxy hands on, which may have
/// dropped the port (`events_controller.rb`). A verifier is content if one of several audiences is its own.
pub fn audiences(instance_url: &InstanceUrl) -> Vec<String> {
    let (authority, host, path) = (
        instance_url.authority(),
        instance_url.host(),
        instance_url.path(),
    );
    let mut audiences = vec![format!("https://{authority}{path}{CONNECT_PATH}")];
    let mut add = |audience: String| {
        if !audiences.contains(&audience) {
            audiences.push(audience);
        }
    };
    add(format!("{}{CONNECT_PATH}", instance_url.as_str()));
    add(format!("https://{host}{path}{CONNECT_PATH}"));
    audiences
}

impl DeliveryError {
    /// Whether the answer is one that an instance gives which does not have the installation (any more): it
    /// dereferences nil (500), can't verify us (401), or is no GitLab now (404, 410). A gateway's or a
    /// maintenance page's answer says nothing of the kind.
    pub fn refused(&self) -> bool {
        matches!(
            self,
            Self::Refused { status, .. } if matches!(status.as_u16(), 401 | 404 | 410 | 500)
        )
    }

    /// Whether the instance may have heard of the call. `false` only if nothing can have left for it.
    pub fn may_have_arrived(&self) -> bool {
        matches!(
            self,
            Self::Refused { .. }
                | Self::Send(
                    SendError::TimedOut(_) | SendError::AnswerTooLarge(_) | SendError::Broken(_)
                )
        )
    }

    /// How long the instance, or what stands before it, asks us to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Stable name: in answers, logs and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Send(SendError::Dial(dial)) => match dial {
                DialError::Name { .. } => "dns_failed",
                DialError::BlockedAddress { .. } => "address_not_public",
                DialError::Tcp { .. } => "connection_failed",
                DialError::Tls { .. } => "tls_failed",
                DialError::TimedOut { .. } => "connection_timed_out",
            },
            Self::Send(SendError::TimedOut(_)) => "answer_timed_out",
            Self::Send(SendError::AnswerTooLarge(_) | SendError::Broken(_)) => "connection_broken",
            Self::Refused {
                status, key_fetch, ..
            } => match (status.as_u16(), key_fetch) {
                (401, KeyFetch::Nobody) => "unauthorized_key_not_fetched",
                (401, KeyFetch::By(_)) => "unauthorized_key_fetched",
                (401, KeyFetch::Unclear) => "unauthorized",
                (403, _) => "forbidden",
                (404, _) => "not_found",
                (422, _) => "unprocessable",
                (429, _) => "throttled",
                (300..=399, _) => "redirected",
                (500, _) => "instance_error",
                (502..=504, _) => "instance_unavailable",
                _ => "unexpected_status",
            },
            Self::Sign(_) => "signing_failed",
            Self::Policy(_) | Self::Address => "not_allowed",
        }
    }

    /// What an operator should do.
    pub fn hint(&self, proxy_url: &str) -> String {
        match self {
            Self::Send(error) => send_hint(error),
            Self::Refused {
                status,
                key_fetch,
                location,
                audiences,
                retry_after: _,
            } => match (status.as_u16(), key_fetch) {
                (401, KeyFetch::Nobody) => format!(
                    "set its Jira Connect Proxy URL to exactly {proxy_url} (Admin area > Settings > General > GitLab for Jira App), and check that the instance can reach that address"
                ),
                (401, KeyFetch::By(peer)) => format!(
                    "the key was fetched by {peer}; the instance must see one of {} as its own address, so check the Host header that its reverse proxy passes on (or set its Jira Connect Additional Audience URL), and compare the clocks",
                    audiences.join(", ")
                ),
                (401, KeyFetch::Unclear) => format!(
                    "other instances were told at the same time, so it is not clear whether this one fetched our public key; the next attempt tells. Its Jira Connect Proxy URL must be exactly {proxy_url}, and it must see one of {} as its own address",
                    audiences.join(", ")
                ),
                (403, _) => "something in front of the instance refuses us: allow this relay to POST to /-/jira_connect/events".to_owned(),
                (404, _) => "there is no GitLab 15.7 or newer at this address: check host and sub-path".to_owned(),
                (422, _) => format!(
                    "the instance refuses what it was told: usually {proxy_url} resolves to a private address there; allow it in the instance's outbound request settings, or give this relay a public address"
                ),
                (429, _) => "the instance throttles us: it is tried again later".to_owned(),
                (300..=399, _) => location.as_ref().map_or_else(
                    || "the instance redirects: link the address that it really has".to_owned(),
                    |location| format!("the instance redirects to {location}: link the address that it really has"),
                ),
                (500, _) => "the instance failed: look for the time of this attempt in its exceptions_json.log".to_owned(),
                (502..=504, _) => "the instance is down or starting: it is tried again".to_owned(),
                _ => "exactly 200 is success: look at what stands between this relay and the instance".to_owned(),
            },
            Self::Sign(_) => "this relay can't sign: its operator looks at its log and at /readyz".to_owned(),
            Self::Policy(_) | Self::Address => {
                "the operator can change [instances] in the configuration and send SIGHUP".to_owned()
            }
        }
    }

    /// The failure as it is kept with the link.
    pub fn problem(&self, proxy_url: &str, id: &str, at: Timestamp) -> DeliveryProblem {
        DeliveryProblem {
            code: self.code().to_owned(),
            message: self.to_string(),
            hint: self.hint(proxy_url),
            at,
            id: id.to_owned(),
        }
    }
}

fn send_hint(error: &SendError) -> String {
    match error {
        SendError::Dial(DialError::Name { .. }) => {
            "check the host name, and the name servers of this relay".to_owned()
        }
        SendError::Dial(DialError::BlockedAddress { .. }) => {
            "if it is right that the instance lives in a private network, the operator can set instances.dangerous_allow_private_addresses".to_owned()
        }
        SendError::Dial(DialError::Tcp { .. } | DialError::TimedOut { .. }) => {
            "check that the instance runs, and that firewalls let this relay reach it".to_owned()
        }
        SendError::Dial(DialError::Tls { fault, .. }) => match fault {
            TlsFault::UnknownAuthority => {
                "check that the instance sends its whole chain; the operator of the relay can add an authority of one's own with instances.extra_ca_file".to_owned()
            }
            TlsFault::Expired => "renew the instance's certificate".to_owned(),
            TlsFault::NotYetValid => "compare the clocks, and check the instance's certificate".to_owned(),
            TlsFault::WrongName => "link the name that stands in the instance's certificate".to_owned(),
            TlsFault::Other(_) => "check that the port speaks TLS 1.2 or newer".to_owned(),
        },
        SendError::TimedOut(_) => {
            "the instance took the call but did not answer: it may be overloaded, or wait for our public key from behind a firewall".to_owned()
        }
        SendError::AnswerTooLarge(_) | SendError::Broken(_) => {
            "check that a GitLab answers at this address, and what stands between".to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn audiences_cover_what_a_reverse_proxy_may_do() {
        let of = |url: &str| audiences(&InstanceUrl::parse(url).expect(url));
        assert_eq!(
            of("https://gitlab.example.com"),
            ["https://gitlab.example.com/-/jira_connect"]
        );
        assert_eq!(
            of("https://example.com:8443/gitlab"),
            [
                "https://example.com:8443/gitlab/-/jira_connect",
                "https://example.com/gitlab/-/jira_connect"
            ]
        );
        assert_eq!(
            of("http://127.0.0.1:3000"),
            [
                "https://127.0.0.1:3000/-/jira_connect",
                "http://127.0.0.1:3000/-/jira_connect",
                "https://127.0.0.1/-/jira_connect"
            ]
        );
    }

    #[test]
    fn the_401s_are_told_apart() {
        let refused = |key_fetch| DeliveryError::Refused {
            status: StatusCode::UNAUTHORIZED,
            key_fetch,
            location: None,
            audiences: vec!["https://gitlab.example.com/-/jira_connect".to_owned()],
            retry_after: None,
        };
        let (not, fetched) = (
            refused(KeyFetch::Nobody),
            refused(KeyFetch::By([127, 0, 0, 1].into())),
        );
        assert_ne!(not.code(), fetched.code());
        assert!(
            not.hint("https://r.example")
                .contains("exactly https://r.example ")
        );
        assert!(
            fetched
                .hint("https://r.example")
                .contains("https://gitlab.example.com/-/jira_connect")
        );
    }
}
