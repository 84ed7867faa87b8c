//! Bodies of waiting writes: a sealed file each, beside the engine.
//!
//! A body has kilobytes to megabytes and lives as long as Jira's trouble; the engine is made for small records that
//! stay, and would keep the space for ever. A body is synced before its record is committed, and removed after it,
//! so a record always has its body. A body without a record is a leftover, removed at the next start.

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use bytes::Bytes;

use super::Sealer;
use crate::{domain::SpoolId, secret_file::make_folders};

pub(super) struct Bodies {
    folder: PathBuf,
    sealer: Arc<Sealer>,
    /// Shared by those that seal and write a body, so that none comes to lie under a key that is no longer current.
    writing: RwLock<()>,
}

/// Why a body can't be had.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The operating system refused; it may not the next time.
    #[error("the body of a waiting write can't be read: {0}")]
    Io(io::Error),
    /// It is gone, cut or changed.
    #[error("the body of a waiting write is lost: {0}")]
    Lost(String),
}

impl Bodies {
    /// Opens the folder and removes what no record knows.
    pub(super) fn open(
        store: &Path,
        sealer: Arc<Sealer>,
        known: HashSet<SpoolId>,
    ) -> io::Result<Self> {
        let folder = store.join("spool");
        make_folders(&folder)?;
        let bodies = Self {
            folder,
            sealer,
            writing: RwLock::default(),
        };
        let names: HashSet<_> = known.iter().map(ToString::to_string).collect();
        for entry in fs::read_dir(&bodies.folder)? {
            let entry = entry?;
            let leftover = entry
                .file_name()
                .to_str()
                .is_none_or(|name| !names.contains(name));
            if leftover {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(bodies)
    }

    /// Writes a body, durably.
    pub(super) fn write(&self, id: SpoolId, body: &[u8]) -> io::Result<()> {
        let _writing = self.writing.read().unwrap_or_else(PoisonError::into_inner);
        let sealed = self
            .sealer
            .seal(&body_id(id), body)
            .map_err(io::Error::other)?;
        let path = self.path(id);
        // The name, too.
        let written =
            write_file(&path, &sealed).and_then(|()| File::open(&self.folder)?.sync_all());
        written.inspect_err(|_| {
            let _ = fs::remove_file(&path);
        })
    }

    /// Does something while no body is being sealed or written.
    pub(super) fn while_none_is_written(&self, work: impl FnOnce()) {
        let _writing = self.writing.write().unwrap_or_else(PoisonError::into_inner);
        work();
    }

    /// Everything that lies there.
    pub(super) fn ids(&self) -> io::Result<Vec<SpoolId>> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let name = entry?.file_name();
            ids.extend(name.to_str().and_then(|name| name.parse::<SpoolId>().ok()));
        }
        Ok(ids)
    }

    /// Seals anew which of these lie under the previous key, durably, and tells how many bodies that were. One that is
    /// removed at the same moment may come back as a leftover.
    pub(super) fn reseal(&self, ids: &[SpoolId]) -> io::Result<u64> {
        let mut resealed = 0;
        for &id in ids {
            let path = self.path(id);
            let id = body_id(id);
            let sealed = match fs::read(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                read => read?,
            };
            if self.sealer.is_current(&id, &sealed) {
                continue;
            }
            // What does not open was lost before, and is told so when its turn comes.
            let Ok(plain) = self.sealer.open(&id, &sealed) else {
                continue;
            };
            let sealed = self.sealer.seal(&id, &plain).map_err(io::Error::other)?;
            let new = path.with_extension("new");
            write_file(&new, &sealed)?;
            fs::rename(&new, &path)?;
            resealed += 1;
        }
        File::open(&self.folder)?.sync_all()?;
        Ok(resealed)
    }

    pub(super) fn read(&self, id: SpoolId) -> Result<Bytes, BodyError> {
        let sealed = fs::read(self.path(id)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => BodyError::Lost(error.to_string()),
            _ => BodyError::Io(error),
        })?;
        let plain = self
            .sealer
            .open(&body_id(id), &sealed)
            .map_err(|error| BodyError::Lost(error.to_string()))?;
        Ok(Bytes::copy_from_slice(&plain))
    }

    /// One that can't be removed is a leftover for the next start.
    pub(super) fn remove(&self, ids: &[SpoolId]) {
        for &id in ids {
            if let Err(error) = fs::remove_file(self.path(id)) {
                tracing::warn!(
                    "the body of a write that needs not wait any more stays until the next start: {error}"
                );
            }
        }
    }

    fn path(&self, id: SpoolId) -> PathBuf {
        self.folder.join(id.to_string())
    }
}

/// What it is sealed as, and called in a backup.
pub(super) fn body_id(id: SpoolId) -> String {
    format!("body/{id}")
}

fn write_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(content)?;
    file.sync_data()
}
