//! `spool`: what waits for Jira, and why.

use clap::Subcommand;
use http::Method;
use jiff::Timestamp;
use serde::Deserialize;

use super::{
    api::{Api, parsed},
    print,
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the oldest writes that wait, and every pause with its cause.
    #[command(after_help = "Examples:
  jira-connect-proxy spool list
  jira-connect-proxy spool list --limit 1000 --json")]
    List {
        /// How many writes, 1 to 10000.
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
    /// End all pauses: what waits is sent now.
    #[command(after_help = "Examples:
  jira-connect-proxy spool retry")]
    Retry,
}

/// The spool, as far as it is shown.
#[derive(Deserialize)]
pub(super) struct Spool {
    pub(super) waiting: usize,
    pub(super) bytes: u64,
    pub(super) oldest_at: Option<Timestamp>,
    paused: Vec<Pause>,
    limits: Limits,
    installations: Vec<Site>,
    writes: Vec<Write>,
}

#[derive(Deserialize)]
struct Limits {
    max_bytes: u64,
}

#[derive(Deserialize)]
struct Site {
    client_key: String,
    paused: Vec<Pause>,
}

#[derive(Deserialize)]
struct Pause {
    app: Option<String>,
    endpoint: Option<String>,
    message: String,
    until: Timestamp,
}

#[derive(Deserialize)]
struct Write {
    received_at: Timestamp,
    endpoint: String,
    bytes: u64,
    state: String,
    attempts: u32,
    reason: String,
    link_id: String,
}

pub(super) async fn run(command: Command, api: &Api, json: bool) -> anyhow::Result<bool> {
    match command {
        Command::List { limit } => {
            let answer = api.get(&format!("/api/v1/spool?limit={limit}")).await?;
            if json {
                print::json(&answer)?;
                return Ok(true);
            }
            let spool: Spool = parsed(answer)?;
            spool.show()?;
        }
        Command::Retry => {
            let answer = api.call(Method::POST, "/api/v1/spool/retry", None).await?;
            if json {
                print::json(&answer)?;
                return Ok(true);
            }
            let spool: Spool = parsed(answer)?;
            print::line(format!(
                "all pauses are over: {} go to Jira now",
                spool.amount()
            ))?;
        }
    }
    Ok(true)
}

pub(super) async fn get(api: &Api) -> anyhow::Result<Spool> {
    api.read("/api/v1/spool?limit=1").await
}

impl Spool {
    /// How much waits.
    pub(super) fn amount(&self) -> String {
        let writes = if self.waiting == 1 { "write" } else { "writes" };
        format!("{} {writes} ({})", self.waiting, print::bytes(self.bytes))
    }

    /// Every pause that holds something up.
    pub(super) fn pauses(&self, now: Timestamp) -> Vec<String> {
        let of_apps = self.paused.iter().map(|pause| {
            let app = pause.app.as_deref().unwrap_or("an app");
            pause.text(&format!("everything through {app}"), now)
        });
        let of_sites = self.installations.iter().flat_map(|site| {
            let of_site = site.paused.iter();
            of_site.map(|pause| pause.text(&site.client_key, now))
        });
        of_apps.chain(of_sites).collect()
    }

    fn show(&self) -> anyhow::Result<()> {
        let now = jira_connect_proxy::clock::now();
        let room = print::bytes(self.limits.max_bytes);
        print::line(format!("{} wait for Jira, of {room}", self.amount()))?;
        for pause in self.pauses(now) {
            print::line(pause)?;
        }
        if self.writes.is_empty() {
            return Ok(());
        }
        let rows = self.writes.iter().map(|write| {
            [
                print::distance(write.received_at, now),
                write.endpoint.clone(),
                print::bytes(write.bytes),
                write.state.clone(),
                write.attempts.to_string(),
                write.reason.clone(),
                write.link_id.clone(),
            ]
        });
        print::table(
            [
                "received", "endpoint", "size", "state", "attempts", "reason", "link",
            ],
            rows.collect(),
            "",
        )?;
        Ok(())
    }
}

impl Pause {
    fn text(&self, whose: &str, now: Timestamp) -> String {
        let what = match &self.endpoint {
            Some(endpoint) => format!("{whose}, {endpoint}"),
            None => whose.to_owned(),
        };
        format!(
            "paused: {what}: {}; goes on {}",
            self.message,
            print::distance(self.until, now)
        )
    }
}
