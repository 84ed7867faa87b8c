//! The log: one line per request and per attempt, as text for people or JSON for machines.

use tracing_subscriber::{EnvFilter, fmt};

use crate::config::LogConfig;

/// Makes the log go to standard error. The second call in a process changes nothing.
pub fn install(config: &LogConfig) {
    let filter = EnvFilter::builder()
        .parse(&config.filter)
        .unwrap_or_else(|_| EnvFilter::new("info"));
    let log = fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(config.json);
    // An error only says that there is a log already.
    let _ = if config.json {
        log.json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .try_init()
            .map_err(drop)
    } else {
        use std::io::IsTerminal as _;
        log.with_ansi(std::io::stderr().is_terminal())
            .try_init()
            .map_err(drop)
    };
}
