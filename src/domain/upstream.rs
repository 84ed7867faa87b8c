//! The three ways to a Jira site. The contract towards instances is Connect in all of them.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{CloudId, Credential, ForgeInstallationId, SharedSecret, event::EventStamp};

/// Of a token that lives only so much longer than the one that is known, nothing is noted: a page makes a call every
/// few seconds, each brings a token, and each note is a write to the disk.
const NOTABLY_LONGER: SignedDuration = SignedDuration::from_mins(5);

/// An invocation that tells nothing new is noted so often, because it shows that the app is still there.
pub const NOTED_EVERY: SignedDuration = SignedDuration::from_mins(30);

/// A way to a site, with what opens it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Upstream {
    /// An installed Connect app.
    Connect(Connect),
    /// An installed Forge app, whose remote we are.
    Forge(Forge),
    /// OAuth 2.0 client credentials that a Jira admin made. There is no app.
    Oauth(Oauth),
}

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpstreamKind {
    /// A Connect app.
    Connect,
    /// A Forge app.
    Forge,
    /// OAuth client credentials.
    Oauth,
}

/// Whose calls Atlassian counts together: each app has limits of its own, and so has each set of client credentials.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum App {
    /// The Connect app.
    Connect,
    /// The Forge app.
    Forge,
    /// Client credentials, by their id.
    Oauth(String),
}

/// What Jira told a Connect app.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connect {
    /// The current secret.
    pub shared_secret: SharedSecret,
    /// The secret before the last rotation; also honoured until `valid_until`.
    pub previous_secret: Option<RetiredSecret>,
    /// Counts distinct secrets, from 1.
    pub secret_generation: u64,
    /// The newest lifecycle call that changed this record.
    pub last_event: EventStamp,
}

/// What invocations of a Forge app told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forge {
    /// Which installation of the app.
    pub installation_id: ForgeInstallationId,
    /// The site.
    pub cloud_id: CloudId,
    /// Of the app's versions, the one that the site has.
    pub app_version: Option<String>,
    /// The newest of the tokens that let us call Jira. Forge has no way to ask for one: they come with invocations.
    pub system_token: Option<SystemToken>,
    /// When the last invocation came that something was noted of: the newest is at most [`NOTED_EVERY`] younger.
    pub told_at: Timestamp,
    /// Jira has refused the token in its time, and nothing better came since.
    #[serde(default)]
    pub refused: Option<Refusals>,
}

/// What Jira said to tokens that were in their time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusals {
    /// How often it was asked on purpose.
    pub times: u32,
    /// When it was asked first.
    pub since: Timestamp,
}

/// Lets us call Jira as the app, for about an hour.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemToken {
    /// The token.
    pub token: Credential,
    /// When Jira stops to take it, as it says itself.
    pub expires_at: Timestamp,
    /// It came with a call of the app's page, whose user could have put anything in its place: the invocation token
    /// beside it does not bind it.
    #[serde(default)]
    pub from_page: bool,
}

/// What a Jira admin made for us (Jira: Settings > Apps > OAuth credentials).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Oauth {
    /// The public half.
    pub client_id: String,
    /// The other half.
    pub client_secret: Credential,
    /// The site.
    pub cloud_id: CloudId,
}

/// A client id that nobody has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a client id is 1 to {CLIENT_ID_MAX_BYTES} visible ASCII characters")]
pub struct ClientIdError;

/// Atlassian's have 32 letters and digits.
const CLIENT_ID_MAX_BYTES: usize = 256;

/// A secret that was replaced. Requests signed with it may still be in flight.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetiredSecret {
    /// The old secret.
    pub secret: SharedSecret,
    /// Until when it still counts.
    pub valid_until: Timestamp,
}

impl Upstream {
    /// Which it is.
    pub fn kind(&self) -> UpstreamKind {
        match self {
            Self::Connect(_) => UpstreamKind::Connect,
            Self::Forge(_) => UpstreamKind::Forge,
            Self::Oauth(_) => UpstreamKind::Oauth,
        }
    }

    /// Who calls.
    pub fn app(&self) -> App {
        match self {
            Self::Connect(_) => App::Connect,
            Self::Forge(_) => App::Forge,
            Self::Oauth(oauth) => App::Oauth(oauth.client_id.clone()),
        }
    }

    /// What a Connect app was told, if it is one.
    pub fn as_connect(&self) -> Option<&Connect> {
        match self {
            Self::Connect(connect) => Some(connect),
            Self::Forge(_) | Self::Oauth(_) => None,
        }
    }

    /// What invocations told, if it is a Forge app.
    pub fn as_forge(&self) -> Option<&Forge> {
        match self {
            Self::Forge(forge) => Some(forge),
            Self::Connect(_) | Self::Oauth(_) => None,
        }
    }

    /// The site's id, where the way tells it.
    pub fn cloud_id(&self) -> Option<&CloudId> {
        match self {
            Self::Connect(_) => None,
            Self::Forge(forge) => Some(&forge.cloud_id),
            Self::Oauth(oauth) => Some(&oauth.cloud_id),
        }
    }

    /// Whether what opens it is the same.
    pub fn opens_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Connect(own), Self::Connect(other)) => own.shared_secret == other.shared_secret,
            (Self::Forge(own), Self::Forge(other)) => own.installation_id == other.installation_id,
            (Self::Oauth(own), Self::Oauth(other)) => own == other,
            _ => false,
        }
    }
}

impl UpstreamKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Connect, Self::Forge, Self::Oauth];

    /// Reads the word.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }

    /// The word in answers, logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Forge => "forge",
            Self::Oauth => "oauth",
        }
    }
}

impl Oauth {
    /// Credentials for a site.
    pub fn new(
        client_id: String,
        client_secret: Credential,
        cloud_id: CloudId,
    ) -> Result<Self, ClientIdError> {
        let plausible = (1..=CLIENT_ID_MAX_BYTES).contains(&client_id.len())
            && client_id.bytes().all(|b| b.is_ascii_graphic());
        plausible
            .then_some(Self {
                client_id,
                client_secret,
                cloud_id,
            })
            .ok_or(ClientIdError)
    }
}

impl Forge {
    /// What is known after another invocation, if something of it is worth a note.
    ///
    /// Of the tokens that Forge sent by itself the one that lives longest is kept, whichever comes last. One that Jira
    /// seems to have refused (`doubted`) yields to any other. One from the page is the last resort: it is taken while
    /// there is none, or Jira has said no to the one there is, and yields to any that Forge sends by itself. So whoever
    /// is at the page keeps no good token away, and none that is no good for longer than to the next trigger.
    pub fn after(&self, told: &Self, doubted: bool, now: Timestamp) -> Option<Self> {
        let better = |new: &&SystemToken| {
            let Some(known) = &self.system_token else {
                return true;
            };
            if known.token == new.token || new.expires_at <= now {
                return false;
            }
            let is_over = known.expires_at <= now;
            if new.from_page {
                return is_over || self.refused.is_some();
            }
            let longer = new.expires_at.duration_since(known.expires_at);
            is_over || doubted || known.from_page || longer >= NOTABLY_LONGER
        };
        let better = told.system_token.as_ref().filter(better);
        let other = self.app_version != told.app_version || self.cloud_id != told.cloud_id;
        let due = now.duration_since(self.told_at) >= NOTED_EVERY;
        (better.is_some() || other || due).then(|| Self {
            system_token: better.or(self.system_token.as_ref()).cloned(),
            told_at: self.told_at.max(now),
            refused: self.refused.filter(|_| better.is_none()),
            ..told.clone()
        })
    }

    /// Jira has refused the token in its time.
    #[must_use]
    pub fn refused(&self, now: Timestamp) -> Self {
        let before = self.refused;
        Self {
            refused: Some(Refusals {
                times: before.map_or(1, |before| before.times.saturating_add(1)),
                since: before.map_or(now, |before| before.since),
            }),
            ..self.clone()
        }
    }

    /// The token, if Jira takes it now.
    pub fn valid_token(&self, now: Timestamp) -> Option<&SystemToken> {
        self.system_token
            .as_ref()
            .filter(|token| now < token.expires_at)
    }
}

impl fmt::Display for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect => f.write_str("connect"),
            Self::Forge => f.write_str("forge"),
            Self::Oauth(client_id) => write!(f, "oauth {client_id}"),
        }
    }
}

impl Connect {
    /// Told for the first time.
    pub fn new(shared_secret: SharedSecret, told: EventStamp) -> Self {
        Self {
            shared_secret,
            previous_secret: None,
            secret_generation: 1,
            last_event: told,
        }
    }

    /// Told again: another secret retires the one before.
    #[must_use]
    pub fn after(self, before: &Self, grace: SignedDuration, now: Timestamp) -> Self {
        if self.shared_secret == before.shared_secret {
            return Self {
                last_event: self.last_event,
                ..before.clone()
            };
        }
        Self {
            previous_secret: Some(RetiredSecret {
                secret: before.shared_secret.clone(),
                valid_until: now.saturating_add(grace).unwrap_or(Timestamp::MAX),
            }),
            secret_generation: before.secret_generation + 1,
            ..self
        }
    }

    /// The secrets that count now, newest first.
    pub fn accepted_secrets(&self, now: Timestamp) -> impl Iterator<Item = &SharedSecret> {
        let previous = self.previous_secret.as_ref();
        let previous = previous.filter(|retired| now < retired.valid_until);
        std::iter::once(&self.shared_secret).chain(previous.map(|retired| &retired.secret))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_second(minute * 60).expect("timestamp")
    }

    fn forge(token: Option<(&str, i64)>, told_at: i64) -> Forge {
        let id = "ari:cloud:ecosystem::installation/0a3a7799-53ae-4a5b-9e7e-03338980abb5";
        Forge {
            installation_id: ForgeInstallationId::parse(id).expect("id"),
            cloud_id: CloudId::parse("4c822e2f-510f-48b9-b8d2-8419d0932949").expect("id"),
            app_version: Some("2.1.0".to_owned()),
            system_token: token.map(|(token, expires_at)| SystemToken {
                token: Credential::parse(token).expect("token"),
                expires_at: at(expires_at),
                from_page: false,
            }),
            told_at: at(told_at),
            refused: None,
        }
    }

    #[test]
    fn the_token_that_lives_longest_is_kept_whichever_comes_last() {
        let known = forge(Some(("known", 155)), 100);
        let told = |token, now: i64| known.after(&forge(Some(token), now), false, at(now));
        let kept = |forge: Option<Forge>| forge.and_then(|forge| forge.system_token);
        assert_eq!(told(("known", 155), 101), None);
        assert_eq!(told(("same-age", 155), 101), None);
        assert_eq!(
            told(("hardly-younger", 159), 104),
            None,
            "not worth a write"
        );
        let younger = kept(told(("younger", 160), 105)).expect("noted");
        assert_eq!(
            (younger.token.expose(), younger.expires_at),
            ("younger", at(160))
        );
        assert_eq!(told(("older", 120), 110), None);
        // Noted, because it was quiet for long; the token is still the better one.
        let older = kept(told(("older", 120), 130)).expect("noted");
        assert_eq!(older.token.expose(), "known");
        let after_its_end = kept(told(("younger", 156), 155)).expect("noted");
        assert_eq!(after_its_end.token.expose(), "younger");
        assert_eq!(
            kept(forge(None, 100).after(&known, false, at(101))),
            known.system_token
        );
        assert_eq!(known.after(&forge(None, 101), false, at(101)), None);
        let noted = known
            .after(&forge(None, 130), false, at(130))
            .expect("noted");
        assert_eq!(
            (&noted.system_token, noted.told_at),
            (&known.system_token, at(130))
        );
    }

    #[test]
    fn a_token_that_jira_refused_gives_way_to_any_other() {
        let known = forge(Some(("known", 155)), 100)
            .refused(at(110))
            .refused(at(115));
        let refusals = Refusals {
            times: 2,
            since: at(110),
        };
        assert_eq!(known.refused, Some(refusals));
        let younger = forge(Some(("younger", 155)), 101);
        assert_eq!(known.after(&younger, false, at(101)), None);
        let next = known.after(&younger, true, at(101)).expect("noted");
        let token = next.system_token.expect("token");
        assert_eq!((token.token.expose(), next.refused), ("younger", None));
        let sooner = forge(Some(("sooner", 112)), 111);
        let next = known.after(&sooner, true, at(111)).expect("noted");
        assert_eq!(next.system_token, sooner.system_token);
        // The same again is no other, one that is over is none, and both leave the refusals as they are.
        assert_eq!(known.after(&known, true, at(111)), None);
        assert_eq!(known.after(&sooner, true, at(112)), None);
        let next = known.after(&sooner, true, at(131)).expect("noted");
        assert_eq!(
            (&next.system_token, next.refused),
            (&known.system_token, known.refused)
        );
    }

    #[test]
    fn a_token_from_the_page_is_the_last_resort() {
        let from_page = |token, expires_at, told_at| {
            let mut told = forge(Some((token, expires_at)), told_at);
            if let Some(token) = &mut told.system_token {
                token.from_page = true;
            }
            told
        };
        let kept = |before: &Forge, told: &Forge, doubted, now| {
            let next = before.after(told, doubted, at(now));
            let token = next.and_then(|next| next.system_token);
            token.map(|token| token.token.expose().to_owned())
        };
        let page = |now| from_page("page", 340, now);
        let known = forge(Some(("known", 155)), 100);
        assert_eq!(kept(&known, &page(101), false, 101), None);
        // That Jira refused something is no word against the token.
        assert_eq!(kept(&known, &page(101), true, 101), None);
        let refused = known.refused(at(110));
        assert_eq!(
            kept(&refused, &page(111), true, 111).as_deref(),
            Some("page")
        );
        assert_eq!(
            kept(&known, &page(155), false, 155).as_deref(),
            Some("page")
        );
        let none = forge(None, 100);
        assert_eq!(kept(&none, &page(101), false, 101).as_deref(), Some("page"));
        // It stays while nobody refuses it, and yields to what Forge sends by itself.
        let known = page(100);
        let other = from_page("other", 500, 101);
        assert_eq!(kept(&known, &other, false, 101), None);
        let sooner = forge(Some(("sooner", 156)), 101);
        assert_eq!(kept(&known, &sooner, false, 101).as_deref(), Some("sooner"));
    }

    #[test]
    fn another_version_or_site_is_noted_at_once() {
        let known = forge(Some(("known", 155)), 100);
        let told = Forge {
            app_version: Some("3.0.0".to_owned()),
            system_token: None,
            ..known.clone()
        };
        let next = known.after(&told, false, at(101)).expect("noted");
        assert_eq!(next.app_version, told.app_version);
        assert_eq!(next.system_token, known.system_token);
    }
}
