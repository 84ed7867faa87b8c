//! What waits for one site, in lanes that take turns; rules only, no I/O and no clock.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use jiff::Timestamp;

use crate::domain::{Endpoint, Family, JiraCall, LinkId, SpoolId, SpooledWrite};

/// Replays of one site under way at once.
const UNDER_WAY_MAX: usize = 8;

/// A lane sends one after the other; one that has fallen far behind sends several that have nothing to do with each
/// other at once, because else an instance that writes faster than Jira answers would never catch up.
const CATCHING_UP_FROM: usize = 200;
const CATCHING_UP_AT_ONCE: usize = 4;

/// Writes that are looked at for one that may overtake a paused one.
const LOOK_MAX: usize = 500;

/// Everything that is known of a site's queue.
#[derive(Default)]
pub(super) struct Site {
    lanes: HashMap<LinkId, Lane>,
    /// Whose turn it is: lanes in which something waits.
    turns: VecDeque<LinkId>,
    pause: Option<Hold>,
    endpoints: HashMap<Endpoint, Hold>,
    /// Issues that had too many writes, as hashes.
    issues: HashMap<u64, Hold>,
    under_way: usize,
    /// In a row, of the whole site.
    pub(super) setbacks: u32,
    /// In a row, of one endpoint.
    endpoint_setbacks: HashMap<Endpoint, u32>,
    /// Of all bodies that wait or are about to.
    pub(super) bytes: u64,
}

/// A pause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hold {
    pub(super) until: Timestamp,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// The writes of one link. Order matters within a family only: families have no entity in common.
#[derive(Default)]
struct Lane {
    /// Admitted, and neither answered nor kept yet; ascending.
    open: Vec<Open>,
    waiting: HashMap<Option<Family>, BTreeMap<SpoolId, Waiting>>,
    /// Which waiting writes hold an entity.
    holders: HashMap<u64, Vec<SpoolId>>,
    under_way: usize,
    bytes: u64,
    /// The link's data is being deleted: nothing is sent from here any more.
    closed: bool,
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

impl Hold {
    pub(super) fn holds(&self, now: Timestamp) -> bool {
        now < self.until
    }
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

impl Site {
    /// Notes a write; returns why it must wait, if it must.
    pub(super) fn admit(
        &mut self,
        link: LinkId,
        id: SpoolId,
        call: &JiraCall,
        now: Timestamp,
    ) -> Option<&'static str> {
        let endpoint_held = self
            .endpoints
            .get(&call.endpoint())
            .is_some_and(|h| h.holds(now));
        let site_held = self.pause.as_ref().is_some_and(|hold| hold.holds(now));
        // After a setback the writes that wait are the ones to try whether Jira is back.
        let unsure = self.setbacks > 0 && !self.turns.is_empty();
        let lane = self.lanes.entry(link).or_default();
        let family = call.family();
        let mut open = lane.open.iter().filter(|open| open.family == family);
        let behind =
            open.any(|open| open.barrier || call.is_delete()) || lane.waiting.contains_key(&family);
        lane.open.push(Open {
            id,
            family,
            barrier: call.is_delete(),
        });
        if site_held {
            Some("site_paused")
        } else if endpoint_held {
            Some("endpoint_paused")
        } else if behind || unsure {
            Some("behind_others")
        } else {
            None
        }
    }

    /// A write is about to wait.
    pub(super) fn make_barrier(&mut self, link: LinkId, id: SpoolId) {
        let lane = self.lanes.entry(link).or_default();
        if let Some(open) = lane.open.iter_mut().find(|open| open.id == id) {
            open.barrier = true;
        }
    }

    /// A write was answered or kept. Returns whether something waits that may now go.
    pub(super) fn leave(&mut self, link: LinkId, id: SpoolId) -> bool {
        let Some(lane) = self.lanes.get_mut(&link) else {
            return false;
        };
        lane.open.retain(|open| open.id != id);
        !lane.waiting.is_empty()
    }

    /// Something got through to an endpoint.
    pub(super) fn went_well(&mut self, endpoint: Endpoint) {
        self.setbacks = 0;
        self.endpoint_setbacks.remove(&endpoint);
    }

    /// Counts failures of an endpoint, and returns how many there were before.
    pub(super) fn endpoint_setback(&mut self, endpoint: Endpoint) -> u32 {
        let setbacks = self.endpoint_setbacks.entry(endpoint).or_default();
        *setbacks = setbacks.saturating_add(1);
        *setbacks - 1
    }

    /// The link's data is to be deleted.
    pub(super) fn close(&mut self, link: LinkId) {
        self.lanes.entry(link).or_default().closed = true;
    }

    /// It is deleted.
    pub(super) fn open_again(&mut self, link: LinkId) {
        if let Some(lane) = self.lanes.get_mut(&link) {
            lane.closed = false;
        }
    }

    /// Whether a link has nothing under way: no write that was admitted, no replay.
    pub(super) fn is_quiet(&self, link: LinkId) -> bool {
        let lane = self.lanes.get(&link);
        lane.is_none_or(|lane| lane.open.is_empty() && lane.under_way == 0)
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// Forgets lanes that nothing is in. Returns whether there is anything else to remember.
    pub(super) fn forget_idle(&mut self, now: Timestamp) -> bool {
        self.endpoints.retain(|_, hold| hold.holds(now));
        self.issues.retain(|_, hold| hold.holds(now));
        self.lanes
            .retain(|_, lane| lane.closed || !lane.open.is_empty() || !lane.is_empty());
        !self.lanes.is_empty()
            || self.setbacks > 0
            || self.paused_until(now).is_some()
            || !self.endpoints.is_empty()
            || !self.issues.is_empty()
    }

    /// Bytes that wait of one link.
    pub(super) fn bytes_of(&self, link: LinkId) -> u64 {
        self.lanes.get(&link).map_or(0, |lane| lane.bytes)
    }

    /// Counts bytes that are about to wait.
    pub(super) fn reserve(&mut self, link: LinkId, bytes: u64) {
        self.bytes += bytes;
        self.lanes.entry(link).or_default().bytes += bytes;
    }

    /// Takes that back.
    pub(super) fn release_bytes(&mut self, link: LinkId, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(bytes);
        if let Some(lane) = self.lanes.get_mut(&link) {
            lane.bytes = lane.bytes.saturating_sub(bytes);
        }
    }

    /// Puts a write into its lane; its bytes are counted already. Older ones that it makes needless are not sent any
    /// more, unless it never gets through. Returns how many these are.
    pub(super) fn insert(&mut self, mut waiting: Waiting) -> usize {
        let (link, id) = (waiting.write.link, waiting.write.id);
        let lane = self.lanes.entry(link).or_default();
        waiting.replaces = lane.replace(&waiting.write);
        let replaced = waiting.replaces.len();
        if waiting.write.touches.replaceable {
            for (entity, _) in &waiting.write.touches.entities {
                lane.holders.entry(*entity).or_default().push(id);
            }
        }
        let family = waiting.write.call.family();
        lane.waiting.entry(family).or_default().insert(id, waiting);
        if !self.turns.contains(&link) {
            self.turns.push_back(link);
        }
        replaced
    }

    /// A write that got through, and all that it made needless.
    pub(super) fn with_replaced(&self, write: &SpooledWrite) -> Vec<SpoolId> {
        let mut all = vec![write.id];
        let lane = self.lanes.get(&write.link);
        let of_family = lane.and_then(|lane| lane.waiting.get(&write.call.family()));
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
    pub(super) fn remove(&mut self, link: LinkId, id: SpoolId) -> Option<Arc<SpooledWrite>> {
        let lane = self.lanes.get_mut(&link)?;
        let gone = lane.take(id)?;
        for replaced in &gone.replaces {
            if let Some(waiting) = lane.get_mut(*replaced) {
                waiting.state = WaitState::Idle;
            }
        }
        for (entity, _) in &gone.write.touches.entities {
            if let Some(holders) = lane.holders.get_mut(entity) {
                holders.retain(|holder| *holder != id);
                if holders.is_empty() {
                    lane.holders.remove(entity);
                }
            }
        }
        if gone.state == WaitState::UnderWay {
            lane.under_way -= 1;
            self.under_way -= 1;
        }
        let empty = lane.is_empty();
        self.release_bytes(link, gone.write.room());
        if empty {
            self.turns.retain(|turn| *turn != link);
        }
        Some(gone.write)
    }

    /// The next write to send, marked as under way. The lanes take turns, one write each. Sets `next` to when there
    /// may be another one, if that is sooner.
    pub(super) fn next(
        &mut self,
        now: Timestamp,
        next: &mut Timestamp,
    ) -> Option<Arc<SpooledWrite>> {
        if self.under_way >= UNDER_WAY_MAX || self.turns.is_empty() {
            return None;
        }
        if let Some(hold) = &self.pause {
            if hold.holds(now) {
                *next = hold.until.min(*next);
                return None;
            }
            self.pause = None;
        }
        self.endpoints.retain(|_, hold| hold.holds(now));
        self.issues.retain(|_, hold| hold.holds(now));
        // Not sure that Jira is back: one is enough to find out.
        if self.setbacks > 0 && self.under_way > 0 {
            return None;
        }
        for _ in 0..self.turns.len() {
            let link = self.turns.pop_front()?;
            self.turns.push_back(link);
            let Some(lane) = self.lanes.get_mut(&link) else {
                continue;
            };
            if let Some(write) = lane.next(&self.endpoints, &self.issues, now, next) {
                self.under_way += 1;
                return Some(write);
            }
        }
        None
    }

    /// A replay did not end its write: it waits on.
    pub(super) fn put_back(
        &mut self,
        link: LinkId,
        id: SpoolId,
        error: String,
        not_before: Timestamp,
    ) -> u32 {
        let Some(lane) = self.lanes.get_mut(&link) else {
            return 0;
        };
        let Some(waiting) = lane.get_mut(id) else {
            return 0;
        };
        waiting.attempts = waiting.attempts.saturating_add(1);
        waiting.last_error = Some(error);
        waiting.not_before = not_before;
        let attempts = waiting.attempts;
        if waiting.state == WaitState::UnderWay {
            waiting.state = WaitState::Idle;
            lane.under_way -= 1;
            self.under_way -= 1;
        }
        attempts
    }

    pub(super) fn not_before(&mut self, link: LinkId, id: SpoolId, not_before: Timestamp) {
        let lane = self.lanes.get_mut(&link);
        if let Some(waiting) = lane.and_then(|lane| lane.get_mut(id)) {
            waiting.not_before = not_before;
        }
    }

    pub(super) fn hold(&mut self, hold: Hold) {
        if self
            .pause
            .as_ref()
            .is_none_or(|known| known.until < hold.until)
        {
            self.pause = Some(hold);
        }
    }

    pub(super) fn hold_endpoint(&mut self, endpoint: Endpoint, hold: Hold) {
        let known = self
            .endpoints
            .entry(endpoint)
            .or_insert_with(|| hold.clone());
        if known.until < hold.until {
            *known = hold;
        }
    }

    /// These issues had too many writes.
    pub(super) fn hold_issues(&mut self, issues: &[u64], hold: &Hold) {
        for issue in issues {
            self.issues.insert(*issue, hold.clone());
        }
    }

    /// Whether any issue is held.
    pub(super) fn holds_issues(&self, now: Timestamp) -> bool {
        self.issues.values().any(|hold| hold.holds(now))
    }

    /// Whether one of these issues is held.
    pub(super) fn holds_any(&self, issues: &[u64], now: Timestamp) -> bool {
        let mut issues = issues.iter().filter_map(|issue| self.issues.get(issue));
        issues.any(|hold| hold.holds(now))
    }

    /// Ends pauses, and lets single writes be tried at once.
    pub(super) fn release(&mut self, which: impl Fn(&Hold) -> bool) {
        self.pause = self.pause.take().filter(|hold| !which(hold));
        self.endpoints.retain(|_, hold| !which(hold));
        self.issues.retain(|_, hold| !which(hold));
        self.setbacks = 0;
        let lanes = self.lanes.values_mut();
        for waiting in lanes.flat_map(|lane| lane.waiting.values_mut()) {
            for waiting in waiting.values_mut() {
                waiting.not_before = Timestamp::MIN;
            }
        }
    }

    /// Until when Jira wants no calls of this kind from the site. A site that is down is another thing: a read may
    /// find out that it is back.
    pub(super) fn throttled(&self, endpoint: Endpoint, now: Timestamp) -> Option<Timestamp> {
        self.pause
            .iter()
            .chain(self.endpoints.get(&endpoint))
            .filter(|hold| hold.holds(now) && hold.reason == "throttled")
            .map(|hold| hold.until)
            .max()
    }

    /// Until when the whole site pauses.
    pub(super) fn paused_until(&self, now: Timestamp) -> Option<Timestamp> {
        let hold = self.pause.as_ref().filter(|hold| hold.holds(now));
        hold.map(|hold| hold.until)
    }

    pub(super) fn pause(&self) -> Option<&Hold> {
        self.pause.as_ref()
    }

    pub(super) fn endpoint_pauses(&self) -> impl Iterator<Item = (Endpoint, &Hold)> {
        self.endpoints
            .iter()
            .map(|(endpoint, hold)| (*endpoint, hold))
    }

    pub(super) fn lanes(&self) -> impl Iterator<Item = (LinkId, impl Iterator<Item = &Waiting>)> {
        let lanes = self.lanes.iter();
        lanes.map(|(link, lane)| (*link, lane.waiting.values().flat_map(BTreeMap::values)))
    }
}

impl Lane {
    fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn get_mut(&mut self, id: SpoolId) -> Option<&mut Waiting> {
        self.waiting
            .values_mut()
            .find_map(|waiting| waiting.get_mut(&id))
    }

    fn take(&mut self, id: SpoolId) -> Option<Waiting> {
        let taken = self
            .waiting
            .values_mut()
            .find_map(|waiting| waiting.remove(&id));
        self.waiting.retain(|_, waiting| !waiting.is_empty());
        taken
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

    /// The earliest write of any family that may go.
    fn next(
        &mut self,
        endpoints: &HashMap<Endpoint, Hold>,
        issues: &HashMap<u64, Hold>,
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
            let first = first_to_go(waiting, border, endpoints, issues, now, next);
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
    endpoints: &HashMap<Endpoint, Hold>,
    issues: &HashMap<u64, Hold>,
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
            let endpoint = endpoints.get(&waiting.write.call.endpoint());
            let issues = touches.issues.iter().filter_map(|issue| issues.get(issue));
            let holds = endpoint.into_iter().chain(issues);
            let until = holds
                .map(|hold| hold.until)
                .fold(waiting.not_before, Timestamp::max);
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

#[cfg(test)]
mod tests;
