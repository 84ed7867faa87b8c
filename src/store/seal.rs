//! Sealing: what lies on disk can be read and changed only by who holds the store key.

use arc_swap::ArcSwap;
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf::{HKDF_SHA256, Prk, Salt},
    rand::{SecureRandom, SystemRandom},
};
use zeroize::Zeroizing;

/// First byte of everything sealed; another form would get another number.
const FORM: u8 = 1;

/// Seals and opens records.
///
/// Each record id has its own AES-256-GCM key (HKDF-SHA256 of the store key), so random 96-bit nonces stay
/// safe however long a store lives, and a record moved under another id does not open.
///
/// While a store gets a new key, what the old one sealed opens as well.
pub struct Sealer {
    keys: ArcSwap<Keys>,
    random: SystemRandom,
}

#[derive(Clone)]
struct Keys {
    current: Prk,
    previous: Option<Prk>,
}

/// A record could not be sealed or opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The operating system gave no random bytes, or the record is absurdly large.
    #[error("a record could not be sealed")]
    Seal,
    /// Changed, cut, moved, or sealed under another key.
    #[error("a record does not open: it was changed, or sealed with another key")]
    Open,
}

impl Sealer {
    /// Length of the store key.
    pub const KEY_BYTES: usize = 32;

    /// Seals under this key.
    pub fn new(key: &[u8; Self::KEY_BYTES]) -> Self {
        let keys = Keys {
            current: extract(key),
            previous: None,
        };
        Self {
            keys: ArcSwap::from_pointee(keys),
            random: SystemRandom::new(),
        }
    }

    /// Seals under another key from now on, and opens what either sealed.
    pub fn change_key(&self, key: &[u8; Self::KEY_BYTES]) {
        let current = extract(key);
        self.keys.rcu(|keys| Keys {
            current: current.clone(),
            previous: Some(keys.current.clone()),
        });
    }

    /// One that keeps sealing under what is the current key now.
    pub fn frozen(&self) -> Self {
        let keys = Keys {
            current: self.keys.load().current.clone(),
            previous: None,
        };
        Self {
            keys: ArcSwap::from_pointee(keys),
            random: SystemRandom::new(),
        }
    }

    /// The key before the current one opens nothing any more.
    pub fn forget_previous_key(&self) {
        self.keys.rcu(|keys| Keys {
            previous: None,
            ..Keys::clone(keys)
        });
    }

    /// Form byte, nonce, ciphertext with tag.
    pub fn seal(&self, id: &str, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0_u8; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(|_| SealError::Seal)?;
        let mut sealed = Vec::with_capacity(1 + NONCE_LEN + plain.len() + AES_256_GCM.tag_len());
        sealed.push(FORM);
        sealed.extend_from_slice(&nonce);
        let mut text = Zeroizing::new(plain.to_vec());
        let tag = record_key(&self.keys.load().current, id)
            .ok_or(SealError::Seal)?
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(id),
                text.as_mut_slice(),
            )
            .map_err(|_| SealError::Seal)?;
        sealed.extend_from_slice(&text);
        sealed.extend_from_slice(tag.as_ref());
        Ok(sealed)
    }

    /// The plain text of what [`Sealer::seal`] made for the same id.
    pub fn open(&self, id: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let keys = self.keys.load();
        let previous = || open(keys.previous.as_ref()?, id, sealed);
        open(&keys.current, id, sealed)
            .or_else(previous)
            .ok_or(SealError::Open)
    }

    /// Whether the current key opens it.
    pub fn is_current(&self, id: &str, sealed: &[u8]) -> bool {
        open(&self.keys.load().current, id, sealed).is_some()
    }
}

fn extract(key: &[u8; Sealer::KEY_BYTES]) -> Prk {
    Salt::new(HKDF_SHA256, b"jira-connect-proxy store").extract(key)
}

fn record_key(prk: &Prk, id: &str) -> Option<LessSafeKey> {
    let info = [id.as_bytes()];
    let okm = prk.expand(&info, &AES_256_GCM).ok()?;
    Some(LessSafeKey::new(UnboundKey::from(okm)))
}

fn open(prk: &Prk, id: &str, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (&FORM, rest) = sealed.split_first()? else {
        return None;
    };
    let (nonce, text) = rest.split_at_checked(NONCE_LEN)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let mut text = Zeroizing::new(text.to_vec());
    let key = record_key(prk, id)?;
    let plain = key.open_in_place(nonce, Aad::from(id), text.as_mut_slice());
    let plain_bytes = plain.ok()?.len();
    text.truncate(plain_bytes);
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_only_whole_and_in_its_place() {
        let sealer = Sealer::new(&[7; 32]);
        let sealed = sealer.seal("link/1", b"secret").expect("seal");
        assert_eq!(
            sealer.open("link/1", &sealed).expect("open").as_slice(),
            b"secret"
        );
        assert_eq!(sealer.open("link/2", &sealed), Err(SealError::Open));
        assert_eq!(
            Sealer::new(&[8; 32]).open("link/1", &sealed),
            Err(SealError::Open)
        );
        for cut in 0..sealed.len() {
            let part = sealed.get(..cut).expect("in range");
            assert_eq!(sealer.open("link/1", part), Err(SealError::Open));
            let mut flipped = sealed.clone();
            flipped[cut] ^= 1;
            assert_eq!(sealer.open("link/1", &flipped), Err(SealError::Open));
        }
    }

    #[test]
    fn a_new_key_takes_over_from_the_old_one() {
        let sealer = Sealer::new(&[7; 32]);
        let old = sealer.seal("a", b"x").expect("seal");
        sealer.change_key(&[8; 32]);
        let new = sealer.seal("a", b"y").expect("seal");
        assert_eq!(sealer.open("a", &old).expect("open").as_slice(), b"x");
        assert_eq!(sealer.open("a", &new).expect("open").as_slice(), b"y");
        assert!(sealer.is_current("a", &new) && !sealer.is_current("a", &old));
        sealer.forget_previous_key();
        assert_eq!(sealer.open("a", &old), Err(SealError::Open));
        assert_eq!(
            Sealer::new(&[8; 32])
                .open("a", &new)
                .expect("open")
                .as_slice(),
            b"y"
        );
    }

    #[test]
    fn the_same_text_never_looks_the_same() {
        let sealer = Sealer::new(&[7; 32]);
        assert_ne!(sealer.seal("a", b"x"), sealer.seal("a", b"x"));
    }
}
