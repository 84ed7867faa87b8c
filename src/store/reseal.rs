//! A new store key for a store that stays open.
//!
//! 1. The new key is written beside the old one, as `<key_file>.next`. From then on a relay that starts has both.
//! 2. Everything new is sealed under the new key; what the old one sealed still opens.
//! 3. Every record and every body is sealed anew, a page at a time, between other changes.
//! 4. The old key moves to `<key_file>.retired-<time>` (it opens backups that were made with it) and the new one takes
//!    its place.
//!
//! It may be cut anywhere: the next call goes on, and a relay that finds `<key_file>.next` at its start finishes first.

use std::{
    fs::{self, File},
    io,
    ops::Bound,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::{Timestamp, tz::TimeZone};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, oneshot};
use zeroize::Zeroizing;

use super::{
    KeyFileError, Sealer, Store, StoreError,
    bodies::Bodies,
    committer::Job,
    read_key,
    records::NAMESPACE,
    sled::{Change, Engine},
};
use crate::{
    domain::{AuditEntry, SpoolId},
    reject::{Reject, RejectKind},
    secret_file::{self, SecretFileError},
};

/// Records looked at between other changes, and bodies sealed in one call: each is synced.
const PAGE: usize = 500;

/// Ending of the next key's file.
const NEXT: &str = "next";

/// How far it is, and where the key is.
pub(super) struct Resealing {
    key_file: PathBuf,
    at: Mutex<Position>,
}

enum Position {
    /// Nothing is under way.
    Idle,
    /// Records behind this key are still to be looked at.
    Records { behind: Vec<u8>, sealed: u64 },
    /// These bodies are.
    Bodies { left: Vec<SpoolId>, sealed: u64 },
}

/// How far a new key has got.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResealProgress {
    /// Records and bodies sealed anew.
    pub sealed: u64,
    /// Whether it is over.
    pub finished: bool,
    /// Where the old key is now, once it is over.
    pub retired_key_file: Option<PathBuf>,
}

/// Why the key was not changed, or not yet.
#[derive(Debug, thiserror::Error)]
pub enum ResealError {
    /// Somebody else does it right now.
    #[error("another call is at it")]
    Running,
    /// Of records.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The next key can't be read.
    #[error(transparent)]
    NextKey(#[from] KeyFileError),
    /// The next key can't be written.
    #[error("the key file can't be replaced: {0}")]
    KeyFile(#[from] SecretFileError),
    /// Of bodies, or the key file's folder.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// No random bytes.
    #[error("the operating system gave no random bytes for the store key")]
    NoRandomness,
}

impl ResealProgress {
    fn at(sealed: u64) -> Self {
        Self {
            sealed,
            finished: false,
            retired_key_file: None,
        }
    }
}

impl Resealing {
    pub(super) fn new(key_file: &Path) -> Arc<Self> {
        Arc::new(Self {
            key_file: key_file.to_owned(),
            at: Mutex::new(Position::Idle),
        })
    }
}

impl Store {
    /// Gives the store a new key, a page at a time: call it until it is finished. What others change meanwhile waits
    /// for a page at the most.
    ///
    /// # Errors
    /// Nothing is lost; the next call, or the next start, goes on.
    pub async fn reseal(&self, audit: AuditEntry) -> Result<ResealProgress, ResealError> {
        let store = self.clone();
        // Not to be left half way by a caller that hangs up: what is on the disk and what is noted must agree.
        let step = tokio::spawn(async move { store.reseal_step(audit).await });
        step.await.map_err(|_| StoreError::Closed)?
    }

    async fn reseal_step(&self, audit: AuditEntry) -> Result<ResealProgress, ResealError> {
        let resealing = &self.resealing;
        let mut at = resealing.at.try_lock().map_err(|_| ResealError::Running)?;
        if let Position::Idle = *at {
            let store = self.clone();
            blocking(move || store.begin_resealing()).await??;
            *at = Position::Records {
                behind: Vec::new(),
                sealed: 0,
            };
        }
        match &mut *at {
            Position::Idle => {}
            Position::Records { behind, sealed } => {
                let (reply, page) = oneshot::channel();
                let job = Job::Reseal {
                    behind: behind.clone(),
                    reply,
                };
                self.jobs.send(job).await.map_err(|_| StoreError::Closed)?;
                let page = page.await.map_err(|_| StoreError::Closed)??;
                *sealed += page.sealed;
                let sealed = *sealed;
                if let Some(next) = page.next {
                    *behind = next;
                } else {
                    let bodies = Arc::clone(&self.bodies);
                    let left = blocking(move || bodies.ids()).await??;
                    *at = Position::Bodies { left, sealed };
                }
                return Ok(ResealProgress::at(sealed));
            }
            Position::Bodies { left, sealed } if !left.is_empty() => {
                let page = left.split_off(left.len().saturating_sub(PAGE));
                let (bodies, again) = (Arc::clone(&self.bodies), page.clone());
                match blocking(move || bodies.reseal(&page)).await? {
                    Ok(resealed) => *sealed += resealed,
                    Err(error) => {
                        left.extend(again);
                        return Err(error.into());
                    }
                }
                return Ok(ResealProgress::at(*sealed));
            }
            Position::Bodies { .. } => {}
        }
        let Position::Bodies { sealed, .. } = *at else {
            return Err(ResealError::Running);
        };
        let (key_file, now) = (resealing.key_file.clone(), audit.at);
        let retired = blocking(move || swap(&key_file, now)).await??;
        self.sealer.forget_previous_key();
        *at = Position::Idle;
        self.record(AuditEntry {
            note: Some(format!("{sealed} records")),
            ..audit
        })
        .await?;
        Ok(ResealProgress {
            finished: true,
            retired_key_file: Some(retired),
            ..ResealProgress::at(sealed)
        })
    }

    /// Makes the next key, or takes the one that an earlier call made, and seals under it from now on.
    fn begin_resealing(&self) -> Result<(), ResealError> {
        let path = beside(&self.resealing.key_file, NEXT);
        if let Some(left) = unfinished_key(&self.resealing.key_file)? {
            self.bodies
                .while_none_is_written(|| self.sealer.change_key(&left));
            return Ok(());
        }
        let mut key = Zeroizing::new([0_u8; Sealer::KEY_BYTES]);
        SystemRandom::new()
            .fill(&mut *key)
            .map_err(|_| ResealError::NoRandomness)?;
        secret_file::create(&path, &*key)?;
        self.bodies
            .while_none_is_written(|| self.sealer.change_key(&key));
        Ok(())
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| StoreError::Closed)
}

/// What was sealed anew, and from where to go on.
#[derive(Default)]
pub(super) struct ResealedPage {
    pub(super) sealed: u64,
    pub(super) next: Option<Vec<u8>>,
}

/// The changes of one page.
pub(super) fn page(
    engine: &Engine,
    sealer: &Sealer,
    behind: &[u8],
) -> Result<(ResealedPage, Vec<Change>), String> {
    let mut page = ResealedPage::default();
    let mut changes = Vec::new();
    let mut last = None;
    let rest = engine.range((Bound::Excluded(behind), Bound::Unbounded));
    for pair in rest.take(PAGE) {
        let (key, value) = pair.map_err(|error| error.to_string())?;
        let id = String::from_utf8_lossy(&key).into_owned();
        // What is not sealed: numbers of ours, and names without a value.
        let is_sealed = !matches!(&*id, "m/schema" | "m/batch") && !id.starts_with(NAMESPACE);
        if is_sealed && !sealer.is_current(&id, &value) {
            let plain = sealer
                .open(&id, &value)
                .map_err(|error| format!("{id}: {error}"))?;
            let sealed = sealer
                .seal(&id, &plain)
                .map_err(|error| error.to_string())?;
            changes.push((key.to_vec(), Some(sealed)));
            page.sealed += 1;
        }
        last = Some(key.to_vec());
    }
    page.next = last;
    Ok((page, changes))
}

/// Finishes what was cut, before anybody uses the store.
pub(super) fn finish(
    engine: &mut Engine,
    bodies: &Bodies,
    sealer: &Sealer,
    key_file: &Path,
    now: Timestamp,
) -> Result<(), String> {
    let mut behind = Vec::new();
    loop {
        let (page, changes) = page(engine, sealer, &behind)?;
        if !changes.is_empty() {
            engine.commit(changes).map_err(|error| error.to_string())?;
        }
        match page.next {
            Some(next) => behind = next,
            None => break,
        }
    }
    let left = bodies.ids().map_err(|error| error.to_string())?;
    bodies.reseal(&left).map_err(|error| error.to_string())?;
    let retired = swap(key_file, now).map_err(|error| error.to_string())?;
    sealer.forget_previous_key();
    tracing::info!(
        retired_key_file = %retired.display(),
        "the store has its new key: what `reseal` had begun is finished"
    );
    Ok(())
}

/// The key that a `reseal` that was cut had made.
pub(super) fn unfinished_key(
    key_file: &Path,
) -> Result<Option<Zeroizing<[u8; Sealer::KEY_BYTES]>>, KeyFileError> {
    read_key(&beside(key_file, NEXT))
}

/// The next key becomes the key. At no instant is there none.
fn swap(key_file: &Path, now: Timestamp) -> io::Result<PathBuf> {
    let time = now.to_zoned(TimeZone::UTC).strftime("%Y%m%dT%H%M%SZ");
    let mut retired = beside(key_file, &format!("retired-{time}"));
    let mut more = 1;
    while let Err(error) = fs::hard_link(key_file, &retired) {
        if error.kind() != io::ErrorKind::AlreadyExists {
            return Err(error);
        }
        // Left by a try that was cut, or another key of the same second.
        if fs::metadata(key_file)?.ino() == fs::metadata(&retired)?.ino() {
            break;
        }
        more += 1;
        retired = beside(key_file, &format!("retired-{time}-{more}"));
    }
    let folder = secret_file::folder_of(key_file);
    File::open(folder)?.sync_all()?;
    fs::rename(beside(key_file, NEXT), key_file)?;
    File::open(folder)?.sync_all()?;
    Ok(retired)
}

fn beside(file: &Path, ending: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    PathBuf::from(name)
}

impl From<ResealError> for Reject {
    fn from(error: ResealError) -> Self {
        match error {
            ResealError::Store(error) => error.into(),
            ResealError::Running => Self::new(
                RejectKind::Conflict,
                "reseal_running",
                "another call gives the store a new key right now",
                "let it finish, or call again if it broke off",
            ),
            ResealError::NextKey(_)
            | ResealError::KeyFile(_)
            | ResealError::Io(_)
            | ResealError::NoRandomness => Self {
                internal: Some(error.to_string()),
                ..Self::new(
                    RejectKind::Unavailable,
                    "reseal_failed",
                    "the store's key could not be replaced; nothing is lost, and the old key still counts",
                    "the folder of store.key_file must be writable for the relay and have room; the log says more. Call again then",
                )
            },
        }
    }
}
