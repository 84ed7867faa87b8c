//! Rounds: every connected instance is looked at from time to time, so that a certificate that ran out, a changed
//! setting or a lost secret shows before somebody misses data.
//!
//! What was found lives in memory only: after a restart the next round tells.

use std::{sync::Arc, time::Duration};

use dashmap::DashMap;
use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use serde::Serialize;

use crate::{
    clock,
    doctor::{Depth, Doctor, Step},
    domain::{InstanceUrl, LifecycleEventKind},
    gitlab::probe::Verdict,
    metrics::Metrics,
    store::Store,
};

/// Instances looked at at once.
const AT_ONCE: usize = 4;

/// The first round starts this long after the relay, when deliveries that waited are through.
const FIRST_AFTER: Duration = Duration::from_secs(60);

/// Goes on rounds, and knows what the last one found out about each instance.
pub struct Rounds {
    health: DashMap<InstanceUrl, Arc<Health>>,
    doctor: Arc<Doctor>,
    store: Store,
    /// From one round to the next; none at all, if there is none.
    every: Option<Duration>,
    metrics: Arc<Metrics>,
}

/// How an instance was when it was last looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Health {
    /// When.
    pub checked_at: Timestamp,
    /// The worst of what was found.
    pub verdict: Verdict,
    /// What was not in order.
    pub faults: Vec<Step>,
}

impl Rounds {
    /// Goes with the doctor, every so often.
    pub fn new(
        doctor: Arc<Doctor>,
        store: Store,
        every: Option<Duration>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            health: DashMap::new(),
            doctor,
            store,
            every,
            metrics,
        }
    }

    /// Goes on until `shutdown`.
    pub async fn run(self: Arc<Self>, shutdown: impl Future<Output = ()>) {
        let Some(every) = self.every else {
            return shutdown.await;
        };
        let mut shutdown = std::pin::pin!(shutdown);
        let mut pause = FIRST_AFTER.min(every);
        loop {
            let round = async {
                tokio::time::sleep(pause).await;
                self.go().await;
            };
            tokio::select! {
                () = &mut shutdown => return,
                () = round => {}
            }
            pause = every;
        }
    }

    /// How an instance was, if it was looked at.
    pub fn health(&self, instance: &InstanceUrl) -> Option<Arc<Health>> {
        self.health.get(instance).map(|health| Arc::clone(&health))
    }

    /// Looks at an instance before the next round does. Without rounds, what it found would stay for ever.
    pub async fn look_now(&self, instance: &InstanceUrl) {
        if self.every.is_some() {
            self.look(instance).await;
            self.count();
        }
    }

    async fn go(&self) {
        let mut instances: Vec<InstanceUrl> = self
            .store
            .links()
            .iter()
            .filter(|link| link.desired.event == LifecycleEventKind::Installed && link.is_settled())
            .map(|link| link.instance_url.clone())
            .collect();
        instances.sort_unstable();
        instances.dedup();
        self.health
            .retain(|instance, _| instances.binary_search(instance).is_ok());
        stream::iter(&instances)
            .for_each_concurrent(AT_ONCE, |instance| self.look(instance))
            .await;
        self.count();
    }

    fn count(&self) {
        for verdict in [Verdict::Ok, Verdict::Unknown, Verdict::Warn, Verdict::Fail] {
            let count = self.health.iter().filter(|h| h.verdict == verdict).count();
            self.metrics
                .instance_health
                .with_label_values(&[verdict.as_str()])
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    async fn look(&self, instance: &InstanceUrl) {
        let report = self
            .doctor
            .instance(instance, Depth::Quiet, clock::now())
            .await;
        let health = Health {
            checked_at: clock::now(),
            verdict: report.verdict,
            faults: report
                .steps
                .into_iter()
                .filter(|step| step.finding.verdict > Verdict::Unknown)
                .collect(),
        };
        let before = self.health(instance).map(|health| health.verdict);
        // A change is news, a state is not.
        match (before, health.verdict) {
            (before, Verdict::Fail) if before != Some(Verdict::Fail) => {
                for Step { rung, finding } in &health.faults {
                    tracing::warn!(
                        instance.url = %instance, rung, reason = finding.code,
                        "{instance} needs attention: {}; {}",
                        finding.message, finding.hint.as_deref().unwrap_or_default()
                    );
                }
            }
            (Some(Verdict::Fail), _) => {
                tracing::info!(instance.url = %instance, "{instance} is in order again");
            }
            _ => {}
        }
        self.health.insert(instance.clone(), Arc::new(health));
    }
}
