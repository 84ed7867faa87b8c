//! The table in which a GitLab that is the proxy keeps its installations, as `psql` exports it.
//!
//! By GitLab's `app/models/jira_connect_installation.rb` the shared secret is `attr_encrypted` (mode `per_attribute_iv`,
//! `aes-256-gcm`) under `db_key_base_32`: the first 32 bytes of `db_key_base`, cut at a character and filled up with the
//! digit zero (`config/settings.rb`, `Gitlab::Utils.ensure_utf8_size`). The `encryptor` gem puts the 16 bytes of the tag
//! behind the ciphertext and leaves the associated data empty; `attr_encrypted` writes both columns in Base64 with line
//! breaks, and as they are where a column is binary. `lib/gitlab/encrypted_attribute.rb` knows several keys at once.

use std::{fmt, io};

use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::domain::{SharedSecret, secret::SharedSecretError};

const KEY_BYTES: usize = 32;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What a GitLab encrypts its attributes with: one key, or several while it changes them.
pub struct DbKeyBase(Vec<Zeroizing<[u8; KEY_BYTES]>>);

/// Why a file holds no `db_key_base`. Nothing of its content is in the error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DbKeyBaseError {
    /// Nothing in it.
    #[error("it is empty")]
    Empty,
    /// JSON, but not GitLab's.
    #[error("it is JSON without gitlab_rails.db_key_base, as gitlab-secrets.json has it")]
    NotInJson,
    /// YAML in a form that GitLab does not write.
    #[error(
        "it is no secrets.yml as GitLab writes it: put the value of production.db_key_base alone into a file"
    )]
    NotInYaml,
    /// Several lines that are neither.
    #[error("it is neither gitlab-secrets.json nor secrets.yml nor one line with the key")]
    SeveralLines,
}

/// One row: a site, as the other proxy knew it. Only its secret is judged here.
#[derive(Debug)]
pub struct ExportedSite {
    /// Jira's `clientKey`.
    pub client_key: String,
    /// The site.
    pub base_url: String,
    /// What its users see.
    pub display_url: Option<String>,
    /// The instance that the proxy passed it on to.
    pub instance_url: Option<String>,
    /// What Jira and the proxy signed with.
    pub shared_secret: Result<SharedSecret, SecretError>,
}

/// Why a file is no export.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Not readable as CSV.
    #[error("it is no CSV: {0}")]
    Csv(#[from] csv::Error),
    /// A column is not there.
    #[error(
        "its first line names no column {0}: export it with `csv header`, and the table jira_connect_installations"
    )]
    ColumnMissing(&'static str),
}

/// Why a row has no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// It never had one: Jira came by Forge.
    #[error("the row has no secret: this site does not use Connect")]
    Missing,
    /// Neither Base64 nor hex.
    #[error("{0} is neither Base64 nor \\x and hex digits")]
    Encoding(&'static str),
    /// Not of AES-GCM.
    #[error("the initialisation vector has {0} bytes in place of {NONCE_LEN}")]
    VectorLength(usize),
    /// Another key, or damaged.
    #[error("the secret does not open with this db_key_base")]
    WrongKey,
    /// It opens, to something that Jira never sends.
    #[error("{0}")]
    Unusable(#[from] SharedSecretError),
}

#[derive(Deserialize)]
struct SecretsJson {
    gitlab_rails: RailsSecrets,
}

#[derive(Deserialize)]
struct RailsSecrets {
    db_key_base: OneOrMore,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(Zeroizing<String>),
    More(Vec<Zeroizing<String>>),
}

/// Reads an export, row by row.
pub fn read(file: impl io::Read, key: &DbKeyBase) -> Result<Vec<ExportedSite>, ExportError> {
    let mut reader = csv::Reader::from_reader(file);
    let headers = reader.headers()?.clone();
    let find = |name| headers.iter().position(|header| header == name);
    let must = |name| find(name).ok_or(ExportError::ColumnMissing(name));
    let client_key = must("client_key")?;
    let base_url = must("base_url")?;
    let secret = must("encrypted_shared_secret")?;
    let vector = must("encrypted_shared_secret_iv")?;
    // Older GitLabs do not have these.
    let (display_url, instance_url) = (find("display_url"), find("instance_url"));
    let mut sites = Vec::new();
    for record in reader.records() {
        let record = record?;
        let field = |column: usize| record.get(column).unwrap_or_default();
        let filled = |column: Option<usize>| {
            let text = column.map(field)?.trim();
            (!text.is_empty()).then(|| text.to_owned())
        };
        sites.push(ExportedSite {
            client_key: field(client_key).to_owned(),
            base_url: field(base_url).to_owned(),
            display_url: filled(display_url),
            instance_url: filled(instance_url),
            shared_secret: key.open(field(secret), field(vector)),
        });
    }
    Ok(sites)
}

impl DbKeyBase {
    /// Finds the key in GitLab's `gitlab-secrets.json`, its `secrets.yml`, or a file of its own.
    pub fn parse(text: &str) -> Result<Self, DbKeyBaseError> {
        let text = text.trim();
        let values = if text.starts_with('{') {
            let secrets: SecretsJson =
                serde_json::from_str(text).map_err(|_| DbKeyBaseError::NotInJson)?;
            match secrets.gitlab_rails.db_key_base {
                OneOrMore::One(value) => vec![value],
                OneOrMore::More(values) => values,
            }
        } else if text.contains("db_key_base:") {
            from_yaml(text).ok_or(DbKeyBaseError::NotInYaml)?
        } else if text.contains('\n') {
            return Err(DbKeyBaseError::SeveralLines);
        } else {
            vec![Zeroizing::new(text.to_owned())]
        };
        let keys: Vec<_> = values
            .iter()
            .filter(|value| !value.is_empty())
            .map(|value| fit(value))
            .collect();
        if keys.is_empty() {
            return Err(DbKeyBaseError::Empty);
        }
        Ok(Self(keys))
    }

    /// Opens an attribute as GitLab does, with whichever of the keys fits.
    fn open(&self, secret: &str, vector: &str) -> Result<SharedSecret, SecretError> {
        if secret.trim().is_empty() {
            return Err(SecretError::Missing);
        }
        let secret = decode(secret).ok_or(SecretError::Encoding("encrypted_shared_secret"))?;
        let vector = decode(vector).ok_or(SecretError::Encoding("encrypted_shared_secret_iv"))?;
        let nonce: [u8; NONCE_LEN] = vector
            .as_slice()
            .try_into()
            .map_err(|_| SecretError::VectorLength(vector.len()))?;
        let plain = self
            .0
            .iter()
            .find_map(|key| opened(key, nonce, &secret))
            .ok_or(SecretError::WrongKey)?;
        // The tag proves that GitLab wrote it; what Jira sends is text.
        let text = std::str::from_utf8(&plain).unwrap_or_default();
        Ok(SharedSecret::parse(text)?)
    }
}

impl fmt::Debug for DbKeyBase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

fn opened(
    key: &[u8; KEY_BYTES],
    nonce: [u8; NONCE_LEN],
    sealed: &[u8],
) -> Option<Zeroizing<Vec<u8>>> {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).ok()?);
    let mut text = Zeroizing::new(sealed.to_vec());
    let nonce = Nonce::assume_unique_for_key(nonce);
    let length = key
        .open_in_place(nonce, Aad::empty(), &mut text)
        .ok()?
        .len();
    text.truncate(length);
    Some(text)
}

/// A column: `\x` and hex digits (binary), or Base64 with line breaks.
fn decode(column: &str) -> Option<Vec<u8>> {
    let column: String = column.split_ascii_whitespace().collect();
    let Some(digits) = column.strip_prefix("\\x") else {
        return BASE64.decode(column).ok();
    };
    let digit = |b: &u8| char::from(*b).to_digit(16);
    let pairs = digits.as_bytes().chunks(2).map(|pair| match pair {
        [high, low] => u8::try_from(digit(high)? * 16 + digit(low)?).ok(),
        _ => None,
    });
    pairs.collect()
}

/// Exactly 32 bytes: whole characters, then zeros.
fn fit(value: &str) -> Zeroizing<[u8; KEY_BYTES]> {
    let mut key = Zeroizing::new([b'0'; KEY_BYTES]);
    let mut end = value.len().min(KEY_BYTES);
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    for (to, from) in key.iter_mut().zip(value.bytes().take(end)) {
        *to = from;
    }
    key
}

/// The one form of YAML in which GitLab and its packages write this file: a section, below it plain or quoted values or
/// a list of them.
fn from_yaml(text: &str) -> Option<Vec<Zeroizing<String>>> {
    let mut lines = text
        .lines()
        .skip_while(|line| line.trim_end() != "production:");
    let section = lines.next().map(|_| lines);
    let mut lines = section?.take_while(|line| line.is_empty() || line.starts_with([' ', '#']));
    let value = lines.find_map(|line| line.trim_start().strip_prefix("db_key_base:"))?;
    if !value.trim().is_empty() {
        return Some(vec![scalar(value)?]);
    }
    let items = lines.map_while(|line| line.trim_start().strip_prefix("- "));
    items.map(scalar).collect()
}

fn scalar(text: &str) -> Option<Zeroizing<String>> {
    let text = text.trim();
    let quoted = ['"', '\''].iter().find_map(|&quote| {
        text.strip_prefix(quote)
            .map(|rest| rest.strip_suffix(quote))
    });
    let value = match quoted {
        Some(inside) => inside?,
        None => text.split(" #").next()?.trim_end(),
    };
    let plain = |c: char| c.is_alphanumeric() || "-_+/=.".contains(c);
    value
        .chars()
        .all(plain)
        .then(|| Zeroizing::new(value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "0123456789abcdef0123456789abcdef-and-more-that-is-cut-off";

    /// What Ruby's `encryptor` made of "jira-secret-jira-secret-jira-secret" under the first 32 bytes of `KEY`.
    const SEALED: &str = "ZIFjTw2PmNRx9E7g6WODBqmVZdfN4HQZdU2FaXod2yh2iz0x+UdCjkSPpR9mbCd1Onn8";
    const VECTOR: &str = "AQIDBAUGBwgJCgsM";

    fn first(csv: &str, key: &str) -> Result<SharedSecret, SecretError> {
        let key = DbKeyBase::parse(key).expect("key");
        let mut sites = read(csv.as_bytes(), &key).expect("an export");
        sites.remove(0).shared_secret
    }

    fn csv(secret: &str, vector: &str) -> String {
        format!(
            "id,client_key,encrypted_shared_secret,encrypted_shared_secret_iv,base_url\n1,tenant,{secret},{vector},https://acme.atlassian.net\n"
        )
    }

    #[test]
    fn opens_what_gitlab_sealed() {
        let opened = first(
            &csv(&format!("\"{SEALED}\n\""), &format!("\"{VECTOR}\n\"")),
            KEY,
        );
        assert_eq!(
            opened.expect("secret").expose(),
            "jira-secret-jira-secret-jira-secret"
        );
        let hex = |text: &str| {
            let bytes = BASE64.decode(text).expect("Base64");
            let digits: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            format!("\\x{digits}")
        };
        assert!(first(&csv(&hex(SEALED), &hex(VECTOR)), KEY).is_ok());
    }

    #[test]
    fn tells_what_is_wrong_with_a_row() {
        let wrong = |secret: &str, vector: &str, key| first(&csv(secret, vector), key).err();
        assert_eq!(
            wrong(SEALED, VECTOR, "another"),
            Some(SecretError::WrongKey)
        );
        assert_eq!(wrong("", VECTOR, KEY), Some(SecretError::Missing));
        assert_eq!(
            wrong("\\xabc", VECTOR, KEY),
            Some(SecretError::Encoding("encrypted_shared_secret"))
        );
        assert_eq!(
            wrong(SEALED, "AAAA", KEY),
            Some(SecretError::VectorLength(3))
        );
        let cut = SEALED.get(..12).expect("short");
        assert_eq!(wrong(cut, VECTOR, KEY), Some(SecretError::WrongKey));
        let key = DbKeyBase::parse(KEY).expect("key");
        assert!(matches!(
            read("client_key,base_url\n".as_bytes(), &key),
            Err(ExportError::ColumnMissing("encrypted_shared_secret"))
        ));
    }

    #[test]
    fn finds_the_key_in_every_file_that_gitlab_has_it_in() {
        let one = |text: &str| {
            let keys = DbKeyBase::parse(text).map(|key| key.0);
            keys.map(|keys| keys.iter().map(|key| key.to_vec()).collect::<Vec<_>>())
        };
        let expected = vec![KEY.as_bytes()[..32].to_vec()];
        let two = vec![
            expected[0].clone(),
            b"second00000000000000000000000000".to_vec(),
        ];
        for (text, keys) in [
            (format!("{KEY}\n"), &expected),
            (
                format!(r#"{{"gitlab_rails": {{"db_key_base": "{KEY}", "otp_key_base": "x"}}}}"#),
                &expected,
            ),
            (
                format!(r#"{{"gitlab_rails": {{"db_key_base": ["{KEY}", "second"]}}}}"#),
                &two,
            ),
            (
                format!(
                    "---\ndevelopment:\n  db_key_base: no\nproduction:\n  otp_key_base: x\n  db_key_base: {KEY}\n"
                ),
                &expected,
            ),
            (format!("production:\n  db_key_base: '{KEY}'\n"), &expected),
            (
                format!(
                    "production:\n  db_key_base:\n  - \"{KEY}\"\n  - second\n  otp_key_base: x\n"
                ),
                &two,
            ),
        ] {
            assert_eq!(one(&text).as_ref(), Ok(keys), "{text}");
        }
        for (text, error) in [
            ("", DbKeyBaseError::Empty),
            ("{}", DbKeyBaseError::NotInJson),
            ("test:\n  db_key_base: x\n", DbKeyBaseError::NotInYaml),
            (
                "production:\n  db_key_base: |\n    x\n",
                DbKeyBaseError::NotInYaml,
            ),
            ("one\ntwo", DbKeyBaseError::SeveralLines),
        ] {
            assert_eq!(one(text), Err(error), "{text}");
        }
    }

    #[test]
    fn a_key_is_whole_characters_and_zeros() {
        assert_eq!(fit("abc").as_slice(), b"abc00000000000000000000000000000");
        let hearts = fit(&"❤".repeat(18));
        assert_eq!(
            hearts.as_slice(),
            format!("{}00", "❤".repeat(10)).as_bytes()
        );
    }
}
