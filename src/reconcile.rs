//! Drives every link until the instance holds what it should.
//!
//! Level-triggered: what is to be done follows from the records alone, so a crash at any point means only that
//! they are looked at again. One attempt per link at a time keeps their order; limits per instance keep a dead
//! one from delaying the others.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use jiff::{SignedDuration, Timestamp};
use tokio::{
    task::{self, JoinError, JoinSet},
    time::Instant,
};

use crate::{
    backoff, clock,
    domain::{
        Actor, AuditEntry, InstanceUrl, LifecycleEventKind, Link, LinkId, LinkMode,
        link::{AttemptOutcome, Goal},
    },
    gitlab::{Patience, deliver::Courier},
    linking,
    metrics::Metrics,
    store::{Store, StoreError, StoreFull, TransactError, Transaction},
    trace::{self, Context, Fault, Hop, Shelf, Subject, Traces},
};

/// Looks at all links at least this often, should a wake-up ever be lost.
const POLL: Duration = Duration::from_secs(30);

/// Looks at all links at most this often.
const PAUSE: Duration = Duration::from_millis(5);

/// The one task that delivers lifecycle events.
pub struct Reconciler {
    /// What should be, and what is.
    pub store: Store,
    /// Makes the attempts.
    pub courier: Courier,
    /// How long to wait for what; shared with the courier.
    pub patience: Arc<ArcSwap<Patience>>,
    /// How long a link's replaced secret counts after its successor was confirmed.
    pub secret_grace: SignedDuration,
    /// How long attempts in flight may go on after a stop.
    pub drain_deadline: Duration,
    /// Counts attempts.
    pub metrics: Arc<Metrics>,
    /// Remembers attempts.
    pub traces: Arc<Traces>,
}

impl Reconciler {
    /// Runs until `shutdown`, then waits for the attempts in flight until the drain deadline.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let this = Arc::new(self);
        let mut shutdown = std::pin::pin!(shutdown);
        let mut changes = this.store.link_changes();
        let mut flights = Flights::default();
        loop {
            // Before looking, so that a change between look and wait wakes us.
            changes.borrow_and_update();
            let looked = Instant::now();
            let pause = this.start_due(&mut flights, clock::now());
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                Some(ended) = flights.tasks.join_next_with_id() => {
                    flights.ended(ended);
                    while let Some(ended) = flights.tasks.try_join_next_with_id() {
                        flights.ended(ended);
                    }
                }
                _ = changes.changed() => {}
                () = tokio::time::sleep(pause) => {}
            }
            tokio::time::sleep_until(looked + PAUSE).await;
        }
        let ended = async { while flights.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(this.drain_deadline, ended)
            .await
            .is_err()
        {
            // What was not recorded is made again after the next start.
            tracing::warn!(
                "{} deliveries were still under way and are cut",
                flights.tasks.len()
            );
            flights.tasks.shutdown().await;
        }
    }

    /// Starts what is due and returns how long nothing will be, if nothing changes.
    fn start_due(self: &Arc<Self>, flights: &mut Flights, now: Timestamp) -> Duration {
        let patience = self.patience.load();
        // A clock that was far ahead for a while must not freeze anything.
        let too_far = now
            .saturating_add((patience.retry_max * 2).max(linking::LONGEST_REFLECTION))
            .unwrap_or(Timestamp::MAX);
        let mut pause = POLL;
        let mut waiting: Vec<Arc<Link>> = self
            .store
            .links()
            .into_iter()
            .filter(|link| !link.is_settled() && !flights.links.contains(&link.id))
            .collect();
        let due_at = |link: &Link| match link.next_attempt_at {
            at if at >= too_far => now,
            at => at,
        };
        waiting.sort_by_key(|link| due_at(link));
        for link in waiting {
            if due_at(&link) > now {
                let until = due_at(&link).duration_since(now);
                pause = pause.min(until.unsigned_abs());
                break;
            }
            if flights.tasks.len() >= patience.attempts_max {
                break;
            }
            let busy = flights.instances.entry(link.instance_url.clone());
            let busy = busy.or_default();
            if *busy < patience.attempts_per_instance_max {
                *busy += 1;
                flights.links.insert(link.id);
                let flight = (link.id, link.instance_url.clone());
                let this = Arc::clone(self);
                let task = flights
                    .tasks
                    .spawn(async move { this.attempt(&link).await });
                flights.under_way.insert(task.id(), flight);
            }
        }
        pause
    }

    /// One attempt, from a look at the records to the record of its outcome.
    async fn attempt(&self, link: &Link) {
        let Some(installation) = self.store.installation(&link.client_key) else {
            tracing::error!(link.id = %link.id, "a link has no installation");
            return tokio::time::sleep(self.patience.load().retry_min).await;
        };
        if link.hides_an_attempt() {
            match self.ledger().mark_told(link.id, link.desired).await {
                Ok(true) => {}
                // Forgotten meanwhile, because it had not been told, or to be told something else.
                Ok(false) => return,
                Err(error) => {
                    tracing::error!(link.id = %link.id, "nothing is delivered while nothing can be saved: {error}");
                    return tokio::time::sleep(self.patience.load().retry_min).await;
                }
            }
        }
        let goal = link.desired;
        let event = goal.event;
        let (number, began) = (uuid::Uuid::new_v4(), clock::now());
        let id = number.simple().to_string();
        let subject = Subject::Delivery {
            link: link.id,
            client_key: link.client_key.clone(),
            instance_url: link.instance_url.clone(),
            goal,
        };
        let trace = self
            .traces
            .begin(number, Context::new(number), subject, began);
        let started = Instant::now();
        let attempt = self.courier.deliver(link, goal, &installation, began);
        let result = trace::within(Arc::clone(&trace), attempt).await;
        let elapsed = started.elapsed();
        let now = clock::now();
        let duration_ms = elapsed.as_millis() as u64;
        let outcome_name = result
            .as_ref()
            .map_or_else(|error| error.code(), |_| "delivered");
        self.metrics
            .deliveries
            .with_label_values(&[event.as_str(), outcome_name])
            .inc();
        self.metrics
            .delivery_duration
            .with_label_values(&[event.as_str()])
            .observe(elapsed.as_secs_f64());
        let mut fault = None;
        let outcome = match result {
            Ok(acknowledged) => {
                tracing::info!(
                    id, link.id = %link.id, client.key = %link.client_key, instance.url = %link.instance_url,
                    %event, duration_ms,
                    "delivered {event} for {} to {}", link.client_key, link.instance_url
                );
                AttemptOutcome::Acknowledged {
                    base_url: acknowledged.base_url,
                }
            }
            Err(error) => {
                let problem = error.problem(&self.courier.proxy_url, &id, now);
                let retry_in = self.patience.load().pause(
                    link.attempts,
                    backoff::jitter(),
                    error.retry_after(),
                );
                tracing::warn!(
                    id, link.id = %link.id, client.key = %link.client_key, instance.url = %link.instance_url,
                    %event, duration_ms, reason = problem.code, attempts = link.attempts + 1,
                    retry_in_secs = retry_in.as_secs(),
                    "{event} for {} not delivered to {}: {}; {}",
                    link.client_key, link.instance_url, problem.message, problem.hint
                );
                fault = Some(Box::new(Fault {
                    code: outcome_name,
                    message: problem.message.clone(),
                    hint: problem.hint.clone(),
                    cause: None,
                    retry_in_secs: u64::try_from(retry_in.as_secs()).ok(),
                }));
                AttemptOutcome::Failed {
                    refused: error.refused(),
                    may_have_arrived: link.reached || error.may_have_arrived(),
                    told: link.told || error.may_have_arrived(),
                    problem,
                    retry_in,
                }
            }
        };
        // Before it is recorded, so that who reads the id in a record finds it.
        let end = Hop::Ended(outcome_name, fault);
        self.traces.end(trace, Shelf::Notable, end);
        let ledger = self.ledger();
        if let Err(error) = ledger.record(link.id, goal, outcome, id, now).await {
            tracing::error!(link.id = %link.id, "the outcome of a delivery could not be saved, it will be made again: {error}");
            // Nothing was recorded, so the link is still due: do not hammer the instance over our own trouble.
            tokio::time::sleep(self.patience.load().retry_min).await;
        }
    }

    fn ledger(&self) -> Ledger<'_> {
        Ledger {
            store: &self.store,
            secret_grace: self.secret_grace,
            removal_give_up: self.patience.load().removal_give_up,
        }
    }
}

/// What is written down of attempts.
struct Ledger<'a> {
    store: &'a Store,
    secret_grace: SignedDuration,
    removal_give_up: SignedDuration,
}

impl Ledger<'_> {
    /// From here on the instance may have been told, whatever happens to us. `false` if the goal is not that any more.
    async fn mark_told(&self, id: LinkId, goal: Goal) -> Result<bool, TransactError<StoreFull>> {
        self.store
            .transact(move |transaction| {
                let Some(link) = transaction.link(id).filter(|link| link.desired == goal) else {
                    return Ok(false);
                };
                if link.hides_an_attempt() {
                    transaction.put_link(Link {
                        reached: true,
                        told: true,
                        ..Link::clone(&link)
                    })?;
                }
                Ok(true)
            })
            .await
    }

    async fn record(
        &self,
        id: LinkId,
        goal: Goal,
        outcome: AttemptOutcome,
        attempt_id: String,
        now: Timestamp,
    ) -> Result<(), TransactError<StoreFull>> {
        let secret_grace = self.secret_grace;
        let removal_give_up = self.removal_give_up;
        self.store
            .transact(move |transaction| {
                let Some(link) = transaction.link(id) else {
                    return Ok(());
                };
                let mut link = link.as_ref().clone();
                let was_settled = link.is_settled();
                link.record(goal, outcome, secret_grace, removal_give_up, now);
                if link.is_settled() && !was_settled {
                    let action = match (goal.event, &link.last_error) {
                        (LifecycleEventKind::Installed, None) if link.hand_back => {
                            "link_handed_back"
                        }
                        (LifecycleEventKind::Installed, Some(_)) if link.hand_back => {
                            "link_given_up"
                        }
                        (LifecycleEventKind::Installed, _) => "link_connected",
                        (LifecycleEventKind::Uninstalled, None) => "link_disconnected",
                        // The instance never confirmed; we stopped asking.
                        (LifecycleEventKind::Uninstalled, Some(_)) => "link_given_up",
                    };
                    transaction.audit(AuditEntry {
                        note: link.last_error.as_ref().map(|problem| problem.code.clone()),
                        request_id: Some(attempt_id),
                        ..AuditEntry::new(now, Actor::Relay, action).about(&link)
                    });
                }
                transaction.settle_link(link);
                Ok(())
            })
            .await
    }
}

/// Puts the records in line with the configuration: `auto_link`, a changed `public.url`, which relayed links
/// must learn as their `baseUrl`, and links that were not allowed and may be now.
pub async fn realign(
    store: &Store,
    public_url: &str,
    auto_link: Vec<InstanceUrl>,
    now: Timestamp,
) -> Result<(), StoreError> {
    let installed: Vec<_> = store
        .installations()
        .into_iter()
        .filter(|installation| installation.is_installed() && !auto_link.is_empty())
        .map(|installation| installation.client_key.clone())
        .collect();
    let links: Vec<_> = store
        .links()
        .into_iter()
        .filter(|link| has_moved(link, public_url) || was_not_allowed(link))
        .map(|link| link.id)
        .collect();
    if installed.is_empty() && links.is_empty() {
        return Ok(());
    }
    let public_url = public_url.to_owned();
    let change = move |transaction: &mut Transaction<'_>| {
        for id in links {
            // Asked again: it may have changed between the look and now.
            let Some(link) = transaction.link(id) else {
                continue;
            };
            let mut link = Link::clone(&link);
            if has_moved(&link, &public_url) {
                link.want_installed(None, now);
            } else if was_not_allowed(&link) {
                link.retry_now(now);
            }
            transaction.put_link(link)?;
        }
        for client_key in installed {
            linking::auto_link(transaction, &client_key, &auto_link, now);
        }
        Ok::<(), StoreFull>(())
    };
    match store.transact(change).await {
        Ok(()) => Ok(()),
        Err(TransactError::Store(error)) => Err(error),
        Err(TransactError::Refused(full)) => {
            tracing::error!("not all links could be put in line with the configuration: {full}");
            Ok(())
        }
    }
}

/// The instance holds another `baseUrl` than it should, and is not about to be told anything.
fn has_moved(link: &Link, public_url: &str) -> bool {
    link.mode == LinkMode::Relay
        && link.is_settled()
        && link.wants_installed()
        && link
            .acknowledged_base_url
            .as_deref()
            .is_some_and(|base_url| base_url != public_url)
}

/// What the operator decides was against the last attempt: policy, addresses, certificate authorities.
fn was_not_allowed(link: &Link) -> bool {
    !link.is_settled()
        && link.last_error.as_ref().is_some_and(|problem| {
            matches!(
                problem.code.as_str(),
                "not_allowed" | "address_not_public" | "tls_failed"
            )
        })
}

/// Attempts in flight.
#[derive(Default)]
struct Flights {
    tasks: JoinSet<()>,
    under_way: HashMap<task::Id, (LinkId, InstanceUrl)>,
    links: HashSet<LinkId>,
    instances: HashMap<InstanceUrl, usize>,
}

impl Flights {
    fn ended(&mut self, ended: Result<(task::Id, ()), JoinError>) {
        let task = ended.as_ref().map_or_else(JoinError::id, |(id, ())| *id);
        let Some((link, instance_url)) = self.under_way.remove(&task) else {
            return;
        };
        match ended {
            Ok(_) => {
                self.links.remove(&link);
            }
            // It stays marked: nothing was recorded, so it would fail in the same way again and again.
            Err(panic) => tracing::error!(
                link.id = %link,
                "a delivery attempt panicked, the link is left alone until the next start: {panic}"
            ),
        }
        if let Some(busy) = self.instances.get_mut(&instance_url) {
            *busy -= 1;
            if *busy == 0 {
                self.instances.remove(&instance_url);
            }
        }
    }
}

#[cfg(test)]
mod tests;
