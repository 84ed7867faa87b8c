//! `audit`: who changed what, when, and whether the trail is still what was written.

use clap::Subcommand;
use jira_connect_proxy::domain::{Actor, AuditHead, ChainedEntry};
use serde_json::json;

use super::{
    api::{Api, parsed},
    print,
};

/// As many as the API gives at once.
const PAGE: usize = 10_000;

/// More of `audit`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check that no entry was changed, taken out or moved.
    ///
    /// Each entry holds a hash over itself and the hash before it. Prints the head, the last number and its hash: note
    /// it where the relay's administrators can't write, or keep the log, which has the hash of every entry. With
    /// --head, the trail must also still hold what was noted. Exits with 1 if something is wrong.
    #[command(after_help = "Examples:
  jira-connect-proxy audit verify
  jira-connect-proxy audit verify --head 41:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08")]
    Verify {
        /// Heads noted earlier, as this command prints them.
        #[arg(long, value_name = "NUMBER:HASH")]
        head: Vec<AuditHead>,
    },
}

pub(super) async fn run(
    command: Option<Command>,
    limit: usize,
    api: &Api,
    json: bool,
) -> anyhow::Result<bool> {
    match command {
        None => show(api, limit, json).await,
        Some(Command::Verify { head }) => verify(api, &head, json).await,
    }
}

async fn show(api: &Api, limit: usize, json: bool) -> anyhow::Result<bool> {
    let answer = api.get(&format!("/api/v1/audit?limit={limit}")).await?;
    if json {
        print::json(&answer)?;
        return Ok(true);
    }
    let entries: Vec<ChainedEntry> = parsed(answer)?;
    let rows = entries
        .into_iter()
        .map(|ChainedEntry { number, entry, .. }| {
            let who = match entry.actor {
                Actor::Jira => "jira".to_owned(),
                Actor::Admin => "admin".to_owned(),
                Actor::Relay => "relay".to_owned(),
                Actor::JiraAdmin => format!("jira admin {}", print::or_dash(entry.account_id)),
                Actor::Operator => print::or_dash(entry.account_id),
            };
            [
                number.to_string(),
                print::time(entry.at),
                who,
                entry.action,
                print::or_dash(entry.note),
                print::or_dash(entry.client_key),
                print::or_dash(entry.peer),
                print::or_dash(entry.request_id),
            ]
        });
    print::table(
        [
            "number",
            "when",
            "who",
            "what",
            "about",
            "client key",
            "from",
            "request id",
        ],
        rows.collect(),
        "nothing was changed yet",
    )?;
    Ok(true)
}

/// Looks at the whole trail here, page by page, so that nobody need believe the relay.
async fn verify(api: &Api, noted: &[AuditHead], json: bool) -> anyhow::Result<bool> {
    let mut faults = Vec::new();
    let mut newest: Option<AuditHead> = None;
    // Walked backwards: what follows the page that is looked at.
    let mut later: Option<ChainedEntry> = None;
    let mut found = vec![false; noted.len()];
    let mut count = 0_usize;
    loop {
        let before = later
            .as_ref()
            .map(|entry| format!("&before={}", entry.number));
        let path = format!("/api/v1/audit?limit={PAGE}{}", before.unwrap_or_default());
        let page: Vec<ChainedEntry> = api.read(&path).await?;
        let end = page.len() < PAGE;
        for entry in page {
            count += 1;
            let head = entry.head();
            match &later {
                Some(later) => faults.extend(later.check(Some(&head)).err()),
                None => newest = Some(head.clone()),
            }
            for (noted, found) in noted.iter().zip(&mut found) {
                *found |= *noted == head;
            }
            later = Some(entry);
        }
        if end {
            break;
        }
    }
    // The oldest one that is left.
    faults.extend(later.as_ref().and_then(|oldest| oldest.check(None).err()));
    let oldest = later.map(|entry| entry.number);
    let mut faults: Vec<_> = faults.iter().rev().map(ToString::to_string).collect();
    for (noted, _) in noted.iter().zip(found).filter(|(_, found)| !found) {
        faults.push(if oldest.is_some_and(|oldest| noted.number < oldest) {
            format!(
                "{noted} is older than the oldest entry that is kept: see store.audit_entries_max"
            )
        } else {
            format!("{noted} was noted, but the trail does not hold it: it was rewritten or cut")
        });
    }
    let head = newest.map(|head| head.to_string());
    if json {
        print::json(&json!({
            "entries": count,
            "oldest": oldest,
            "head": head,
            "faults": faults,
        }))?;
        return Ok(faults.is_empty());
    }
    for fault in &faults {
        print::line(format!("FAIL {fault}"))?;
    }
    let state = if faults.is_empty() {
        "whole"
    } else {
        "not what was written"
    };
    let oldest = oldest.map_or_else(String::new, |oldest| format!(", from number {oldest} on"));
    print::line(format!("{count} entries{oldest}: the trail is {state}"))?;
    if let Some(head) = head {
        print::line(format!("head {head}"))?;
    }
    Ok(faults.is_empty())
}
