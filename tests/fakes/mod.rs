//! Jira Cloud and GitLab as small real servers on loopback, for tests, the demo and benchmarks.
//!
//! They behave as the peers do on the wire, but they are our own code: what they accept proves little by itself.
//! The judges in `tests/judges` stand on the official libraries.

#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    clippy::indexing_slicing,
    reason = "each program that includes the fakes uses a part of them; what a fake indexes, it made"
)]

pub mod forge;
pub mod http;
pub mod instance;
pub mod jira;
pub mod secrets;
pub mod site;

pub use forge::FakeForge;
pub use instance::FakeInstance;
pub use jira::FakeJira;
pub use site::FakeSite;
