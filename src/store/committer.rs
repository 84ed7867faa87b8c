//! The one thread that writes: runs transactions in order, seals, commits a batch at a time, then shows and
//! answers.

use std::{
    collections::{HashMap, HashSet},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot, watch};
use zeroize::Zeroizing;

use super::{
    OpenError, SCHEMA, SealError, Sealer, StoreError, TransactError,
    sled::{Change, Engine, EngineError, Lock},
    tables::{Changes, Record, Tables},
};
use crate::{
    config::StoreConfig,
    domain::{
        AuditEntry, ClientKey, InstallKeyRecord, Installation, KeyId, Link, LinkId, Namespace,
        SigningKeyRecord, secret::NoRandomness,
    },
    metrics::Metrics,
    reject::{Reject, RejectKind},
};

const SCHEMA_KEY: &[u8] = b"m/schema";
const KEY_CHECK: &str = "m/key-check";
const PROBE: &str = "m/probe";
const AUDIT: &str = "a/";
const NAMESPACE: &str = "n/";

/// Transactions that share one sync at the most.
const BATCH_MAX: usize = 512;

/// More of Atlassian's keys than they will have in use; the oldest make room.
const INSTALL_KEYS_MAX: usize = 100;

/// After a failed commit the folder is opened again at most this often.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);

/// Work for the committer.
pub(super) enum Job {
    /// Runs; the returned closure is called with the fate of the batch.
    Transact(Work),
    /// Newest entries first.
    ReadAudit {
        most: usize,
        reply: oneshot::Sender<Result<Vec<AuditEntry>, StoreError>>,
    },
    /// The last job.
    Close,
}

/// A transaction that waits for its turn.
pub(super) struct Work(Box<dyn FnOnce(&mut Transaction<'_>) -> Finish + Send>);

/// What a transaction left: whether it wants its changes kept, and how to tell its caller.
pub(super) struct Finish {
    keep: bool,
    tell: Box<dyn FnOnce(Result<(), StoreError>) + Send>,
}

/// A consistent view of all records with changes on top; see [`super::Store::transact`].
pub struct Transaction<'a> {
    config: &'a StoreConfig,
    tables: &'a Tables,
    earlier: &'a mut Changes,
    own: Changes,
    namespaces: &'a HashSet<Namespace>,
    earlier_namespaces: &'a [Namespace],
    own_namespaces: Vec<Namespace>,
    audit: Vec<AuditEntry>,
    probe: Option<Timestamp>,
}

/// A table is at the size that the operator set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store already holds {max} {what}")]
pub struct StoreFull {
    /// Which table.
    pub what: &'static str,
    /// Its limit.
    pub max: usize,
}

pub(super) struct Committer {
    pub(super) config: StoreConfig,
    pub(super) sealer: Arc<Sealer>,
    pub(super) tables: Arc<Tables>,
    pub(super) engine: Option<Opened>,
    pub(super) link_changes: watch::Sender<u64>,
    pub(super) metrics: Arc<Metrics>,
}

/// An open engine and what only the committer keeps of its content.
pub(super) struct Opened {
    engine: Engine,
    namespaces: HashSet<Namespace>,
    /// Number of the next audit entry.
    audit_next: u64,
}

impl Job {
    pub(super) fn transact<T, E>(
        change: impl FnOnce(&mut Transaction<'_>) -> Result<T, E> + Send + 'static,
        reply: oneshot::Sender<Result<T, TransactError<E>>>,
    ) -> Self
    where
        T: Send + 'static,
        E: Send + 'static,
    {
        Self::Transact(Work(Box::new(move |transaction| {
            let result = change(transaction);
            Finish {
                keep: result.is_ok(),
                // A caller that went away does not need its answer; the change stands.
                tell: Box::new(move |fate| {
                    let answer = match fate {
                        Ok(()) => result.map_err(TransactError::Refused),
                        Err(error) => Err(TransactError::Store(error)),
                    };
                    let _ = reply.send(answer);
                }),
            }
        })))
    }
}

impl Transaction<'_> {
    /// One installation.
    pub fn installation(&mut self, client_key: &ClientKey) -> Option<Arc<Installation>> {
        self.get(client_key)
    }

    /// Adds or replaces an installation.
    pub fn put_installation(&mut self, installation: Installation) -> Result<(), StoreFull> {
        let count = self.count::<Installation>();
        let new = self.get::<Installation>(&installation.client_key).is_none();
        if new && count >= self.config.installations_max {
            return Err(StoreFull {
                what: "installations",
                max: self.config.installations_max,
            });
        }
        self.put(installation);
        Ok(())
    }

    /// Forgets an installation. Its links must be gone.
    pub fn remove_installation(&mut self, client_key: &ClientKey) {
        self.remove::<Installation>(client_key);
    }

    /// One link.
    pub fn link(&mut self, id: LinkId) -> Option<Arc<Link>> {
        self.get(&id)
    }

    /// All links of an installation.
    pub fn links_of(&mut self, client_key: &ClientKey) -> Vec<Arc<Link>> {
        let mut ids: HashSet<LinkId> = self.tables.link_ids_of(client_key).into_iter().collect();
        for changes in [&self.earlier.links, &self.own.links] {
            let theirs = changes.0.values().flatten();
            ids.extend(
                theirs
                    .filter(|link| link.client_key == *client_key)
                    .map(|link| link.id),
            );
        }
        ids.iter().filter_map(|id| self.get(id)).collect()
    }

    /// Adds or replaces a link.
    pub fn put_link(&mut self, link: Link) -> Result<(), StoreFull> {
        let count = self.count::<Link>();
        let new = self.get::<Link>(&link.id).is_none();
        if new && count >= self.config.links_max {
            return Err(StoreFull {
                what: "links",
                max: self.config.links_max,
            });
        }
        self.put(link);
        Ok(())
    }

    /// Forgets a link.
    pub fn remove_link(&mut self, id: LinkId) {
        self.remove::<Link>(&id);
    }

    /// A namespace that no link ever had or will have.
    pub fn claim_namespace(&mut self) -> Result<Namespace, NoRandomness> {
        loop {
            let namespace = Namespace::generate()?;
            let taken = self.namespaces.contains(&namespace)
                || self.earlier_namespaces.contains(&namespace)
                || self.own_namespaces.contains(&namespace);
            if !taken {
                self.own_namespaces.push(namespace.clone());
                return Ok(namespace);
            }
        }
    }

    /// All signing keys.
    pub fn signing_keys(&mut self) -> Vec<Arc<SigningKeyRecord>> {
        self.all()
    }

    /// Adds or replaces a signing key.
    pub fn put_signing_key(&mut self, key: SigningKeyRecord) {
        self.put(key);
    }

    /// Forgets a signing key.
    pub fn remove_signing_key(&mut self, kid: &KeyId) {
        self.remove::<SigningKeyRecord>(kid);
    }

    /// Remembers one of Atlassian's keys; the one fetched longest ago makes room.
    pub fn put_install_key(&mut self, key: InstallKeyRecord) {
        self.put(key);
        let mut all: Vec<Arc<InstallKeyRecord>> = self.all();
        if all.len() > INSTALL_KEYS_MAX {
            all.sort_by_key(|key| key.fetched_at);
            if let Some(oldest) = all.first() {
                self.remove::<InstallKeyRecord>(&oldest.kid.clone());
            }
        }
    }

    /// Forgets one of Atlassian's keys.
    pub fn remove_install_key(&mut self, kid: &KeyId) {
        self.remove::<InstallKeyRecord>(kid);
    }

    /// Adds to the audit trail.
    pub fn audit(&mut self, entry: AuditEntry) {
        self.audit.push(entry);
    }

    pub(super) fn mark_probe(&mut self, now: Timestamp) {
        self.probe = Some(now);
    }

    fn get<R: Record>(&mut self, key: &R::Key) -> Option<Arc<R>> {
        if let Some(change) = R::changes(&mut self.own).0.get(key) {
            return change.clone();
        }
        if let Some(change) = R::changes(self.earlier).0.get(key) {
            return change.clone();
        }
        R::table(self.tables).get(key)
    }

    fn put<R: Record>(&mut self, record: R) {
        R::changes(&mut self.own)
            .0
            .insert(record.key(), Some(Arc::new(record)));
    }

    fn remove<R: Record>(&mut self, key: &R::Key) {
        R::changes(&mut self.own).0.insert(key.clone(), None);
    }

    /// For small tables only.
    fn all<R: Record>(&mut self) -> Vec<Arc<R>> {
        let mut keys: HashSet<R::Key> = R::table(self.tables)
            .all()
            .iter()
            .map(|record| record.key())
            .collect();
        keys.extend(R::changes(self.earlier).0.keys().cloned());
        keys.extend(R::changes(&mut self.own).0.keys().cloned());
        keys.iter().filter_map(|key| self.get(key)).collect()
    }

    fn count<R: Record>(&mut self) -> usize {
        let table = R::table(self.tables);
        let mut news: HashMap<R::Key, bool> = HashMap::new();
        for changes in [R::changes(self.earlier), R::changes(&mut self.own)] {
            news.extend(changes.0.iter().map(|(key, r)| (key.clone(), r.is_some())));
        }
        let (mut added, mut removed) = (0, 0);
        for (key, there) in news {
            match (there, table.get(&key).is_some()) {
                (true, false) => added += 1,
                (false, true) => removed += 1,
                _ => {}
            }
        }
        table.len() + added - removed
    }

    fn is_empty(&self) -> bool {
        self.own.installations.0.is_empty()
            && self.own.links.0.is_empty()
            && self.own.signing_keys.0.is_empty()
            && self.own.install_keys.0.is_empty()
            && self.own_namespaces.is_empty()
            && self.audit.is_empty()
            && self.probe.is_none()
    }
}

impl From<StoreFull> for Reject {
    fn from(full: StoreFull) -> Self {
        Self::new(
            RejectKind::Unavailable,
            "store_full",
            full.to_string(),
            "the operator can raise store.installations_max and store.links_max",
        )
    }
}

impl Committer {
    pub(super) fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut batch = Vec::new();
        let mut closing = false;
        while !closing && jobs.blocking_recv_many(&mut batch, BATCH_MAX) > 0 {
            let mut transactions = Vec::with_capacity(batch.len());
            for job in batch.drain(..) {
                match job {
                    Job::Transact(work) => transactions.push(work),
                    Job::ReadAudit { most, reply } => {
                        let _ = reply.send(self.read_audit(most));
                    }
                    Job::Close => closing = true,
                }
            }
            if !transactions.is_empty() {
                self.commit(transactions);
            }
        }
    }

    fn commit(&mut self, transactions: Vec<Work>) {
        self.reopen_if_needed();
        let Some(opened) = &self.engine else {
            // Dropping the transactions tells their callers that the store is closed.
            return;
        };
        let mut changes = Changes::default();
        let mut namespaces = Vec::new();
        let mut audit = Vec::new();
        let mut probe = None;
        let mut finishes = Vec::with_capacity(transactions.len());
        let mut written = 0_usize;
        for Work(work) in transactions {
            let mut transaction = Transaction {
                config: &self.config,
                tables: &self.tables,
                earlier: &mut changes,
                own: Changes::default(),
                namespaces: &opened.namespaces,
                earlier_namespaces: &namespaces,
                own_namespaces: Vec::new(),
                audit: Vec::new(),
                probe: None,
            };
            let Ok(finish) = catch_unwind(AssertUnwindSafe(|| work(&mut transaction))) else {
                tracing::error!("a transaction panicked; it changed nothing");
                continue;
            };
            if finish.keep && !transaction.is_empty() {
                written += 1;
                let Transaction {
                    own,
                    own_namespaces,
                    audit: own_audit,
                    probe: own_probe,
                    ..
                } = transaction;
                changes.absorb(own);
                namespaces.extend(own_namespaces);
                audit.extend(own_audit);
                probe = own_probe.or(probe);
            }
            finishes.push(finish);
        }
        let fate = if written == 0 {
            Ok(())
        } else {
            self.write(changes, namespaces, &audit, probe, written)
        };
        for finish in finishes {
            (finish.tell)(fate.clone());
        }
    }

    fn write(
        &mut self,
        changes: Changes,
        namespaces: Vec<Namespace>,
        audit: &[AuditEntry],
        probe: Option<Timestamp>,
        transactions: usize,
    ) -> Result<(), StoreError> {
        let Some(opened) = &mut self.engine else {
            return Err(StoreError::Closed);
        };
        let timer = self.metrics.store_flush.start_timer();
        let sealed = seal_changes(&self.sealer, &changes, audit, opened.audit_next, probe);
        let mut sealed = match sealed {
            Ok(sealed) => sealed,
            Err(error) => return Err(StoreError::NotDurable(error.to_string())),
        };
        for namespace in &namespaces {
            let key = format!("{NAMESPACE}{}", namespace.as_str());
            sealed.push((key.into_bytes(), Some(Vec::new())));
        }
        let audit_next = opened.audit_next + audit.len() as u64;
        for number in opened.audit_next..audit_next {
            if let Some(old) = number.checked_sub(self.config.audit_entries_max as u64) {
                sealed.push((audit_key(old).into_bytes(), None));
            }
        }
        match opened.engine.commit(sealed) {
            Ok(()) => {
                opened.namespaces.extend(namespaces);
                opened.audit_next = audit_next;
                timer.observe_duration();
                self.metrics.store_batch.observe(transactions as f64);
                self.metrics.store_writable.set(1);
                let links_changed = !changes.links.0.is_empty();
                self.tables.publish(changes);
                if links_changed {
                    self.link_changes.send_modify(|count| *count += 1);
                }
                Ok(())
            }
            Err(error) => {
                timer.stop_and_discard();
                self.metrics.store_writable.set(0);
                tracing::error!(
                    store = %self.config.path.display(),
                    "a batch of {transactions} changes could not be made durable, nobody was told it was: {error}"
                );
                // The engine refuses everything after a failed write, and what it still holds in memory is
                // not what is on disk: look at the disk again before the next batch.
                self.engine = None;
                Err(StoreError::NotDurable(error.to_string()))
            }
        }
    }

    /// Opens the engine again if the last commit failed. Readers keep the last state that was durable until
    /// then.
    fn reopen_if_needed(&mut self) {
        if self.engine.is_none() {
            std::thread::park_timeout(REOPEN_PAUSE);
            match self.open_again() {
                Ok(opened) => {
                    tracing::info!(store = %self.config.path.display(), "the store is open again");
                    self.engine = Some(opened);
                    self.link_changes.send_modify(|count| *count += 1);
                }
                Err(error) => tracing::error!("the store can't be opened again: {error}"),
            }
        }
    }

    fn open_again(&self) -> Result<Opened, OpenError> {
        let error = |error: EngineError| OpenError::from_engine(&self.config, error);
        let lock = Engine::lock(&self.config.path).map_err(error)?;
        open(&self.config, lock, &self.sealer, &self.tables)
    }

    fn read_audit(&mut self, most: usize) -> Result<Vec<AuditEntry>, StoreError> {
        self.reopen_if_needed();
        let opened = self.engine.as_ref().ok_or(StoreError::Closed)?;
        let unreadable = |cause: String| StoreError::NotDurable(cause);
        opened
            .engine
            .scan(AUDIT.as_bytes())
            .rev()
            .take(most)
            .map(|pair| {
                let (key, value) = pair.map_err(|error| unreadable(error.to_string()))?;
                let id = String::from_utf8_lossy(&key).into_owned();
                unseal(&self.sealer, &id, &value).map_err(unreadable)
            })
            .collect()
    }
}

/// Opens the engine, checks that schema and key are ours, and fills the tables.
pub(super) fn open(
    config: &StoreConfig,
    lock: Lock,
    sealer: &Sealer,
    tables: &Tables,
) -> Result<Opened, OpenError> {
    let engine_error = |error| OpenError::from_engine(config, error);
    let damaged = |cause: String| OpenError::Damaged {
        store: config.path.clone(),
        cause,
    };
    let engine = Engine::open(&config.path, lock).map_err(engine_error)?;
    let schema = engine.get(SCHEMA_KEY).map_err(engine_error)?;
    let check = engine.get(KEY_CHECK.as_bytes()).map_err(engine_error)?;
    match (schema, check) {
        (None, None) => {
            if let Some(first) = engine.scan(b"").next() {
                first.map_err(engine_error)?;
                return Err(damaged("it has records but no schema".to_owned()));
            }
            let check = sealer
                .seal(KEY_CHECK, b"ok")
                .map_err(|error| damaged(error.to_string()))?;
            let schema = SCHEMA.to_string().into_bytes();
            engine
                .commit(vec![
                    (SCHEMA_KEY.to_vec(), Some(schema)),
                    (KEY_CHECK.as_bytes().to_vec(), Some(check)),
                ])
                .map_err(engine_error)?;
        }
        (Some(schema), Some(check)) => {
            let found = std::str::from_utf8(&schema)
                .ok()
                .and_then(|text| text.parse::<u32>().ok())
                .ok_or_else(|| damaged("its schema number is unreadable".to_owned()))?;
            if found > SCHEMA {
                return Err(OpenError::NewerSchema {
                    store: config.path.clone(),
                    found,
                });
            }
            if sealer.open(KEY_CHECK, &check).is_err() {
                return Err(OpenError::WrongKey {
                    store: config.path.clone(),
                    key_file: config.key_file.clone(),
                });
            }
        }
        _ => return Err(damaged("its schema or its key check is missing".to_owned())),
    }
    let mut changes = Changes::default();
    load::<Installation>(&engine, sealer, &mut changes).map_err(damaged)?;
    load::<Link>(&engine, sealer, &mut changes).map_err(damaged)?;
    load::<SigningKeyRecord>(&engine, sealer, &mut changes).map_err(damaged)?;
    load::<InstallKeyRecord>(&engine, sealer, &mut changes).map_err(damaged)?;
    tables.replace(changes);
    let mut namespaces = HashSet::new();
    for pair in engine.scan(NAMESPACE.as_bytes()) {
        let (key, _) = pair.map_err(engine_error)?;
        let namespace = key
            .get(NAMESPACE.len()..)
            .and_then(|slug| std::str::from_utf8(slug).ok())
            .and_then(Namespace::parse)
            .ok_or_else(|| damaged("a namespace is unreadable".to_owned()))?;
        namespaces.insert(namespace);
    }
    let audit_next = next_audit_number(&engine, config).map_err(damaged)?;
    Ok(Opened {
        engine,
        namespaces,
        audit_next,
    })
}

/// Where the audit trail goes on. Entries beyond the limit, which may have been lowered, are dropped.
fn next_audit_number(engine: &Engine, config: &StoreConfig) -> Result<u64, String> {
    let number = |key: &[u8]| {
        key.get(AUDIT.len()..)
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u64::from_str_radix(hex, 16).ok())
            .ok_or_else(|| "the audit trail is unreadable".to_owned())
    };
    let text = |error: EngineError| error.to_string();
    let next = match engine.scan(AUDIT.as_bytes()).next_back() {
        None => return Ok(0),
        Some(pair) => number(&pair.map_err(text)?.0)? + 1,
    };
    let mut surplus = Vec::new();
    for pair in engine.scan(AUDIT.as_bytes()) {
        let (key, _) = pair.map_err(text)?;
        if number(&key)?.saturating_add(config.audit_entries_max as u64) >= next {
            break;
        }
        surplus.push((key.to_vec(), None));
    }
    if !surplus.is_empty() {
        engine.commit(surplus).map_err(text)?;
    }
    Ok(next)
}

fn load<R: Record>(engine: &Engine, sealer: &Sealer, changes: &mut Changes) -> Result<(), String> {
    for pair in engine.scan(R::PREFIX.as_bytes()) {
        let (key, value) = pair.map_err(|error| error.to_string())?;
        let id = std::str::from_utf8(&key).map_err(|_| "a record has no readable id".to_owned())?;
        let record: R = unseal(sealer, id, &value)?;
        R::changes(changes)
            .0
            .insert(record.key(), Some(Arc::new(record)));
    }
    Ok(())
}

fn seal_changes(
    sealer: &Sealer,
    changes: &Changes,
    audit: &[AuditEntry],
    audit_next: u64,
    probe: Option<Timestamp>,
) -> Result<Vec<Change>, SealError> {
    let mut sealed = Vec::new();
    seal_table(sealer, &changes.installations.0, &mut sealed)?;
    seal_table(sealer, &changes.links.0, &mut sealed)?;
    seal_table(sealer, &changes.signing_keys.0, &mut sealed)?;
    seal_table(sealer, &changes.install_keys.0, &mut sealed)?;
    for (number, entry) in (audit_next..).zip(audit) {
        sealed.push(seal_one(sealer, audit_key(number), entry)?);
    }
    if let Some(at) = probe {
        sealed.push(seal_one(sealer, PROBE.to_owned(), &at)?);
    }
    Ok(sealed)
}

fn seal_table<R: Record>(
    sealer: &Sealer,
    changes: &HashMap<R::Key, Option<Arc<R>>>,
    sealed: &mut Vec<Change>,
) -> Result<(), SealError> {
    for (key, record) in changes {
        let id = format!("{}{key}", R::PREFIX);
        sealed.push(match record {
            Some(record) => seal_one(sealer, id, record.as_ref())?,
            None => (id.into_bytes(), None),
        });
    }
    Ok(())
}

fn seal_one(
    sealer: &Sealer,
    id: String,
    record: &impl serde::Serialize,
) -> Result<Change, SealError> {
    let plain = Zeroizing::new(serde_json::to_vec(record).map_err(|_| SealError::Seal)?);
    let sealed = sealer.seal(&id, &plain)?;
    Ok((id.into_bytes(), Some(sealed)))
}

fn unseal<T: DeserializeOwned>(sealer: &Sealer, id: &str, sealed: &[u8]) -> Result<T, String> {
    let plain = sealer
        .open(id, sealed)
        .map_err(|error| format!("{id}: {error}"))?;
    serde_json::from_slice(&plain).map_err(|_| format!("{id}: its content makes no sense"))
}

/// Fixed width, so that the order of keys is the order of entries.
fn audit_key(number: u64) -> String {
    format!("{AUDIT}{number:016x}")
}
