//! What Jira tells an app about itself, once it has been verified.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{ClientKey, JiraBaseUrl, SharedSecret};

/// The two lifecycle events we take part in; `enabled` and `disabled` are not declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LifecycleEventKind {
    /// The app was installed, upgraded, or the site was renamed, imported or given a new secret.
    Installed,
    /// The app was removed.
    Uninstalled,
}

/// A verified lifecycle call.
#[derive(Clone, Debug)]
pub struct LifecycleEvent {
    /// The tenant it speaks for.
    pub client_key: ClientKey,
    /// Which token said so, and over which body.
    pub stamp: EventStamp,
    /// What happened.
    pub change: LifecycleChange,
}

/// What a lifecycle call says.
#[derive(Clone, Debug)]
pub enum LifecycleChange {
    /// The site as it is now.
    Installed(SiteFacts),
    /// The app is gone from the site.
    Uninstalled,
}

/// What `installed` tells about a site.
#[derive(Clone, Debug)]
pub struct SiteFacts {
    /// REST base.
    pub base_url: JiraBaseUrl,
    /// What users see, where it differs (custom domain).
    pub display_url: Option<String>,
    /// The secret that both sides sign with from now on.
    pub shared_secret: SharedSecret,
}

/// Identifies one signed call: the signature does not cover the body, so both are remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventStamp {
    /// The token's `iat`.
    pub issued_at: Timestamp,
    /// SHA-256 of the token, hex.
    pub token_digest: String,
    /// SHA-256 of the body, hex.
    pub body_digest: String,
    /// When it came.
    pub received_at: Timestamp,
}

impl LifecycleEventKind {
    /// The word on the wire (`eventType`), in paths, logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Installed => "installed",
            Self::Uninstalled => "uninstalled",
        }
    }
}

impl fmt::Display for LifecycleEventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
