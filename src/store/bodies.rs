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
    sync::Arc,
};

use bytes::Bytes;

use super::Sealer;
use crate::{domain::SpoolId, secret_file::make_folders};

pub(super) struct Bodies {
    folder: PathBuf,
    sealer: Arc<Sealer>,
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
        let bodies = Self { folder, sealer };
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
        let sealed = self
            .sealer
            .seal(&sealed_as(id), body)
            .map_err(io::Error::other)?;
        let path = self.path(id);
        let written = || -> io::Result<()> {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&path)?;
            file.write_all(&sealed)?;
            file.sync_data()?;
            // The name, too.
            File::open(&self.folder)?.sync_all()
        };
        written().inspect_err(|_| {
            let _ = fs::remove_file(&path);
        })
    }

    pub(super) fn read(&self, id: SpoolId) -> Result<Bytes, BodyError> {
        let sealed = fs::read(self.path(id)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => BodyError::Lost(error.to_string()),
            _ => BodyError::Io(error),
        })?;
        let plain = self
            .sealer
            .open(&sealed_as(id), &sealed)
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

fn sealed_as(id: SpoolId) -> String {
    format!("body/{id}")
}
