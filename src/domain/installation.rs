//! One Jira site that we serve, and what a lifecycle event does to it.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{
    ClientKey, ImportId, JiraBaseUrl, SharedSecret,
    event::{EventStamp, SiteFacts},
    upstream::{Connect, Forge, Upstream, UpstreamKind},
};

/// One Jira site. Keyed by `client_key`; two rows may share a `base_url` after a site import
/// (Atlassian AC-1528: the imported site gets a new client key and the old one never says goodbye).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installation {
    /// The tenant. Instances were told this key, so it stays when the way to the site changes.
    pub client_key: ClientKey,
    /// Address of the site.
    pub base_url: JiraBaseUrl,
    /// What users of the site see, if it differs.
    pub display_url: Option<String>,
    /// Whether the way in use is open.
    pub state: InstallationState,
    /// When it was opened (again).
    pub installed_at: Timestamp,
    /// When it was shut, if it is.
    pub uninstalled_at: Option<Timestamp>,
    /// It is as an import made it; the first lifecycle call of Jira's takes this away.
    #[serde(default)]
    pub imported: Option<Imported>,
    /// The way that is used.
    pub upstream: Upstream,
    /// Open ways that are not used: at most one of a kind, and none of the kind in use.
    pub standby: Vec<Upstream>,
}

/// Where a site is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteAddress {
    /// Its own address.
    pub base_url: JiraBaseUrl,
    /// What users see, where it differs (custom domain).
    pub display_url: Option<String>,
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
    /// Another way to the site than the one in use came, changed or went.
    Standby,
    /// The site is reached another way from now on.
    Moved,
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

/// There is no such way to the site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this site can't be reached through {}", .0.as_str())]
pub struct NoSuchWay(pub UpstreamKind);

impl Installation {
    /// A site that has let us in.
    pub fn new(
        client_key: ClientKey,
        address: SiteAddress,
        upstream: Upstream,
        now: Timestamp,
    ) -> Self {
        Self {
            client_key,
            base_url: address.base_url,
            display_url: address.display_url,
            state: InstallationState::Installed,
            installed_at: now,
            uninstalled_at: None,
            imported: None,
            upstream,
            standby: Vec::new(),
        }
    }

    /// `installed` of a Connect app: an upsert, because rename, import, upgrade and rotation all arrive this way
    /// (Atlassian's "installation callback success rate" page).
    pub fn install(
        known: Option<&Self>,
        client_key: &ClientKey,
        stamp: &EventStamp,
        site: &SiteFacts,
        grace: SignedDuration,
        now: Timestamp,
    ) -> Result<(Self, InstallationChange), TokenReused> {
        let address = SiteAddress {
            base_url: site.base_url.clone(),
            display_url: site.display_url.clone(),
        };
        let mut connect = Connect::new(site.shared_secret.clone(), stamp.clone());
        let Some(known) = known else {
            let upstream = Upstream::Connect(connect);
            let created = Self::new(client_key.clone(), address, upstream, now);
            return Ok((created, InstallationChange::Created));
        };
        if let Some(before) = known.connect() {
            if !is_news(stamp, &before.last_event)? {
                return Ok((known.clone(), InstallationChange::Unchanged));
            }
            connect = connect.after(before, grace, now);
        }
        Ok(known.join(Upstream::Connect(connect), address, now))
    }

    /// The site has opened a way, or says anew what it is. One of another kind than the one in use stands by: only an
    /// operator moves a site from one to the other.
    pub fn join(
        &self,
        way: Upstream,
        address: SiteAddress,
        now: Timestamp,
    ) -> (Self, InstallationChange) {
        let mut next = self.clone();
        if way.kind() != self.upstream.kind() {
            // Whoever is given the site's address follows the way in use, so that one tells it.
            next.standby.retain(|known| known.kind() != way.kind());
            next.standby.push(way);
            return (next, InstallationChange::Standby);
        }
        let renamed = self.base_url != address.base_url;
        let secret = !way.opens_like(&self.upstream);
        next.base_url = address.base_url;
        next.display_url = address.display_url;
        next.upstream = way;
        next.state = InstallationState::Installed;
        next.uninstalled_at = None;
        next.imported = None;
        if self.is_installed() {
            let base_url = renamed;
            (next, InstallationChange::Updated { secret, base_url })
        } else {
            next.installed_at = now;
            (next, InstallationChange::Reinstalled)
        }
    }

    /// A site that another proxy served until now. Nobody knows when Jira told that proxy, so any lifecycle call that
    /// reaches us is newer.
    pub fn import(client_key: ClientKey, site: SiteFacts, by: ImportId, now: Timestamp) -> Self {
        let told = EventStamp {
            issued_at: Timestamp::UNIX_EPOCH,
            token_digest: String::new(),
            body_digest: String::new(),
            received_at: now,
        };
        let address = SiteAddress {
            base_url: site.base_url,
            display_url: site.display_url,
        };
        let upstream = Upstream::Connect(Connect::new(site.shared_secret, told));
        Self {
            imported: Some(Imported { by, leaving: false }),
            ..Self::new(client_key, address, upstream, now)
        }
    }

    /// `uninstalled` of a Connect app: leaves a tombstone. One that is older than the newest `installed` is a
    /// straggler from before a reinstall and changes nothing.
    pub fn uninstall(
        &self,
        stamp: &EventStamp,
        now: Timestamp,
    ) -> Result<(Self, InstallationChange), TokenReused> {
        let unchanged = (self.clone(), InstallationChange::Unchanged);
        let Some(connect) = self.connect() else {
            return Ok(unchanged);
        };
        if !is_news(stamp, &connect.last_event)? {
            return Ok(unchanged);
        }
        let (mut next, change) = self.leave(UpstreamKind::Connect, now);
        // Also a tombstone takes the stamp: an `installed` from before it must not revive the site.
        if let Some(connect) = next.connect_mut() {
            connect.last_event = stamp.clone();
        }
        Ok((next, change))
    }

    /// A way is shut. If it is the one in use, the site is left, until it opens again or the site is moved to another.
    pub fn leave(&self, kind: UpstreamKind, now: Timestamp) -> (Self, InstallationChange) {
        let mut next = self.clone();
        if self.upstream.kind() != kind {
            next.standby.retain(|way| way.kind() != kind);
            let change = if next.standby.len() == self.standby.len() {
                InstallationChange::Unchanged
            } else {
                InstallationChange::Standby
            };
            return (next, change);
        }
        next.imported = None;
        if !self.is_installed() {
            return (next, InstallationChange::Repeated);
        }
        next.state = InstallationState::Uninstalled;
        next.uninstalled_at = Some(now);
        (next, InstallationChange::Uninstalled)
    }

    /// The site is reached another way from now on. The way so far stands by, if it is open.
    pub fn move_to(
        &self,
        kind: UpstreamKind,
        now: Timestamp,
    ) -> Result<(Self, InstallationChange), NoSuchWay> {
        let mut next = self.clone();
        let found = next.standby.iter().position(|way| way.kind() == kind);
        let way = next.standby.remove(found.ok_or(NoSuchWay(kind))?);
        let before = std::mem::replace(&mut next.upstream, way);
        next.imported = None;
        next.state = InstallationState::Installed;
        next.uninstalled_at = None;
        if self.is_installed() {
            next.standby.push(before);
            return Ok((next, InstallationChange::Moved));
        }
        next.installed_at = now;
        Ok((next, InstallationChange::Reinstalled))
    }

    /// All ways, the one in use first.
    pub fn ways(&self) -> impl Iterator<Item = &Upstream> {
        std::iter::once(&self.upstream).chain(&self.standby)
    }

    /// What a Connect app was told, whether or not that is the way in use: while it is installed, Jira signs with it.
    pub fn connect(&self) -> Option<&Connect> {
        self.ways().find_map(Upstream::as_connect)
    }

    /// What invocations of a Forge app told, whether or not that is the way in use.
    pub fn forge(&self) -> Option<&Forge> {
        self.ways().find_map(Upstream::as_forge)
    }

    fn connect_mut(&mut self) -> Option<&mut Connect> {
        let mut ways = std::iter::once(&mut self.upstream).chain(&mut self.standby);
        ways.find_map(|way| match way {
            Upstream::Connect(connect) => Some(connect),
            Upstream::Forge(_) | Upstream::Oauth(_) => None,
        })
    }

    /// The secrets a Connect token of this site may be signed with now, newest first.
    pub fn accepted_secrets(&self, now: Timestamp) -> impl Iterator<Item = &SharedSecret> {
        self.connect()
            .into_iter()
            .flat_map(move |connect| connect.accepted_secrets(now))
    }

    /// Whether the secret before the last rotation counts no more.
    pub fn has_expired_secret(&self, now: Timestamp) -> bool {
        let retired = self.connect().and_then(|c| c.previous_secret.as_ref());
        retired.is_some_and(|retired| retired.valid_until <= now)
    }

    /// Drops the secret before the last rotation once it counts no more.
    pub fn forget_expired_secret(&mut self, now: Timestamp) {
        if self.has_expired_secret(now)
            && let Some(connect) = self.connect_mut()
        {
            connect.previous_secret = None;
        }
    }

    /// Whether the way in use is open.
    pub fn is_installed(&self) -> bool {
        self.state == InstallationState::Installed
    }
}

/// Events of the same second are taken in the order of arrival; older ones say nothing new.
fn is_news(stamp: &EventStamp, last: &EventStamp) -> Result<bool, TokenReused> {
    if stamp.token_digest == last.token_digest {
        if stamp.body_digest == last.body_digest {
            return Ok(false);
        }
        if stamp.received_at.duration_since(last.received_at) > SAME_SECOND_ARRIVES_WITHIN {
            return Err(TokenReused);
        }
    }
    Ok(stamp.issued_at >= last.issued_at)
}

impl InstallationChange {
    /// The name in the audit trail, the log and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "installation_created",
            Self::Reinstalled => "installation_reinstalled",
            Self::Updated { secret: true, .. } => "installation_secret_rotated",
            Self::Updated { base_url: true, .. } => "installation_renamed",
            Self::Updated { .. } => "installation_updated",
            Self::Uninstalled => "installation_uninstalled",
            Self::Standby => "installation_standby_changed",
            Self::Moved => "installation_moved",
            Self::Repeated | Self::Unchanged => "unchanged",
        }
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
    use crate::domain::{CloudId, Credential, JiraSites, upstream::Oauth};

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
        assert_eq!(next.connect().map(|c| c.secret_generation), Some(2));
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
        assert_eq!(next.connect().map(|c| c.secret_generation), Some(1));
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
        assert_eq!(
            next.accepted_secrets(at(105)).next(),
            Some(&other.shared_secret)
        );
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

    fn oauth(secret: &str) -> Upstream {
        Upstream::Oauth(Oauth {
            client_id: "client".to_owned(),
            client_secret: Credential::parse(secret).expect("secret"),
            cloud_id: CloudId::parse("4c822e2f-510f-48b9-b8d2-8419d0932949").expect("id"),
        })
    }

    fn address(base_url: &str) -> SiteAddress {
        SiteAddress {
            base_url: JiraSites::default().parse(base_url).expect("base URL"),
            display_url: None,
        }
    }

    #[test]
    fn another_way_stands_by_until_the_site_is_moved_to_it() {
        let acme = || address("https://acme.atlassian.net");
        let known = installed();
        let moved = known.move_to(UpstreamKind::Oauth, at(200));
        assert_eq!(moved, Err(NoSuchWay(UpstreamKind::Oauth)));
        let (known, change) = known.join(oauth("s1"), acme(), at(200));
        assert_eq!(change, InstallationChange::Standby);
        assert_eq!(known.upstream.kind(), UpstreamKind::Connect);
        let (known, _) = known.join(oauth("s2"), acme(), at(201));
        assert_eq!(known.standby, [oauth("s2")], "one of a kind");

        let (moved, change) = known.move_to(UpstreamKind::Oauth, at(202)).expect("move");
        assert_eq!(change, InstallationChange::Moved);
        assert_eq!((&moved.upstream, moved.standby.len()), (&oauth("s2"), 1));
        assert_eq!(moved.client_key, known.client_key);
        // The app is still there, and Jira still signs with its secret.
        assert_eq!(moved.accepted_secrets(at(203)).count(), 1);
        let (rotated, change) = again(
            &moved,
            &stamp(300, "t3", "b3"),
            &site("b", "https://acme.atlassian.net"),
            300,
        );
        assert_eq!(change, InstallationChange::Standby);
        assert_eq!(rotated.accepted_secrets(at(301)).count(), 2);
        assert_eq!(rotated.upstream, oauth("s2"));

        let (alone, change) = rotated
            .uninstall(&stamp(400, "t4", "b4"), at(400))
            .expect("uninstall");
        assert_eq!(change, InstallationChange::Standby, "it was not in use");
        assert!(alone.is_installed() && alone.standby.is_empty());
        let (gone, change) = alone.leave(UpstreamKind::Oauth, at(500));
        assert_eq!(change, InstallationChange::Uninstalled);
        assert!(!gone.is_installed());
        let (back, change) = gone.join(oauth("s3"), acme(), at(600));
        assert_eq!(change, InstallationChange::Reinstalled);
        assert!(back.is_installed());
        let (_, change) = back.join(oauth("s4"), acme(), at(601));
        let base_url = false;
        let secret = true;
        assert_eq!(change, InstallationChange::Updated { secret, base_url });
    }

    #[test]
    fn a_site_whose_way_was_shut_moves_to_another() {
        let (known, _) =
            installed().join(oauth("s"), address("https://acme.atlassian.net"), at(200));
        let (gone, change) = known
            .uninstall(&stamp(300, "t2", "b2"), at(300))
            .expect("uninstall");
        assert_eq!(change, InstallationChange::Uninstalled);
        let (moved, change) = gone.move_to(UpstreamKind::Oauth, at(400)).expect("move");
        assert_eq!(change, InstallationChange::Reinstalled);
        assert!(moved.is_installed() && moved.standby.is_empty());
        assert_eq!(moved.accepted_secrets(at(400)).count(), 0);
    }
}
