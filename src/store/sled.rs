//! The engine: sled, made to keep its word.
//!
//! Two things are mended here. sled's `flush` on Linux is `sync_file_range`, which no power cut respects, so
//! the data file is synced after it. And a second process that opens the same folder is refused by a lock of
//! our own, because sled tells it apart only in the text of an error.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::Path,
};

/// One open store folder.
pub(super) struct Engine {
    db: sled::Db,
    data: File,
    _lock: Lock,
}

/// The folder is ours as long as this lives.
pub(super) struct Lock(#[expect(dead_code, reason = "held for its drop")] File);

/// Why the engine failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum EngineError {
    #[error("another process has it open")]
    Locked,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Sled(#[from] sled::Error),
    #[error("the engine gave up: {0}")]
    Panicked(String),
}

/// Key, and the new value or nothing.
pub(super) type Change = (Vec<u8>, Option<Vec<u8>>);

impl Engine {
    /// Whether there is a store in this folder.
    pub(super) fn exists(path: &Path) -> bool {
        path.join("db").exists()
    }

    /// Makes the folder and keeps others out of it.
    pub(super) fn lock(path: &Path) -> Result<Lock, EngineError> {
        fs::create_dir_all(path)?;
        let lock = File::create(path.join("relay.lock"))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => EngineError::Locked,
            TryLockError::Error(error) => EngineError::Io(error),
        })?;
        Ok(Lock(lock))
    }

    /// Opens or makes the store.
    pub(super) fn open(path: &Path, lock: Lock) -> Result<Self, EngineError> {
        let fresh = !Self::exists(path);
        // sled meets some damage with a panic; a start must end in a sentence all the same.
        let open = || {
            sled::Config::new()
                .path(path)
                .cache_capacity(64 * 1024 * 1024)
                .flush_every_ms(None)
                .open()
        };
        let db = std::panic::catch_unwind(open).map_err(|panic| {
            EngineError::Panicked(
                panic
                    .downcast_ref::<String>()
                    .cloned()
                    .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
                    .unwrap_or_default(),
            )
        })??;
        let data = File::open(path.join("db"))?;
        if fresh {
            // A file is there after a power cut only if its folder was synced too.
            db.flush()?;
            data.sync_all()?;
            File::open(path)?.sync_all()?;
            if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
                File::open(parent)?.sync_all()?;
            }
        }
        Ok(Self {
            db,
            data,
            _lock: lock,
        })
    }

    /// All records whose keys start with `prefix`, in order.
    pub(super) fn scan(
        &self,
        prefix: &[u8],
    ) -> impl DoubleEndedIterator<Item = Result<(sled::IVec, sled::IVec), EngineError>> {
        self.db
            .scan_prefix(prefix)
            .map(|pair| pair.map_err(EngineError::from))
    }

    /// One record.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<sled::IVec>, EngineError> {
        Ok(self.db.get(key)?)
    }

    /// Applies all changes or none, and returns when they would survive a power cut.
    pub(super) fn commit(&self, changes: Vec<Change>) -> Result<(), EngineError> {
        let mut batch = sled::Batch::default();
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        self.db.apply_batch(batch)?;
        self.db.flush()?;
        self.data.sync_data()?;
        Ok(())
    }
}
