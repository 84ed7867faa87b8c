//! What a site must not be sent for a while, because Jira said so or can't be reached.

use std::collections::HashMap;

use jiff::Timestamp;

use crate::domain::{Endpoint, SpooledWrite};

/// A pause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hold {
    pub(super) until: Timestamp,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// Of a site, its endpoints, and single issues.
#[derive(Default)]
pub(super) struct Pauses {
    site: Option<Hold>,
    endpoints: HashMap<Endpoint, Hold>,
    /// Issues that had too many writes, as hashes.
    issues: HashMap<u64, Hold>,
}

impl Hold {
    pub(super) fn holds(&self, now: Timestamp) -> bool {
        now < self.until
    }
}

impl Pauses {
    /// The whole site pauses. Of two pauses the longer one counts.
    pub(super) fn hold(&mut self, hold: Hold) {
        if self
            .site
            .as_ref()
            .is_none_or(|known| known.until < hold.until)
        {
            self.site = Some(hold);
        }
    }

    /// An endpoint pauses.
    pub(super) fn hold_endpoint(&mut self, endpoint: Endpoint, hold: Hold) {
        let known = self
            .endpoints
            .entry(endpoint)
            .or_insert_with(|| hold.clone());
        if known.until < hold.until {
            *known = hold;
        }
    }

    /// These issues had too many writes.
    pub(super) fn hold_issues(&mut self, issues: &[u64], hold: &Hold) {
        for issue in issues {
            self.issues.insert(*issue, hold.clone());
        }
    }

    /// Why a new write to an endpoint must wait, if it must.
    pub(super) fn reason(&self, endpoint: Endpoint, now: Timestamp) -> Option<&'static str> {
        let endpoint = self.endpoints.get(&endpoint);
        if self.site.as_ref().is_some_and(|hold| hold.holds(now)) {
            Some("site_paused")
        } else if endpoint.is_some_and(|hold| hold.holds(now)) {
            Some("endpoint_paused")
        } else {
            None
        }
    }

    /// Whether any issue is held.
    pub(super) fn holds_issues(&self, now: Timestamp) -> bool {
        self.issues.values().any(|hold| hold.holds(now))
    }

    /// Whether one of these issues is held.
    pub(super) fn holds_any(&self, issues: &[u64], now: Timestamp) -> bool {
        let mut issues = issues.iter().filter_map(|issue| self.issues.get(issue));
        issues.any(|hold| hold.holds(now))
    }

    /// Until when a write is held by its endpoint or its issues.
    pub(super) fn until(&self, write: &SpooledWrite) -> Timestamp {
        let endpoint = self.endpoints.get(&write.call.endpoint());
        let issues = &write.touches.issues;
        let issues = issues.iter().filter_map(|issue| self.issues.get(issue));
        let holds = endpoint.into_iter().chain(issues);
        holds
            .map(|hold| hold.until)
            .fold(Timestamp::MIN, Timestamp::max)
    }

    /// Until when Jira wants no calls of this kind from the site. A site that is down is another thing: a read may
    /// find out that it is back.
    pub(super) fn throttled(&self, endpoint: Endpoint, now: Timestamp) -> Option<Timestamp> {
        self.site
            .iter()
            .chain(self.endpoints.get(&endpoint))
            .filter(|hold| hold.holds(now) && hold.reason == "throttled")
            .map(|hold| hold.until)
            .max()
    }

    /// Until when the whole site pauses.
    pub(super) fn site_until(&self, now: Timestamp) -> Option<Timestamp> {
        let hold = self.site.as_ref().filter(|hold| hold.holds(now));
        hold.map(|hold| hold.until)
    }

    /// Forgets pauses that are over.
    pub(super) fn forget_over(&mut self, now: Timestamp) {
        self.end(|hold| !hold.holds(now));
    }

    /// Ends these pauses.
    pub(super) fn end(&mut self, which: impl Fn(&Hold) -> bool) {
        self.site = self.site.take().filter(|hold| !which(hold));
        self.endpoints.retain(|_, hold| !which(hold));
        self.issues.retain(|_, hold| !which(hold));
    }

    /// Nothing pauses.
    pub(super) fn is_empty(&self) -> bool {
        self.site.is_none() && self.endpoints.is_empty() && self.issues.is_empty()
    }

    /// That of the whole site.
    pub(super) fn of_site(&self) -> Option<&Hold> {
        self.site.as_ref()
    }

    /// Those of endpoints.
    pub(super) fn of_endpoints(&self) -> impl Iterator<Item = (Endpoint, &Hold)> {
        self.endpoints
            .iter()
            .map(|(endpoint, hold)| (*endpoint, hold))
    }
}
