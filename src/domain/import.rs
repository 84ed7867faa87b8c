//! One take-over of what another proxy served.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// An import's id: a UUID. What an import makes bears it, so that it can be rolled back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ImportId(Uuid);

impl ImportId {
    /// A new one.
    pub fn generate() -> Self {
        Self(Uuid::new_v4())
    }

    /// Parses an id from a path or a record.
    pub fn parse(text: &str) -> Option<Self> {
        Uuid::try_parse(text).ok().map(Self)
    }
}

impl fmt::Display for ImportId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
