//! A backup: one file with everything that a store holds, as it was at one moment.
//!
//! ```text
//! jira-connect-proxy backup\n
//! {"version":1,"schema":2,"created_at":"...","made_by":"0.1.0","records":812,"key_check":"..."}\n
//! pieces     length (4 bytes, big endian), sealed bytes
//! the end    length 0, SHA-256 of everything before these 32 bytes
//! ```
//!
//! A piece is sealed under the store key for its place in this one file, the last one for being the last, so a piece
//! that was changed, moved, left out or taken from elsewhere does not open. What the pieces hold is one stream of
//! records: length of the id (2 bytes), length of the value (4 bytes), id, value; the same ids as in the store, and
//! values as they are before sealing, so that a store under another key can be made of them. The checksum needs no key:
//! it is for who copies the file about.

mod reader;
mod writer;

use std::io;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::StoreError;
use crate::domain::SpoolId;
pub use reader::{BackupContents, BackupFile, BackupReader};
pub use writer::Backup;
pub(super) use writer::Snapshot;

const MAGIC: &str = "jira-connect-proxy backup";
const VERSION: u32 = 1;
const KEY_CHECK: &str = "backup/key-check";

/// Plain bytes in a piece.
const PIECE_BYTES: usize = 64 * 1024;
/// What sealing adds, and more.
const PIECE_MAX_BYTES: usize = PIECE_BYTES + 256;

/// What a backup says of itself, in clear.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupHeader {
    /// Form of the file.
    pub version: u32,
    /// Schema of the store.
    pub schema: u32,
    /// When it was begun: nothing that was changed later is in it.
    pub created_at: Timestamp,
    /// Version of the relay.
    pub made_by: String,
    /// How many records were there then, without the audit trail.
    pub records: u64,
    /// Opens with the key that the backup opens with.
    key_check: String,
}

/// Why a backup can't be made or used.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The file, or the body of a waiting write, can't be read.
    #[error("it can't be read: {0}")]
    Io(#[from] io::Error),
    /// The store can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is something else.
    #[error("this is no backup of jira-connect-proxy")]
    NotABackup,
    /// Made by a newer relay.
    #[error(
        "it was made by version {made_by}, whose form (version {version}, schema {schema}) is unknown here: use that version or a newer one"
    )]
    Newer {
        /// Of that relay.
        made_by: String,
        /// Of the file.
        version: u32,
        /// Of the store.
        schema: u32,
    },
    /// Another key made it.
    #[error(
        "the key does not open it: give the store key that was in use when it was made (after `reseal`, the one before is kept as <store.key_file>.retired-<time>; while one is under way, the one to come is <store.key_file>.next)"
    )]
    WrongKey,
    /// Changed or cut.
    #[error("it is damaged: {0}")]
    Damaged(String),
}

/// One record.
pub(super) struct Item {
    pub(super) id: String,
    pub(super) value: Zeroizing<Vec<u8>>,
}

fn piece_id(file: &str, number: u64, last: bool) -> String {
    let last = if last { "/last" } else { "" };
    format!("backup/{file}/{number}{last}")
}

/// The write that a body belongs to.
pub(super) fn body_of(id: &str) -> Option<SpoolId> {
    let write = id.strip_prefix("body/")?;
    write.parse().ok()
}
