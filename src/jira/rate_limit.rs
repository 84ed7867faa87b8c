//! What Jira's rate limits ask of us: how long, and of which calls.
//!
//! Three limits work at once (Atlassian's "Rate limiting", and "Build an app that respects rate limits"): points an
//! hour, calls a second, writes to one issue. `RateLimit-Reason` says which one spoke, and so what must wait.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use jiff::Timestamp;

/// What a pause holds back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// One write, for reasons of its own.
    Write,
    /// Writes about the issues that one write is about.
    Issue,
    /// One method on one family of one site.
    Endpoint,
    /// Everything for one site.
    Installation,
    /// Everything of the app, on whichever site.
    App,
}

/// A wish of Jira's to be left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Throttle {
    /// With what.
    pub scope: Scope,
    /// At least so long, if it says so.
    pub at_least: Option<Duration>,
}

/// Nobody is believed to want longer: the longest quota of Atlassian's is an hour.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

impl Scope {
    /// The word in answers and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Issue => "issue",
            Self::Endpoint => "endpoint",
            Self::Installation => "installation",
            Self::App => "app",
        }
    }
}

impl Throttle {
    /// Of a site that is in trouble and does not say for how long.
    pub fn of_installation() -> Self {
        Self {
            scope: Scope::Installation,
            at_least: None,
        }
    }
}

/// Reads an answer's headers. Also a success can say that nothing is left.
pub fn throttle(status: StatusCode, headers: &HeaderMap, now: Timestamp) -> Option<Throttle> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let exhausted = text("x-ratelimit-remaining") == Some("0");
    if status.is_success() && !exhausted {
        return None;
    }
    let reason = text("ratelimit-reason").or_else(|| text("x-beta-ratelimit-reason"));
    let scope = match reason {
        Some("jira-burst-based") => Scope::Endpoint,
        Some("jira-per-issue-on-write") => Scope::Issue,
        Some("jira-quota-global-based") => Scope::App,
        // A quota of the tenant, or no reason: then the whole site is the safe reading.
        _ => Scope::Installation,
    };
    let at_least = match status.is_success() {
        false => text("retry-after").and_then(|text| retry_after(text, now)),
        true => None,
    };
    let at_least = at_least.or_else(|| {
        let reset: Timestamp = text("x-ratelimit-reset")?.parse().ok()?;
        (exhausted || status == StatusCode::TOO_MANY_REQUESTS).then(|| until(reset, now))
    });
    // A refusal of another kind asks for nothing.
    if status != StatusCode::TOO_MANY_REQUESTS && at_least.is_none() {
        return None;
    }
    Some(Throttle { scope, at_least })
}

/// Seconds, or a date (RFC 9110 section 10.2.3).
pub(super) fn retry_after(text: &str, now: Timestamp) -> Option<Duration> {
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds).min(LONGEST));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?;
    Some(until(date.timestamp(), now))
}

fn until(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(then.duration_since(now))
        .unwrap_or_default()
        .min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(status: u16, headers: &[(&'static str, &str)]) -> Option<(Scope, Option<u64>)> {
        let headers = headers
            .iter()
            .map(|(name, value)| {
                (
                    http::HeaderName::from_static(name),
                    value.parse().expect("header"),
                )
            })
            .collect();
        let now = "2026-11-25T12:00:00Z".parse().expect("time");
        let status = StatusCode::from_u16(status).expect("status");
        throttle(status, &headers, now).map(|t| (t.scope, t.at_least.map(|d| d.as_secs())))
    }

    #[test]
    fn the_reason_names_the_scope() {
        for (reason, scope) in [
            ("jira-burst-based", Scope::Endpoint),
            ("jira-per-issue-on-write", Scope::Issue),
            ("jira-quota-tenant-based", Scope::Installation),
            ("jira-quota-global-based", Scope::App),
            ("something-new", Scope::Installation),
        ] {
            let found = read(429, &[("ratelimit-reason", reason), ("retry-after", "7")]);
            assert_eq!(found, Some((scope, Some(7))), "{reason}");
        }
    }

    #[test]
    fn every_form_of_the_time_is_read() {
        let later = Some((Scope::Installation, Some(90)));
        assert_eq!(read(503, &[("retry-after", "90")]), later);
        assert_eq!(
            read(429, &[("retry-after", "Wed, 25 Nov 2026 12:01:30 GMT")]),
            later
        );
        assert_eq!(
            read(429, &[("x-ratelimit-reset", "2026-11-25T12:01:30Z")]),
            later
        );
        let past = Some((Scope::Installation, Some(0)));
        assert_eq!(
            read(429, &[("retry-after", "Wed, 25 Nov 2026 11:00:00 GMT")]),
            past
        );
        assert_eq!(read(400, &[("ratelimit-reason", "jira-burst-based")]), None);
        assert_eq!(
            read(429, &[("retry-after", "soon")]),
            Some((Scope::Installation, None))
        );
        assert_eq!(
            read(429, &[("retry-after", "99999999999")]),
            Some((Scope::Installation, Some(86_400)))
        );
    }

    #[test]
    fn a_success_that_was_the_last_one_asks_to_wait_too() {
        assert_eq!(
            read(
                202,
                &[
                    ("x-ratelimit-remaining", "12"),
                    ("x-ratelimit-reset", "2026-11-25T12:01:30Z")
                ]
            ),
            None
        );
        assert_eq!(read(202, &[("x-ratelimit-remaining", "0")]), None);
        assert_eq!(
            read(
                202,
                &[
                    ("x-ratelimit-remaining", "0"),
                    ("x-ratelimit-reset", "2026-11-25T12:01:30Z")
                ]
            ),
            Some((Scope::Installation, Some(90)))
        );
    }
}
