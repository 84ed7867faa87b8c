//! Secrets of the demo: never shown, but told apart, and looked for where none may be.

use jira_connect_proxy::domain::SharedSecret;

/// Numbered in the order in which they turn up.
#[derive(Default)]
pub struct Secrets(Vec<String>);

impl Secrets {
    /// A new one, as Jira makes them.
    pub fn generate(&mut self) -> anyhow::Result<String> {
        let secret = SharedSecret::generate()?.expose().to_owned();
        self.number(&secret);
        Ok(secret)
    }

    /// What may be printed of it.
    pub fn mask(&mut self, secret: &str) -> String {
        let number = self.number(secret);
        format!("*** ({} characters, secret {number})", secret.len())
    }

    /// How it is called.
    pub fn number(&mut self, secret: &str) -> usize {
        let known = self.0.iter().position(|known| known == secret);
        known.map_or_else(
            || {
                self.0.push(secret.to_owned());
                self.0.len()
            },
            |at| at + 1,
        )
    }

    /// How many there were.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Whether one of them stands there readable.
    pub fn any_in(&self, text: &[u8]) -> bool {
        self.0
            .iter()
            .any(|secret| contains(text, secret.as_bytes()))
    }
}

/// `***` and the length.
pub fn mask(secret: &str) -> String {
    format!("*** ({} characters)", secret.len())
}

/// Whether `part` is somewhere in `text`.
pub fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}
