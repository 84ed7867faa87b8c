//! Rounds: every connected instance is looked at from time to time, so that a certificate that ran out, a changed
//! setting or a lost secret shows before somebody misses data.
//!
//! What was found lives in memory only: after a restart the next round tells.

use std::{collections::BTreeSet, future, sync::Arc, time::Duration};

use dashmap::DashMap;
use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use serde::Serialize;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use crate::{
    backoff, clock,
    doctor::{Depth, Doctor, Step},
    domain::{InstanceUrl, Link, LinkId, link::Goal},
    gitlab::probe::Verdict,
    metrics::Metrics,
    store::Store,
    trace::{self, Context, Hop, Shelf, Subject, Traces},
};

/// Instances looked at at once.
const AT_ONCE: usize = 4;

/// The first round starts this long after the relay, when deliveries that waited are through.
const FIRST_AFTER: Duration = Duration::from_secs(60);

/// What was found broken is looked at this much more often, so that a fault does not outlive its cause by much.
const AGAIN_TIMES: u32 = 60;
const AGAIN_MIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(60);

/// So many of them, those first that were not looked at for the longest time.
const AGAIN_AT_MOST: usize = 64;

/// From one wave of news to the next.
const NEWS_PAUSE: Duration = Duration::from_secs(1);

/// Goes on rounds, and knows what the last one found out about each instance.
pub struct Rounds {
    health: DashMap<InstanceUrl, Arc<Health>>,
    doctor: Arc<Doctor>,
    store: Store,
    /// From one round to the next; none at all, if there is none.
    every: Option<Duration>,
    /// An instance answered that was found out of reach.
    heard: Notify,
    metrics: Arc<Metrics>,
    traces: Arc<Traces>,
}

/// How an instance was when it was last looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Health {
    /// When.
    pub checked_at: Timestamp,
    /// The worst of what was found.
    pub verdict: Verdict,
    /// What was not in order.
    pub faults: Vec<Fault>,
    /// The worst of what all links of the instance have in common.
    #[serde(skip)]
    common: Verdict,
    /// What its links had confirmed before the look; what they confirm later is news.
    #[serde(skip)]
    confirmed: Vec<(LinkId, Goal)>,
}

/// Something that was not in order.
#[derive(Clone, Debug, Serialize)]
pub struct Fault {
    /// What.
    #[serde(flatten)]
    pub step: Step,
    /// Of the look that found it first: in the log, and for `trace`.
    pub id: String,
}

impl Rounds {
    /// Goes with the doctor, every so often.
    pub fn new(
        doctor: Arc<Doctor>,
        store: Store,
        every: Option<Duration>,
        metrics: Arc<Metrics>,
        traces: Arc<Traces>,
    ) -> Self {
        Self {
            health: DashMap::new(),
            doctor,
            store,
            every,
            heard: Notify::new(),
            metrics,
            traces,
        }
    }

    /// Goes on until `shutdown`.
    pub async fn run(self: Arc<Self>, shutdown: impl Future<Output = ()>) {
        let Some(every) = self.every else {
            return shutdown.await;
        };
        let mut shutdown = std::pin::pin!(shutdown);
        let mut changes = self.store.link_changes();
        let mut round = Instant::now() + FIRST_AFTER.min(every);
        let again_after = (every / AGAIN_TIMES).clamp(AGAIN_MIN, AGAIN_MAX);
        let pause = || backoff::doubling(again_after, 2 * again_after, 0, backoff::jitter());
        let mut again = Instant::now() + pause();
        loop {
            let look = async {
                tokio::select! {
                    biased;
                    () = tokio::time::sleep_until(round) => {
                        self.go().await;
                        round = Instant::now() + every;
                    }
                    () = tokio::time::sleep_until(again) => {
                        self.look_at(self.failing()).await;
                        again = Instant::now() + pause();
                    }
                    () = self.news(&mut changes) => {
                        self.look_at(self.changed()).await;
                        tokio::time::sleep(NEWS_PAUSE).await;
                    }
                }
            };
            tokio::select! {
                () = &mut shutdown => return,
                () = look => {}
            }
        }
    }

    /// How the instance of a link was, if it was looked at; nothing of what only other links of it have.
    pub fn health(&self, link: &Link) -> Option<Health> {
        let health = Arc::clone(&*self.health.get(&link.instance_url)?);
        let its = |fault: &&Fault| fault.step.link_id.is_none_or(|id| id == link.id);
        let faults: Vec<Fault> = health.faults.iter().filter(its).cloned().collect();
        let worst = faults.iter().map(|fault| fault.step.finding.verdict);
        Some(Health {
            checked_at: health.checked_at,
            verdict: worst.fold(health.common, Verdict::max),
            faults,
            common: health.common,
            confirmed: Vec::new(),
        })
    }

    /// Looks at the instance of a link before the next round does. Without rounds, what it found would stay for ever.
    pub async fn look_now(&self, link: &Arc<Link>) {
        if self.every.is_some() {
            self.look(&link.instance_url, std::slice::from_ref(link))
                .await;
            self.count();
        }
    }

    /// The instance answered just now: if it was out of reach before, it is so no more, and is looked at again.
    pub fn heard(&self, instance: &InstanceUrl) {
        let Some(mut health) = self.health.get_mut(instance) else {
            return;
        };
        if !health
            .faults
            .iter()
            .any(|fault| fault.step.is_out_of_reach())
        {
            return;
        }
        let mut heard = Health::clone(&health);
        heard.faults.retain(|fault| !fault.step.is_out_of_reach());
        heard.confirmed.clear();
        *health = Arc::new(heard);
        drop(health);
        self.heard.notify_one();
    }

    /// A link changed, or an instance answered that was out of reach.
    async fn news(&self, changes: &mut watch::Receiver<u64>) {
        let changed = async {
            if changes.changed().await.is_err() {
                future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = changed => {}
            () = self.heard.notified() => {}
        }
    }

    async fn go(&self) {
        let links = self.store.links();
        let instances = links.iter().filter(|link| is_connected(link));
        let instances: BTreeSet<_> = instances.map(|link| link.instance_url.clone()).collect();
        self.health
            .retain(|instance, _| instances.contains(instance));
        self.look_at(instances).await;
    }

    /// What the last looks found broken, as much of it as is looked at in one go.
    fn failing(&self) -> BTreeSet<InstanceUrl> {
        let failing = self.health.iter().filter(|h| h.verdict == Verdict::Fail);
        let mut failing: Vec<_> = failing.map(|h| (h.checked_at, h.key().clone())).collect();
        failing.sort_unstable();
        failing.truncate(AGAIN_AT_MOST);
        failing.into_iter().map(|(_, instance)| instance).collect()
    }

    /// What was found broken, and confirmed something since.
    fn changed(&self) -> BTreeSet<InstanceUrl> {
        let is_broken = |health: &Health| health.verdict == Verdict::Fail;
        if !self.health.iter().any(|health| is_broken(&health)) {
            return BTreeSet::new();
        }
        let links = self.store.links();
        let news = links.iter().filter(|link| {
            let health = self.health.get(&link.instance_url);
            is_connected(link)
                && health.is_some_and(|health| {
                    is_broken(&health) && !health.confirmed.contains(&(link.id, link.desired))
                })
        });
        news.map(|link| link.instance_url.clone()).collect()
    }

    async fn look_at(&self, instances: BTreeSet<InstanceUrl>) {
        stream::iter(instances)
            .for_each_concurrent(AT_ONCE, |instance| async move {
                self.look(&instance, &self.doctor.links_to(&instance)).await;
            })
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

    /// Looks at an instance, and at what these of its links find there.
    async fn look(&self, instance: &InstanceUrl, links: &[Arc<Link>]) {
        // The news of others are looked at in their turn.
        let confirmed = links.iter().map(|link| link.id);
        let confirmed: Vec<_> = confirmed
            .filter_map(|id| self.store.link(id))
            .filter(|link| link.is_settled())
            .map(|link| (link.id, link.desired))
            .collect();
        let (number, began) = (uuid::Uuid::new_v4(), clock::now());
        let id = number.simple().to_string();
        let subject = Subject::Look {
            instance_url: instance.clone(),
        };
        let trace = self
            .traces
            .begin(number, Context::new(number), subject, began);
        let look = self.doctor.instance(instance, links, Depth::Quiet, began);
        let report = trace::within(Arc::clone(&trace), look).await;

        let before = self.health.get(instance).map(|health| Arc::clone(&health));
        let known: &[Fault] = before.as_ref().map_or(&[], |health| &health.faults);
        let common = report.steps.iter().filter(|step| step.link_id.is_none());
        let is_reached = !common.clone().any(Step::is_out_of_reach);
        let common = common.map(|step| step.finding.verdict).max();
        let looked_at = |link: LinkId| report.steps.iter().any(|s| s.link_id == Some(link));
        // What was not looked at is as it was.
        let left = known.iter().filter(|fault| {
            let link = fault.step.link_id.filter(|link| !looked_at(*link));
            is_reached && link.is_some_and(|link| self.store.link(link).is_some())
        });
        let mut faults: Vec<Fault> = left.cloned().collect();
        let of_others = before.iter().flat_map(|health| &health.confirmed);
        let of_others = of_others.filter(|(id, _)| {
            links.iter().all(|link| link.id != *id) && self.store.link(*id).is_some()
        });
        let confirmed = confirmed.into_iter().chain(of_others.copied()).collect();
        let mut end = None;
        let broken = report
            .steps
            .iter()
            .filter(|s| s.finding.verdict > Verdict::Unknown);
        for step in broken {
            let same = |fault: &&Fault| {
                let known = &fault.step;
                (known.rung, known.link_id, known.finding.code)
                    == (step.rung, step.link_id, step.finding.code)
            };
            let known = known.iter().find(same);
            // A change is news, a state is not.
            if known.is_none() && step.finding.verdict == Verdict::Fail {
                let Step { rung, finding, .. } = step;
                let hint = finding.hint.as_deref().unwrap_or_default();
                tracing::warn!(
                    id, instance.url = %instance, rung, reason = finding.code,
                    link.id = step.link_id.map(tracing::field::display),
                    "{instance} needs attention: {}; {hint}", finding.message
                );
                end.get_or_insert_with(|| trace::Fault {
                    code: finding.code,
                    message: finding.message.clone(),
                    hint: hint.to_owned(),
                    ..trace::Fault::default()
                });
            }
            faults.push(Fault {
                step: step.clone(),
                id: known.map_or(&id, |fault| &fault.id).clone(),
            });
        }
        // Who reads the id of a fault finds it.
        if let Some(fault) = end {
            let end = Hop::Ended("needs_attention", Some(Box::new(fault)));
            self.traces.end(trace, Shelf::Notable, end);
        }
        let worst = faults.iter().map(|fault| fault.step.finding.verdict);
        let health = Health {
            checked_at: clock::now(),
            verdict: worst.fold(report.verdict, Verdict::max),
            common: common.unwrap_or(Verdict::Unknown),
            faults,
            confirmed,
        };
        let was_failing = before.is_some_and(|health| health.verdict == Verdict::Fail);
        if was_failing && health.verdict < Verdict::Fail {
            tracing::info!(instance.url = %instance, "{instance} is in order again");
        }
        self.health.insert(instance.clone(), Arc::new(health));
    }
}

/// The instance holds what it should, and that is an installation.
fn is_connected(link: &Link) -> bool {
    link.wants_installed() && link.is_settled()
}
