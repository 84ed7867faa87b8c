//! Records on disk: what they are called, how they are sealed, how a store is read when it is opened.

use std::{
    collections::{HashMap, HashSet},
    ops::Bound,
    sync::Arc,
};

use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::{
    OpenError, SCHEMA, SealError, Sealer,
    migrate::migrate,
    sled::{Change, Engine, EngineError, Lock, caught},
    tables::{Changes, Record, Tables},
    transaction::Written,
};
use crate::{
    config::StoreConfig,
    domain::{
        AuditHead, ChainedEntry, InstallKeyRecord, Installation, Link, Namespace, SigningKeyRecord,
        SpooledWrite,
    },
};

pub(super) const SCHEMA_KEY: &[u8] = b"m/schema";
pub(super) const KEY_CHECK: &str = "m/key-check";
const PROBE: &str = "m/probe";
pub(super) const AUDIT: &str = "a/";
pub(super) const NAMESPACE: &str = "n/";

/// An open engine and what only the committer keeps of its content.
pub(super) struct Opened {
    pub(super) engine: Engine,
    pub(super) namespaces: HashSet<Namespace>,
    /// Where the audit trail ends.
    pub(super) audit_head: Option<AuditHead>,
}

/// Opens the engine, checks that schema and key are ours, and fills the tables.
pub(super) fn open(
    config: &StoreConfig,
    lock: Lock,
    sealer: &Sealer,
    tables: &Tables,
) -> Result<Opened, OpenError> {
    caught(|| read(config, lock, sealer, tables))
        .unwrap_or_else(|error| Err(OpenError::from_engine(config, error)))
}

fn read(
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
    let mut engine = Engine::open(&config.path, lock).map_err(engine_error)?;
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
            migrate(&mut engine, sealer, found).map_err(damaged)?;
        }
        _ => return Err(damaged("its schema or its key check is missing".to_owned())),
    }
    let mut changes = Changes::default();
    load::<Installation>(&engine, sealer, &mut changes).map_err(damaged)?;
    load::<Link>(&engine, sealer, &mut changes).map_err(damaged)?;
    load::<SigningKeyRecord>(&engine, sealer, &mut changes).map_err(damaged)?;
    load::<InstallKeyRecord>(&engine, sealer, &mut changes).map_err(damaged)?;
    load::<SpooledWrite>(&engine, sealer, &mut changes).map_err(damaged)?;
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
    let audit_head = audit_head(&mut engine, sealer, config).map_err(damaged)?;
    Ok(Opened {
        engine,
        namespaces,
        audit_head,
    })
}

/// Where the audit trail goes on. Entries beyond the limit, which may have been lowered, are dropped.
fn audit_head(
    engine: &mut Engine,
    sealer: &Sealer,
    config: &StoreConfig,
) -> Result<Option<AuditHead>, String> {
    let text = |error: EngineError| error.to_string();
    let Some(last) = engine.scan(AUDIT.as_bytes()).next_back() else {
        return Ok(None);
    };
    let (key, value) = last.map_err(text)?;
    let last: ChainedEntry = unseal(sealer, &String::from_utf8_lossy(&key), &value)?;
    let head = last.head();
    let kept_from = (head.number + 1).saturating_sub(config.audit_entries_max as u64);
    let mut surplus = Vec::new();
    for pair in engine.range(audit_before(&audit_id(kept_from))) {
        surplus.push((pair.map_err(text)?.0.to_vec(), None));
    }
    if !surplus.is_empty() {
        engine.commit(surplus).map_err(text)?;
    }
    Ok(Some(head))
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

/// What a batch looks like on disk. Audit entries beyond the limit make room.
pub(super) fn seal_batch(
    sealer: &Sealer,
    batch: &Written,
    audit: &[ChainedEntry],
    audit_entries_max: usize,
) -> Result<Vec<Change>, SealError> {
    let mut sealed = Vec::new();
    let Changes {
        installations,
        links,
        signing_keys,
        install_keys,
        spooled,
    } = &batch.changes;
    seal_table(sealer, &installations.0, &mut sealed)?;
    seal_table(sealer, &links.0, &mut sealed)?;
    seal_table(sealer, &signing_keys.0, &mut sealed)?;
    seal_table(sealer, &install_keys.0, &mut sealed)?;
    seal_table(sealer, &spooled.0, &mut sealed)?;
    for namespace in &batch.namespaces {
        let id = format!("{NAMESPACE}{}", namespace.as_str());
        sealed.push((id.into_bytes(), Some(Vec::new())));
    }
    for entry in audit {
        sealed.push(seal_one(sealer, audit_id(entry.number), entry)?);
        if let Some(old) = entry.number.checked_sub(audit_entries_max as u64) {
            sealed.push((audit_id(old).into_bytes(), None));
        }
    }
    if let Some(at) = batch.probe {
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

pub(super) fn seal_one(
    sealer: &Sealer,
    id: String,
    record: &impl serde::Serialize,
) -> Result<Change, SealError> {
    let plain = Zeroizing::new(serde_json::to_vec(record).map_err(|_| SealError::Seal)?);
    let sealed = sealer.seal(&id, &plain)?;
    Ok((id.into_bytes(), Some(sealed)))
}

pub(super) fn unseal<T: DeserializeOwned>(
    sealer: &Sealer,
    id: &str,
    sealed: &[u8],
) -> Result<T, String> {
    let plain = sealer
        .open(id, sealed)
        .map_err(|error| format!("{id}: {error}"))?;
    serde_json::from_slice(&plain).map_err(|_| format!("{id}: its content makes no sense"))
}

/// The audit entries with lower numbers.
pub(super) fn audit_before(id: &str) -> (Bound<&[u8]>, Bound<&[u8]>) {
    (
        Bound::Included(AUDIT.as_bytes()),
        Bound::Excluded(id.as_bytes()),
    )
}

/// Fixed width, so that the order of keys is the order of entries.
pub(super) fn audit_id(number: u64) -> String {
    format!("{AUDIT}{number:016x}")
}
