//! `status`: the running relay on one screen.

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;

use super::{
    api::{Api, parsed},
    installations, keys, links, print, spool,
};

/// What the relay says of itself.
#[derive(Deserialize)]
struct Status {
    version: String,
    started_at: Timestamp,
    ready: bool,
    not_ready: Option<String>,
    public: Listener,
    admin: Listener,
    store: Store,
    last_errors: Vec<LastError>,
}

/// Something that went wrong lately.
#[derive(Deserialize)]
struct LastError {
    at: Timestamp,
    id: String,
    what: String,
    code: String,
    message: String,
    times: usize,
}

#[derive(Deserialize)]
struct Listener {
    #[serde(default)]
    url: Option<String>,
    listen: String,
    connections: i64,
}

#[derive(Deserialize)]
struct Store {
    path: String,
    writable: bool,
}

/// `false` if the relay is not ready.
pub(super) async fn show(api: &Api, as_json: bool) -> anyhow::Result<bool> {
    let answer = api.get("/api/v1/status").await?;
    let status: Status = parsed(answer.clone())?;
    if as_json {
        let whole = json!({
            "relay": answer,
            "installations": api.get("/api/v1/installations").await?,
            "links": api.get("/api/v1/links").await?,
            "keys": api.get("/api/v1/keys").await?,
            "spool": api.get("/api/v1/spool?limit=1").await?,
        });
        print::json(&whole)?;
        return Ok(status.ready);
    }
    let now = jira_connect_proxy::clock::now();
    let (sites, links) = (installations::all(api).await?, links::all(api).await?);
    let (keys, spool) = (keys::all(api).await?, spool::get(api).await?);
    print::line(format!(
        "jira-connect-proxy {} at {}, started {}: {}",
        status.version,
        api.url(),
        print::distance(status.started_at, now),
        match &status.not_ready {
            None => "ready".to_owned(),
            Some(cause) => format!("NOT READY: {cause}"),
        }
    ))?;
    let listener =
        |listener: &Listener| format!("{} ({} connections)", listener.listen, listener.connections);
    let url = print::or_dash(status.public.url.as_ref());
    row("public", format!("{url} on {}", listener(&status.public)))?;
    row("admin", listener(&status.admin))?;
    let writable = if status.store.writable {
        "writable"
    } else {
        "NOT WRITABLE"
    };
    row("store", format!("{}, {writable}", status.store.path))?;
    let active = keys.iter().find(|key| key.state == "active");
    row(
        "key",
        active.map_or_else(
            || "NONE".to_owned(),
            |key| format!("{}, made {}", key.kid, print::distance(key.created_at, now)),
        ),
    )?;
    let installed = sites.iter().filter(|site| site.state == "installed");
    row("sites", format!("{} installed", installed.count()))?;
    let in_state = |state: &str| links.iter().filter(|link| link.state == state).count();
    let states = ["connected", "pending", "failing", "removing"];
    let states: Vec<String> = states
        .iter()
        .map(|state| format!("{} {state}", in_state(state)))
        .collect();
    row("links", states.join(", "))?;
    let oldest = spool
        .oldest_at
        .map(|at| format!(", the oldest {}", print::distance(at, now)));
    row(
        "spool",
        format!("{}{}", spool.amount(), oldest.unwrap_or_default()),
    )?;
    for pause in spool.pauses(now) {
        row("", pause)?;
    }
    for trouble in sites.iter().filter_map(|site| site.trouble(now)) {
        print::line(format!("\n{trouble}"))?;
    }
    for link in &links {
        if let Some(problem) = &link.last_error {
            print::line(format!("\n{}: {}", link.instance_url, problem.text(now)))?;
        }
    }
    if !status.last_errors.is_empty() {
        print::line("\nlast errors (`jira-connect-proxy trace ID` shows one)")?;
    }
    let errors = status.last_errors.into_iter().map(|error| {
        [
            print::distance(error.at, now),
            error.times.to_string(),
            error.what,
            error.code,
            error.id,
            error.message,
        ]
    });
    let errors: Vec<_> = errors.collect();
    if !errors.is_empty() {
        let headings = ["last", "times", "what", "code", "id", "message"];
        print::table(headings, errors, "")?;
    }
    Ok(status.ready)
}

fn row(name: &str, value: impl std::fmt::Display) -> std::io::Result<()> {
    print::line(format!("  {name:<8} {value}"))
}
