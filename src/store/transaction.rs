//! What a change sees and does: all records, with its own changes and those before it in the batch on top.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use jiff::Timestamp;

use super::tables::{Changes, Record, Tables};
use crate::{
    config::StoreConfig,
    domain::{
        AuditEntry, ClientKey, InstallKeyRecord, Installation, KeyId, Link, LinkId, Namespace,
        SigningKeyRecord, SpoolId, SpooledWrite, installation::Imported, secret::NoRandomness,
    },
    reject::{Reject, RejectKind},
};

/// More of Atlassian's keys than they will have in use; the oldest make room.
const INSTALL_KEYS_MAX: usize = 100;

/// A consistent view of all records with changes on top; see [`super::Store::transact`].
pub struct Transaction<'a> {
    pub(super) config: &'a StoreConfig,
    pub(super) tables: &'a Tables,
    /// Given out in the past and never again.
    pub(super) namespaces: &'a HashSet<Namespace>,
    /// By earlier transactions of the same batch.
    pub(super) earlier: &'a mut Written,
    pub(super) own: Written,
}

/// What transactions want written.
#[derive(Default)]
pub(super) struct Written {
    pub(super) changes: Changes,
    pub(super) namespaces: Vec<Namespace>,
    pub(super) audit: Vec<AuditEntry>,
    pub(super) probe: Option<Timestamp>,
    /// A link changed in a way that somebody waits for.
    pub(super) links_changed: bool,
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

impl Transaction<'_> {
    /// One installation.
    pub fn installation(&mut self, client_key: &ClientKey) -> Option<Arc<Installation>> {
        self.get(client_key)
    }

    /// All installations.
    pub fn installations(&mut self) -> Vec<Arc<Installation>> {
        self.all()
    }

    /// Adds or replaces an installation.
    pub fn put_installation(&mut self, installation: Installation) -> Result<(), StoreFull> {
        self.put_bounded(installation, "installations", self.config.installations_max)
    }

    /// It has a link that somebody wants, so it does not go with those that are leaving.
    pub fn keep_installation(&mut self, client_key: &ClientKey) {
        let Some(installation) = self.installation(client_key) else {
            return;
        };
        if let Some(imported) = installation.imported.filter(|imported| imported.leaving) {
            self.put(Installation {
                imported: Some(Imported {
                    leaving: false,
                    ..imported
                }),
                ..Installation::clone(&installation)
            });
        }
    }

    /// It is its import's again, as it was before somebody wanted one of its links, unless Jira has spoken meanwhile.
    pub fn restore_imported(&mut self, client_key: &ClientKey, before: Option<Imported>) {
        let known = self.installation(client_key);
        if let Some(installation) = known.filter(|known| known.imported.is_some()) {
            self.put(Installation {
                imported: before,
                ..Installation::clone(&installation)
            });
        }
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
        for changes in [&self.earlier.changes.links, &self.own.changes.links] {
            let theirs = changes.0.values().flatten();
            ids.extend(
                theirs
                    .filter(|link| link.client_key == *client_key)
                    .map(|link| link.id),
            );
        }
        let links = ids.iter().filter_map(|id| self.get(id));
        // One that has gone over to another installation is in the index yet.
        links
            .filter(|link: &Arc<Link>| link.client_key == *client_key)
            .collect()
    }

    /// Adds or replaces a link.
    pub fn put_link(&mut self, link: Link) -> Result<(), StoreFull> {
        self.own.links_changed = true;
        self.put_bounded(link, "links", self.config.links_max)
    }

    /// Replaces a link that is there by one with other notes about it (when it was seen, what failed): nobody need
    /// be woken for that.
    pub fn note_link(&mut self, link: Link) {
        self.put(link);
    }

    /// Replaces a link that is there, which needs no room.
    pub fn replace_link(&mut self, link: Link) {
        self.own.links_changed = true;
        self.put(link);
    }

    /// Replaces a link that is there, or forgets it if nothing is left to do for it, and with the last one the
    /// installation of an import that was rolled back.
    pub fn settle_link(&mut self, link: Link) {
        if link.is_finished() {
            self.remove_link(link.id);
            let installation = self.installation(&link.client_key);
            let leaving = installation
                .and_then(|installation| installation.imported)
                .is_some_and(|imported| imported.leaving);
            if leaving && self.links_of(&link.client_key).is_empty() {
                self.remove_installation(&link.client_key);
            }
        } else {
            self.replace_link(link);
        }
    }

    /// Forgets a link.
    pub fn remove_link(&mut self, id: LinkId) {
        self.own.links_changed = true;
        self.remove::<Link>(&id);
    }

    /// A namespace that no link ever had or will have.
    pub fn claim_namespace(&mut self) -> Result<Namespace, NoRandomness> {
        loop {
            let namespace = Namespace::generate()?;
            let taken = self.namespaces.contains(&namespace)
                || self.earlier.namespaces.contains(&namespace)
                || self.own.namespaces.contains(&namespace);
            if !taken {
                self.own.namespaces.push(namespace.clone());
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

    /// Adds a write that waits for Jira. Its body must be durable already.
    pub fn put_spooled(&mut self, write: SpooledWrite) {
        self.put(write);
    }

    /// Forgets a write that waited.
    pub fn remove_spooled(&mut self, id: SpoolId) {
        self.remove::<SpooledWrite>(&id);
    }

    /// Adds to the audit trail.
    pub fn audit(&mut self, entry: AuditEntry) {
        self.own.audit.push(entry);
    }

    pub(super) fn mark_probe(&mut self, now: Timestamp) {
        self.own.probe = Some(now);
    }

    fn get<R: Record>(&mut self, key: &R::Key) -> Option<Arc<R>> {
        if let Some(change) = R::changes(&mut self.own.changes).0.get(key) {
            return change.clone();
        }
        if let Some(change) = R::changes(&mut self.earlier.changes).0.get(key) {
            return change.clone();
        }
        R::table(self.tables).get(key)
    }

    fn put<R: Record>(&mut self, record: R) {
        R::changes(&mut self.own.changes)
            .0
            .insert(record.key(), Some(Arc::new(record)));
    }

    fn remove<R: Record>(&mut self, key: &R::Key) {
        R::changes(&mut self.own.changes)
            .0
            .insert(key.clone(), None);
    }

    /// For small tables, and what is done rarely.
    fn all<R: Record>(&mut self) -> Vec<Arc<R>> {
        let mut keys: HashSet<R::Key> = R::table(self.tables)
            .all()
            .iter()
            .map(|record| record.key())
            .collect();
        keys.extend(R::changes(&mut self.earlier.changes).0.keys().cloned());
        keys.extend(R::changes(&mut self.own.changes).0.keys().cloned());
        keys.iter().filter_map(|key| self.get(key)).collect()
    }

    fn put_bounded<R: Record>(
        &mut self,
        record: R,
        what: &'static str,
        max: usize,
    ) -> Result<(), StoreFull> {
        if self.get::<R>(&record.key()).is_none() && !self.has_room::<R>(max) {
            return Err(StoreFull { what, max });
        }
        self.put(record);
        Ok(())
    }

    /// Whether one more record fits. Counted exactly only near the limit.
    fn has_room<R: Record>(&mut self, max: usize) -> bool {
        let table = R::table(self.tables);
        let changes = R::changes(&mut self.earlier.changes).0.len()
            + R::changes(&mut self.own.changes).0.len();
        table.len() + changes < max || self.count::<R>() < max
    }

    fn count<R: Record>(&mut self) -> usize {
        let table = R::table(self.tables);
        let mut news: HashMap<R::Key, bool> = HashMap::new();
        for changes in [
            R::changes(&mut self.earlier.changes),
            R::changes(&mut self.own.changes),
        ] {
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
}

impl Written {
    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
            && self.namespaces.is_empty()
            && self.audit.is_empty()
            && self.probe.is_none()
    }

    /// Takes over what a later transaction wants.
    pub(super) fn absorb(&mut self, later: Self) {
        self.changes.absorb(later.changes);
        self.namespaces.extend(later.namespaces);
        self.audit.extend(later.audit);
        self.probe = later.probe.or(self.probe);
        self.links_changed |= later.links_changed;
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
