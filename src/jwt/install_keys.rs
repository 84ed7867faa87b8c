//! Atlassian's public keys, by `kid`.
//!
//! A key never changes under its kid, rotation makes a new kid. So keys are kept long; kids that Atlassian does
//! not know are remembered for a while; many callers wait for one fetch; and while the server is down the last
//! good answer serves. All of it is bounded, because strangers choose the kids.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use http::StatusCode;
use jiff::Timestamp;
use jsonwebtoken::DecodingKey;
use moka::future::Cache;
use tokio::{sync::mpsc, time::Instant};

use super::{
    VerifyError,
    key_server::{self, FETCH_TIMEOUT},
};
use crate::{
    client::Client,
    domain::{InstallKeyRecord, KeyId},
    metrics::Metrics,
};

/// A PEM of 4096 bits has 800 bytes.
const ANSWER_MAX_BYTES: usize = 16 * 1024;

/// A known key is asked for again after this.
const FRESH_FOR: Duration = Duration::from_secs(24 * 3600);
/// An unknown kid is not asked for again before this.
const UNKNOWN_FOR: Duration = Duration::from_secs(300);
/// A server that failed is not asked for the same kid again before this.
const FAILED_FOR: Duration = Duration::from_secs(5);

const ANSWERS_MAX: u64 = 10_000;
const GOOD_MAX: u64 = 200;

/// New kids asked for per second and purpose: enough for every honest site, too few to use us against the key
/// server.
const FETCHES_PER_SECOND: NonZeroU32 = NonZeroU32::new(20).expect("not zero");
const FETCHES_BURST: NonZeroU32 = NonZeroU32::new(100).expect("not zero");

/// How soon a throttled call of Jira's tries again.
const THROTTLED_PAUSE: Duration = Duration::from_millis(100);

const THROTTLED: &str = "too many unknown key ids are asked for at once";

/// Looks up Atlassian's keys; cheap to clone.
#[derive(Clone)]
pub struct InstallKeys {
    server_url: Arc<str>,
    client: Client,
    answers: Cache<KeyId, Answer>,
    /// Never expire; serve while the server is down.
    good: Cache<KeyId, Arc<InstallKeyRecord>>,
    lifecycle_fetches: Arc<DefaultDirectRateLimiter>,
    passed_on_fetches: Arc<DefaultDirectRateLimiter>,
    /// Whoever keeps keys over a restart listens here.
    learned: mpsc::Sender<KeyNews>,
    metrics: Arc<Metrics>,
}

/// What a key is wanted for. Each has its own budget of fetches, so that strangers who ask for public keys
/// can't keep Jira's own calls from being verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To verify a lifecycle call.
    Lifecycle,
    /// To hand it to whoever asked.
    PassOn,
}

/// Something worth keeping over a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyNews {
    /// A key was fetched.
    Learned(Arc<InstallKeyRecord>),
    /// A key that was known is known no more.
    Gone(KeyId),
}

/// What the server said last, and until when that holds.
#[derive(Clone)]
struct Answer {
    what: Found,
    until: Instant,
}

#[derive(Clone)]
enum Found {
    Key(Arc<InstallKeyRecord>),
    Nothing,
    Failure(Arc<str>),
    /// Not asked for: too much is asked for already.
    Throttled,
}

impl InstallKeys {
    /// `known` are keys from an earlier run: they serve if the server can't be reached. The receiver gets what
    /// should be kept; it may be dropped.
    pub async fn new(
        server_url: &str,
        client: Client,
        known: Vec<Arc<InstallKeyRecord>>,
        metrics: Arc<Metrics>,
    ) -> (Self, mpsc::Receiver<KeyNews>) {
        let (learned, news) = mpsc::channel(64);
        let quota = Quota::per_second(FETCHES_PER_SECOND).allow_burst(FETCHES_BURST);
        let keys = Self {
            server_url: server_url.into(),
            client,
            answers: Cache::new(ANSWERS_MAX),
            good: Cache::new(GOOD_MAX),
            lifecycle_fetches: Arc::new(RateLimiter::direct(quota)),
            passed_on_fetches: Arc::new(RateLimiter::direct(quota)),
            learned,
            metrics,
        };
        for key in known {
            keys.good.insert(key.kid.clone(), key).await;
        }
        (keys, news)
    }

    /// The key of that name.
    ///
    /// # Errors
    /// [`VerifyError::UnknownKey`] if Atlassian has none, [`VerifyError::KeysUnavailable`] if it can't be asked
    /// and never gave it to us.
    pub async fn find(
        &self,
        kid: &KeyId,
        purpose: Purpose,
        now: Timestamp,
    ) -> Result<Arc<InstallKeyRecord>, VerifyError> {
        let deadline = Instant::now() + FETCH_TIMEOUT;
        loop {
            let answer = self
                .answers
                .entry_by_ref(kid)
                .or_insert_with_if(self.ask(kid, purpose, now), |answer| {
                    answer.until <= Instant::now()
                })
                .await
                .into_value();
            match answer.what {
                Found::Key(key) => return Ok(key),
                Found::Nothing => return Err(VerifyError::UnknownKey(kid.clone())),
                // Jira's call waits for its turn among the strangers'.
                Found::Throttled if purpose == Purpose::Lifecycle && Instant::now() < deadline => {
                    tokio::time::sleep(THROTTLED_PAUSE).await;
                }
                Found::Throttled => return Err(unavailable(kid, THROTTLED)),
                Found::Failure(cause) => return Err(unavailable(kid, &cause)),
            }
        }
    }

    async fn ask(&self, kid: &KeyId, purpose: Purpose, now: Timestamp) -> Answer {
        let known = self.good.get(kid).await;
        if self.budget(purpose).check().is_err() {
            self.count("throttled");
            // Over at once: what one purpose has used up is no answer for the other.
            return Answer {
                what: known.map_or(Found::Throttled, Found::Key),
                until: Instant::now(),
            };
        }
        let (what, outcome, holds) = match self.fetch(kid, known.is_some()).await {
            Ok(Some(public_pem)) => {
                let key = Arc::new(InstallKeyRecord {
                    kid: kid.clone(),
                    public_pem,
                    fetched_at: now,
                });
                self.good.insert(kid.clone(), Arc::clone(&key)).await;
                self.tell(KeyNews::Learned(Arc::clone(&key)));
                (Found::Key(key), "found", FRESH_FOR)
            }
            Ok(None) => {
                if self.good.remove(kid).await.is_some() {
                    self.tell(KeyNews::Gone(kid.clone()));
                }
                (Found::Nothing, "unknown", UNKNOWN_FOR)
            }
            Err(cause) => {
                tracing::warn!(%kid, url = %self.server_url, "the key server can't be asked: {cause}");
                let what = known.map_or_else(|| Found::Failure(cause.into()), Found::Key);
                (what, "failed", FAILED_FOR)
            }
        };
        self.count(outcome);
        Answer {
            what,
            until: Instant::now() + holds,
        }
    }

    /// The PEM, or `None` if the server says that there is no such key.
    async fn fetch(&self, kid: &KeyId, known: bool) -> Result<Option<String>, String> {
        let url = format!("{}/{kid}", self.server_url);
        let answer = key_server::ask(&self.client, &url, ANSWER_MAX_BYTES).await?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND | StatusCode::GONE => return Ok(None),
            // An object store behind a CDN says 403 where it has nothing, but so does what filters our traffic:
            // no reason to throw away a key that we had from it.
            StatusCode::FORBIDDEN if !known => return Ok(None),
            status => return Err(format!("it answered {status}")),
        }
        let pem = std::str::from_utf8(answer.body())
            .map_err(|_| "its answer is no text".to_owned())?
            .trim();
        DecodingKey::from_rsa_pem(pem.as_bytes())
            .map_err(|_| "its answer is no RSA public key in PEM".to_owned())?;
        Ok(Some(format!("{pem}\n")))
    }

    fn budget(&self, purpose: Purpose) -> &DefaultDirectRateLimiter {
        match purpose {
            Purpose::Lifecycle => &self.lifecycle_fetches,
            Purpose::PassOn => &self.passed_on_fetches,
        }
    }

    fn count(&self, outcome: &str) {
        self.metrics
            .install_key_fetches
            .with_label_values(&[outcome])
            .inc();
    }

    /// Keeping keys is a convenience; nobody waits for it.
    fn tell(&self, news: KeyNews) {
        let _ = self.learned.try_send(news);
    }
}

fn unavailable(kid: &KeyId, cause: &str) -> VerifyError {
    VerifyError::KeysUnavailable {
        kid: kid.clone(),
        cause: cause.to_owned(),
    }
}
