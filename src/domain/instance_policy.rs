//! Which instances an operator lets be linked.

use std::net::IpAddr;

use super::{InstanceUrl, instance_url::InstanceUrlError};

/// The operator's word on instances (`[instances]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstancePolicy {
    /// Any one of these must match.
    pub allow: Vec<AllowPattern>,
    /// Linked to every installation.
    pub auto_link: Vec<InstanceUrl>,
    /// Plain http is accepted.
    pub allow_http: bool,
    /// Loopback, private and other non-public addresses are accepted.
    pub allow_private_addresses: bool,
}

/// One entry of `instances.allow`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowPattern {
    /// `*`
    Everybody,
    /// `gitlab.example.com`, any port and sub-path.
    Host(String),
    /// `*.example.com`: the part from the first dot on. The bare domain is not meant.
    Subdomains(String),
    /// A URL and everything below it.
    Url(InstanceUrl),
}

/// Why an instance may not be linked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// `http://` without the operator's leave.
    #[error("{0} is not https, and secrets would travel in clear")]
    NotHttps(InstanceUrl),
    /// No pattern matches.
    #[error("{0} is not among the instances that this relay's operator allows")]
    NotListed(InstanceUrl),
    /// An address in place of a name, and not a public one.
    #[error("{0} is not a public address")]
    NotPublic(IpAddr),
}

impl AllowPattern {
    /// Parses one entry.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lower = text.trim().to_ascii_lowercase();
        let name_ok = |name: &str| {
            !name.is_empty()
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
        };
        let ipv6 = |name: &str| {
            name.strip_prefix('[')
                .and_then(|name| name.strip_suffix(']'))
                .is_some_and(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok())
        };
        if lower == "*" {
            return Ok(Self::Everybody);
        }
        if lower.contains("://") {
            return InstanceUrl::parse(text)
                .map(Self::Url)
                .map_err(|error: InstanceUrlError| error.to_string());
        }
        match lower.strip_prefix('*') {
            Some(suffix) if suffix.strip_prefix('.').is_some_and(name_ok) => {
                Ok(Self::Subdomains(suffix.to_owned()))
            }
            None if name_ok(&lower) || ipv6(&lower) => Ok(Self::Host(lower)),
            _ => Err(format!(
                "{text:?} is none of: *, gitlab.example.com, *.example.com, https://example.com:8443/gitlab (a port goes with a URL)"
            )),
        }
    }

    fn matches(&self, url: &InstanceUrl) -> bool {
        match self {
            Self::Everybody => true,
            Self::Host(host) => url.host() == host,
            Self::Subdomains(suffix) => url
                .host()
                .strip_suffix(suffix.as_str())
                .is_some_and(|label| !label.is_empty()),
            Self::Url(allowed) => {
                url.origin() == allowed.origin()
                    && url
                        .path()
                        .strip_prefix(allowed.path())
                        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
        }
    }
}

impl InstancePolicy {
    /// Whether `url` may be linked. Names are resolved and their addresses judged when they are dialled.
    pub fn check(&self, url: &InstanceUrl) -> Result<(), PolicyError> {
        if !url.is_https() && !self.allow_http {
            return Err(PolicyError::NotHttps(url.clone()));
        }
        if !self.allow.iter().any(|pattern| pattern.matches(url)) {
            return Err(PolicyError::NotListed(url.clone()));
        }
        match url.ip() {
            Some(ip) if !self.allow_private_addresses && !super::address::is_public(ip) => {
                Err(PolicyError::NotPublic(ip))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(allow: &[&str]) -> InstancePolicy {
        InstancePolicy {
            allow: allow
                .iter()
                .map(|text| AllowPattern::parse(text).expect("pattern"))
                .collect(),
            auto_link: Vec::new(),
            allow_http: false,
            allow_private_addresses: false,
        }
    }

    fn allows(patterns: &[&str], url: &str) -> bool {
        policy(patterns)
            .check(&InstanceUrl::parse(url).expect("url"))
            .is_ok()
    }

    #[test]
    fn patterns_match_whole_labels_and_segments() {
        assert!(allows(&["*"], "https://gitlab.example.com"));
        assert!(allows(
            &["gitlab.example.com"],
            "https://gitlab.example.com:8443/sub"
        ));
        assert!(!allows(
            &["gitlab.example.com"],
            "https://xgitlab.example.com"
        ));
        assert!(allows(&["*.example.com"], "https://a.b.example.com"));
        assert!(!allows(&["*.example.com"], "https://example.com"));
        assert!(!allows(&["*.example.com"], "https://evilexample.com"));
        assert!(allows(
            &["https://example.com/gitlab"],
            "https://example.com/gitlab/two"
        ));
        assert!(!allows(
            &["https://example.com/gitlab"],
            "https://example.com/gitlabs"
        ));
        assert!(!allows(
            &["https://example.com/gitlab"],
            "https://example.com:8443/gitlab"
        ));
        assert!(!allows(&[], "https://gitlab.example.com"));
    }

    #[test]
    fn danger_needs_the_operators_leave() {
        let mut policy = policy(&["*"]);
        let plain = InstanceUrl::parse("http://gitlab.example.com").expect("url");
        let local = InstanceUrl::parse("https://127.0.0.1:3000").expect("url");
        assert_eq!(
            policy.check(&plain),
            Err(PolicyError::NotHttps(plain.clone()))
        );
        assert!(matches!(
            policy.check(&local),
            Err(PolicyError::NotPublic(_))
        ));
        policy.allow_http = true;
        policy.allow_private_addresses = true;
        assert_eq!(
            (policy.check(&plain), policy.check(&local)),
            (Ok(()), Ok(()))
        );
    }

    #[test]
    fn nonsense_patterns_are_refused() {
        for bad in [
            "",
            "*example.com",
            "a b",
            "*.",
            "http://",
            "gitlab.example.com:8443",
            "[::1",
        ] {
            assert!(AllowPattern::parse(bad).is_err(), "{bad}");
        }
        assert!(allows(&["[2606:4700::1]"], "https://[2606:4700::1]:8443"));
    }
}
