//! The engine: sled, made to keep its word.
//!
//! Four things are mended here:
//! - sled's `flush` on Linux is `sync_file_range`, which no power cut respects, so the data file is synced after it.
//! - A second process in the same folder is refused by a lock of our own, because sled tells it apart only in the
//!   text of an error.
//! - sled takes a damaged record in its log for the log's end: it starts without what came after, and without a
//!   word. So every batch carries a number, and a *witness* file beside the store says which number was last made
//!   durable. A store behind its witness has lost something. The witness is written after the sync and not synced
//!   itself, so a power cut can only set it back.
//! - sled cuts what it takes for the end when it opens a store, so a store is tried on a copy first.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    ops::Bound,
    os::unix::fs::FileExt as _,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::secret_file::make_folders;

/// Number of the last batch, decimal.
const BATCH_KEY: &[u8] = b"m/batch";

const LOCK_RETRIES: u32 = 500;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// A sync failed. Linux then calls the pages clean that never reached the disk, so no later sync writes them. The
/// mark need not survive a power cut: after one, what is read is what is on the disk.
const UNSYNCED: &str = "unsynced";

/// One open store folder.
pub(super) struct Engine {
    db: sled::Db,
    data: File,
    witness: File,
    batch: u64,
    path: PathBuf,
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
    #[error("{}", without_backtrace(.0))]
    Sled(#[from] sled::Error),
    #[error("the engine gave up: {0}")]
    Panicked(String),
    #[error(
        "it ends at batch {found}, but batch {witness} had been made durable: something in it was changed or cut"
    )]
    Behind { found: u64, witness: u64 },
}

/// Key, and the new value or nothing.
pub(super) type Change = (Vec<u8>, Option<Vec<u8>>);

impl Engine {
    /// Whether there is, or was, a store in this folder.
    pub(super) fn exists(path: &Path) -> bool {
        ["db", "conf", "witness"]
            .iter()
            .any(|name| path.join(name).exists())
    }

    /// Makes the folder and keeps others out of it.
    pub(super) fn lock(path: &Path) -> Result<Lock, EngineError> {
        make_folders(path)?;
        let lock = File::create(path.join("relay.lock"))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => EngineError::Locked,
            TryLockError::Error(error) => EngineError::Io(error),
        })?;
        Ok(Lock(lock))
    }

    /// Opens or makes the store. One that lost something is left as it is.
    pub(super) fn open(path: &Path, lock: Lock) -> Result<Self, EngineError> {
        let fresh = !Self::exists(path);
        let witness = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path.join("witness"))?;
        let witnessed = read_witness(&witness)?;
        if !fresh {
            remove_unfinished_snapshots(path)?;
            rewrite_unsynced(path)?;
            try_copy(path, witnessed)?;
        }
        let db = open_db(path)?;
        let batch = batch_of(&db, witnessed)?;
        let data = File::open(path.join("db"))?;
        if batch == 0 {
            // Nothing was committed yet: what sled makes beside its data is never synced by it.
            db.flush()?;
            for file in files(path)? {
                File::open(file)?.sync_all()?;
            }
            File::open(path)?.sync_all()?;
        }
        Ok(Self {
            db,
            data,
            witness,
            batch,
            path: path.to_owned(),
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

    /// All records whose keys are in `range`, in order.
    pub(super) fn range(
        &self,
        range: (Bound<&[u8]>, Bound<&[u8]>),
    ) -> impl DoubleEndedIterator<Item = Result<(sled::IVec, sled::IVec), EngineError>> {
        self.db
            .range::<&[u8], _>(range)
            .map(|pair| pair.map_err(EngineError::from))
    }

    /// One record.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<sled::IVec>, EngineError> {
        Ok(self.db.get(key)?)
    }

    /// Applies all changes or none, and returns when they would survive a power cut.
    pub(super) fn commit(&mut self, changes: Vec<Change>) -> Result<(), EngineError> {
        let number = self.batch + 1;
        let mut batch = sled::Batch::default();
        batch.insert(BATCH_KEY, number.to_string().into_bytes());
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        let flushed = || -> Result<(), EngineError> {
            self.db.apply_batch(batch)?;
            self.db.flush()?;
            Ok(())
        };
        caught(flushed)??;
        if let Err(error) = self.data.sync_data() {
            let _ = File::create(self.path.join(UNSYNCED));
            return Err(error.into());
        }
        self.batch = number;
        // A witness that lags does no harm.
        let _ = self
            .witness
            .write_all_at(format!("{number:020}\n").as_bytes(), 0);
        Ok(())
    }
}

/// Opens a copy of the store and throws it away: what sled does to a damaged store happens to the copy.
fn try_copy(path: &Path, witnessed: Option<u64>) -> Result<(), EngineError> {
    let copy = path.join("check");
    let copied = copy_store(path, &copy);
    let result = match copied {
        // Typically a full disk. The look at the store itself still tells, only later.
        Err(error) => {
            tracing::warn!("the store is opened without a trial on a copy: {error}");
            Ok(())
        }
        Ok(()) => trial(&copy, witnessed),
    };
    let _ = fs::remove_dir_all(&copy);
    result
}

/// sled writes a snapshot under this name and renames it when it is whole, but takes an unfinished one for the
/// newest. Snapshots follow from the log, so nothing is lost with them.
fn remove_unfinished_snapshots(path: &Path) -> io::Result<()> {
    for file in files(path)? {
        if file
            .extension()
            .is_some_and(|extension| extension == "generating")
        {
            fs::remove_file(file)?;
        }
    }
    Ok(())
}

/// Makes durable what a failed sync left in memory only: as another file, whose pages are all to be written.
fn rewrite_unsynced(path: &Path) -> io::Result<()> {
    let mark = path.join(UNSYNCED);
    if !mark.exists() {
        return Ok(());
    }
    let (data, new) = (path.join("db"), path.join("db.new"));
    fs::copy(&data, &new)?;
    File::open(&new)?.sync_all()?;
    fs::rename(&new, &data)?;
    File::open(path)?.sync_all()?;
    fs::remove_file(mark)
}

/// The files in a folder, without folders.
fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            files.push(entry.path());
        }
    }
    Ok(files)
}

/// Damage under a snapshot shows only at the start after the next write, so the trial writes, and starts again.
fn trial(copy: &Path, witnessed: Option<u64>) -> Result<(), EngineError> {
    let db = open_db(copy)?;
    let before = batch_of(&db, witnessed)?;
    let write = || -> sled::Result<()> {
        db.insert(BATCH_KEY, (before + 1).to_string().into_bytes())?;
        db.flush().map(drop)
    };
    caught(write)??;
    caught(|| drop(db))?;
    let db = open_db(copy)?;
    batch_of(&db, Some(before + 1)).map(drop)
}

fn copy_store(path: &Path, copy: &Path) -> io::Result<()> {
    match fs::remove_dir_all(copy) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    make_folders(copy)?;
    for file in files(path)? {
        let Some(name) = file.file_name() else {
            continue;
        };
        if !matches!(name.to_str(), Some("relay.lock" | "witness")) {
            fs::copy(&file, copy.join(name))?;
        }
    }
    // Never used: all our records are small.
    fs::create_dir(copy.join("blobs"))
}

fn open_db(path: &Path) -> Result<sled::Db, EngineError> {
    let path: PathBuf = path.to_owned();
    let open = || {
        sled::Config::new()
            .path(&path)
            // Readers never come here: everything is in our own tables.
            .cache_capacity(16 * 1024 * 1024)
            .flush_every_ms(None)
            .open()
    };
    let mut patience = LOCK_RETRIES;
    loop {
        match caught(open)? {
            // Threads of sled hold its files for a moment after it was dropped. Our own lock keeps others out, so it
            // is only ourselves that we wait for; nothing but the text tells.
            Err(sled::Error::Io(error))
                if patience > 0 && error.to_string().contains("could not acquire lock") =>
            {
                patience -= 1;
                std::thread::sleep(LOCK_PAUSE);
            }
            opened => return Ok(opened?),
        }
    }
}

/// The number of the last batch in a store, which must not be behind its witness.
fn batch_of(db: &sled::Db, witnessed: Option<u64>) -> Result<u64, EngineError> {
    let read = || db.get(BATCH_KEY);
    let stored = caught(read)??;
    let found = stored
        .and_then(|text| std::str::from_utf8(&text).ok()?.parse().ok())
        .unwrap_or(0);
    match witnessed {
        Some(witness) if found < witness => Err(EngineError::Behind { found, witness }),
        _ => Ok(found),
    }
}

/// `None` for a new file, and for one that a power cut left empty.
fn read_witness(witness: &File) -> io::Result<Option<u64>> {
    let mut digits = [0; 20];
    match witness.read_exact_at(&mut digits, 0) {
        Ok(()) => Ok(std::str::from_utf8(&digits)
            .ok()
            .and_then(|text| text.parse().ok())),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// sled meets some troubles with a panic; they are errors like others.
pub(super) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, EngineError> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied());
        EngineError::Panicked(text.unwrap_or("without a word").to_owned())
    })
}

/// sled's text for damage ends in a place and a backtrace that say nothing.
fn without_backtrace(error: &sled::Error) -> String {
    match error {
        sled::Error::Corruption { .. } => "the engine found it corrupted".to_owned(),
        other => other.to_string(),
    }
}
