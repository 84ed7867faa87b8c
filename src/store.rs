//! What the relay knows, durably.
//!
//! Everything is in memory, in bounded tables that requests read without waiting. Every change goes to one
//! committer thread as a [`Transaction`]: it sees all earlier changes, applies whole or not at all, and its
//! caller is woken only when the batch it travelled in was flushed and synced. Many writers share one sync.
//! Readers see a change only then, too, so nobody acts on what a power cut could take back.
//!
//! Records are sealed under `store.key_file`. This module is the only one that names an engine.

mod backup;
mod bodies;
mod committer;
mod migrate;
mod records;
mod reseal;
mod restore;
mod seal;
mod sled;
mod tables;
mod transaction;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use jiff::Timestamp;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::{mpsc, oneshot, watch};
use zeroize::Zeroizing;

use crate::{
    clock,
    config::StoreConfig,
    domain::{
        AuditEntry, ChainedEntry, ClientKey, InstallKeyRecord, Installation, Link, LinkId,
        SigningKeyRecord, SpoolId, SpooledWrite,
    },
    metrics::Metrics,
    reject::{Reject, RejectKind},
    secret_file::{self, SecretFileError},
};
pub use backup::{Backup, BackupContents, BackupError, BackupFile, BackupHeader, BackupReader};
use bodies::Bodies;
pub use bodies::BodyError;
use committer::{Committer, Job};
use reseal::Resealing;
pub use reseal::{ResealError, ResealProgress};
pub use restore::{RestoreError, Restored};
pub use seal::{SealError, Sealer};
use sled::{Engine, EngineError};
use tables::Tables;
pub use transaction::{StoreFull, Transaction};

/// The form of what is stored. A store with a higher number was written by a newer relay.
const SCHEMA: u32 = 3;

/// A handle on the store; cheap to clone.
#[derive(Clone)]
pub struct Store {
    tables: Arc<Tables>,
    bodies: Arc<Bodies>,
    sealer: Arc<Sealer>,
    resealing: Arc<Resealing>,
    jobs: mpsc::Sender<Job>,
    /// Counts changes of links; the reconciler waits on it.
    link_changes: watch::Sender<u64>,
}

/// Owns the committer thread. Close it to be sure that everything is on disk and the lock is gone.
pub struct StoreOwner {
    store: Store,
    thread: std::thread::JoinHandle<()>,
}

/// Why a store could not be opened. Nothing was changed on disk.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error(
        "the store at {0} is in use by another process: stop that relay first, a store serves one at a time"
    )]
    Locked(PathBuf),
    /// The store is there, its key is not.
    #[error(
        "the store at {store} exists, but its key file {key_file} does not: put the key file back from your backup (a new key could not read the store, so none was made)"
    )]
    KeyMissing {
        /// The store.
        store: PathBuf,
        /// The key.
        key_file: PathBuf,
    },
    /// The key belongs to another store.
    #[error(
        "the key file {key_file} does not open the store at {store}: put the key file that belongs to it back from your backup"
    )]
    WrongKey {
        /// The store.
        store: PathBuf,
        /// The key.
        key_file: PathBuf,
    },
    /// Written by a newer version.
    #[error(
        "the store at {store} has schema {found}, this version knows {SCHEMA}: run the newer version again, or restore a backup that this one made"
    )]
    NewerSchema {
        /// The store.
        store: PathBuf,
        /// Its schema.
        found: u32,
    },
    /// Something in it can't be read.
    #[error(
        "the store at {store} is damaged ({cause}): nothing was changed; restore it from a backup, or move it away to start empty"
    )]
    Damaged {
        /// The store.
        store: PathBuf,
        /// What exactly.
        cause: String,
    },
    /// The operating system refused.
    #[error("the store at {store} can't be opened: {cause}")]
    Io {
        /// The store.
        store: PathBuf,
        /// What it said.
        cause: String,
    },
    /// A restore was cut.
    #[error(
        "the store at {0} is what a restore that was cut has left: run `jira-connect-proxy restore` again, it begins anew"
    )]
    RestoreUnfinished(PathBuf),
    /// The key file can't be used.
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    /// No random bytes for a key.
    #[error("the operating system gave no random bytes for the store key")]
    NoRandomness,
}

/// Why a store key can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It can't be read or written.
    #[error(transparent)]
    File(#[from] SecretFileError),
    /// Not 32 bytes.
    #[error(
        "the key file {path} has {length} bytes, it must have {expected}: put the right one back from your backup",
        expected = Sealer::KEY_BYTES
    )]
    Malformed {
        /// The key.
        path: PathBuf,
        /// Its size.
        length: usize,
    },
}

/// Why a change was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// It could not be made durable; it may or may not be there after a restart.
    #[error("the change could not be made durable: {0}")]
    NotDurable(String),
    /// Something in it can't be read.
    #[error("the store can't be read: {0}")]
    Unreadable(String),
    /// The store is closing or its thread is gone.
    #[error("the store is closed")]
    Closed,
}

/// Why a transaction gave no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransactError<E> {
    /// The store's fault.
    #[error(transparent)]
    Store(StoreError),
    /// The transaction itself said no; nothing was changed.
    #[error("{0}")]
    Refused(E),
}

impl StoreOwner {
    /// Opens or makes the store. Blocks.
    pub fn open(config: &StoreConfig, metrics: Arc<Metrics>) -> Result<Self, OpenError> {
        // The lock comes first: two relays that start at once must not make two keys for one store.
        let lock =
            Engine::lock(&config.path).map_err(|error| OpenError::from_engine(config, error))?;
        if restore::is_unfinished(&config.path) {
            return Err(OpenError::RestoreUnfinished(config.path.clone()));
        }
        let sealer = Arc::new(Sealer::new(&*store_key(config)?));
        let next_key = reseal::unfinished_key(&config.key_file)?;
        if let Some(key) = &next_key {
            sealer.change_key(key);
        }
        let tables = Arc::new(Tables::default());
        let mut opened = records::open(config, lock, &sealer, &tables)?;
        let known = tables.spooled.all().into_iter().map(|write| write.id);
        let io = |cause: String| OpenError::Io {
            store: config.path.clone(),
            cause,
        };
        let bodies = Bodies::open(&config.path, Arc::clone(&sealer), known.collect())
            .map_err(|error| io(error.to_string()))?;
        if next_key.is_some() {
            let (engine, key_file) = (&mut opened.engine, &config.key_file);
            reseal::finish(engine, &bodies, &sealer, key_file, clock::now()).map_err(io)?;
        }
        let (jobs, received) = mpsc::channel(4096);
        let link_changes = watch::Sender::new(0);
        let committer = Committer {
            config: config.clone(),
            sealer: Arc::clone(&sealer),
            tables: Arc::clone(&tables),
            engine: Some(opened),
            link_changes: link_changes.clone(),
            metrics,
        };
        let thread = std::thread::Builder::new()
            .name("store-committer".to_owned())
            .spawn(move || committer.run(received))
            .map_err(|error| OpenError::Io {
                store: config.path.clone(),
                cause: error.to_string(),
            })?;
        Ok(Self {
            store: Store {
                tables,
                bodies: Arc::new(bodies),
                sealer,
                resealing: Resealing::new(&config.key_file),
                jobs,
                link_changes,
            },
            thread,
        })
    }

    /// A handle for others.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Finishes what is queued and lets go of the folder. Blocks.
    ///
    /// # Errors
    /// The committer thread had panicked.
    pub fn close(self) -> Result<(), StoreError> {
        let Self { store, thread } = self;
        // Other handles may live on; the thread ends all the same.
        let _ = store.jobs.blocking_send(Job::Close);
        thread.join().map_err(|_| StoreError::Closed)
    }
}

impl Store {
    /// One installation.
    pub fn installation(&self, client_key: &ClientKey) -> Option<Arc<Installation>> {
        self.tables.installations.get(client_key)
    }

    /// All installations, in no order.
    pub fn installations(&self) -> Vec<Arc<Installation>> {
        self.tables.installations.all()
    }

    /// One link.
    pub fn link(&self, id: LinkId) -> Option<Arc<Link>> {
        self.tables.links.get(&id)
    }

    /// All links, in no order.
    pub fn links(&self) -> Vec<Arc<Link>> {
        self.tables.links.all()
    }

    /// The links of one installation, in no order.
    pub fn links_of(&self, client_key: &ClientKey) -> Vec<Arc<Link>> {
        self.tables
            .link_ids_of(client_key)
            .into_iter()
            .filter_map(|id| self.tables.links.get(&id))
            .filter(|link| link.client_key == *client_key)
            .collect()
    }

    /// Our signing keys, active and retired.
    pub fn signing_keys(&self) -> Vec<Arc<SigningKeyRecord>> {
        self.tables.signing_keys.all()
    }

    /// Atlassian's public keys as last seen.
    pub fn install_keys(&self) -> Vec<Arc<InstallKeyRecord>> {
        self.tables.install_keys.all()
    }

    /// All writes that wait for Jira, in no order.
    pub fn spooled(&self) -> Vec<Arc<SpooledWrite>> {
        self.tables.spooled.all()
    }

    /// Whether a write waits for Jira.
    fn is_spooled(&self, id: SpoolId) -> bool {
        self.tables.spooled.get(&id).is_some()
    }

    /// Keeps a write and its body. Durable on return.
    ///
    /// # Errors
    /// It may or may not be there after a restart; its body is, so that it can be sent then.
    pub async fn spool(&self, write: SpooledWrite, body: Bytes) -> Result<(), StoreError> {
        let id = write.id;
        let kept = self
            .with_bodies(move |bodies| bodies.write(id, &body))
            .await?;
        kept.map_err(|error| StoreError::NotDurable(error.to_string()))?;
        self.change(move |transaction| transaction.put_spooled(write))
            .await
    }

    /// Forgets writes that need not wait any more. Durable on return.
    pub async fn unspool(
        &self,
        ids: Vec<SpoolId>,
        audit: Option<AuditEntry>,
    ) -> Result<(), StoreError> {
        let removed = ids.clone();
        self.change(move |transaction| {
            for id in ids {
                transaction.remove_spooled(id);
            }
            if let Some(entry) = audit {
                transaction.audit(entry);
            }
        })
        .await?;
        self.with_bodies(move |bodies| bodies.remove(&removed))
            .await
    }

    /// Changes what is noted about a link that is there; nobody is woken for it.
    pub async fn note_link(
        &self,
        id: LinkId,
        change: impl FnOnce(&mut Link) + Send + 'static,
    ) -> Result<(), StoreError> {
        self.change(move |transaction| {
            if let Some(link) = transaction.link(id) {
                let mut link = Link::clone(&link);
                change(&mut link);
                transaction.note_link(link);
            }
        })
        .await
    }

    /// The body of a write that waits.
    pub async fn spooled_body(&self, id: SpoolId) -> Result<Bytes, BodyError> {
        self.with_bodies(move |bodies| bodies.read(id))
            .await
            .unwrap_or_else(|error| Err(BodyError::Io(std::io::Error::other(error))))
    }

    async fn with_bodies<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Bodies) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let bodies = Arc::clone(&self.bodies);
        tokio::task::spawn_blocking(move || work(&bodies))
            .await
            .map_err(|_| StoreError::Closed)
    }

    /// A transaction that never says no.
    async fn change(
        &self,
        change: impl FnOnce(&mut Transaction<'_>) + Send + 'static,
    ) -> Result<(), StoreError> {
        let change = move |transaction: &mut Transaction<'_>| {
            change(transaction);
            Ok::<(), std::convert::Infallible>(())
        };
        self.transact(change).await.map_err(|error| match error {
            TransactError::Store(error) => error,
            TransactError::Refused(never) => match never {},
        })
    }

    /// Changes its value whenever a link changed. Subscribe before looking, so that nothing is missed.
    pub fn link_changes(&self) -> watch::Receiver<u64> {
        self.link_changes.subscribe()
    }

    /// Runs `change` after all earlier transactions and returns its result once it is durable. A change that
    /// returns an error changes nothing. It runs on the committer thread: no waiting, no I/O in it.
    pub async fn transact<T, E>(
        &self,
        change: impl FnOnce(&mut Transaction<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, TransactError<E>>
    where
        T: Send + 'static,
        E: Send + 'static,
    {
        let (reply, result) = oneshot::channel();
        let job = Job::transact(change, reply);
        let closed = |()| TransactError::Store(StoreError::Closed);
        self.jobs.send(job).await.map_err(|_| closed(()))?;
        result.await.map_err(|_| closed(()))?
    }

    /// Returns when the committer has ended, which it does by itself only in trouble.
    pub async fn ended(&self) {
        self.jobs.closed().await;
    }

    /// Proves that a change can be made durable now, by making one.
    pub async fn probe(&self, now: Timestamp) -> Result<(), StoreError> {
        self.change(move |transaction| transaction.mark_probe(now))
            .await
    }

    /// Adds to the audit trail what changed nothing else. Durable on return.
    pub async fn record(&self, entry: AuditEntry) -> Result<(), StoreError> {
        self.change(move |transaction| transaction.audit(entry))
            .await
    }

    /// Begins a backup of what is there now.
    ///
    /// # Errors
    /// The store is closed or can't be read.
    pub async fn backup(&self, now: Timestamp) -> Result<Backup, BackupError> {
        let (reply, snapshot) = oneshot::channel();
        let job = Job::Snapshot { reply };
        self.jobs.send(job).await.map_err(|_| StoreError::Closed)?;
        let snapshot = snapshot.await.map_err(|_| StoreError::Closed)??;
        // All of the file is to open with one key, whatever becomes of the store's meanwhile.
        Backup::new(self.clone(), self.sealer.frozen(), snapshot, now)
    }

    /// Entries of the audit trail, newest first: all, or those with numbers below `before`.
    pub async fn audit(
        &self,
        before: Option<u64>,
        most: usize,
    ) -> Result<Vec<ChainedEntry>, StoreError> {
        let (reply, result) = oneshot::channel();
        let job = Job::ReadAudit {
            before,
            most,
            reply,
        };
        self.jobs.send(job).await.map_err(|_| StoreError::Closed)?;
        result.await.map_err(|_| StoreError::Closed)?
    }
}

impl From<StoreError> for Reject {
    fn from(error: StoreError) -> Self {
        if let StoreError::Unreadable(_) = error {
            return Self::internal(error);
        }
        Self {
            internal: Some(error.to_string()),
            ..Self::new(
                RejectKind::Unavailable,
                "store_unavailable",
                "nothing was saved: the relay can't write to its store right now",
                "try again; if it stays so, the operator should look at the disk and the log",
            )
        }
    }
}

impl<E: Into<Self>> From<TransactError<E>> for Reject {
    fn from(error: TransactError<E>) -> Self {
        match error {
            TransactError::Store(error) => error.into(),
            TransactError::Refused(error) => error.into(),
        }
    }
}

impl OpenError {
    fn from_engine(config: &StoreConfig, error: EngineError) -> Self {
        let store = config.path.clone();
        let cause = error.to_string();
        match error {
            EngineError::Locked => Self::Locked(store),
            EngineError::Io(_) | EngineError::Sled(::sled::Error::Io(_)) => {
                Self::Io { store, cause }
            }
            EngineError::Sled(_) | EngineError::Panicked(_) | EngineError::Behind { .. } => {
                Self::Damaged { store, cause }
            }
        }
    }
}

/// Reads the store key, or makes one if there is no store either.
fn store_key(config: &StoreConfig) -> Result<Zeroizing<[u8; Sealer::KEY_BYTES]>, OpenError> {
    if let Some(key) = read_key(&config.key_file)? {
        if !Engine::exists(&config.path) && !restore::is_unfinished(&config.path) {
            let store = std::path::absolute(&config.path).unwrap_or_else(|_| config.path.clone());
            tracing::warn!(
                store = %store.display(),
                "there is a store key but no store: starting empty. If there was one, stop now, and look at store.path, the working directory and what should be mounted"
            );
        }
        return Ok(key);
    }
    if Engine::exists(&config.path) {
        return Err(OpenError::KeyMissing {
            store: config.path.clone(),
            key_file: config.key_file.clone(),
        });
    }
    let mut key = Zeroizing::new([0_u8; Sealer::KEY_BYTES]);
    SystemRandom::new()
        .fill(&mut *key)
        .map_err(|_| OpenError::NoRandomness)?;
    secret_file::create(&config.key_file, &*key).map_err(KeyFileError::from)?;
    Ok(key)
}

/// Reads a store key; `None` if there is no such file.
///
/// # Errors
/// It can't be read, or is none.
pub fn read_key(path: &Path) -> Result<Option<Zeroizing<[u8; Sealer::KEY_BYTES]>>, KeyFileError> {
    let Some(content) = secret_file::read(path)? else {
        return Ok(None);
    };
    let mut key = Zeroizing::new([0_u8; Sealer::KEY_BYTES]);
    if content.len() != key.len() {
        return Err(KeyFileError::Malformed {
            path: path.to_owned(),
            length: content.len(),
        });
    }
    key.copy_from_slice(&content);
    Ok(Some(key))
}

#[cfg(test)]
mod tests;
