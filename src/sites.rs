//! How sites are joined, left, and moved from one way of reaching them to another: the rules, each inside one
//! transaction.
//!
//! A site that opens another way than the one in use keeps both until an operator moves it: what was sent stays with
//! the provider that it was sent as, so nobody but a person can know when that is wanted.

use std::{collections::HashMap, sync::Arc};

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    domain::{
        AuditEntry, ClientKey, CloudId, Installation, InstanceUrl, Link, LinkId, LinkMode,
        SharedSecret, Upstream, UpstreamKind,
        installation::{InstallationChange, SiteAddress},
        secret::NoRandomness,
        upstream::Forge,
    },
    linking::{self, FollowError},
    reject::{Reject, RejectKind},
    store::{StoreFull, Transaction},
};

/// Which record a site has, and what joining did to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// The record.
    pub client_key: ClientKey,
    /// What changed.
    pub change: InstallationChange,
    /// The client id of other credentials, whose place the new ones took. What was sent with those stays with them: Jira
    /// knows it as another provider's.
    pub replaced: Option<String>,
}

/// What a move does, or would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Moved {
    /// Which installation.
    pub client_key: ClientKey,
    /// Its site.
    pub base_url: String,
    /// How it was reached.
    pub from: UpstreamKind,
    /// How it is reached.
    pub to: UpstreamKind,
    /// The way so far stands by, so the site can be moved back.
    pub can_go_back: bool,
    /// Links that go with it.
    pub links: usize,
    /// Links that held Jira's own secret, and get one of their own.
    pub no_longer_direct: Vec<LinkId>,
    /// It was done.
    pub applied: bool,
}

/// Why a site is not moved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoveRefusal {
    /// It should not be, yet.
    #[error("nothing was changed")]
    Unchanged(Box<Moved>),
    /// No such site.
    #[error("there is no installation {0}")]
    Unknown(ClientKey),
    /// It is there.
    #[error("the site is reached through {} already", .0.as_str())]
    AlreadyThere(UpstreamKind),
    /// There is no such way.
    #[error("this site has not let the relay in through {}", .0.as_str())]
    NoSuchWay(UpstreamKind),
    /// What the way so far is needed for.
    #[error("the data of the link {0} is being deleted from Jira, where it was sent so far")]
    BeingPurged(LinkId),
    /// It is on its way back to another proxy.
    #[error("the import of this site is being rolled back")]
    BeingHandedBack,
    /// No room.
    #[error(transparent)]
    Full(#[from] StoreFull),
    /// No secret could be made.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

/// Why two records are not made one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MergeRefusal {
    /// No such record.
    #[error("there is no installation {0}")]
    Unknown(ClientKey),
    /// They are not two records of one site.
    #[error("these are not two records of one site: {0}")]
    NoTwins(&'static str),
    /// Instances know the one that would go.
    #[error("{0} has links")]
    HasLinks(ClientKey),
    /// Only one way of a kind can be kept.
    #[error("both have a way through {}", .0.as_str())]
    SameKind(UpstreamKind),
    /// Jira calls the record that would go by its name.
    #[error("Jira knows the site as {0}")]
    NamedByJira(ClientKey),
    /// No room.
    #[error(transparent)]
    Full(#[from] StoreFull),
}

/// A site has opened a way to it, or says anew what it is. The audit entry gets site and name of the change.
///
/// The site's record is the one with this way, else one that is installed and has the same cloud id, or, where none is
/// known, the same address; else a tombstone that is surely this site's. Of several the newest (two rows may share an
/// address after a site import).
pub fn join(
    transaction: &mut Transaction<'_>,
    way: Upstream,
    address: SiteAddress,
    auto_link: &[InstanceUrl],
    audit: AuditEntry,
    now: Timestamp,
) -> Result<Joined, FollowError> {
    let known = transaction
        .installations()
        .into_iter()
        .filter_map(|known| Some((likeness(&known, &way, &address)?, known)))
        .max_by_key(|(likeness, known)| {
            // What stands by on a tombstone could be reached by nobody.
            let is_open = known.open_ways().any(|other| other.opens_like(&way));
            (is_open, known.is_installed(), *likeness, known.installed_at)
        })
        .map(|(_, known)| known);
    let mut replaced = None;
    let (installation, change) = match known {
        Some(known) => {
            replaced = replaced_credentials(&known, &way);
            known.join(way, address, now)
        }
        None => {
            let made = Installation::new(ClientKey::generate(), address, way, now);
            (made, InstallationChange::Created)
        }
    };
    let client_key = installation.client_key.clone();
    transaction.put_installation(installation)?;
    linking::follow(transaction, &client_key, change, auto_link, now)?;
    transaction.audit(AuditEntry {
        client_key: Some(client_key.clone()),
        action: change.name().to_owned(),
        ..audit
    });
    Ok(Joined {
        client_key,
        change,
        replaced,
    })
}

fn replaced_credentials(known: &Installation, way: &Upstream) -> Option<String> {
    known.ways().find_map(|before| match (before, way) {
        (Upstream::Oauth(before), Upstream::Oauth(new)) => {
            (before.client_id != new.client_id).then(|| before.client_id.clone())
        }
        _ => None,
    })
}

/// How surely a record is of this site.
fn likeness(known: &Installation, way: &Upstream, address: &SiteAddress) -> Option<u8> {
    if known.ways().any(|other| other.opens_like(way)) {
        return Some(2);
    }
    let mut cloud_ids = known.ways().filter_map(Upstream::cloud_id).peekable();
    match (cloud_ids.peek(), way.cloud_id()) {
        // An address may be given to another site; an id is not.
        (Some(_), Some(cloud_id)) => cloud_ids.any(|other| other == cloud_id).then_some(1),
        // Nor is a site that left surely the one that is there now, unless an operator says so with its credentials.
        _ => {
            let sure = known.is_installed() || way.kind() == UpstreamKind::Oauth;
            (sure && known.base_url == address.base_url).then_some(0)
        }
    }
}

/// A way to a site is shut.
pub fn leave(
    transaction: &mut Transaction<'_>,
    client_key: &ClientKey,
    kind: UpstreamKind,
    audit: AuditEntry,
    now: Timestamp,
) -> Result<InstallationChange, FollowError> {
    let Some(known) = transaction.installation(client_key) else {
        return Ok(InstallationChange::Unchanged);
    };
    let (installation, change) = known.leave(kind, now);
    if matches!(
        change,
        InstallationChange::Unchanged | InstallationChange::Repeated
    ) {
        return Ok(InstallationChange::Unchanged);
    }
    transaction.put_installation(installation)?;
    linking::follow(transaction, client_key, change, &[], now)?;
    transaction.audit(AuditEntry {
        client_key: Some(client_key.clone()),
        action: change.name().to_owned(),
        ..audit
    });
    Ok(change)
}

/// An operator leaves a site, whatever Jira says and whatever stands by.
pub fn leave_for_good(
    transaction: &mut Transaction<'_>,
    client_key: &ClientKey,
    audit: AuditEntry,
    now: Timestamp,
) -> Result<(), StoreFull> {
    let Some(known) = transaction.installation(client_key) else {
        return Ok(());
    };
    let (installation, change) = known.leave(known.upstream.kind(), now);
    transaction.put_installation(installation)?;
    let is_news = linking::end(transaction, client_key, now);
    if is_news || change == InstallationChange::Uninstalled {
        transaction.audit(AuditEntry {
            client_key: Some(client_key.clone()),
            action: InstallationChange::Uninstalled.name().to_owned(),
            ..audit
        });
    }
    Ok(())
}

/// Of two records of one site, one goes, and its ways stand by with the other.
///
/// An operator says that they are one: a site that joined under another address (`*.jira.com`, or a name of before)
/// can't be told from another site.
pub fn merge(
    transaction: &mut Transaction<'_>,
    goes: &ClientKey,
    stays: &ClientKey,
    audit: AuditEntry,
) -> Result<(), MergeRefusal> {
    let mut known = |key: &ClientKey| {
        let known = transaction.installation(key);
        known.ok_or_else(|| MergeRefusal::Unknown(key.clone()))
    };
    let (one, other) = (known(goes)?, known(stays)?);
    if goes == stays {
        return Err(MergeRefusal::NoTwins("it is one record"));
    }
    if !other.is_installed() || one.open_ways().next().is_none() {
        return Err(MergeRefusal::NoTwins("one of them is uninstalled"));
    }
    if one.connect().is_some() {
        return Err(MergeRefusal::NamedByJira(goes.clone()));
    }
    let ids = [&one, &other].map(|record| record.ways().find_map(Upstream::cloud_id).cloned());
    if let [Some(one), Some(other)] = ids
        && one != other
    {
        return Err(MergeRefusal::NoTwins("Jira tells two cloud ids"));
    }
    if !transaction.links_of(goes).is_empty() {
        return Err(MergeRefusal::HasLinks(goes.clone()));
    }
    let mut installation = Installation::clone(&other);
    for way in one.open_ways() {
        let kind = way.kind();
        if other.ways().any(|known| known.kind() == kind) {
            return Err(MergeRefusal::SameKind(kind));
        }
        installation.standby.push(way.clone());
    }
    transaction.remove_installation(goes);
    transaction.put_installation(installation)?;
    transaction.audit(AuditEntry {
        client_key: Some(stays.clone()),
        note: Some(format!(
            "{goes} ({}) is no record of its own any more",
            one.base_url
        )),
        ..audit
    });
    Ok(())
}

/// Pairs of open records that look like one site, by its address or by its cloud id.
pub fn twins(installations: &[Arc<Installation>]) -> Vec<[Arc<Installation>; 2]> {
    let mut seen: HashMap<&str, &Arc<Installation>> = HashMap::new();
    let mut twins: Vec<[Arc<Installation>; 2]> = Vec::new();
    for known in installations {
        let ids = known.open_ways().filter_map(Upstream::cloud_id);
        let mut names: Vec<&str> = ids.map(CloudId::as_str).collect();
        if known.open_ways().next().is_some() {
            names.push(known.base_url.as_str());
        }
        for name in names {
            let before = seen.insert(name, known);
            if let Some(before) = before.filter(|before| before.client_key != known.client_key)
                && !twins
                    .iter()
                    .any(|[_, last]| last.client_key == known.client_key)
            {
                twins.push([Arc::clone(before), Arc::clone(known)]);
            }
        }
    }
    twins
}

/// A Forge installation that is known told something new: a token, a version.
pub fn told(
    transaction: &mut Transaction<'_>,
    client_key: &ClientKey,
    forge: Forge,
) -> Result<(), StoreFull> {
    let Some(known) = transaction.installation(client_key) else {
        return Ok(());
    };
    let mut installation = Installation::clone(&known);
    let mut ways = std::iter::once(&mut installation.upstream).chain(&mut installation.standby);
    let way = Upstream::Forge(forge);
    if let Some(known) = ways.find(|known| known.opens_like(&way)) {
        *known = way;
        transaction.put_installation(installation)?;
    }
    Ok(())
}

/// A site is reached another way from now on, with its links, their namespaces, and what waits for it.
pub fn move_to(
    transaction: &mut Transaction<'_>,
    client_key: &ClientKey,
    to: UpstreamKind,
    apply: bool,
    audit: AuditEntry,
    now: Timestamp,
) -> Result<Moved, MoveRefusal> {
    let known = transaction
        .installation(client_key)
        .ok_or_else(|| MoveRefusal::Unknown(client_key.clone()))?;
    let from = known.upstream.kind();
    if from == to {
        return Err(MoveRefusal::AlreadyThere(to));
    }
    let links = transaction.links_of(client_key);
    let leaving = known.imported.is_some_and(|imported| imported.leaving);
    if leaving || links.iter().any(|link| link.hand_back) {
        return Err(MoveRefusal::BeingHandedBack);
    }
    if let Some(id) = linking::being_purged(&links) {
        return Err(MoveRefusal::BeingPurged(id));
    }
    let (installation, change) = known
        .move_to(to, now)
        .map_err(|_| MoveRefusal::NoSuchWay(to))?;
    let direct = |link: &&Arc<Link>| link.mode == LinkMode::Direct;
    let mut moved = Moved {
        client_key: client_key.clone(),
        base_url: known.base_url.to_string(),
        from,
        to,
        can_go_back: known.is_installed(),
        links: links.iter().filter(|link| !link.remove).count(),
        no_longer_direct: links
            .iter()
            .filter(direct)
            .filter(|link| !link.remove)
            .map(|link| link.id)
            .collect(),
        applied: false,
    };
    if !apply {
        return Err(MoveRefusal::Unchanged(Box::new(moved)));
    }
    transaction.put_installation(installation)?;
    for link in links.iter().filter(direct) {
        let mut link = Link::clone(link);
        link.mode = LinkMode::Relay;
        // One that is leaving may be taken back, and is then told.
        if !link.remove {
            link.want_installed(Some(SharedSecret::generate()?), now);
        }
        transaction.put_link(link)?;
    }
    linking::follow(transaction, client_key, change, &[], now)?;
    transaction.audit(AuditEntry {
        client_key: Some(client_key.clone()),
        action: "installation_moved".to_owned(),
        note: Some(format!("from {} to {}", from.as_str(), to.as_str())),
        ..audit
    });
    moved.applied = true;
    Ok(moved)
}

impl From<MergeRefusal> for Reject {
    fn from(refusal: MergeRefusal) -> Self {
        let message = refusal.to_string();
        let (kind, code, hint) = match refusal {
            MergeRefusal::Full(full) => return full.into(),
            MergeRefusal::Unknown(_) => (
                RejectKind::NotFound,
                "installation_unknown",
                "GET /api/v1/installations lists them",
            ),
            MergeRefusal::NoTwins(_) => (
                RejectKind::Conflict,
                "no_twins",
                "`jira-connect-proxy doctor` names records that look like one site",
            ),
            MergeRefusal::HasLinks(_) => (
                RejectKind::Conflict,
                "installation_has_links",
                "link its instances to the record that stays, remove the links of the one that goes (`jira-connect-proxy links remove`), and wait until they are gone",
            ),
            MergeRefusal::SameKind(_) => (
                RejectKind::Conflict,
                "upstream_exists",
                "remove one of both: `jira-connect-proxy installations remove`",
            ),
            MergeRefusal::NamedByJira(_) => (
                RejectKind::Conflict,
                "installation_has_app",
                "join the two the other way round: the record of the Connect app stays",
            ),
        };
        Self::new(kind, code, message, hint)
    }
}

impl From<FollowError> for MoveRefusal {
    fn from(error: FollowError) -> Self {
        match error {
            FollowError::Full(full) => full.into(),
            FollowError::NoRandomness(error) => error.into(),
        }
    }
}

impl From<MoveRefusal> for Reject {
    fn from(refusal: MoveRefusal) -> Self {
        let message = refusal.to_string();
        let (kind, code, hint) = match refusal {
            MoveRefusal::Full(full) => return full.into(),
            MoveRefusal::NoRandomness(error) => return Self::internal(error),
            MoveRefusal::Unchanged(_) => return Self::internal(message),
            MoveRefusal::Unknown(_) => (
                RejectKind::NotFound,
                "installation_unknown",
                "GET /api/v1/installations lists them",
            ),
            MoveRefusal::AlreadyThere(_) => (
                RejectKind::Conflict,
                "already_there",
                "there is nothing to do",
            ),
            MoveRefusal::NoSuchWay(UpstreamKind::Connect | UpstreamKind::Forge) => (
                RejectKind::Conflict,
                "upstream_unknown",
                "install that app on the site first: it then stands by, as GET /api/v1/installations shows",
            ),
            MoveRefusal::NoSuchWay(UpstreamKind::Oauth) => (
                RejectKind::Conflict,
                "upstream_unknown",
                "add the site's credentials first: `jira-connect-proxy installations add-oauth`",
            ),
            MoveRefusal::BeingPurged(id) => {
                let hint = linking::how_purges_end(id);
                return Self::new(RejectKind::Conflict, "link_being_purged", message, hint);
            }
            MoveRefusal::BeingHandedBack => (
                RejectKind::Conflict,
                "import_leaving",
                "wait until that is done",
            ),
        };
        Self::new(kind, code, message, hint)
    }
}
