//! How long to wait before the next try.

use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};

/// The pause after the `failed`th failure in a row (from 0), doubling from `min` to `max`.
///
/// Between three and five quarters of that, as `jitter` goes from 0 to 1, so that those who failed together don't
/// come back together.
pub fn doubling(min: Duration, max: Duration, failed: u32, jitter: f64) -> Duration {
    min.saturating_mul(2_u32.saturating_pow(failed.min(31)))
        .min(max)
        .mul_f64(0.75 + jitter / 2.0)
        .min(max)
}

/// Between 0 and 1.
pub fn jitter() -> f64 {
    let mut byte = [128];
    // Without randomness all relays of the world wait equally long; that is no reason to stop.
    let _ = SystemRandom::new().fill(&mut byte);
    f64::from(byte[0]) / 255.0
}
