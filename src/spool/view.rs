//! What waits, and why, as operators see it. Never a body.

use jiff::Timestamp;
use serde::Serialize;

use super::{
    Shared,
    lane::{WaitState, Waiting},
    pauses::Hold,
};
use crate::{
    domain::{ClientKey, LinkId},
    lock::lock,
};

/// `GET /api/v1/spool`
#[derive(Debug, Serialize)]
pub struct SpoolView {
    /// Writes that wait.
    pub waiting: usize,
    /// Their bodies.
    pub bytes: u64,
    /// Since when the oldest one does.
    pub oldest_at: Option<Timestamp>,
    /// Apps that make no call: all sites that are reached by them wait.
    paused: Vec<PauseView>,
    /// What may wait.
    limits: LimitsView,
    /// Sites for which something waits or is paused.
    installations: Vec<SiteView>,
    /// The oldest writes.
    writes: Vec<WriteView>,
}

/// A pause.
#[derive(Debug, Serialize)]
struct PauseView {
    /// `app`, `installation` or `endpoint`.
    scope: &'static str,
    /// Which app: `connect`, `forge`, or `oauth` with the client id.
    #[serde(skip_serializing_if = "Option::is_none")]
    app: Option<String>,
    /// Which endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<&'static str>,
    /// Stable name of the cause.
    reason: &'static str,
    /// What happened.
    message: String,
    /// Until when.
    until: Timestamp,
}

/// `[spool]`
#[derive(Debug, Serialize)]
struct LimitsView {
    max_bytes: u64,
    installation_max_bytes: u64,
    max_age_hours: i64,
}

/// One site.
#[derive(Debug, Serialize)]
struct SiteView {
    client_key: ClientKey,
    waiting: usize,
    bytes: u64,
    paused: Vec<PauseView>,
    /// Failures in a row.
    setbacks: u32,
    links: Vec<LaneView>,
}

/// One link.
#[derive(Debug, Serialize)]
struct LaneView {
    link_id: LinkId,
    waiting: usize,
    bytes: u64,
    oldest_at: Option<Timestamp>,
}

/// One write.
#[derive(Debug, Serialize)]
struct WriteView {
    id: String,
    client_key: ClientKey,
    link_id: LinkId,
    endpoint: &'static str,
    bytes: u64,
    received_at: Timestamp,
    request_id: String,
    /// Why it came here.
    reason: String,
    /// `waiting`, `under_way` or `replaced`.
    state: &'static str,
    attempts: u32,
    last_error: Option<String>,
}

impl Shared {
    pub(super) fn view(&self, now: Timestamp, writes_max: usize) -> SpoolView {
        let mut installations: Vec<SiteView> = Vec::new();
        let mut writes = Vec::new();
        let mut client_keys: Vec<ClientKey> = self.sites.iter().map(|s| s.key().clone()).collect();
        client_keys.sort();
        for client_key in client_keys {
            let site = self.site(&client_key);
            let site = lock(&site);
            let mut links = Vec::new();
            for (link_id, lane) in site.lanes() {
                let mut view = LaneView {
                    link_id,
                    waiting: 0,
                    bytes: 0,
                    oldest_at: None,
                };
                let mut oldest = Vec::new();
                for waiting in lane {
                    view.waiting += 1;
                    view.bytes += waiting.write.bytes;
                    let at = waiting.write.received_at;
                    view.oldest_at = Some(view.oldest_at.map_or(at, |oldest| oldest.min(at)));
                    oldest.push(waiting);
                }
                if writes_max > 0 {
                    // The oldest of all are among the oldest of each.
                    oldest.sort_by_key(|waiting| waiting.write.id);
                    oldest.truncate(writes_max);
                    writes.extend(oldest.into_iter().map(WriteView::new));
                }
                if view.waiting > 0 {
                    links.push(view);
                }
            }
            links.sort_by_key(|lane| lane.link_id);
            let of_site = site
                .pauses
                .of_site()
                .map(|hold| PauseView::new("installation", None, hold));
            let of_endpoints = site
                .pauses
                .of_endpoints()
                .map(|(endpoint, hold)| PauseView::new("endpoint", Some(endpoint.as_str()), hold));
            let paused: Vec<_> = of_site
                .into_iter()
                .chain(of_endpoints)
                .filter(|p| now < p.until)
                .collect();
            if !links.is_empty() || !paused.is_empty() {
                installations.push(SiteView {
                    waiting: links.iter().map(|lane| lane.waiting).sum(),
                    bytes: links.iter().map(|lane| lane.bytes).sum(),
                    setbacks: site.setbacks,
                    client_key,
                    paused,
                    links,
                });
            }
        }
        writes.sort_by(|a, b| a.id.cmp(&b.id));
        let apps = self.apps.load();
        let held = apps.iter().filter(|(_, hold)| hold.holds(now));
        let paused = held.map(|(app, hold)| PauseView {
            app: Some(app.to_string()),
            ..PauseView::new("app", None, hold)
        });
        let mut paused: Vec<_> = paused.collect();
        paused.sort_by(|a, b| a.app.cmp(&b.app));
        writes.truncate(writes_max);
        SpoolView {
            waiting: installations.iter().map(|site| site.waiting).sum(),
            bytes: installations.iter().map(|site| site.bytes).sum(),
            oldest_at: installations
                .iter()
                .flat_map(|site| site.links.iter().filter_map(|lane| lane.oldest_at))
                .min(),
            paused,
            limits: LimitsView {
                max_bytes: self.settings.max_bytes,
                installation_max_bytes: self.settings.installation_max_bytes,
                max_age_hours: self.settings.max_age.as_hours(),
            },
            installations,
            writes,
        }
    }

    /// Brings the gauges up to date.
    pub(super) fn measure(&self, now: Timestamp) {
        let view = self.view(now, 0);
        self.metrics
            .spool_writes
            .set(i64::try_from(view.waiting).unwrap_or(i64::MAX));
        self.metrics
            .spool_bytes
            .set(i64::try_from(view.bytes).unwrap_or(i64::MAX));
        let age = view
            .oldest_at
            .map_or(0, |at| now.duration_since(at).as_secs());
        self.metrics.spool_oldest.set(age);
    }
}

impl WriteView {
    fn new(waiting: &Waiting) -> Self {
        let write = &waiting.write;
        Self {
            id: write.id.to_string(),
            client_key: write.client_key.clone(),
            link_id: write.link,
            endpoint: write.call.endpoint().as_str(),
            bytes: write.bytes,
            received_at: write.received_at,
            request_id: write.request_id.clone(),
            reason: write.reason.clone(),
            state: match waiting.state {
                WaitState::Idle => "waiting",
                WaitState::UnderWay => "under_way",
                WaitState::Replaced => "replaced",
            },
            attempts: waiting.attempts,
            last_error: waiting.last_error.clone(),
        }
    }
}

impl PauseView {
    fn new(scope: &'static str, endpoint: Option<&'static str>, hold: &Hold) -> Self {
        Self {
            scope,
            app: None,
            endpoint,
            reason: hold.reason,
            message: hold.message.clone(),
            until: hold.until,
        }
    }
}
