//! What waits for one site, in lanes that take turns; rules only, no I/O and no clock.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use jiff::Timestamp;

use super::{
    lane::{Lane, WaitState, Waiting},
    pauses::{Hold, Pauses},
};
use crate::domain::{Endpoint, JiraCall, LinkId, SpoolId, SpooledWrite};

/// Replays of one site under way at once.
const UNDER_WAY_MAX: usize = 8;

/// Everything that is known of a site's queue.
#[derive(Default)]
pub(super) struct Site {
    lanes: HashMap<LinkId, Lane>,
    /// Whose turn it is: lanes in which something waits.
    turns: VecDeque<LinkId>,
    pub(super) pauses: Pauses,
    under_way: usize,
    /// In a row, of the whole site.
    pub(super) setbacks: u32,
    /// In a row, of one endpoint.
    endpoint_setbacks: HashMap<Endpoint, u32>,
    /// Of all bodies that wait or are about to.
    pub(super) bytes: u64,
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
        // After a setback the writes that wait are the ones to try whether Jira is back.
        let unsure = self.setbacks > 0 && !self.turns.is_empty();
        let behind = self.lanes.entry(link).or_default().admit(id, call);
        let paused = self.pauses.reason(call.endpoint(), now);
        paused.or_else(|| (behind || unsure).then_some("behind_others"))
    }

    /// A write is about to wait.
    pub(super) fn make_barrier(&mut self, link: LinkId, id: SpoolId) {
        self.lanes.entry(link).or_default().make_barrier(id);
    }

    /// A write was answered or kept. Returns whether something waits that may now go.
    pub(super) fn leave(&mut self, link: LinkId, id: SpoolId) -> bool {
        let Some(lane) = self.lanes.get_mut(&link) else {
            return false;
        };
        lane.leave(id);
        !lane.is_empty()
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
        self.lanes.get(&link).is_none_or(Lane::is_quiet)
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// Forgets lanes that nothing is in. Returns whether there is anything else to remember.
    pub(super) fn forget_idle(&mut self, now: Timestamp) -> bool {
        self.pauses.forget_over(now);
        self.lanes.retain(|_, lane| !lane.is_idle());
        !self.lanes.is_empty() || self.setbacks > 0 || !self.pauses.is_empty()
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

    /// Puts a write into its lane; its bytes are counted already. Returns how many older ones it makes needless.
    pub(super) fn insert(&mut self, waiting: Waiting) -> usize {
        let link = waiting.write.link;
        let replaced = self.lanes.entry(link).or_default().insert(waiting);
        if !self.turns.contains(&link) {
            self.turns.push_back(link);
        }
        replaced
    }

    /// A write that got through, and all that it made needless.
    pub(super) fn with_replaced(&self, write: &SpooledWrite) -> Vec<SpoolId> {
        let lane = self.lanes.get(&write.link);
        lane.map_or_else(|| vec![write.id], |lane| lane.with_replaced(write))
    }

    /// Takes a write out. What it would have replaced counts again, if it is still there.
    pub(super) fn remove(&mut self, link: LinkId, id: SpoolId) -> Option<Arc<SpooledWrite>> {
        let lane = self.lanes.get_mut(&link)?;
        let gone = lane.remove(id)?;
        if gone.state == WaitState::UnderWay {
            self.under_way -= 1;
        }
        if lane.is_empty() {
            self.turns.retain(|turn| *turn != link);
        }
        self.release_bytes(link, gone.write.room());
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
        if let Some(until) = self.pauses.site_until(now) {
            *next = until.min(*next);
            return None;
        }
        self.pauses.forget_over(now);
        // Not sure that Jira is back: one is enough to find out.
        if self.setbacks > 0 && self.under_way > 0 {
            return None;
        }
        for _ in 0..self.turns.len() {
            let link = self.turns.pop_front()?;
            self.turns.push_back(link);
            let lane = self.lanes.get_mut(&link);
            if let Some(write) = lane.and_then(|lane| lane.next(&self.pauses, now, next)) {
                self.under_way += 1;
                return Some(write);
            }
        }
        None
    }

    /// A replay did not end its write: it waits on. Returns how often it was tried.
    pub(super) fn put_back(
        &mut self,
        link: LinkId,
        id: SpoolId,
        error: String,
        not_before: Timestamp,
    ) -> u32 {
        let lane = self.lanes.get_mut(&link);
        let Some((before, attempts)) = lane.and_then(|lane| lane.put_back(id, error, not_before))
        else {
            return 0;
        };
        if before == WaitState::UnderWay {
            self.under_way -= 1;
        }
        attempts
    }

    /// A write is not to be tried before then.
    pub(super) fn not_before(&mut self, link: LinkId, id: SpoolId, not_before: Timestamp) {
        let lane = self.lanes.get_mut(&link);
        if let Some(waiting) = lane.and_then(|lane| lane.get_mut(id)) {
            waiting.not_before = not_before;
        }
    }

    /// Ends pauses, and lets single writes be tried at once.
    pub(super) fn release(&mut self, which: impl Fn(&Hold) -> bool) {
        self.pauses.end(which);
        self.setbacks = 0;
        self.lanes.values_mut().for_each(Lane::release);
    }

    /// What waits, link by link.
    pub(super) fn lanes(&self) -> impl Iterator<Item = (LinkId, impl Iterator<Item = &Waiting>)> {
        self.lanes
            .iter()
            .map(|(link, lane)| (*link, lane.waiting()))
    }
}

#[cfg(test)]
mod tests;
