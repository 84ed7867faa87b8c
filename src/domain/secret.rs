//! Secrets that two parties share. They print as `***`, compare in constant time, are wiped on drop.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize, Serializer};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// The HMAC key that Jira and an app, or an instance and we, sign with.
///
/// Serialises in clear: only `store` may do that, and it seals what it writes.
#[derive(Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct SharedSecret(Zeroizing<String>);

/// A secret that only the peer who made it judges: a token, or a client secret.
///
/// Serialises in clear: only `store` may do that, and it seals what it writes.
#[derive(Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct Credential(Zeroizing<String>);

/// Why a text is no credential. The text itself is not in the error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a token or client secret is 1 to {} visible ASCII characters",
    Credential::MAX_BYTES
)]
pub struct CredentialError;

impl Credential {
    /// Tokens are the longest; what is longer would not fit into a header.
    pub const MAX_BYTES: usize = 8192;

    /// Takes what a peer made.
    pub fn parse(text: &str) -> Result<Self, CredentialError> {
        let usable = (1..=Self::MAX_BYTES).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_graphic());
        usable
            .then(|| Self(Zeroizing::new(text.to_owned())))
            .ok_or(CredentialError)
    }

    /// The secret in clear, for the one who made it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// Why a text is no usable secret. The text itself is not in the error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a shared secret is {} to {} characters, this one has {length}",
    SharedSecret::MIN_BYTES,
    SharedSecret::MAX_BYTES
)]
pub struct SharedSecretError {
    /// Bytes of the refused text.
    pub length: usize,
}

/// There was no randomness to be had from the operating system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the operating system gave no random bytes")]
pub struct NoRandomness;

impl SharedSecret {
    /// HS256 wants a key at least as long as its hash (RFC 7518 section 3.2).
    pub const MIN_BYTES: usize = 32;
    /// Far above what Jira sends; keeps records small.
    pub const MAX_BYTES: usize = 1024;

    /// Takes a secret that a peer sent.
    pub fn parse(text: &str) -> Result<Self, SharedSecretError> {
        if (Self::MIN_BYTES..=Self::MAX_BYTES).contains(&text.len()) {
            Ok(Self(Zeroizing::new(text.to_owned())))
        } else {
            Err(SharedSecretError { length: text.len() })
        }
    }

    /// Makes a new secret: 48 random bytes, 64 URL-safe characters.
    pub fn generate() -> Result<Self, NoRandomness> {
        let mut bytes = Zeroizing::new([0_u8; 48]);
        SystemRandom::new()
            .fill(&mut *bytes)
            .map_err(|_| NoRandomness)?;
        Ok(Self(Zeroizing::new(URL_SAFE_NO_PAD.encode(*bytes))))
    }

    /// The secret in clear, for signing or for the one party that must get it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// What all secrets have in common.
macro_rules! kept_secret {
    ($name:ident, $error:ty) => {
        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
            }
        }

        impl Eq for $name {}

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("***")
            }
        }

        impl TryFrom<String> for $name {
            type Error = $error;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                let text = Zeroizing::new(text);
                Self::parse(&text)
            }
        }

        impl Serialize for $name {
            /// Without a copy that nobody would wipe.
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.expose())
            }
        }
    };
}

kept_secret!(SharedSecret, SharedSecretError);
kept_secret!(Credential, CredentialError);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_prints_itself() {
        let secret = SharedSecret::generate().expect("randomness");
        assert_eq!(format!("{secret:?}"), "***");
        assert_eq!(secret.expose().len(), 64);
    }

    #[test]
    fn refuses_a_short_secret_without_repeating_it() {
        let error = SharedSecret::parse("hunter2").expect_err("short");
        assert!(!error.to_string().contains("hunter2"));
    }

    #[test]
    fn a_credential_fits_into_a_header_and_never_prints_itself() {
        let token = Credential::parse("ATOA-1.b_c").expect("token");
        assert_eq!(format!("{token:?}"), "***");
        for bad in ["", "two words", "line\nbreak", &"k".repeat(8193)] {
            assert_eq!(Credential::parse(bad), Err(CredentialError));
        }
    }

    #[test]
    fn two_made_secrets_differ() {
        let (a, b) = (SharedSecret::generate(), SharedSecret::generate());
        assert_ne!(a, b);
    }
}
