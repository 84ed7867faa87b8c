//! The claims of a token that an instance signed, taking us for Jira: HS256 with its link's secret, bound to the
//! request. Whose secret it was is told before, by `jira::recognise`.
//!
//! GitLab's tokens have `iss` (the app key), `iat`, `exp` (60 s later) and `qsh`, nothing else
//! (GitLab `lib/atlassian/jira_connect/client.rb`). The `iss` is the same for all instances and depends on how an
//! admin typed our address, so it proves nothing and is not compared.

use jiff::Timestamp;

use super::{Target, UnverifiedToken, VerifyError, qsh};

/// Checks times and hash.
pub fn check_claims(
    token: &UnverifiedToken,
    method: &str,
    target: &Target,
    now: Timestamp,
) -> Result<(), VerifyError> {
    let claims = &token.unverified_claims;
    claims.check_times(now)?;
    let hash = claims.request_hash()?;
    // The `baseUrl` that instances are given has no path.
    if qsh::gitlab_request_matches(target, method, "", hash) {
        Ok(())
    } else {
        Err(VerifyError::QueryHash)
    }
}
