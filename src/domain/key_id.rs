//! The name of a public key.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A `kid`: 1 to 128 characters of `[A-Za-z0-9._-]` in segments divided by `/`, none empty, `.` or `..`.
///
/// Atlassian documents no shape; the newest GitLab also admits `/`. The alphabet lets a kid be appended
/// to a key server's address without leaving its folder: no `%`, `?`, `#`, `:` or `\` gets in.
/// Source: GitLab `lib/atlassian/jira_connect/jwt/asymmetric.rb`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyId(String);

/// Why a text is no key id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a key id is 1 to 128 characters of [A-Za-z0-9._-], in segments divided by '/', none of them '.' or '..'"
)]
pub struct KeyIdError;

impl KeyId {
    /// Parses a key id that someone else named.
    pub fn parse(text: &str) -> Result<Self, KeyIdError> {
        let segment_ok = |segment: &str| {
            !matches!(segment, "" | "." | "..")
                && segment
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        };
        if text.len() <= 128 && text.split('/').all(segment_ok) {
            Ok(Self(text.to_owned()))
        } else {
            Err(KeyIdError)
        }
    }

    /// Makes an id for one of our own keys: a lowercase UUID, the only form every GitLab accepts.
    pub fn generate() -> Self {
        Self(Uuid::new_v4().hyphenated().to_string())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for KeyId {
    type Error = KeyIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<KeyId> for String {
    fn from(id: KeyId) -> Self {
        id.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admits_no_path_tricks() {
        for good in ["a", "4e1f-22", "micros/some-service/key.1", "A_b-9"] {
            assert!(KeyId::parse(good).is_ok(), "{good}");
        }
        let long = "k".repeat(129);
        for bad in [
            "", "/", "a/", "/a", "a//b", ".", "..", "../x", "a/../b", "a/./b", "a%2fb", "a?b",
            "a#b", "a:b", "a\\b", "a b", "ä", &long,
        ] {
            assert_eq!(KeyId::parse(bad), Err(KeyIdError), "{bad}");
        }
    }

    #[test]
    fn ours_are_lowercase_uuids() {
        let id = KeyId::generate();
        assert_eq!(id.as_str().len(), 36);
        assert_eq!(id.as_str(), id.as_str().to_lowercase());
    }
}
