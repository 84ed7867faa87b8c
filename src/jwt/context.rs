//! The context token of `AP.context.getToken()`: HS256, its `qsh` is the fixed text `context-qsh`.
//!
//! It proves tenant and user, not the request, and says nothing about admin rights. A type of its own, so that
//! only routes meant for it can take it: mixing the two was CVE-2021-26073 and 26074.

use std::sync::Arc;

use jiff::Timestamp;

use super::{
    UnverifiedToken, VerifyError, qsh,
    request::{Audiences, RequestClaims, verify_symmetric},
};
use crate::domain::{ClientKey, Installation};

/// What a verified context token proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextClaims {
    /// The site whose page asked for it.
    pub installation: Arc<Installation>,
    /// The Jira user in front of the page.
    pub account_id: Option<String>,
}

/// Verifies a context token.
pub fn verify(
    token: &UnverifiedToken,
    audiences: &Audiences,
    find: impl FnOnce(&ClientKey) -> Option<Arc<Installation>>,
    now: Timestamp,
) -> Result<ContextClaims, VerifyError> {
    match token.unverified_claims.qsh.as_deref() {
        Some(qsh::CONTEXT) => {}
        Some(_) => return Err(VerifyError::NotContextToken),
        None => return Err(VerifyError::ClaimMissing("qsh")),
    }
    let RequestClaims {
        installation,
        account_id,
    } = verify_symmetric(token, audiences, find, now)?;
    Ok(ContextClaims {
        installation,
        account_id,
    })
}
