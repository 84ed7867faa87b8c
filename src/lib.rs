//! jira-connect-proxy: one GitLab for Jira Cloud app, many self-managed GitLab instances, one relay between.
//!
//! The map, in the order in which a request meets the parts:
//!
//! - [`relay`]: builds every part once; `bind`, `run`
//! - [`server`], [`tls`]: sockets, handshakes, limits, drain
//! - [`exchange`]: what every request gets: id, clock, deadline, metrics, one closing line
//! - [`forwarded`]: who a request comes from when proxies stand in front
//! - [`access`]: who may talk to which part of it, by address
//! - [`routes`]: the public listener, a file for each family of addresses
//! - [`admin`]: the operators' listener
//! - [`reconcile`]: drives every link until the instance holds what it should
//! - [`doctor`]: finds out what ails an instance, or the relay itself
//! - [`spool`]: writes that Jira could not take yet, kept and replayed in order
//! - [`acme`]: keeps a good certificate, if the relay gets it by itself
//! - [`rotation`]: keeps one signing key active
//! - [`sightings`]: notes when an instance last spoke, and its version
//! - [`rounds`]: looks at every connected instance from time to time
//! - [`forge_sites`]: keeps what invocations of a Forge app tell, and finds out which sites it has left
//! - [`forget`]: drops sites that were uninstalled long ago, and secrets that count no more
//! - [`forge_app`]: the folder from which an operator deploys a Forge app for this relay
//! - [`jira`]: the Jira side: descriptor, lifecycle calls, which link speaks, namespaces, calls to Jira
//! - [`gitlab`]: the instance side: signed deliveries and what their failures mean, questions for Jira's toolchain
//! - [`sessions`]: operators at the page outside Jira
//! - [`linking`]: the rules between installations and links
//! - [`sites`]: the rules of joining and leaving sites, and of moving them from one way to another
//! - [`takeover`]: the rules for what another proxy served so far
//! - [`jwt`]: a verifier for each kind of token, the query string hash, the signer
//! - [`client`]: outbound HTTP with an eye on the address
//! - [`store`]: what is known, durably; the only place that names an engine
//! - [`domain`]: the words of the product as types
//! - [`trace`]: what happened lately, hop by hop; `otlp` sends it to a collector
//! - [`config`], [`reject`], [`metrics`], [`telemetry`], [`secret_file`], [`clock`], [`backoff`], [`body`],
//!   [`digest`], [`lock`], [`pace`]: what everybody stands on

pub mod access;
pub mod acme;
pub mod admin;
pub mod backoff;
pub mod body;
pub mod client;
pub mod clock;
pub mod config;
pub mod digest;
pub mod doctor;
pub mod domain;
pub mod exchange;
pub mod forge_app;
pub mod forge_sites;
pub mod forget;
pub mod forwarded;
pub mod gitlab;
pub mod jira;
pub mod jwt;
pub mod linking;
pub mod lock;
pub mod metrics;
#[cfg(feature = "otlp")]
pub mod otlp;
pub mod pace;
pub mod reconcile;
pub mod reject;
pub mod relay;
pub mod rotation;
pub mod rounds;
pub mod routes;
pub mod secret_file;
pub mod server;
pub mod sessions;
pub mod sightings;
pub mod sites;
pub mod spool;
pub mod store;
pub mod takeover;
pub mod telemetry;
pub mod tls;
pub mod trace;
