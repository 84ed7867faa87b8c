//! The address of one self-managed GitLab.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};
use url::{Host, Url};

use super::origin::has_plain_host;

/// An instance's URL: https (or http where the operator allowed it), host, optional port and sub-path,
/// no trailing slash.
///
/// The sub-path holds unreserved characters only, because it enters the path that we sign and every
/// peer must hash the same text. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceUrl {
    text: Arc<str>,
    /// Where host and port end in `text`.
    origin_len: usize,
}

/// Why a text is no instance URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InstanceUrlError {
    /// Not an absolute URL.
    #[error("{0:?} is not a URL: write it like https://gitlab.example.com")]
    NotAUrl(String),
    /// A scheme other than http and https.
    #[error("the scheme is {0:?}, it must be https")]
    Scheme(String),
    /// User name, password, query or fragment.
    #[error("leave out {0}")]
    Extra(&'static str),
    /// A path that peers would hash differently.
    #[error(
        "the path {0:?} may only hold letters, digits, '-', '.', '_', '~' between single slashes"
    )]
    Path(String),
    /// Longer than GitLab's own column.
    #[error("it is longer than 255 characters")]
    TooLong,
}

impl InstanceUrl {
    /// Parses what a person typed: letter case of the host, a default port and trailing slashes are
    /// mended; anything else must be right.
    pub fn parse(text: &str) -> Result<Self, InstanceUrlError> {
        let text = text.trim();
        let url = Url::parse(text).map_err(|_| InstanceUrlError::NotAUrl(text.to_owned()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(InstanceUrlError::Scheme(url.scheme().to_owned()));
        }
        if url.host_str().is_none_or(str::is_empty) || !has_plain_host(&url) {
            return Err(InstanceUrlError::NotAUrl(text.to_owned()));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(InstanceUrlError::Extra("user name and password"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(InstanceUrlError::Extra("query and fragment"));
        }
        let path = url.path().trim_end_matches('/');
        // Dot segments and backslashes are gone from `path` by now; the text still shows them.
        let unreserved = |b: u8| b.is_ascii_alphanumeric() || b"-._~/".contains(&b);
        let dotted = text.split('/').any(|segment| matches!(segment, "." | ".."));
        if dotted || path.contains("//") || text.contains('\\') || !path.bytes().all(unreserved) {
            return Err(InstanceUrlError::Path(path.to_owned()));
        }
        let origin = url.origin().ascii_serialization();
        let text = format!("{origin}{path}");
        if text.len() > 255 {
            return Err(InstanceUrlError::TooLong);
        }
        Ok(Self {
            origin_len: origin.len(),
            text: text.into(),
        })
    }

    /// Reads an address as people give it to a browser or copy it from there: the scheme may be missing (GitLab's own
    /// proxy forgives that too), and what GitLab has behind its own address is cut off.
    pub fn from_typed(text: &str) -> Result<Self, InstanceUrlError> {
        let text = text.trim();
        let text = text.split(['?', '#']).next().unwrap_or_default();
        // GitLab keeps "/-/" for itself: no group, project or sub-path has a part of that name.
        let text = text.split("/-/").next().unwrap_or_default();
        let text = text.trim_end_matches('/');
        let text = ["/users/sign_in", "/dashboard", "/admin", "/explore"]
            .iter()
            .find_map(|page| text.strip_suffix(page))
            .unwrap_or(text);
        if text.contains("://") {
            Self::parse(text)
        } else {
            Self::parse(&format!("https://{text}"))
        }
    }

    /// The URL as text, without trailing slash.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// `scheme://host[:port]`.
    pub fn origin(&self) -> &str {
        self.text.get(..self.origin_len).unwrap_or_default()
    }

    /// The sub-path: empty, or `/` and something.
    pub fn path(&self) -> &str {
        self.text.get(self.origin_len..).unwrap_or_default()
    }

    /// `host[:port]`, as it stands in a `Host` header.
    pub fn authority(&self) -> &str {
        self.origin()
            .split_once("://")
            .map_or("", |(_, authority)| authority)
    }

    /// The host without port (an IPv6 address keeps its brackets).
    pub fn host(&self) -> &str {
        let authority = self.authority();
        match authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
            _ => authority,
        }
    }

    /// The port: its own, or its scheme's.
    pub fn port(&self) -> u16 {
        let own = self
            .authority()
            .strip_prefix(self.host())
            .and_then(|rest| rest.strip_prefix(':')?.parse().ok());
        own.unwrap_or_else(|| if self.is_https() { 443 } else { 80 })
    }

    /// Whether the connection is encrypted.
    pub fn is_https(&self) -> bool {
        self.text.starts_with("https://")
    }

    /// The address in the host's place, if it is no name.
    pub fn ip(&self) -> Option<std::net::IpAddr> {
        match Url::parse(&self.text).ok()?.host()? {
            Host::Ipv4(ip) => Some(ip.into()),
            Host::Ipv6(ip) => Some(ip.into()),
            Host::Domain(_) => None,
        }
    }
}

impl fmt::Display for InstanceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl TryFrom<String> for InstanceUrl {
    type Error = InstanceUrlError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<InstanceUrl> for String {
    fn from(url: InstanceUrl) -> Self {
        url.text.as_ref().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mends_spelling_and_keeps_the_sub_path() {
        for (typed, stored, origin, path, host) in [
            (
                "https://gitlab.example.com",
                "https://gitlab.example.com",
                "https://gitlab.example.com",
                "",
                "gitlab.example.com",
            ),
            (
                " https://GitLab.Example.com:443// ",
                "https://gitlab.example.com",
                "https://gitlab.example.com",
                "",
                "gitlab.example.com",
            ),
            (
                "https://example.com/git/lab/",
                "https://example.com/git/lab",
                "https://example.com",
                "/git/lab",
                "example.com",
            ),
            (
                "http://127.0.0.1:3000/gitlab",
                "http://127.0.0.1:3000/gitlab",
                "http://127.0.0.1:3000",
                "/gitlab",
                "127.0.0.1",
            ),
            (
                "https://[::1]:8443",
                "https://[::1]:8443",
                "https://[::1]:8443",
                "",
                "[::1]",
            ),
            (
                "https://[::1]",
                "https://[::1]",
                "https://[::1]",
                "",
                "[::1]",
            ),
        ] {
            let url = InstanceUrl::parse(typed).expect(typed);
            assert_eq!(
                (url.as_str(), url.origin(), url.path(), url.host()),
                (stored, origin, path, host)
            );
            assert_eq!(InstanceUrl::parse(url.as_str()), Ok(url.clone()), "stable");
        }
    }

    #[test]
    fn reads_what_people_copy_from_a_browser() {
        for (typed, expected) in [
            (" gitlab.example.com/ ", "https://gitlab.example.com"),
            ("GitLab.example.com:8443", "https://gitlab.example.com:8443"),
            (
                "https://example.com/gitlab/users/sign_in?x=1",
                "https://example.com/gitlab",
            ),
            (
                "https://example.com/gitlab/-/profile#a",
                "https://example.com/gitlab",
            ),
            ("http://10.0.0.1/dashboard", "http://10.0.0.1"),
        ] {
            let url = InstanceUrl::from_typed(typed).expect(typed);
            assert_eq!(url.as_str(), expected);
        }
        for bad in [
            "",
            "/",
            "two words",
            "ftp://gitlab.example.com",
            "javascript:alert(1)",
        ] {
            assert!(InstanceUrl::from_typed(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn refuses_what_cannot_be_signed_or_dialled_safely() {
        for bad in [
            "gitlab.example.com",
            "ftp://gitlab.example.com",
            "https://user:pw@gitlab.example.com",
            "https://gitlab.example.com/?a",
            "https://gitlab.example.com/#a",
            "https://gitlab.example.com/a b",
            "https://gitlab.example.com/a%2Fb",
            "https://gitlab.example.com/a/../b",
            "https://gitlab.example.com/a//b",
            "https://gitlab.example.com\\@evil.tld",
            "https://a;sandbox",
            "https://*",
            "https://a,b",
            "https://a'b",
            "https://",
            "",
        ] {
            assert!(InstanceUrl::parse(bad).is_err(), "{bad}");
        }
    }
}
