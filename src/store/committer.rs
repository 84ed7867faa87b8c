//! The one thread that writes: runs transactions in order, seals, commits a batch at a time, then shows and
//! answers.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use tokio::sync::{mpsc, oneshot, watch};

use super::{
    OpenError, Sealer, StoreError, TransactError,
    backup::Snapshot,
    records::{Opened, audit_before, audit_id, open, seal_batch, unseal},
    reseal::{self, ResealedPage},
    sled::{Change, Engine, EngineError, caught},
    tables::Tables,
    transaction::{Transaction, Written},
};
use crate::{
    config::StoreConfig,
    domain::{AuditEntry, AuditHead, ChainedEntry, ClientKey},
    metrics::Metrics,
};

/// Transactions that share one sync at the most.
const BATCH_MAX: usize = 512;

/// After a failed commit the folder is opened again at most this often.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);

/// Work for the committer.
pub(super) enum Job {
    /// Runs; the returned closure is called with the fate of the batch.
    Transact(Work),
    /// Newest entries first.
    ReadAudit {
        /// Only those with lower numbers.
        before: Option<u64>,
        most: usize,
        reply: oneshot::Sender<Result<Vec<ChainedEntry>, StoreError>>,
    },
    /// Everything that is there now.
    Snapshot {
        reply: oneshot::Sender<Result<Snapshot, StoreError>>,
    },
    /// Seals the next records behind this key anew.
    Reseal {
        behind: Vec<u8>,
        reply: oneshot::Sender<Result<ResealedPage, StoreError>>,
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

pub(super) struct Committer {
    pub(super) config: StoreConfig,
    pub(super) sealer: Arc<Sealer>,
    pub(super) tables: Arc<Tables>,
    pub(super) engine: Option<Opened>,
    pub(super) link_changes: watch::Sender<u64>,
    pub(super) metrics: Arc<Metrics>,
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

impl Committer {
    pub(super) fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut batch = Vec::new();
        let mut closing = false;
        while !closing && jobs.blocking_recv_many(&mut batch, BATCH_MAX) > 0 {
            let mut transactions = Vec::with_capacity(batch.len());
            for job in batch.drain(..) {
                match job {
                    Job::Transact(work) => transactions.push(work),
                    Job::ReadAudit {
                        before,
                        most,
                        reply,
                    } => {
                        let _ = reply.send(self.read_audit(before, most));
                    }
                    Job::Snapshot { reply } => {
                        let _ = reply.send(self.snapshot());
                    }
                    Job::Reseal { behind, reply } => {
                        let _ = reply.send(self.reseal(&behind));
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
        let mut batch = Written::default();
        let mut finishes = Vec::with_capacity(transactions.len());
        let mut written = 0_usize;
        for Work(work) in transactions {
            let mut transaction = Transaction {
                config: &self.config,
                tables: &self.tables,
                namespaces: &opened.namespaces,
                earlier: &mut batch,
                own: Written::default(),
            };
            let Ok(finish) = catch_unwind(AssertUnwindSafe(|| work(&mut transaction))) else {
                tracing::error!("a transaction panicked; it changed nothing");
                continue;
            };
            let own = transaction.own;
            if finish.keep && !own.is_empty() {
                written += 1;
                batch.absorb(own);
            }
            finishes.push(finish);
        }
        let fate = if written == 0 {
            Ok(())
        } else {
            self.write(batch, written)
        };
        for finish in finishes {
            (finish.tell)(fate.clone());
        }
    }

    fn write(&mut self, mut batch: Written, transactions: usize) -> Result<(), StoreError> {
        let Some(opened) = &self.engine else {
            return Err(StoreError::Closed);
        };
        let entries_max = self.config.audit_entries_max;
        let audit = chain(opened.audit_head.clone(), batch.audit.drain(..));
        let sealed = seal_batch(&self.sealer, &batch, &audit, entries_max)
            .map_err(|error| StoreError::NotDurable(error.to_string()))?;
        self.make_durable(sealed, &format!("a batch of {transactions} changes"))?;
        self.metrics.store_batch.observe(transactions as f64);
        let Some(opened) = &mut self.engine else {
            return Err(StoreError::Closed);
        };
        if let Some(last) = audit.last() {
            opened.audit_head = Some(last.head());
        }
        audit.iter().for_each(tell);
        opened.namespaces.extend(batch.namespaces);
        let links_changed = batch.links_changed;
        self.tables.publish(batch.changes);
        if links_changed {
            self.link_changes.send_modify(|count| *count += 1);
        }
        Ok(())
    }

    fn make_durable(&mut self, changes: Vec<Change>, what: &str) -> Result<(), StoreError> {
        let Some(opened) = &mut self.engine else {
            return Err(StoreError::Closed);
        };
        let timer = self.metrics.store_flush.start_timer();
        if let Err(error) = opened.engine.commit(changes) {
            timer.stop_and_discard();
            self.metrics.store_writable.set(0);
            tracing::error!(
                store = %self.config.path.display(),
                "{what} could not be made durable, nobody was told it was: {error}"
            );
            // The engine refuses everything after a failed write, and what it still holds in memory is not what
            // is on disk: look at the disk again before the next batch.
            let broken = self.engine.take();
            // Letting go of it can fail as well.
            if let Err(error) = caught(|| drop(broken)) {
                tracing::error!("the store's engine could not be closed: {error}");
            }
            return Err(StoreError::NotDurable(error.to_string()));
        }
        timer.observe_duration();
        self.metrics.store_writable.set(1);
        Ok(())
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

    /// What readers see is what is on the disk, and nobody else changes it.
    fn snapshot(&mut self) -> Result<Snapshot, StoreError> {
        self.reopen_if_needed();
        let opened = self.engine.as_ref().ok_or(StoreError::Closed)?;
        Ok(Snapshot {
            installations: self.tables.installations.all(),
            links: self.tables.links.all(),
            signing_keys: self.tables.signing_keys.all(),
            install_keys: self.tables.install_keys.all(),
            spooled: self.tables.spooled.all(),
            namespaces: opened.namespaces.iter().cloned().collect(),
            audit_head: opened.audit_head.clone(),
        })
    }

    fn reseal(&mut self, behind: &[u8]) -> Result<ResealedPage, StoreError> {
        self.reopen_if_needed();
        let opened = self.engine.as_ref().ok_or(StoreError::Closed)?;
        let (page, changes) = caught(|| reseal::page(&opened.engine, &self.sealer, behind))
            .unwrap_or_else(|error| Err(error.to_string()))
            .map_err(StoreError::Unreadable)?;
        if !changes.is_empty() {
            self.make_durable(changes, "a page of records under the new key")?;
        }
        Ok(page)
    }

    fn read_audit(
        &mut self,
        before: Option<u64>,
        most: usize,
    ) -> Result<Vec<ChainedEntry>, StoreError> {
        self.reopen_if_needed();
        let opened = self.engine.as_ref().ok_or(StoreError::Closed)?;
        let end = audit_id(before.unwrap_or(u64::MAX));
        let read = || {
            let pairs = opened.engine.range(audit_before(&end)).rev().take(most);
            pairs
                .map(|pair| {
                    let (key, value) = pair.map_err(|error| error.to_string())?;
                    unseal(&self.sealer, &String::from_utf8_lossy(&key), &value)
                })
                .collect::<Result<_, String>>()
        };
        caught(read)
            .unwrap_or_else(|error| Err(error.to_string()))
            .map_err(StoreError::Unreadable)
    }
}

fn chain(
    mut head: Option<AuditHead>,
    entries: impl Iterator<Item = AuditEntry>,
) -> Vec<ChainedEntry> {
    let chained = entries.map(|entry| {
        let chained = ChainedEntry::after(head.as_ref(), entry);
        head = Some(chained.head());
        chained
    });
    chained.collect()
}

/// The log usually leaves the machine: with the hash in it, nobody who holds the store can rewrite the trail unseen.
fn tell(chained: &ChainedEntry) {
    tracing::info!(
        number = chained.number,
        hash = chained.hash,
        action = chained.entry.action,
        client.key = chained.entry.client_key.as_ref().map(ClientKey::as_str),
        link.id = chained.entry.link_id.map(tracing::field::display),
        request_id = chained.entry.request_id,
        "audit trail"
    );
}
