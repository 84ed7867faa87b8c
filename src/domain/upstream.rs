//! The three ways to a Jira site. The contract towards instances is Connect in all of them.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{CloudId, Credential, ForgeInstallationId, SharedSecret, event::EventStamp};

/// A way to a site, with what opens it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Upstream {
    /// An installed Connect app.
    Connect(Connect),
    /// An installed Forge app, whose remote we are.
    Forge(Forge),
    /// OAuth 2.0 client credentials that a Jira admin made. There is no app.
    Oauth(Oauth),
}

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpstreamKind {
    /// A Connect app.
    Connect,
    /// A Forge app.
    Forge,
    /// OAuth client credentials.
    Oauth,
}

/// What Jira told a Connect app.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connect {
    /// The current secret.
    pub shared_secret: SharedSecret,
    /// The secret before the last rotation; also honoured until `valid_until`.
    pub previous_secret: Option<RetiredSecret>,
    /// Counts distinct secrets, from 1.
    pub secret_generation: u64,
    /// The newest lifecycle call that changed this record.
    pub last_event: EventStamp,
}

/// What invocations of a Forge app told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forge {
    /// Which installation of the app.
    pub installation_id: ForgeInstallationId,
    /// The site.
    pub cloud_id: CloudId,
    /// Of the app's versions, the one that the site has.
    pub app_version: Option<String>,
    /// The newest of the tokens that let us call Jira. Forge has no way to ask for one: they come with invocations.
    pub system_token: Option<SystemToken>,
    /// When the last invocation that told something new came.
    pub told_at: Timestamp,
}

/// Lets us call Jira as the app, for about an hour.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemToken {
    /// The token.
    pub token: Credential,
    /// When Jira stops to take it.
    pub expires_at: Timestamp,
}

/// What a Jira admin made for us (Jira: Settings > Apps > OAuth credentials).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Oauth {
    /// The public half.
    pub client_id: String,
    /// The other half.
    pub client_secret: Credential,
    /// The site.
    pub cloud_id: CloudId,
}

/// A client id that nobody has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a client id is 1 to {CLIENT_ID_MAX_BYTES} visible ASCII characters")]
pub struct ClientIdError;

/// Atlassian's have 32 letters and digits.
const CLIENT_ID_MAX_BYTES: usize = 256;

/// A secret that was replaced. Requests signed with it may still be in flight.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetiredSecret {
    /// The old secret.
    pub secret: SharedSecret,
    /// Until when it still counts.
    pub valid_until: Timestamp,
}

impl Upstream {
    /// Which it is.
    pub fn kind(&self) -> UpstreamKind {
        match self {
            Self::Connect(_) => UpstreamKind::Connect,
            Self::Forge(_) => UpstreamKind::Forge,
            Self::Oauth(_) => UpstreamKind::Oauth,
        }
    }

    /// What a Connect app was told, if it is one.
    pub fn as_connect(&self) -> Option<&Connect> {
        match self {
            Self::Connect(connect) => Some(connect),
            Self::Forge(_) | Self::Oauth(_) => None,
        }
    }

    /// What invocations told, if it is a Forge app.
    pub fn as_forge(&self) -> Option<&Forge> {
        match self {
            Self::Forge(forge) => Some(forge),
            Self::Connect(_) | Self::Oauth(_) => None,
        }
    }

    /// The site's id, where the way tells it.
    pub fn cloud_id(&self) -> Option<&CloudId> {
        match self {
            Self::Connect(_) => None,
            Self::Forge(forge) => Some(&forge.cloud_id),
            Self::Oauth(oauth) => Some(&oauth.cloud_id),
        }
    }

    /// Whether what opens it is the same.
    pub fn opens_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Connect(own), Self::Connect(other)) => own.shared_secret == other.shared_secret,
            (Self::Forge(own), Self::Forge(other)) => own.installation_id == other.installation_id,
            (Self::Oauth(own), Self::Oauth(other)) => own == other,
            _ => false,
        }
    }
}

impl UpstreamKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Connect, Self::Forge, Self::Oauth];

    /// Reads the word.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }

    /// The word in answers, logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Forge => "forge",
            Self::Oauth => "oauth",
        }
    }
}

impl Oauth {
    /// Credentials for a site.
    pub fn new(
        client_id: String,
        client_secret: Credential,
        cloud_id: CloudId,
    ) -> Result<Self, ClientIdError> {
        let plausible = (1..=CLIENT_ID_MAX_BYTES).contains(&client_id.len())
            && client_id.bytes().all(|b| b.is_ascii_graphic());
        plausible
            .then_some(Self {
                client_id,
                client_secret,
                cloud_id,
            })
            .ok_or(ClientIdError)
    }
}

impl Forge {
    /// The token, if Jira takes it now.
    pub fn valid_token(&self, now: Timestamp) -> Option<&SystemToken> {
        self.system_token
            .as_ref()
            .filter(|token| now < token.expires_at)
    }
}

impl Connect {
    /// Told for the first time.
    pub fn new(shared_secret: SharedSecret, told: EventStamp) -> Self {
        Self {
            shared_secret,
            previous_secret: None,
            secret_generation: 1,
            last_event: told,
        }
    }

    /// Told again: another secret retires the one before.
    #[must_use]
    pub fn after(self, before: &Self, grace: SignedDuration, now: Timestamp) -> Self {
        if self.shared_secret == before.shared_secret {
            return Self {
                last_event: self.last_event,
                ..before.clone()
            };
        }
        Self {
            previous_secret: Some(RetiredSecret {
                secret: before.shared_secret.clone(),
                valid_until: now.saturating_add(grace).unwrap_or(Timestamp::MAX),
            }),
            secret_generation: before.secret_generation + 1,
            ..self
        }
    }

    /// The secrets that count now, newest first.
    pub fn accepted_secrets(&self, now: Timestamp) -> impl Iterator<Item = &SharedSecret> {
        let previous = self.previous_secret.as_ref();
        let previous = previous.filter(|retired| now < retired.valid_until);
        std::iter::once(&self.shared_secret).chain(previous.map(|retired| &retired.secret))
    }
}
