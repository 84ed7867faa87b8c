//! A shared secret made ready for HS256: signing what we send to Jira and to instances, and telling whose secret
//! signed a token.
//!
//! The key schedule is done once, so that trying ten thousand secrets on one token takes milliseconds and signing
//! costs two hashes. ring's comparison is constant in time.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use ring::hmac;
use serde::Serialize;

use super::{UnverifiedToken, VerifyError, qsh::Qsh};
use crate::domain::SharedSecret;

/// Life of a token. Atlassian advises three minutes at the most.
pub const TOKEN_LIFE_SECS: i64 = 180;

/// `{"alg":"HS256","typ":"JWT"}`
const HEADER: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9";

/// A secret with its key schedule. Prints nothing of either.
#[derive(Clone, Debug)]
pub struct SharedKey(hmac::Key);

/// What a token signed by us says (Atlassian's "Understanding JWT for Connect apps").
#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    iat: i64,
    exp: i64,
    qsh: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sub: Option<&'a str>,
}

/// A token's signed text and its signature, decoded once for any number of keys.
pub struct SignedParts<'a> {
    text: &'a [u8],
    signature: Vec<u8>,
}

impl SharedKey {
    /// Expands a secret.
    pub fn new(secret: &SharedSecret) -> Self {
        Self(hmac::Key::new(
            hmac::HMAC_SHA256,
            secret.expose().as_bytes(),
        ))
    }

    /// Signs for one request: by the app key towards Jira, by the client key towards an instance.
    pub fn sign(&self, issuer: &str, qsh: &Qsh, subject: Option<&str>, now: Timestamp) -> String {
        let iat = now.as_second();
        let claims = Claims {
            iss: issuer,
            iat,
            exp: iat.saturating_add(TOKEN_LIFE_SECS),
            qsh: qsh.as_str(),
            sub: subject,
        };
        let claims = serde_json::to_vec(&claims).unwrap_or_default();
        let mut token = String::with_capacity(HEADER.len() + claims.len() * 4 / 3 + 50);
        token.push_str(HEADER);
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(&claims, &mut token);
        let signature = hmac::sign(&self.0, token.as_bytes());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        token
    }

    /// Whether this secret signed the token.
    pub fn signed(&self, token: &SignedParts<'_>) -> bool {
        hmac::verify(&self.0, token.text, &token.signature).is_ok()
    }
}

impl<'a> SignedParts<'a> {
    /// Takes apart a token that must be HS256; nothing else is ever tried on it.
    pub fn of(token: &'a UnverifiedToken) -> Result<Self, VerifyError> {
        if token.unverified_header.alg != "HS256" {
            return Err(VerifyError::Algorithm { expected: "HS256" });
        }
        let (text, signature) = token
            .text
            .rsplit_once('.')
            .ok_or(VerifyError::Malformed("it has not three parts"))?;
        let signature = URL_SAFE_NO_PAD
            .decode(signature)
            .map_err(|_| VerifyError::Malformed("its signature"))?;
        Ok(Self {
            text: text.as_bytes(),
            signature,
        })
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{Algorithm, DecodingKey, Validation};

    use super::*;
    use crate::jwt::crypto;

    fn secret(letter: &str) -> SharedSecret {
        SharedSecret::parse(&letter.repeat(40)).expect("secret")
    }

    #[test]
    fn signs_what_the_library_verifies_and_knows_its_own() {
        crypto::install();
        let now = Timestamp::from_second(1_800_000_000).expect("second");
        let qsh = Qsh::of("GET&/&");
        let token = SharedKey::new(&secret("a")).sign("the \"app\"", &qsh, Some("user"), now);
        let mut validation = Validation::new(Algorithm::HS256);
        validation.validate_exp = false;
        let key = DecodingKey::from_secret(secret("a").expose().as_bytes());
        let decoded = jsonwebtoken::decode::<serde_json::Value>(&token, &key, &validation);
        let expected = serde_json::json!({
            "iss": "the \"app\"", "sub": "user", "qsh": qsh.as_str(),
            "iat": 1_800_000_000, "exp": 1_800_000_180,
        });
        assert_eq!(decoded.expect("verifies").claims, expected);

        let token = UnverifiedToken::parse(&token).expect("token");
        let parts = SignedParts::of(&token).expect("parts");
        assert!(SharedKey::new(&secret("a")).signed(&parts));
        assert!(!SharedKey::new(&secret("b")).signed(&parts));
    }

    #[test]
    fn takes_no_other_algorithm_and_no_broken_signature() {
        let parse = |header: &str, signature: &str| {
            let header = URL_SAFE_NO_PAD.encode(header);
            UnverifiedToken::parse(&format!("{header}.e30.{signature}")).expect("token")
        };
        let code = |token: &UnverifiedToken| SignedParts::of(token).err().map(|e| e.code());
        for algorithm in ["none", "RS256", "HS512", "hs256"] {
            let token = parse(&format!("{{\"alg\":\"{algorithm}\"}}"), "c2ln");
            assert_eq!(code(&token), Some("token_algorithm"), "{algorithm}");
        }
        let token = parse("{\"alg\":\"HS256\"}", "!");
        assert_eq!(code(&token), Some("token_malformed"));
    }
}
