//! The query string hash: the `qsh` claim that binds a token to one method, path and query.
//!
//! SHA-256 over `METHOD&path&query` in a canonical form. Atlassian's page "Understanding JWT for
//! Connect apps" describes one form; the libraries at work have three ([`Rule`]), so a hash is
//! checked against those that its sender may have used. What we send ourselves
//! ([`AgreedTarget`]) has the same form under all of them.
//! Tokens, their signatures and their other claims are for others.
//!
//! <https://developer.atlassian.com/cloud/jira/platform/understanding-jwt-for-connect-apps/>

use std::borrow::Cow;

use percent_encoding::{
    AsciiSet, NON_ALPHANUMERIC, PercentEncode, percent_decode_str, utf8_percent_encode,
};
use subtle::ConstantTimeEq;

use super::target::{Parameter, TOKEN_PARAMETER, Target, is_dot_segment};
use crate::digest::sha256_hex;

/// Whose canonical form. They differ in path escapes, trailing slashes and repeated parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Jira signing a call to an app: the Connect plugin over the `com.atlassian.jwt` library.
    /// Decodes the path.
    JiraSigns,
    /// Jira verifying a call from an app: the `com.atlassian.jwt` library. Takes the path raw.
    JiraVerifies,
    /// GitLab, both ways: the gem atlassian-jwt 0.2.1. Takes the path raw, and the values of a
    /// repeated parameter as they came.
    GitLab,
}

/// The hash of a canonical request: 64 lower-case hex digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qsh(String);

/// A request target that we send, of such plain form that all rules give it the same hash.
///
/// The base path, which the receiver removes before it hashes, is kept apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgreedTarget {
    base_path: String,
    path: String,
    /// Encoded, sorted by name: canonical as it is sent.
    query: String,
}

/// Why a target cannot be sent: the rules would not agree on it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AgreedTargetError {
    /// More than letters, digits and `_`; or empty.
    #[error("{name:?} is no plain parameter name")]
    ParameterName { name: String },
    /// Not made of non-empty segments of unreserved characters, or with a dot segment.
    #[error("{path:?} is no plain path")]
    Path { path: String },
    /// The same name twice.
    #[error("parameter {name:?} is given twice")]
    RepeatedParameter { name: String },
    /// A token among the parameters: it is added after signing, or travels in a header.
    #[error("the token is no parameter to be signed")]
    TokenParameter,
}

/// Whether `claim` is the hash of a request that Jira signed.
///
/// The raw path first, as the documented rule has it; then the decoded one, which is what Jira's
/// code signs. They differ only if the path holds an escape. Give it a target from
/// [`Target::parse_strict`]: what that refuses is not all covered by Jira's hash.
pub fn jira_request_matches(target: &Target, method: &str, base_path: &str, claim: &str) -> bool {
    let matches = |rule: Rule| rule.qsh(method, target, base_path).matches(claim);
    matches(Rule::JiraVerifies) || (target.path().contains('%') && matches(Rule::JiraSigns))
}

/// Whether `claim` is the hash of a request that a GitLab instance signed, posing as us towards
/// Jira: by the gem's rule, or by the one that Jira would check.
///
/// The gem cuts the query at `;`, handlers do not; GitLab encodes it, so with a raw one only Jira's
/// rule counts, and what is hashed stays what is read. Give it a strict target as well: the gem
/// hashes no trace of a repetition without `=`.
pub fn gitlab_request_matches(target: &Target, method: &str, base_path: &str, claim: &str) -> bool {
    let matches = |rule: Rule| rule.qsh(method, target, base_path).matches(claim);
    let read_alike = target.cut_at_semicolons().is_none();
    (read_alike && matches(Rule::GitLab)) || matches(Rule::JiraVerifies)
}

impl Rule {
    /// The canonical form of a request, `METHOD&path&query`.
    ///
    /// `base_path` is the path of the base URL that both parties know, or empty. It is removed once
    /// and as a bare prefix, like all three libraries do; that it ends at a segment's border is
    /// routing's to see to. (The gem takes it as a regular expression, and Jira does not sign what
    /// lies outside it. Neither shows below a base path of unreserved characters, and ours are.)
    pub fn canonical(self, method: &str, target: &Target, base_path: &str) -> String {
        let mut canonical = String::with_capacity(target.path().len() + CANONICAL_ROOM);
        canonical.push_str(method);
        canonical.make_ascii_uppercase();
        canonical.push('&');
        self.push_path(target.path(), base_path, &mut canonical);
        canonical.push('&');
        self.push_query(target, &mut canonical);
        canonical
    }

    /// The hash of a request.
    pub fn qsh(self, method: &str, target: &Target, base_path: &str) -> Qsh {
        Qsh::of(&self.canonical(method, target, base_path))
    }

    fn push_path(self, path: &str, base_path: &str, canonical: &mut String) {
        let raw = path.strip_prefix(base_path).unwrap_or(path);
        // Signing, Jira goes through java.net.URI, which decodes, then twice removes a slash.
        let (path, slashes) = match self {
            // Lossless: the target's escapes are known to be UTF-8.
            Self::JiraSigns => (percent_decode_str(raw).decode_utf8_lossy(), 2),
            Self::JiraVerifies | Self::GitLab => (Cow::Borrowed(raw), 1),
        };
        let mut path = path.as_ref();
        for _ in 0..slashes {
            path = path.strip_suffix('/').unwrap_or(path);
        }
        if !path.starts_with('/') {
            canonical.push('/');
        }
        for (position, piece) in path.split('&').enumerate() {
            if position > 0 {
                canonical.push_str("%26");
            }
            canonical.push_str(piece);
        }
    }

    fn push_query(self, target: &Target, canonical: &mut String) {
        let parameters = self.sorted_parameters(target);
        let groups = parameters.chunk_by(|a, b| a.name == b.name);
        for (position, namesakes) in groups.enumerate() {
            if position > 0 {
                canonical.push('&');
            }
            if let [first, ..] = namesakes {
                self.push_name(&first.name, canonical);
            }
            canonical.push('=');
            // To the gem, which reads by Ruby's CGI.parse, a parameter without `=` has no value
            // at all; to Java an empty one. It only shows if the parameter is repeated.
            let values = namesakes.iter().filter_map(|parameter| match self {
                Self::GitLab => parameter.value.as_deref(),
                Self::JiraSigns | Self::JiraVerifies => Some(parameter.value_or_empty()),
            });
            for (position, value) in values.enumerate() {
                if position > 0 {
                    canonical.push(',');
                }
                canonical.extend(encode(value));
            }
        }
    }

    /// The parameters that count, namesakes side by side.
    fn sorted_parameters(self, target: &Target) -> Vec<&Parameter> {
        let parameters = match self {
            Self::GitLab => target
                .cut_at_semicolons()
                .unwrap_or_else(|| target.parameters()),
            Self::JiraSigns | Self::JiraVerifies => target.parameters(),
        };
        let counts = |parameter: &&Parameter| {
            parameter.name != TOKEN_PARAMETER
                && (self == Self::GitLab || !parameter.name.is_empty())
        };
        let mut sorted: Vec<&Parameter> = parameters.iter().filter(counts).collect();
        match self {
            // Stable: values stay in order of arrival.
            Self::GitLab => sorted.sort_by(|a, b| a.name.cmp(&b.name)),
            // Java compares text by UTF-16 units, which is not the order of UTF-8.
            Self::JiraSigns | Self::JiraVerifies => sorted.sort_by(|a, b| {
                let (a_value, b_value) = (a.value_or_empty(), b.value_or_empty());
                encoded_bytes(&a.name)
                    .cmp(encoded_bytes(&b.name))
                    .then_with(|| a_value.encode_utf16().cmp(b_value.encode_utf16()))
            }),
        }
        sorted
    }

    fn push_name(self, name: &str, canonical: &mut String) {
        match self {
            // The gem turns `+` back into `%20` in values only.
            Self::GitLab => canonical.extend(encode(name).map(|piece| match piece {
                "%20" => "+",
                _ => piece,
            })),
            Self::JiraSigns | Self::JiraVerifies => canonical.extend(encode(name)),
        }
    }
}

impl Qsh {
    /// The fixed text of a token that is bound to no request.
    pub fn context() -> Self {
        Self(CONTEXT.to_owned())
    }

    /// Hashes a canonical form.
    pub fn of(canonical: &str) -> Self {
        Self(sha256_hex(canonical.as_bytes()))
    }

    /// The hash as the `qsh` claim has it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a token claims this hash, letter by letter, in constant time.
    pub fn matches(&self, claim: &str) -> bool {
        self.0.as_bytes().ct_eq(claim.as_bytes()).into()
    }
}

impl AgreedTarget {
    /// A target below a base path (empty or `/` if there is none), with parameters still unencoded.
    pub fn new(
        base_path: &str,
        path: &str,
        parameters: &[(&str, &str)],
    ) -> Result<Self, AgreedTargetError> {
        let base_path = base_path.strip_suffix('/').unwrap_or(base_path);
        if !base_path.is_empty() {
            check_plain_path(base_path)?;
        }
        check_plain_path(path)?;
        Ok(Self {
            base_path: base_path.to_owned(),
            path: path.to_owned(),
            query: plain_query(parameters)?,
        })
    }

    /// The target to send.
    pub fn path_and_query(&self) -> String {
        let Self {
            base_path,
            path,
            query,
        } = self;
        match query.as_str() {
            "" => [base_path.as_str(), path].concat(),
            _ => [base_path, path, "?", query].concat(),
        }
    }

    /// The hash to put into the token.
    pub fn qsh(&self, method: &str) -> Qsh {
        let Self { path, query, .. } = self;
        let method = method.to_ascii_uppercase();
        Qsh::of(&[method.as_str(), path, query].join("&"))
    }
}

fn check_plain_path(path: &str) -> Result<(), AgreedTargetError> {
    let is_unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let is_plain = |segment: &str| {
        !segment.is_empty() && !is_dot_segment(segment) && segment.bytes().all(is_unreserved)
    };
    match path.strip_prefix('/') {
        Some(segments) if segments.split('/').all(is_plain) => Ok(()),
        _ => Err(AgreedTargetError::Path {
            path: path.to_owned(),
        }),
    }
}

fn plain_query(parameters: &[(&str, &str)]) -> Result<String, AgreedTargetError> {
    let mut sorted = parameters.to_vec();
    sorted.sort_unstable();
    let mut query = String::new();
    let mut previous = None;
    for (name, value) in sorted {
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(AgreedTargetError::ParameterName {
                name: name.to_owned(),
            });
        }
        if name == TOKEN_PARAMETER {
            return Err(AgreedTargetError::TokenParameter);
        }
        if previous.replace(name) == Some(name) {
            return Err(AgreedTargetError::RepeatedParameter {
                name: name.to_owned(),
            });
        }
        if !query.is_empty() {
            query.push('&');
        }
        query.push_str(name);
        query.push('=');
        query.extend(encode(value));
    }
    Ok(query)
}

fn encode(text: &str) -> PercentEncode<'_> {
    utf8_percent_encode(text, RESERVED)
}

fn encoded_bytes(text: &str) -> impl Iterator<Item = u8> {
    encode(text).flat_map(str::bytes)
}

/// Beside the path: a method and a short query.
const CANONICAL_ROOM: usize = 128;

/// The fixed `qsh` of a context token, which is bound to no request. It is never the hash of one.
pub const CONTEXT: &str = "context-qsh";

/// All but the unreserved characters of RFC 3986, 2.3.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

#[cfg(test)]
mod tests;
