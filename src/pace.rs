//! How fast each of many callers may go.

use std::{convert::Infallible, hash::Hash, num::NonZeroU32, sync::Arc, time::Duration};

use governor::{
    DefaultDirectRateLimiter, Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
};
use quick_cache::sync::Cache;

/// Callers that are remembered. Whoever is forgotten starts anew, with a whole burst; a thousand bytes or so for each
/// of these is the most that strangers with many addresses can make the relay keep.
const CALLERS_MAX: usize = 10_000;

/// How much of something there may be: none of the two is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// For as long as it goes on.
    pub per_sec: NonZeroU32,
    /// At once, after a quiet time.
    pub burst: NonZeroU32,
}

/// A pace for each key. (governor's own keyed limiter grows with the keys that strangers choose, and has to be swept;
/// a cache with a fixed size can't grow.)
pub struct Paces<K> {
    quota: Option<Quota>,
    known: Cache<K, Arc<DefaultDirectRateLimiter>>,
    clock: DefaultClock,
}

impl<K: Clone + Eq + Hash> Paces<K> {
    /// Everybody gets the same; nothing is no limit.
    pub fn new(rate: Option<Rate>) -> Self {
        Self {
            quota: rate.map(|rate| Quota::per_second(rate.per_sec).allow_burst(rate.burst)),
            known: Cache::new(CALLERS_MAX),
            clock: DefaultClock::default(),
        }
    }

    /// Takes one for this caller.
    ///
    /// # Errors
    /// There is none left, and will be one after this time. Nothing was taken.
    pub fn take(&self, caller: &K) -> Result<(), Duration> {
        let Some(quota) = self.quota else {
            return Ok(());
        };
        let Ok(limiter) = self.known.get_or_insert_with(caller, || {
            Ok::<_, Infallible>(Arc::new(RateLimiter::direct(quota)))
        });
        limiter
            .check()
            .map_err(|until| until.wait_time_from(self.clock.now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_a_burst_of_its_own() {
        let number = |n| NonZeroU32::new(n).expect("not 0");
        let slow = Rate {
            per_sec: number(1),
            burst: number(3),
        };
        let paces = Paces::new(Some(slow));
        for caller in ["a", "b"] {
            for _ in 0..3 {
                assert_eq!(paces.take(&caller), Ok(()));
            }
            let wait = paces.take(&caller).expect_err("used up");
            assert!(wait <= Duration::from_secs(1), "{wait:?}");
        }
        let unlimited = Paces::new(None);
        assert!((0..100_000).all(|_| unlimited.take(&"a").is_ok()));
    }

    #[test]
    fn many_callers_take_no_more_room() {
        let number = |n| NonZeroU32::new(n).expect("not 0");
        let rate = Rate {
            per_sec: number(1),
            burst: number(1),
        };
        let paces = Paces::new(Some(rate));
        for caller in 0..100_000_u32 {
            let _ = paces.take(&caller);
        }
        assert!(paces.known.len() <= CALLERS_MAX, "{}", paces.known.len());
    }
}
