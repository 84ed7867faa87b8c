//! Taking over what another proxy served: an import, and its rollback, each inside one transaction.
//!
//! What is known already is never changed by an import: Jira itself, or an operator, said it, and an export is older than
//! both. So a second run changes nothing.

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    domain::{
        AuditEntry, ClientKey, ImportId, Installation, InstanceUrl, Link, LinkId, LinkMode,
        event::SiteFacts, installation::Imported, secret::NoRandomness,
    },
    linking::{self, LinkRefusal, NewLink},
    reject::Reject,
    store::{StoreFull, Transaction},
};

/// One row of an export: a site that the other proxy served.
#[derive(Clone, Debug)]
pub struct Site {
    /// The tenant.
    pub client_key: ClientKey,
    /// What Jira told the other proxy.
    pub facts: SiteFacts,
    /// The instance whose data Jira has under raw ids.
    pub instance_url: Option<InstanceUrl>,
}

/// How an import is meant.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Do it; otherwise only tell what would be done.
    pub apply: bool,
    /// Leave rows out that can't be taken; otherwise one of them stops all.
    pub skip_refused: bool,
    /// Linked to every installation.
    pub auto_link: Vec<InstanceUrl>,
}

/// What becomes of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// There is none, and none is wanted.
    None,
    /// It is made.
    New,
    /// It is there already, and left as it is.
    There,
    /// It is not made; the reason says why.
    Refused,
    /// It is forgotten at once.
    Removed,
    /// The instance is given what it had before, then it is forgotten.
    HandedBack,
    /// It goes when its instance, or the last of its links, was told.
    Leaving,
    /// It stays; the reason says why.
    Kept,
}

/// What an import or a rollback does for one site and one of its instances.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The tenant, as it was written.
    pub client_key: String,
    /// The site.
    pub base_url: String,
    /// The instance.
    pub instance_url: Option<String>,
    /// What becomes of the installation.
    pub installation: Fate,
    /// What becomes of the link.
    pub link: Fate,
    /// Which link that is.
    pub link_id: Option<LinkId>,
    /// Stable name of the reason.
    pub code: Option<&'static str>,
    /// One sentence.
    pub reason: Option<String>,
}

/// What an import or a rollback does, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The import. `None` if it changed nothing.
    pub id: Option<ImportId>,
    /// It was done.
    pub applied: bool,
    /// In the order of the export.
    pub rows: Vec<Row>,
}

/// Why nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stopped {
    /// Because it should not be, or there is nothing to change, or a row can't be taken.
    #[error("nothing was changed")]
    Unchanged(Report),
    /// No room.
    #[error(transparent)]
    Full(#[from] StoreFull),
    /// No secret could be made.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

/// Takes over all sites of an export, or none. Rows that are no site come as what is reported of them.
pub fn import(
    transaction: &mut Transaction<'_>,
    rows: Vec<Result<Site, Box<Row>>>,
    plan: &Plan,
    audit: &AuditEntry,
    now: Timestamp,
) -> Result<Report, Stopped> {
    let by = ImportId::generate();
    let mut report = Report::default();
    for row in rows {
        report.rows.push(match row {
            Ok(site) => take(transaction, site, by, plan, audit, now)?,
            Err(refused) => *refused,
        });
    }
    let complete = plan.skip_refused || !report.has(Fate::Refused);
    if !plan.apply || !complete || !report.has(Fate::New) {
        return Err(Stopped::Unchanged(report));
    }
    transaction.audit(AuditEntry {
        note: Some(format!(
            "import {by}: {} installations, {} links",
            report.count(|row| row.installation, Fate::New),
            report.count(|row| row.link, Fate::New),
        )),
        ..named(audit, "import_applied")
    });
    report.id = Some(by);
    report.applied = true;
    Ok(report)
}

fn take(
    transaction: &mut Transaction<'_>,
    site: Site,
    by: ImportId,
    plan: &Plan,
    audit: &AuditEntry,
    now: Timestamp,
) -> Result<Row, Stopped> {
    let mut row = Row {
        client_key: site.client_key.to_string(),
        base_url: site.facts.base_url.to_string(),
        instance_url: site.instance_url.as_ref().map(ToString::to_string),
        installation: Fate::There,
        link: Fate::None,
        link_id: None,
        code: None,
        reason: None,
    };
    let client_key = site.client_key;
    match transaction.installation(&client_key).as_deref() {
        None => {
            if let Some(twin) = linking::without_connect(transaction, &site.facts.base_url) {
                let reason = format!(
                    "the relay serves this site already, as {} through {}: have its Connect app's next lifecycle call bring it",
                    twin.client_key,
                    twin.upstream.kind().as_str()
                );
                return Ok(row.refused("site_known", reason));
            }
            let new = Installation::import(client_key.clone(), site.facts, by, now);
            transaction.put_installation(new)?;
            row.installation = Fate::New;
        }
        Some(known) => {
            if let Some((code, reason)) = refusal(known, &site.facts) {
                return Ok(row.refused(code, reason));
            }
        }
    }
    if let Some(instance_url) = site.instance_url {
        let links = transaction.links_of(&client_key);
        let same = links
            .iter()
            .find(|link| link.instance_url == instance_url && !link.remove);
        match same {
            Some(link) if link.keep_ids => {
                row.link = Fate::There;
                row.link_id = Some(link.id);
            }
            Some(_) => {
                row.link = Fate::Refused;
                return Ok(row.because(
                    "link_without_keep_ids",
                    "the instance is linked already, with ids of its own: remove that link first",
                ));
            }
            None => {
                let wish = NewLink {
                    client_key: client_key.clone(),
                    instance_url,
                    mode: LinkMode::Relay,
                    keep_ids: true,
                };
                let audit = named(audit, "link_created_by_import");
                match linking::create(transaction, wish, audit, now) {
                    Ok(link) => {
                        row.link = Fate::New;
                        row.link_id = Some(link.id);
                        mark(transaction, &link, by);
                    }
                    Err(LinkRefusal::Full(full)) => return Err(full.into()),
                    Err(LinkRefusal::NoRandomness(error)) => return Err(error.into()),
                    Err(refusal) => {
                        row.link = Fate::Refused;
                        let reject = Reject::from(refusal);
                        return Ok(row.because(reject.code, reject.message));
                    }
                }
            }
        }
    }
    if row.installation == Fate::New {
        linking::auto_link(transaction, &client_key, &plan.auto_link, now);
        for link in transaction.links_of(&client_key) {
            mark(transaction, &link, by);
        }
        transaction.audit(AuditEntry {
            client_key: Some(client_key),
            note: Some(format!("import {by}")),
            ..named(audit, "installation_imported")
        });
    }
    Ok(row)
}

/// Why a site that is known can't be taken over any more.
fn refusal(known: &Installation, exported: &SiteFacts) -> Option<(&'static str, String)> {
    if !known.is_installed() {
        return Some((
            "installation_uninstalled",
            "the app was uninstalled on this site since".to_owned(),
        ));
    }
    // Without the mark, Jira itself told us, and what it told is newer than any export.
    let Imported { by, leaving } = known.imported?;
    if leaving {
        return Some((
            "import_leaving",
            format!("the import {by} is being rolled back: wait until that is done"),
        ));
    }
    let same_secret = known
        .connect()
        .is_some_and(|connect| connect.shared_secret == exported.shared_secret);
    (!same_secret).then(|| {
        (
            "secret_differs",
            format!(
                "the import {by} brought another secret: roll it back first if this export is newer"
            ),
        )
    })
}

/// Takes back what an import made and nobody changed since. `client_keys` are the sites that may have something of it.
pub fn roll_back(
    transaction: &mut Transaction<'_>,
    by: ImportId,
    client_keys: &[ClientKey],
    apply: bool,
    audit: &AuditEntry,
    now: Timestamp,
) -> Result<Report, Stopped> {
    let mut report = Report::default();
    for client_key in client_keys {
        let rows = give_up(transaction, by, client_key, audit, now)?;
        report.rows.extend(rows);
    }
    let kept = |row: &Row| row.installation == Fate::Kept && row.link == Fate::Kept;
    if !apply || report.rows.iter().all(kept) {
        return Err(Stopped::Unchanged(report));
    }
    transaction.audit(AuditEntry {
        note: Some(format!("import {by}")),
        ..named(audit, "import_rolled_back")
    });
    report.id = Some(by);
    report.applied = true;
    Ok(report)
}

/// The rollback of one site: a row for each link of the import, or one if there is none.
fn give_up(
    transaction: &mut Transaction<'_>,
    by: ImportId,
    client_key: &ClientKey,
    audit: &AuditEntry,
    now: Timestamp,
) -> Result<Vec<Row>, Stopped> {
    let Some(installation) = transaction.installation(client_key) else {
        return Ok(Vec::new());
    };
    let (mut links, others): (Vec<_>, Vec<_>) = transaction
        .links_of(client_key)
        .into_iter()
        .partition(|link| link.imported == Some(by));
    links.sort_by_key(|link| link.id);
    let row = |link: Option<&Link>, fate| Row {
        client_key: client_key.to_string(),
        base_url: installation.base_url.to_string(),
        instance_url: link.map(|link| link.instance_url.to_string()),
        installation: Fate::Kept,
        link: fate,
        link_id: link.map(|link| link.id),
        code: None,
        reason: None,
    };
    let since = if !others.is_empty() {
        Some((
            "linked_since",
            "instances were linked to this site since: the relay has to go on serving it, or remove those links first",
        ))
    } else if installation.ways().any(|way| way.as_connect().is_none()) {
        Some((
            "joined_since",
            "the site can be reached another way since, which the other proxy can't take over",
        ))
    } else {
        None
    };
    if let Some((code, reason)) = since {
        let kept = links.iter().map(|link| row(Some(link), Fate::Kept));
        let mut rows: Vec<Row> = kept.collect();
        if rows.is_empty() {
            rows.push(row(None, Fate::None));
        }
        let because = |row: Row| row.because(code, reason);
        return Ok(rows.into_iter().map(because).collect());
    }
    let mut rows = Vec::new();
    for link in links {
        let fate = if link.remove {
            Fate::Leaving
        } else if !link.reached {
            transaction.remove_link(link.id);
            Fate::Removed
        } else if link.keep_ids {
            let mut link = Link::clone(&link);
            link.want_handed_back(now);
            transaction.audit(named(audit, "link_hand_back_requested").about(&link));
            transaction.replace_link(link);
            Fate::HandedBack
        } else {
            // The other proxy had not linked it: it holds nothing but what we told it.
            let audit = named(audit, "link_removal_requested");
            linking::remove(transaction, link.id, audit, now).map_or(Fate::Kept, |_| Fate::Leaving)
        };
        rows.push(row(Some(&link), fate));
    }
    if rows.is_empty() {
        rows.push(row(None, Fate::None));
    }
    match installation.imported.filter(|imported| imported.by == by) {
        None => {
            let because = |row: Row| {
                row.because(
                    "known_to_jira",
                    "Jira itself told the relay of this site, which stays known",
                )
            };
            Ok(rows.into_iter().map(because).collect())
        }
        Some(_) => {
            let fate = if transaction.links_of(client_key).is_empty() {
                transaction.remove_installation(client_key);
                Fate::Removed
            } else {
                let mut installation = Installation::clone(&installation);
                installation.imported = Some(Imported { by, leaving: true });
                transaction.put_installation(installation)?;
                Fate::Leaving
            };
            transaction.audit(AuditEntry {
                client_key: Some(client_key.clone()),
                note: Some(format!("import {by}")),
                ..named(audit, "installation_rolled_back")
            });
            for row in &mut rows {
                row.installation = fate;
            }
            Ok(rows)
        }
    }
}

fn mark(transaction: &mut Transaction<'_>, link: &Link, by: ImportId) {
    transaction.replace_link(Link {
        imported: Some(by),
        ..link.clone()
    });
}

fn named(audit: &AuditEntry, action: &str) -> AuditEntry {
    AuditEntry {
        action: action.to_owned(),
        ..audit.clone()
    }
}

impl Report {
    /// Whether anything comes to this.
    pub fn has(&self, fate: Fate) -> bool {
        self.rows
            .iter()
            .any(|row| row.installation == fate || row.link == fate)
    }

    fn count(&self, of: impl Fn(&Row) -> Fate, fate: Fate) -> usize {
        self.rows.iter().filter(|row| of(row) == fate).count()
    }
}

impl Row {
    /// Nothing comes of it.
    #[must_use]
    pub fn refused(self, code: &'static str, reason: impl Into<String>) -> Self {
        Self {
            installation: Fate::Refused,
            link: Fate::Refused,
            ..self.because(code, reason)
        }
    }

    fn because(self, code: &'static str, reason: impl Into<String>) -> Self {
        Self {
            code: Some(code),
            reason: Some(reason.into()),
            ..self
        }
    }
}
