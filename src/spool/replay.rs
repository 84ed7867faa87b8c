//! One attempt at a write that waits, and at the deletion of a link's data.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::StatusCode;
use jiff::Timestamp;
use tokio::{
    task::{self, JoinSet},
    time::Instant,
};

use super::{Shared, site::Site};
use crate::{
    clock,
    domain::{
        Actor, AuditEntry, Family, Installation, JiraCall, Link, LinkId, SpooledWrite,
        link::DeliveryProblem,
    },
    jira::{
        Delivered, Setback,
        deliver::{Size, deliver},
        namespace,
        rate_limit::Scope,
        shape,
    },
    linking,
    lock::lock,
    store::BodyError,
};

/// An error of Jira's own (500) is taken for the last word after so many tries.
const ERRORS_UNTIL_GIVEN_UP: u32 = 10;

/// Deletions under way at once.
const PURGES_MAX: usize = 4;

/// What became of an attempt.
enum Fate {
    /// Jira took it.
    Done(Delivered),
    /// It never will reach Jira, for this reason.
    GivenUp(&'static str, String),
    /// Not now.
    Later(Setback),
    /// Not now, and it is this write's own trouble.
    Alone(String),
}

impl Shared {
    /// Sends a write that is marked as under way.
    pub(super) async fn replay(&self, site: &Mutex<Site>, write: &SpooledWrite) {
        let started = Instant::now();
        let fate = self.attempt(write).await;
        let now = clock::now();
        let duration_ms = started.elapsed().as_millis() as u64;
        let endpoint = write.call.endpoint();
        let waited_secs = now.duration_since(write.received_at).as_secs();
        let outcome = match &fate {
            Fate::Done(_) => "replayed",
            Fate::GivenUp(..) => "given_up",
            Fate::Later(setback) => setback.reason,
            Fate::Alone(_) => "jira_error",
        };
        self.metrics.replays.with_label_values(&[outcome]).inc();
        match fate {
            Fate::Done(delivered) => {
                tracing::info!(
                    id = write.request_id, link.id = %write.link, client.key = %write.client_key,
                    endpoint = endpoint.as_str(), status = delivered.status.as_u16(), waited_secs, duration_ms,
                    "replayed a write to {} that had waited {waited_secs} s", endpoint.as_str()
                );
                self.ended(site, write, None).await;
                let throttle = delivered.throttle;
                lock(site).went_well(endpoint);
                if let Some(throttle) = throttle {
                    let exhausted = Setback::exhausted(throttle);
                    self.set_back(site, endpoint, &[], &exhausted, now);
                }
            }
            Fate::GivenUp(reason, message) => {
                self.give_up(site, write, reason, &message, now).await;
            }
            Fate::Later(setback) => {
                let issues = &write.touches.issues;
                let pause = self.set_back(site, endpoint, issues, &setback, now);
                let not_before = match setback.throttle.scope {
                    Scope::Write | Scope::Issue => now.saturating_add(pause).unwrap_or(now),
                    _ => now,
                };
                tracing::warn!(
                    id = write.request_id, link.id = %write.link, client.key = %write.client_key,
                    endpoint = endpoint.as_str(), reason = setback.reason, scope = setback.throttle.scope.as_str(),
                    retry_in_secs = pause.as_secs(), waited_secs, duration_ms,
                    "a write to {} waits on: {}", endpoint.as_str(), setback.message
                );
                lock(site).put_back(write.link, write.id, setback.message, not_before);
            }
            Fate::Alone(message) => {
                let attempts = {
                    let mut site = lock(site);
                    let attempts = site.put_back(write.link, write.id, message.clone(), now);
                    let pause = self.backoff(attempts);
                    site.not_before(
                        write.link,
                        write.id,
                        now.saturating_add(pause).unwrap_or(now),
                    );
                    attempts
                };
                if attempts >= ERRORS_UNTIL_GIVEN_UP {
                    self.give_up(site, write, "jira_error", &message, now).await;
                } else {
                    tracing::warn!(
                        id = write.request_id, link.id = %write.link, client.key = %write.client_key,
                        endpoint = endpoint.as_str(), reason = "jira_error", attempts, duration_ms,
                        "a write to {} waits on: {message}", endpoint.as_str()
                    );
                }
            }
        }
        self.wake.notify_one();
    }

    async fn attempt(&self, write: &SpooledWrite) -> Fate {
        let now = clock::now();
        let installation = match self.store.installation(&write.client_key) {
            Some(installation) if installation.is_installed() => installation,
            _ => {
                return Fate::GivenUp(
                    "uninstalled",
                    "the app was uninstalled on the site, and Jira has deleted its data".to_owned(),
                );
            }
        };
        if now.duration_since(write.received_at) >= self.settings.max_age {
            let hours = self.settings.max_age.as_hours();
            return Fate::GivenUp("too_old", format!("Jira did not take it for {hours} hours"));
        }
        let body = match self.store.spooled_body(write.id).await {
            Ok(body) => body,
            Err(BodyError::Lost(cause)) => return Fate::GivenUp("body_lost", cause),
            Err(error @ BodyError::Io(_)) => return Fate::Later(Setback::own(error.to_string())),
        };
        let size = match &write.call {
            JiraCall::Submit(family) => std::str::from_utf8(&body)
                .ok()
                .and_then(|text| namespace::survey(*family, text).ok())
                .map(|survey| Size::from(&survey))
                .unwrap_or_default(),
            _ => Size::default(),
        };
        let delivered = deliver(
            &self.forwarder,
            &installation,
            &write.call,
            &body,
            size,
            now,
        )
        .await;
        match delivered {
            Ok(delivered) => judged(delivered),
            Err(setback) => Fate::Later(setback),
        }
    }

    /// The write need not wait any more; its record goes. If that fails it is sent once more, which Jira ignores.
    async fn ended(&self, site: &Mutex<Site>, write: &SpooledWrite, audit: Option<AuditEntry>) {
        // Who was given up replaces nobody.
        let gone = match audit {
            None => lock(site).with_replaced(write),
            Some(_) => vec![write.id],
        };
        if let Err(error) = self.store.unspool(gone.clone(), audit).await {
            tracing::error!(
                id = write.request_id,
                "a write that is done can't be forgotten, it will be sent again: {error}"
            );
            let again = clock::now()
                .saturating_add(self.backoff(0))
                .unwrap_or(Timestamp::MAX);
            lock(site).put_back(write.link, write.id, error.to_string(), again);
            return;
        }
        let mut site = lock(site);
        // The oldest first, or they would count again for a moment.
        for id in gone.into_iter().rev() {
            if let Some(gone) = site.remove(write.link, id) {
                self.bytes
                    .fetch_sub(gone.room(), std::sync::atomic::Ordering::Relaxed);
            }
        }
    }

    /// Loudly: the instance was told that its write is safe.
    async fn give_up(
        &self,
        site: &Mutex<Site>,
        write: &SpooledWrite,
        reason: &'static str,
        message: &str,
        now: Timestamp,
    ) {
        self.metrics.given_up.with_label_values(&[reason]).inc();
        let endpoint = write.call.endpoint().as_str();
        tracing::error!(
            id = write.request_id, link.id = %write.link, client.key = %write.client_key, endpoint, reason,
            received_at = %write.received_at,
            "a write to {endpoint} will never reach Jira: {message}"
        );
        let audit = AuditEntry {
            client_key: Some(write.client_key.clone()),
            link_id: Some(write.link),
            note: Some(format!("{endpoint}: {reason}")),
            request_id: Some(write.request_id.clone()),
            ..AuditEntry::new(now, Actor::Relay, "write_given_up")
        };
        self.ended(site, write, Some(audit)).await;
    }
}

/// What an answer means for a write that nobody waits for any more.
fn judged(delivered: Delivered) -> Fate {
    let status = delivered.status;
    if status.is_success() {
        return Fate::Done(delivered);
    }
    match status {
        // The secret was rotated and we were not told yet, or the app is gone: Jira's next `installed` or
        // `uninstalled` tells.
        StatusCode::UNAUTHORIZED => Fate::Later(Setback::of_answer(&delivered)),
        // An IP allow list of the site, a module that the app does not declare, a site that is suspended: all can be
        // mended while the write waits, and others of the endpoint would fare no better.
        StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => {
            let mut setback = Setback::of_answer(&delivered);
            setback.throttle.scope = Scope::Endpoint;
            Fate::Later(setback)
        }
        status if status.is_server_error() => Fate::Alone(Setback::of_answer(&delivered).message),
        _ => {
            let told = shape::summary(&delivered.body);
            Fate::GivenUp("refused", format!("Jira answered {status}: {told}"))
        }
    }
}

/// Deletions of links' data, which the records of the links ask for.
#[derive(Default)]
pub(super) struct Purges {
    /// Links whose data is to be deleted.
    wanted: Vec<LinkId>,
    tasks: JoinSet<Result<(), Setback>>,
    under_way: HashMap<task::Id, LinkId>,
    setbacks: HashMap<LinkId, (u32, Timestamp)>,
}

impl Purges {
    /// Links have changed.
    pub(super) fn look(&mut self, shared: &Shared) {
        let links = shared.store.links().into_iter();
        let wanted = links.filter(|link| link.purge.as_ref().is_some_and(|p| p.done_at.is_none()));
        self.wanted = wanted
            .map(|link| {
                lock(&shared.site(&link.client_key)).close(link.id);
                link.id
            })
            .collect();
    }

    /// Starts those that are due, and returns for how long none is.
    pub(super) fn start_due(&mut self, shared: &Arc<Shared>, now: Timestamp) -> Duration {
        let mut pause = super::POLL;
        for id in &self.wanted {
            let Some(link) = shared.store.link(*id) else {
                continue;
            };
            if self.under_way.values().any(|under_way| under_way == id) {
                continue;
            }
            if let Some((_, not_before)) = self.setbacks.get(&link.id)
                && *not_before > now
            {
                pause = pause.min(super::until(*not_before, now));
                continue;
            }
            // A write that was admitted before the link was removed must not come after the deletion. Its lane was
            // closed, so nothing more is sent from it.
            let site = shared.site(&link.client_key);
            let (paused, quiet) = {
                let site = lock(&site);
                (site.paused_until(now), site.is_quiet(link.id))
            };
            let app_hold = shared.app.load_full().filter(|hold| hold.holds(now));
            if let Some(paused) = paused.max(app_hold.map(|hold| hold.until)) {
                pause = pause.min(super::until(paused, now));
                continue;
            }
            if !quiet {
                pause = pause.min(Duration::from_millis(50));
                continue;
            }
            if self.tasks.len() >= PURGES_MAX {
                break;
            }
            let shared = Arc::clone(shared);
            let id = link.id;
            let task = self.tasks.spawn(async move { shared.purge(&link).await });
            self.under_way.insert(task.id(), id);
        }
        pause
    }

    /// Returns when one has ended; never, if none is under way.
    pub(super) async fn ended(&mut self) {
        let Some(ended) = self.tasks.join_next_with_id().await else {
            return std::future::pending().await;
        };
        let task = ended
            .as_ref()
            .map_or_else(task::JoinError::id, |(id, _)| *id);
        let Some(link) = self.under_way.remove(&task) else {
            return;
        };
        match ended {
            Ok((_, Ok(()))) => {
                self.setbacks.remove(&link);
            }
            Ok((_, Err(setback))) => self.set_back(link, setback.throttle.at_least),
            Err(panic) => {
                tracing::error!(link.id = %link, "the deletion of a link's data panicked: {panic}");
                self.set_back(link, None);
            }
        }
    }

    pub(super) async fn shutdown(mut self) {
        self.tasks.shutdown().await;
    }

    fn set_back(&mut self, link: LinkId, at_least: Option<Duration>) {
        let (min, max) = (Duration::from_secs(2), Duration::from_secs(300));
        let (failed, not_before) = self.setbacks.entry(link).or_default();
        let backoff = crate::backoff::doubling(min, max, *failed, crate::backoff::jitter());
        *failed = failed.saturating_add(1);
        let pause = at_least.unwrap_or_default().max(backoff);
        *not_before = clock::now().saturating_add(pause).unwrap_or(Timestamp::MAX);
    }
}

impl Shared {
    /// Drops what still waits of the link, then deletes in every family by the mark that each write carries.
    async fn purge(&self, link: &Link) -> Result<(), Setback> {
        let Some(purge) = &link.purge else {
            return Ok(());
        };
        let site = self.site(&link.client_key);
        let needless: Vec<_> = {
            let site = lock(&site);
            let of_link = site.lanes().filter(|(id, _)| *id == link.id);
            let writes =
                of_link.flat_map(|(_, lane)| lane.map(|waiting| Arc::clone(&waiting.write)));
            writes
                .filter(|write| write.namespace == purge.namespace)
                .collect()
        };
        for write in needless {
            self.give_up(
                &site,
                &write,
                "purged",
                "its link is removed together with its data",
                clock::now(),
            )
            .await;
        }
        if let Some(installation) = self.store.installation(&link.client_key)
            && installation.is_installed()
        {
            self.delete_all_marked(link, &installation).await?;
            // Jira takes writes and deletions in its own time, and a write that we gave up waiting for may still be
            // on its way: what came in between goes with a second round.
            tokio::time::sleep(self.forwarder.timeout()).await;
            self.delete_all_marked(link, &installation).await?;
        }
        self.purged(link).await
    }

    async fn delete_all_marked(
        &self,
        link: &Link,
        installation: &Arc<Installation>,
    ) -> Result<(), Setback> {
        for family in Family::ALL {
            self.delete_marked(link, installation, family).await?;
        }
        Ok(())
    }

    async fn delete_marked(
        &self,
        link: &Link,
        installation: &Arc<Installation>,
        family: Family,
    ) -> Result<(), Setback> {
        let Some(purge) = &link.purge else {
            return Ok(());
        };
        let call = JiraCall::DeleteMarked {
            family,
            namespace: purge.namespace.clone(),
        };
        let (empty, now) = (Bytes::new(), clock::now());
        let sent = deliver(
            &self.forwarder,
            installation,
            &call,
            &empty,
            Size::default(),
            now,
        );
        let setback = match sent.await {
            Ok(delivered) if delivered.status.is_success() => return Ok(()),
            // The app declares no remote links, so Jira refuses to look for any. Elsewhere a 403 is a site that is
            // suspended or lists our address as not allowed, and its data is still there.
            Ok(delivered)
                if family == Family::RemoteLinks
                    && matches!(delivered.status.as_u16(), 403 | 404) =>
            {
                tracing::info!(link.id = %link.id, family = family.as_str(), status = delivered.status.as_u16(),
                    "Jira keeps no data of the app in this family");
                return Ok(());
            }
            Ok(delivered) => Setback::of_answer(&delivered),
            Err(setback) => setback,
        };
        let site = self.site(&link.client_key);
        self.set_back(&site, call.endpoint(), &[], &setback, now);
        self.note_purge_problem(link, family, &setback, now).await;
        Err(setback)
    }

    async fn note_purge_problem(
        &self,
        link: &Link,
        family: Family,
        setback: &Setback,
        now: Timestamp,
    ) {
        let request_id = uuid::Uuid::new_v4().simple().to_string();
        tracing::warn!(
            id = request_id, link.id = %link.id, client.key = %link.client_key, family = family.as_str(),
            reason = setback.reason, "the data of a removed link is not deleted yet: {}", setback.message
        );
        let problem = DeliveryProblem {
            code: setback.reason.to_owned(),
            message: setback.message.clone(),
            hint: "it is tried again by itself; Jira must be reachable, and the app installed"
                .to_owned(),
            at: now,
            id: request_id,
        };
        let noted = self.store.note_link(link.id, move |link| {
            if let Some(purge) = &mut link.purge {
                purge.last_error = Some(problem);
            }
        });
        if let Err(error) = noted.await {
            tracing::error!(link.id = %link.id, "that could not be noted with the link: {error}");
        }
    }

    async fn purged(&self, link: &Link) -> Result<(), Setback> {
        let (id, now) = (link.id, clock::now());
        let done = self.store.transact(move |transaction| {
            linking::purged(transaction, id, now);
            Ok::<(), std::convert::Infallible>(())
        });
        if let Err(error) = done.await {
            tracing::error!(link.id = %id, "the deletion of its data can't be noted, it is made again: {error}");
            return Err(Setback::own(error.to_string()));
        }
        lock(&self.site(&link.client_key)).open_again(id);
        tracing::info!(link.id = %id, client.key = %link.client_key, "all data of the link is deleted from Jira");
        Ok(())
    }
}
