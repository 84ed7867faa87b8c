//! Writes that Jira could not take yet: kept durably before the instance hears 202, replayed in order.
//!
//! Instances drop development data on 429 and 503 for good (GitLab `lib/atlassian/jira_connect/client.rb`), so the
//! relay keeps it for them. Each link has a lane of its own, in the order of arrival. While one waits in it, later
//! writes of the link go behind it; a deletion, which carries no sequence number, also waits for what is under way
//! before it. The links of an installation take turns, so that the full synchronisation of one does not starve the
//! pushes of another, and all of them share the pauses that Jira asks for.
//!
//! What a request looks like is `jira`'s; this knows what waits, in which order, and when next.

mod replay;
mod site;
mod view;

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use dashmap::DashMap;
use jiff::{SignedDuration, Timestamp};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::JoinSet,
};

use crate::{
    backoff, clock,
    config::SpoolConfig,
    domain::{ClientKey, Endpoint, JiraCall, LifecycleEventKind, Link, SpoolId, SpooledWrite},
    jira::{
        Forwarder, Setback,
        rate_limit::{Scope, Throttle},
        touches::touches,
    },
    lock::lock,
    metrics::Metrics,
    reject::{Reject, RejectKind},
    store::{Store, StoreError},
};
use site::{Hold, Site, Waiting};
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

/// What handle and worker share.
struct Shared {
    store: Store,
    forwarder: Arc<Forwarder>,
    settings: SpoolConfig,
    metrics: Arc<Metrics>,
    next_id: AtomicU64,
    /// One entry for each installation that was ever spoken for: bounded by `store.installations_max`.
    sites: DashMap<ClientKey, Arc<Mutex<Site>>>,
    /// Those in which something waits. A short std lock, taken only with the site's in hand.
    busy: Mutex<HashSet<ClientKey>>,
    /// Everything waits.
    app: ArcSwapOption<Hold>,
    bytes: AtomicU64,
    wake: Notify,
}

/// A write on its way: its place in the order, until it is answered or kept.
pub struct Ticket {
    shared: Arc<Shared>,
    /// A short std lock, never held over an await.
    site: Arc<Mutex<Site>>,
    link: Arc<Link>,
    id: SpoolId,
    got_through: Option<Endpoint>,
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
    /// It was tried.
    SetBack(Setback),
}

impl Why {
    /// Stable name.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Behind(reason) => reason,
            Self::SetBack(setback) => setback.reason,
        }
    }
}

/// A write that is to be kept.
struct Parcel {
    ticket: Ticket,
    write: SpooledWrite,
    body: Bytes,
    not_before: Timestamp,
    reply: oneshot::Sender<Result<(), ParkError>>,
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

impl Spool {
    /// Takes up what waits in the store.
    pub fn new(
        store: Store,
        forwarder: Arc<Forwarder>,
        settings: SpoolConfig,
        drain_deadline: Duration,
        metrics: Arc<Metrics>,
    ) -> (Self, SpoolWorker) {
        let mut waiting = store.spooled();
        waiting.sort_by_key(|write| write.id);
        let next_id = waiting.last().map_or(0, |write| write.id.0 + 1);
        let shared = Arc::new(Shared {
            store,
            forwarder,
            settings,
            metrics,
            // Numbers of writes that are long gone must not come again: their files may be there still.
            next_id: AtomicU64::new(next_id.max(first_id(clock::now()))),
            sites: DashMap::new(),
            busy: Mutex::default(),
            app: ArcSwapOption::empty(),
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
        let app_held = shared
            .app
            .load()
            .as_ref()
            .is_some_and(|hold| hold.holds(now));
        // Rarely, so only then the body is read once more.
        let holds_issues = lock(&site).holds_issues(now);
        let issues = if holds_issues {
            touches(call, body).issues
        } else {
            Vec::new()
        };
        let (id, wait) = {
            let mut site = lock(&site);
            // Numbered under the lock, so that the order of numbers is the order of admission.
            let id = SpoolId(shared.next_id.fetch_add(1, Ordering::Relaxed));
            let wait = site.admit(link.id, id, call, now);
            let issue_held = site.holds_any(&issues, now);
            let wait = if issue_held {
                wait.or(Some("issue_paused"))
            } else {
                wait
            };
            (
                id,
                if app_held {
                    wait.or(Some("app_paused"))
                } else {
                    wait
                },
            )
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
            .is_some_and(|link| link.desired.event == LifecycleEventKind::Installed);
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
        let of_site = site.and_then(|site| lock(&site).throttled(endpoint, now));
        let of_app = self.shared.app.load().as_ref().map(|hold| hold.until);
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
        if let Why::SetBack(setback) = &why {
            let (endpoint, issues) = (call.endpoint(), &touches.issues);
            let pause = self
                .shared
                .set_back(&ticket.site, endpoint, issues, setback, now);
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

    /// A call got through, and was the last one for a while.
    pub fn exhausted(
        &self,
        client_key: &ClientKey,
        endpoint: Endpoint,
        throttle: Throttle,
        now: Timestamp,
    ) {
        self.set_back(client_key, endpoint, &Setback::exhausted(throttle), now);
    }

    /// Something else than a write was refused for now.
    pub fn set_back(
        &self,
        client_key: &ClientKey,
        endpoint: Endpoint,
        setback: &Setback,
        now: Timestamp,
    ) {
        let site = self.shared.site(client_key);
        self.shared.set_back(&site, endpoint, &[], setback, now);
    }

    /// The site has spoken (a new secret, another address): what waited for that waits no more.
    pub fn release(&self, client_key: &ClientKey) {
        if let Some(site) = self.shared.sites.get(client_key) {
            lock(&site).release(|hold| hold.reason != "throttled");
        }
        self.shared.wake.notify_one();
    }

    /// An operator wants everything tried now.
    pub fn retry_now(&self) {
        self.shared.app.store(None);
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
        let mut purges = replay::Purges::default();
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
                () = tokio::time::sleep(pause) => self.shared.forget_idle_lanes(),
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
        if let Some(hold) = shared.app.load_full().filter(|hold| hold.holds(now)) {
            return until(hold.until.min(next), now);
        }
        let mut busy: Vec<ClientKey> = lock(&shared.busy).iter().cloned().collect();
        // Whoever comes last when all slots are taken should not always be the same.
        let first = now.as_nanosecond().unsigned_abs() as usize % busy.len().max(1);
        busy.rotate_left(first);
        for client_key in busy {
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

impl Shared {
    fn site(&self, client_key: &ClientKey) -> Arc<Mutex<Site>> {
        if let Some(site) = self.sites.get(client_key) {
            return Arc::clone(&site);
        }
        Arc::clone(&self.sites.entry(client_key.clone()).or_default())
    }

    fn forget_idle_lanes(&self) {
        for site in &self.sites {
            lock(site.value()).forget_idle_lanes();
        }
    }

    /// Writes a parcel, and then puts it into its lane.
    async fn keep(&self, parcel: Parcel) {
        let Parcel {
            ticket,
            write,
            body,
            not_before,
            reply,
        } = parcel;
        let site = Arc::clone(&ticket.site);
        let (link, room, reason) = (write.link, write.room(), write.reason.clone());
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
            self.metrics
                .spooled
                .with_label_values(&[known_reason(&reason)])
                .inc();
        }
        // Only now those behind it may go.
        drop(ticket);
        let _ = reply.send(kept);
    }

    /// Makes room for a write, or says whose room is full. One of several links gets half of its site's room at the
    /// most, so that its full synchronisation leaves some for the pushes of the others.
    fn reserve(&self, site: &Mutex<Site>, write: &SpooledWrite) -> Result<(), ParkError> {
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

    /// Takes a failure into account: what must pause pauses, for as long as is returned.
    fn set_back(
        &self,
        site: &Mutex<Site>,
        endpoint: Endpoint,
        issues: &[u64],
        setback: &Setback,
        now: Timestamp,
    ) -> Duration {
        let scope = setback.throttle.scope;
        self.metrics
            .jira_pauses
            .with_label_values(&[scope.as_str()])
            .inc();
        let mut site = lock(site);
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
            Scope::Issue => site.hold_issues(issues, &hold),
            Scope::Endpoint => site.hold_endpoint(endpoint, hold),
            Scope::Installation => {
                site.setbacks = site.setbacks.saturating_add(1);
                site.hold(hold);
            }
            Scope::App => {
                site.setbacks = site.setbacks.saturating_add(1);
                let hold = Arc::new(hold);
                self.app.rcu(|known| match known {
                    Some(known) if known.until >= hold.until => Some(Arc::clone(known)),
                    _ => Some(Arc::clone(&hold)),
                });
            }
        }
        pause
    }

    /// What Jira asks for is a minimum, and enough; where it says nothing, longer each time.
    fn pause(&self, setback: &Setback, setbacks: u32) -> Duration {
        match setback.throttle.at_least {
            Some(at_least) => {
                let spread = (at_least / 10).min(Duration::from_secs(5));
                at_least + spread.mul_f64(backoff::jitter())
            }
            None => self.backoff(setbacks),
        }
    }

    fn backoff(&self, failed: u32) -> Duration {
        let SpoolConfig {
            retry_min,
            retry_max,
            ..
        } = self.settings;
        backoff::doubling(retry_min, retry_max, failed, backoff::jitter())
    }
}

impl Ticket {
    /// Jira answered.
    pub fn got_through(mut self, endpoint: Endpoint) {
        self.got_through = Some(endpoint);
    }

    /// Whatever comes later waits until this is answered or kept.
    fn make_barrier(&self) {
        lock(&self.site).make_barrier(self.link.id, self.id);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut site = lock(&self.site);
        if let Some(endpoint) = self.got_through {
            site.went_well(endpoint);
        }
        let waiting = site.leave(self.link.id, self.id);
        drop(site);
        if waiting {
            self.shared.wake.notify_one();
        }
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

/// Reasons come back from the disk as text, but a label is one of ours.
fn known_reason(reason: &str) -> &'static str {
    const KNOWN: [&str; 13] = [
        "throttled",
        "bad_gateway",
        "unavailable",
        "gateway_timeout",
        "redirected",
        "connection_failed",
        "answer_timed_out",
        "connection_broken",
        "behind_others",
        "site_paused",
        "endpoint_paused",
        "app_paused",
        "issue_paused",
    ];
    KNOWN
        .into_iter()
        .find(|known| *known == reason)
        .unwrap_or("other")
}
