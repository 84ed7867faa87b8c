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
    let hash = token.unverified_claims.request_hash()?;
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

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use jsonwebtoken::{EncodingKey, Header};
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        domain::{
            JiraSites, SharedSecret,
            event::{EventStamp, SiteFacts},
        },
        jwt::{context, crypto, qsh::Rule},
    };

    const PATH: &str = "/-/jira_connect/subscriptions?lic=none&cp=";

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("second")
    }

    fn secret(letter: &str) -> String {
        letter.repeat(32)
    }

    /// Secret "a" since 1000, "b" since 2000, "a" still good until 2300.
    fn rotated() -> Arc<Installation> {
        let key = ClientKey::parse("tenant").expect("key");
        let install = |known: Option<&Installation>, letter: &str, second| {
            let stamp = EventStamp {
                issued_at: at(second),
                token_digest: letter.to_owned(),
                body_digest: String::new(),
                received_at: at(second),
            };
            let site = SiteFacts {
                base_url: JiraSites::default()
                    .parse("https://acme.atlassian.net")
                    .expect("base URL"),
                display_url: None,
                shared_secret: SharedSecret::parse(&secret(letter)).expect("secret"),
            };
            let grace = SignedDuration::from_secs(300);
            Installation::install(known, &key, &stamp, &site, grace, at(second))
                .expect("install")
                .0
        };
        Arc::new(install(Some(&install(None, "a", 1000)), "b", 2000))
    }

    fn claims(now: i64) -> Value {
        let target = Target::parse(PATH).expect("target");
        json!({
            "iss": "tenant", "sub": "user", "iat": now, "exp": now + 180,
            "qsh": Rule::JiraSigns.qsh("GET", &target, "/-/jira_connect").as_str(),
        })
    }

    fn signed(letter: &str, claims: &Value) -> UnverifiedToken {
        crypto::install();
        let key = EncodingKey::from_secret(secret(letter).as_bytes());
        let header = Header::new(Algorithm::HS256);
        let text = jsonwebtoken::encode(&header, claims, &key).expect("sign");
        UnverifiedToken::parse(&text).expect("token")
    }

    fn audiences() -> Audiences {
        Audiences {
            base_url: "https://relay.example.com/-/jira_connect".to_owned(),
            app_key: "app".to_owned(),
        }
    }

    fn judge(token: &UnverifiedToken, now: i64) -> Result<RequestClaims, &'static str> {
        let target = Target::parse_strict(PATH, &[]).expect("target");
        let find = |key: &ClientKey| (key.as_str() == "tenant").then(rotated);
        verify(
            token,
            "GET",
            "/-/jira_connect",
            &target,
            &audiences(),
            find,
            at(now),
        )
        .map_err(|error| error.code())
    }

    #[test]
    fn the_secret_before_a_rotation_counts_for_the_grace_time() {
        assert!(judge(&signed("b", &claims(2400)), 2400).is_ok());
        let user = judge(&signed("a", &claims(2299)), 2299).map(|claims| claims.account_id);
        assert_eq!(user, Ok(Some("user".to_owned())));
        assert_eq!(
            judge(&signed("a", &claims(2300)), 2300),
            Err("token_signature")
        );
        assert_eq!(
            judge(&signed("c", &claims(2100)), 2100),
            Err("token_signature")
        );
    }

    #[test]
    fn each_claim_is_judged() {
        let with = |name: &str, value: Value| {
            let mut claims = claims(2100);
            claims
                .as_object_mut()
                .expect("object")
                .insert(name.to_owned(), value);
            judge(&signed("b", &claims), 2100).err()
        };
        assert_eq!(with("iss", json!("stranger")), Some("token_unknown_issuer"));
        assert_eq!(
            with("iss", json!("two words")),
            Some("token_unknown_issuer")
        );
        assert_eq!(with("qsh", json!("0")), Some("token_query_hash"));
        assert_eq!(
            with("qsh", json!("context-qsh")),
            Some("token_context_refused")
        );
        assert_eq!(with("qsh", json!(null)), Some("token_claim_missing"));
        assert_eq!(with("exp", json!(null)), Some("token_claim_missing"));
        assert_eq!(with("aud", json!("somebody")), Some("token_audience"));
        assert_eq!(with("aud", json!(["app"])), None);
        assert_eq!(with("aud", json!(audiences().base_url)), None);
    }

    #[test]
    fn a_context_token_is_another_kind() {
        let mut claims = claims(2100);
        let find = |_: &ClientKey| Some(rotated());
        let judge = |claims: &Value| {
            context::verify(&signed("b", claims), &audiences(), find, at(2100))
                .map_err(|error| error.code())
        };
        assert_eq!(judge(&claims).err(), Some("token_not_context"));
        for (hash, verdict) in [
            (json!("context-qsh"), None),
            (json!("context-qsh "), Some("token_not_context")),
            (json!(null), Some("token_claim_missing")),
        ] {
            claims
                .as_object_mut()
                .expect("object")
                .insert("qsh".to_owned(), hash);
            assert_eq!(judge(&claims).err(), verdict);
        }
    }

    #[test]
    fn a_site_that_removed_the_app_is_heard_no_more() {
        let mut gone = rotated().as_ref().clone();
        gone.state = crate::domain::InstallationState::Uninstalled;
        let gone = Arc::new(gone);
        let target = Target::parse_strict(PATH, &[]).expect("target");
        let token = signed("b", &claims(2100));
        let find = |_: &ClientKey| Some(gone);
        let verdict = verify(
            &token,
            "GET",
            "/-/jira_connect",
            &target,
            &audiences(),
            find,
            at(2100),
        );
        assert_eq!(verdict, Err(VerifyError::Uninstalled));
    }

    /// What `trace` says of the checks before the one that failed is true only if they are made in that order.
    #[test]
    fn the_first_check_that_does_not_hold_is_the_one_that_is_told() {
        let target = Target::parse_strict(PATH, &[]).expect("target");
        let mut installed = rotated().as_ref().clone();
        installed.state = crate::domain::InstallationState::Uninstalled;
        let known = Arc::new(installed);
        // Everything is wrong; then one thing after the other is put right.
        let mut claims = claims(2100);
        let good = claims.clone();
        for (name, bad) in [
            ("qsh", json!("x")),
            ("exp", json!(1500)),
            ("iat", json!(1400)),
            ("aud", json!("x")),
            ("iss", json!("x")),
        ] {
            claims[name] = bad;
        }
        let mut told = Vec::new();
        for mend in ["", "qsh", "exp", "iat", "nbf", "aud", "iss"] {
            match mend {
                "exp" => claims["exp"] = json!(99_999_999),
                "iat" => {
                    claims["iat"] = good["iat"].clone();
                    claims["nbf"] = json!(9_999_999);
                }
                "nbf" => claims["nbf"] = json!(2100),
                "aud" => claims["aud"] = json!("app"),
                mend if !mend.is_empty() => claims[mend] = good[mend].clone(),
                _ => {}
            }
            if mend == "exp" {
                claims["iat"] = json!(9_999_999);
            }
            let token = signed("c", &claims);
            let find = |key: &ClientKey| (key.as_str() == "tenant").then(|| Arc::clone(&known));
            let verdict = verify(
                &token,
                "GET",
                "/-/jira_connect",
                &target,
                &audiences(),
                find,
                at(2100),
            );
            told.extend(verdict.err().and_then(|error| error.check()));
        }
        let token = signed("b", &claims);
        let find = |_: &ClientKey| Some(Arc::clone(&known));
        let verdict = verify(
            &token,
            "GET",
            "/-/jira_connect",
            &target,
            &audiences(),
            find,
            at(2100),
        );
        told.extend(verdict.err().and_then(|error| error.check()));
        let in_order = super::super::TokenKind::Request.checks();
        let in_order: Vec<_> = in_order.iter().filter(|check| **check != "alg").collect();
        assert_eq!(told.iter().collect::<Vec<_>>(), in_order);
    }
}
