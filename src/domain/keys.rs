//! Public and private keys as records.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};
use zeroize::Zeroizing;

use super::KeyId;

/// One of our own signing keys. Serialises in clear: only `store` may do that, and it seals what it writes.
#[derive(Clone, Serialize, Deserialize)]
pub struct SigningKeyRecord {
    /// Its name: a lowercase UUID.
    pub kid: KeyId,
    /// The key pair, PKCS #8.
    pub pkcs8: PrivateKeyDer,
    /// The public half, SPKI PEM: what instances fetch.
    pub public_pem: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it stopped signing; `None` for the one that signs.
    pub retired_at: Option<Timestamp>,
}

/// One of Atlassian's public keys, kept so that a restart during an outage of their server loses nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstallKeyRecord {
    /// Its name.
    pub kid: KeyId,
    /// SPKI PEM as Atlassian serves it.
    pub public_pem: String,
    /// When it was last fetched.
    pub fetched_at: Timestamp,
}

/// A private key in DER. Prints as `***` and is wiped on drop.
#[derive(Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct PrivateKeyDer(Zeroizing<Vec<u8>>);

impl PrivateKeyDer {
    /// Takes the bytes over.
    pub fn new(der: Vec<u8>) -> Self {
        Self(Zeroizing::new(der))
    }

    /// The bytes in clear.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for PrivateKeyDer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl TryFrom<String> for PrivateKeyDer {
    type Error = base64::DecodeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let text = Zeroizing::new(text);
        STANDARD.decode(text.as_bytes()).map(Self::new)
    }
}

impl Serialize for PrivateKeyDer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(STANDARD.encode(self.expose())))
    }
}
