//! Sites that are reached through the operator's Forge app: what invocations tell of them is kept, and those that may
//! be gone are looked at.
//!
//! Forge has no way to ask for a token: each invocation brings one that lives about an hour, and a trigger comes every
//! hour. So hearing is all that can be done to stay connected, and only what is worth it is written down. Forge says
//! goodbye once (`preUninstall`) and never again. Whoever missed that has two signs, and neither is proof alone: Jira
//! refuses a token that is in its time, and no invocation comes any more.

mod standing;

pub use standing::{Standing, is_silent, measure, standing};

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use arc_swap::ArcSwap;
use futures_util::{StreamExt as _, stream};
use jiff::{SignedDuration, Timestamp};

use crate::{
    clock,
    config::ForgeConfig,
    domain::{
        Actor, AuditEntry, ClientKey, ForgeInstallationId, Installation, InstancePolicy,
        JiraBaseUrl, JiraSites, Upstream, UpstreamKind,
        installation::{InstallationChange, SiteAddress},
        upstream::{Forge, SystemToken},
    },
    jira::{
        Forwarder,
        server_info::{self, NotTold, ServerInfo},
    },
    linking::FollowError,
    lock::lock,
    reject::{Reject, RejectKind},
    sites,
    spool::Spool,
    store::{Store, TransactError, Transaction},
};

/// Triggers come every hour. From here on, some are missing.
pub const SILENT_AFTER: SignedDuration = SignedDuration::from_hours(3);

/// From here on, one is missing.
const ONE_MISSED: SignedDuration = SignedDuration::from_mins(100);

/// What was sent before an uninstall may arrive after it, repeats of events up to four minutes late.
const STRAGGLERS: SignedDuration = SignedDuration::from_mins(5);

/// Near its end, a token is good for a last question, if no better one has come.
const LAST_QUESTION: SignedDuration = SignedDuration::from_mins(15);

/// So many sites are asked at a time: those that say nothing keep the others waiting only so long.
const ASKED_AT_ONCE: usize = 8;

/// One refusal may be a mistake of anybody's.
const REFUSALS_THAT_COUNT: u32 = 2;

/// Keeps what invocations tell.
pub struct ForgeSites {
    /// What is known.
    pub store: Store,
    /// Asks Jira.
    pub forwarder: Arc<Forwarder>,
    /// Holds what waits for a token.
    pub spool: Spool,
    /// Whom a new site is linked to.
    pub policy: Arc<ArcSwap<InstancePolicy>>,
    /// Which addresses a site may have.
    pub sites: JiraSites,
    /// From one look to the next.
    pub check_every: Duration,
    /// After so long a silence a site is gone, if Jira says so too.
    pub gone_after: SignedDuration,
    /// While we were not there, nothing could be heard.
    pub started_at: Timestamp,
    /// Sites that have answered the last question, with the end of the token that it was asked with.
    answered: Mutex<HashMap<ClientKey, Timestamp>>,
}

/// What an invocation told.
#[derive(Clone, Debug)]
pub struct Told {
    /// As it would be noted.
    pub forge: Forge,
    /// The site's address, if the token told it.
    pub site: Option<JiraBaseUrl>,
    /// When Forge signed it.
    pub issued_at: Timestamp,
    /// It is an event: it says that something has happened to the installation.
    pub is_event: bool,
}

/// Whose invocation it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The site's record.
    pub client_key: ClientKey,
    /// What it changed, beside the token.
    pub change: InstallationChange,
}

/// Why an invocation could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum NotHeard {
    /// It was sent before the app was uninstalled.
    #[error("the app was uninstalled on this site")]
    Left,
    /// Without a token, nothing is to be done for a site that is not known.
    #[error("Forge sent no token of the app's own, so that the site can't be called")]
    TokenMissing,
    /// The app is on this site from another environment, or was installed anew.
    #[error("another installation of the app serves this site")]
    Another,
    /// Jira says nothing, or no.
    #[error(transparent)]
    NotTold(#[from] NotTold),
    /// The store.
    #[error(transparent)]
    Store(#[from] TransactError<FollowError>),
}

impl ForgeSites {
    /// As configured.
    pub fn new(
        config: &ForgeConfig,
        (store, forwarder, spool): (Store, Arc<Forwarder>, Spool),
        policy: Arc<ArcSwap<InstancePolicy>>,
        sites: JiraSites,
        now: Timestamp,
    ) -> Self {
        Self {
            store,
            forwarder,
            spool,
            policy,
            sites,
            check_every: config.check_every,
            gone_after: config.gone_after,
            started_at: now,
            answered: Mutex::default(),
        }
    }

    /// The site of an installation of the app: of several records the one in which it is open.
    pub fn find(&self, id: &ForgeInstallationId) -> Option<Arc<Installation>> {
        let known = self.store.installations().into_iter();
        known
            .filter(|known| has(known, id))
            .max_by_key(|known| is_open(known))
    }

    /// Takes what an invocation told; durable on return. A site that is not known joins: the event that announced it
    /// may have been lost.
    pub async fn hear(
        &self,
        told: Told,
        audit: AuditEntry,
        now: Timestamp,
    ) -> Result<Heard, NotHeard> {
        let known = self.find(&told.forge.installation_id);
        if let Some(known) = known.as_ref().filter(|known| is_open(known)) {
            return self.note(known, told.forge, now).await;
        }
        if let Some(left) = known.as_ref().and_then(|known| known.uninstalled_at)
            && told.issued_at.duration_since(left) < STRAGGLERS
        {
            return Err(NotHeard::Left);
        }
        if !told.is_event && self.has_rival(&told.forge, now) {
            return Err(NotHeard::Another);
        }
        let info = self.address(&told, known.is_some()).await?;
        let auto_link = self.policy.load().auto_link.clone();
        let forge = told.forge;
        let joined = self.store.transact(move |transaction| {
            // Another invocation may have been faster.
            let id = &forge.installation_id;
            let all = transaction.installations();
            if let Some(known) = all.iter().find(|known| has(known, id) && is_open(known)) {
                return note(transaction, &known.client_key, &forge, false, now);
            }
            let display_url = info.display_url.unwrap_or_else(|| {
                let same = all.iter().find(|known| known.base_url == info.base_url);
                same.and_then(|known| known.display_url.clone())
            });
            let address = SiteAddress {
                base_url: info.base_url,
                display_url,
            };
            let way = Upstream::Forge(forge);
            let joined = sites::join(transaction, way, address, &auto_link, audit, now)?;
            Ok(Heard {
                client_key: joined.client_key,
                change: joined.change,
            })
        });
        let heard = joined.await?;
        self.spool.release(&heard.client_key);
        Ok(heard)
    }

    /// The app is about to be uninstalled. Forge does not say it again.
    pub async fn leave(
        &self,
        id: &ForgeInstallationId,
        audit: AuditEntry,
        now: Timestamp,
    ) -> Result<Option<Heard>, TransactError<FollowError>> {
        let Some(known) = self.find(id) else {
            return Ok(None);
        };
        let client_key = known.client_key.clone();
        let id = id.clone();
        let left = self.store.transact(move |transaction| {
            // Somebody else's, if the app was installed anew meanwhile.
            match transaction.installation(&client_key) {
                Some(known) if has(&known, &id) => {}
                _ => return Ok(InstallationChange::Unchanged),
            }
            sites::leave(transaction, &client_key, UpstreamKind::Forge, audit, now)
        });
        let change = left.await?;
        self.spool.release(&known.client_key);
        Ok(Some(Heard {
            client_key: known.client_key.clone(),
            change,
        }))
    }

    /// Follows a site that was moved or renamed, with a token that has just come.
    pub async fn follow(&self, client_key: &ClientKey, now: Timestamp) {
        if let Some(known) = self.store.installation(client_key) {
            self.look(&known, now).await;
        }
    }

    /// Looks at sites from time to time until `shutdown`.
    pub async fn run(self: Arc<Self>, shutdown: impl Future<Output = ()>) {
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            let round = async {
                tokio::time::sleep(self.check_every).await;
                self.check(clock::now()).await;
            };
            tokio::select! {
                () = &mut shutdown => return,
                () = round => {}
            }
        }
    }

    /// Asks Jira about sites whose app may be gone, and leaves those that are.
    async fn check(&self, now: Timestamp) {
        lock(&self.answered).retain(|_, end| now < *end);
        let known = stream::iter(self.store.installations());
        let looks = known.for_each_concurrent(ASKED_AT_ONCE, |known| async move {
            // It had its turn to wait for, in which Forge may have called.
            let known = self.store.installation(&known.client_key);
            let Some(known) = known.filter(|known| is_open(known)) else {
                return;
            };
            let Some(forge) = known.forge() else { return };
            if self.is_gone(forge, now) {
                self.leave_gone(&known, forge, now).await;
            } else if self.is_doubtful(&known, forge, now) {
                self.look(&known, now).await;
            }
        });
        looks.await;
    }

    /// Jira has refused the token more than once, and nothing has come for very long, though we were there to hear it.
    fn is_gone(&self, forge: &Forge, now: Timestamp) -> bool {
        let there = now.duration_since(self.started_at);
        is_refused_for_sure(forge)
            && now.duration_since(forge.told_at) >= self.gone_after
            && there >= SILENT_AFTER.min(self.gone_after)
    }

    /// A question is worth while: there is a token for it, and either it was refused or it is the last chance, which
    /// needs no more than one answer: each hour has such a quarter for each site whose tokens live no longer.
    fn is_doubtful(&self, known: &Arc<Installation>, forge: &Forge, now: Timestamp) -> bool {
        let Some(token) = forge.valid_token(now) else {
            return false;
        };
        let answered = || lock(&self.answered).get(&known.client_key) == Some(&token.expires_at);
        self.was_refused(known, forge) || is_ending(token, now) && !answered()
    }

    fn was_refused(&self, known: &Arc<Installation>, forge: &Forge) -> bool {
        let in_use = known.upstream.kind() == UpstreamKind::Forge;
        forge.refused.is_some() || in_use && self.forwarder.was_refused(known)
    }

    /// Whether this environment's installation would take the place of another one that is alive. Of one that was
    /// removed while nobody was there to hear it, Jira refuses the token, and nothing comes.
    fn has_rival(&self, told: &Forge, now: Timestamp) -> bool {
        self.store.installations().iter().any(|known| {
            known.forge().is_some_and(|forge| {
                is_open(known)
                    && forge.cloud_id == told.cloud_id
                    && forge.installation_id != told.installation_id
                    && !is_silent(forge, now)
                    && !(is_refused_for_sure(forge) && misses_a_trigger(forge, now))
            })
        })
    }

    async fn note(
        &self,
        known: &Arc<Installation>,
        forge: Forge,
        now: Timestamp,
    ) -> Result<Heard, NotHeard> {
        let before = known.forge();
        let doubted = before.is_some_and(|before| self.was_refused(known, before));
        let client_key = known.client_key.clone();
        if before.is_none_or(|before| before.after(&forge, doubted, now).is_none()) {
            return Ok(Heard {
                client_key,
                change: InstallationChange::Unchanged,
            });
        }
        let noted = self
            .store
            .transact(move |transaction| note(transaction, &client_key, &forge, doubted, now));
        let heard = noted.await?;
        self.spool.release(&heard.client_key);
        Ok(heard)
    }

    /// A tombstone's site is asked even if the token tells it: whoever lives has a token that Jira takes.
    async fn address(&self, told: &Told, was_left: bool) -> Result<ServerInfo, NotHeard> {
        let token = &told.forge.system_token;
        let token = token.as_ref().ok_or(NotHeard::TokenMissing)?;
        if let Some(base_url) = told.site.clone().filter(|_| !was_left) {
            return Ok(ServerInfo {
                base_url,
                display_url: None,
            });
        }
        let cloud_id = &told.forge.cloud_id;
        let asked = server_info::ask(&self.forwarder, cloud_id, &token.token, &self.sites).await;
        Ok(asked?)
    }

    /// Asks a site for its address, and takes down what that shows.
    async fn look(&self, known: &Arc<Installation>, now: Timestamp) {
        let Some((forge, token)) = known
            .forge()
            .and_then(|forge| Some((forge, forge.valid_token(now)?)))
        else {
            return;
        };
        let cloud_id = &forge.cloud_id;
        let asked = server_info::ask(&self.forwarder, cloud_id, &token.token, &self.sites).await;
        let written = match asked {
            Ok(info) => {
                self.forwarder.forget_refusal(known);
                if is_ending(token, now) {
                    lock(&self.answered).insert(known.client_key.clone(), token.expires_at);
                }
                self.found(known, token, info, now).await
            }
            Err(NotTold::Refused { status, told }) => {
                tracing::warn!(
                    client.key = %known.client_key, %status,
                    "Jira refuses the token of the Forge app for {}, which is in its time: {told}", known.base_url
                );
                self.note_verdict(known, token, Some(now)).await
            }
            Err(error) => {
                tracing::info!(client.key = %known.client_key, "{}: {error}", known.base_url);
                Ok(())
            }
        };
        if let Err(error) = written {
            tracing::error!(
                client.key = %known.client_key,
                "what was found out about {} could not be kept: {error}", known.base_url
            );
        }
    }

    async fn found(
        &self,
        known: &Arc<Installation>,
        token: &SystemToken,
        info: ServerInfo,
        now: Timestamp,
    ) -> Result<(), TransactError<FollowError>> {
        let ServerInfo {
            base_url,
            display_url,
        } = info;
        let display_url = display_url.unwrap_or_else(|| known.display_url.clone());
        let same = known.base_url == base_url && known.display_url == display_url;
        // Of a way that stands by, the one in use knows better.
        if same || known.upstream.kind() != UpstreamKind::Forge {
            if known.forge().is_some_and(|forge| forge.refused.is_none()) {
                return Ok(());
            }
            return self.note_verdict(known, token, None).await;
        }
        tracing::info!(
            client.key = %known.client_key,
            "{} calls itself {base_url} now", known.base_url
        );
        let (client_key, auto_link) = (
            known.client_key.clone(),
            self.policy.load().auto_link.clone(),
        );
        let audit = AuditEntry::new(now, Actor::Relay, "");
        let note = format!("from {} to {base_url}", known.base_url);
        let address = SiteAddress {
            base_url,
            display_url,
        };
        let audit = AuditEntry {
            note: Some(note),
            ..audit
        };
        let followed = self.store.transact(move |transaction| {
            // With the newest token, whatever came meanwhile.
            let known = transaction.installation(&client_key);
            let known = known.filter(|known| is_open(known));
            if let Some(way) = known.and_then(|known| known.forge().cloned()) {
                let way = Upstream::Forge(Forge {
                    refused: None,
                    ..way
                });
                sites::join(transaction, way, address, &auto_link, audit, now)?;
            }
            Ok(())
        });
        followed.await?;
        self.spool.release(&known.client_key);
        Ok(())
    }

    /// Notes what Jira says to a token, if it is still the one: that it refused it just now, or takes it. Whatever else
    /// was told while Jira was asked stays.
    async fn note_verdict(
        &self,
        known: &Arc<Installation>,
        token: &SystemToken,
        refused_at: Option<Timestamp>,
    ) -> Result<(), TransactError<FollowError>> {
        let (client_key, token) = (known.client_key.clone(), token.clone());
        self.store
            .transact(move |transaction| {
                let known = transaction.installation(&client_key);
                let current = known.as_ref().and_then(|known| known.forge());
                let current = current.filter(|forge| forge.system_token.as_ref() == Some(&token));
                if let Some(forge) = current {
                    let taken = || Forge {
                        refused: None,
                        ..forge.clone()
                    };
                    let judged = refused_at.map_or_else(taken, |now| forge.refused(now));
                    sites::told(transaction, &client_key, judged)?;
                }
                Ok(())
            })
            .await
    }

    async fn leave_gone(&self, known: &Arc<Installation>, forge: &Forge, now: Timestamp) {
        let (site, told_at) = (&known.base_url, forge.told_at);
        let note = format!(
            "Jira refused the token, and Forge has sent nothing since {told_at:.0}: taken for uninstalled"
        );
        let audit = AuditEntry {
            note: Some(note),
            ..AuditEntry::new(now, Actor::Relay, "")
        };
        match self.leave(&forge.installation_id, audit, now).await {
            Ok(_) => tracing::warn!(
                client.key = %known.client_key,
                "the Forge app is gone from {site}: Jira refused its token, and nothing came since {told_at:.0}"
            ),
            Err(error) => tracing::error!(
                client.key = %known.client_key,
                "{site} could not be left: {error}"
            ),
        }
    }
}

/// Jira has refused a token of Forge's own more than once. One from the page proves nothing by that: anybody there could
/// have made it up.
fn is_refused_for_sure(forge: &Forge) -> bool {
    let own = forge
        .system_token
        .as_ref()
        .is_some_and(|token| !token.from_page);
    own && forge
        .refused
        .is_some_and(|refused| refused.times >= REFUSALS_THAT_COUNT)
}

/// Forge calls every hour, and what comes is noted every half of one at the least.
fn misses_a_trigger(forge: &Forge, now: Timestamp) -> bool {
    now.duration_since(forge.told_at) >= ONE_MISSED
}

/// Keeps the better of what is known and what was told.
fn note(
    transaction: &mut Transaction<'_>,
    client_key: &ClientKey,
    forge: &Forge,
    doubted: bool,
    now: Timestamp,
) -> Result<Heard, FollowError> {
    let known = transaction.installation(client_key);
    let before = known.as_ref().and_then(|known| known.forge());
    let before = before.filter(|before| before.installation_id == forge.installation_id);
    if let Some(next) = before.and_then(|before| before.after(forge, doubted, now)) {
        sites::told(transaction, client_key, next)?;
    }
    Ok(Heard {
        client_key: client_key.clone(),
        change: InstallationChange::Unchanged,
    })
}

fn is_ending(token: &SystemToken, now: Timestamp) -> bool {
    token.expires_at.duration_since(now) < LAST_QUESTION
}

fn has(known: &Installation, id: &ForgeInstallationId) -> bool {
    known
        .forge()
        .is_some_and(|forge| forge.installation_id == *id)
}

/// Whether the way through Forge is: one that stands by always is.
fn is_open(known: &Installation) -> bool {
    known.is_installed() || known.upstream.kind() != UpstreamKind::Forge
}

impl From<NotHeard> for Reject {
    fn from(error: NotHeard) -> Self {
        let message = error.to_string();
        let (kind, code, hint) = match error {
            NotHeard::Store(error) => return error.into(),
            NotHeard::Left => (
                RejectKind::Conflict,
                "installation_uninstalled",
                "install the app in Jira again; its links come back by themselves",
            ),
            NotHeard::TokenMissing => (
                RejectKind::Unprocessable,
                "system_token_missing",
                "the app needs the scope read:app-system-token, and its endpoints auth.appSystemToken; `jira-connect-proxy forge init` writes both",
            ),
            NotHeard::Another => (
                RejectKind::Conflict,
                "another_installation",
                "one environment of the app serves a site: uninstall the other, or leave its environment out of forge.environments; if there is no other, because the app was installed anew while the relay was down, wait, three hours at most: what has fallen silent is in nobody's way",
            ),
            NotHeard::NotTold(NotTold::Unserved(_)) => (
                RejectKind::Forbidden,
                "site_not_allowed",
                "the operator can list the site in jira.extra_sites",
            ),
            NotHeard::NotTold(NotTold::Unscoped(_)) => (
                RejectKind::Unprocessable,
                "scope_missing",
                "the app needs the scope read:instance-configuration:jira; `jira-connect-proxy forge upgrade` writes it",
            ),
            NotHeard::NotTold(NotTold::Refused { .. } | NotTold::Silent(_)) => (
                RejectKind::Unavailable,
                "jira_unavailable",
                "try again; look whether the relay reaches jira.api_url",
            ),
        };
        Self::new(kind, code, message, hint)
    }
}
