//! jira-connect-proxy: one GitLab for Jira Cloud app, many self-managed GitLab instances, one relay between.
//!
//! The map, in the order in which a request meets the parts:
//!
//! - [`jwt`]: a verifier for each kind of token, the query string hash, the signer
//! - [`client`]: outbound HTTP with an eye on the address
//! - [`store`]: what is known, durably; the only place that names an engine
//! - [`domain`]: the words of the product as types
//! - [`config`], [`reject`], [`metrics`], [`telemetry`], [`secret_file`], [`clock`]: what everybody stands on

pub mod client;
pub mod clock;
pub mod config;
pub mod domain;
pub mod jwt;
pub mod metrics;
pub mod reject;
pub mod secret_file;
pub mod store;
pub mod telemetry;
