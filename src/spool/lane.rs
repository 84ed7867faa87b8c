//! The writes of one link: those on their way, and those that wait.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use jiff::Timestamp;

use super::pauses::Pauses;
use crate::domain::{Family, JiraCall, SpoolId, SpooledWrite};

/// A lane sends one after the other; one that has fallen far behind sends several that have nothing to do with each
/// other at once, because else an instance that writes faster than Jira answers would never catch up.
const CATCHING_UP_FROM: usize = 200;
const CATCHING_UP_AT_ONCE: usize = 4;

/// Writes that are looked at for one that may overtake a paused one.
const LOOK_MAX: usize = 500;

/// Order matters within a family only: families have no entity in common.
#[derive(Default)]
pub(super) struct Lane {
    /// Admitted, and neither answered nor kept yet; ascending.
    open: Vec<Open>,
    waiting: HashMap<Option<Family>, BTreeMap<SpoolId, Waiting>>,
    /// Which waiting writes hold an entity.
    holders: HashMap<u64, Vec<SpoolId>>,
    under_way: usize,
    /// Of all bodies that wait or are about to.
    pub(super) bytes: u64,
    /// The link's data is being deleted: nothing is sent from here any more.
    pub(super) closed: bool,
}

/// A write that was admitted.
struct Open {
    id: SpoolId,
    family: Option<Family>,
    /// Nothing may overtake it: it is a deletion, or about to wait.
    barrier: bool,
}

/// One write in a lane.
pub(super) struct Waiting {
    pub(super) write: Arc<SpooledWrite>,
    pub(super) state: WaitState,
    pub(super) not_before: Timestamp,
    pub(super) attempts: u32,
    pub(super) last_error: Option<String>,
    /// Older writes that need not be sent if this one gets through.
    replaces: Vec<SpoolId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WaitState {
    Idle,
    UnderWay,
    /// A newer one takes its place, if that gets through.
    Replaced,
}

impl Waiting {
    pub(super) fn new(write: Arc<SpooledWrite>, not_before: Timestamp) -> Self {
        Self {
            write,
            state: WaitState::Idle,
            not_before,
            attempts: 0,
            last_error: None,
            replaces: Vec::new(),
        }
    }
}

impl Lane {
    /// Notes a write; returns whether it must go behind others.
    pub(super) fn admit(&mut self, id: SpoolId, call: &JiraCall) -> bool {
        let family = call.family();
        let mut open = self.open.iter().filter(|open| open.family == family);
        let behind =
            open.any(|open| open.barrier || call.is_delete()) || self.waiting.contains_key(&family);
        self.open.push(Open {
            id,
            family,
            barrier: call.is_delete(),
        });
        behind
    }

    /// A write is about to wait.
    pub(super) fn make_barrier(&mut self, id: SpoolId) {
        if let Some(open) = self.open.iter_mut().find(|open| open.id == id) {
            open.barrier = true;
        }
    }

    /// A write was answered or kept.
    pub(super) fn leave(&mut self, id: SpoolId) {
        self.open.retain(|open| open.id != id);
    }

    /// Nothing is under way: no write that was admitted, no replay.
    pub(super) fn is_quiet(&self) -> bool {
        self.open.is_empty() && self.under_way == 0
    }

    /// Nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// It can be forgotten.
    pub(super) fn is_idle(&self) -> bool {
        !self.closed && self.open.is_empty() && self.is_empty()
    }

    /// What waits, by family.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &Waiting> {
        self.waiting.values().flat_map(BTreeMap::values)
    }

    /// Lets every write be tried at once.
    pub(super) fn release(&mut self) {
        for waiting in self.waiting.values_mut().flat_map(BTreeMap::values_mut) {
            waiting.not_before = Timestamp::MIN;
        }
    }

    /// Takes a write in. Older ones that it makes needless are not sent any more, unless it never gets through. Returns
    /// how many these are.
    pub(super) fn insert(&mut self, mut waiting: Waiting) -> usize {
        let id = waiting.write.id;
        waiting.replaces = self.replace(&waiting.write);
        let replaced = waiting.replaces.len();
        if waiting.write.touches.replaceable {
            for (entity, _) in &waiting.write.touches.entities {
                self.holders.entry(*entity).or_default().push(id);
            }
        }
        let family = waiting.write.call.family();
        self.waiting.entry(family).or_default().insert(id, waiting);
        replaced
    }

    /// A write, and all that it makes needless.
    pub(super) fn with_replaced(&self, write: &SpooledWrite) -> Vec<SpoolId> {
        let mut all = vec![write.id];
        let of_family = self.waiting.get(&write.call.family());
        let mut next = 0;
        while let Some(id) = all.get(next).copied() {
            next += 1;
            if let Some(waiting) = of_family.and_then(|waiting| waiting.get(&id)) {
                all.extend(&waiting.replaces);
            }
        }
        all
    }

    /// Takes a write out. What it would have replaced counts again, if it is still there.
    pub(super) fn remove(&mut self, id: SpoolId) -> Option<Waiting> {
        let gone = self
            .waiting
            .values_mut()
            .find_map(|waiting| waiting.remove(&id));
        self.waiting.retain(|_, waiting| !waiting.is_empty());
        let gone = gone?;
        for replaced in &gone.replaces {
            if let Some(waiting) = self.get_mut(*replaced) {
                waiting.state = WaitState::Idle;
            }
        }
        for (entity, _) in &gone.write.touches.entities {
            if let Some(holders) = self.holders.get_mut(entity) {
                holders.retain(|holder| *holder != id);
                if holders.is_empty() {
                    self.holders.remove(entity);
                }
            }
        }
        if gone.state == WaitState::UnderWay {
            self.under_way -= 1;
        }
        Some(gone)
    }

    /// A replay did not end its write: it waits on. Returns how it was before.
    pub(super) fn put_back(
        &mut self,
        id: SpoolId,
        error: String,
        not_before: Timestamp,
    ) -> Option<(WaitState, u32)> {
        let waiting = self.get_mut(id)?;
        let before = waiting.state;
        waiting.attempts = waiting.attempts.saturating_add(1);
        waiting.last_error = Some(error);
        waiting.not_before = not_before;
        let attempts = waiting.attempts;
        if before == WaitState::UnderWay {
            waiting.state = WaitState::Idle;
            self.under_way -= 1;
        }
        Some((before, attempts))
    }

    /// A write that waits.
    pub(super) fn get_mut(&mut self, id: SpoolId) -> Option<&mut Waiting> {
        self.waiting
            .values_mut()
            .find_map(|waiting| waiting.get_mut(&id))
    }

    /// Marks the writes that a newer one makes needless.
    fn replace(&mut self, newer: &SpooledWrite) -> Vec<SpoolId> {
        // What was deleted in between must not come back if the newer one is refused.
        let family = self.waiting.get(&newer.call.family());
        let deleted = family.and_then(|waiting| {
            let mut earlier = waiting.range(..newer.id).rev();
            earlier.find(|(_, waiting)| waiting.write.call.is_delete())
        });
        let deleted = deleted.map(|(id, _)| *id);
        let entities = newer.touches.entities.iter();
        let candidates: BTreeSet<SpoolId> = entities
            .filter_map(|(entity, _)| self.holders.get(entity))
            .flatten()
            .copied()
            .filter(|id| *id < newer.id && deleted.is_none_or(|deleted| deleted < *id))
            .collect();
        let mut needless = Vec::new();
        for id in candidates {
            if let Some(waiting) = self.get_mut(id)
                && waiting.state == WaitState::Idle
                && waiting.write.call == newer.call
                && waiting.write.touches.superseded_by(&newer.touches)
            {
                waiting.state = WaitState::Replaced;
                needless.push(id);
            }
        }
        needless
    }

    /// The earliest write of any family that may go, marked as under way. Sets `next` to when there may be another one,
    /// if that is sooner.
    pub(super) fn next(
        &mut self,
        pauses: &Pauses,
        now: Timestamp,
        next: &mut Timestamp,
    ) -> Option<Arc<SpooledWrite>> {
        let waiting: usize = self.waiting.values().map(BTreeMap::len).sum();
        let at_once = if waiting > CATCHING_UP_FROM {
            CATCHING_UP_AT_ONCE
        } else {
            1
        };
        if self.closed || self.under_way >= at_once {
            return None;
        }
        let mut found: Option<SpoolId> = None;
        for (family, waiting) in &self.waiting {
            // An earlier write may still be under way from the instance.
            let mut open = self.open.iter().filter(|open| open.family == *family);
            let border = open.next().map(|open| open.id);
            let first = first_to_go(waiting, border, pauses, now, next);
            found = [found, first].into_iter().flatten().min();
        }
        let waiting = self.get_mut(found?)?;
        waiting.state = WaitState::UnderWay;
        let write = Arc::clone(&waiting.write);
        self.under_way += 1;
        Some(write)
    }
}

/// The first write of a family that nothing holds and that overtakes nothing of its own.
fn first_to_go(
    waiting: &BTreeMap<SpoolId, Waiting>,
    border: Option<SpoolId>,
    pauses: &Pauses,
    now: Timestamp,
    next: &mut Timestamp,
) -> Option<SpoolId> {
    // What is touched by those that are passed over: nobody may overtake them there.
    let mut held: HashSet<u64> = HashSet::new();
    let mut passed = false;
    for (id, waiting) in waiting.iter().take(LOOK_MAX) {
        if border.is_some_and(|border| border < *id) {
            return None;
        }
        let touches = &waiting.write.touches;
        if waiting.state == WaitState::Idle {
            let until = pauses.until(&waiting.write).max(waiting.not_before);
            let overtakes = passed
                && (touches.everything || touches.all().any(|touched| held.contains(&touched)));
            if until <= now && !overtakes {
                return Some(*id);
            }
            if until > now {
                *next = until.min(*next);
            }
        }
        // A replaced one holds up nobody: what takes its place comes later.
        if waiting.state != WaitState::Replaced {
            if touches.everything {
                return None;
            }
            passed = true;
            held.extend(touches.all());
        }
    }
    None
}
