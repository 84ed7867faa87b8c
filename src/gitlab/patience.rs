//! How long to wait for what with instances.

use std::time::Duration;

use jiff::SignedDuration;

use crate::{backoff, config::InstancesConfig};

/// When to try, and when to stop. The operator can change all of it in a running relay.
#[derive(Clone, Debug)]
pub struct Patience {
    /// A whole attempt.
    pub request_timeout: Duration,
    /// First pause between attempts.
    pub retry_min: Duration,
    /// Longest pause.
    pub retry_max: Duration,
    /// Attempts in flight at once.
    pub attempts_max: usize,
    /// Of these, to one instance.
    pub attempts_per_instance_max: usize,
    /// A removal that nobody answers ends after this.
    pub removal_give_up: SignedDuration,
}

impl From<&InstancesConfig> for Patience {
    fn from(instances: &InstancesConfig) -> Self {
        Self {
            request_timeout: instances.request_timeout,
            retry_min: instances.retry_min,
            retry_max: instances.retry_max,
            attempts_max: instances.deliveries_max,
            attempts_per_instance_max: instances.deliveries_per_instance_max,
            removal_give_up: instances.removal_give_up,
        }
    }
}

impl Patience {
    /// The pause after the `failed`th failure in a row: doubling, not less than the peer asks for, and never more
    /// than the longest.
    pub fn pause(&self, failed: u32, jitter: f64, asked: Option<Duration>) -> SignedDuration {
        let pause = backoff::doubling(self.retry_min, self.retry_max, failed, jitter)
            .max(asked.unwrap_or_default())
            .min(self.retry_max);
        SignedDuration::try_from(pause).unwrap_or(SignedDuration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_between_their_limits() {
        let patience = Patience {
            request_timeout: Duration::from_secs(30),
            retry_min: Duration::from_secs(5),
            retry_max: Duration::from_secs(3600),
            attempts_max: 1,
            attempts_per_instance_max: 1,
            removal_give_up: SignedDuration::ZERO,
        };
        let secs = |failed, jitter| patience.pause(failed, jitter, None).as_secs_f64();
        assert_eq!(
            (secs(0, 0.5), secs(1, 0.5), secs(2, 0.5)),
            (5.0, 10.0, 20.0)
        );
        assert_eq!((secs(0, 0.0), secs(0, 1.0)), (3.75, 6.25));
        assert_eq!((secs(12, 0.5), secs(u32::MAX, 1.0)), (3600.0, 3600.0));
        let asked = |seconds| patience.pause(0, 0.5, Some(Duration::from_secs(seconds)));
        assert_eq!(
            (
                asked(60).as_secs(),
                asked(1).as_secs(),
                asked(99_999).as_secs()
            ),
            (60, 5, 3600)
        );
    }
}
