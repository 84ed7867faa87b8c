//! What the spool's handle and its worker share: the queues, the room that is left, and how failures become pauses.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use dashmap::DashMap;
use jiff::Timestamp;
use tokio::sync::{Notify, oneshot};

use super::{lane::Waiting, pauses::Hold, site::Site, ticket::Ticket};
use crate::{
    backoff,
    config::SpoolConfig,
    domain::{ClientKey, Endpoint, Installation, SpooledWrite, upstream::App},
    jira::{Forwarder, Setback, rate_limit::Scope},
    lock::lock,
    metrics::Metrics,
    reject::{Reject, RejectKind},
    store::{Store, StoreError},
    trace::Traces,
};

/// What handle and worker share.
pub(super) struct Shared {
    pub(super) store: Store,
    pub(super) forwarder: Arc<Forwarder>,
    pub(super) settings: SpoolConfig,
    pub(super) metrics: Arc<Metrics>,
    pub(super) traces: Arc<Traces>,
    pub(super) next_id: AtomicU64,
    /// One entry for each installation that is spoken for: bounded by `store.installations_max`.
    pub(super) sites: DashMap<ClientKey, Arc<Mutex<Site>>>,
    /// Those in which something waits. A short std lock, taken only with the site's in hand.
    pub(super) busy: Mutex<HashSet<ClientKey>>,
    /// Apps that make no call. Those whose pause is over go with the next one.
    pub(super) apps: ArcSwap<HashMap<App, Hold>>,
    pub(super) bytes: AtomicU64,
    pub(super) wake: Notify,
}

/// A write that is to be kept.
pub(super) struct Parcel {
    pub(super) ticket: Ticket,
    pub(super) write: SpooledWrite,
    pub(super) reason: &'static str,
    pub(super) body: Bytes,
    pub(super) not_before: Timestamp,
    pub(super) reply: oneshot::Sender<Result<(), ParkError>>,
}

/// Why a write is not kept. The instance must not hear 202.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParkError {
    /// No room.
    #[error("{what} holds {max} bytes of waiting writes already")]
    Full {
        /// Whose room.
        what: &'static str,
        /// How much it is.
        max: u64,
    },
    /// The disk.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The relay stops.
    #[error("the spool is closed")]
    Closed,
}

impl Shared {
    pub(super) fn site(&self, client_key: &ClientKey) -> Arc<Mutex<Site>> {
        if let Some(site) = self.sites.get(client_key) {
            return Arc::clone(&site);
        }
        Arc::clone(&self.sites.entry(client_key.clone()).or_default())
    }

    /// Forgets what nothing is in. A site that somebody has in hand stays: what they put in must be found.
    pub(super) fn forget_idle(&self, now: Timestamp) {
        self.sites
            .retain(|_, site| lock(site).forget_idle(now) || Arc::strong_count(site) > 1);
    }

    /// Writes a parcel, and then puts it into its lane.
    pub(super) async fn keep(&self, parcel: Parcel) {
        let Parcel {
            ticket,
            write,
            reason,
            body,
            not_before,
            reply,
        } = parcel;
        let site = Arc::clone(&ticket.site);
        let (link, room) = (write.link, write.room());
        let kept = match self.reserve(&site, &write) {
            Err(full) => Err(full),
            Ok(()) => {
                let record = Arc::new(write.clone());
                let stored = self.store.spool(write, body).await;
                let mut site = lock(&site);
                match stored {
                    Ok(()) => {
                        lock(&self.busy).insert(record.client_key.clone());
                        let replaced = site.insert(Waiting::new(record, not_before));
                        self.metrics.superseded.inc_by(replaced as u64);
                        Ok(())
                    }
                    Err(error) => {
                        site.release_bytes(link, room);
                        self.bytes.fetch_sub(room, Ordering::Relaxed);
                        Err(ParkError::Store(error))
                    }
                }
            }
        };
        if kept.is_ok() {
            self.metrics.spooled.with_label_values(&[reason]).inc();
        }
        // Only now those behind it may go.
        drop(ticket);
        let _ = reply.send(kept);
    }

    /// Makes room for a write, or says whose room is full. One of several links gets half of its site's room at the
    /// most, so that its full synchronisation leaves some for the pushes of the others.
    pub(super) fn reserve(
        &self,
        site: &Mutex<Site>,
        write: &SpooledWrite,
    ) -> Result<(), ParkError> {
        let room = write.room();
        let SpoolConfig {
            max_bytes,
            installation_max_bytes,
            ..
        } = self.settings;
        let alone = self.store.links_of(&write.client_key).len() < 2;
        let link_max_bytes = installation_max_bytes / if alone { 1 } else { 2 };
        let mut site = lock(site);
        let waiting = self.bytes.load(Ordering::Relaxed);
        for (what, used, max) in [
            ("the link", site.bytes_of(write.link), link_max_bytes),
            ("the installation", site.bytes, installation_max_bytes),
            ("the spool", waiting, max_bytes),
        ] {
            if used + room > max {
                return Err(ParkError::Full { what, max });
            }
        }
        site.reserve(write.link, room);
        self.bytes.fetch_add(room, Ordering::Relaxed);
        Ok(())
    }

    /// Until when the app by which a site is reached makes no call.
    pub(super) fn app_held(&self, client_key: &ClientKey, now: Timestamp) -> Option<Timestamp> {
        let apps = self.apps.load();
        if apps.is_empty() {
            return None;
        }
        let app = self.store.installation(client_key)?.upstream.app();
        let hold = apps.get(&app).filter(|hold| hold.holds(now));
        hold.map(|hold| hold.until)
    }

    fn hold_app(&self, app: &App, hold: &Hold, now: Timestamp) {
        self.apps.rcu(|apps| {
            let mut apps = HashMap::clone(apps);
            apps.retain(|_, hold| hold.holds(now));
            let known = apps.entry(app.clone()).or_insert_with(|| hold.clone());
            if known.until < hold.until {
                *known = hold.clone();
            }
            apps
        });
    }

    /// Takes a failure into account: what must pause pauses, for as long as is returned.
    pub(super) fn set_back(
        &self,
        way: &Installation,
        endpoint: Endpoint,
        issues: &[u64],
        setback: &Setback,
        now: Timestamp,
    ) -> Duration {
        let (scope, app) = (setback.throttle.scope, way.upstream.app());
        let site = self.site(&way.client_key);
        let mut site = lock(&site);
        // Asked with the site in hand: who moves it comes by afterwards and ends its pauses.
        let used = self.store.installation(&way.client_key);
        let in_use = used.is_some_and(|used| used.upstream.app() == app);
        // What is said to one way says nothing of another one's.
        if !in_use && scope != Scope::App {
            return Duration::ZERO;
        }
        self.metrics
            .jira_pauses
            .with_label_values(&[scope.as_str(), way.upstream.kind().as_str()])
            .inc();
        let before = match scope {
            Scope::Write | Scope::Issue | Scope::Endpoint => site.endpoint_setback(endpoint),
            Scope::Installation | Scope::App => site.setbacks,
        };
        let pause = self.pause(setback, before);
        let hold = Hold {
            until: now.saturating_add(pause).unwrap_or(Timestamp::MAX),
            reason: setback.reason,
            message: setback.message.clone(),
        };
        match scope {
            Scope::Write => {}
            Scope::Issue => site.pauses.hold_issues(issues, &hold),
            Scope::Endpoint => site.pauses.hold_endpoint(endpoint, hold),
            Scope::Installation => {
                site.setbacks = site.setbacks.saturating_add(1);
                site.pauses.hold(hold);
            }
            Scope::App => {
                site.setbacks = site.setbacks.saturating_add(u32::from(in_use));
                self.hold_app(&app, &hold, now);
            }
        }
        pause
    }

    /// What Jira asks for is a minimum, and enough; where it says nothing, longer each time.
    pub(super) fn pause(&self, setback: &Setback, setbacks: u32) -> Duration {
        match setback.throttle.at_least {
            Some(at_least) => {
                let spread = (at_least / 10).min(Duration::from_secs(5));
                at_least + spread.mul_f64(backoff::jitter())
            }
            None => self.backoff(setbacks),
        }
    }

    pub(super) fn backoff(&self, failed: u32) -> Duration {
        let SpoolConfig {
            retry_min,
            retry_max,
            ..
        } = self.settings;
        backoff::doubling(retry_min, retry_max, failed, backoff::jitter())
    }
}

impl From<ParkError> for Reject {
    fn from(error: ParkError) -> Self {
        let message = error.to_string();
        let (code, hint) = match error {
            ParkError::Store(error) => return error.into(),
            ParkError::Full { .. } => (
                "spool_full",
                "the operator can raise the limits of [spool]; GET /api/v1/spool says why so much waits",
            ),
            ParkError::Closed => ("spool_closed", "the relay stops; try again"),
        };
        Self::new(RejectKind::Unavailable, code, message, hint)
    }
}
