//! Addresses of the two parties above the instances: Jira sites, and ourselves.

use std::fmt;

use serde::{Deserialize, Serialize};
use url::{Host, Url};

/// What is wrong with an address that should be `scheme://host[:port]` and nothing else.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    /// Not an absolute URL at all.
    #[error("it is not a URL ({0})")]
    NotAUrl(url::ParseError),
    /// A scheme other than http and https.
    #[error("its scheme is {0:?}; only https (and http on loopback) makes sense")]
    Scheme(String),
    /// No host, or something the URL standard would rewrite.
    #[error("it has no usable host")]
    Host,
    /// Anything behind host and port: path, trailing slash, query, fragment, user.
    #[error("it has more than scheme, host and port: leave out {0}")]
    Extra(&'static str),
    /// Upper case, a default port or another spelling that peers compare byte by byte.
    #[error("peers compare it byte by byte, so write it as {0:?}")]
    NotCanonical(String),
}

/// Our own address as others type it: scheme, lowercase host, optional port, nothing else.
///
/// GitLab compares its CORS setting with a browser's `Origin` byte by byte and derives the app key
/// from host and path of this URL, so a trailing slash or a capital letter breaks it
/// (GitLab `config/application.rb`, `lib/atlassian/jira_connect.rb`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicUrl {
    text: String,
    host: String,
    loopback: bool,
}

/// The REST base of one Jira site, without trailing slash.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JiraBaseUrl(String);

/// Which Jira sites may install us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JiraSites {
    extra: Vec<String>,
}

/// Why a Jira base URL is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JiraBaseUrlError {
    /// It is no plain origin.
    #[error("the site's base URL is unusable: {0}")]
    Unusable(#[from] OriginError),
    /// The host is neither Atlassian's nor listed.
    #[error("{0} is neither under atlassian.net or jira.com nor listed in jira.extra_sites")]
    NotAllowed(String),
}

impl PublicUrl {
    /// Parses the address from the configuration; refuses every spelling but the canonical one.
    pub fn parse(text: &str) -> Result<Self, OriginError> {
        let (url, canonical) = parse_origin(text)?;
        if canonical != text {
            return Err(OriginError::NotCanonical(canonical));
        }
        Ok(Self {
            loopback: is_loopback(&url),
            host: url.host_str().unwrap_or_default().to_owned(),
            text: canonical,
        })
    }

    /// `scheme://host[:port]`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The host name without port.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Whether it starts with `https://`.
    pub fn is_https(&self) -> bool {
        self.text.starts_with("https://")
    }

    /// Whether it names this machine only.
    pub fn is_loopback(&self) -> bool {
        self.loopback
    }
}

impl JiraBaseUrl {
    /// The base URL as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl JiraSites {
    /// Sites accepted beside Atlassian's own host names, exactly as the operator listed them.
    pub fn new(extra: &[String]) -> Result<Self, (String, OriginError)> {
        let extra = extra
            .iter()
            .map(|site| {
                parse_origin(site)
                    .map(|(_, canonical)| canonical)
                    .map_err(|error| (site.clone(), error))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { extra })
    }

    /// What the operator listed.
    pub fn listed(&self) -> &[String] {
        &self.extra
    }

    /// Whether the operator listed this very address.
    pub fn is_listed(&self, site: &JiraBaseUrl) -> bool {
        self.extra.contains(&site.0)
    }

    /// Accepts `https://<site>.atlassian.net`, `https://<site>.jira.com` (on a label border, default
    /// port) and what the operator listed. One trailing slash is forgiven.
    pub fn parse(&self, text: &str) -> Result<JiraBaseUrl, JiraBaseUrlError> {
        let (url, canonical) = parse_origin(text.strip_suffix('/').unwrap_or(text))?;
        let host = url.host_str().unwrap_or_default();
        let atlassian = url.scheme() == "https"
            && url.port().is_none()
            && [".atlassian.net", ".jira.com"].iter().any(|suffix| {
                host.strip_suffix(suffix)
                    .is_some_and(|site| !site.is_empty())
            });
        if atlassian || self.extra.contains(&canonical) {
            Ok(JiraBaseUrl(canonical))
        } else {
            Err(JiraBaseUrlError::NotAllowed(canonical))
        }
    }
}

impl fmt::Display for PublicUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for JiraBaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a host holds nothing but what names and addresses are made of.
///
/// The URL standard also admits `;`, `,`, `*` and `'`, which mean something in the headers that origins end up in.
pub fn has_plain_host(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_')),
        Some(Host::Ipv4(_) | Host::Ipv6(_)) => true,
        None => false,
    }
}

/// Parses `scheme://host[:port]` and returns it with its canonical text.
pub(super) fn parse_origin(text: &str) -> Result<(Url, String), OriginError> {
    let url = Url::parse(text).map_err(OriginError::NotAUrl)?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(OriginError::Scheme(url.scheme().to_owned()));
    }
    if url.host_str().is_none_or(str::is_empty) || !has_plain_host(&url) {
        return Err(OriginError::Host);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(OriginError::Extra("user name and password"));
    }
    if url.query().is_some() {
        return Err(OriginError::Extra("the query"));
    }
    if url.fragment().is_some() {
        return Err(OriginError::Extra("the fragment"));
    }
    // The URL standard adds a root path where none was typed, so look at the text as well.
    if url.path() != "/" {
        return Err(OriginError::Extra("the path"));
    }
    if text.ends_with('/') {
        return Err(OriginError::Extra("the trailing slash"));
    }
    let canonical = url.as_str().trim_end_matches('/').to_owned();
    Ok((url, canonical))
}

/// Whether an address names this machine only.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_address_has_one_spelling() {
        for good in [
            "https://relay.example.com",
            "https://relay.example.com:8443",
            "http://127.0.0.1:8080",
            "http://[::1]:8080",
        ] {
            assert_eq!(PublicUrl::parse(good).map(|u| u.text), Ok(good.to_owned()));
        }
        for bad in [
            "relay.example.com",
            "https://relay.example.com/",
            "https://Relay.example.com",
            "https://relay.example.com:443",
            "https://relay.example.com/sub",
            "https://user@relay.example.com",
            "https://relay.example.com?x",
            "https://relay.example.com#x",
            "ftp://relay.example.com",
            "https://",
        ] {
            assert!(PublicUrl::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_jira_site_is_matched_on_a_label_border() {
        let sites = JiraSites::new(&["http://127.0.0.1:9999".to_owned()]).expect("sites");
        for good in [
            "https://acme.atlassian.net",
            "https://acme.atlassian.net/",
            "https://acme.jira.com",
            "http://127.0.0.1:9999",
        ] {
            assert!(sites.parse(good).is_ok(), "{good}");
        }
        for bad in [
            "http://acme.atlassian.net",
            "https://acme.atlassian.net:8443",
            "https://atlassian.net",
            "https://evilatlassian.net",
            "https://acme.atlassian.net.evil.tld",
            "https://acme.atlassian.net@evil.tld",
            "https://acme.atlassian.net/path",
            "https://acme.jira-dev.com",
            "http://127.0.0.1:9998",
            "https://.atlassian.net",
            "",
        ] {
            assert!(sites.parse(bad).is_err(), "{bad}");
        }
    }
}
