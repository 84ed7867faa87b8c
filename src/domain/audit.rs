//! Who changed what, when.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{ClientKey, Link, LinkId};

/// One line of the audit trail. Never holds a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// When.
    pub at: Timestamp,
    /// Who: `jira`, `jira_admin`, `admin`, `relay`.
    pub actor: Actor,
    /// Which Jira account, if it was a person in Jira.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account_id: Option<String>,
    /// What: `installation_created`, `link_removed`, ...
    pub action: String,
    /// Which installation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key: Option<ClientKey>,
    /// Which link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link_id: Option<LinkId>,
    /// Details for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The request's or attempt's id in the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Where the request came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<IpAddr>,
}

/// Who changes things.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Actor {
    /// A signed lifecycle call.
    Jira,
    /// A Jira admin, through the page inside Jira.
    JiraAdmin,
    /// Whoever holds the admin token.
    Admin,
    /// The relay by itself.
    Relay,
}

impl AuditEntry {
    /// An entry without particulars.
    pub fn new(at: Timestamp, actor: Actor, action: &str) -> Self {
        Self {
            at,
            actor,
            account_id: None,
            action: action.to_owned(),
            client_key: None,
            link_id: None,
            note: None,
            request_id: None,
            peer: None,
        }
    }

    /// The same entry, about this link.
    #[must_use]
    pub fn about(self, link: &Link) -> Self {
        Self {
            client_key: Some(link.client_key.clone()),
            link_id: Some(link.id),
            ..self
        }
    }
}
