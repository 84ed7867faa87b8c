//! What tells the ids of one link from those of all others in Jira.

use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

use super::secret::NoRandomness;

/// What a link's ids are prefixed with in Jira: `[a-z0-9]`, unique in the store, never used again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Namespace(String);

impl Namespace {
    const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";

    /// Eight random characters, without the look-alikes `l`, `o`, `0`, `1`. The store sees to it that
    /// none comes twice.
    pub fn generate() -> Result<Self, NoRandomness> {
        let mut bytes = [0_u8; 8];
        SystemRandom::new()
            .fill(&mut bytes)
            .map_err(|_| NoRandomness)?;
        let slug = bytes
            .iter()
            .filter_map(|b| Self::ALPHABET.get(usize::from(b % 32)))
            .map(|&b| char::from(b))
            .collect();
        Ok(Self(slug))
    }

    /// Takes a slug back from the store.
    pub fn parse(slug: &str) -> Option<Self> {
        let ours = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        (!slug.is_empty() && slug.bytes().all(ours)).then(|| Self(slug.to_owned()))
    }

    /// Whether an id looks like one in some link's namespace. None of GitLab's own does: they are numbers.
    pub fn is_in_one(id: &str) -> bool {
        let slug = id.split_once('-').map(|(slug, _)| slug.as_bytes());
        slug.is_some_and(|slug| slug.len() == 8 && slug.iter().all(|b| Self::ALPHABET.contains(b)))
    }

    /// The slug, without the `-` that follows it in ids.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
