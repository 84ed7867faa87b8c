//! The records in memory, and how each kind is named on disk.

use std::{collections::HashMap, fmt::Display, hash::Hash, sync::Arc};

use dashmap::DashMap;
use serde::{Serialize, de::DeserializeOwned};

use crate::domain::{
    ClientKey, InstallKeyRecord, Installation, KeyId, Link, LinkId, SigningKeyRecord, SpoolId,
    SpooledWrite,
};

/// A kind of record. Its id on disk is `<PREFIX><key>`, also the associated data it is sealed with.
pub(super) trait Record: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// What it is found by.
    type Key: Eq + Hash + Clone + Display + Send + Sync;
    /// One letter and a slash.
    const PREFIX: &'static str;

    fn key(&self) -> Self::Key;
    fn table(tables: &Tables) -> &Table<Self>;
    fn changes(changes: &mut Changes) -> &mut ChangesOf<Self>;
}

/// All tables: what readers see.
#[derive(Default)]
pub(super) struct Tables {
    pub(super) installations: Table<Installation>,
    pub(super) links: Table<Link>,
    pub(super) signing_keys: Table<SigningKeyRecord>,
    pub(super) install_keys: Table<InstallKeyRecord>,
    pub(super) spooled: Table<SpooledWrite>,
    links_by_client_key: DashMap<ClientKey, Vec<LinkId>>,
}

/// Records of one kind, shared with readers. No guard ever leaves this file.
pub(super) struct Table<R: Record>(DashMap<R::Key, Arc<R>>);

/// New values (or `None` for removal) on top of the tables.
#[derive(Default)]
pub(super) struct Changes {
    pub(super) installations: ChangesOf<Installation>,
    pub(super) links: ChangesOf<Link>,
    pub(super) signing_keys: ChangesOf<SigningKeyRecord>,
    pub(super) install_keys: ChangesOf<InstallKeyRecord>,
    pub(super) spooled: ChangesOf<SpooledWrite>,
}

/// New values of one kind.
pub(super) struct ChangesOf<R: Record>(pub(super) HashMap<R::Key, Option<Arc<R>>>);

impl<R: Record> Table<R> {
    pub(super) fn get(&self, key: &R::Key) -> Option<Arc<R>> {
        self.0.get(key).map(|record| Arc::clone(&record))
    }

    pub(super) fn all(&self) -> Vec<Arc<R>> {
        self.0.iter().map(|record| Arc::clone(&record)).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

impl<R: Record> ChangesOf<R> {
    /// Takes over the changes of one transaction.
    pub(super) fn absorb(&mut self, later: Self) {
        self.0.extend(later.0);
    }

    fn forget_others(&mut self, table: &Table<R>) {
        for record in table.all() {
            self.0.entry(record.key()).or_insert(None);
        }
    }

    fn publish(self, table: &Table<R>) {
        for (key, record) in self.0 {
            match record {
                Some(record) => {
                    table.0.insert(key, record);
                }
                None => {
                    table.0.remove(&key);
                }
            }
        }
    }
}

impl Changes {
    pub(super) fn is_empty(&self) -> bool {
        self.installations.0.is_empty()
            && self.links.0.is_empty()
            && self.signing_keys.0.is_empty()
            && self.install_keys.0.is_empty()
            && self.spooled.0.is_empty()
    }

    /// Takes over the changes of one transaction.
    pub(super) fn absorb(&mut self, later: Self) {
        self.installations.absorb(later.installations);
        self.links.absorb(later.links);
        self.signing_keys.absorb(later.signing_keys);
        self.install_keys.absorb(later.install_keys);
        self.spooled.absorb(later.spooled);
    }
}

impl Tables {
    /// Shows changes to readers.
    pub(super) fn publish(&self, changes: Changes) {
        for (id, link) in &changes.links.0 {
            let key = link.as_ref().map(|link| &link.client_key);
            let before = self.links.get(id).map(|link| link.client_key.clone());
            // Most changes leave a link where it is.
            if before.as_ref() == key {
                continue;
            }
            if let Some(key) = key {
                let mut ids = self.links_by_client_key.entry(key.clone()).or_default();
                ids.push(*id);
            }
            if let Some(before) = before {
                self.links_by_client_key.alter(&before, |_, mut ids| {
                    ids.retain(|known| known != id);
                    ids
                });
                self.links_by_client_key
                    .remove_if(&before, |_, ids| ids.is_empty());
            }
        }
        changes.installations.publish(&self.installations);
        changes.links.publish(&self.links);
        changes.signing_keys.publish(&self.signing_keys);
        changes.install_keys.publish(&self.install_keys);
        changes.spooled.publish(&self.spooled);
    }

    pub(super) fn link_ids_of(&self, client_key: &ClientKey) -> Vec<LinkId> {
        self.links_by_client_key
            .get(client_key)
            .map(|ids| ids.clone())
            .unwrap_or_default()
    }

    /// Shows what was read from disk, and nothing else any more.
    pub(super) fn replace(&self, mut all: Changes) {
        all.installations.forget_others(&self.installations);
        all.links.forget_others(&self.links);
        all.signing_keys.forget_others(&self.signing_keys);
        all.install_keys.forget_others(&self.install_keys);
        all.spooled.forget_others(&self.spooled);
        self.publish(all);
    }
}

impl<R: Record> Default for Table<R> {
    fn default() -> Self {
        Self(DashMap::new())
    }
}

impl<R: Record> Default for ChangesOf<R> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl Record for Installation {
    type Key = ClientKey;
    const PREFIX: &'static str = "i/";

    fn key(&self) -> ClientKey {
        self.client_key.clone()
    }

    fn table(tables: &Tables) -> &Table<Self> {
        &tables.installations
    }

    fn changes(changes: &mut Changes) -> &mut ChangesOf<Self> {
        &mut changes.installations
    }
}

impl Record for Link {
    type Key = LinkId;
    const PREFIX: &'static str = "l/";

    fn key(&self) -> LinkId {
        self.id
    }

    fn table(tables: &Tables) -> &Table<Self> {
        &tables.links
    }

    fn changes(changes: &mut Changes) -> &mut ChangesOf<Self> {
        &mut changes.links
    }
}

impl Record for SigningKeyRecord {
    type Key = KeyId;
    const PREFIX: &'static str = "k/";

    fn key(&self) -> KeyId {
        self.kid.clone()
    }

    fn table(tables: &Tables) -> &Table<Self> {
        &tables.signing_keys
    }

    fn changes(changes: &mut Changes) -> &mut ChangesOf<Self> {
        &mut changes.signing_keys
    }
}

impl Record for InstallKeyRecord {
    type Key = KeyId;
    const PREFIX: &'static str = "p/";

    fn key(&self) -> KeyId {
        self.kid.clone()
    }

    fn table(tables: &Tables) -> &Table<Self> {
        &tables.install_keys
    }

    fn changes(changes: &mut Changes) -> &mut ChangesOf<Self> {
        &mut changes.install_keys
    }
}

impl Record for SpooledWrite {
    type Key = SpoolId;
    const PREFIX: &'static str = "s/";

    fn key(&self) -> SpoolId {
        self.id
    }

    fn table(tables: &Tables) -> &Table<Self> {
        &tables.spooled
    }

    fn changes(changes: &mut Changes) -> &mut ChangesOf<Self> {
        &mut changes.spooled
    }
}
