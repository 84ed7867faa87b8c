//! The relay over sockets: one binary, one module for each thing it promises.

#![allow(
    unreachable_pub,
    reason = "nothing of a test is reachable from elsewhere"
)]
#![expect(
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    reason = "tests wait in real time, and an index that is not there is a failed test"
)]

mod cloud;
#[path = "../fakes/mod.rs"]
mod fakes;
mod harness;
mod stage;

mod acme;
mod admin_doors;
mod chaos;
mod cli;
mod codes;
mod crash;
mod doctor;
mod faults;
mod flood;
mod front;
mod fuzz;
mod hostile;
mod invocations;
mod isolation;
mod judges;
mod keys;
mod lifecycle;
mod links;
mod moving;
mod operating;
#[cfg(feature = "otlp")]
mod otlp;
mod outside;
mod page;
mod process;
mod rest;
mod secrets;
mod spool;
mod stories;
mod takeover;
mod toolchain;
mod trace;
mod upstreams;
