//! The symmetric token of everything else that Jira sends: HS256 with the installation's secret, bound to its
//! request by a real query string hash.
//!
//! Rules: Atlassian's "Understanding JWT for Connect apps".

use std::sync::Arc;

use jiff::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey};

use super::{Target, UnverifiedToken, VerifyError, check_signature, qsh};
use crate::domain::{ClientKey, Installation};

/// What a verified request token proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestClaims {
    /// The site that sent it.
    pub installation: Arc<Installation>,
    /// The Jira user, if the request is made for one.
    pub account_id: Option<String>,
}

/// The audiences that may be named by a symmetric token; Jira usually names none.
#[derive(Clone, Debug)]
pub struct Audiences {
    /// The app's `baseUrl`.
    pub base_url: String,
    /// The app's key.
    pub app_key: String,
}

/// Verifies a token that Jira made for this very request. The secret is looked up by the token's `iss` and
/// nothing else.
pub fn verify(
    token: &UnverifiedToken,
    method: &str,
    base_path: &str,
    target: &Target,
    audiences: &Audiences,
    find: impl FnOnce(&ClientKey) -> Option<Arc<Installation>>,
    now: Timestamp,
) -> Result<RequestClaims, VerifyError> {
    let hash = token
        .unverified_claims
        .qsh
        .as_deref()
        .ok_or(VerifyError::ClaimMissing("qsh"))?;
    if hash == qsh::CONTEXT {
        return Err(VerifyError::ContextToken);
    }
    if !qsh::jira_request_matches(target, method, base_path, hash) {
        return Err(VerifyError::QueryHash);
    }
    verify_symmetric(token, audiences, find, now)
}

/// What request and context tokens have in common: all but the hash.
pub(super) fn verify_symmetric(
    token: &UnverifiedToken,
    audiences: &Audiences,
    find: impl FnOnce(&ClientKey) -> Option<Arc<Installation>>,
    now: Timestamp,
) -> Result<RequestClaims, VerifyError> {
    if token.unverified_header.alg != "HS256" {
        return Err(VerifyError::Algorithm { expected: "HS256" });
    }
    let claims = &token.unverified_claims;
    claims.check_times(now)?;
    if claims.aud.is_some() {
        claims.check_audience(&[&audiences.base_url, &audiences.app_key])?;
    }
    let unverified_issuer = claims
        .iss
        .as_deref()
        .ok_or(VerifyError::ClaimMissing("iss"))?;
    let installation = ClientKey::parse(unverified_issuer)
        .ok()
        .and_then(|client_key| find(&client_key))
        .ok_or(VerifyError::UnknownIssuer)?;
    let proven = installation.accepted_secrets(now).any(|secret| {
        let key = DecodingKey::from_secret(secret.expose().as_bytes());
        check_signature(token, &key, Algorithm::HS256).is_ok()
    });
    if !proven {
        return Err(VerifyError::Signature);
    }
    if !installation.is_installed() {
        return Err(VerifyError::Uninstalled);
    }
    Ok(RequestClaims {
        installation,
        account_id: claims.sub.clone(),
    })
}
