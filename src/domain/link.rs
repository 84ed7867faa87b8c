//! One installation joined to one instance: what the instance should hold, and what it is known to hold.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    ClientKey, ImportId, InstanceUrl, LifecycleEventKind, SharedSecret, secret::NoRandomness,
};

/// Answers to `uninstalled` that mean "no" are taken as "already gone" after this many: an instance
/// without the record dereferences nil (500), one without our URL cannot verify us (401).
pub const REFUSED_REMOVALS_UNTIL_GONE: u32 = 5;

/// Replaced secrets of a link that are still recognised. An attempt that timed out may have reached the
/// instance, so more than one can be in use there.
const RETIRED_SECRETS_MAX: usize = 3;

/// A link's id: a UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LinkId(Uuid);

/// What a link's ids are prefixed with in Jira: `[a-z0-9]`, unique in the store, never used again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Namespace(String);

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
        /// Wait this long before the next one.
        retry_in: SignedDuration,
    },
}

impl Purge {
    /// How far it is, in a word.
    pub fn state(&self) -> &'static str {
        if self.done_at.is_some() {
            "done"
        } else {
            "pending"
        }
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
        if self.desired.event != LifecycleEventKind::Uninstalled {
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
        purge.is_some_and(|purge| purge.done_at.is_none())
    }

    /// What it wants now is its end.
    fn is_leaving(&self) -> bool {
        self.hand_back || self.desired.event == LifecycleEventKind::Uninstalled
    }

    /// What it writes can be told from other data in Jira, and so be deleted.
    pub fn is_marked(&self) -> bool {
        self.mode == LinkMode::Relay && !self.keep_ids
    }

    /// Whether its removal can still be taken back: the record is there, and nothing of its data is being deleted.
    pub fn can_be_taken_back(&self) -> bool {
        let deleting = |purge: &Purge| purge.begun && purge.done_at.is_none();
        self.remove && !self.purge.as_ref().is_some_and(deleting)
    }

    /// Whether what the instance sends is passed on: it is linked, or may be again before it hears that it is not.
    pub fn is_heard(&self, now: Timestamp) -> bool {
        self.desired.event == LifecycleEventKind::Installed || self.waits_for_second_thoughts(now)
    }

    /// It is to be removed, and the instance has not been told yet.
    pub fn waits_for_second_thoughts(&self, now: Timestamp) -> bool {
        self.remove && self.attempts == 0 && !self.is_settled() && now < self.next_attempt_at
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
                retry_in,
            } if goal == self.desired => {
                self.reached = may_have_arrived;
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
        self.attempts = 0;
        self.refusals = 0;
        self.last_error = None;
        self.next_attempt_at = now;
    }
}

impl LinkId {
    /// Parses an id from a path or a record.
    pub fn parse(text: &str) -> Option<Self> {
        Uuid::try_parse(text).ok().map(Self)
    }
}

impl Namespace {
    const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";

    /// Eight random characters, without the look-alikes `l`, `o`, `0`, `1`. The store sees to it that
    /// none comes twice.
    pub fn generate() -> Result<Self, NoRandomness> {
        let mut bytes = [0_u8; 8];
        SystemRandom::new()
            .fill(&mut bytes)
            .map_err(|_| NoRandomness)?;
        let slug = bytes
            .iter()
            .filter_map(|b| Self::ALPHABET.get(usize::from(b % 32)))
            .map(|&b| char::from(b))
            .collect();
        Ok(Self(slug))
    }

    /// Takes a slug back from the store.
    pub fn parse(slug: &str) -> Option<Self> {
        let ours = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        (!slug.is_empty() && slug.bytes().all(ours)).then(|| Self(slug.to_owned()))
    }

    /// Whether an id looks like one in some link's namespace. None of GitLab's own does: they are numbers.
    pub fn is_in_one(id: &str) -> bool {
        let slug = id.split_once('-').map(|(slug, _)| slug.as_bytes());
        slug.is_some_and(|slug| slug.len() == 8 && slug.iter().all(|b| Self::ALPHABET.contains(b)))
    }

    /// The slug, without the `-` that follows it in ids.
    pub fn as_str(&self) -> &str {
        &self.0
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
mod tests {
    use super::*;

    const GRACE: SignedDuration = SignedDuration::from_secs(300);
    const WEEK: SignedDuration = SignedDuration::from_hours(168);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("second")
    }

    fn link() -> Link {
        Link::new(
            ClientKey::parse("tenant").expect("key"),
            InstanceUrl::parse("https://gitlab.example.com").expect("url"),
            LinkMode::Relay,
            false,
            Namespace::generate().expect("randomness"),
            SharedSecret::generate().expect("randomness"),
            at(0),
        )
    }

    fn confirmed() -> AttemptOutcome {
        AttemptOutcome::Acknowledged {
            base_url: Some("https://relay.example.com".to_owned()),
        }
    }

    fn failed(refused: bool) -> AttemptOutcome {
        AttemptOutcome::Failed {
            problem: DeliveryProblem {
                code: "x".to_owned(),
                message: String::new(),
                hint: String::new(),
                at: at(0),
                id: String::new(),
            },
            refused,
            may_have_arrived: true,
            retry_in: SignedDuration::from_secs(5),
        }
    }

    #[test]
    fn goes_from_pending_over_failing_to_connected() {
        let mut link = link();
        assert_eq!(link.state(), LinkState::Pending);
        link.record(link.desired, failed(true), GRACE, WEEK, at(10));
        assert_eq!(
            (link.state(), link.attempts, link.next_attempt_at),
            (LinkState::Failing, 1, at(15))
        );
        link.record(link.desired, confirmed(), GRACE, WEEK, at(15));
        assert_eq!(
            (link.state(), link.attempts, link.last_error.is_none()),
            (LinkState::Connected, 0, true)
        );
    }

    #[test]
    fn a_change_of_mind_during_an_attempt_is_due_at_once() {
        let mut link = link();
        let goal = link.desired;
        link.want_uninstalled(at(1));
        link.record(goal, confirmed(), GRACE, WEEK, at(2));
        assert_eq!((link.acknowledged, link.is_settled()), (Some(goal), false));
        assert_eq!(
            (link.state(), link.next_attempt_at),
            (LinkState::Removing, at(1))
        );
    }

    #[test]
    fn a_removal_that_waits_is_no_removal_yet() {
        let mut link = link();
        link.record(link.desired, confirmed(), GRACE, WEEK, at(1));
        link.remove = true;
        link.want_uninstalled(at(10));
        link.next_attempt_at = at(20);
        assert!(link.is_heard(at(15)) && link.can_be_taken_back());
        assert!(!link.is_heard(at(20)), "it may be told any moment");
        link.purge = Some(Purge {
            namespace: link.namespace.clone(),
            requested_at: at(10),
            not_before: Some(at(20)),
            begun: false,
            done_at: None,
            last_error: None,
        });
        assert!(link.can_be_taken_back());
        if let Some(purge) = &mut link.purge {
            purge.begun = true;
        }
        assert!(!link.can_be_taken_back());
    }

    #[test]
    fn an_attempt_that_was_under_way_does_not_cut_the_wait_short() {
        let mut link = link();
        let goal = link.desired;
        link.remove = true;
        link.want_uninstalled(at(10));
        link.next_attempt_at = at(20);
        link.record(goal, confirmed(), GRACE, WEEK, at(12));
        assert_eq!(link.next_attempt_at, at(20));
    }

    #[test]
    fn old_secrets_stay_until_the_new_one_is_confirmed_and_a_grace_time_on() {
        let mut link = link();
        let first = link.secret.clone();
        link.record(link.desired, confirmed(), GRACE, WEEK, at(1));
        link.want_installed(Some(SharedSecret::generate().expect("randomness")), at(10));
        assert_eq!(
            link.retired_secrets
                .first()
                .map(|r| (&r.secret, r.valid_until)),
            Some((&first, None))
        );
        link.record(link.desired, confirmed(), GRACE, WEEK, at(20));
        assert_eq!(
            link.retired_secrets.first().and_then(|r| r.valid_until),
            Some(at(320))
        );
        link.want_installed(None, at(400));
        link.record(link.desired, confirmed(), GRACE, WEEK, at(400));
        assert!(link.retired_secrets.is_empty());
    }

    #[test]
    fn a_removal_that_is_refused_often_enough_counts_as_done() {
        let mut link = link();
        link.record(link.desired, confirmed(), GRACE, WEEK, at(1));
        link.want_uninstalled(at(2));
        link.remove = true;
        for _ in 1..REFUSED_REMOVALS_UNTIL_GONE {
            link.record(link.desired, failed(true), GRACE, WEEK, at(3));
            assert!(!link.is_finished());
        }
        link.record(link.desired, failed(false), GRACE, WEEK, at(3));
        assert!(!link.is_finished(), "no answer proves nothing");
        link.record(link.desired, failed(true), GRACE, WEEK, at(3));
        assert!(link.is_finished());
    }

    #[test]
    fn a_removal_from_a_dead_instance_ends_after_the_deadline() {
        let mut link = link();
        link.want_uninstalled(at(0));
        link.remove = true;
        link.record(link.desired, failed(false), GRACE, WEEK, at(168 * 3600 - 1));
        assert!(!link.is_finished());
        link.record(link.desired, failed(false), GRACE, WEEK, at(168 * 3600));
        assert!(link.is_finished());
    }

    #[test]
    fn who_was_never_reached_need_not_be_told() {
        let unreachable = || match failed(false) {
            AttemptOutcome::Failed {
                problem,
                refused,
                retry_in,
                ..
            } => AttemptOutcome::Failed {
                problem,
                refused,
                retry_in,
                may_have_arrived: false,
            },
            other => other,
        };
        let mut link = link();
        link.record(link.desired, unreachable(), GRACE, WEEK, at(1));
        link.want_uninstalled(at(2));
        link.remove = true;
        link.record(link.desired, unreachable(), GRACE, WEEK, at(3));
        assert!(link.is_finished());
    }

    #[test]
    fn a_late_confirmation_tells_which_secret_is_in_use() {
        let mut link = link();
        link.record(link.desired, confirmed(), GRACE, WEEK, at(1));
        link.want_installed(SharedSecret::generate().ok(), at(2));
        let (second, goal) = (link.secret.clone(), link.desired);
        link.want_installed(SharedSecret::generate().ok(), at(3));
        link.record(goal, confirmed(), GRACE, WEEK, at(4));
        for _ in 0..10 {
            link.want_installed(SharedSecret::generate().ok(), at(5));
        }
        let mut kept = link
            .retired_secrets
            .iter()
            .filter(|retired| retired.confirmed);
        assert!(kept.any(|retired| retired.secret == second));
    }

    #[test]
    fn the_secret_in_use_survives_any_number_of_failed_resends() {
        let mut link = link();
        link.record(link.desired, confirmed(), GRACE, WEEK, at(1));
        let in_use = link.secret.clone();
        for _ in 0..10 {
            link.want_installed(SharedSecret::generate().ok(), at(2));
        }
        assert_eq!(link.retired_secrets.len(), RETIRED_SECRETS_MAX);
        assert!(
            link.retired_secrets
                .iter()
                .any(|retired| retired.secret == in_use)
        );
    }

    #[test]
    fn a_link_that_is_handed_back_ends_with_installed() {
        let mut link = link();
        link.record(link.desired, confirmed(), GRACE, WEEK, at(1));
        link.want_handed_back(at(2));
        assert_eq!(link.state(), LinkState::Removing);
        assert!(link.is_told_jiras_own() && link.is_heard(at(2)) && !link.is_finished());
        let mut refused = link.clone();
        link.record(link.desired, confirmed(), GRACE, WEEK, at(3));
        assert!(link.is_finished());
        for _ in 0..REFUSED_REMOVALS_UNTIL_GONE {
            assert!(!refused.is_finished());
            refused.record(refused.desired, failed(true), GRACE, WEEK, at(3));
        }
        assert!(refused.is_finished(), "it believes another proxy again");
    }

    #[test]
    fn being_linked_again_takes_a_removal_back() {
        let mut link = link();
        link.want_uninstalled(at(1));
        link.remove = true;
        link.want_installed(None, at(2));
        assert_eq!((link.state(), link.remove), (LinkState::Pending, false));
    }
}
