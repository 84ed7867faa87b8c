//! The deletion of everything that a link ever wrote, by the mark that each of its writes carries.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::task::{self, JoinSet};

use super::shared::Shared;
use crate::{
    clock,
    domain::{
        ClientKey, Family, Installation, JiraCall, Link, LinkId, Namespace, Upstream, UpstreamKind,
        link::DeliveryProblem,
    },
    jira::{
        Setback,
        deliver::{Size, deliver},
    },
    linking,
    lock::lock,
    trace::{self, Context, Fault, Hop, Shelf, Subject},
};

/// Deletions under way at once.
const PURGES_MAX: usize = 4;

/// Deletions of links' data, which the records of the links ask for.
#[derive(Default)]
pub(super) struct Purges {
    /// Links whose data is to be deleted.
    wanted: Vec<LinkId>,
    tasks: JoinSet<Result<(), Setback>>,
    under_way: HashMap<task::Id, LinkId>,
    setbacks: HashMap<LinkId, (u32, Timestamp)>,
    /// Links that send nothing while their data is deleted.
    closed: HashMap<LinkId, ClientKey>,
}

impl Purges {
    /// Links have changed.
    pub(super) fn look(&mut self, shared: &Shared) {
        self.setbacks
            .retain(|link, _| shared.store.link(*link).is_some());
        let links = shared.store.links().into_iter();
        let wanted = links.filter(|link| link.is_purging());
        self.wanted = wanted.map(|link| link.id).collect();
        // Done, or given up.
        self.closed.retain(|id, client_key| {
            let is_wanted = self.wanted.contains(id);
            if !is_wanted {
                lock(&shared.site(client_key)).open_again(*id);
            }
            is_wanted
        });
    }

    /// Starts those that are due, and returns for how long none is.
    pub(super) fn start_due(&mut self, shared: &Arc<Shared>, now: Timestamp) -> Duration {
        let mut pause = super::POLL;
        for id in &self.wanted {
            let Some(link) = shared.store.link(*id) else {
                continue;
            };
            let Some(purge) = link.purge.as_ref().filter(|purge| purge.is_wanted()) else {
                // Taken back or given up since.
                continue;
            };
            // A clock that was far ahead for a while must not freeze anything.
            let wait = |start: &Timestamp| start.duration_since(now).as_secs();
            let longest = linking::LONGEST_REFLECTION.as_secs() as i64;
            let start = purge
                .not_before
                .filter(|start| *start > now && wait(start) <= longest);
            if self.under_way.values().any(|under_way| under_way == id) {
                continue;
            }
            if let Some(start) = start {
                pause = pause.min(super::until(start, now));
                continue;
            }
            if let Some((_, not_before)) = self.setbacks.get(&link.id)
                && *not_before > now
            {
                pause = pause.min(super::until(*not_before, now));
                continue;
            }
            if !purge.begun {
                // Only what is marked can't be taken back any more, so nothing is closed or deleted before.
                if self.tasks.len() < PURGES_MAX {
                    let (shared, id) = (Arc::clone(shared), link.id);
                    let task = self
                        .tasks
                        .spawn(async move { shared.begin_purge(id).await });
                    self.under_way.insert(task.id(), link.id);
                }
                continue;
            }
            // A write that was admitted before the link was removed must not come after the deletion. Its lane was
            // closed, so nothing more is sent from it.
            let site = shared.site(&link.client_key);
            let (paused, quiet) = {
                let mut site = lock(&site);
                site.close(link.id);
                self.closed.insert(link.id, link.client_key.clone());
                (site.pauses.site_until(now), site.is_quiet(link.id))
            };
            if let Some(paused) = paused.max(shared.app_held(&link.client_key, now)) {
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

/// The installation once for each way to its site that is open, with that way in use.
fn open_ways(installation: &Installation) -> Vec<Arc<Installation>> {
    let with = |way: &Upstream| {
        Arc::new(Installation {
            upstream: way.clone(),
            ..installation.clone()
        })
    };
    installation.open_ways().map(with).collect()
}

/// What to do about a deletion that failed.
fn how_to_go_on(link: &Link, way: UpstreamKind, in_use: bool) -> String {
    let (id, key, way) = (link.id, &link.client_key, way.as_str());
    let cure = if in_use {
        format!(
            "`jira-connect-proxy links remove {id} --abandon-purge` leaves what is not deleted yet in Jira"
        )
    } else {
        format!(
            "`jira-connect-proxy installations remove {key} --upstream {way}` forgets it, and the deletion ends without"
        )
    };
    format!(
        "it is tried again by itself; Jira must be reachable, and the app installed or the credentials good. If {way} opens the site no more, {cure}"
    )
}

impl Shared {
    /// The change wakes whoever deletes.
    async fn begin_purge(&self, id: LinkId) -> Result<(), Setback> {
        let begun = self
            .store
            .transact(move |transaction| {
                Ok::<_, std::convert::Infallible>(linking::begin_purge(transaction, id))
            })
            .await;
        if let Err(error) = begun {
            tracing::error!(link.id = %id, "the deletion of a link's data could not be begun, it is tried again: {error}");
            return Err(Setback::own(error.to_string()));
        }
        Ok(())
    }

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
        // Jira keeps data by who sent it, and before a move that was another.
        let ways = self.store.installation(&link.client_key);
        let ways = ways.map_or_else(Vec::new, |installation| open_ways(&installation));
        if !ways.is_empty() {
            self.delete_all_marked(link, &ways).await?;
            // Jira takes writes and deletions in its own time, and a write that we gave up waiting for may still be
            // on its way: what came in between goes with a second round.
            tokio::time::sleep(self.forwarder.timeout()).await;
            self.delete_all_marked(link, &ways).await?;
        }
        self.purged(link, &purge.namespace).await
    }

    async fn delete_all_marked(
        &self,
        link: &Link,
        ways: &[Arc<Installation>],
    ) -> Result<(), Setback> {
        // A way that is dead keeps nobody from deleting what was sent the others.
        let mut failed = Ok(());
        for way in ways {
            let deleted = self.delete_all_sent(link, way).await;
            failed = failed.and(deleted);
        }
        failed
    }

    async fn delete_all_sent(&self, link: &Link, way: &Arc<Installation>) -> Result<(), Setback> {
        for family in Family::ALL {
            self.delete_marked(link, way, family).await?;
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
        let id = uuid::Uuid::new_v4();
        let subject = Subject::Deletion {
            link: link.id,
            client_key: link.client_key.clone(),
            family: family.as_str(),
        };
        let trace = self.traces.begin(id, Context::new(id), subject, now);
        let sent = trace::within(Arc::clone(&trace), sent).await;
        let ended = |hop| self.traces.end(trace, Shelf::Notable, hop);
        let setback = match sent {
            Ok(delivered) if delivered.status.is_success() => {
                ended(Hop::Ended("deleted", None));
                return Ok(());
            }
            // The app declares no remote links, so Jira refuses to look for any. Elsewhere a 403 is a site that is
            // suspended or lists our address as not allowed, and its data is still there.
            Ok(delivered)
                if family == Family::RemoteLinks
                    && matches!(delivered.status.as_u16(), 403 | 404) =>
            {
                tracing::info!(link.id = %link.id, family = family.as_str(), status = delivered.status.as_u16(),
                    "Jira keeps no data of the app in this family");
                ended(Hop::Ended("no_data", None));
                return Ok(());
            }
            Err(setback) if family == Family::RemoteLinks && setback.reason == "forbidden" => {
                tracing::info!(link.id = %link.id, family = family.as_str(), reason = setback.reason,
                    "nothing opens this family, so there is no data of ours in it");
                ended(Hop::Ended("no_data", None));
                return Ok(());
            }
            Ok(delivered) => Setback::of_answer(&delivered),
            Err(setback) => setback,
        };
        self.set_back(installation, call.endpoint(), &[], &setback, now);
        let way = installation.upstream.kind();
        let in_use = self.store.installation(&link.client_key);
        let in_use = in_use.is_some_and(|used| used.upstream.kind() == way);
        let problem = DeliveryProblem {
            code: setback.reason.to_owned(),
            message: format!("through {}: {}", way.as_str(), setback.message),
            hint: how_to_go_on(link, way, in_use),
            at: now,
            id: id.simple().to_string(),
        };
        let fault = Fault {
            code: setback.reason,
            message: problem.message.clone(),
            hint: problem.hint.clone(),
            ..Fault::default()
        };
        ended(Hop::Ended(setback.reason, Some(Box::new(fault))));
        self.note_purge_problem(link, family, problem).await;
        Err(setback)
    }

    async fn note_purge_problem(&self, link: &Link, family: Family, problem: DeliveryProblem) {
        tracing::warn!(
            id = problem.id, link.id = %link.id, client.key = %link.client_key, family = family.as_str(),
            reason = problem.code, "the data of a removed link is not deleted yet: {}", problem.message
        );
        let noted = self.store.note_link(link.id, move |link| {
            if let Some(purge) = &mut link.purge {
                purge.last_error = Some(problem);
            }
        });
        if let Err(error) = noted.await {
            tracing::error!(link.id = %link.id, "that could not be noted with the link: {error}");
        }
    }

    async fn purged(&self, link: &Link, namespace: &Namespace) -> Result<(), Setback> {
        let (id, now, namespace) = (link.id, clock::now(), namespace.clone());
        let done = self.store.transact(move |transaction| {
            linking::purged(transaction, id, &namespace, now);
            Ok::<(), std::convert::Infallible>(())
        });
        if let Err(error) = done.await {
            tracing::error!(link.id = %id, "the deletion of its data can't be noted, it is made again: {error}");
            return Err(Setback::own(error.to_string()));
        }
        tracing::info!(link.id = %id, client.key = %link.client_key, "all data of the link is deleted from Jira");
        Ok(())
    }
}
