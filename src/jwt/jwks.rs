//! A set of public keys at one configured address (RFC 7517), as Forge's for its invocation tokens.
//!
//! The whole set comes with one answer, so nothing is remembered of a `kid` that is not in it: what limits the fetches
//! is when the last one was. One is in flight at a time, the set is kept as long as its server says (within bounds), and
//! while that fails the last good one serves. No token has a say in where keys come from: `jku`, `x5u` and `jwk` of a
//! header are not read.

use std::{collections::HashMap, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, StatusCode, header};
use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::{
    DecodingKey,
    jwk::{AlgorithmParameters, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse},
};
use serde::Deserialize;
use tokio::sync::{Mutex, MutexGuard};

use super::{VerifyError, key_server};
use crate::{client::Client, domain::KeyId, metrics::Metrics};

/// A key of 4096 bits has 800 bytes in a set; with a chain of certificates, some thousand.
const ANSWER_MAX_BYTES: usize = 128 * 1024;

/// More than a rotation needs by far.
const KEYS_MAX: usize = 64;

/// Smaller keys are weak, larger ones cost us much for nothing (NIST SP 800-131A; ring takes 2048 to 8192).
const MODULUS_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

/// How long a set holds whose server says nothing of that, and the bounds of what it may say (RFC 9111 section 5.2.2.1).
const FRESH_FOR: SignedDuration = SignedDuration::from_hours(1);
const FRESH_AT_LEAST: SignedDuration = SignedDuration::from_mins(1);
const FRESH_AT_MOST: SignedDuration = SignedDuration::from_hours(24);

/// A set that is younger is not asked for again because of a `kid` that is not in it.
const ASK_AGAIN_AFTER: SignedDuration = SignedDuration::from_secs(10);
/// A server that failed is not asked again before this.
const FAILED_FOR: SignedDuration = SignedDuration::from_secs(5);
/// After a question whose asker went away before the answer, so that nobody makes us ask all the time by doing so.
const ABANDONED_PAUSE: Duration = Duration::from_millis(250);

/// Keys by `kid`; cheap to clone.
#[derive(Clone)]
pub struct KeySet(Arc<Shared>);

struct Shared {
    url: String,
    client: Client,
    known: ArcSwapOption<Known>,
    /// Whoever holds it may ask the server. Async, because that is held over the question.
    asked: Mutex<Asked>,
    metrics: Arc<Metrics>,
}

/// The last good set.
struct Known {
    keys: HashMap<KeyId, Arc<DecodingKey>>,
    fetched_at: Timestamp,
    fresh_until: Timestamp,
}

/// What became of the last question.
#[derive(Default)]
enum Asked {
    #[default]
    Never,
    /// Its asker went away.
    Begun,
    Well {
        at: Timestamp,
    },
    Failed {
        at: Timestamp,
        cause: String,
    },
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<serde_json::Value>,
}

impl KeySet {
    /// Nothing is fetched before a key is wanted.
    pub fn new(url: &str, client: Client, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Shared {
            url: url.to_owned(),
            client,
            known: ArcSwapOption::empty(),
            asked: Mutex::default(),
            metrics,
        }))
    }

    /// The key of that name.
    ///
    /// # Errors
    /// [`VerifyError::UnknownKey`] if the set has none, [`VerifyError::KeySetUnavailable`] if it can't be had and the
    /// last good one, if there is one, has none either.
    pub async fn find(&self, kid: &KeyId, now: Timestamp) -> Result<Arc<DecodingKey>, VerifyError> {
        let known = self.0.known.load_full();
        let failed = match known.as_ref().and_then(|known| known.key(kid)) {
            Some(key) if known.is_some_and(|known| known.is_fresh(now)) => return Ok(key),
            Some(key) => match self.0.asked.try_lock() {
                Ok(asked) => self.refresh(asked, now).await,
                // One caller asks for a newer set; the others go on with what we have.
                Err(_) => return Ok(key),
            },
            None => self.refresh(self.0.asked.lock().await, now).await,
        };
        let known = self.0.known.load_full();
        match (known.and_then(|known| known.key(kid)), failed) {
            (Some(key), _) => Ok(key),
            (None, None) => Err(VerifyError::UnknownKey(kid.clone())),
            (None, Some(cause)) => Err(VerifyError::KeySetUnavailable {
                kid: kid.clone(),
                cause,
            }),
        }
    }

    /// How many keys the server has for us, without changing anything here.
    ///
    /// # Errors
    /// Why there are none to be had.
    pub async fn look(&self) -> Result<usize, String> {
        self.fetch().await.map(|(keys, _)| keys.len())
    }

    /// Asks the server, unless it was asked just now. What is wrong with the server's last answer, if anything.
    async fn refresh(&self, mut asked: MutexGuard<'_, Asked>, now: Timestamp) -> Option<String> {
        match &*asked {
            Asked::Well { at } if is_within(*at, now, ASK_AGAIN_AFTER) => return None,
            Asked::Failed { at, cause } if is_within(*at, now, FAILED_FOR) => {
                return Some(cause.clone());
            }
            Asked::Begun => tokio::time::sleep(ABANDONED_PAUSE).await,
            Asked::Never | Asked::Well { .. } | Asked::Failed { .. } => {}
        }
        *asked = Asked::Begun;
        let Shared { url, metrics, .. } = &*self.0;
        let fetches = &metrics.forge_key_set_fetches;
        match self.fetch().await {
            Ok((keys, fresh_for)) => {
                fetches.with_label_values(&["fetched"]).inc();
                metrics.forge_key_set_fetched_at.set(now.as_second());
                self.0.known.store(Some(Arc::new(Known {
                    keys,
                    fetched_at: now,
                    fresh_until: now.saturating_add(fresh_for).unwrap_or(now),
                })));
                *asked = Asked::Well { at: now };
                None
            }
            Err(cause) => {
                fetches.with_label_values(&["failed"]).inc();
                tracing::warn!(%url, "the key set can't be had: {cause}");
                *asked = Asked::Failed {
                    at: now,
                    cause: cause.clone(),
                };
                Some(cause)
            }
        }
    }

    async fn fetch(&self) -> Result<(HashMap<KeyId, Arc<DecodingKey>>, SignedDuration), String> {
        let answer = key_server::ask(&self.0.client, &self.0.url, ANSWER_MAX_BYTES).await?;
        match answer.status() {
            StatusCode::OK => Ok((read(answer.body())?, fresh_for(answer.headers()))),
            status => Err(format!("it answered {status}")),
        }
    }
}

impl Known {
    fn key(&self, kid: &KeyId) -> Option<Arc<DecodingKey>> {
        self.keys.get(kid).cloned()
    }

    fn is_fresh(&self, now: Timestamp) -> bool {
        // A clock that was set back makes nothing fresh.
        self.fetched_at <= now && now < self.fresh_until
    }
}

/// Reads a set. Keys that are not for us are left out: others may join them there one day.
fn read(body: &[u8]) -> Result<HashMap<KeyId, Arc<DecodingKey>>, String> {
    let document: Document =
        serde_json::from_slice(body).map_err(|_| "its answer is no key set".to_owned())?;
    if document.keys.len() > KEYS_MAX {
        return Err(format!("its answer has more than {KEYS_MAX} keys"));
    }
    let mut keys = HashMap::new();
    for (kid, key) in document.keys.into_iter().filter_map(usable) {
        // Two keys of one name: nobody could say which is meant, so the first stays.
        keys.entry(kid).or_insert_with(|| Arc::new(key));
    }
    if keys.is_empty() {
        return Err("its answer has no RSA key for RS256".to_owned());
    }
    Ok(keys)
}

/// A key that RS256 signatures can be checked with, and its name.
fn usable(key: serde_json::Value) -> Option<(KeyId, DecodingKey)> {
    let key: Jwk = serde_json::from_value(key).ok()?;
    let kid = KeyId::parse(key.common.key_id.as_deref()?).ok()?;
    let common = &key.common;
    let meant = matches!(common.public_key_use, None | Some(PublicKeyUse::Signature))
        && matches!(common.key_algorithm, None | Some(KeyAlgorithm::RS256))
        && common
            .key_operations
            .as_ref()
            .is_none_or(|operations| operations.contains(&KeyOperations::Verify));
    let AlgorithmParameters::RSA(rsa) = &key.algorithm else {
        return None;
    };
    let modulus = number(&rsa.n)?;
    let exponent = number(&rsa.e)?;
    // FIPS 186-5 section A.1.1: odd, above 2^16. ring's own limit is 2^33.
    let exponent_is_sane = matches!(exponent.len(), 3..=4) && exponent.last()? & 1 == 1;
    let sane = MODULUS_BITS.contains(&bits(&modulus)) && exponent_is_sane;
    (meant && sane).then(|| {
        (
            kid,
            DecodingKey::from_rsa_raw_components(&modulus, &exponent),
        )
    })
}

/// A number in a key (RFC 7518 section 6.3.1), without leading zeros.
fn number(text: &str) -> Option<Vec<u8>> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    Some(bytes.into_iter().skip_while(|byte| *byte == 0).collect())
}

fn bits(number: &[u8]) -> usize {
    number
        .first()
        .map_or(0, |first| number.len() * 8 - first.leading_zeros() as usize)
}

/// For how long an answer holds: `max-age`, less what it spent in caches on its way (RFC 9111 section 4.2).
fn fresh_for(headers: &HeaderMap) -> SignedDuration {
    let seconds = |text: &str| text.trim().parse::<u32>().ok();
    let cache_control = headers.get_all(header::CACHE_CONTROL).iter();
    let directives: Vec<String> = cache_control
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|directive| directive.trim().to_ascii_lowercase())
        .collect();
    let is = |name: &&str| directives.iter().any(|directive| directive == name);
    let max_age = directives
        .iter()
        .filter_map(|directive| directive.strip_prefix("max-age="))
        .find_map(|text| seconds(text.trim_matches('"')));
    let age = headers
        .get(header::AGE)
        .and_then(|value| seconds(value.to_str().ok()?))
        .unwrap_or(0);
    let said = if ["no-store", "no-cache"].iter().any(is) {
        Some(0)
    } else {
        max_age.map(|max_age| max_age.saturating_sub(age))
    };
    said.map_or(FRESH_FOR, |said| {
        SignedDuration::from_secs(i64::from(said)).clamp(FRESH_AT_LEAST, FRESH_AT_MOST)
    })
}

/// Whether `now` is in the time after `at`. A clock that was set back stops nothing.
fn is_within(at: Timestamp, now: Timestamp, span: SignedDuration) -> bool {
    let since = now.duration_since(at);
    !since.is_negative() && since < span
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use serde_json::{Value, json};

    use super::*;

    /// A number of so many bits, odd, as it stands in a key.
    fn modulus(bits: usize) -> String {
        let mut bytes = vec![0xff; bits.div_ceil(8)];
        if let Some(first) = bytes.first_mut().filter(|_| !bits.is_multiple_of(8)) {
            *first = 0xff >> (8 - bits % 8);
        }
        URL_SAFE_NO_PAD.encode(bytes)
    }

    fn key(kid: &str) -> Value {
        json!({"kty": "RSA", "use": "sig", "alg": "RS256", "kid": kid, "n": modulus(2048), "e": "AQAB"})
    }

    fn with(name: &str, value: impl Into<Value>) -> Value {
        let mut key = key("a");
        key[name] = value.into();
        key
    }

    fn names(keys: &[Value]) -> Result<Vec<String>, String> {
        let body = json!({"keys": keys}).to_string();
        let mut names: Vec<_> = read(body.as_bytes())?
            .keys()
            .map(ToString::to_string)
            .collect();
        names.sort();
        Ok(names)
    }

    #[test]
    fn only_rsa_keys_for_rs256_of_a_sane_size_are_taken() {
        let good = key("good");
        let mut bare = good.clone();
        for name in ["use", "alg"] {
            bare.as_object_mut().expect("object").remove(name);
        }
        for (what, taken) in [
            ("as Forge's", key("a")),
            ("bare", bare),
            ("with its place", key("forge/invocation-token/wf-f641e7a7")),
            ("4096 bits", with("n", modulus(4096))),
            ("for verifying", with("key_ops", json!(["verify"]))),
            ("with something new", with("novelty", json!({"a": [1]}))),
        ] {
            assert!(names(&[taken]).is_ok(), "{what}");
        }
        let mut nameless = good.clone();
        nameless.as_object_mut().expect("object").remove("kid");
        for (what, left_out) in [
            ("1024 bits", with("n", modulus(1024))),
            ("2047 bits", with("n", modulus(2047))),
            ("4104 bits", with("n", modulus(4104))),
            ("no modulus", with("n", "")),
            ("a modulus that is no Base64", with("n", "+++")),
            ("exponent 1", with("e", "AQ")),
            ("exponent 3", with("e", "Aw")),
            ("an even exponent", with("e", "AQAA")),
            ("an endless exponent", with("e", modulus(2048))),
            ("for encryption", with("use", "enc")),
            ("for RS512", with("alg", "RS512")),
            ("for HS256", with("alg", "HS256")),
            ("for signing only", with("key_ops", json!(["sign"]))),
            ("a path for a name", with("kid", "../a")),
            ("a long name", with("kid", "a".repeat(129))),
            ("a number for a name", with("kid", 1)),
            ("no name", nameless),
            (
                "symmetric",
                json!({"kty": "oct", "kid": "a", "k": "c2VjcmV0"}),
            ),
            (
                "elliptic",
                json!({"kty": "EC", "kid": "a", "crv": "P-256", "x": "AA", "y": "AA"}),
            ),
            (
                "of the future",
                json!({"kty": "AKP", "kid": "a", "pub": "AA"}),
            ),
            ("no object", json!("a")),
        ] {
            assert_eq!(
                names(std::slice::from_ref(&left_out)),
                Err("its answer has no RSA key for RS256".to_owned()),
                "{what}"
            );
            assert_eq!(
                names(&[left_out, good.clone()]),
                Ok(vec!["good".to_owned()]),
                "{what} takes no other away"
            );
        }
    }

    #[test]
    fn a_set_has_an_end() {
        let many: Vec<Value> = (0..=KEYS_MAX).map(|n| key(&format!("k{n}"))).collect();
        assert!(names(&many).is_err());
        assert_eq!(names(&many[1..]).map(|names| names.len()), Ok(KEYS_MAX));
        for body in ["", "{}", "[]", r#"{"keys":{}}"#, r#"{"keys":[]}"#, "<html>"] {
            assert!(read(body.as_bytes()).is_err(), "{body}");
        }
    }

    #[test]
    fn a_set_holds_as_long_as_its_server_says_within_bounds() {
        for (cache_control, age, expected) in [
            (None, None, 3600),
            (Some("public, max-age=600"), None, 600),
            (Some("MAX-AGE=600, public"), Some("90"), 510),
            (Some("max-age=\"600\""), None, 600),
            (Some("max-age=600"), Some("7200"), 60),
            (Some("max-age=0"), None, 60),
            (Some("no-store"), None, 60),
            (Some("no-cache, max-age=600"), None, 60),
            (Some("max-age=31536000, immutable"), None, 86_400),
            (Some("max-age=-1"), None, 3600),
            (Some("max-age=99999999999999999999"), None, 3600),
            (Some("s-maxage=600"), None, 3600),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(text) = cache_control {
                headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(text));
            }
            if let Some(text) = age {
                headers.insert(header::AGE, HeaderValue::from_static(text));
            }
            let held = fresh_for(&headers).as_secs();
            assert_eq!(held, expected, "{cache_control:?} {age:?}");
        }
    }
}
