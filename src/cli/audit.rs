//! `audit`: who changed what, when.

use jira_connect_proxy::domain::{Actor, AuditEntry};

use super::{
    api::{Api, parsed},
    print,
};

pub(super) async fn show(api: &Api, limit: usize, json: bool) -> anyhow::Result<bool> {
    let answer = api.get(&format!("/api/v1/audit?limit={limit}")).await?;
    if json {
        print::json(&answer)?;
        return Ok(true);
    }
    let entries: Vec<AuditEntry> = parsed(answer)?;
    let rows = entries.into_iter().map(|entry| {
        let who = match entry.actor {
            Actor::Jira => "jira".to_owned(),
            Actor::Admin => "admin".to_owned(),
            Actor::Relay => "relay".to_owned(),
            Actor::JiraAdmin => format!("jira admin {}", print::or_dash(entry.account_id)),
        };
        [
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
