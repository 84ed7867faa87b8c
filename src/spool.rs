//! Writes that Jira could not take yet: kept durably before the instance hears 202, replayed in order.
//!
//! Instances drop development data on 429 and 503 for good (GitLab `lib/atlassian/jira_connect/client.rb`), so the
//! relay keeps it for them. Each link has a lane of its own, in the order of arrival. While one waits in it, later
//! writes of the link go behind it; a deletion, which carries no sequence number, also waits for what is under way
//! before it. The links of an installation take turns, so that the full synchronisation of one does not starve the
//! pushes of another, and all of them share the pauses that Jira asks for.
//!
//! What a request looks like is `jira`'s; this knows what waits, in which order, and when next.

mod lane;
mod pauses;
mod purge;
mod replay;
mod shared;
mod site;
mod ticket;
mod view;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use dashmap::DashMap;
use jiff::{SignedDuration, Timestamp};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::JoinSet,
};

use crate::{
    clock,
    config::SpoolConfig,
    domain::{ClientKey, Endpoint, Installation, JiraCall, Link, SpoolId, SpooledWrite},
    jira::{
        Forwarder, Setback,
        rate_limit::{Scope, Throttle},
        touches::touches,
    },
    lock::lock,
    metrics::Metrics,
    store::Store,
    trace::Traces,
};
use lane::Waiting;
use pauses::Hold;
pub use shared::ParkError;
use shared::{Parcel, Shared};
pub use ticket::Ticket;
pub use view::SpoolView;

/// Looks at everything at least this often, should a wake-up ever be lost.
const POLL: Duration = Duration::from_secs(30);

/// Replays under way at once, in all.
const REPLAYS_MAX: usize = 64;

/// Parcels that may wait to be written.
const PARCELS_MAX: usize = 1024;

/// A handle on the spool; cheap to clone. When the last one is gone, [`SpoolWorker::run`] can end.
#[derive(Clone)]
pub struct Spool {
    shared: Arc<Shared>,
    parcels: mpsc::Sender<Parcel>,
}

/// The one task that writes and replays.
pub struct SpoolWorker {
    shared: Arc<Shared>,
    parcels: mpsc::Receiver<Parcel>,
    drain_deadline: Duration,
}

/// Whether a write may go to Jira at once.
pub enum Admission {
    /// Yes.
    Direct(Ticket),
    /// No: it waits, for this reason.
    Wait(Ticket, &'static str),
    /// The link was removed meanwhile.
    Removed,
}

/// Why a write is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// Others wait, or something is paused.
    Behind(&'static str),
    /// It was tried this way.
    SetBack(Setback, Arc<Installation>),
}

impl Why {
    /// Stable name.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Behind(reason) => reason,
            Self::SetBack(setback, _) => setback.reason,
        }
    }

    /// What Jira, or nobody, said.
    pub fn message(&self) -> Option<&str> {
        match self {
            Self::Behind(_) => None,
            Self::SetBack(setback, _) => Some(&setback.message),
        }
    }
}

impl Spool {
    /// Takes up what waits in the store.
    pub fn new(
        store: Store,
        forwarder: Arc<Forwarder>,
        settings: SpoolConfig,
        drain_deadline: Duration,
        metrics: Arc<Metrics>,
        traces: Arc<Traces>,
    ) -> (Self, SpoolWorker) {
        let mut waiting = store.spooled();
        waiting.sort_by_key(|write| write.id);
        let next_id = waiting.last().map_or(0, |write| write.id.0 + 1);
        let shared = Arc::new(Shared {
            store,
            forwarder,
            settings,
            metrics,
            traces,
            // Numbers of writes that are long gone must not come again: their files may be there still.
            next_id: AtomicU64::new(next_id.max(first_id(clock::now()))),
            sites: DashMap::new(),
            busy: Mutex::default(),
            apps: ArcSwap::default(),
            bytes: AtomicU64::new(0),
            wake: Notify::new(),
        });
        for write in waiting {
            let site = shared.site(&write.client_key);
            shared.bytes.fetch_add(write.room(), Ordering::Relaxed);
            let mut site = lock(&site);
            site.reserve(write.link, write.room());
            lock(&shared.busy).insert(write.client_key.clone());
            site.insert(Waiting::new(write, Timestamp::MIN));
        }
        let (sender, parcels) = mpsc::channel(PARCELS_MAX);
        let spool = Self {
            shared: Arc::clone(&shared),
            parcels: sender,
        };
        let worker = SpoolWorker {
            shared,
            parcels,
            drain_deadline,
        };
        (spool, worker)
    }

    /// Gives a write of a link its place.
    pub fn admit(
        &self,
        link: &Arc<Link>,
        call: &JiraCall,
        body: &[u8],
        now: Timestamp,
    ) -> Admission {
        let shared = &self.shared;
        let site = shared.site(&link.client_key);
        let app_held = shared.app_held(&link.client_key, now).is_some();
        let mut issues = Vec::new();
        let (id, wait) = {
            let mut locked = lock(&site);
            // Rarely, so only then the body is read once more, and with nobody waiting.
            if locked.pauses.holds_issues(now) {
                drop(locked);
                issues = touches(call, body).issues;
                locked = lock(&site);
            }
            // Numbered under the lock, so that the order of numbers is the order of admission.
            let id = SpoolId(shared.next_id.fetch_add(1, Ordering::Relaxed));
            let wait = locked
                .admit(link.id, id, call, now)
                .or_else(|| {
                    locked
                        .pauses
                        .holds_any(&issues, now)
                        .then_some("issue_paused")
                })
                .or_else(|| app_held.then_some("app_paused"));
            (id, wait)
        };
        let ticket = Ticket {
            shared: Arc::clone(shared),
            site,
            link: Arc::clone(link),
            id,
            got_through: None,
        };
        // Asked after the ticket is out: whoever deletes the link's data waits for tickets.
        let still_there = shared
            .store
            .link(link.id)
            .is_some_and(|link| link.is_heard(now));
        if !still_there {
            return Admission::Removed;
        }
        match wait {
            None => Admission::Direct(ticket),
            Some(reason) => {
                ticket.make_barrier();
                Admission::Wait(ticket, reason)
            }
        }
    }

    /// Whether a read must not be sent now, and how long not.
    pub fn held(
        &self,
        client_key: &ClientKey,
        endpoint: Endpoint,
        now: Timestamp,
    ) -> Option<SignedDuration> {
        let site = self
            .shared
            .sites
            .get(client_key)
            .map(|site| Arc::clone(&site));
        let of_site = site.and_then(|site| lock(&site).pauses.throttled(endpoint, now));
        let of_app = self.shared.app_held(client_key, now);
        of_site
            .into_iter()
            .chain(of_app)
            .max()
            .map(|until| until.duration_since(now))
            .filter(SignedDuration::is_positive)
    }

    /// Keeps a write. Durable on return.
    pub async fn park(
        &self,
        ticket: Ticket,
        call: JiraCall,
        body: Bytes,
        request_id: &str,
        why: Why,
        now: Timestamp,
    ) -> Result<(), ParkError> {
        // Before anything is awaited: what comes later must not overtake it.
        ticket.make_barrier();
        let mut not_before = now;
        let touches = touches(&call, &body);
        if let Why::SetBack(setback, way) = &why {
            let (endpoint, issues) = (call.endpoint(), &touches.issues);
            let pause = self.shared.set_back(way, endpoint, issues, setback, now);
            if matches!(setback.throttle.scope, Scope::Write | Scope::Issue) {
                not_before = now.saturating_add(pause).unwrap_or(now);
            }
        }
        let write = SpooledWrite {
            id: ticket.id,
            client_key: ticket.link.client_key.clone(),
            link: ticket.link.id,
            namespace: ticket.link.namespace.clone(),
            bytes: body.len() as u64,
            touches,
            call,
            received_at: now,
            request_id: request_id.to_owned(),
            reason: why.reason().to_owned(),
        };
        let (reply, kept) = oneshot::channel();
        let parcel = Parcel {
            ticket,
            write,
            reason: why.reason(),
            body,
            not_before,
            reply,
        };
        // From here on it is the worker's: a caller that hangs up leaves nothing half done.
        self.parcels
            .send(parcel)
            .await
            .map_err(|_| ParkError::Closed)?;
        kept.await.unwrap_or(Err(ParkError::Closed))
    }

    /// A call got through and was the last one for a while, or a read was one too many.
    pub fn exhausted(
        &self,
        way: &Installation,
        endpoint: Endpoint,
        throttle: Throttle,
        now: Timestamp,
    ) {
        let setback = Setback::exhausted(throttle);
        self.shared.set_back(way, endpoint, &[], &setback, now);
    }

    /// The site has spoken (a new secret, another address): what waited for that waits no more.
    pub fn release(&self, client_key: &ClientKey) {
        self.release_if(client_key, |hold| hold.reason != "throttled");
    }

    /// The site is reached another way, to which no pause of the way so far applies.
    pub fn moved(&self, client_key: &ClientKey) {
        self.release_if(client_key, |_| true);
    }

    fn release_if(&self, client_key: &ClientKey, which: impl Fn(&Hold) -> bool) {
        if let Some(site) = self.shared.sites.get(client_key) {
            lock(&site).release(which);
        }
        self.shared.wake.notify_one();
    }

    /// An operator wants everything tried now.
    pub fn retry_now(&self) {
        self.shared.apps.store(Arc::default());
        for site in &self.shared.sites {
            lock(site.value()).release(|_| true);
        }
        self.shared.wake.notify_one();
    }

    /// What waits, and why.
    pub fn view(&self, now: Timestamp, writes_max: usize) -> SpoolView {
        self.shared.view(now, writes_max)
    }

    /// Brings the gauges up to date.
    pub fn measure(&self, now: Timestamp) {
        self.shared.measure(now);
    }
}

impl SpoolWorker {
    /// Writes, replays and deletes until `shutdown`; then goes on writing for as long as anybody may have something
    /// to keep, and lets replays that are under way end.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = std::pin::pin!(shutdown);
        let mut stopping = false;
        let mut links = self.shared.store.link_changes();
        let mut links_changed = true;
        let mut parking = JoinSet::new();
        let mut replays = JoinSet::new();
        let mut purges = purge::Purges::default();
        loop {
            let pause = if stopping {
                POLL
            } else {
                let now = clock::now();
                if std::mem::take(&mut links_changed) {
                    purges.look(&self.shared);
                }
                let purging = purges.start_due(&self.shared, now);
                purging.min(self.start_due(&mut replays, now))
            };
            tokio::select! {
                biased;
                () = &mut shutdown, if !stopping => stopping = true,
                parcel = self.parcels.recv() => match parcel {
                    Some(parcel) => {
                        let shared = Arc::clone(&self.shared);
                        parking.spawn(async move { shared.keep(parcel).await });
                    }
                    None => break,
                },
                Some(ended) = parking.join_next() => told("keeping a write", ended),
                Some(ended) = replays.join_next() => told("a replay", ended),
                () = purges.ended() => {}
                () = self.shared.wake.notified() => {}
                changed = links.changed(), if !stopping => links_changed = changed.is_ok(),
                () = tokio::time::sleep(pause) => self.shared.forget_idle(clock::now()),
            }
        }
        while let Some(ended) = parking.join_next().await {
            told("keeping a write", ended);
        }
        let ended = async {
            while let Some(ended) = replays.join_next().await {
                told("a replay", ended);
            }
        };
        // What was not finished is simply sent again after the next start.
        if tokio::time::timeout(self.drain_deadline, ended)
            .await
            .is_err()
        {
            replays.shutdown().await;
        }
        purges.shutdown().await;
    }

    /// Starts what may go, and returns for how long nothing else will, if nothing changes.
    fn start_due(&self, replays: &mut JoinSet<()>, now: Timestamp) -> Duration {
        let shared = &self.shared;
        let mut next = now.saturating_add(POLL).unwrap_or(now);
        let mut busy: Vec<ClientKey> = lock(&shared.busy).iter().cloned().collect();
        // Whoever comes last when all slots are taken should not always be the same.
        let first = now.as_nanosecond().unsigned_abs() as usize % busy.len().max(1);
        busy.rotate_left(first);
        for client_key in busy {
            if let Some(held) = shared.app_held(&client_key, now) {
                next = held.min(next);
                continue;
            }
            let site = shared.site(&client_key);
            loop {
                if replays.len() >= REPLAYS_MAX {
                    return POLL;
                }
                let picked = {
                    let mut site = lock(&site);
                    if site.is_empty() {
                        lock(&shared.busy).remove(&client_key);
                    }
                    site.next(now, &mut next)
                };
                let Some(write) = picked else { break };
                let (shared, site) = (Arc::clone(shared), Arc::clone(&site));
                replays.spawn(async move { shared.replay(&site, &write).await });
            }
        }
        until(next, now)
    }
}

/// So that numbers of one life of the relay are larger than those of the lives before it.
fn first_id(now: Timestamp) -> u64 {
    u64::try_from(now.as_microsecond()).unwrap_or(0)
}

fn until(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(then.duration_since(now))
        .unwrap_or_default()
        // A millisecond early is once more for nothing.
        .saturating_add(Duration::from_millis(1))
        .min(POLL)
}

fn told(what: &str, ended: Result<(), tokio::task::JoinError>) {
    if let Err(panic) = ended {
        tracing::error!("{what} panicked: {panic}");
    }
}
