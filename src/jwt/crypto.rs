//! ring under jsonwebtoken: HS256 and RS256, nothing else.
//!
//! jsonwebtoken 11 asks the program for its cryptography and panics at first use without it, so
//! [`install`] runs before anything else in `main` and in tests. Any other algorithm, and a key of the wrong
//! family for an algorithm, is refused here too, below the verifiers that already fix the algorithm.

use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind, EncodingKey,
    crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils},
    errors::{Error, ErrorKind},
};
use ring::{
    hmac,
    rand::SystemRandom,
    rsa::KeyPair,
    signature::{
        RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
    },
};
use signature::{Signer, Verifier};

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory,
    verifier_factory,
    key_utils: KeyUtils::new_unimplemented(),
};

/// Makes ring the cryptography of jsonwebtoken and rustls in this process. Safe to call again.
pub fn install() {
    // An error only says that it was done before.
    let _ = PROVIDER.install_default();
    let _ = rustls::crypto::ring::default_provider().install_default();
}

struct HmacKey(hmac::Key);

struct RsaSigner(KeyPair);

/// PKCS #1 `RSAPublicKey` in DER, or modulus and exponent.
struct RsaVerifier(DecodingKeyKind);

fn signer_factory(algorithm: &Algorithm, key: &EncodingKey) -> Result<Box<dyn JwtSigner>, Error> {
    match (algorithm, key.family()) {
        (Algorithm::HS256, AlgorithmFamily::Hmac) => Ok(Box::new(HmacKey(hmac::Key::new(
            hmac::HMAC_SHA256,
            key.as_bytes(),
        )))),
        (Algorithm::RS256, AlgorithmFamily::Rsa) => KeyPair::from_pkcs8(key.as_bytes())
            .or_else(|_| KeyPair::from_der(key.as_bytes()))
            .map(|pair| Box::new(RsaSigner(pair)) as Box<dyn JwtSigner>)
            .map_err(|rejected| ErrorKind::InvalidRsaKey(rejected.to_string()).into()),
        _ => Err(ErrorKind::InvalidAlgorithm.into()),
    }
}

fn verifier_factory(
    algorithm: &Algorithm,
    key: &DecodingKey,
) -> Result<Box<dyn JwtVerifier>, Error> {
    match (algorithm, key.family()) {
        (Algorithm::HS256, AlgorithmFamily::Hmac) => Ok(Box::new(HmacKey(hmac::Key::new(
            hmac::HMAC_SHA256,
            key.try_get_as_bytes()?,
        )))),
        (Algorithm::RS256, AlgorithmFamily::Rsa) => Ok(Box::new(RsaVerifier(key.kind().clone()))),
        _ => Err(ErrorKind::InvalidAlgorithm.into()),
    }
}

impl Signer<Vec<u8>> for HmacKey {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, signature::Error> {
        Ok(hmac::sign(&self.0, message).as_ref().to_vec())
    }
}

impl Verifier<Vec<u8>> for HmacKey {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        // Constant time.
        hmac::verify(&self.0, message, signature).map_err(|_| signature::Error::new())
    }
}

impl JwtSigner for HmacKey {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

impl JwtVerifier for HmacKey {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

impl Signer<Vec<u8>> for RsaSigner {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, signature::Error> {
        let mut signature = vec![0; self.0.public().modulus_len()];
        self.0
            .sign(
                &RSA_PKCS1_SHA256,
                &SystemRandom::new(),
                message,
                &mut signature,
            )
            .map(|()| signature)
            .map_err(|_| signature::Error::new())
    }
}

impl JwtSigner for RsaSigner {
    fn algorithm(&self) -> Algorithm {
        Algorithm::RS256
    }
}

impl Verifier<Vec<u8>> for RsaVerifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        let rule = &RSA_PKCS1_2048_8192_SHA256;
        match &self.0 {
            DecodingKeyKind::SecretOrDer(der) => {
                UnparsedPublicKey::new(rule, der).verify(message, signature)
            }
            DecodingKeyKind::RsaModulusExponent { n, e } => {
                RsaPublicKeyComponents { n, e }.verify(rule, message, signature)
            }
        }
        .map_err(|_| signature::Error::new())
    }
}

impl JwtVerifier for RsaVerifier {
    fn algorithm(&self) -> Algorithm {
        Algorithm::RS256
    }
}
