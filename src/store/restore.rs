//! From a backup back to a store.
//!
//! The new store grows in a folder of its own inside `store.path`. While that folder is there the restore is
//! unfinished: a relay does not start, and another restore begins anew. Nothing that was there before is ever touched.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Read},
    path::PathBuf,
    sync::Arc,
};

use bytes::Bytes;

use super::{
    OpenError, Sealer, StoreOwner,
    backup::{BackupError, BackupReader, Item, body_of},
    bodies::Bodies,
    records::{KEY_CHECK, NAMESPACE, SCHEMA_KEY},
    sled::{Change, Engine, EngineError, Lock},
    store_key,
};
use crate::{config::StoreConfig, metrics::Metrics, secret_file::make_folders};

/// Where it grows.
const UNFINISHED: &str = "restoring";

/// Records and bytes that share one sync.
const BATCH_RECORDS: usize = 512;
const BATCH_BYTES: usize = 4 << 20;

/// A restored store that is not in its place yet.
pub struct Restored {
    config: StoreConfig,
    unfinished: PathBuf,
    _lock: Lock,
}

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The backup can't be used.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// There is a store already.
    #[error(
        "there is a store at {0}, and a restore never replaces one: move it away first, or set store.path to another folder"
    )]
    Occupied(PathBuf),
    /// The new store could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The new store could not be written.
    #[error("the store at {store} can't be written: {cause}")]
    Io {
        /// Where.
        store: PathBuf,
        /// Why.
        cause: String,
    },
}

/// Whether a restore was cut.
pub(super) fn is_unfinished(store: &std::path::Path) -> bool {
    store.join(UNFINISHED).exists()
}

impl Restored {
    /// Writes everything in a backup into a new store, sealed under `store.key_file`, which is made if it is missing.
    /// Blocks. `progress` hears how many records are there.
    pub fn fill<R: Read>(
        mut backup: BackupReader<R>,
        config: &StoreConfig,
        mut progress: impl FnMut(u64),
    ) -> Result<Self, RestoreError> {
        let failed = |error: &dyn std::fmt::Display| RestoreError::Io {
            store: config.path.clone(),
            cause: error.to_string(),
        };
        let opening = |error: EngineError| OpenError::from_engine(config, error);
        let unfinished = config.path.join(UNFINISHED);
        if Engine::exists(&config.path) && !unfinished.exists() {
            return Err(RestoreError::Occupied(config.path.clone()));
        }
        let lock = Engine::lock(&config.path).map_err(opening)?;
        clear(config).map_err(|error| failed(&error))?;
        make_folders(&unfinished).map_err(|error| failed(&error))?;
        let sealer = Arc::new(Sealer::new(&*store_key(config)?));
        let bodies = Bodies::open(&unfinished, Arc::clone(&sealer), HashSet::new())
            .map_err(|error| failed(&error))?;
        let inner = Engine::lock(&unfinished).map_err(opening)?;
        let mut engine = Engine::open(&unfinished, inner).map_err(opening)?;
        let schema = backup.header().schema.to_string().into_bytes();
        let seal = |id: String, value: &[u8]| -> Result<Change, RestoreError> {
            let sealed = sealer.seal(&id, value).map_err(|error| failed(&error))?;
            Ok((id.into_bytes(), Some(sealed)))
        };
        let mut batch = vec![
            (SCHEMA_KEY.to_vec(), Some(schema)),
            seal(KEY_CHECK.to_owned(), b"ok")?,
        ];
        let (mut bytes, mut records) = (0, 0);
        while let Some(Item { id, value }) = backup.next()? {
            records += 1;
            if let Some(write) = body_of(&id) {
                bodies
                    .write(write, &Bytes::copy_from_slice(&value))
                    .map_err(|error| failed(&error))?;
                continue;
            }
            bytes += value.len();
            batch.push(if id.starts_with(NAMESPACE) {
                (id.into_bytes(), Some(Vec::new()))
            } else {
                seal(id, &value)?
            });
            if batch.len() >= BATCH_RECORDS || bytes >= BATCH_BYTES {
                engine.commit(std::mem::take(&mut batch)).map_err(opening)?;
                bytes = 0;
                progress(records);
            }
        }
        engine.commit(batch).map_err(opening)?;
        progress(records);
        Ok(Self {
            config: config.clone(),
            unfinished,
            _lock: lock,
        })
    }

    /// Opens it where it is, as a relay would. Blocks.
    pub fn open(&self, metrics: Arc<Metrics>) -> Result<StoreOwner, OpenError> {
        let config = StoreConfig {
            path: self.unfinished.clone(),
            ..self.config.clone()
        };
        StoreOwner::open(&config, metrics)
    }

    /// Puts it in its place, durably.
    pub fn finish(self) -> Result<(), RestoreError> {
        let store = &self.config.path;
        let put = || -> io::Result<()> {
            let mut names = Vec::new();
            for entry in fs::read_dir(&self.unfinished)? {
                names.push(entry?.file_name());
            }
            names.retain(|name| name != "relay.lock");
            for name in names {
                fs::rename(self.unfinished.join(&name), store.join(&name))?;
            }
            File::open(store)?.sync_all()?;
            // Gone only now: while it is there, nobody takes the store for whole.
            fs::remove_dir_all(&self.unfinished)?;
            File::open(store)?.sync_all()
        };
        put().map_err(|error| RestoreError::Io {
            store: store.clone(),
            cause: error.to_string(),
        })
    }
}

/// Removes what a restore that was cut left. It began in an empty folder, so all of it is its own.
fn clear(config: &StoreConfig) -> io::Result<()> {
    if !is_unfinished(&config.path) {
        return Ok(());
    }
    for entry in fs::read_dir(&config.path)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == "relay.lock" || name == UNFINISHED {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    fs::remove_dir_all(config.path.join(UNFINISHED))
}
