//! The identity of one Jira site, as Jira names it.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Jira's `clientKey`: the tenant's identity and the `iss` of every token from that tenant.
///
/// Atlassian documents no alphabet. Seen are UUIDs and `jira:<uuid>`; we take 1 to 255 visible ASCII
/// characters, which keeps it safe in logs and as a record id. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClientKey(Arc<str>);

/// Why a text is no client key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a client key is 1 to 255 visible ASCII characters")]
pub struct ClientKeyError;

impl ClientKey {
    /// Parses a client key.
    pub fn parse(text: &str) -> Result<Self, ClientKeyError> {
        let acceptable =
            (1..=255).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        acceptable.then(|| Self(text.into())).ok_or(ClientKeyError)
    }

    /// Makes one, for a site whose way to us has none.
    pub fn generate() -> Self {
        Self(Uuid::new_v4().to_string().into())
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ClientKey {
    type Error = ClientKeyError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<ClientKey> for String {
    fn from(key: ClientKey) -> Self {
        key.0.as_ref().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_jira_sends_and_nothing_that_breaks_a_log_line() {
        assert!(ClientKey::parse("jira:1234-5678-9000").is_ok());
        for bad in ["", "two words", "line\nbreak", "käse", &"k".repeat(256)] {
            assert_eq!(ClientKey::parse(bad), Err(ClientKeyError), "{bad:?}");
        }
    }
}
