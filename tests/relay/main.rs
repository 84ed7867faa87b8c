//! The relay over sockets: one binary, one module for each thing it promises.

#![allow(unreachable_pub, reason = "nothing of a test is reachable")]
#![expect(
    clippy::disallowed_methods,
    reason = "tests measure and wait in real time"
)]

#[path = "../fakes/mod.rs"]
mod fakes;
mod harness;

mod crash;
mod hostile;
mod judges;
mod keys;
mod lifecycle;
mod links;
mod operating;
mod process;
