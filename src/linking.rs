//! Making, ending and repeating links: the rules that hold between the records, each inside one transaction.

mod linker;

pub use linker::Linker;

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};

use crate::{
    domain::{
        Actor, AuditEntry, ClientKey, Installation, InstanceUrl, JiraBaseUrl, Link, LinkId,
        LinkMode, Namespace, SharedSecret, UpstreamKind,
        installation::{Imported, InstallationChange},
        link::Purge,
        secret::NoRandomness,
    },
    reject::{Reject, RejectKind},
    store::{StoreFull, Transaction},
};

/// A removal may wait for so long at most, so that a person can think better of it.
pub const LONGEST_REFLECTION: Duration = Duration::from_secs(60);

/// One site's admins must not use up what all sites share.
const LINKS_PER_INSTALLATION_MAX: usize = 500;

/// A wish for a link.
#[derive(Clone, Debug)]
pub struct NewLink {
    /// Which installation.
    pub client_key: ClientKey,
    /// Which instance.
    pub instance_url: InstanceUrl,
    /// What the instance gets to know.
    pub mode: LinkMode,
    /// Ids stay as they are.
    pub keep_ids: bool,
}

/// Why a link is not made or changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkRefusal {
    /// No such installation.
    #[error("there is no installation {0}")]
    UnknownInstallation(ClientKey),
    /// The app is not installed there any more, or the credentials were removed.
    #[error("nothing opens the site of {0} any more")]
    Uninstalled(ClientKey),
    /// They are linked already.
    #[error("{instance_url} is linked to this installation already")]
    Exists {
        /// Which instance.
        instance_url: InstanceUrl,
        /// By which link.
        id: LinkId,
    },
    /// A direct link holds Jira's own secret; beside it, no other link may be.
    #[error("a direct link must be the only link of its installation")]
    NotAlone,
    /// There is no secret of Jira's to hand on.
    #[error(
        "a direct link hands on the secret of a Connect app; this site is reached through {}", .0.as_str()
    )]
    NothingToHandOn(UpstreamKind),
    /// Two instances with raw ids would overwrite each other's data.
    #[error("one link of this installation keeps its ids already")]
    IdsTaken,
    /// As many as one site may have.
    #[error("the site has {LINKS_PER_INSTALLATION_MAX} links already")]
    TooMany,
    /// No such link.
    #[error("there is no link {0}")]
    UnknownLink(LinkId),
    /// It is on its way out.
    #[error("the link {0} is being removed")]
    BeingRemoved(LinkId),
    /// Its removal has begun.
    #[error("it is too late to undo the removal: the instance is being told, or was")]
    TooLateToUndo,
    /// What it wrote is being deleted.
    #[error("the data of the link {0} is being deleted from Jira")]
    BeingPurged(LinkId),
    /// There is no deletion to give up.
    #[error("no data of the link {0} is being deleted")]
    NotBeingPurged(LinkId),
    /// What it writes carries no mark to delete it by.
    #[error(
        "the data of a link that is direct or keeps its ids can't be told from other data in Jira"
    )]
    Unmarked,
    /// No room.
    #[error(transparent)]
    Full(#[from] StoreFull),
    /// No secret could be made.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

/// Makes a link, or takes the removal of one back (with a fresh secret, and its old namespace).
pub fn create(
    transaction: &mut Transaction<'_>,
    wish: NewLink,
    audit: AuditEntry,
    now: Timestamp,
) -> Result<Link, LinkRefusal> {
    match transaction.installation(&wish.client_key) {
        None => return Err(LinkRefusal::UnknownInstallation(wish.client_key)),
        Some(installation) if !installation.is_installed() => {
            return Err(LinkRefusal::Uninstalled(wish.client_key));
        }
        Some(installation)
            if wish.mode == LinkMode::Direct && installation.upstream.as_connect().is_none() =>
        {
            return Err(LinkRefusal::NothingToHandOn(installation.upstream.kind()));
        }
        Some(_) => {}
    }
    let links = transaction.links_of(&wish.client_key);
    let same = links
        .iter()
        .find(|link| link.instance_url == wish.instance_url);
    if let Some(link) = same.filter(|link| !link.remove) {
        return Err(LinkRefusal::Exists {
            instance_url: wish.instance_url,
            id: link.id,
        });
    }
    let mut others = links
        .iter()
        .filter(|link| link.instance_url != wish.instance_url);
    if others
        .clone()
        .any(|link| link.mode == LinkMode::Direct || wish.mode == LinkMode::Direct)
    {
        return Err(LinkRefusal::NotAlone);
    }
    if wish.keep_ids && others.any(|link| link.keep_ids) {
        return Err(LinkRefusal::IdsTaken);
    }
    let secret = SharedSecret::generate()?;
    if let Some(link) = same.filter(|link| !link.can_be_taken_back()) {
        return Err(LinkRefusal::BeingPurged(link.id));
    }
    let link = match same {
        Some(leaving) => {
            // A deletion that was given up may still be on its way to Jira.
            let abandoned = leaving.purge.as_ref().is_some_and(Purge::is_abandoned);
            let mut link = Link {
                mode: wish.mode,
                keep_ids: wish.keep_ids,
                namespace: match abandoned {
                    true => transaction.claim_namespace()?,
                    false => leaving.namespace.clone(),
                },
                purge: None,
                imported: None,
                ..leaving.as_ref().clone()
            };
            link.want_installed(Some(secret), now);
            link
        }
        None if links.len() >= LINKS_PER_INSTALLATION_MAX => return Err(LinkRefusal::TooMany),
        None => Link::new(
            wish.client_key,
            wish.instance_url,
            wish.mode,
            wish.keep_ids,
            transaction.claim_namespace()?,
            secret,
            now,
        ),
    };
    transaction.put_link(link.clone())?;
    transaction.keep_installation(&link.client_key);
    transaction.audit(AuditEntry {
        note: Some(format!("{} ({})", link.instance_url, link.mode.as_str())),
        ..audit.about(&link)
    });
    Ok(link)
}

/// Links an instance for a Jira admin: takes its removal back, as the link it was, or makes a new one.
pub fn add(
    transaction: &mut Transaction<'_>,
    client_key: ClientKey,
    instance_url: InstanceUrl,
    audit: AuditEntry,
    now: Timestamp,
) -> Result<Link, LinkRefusal> {
    let links = transaction.links_of(&client_key);
    let known = transaction.installation(&client_key);
    let connected = known.is_some_and(|known| known.upstream.as_connect().is_some());
    let leaving = links
        .iter()
        .find(|link| link.remove && link.instance_url == instance_url);
    let wish = NewLink {
        client_key,
        instance_url,
        // It was direct when the site was reached another way, perhaps.
        mode: leaving.map_or(LinkMode::Relay, |link| match link.mode {
            LinkMode::Direct if connected => LinkMode::Direct,
            _ => LinkMode::Relay,
        }),
        keep_ids: leaving.is_some_and(|link| link.keep_ids),
    };
    create(transaction, wish, audit, now)
}

/// The deletion of a link's data begins now, if it is still wanted: from here on nothing is taken back.
pub fn begin_purge(transaction: &mut Transaction<'_>, id: LinkId) -> bool {
    let Ok(mut link) = known(transaction, id) else {
        return false;
    };
    let Some(purge) = link.purge.as_mut().filter(|purge| purge.is_wanted()) else {
        return false;
    };
    if !purge.begun {
        purge.begun = true;
        transaction.replace_link(link);
    }
    true
}

/// Wants a link gone: `uninstalled` is delivered, then the record goes.
pub fn remove(
    transaction: &mut Transaction<'_>,
    id: LinkId,
    audit: AuditEntry,
    now: Timestamp,
) -> Result<Link, LinkRefusal> {
    let mut link = known(transaction, id)?;
    link.remove = true;
    link.want_uninstalled(now);
    transaction.audit(AuditEntry {
        note: Some(link.instance_url.to_string()),
        ..audit.about(&link)
    });
    transaction.settle_link(link.clone());
    Ok(link)
}

/// Wants a link gone, and everything that it wrote deleted from Jira.
pub fn purge(
    transaction: &mut Transaction<'_>,
    id: LinkId,
    audit: AuditEntry,
    now: Timestamp,
) -> Result<Link, LinkRefusal> {
    let mut link = known(transaction, id)?;
    if !link.is_marked() {
        return Err(LinkRefusal::Unmarked);
    }
    // Jira deletes an app's data itself when the app goes. What came with credentials stays when they do.
    if let Some(left) = transaction.installation(&link.client_key)
        && left.open_ways().next().is_none()
        && left.upstream.kind() == UpstreamKind::Oauth
    {
        return Err(LinkRefusal::Uninstalled(link.client_key));
    }
    if link.purge.as_ref().is_none_or(Purge::is_abandoned) {
        link.purge = Some(Purge {
            namespace: link.namespace.clone(),
            requested_at: now,
            not_before: None,
            begun: false,
            done_at: None,
            abandoned_at: None,
            last_error: None,
        });
        transaction.replace_link(link);
    }
    remove(transaction, id, audit, now)
}

/// Wants a link gone as [`remove`] or [`purge`] do, but leaves a person some time to think better of it: neither is
/// the instance told nor anything deleted before.
pub fn remove_after(
    transaction: &mut Transaction<'_>,
    id: LinkId,
    with_data: bool,
    reflection: SignedDuration,
    audit: AuditEntry,
    now: Timestamp,
) -> Result<Link, LinkRefusal> {
    let before = known(transaction, id)?;
    let start = if !before.remove {
        Some(now.saturating_add(reflection).unwrap_or(Timestamp::MAX))
    } else {
        // Asked for once more, with the data: from the same moment on.
        before
            .waits_for_second_thoughts(now)
            .then_some(before.next_attempt_at)
    };
    let rule = if with_data { purge } else { remove };
    let mut link = rule(transaction, id, audit, now)?;
    if let Some(start) = start
        && transaction.link(id).is_some()
    {
        link.next_attempt_at = link.next_attempt_at.max(start);
        if let Some(purge) = &mut link.purge {
            purge.not_before = Some(start);
        }
        transaction.replace_link(link.clone());
    }
    Ok(link)
}

/// Has a deletion that can't end given up: what is not deleted yet stays in Jira, and the link goes as without one.
pub fn abandon_purge(
    transaction: &mut Transaction<'_>,
    id: LinkId,
    audit: AuditEntry,
    now: Timestamp,
) -> Result<Link, LinkRefusal> {
    let mut link = known(transaction, id)?;
    let Some(purge) = link.purge.as_mut().filter(|purge| purge.is_wanted()) else {
        return Err(LinkRefusal::NotBeingPurged(id));
    };
    purge.abandoned_at = Some(now);
    transaction.audit(AuditEntry {
        note: Some(format!(
            "what carries the namespace {} may be left in Jira",
            purge.namespace.as_str()
        )),
        ..audit.about(&link)
    });
    transaction.settle_link(link.clone());
    Ok(link)
}

/// Undoes a removal that nobody has heard of: the link is as it was, and told so. No policy is asked, because nothing is
/// made.
pub fn undo_removal(
    transaction: &mut Transaction<'_>,
    id: LinkId,
    audit: AuditEntry,
    now: Timestamp,
) -> Result<Link, LinkRefusal> {
    let mut link = known(transaction, id)?;
    if !link.remove {
        return Ok(link);
    }
    match transaction.installation(&link.client_key) {
        Some(installation) if installation.is_installed() => {}
        _ => return Err(LinkRefusal::Uninstalled(link.client_key)),
    }
    if !link.can_be_undone(now) {
        return Err(LinkRefusal::TooLateToUndo);
    }
    link.undo_removal(now);
    transaction.audit(AuditEntry {
        note: Some(link.instance_url.to_string()),
        ..audit.about(&link)
    });
    transaction.put_link(link.clone())?;
    transaction.keep_installation(&link.client_key);
    Ok(link)
}

/// Wants a link gone in the way in which it, and with it perhaps its site, was leaving before [`add`] took that back.
pub fn leave_again(
    transaction: &mut Transaction<'_>,
    before: &Link,
    site: Option<Imported>,
    audit: AuditEntry,
    now: Timestamp,
) -> Result<Link, LinkRefusal> {
    let mut link = known(transaction, before.id)?;
    link.imported = before.imported;
    transaction.replace_link(link.clone());
    transaction.restore_imported(&link.client_key, site);
    if before.hand_back {
        link.want_handed_back(now);
        transaction.audit(audit.about(&link));
        transaction.replace_link(link.clone());
        return Ok(link);
    }
    let reflection = if before.waits_for_second_thoughts(now) {
        before.next_attempt_at.duration_since(now)
    } else {
        SignedDuration::ZERO
    };
    let with_data = before.is_purging();
    remove_after(transaction, before.id, with_data, reflection, audit, now)
}

/// Everything that the link wrote under this namespace is deleted, where a way is open.
pub fn purged(
    transaction: &mut Transaction<'_>,
    id: LinkId,
    namespace: &Namespace,
    now: Timestamp,
) {
    let Ok(mut link) = known(transaction, id) else {
        return;
    };
    let purge = link.purge.as_mut();
    // Given up meanwhile, perhaps, and another wanted.
    let Some(purge) = purge.filter(|purge| purge.is_wanted() && purge.namespace == *namespace)
    else {
        return;
    };
    purge.done_at = Some(now);
    purge.last_error = None;
    let ways = transaction.installation(&link.client_key);
    let ways: Vec<_> = ways.map_or_else(Vec::new, |site| {
        site.open_ways().map(|way| way.kind().as_str()).collect()
    });
    let through = match &*ways {
        [] => String::new(),
        ways => format!(", of what was sent through {}", ways.join(" and ")),
    };
    transaction.audit(AuditEntry {
        note: Some(format!("namespace {}{through}", namespace.as_str())),
        ..AuditEntry::new(now, Actor::Relay, "link_data_deleted").about(&link)
    });
    transaction.settle_link(link);
}

/// Delivers `installed` again, with a fresh secret.
pub fn resend(
    transaction: &mut Transaction<'_>,
    id: LinkId,
    audit: AuditEntry,
    now: Timestamp,
) -> Result<Link, LinkRefusal> {
    let mut link = known(transaction, id)?;
    if link.remove {
        return Err(LinkRefusal::BeingRemoved(id));
    }
    match transaction.installation(&link.client_key) {
        Some(installation) if installation.is_installed() => {}
        _ => return Err(LinkRefusal::Uninstalled(link.client_key)),
    }
    link.want_installed(Some(SharedSecret::generate()?), now);
    transaction.put_link(link.clone())?;
    transaction.audit(audit.about(&link));
    Ok(link)
}

/// Has `installed` delivered again to all of these links that want it, and tells how many they are. For a store that was
/// restored: what instances were told since its backup was made is not known.
pub fn deliver_again(
    transaction: &mut Transaction<'_>,
    ids: &[LinkId],
    now: Timestamp,
) -> Result<u64, NoRandomness> {
    let mut count = 0;
    for &id in ids {
        let Some(link) = transaction.link(id) else {
            continue;
        };
        if link.remove || !link.wants_installed() {
            continue;
        }
        let mut link = Link::clone(&link);
        let fresh = match link.mode {
            LinkMode::Relay => Some(SharedSecret::generate()?),
            // Jira's own.
            LinkMode::Direct => None,
        };
        link.want_installed(fresh, now);
        transaction.replace_link(link);
        count += 1;
    }
    Ok(count)
}

/// Why the links of a site could not follow it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FollowError {
    /// No room.
    #[error(transparent)]
    Full(#[from] StoreFull),
    /// No secret could be made.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

/// The record of a site that was joined without a Connect app, which its Connect app does not know of: Jira's client key
/// came only with that.
pub fn without_connect(
    transaction: &mut Transaction<'_>,
    base_url: &JiraBaseUrl,
) -> Option<Arc<Installation>> {
    let joined = transaction.installations().into_iter().filter(|known| {
        known.is_installed() && known.base_url == *base_url && known.connect().is_none()
    });
    joined.max_by_key(|known| known.installed_at)
}

/// Has a site's links follow what happened to it.
///
/// An instance that is told `uninstalled` forgets which of its groups are linked. So none is told before the last way to
/// the site is shut: until then it can be moved, and what instances send waits for that.
pub fn follow(
    transaction: &mut Transaction<'_>,
    client_key: &ClientKey,
    change: InstallationChange,
    auto_linked: &[InstanceUrl],
    now: Timestamp,
) -> Result<(), FollowError> {
    let site = transaction.installation(client_key);
    let is_shut = site.is_none_or(|site| site.open_ways().next().is_none());
    if change == InstallationChange::Uninstalled && !is_shut {
        tracing::warn!(client.key = %client_key, "the way to the site that was used is shut, and another stands by: its instances are not told, and what they send waits until an operator moves it");
    }
    for link in transaction.links_of(client_key) {
        let mut link = Link::clone(&link);
        match change {
            InstallationChange::Uninstalled | InstallationChange::Standby if is_shut => {
                link.want_uninstalled(now);
            }
            // A link of its own secret that was not told that it is over has nothing to hear.
            InstallationChange::Reinstalled
                if !link.remove && (link.mode == LinkMode::Direct || !link.wants_installed()) =>
            {
                link.want_installed(Some(SharedSecret::generate()?), now);
            }
            // Who is given Jira's own secret and address follows them.
            InstallationChange::Updated { secret, base_url }
                if link.hand_back && (secret || base_url) =>
            {
                link.want_handed_back(now);
            }
            InstallationChange::Updated { secret, base_url }
                if link.mode == LinkMode::Direct && !link.remove && (secret || base_url) =>
            {
                link.want_installed(None, now);
            }
            _ => continue,
        }
        transaction.put_link(link)?;
    }
    if !matches!(
        change,
        InstallationChange::Uninstalled | InstallationChange::Standby
    ) {
        auto_link(transaction, client_key, auto_linked, now);
    }
    Ok(())
}

/// Has all instances of a site told that it is over, whatever stands by; tells whether there was anything to tell. One
/// that goes back to the proxy it came from does: told so, it would forget its groups.
pub fn end(transaction: &mut Transaction<'_>, client_key: &ClientKey, now: Timestamp) -> bool {
    let mut any = false;
    for link in transaction.links_of(client_key) {
        if !link.hand_back && link.wants_installed() {
            let mut link = Link::clone(&link);
            link.want_uninstalled(now);
            transaction.replace_link(link);
            any = true;
        }
    }
    any
}

/// Sees to it that an installation is linked to every instance of `instances.auto_link`. What can't be linked
/// is logged and left.
pub fn auto_link(
    transaction: &mut Transaction<'_>,
    client_key: &ClientKey,
    instances: &[InstanceUrl],
    now: Timestamp,
) {
    for instance_url in instances {
        let linked = transaction
            .links_of(client_key)
            .iter()
            .any(|link| link.instance_url == *instance_url);
        if linked {
            continue;
        }
        let wish = NewLink {
            client_key: client_key.clone(),
            instance_url: instance_url.clone(),
            mode: LinkMode::Relay,
            keep_ids: false,
        };
        let audit = AuditEntry::new(now, Actor::Relay, "link_created_by_auto_link");
        if let Err(refusal) = create(transaction, wish, audit, now) {
            tracing::warn!(client.key = %client_key, "{instance_url} could not be linked by itself: {refusal}");
        }
    }
}

/// One of them whose data is being deleted from Jira, by whom it was sent as.
pub fn being_purged(links: &[Arc<Link>]) -> Option<LinkId> {
    let link = links.iter().find(|link| link.is_purging());
    link.map(|link| link.id)
}

/// What to do about a deletion that is in the way.
pub fn how_purges_end(id: LinkId) -> String {
    format!(
        "wait until GET /api/v1/links/{id} says that it is done, or is 404; if it can't end, `jira-connect-proxy links remove {id} --abandon-purge`"
    )
}

fn known(transaction: &mut Transaction<'_>, id: LinkId) -> Result<Link, LinkRefusal> {
    transaction
        .link(id)
        .map(|link| link.as_ref().clone())
        .ok_or(LinkRefusal::UnknownLink(id))
}

impl From<FollowError> for Reject {
    fn from(error: FollowError) -> Self {
        match error {
            FollowError::Full(full) => full.into(),
            FollowError::NoRandomness(error) => Self::internal(error),
        }
    }
}

impl From<LinkRefusal> for Reject {
    fn from(refusal: LinkRefusal) -> Self {
        let message = refusal.to_string();
        let (kind, code, hint) = match refusal {
            LinkRefusal::Full(full) => return full.into(),
            LinkRefusal::NoRandomness(error) => return Self::internal(error),
            LinkRefusal::UnknownInstallation(_) => (
                RejectKind::NotFound,
                "installation_unknown",
                "GET /api/v1/installations lists them; first the app is installed in Jira, or the site's credentials are added".to_owned(),
            ),
            LinkRefusal::Uninstalled(_) => (
                RejectKind::Conflict,
                "installation_uninstalled",
                "install the app in Jira again, or add the site's credentials again; its links come back by themselves".to_owned(),
            ),
            LinkRefusal::Exists { id, .. } => (
                RejectKind::Conflict,
                "link_exists",
                format!("POST /api/v1/links/{id}/resend delivers it again"),
            ),
            LinkRefusal::NotAlone => (
                RejectKind::Conflict,
                "link_not_alone",
                "use mode \"relay\", or remove the other link first".to_owned(),
            ),
            LinkRefusal::NothingToHandOn(_) => (
                RejectKind::Conflict,
                "link_not_direct",
                "use mode \"relay\"".to_owned(),
            ),
            LinkRefusal::IdsTaken => (
                RejectKind::Conflict,
                "keep_ids_taken",
                "leave keep_ids out: the relay then keeps the ids of both apart".to_owned(),
            ),
            LinkRefusal::TooMany => (
                RejectKind::Conflict,
                "too_many_links",
                "remove links that nobody needs first".to_owned(),
            ),
            LinkRefusal::UnknownLink(_) => (
                RejectKind::NotFound,
                "link_unknown",
                "GET /api/v1/links lists them".to_owned(),
            ),
            LinkRefusal::TooLateToUndo => (
                RejectKind::Conflict,
                "too_late_to_undo",
                "add the instance again; if it was told, its groups must be linked again then"
                    .to_owned(),
            ),
            LinkRefusal::BeingPurged(id) => (
                RejectKind::Conflict,
                "link_being_purged",
                how_purges_end(id),
            ),
            LinkRefusal::NotBeingPurged(id) => (
                RejectKind::Conflict,
                "link_not_being_purged",
                format!("GET /api/v1/links/{id} says what was wanted of it"),
            ),
            LinkRefusal::Unmarked => (
                RejectKind::Conflict,
                "link_unmarked",
                "remove it without purge; Jira deletes all of an app's data when the app is uninstalled"
                    .to_owned(),
            ),
            LinkRefusal::BeingRemoved(_) => (
                RejectKind::Conflict,
                "link_being_removed",
                "POST /api/v1/links with the same instance takes the removal back".to_owned(),
            ),
        };
        Self::new(kind, code, message, hint)
    }
}
