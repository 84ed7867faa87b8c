//! Whom the page in Forge may call: `instances.allow`, in the words of a manifest.

use crate::domain::{InstancePolicy, instance_policy::AllowPattern};

/// Addresses for a manifest's `permissions.external`, and what has no place there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Egress {
    /// `*` alone, or addresses by https.
    pub(super) addresses: Vec<String>,
    /// Why some instances are missing, a sentence each.
    pub(super) missing: Vec<String>,
}

impl Egress {
    /// Atlassian's rules: https, and names with a dot (npm `@forge/manifest`, `permissions-validator.js`).
    pub(super) fn of(policy: &InstancePolicy) -> Self {
        let mut addresses = Vec::new();
        let mut missing = Vec::new();
        let mut add = |host: &str, address: String, is_https: bool| {
            if !is_https {
                missing.push(format!("{address} is not https."));
            } else if !host.contains('.') {
                missing.push(format!("{address} has no dot in its name."));
            } else if !addresses.contains(&address) {
                addresses.push(address);
            }
        };
        for pattern in &policy.allow {
            match pattern {
                AllowPattern::Everybody => {
                    return Self {
                        addresses: vec!["*".to_owned()],
                        missing: Vec::new(),
                    };
                }
                AllowPattern::Host(host) => add(host, format!("https://{host}"), true),
                AllowPattern::Subdomains(suffix) => add(suffix, format!("*{suffix}"), true),
                AllowPattern::Url(url) => add(url.host(), url.origin().to_owned(), url.is_https()),
            }
        }
        Self { addresses, missing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(allow: &[&str]) -> Egress {
        Egress::of(&InstancePolicy {
            allow: allow
                .iter()
                .map(|text| AllowPattern::parse(text).expect("pattern"))
                .collect(),
            auto_link: Vec::new(),
            allow_http: true,
            allow_private_addresses: true,
        })
    }

    #[test]
    fn addresses_are_those_that_may_be_linked() {
        let egress = of(&[
            "gitlab.example.com",
            "*.example.org",
            "https://example.net:8443/gitlab",
            "https://example.net:8443/other",
            "http://gitlab.example.com",
            "gitlab",
        ]);
        assert_eq!(
            egress.addresses,
            [
                "https://gitlab.example.com",
                "*.example.org",
                "https://example.net:8443"
            ]
        );
        assert_eq!(
            egress.missing,
            [
                "http://gitlab.example.com is not https.",
                "https://gitlab has no dot in its name."
            ]
        );
        assert_eq!(of(&["gitlab.example.com", "*"]).addresses, ["*"]);
    }
}
