//! Brings what an older relay stored to the form of today, one schema at a time.
//!
//! A step may be cut anywhere: it writes in batches, does no harm when it is run again, and its schema's number comes
//! last. Each has a store of the older schema in the tests, as that relay left it after a kill -9.

use jiff::Timestamp;
use serde::Deserialize;

use super::{
    SCHEMA, Sealer,
    records::{AUDIT, SCHEMA_KEY, seal_one, unseal},
    sled::{Engine, EngineError},
    tables::Record as _,
};
use crate::domain::{
    AuditEntry, AuditHead, ChainedEntry, ClientKey, Installation, InstallationState, JiraBaseUrl,
    Upstream, installation::Imported, upstream::Connect,
};

const BATCH: usize = 1000;

pub(super) fn migrate(engine: &mut Engine, sealer: &Sealer, from: u32) -> Result<(), String> {
    for schema in from..SCHEMA {
        match schema {
            1 => chain_audit_trail(engine, sealer)?,
            2 => name_upstreams(engine, sealer)?,
            unknown => return Err(format!("nothing is known of schema {unknown}")),
        }
        let next = schema + 1;
        engine
            .commit(vec![(
                SCHEMA_KEY.to_vec(),
                Some(next.to_string().into_bytes()),
            )])
            .map_err(text)?;
        tracing::info!("the store was brought from schema {schema} to {next}");
    }
    Ok(())
}

/// Schema 1 knew entries without hashes. The oldest that is left begins the chain, whatever its number.
fn chain_audit_trail(engine: &mut Engine, sealer: &Sealer) -> Result<(), String> {
    let mut head: Option<AuditHead> = None;
    for keys in keys_below(engine, AUDIT)?.chunks(BATCH) {
        let mut changes = Vec::with_capacity(keys.len());
        for key in keys {
            let id = String::from_utf8_lossy(key).into_owned();
            let value = engine.get(key).map_err(text)?.unwrap_or_default();
            let entry: AuditEntry = unseal(sealer, &id, &value)?;
            let number = id.get(AUDIT.len()..).unwrap_or_default();
            let number = u64::from_str_radix(number, 16)
                .map_err(|_| "the audit trail is unreadable".to_owned())?;
            let before = head.or_else(|| {
                Some(AuditHead {
                    number: number.checked_sub(1)?,
                    hash: String::new(),
                })
            });
            let chained = ChainedEntry::after(before.as_ref(), entry);
            head = Some(chained.head());
            changes.push(seal_one(sealer, id, &chained).map_err(|error| error.to_string())?);
        }
        engine.commit(changes).map_err(text)?;
    }
    Ok(())
}

/// An installation of schema 2: there was only Connect.
#[derive(Deserialize)]
struct ConnectOnly {
    client_key: ClientKey,
    base_url: JiraBaseUrl,
    display_url: Option<String>,
    state: InstallationState,
    #[serde(flatten)]
    connect: Connect,
    installed_at: Timestamp,
    uninstalled_at: Option<Timestamp>,
    #[serde(default)]
    imported: Option<Imported>,
}

impl From<ConnectOnly> for Installation {
    fn from(old: ConnectOnly) -> Self {
        Self {
            client_key: old.client_key,
            base_url: old.base_url,
            display_url: old.display_url,
            state: old.state,
            installed_at: old.installed_at,
            uninstalled_at: old.uninstalled_at,
            imported: old.imported,
            upstream: Upstream::Connect(old.connect),
            standby: Vec::new(),
        }
    }
}

/// Schema 2 kept what a Connect app is told beside what is true of any site.
fn name_upstreams(engine: &mut Engine, sealer: &Sealer) -> Result<(), String> {
    for keys in keys_below(engine, Installation::PREFIX)?.chunks(BATCH) {
        let mut changes = Vec::with_capacity(keys.len());
        for key in keys {
            let id = String::from_utf8_lossy(key).into_owned();
            let value = engine.get(key).map_err(text)?.unwrap_or_default();
            // A step that was cut left some that are done.
            if unseal::<Installation>(sealer, &id, &value).is_ok() {
                continue;
            }
            let old: ConnectOnly = unseal(sealer, &id, &value)?;
            let new = Installation::from(old);
            changes.push(seal_one(sealer, id, &new).map_err(|error| error.to_string())?);
        }
        engine.commit(changes).map_err(text)?;
    }
    Ok(())
}

fn keys_below(engine: &Engine, prefix: &str) -> Result<Vec<Vec<u8>>, String> {
    let pairs = engine.scan(prefix.as_bytes());
    pairs
        .map(|pair| Ok(pair.map_err(text)?.0.to_vec()))
        .collect()
}

fn text(error: EngineError) -> String {
    error.to_string()
}
