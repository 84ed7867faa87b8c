//! Makes the file, part by part, from what the store held when it was begun.

use std::{io, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use jiff::Timestamp;
use ring::digest::{Context, SHA256};
use zeroize::Zeroizing;

use super::{
    super::{
        BodyError, SCHEMA, SealError, Sealer, Store,
        bodies::body_id,
        records::{NAMESPACE, audit_id},
        tables::Record,
    },
    BackupError, BackupHeader, Item, KEY_CHECK, MAGIC, PIECE_BYTES, PIECE_MAX_BYTES, VERSION,
    piece_id,
};
use crate::{
    digest::sha256_hex,
    domain::{
        AuditHead, InstallKeyRecord, Installation, Link, Namespace, SigningKeyRecord, SpooledWrite,
    },
};

/// Audit entries read at once.
const AUDIT_PAGE: usize = 1000;

/// Everything that was there at one moment.
pub(in crate::store) struct Snapshot {
    pub(in crate::store) installations: Vec<Arc<Installation>>,
    pub(in crate::store) links: Vec<Arc<Link>>,
    pub(in crate::store) signing_keys: Vec<Arc<SigningKeyRecord>>,
    pub(in crate::store) install_keys: Vec<Arc<InstallKeyRecord>>,
    pub(in crate::store) spooled: Vec<Arc<SpooledWrite>>,
    pub(in crate::store) namespaces: Vec<Namespace>,
    pub(in crate::store) audit_head: Option<AuditHead>,
}

/// A backup that is being made; each part of the file is made when it is asked for.
pub struct Backup {
    store: Store,
    small: Box<dyn Iterator<Item = Result<Item, serde_json::Error>> + Send>,
    spooled: std::vec::IntoIter<Arc<SpooledWrite>>,
    /// Audit entries below this number are still to come.
    audit_before: Option<u64>,
    pieces: Pieces,
    /// What comes before the first piece.
    head: Option<Bytes>,
    done: bool,
}

/// Cuts a stream of records into sealed pieces.
struct Pieces {
    sealer: Sealer,
    /// Of the header: names this one file.
    file: String,
    number: u64,
    plain: Zeroizing<Vec<u8>>,
    checksum: Context,
}

impl Backup {
    pub(in crate::store) fn new(
        store: Store,
        sealer: Sealer,
        snapshot: Snapshot,
        now: Timestamp,
    ) -> Result<Self, BackupError> {
        let Snapshot {
            installations,
            links,
            signing_keys,
            install_keys,
            spooled,
            namespaces,
            audit_head,
        } = snapshot;
        let records = installations.len()
            + links.len()
            + signing_keys.len()
            + install_keys.len()
            + 2 * spooled.len()
            + namespaces.len();
        let unsealable = |error: SealError| BackupError::Damaged(error.to_string());
        let key_check = sealer.seal(KEY_CHECK, b"ok").map_err(unsealable)?;
        let header = BackupHeader {
            version: VERSION,
            schema: SCHEMA,
            created_at: now,
            made_by: env!("CARGO_PKG_VERSION").to_owned(),
            records: records as u64,
            key_check: STANDARD.encode(key_check),
        };
        let header = serde_json::to_string(&header).map_err(io::Error::from)?;
        let head = format!("{MAGIC}\n{header}\n");
        let namespaces = namespaces.into_iter().map(|namespace| {
            Ok(Item {
                id: format!("{NAMESPACE}{}", namespace.as_str()),
                value: Zeroizing::default(),
            })
        });
        let small = items(installations)
            .chain(items(links))
            .chain(items(signing_keys))
            .chain(items(install_keys))
            .chain(namespaces);
        let mut pieces = Pieces::new(sealer, &head);
        pieces.checksum.update(head.as_bytes());
        Ok(Self {
            store,
            small: Box::new(small),
            spooled: spooled.into_iter(),
            audit_before: audit_head.map(|head| head.number + 1),
            pieces,
            head: Some(Bytes::from(head)),
            done: false,
        })
    }

    /// The next part of the file, until there is none.
    ///
    /// # Errors
    /// Something can't be read. What was made so far is no backup then.
    pub async fn next(&mut self) -> Result<Option<Bytes>, BackupError> {
        if let Some(head) = self.head.take() {
            return Ok(Some(head));
        }
        if self.done {
            return Ok(None);
        }
        while self.pieces.plain.len() < PIECE_BYTES {
            if !self.add_next().await? {
                self.done = true;
                return self.pieces.end().map(Some);
            }
        }
        self.pieces.cut().map(Some)
    }

    /// Whether there was something left to add.
    async fn add_next(&mut self) -> Result<bool, BackupError> {
        if let Some(item) = self.small.next() {
            self.pieces.add(&item.map_err(io::Error::from)?)?;
            return Ok(true);
        }
        if let Some(write) = self.spooled.next() {
            match self.store.spooled_body(write.id).await {
                Ok(body) => {
                    self.pieces.add(&Item {
                        id: body_id(write.id),
                        value: Zeroizing::new(body.to_vec()),
                    })?;
                    self.pieces.add(&item(&*write).map_err(io::Error::from)?)?;
                }
                Err(BodyError::Lost(cause)) if self.store.is_spooled(write.id) => {
                    return Err(BackupError::Damaged(format!(
                        "the body of the waiting write {} is lost ({cause}); its turn gives it up",
                        write.id
                    )));
                }
                // Jira took it since: then it need not wait in the restored store either.
                Err(BodyError::Lost(_)) => {}
                Err(BodyError::Io(error)) => return Err(error.into()),
            }
            return Ok(true);
        }
        let Some(before) = self.audit_before else {
            return Ok(false);
        };
        let page = self.store.audit(Some(before), AUDIT_PAGE).await?;
        self.audit_before = page.last().map(|oldest| oldest.number);
        for entry in &page {
            self.pieces.add(&Item {
                id: audit_id(entry.number),
                value: Zeroizing::new(serde_json::to_vec(entry).map_err(io::Error::from)?),
            })?;
        }
        Ok(!page.is_empty())
    }
}

fn items<R: Record>(
    records: Vec<Arc<R>>,
) -> impl Iterator<Item = Result<Item, serde_json::Error>> + Send {
    records.into_iter().map(|record| item(&*record))
}

fn item<R: Record>(record: &R) -> Result<Item, serde_json::Error> {
    Ok(Item {
        id: format!("{}{}", R::PREFIX, record.key()),
        value: Zeroizing::new(serde_json::to_vec(record)?),
    })
}

impl Pieces {
    fn new(sealer: Sealer, head: &str) -> Self {
        Self {
            sealer,
            file: sha256_hex(head.as_bytes()),
            number: 0,
            plain: Zeroizing::default(),
            checksum: Context::new(&SHA256),
        }
    }

    fn add(&mut self, item: &Item) -> Result<(), BackupError> {
        let too_long = |_| BackupError::Damaged(format!("{} is too long for a backup", item.id));
        let id_bytes = u16::try_from(item.id.len()).map_err(too_long)?;
        let value_bytes = u32::try_from(item.value.len()).map_err(too_long)?;
        self.plain.extend_from_slice(&id_bytes.to_be_bytes());
        self.plain.extend_from_slice(&value_bytes.to_be_bytes());
        self.plain.extend_from_slice(item.id.as_bytes());
        self.plain.extend_from_slice(&item.value);
        Ok(())
    }

    /// All whole pieces of what was added.
    fn cut(&mut self) -> Result<Bytes, BackupError> {
        let plain = std::mem::take(&mut self.plain);
        let mut out = Vec::with_capacity(plain.len() + PIECE_MAX_BYTES);
        let whole = plain.chunks_exact(PIECE_BYTES);
        self.plain.extend_from_slice(whole.remainder());
        for piece in whole {
            self.seal(piece, false, &mut out)?;
        }
        self.checksum.update(&out);
        Ok(out.into())
    }

    /// The last piece and the end.
    fn end(&mut self) -> Result<Bytes, BackupError> {
        let plain = std::mem::take(&mut self.plain);
        let mut out = Vec::with_capacity(plain.len() + PIECE_MAX_BYTES);
        self.seal(&plain, true, &mut out)?;
        out.extend_from_slice(&0_u32.to_be_bytes());
        self.checksum.update(&out);
        out.extend_from_slice(self.checksum.clone().finish().as_ref());
        Ok(out.into())
    }

    fn seal(&mut self, plain: &[u8], last: bool, out: &mut Vec<u8>) -> Result<(), BackupError> {
        let id = piece_id(&self.file, self.number, last);
        let sealed = self.sealer.seal(&id, plain);
        let sealed = sealed.map_err(|error| BackupError::Damaged(error.to_string()))?;
        self.number += 1;
        // A piece is small.
        out.extend_from_slice(&(sealed.len() as u32).to_be_bytes());
        out.extend_from_slice(&sealed);
        Ok(())
    }
}
