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

#[path = "../fakes/mod.rs"]
mod fakes;
mod harness;
mod stage;

mod admin_doors;
mod chaos;
mod cli;
mod crash;
mod doctor;
mod flood;
mod front;
mod hostile;
mod isolation;
mod judges;
mod keys;
mod lifecycle;
mod links;
mod operating;
mod page;
mod process;
mod rest;
mod spool;
mod toolchain;
