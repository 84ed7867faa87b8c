//! The asymmetric token of `installed` and `uninstalled`: RS256 by Atlassian.
//!
//! Rules: Atlassian's "Security for Connect apps" and the `signed-install` migration. The signature binds
//! tenant (`iss`), app (`aud`), method, path and query (`qsh`), but not the body.

use jiff::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey};

use super::{
    InstallKeys, Target, UnverifiedToken, VerifyError, check_signature, install_keys::Purpose, qsh,
};
use crate::domain::{ClientKey, KeyId};

/// Verifies lifecycle tokens for one app.
pub struct LifecycleVerifier {
    audience: String,
    base_path: String,
    keys: InstallKeys,
}

/// What a verified lifecycle token proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LifecycleClaims {
    /// The tenant.
    pub client_key: ClientKey,
    /// When Jira signed it.
    pub issued_at: Timestamp,
    /// Tells this token from all others.
    pub token_digest: String,
}

impl LifecycleVerifier {
    /// `audience` is the app's `baseUrl`; `base_path` its path, which does not enter the hash.
    pub fn new(audience: String, base_path: String, keys: InstallKeys) -> Self {
        Self {
            audience,
            base_path,
            keys,
        }
    }

    /// Verifies a token for this request. Everything that can be judged without the key is judged first, so
    /// that a stranger can hardly make us fetch one.
    pub async fn verify(
        &self,
        token: &UnverifiedToken,
        body_client_key: &ClientKey,
        method: &str,
        target: &Target,
        now: Timestamp,
    ) -> Result<LifecycleClaims, VerifyError> {
        if token.unverified_header.alg != "RS256" {
            return Err(VerifyError::Algorithm { expected: "RS256" });
        }
        let unverified_kid = token
            .unverified_header
            .kid
            .as_deref()
            .ok_or(VerifyError::ClaimMissing("kid"))?;
        let kid = KeyId::parse(unverified_kid).map_err(|_| VerifyError::KeyIdMalformed)?;
        let claims = &token.unverified_claims;
        let issued_at = claims.check_times(now)?;
        claims.check_audience(&[&self.audience])?;
        let hash = claims.request_hash()?;
        if !qsh::jira_request_matches(target, method, &self.base_path, hash) {
            return Err(VerifyError::QueryHash);
        }
        let issuer = claims
            .iss
            .as_deref()
            .ok_or(VerifyError::ClaimMissing("iss"))?;
        if issuer != body_client_key.as_str() {
            return Err(VerifyError::IssuerMismatch);
        }
        let key = self.keys.find(&kid, Purpose::Lifecycle, now).await?;
        let key = DecodingKey::from_rsa_pem(key.public_pem.as_bytes())
            .map_err(|_| VerifyError::UnknownKey(kid))?;
        check_signature(token, &key, Algorithm::RS256)?;
        Ok(LifecycleClaims {
            client_key: body_client_key.clone(),
            issued_at,
            token_digest: token.digest(),
        })
    }

    /// Atlassian's keys, also for those who ask us for them.
    pub fn keys(&self) -> &InstallKeys {
        &self.keys
    }
}
