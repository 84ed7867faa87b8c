//! Operators at the page outside Jira: invitations, which are good once, and the sessions that these open.
//!
//! Everything is in the memory of this process, under a key that nobody else has, so a restart ends it all. A session
//! is for one installation and may do there what a Jira admin may. It has an account id of its own: instances are told
//! it in place of a Jira user's, and ask about it.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use ring::{
    hmac,
    rand::{SecureRandom, SystemRandom},
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::{
    config::PageLifetimes,
    domain::{ClientKey, LinkId, secret::NoRandomness},
    lock::lock,
    reject::{Reject, RejectKind},
};

/// Sessions at a time. One more ends the one that has been idle for longest.
const SESSIONS_MAX: usize = 100;

/// Invitations that were opened and would still be good.
const SPENT_MAX: usize = 1000;

/// What the account ids of sessions begin with. None of Atlassian's does.
const ACCOUNT_PREFIX: &str = "relay-operator-";

/// Makes invitations and keeps sessions.
pub struct Sessions {
    key: hmac::Key,
    lifetimes: PageLifetimes,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Invitations that were opened, until when they would have been good.
    spent: HashMap<Uuid, Timestamp>,
    /// By the digest of their cookie.
    live: HashMap<Digest, Live>,
}

/// An HMAC, for looking up what is itself not kept.
type Digest = [u8; 32];

struct Live {
    session: Arc<Session>,
    used_at: Timestamp,
    /// Links whose instance was told that the operator is an admin.
    vouched: HashSet<LinkId>,
}

/// An operator at the page of one installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The only installation that it is for.
    pub client_key: ClientKey,
    /// Stands for the operator where Jira would name a user.
    pub account_id: String,
    /// When its invitation was opened.
    pub opened_at: Timestamp,
}

/// What opens something to whoever has it. Prints nothing of it, is wiped on drop.
pub struct Proof(Zeroizing<String>);

/// An invitation that was made.
#[derive(Debug)]
pub struct NewInvitation {
    /// For the address.
    pub ticket: Proof,
    /// Its name in the audit trail, which opens nothing.
    pub number: Uuid,
    /// Until when it is good.
    pub expires_at: Timestamp,
}

/// What a good ticket says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    /// Whose page it opens.
    pub client_key: ClientKey,
    /// Its name in the audit trail.
    pub number: Uuid,
    /// In whole seconds.
    expires_at: i64,
}

/// Why a ticket opens nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvitationError {
    /// Changed, invented, or of an earlier life of the relay.
    #[error("the relay has given out no such address since it was started")]
    Unsigned,
    /// Too late.
    #[error("the time in which this address could be opened is over")]
    Expired,
    /// Somebody was here before.
    #[error("this address was opened already, and is good once")]
    Spent,
    /// So many were opened in the last minutes.
    #[error("too many such addresses were opened in the last minutes")]
    TooMany,
    /// No session could be made.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

/// Why somebody has no session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// None, one that is over, or one from before a restart.
    #[error("there is no session, or it is over")]
    Over,
    /// The cookie of a session, without what only its page knows.
    #[error("the call does not come from the session's own page")]
    NotItsPage,
}

/// What the relay knows of an account id that an instance asks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Account {
    /// Of a session of this very installation that is open now.
    Operator {
        /// The instance was not told before.
        first: bool,
    },
    /// It looks like a session's, and is none that counts here.
    Nobody,
    /// Jira's, if anybody's.
    Jiras,
}

impl Sessions {
    /// With a new key.
    pub fn new(lifetimes: PageLifetimes) -> Result<Self, NoRandomness> {
        let mut key = Zeroizing::new([0_u8; 32]);
        fill(&mut *key)?;
        Ok(Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, &*key),
            lifetimes,
            state: Mutex::default(),
        })
    }

    /// An invitation to the page of this installation.
    pub fn invite(&self, client_key: ClientKey, now: Timestamp) -> NewInvitation {
        let expires_at = now.saturating_add(self.lifetimes.invitation).unwrap_or(now);
        let invitation = Invitation {
            client_key,
            number: Uuid::new_v4(),
            expires_at: expires_at.as_second(),
        };
        // Writing this type as JSON can't fail.
        let text = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&invitation).unwrap_or_default());
        let signature = URL_SAFE_NO_PAD.encode(self.tag(TICKET, &text));
        NewInvitation {
            ticket: Proof(Zeroizing::new(format!("{text}.{signature}"))),
            number: invitation.number,
            expires_at: invitation.expires_at(),
        }
    }

    /// What a ticket says, if it can be opened now. It still can be afterwards: programs that look at every address must
    /// not use it up.
    pub fn look(
        &self,
        unverified_ticket: &str,
        now: Timestamp,
    ) -> Result<Invitation, InvitationError> {
        let invitation = self.verify(unverified_ticket, now)?;
        if lock(&self.state).spent.contains_key(&invitation.number) {
            return Err(InvitationError::Spent);
        }
        Ok(invitation)
    }

    /// Opens an invitation, which nobody can again: the session, and the cookie that stands for it.
    pub fn open(
        &self,
        unverified_ticket: &str,
        now: Timestamp,
    ) -> Result<(Proof, Arc<Session>), InvitationError> {
        let invitation = self.verify(unverified_ticket, now)?;
        let mut bytes = Zeroizing::new([0_u8; 32]);
        fill(&mut *bytes)?;
        let cookie = Proof(Zeroizing::new(URL_SAFE_NO_PAD.encode(*bytes)));
        let session = Arc::new(Session {
            client_key: invitation.client_key.clone(),
            account_id: format!("{ACCOUNT_PREFIX}{}", Uuid::new_v4().simple()),
            opened_at: now,
        });
        let mut state = lock(&self.state);
        state.spent.retain(|_, expires_at| now < *expires_at);
        state.live.retain(|_, live| self.is_good(live, now));
        if state.spent.contains_key(&invitation.number) {
            return Err(InvitationError::Spent);
        }
        if state.spent.len() >= SPENT_MAX {
            return Err(InvitationError::TooMany);
        }
        state
            .spent
            .insert(invitation.number, invitation.expires_at());
        if state.live.len() >= SESSIONS_MAX {
            let idlest = state.live.iter().min_by_key(|(_, live)| live.used_at);
            if let Some(idlest) = idlest.map(|(digest, _)| *digest) {
                state.live.remove(&idlest);
            }
        }
        let live = Live {
            session: Arc::clone(&session),
            used_at: now,
            vouched: HashSet::new(),
        };
        state.live.insert(self.tag(COOKIE, cookie.expose()), live);
        Ok((cookie, session))
    }

    /// How long a session can last.
    pub fn lifetime(&self) -> SignedDuration {
        self.lifetimes.session
    }

    /// The session of a cookie, for a new document of the page: that counts as use. With what the document must show
    /// in each of its calls.
    pub fn page(
        &self,
        unverified_cookie: &str,
        now: Timestamp,
    ) -> Result<(Arc<Session>, Proof), SessionError> {
        let session = self.find(unverified_cookie, true, now)?;
        let token = URL_SAFE_NO_PAD.encode(self.tag(PAGE, unverified_cookie));
        Ok((session, Proof(Zeroizing::new(token))))
    }

    /// The session of a call that the page makes. `use_it`: it is more than a look.
    pub fn call(
        &self,
        unverified_cookie: &str,
        unverified_token: &str,
        use_it: bool,
        now: Timestamp,
    ) -> Result<Arc<Session>, SessionError> {
        let session = self.find(unverified_cookie, false, now)?;
        let token = URL_SAFE_NO_PAD.decode(unverified_token).unwrap_or_default();
        self.check(PAGE, unverified_cookie, &token)
            .map_err(|_| SessionError::NotItsPage)?;
        if use_it {
            self.find(unverified_cookie, true, now)?;
        }
        Ok(session)
    }

    /// How many are open now.
    pub fn open_now(&self, now: Timestamp) -> usize {
        let state = lock(&self.state);
        let live = state.live.values();
        live.filter(|live| self.is_good(live, now)).count()
    }

    /// Ends a session.
    pub fn close(&self, session: &Session) {
        let mut state = lock(&self.state);
        state
            .live
            .retain(|_, live| live.session.account_id != session.account_id);
    }

    /// Whose account an instance asks about, over this link.
    pub fn account(
        &self,
        account_id: &str,
        client_key: &ClientKey,
        link: LinkId,
        now: Timestamp,
    ) -> Account {
        if !account_id.starts_with(ACCOUNT_PREFIX) {
            return Account::Jiras;
        }
        let state = lock(&self.state);
        let mut live = state.live.values();
        let found = live.find(|live| {
            live.session.account_id == account_id
                && live.session.client_key == *client_key
                && self.is_good(live, now)
        });
        found.map_or(Account::Nobody, |live| Account::Operator {
            first: !live.vouched.contains(&link),
        })
    }

    /// The instance of this link was told of the operator, and it stands in the audit trail.
    pub fn vouched(&self, account_id: &str, link: LinkId) {
        let mut state = lock(&self.state);
        let mut live = state.live.values_mut();
        if let Some(live) = live.find(|live| live.session.account_id == account_id) {
            live.vouched.insert(link);
        }
    }

    fn find(
        &self,
        unverified_cookie: &str,
        use_it: bool,
        now: Timestamp,
    ) -> Result<Arc<Session>, SessionError> {
        let digest = self.tag(COOKIE, unverified_cookie);
        let mut state = lock(&self.state);
        let live = state.live.get_mut(&digest);
        let live = live.filter(|live| self.is_good(live, now));
        let live = live.ok_or(SessionError::Over)?;
        if use_it {
            live.used_at = now;
        }
        Ok(Arc::clone(&live.session))
    }

    fn verify(
        &self,
        unverified_ticket: &str,
        now: Timestamp,
    ) -> Result<Invitation, InvitationError> {
        let read = || {
            let (text, signature) = unverified_ticket.split_once('.')?;
            let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
            self.check(TICKET, text, &signature).ok()?;
            let invitation = URL_SAFE_NO_PAD.decode(text).ok()?;
            serde_json::from_slice::<Invitation>(&invitation).ok()
        };
        let invitation = read().ok_or(InvitationError::Unsigned)?;
        if now >= invitation.expires_at() {
            return Err(InvitationError::Expired);
        }
        Ok(invitation)
    }

    /// Reading is no use: the page does that by itself every few seconds.
    fn is_good(&self, live: &Live, now: Timestamp) -> bool {
        now.duration_since(live.used_at) < self.lifetimes.idle
            && now.duration_since(live.session.opened_at) < self.lifetimes.session
    }

    fn tag(&self, purpose: u8, text: &str) -> Digest {
        let tag = hmac::sign(&self.key, &message(purpose, text));
        tag.as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    /// In constant time.
    fn check(&self, purpose: u8, text: &str, tag: &[u8]) -> Result<(), ring::error::Unspecified> {
        hmac::verify(&self.key, &message(purpose, text), tag)
    }
}

/// What is signed for one purpose is of no use for another.
const TICKET: u8 = 1;
const COOKIE: u8 = 2;
const PAGE: u8 = 3;

fn message(purpose: u8, text: &str) -> Zeroizing<Vec<u8>> {
    let mut message = Zeroizing::new(Vec::with_capacity(1 + text.len()));
    message.push(purpose);
    message.extend_from_slice(text.as_bytes());
    message
}

fn fill(bytes: &mut [u8]) -> Result<(), NoRandomness> {
    SystemRandom::new().fill(bytes).map_err(|_| NoRandomness)
}

impl Invitation {
    fn expires_at(&self) -> Timestamp {
        Timestamp::from_second(self.expires_at).unwrap_or(Timestamp::MIN)
    }
}

impl Proof {
    /// It in clear, for the one party that must get it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

const ANOTHER: &str = "run `jira-connect-proxy page` for a new address";

impl From<InvitationError> for Reject {
    fn from(error: InvitationError) -> Self {
        let (kind, code) = match error {
            InvitationError::Unsigned => (RejectKind::Unauthenticated, "invitation_invalid"),
            InvitationError::Expired => (RejectKind::Unauthenticated, "invitation_expired"),
            InvitationError::Spent => (RejectKind::Unauthenticated, "invitation_used"),
            InvitationError::TooMany => (RejectKind::Throttled, "invitations_many"),
            InvitationError::NoRandomness(error) => return Self::internal(error),
        };
        Self::new(kind, code, error.to_string(), ANOTHER)
    }
}

impl From<SessionError> for Reject {
    fn from(error: SessionError) -> Self {
        let code = match error {
            SessionError::Over => "session_over",
            SessionError::NotItsPage => "session_token",
        };
        Self::new(
            RejectKind::Unauthenticated,
            code,
            error.to_string(),
            ANOTHER,
        )
    }
}

#[cfg(test)]
mod tests;
