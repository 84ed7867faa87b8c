//! Our own tokens: RS256 with the active signing key, and the public halves that others verify them with.

use std::{collections::HashMap, convert::Infallible, fmt, sync::Arc};

use arc_swap::ArcSwapOption;
use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use ring::rand::{SecureRandom, SystemRandom};
use rsa::{
    pkcs8::{EncodePrivateKey as _, EncodePublicKey as _, LineEnding},
    rand_core::{TryCryptoRng, TryRng},
};
use serde::Serialize;
use uuid::Uuid;

use super::token::LEEWAY_SECS;
use crate::domain::{KeyId, PrivateKeyDer, SigningKeyRecord};

/// GitLab's own proxy makes keys of this size.
const KEY_BITS: usize = 3072;

/// Life of a token; ruby-jwt checks `exp` without leeway, so it should outlast a small difference of clocks.
pub const TOKEN_LIFE_SECS: i64 = 180;

/// A retired key is served until the last token it signed has expired everywhere, and a bit.
pub const RETIRED_KEY_SERVED_FOR: SignedDuration =
    SignedDuration::from_secs(TOKEN_LIFE_SECS + 2 * LEEWAY_SECS + 300);

/// Signs with one key, serves the public halves of all. Readers never wait.
#[derive(Default)]
pub struct Signer {
    ring: ArcSwapOption<Keyring>,
}

struct Keyring {
    active: KeyId,
    key: EncodingKey,
    created_at: Timestamp,
    public: HashMap<KeyId, Arc<str>>,
}

/// What a token to an instance says (GitLab `create_asymmetric_jwt_service.rb`, and an end: GitLab's own has
/// none and lives on its key's short life).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InstanceClaims {
    /// Every form under which the instance may know itself.
    pub aud: Vec<String>,
    /// The installation's client key.
    pub iss: String,
    /// Hash of method, path and query.
    pub qsh: String,
    iat: i64,
    exp: i64,
    jti: String,
}

/// A signed token and the key it names.
#[derive(Clone, PartialEq, Eq)]
pub struct SignedToken {
    /// Header, claims, signature.
    pub text: String,
    /// The key to verify it with.
    pub kid: KeyId,
}

/// No token came about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// There is no active key.
    #[error("there is no signing key")]
    NoKey,
    /// The key or the system's randomness failed.
    #[error("signing failed: {0}")]
    Failed(String),
}

impl fmt::Debug for SignedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignedToken")
            .field("kid", &self.kid)
            .finish_non_exhaustive()
    }
}

impl InstanceClaims {
    /// Claims that hold from `now` on.
    pub fn new(aud: Vec<String>, iss: String, qsh: String, now: Timestamp) -> Self {
        let iat = now.as_second();
        Self {
            aud,
            iss,
            qsh,
            iat,
            exp: iat.saturating_add(TOKEN_LIFE_SECS),
            jti: Uuid::new_v4().hyphenated().to_string(),
        }
    }
}

impl Signer {
    /// Takes the keys of the store: the newest that is not retired signs, all are served.
    pub fn load(&self, keys: &[Arc<SigningKeyRecord>]) {
        let active = keys
            .iter()
            .filter(|key| key.retired_at.is_none())
            .max_by_key(|key| key.created_at);
        self.ring.store(active.map(|active| {
            Arc::new(Keyring {
                active: active.kid.clone(),
                key: EncodingKey::from_rsa_der(active.pkcs8.expose()),
                created_at: active.created_at,
                public: keys
                    .iter()
                    .map(|key| (key.kid.clone(), key.public_pem.as_str().into()))
                    .collect(),
            })
        }));
    }

    /// Signs. Takes about two milliseconds of CPU: not for the threads that serve requests.
    pub fn sign(&self, claims: &InstanceClaims) -> Result<SignedToken, SignError> {
        let ring = self.ring.load_full().ok_or(SignError::NoKey)?;
        ring.sign(claims, ring.active.clone())
    }

    /// The same under another name of the active key, by which it must then be served.
    pub fn sign_as(&self, claims: &InstanceClaims, kid: KeyId) -> Result<SignedToken, SignError> {
        let ring = self.ring.load_full().ok_or(SignError::NoKey)?;
        ring.sign(claims, kid)
    }

    /// The public half of the key that signs, SPKI PEM.
    pub fn active_public_pem(&self) -> Option<Arc<str>> {
        let ring = self.ring.load();
        let ring = ring.as_ref()?;
        ring.public.get(&ring.active).cloned()
    }

    /// The public half of one of our keys, SPKI PEM.
    pub fn public_pem(&self, kid: &KeyId) -> Option<Arc<str>> {
        self.ring.load().as_ref()?.public.get(kid).cloned()
    }

    /// Which key signs, and since when.
    pub fn active(&self) -> Option<(KeyId, Timestamp)> {
        self.ring
            .load()
            .as_ref()
            .map(|ring| (ring.active.clone(), ring.created_at))
    }
}

impl Keyring {
    fn sign(&self, claims: &InstanceClaims, kid: KeyId) -> Result<SignedToken, SignError> {
        let mut header = Header::new(Algorithm::RS256);
        header.kid = Some(kid.to_string());
        jsonwebtoken::encode(&header, claims, &self.key)
            .map(|text| SignedToken { text, kid })
            .map_err(|error| SignError::Failed(error.to_string()))
    }
}

/// Makes a signing key. Takes from a tenth of a second to several: for a blocking thread.
///
/// ring can't make RSA keys, so this one step is the `rsa` crate's, with ring's randomness. The advisory
/// against that crate (RUSTSEC-2023-0071) is about the timing of private-key operations; those are ring's.
pub fn generate_key(now: Timestamp) -> Result<SigningKeyRecord, SignError> {
    let failed = |what: &dyn fmt::Display| SignError::Failed(what.to_string());
    let key = rsa::PrivateKey::new(&mut RingRandom(SystemRandom::new()), KEY_BITS)
        .map_err(|error| failed(&error))?;
    let pkcs8 = key.to_pkcs8_der().map_err(|error| failed(&error))?;
    let public_pem = key
        .to_public_key()
        .to_public_key_pem(LineEnding::LF)
        .map_err(|error| failed(&error))?;
    Ok(SigningKeyRecord {
        kid: KeyId::generate(),
        pkcs8: PrivateKeyDer::new(pkcs8.as_bytes().to_vec()),
        public_pem,
        created_at: now,
        retired_at: None,
    })
}

/// ring's randomness for the `rsa` crate.
struct RingRandom(SystemRandom);

impl TryRng for RingRandom {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.0.fill(bytes).expect(
            "the operating system gives random bytes: the program has made its other keys with them",
        );
        Ok(())
    }
}

impl TryCryptoRng for RingRandom {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jwt::crypto;

    #[test]
    fn signs_what_its_public_half_verifies_and_serves_retired_keys() {
        crypto::install();
        let now = Timestamp::from_second(1_800_000_000).expect("second");
        let old = SigningKeyRecord {
            retired_at: Some(now),
            ..generate_key(now).expect("key")
        };
        let new = generate_key(now).expect("key");
        let (old_kid, new_kid) = (old.kid.clone(), new.kid.clone());
        let signer = Signer::default();
        let claims = InstanceClaims::new(vec!["a".to_owned()], "i".to_owned(), "q".to_owned(), now);
        assert_eq!(signer.sign(&claims), Err(SignError::NoKey));
        signer.load(&[Arc::new(old), Arc::new(new)]);
        let token = signer.sign(&claims).expect("sign");
        assert_eq!(token.kid, new_kid);
        assert!(signer.public_pem(&old_kid).is_some());
        let pem = signer.public_pem(&new_kid).expect("public half");
        assert!(pem.starts_with("-----BEGIN PUBLIC KEY-----\n"));
        let key = jsonwebtoken::DecodingKey::from_rsa_pem(pem.as_bytes()).expect("PEM");
        let mut validation = jsonwebtoken::Validation::new(Algorithm::RS256);
        validation.validate_exp = false;
        validation.set_audience(&["a"]);
        let decoded = jsonwebtoken::decode::<serde_json::Value>(&token.text, &key, &validation)
            .expect("verifies");
        assert_eq!(decoded.claims["exp"], 1_800_000_180);
        assert_eq!(decoded.header.kid.as_deref(), Some(new_kid.as_str()));
        let old_pem = signer.public_pem(&old_kid).expect("public half");
        let wrong = jsonwebtoken::DecodingKey::from_rsa_pem(old_pem.as_bytes()).expect("PEM");
        assert!(
            jsonwebtoken::decode::<serde_json::Value>(&token.text, &wrong, &validation).is_err()
        );
    }
}
