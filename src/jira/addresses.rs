//! Where each call goes. The same families of Jira's API have other addresses for each way to a site.

use super::forward::ForwardError;
use crate::domain::{
    Family, JiraApiUrl, JiraBaseUrl, JiraCall, Upstream, UpstreamKind,
    jira_call::NAMESPACE_PROPERTY,
};

/// Jira REST v3, "Get Jira instance info".
pub(super) const SERVER_INFO: &str = "/rest/api/3/serverInfo";

/// What is asked for, as path and query parameters.
pub(super) struct Address {
    pub(super) path: String,
    pub(super) parameters: Vec<(&'static str, String)>,
}

/// Scheme, host and port that a site's calls go to.
pub(super) fn origin<'a>(
    upstream: &Upstream,
    base_url: &'a JiraBaseUrl,
    api_url: &'a JiraApiUrl,
) -> &'a str {
    match upstream {
        Upstream::Connect(_) => base_url.as_str(),
        Upstream::Forge(_) | Upstream::Oauth(_) => api_url.as_str(),
    }
}

/// Where a call goes.
///
/// # Errors
/// This way to the site has no such call.
pub(super) fn address(upstream: &Upstream, call: &JiraCall) -> Result<Address, ForwardError> {
    let family = |family: Family| match upstream {
        Upstream::Connect(_) => family.base_path().to_owned(),
        Upstream::Forge(forge) => format!("{}{}", forge.cloud_id.api_path(), family.base_path()),
        Upstream::Oauth(oauth) => format!(
            "/jira/{}/0.1/cloud/{}",
            oauth_family(family),
            oauth.cloud_id
        ),
    };
    let platform = |path: &str| match upstream {
        Upstream::Connect(_) => Ok(path.to_owned()),
        Upstream::Forge(forge) => Ok(format!("{}{path}", forge.cloud_id.api_path())),
        // The credentials open the development tools' APIs only.
        Upstream::Oauth(_) => Err(ForwardError::Lacking(UpstreamKind::Oauth)),
    };
    let (path, parameters) = match call {
        JiraCall::Submit(of) => (format!("{}/bulk", family(*of)), vec![]),
        JiraCall::DeleteBranch { repository, branch } => {
            let devinfo = family(Family::Devinfo);
            let path = format!("{devinfo}/repository/{repository}/branch/{branch}");
            (path, vec![])
        }
        JiraCall::DeleteMarked {
            family: of,
            namespace,
        } => (
            format!("{}/bulkByProperties", family(*of)),
            vec![(NAMESPACE_PROPERTY, namespace.as_str().to_owned())],
        ),
        JiraCall::Probe(of) => (
            format!("{}/existsByProperties", family(*of)),
            vec![(NAMESPACE_PROPERTY, "probe".to_owned())],
        ),
        JiraCall::User { account_id } => (
            platform("/rest/api/3/user")?,
            vec![
                ("accountId", account_id.clone()),
                ("expand", "groups".to_owned()),
            ],
        ),
        JiraCall::Permissions => (platform("/rest/api/3/permissions/check")?, vec![]),
        JiraCall::ServerInfo => (platform(SERVER_INFO)?, vec![]),
    };
    Ok(Address { path, parameters })
}

/// The families' names in addresses for OAuth client credentials (Atlassian's "Integrate Jira Software Cloud with
/// on-premises tools"; all have version 0.1 there).
fn oauth_family(family: Family) -> &'static str {
    match family {
        Family::Devinfo => "devinfo",
        Family::Builds => "builds",
        Family::Deployments => "deployments",
        Family::FeatureFlags => "featureflags",
        Family::RemoteLinks => "remotelinks",
    }
}
