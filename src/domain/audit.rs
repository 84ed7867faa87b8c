//! Who changed what, when, each entry chained to the one before.

use std::fmt;

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{ClientKey, Link, LinkId};
use crate::digest::sha256_hex;

/// One line of the audit trail. Never holds a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// When.
    pub at: Timestamp,
    /// Who: `jira`, `jira_admin`, `admin`, `operator`, `relay`.
    pub actor: Actor,
    /// Which Jira account, if it was a person in Jira; which session, if it was an operator at the page outside Jira.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account_id: Option<String>,
    /// What: `installation_created`, `link_removed`, ...
    pub action: String,
    /// Which installation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key: Option<ClientKey>,
    /// Which link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link_id: Option<LinkId>,
    /// Details for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The request's or attempt's id in the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Where the request came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<IpAddr>,
}

/// An entry in its place in the trail. Changing, leaving out or moving one breaks every hash from there on, so who noted
/// a hash elsewhere can tell later that the trail up to it is still the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainedEntry {
    /// Counts from 0.
    pub number: u64,
    /// SHA-256 over the hash before it, its number and the entry's JSON, each on a line of its own; in hex.
    pub hash: String,
    /// What happened.
    #[serde(flatten)]
    pub entry: AuditEntry,
}

/// How far a trail goes: what to note elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditHead {
    /// Of its last entry.
    pub number: u64,
    /// Of its last entry.
    pub hash: String,
}

/// A trail that is not what was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokenTrail {
    /// Something was taken out.
    #[error("entry {missing} is missing")]
    Missing {
        /// Its number.
        missing: u64,
    },
    /// Something was changed: this entry, or one before that was taken over as it stood.
    #[error("entry {number} was changed, or does not belong after the one before it")]
    Changed {
        /// Its number.
        number: u64,
    },
}

/// Who changes things.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Actor {
    /// A signed lifecycle call.
    Jira,
    /// A Jira admin, through the page inside Jira.
    JiraAdmin,
    /// Whoever holds the admin token.
    Admin,
    /// Whoever opened the page outside Jira, to which the admin token leads.
    Operator,
    /// The relay by itself.
    Relay,
}

impl AuditEntry {
    /// An entry without particulars.
    pub fn new(at: Timestamp, actor: Actor, action: &str) -> Self {
        Self {
            at,
            actor,
            account_id: None,
            action: action.to_owned(),
            client_key: None,
            link_id: None,
            note: None,
            request_id: None,
            peer: None,
        }
    }

    fn hash(&self, before: &str, number: u64) -> String {
        // Writing these types as JSON can't fail.
        let json = serde_json::to_string(self).unwrap_or_default();
        sha256_hex(format!("{before}\n{number}\n{json}").as_bytes())
    }

    /// The same entry, about this link.
    #[must_use]
    pub fn about(self, link: &Link) -> Self {
        Self {
            client_key: Some(link.client_key.clone()),
            link_id: Some(link.id),
            ..self
        }
    }
}

impl ChainedEntry {
    /// An entry after this head, or the first.
    pub fn after(head: Option<&AuditHead>, entry: AuditEntry) -> Self {
        let number = head.map_or(0, |head| head.number + 1);
        let before = head.map_or("", |head| head.hash.as_str());
        Self {
            number,
            hash: entry.hash(before, number),
            entry,
        }
    }

    /// What the next one is chained to.
    pub fn head(&self) -> AuditHead {
        AuditHead {
            number: self.number,
            hash: self.hash.clone(),
        }
    }

    /// Whether this one follows that head. What an entry that made room for later ones said is not known any more, so
    /// nothing can be said of the oldest one that is left.
    pub fn check(&self, head: Option<&AuditHead>) -> Result<(), BrokenTrail> {
        let number = self.number;
        let expected = head.map_or(number, |head| head.number + 1);
        if number != expected {
            return Err(BrokenTrail::Missing { missing: expected });
        }
        let before = match head {
            Some(head) => head.hash.as_str(),
            None if number == 0 => "",
            None => return Ok(()),
        };
        if self.hash != self.entry.hash(before, number) {
            return Err(BrokenTrail::Changed { number });
        }
        Ok(())
    }
}

impl fmt::Display for AuditHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.number, self.hash)
    }
}

impl std::str::FromStr for AuditHead {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wanted = "a head looks like 41:9f86d081...: the number and the whole hash of an entry";
        let (number, hash) = text.split_once(':').ok_or(wanted)?;
        if hash.len() != 64 || !hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(wanted);
        }
        Ok(Self {
            number: number.parse().map_err(|_| wanted)?,
            hash: hash.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trail(notes: &[&str]) -> Vec<ChainedEntry> {
        let mut head = None;
        let mut trail = Vec::new();
        for note in notes {
            let entry = AuditEntry {
                note: Some((*note).to_owned()),
                ..AuditEntry::new(Timestamp::UNIX_EPOCH, Actor::Admin, "tested")
            };
            let next = ChainedEntry::after(head.as_ref(), entry);
            head = Some(next.head());
            trail.push(next);
        }
        trail
    }

    fn check(trail: &[ChainedEntry]) -> Result<(), BrokenTrail> {
        let mut head = None;
        for entry in trail {
            entry.check(head.as_ref())?;
            head = Some(entry.head());
        }
        Ok(())
    }

    #[test]
    fn what_was_changed_left_out_or_moved_is_found() {
        let whole = trail(&["a", "b", "c", "d"]);
        assert_eq!(check(&whole), Ok(()));
        assert_eq!(check(&whole[2..]), Ok(()), "the oldest made room");

        let mut changed = whole.clone();
        changed[1].entry.note = Some("x".to_owned());
        assert_eq!(check(&changed), Err(BrokenTrail::Changed { number: 1 }));
        // A new hash for it only moves the break.
        changed[1].hash = changed[1].entry.hash(&changed[0].hash, 1);
        assert_eq!(check(&changed), Err(BrokenTrail::Changed { number: 2 }));

        let mut short = whole.clone();
        short.remove(2);
        assert_eq!(check(&short), Err(BrokenTrail::Missing { missing: 2 }));
        short[2].number = 2;
        assert_eq!(check(&short), Err(BrokenTrail::Changed { number: 2 }));

        let mut moved = whole;
        moved.swap(1, 2);
        assert!(check(&moved).is_err());
    }

    #[test]
    fn a_hash_can_be_made_by_others() {
        let first = &trail(&["a"])[0];
        let json = r#"{"at":"1970-01-01T00:00:00Z","actor":"admin","action":"tested","note":"a"}"#;
        assert_eq!(first.hash, sha256_hex(format!("\n0\n{json}").as_bytes()));
    }

    #[test]
    fn a_head_is_read_as_it_is_shown() {
        let head = trail(&["a", "b"])[1].head();
        assert_eq!(head.to_string().parse(), Ok(head));
        for odd in ["", "1", "1:", "1:abc", "x:0", ":", "-1:00"] {
            assert!(odd.parse::<AuditHead>().is_err(), "{odd}");
        }
    }
}
