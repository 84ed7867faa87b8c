//! Tokens for OAuth 2.0 client credentials: fetched ahead of their end, one fetch in flight for each site.
//!
//! A token lives for about a quarter of an hour and there is no refresh token (Atlassian's "Integrate Jira Software
//! Cloud with on-premises tools"; RFC 6749 section 4.4). Tokens are kept in memory only: a start fetches new ones.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::Full;
use jiff::{SignedDuration, Timestamp};
use quick_cache::sync::Cache;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::rate_limit::retry_after as retry_after_of;
use crate::{
    client::{Client, Destination, SendError},
    domain::{ClientKey, Credential, JiraApiUrl, upstream::Oauth},
    metrics::Metrics,
};

/// Sites whose tokens are kept.
const SITES_MAX: usize = 10_000;

/// So long before its end a token is replaced, if another is to be had; a call under way still has it.
const AHEAD: SignedDuration = SignedDuration::from_secs(120);

/// Where Atlassian does not say how long a token lives.
const USUAL_LIFE_SECS: u32 = 900;
const LONGEST_LIFE_SECS: u32 = 24 * 3600;

/// One that failed is not asked for again at once, however many want it.
const AFTER_FAILURE: SignedDuration = SignedDuration::from_secs(2);

/// However long the endpoint wants to be left alone: nothing reaches Jira meanwhile, unless there is a token yet.
const AFTER_FAILURE_MAX: SignedDuration = SignedDuration::from_secs(60);

const ANSWER_MAX_BYTES: usize = 64 * 1024;

/// Gets tokens.
pub struct Tokens {
    client: Client,
    url: String,
    timeout: Duration,
    sites: Cache<ClientKey, Arc<Site>>,
    metrics: Arc<Metrics>,
}

/// The token of one site.
struct Site {
    /// What it was got with; other credentials make another.
    oauth: Oauth,
    token: ArcSwapOption<Token>,
    /// One fetch at a time; holds how the last one failed, and when it did.
    fetching: tokio::sync::Mutex<Option<(Timestamp, TokenError)>>,
    /// The same for whoever only looks, from the first failure on.
    trouble: ArcSwapOption<TokenTrouble>,
}

/// A site for which there is no token.
#[derive(Clone, Debug)]
pub struct TokenTrouble {
    /// Since when.
    pub since: Timestamp,
    /// Why, the last time.
    pub error: TokenError,
}

/// A token, ready to be sent.
pub(super) struct Token {
    pub(super) authorization: HeaderValue,
    renew_at: Timestamp,
    expires_at: Timestamp,
}

/// Why there is no token.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TokenError {
    /// The credentials are wrong, or were revoked.
    #[error("Atlassian does not take the client id and secret ({status}: {told})")]
    Refused {
        /// Its status.
        status: StatusCode,
        /// In its words.
        told: String,
    },
    /// Not now.
    #[error("Atlassian gives no token now: it answered {status}")]
    NotNow {
        /// Its status.
        status: StatusCode,
        /// When to ask again.
        retry_after: Option<Duration>,
    },
    /// No answer, or none that makes sense.
    #[error("Atlassian's token endpoint did not answer: {0}")]
    Silent(String),
}

/// RFC 6749 section 4.4.2, in Atlassian's JSON.
#[derive(Serialize)]
struct Question<'a> {
    audience: &'a str,
    grant_type: &'a str,
    client_id: &'a str,
    client_secret: &'a str,
}

/// RFC 6749 section 5.2.
#[derive(Deserialize)]
struct Refusal {
    error: String,
    error_description: Option<String>,
}

#[derive(Deserialize)]
struct Granted {
    access_token: Zeroizing<String>,
    expires_in: Option<u32>,
}

impl Tokens {
    /// Asks at this gateway.
    pub fn new(
        client: Client,
        api_url: &JiraApiUrl,
        timeout: Duration,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            client,
            url: format!("{api_url}/oauth/token"),
            timeout,
            sites: Cache::new(SITES_MAX),
            metrics,
        }
    }

    /// A token that is good for a while yet.
    pub(super) async fn get(
        &self,
        client_key: &ClientKey,
        oauth: &Oauth,
        now: Timestamp,
    ) -> Result<Arc<Token>, TokenError> {
        let site = self.site(client_key, oauth);
        let fresh = || site.token.load_full().filter(|token| now < token.renew_at);
        if let Some(token) = fresh() {
            return Ok(token);
        }
        let known = site.token.load_full();
        let known = known.filter(|token| now < token.expires_at);
        let mut failed = match &known {
            // Somebody is at it already, and this one still serves.
            Some(token) => match site.fetching.try_lock() {
                Ok(failed) => failed,
                Err(_) => return Ok(Arc::clone(token)),
            },
            // Who asks before them may hang up, and then so may the next one.
            None => tokio::time::timeout(self.timeout, site.fetching.lock())
                .await
                .map_err(|_| TokenError::Silent(SendError::TimedOut(self.timeout).to_string()))?,
        };
        if let Some(token) = fresh() {
            return Ok(token);
        }
        if let Some((at, error)) = failed.as_ref()
            && now < at.saturating_add(error.pause()).unwrap_or(now)
        {
            return known.ok_or_else(|| error.clone());
        }
        let started = Instant::now();
        match self.fetch(oauth, now).await {
            Ok(token) => {
                let token = Arc::new(token);
                site.token.store(Some(Arc::clone(&token)));
                site.trouble.store(None);
                *failed = None;
                Ok(token)
            }
            Err(error) => {
                // From its end on: whoever waited meanwhile would wait as long once more, one behind the other.
                let lasted = SignedDuration::try_from(started.elapsed()).unwrap_or_default();
                *failed = Some((now.saturating_add(lasted).unwrap_or(now), error.clone()));
                if known.is_none() {
                    site.note_trouble(&error, now);
                }
                known.ok_or(error)
            }
        }
    }

    /// Jira does not take this token, whatever its time says.
    pub(super) fn drop_token(&self, client_key: &ClientKey, refused: &Arc<Token>) {
        if let Some(site) = self.sites.get(client_key) {
            let current = site.token.load_full();
            if current.is_some_and(|current| Arc::ptr_eq(&current, refused)) {
                site.token.store(None);
            }
        }
    }

    /// Why there is no token, if these credentials got none when one was last wanted.
    pub(super) fn trouble(
        &self,
        client_key: &ClientKey,
        oauth: &Oauth,
    ) -> Option<Arc<TokenTrouble>> {
        let site = self.sites.get(client_key)?;
        site.trouble.load_full().filter(|_| site.oauth == *oauth)
    }

    fn site(&self, client_key: &ClientKey, oauth: &Oauth) -> Arc<Site> {
        if let Some(site) = self
            .sites
            .get(client_key)
            .filter(|site| site.oauth == *oauth)
        {
            return site;
        }
        let site = Arc::new(Site {
            oauth: oauth.clone(),
            token: ArcSwapOption::empty(),
            fetching: tokio::sync::Mutex::default(),
            trouble: ArcSwapOption::empty(),
        });
        self.sites.insert(client_key.clone(), Arc::clone(&site));
        site
    }

    /// Asks for a token, whatever is known.
    pub(super) async fn fetch(&self, oauth: &Oauth, now: Timestamp) -> Result<Token, TokenError> {
        let fetched = self.ask(oauth, now).await;
        let outcome = match &fetched {
            Ok(_) => "ok",
            Err(TokenError::Refused { .. }) => "refused",
            Err(TokenError::NotNow { .. }) => "not_now",
            Err(TokenError::Silent(_)) => "silent",
        };
        self.metrics
            .oauth_tokens
            .with_label_values(&[outcome])
            .inc();
        fetched
    }

    async fn ask(&self, oauth: &Oauth, now: Timestamp) -> Result<Token, TokenError> {
        let silent = |error: &dyn std::fmt::Display| TokenError::Silent(error.to_string());
        let question = Question::about(oauth);
        let question = question.to_json().map_err(|error| silent(&error))?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(&self.url)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json")
            // hyper copies it into its buffer of what is to be written; that copy is not ours to wipe.
            .body(Full::new(Bytes::from_owner(question)))
            .map_err(|error| silent(&error))?;
        let answer = self
            .client
            .send(
                Destination::Configured,
                request,
                self.timeout,
                ANSWER_MAX_BYTES,
            )
            .await
            .map_err(|error: SendError| silent(&error))?;
        let status = answer.status();
        match status.as_u16() {
            200 => {}
            // RFC 6749 section 5.2: 401, or 400 with `invalid_client`; Atlassian also answers 403.
            400 | 401 | 403 => {
                let told = Refusal::told(answer.body(), &oauth.client_secret);
                return Err(TokenError::Refused { status, told });
            }
            _ => {
                let retry_after = answer.headers().get(header::RETRY_AFTER);
                let retry_after =
                    retry_after.and_then(|text| retry_after_of(text.to_str().ok()?, now));
                return Err(TokenError::NotNow {
                    status,
                    retry_after,
                });
            }
        }
        let granted: Granted = serde_json::from_slice(answer.body())
            .map_err(|_| silent(&"what it answered holds no token"))?;
        let token = Credential::parse(&granted.access_token).map_err(|error| silent(&error))?;
        let life = granted.expires_in.unwrap_or(USUAL_LIFE_SECS);
        let life = SignedDuration::from_secs(life.min(LONGEST_LIFE_SECS).into());
        Ok(Token {
            authorization: bearer(&token).ok_or_else(|| silent(&"its token fits no header"))?,
            renew_at: now
                .saturating_add(life - AHEAD.min(life / 4))
                .unwrap_or(now),
            // Counted from before the question, so that it ends here first.
            expires_at: now.saturating_add(life).unwrap_or(now),
        })
    }
}

impl<'a> Question<'a> {
    fn about(oauth: &'a Oauth) -> Self {
        Self {
            audience: "api.atlassian.com",
            grant_type: "client_credentials",
            client_id: &oauth.client_id,
            client_secret: oauth.client_secret.expose(),
        }
    }

    /// Wiped on drop. It gets its room at once: a buffer that grows leaves what it held behind.
    fn to_json(&self) -> serde_json::Result<Zeroizing<Vec<u8>>> {
        // JSON writes a byte as six at the most.
        let room = 256 + 6 * (self.client_id.len() + self.client_secret.len());
        let mut json = Zeroizing::new(Vec::with_capacity(room));
        serde_json::to_writer(&mut *json, self)?;
        Ok(json)
    }
}

impl Site {
    fn note_trouble(&self, error: &TokenError, now: Timestamp) {
        let since = self.trouble.load().as_ref().map_or(now, |last| last.since);
        let error = error.clone();
        self.trouble
            .store(Some(Arc::new(TokenTrouble { since, error })));
    }
}

impl Refusal {
    /// In one line. Whoever answers has seen the secret, and may say it again.
    fn told(body: &[u8], client_secret: &Credential) -> String {
        let told = match serde_json::from_slice::<Self>(body) {
            Ok(Self {
                error,
                error_description: Some(description),
            }) => format!("{error}, {description}"),
            Ok(refusal) => refusal.error,
            Err(_) => "without a reason".to_owned(),
        };
        let told = told.replace(client_secret.expose(), "***");
        told.chars().take(200).collect()
    }
}

impl TokenError {
    /// From the failure to the next question.
    fn pause(&self) -> SignedDuration {
        let wanted = match self {
            Self::NotNow { retry_after, .. } => *retry_after,
            Self::Refused { .. } | Self::Silent(_) => None,
        };
        let wanted = wanted.and_then(|wanted| SignedDuration::try_from(wanted).ok());
        wanted.map_or(AFTER_FAILURE, |wanted| {
            wanted.clamp(AFTER_FAILURE, AFTER_FAILURE_MAX)
        })
    }

    /// Whether somebody has to do something.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }

    /// Stable name.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused { .. } => "credentials_refused",
            Self::NotNow { .. } | Self::Silent(_) => "token_unavailable",
        }
    }

    /// What to do.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Refused { .. } => {
                "check client id and secret; if a Jira admin has removed them (Jira: Settings > Apps > OAuth credentials), have new ones made and add them: `jira-connect-proxy installations add-oauth`"
            }
            Self::NotNow { .. } => "wait: the relay asks again by itself",
            Self::Silent(_) => {
                "the relay must be able to call jira.api_url; it asks again by itself"
            }
        }
    }
}

/// How a token is sent (RFC 6750 section 2.1).
pub(super) fn bearer(token: &Credential) -> Option<HeaderValue> {
    let text = Zeroizing::new(format!("Bearer {}", token.expose()));
    let mut value = HeaderValue::from_str(&text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests;
