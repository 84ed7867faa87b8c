//! Tokens of Atlassian Connect and Forge: a verifier for each kind, the query string hash, and our signer.
//!
//! A kind fixes its algorithm and its checks; nothing in a token chooses them. What has not been proven is
//! named `unverified_*`. Time is an argument. Nothing here knows of routes or the store.

pub mod context;
pub mod crypto;
pub mod install_keys;
pub mod instance;
pub mod invocation;
pub mod jwks;
mod key_server;
pub mod lifecycle;
pub mod qsh;
pub mod request;
pub mod shared_key;
pub mod signer;
mod spent;
pub mod target;
pub mod token;

use jsonwebtoken::{Algorithm, DecodingKey, Validation};

use crate::{
    domain::{ForgeEnvironmentType, KeyId},
    reject::{Reject, RejectKind},
};
pub use install_keys::InstallKeys;
pub use invocation::{InvocationVerifier, VerifiedInvocation};
pub use jwks::KeySet;
pub use shared_key::SharedKey;
pub use signer::Signer;
pub use target::{Target, TargetError};
pub use token::UnverifiedToken;

/// Which verifier spoke; a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// RS256, from Atlassian.
    Lifecycle,
    /// HS256, bound to its request.
    Request,
    /// HS256, bound to tenant and user only.
    Context,
    /// HS256 with a link's secret, from an instance that takes us for Jira.
    Instance,
    /// RS256, from Forge, bound to installation and user only.
    Invocation,
}

/// Why a token was not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// There is none.
    #[error("the request carries no token")]
    Missing,
    /// There are several, and they differ.
    #[error("the request carries two different tokens")]
    Ambiguous,
    /// Over the limit.
    #[error("the token has {bytes} bytes, more than {max}", max = token::TOKEN_MAX_BYTES)]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// No token at all.
    #[error("the token is malformed: {0}")]
    Malformed(&'static str),
    /// Another algorithm than this kind of token has.
    #[error("the token is signed with another algorithm than {expected}")]
    Algorithm {
        /// The one that this kind has.
        expected: &'static str,
    },
    /// A claim that must be there is not.
    #[error("the token has no {0}")]
    ClaimMissing(&'static str),
    /// Not a key id.
    #[error("the token's key id is malformed")]
    KeyIdMalformed,
    /// Atlassian does not know the key.
    #[error("Atlassian's key server knows no key {0}")]
    UnknownKey(KeyId),
    /// Atlassian could not be asked, and we do not have the key.
    #[error("Atlassian's key server can't be asked for key {kid}: {cause}")]
    KeysUnavailable {
        /// Which key.
        kid: KeyId,
        /// Why not.
        cause: String,
    },
    /// The set of keys can't be had, and the last good one, if there is one, has not the key.
    #[error("Atlassian's key set can't be had for key {kid}: {cause}")]
    KeySetUnavailable {
        /// Which key.
        kid: KeyId,
        /// Why not.
        cause: String,
    },
    /// Issued by somebody else than who issues this kind.
    #[error("the token's issuer is not {expected}")]
    Issuer {
        /// Who issues it.
        expected: &'static str,
    },
    /// Of an environment of the app that the operator does not serve.
    #[error("the token comes from the app's environment {0}, which this relay does not serve")]
    Environment(ForgeEnvironmentType),
    /// It would have us send tokens to somebody else.
    #[error("the token's app.apiBaseUrl is not below {expected}/ex/jira/")]
    ApiAddress {
        /// The one gateway that gets them.
        expected: String,
        /// Theirs. For the log: an unproven text of a stranger.
        unverified: String,
    },
    /// It was used before.
    #[error("the token was used before: each is good for one request")]
    Replayed,
    /// So many of the installation's tokens are still remembered that another one could not be.
    #[error("the installation has made too many calls in a short time")]
    TooManyInvocations,
    /// No installation has this client key.
    #[error("the token's issuer is no site that this relay knows")]
    UnknownIssuer,
    /// The app is not installed there any more.
    #[error("the app is not installed on the token's site any more")]
    Uninstalled,
    /// It does not verify.
    #[error("the token's signature does not verify")]
    Signature,
    /// No link's secret signed it.
    #[error("the token is signed with no secret that this relay gave to an instance")]
    UnknownSecret,
    /// The link's secret signed it, but the link is over.
    #[error("the link of this instance is being removed")]
    LinkRemoved,
    /// So many tokens that nobody signed came from the caller's address that this one was not looked at.
    #[error("too many tokens with unknown secrets come from the caller's address")]
    TooManyUnknown,
    /// Too old.
    #[error("the token expired at {exp}, it is {now} (Unix seconds)")]
    Expired {
        /// Its end.
        exp: i64,
        /// Our clock.
        now: i64,
    },
    /// Issued later than now.
    #[error("the token was issued at {iat}, it is only {now} (Unix seconds)")]
    FromTheFuture {
        /// Its beginning.
        iat: i64,
        /// Our clock.
        now: i64,
    },
    /// Not valid yet.
    #[error("the token is valid from {nbf} on, it is only {now} (Unix seconds)")]
    NotYet {
        /// Its beginning.
        nbf: i64,
        /// Our clock.
        now: i64,
    },
    /// Meant for somebody else.
    #[error("the token is meant for somebody else than {expected}")]
    Audience {
        /// Us.
        expected: String,
        /// Them. For the log: an unproven text of a stranger.
        unverified: String,
    },
    /// Signed for one tenant, used for another.
    #[error("the token's issuer is not the client key of the body")]
    IssuerMismatch,
    /// Made for another request.
    #[error("the token was made for another method, path or query")]
    QueryHash,
    /// `context-qsh` where the request must be bound.
    #[error("a context token does not prove this request")]
    ContextToken,
    /// A request-bound token where a context token is wanted.
    #[error("this is no context token")]
    NotContextToken,
    /// The request's address is one that no honest peer sends.
    #[error(transparent)]
    Target(#[from] TargetError),
}

impl TokenKind {
    /// What its verifier looks at, in its order.
    fn checks(self) -> &'static [&'static str] {
        match self {
            Self::Lifecycle => &[
                "alg",
                "kid",
                "exp",
                "iat",
                "nbf",
                "aud",
                "qsh",
                "iss",
                "signature",
            ],
            Self::Request | Self::Context => &[
                "qsh",
                "alg",
                "exp",
                "iat",
                "nbf",
                "aud",
                "iss",
                "signature",
                "site",
            ],
            Self::Instance => &["alg", "signature", "exp", "iat", "nbf", "qsh", "site"],
            Self::Invocation => &[
                "alg",
                "kid",
                "iss",
                "aud",
                "nbf",
                "exp",
                "iat",
                "app",
                "signature",
                "jti",
            ],
        }
    }

    /// The word in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lifecycle => "lifecycle",
            Self::Request => "request",
            Self::Context => "context",
            Self::Instance => "instance",
            Self::Invocation => "invocation",
        }
    }
}

impl VerifyError {
    /// Stable name: in answers, logs and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing => "token_missing",
            Self::Ambiguous => "token_ambiguous",
            Self::TooLarge { .. } => "token_too_large",
            Self::Malformed(_) => "token_malformed",
            Self::Algorithm { .. } => "token_algorithm",
            Self::ClaimMissing(_) => "token_claim_missing",
            Self::KeyIdMalformed => "token_key_id",
            Self::UnknownKey(_) => "token_unknown_key",
            Self::KeysUnavailable { .. } => "key_server_unavailable",
            Self::KeySetUnavailable { .. } => "key_set_unavailable",
            Self::Issuer { .. } => "token_issuer",
            Self::Environment(_) => "token_environment",
            Self::ApiAddress { .. } => "token_api_address",
            Self::Replayed => "token_replayed",
            Self::TooManyInvocations => "token_too_many_invocations",
            Self::UnknownIssuer => "token_unknown_issuer",
            Self::Uninstalled => "token_site_uninstalled",
            Self::Signature => "token_signature",
            Self::UnknownSecret => "token_unknown_secret",
            Self::LinkRemoved => "link_removed",
            Self::TooManyUnknown => "token_too_many_unknown",
            Self::Expired { .. } => "token_expired",
            Self::FromTheFuture { .. } => "token_from_the_future",
            Self::NotYet { .. } => "token_not_yet_valid",
            Self::Audience { .. } => "token_audience",
            Self::IssuerMismatch => "token_issuer_mismatch",
            Self::QueryHash => "token_query_hash",
            Self::ContextToken => "token_context_refused",
            Self::NotContextToken => "token_not_context",
            Self::Target(error) => error.code(),
        }
    }

    /// Which of a kind's checks did not hold, if it was one of them.
    fn check(&self) -> Option<&'static str> {
        match self {
            Self::Missing
            | Self::Ambiguous
            | Self::TooLarge { .. }
            | Self::Malformed(_)
            | Self::TooManyUnknown
            | Self::TooManyInvocations
            | Self::Target(_) => None,
            Self::Algorithm { .. } => Some("alg"),
            Self::ClaimMissing(claim) if claim.starts_with("app.") => Some("app"),
            Self::ClaimMissing(claim) => Some(claim),
            Self::Environment(_) | Self::ApiAddress { .. } => Some("app"),
            Self::Replayed => Some("jti"),
            Self::KeyIdMalformed => Some("kid"),
            Self::UnknownKey(_)
            | Self::KeysUnavailable { .. }
            | Self::KeySetUnavailable { .. }
            | Self::Signature
            | Self::UnknownSecret => Some("signature"),
            Self::UnknownIssuer | Self::IssuerMismatch | Self::Issuer { .. } => Some("iss"),
            Self::Uninstalled | Self::LinkRemoved => Some("site"),
            Self::Expired { .. } => Some("exp"),
            Self::FromTheFuture { .. } => Some("iat"),
            Self::NotYet { .. } => Some("nbf"),
            Self::Audience { .. } => Some("aud"),
            Self::QueryHash | Self::ContextToken | Self::NotContextToken => Some("qsh"),
        }
    }

    fn hint(&self) -> &'static str {
        match self {
            Self::Missing => {
                "send it as `Authorization: JWT <token>`, Forge's as `Authorization: Bearer <token>`"
            }
            Self::Ambiguous => "send one token, in one place",
            Self::Expired { .. } | Self::FromTheFuture { .. } | Self::NotYet { .. } => {
                "compare the clocks of both sides"
            }
            Self::Audience { expected, .. } if expected.starts_with("ari:") => {
                "forge.app_id must be exactly the app.id of the manifest that was deployed"
            }
            Self::Audience { .. } => {
                "public.url and public.base_path must be exactly the app's baseUrl as Jira has it"
            }
            Self::QueryHash => {
                "something between the caller and this relay rewrites the path or the query, or the token was taken from another request"
            }
            Self::UnknownKey(_) | Self::Signature | Self::UnknownIssuer => {
                "the caller is not who it says, or speaks of another app"
            }
            Self::Uninstalled => "install the app again",
            Self::UnknownSecret => {
                "the instance holds an old secret, or that of another relay: resend its link (POST /api/v1/links/{id}/resend)"
            }
            Self::LinkRemoved => {
                "link the instance again if that was not meant (POST /api/v1/links)"
            }
            Self::TooManyUnknown => {
                "an instance that was recognised from there lately is not affected; stop the others, then try again"
            }
            Self::KeySetUnavailable { .. } => {
                "check that this relay reaches forge.jwks_url, then try again"
            }
            Self::Environment(_) => {
                "add it to forge.environments, if whoever can deploy to it may reach this relay"
            }
            Self::ApiAddress { .. } => {
                "set jira.api_url, if that is where Atlassian serves your sites"
            }
            Self::Replayed => "call again: Forge gives each invocation a token of its own",
            Self::TooManyInvocations => "try again in a minute",
            Self::KeysUnavailable { .. } => {
                "check that this relay reaches jira.install_keys_url, then try again"
            }
            _ => "an honest peer does not send this",
        }
    }
}

impl From<VerifyError> for Reject {
    fn from(error: VerifyError) -> Self {
        let kind = match error {
            VerifyError::Ambiguous | VerifyError::Target(_) => RejectKind::Malformed,
            VerifyError::KeysUnavailable { .. } | VerifyError::KeySetUnavailable { .. } => {
                RejectKind::Unavailable
            }
            VerifyError::TooManyUnknown | VerifyError::TooManyInvocations => RejectKind::Throttled,
            _ => RejectKind::Unauthenticated,
        };
        let internal = match &error {
            VerifyError::Audience { unverified, .. } => Some(format!("its aud is {unverified}")),
            VerifyError::ApiAddress { unverified, .. } => {
                Some(format!("its app.apiBaseUrl is {unverified}"))
            }
            _ => None,
        };
        Self {
            internal,
            ..Self::new(kind, error.code(), error.to_string(), error.hint())
        }
    }
}

/// Checks the signature with the one algorithm that the kind of token has. The claims were read from the same
/// bytes and are judged by us, with our own clock, so jsonwebtoken's checks of claims are off.
fn check_signature(
    token: &UnverifiedToken,
    key: &DecodingKey,
    algorithm: Algorithm,
) -> Result<(), VerifyError> {
    let mut validation = Validation::new(algorithm);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    jsonwebtoken::decode::<serde::de::IgnoredAny>(&token.text, key, &validation)
        .map(|_| ())
        .map_err(|_| VerifyError::Signature)
}
