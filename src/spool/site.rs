//! What waits for one site, in lanes that take turns; rules only, no I/O and no clock.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
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
    waiting: BTreeMap<SpoolId, Waiting>,
    /// How many of these are of a family.
    of_family: HashMap<Option<Family>, usize>,
    /// Which waiting writes hold an entity.
    holders: HashMap<u64, Vec<SpoolId>>,
    under_way: usize,
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
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WaitState {
    Idle,
    UnderWay,
    /// A newer one takes its place.
    Leaving,
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
        let behind = open.any(|open| open.barrier || call.is_delete())
            || lane.of_family.contains_key(&family);
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

    /// Whether a link has nothing under way: no write that was admitted, no replay.
    pub(super) fn is_quiet(&self, link: LinkId) -> bool {
        self.lanes
            .get(&link)
            .is_none_or(|lane| lane.open.is_empty() && lane.under_way == 0)
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// Forgets lanes that nothing is in.
    pub(super) fn forget_idle_lanes(&mut self) {
        self.lanes
            .retain(|_, lane| !lane.open.is_empty() || !lane.waiting.is_empty());
    }

    pub(super) fn insert(&mut self, waiting: Waiting) {
        let (link, id) = (waiting.write.link, waiting.write.id);
        let lane = self.lanes.entry(link).or_default();
        if waiting.write.touches.replaceable {
            for (entity, _) in &waiting.write.touches.entities {
                lane.holders.entry(*entity).or_default().push(id);
            }
        }
        *lane
            .of_family
            .entry(waiting.write.call.family())
            .or_default() += 1;
        lane.waiting.insert(id, waiting);
        if !self.turns.contains(&link) {
            self.turns.push_back(link);
        }
    }

    pub(super) fn remove(&mut self, link: LinkId, id: SpoolId) -> Option<Arc<SpooledWrite>> {
        let lane = self.lanes.get_mut(&link)?;
        let gone = lane.waiting.remove(&id)?;
        let family = gone.write.call.family();
        if let Some(count) = lane.of_family.get_mut(&family) {
            *count -= 1;
            if *count == 0 {
                lane.of_family.remove(&family);
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
        self.bytes = self.bytes.saturating_sub(gone.write.bytes);
        if lane.waiting.is_empty() {
            self.turns.retain(|turn| *turn != link);
        }
        Some(gone.write)
    }

    /// Marks the writes that a newer one makes needless, so that they are not sent any more.
    pub(super) fn start_replacing(&mut self, newer: &SpooledWrite) -> Vec<SpoolId> {
        let Some(lane) = self.lanes.get_mut(&newer.link) else {
            return Vec::new();
        };
        let candidates: HashSet<SpoolId> = newer
            .touches
            .entities
            .iter()
            .filter_map(|(entity, _)| lane.holders.get(entity))
            .flatten()
            .copied()
            .collect();
        let mut needless = Vec::new();
        for id in candidates {
            if let Some(waiting) = lane.waiting.get_mut(&id)
                && waiting.state == WaitState::Idle
                && waiting.write.call == newer.call
                && waiting.write.touches.superseded_by(&newer.touches)
            {
                waiting.state = WaitState::Leaving;
                needless.push(id);
            }
        }
        needless
    }

    /// The newer one could not be kept.
    pub(super) fn stop_replacing(&mut self, link: LinkId, needless: &[SpoolId]) {
        let Some(lane) = self.lanes.get_mut(&link) else {
            return;
        };
        for id in needless {
            if let Some(waiting) = lane.waiting.get_mut(id) {
                waiting.state = WaitState::Idle;
            }
        }
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
            if let Some(write) = lane.next(&self.endpoints, now, next) {
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
        let Some(waiting) = lane.waiting.get_mut(&id) else {
            return 0;
        };
        if waiting.state == WaitState::UnderWay {
            waiting.state = WaitState::Idle;
            lane.under_way -= 1;
            self.under_way -= 1;
        }
        waiting.attempts = waiting.attempts.saturating_add(1);
        waiting.last_error = Some(error);
        waiting.not_before = not_before;
        waiting.attempts
    }

    pub(super) fn not_before(&mut self, link: LinkId, id: SpoolId, not_before: Timestamp) {
        let lane = self.lanes.get_mut(&link);
        if let Some(waiting) = lane.and_then(|lane| lane.waiting.get_mut(&id)) {
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

    /// Ends pauses, and lets single writes be tried at once.
    pub(super) fn release(&mut self, which: impl Fn(&Hold) -> bool) {
        self.pause = self.pause.take().filter(|hold| !which(hold));
        self.endpoints.retain(|_, hold| !which(hold));
        self.setbacks = 0;
        for lane in self.lanes.values_mut() {
            for waiting in lane.waiting.values_mut() {
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

    pub(super) fn pause(&self) -> Option<&Hold> {
        self.pause.as_ref()
    }

    pub(super) fn endpoint_pauses(&self) -> impl Iterator<Item = (Endpoint, &Hold)> {
        self.endpoints
            .iter()
            .map(|(endpoint, hold)| (*endpoint, hold))
    }

    pub(super) fn lanes(&self) -> impl Iterator<Item = (LinkId, impl Iterator<Item = &Waiting>)> {
        self.lanes
            .iter()
            .map(|(link, lane)| (*link, lane.waiting.values()))
    }
}

impl Lane {
    fn next(
        &mut self,
        endpoints: &HashMap<Endpoint, Hold>,
        now: Timestamp,
        next: &mut Timestamp,
    ) -> Option<Arc<SpooledWrite>> {
        let at_once = if self.waiting.len() > CATCHING_UP_FROM {
            CATCHING_UP_AT_ONCE
        } else {
            1
        };
        if self.under_way >= at_once {
            return None;
        }
        // What is touched by those that are passed over: nobody may overtake them there.
        let mut held: HashSet<u64> = HashSet::new();
        let mut passed: Vec<Option<Family>> = Vec::new();
        let mut full: Vec<Option<Family>> = Vec::new();
        for (id, waiting) in self.waiting.iter_mut().take(LOOK_MAX) {
            let family = waiting.write.call.family();
            let touches = &waiting.write.touches;
            // An earlier write is still under way from the instance.
            let mut open = self.open.iter().filter(|open| open.family == family);
            if open.any(|open| open.id < *id) {
                continue;
            }
            let endpoint = endpoints.get(&waiting.write.call.endpoint());
            if waiting.state == WaitState::Idle {
                let until =
                    endpoint.map_or(waiting.not_before, |e| e.until.max(waiting.not_before));
                let overtakes = full.contains(&family)
                    || (touches.everything && passed.contains(&family))
                    || touches.all().any(|touched| held.contains(&touched));
                if until <= now && !overtakes {
                    waiting.state = WaitState::UnderWay;
                    self.under_way += 1;
                    return Some(Arc::clone(&waiting.write));
                }
                if until > now {
                    *next = until.min(*next);
                }
            }
            if touches.everything {
                full.push(family);
            }
            passed.push(family);
            held.extend(touches.all());
        }
        None
    }
}

#[cfg(test)]
mod tests;
