//! Remembers who fetched which of our public keys lately.
//!
//! When an instance answers 401, whether it came for the key tells two causes apart that look the same to it:
//! its proxy URL is wrong, or it could not verify what it got.

use std::{collections::VecDeque, net::IpAddr, sync::Mutex};

use tokio::time::Instant;

use crate::domain::KeyId;

/// Fetches remembered; the oldest make room.
const REMEMBERED: usize = 4096;

/// The last fetches of our keys.
#[derive(Debug, Default)]
pub struct KeyFetches {
    /// A short std lock: nothing is awaited while it is held.
    fetches: Mutex<VecDeque<Fetch>>,
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
        let Ok(mut fetches) = self.fetches.lock() else {
            return;
        };
        if fetches.len() == REMEMBERED {
            fetches.pop_front();
        }
        fetches.push_back(Fetch {
            kid: kid.clone(),
            peer,
            at: Instant::now(),
        });
    }

    /// Who last fetched the key since `start`.
    pub fn since(&self, kid: &KeyId, start: Instant) -> Option<IpAddr> {
        self.fetches
            .lock()
            .ok()?
            .iter()
            .rev()
            .take_while(|fetch| fetch.at >= start)
            .find(|fetch| fetch.kid == *kid)
            .map(|fetch| fetch.peer)
    }
}
