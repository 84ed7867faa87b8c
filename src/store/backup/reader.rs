//! Reads the file back: without a key its checksum, with it every record.

use std::{
    collections::{HashMap, HashSet},
    io::{self, Read},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::digest::{Context, SHA256};
use serde::{Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use super::{
    super::{
        SCHEMA, Sealer,
        bodies::body_id,
        records::{AUDIT, NAMESPACE},
        tables::Record,
    },
    BackupError, BackupHeader, Item, KEY_CHECK, MAGIC, PIECE_MAX_BYTES, VERSION, body_of, piece_id,
};
use crate::{
    digest::sha256_hex,
    domain::{
        ChainedEntry, ClientKey, InstallKeyRecord, Installation, Link, Namespace, SigningKeyRecord,
        SpooledWrite,
    },
};

const HEADER_MAX_BYTES: usize = 4096;

/// The file as it is, without a key: its header and its sealed pieces, up to its checksum.
pub struct BackupFile<R> {
    input: R,
    checksum: Context,
    /// What it says of itself. Proven only by opening a piece.
    pub header: BackupHeader,
    /// Names this one file.
    file: String,
    ended: bool,
}

impl<R: Read> BackupFile<R> {
    /// Reads the header.
    pub fn open(mut input: R) -> Result<Self, BackupError> {
        let mut checksum = Context::new(&SHA256);
        let magic = read_line(&mut input, MAGIC.len())?;
        if magic != MAGIC {
            return Err(BackupError::NotABackup);
        }
        let line = read_line(&mut input, HEADER_MAX_BYTES)?;
        let header: BackupHeader = serde_json::from_str(&line)
            .map_err(|error| BackupError::Damaged(format!("its header: {error}")))?;
        if header.version > VERSION || header.schema > SCHEMA {
            return Err(BackupError::Newer {
                made_by: header.made_by,
                version: header.version,
                schema: header.schema,
            });
        }
        let head = format!("{MAGIC}\n{line}\n");
        checksum.update(head.as_bytes());
        Ok(Self {
            input,
            checksum,
            header,
            file: sha256_hex(head.as_bytes()),
            ended: false,
        })
    }

    /// The next sealed piece. After the last one the checksum has been compared, and nothing follows it.
    fn piece(&mut self) -> Result<Option<Vec<u8>>, BackupError> {
        if self.ended {
            return Ok(None);
        }
        let mut length = [0; 4];
        read_exact(&mut self.input, &mut length)?;
        self.checksum.update(&length);
        let length = u32::from_be_bytes(length) as usize;
        if length > PIECE_MAX_BYTES {
            return Err(BackupError::Damaged("a piece is too large".to_owned()));
        }
        if length == 0 {
            let mut told = [0; 32];
            read_exact(&mut self.input, &mut told)?;
            if told != self.checksum.clone().finish().as_ref() {
                return Err(BackupError::Damaged("its checksum is wrong".to_owned()));
            }
            if self.input.read(&mut [0])? != 0 {
                return Err(BackupError::Damaged("something follows its end".to_owned()));
            }
            self.ended = true;
            return Ok(None);
        }
        let mut piece = vec![0; length];
        read_exact(&mut self.input, &mut piece)?;
        self.checksum.update(&piece);
        Ok(Some(piece))
    }

    /// Compares the checksum, which needs no key.
    pub fn check(mut self) -> Result<BackupHeader, BackupError> {
        while self.piece()?.is_some() {}
        Ok(self.header)
    }

    /// Opens it with the key that made it.
    pub fn unlock(self, key: &[u8; Sealer::KEY_BYTES]) -> Result<BackupReader<R>, BackupError> {
        let sealer = Sealer::new(key);
        let check = STANDARD.decode(&self.header.key_check).unwrap_or_default();
        if sealer.open(KEY_CHECK, &check).is_err() {
            return Err(BackupError::WrongKey);
        }
        Ok(BackupReader {
            file: self,
            sealer,
            number: 0,
            last: false,
            plain: Zeroizing::default(),
            read: 0,
        })
    }
}

/// The records in a backup.
pub struct BackupReader<R> {
    file: BackupFile<R>,
    sealer: Sealer,
    number: u64,
    /// The last piece was there.
    last: bool,
    plain: Zeroizing<Vec<u8>>,
    /// How much of `plain` was taken.
    read: usize,
}

/// What is in a backup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BackupContents {
    /// Jira sites.
    pub installations: u64,
    /// Links.
    pub links: u64,
    /// Our signing keys.
    pub signing_keys: u64,
    /// Atlassian's keys.
    pub install_keys: u64,
    /// Writes that wait for Jira.
    pub spooled_writes: u64,
    /// Entries of the audit trail.
    pub audit_entries: u64,
    /// Where the trail ends, as `audit verify` shows it.
    pub audit_head: Option<String>,
}

impl<R: Read> BackupReader<R> {
    /// What it says of itself.
    pub fn header(&self) -> &BackupHeader {
        &self.file.header
    }

    /// The next record. When there is none any more, the whole file was as it was written.
    pub(in crate::store) fn next(&mut self) -> Result<Option<Item>, BackupError> {
        let cut = || BackupError::Damaged("it ends within a record".to_owned());
        if !self.want(6)? {
            return if self.read == self.plain.len() {
                Ok(None)
            } else {
                Err(cut())
            };
        }
        let lengths = self.take(6);
        let (id_bytes, value_bytes) = match *lengths {
            [a, b, c, d, e, f] => (
                usize::from(u16::from_be_bytes([a, b])),
                u32::from_be_bytes([c, d, e, f]) as usize,
            ),
            _ => return Err(cut()),
        };
        if !self.want(id_bytes + value_bytes)? {
            return Err(cut());
        }
        let id = String::from_utf8(self.take(id_bytes).to_vec())
            .map_err(|_| BackupError::Damaged("a record has no readable id".to_owned()))?;
        let value = Zeroizing::new(self.take(value_bytes).to_vec());
        Ok(Some(Item { id, value }))
    }

    fn take(&mut self, bytes: usize) -> &[u8] {
        let from = self.read;
        self.read += bytes;
        self.plain.get(from..self.read).unwrap_or_default()
    }

    /// Opens pieces until so many bytes are there, or no piece is left.
    fn want(&mut self, bytes: usize) -> Result<bool, BackupError> {
        while self.plain.len() - self.read < bytes {
            let Some(sealed) = self.file.piece()? else {
                if !self.last {
                    return Err(BackupError::Damaged("its last piece is missing".to_owned()));
                }
                return Ok(false);
            };
            let id = |last| piece_id(&self.file.file, self.number, last);
            let plain = match self.sealer.open(&id(false), &sealed) {
                Ok(plain) => plain,
                Err(_) => {
                    self.last = true;
                    self.sealer.open(&id(true), &sealed).map_err(|_| {
                        BackupError::Damaged(format!("piece {} does not open", self.number))
                    })?
                }
            };
            self.number += 1;
            self.plain.drain(..self.read);
            self.read = 0;
            self.plain.extend_from_slice(&plain);
        }
        Ok(true)
    }

    /// Reads everything as a relay would, and looks whether it belongs together. Changes nothing anywhere.
    pub fn verify(mut self) -> Result<BackupContents, BackupError> {
        let mut contents = Inventory::default();
        while let Some(item) = self.next()? {
            contents.add(&item).map_err(BackupError::Damaged)?;
        }
        contents.finish().map_err(BackupError::Damaged)
    }
}

/// What was seen of a backup so far.
#[derive(Default)]
struct Inventory {
    contents: BackupContents,
    installations: HashSet<ClientKey>,
    sites_of_links: HashMap<String, ClientKey>,
    bodies: HashSet<String>,
    /// The audit entry after the next one: they come newest first.
    later: Option<ChainedEntry>,
}

impl Inventory {
    fn add(&mut self, item: &Item) -> Result<(), String> {
        let prefix = item.id.split_inclusive('/').next().unwrap_or_default();
        let contents = &mut self.contents;
        if prefix == Installation::PREFIX {
            contents.installations += 1;
            self.installations
                .insert(read::<Installation>(item)?.client_key);
        } else if prefix == Link::PREFIX {
            contents.links += 1;
            let link = read::<Link>(item)?;
            self.sites_of_links.insert(item.id.clone(), link.client_key);
        } else if prefix == SigningKeyRecord::PREFIX {
            contents.signing_keys += 1;
            read::<SigningKeyRecord>(item)?;
        } else if prefix == InstallKeyRecord::PREFIX {
            contents.install_keys += 1;
            read::<InstallKeyRecord>(item)?;
        } else if prefix == SpooledWrite::PREFIX {
            contents.spooled_writes += 1;
            let write = read::<SpooledWrite>(item)?;
            if !self.bodies.remove(&body_id(write.id)) {
                return Err(format!("{} has no body", item.id));
            }
        } else if prefix == AUDIT {
            contents.audit_entries += 1;
            let entry: ChainedEntry = parse(item)?;
            let follows = match &self.later {
                Some(later) => later.check(Some(&entry.head())),
                None => {
                    contents.audit_head = Some(entry.head().to_string());
                    Ok(())
                }
            };
            follows.map_err(|error| format!("its audit trail: {error}"))?;
            self.later = Some(entry);
        } else if prefix == NAMESPACE {
            let slug = item.id.strip_prefix(NAMESPACE).unwrap_or_default();
            Namespace::parse(slug).ok_or("a namespace is unreadable")?;
        } else if body_of(&item.id).is_some() {
            self.bodies.insert(item.id.clone());
        } else {
            return Err(format!("{} is no record that a relay keeps", item.id));
        }
        Ok(())
    }

    fn finish(self) -> Result<BackupContents, String> {
        for (link, site) in &self.sites_of_links {
            if !self.installations.contains(site) {
                return Err(format!("{link} is a link of a site that is not there"));
            }
        }
        if let Some(body) = self.bodies.iter().next() {
            return Err(format!("{body} belongs to no waiting write"));
        }
        Ok(self.contents)
    }
}

fn read<R: Record>(item: &Item) -> Result<R, String> {
    let record: R = parse(item)?;
    let id = format!("{}{}", R::PREFIX, record.key());
    if id == item.id {
        Ok(record)
    } else {
        Err(format!("{} holds another record", item.id))
    }
}

fn parse<T: DeserializeOwned>(item: &Item) -> Result<T, String> {
    serde_json::from_slice(&item.value)
        .map_err(|_| format!("{}: its content makes no sense", item.id))
}

fn read_line(input: &mut impl Read, max: usize) -> Result<String, BackupError> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        match input.read_exact(&mut byte) {
            Ok(()) if byte == [b'\n'] => break,
            Ok(()) if line.len() < max => line.extend_from_slice(&byte),
            Ok(()) => return Err(BackupError::NotABackup),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(BackupError::NotABackup);
            }
            Err(error) => return Err(error.into()),
        }
    }
    String::from_utf8(line).map_err(|_| BackupError::NotABackup)
}

fn read_exact(input: &mut impl Read, buffer: &mut [u8]) -> Result<(), BackupError> {
    input
        .read_exact(buffer)
        .map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => BackupError::Damaged("it is cut".to_owned()),
            _ => error.into(),
        })
}
