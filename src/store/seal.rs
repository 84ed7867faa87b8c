//! Sealing: what lies on disk can be read and changed only by who holds the store key.

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
pub struct Sealer {
    prk: Prk,
    random: SystemRandom,
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
        Self {
            prk: Salt::new(HKDF_SHA256, b"jira-connect-proxy store").extract(key),
            random: SystemRandom::new(),
        }
    }

    /// Form byte, nonce, ciphertext with tag.
    pub fn seal(&self, id: &str, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0_u8; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(|_| SealError::Seal)?;
        let mut sealed = Vec::with_capacity(1 + NONCE_LEN + plain.len() + AES_256_GCM.tag_len());
        sealed.push(FORM);
        sealed.extend_from_slice(&nonce);
        let mut text = Zeroizing::new(plain.to_vec());
        let tag = self
            .key(id)?
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
        let Some((&FORM, rest)) = sealed.split_first() else {
            return Err(SealError::Open);
        };
        let (nonce, text) = rest.split_at_checked(NONCE_LEN).ok_or(SealError::Open)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealError::Open)?;
        let mut text = Zeroizing::new(text.to_vec());
        let plain_bytes = self
            .key(id)?
            .open_in_place(nonce, Aad::from(id), text.as_mut_slice())
            .map_err(|_| SealError::Open)?
            .len();
        text.truncate(plain_bytes);
        Ok(text)
    }

    fn key(&self, id: &str) -> Result<LessSafeKey, SealError> {
        self.prk
            .expand(&[id.as_bytes()], &AES_256_GCM)
            .map(|okm| LessSafeKey::new(UnboundKey::from(okm)))
            .map_err(|_| SealError::Seal)
    }
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
    fn the_same_text_never_looks_the_same() {
        let sealer = Sealer::new(&[7; 32]);
        assert_ne!(sealer.seal("a", b"x"), sealer.seal("a", b"x"));
    }
}
