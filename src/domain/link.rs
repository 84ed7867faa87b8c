//! One installation joined to one instance: what the instance should hold, and what it is known to hold.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{ClientKey, ImportId, InstanceUrl, LifecycleEventKind, Namespace, SharedSecret};

/// Answers to `uninstalled` that mean "no" are taken as "already gone" after this many: an instance
/// without the record dereferences nil (500), one without our URL cannot verify us (401).
pub const REFUSED_REMOVALS_UNTIL_GONE: u32 = 5;

/// Replaced secrets of a link that are still recognised. An attempt that timed out may have reached the
/// instance, so more than one can be in use there.
const RETIRED_SECRETS_MAX: usize = 3;

/// Who undoes a removal later than this before its time might lose to it.
const UNDO_HEADWAY: SignedDuration = SignedDuration::from_millis(500);

/// A link's id: a UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LinkId(Uuid);

/// What the instance gets to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkMode {
    /// Our own secret and our own URL: the instance speaks to Jira through us.
    #[default]
    Relay,
    /// Jira's real secret and URL, as GitLab's own proxy does. Only for the sole link of an installation.
    Direct,
}

/// One state to be in: an event that the instance should have acknowledged, numbered so that a repeat
/// with another secret is another goal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goal {
    /// Told by this event.
    pub event: LifecycleEventKind,
    /// Counts up with every change of mind.
    pub generation: u64,
}

/// A replaced secret of a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetiredLinkSecret {
    /// The old secret.
    pub secret: SharedSecret,
    /// The goal's generation that first carried it.
    pub since_generation: u64,
    /// The instance had confirmed it.
    pub confirmed: bool,
    /// Until when it still counts; `None` while its successor has not been confirmed.
    pub valid_until: Option<Timestamp>,
}

/// A failed delivery, as operators see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveryProblem {
    /// Stable name of the cause.
    pub code: String,
    /// What happened, one sentence.
    pub message: String,
    /// What to do about it.
    pub hint: String,
    /// When.
    pub at: Timestamp,
    /// The attempt's id in the log.
    pub id: String,
}

/// A wish that everything the link wrote be deleted from Jira.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purge {
    /// What is deleted: the link's namespace when it was asked for.
    pub namespace: Namespace,
    /// When it was asked for.
    pub requested_at: Timestamp,
    /// It does not begin before.
    #[serde(default)]
    pub not_before: Option<Timestamp>,
    /// It has begun, so it can't be taken back any more.
    #[serde(default)]
    pub begun: bool,
    /// When Jira had taken the last deletion.
    pub done_at: Option<Timestamp>,
    /// When an operator gave it up.
    #[serde(default)]
    pub abandoned_at: Option<Timestamp>,
    /// Why the last try failed.
    pub last_error: Option<DeliveryProblem>,
}

/// One installation x one instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Its id.
    pub id: LinkId,
    /// The installation.
    pub client_key: ClientKey,
    /// The instance.
    pub instance_url: InstanceUrl,
    /// What the instance gets to know.
    pub mode: LinkMode,
    /// Prefix of its ids in Jira.
    pub namespace: Namespace,
    /// Ids pass through as they are (taken over from a GitLab that was the proxy).
    pub keep_ids: bool,
    /// The link's own secret, current generation.
    pub secret: SharedSecret,
    /// The goal's generation that first carried it.
    pub secret_since: u64,
    /// Earlier secrets that the instance may still sign with.
    pub retired_secrets: Vec<RetiredLinkSecret>,
    /// What the instance should know.
    pub desired: Goal,
    /// Since when.
    pub desired_since: Timestamp,
    /// What the instance confirmed last.
    pub acknowledged: Option<Goal>,
    /// The `baseUrl` that the last confirmed `installed` carried.
    pub acknowledged_base_url: Option<String>,
    /// An attempt may have arrived, so the instance may hold something. Set before an attempt, and taken back if
    /// it certainly did not arrive: a crash in between must not forget an instance that was told.
    pub reached: bool,
    /// An attempt at the desired state may have arrived. Set before one that removes, and taken back like `reached`; of
    /// records from before it was noted nobody knows.
    #[serde(default = "nobody_knows")]
    pub told: bool,
    /// The operator wants the link gone: the record goes once the instance was told.
    pub remove: bool,
    /// Failed attempts since the desired state changed.
    pub attempts: u32,
    /// Of these, the ones whose answer says that the instance does not have the installation.
    pub refusals: u32,
    /// Not before then.
    pub next_attempt_at: Timestamp,
    /// Why the last attempt failed. Stays with a removal that was given up.
    pub last_error: Option<DeliveryProblem>,
    /// When the record was made.
    pub created_at: Timestamp,
    /// When the instance last spoke to us.
    pub last_seen_at: Option<Timestamp>,
    /// What the instance said of its version.
    pub gitlab_version: Option<String>,
    /// Its data is to be deleted from Jira.
    #[serde(default)]
    pub purge: Option<Purge>,
    /// An import made it.
    #[serde(default)]
    pub imported: Option<ImportId>,
    /// It goes in another way: the instance gets Jira's own secret and address, as it had them before the import. Told
    /// `uninstalled`, it would forget which of its groups are linked.
    #[serde(default)]
    pub hand_back: bool,
}

/// Derived, never stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    /// Not yet told, nothing failed.
    Pending,
    /// The instance confirmed what it should hold.
    Connected,
    /// The last attempt failed; another is due.
    Failing,
    /// To be told that it is over, or told so and kept for a reinstall.
    Removing,
}

/// How an attempt ended.
#[derive(Clone, Debug)]
pub enum AttemptOutcome {
    /// Confirmed by the instance.
    Acknowledged {
        /// The `baseUrl` that it was given, for `installed`.
        base_url: Option<String>,
    },
    /// Not confirmed.
    Failed {
        /// Why.
        problem: DeliveryProblem,
        /// The answer is one of an instance that does not have the installation (any more).
        refused: bool,
        /// The instance may have heard of this or an earlier one.
        may_have_arrived: bool,
        /// It may have heard of this goal.
        told: bool,
        /// Wait this long before the next one.
        retry_in: SignedDuration,
    },
}

impl Purge {
    /// How far it is, in a word.
    pub fn state(&self) -> &'static str {
        if self.done_at.is_some() {
            "done"
        } else if self.is_abandoned() {
            "abandoned"
        } else {
            "pending"
        }
    }

    /// There is something to delete yet.
    pub fn is_wanted(&self) -> bool {
        self.done_at.is_none() && self.abandoned_at.is_none()
    }

    /// It was given up before its end.
    pub fn is_abandoned(&self) -> bool {
        self.abandoned_at.is_some()
    }
}

impl Link {
    /// A new link that wants `installed` delivered at once.
    pub fn new(
        client_key: ClientKey,
        instance_url: InstanceUrl,
        mode: LinkMode,
        keep_ids: bool,
        namespace: Namespace,
        secret: SharedSecret,
        now: Timestamp,
    ) -> Self {
        Self {
            id: LinkId(Uuid::new_v4()),
            client_key,
            instance_url,
            mode,
            namespace,
            keep_ids,
            secret,
            secret_since: 1,
            retired_secrets: Vec::new(),
            desired: Goal {
                event: LifecycleEventKind::Installed,
                generation: 1,
            },
            desired_since: now,
            acknowledged: None,
            acknowledged_base_url: None,
            reached: false,
            told: false,
            remove: false,
            attempts: 0,
            refusals: 0,
            next_attempt_at: now,
            last_error: None,
            created_at: now,
            last_seen_at: None,
            gitlab_version: None,
            purge: None,
            imported: None,
            hand_back: false,
        }
    }

    /// The instance should get `installed` (again), with `fresh` as the link's secret if given.
    pub fn want_installed(&mut self, fresh: Option<SharedSecret>, now: Timestamp) {
        if let Some(fresh) = fresh {
            let retired = RetiredLinkSecret {
                secret: std::mem::replace(&mut self.secret, fresh),
                since_generation: self.secret_since,
                confirmed: self.acknowledged.is_some_and(|goal| {
                    goal.event == LifecycleEventKind::Installed
                        && goal.generation >= self.secret_since
                }),
                valid_until: None,
            };
            self.secret_since = self.desired.generation + 1;
            self.retired_secrets.insert(0, retired);
            if self.retired_secrets.len() > RETIRED_SECRETS_MAX {
                // The newest that was confirmed is most likely the one in use: the oldest other one goes.
                let in_use = self.retired_secrets.iter().position(|r| r.confirmed);
                let last = self.retired_secrets.len() - 1;
                let goes = if in_use == Some(last) { last - 1 } else { last };
                self.retired_secrets.remove(goes);
            }
        }
        self.remove = false;
        self.hand_back = false;
        self.want(LifecycleEventKind::Installed, now);
    }

    /// The instance should get what it had before the import, and the record go then.
    pub fn want_handed_back(&mut self, now: Timestamp) {
        self.remove = true;
        self.hand_back = true;
        self.want(LifecycleEventKind::Installed, now);
    }

    /// Whether the instance is to hold Jira's own secret and address.
    pub fn is_told_jiras_own(&self) -> bool {
        self.mode == LinkMode::Direct || self.hand_back
    }

    /// The instance should get `uninstalled`; asking twice changes nothing.
    pub fn want_uninstalled(&mut self, now: Timestamp) {
        if self.wants_installed() {
            self.want(LifecycleEventKind::Uninstalled, now);
        }
    }

    /// The secret that the instance most likely signs and verifies with: the newest one that it confirmed.
    pub fn confirmed_secret(&self) -> &SharedSecret {
        let confirmed = self.acknowledged.is_some_and(|goal| {
            goal.event == LifecycleEventKind::Installed && goal.generation >= self.secret_since
        });
        let retired = self
            .retired_secrets
            .iter()
            .find(|retired| retired.confirmed);
        match retired {
            Some(retired) if !confirmed => &retired.secret,
            _ => &self.secret,
        }
    }

    /// Makes the next attempt due.
    pub fn retry_now(&mut self, now: Timestamp) {
        self.next_attempt_at = self.next_attempt_at.min(now);
    }

    /// Whether a replaced secret counts no more.
    pub fn has_expired_secret(&self, now: Timestamp) -> bool {
        self.retired_secrets
            .iter()
            .any(|retired| retired.valid_until.is_some_and(|until| until <= now))
    }

    /// Drops replaced secrets that count no more.
    pub fn forget_expired_secrets(&mut self, now: Timestamp) {
        self.retired_secrets
            .retain(|retired| retired.valid_until.is_none_or(|until| now < until));
    }

    /// Whether the instance is to hold the installation.
    pub fn wants_installed(&self) -> bool {
        self.desired.event == LifecycleEventKind::Installed
    }

    /// The instance holds what it should.
    pub fn is_settled(&self) -> bool {
        self.acknowledged == Some(self.desired)
    }

    /// Told that it is over, the operator wants no trace, and none is left in Jira if that was wanted: the record
    /// may go.
    pub fn is_finished(&self) -> bool {
        self.remove && !self.is_purging() && self.is_settled() && self.is_leaving()
    }

    /// What it wrote is to be deleted from Jira, and is not yet.
    pub fn is_purging(&self) -> bool {
        let purge = self.purge.as_ref();
        purge.is_some_and(Purge::is_wanted)
    }

    /// What it wants now is its end.
    fn is_leaving(&self) -> bool {
        self.hand_back || !self.wants_installed()
    }

    /// What it writes can be told from other data in Jira, and so be deleted.
    pub fn is_marked(&self) -> bool {
        self.mode == LinkMode::Relay && !self.keep_ids
    }

    /// Whether its removal can still be taken back: the record is there, and nothing of its data is being deleted.
    pub fn can_be_taken_back(&self) -> bool {
        let deleting = |purge: &Purge| purge.begun && purge.is_wanted();
        self.remove && !self.purge.as_ref().is_some_and(deleting)
    }

    /// Whether what the instance sends is passed on: it is linked, or may be again before it hears that it is not.
    pub fn is_heard(&self, now: Timestamp) -> bool {
        self.wants_installed() || self.waits_for_second_thoughts(now)
    }

    /// It is to be removed, and the instance has not been told yet.
    pub fn waits_for_second_thoughts(&self, now: Timestamp) -> bool {
        self.remove && self.attempts == 0 && !self.is_settled() && now < self.next_attempt_at
    }

    /// Whether an attempt needs a mark first, because whoever finds this record after a crash would take it that nobody
    /// was told.
    pub fn hides_an_attempt(&self) -> bool {
        !self.reached || !self.wants_installed() && !self.told
    }

    /// Whether its removal can be undone: nobody was told, nothing is deleted, and neither is about to begin. An
    /// instance that can't be reached hears of it late, perhaps never.
    pub fn can_be_undone(&self, now: Timestamp) -> bool {
        self.remove
            && !self.hand_back
            && !self.told
            && !self.is_settled()
            && after(now, UNDO_HEADWAY) < self.next_attempt_at
            && !self.purge.as_ref().is_some_and(|purge| purge.begun)
    }

    /// Wanted again, with the secret and groups that the instance has. It is told once more: what changed meanwhile
    /// (Jira's secret, an address) passed by a link that was to go.
    pub fn undo_removal(&mut self, now: Timestamp) {
        self.remove = false;
        self.purge = None;
        self.want(LifecycleEventKind::Installed, now);
    }

    /// What a person should see.
    pub fn state(&self) -> LinkState {
        if self.is_leaving() {
            LinkState::Removing
        } else if self.is_settled() {
            LinkState::Connected
        } else if self.attempts > 0 {
            LinkState::Failing
        } else {
            LinkState::Pending
        }
    }

    /// Takes an attempt at `goal` into account. The goal may have changed meanwhile; then what was
    /// confirmed is remembered and the new goal is due at once.
    pub fn record(
        &mut self,
        goal: Goal,
        outcome: AttemptOutcome,
        grace: SignedDuration,
        give_up_removal_after: SignedDuration,
        now: Timestamp,
    ) {
        // A clock that was ahead for a while must not freeze anything.
        self.desired_since = self.desired_since.min(now);
        match outcome {
            AttemptOutcome::Acknowledged { base_url } => {
                self.reached = true;
                self.acknowledge(goal, grace, now);
                if goal == self.desired {
                    self.last_error = None;
                }
                if goal.event == LifecycleEventKind::Installed {
                    self.acknowledged_base_url = base_url;
                }
            }
            AttemptOutcome::Failed {
                problem,
                refused,
                may_have_arrived,
                told,
                retry_in,
            } if goal == self.desired => {
                self.reached = may_have_arrived;
                self.told = told;
                self.attempts = self.attempts.saturating_add(1);
                self.refusals = self.refusals.saturating_add(u32::from(refused));
                self.last_error = Some(problem);
                self.next_attempt_at = after(now, retry_in);
                let too_old = now.duration_since(self.desired_since) >= give_up_removal_after;
                // Who never heard of us need not be told that it is over.
                if self.is_leaving()
                    && (self.refusals >= REFUSED_REMOVALS_UNTIL_GONE || too_old || !self.reached)
                {
                    self.acknowledge(goal, grace, now);
                }
            }
            AttemptOutcome::Failed {
                may_have_arrived, ..
            } => {
                self.reached = may_have_arrived;
            }
        }
    }

    fn acknowledge(&mut self, goal: Goal, grace: SignedDuration, now: Timestamp) {
        self.acknowledged = Some(goal);
        if goal.event == LifecycleEventKind::Installed && goal.generation < self.secret_since {
            let carried = self
                .retired_secrets
                .iter_mut()
                .find(|retired| retired.since_generation <= goal.generation);
            if let Some(carried) = carried {
                carried.confirmed = true;
            }
        }
        if goal != self.desired {
            return;
        }
        self.attempts = 0;
        self.refusals = 0;
        self.forget_expired_secrets(now);
        for retired in &mut self.retired_secrets {
            retired.valid_until.get_or_insert_with(|| after(now, grace));
        }
    }

    fn want(&mut self, event: LifecycleEventKind, now: Timestamp) {
        self.desired = Goal {
            event,
            generation: self.desired.generation + 1,
        };
        self.desired_since = now;
        self.told = false;
        self.attempts = 0;
        self.refusals = 0;
        self.last_error = None;
        self.next_attempt_at = now;
    }
}

fn nobody_knows() -> bool {
    true
}

impl LinkId {
    /// Parses an id from a path or a record.
    pub fn parse(text: &str) -> Option<Self> {
        Uuid::try_parse(text).ok().map(Self)
    }
}

impl LinkMode {
    /// The word in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Direct => "direct",
        }
    }
}

impl LinkState {
    /// All of them, for metrics.
    pub const ALL: [Self; 4] = [
        Self::Pending,
        Self::Connected,
        Self::Failing,
        Self::Removing,
    ];

    /// The word in answers and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Connected => "connected",
            Self::Failing => "failing",
            Self::Removing => "removing",
        }
    }
}

impl fmt::Display for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn after(now: Timestamp, wait: SignedDuration) -> Timestamp {
    now.saturating_add(wait).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;
