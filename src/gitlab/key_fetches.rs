//! Remembers who fetched which of our public keys lately.
//!
//! When an instance answers 401, whether it came for the key tells two causes apart that look the same to it:
//! its proxy URL is wrong, or it could not verify what it got. All instances fetch the same key, so a fetch is
//! proof only for an attempt that no other one overlapped.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::Mutex,
};

use tokio::time::Instant;

use crate::domain::KeyId;

/// Probes under way at once.
const BAITS_MAX: usize = 256;

/// Fetches remembered; the oldest make room.
const REMEMBERED: usize = 4096;

/// The last fetches of our keys, and the attempts under way.
#[derive(Debug, Default)]
pub struct KeyFetches {
    /// A short std lock: nothing is awaited while it is held.
    seen: Mutex<Seen>,
}

/// What is known of key fetches during one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyFetch {
    /// Nobody came for the key.
    Nobody,
    /// Somebody did, and no other instance was being told at the time.
    By(IpAddr),
    /// Somebody did, maybe another instance that was told at the same time.
    Unclear,
}

/// An attempt under way.
#[derive(Debug)]
pub struct Attempt<'a> {
    fetches: &'a KeyFetches,
    started: Instant,
    /// How many attempts had been started, this one included.
    number: u64,
    others_at_start: bool,
}

/// A kid that exists only to see whether one instance comes for it.
#[derive(Debug)]
pub struct Bait<'a> {
    fetches: &'a KeyFetches,
    kid: KeyId,
}

#[derive(Debug, Default)]
struct Seen {
    fetches: VecDeque<Fetch>,
    attempts_started: u64,
    attempts_under_way: usize,
    /// Kids of probes, and who came for them.
    baits: HashMap<KeyId, Option<IpAddr>>,
}

#[derive(Clone, Debug)]
struct Fetch {
    kid: KeyId,
    peer: IpAddr,
    at: Instant,
}

impl KeyFetches {
    /// Somebody fetched a key.
    pub fn record(&self, kid: &KeyId, peer: IpAddr) {
        self.with(|seen| {
            if seen.fetches.len() == REMEMBERED {
                seen.fetches.pop_front();
            }
            seen.fetches.push_back(Fetch {
                kid: kid.clone(),
                peer,
                at: Instant::now(),
            });
        });
    }

    /// Lays out a kid that nobody else knows; it is gone when the value is dropped. `None` if too many are out.
    pub fn bait(&self) -> Option<Bait<'_>> {
        let kid = KeyId::generate();
        let room = self.with(|seen| {
            let room = seen.baits.len() < BAITS_MAX;
            if room {
                seen.baits.insert(kid.clone(), None);
            }
            room
        });
        room.then_some(Bait { fetches: self, kid })
    }

    /// Somebody asks for a key that is not ours. Returns whether it was a bait.
    pub fn bite(&self, kid: &KeyId, peer: IpAddr) -> bool {
        self.with(|seen| {
            let bait = seen.baits.get_mut(kid);
            bait.map(|bitten| *bitten = Some(peer)).is_some()
        })
    }

    /// An attempt begins; it ends when the value is dropped.
    pub fn attempt(&self) -> Attempt<'_> {
        let (number, others_at_start) = self.with(|seen| {
            seen.attempts_started += 1;
            seen.attempts_under_way += 1;
            (seen.attempts_started, seen.attempts_under_way > 1)
        });
        Attempt {
            fetches: self,
            started: Instant::now(),
            number,
            others_at_start,
        }
    }

    fn with<T>(&self, look: impl FnOnce(&mut Seen) -> T) -> T {
        // What is behind the lock is consistent after every step, so a panic elsewhere spoils nothing.
        let mut seen = self
            .seen
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        look(&mut seen)
    }
}

impl Attempt<'_> {
    /// Whether anybody came for this key since the attempt began.
    pub fn key_fetch(&self, kid: &KeyId) -> KeyFetch {
        self.fetches.with(|seen| {
            let fetch = seen
                .fetches
                .iter()
                .rev()
                .take_while(|fetch| fetch.at >= self.started)
                .find(|fetch| fetch.kid == *kid);
            match fetch {
                None => KeyFetch::Nobody,
                Some(_) if self.others_at_start || seen.attempts_started > self.number => {
                    KeyFetch::Unclear
                }
                Some(fetch) => KeyFetch::By(fetch.peer),
            }
        })
    }
}

impl Bait<'_> {
    /// The kid to put into a token.
    pub fn kid(&self) -> &KeyId {
        &self.kid
    }

    /// Who came for it.
    pub fn bitten_by(&self) -> Option<IpAddr> {
        self.fetches
            .with(|seen| seen.baits.get(&self.kid).copied().flatten())
    }
}

impl Drop for Bait<'_> {
    fn drop(&mut self) {
        self.fetches.with(|seen| seen.baits.remove(&self.kid));
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.fetches.with(|seen| seen.attempts_under_way -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bait_is_bitten_by_whoever_was_shown_it() {
        let (fetches, peer) = (KeyFetches::default(), IpAddr::from([10, 0, 0, 1]));
        let (bait, other) = (
            fetches.bait().expect("bait"),
            fetches.bait().expect("another"),
        );
        assert!(fetches.bite(bait.kid(), peer));
        assert_eq!(bait.bitten_by(), Some(peer));
        assert_eq!(other.bitten_by(), None);
        let kid = bait.kid().clone();
        drop(bait);
        assert!(!fetches.bite(&kid, peer), "it is gone");
    }

    #[test]
    fn a_fetch_is_proof_for_an_attempt_that_was_alone() {
        let (fetches, kid, peer) = (
            KeyFetches::default(),
            KeyId::generate(),
            [10, 0, 0, 1].into(),
        );
        fetches.record(&kid, peer);
        let alone = fetches.attempt();
        assert_eq!(alone.key_fetch(&KeyId::generate()), KeyFetch::Nobody);
        fetches.record(&kid, peer);
        assert_eq!(alone.key_fetch(&kid), KeyFetch::By(peer));
        let second = fetches.attempt();
        assert_eq!(
            second.key_fetch(&kid),
            KeyFetch::Nobody,
            "that was before its time"
        );
        fetches.record(&kid, peer);
        assert_eq!(second.key_fetch(&kid), KeyFetch::Unclear);
        assert_eq!(alone.key_fetch(&kid), KeyFetch::Unclear);
        drop((alone, second));
        let third = fetches.attempt();
        fetches.record(&kid, peer);
        assert_eq!(third.key_fetch(&kid), KeyFetch::By(peer));
    }
}
