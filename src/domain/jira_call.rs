//! What we ask of Jira: the calls that a GitLab makes, and what we want to know or have done
//! ourselves.

use serde::{Deserialize, Serialize};

use super::Namespace;

/// A family of Jira's development-tool APIs (Atlassian's "Jira Software REST API": development information, builds,
/// deployments, feature flags, remote links).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Repositories with their commits, branches and pull requests.
    Devinfo,
    /// Pipelines.
    Builds,
    /// Deployments to environments.
    Deployments,
    /// Feature flags.
    FeatureFlags,
    /// Anything else with a link. No GitLab sends them so far.
    RemoteLinks,
}

/// One call to Jira.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JiraCall {
    /// `POST .../bulk`: new or newer entities, in the body.
    Submit(Family),
    /// `DELETE .../repository/{repository}/branch/{branch}`: a branch is gone.
    DeleteBranch {
        /// Id of its repository.
        repository: String,
        /// Its id: SHA-256 of its name, hex.
        branch: String,
    },
    /// `DELETE .../bulkByProperties`: everything that a link ever wrote. Only we ask for that.
    DeleteMarked {
        /// In which family.
        family: Family,
        /// Of the link with this namespace.
        namespace: Namespace,
    },
    /// `GET /rest/api/3/user`: who a Jira user is, and in which groups.
    User {
        /// Whom.
        account_id: String,
    },
    /// `POST /rest/api/3/permissions/check`: what a Jira user may do, asked in the body. Only we ask for that.
    Permissions,
    /// `GET .../existsByProperties`: something harmless, which only works with good credentials.
    Probe(Family),
    /// `GET /rest/api/3/serverInfo`: the site's own address.
    ServerInfo,
}

/// What a rate limit of Jira's is counted under: one method on one family of paths. Also a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Endpoint {
    /// `POST .../bulk` of a family.
    Submit(Family),
    /// `DELETE` of one branch.
    DeleteBranch,
    /// `DELETE .../bulkByProperties` of a family.
    DeleteMarked(Family),
    /// `GET /rest/api/3/user`.
    User,
    /// `POST /rest/api/3/permissions/check`.
    Permissions,
    /// `GET .../existsByProperties` of a family.
    Probe(Family),
    /// `GET /rest/api/3/serverInfo`.
    ServerInfo,
}

/// The property that names a link's namespace on everything it writes. Jira allows neither `:` nor a leading `_` in
/// its name, and five properties to a write; GitLab uses one.
pub const NAMESPACE_PROPERTY: &str = "relayNamespace";

impl Family {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Devinfo,
        Self::Builds,
        Self::Deployments,
        Self::FeatureFlags,
        Self::RemoteLinks,
    ];

    /// The word in answers and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Devinfo => "devinfo",
            Self::Builds => "builds",
            Self::Deployments => "deployments",
            Self::FeatureFlags => "feature_flags",
            Self::RemoteLinks => "remote_links",
        }
    }

    /// Below this path a site has the family's calls.
    pub fn base_path(self) -> &'static str {
        match self {
            Self::Devinfo => "/rest/devinfo/0.10",
            Self::Builds => "/rest/builds/0.1",
            Self::Deployments => "/rest/deployments/0.1",
            Self::FeatureFlags => "/rest/featureflags/0.1",
            Self::RemoteLinks => "/rest/remotelinks/1.0",
        }
    }

    /// The family whose new entities are sent to this path.
    pub fn submitted_to(path: &str) -> Option<Self> {
        let base = path.strip_suffix("/bulk")?;
        Self::ALL
            .into_iter()
            .find(|family| family.base_path() == base)
    }

    /// The longest id that Jira takes (Atlassian's API reference, "Id limits").
    pub fn id_max_bytes(self) -> usize {
        match self {
            Self::Devinfo => 1024,
            _ => 255,
        }
    }
}

impl JiraCall {
    /// What its rate limit is counted under.
    pub fn endpoint(&self) -> Endpoint {
        match self {
            Self::Submit(family) => Endpoint::Submit(*family),
            Self::DeleteBranch { .. } => Endpoint::DeleteBranch,
            Self::DeleteMarked { family, .. } => Endpoint::DeleteMarked(*family),
            Self::User { .. } => Endpoint::User,
            Self::Permissions => Endpoint::Permissions,
            Self::Probe(family) => Endpoint::Probe(*family),
            Self::ServerInfo => Endpoint::ServerInfo,
        }
    }

    /// Its family, if it has one.
    pub fn family(&self) -> Option<Family> {
        match self {
            Self::Submit(family) | Self::DeleteMarked { family, .. } | Self::Probe(family) => {
                Some(*family)
            }
            Self::DeleteBranch { .. } => Some(Family::Devinfo),
            Self::User { .. } | Self::Permissions | Self::ServerInfo => None,
        }
    }

    /// Whether it takes something away. Such a call carries no sequence number, so only order protects what is
    /// written after it.
    pub fn is_delete(&self) -> bool {
        matches!(self, Self::DeleteBranch { .. } | Self::DeleteMarked { .. })
    }

    /// Whether it changes nothing.
    pub fn is_read(&self) -> bool {
        matches!(
            self,
            Self::User { .. } | Self::Permissions | Self::Probe(_) | Self::ServerInfo
        )
    }
}

impl Endpoint {
    /// The word in metrics, logs and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Submit(family) => family.as_str(),
            Self::DeleteBranch => "delete_branch",
            Self::DeleteMarked(_) => "delete_marked",
            Self::User => "user",
            Self::Permissions => "permissions",
            Self::Probe(_) => "probe",
            Self::ServerInfo => "server_info",
        }
    }
}
