//! Whether an instance is ready to be linked: what GitLab's own page makes a person tick off, looked up instead.
//!
//! No check sends a secret or changes anything on the instance, so all can be made before there is a link.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    KeyFetches,
    deliver::{DeliveryError, audiences},
};
use crate::{
    client::{Client, Destination},
    domain::{CONNECT_PATH, InstancePolicy, InstanceUrl},
    jwt::{
        Signer,
        qsh::AgreedTarget,
        signer::{InstanceClaims, SignError},
    },
};

/// For an answer, once connected: a person waits.
const ANSWER_PATIENCE: Duration = Duration::from_secs(8);

const ANSWER_MAX_BYTES: usize = 64 * 1024;

/// Looks at instances; cheap to clone.
#[derive(Clone)]
pub struct Prober {
    /// Dials.
    pub client: Client,
    /// Who may be dialled.
    pub policy: Arc<ArcSwap<InstancePolicy>>,
    /// Signs.
    pub signer: Arc<Signer>,
    /// Knows who came for a key.
    pub key_fetches: Arc<KeyFetches>,
    /// Our origin: what a browser names in `Origin`.
    pub public_url: Arc<str>,
    /// What an instance should have as its Jira Connect Proxy URL.
    pub proxy_url: Arc<str>,
    /// Where an instance's OAuth application should lead back to.
    pub redirect_uri: Arc<str>,
    /// For a connection: a check that ended before would blame the wrong thing.
    pub connect_timeout: Duration,
}

/// What can be looked up, in the order in which it makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// Something answers at the address.
    Reachable,
    /// It is a GitLab with the Connect endpoints.
    Gitlab,
    /// It knows itself by the address that it is called by.
    OwnAddress,
    /// Its clock agrees with ours.
    Clock,
    /// Our address is its Jira Connect Proxy URL.
    ProxyUrl,
    /// It comes to us for public keys, and believes what they sign.
    PublicKey,
    /// It has an OAuth application, so that people can sign in to link groups.
    OauthApplication,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It can't be told.
    Unknown,
    /// The link will work, something else will not.
    Warn,
    /// The link will not work.
    Fail,
}

impl Verdict {
    /// The word in answers and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unknown => "unknown",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How it ended.
    pub verdict: Verdict,
    /// Stable name.
    pub code: &'static str,
    /// One sentence.
    pub message: String,
    /// What to do, if anything.
    pub hint: Option<String>,
}

impl Prober {
    /// One for a look at the connection too.
    #[must_use]
    pub fn afresh(&self) -> Self {
        Self {
            client: self.client.afresh(),
            ..self.clone()
        }
    }

    /// Makes one check.
    pub async fn look(&self, instance: &InstanceUrl, check: Check, now: Timestamp) -> Finding {
        if let Err(error) = self.policy.load().check(instance) {
            return self.no_answer(&DeliveryError::Policy(error));
        }
        let found = match check {
            Check::Reachable => self.reachable(instance).await,
            Check::Gitlab => self.gitlab(instance).await,
            Check::OwnAddress => self.own_address(instance).await,
            Check::Clock => self.clock(instance, now).await,
            Check::ProxyUrl => self.proxy_url(instance).await,
            Check::PublicKey => self.public_key(instance, now).await,
            Check::OauthApplication => self.oauth_application(instance).await,
        };
        found.unwrap_or_else(|error| self.no_answer(&error))
    }

    /// Any answer will do that is not a gateway's or a signpost.
    async fn reachable(&self, instance: &InstanceUrl) -> Result<Finding, DeliveryError> {
        let answer = self.application_id(instance).await?;
        Ok(match answer.status().as_u16() {
            300..=399 => {
                let location = answer.headers().get(header::LOCATION);
                let location = location.and_then(|location| location.to_str().ok());
                let location: String = location.unwrap_or("elsewhere").chars().take(255).collect();
                Finding::fail(
                    "redirected",
                    format!("the address redirects to {location}"),
                    "give the address that it really has",
                )
            }
            status @ 502..=504 => Finding::fail(
                "instance_unavailable",
                format!("what stands before the instance answers {status}"),
                "the instance is down or starting: try again later",
            ),
            _ => Finding::ok("reachable", "the relay reaches it"),
        })
    }

    /// Every GitLab describes itself as an app, to anybody (GitLab `app_descriptor_controller.rb`); no other program
    /// uses that key. The versions before signed installs can't work with us. Nothing that a GitLab tells a stranger
    /// tells 15.7 from the few versions between: there `public_key` fails.
    async fn gitlab(&self, instance: &InstanceUrl) -> Result<Finding, DeliveryError> {
        let descriptor = self.descriptor(instance).await?;
        let key = descriptor.get("key").and_then(Value::as_str);
        let is_gitlab = key.is_some_and(|key| key.starts_with("gitlab-jira-connect-"));
        let signed = descriptor.pointer("/apiMigrations/signed-install");
        Ok(if !is_gitlab {
            Finding::fail(
                "not_gitlab",
                "there is no GitLab at this address, or something before it hides /-/jira_connect",
                "check host and sub-path; a reverse proxy must let /-/jira_connect through",
            )
        } else if signed.and_then(Value::as_bool) == Some(true) {
            Finding::ok("gitlab", "it is a GitLab that takes signed installs")
        } else {
            Finding::fail(
                "gitlab_too_old",
                "it is a GitLab older than 15.7",
                "update it",
            )
        })
    }

    /// GitLab describes its own address by the host that it sees, and compares a token's audience with the same (GitLab
    /// `app_descriptor_controller.rb`, `events_controller.rb`).
    async fn own_address(&self, instance: &InstanceUrl) -> Result<Finding, DeliveryError> {
        let descriptor = self.descriptor(instance).await?;
        let Some(own) = descriptor.get("baseUrl").and_then(Value::as_str) else {
            return Ok(Finding::unknown(
                "own_address_unknown",
                "it does not say under which address it knows itself",
                "check host and sub-path",
            ));
        };
        let audiences = audiences(instance);
        Ok(if audiences.iter().any(|audience| audience == own) {
            Finding::ok("own_address", "it knows itself by this address")
        } else {
            let own: String = own.chars().filter(|c| !c.is_control()).take(255).collect();
            Finding::fail(
                "own_address_other",
                format!("it takes itself for {own}"),
                format!(
                    "its reverse proxy must pass on the Host header, so that it sees one of {}; or set that as its Jira Connect Additional Audience URL (17.7 and newer)",
                    audiences.join(", ")
                ),
            )
        })
    }

    /// Tokens live for minutes, and GitLab's libraries know no leeway.
    async fn clock(
        &self,
        instance: &InstanceUrl,
        now: Timestamp,
    ) -> Result<Finding, DeliveryError> {
        let answer = self.application_id(instance).await?;
        Ok(compare_clocks(answer.headers(), now, "its clock"))
    }

    /// GitLab lets exactly the origin in its setting read the application id from a browser (GitLab
    /// `config/application.rb`); before, it named the setting's text to everybody, and before that `*`.
    async fn proxy_url(&self, instance: &InstanceUrl) -> Result<Finding, DeliveryError> {
        let proxy_url = &self.proxy_url;
        let hint = format!(
            "in GitLab: Admin area > Settings > General > GitLab for Jira App; set Jira Connect Proxy URL to exactly {proxy_url}"
        );
        if *proxy_url != self.public_url {
            return Ok(Finding::unknown(
                "proxy_url_unknown",
                "it can't be seen from outside which Jira Connect Proxy URL it has",
                &hint,
            ));
        }
        let answer = self.application_id(instance).await?;
        let allowed = answer.headers().get(header::ACCESS_CONTROL_ALLOW_ORIGIN);
        Ok(match allowed.and_then(|origin| origin.to_str().ok()) {
            Some(origin) if *origin == **proxy_url => {
                Finding::ok("proxy_url", "its Jira Connect Proxy URL is this relay")
            }
            Some("*") => Finding::unknown(
                "proxy_url_unknown",
                "this old GitLab does not show which Jira Connect Proxy URL it has",
                &hint,
            ),
            Some(other) => {
                let other: String = other.chars().take(255).collect();
                Finding::fail(
                    "proxy_url_other",
                    format!("its Jira Connect Proxy URL is {other}"),
                    &hint,
                )
            }
            None => Finding::fail(
                "proxy_url_missing",
                "its Jira Connect Proxy URL is not this relay",
                &hint,
            ),
        })
    }

    /// Tells it of an install that it can verify but not store, because its secret is missing. The key has a name of
    /// its own for this, so whoever comes for it is this instance.
    async fn public_key(
        &self,
        instance: &InstanceUrl,
        now: Timestamp,
    ) -> Result<Finding, DeliveryError> {
        let Some(bait) = self.key_fetches.bait() else {
            return Ok(Finding::unknown(
                "too_many_checks",
                "too many instances are being checked at the moment",
                "try again in a minute",
            ));
        };
        let target = target(instance, "/events/installed")?;
        let audiences = audiences(instance);
        let claims = InstanceClaims::new(
            audiences.clone(),
            PROBE_CLIENT_KEY.to_owned(),
            target.qsh("POST").as_str().to_owned(),
            now,
        );
        let (signer, kid) = (Arc::clone(&self.signer), bait.kid().clone());
        // Two milliseconds of arithmetic are too many for a thread that serves requests.
        let token = tokio::task::spawn_blocking(move || signer.sign_as(&claims, kid))
            .await
            .map_err(|error| SignError::Failed(error.to_string()))??;
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("clientKey", PROBE_CLIENT_KEY)
            .append_pair("eventType", "installed")
            .append_pair("jwt", &token.text)
            .finish();
        let request = Request::post(format!("{}{}", instance.origin(), target.path_and_query()))
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Full::new(Bytes::from(form)))
            .map_err(|_| DeliveryError::Address)?;
        let status = self.send(request).await?.status();
        Ok(match (status, bait.bitten_by()) {
            // GitLab `events_controller.rb`: verified, but no valid record.
            (StatusCode::UNPROCESSABLE_ENTITY, Some(_)) => Finding::ok(
                "public_key",
                "it fetches public keys from this relay and believes what they sign",
            ),
            (StatusCode::OK, Some(_)) => Finding::unknown(
                "probe_taken",
                "it took an install without a secret, which no GitLab that is known here does",
                "tell the people who make this relay, with the version of the GitLab",
            ),
            (StatusCode::UNAUTHORIZED, Some(_)) => Finding::fail(
                "unauthorized_key_fetched",
                "it fetched the relay's public key, but does not believe what it signs",
                format!(
                    "GitLab must see one of {} as its own address: check the Host header that its reverse proxy passes on, or set its Jira Connect Additional Audience URL; and compare the clocks",
                    audiences.join(", ")
                ),
            ),
            (StatusCode::UNAUTHORIZED, None) => Finding::fail(
                "public_key_not_fetched",
                "it does not come to this relay for public keys",
                format!(
                    "its Jira Connect Proxy URL must be {}, and it must be able to reach that address",
                    self.proxy_url
                ),
            ),
            (status, _) => Finding::fail(
                "events_refused",
                format!("it answers {status} where GitLab takes events from Jira"),
                "let the relay POST to /-/jira_connect/events, and check host and sub-path",
            ),
        })
    }

    async fn oauth_application(&self, instance: &InstanceUrl) -> Result<Finding, DeliveryError> {
        let answer = self.application_id(instance).await?;
        let found: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
        let id = found.get("application_id").and_then(Value::as_str);
        if answer.status() == StatusCode::OK && id.is_some_and(|id| !id.trim().is_empty()) {
            return Ok(Finding::ok(
                "oauth_application",
                "it has an OAuth application to sign in with",
            ));
        }
        Ok(Finding::warn(
            "oauth_application_missing",
            "it has no OAuth application, so nobody can sign in to link groups",
            format!(
                "in GitLab: Admin area > Applications; redirect URI {}, scope api, neither trusted nor confidential; then enter its id under Settings > General > GitLab for Jira App",
                self.redirect_uri
            ),
        ))
    }

    /// What a GitLab says of itself; nothing, if it is none.
    async fn descriptor(&self, instance: &InstanceUrl) -> Result<Value, DeliveryError> {
        let answer = self.get(instance, "/app_descriptor").await?;
        Ok(match answer.status() {
            StatusCode::OK => serde_json::from_slice(answer.body()).unwrap_or_default(),
            _ => Value::Null,
        })
    }

    async fn application_id(
        &self,
        instance: &InstanceUrl,
    ) -> Result<Response<Bytes>, DeliveryError> {
        self.get(instance, "/oauth_application_id").await
    }

    async fn get(
        &self,
        instance: &InstanceUrl,
        path: &str,
    ) -> Result<Response<Bytes>, DeliveryError> {
        let target = target(instance, path)?;
        let request = Request::builder()
            .method(Method::GET)
            .uri(format!("{}{}", instance.origin(), target.path_and_query()))
            .header(header::ACCEPT, "application/json")
            .header(header::ORIGIN, &*self.public_url)
            .body(Full::default())
            .map_err(|_| DeliveryError::Address)?;
        self.send(request).await
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, DeliveryError> {
        self.client
            .send(
                Destination::Named,
                request,
                self.connect_timeout + ANSWER_PATIENCE,
                ANSWER_MAX_BYTES,
            )
            .await
            .map_err(DeliveryError::Send)
    }

    fn no_answer(&self, error: &DeliveryError) -> Finding {
        Finding::fail(error.code(), error.to_string(), error.hint(&self.proxy_url))
    }
}

/// No site has it: nothing can come of a probe.
const PROBE_CLIENT_KEY: &str = "jira-connect-proxy-probe";

fn target(instance: &InstanceUrl, path: &str) -> Result<AgreedTarget, DeliveryError> {
    AgreedTarget::new(&format!("{}{CONNECT_PATH}", instance.path()), path, &[])
        .map_err(|_| DeliveryError::Address)
}

/// What a peer's `Date` (RFC 9110 section 6.6.1) says of the difference between its clock and ours.
pub fn compare_clocks(headers: &HeaderMap, now: Timestamp, whose: &str) -> Finding {
    let date = headers
        .get(header::DATE)
        .and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok())
        .and_then(|date| Timestamp::try_from(date).ok());
    let Some(date) = date else {
        return Finding::unknown(
            "clock_unknown",
            "it does not tell its time",
            "compare the clocks yourself",
        );
    };
    let ahead = date.duration_since(now).as_secs();
    let message = match ahead {
        -2..=2 => format!("{whose} agrees with the relay's"),
        _ if ahead > 0 => format!("{whose} is {ahead} s ahead of the relay's"),
        _ => format!("{whose} is {} s behind the relay's", -ahead),
    };
    let hint = "let both be set by NTP: tokens live for minutes";
    match ahead.abs() {
        0..=10 => Finding::ok("clock", message),
        11..=59 => Finding::warn("clock_differs", message, hint),
        _ => Finding::fail("clock_differs", message, hint),
    }
}

impl Finding {
    /// All is well.
    pub fn ok(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Ok,
            code,
            message: message.into(),
            hint: None,
        }
    }

    /// It must be mended.
    pub fn fail(code: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Fail,
            code,
            message: message.into(),
            hint: Some(hint.into()),
        }
    }

    /// It works, but not all of it.
    pub fn warn(code: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Warn,
            ..Self::fail(code, message, hint)
        }
    }

    /// It can't be told.
    pub fn unknown(code: &'static str, message: &str, hint: &str) -> Self {
        Self {
            verdict: Verdict::Unknown,
            code,
            message: message.to_owned(),
            hint: Some(hint.to_owned()),
        }
    }
}
