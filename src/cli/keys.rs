//! `keys`: what the relay signs with.

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
    /// List the signing keys: the active one, and retired ones that are still served.
    #[command(after_help = "Examples:
  jira-connect-proxy keys list")]
    List,
    /// Replace the active signing key now; the old one is served for ten more minutes.
    #[command(after_help = "Examples:
  jira-connect-proxy keys rotate")]
    Rotate,
}

/// A signing key, as far as it is shown.
#[derive(Deserialize)]
pub(super) struct Key {
    pub(super) kid: String,
    pub(super) state: String,
    pub(super) created_at: Timestamp,
    served_until: Option<Timestamp>,
}

pub(super) async fn run(command: Command, api: &Api, json: bool) -> anyhow::Result<bool> {
    let rotate = matches!(command, Command::Rotate);
    let answer = if rotate {
        api.call(Method::POST, "/api/v1/keys/rotate", None).await?
    } else {
        api.get("/api/v1/keys").await?
    };
    if json {
        print::json(&answer)?;
    } else if rotate {
        let key: Key = parsed(answer)?;
        print::line(format!("the relay signs with {} now", key.kid))?;
    } else {
        let keys: Vec<Key> = parsed(answer)?;
        let rows = keys.into_iter().map(|key| {
            [
                key.kid,
                key.state,
                print::time(key.created_at),
                print::time_or_dash(key.served_until),
            ]
        });
        print::table(
            ["kid", "state", "made", "served until"],
            rows.collect(),
            "there is no signing key: look at the relay's log",
        )?;
    }
    Ok(true)
}

pub(super) async fn all(api: &Api) -> anyhow::Result<Vec<Key>> {
    api.read("/api/v1/keys").await
}
