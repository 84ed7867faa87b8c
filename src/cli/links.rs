//! `links`: which instances are linked to which site, and how that goes.

use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use http::Method;
use jiff::Timestamp;
use jira_connect_proxy::domain::InstanceUrl;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    api::{Api, parsed},
    installations::{self, Installation},
    print,
};

const PATH: &str = "/api/v1/links";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the links with their state.
    #[command(after_help = "Examples:
  jira-connect-proxy links list
  jira-connect-proxy links list --site acme.atlassian.net
  jira-connect-proxy links list --json")]
    List(Which),
    /// Link an instance to a site, and tell how its first delivery went.
    ///
    /// On a link that is being removed: takes the removal back. Exits with 1 if the instance could not be told; the
    /// relay goes on trying.
    #[command(after_help = "Examples:
  jira-connect-proxy links add https://gitlab.example.com
  jira-connect-proxy links add https://example.com/gitlab --site acme.atlassian.net
  jira-connect-proxy links add https://gitlab.example.com --mode direct")]
    Add(Add),
    /// Tell an instance that it is over, and forget the link.
    ///
    /// A deletion of its data (--purge) is tried until Jira has taken it. If that can't be, because the site, the app or
    /// the credentials are gone, --abandon-purge gives it up: what is not deleted yet stays in Jira.
    #[command(after_help = "Examples:
  jira-connect-proxy links remove https://gitlab.example.com
  jira-connect-proxy links remove 89d5e9b4-36e8-4460-add1-ca048de6c13d --purge
  jira-connect-proxy links remove 89d5e9b4-36e8-4460-add1-ca048de6c13d --abandon-purge")]
    Remove {
        /// The link's id, or the instance's URL.
        link: String,
        /// The Jira site, if the instance is linked to several.
        #[arg(long)]
        site: Option<String>,
        /// Also delete what it wrote from Jira.
        #[arg(long)]
        purge: bool,
        /// Give up a deletion that can't end.
        #[arg(long, conflicts_with = "purge")]
        abandon_purge: bool,
    },
    /// Tell an instance `installed` again, with a fresh secret.
    #[command(after_help = "Examples:
  jira-connect-proxy links resend https://gitlab.example.com")]
    Resend {
        /// The link's id, or the instance's URL.
        link: String,
        /// The Jira site, if the instance is linked to several.
        #[arg(long)]
        site: Option<String>,
    },
    /// Show the links again and again, until all are settled.
    ///
    /// Exits with 0 when every link is connected (or gone), with 1 when that does not happen in time.
    #[command(after_help = "Examples:
  jira-connect-proxy links watch
  jira-connect-proxy links watch --seconds 600")]
    Watch {
        #[command(flatten)]
        which: Which,
        /// For how long at most.
        #[arg(long, default_value_t = 300)]
        seconds: u64,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Which {
    /// Only those of this Jira site: its client key or address.
    #[arg(long)]
    site: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Add {
    /// The address that people type, with a sub-path if there is one.
    instance_url: String,
    /// The Jira site: its client key or address. Not needed while there is one only.
    #[arg(long)]
    site: Option<String>,
    /// What the instance gets to know.
    #[arg(long, value_enum, default_value_t = Mode::Relay)]
    mode: Mode,
    /// Leave its ids in Jira as they are: for a GitLab that was the proxy so far. One per site.
    #[arg(long)]
    keep_ids: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// A secret of its own; it speaks to Jira through the relay.
    Relay,
    /// Jira's own secret and address, as GitLab's own proxy does; only as the one link of its site.
    Direct,
}

/// A link, as far as it is shown.
#[derive(Deserialize)]
pub(super) struct Link {
    id: String,
    client_key: String,
    pub(super) instance_url: String,
    mode: String,
    pub(super) state: String,
    acknowledged: Option<String>,
    attempts: u32,
    next_attempt_at: Option<Timestamp>,
    pub(super) last_error: Option<Problem>,
    last_seen_at: Option<Timestamp>,
    gitlab_version: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Problem {
    pub(super) code: String,
    pub(super) message: String,
    pub(super) hint: String,
    pub(super) at: Timestamp,
    pub(super) id: String,
}

pub(super) async fn run(command: Command, api: &Api, as_json: bool) -> anyhow::Result<bool> {
    match command {
        Command::List(which) => list(api, &which, as_json).await,
        Command::Add(add) => {
            let site = installations::find(api, add.site.as_deref()).await?;
            let instance_url = InstanceUrl::from_typed(&add.instance_url)?;
            let wish = json!({
                "client_key": site.client_key,
                "instance_url": instance_url,
                "mode": if add.mode == Mode::Direct { "direct" } else { "relay" },
                "keep_ids": add.keep_ids,
            });
            let link = api.call(Method::POST, PATH, Some(&wish)).await?;
            told(link, as_json)
        }
        Command::Remove {
            link,
            site,
            purge,
            abandon_purge,
        } => {
            let id = find(api, &link, site.as_deref()).await?.id;
            let (query, data) = match (purge, abandon_purge) {
                (true, _) => ("?purge=true", "; its data is being deleted from Jira"),
                (_, true) => ("?purge=abandon", "; what was not deleted yet stays in Jira"),
                _ => ("", ""),
            };
            let answer = api
                .call(Method::DELETE, &format!("{PATH}/{id}{query}"), None)
                .await?;
            if as_json {
                print::json(&answer)?;
            } else {
                let link: Link = parsed(answer)?;
                print::line(format!(
                    "{} is being told that it is over{data}: `jira-connect-proxy links watch` shows when it is gone",
                    link.instance_url
                ))?;
            }
            Ok(true)
        }
        Command::Resend { link, site } => {
            let id = find(api, &link, site.as_deref()).await?.id;
            let answer = api
                .call(Method::POST, &format!("{PATH}/{id}/resend"), None)
                .await?;
            told(answer, as_json)
        }
        Command::Watch { which, seconds } => watch(api, &which, seconds, as_json).await,
    }
}

pub(super) async fn all(api: &Api) -> anyhow::Result<Vec<Link>> {
    api.read(PATH).await
}

async fn list(api: &Api, which: &Which, as_json: bool) -> anyhow::Result<bool> {
    let answer = api.get(&path(api, which).await?).await?;
    if as_json {
        print::json(&answer)?;
    } else {
        show(parsed(answer)?)?;
    }
    Ok(true)
}

async fn path(api: &Api, which: &Which) -> anyhow::Result<String> {
    let Some(site) = &which.site else {
        return Ok(PATH.to_owned());
    };
    let site = installations::find(api, Some(site)).await?;
    let query = form_urlencoded::Serializer::new(String::new())
        .append_pair("client_key", &site.client_key)
        .finish();
    Ok(format!("{PATH}?{query}"))
}

fn show(links: Vec<Link>) -> anyhow::Result<()> {
    let now = jira_connect_proxy::clock::now();
    let row = |link: &Link| {
        let seen = link.last_seen_at.map(|at| print::distance(at, now));
        [
            link.instance_url.clone(),
            link.state.clone(),
            link.mode.clone(),
            print::or_dash(link.gitlab_version.as_ref()),
            print::or_dash(seen),
            link.id.clone(),
        ]
    };
    print::table(
        ["instance", "state", "mode", "gitlab", "last seen", "id"],
        links.iter().map(row).collect(),
        "no instance is linked: `jira-connect-proxy links add URL` links one",
    )?;
    for link in &links {
        if let Some(problem) = &link.last_error {
            print::line(format!("\n{}: {}", link.instance_url, problem.text(now)))?;
            if let Some(next) = link.next_attempt_at {
                let next = print::distance(next, now);
                print::line(format!("  {} attempts, the next {next}", link.attempts))?;
            }
        }
    }
    Ok(())
}

impl Problem {
    /// What it is, what to do, and where to look.
    pub(super) fn text(&self, now: Timestamp) -> String {
        format!(
            "{}\n  {}\n  ({}, {}, request id {})",
            self.message,
            self.hint,
            self.code,
            print::distance(self.at, now),
            self.id
        )
    }
}

/// How a first delivery went.
fn told(answer: Value, as_json: bool) -> anyhow::Result<bool> {
    let link: Link = parsed(answer.clone())?;
    let connected = link.state == "connected";
    if as_json {
        print::json(&answer)?;
        return Ok(connected);
    }
    let now = jira_connect_proxy::clock::now();
    match &link.last_error {
        _ if connected => print::line(format!("{} is connected", link.instance_url))?,
        Some(problem) => print::line(format!(
            "{} could not be told yet, the relay goes on trying: {}",
            link.instance_url,
            problem.text(now)
        ))?,
        None => print::line(format!(
            "{} has not answered yet: `jira-connect-proxy links watch` shows how it goes on",
            link.instance_url
        ))?,
    }
    Ok(connected)
}

/// The one that is meant: by id, or by the instance's URL.
async fn find(api: &Api, wanted: &str, site: Option<&str>) -> anyhow::Result<Link> {
    let site: Option<Installation> = match site {
        Some(site) => Some(installations::find(api, Some(site)).await?),
        None => None,
    };
    let wanted = wanted.trim_end_matches('/');
    let mut links = all(api).await?;
    links.retain(|link| {
        let of_site = site
            .as_ref()
            .is_none_or(|site| site.client_key == link.client_key);
        of_site && (link.id == wanted || link.instance_url == wanted)
    });
    let link = links.pop().with_context(|| {
        format!("no link {wanted}\n  `jira-connect-proxy links list` shows ids and instances")
    })?;
    anyhow::ensure!(
        links.is_empty(),
        "{wanted} is linked to several Jira sites\n  give --site, or the link's id"
    );
    Ok(link)
}

async fn watch(api: &Api, which: &Which, seconds: u64, as_json: bool) -> anyhow::Result<bool> {
    let path = path(api, which).await?;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(seconds);
    let mut shown: Option<Vec<(String, String)>> = None;
    loop {
        let links: Vec<Link> = api.read(&path).await?;
        let states = |link: &Link| (link.instance_url.clone(), link.state.clone());
        let states: Vec<_> = links.iter().map(states).collect();
        // One that was told that it is over may be kept for a reinstall.
        let settled = links.iter().all(|link| {
            let told = link.acknowledged.as_deref() == Some("uninstalled");
            link.state == "connected" || (link.state == "removing" && told)
        });
        // Only what is new is worth a look.
        if shown.as_ref() != Some(&states) {
            if as_json {
                print::line(json!(
                    states
                        .iter()
                        .map(|(instance_url, state)| json!({
                            "instance_url": instance_url, "state": state
                        }))
                        .collect::<Vec<_>>()
                ))?;
            } else {
                print::line(format!(
                    "-- {}",
                    print::time(jira_connect_proxy::clock::now())
                ))?;
                show(links)?;
            }
            shown = Some(states);
        }
        if settled {
            return Ok(true);
        }
        if tokio::time::Instant::now() >= deadline {
            return Ok(false);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
