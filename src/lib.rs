//! jira-connect-proxy: one GitLab for Jira Cloud app, many self-managed GitLab instances, one relay between.
//!
//! The map, in the order in which a request meets the parts:
//!
//! - [`domain`]: the words of the product as types
//! - [`config`], [`reject`], [`metrics`], [`telemetry`], [`secret_file`], [`clock`]: what everybody stands on

pub mod clock;
pub mod config;
pub mod domain;
pub mod metrics;
pub mod reject;
pub mod secret_file;
pub mod telemetry;
