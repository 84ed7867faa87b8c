//! A token as it arrived: found in a request, taken apart, proven by nobody yet.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, header};
use jiff::Timestamp;
use serde::Deserialize;

use super::{TokenKind, VerifyError, qsh};
use crate::{
    digest::sha256_hex,
    trace::{
        Hop,
        hop::{TokenSeen, short},
    },
};

/// Longer tokens are refused before any work. The newest GitLab draws the same line
/// (GitLab `lib/atlassian/jira_connect/jwt_validator.rb`).
pub const TOKEN_MAX_BYTES: usize = 8192;

/// How far clocks may differ.
pub const LEEWAY_SECS: i64 = 60;

/// A token that has the right shape. Nothing in it is proven.
#[derive(Clone)]
pub struct UnverifiedToken {
    pub(super) text: String,
    pub(super) unverified_header: Header,
    pub(super) unverified_claims: Claims,
}

/// What a token's header says.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Header {
    pub(super) alg: String,
    pub(super) kid: Option<String>,
    /// Extensions that the reader must understand (RFC 7515 section 4.1.11). We understand none.
    crit: Option<serde_json::Value>,
}

/// The claims that peers use; others are ignored. Times are whole seconds: Atlassian's own library refuses
/// anything else.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Claims {
    pub(super) iss: Option<String>,
    pub(super) aud: Option<Audience>,
    pub(super) sub: Option<String>,
    pub(super) qsh: Option<String>,
    pub(super) iat: Option<i64>,
    pub(super) exp: Option<i64>,
    pub(super) nbf: Option<i64>,
}

/// `aud`: one or several (RFC 7519 section 4.1.3). Jira sends an array.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Audience {
    One(String),
    Several(Vec<String>),
}

impl fmt::Debug for UnverifiedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Whoever holds the text can use it.
        f.debug_struct("UnverifiedToken")
            .field("unverified_header", &self.unverified_header)
            .finish_non_exhaustive()
    }
}

impl UnverifiedToken {
    /// Finds the token of a request: `Authorization: JWT ...`, `jwt=` in the query, or a form field where a
    /// peer sends it so. The same token twice is tolerated, two different ones are refused.
    pub fn find<'a>(
        headers: &'a HeaderMap,
        query_tokens: impl Iterator<Item = &'a str>,
        form_token: Option<&'a str>,
    ) -> Result<Self, VerifyError> {
        Self::the_one(
            authorization(headers, "jwt")
                .chain(query_tokens)
                .chain(form_token),
        )
    }

    /// Finds the token of a request that Forge sent: `Authorization: Bearer ...`, and nowhere else.
    pub fn find_bearer(headers: &HeaderMap) -> Result<Self, VerifyError> {
        Self::the_one(authorization(headers, "bearer"))
    }

    fn the_one<'a>(tokens: impl Iterator<Item = &'a str>) -> Result<Self, VerifyError> {
        let mut found: Option<&str> = None;
        for token in tokens {
            if found.replace(token).is_some_and(|other| other != token) {
                return Err(VerifyError::Ambiguous);
            }
        }
        Self::parse(found.ok_or(VerifyError::Missing)?)
    }

    /// Takes a token apart.
    pub fn parse(text: &str) -> Result<Self, VerifyError> {
        if text.len() > TOKEN_MAX_BYTES {
            return Err(VerifyError::TooLarge { bytes: text.len() });
        }
        let mut parts = text.split('.');
        let (Some(header), Some(claims), Some(_), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(VerifyError::Malformed("it has not three parts"));
        };
        let header: Header = decode(header, "its header")?;
        let claims: Claims = decode(claims, "its claims")?;
        if header.crit.is_some() {
            return Err(VerifyError::Malformed("its header has critical extensions"));
        }
        Ok(Self {
            text: text.to_owned(),
            unverified_header: header,
            unverified_claims: claims,
        })
    }

    /// Claims that only one kind of token has.
    pub(super) fn more_claims<T: for<'de> Deserialize<'de>>(&self) -> Result<T, VerifyError> {
        decode(
            self.text.split('.').nth(1).unwrap_or_default(),
            "its claims",
        )
    }

    /// Its length as it came.
    pub fn bytes(&self) -> usize {
        self.text.len()
    }

    /// What may be shown of it, with what became of it. Never its signature.
    pub fn seen(&self, kind: TokenKind, refused: Option<&VerifyError>) -> Hop {
        let (header, claims) = (&self.unverified_header, &self.unverified_claims);
        let mut texts = Vec::with_capacity(5);
        let mut add = |name, text: Option<&str>| {
            if let Some(text) = text {
                texts.push((name, Box::from(short(text))));
            }
        };
        if matches!(kind, TokenKind::Lifecycle | TokenKind::Invocation) {
            add("kid", header.kid.as_deref());
        }
        if matches!(refused, Some(VerifyError::Algorithm { .. })) {
            add("alg", Some(&header.alg));
        }
        add("iss", claims.iss.as_deref());
        add("sub", claims.sub.as_deref());
        add("qsh", claims.qsh.as_deref());
        match &claims.aud {
            None => {}
            Some(Audience::One(one)) => add("aud", Some(one)),
            Some(Audience::Several(several)) => add("aud", Some(&several.join(", "))),
        }
        Hop::Token(Box::new(TokenSeen {
            kind: kind.as_str(),
            checks: kind.checks(),
            failed: refused.and_then(VerifyError::check),
            refused: refused.map(VerifyError::code),
            texts,
            times: [
                ("iat", claims.iat),
                ("exp", claims.exp),
                ("nbf", claims.nbf),
            ],
        }))
    }

    /// SHA-256 of what is signed, hex: the same for every way to write the same token.
    pub(super) fn digest(&self) -> String {
        let signed = self.text.rsplit_once('.').map_or("", |(signed, _)| signed);
        sha256_hex(signed.as_bytes())
    }
}

/// When a token ends, if it says so: for those that somebody else made for somebody else, and we only carry.
pub fn unverified_expiry(text: &str) -> Option<Timestamp> {
    #[derive(Deserialize)]
    struct Expiry {
        exp: i64,
    }

    let mut parts = text.split('.');
    let (_, claims, _, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next()) else {
        return None;
    };
    let Expiry { exp } = decode(claims, "its claims").ok()?;
    Timestamp::from_second(exp).ok()
}

impl Claims {
    /// The hash that binds the token to its request.
    pub(super) fn request_hash(&self) -> Result<&str, VerifyError> {
        match self.qsh.as_deref() {
            None => Err(VerifyError::ClaimMissing("qsh")),
            Some(qsh::CONTEXT) => Err(VerifyError::ContextToken),
            Some(hash) => Ok(hash),
        }
    }

    /// `exp` and `iat` must be there (Atlassian's library allows no endless tokens), `nbf` may be.
    pub(super) fn check_times(&self, now: Timestamp) -> Result<Timestamp, VerifyError> {
        let exp = self.exp.ok_or(VerifyError::ClaimMissing("exp"))?;
        let iat = self.iat.ok_or(VerifyError::ClaimMissing("iat"))?;
        let now = now.as_second();
        if exp <= iat || self.nbf.is_some_and(|nbf| exp <= nbf) {
            return Err(VerifyError::Malformed("it ends before it begins"));
        }
        if now >= exp.saturating_add(LEEWAY_SECS) {
            return Err(VerifyError::Expired { exp, now });
        }
        if iat > now.saturating_add(LEEWAY_SECS) {
            return Err(VerifyError::FromTheFuture { iat, now });
        }
        if let Some(nbf) = self
            .nbf
            .filter(|nbf| *nbf > now.saturating_add(LEEWAY_SECS))
        {
            return Err(VerifyError::NotYet { nbf, now });
        }
        Timestamp::from_second(iat).map_err(|_| VerifyError::Malformed("its times are absurd"))
    }

    /// Compares whole strings, less one trailing slash: a descriptor's base URL with a path may end in one.
    pub(super) fn check_audience(&self, accepted: &[&str]) -> Result<(), VerifyError> {
        let aud = self.aud.as_ref().ok_or(VerifyError::ClaimMissing("aud"))?;
        let named = match aud {
            Audience::One(one) => std::slice::from_ref(one),
            Audience::Several(several) => several,
        };
        let fits = |aud: &String| accepted.contains(&aud.strip_suffix('/').unwrap_or(aud));
        if named.iter().any(fits) {
            Ok(())
        } else {
            Err(VerifyError::Audience {
                expected: accepted
                    .first()
                    .map(ToString::to_string)
                    .unwrap_or_default(),
                unverified: format!("{named:?}").chars().take(200).collect(),
            })
        }
    }
}

/// What stands in `Authorization` behind a scheme.
fn authorization<'a>(headers: &'a HeaderMap, scheme: &str) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(header::AUTHORIZATION)
        .iter()
        .filter_map(|value| value.to_str().ok()?.split_once(' '))
        .filter(move |(named, _)| named.eq_ignore_ascii_case(scheme))
        .map(|(_, token)| token.trim())
}

fn decode<T: for<'de> Deserialize<'de>>(part: &str, what: &'static str) -> Result<T, VerifyError> {
    let json = URL_SAFE_NO_PAD
        .decode(part)
        .map_err(|_| VerifyError::Malformed(what))?;
    // Text, also where nobody looks (RFC 7515 section 4): no reader should make something else of it than we do.
    let json = String::from_utf8(json).map_err(|_| VerifyError::Malformed(what))?;
    serde_json::from_str(&json).map_err(|_| VerifyError::Malformed(what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn part(json: &str) -> String {
        URL_SAFE_NO_PAD.encode(json)
    }

    fn token(header: &str, claims: &str) -> String {
        format!("{}.{}.c2ln", part(header), part(claims))
    }

    fn headers(values: &[&str]) -> HeaderMap {
        values
            .iter()
            .map(|value| {
                (
                    header::AUTHORIZATION,
                    HeaderValue::from_str(value).expect("header"),
                )
            })
            .collect()
    }

    fn times(iat: Option<i64>, exp: Option<i64>, nbf: Option<i64>) -> Claims {
        Claims {
            iss: None,
            aud: None,
            sub: None,
            qsh: None,
            iat,
            exp,
            nbf,
        }
    }

    #[test]
    fn only_a_token_with_claims_tells_its_end() {
        let end = |claims| unverified_expiry(&token(r#"{"alg":"RS256"}"#, claims));
        let second = |second| Timestamp::from_second(second).ok();
        assert_eq!(
            end(r#"{"exp":1800000000,"scope":[1]}"#),
            second(1_800_000_000)
        );
        for claims in ["{}", "", r#"{"exp":"soon"}"#, r#"{"exp":1e99}"#, "[]"] {
            assert_eq!(end(claims), None, "{claims}");
        }
        let absurd = format!(r#"{{"exp":{}}}"#, i64::MAX);
        assert_eq!(end(&absurd), None);
        for opaque in [
            "",
            "ATOA1234",
            "a.b",
            "a.b.c",
            "a.b.c.d",
            "..",
            "\u{e4}.\u{e4}.\u{e4}",
        ] {
            assert_eq!(unverified_expiry(opaque), None, "{opaque}");
        }
    }

    #[test]
    fn is_found_in_header_query_and_form() {
        let text = token(r#"{"alg":"HS256"}"#, "{}");
        let jwt = format!("JWT {text}");
        let lower = format!("jwt {text}");
        let none = HeaderMap::new();
        assert!(UnverifiedToken::find(&headers(&[&jwt]), [].into_iter(), None).is_ok());
        assert!(UnverifiedToken::find(&headers(&[&lower]), [].into_iter(), None).is_ok());
        assert!(UnverifiedToken::find(&none, [text.as_str()].into_iter(), None).is_ok());
        assert!(UnverifiedToken::find(&none, [].into_iter(), Some(&text)).is_ok());
        assert!(
            UnverifiedToken::find(&headers(&[&jwt]), [text.as_str()].into_iter(), Some(&text))
                .is_ok()
        );
        let bearer = headers(&["Bearer x", "Basic eA=="]);
        assert_eq!(
            UnverifiedToken::find(&bearer, [].into_iter(), None).err(),
            Some(VerifyError::Missing)
        );
        let bearer = format!("bearer {text}");
        assert!(UnverifiedToken::find_bearer(&headers(&[&bearer, "Basic eA=="])).is_ok());
        for (values, error) in [
            (&[][..], VerifyError::Missing),
            (&[jwt.as_str()][..], VerifyError::Missing),
            (
                &[bearer.as_str(), "Bearer a.b.c"][..],
                VerifyError::Ambiguous,
            ),
        ] {
            let found = UnverifiedToken::find_bearer(&headers(values));
            assert_eq!(found.err(), Some(error), "{values:?}");
        }
    }

    #[test]
    fn a_header_that_is_no_text_is_refused() {
        let header = URL_SAFE_NO_PAD.encode(b"{\"alg\":\"HS256\",\"typ\":\"J\xffT\"}");
        let error = UnverifiedToken::parse(&format!("{header}.{}.c2ln", part("{}"))).err();
        assert_eq!(error, Some(VerifyError::Malformed("its header")));
    }

    #[test]
    fn two_different_tokens_are_one_too_many() {
        let text = token(r#"{"alg":"HS256"}"#, "{}");
        let jwt = format!("JWT {text}");
        let ambiguous = Some(VerifyError::Ambiguous);
        assert_eq!(
            UnverifiedToken::find(&headers(&[&jwt]), ["a.b.c"].into_iter(), None).err(),
            ambiguous
        );
        assert_eq!(
            UnverifiedToken::find(&headers(&[&jwt, "JWT x"]), [].into_iter(), None).err(),
            ambiguous
        );
        assert_eq!(
            UnverifiedToken::find(&HeaderMap::new(), ["a", "b"].into_iter(), None).err(),
            ambiguous
        );
    }

    #[test]
    fn shape_is_checked_before_anything_else() {
        let huge = "x".repeat(TOKEN_MAX_BYTES + 1);
        assert_eq!(
            UnverifiedToken::parse(&huge).err(),
            Some(VerifyError::TooLarge { bytes: 8193 })
        );
        for bad in [
            "",
            "a.b",
            "a.b.c.d",
            "a.b.c",
            &token(r#"{"alg":"HS256","crit":["b64"]}"#, "{}"),
            &token(r#"{"typ":"JWT"}"#, "{}"),
            &token(r#"{"alg":"HS256","alg":"none"}"#, "{}"),
            &token(r#"{"alg":"HS256"}"#, r#"{"iss":1}"#),
            &token(r#"{"alg":"HS256"}"#, r#"{"exp":"1"}"#),
            &token(r#"{"alg":"HS256"}"#, r#"{"exp":1.5}"#),
            &token(r#"{"alg":"HS256"}"#, r#"{"iss":"a","iss":"b"}"#),
        ] {
            assert!(
                matches!(UnverifiedToken::parse(bad), Err(VerifyError::Malformed(_))),
                "{bad}"
            );
        }
    }

    #[test]
    fn times_have_sixty_seconds_of_leeway() {
        let at = |second| Timestamp::from_second(second).expect("second");
        let claims = times(Some(1000), Some(1180), None);
        assert!(claims.check_times(at(1239)).is_ok());
        assert!(matches!(
            claims.check_times(at(1240)),
            Err(VerifyError::Expired { .. })
        ));
        assert!(claims.check_times(at(940)).is_ok());
        assert!(matches!(
            claims.check_times(at(939)),
            Err(VerifyError::FromTheFuture { .. })
        ));
        let claims = times(Some(1000), Some(1180), Some(1100));
        assert!(claims.check_times(at(1040)).is_ok());
        assert!(matches!(
            claims.check_times(at(1039)),
            Err(VerifyError::NotYet { .. })
        ));
        assert_eq!(
            times(Some(1), None, None).check_times(at(1)).err(),
            Some(VerifyError::ClaimMissing("exp"))
        );
        assert_eq!(
            times(None, Some(1), None).check_times(at(1)).err(),
            Some(VerifyError::ClaimMissing("iat"))
        );
        assert!(times(Some(2), Some(2), None).check_times(at(2)).is_err());
        assert!(
            times(Some(i64::MIN), Some(i64::MAX), Some(i64::MIN))
                .check_times(at(2))
                .is_err()
        );
    }

    #[test]
    fn the_audience_is_compared_whole() {
        let with = |aud| Claims {
            aud: Some(aud),
            ..times(None, None, None)
        };
        let base = "https://relay.example.com/-/jira_connect";
        let one = |text: &str| with(Audience::One(text.to_owned())).check_audience(&[base]);
        assert!(one(base).is_ok());
        assert!(one(&format!("{base}/")).is_ok());
        assert!(one(&format!("{base}//")).is_err());
        assert!(one(&format!("{base}/events")).is_err());
        assert!(one("https://relay.example.com").is_err());
        let several = Audience::Several(vec!["x".to_owned(), base.to_owned()]);
        assert!(with(several).check_audience(&[base]).is_ok());
        assert!(
            with(Audience::Several(Vec::new()))
                .check_audience(&[base])
                .is_err()
        );
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,200}", header in "\\PC{0,80}", claims in "\\PC{0,80}") {
            let _ = UnverifiedToken::parse(&text);
            let _ = UnverifiedToken::parse(&token(&header, &claims));
        }
    }
}
