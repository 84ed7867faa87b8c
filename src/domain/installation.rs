//! One Jira site that we serve, and what a lifecycle event does to it.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{
    ClientKey, ImportId, JiraBaseUrl, SharedSecret,
    event::{EventStamp, SiteFacts},
};

/// One Jira site. Keyed by `client_key`; two rows may share a `base_url` after a site import
/// (Atlassian AC-1528: the imported site gets a new client key and the old one never says goodbye).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installation {
    /// The tenant.
    pub client_key: ClientKey,
    /// REST base of the site.
    pub base_url: JiraBaseUrl,
    /// What users of the site see, if it differs.
    pub display_url: Option<String>,
    /// Whether the app is installed there now.
    pub state: InstallationState,
    /// The current secret.
    pub shared_secret: SharedSecret,
    /// The secret before the last rotation; also honoured until `valid_until`.
    pub previous_secret: Option<RetiredSecret>,
    /// Counts distinct secrets, from 1.
    pub secret_generation: u64,
    /// When the app was installed (again) on the site.
    pub installed_at: Timestamp,
    /// When the app was removed, if it is.
    pub uninstalled_at: Option<Timestamp>,
    /// The newest lifecycle call that changed this record.
    pub last_event: EventStamp,
    /// It is as an import made it; the first lifecycle call of Jira's takes this away.
    #[serde(default)]
    pub imported: Option<Imported>,
}

/// Where a record came from that Jira has not touched since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// By which import.
    pub by: ImportId,
    /// That import was rolled back: the record goes with the last of its links.
    pub leaving: bool,
}

/// Whether the app is installed on the site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstallationState {
    /// Yes.
    Installed,
    /// Removed; kept as a tombstone so that a reinstall revives its links.
    Uninstalled,
}

/// A secret that was replaced. Requests signed with it may still be in flight.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetiredSecret {
    /// The old secret.
    pub secret: SharedSecret,
    /// Until when it still counts.
    pub valid_until: Timestamp,
}

/// What an event did to an installation, in the order of importance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstallationChange {
    /// A site that we did not know.
    Created,
    /// The app came back after an uninstall.
    Reinstalled,
    /// Known and installed: something may have been updated.
    Updated {
        /// A new secret.
        secret: bool,
        /// A new base URL (site renamed).
        base_url: bool,
    },
    /// The app was removed.
    Uninstalled,
    /// Nothing but the newest event's stamp.
    Repeated,
    /// Nothing: a repeat, or an event older than what we hold.
    Unchanged,
}

/// A token came again, with another body, later than Jira can have meant it.
///
/// The signature covers no body and the claims hold whole seconds and no `jti`, so two honest calls of the same
/// second carry the same token. What comes much later was put behind a token that somebody read in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this token was used some time ago with a different body")]
pub struct TokenReused;

/// How far apart two calls of the same second may arrive.
const SAME_SECOND_ARRIVES_WITHIN: SignedDuration = SignedDuration::from_secs(5);

impl Installation {
    /// `installed`: an upsert, because rename, import, upgrade and rotation all arrive this way
    /// (Atlassian's "installation callback success rate" page).
    pub fn install(
        known: Option<&Self>,
        client_key: &ClientKey,
        stamp: &EventStamp,
        site: &SiteFacts,
        grace: SignedDuration,
        now: Timestamp,
    ) -> Result<(Self, InstallationChange), TokenReused> {
        let Some(known) = known else {
            let created = Self {
                client_key: client_key.clone(),
                base_url: site.base_url.clone(),
                display_url: site.display_url.clone(),
                state: InstallationState::Installed,
                shared_secret: site.shared_secret.clone(),
                previous_secret: None,
                secret_generation: 1,
                installed_at: now,
                uninstalled_at: None,
                last_event: stamp.clone(),
                imported: None,
            };
            return Ok((created, InstallationChange::Created));
        };
        if !known.is_news(stamp)? {
            return Ok((known.clone(), InstallationChange::Unchanged));
        }
        let secret = known.shared_secret != site.shared_secret;
        let base_url = known.base_url != site.base_url;
        let back = known.state == InstallationState::Uninstalled;
        let mut next = known.clone();
        if secret {
            let old = std::mem::replace(&mut next.shared_secret, site.shared_secret.clone());
            next.previous_secret = Some(RetiredSecret {
                secret: old,
                valid_until: now.saturating_add(grace).unwrap_or(Timestamp::MAX),
            });
            next.secret_generation += 1;
        }
        next.base_url = site.base_url.clone();
        next.display_url = site.display_url.clone();
        next.state = InstallationState::Installed;
        next.uninstalled_at = None;
        next.last_event = stamp.clone();
        next.imported = None;
        let change = if back {
            next.installed_at = now;
            InstallationChange::Reinstalled
        } else {
            InstallationChange::Updated { secret, base_url }
        };
        Ok((next, change))
    }

    /// A site that another proxy served until now. Nobody knows when Jira told that proxy, so any lifecycle call that
    /// reaches us is newer.
    pub fn import(client_key: ClientKey, site: SiteFacts, by: ImportId, now: Timestamp) -> Self {
        Self {
            client_key,
            base_url: site.base_url,
            display_url: site.display_url,
            state: InstallationState::Installed,
            shared_secret: site.shared_secret,
            previous_secret: None,
            secret_generation: 1,
            installed_at: now,
            uninstalled_at: None,
            last_event: EventStamp {
                issued_at: Timestamp::UNIX_EPOCH,
                token_digest: String::new(),
                body_digest: String::new(),
                received_at: now,
            },
            imported: Some(Imported { by, leaving: false }),
        }
    }

    /// `uninstalled`: leaves a tombstone. One that is older than the newest `installed` is a straggler
    /// from before a reinstall and changes nothing.
    pub fn uninstall(
        &self,
        stamp: &EventStamp,
        now: Timestamp,
    ) -> Result<(Self, InstallationChange), TokenReused> {
        if !self.is_news(stamp)? {
            return Ok((self.clone(), InstallationChange::Unchanged));
        }
        // Also a tombstone takes the stamp: an `installed` from before it must not revive the site.
        let mut next = Self {
            last_event: stamp.clone(),
            imported: None,
            ..self.clone()
        };
        if self.state == InstallationState::Uninstalled {
            return Ok((next, InstallationChange::Repeated));
        }
        next.state = InstallationState::Uninstalled;
        next.uninstalled_at = Some(now);
        Ok((next, InstallationChange::Uninstalled))
    }

    /// The secrets a token of this site may be signed with now, newest first.
    pub fn accepted_secrets(&self, now: Timestamp) -> impl Iterator<Item = &SharedSecret> {
        let previous = self
            .previous_secret
            .as_ref()
            .filter(|retired| now < retired.valid_until);
        std::iter::once(&self.shared_secret).chain(previous.map(|retired| &retired.secret))
    }

    /// Whether the secret before the last rotation counts no more.
    pub fn has_expired_secret(&self, now: Timestamp) -> bool {
        self.previous_secret
            .as_ref()
            .is_some_and(|retired| retired.valid_until <= now)
    }

    /// Drops the secret before the last rotation once it counts no more.
    pub fn forget_expired_secret(&mut self, now: Timestamp) {
        if self.has_expired_secret(now) {
            self.previous_secret = None;
        }
    }

    /// Whether the app is installed on the site.
    pub fn is_installed(&self) -> bool {
        self.state == InstallationState::Installed
    }

    /// Events of the same second are taken in the order of arrival; older ones say nothing new.
    fn is_news(&self, stamp: &EventStamp) -> Result<bool, TokenReused> {
        if stamp.token_digest == self.last_event.token_digest {
            if stamp.body_digest == self.last_event.body_digest {
                return Ok(false);
            }
            let apart = stamp
                .received_at
                .duration_since(self.last_event.received_at);
            if apart > SAME_SECOND_ARRIVES_WITHIN {
                return Err(TokenReused);
            }
        }
        Ok(stamp.issued_at >= self.last_event.issued_at)
    }
}

impl InstallationState {
    /// The word in answers and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Installed => "installed",
            Self::Uninstalled => "uninstalled",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::JiraSites;

    const GRACE: SignedDuration = SignedDuration::from_secs(300);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("second")
    }

    fn stamp(second: i64, token: &str, body: &str) -> EventStamp {
        EventStamp {
            issued_at: at(second),
            token_digest: token.to_owned(),
            body_digest: body.to_owned(),
            received_at: at(second),
        }
    }

    fn site(secret: &str, base_url: &str) -> SiteFacts {
        SiteFacts {
            base_url: JiraSites::default().parse(base_url).expect("base URL"),
            display_url: None,
            shared_secret: SharedSecret::parse(&secret.repeat(32)).expect("secret"),
        }
    }

    fn installed() -> Installation {
        let key = ClientKey::parse("tenant").expect("key");
        let facts = site("a", "https://acme.atlassian.net");
        Installation::install(None, &key, &stamp(100, "t1", "b1"), &facts, GRACE, at(100))
            .expect("install")
            .0
    }

    fn again(
        known: &Installation,
        stamp: &EventStamp,
        site: &SiteFacts,
        now: i64,
    ) -> (Installation, InstallationChange) {
        Installation::install(Some(known), &known.client_key, stamp, site, GRACE, at(now))
            .expect("install")
    }

    #[test]
    fn a_rotation_keeps_the_old_secret_for_the_grace_time() {
        let known = installed();
        let facts = site("b", "https://acme.atlassian.net");
        let (next, change) = again(&known, &stamp(200, "t2", "b2"), &facts, 200);
        assert_eq!(
            change,
            InstallationChange::Updated {
                secret: true,
                base_url: false
            }
        );
        assert_eq!(next.secret_generation, 2);
        assert_eq!(next.accepted_secrets(at(499)).count(), 2);
        assert_eq!(next.accepted_secrets(at(500)).count(), 1);
        assert_eq!(
            next.accepted_secrets(at(500)).next(),
            Some(&facts.shared_secret)
        );
    }

    #[test]
    fn a_rename_is_followed_without_a_rotation() {
        let known = installed();
        let facts = site("a", "https://renamed.atlassian.net");
        let (next, change) = again(&known, &stamp(200, "t2", "b2"), &facts, 200);
        assert_eq!(
            change,
            InstallationChange::Updated {
                secret: false,
                base_url: true
            }
        );
        assert_eq!(next.base_url.as_str(), "https://renamed.atlassian.net");
        assert_eq!(next.secret_generation, 1);
    }

    #[test]
    fn an_older_event_changes_nothing() {
        let known = installed();
        let facts = site("z", "https://old.atlassian.net");
        let (next, change) = again(&known, &stamp(99, "t0", "b0"), &facts, 200);
        assert_eq!(
            (next, change),
            (known.clone(), InstallationChange::Unchanged)
        );
        let (next, change) = known
            .uninstall(&stamp(99, "t0", "b0"), at(200))
            .expect("uninstall");
        assert_eq!((next, change), (known, InstallationChange::Unchanged));
    }

    #[test]
    fn a_token_serves_other_bodies_in_its_own_second_only() {
        let known = installed();
        let (same, other) = (
            site("a", "https://acme.atlassian.net"),
            site("z", "https://acme.atlassian.net"),
        );
        let (_, change) = again(&known, &stamp(100, "t1", "b1"), &same, 101);
        assert_eq!(change, InstallationChange::Unchanged);
        let came = |second| EventStamp {
            received_at: at(second),
            ..stamp(100, "t1", "other")
        };
        let (next, _) = again(&known, &came(105), &other, 105);
        assert_eq!(next.shared_secret, other.shared_secret);
        let key = &known.client_key;
        let late = Installation::install(Some(&known), key, &came(106), &other, GRACE, at(106));
        assert_eq!(late, Err(TokenReused));
    }

    #[test]
    fn an_imported_site_is_its_imports_until_jira_speaks() {
        let key = ClientKey::parse("tenant").expect("key");
        let facts = site("a", "https://acme.atlassian.net");
        let imported = Installation::import(key, facts.clone(), ImportId::generate(), at(100));
        assert!(imported.is_installed() && imported.imported.is_some());
        let (same, _) = again(&imported, &stamp(50, "t1", "b1"), &facts, 101);
        assert_eq!(same.imported, None, "even if it says the same");
        let (gone, _) = imported
            .uninstall(&stamp(50, "t2", "b2"), at(101))
            .expect("uninstall");
        assert_eq!((gone.is_installed(), gone.imported), (false, None));
    }

    #[test]
    fn an_uninstall_leaves_a_tombstone_that_a_reinstall_revives() {
        let known = installed();
        let (gone, change) = known
            .uninstall(&stamp(200, "t2", "b2"), at(200))
            .expect("uninstall");
        assert_eq!(change, InstallationChange::Uninstalled);
        assert_eq!(gone.uninstalled_at, Some(at(200)));
        let (back, change) = again(
            &gone,
            &stamp(300, "t3", "b3"),
            &site("b", "https://acme.atlassian.net"),
            300,
        );
        assert_eq!(change, InstallationChange::Reinstalled);
        assert_eq!((back.installed_at, back.uninstalled_at), (at(300), None));
        let (gone, change) = gone
            .uninstall(&stamp(250, "t4", "b4"), at(250))
            .expect("uninstall");
        assert_eq!(change, InstallationChange::Repeated);
        let late = again(
            &gone,
            &stamp(240, "t5", "b5"),
            &site("b", "https://acme.atlassian.net"),
            300,
        );
        assert_eq!(
            late.1,
            InstallationChange::Unchanged,
            "older than the newest uninstall"
        );
    }
}
