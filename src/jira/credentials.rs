//! Whether OAuth client credentials open what the relay needs of a site: a token for them, and something harmless in
//! every family.
//!
//! Only what Atlassian's documents promise is read out of the answers: 401 and 403 are a permission that is missing.
//! Credentials of another site are refused in every family; Atlassian has no call that says so outright.

use http::StatusCode;
use jiff::Timestamp;

use super::{Forwarder, forward::ForwardError, tokens::TokenError};
use crate::{
    domain::{Family, Installation, Upstream, upstream::Oauth},
    reject::{Reject, RejectKind},
};

/// What GitLab sends. No version of it sends remote links.
pub const NEEDED: [Family; 4] = [
    Family::Devinfo,
    Family::Builds,
    Family::Deployments,
    Family::FeatureFlags,
];

/// Why credentials can't be used for a site.
#[derive(Debug, thiserror::Error)]
pub enum CredentialFault {
    /// No token for them.
    #[error(transparent)]
    Token(TokenError),
    /// The gateway does not answer.
    #[error("Atlassian's API gateway could not be asked: {0}")]
    Silent(ForwardError),
    /// It does not answer well.
    #[error("Atlassian's API gateway is not well: it answered {0}")]
    Unwell(StatusCode),
    /// They open nothing on this site.
    #[error(
        "the credentials open nothing on this site: they were made on another site, or without any of the permissions that the relay needs"
    )]
    OpensNothing,
    /// Some of what the relay needs is shut.
    #[error("the credentials lack {}", permissions(.0))]
    Lacking(Vec<Family>),
}

/// Tries credentials out.
pub async fn check(
    forwarder: &Forwarder,
    oauth: &Oauth,
    now: Timestamp,
) -> Result<(), CredentialFault> {
    let answers = forwarder.try_out(oauth, &NEEDED, now).await?;
    judge(&answers)
}

/// Whether the token that is in use for a site's credentials opens any of what the relay needs. Then one that Jira has
/// just refused is good, and the call lacked a permission.
pub(super) async fn open_anything(
    forwarder: &Forwarder,
    installation: &Installation,
    now: Timestamp,
) -> bool {
    let Upstream::Oauth(oauth) = &installation.upstream else {
        return false;
    };
    let client_key = &installation.client_key;
    let asked = forwarder.try_on(client_key, oauth, &NEEDED, now).await;
    let judged = asked.map(|answers| judge(&answers));
    matches!(judged, Ok(Ok(()) | Err(CredentialFault::Lacking(_))))
}

/// What Jira's answers to something harmless in each family mean.
fn judge(answers: &[(Family, StatusCode)]) -> Result<(), CredentialFault> {
    let refused = |status: StatusCode| matches!(status.as_u16(), 401 | 403);
    let unwell = |status: &StatusCode| status.as_u16() == 429 || status.is_server_error();
    if let Some((_, status)) = answers.iter().find(|(_, status)| unwell(status)) {
        return Err(CredentialFault::Unwell(*status));
    }
    let lacking: Vec<Family> = answers
        .iter()
        .filter(|(_, status)| refused(*status))
        .map(|(family, _)| *family)
        .collect();
    // Only development information documents this call, so elsewhere 404 says nothing; there it is a site that is not.
    let unknown_site = answers.contains(&(Family::Devinfo, StatusCode::NOT_FOUND));
    if lacking.len() == answers.len() || unknown_site {
        return Err(CredentialFault::OpensNothing);
    }
    if lacking.is_empty() {
        Ok(())
    } else {
        Err(CredentialFault::Lacking(lacking))
    }
}

/// As Jira's own form names them.
pub fn permission(family: Family) -> &'static str {
    match family {
        Family::Devinfo => "development information",
        Family::Builds => "builds",
        Family::Deployments => "deployments",
        Family::FeatureFlags => "feature flags",
        Family::RemoteLinks => "remote links",
    }
}

fn permissions(families: &[Family]) -> String {
    let names: Vec<&str> = families.iter().copied().map(permission).collect();
    let noun = if names.len() == 1 {
        "permission"
    } else {
        "permissions"
    };
    format!("the {noun} {}", names.join(", "))
}

impl CredentialFault {
    /// Stable name.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Token(error) => error.code(),
            Self::Silent(_) => "jira_unreachable",
            Self::Unwell(_) => "jira_unwell",
            Self::OpensNothing => "credentials_open_nothing",
            Self::Lacking(_) => "permissions_missing",
        }
    }

    /// What to do.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Token(error) => error.hint(),
            Self::Silent(_) => "the relay must be able to call jira.api_url",
            Self::Unwell(_) => "try again; Atlassian's status page may know more",
            Self::OpensNothing => {
                "make credentials on this very site (Jira: Settings > Apps > OAuth credentials) with builds, deployments, development information and feature flags"
            }
            Self::Lacking(_) => {
                "a Jira admin makes credentials with builds, deployments, development information and feature flags (Jira: Settings > Apps > OAuth credentials)"
            }
        }
    }
}

impl From<ForwardError> for CredentialFault {
    fn from(error: ForwardError) -> Self {
        match error {
            ForwardError::Token(error) => Self::Token(error),
            error => Self::Silent(error),
        }
    }
}

impl From<CredentialFault> for Reject {
    fn from(fault: CredentialFault) -> Self {
        let kind = match &fault {
            CredentialFault::Token(TokenError::Refused { .. })
            | CredentialFault::OpensNothing
            | CredentialFault::Lacking(_) => RejectKind::Unprocessable,
            CredentialFault::Token(_) | CredentialFault::Silent(_) | CredentialFault::Unwell(_) => {
                RejectKind::BadGateway
            }
        };
        Self::new(kind, fault.code(), fault.to_string(), fault.hint())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(statuses: [u16; 4]) -> Result<(), (&'static str, String)> {
        let status = |status| StatusCode::from_u16(status).expect("status");
        let answers: Vec<_> = NEEDED.into_iter().zip(statuses.map(status)).collect();
        judge(&answers).map_err(|fault| (fault.code(), fault.to_string()))
    }

    #[test]
    fn each_answer_has_its_meaning() {
        assert_eq!(judged([200, 404, 404, 404]), Ok(()));
        assert_eq!(judged([200, 200, 400, 405]), Ok(()));
        let (code, message) = judged([200, 403, 404, 401]).expect_err("two are missing");
        assert_eq!(code, "permissions_missing");
        assert!(
            message.ends_with("the permissions builds, feature flags"),
            "{message}"
        );
        let (_, message) = judged([403, 404, 404, 404]).expect_err("one is missing");
        assert!(
            message.ends_with("the permission development information"),
            "{message}"
        );
        for (statuses, expected) in [
            ([403, 403, 403, 403], "credentials_open_nothing"),
            ([401, 403, 401, 403], "credentials_open_nothing"),
            ([404, 404, 404, 404], "credentials_open_nothing"),
            ([200, 503, 404, 404], "jira_unwell"),
            ([403, 403, 429, 403], "jira_unwell"),
        ] {
            assert_eq!(judged(statuses).expect_err(expected).0, expected);
        }
    }
}
