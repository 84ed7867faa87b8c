//! A write that Jira could not take yet.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{ClientKey, JiraCall, LinkId, Namespace};

/// Numbers writes in the order in which they arrived; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SpoolId(pub u64);

/// A waiting write without its body, which lies beside it on the disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpooledWrite {
    /// Its place in the order.
    pub id: SpoolId,
    /// For which site.
    pub client_key: ClientKey,
    /// From which link.
    pub link: LinkId,
    /// The link's namespace when it came; everything in it is in that namespace already.
    pub namespace: Namespace,
    /// What is to be done.
    pub call: JiraCall,
    /// Size of the body.
    pub bytes: u64,
    /// What it touches, so that order is kept where it matters.
    pub touches: Touches,
    /// When it came.
    pub received_at: Timestamp,
    /// The request's id in the log.
    pub request_id: String,
    /// Why it waits: a stable name.
    pub reason: String,
}

/// What a write touches, as hashes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touches {
    /// Entities with their sequence numbers; none for a deletion.
    pub entities: Vec<(u64, Option<i64>)>,
    /// Issues.
    pub issues: Vec<u64>,
    /// A newer write of the same entities makes this one needless.
    pub replaceable: bool,
    /// Too much to list: whatever there is.
    pub everything: bool,
}

impl SpooledWrite {
    /// What it takes of the room for waiting writes: its body, and its records here and there.
    pub fn room(&self) -> u64 {
        self.bytes + 2048
    }
}

impl Touches {
    /// Of a write that is too large to list what it touches.
    pub fn everything() -> Self {
        Self {
            everything: true,
            ..Self::default()
        }
    }

    /// Everything of it that another write may touch too.
    pub fn all(&self) -> impl Iterator<Item = u64> {
        let entities = self.entities.iter().map(|(entity, _)| *entity);
        entities.chain(self.issues.iter().copied())
    }

    /// Whether `newer` says something newer of everything that this one is about, so that this one need not be
    /// sent. Jira replaces an entity as a whole, and a number must be larger to count.
    pub fn superseded_by(&self, newer: &Self) -> bool {
        self.replaceable
            && !self.entities.is_empty()
            && self.entities.iter().all(|(entity, old)| {
                let sequence = newer.entities.iter().find(|(other, _)| other == entity);
                matches!((old, sequence), (Some(old), Some((_, Some(new)))) if new > old)
            })
    }
}

impl std::str::FromStr for SpoolId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

impl fmt::Display for SpoolId {
    /// Fixed width, so that the order of records is the order of writes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
