//! The one place that reads the clock. Rules get the time as an argument.

use jiff::Timestamp;

/// What time it is.
pub fn now() -> Timestamp {
    #[expect(clippy::disallowed_methods, reason = "this is the place")]
    Timestamp::now()
}
