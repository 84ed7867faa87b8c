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
            if next.standby.len() == self.standby.len() {
                return (next, InstallationChange::Unchanged);
            }
            // The last one: until now the site could be moved to it.
            if !self.is_installed() && next.standby.is_empty() {
                next.uninstalled_at = Some(now);
            }
            return (next, InstallationChange::Standby);
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

    /// The ways that are not shut, the one in use first. One that stands by is always open.
    pub fn open_ways(&self) -> impl Iterator<Item = &Upstream> {
        let in_use = self.is_installed().then_some(&self.upstream);
        in_use.into_iter().chain(&self.standby)
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
mod tests;
