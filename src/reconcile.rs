//! Drives every link until the instance holds what it should.
//!
//! Level-triggered: what is to be done follows from the records alone, so a crash at any point means only that
//! they are looked at again. One attempt per link at a time keeps their order; limits per instance keep a dead
//! one from delaying the others.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::{task::JoinSet, time::Instant};

use crate::{
    clock,
    config::InstancesConfig,
    domain::{
        Actor, AuditEntry, InstanceUrl, LifecycleEventKind, Link, LinkId, LinkMode,
        link::AttemptOutcome,
    },
    gitlab::deliver::Courier,
    linking,
    metrics::Metrics,
    store::{Store, StoreError, StoreFull, TransactError},
};

/// Looks at all links at least this often, should a wake-up ever be lost.
const POLL: Duration = Duration::from_secs(30);

/// Looks at all links at most this often.
const PAUSE: Duration = Duration::from_millis(5);

/// When to try, and when to stop.
#[derive(Clone, Debug)]
pub struct Patience {
    /// First pause.
    pub retry_min: Duration,
    /// Longest pause.
    pub retry_max: Duration,
    /// Attempts in flight at once.
    pub attempts_max: usize,
    /// Of these, to one instance.
    pub attempts_per_instance_max: usize,
    /// How long a link's replaced secret counts after its successor was confirmed.
    pub secret_grace: SignedDuration,
    /// A removal that nobody answers ends after this.
    pub removal_give_up: SignedDuration,
    /// How long the records of an uninstalled site are kept.
    pub keep_uninstalled: SignedDuration,
}

/// The one task that delivers lifecycle events.
pub struct Reconciler {
    /// What should be, and what is.
    pub store: Store,
    /// Makes the attempts.
    pub courier: Courier,
    /// How long to wait for what.
    pub patience: Patience,
    /// Counts attempts.
    pub metrics: Arc<Metrics>,
}

impl Patience {
    /// From the configuration.
    pub fn new(
        instances: &InstancesConfig,
        secret_grace: SignedDuration,
        keep_uninstalled: SignedDuration,
    ) -> Self {
        Self {
            retry_min: instances.retry_min,
            retry_max: instances.retry_max,
            attempts_max: instances.deliveries_max,
            attempts_per_instance_max: instances.deliveries_per_instance_max,
            secret_grace,
            removal_give_up: instances.removal_give_up,
            keep_uninstalled,
        }
    }

    /// The pause after the `failed`th failure in a row: doubling, between three and five quarters of it as
    /// `jitter` goes from 0 to 1, not less than the peer asks for, and never more than the longest.
    fn pause(&self, failed: u32, jitter: f64, asked: Option<Duration>) -> SignedDuration {
        let doubled = self
            .retry_min
            .saturating_mul(2_u32.saturating_pow(failed.min(31)))
            .min(self.retry_max);
        let pause = doubled
            .mul_f64(0.75 + jitter / 2.0)
            .max(asked.unwrap_or_default())
            .min(self.retry_max);
        SignedDuration::try_from(pause).unwrap_or(SignedDuration::MAX)
    }
}

impl Reconciler {
    /// Runs until `shutdown`, then waits for the attempts in flight: each has its own deadline.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let this = Arc::new(self);
        let mut shutdown = std::pin::pin!(shutdown);
        let mut changes = this.store.link_changes();
        let mut flights = Flights::default();
        let mut next_purge = Instant::now();
        loop {
            // Before looking, so that a change between look and wait wakes us.
            changes.borrow_and_update();
            let looked = Instant::now();
            let pause = this.start_due(&mut flights, clock::now());
            if next_purge <= looked {
                this.purge(clock::now()).await;
                next_purge = looked + POLL;
            }
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                Some(ended) = flights.tasks.join_next() => flights.ended(ended),
                _ = changes.changed() => {}
                () = tokio::time::sleep(pause) => {}
            }
            tokio::time::sleep_until(looked + PAUSE).await;
        }
        while flights.tasks.join_next().await.is_some() {}
    }

    /// Starts what is due and returns how long nothing will be, if nothing changes.
    fn start_due(self: &Arc<Self>, flights: &mut Flights, now: Timestamp) -> Duration {
        let mut pause = POLL;
        let mut waiting: Vec<Arc<Link>> = self
            .store
            .links()
            .into_iter()
            .filter(|link| !link.is_settled() && !flights.links.contains(&link.id))
            .collect();
        waiting.sort_by_key(|link| link.next_attempt_at);
        for link in waiting {
            if link.next_attempt_at > now {
                let until = link.next_attempt_at.duration_since(now);
                pause = pause.min(until.unsigned_abs());
                break;
            }
            if flights.tasks.len() >= self.patience.attempts_max {
                break;
            }
            let busy = flights.instances.entry(link.instance_url.clone());
            let busy = busy.or_default();
            if *busy < self.patience.attempts_per_instance_max {
                *busy += 1;
                flights.links.insert(link.id);
                let this = Arc::clone(self);
                flights.tasks.spawn(async move {
                    this.attempt(&link).await;
                    (link.id, link.instance_url.clone())
                });
            }
        }
        pause
    }

    /// One attempt, from a look at the records to the record of its outcome.
    async fn attempt(&self, link: &Link) {
        let Some(installation) = self.store.installation(&link.client_key) else {
            tracing::error!(link.id = %link.id, "a link has no installation");
            return tokio::time::sleep(POLL).await;
        };
        let goal = link.desired;
        let event = goal.event;
        let id = uuid::Uuid::new_v4().simple().to_string();
        let started = Instant::now();
        let result = self
            .courier
            .deliver(link, goal, &installation, clock::now())
            .await;
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
                let retry_in =
                    self.patience
                        .pause(link.attempts, random_fraction(), error.retry_after());
                tracing::warn!(
                    id, link.id = %link.id, client.key = %link.client_key, instance.url = %link.instance_url,
                    %event, duration_ms, reason = problem.code, attempts = link.attempts + 1,
                    retry_in_secs = retry_in.as_secs(),
                    "{event} for {} not delivered to {}: {}; {}",
                    link.client_key, link.instance_url, problem.message, problem.hint
                );
                AttemptOutcome::Failed {
                    refused: error.refused(),
                    problem,
                    retry_in,
                }
            }
        };
        if let Err(error) = self.record(link.id, goal, outcome, id, now).await {
            tracing::error!(link.id = %link.id, "the outcome of a delivery could not be saved, it will be made again: {error}");
            // Nothing was recorded, so the link is still due: do not hammer the instance over our own trouble.
            tokio::time::sleep(self.patience.retry_min).await;
        }
    }

    async fn record(
        &self,
        id: LinkId,
        goal: crate::domain::link::Goal,
        outcome: AttemptOutcome,
        attempt_id: String,
        now: Timestamp,
    ) -> Result<(), TransactError<StoreFull>> {
        let Patience {
            secret_grace,
            removal_give_up,
            ..
        } = self.patience;
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
                        (LifecycleEventKind::Installed, _) => "link_connected",
                        (LifecycleEventKind::Uninstalled, None) => "link_disconnected",
                        // The instance never confirmed; we stopped asking.
                        (LifecycleEventKind::Uninstalled, Some(_)) => "link_given_up",
                    };
                    transaction.audit(AuditEntry {
                        client_key: Some(link.client_key.clone()),
                        link_id: Some(id),
                        note: link.last_error.as_ref().map(|problem| problem.code.clone()),
                        request_id: Some(attempt_id),
                        ..AuditEntry::new(now, Actor::Relay, action)
                    });
                }
                if link.is_finished() {
                    transaction.remove_link(id);
                    Ok(())
                } else {
                    transaction.put_link(link)
                }
            })
            .await
    }

    /// Forgets sites that were uninstalled long ago, once all their instances were told.
    async fn purge(&self, now: Timestamp) {
        for installation in self.store.installations() {
            let expired = installation
                .uninstalled_at
                .is_some_and(|at| now.duration_since(at) >= self.patience.keep_uninstalled);
            if !expired {
                continue;
            }
            let client_key = installation.client_key.clone();
            let purged = self.store.transact(move |transaction| {
                // It may have come back between the look and now.
                if transaction.installation(&client_key).as_deref() != Some(installation.as_ref()) {
                    return Ok::<bool, Infallible>(false);
                }
                let links = transaction.links_of(&client_key);
                if !links.iter().all(|link| link.is_settled()) {
                    return Ok(false);
                }
                for link in links {
                    transaction.remove_link(link.id);
                }
                transaction.remove_installation(&client_key);
                transaction.audit(AuditEntry {
                    client_key: Some(client_key),
                    ..AuditEntry::new(now, Actor::Relay, "installation_forgotten")
                });
                Ok(true)
            });
            if let Err(error) = purged.await {
                tracing::error!("an uninstalled site could not be forgotten: {error}");
            }
        }
    }
}

/// Puts the records in line with the configuration: `auto_link`, and a changed `public.url`, which relayed
/// links must learn as their `baseUrl`.
pub async fn realign(
    store: &Store,
    public_url: &str,
    auto_link: Vec<InstanceUrl>,
    now: Timestamp,
) -> Result<(), StoreError> {
    let installed = store
        .installations()
        .into_iter()
        .filter(|installation| installation.is_installed())
        .map(|installation| installation.client_key.clone())
        .collect::<Vec<_>>();
    let moved = store
        .links()
        .into_iter()
        .filter(|link| {
            link.mode == LinkMode::Relay
                && link.desired.event == LifecycleEventKind::Installed
                && link
                    .acknowledged_base_url
                    .as_deref()
                    .is_some_and(|base_url| base_url != public_url)
        })
        .map(|link| link.id)
        .collect::<Vec<_>>();
    if moved.is_empty() && (auto_link.is_empty() || installed.is_empty()) {
        return Ok(());
    }
    let change = move |transaction: &mut crate::store::Transaction<'_>| {
        for id in moved {
            if let Some(link) = transaction.link(id) {
                let mut link = link.as_ref().clone();
                link.want_installed(None, now);
                transaction.put_link(link)?;
            }
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

/// Attempts in flight.
#[derive(Default)]
struct Flights {
    tasks: JoinSet<(LinkId, InstanceUrl)>,
    links: HashSet<LinkId>,
    instances: HashMap<InstanceUrl, usize>,
}

impl Flights {
    fn ended(&mut self, ended: Result<(LinkId, InstanceUrl), tokio::task::JoinError>) {
        match ended {
            Ok((id, instance_url)) => {
                self.links.remove(&id);
                if let Some(busy) = self.instances.get_mut(&instance_url) {
                    *busy -= 1;
                    if *busy == 0 {
                        self.instances.remove(&instance_url);
                    }
                }
            }
            // Whose attempt it was is not known: forget all marks. A link tried twice at once is delivered
            // twice at worst, a link marked for ever would never be delivered again.
            Err(panic) => {
                tracing::error!("a delivery attempt panicked: {panic}");
                self.links.clear();
                self.instances.clear();
            }
        }
    }
}

/// Between 0 and 1.
fn random_fraction() -> f64 {
    let mut byte = [128];
    // Without randomness all relays of the world wait equally long; that is no reason to stop.
    let _ = SystemRandom::new().fill(&mut byte);
    f64::from(byte[0]) / 255.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_between_their_limits() {
        let patience = Patience {
            retry_min: Duration::from_secs(5),
            retry_max: Duration::from_secs(3600),
            attempts_max: 1,
            attempts_per_instance_max: 1,
            secret_grace: SignedDuration::ZERO,
            removal_give_up: SignedDuration::ZERO,
            keep_uninstalled: SignedDuration::ZERO,
        };
        let secs = |failed, jitter| patience.pause(failed, jitter, None).as_secs_f64();
        assert_eq!(
            (secs(0, 0.5), secs(1, 0.5), secs(2, 0.5)),
            (5.0, 10.0, 20.0)
        );
        assert_eq!((secs(0, 0.0), secs(0, 1.0)), (3.75, 6.25));
        assert_eq!((secs(12, 0.5), secs(u32::MAX, 1.0)), (3600.0, 3600.0));
        let asked = |seconds| patience.pause(0, 0.5, Some(Duration::from_secs(seconds)));
        assert_eq!(
            (
                asked(60).as_secs(),
                asked(1).as_secs(),
                asked(99_999).as_secs()
            ),
            (60, 5, 3600)
        );
    }
}
