//! `installations`: the Jira sites that the relay serves, and how it reaches them.

use anyhow::Context as _;
use clap::{Subcommand, ValueEnum};
use http::Method;
use jiff::Timestamp;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::json;

use super::{
    api::{Api, parsed},
    print,
};

const PATH: &str = "/api/v1/installations";

/// One site, as far as it is shown.
#[derive(Deserialize)]
pub(super) struct Installation {
    pub(super) client_key: String,
    pub(super) base_url: String,
    pub(super) display_url: Option<String>,
    pub(super) state: String,
    installed_at: Timestamp,
    upstream: String,
    standby: Vec<String>,
    links: usize,
    forge: Option<Forge>,
}

/// What is known of a site's Forge app.
#[derive(Deserialize)]
struct Forge {
    standing: Option<Standing>,
}

/// How the way through it is.
#[derive(Deserialize)]
struct Standing {
    verdict: String,
    message: String,
    hint: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Reach a site another way from now on: its links, their namespaces and what waits for it go along.
    ///
    /// The other way must be there already: the app installed on the site, or its credentials added. What was sent so
    /// far stays in Jira until the old app or its credentials are removed there.
    #[command(after_help = "Examples:
  jira-connect-proxy installations move acme.atlassian.net --to forge --dry-run
  jira-connect-proxy installations move acme.atlassian.net --to forge")]
    Move {
        /// Client key, or address of the Jira site.
        installation: String,
        /// The way to it from now on.
        #[arg(long)]
        to: Way,
        /// Only tell what would be done, and whether the other way works.
        #[arg(long)]
        dry_run: bool,
    },
}

/// How a site can be reached.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Way {
    /// A Connect app.
    Connect,
    /// A Forge app.
    Forge,
    /// OAuth 2.0 client credentials.
    Oauth,
}

/// What a move did, or would do.
#[derive(Deserialize)]
struct Moved {
    base_url: String,
    from: String,
    to: String,
    links: usize,
    no_longer_direct: Vec<String>,
    waiting_writes: usize,
    applied: bool,
    notes: Vec<String>,
}

pub(super) async fn run(command: Option<Command>, api: &Api, json: bool) -> anyhow::Result<bool> {
    match command {
        None => list(api, json).await,
        Some(Command::Move {
            installation,
            to,
            dry_run,
        }) => move_to(api, &installation, to, dry_run, json).await,
    }
}

async fn move_to(
    api: &Api,
    installation: &str,
    to: Way,
    dry_run: bool,
    as_json: bool,
) -> anyhow::Result<bool> {
    let site = find(api, Some(installation)).await?;
    let to = to.to_possible_value().map(|way| way.get_name().to_owned());
    let wish = json!({"to": to, "dry_run": dry_run});
    let answer = api
        .call(Method::POST, &site.path("/move"), Some(&wish))
        .await?;
    if as_json {
        print::json(&answer)?;
        return Ok(true);
    }
    let moved: Moved = parsed(answer)?;
    let done = if moved.applied {
        "is reached"
    } else {
        "would be reached"
    };
    print::line(format!(
        "{} {done} through {} instead of {}, with {} links and {} waiting writes",
        moved.base_url, moved.to, moved.from, moved.links, moved.waiting_writes
    ))?;
    for link in &moved.no_longer_direct {
        print::line(format!("  link {link} is direct no more"))?;
    }
    for note in &moved.notes {
        print::line(format!("  {note}"))?;
    }
    if !moved.applied {
        print::line("nothing was changed: leave out --dry-run to do it")?;
    }
    Ok(true)
}

async fn list(api: &Api, json: bool) -> anyhow::Result<bool> {
    let answer = api.get(PATH).await?;
    if json {
        print::json(&answer)?;
        return Ok(true);
    }
    let installations: Vec<Installation> = parsed(answer)?;
    let troubles: Vec<String> = installations
        .iter()
        .filter_map(Installation::forge_trouble)
        .collect();
    let rows = installations.into_iter().map(|site| {
        [
            site.base_url,
            site.state,
            std::iter::once(site.upstream)
                .chain(site.standby.into_iter().map(|way| format!("({way})")))
                .collect::<Vec<_>>()
                .join(" "),
            site.links.to_string(),
            print::time(site.installed_at),
            site.client_key,
        ]
    });
    print::table(
        [
            "site",
            "state",
            "upstream",
            "links",
            "installed",
            "client key",
        ],
        rows.collect(),
        "no Jira site has the app yet: Jira sends `installed` when a Jira admin installs it",
    )?;
    for trouble in troubles {
        print::line(format!("\n{trouble}"))?;
    }
    Ok(true)
}

pub(super) async fn all(api: &Api) -> anyhow::Result<Vec<Installation>> {
    api.read(PATH).await
}

/// The one that is meant: by client key, by address, or because there is no other.
pub(super) async fn find(api: &Api, wanted: Option<&str>) -> anyhow::Result<Installation> {
    let mut sites = all(api).await?;
    let list = "`jira-connect-proxy installations` lists them";
    match wanted {
        // After a site import two have one address; the newest that is installed is the one that lives.
        Some(wanted) => sites
            .into_iter()
            .filter(|site| site.is(wanted))
            .max_by_key(|site| (site.state == "installed", site.installed_at))
            .with_context(|| format!("no Jira site {wanted} has the app\n  {list}")),
        None => {
            sites.retain(|site| site.state == "installed");
            let site = sites.pop().context(
                "no Jira site has the app yet\n  Jira sends `installed` when a Jira admin installs it",
            )?;
            anyhow::ensure!(
                sites.is_empty(),
                "several Jira sites have the app\n  {list}; give --site with its client key or address"
            );
            Ok(site)
        }
    }
}

impl Installation {
    /// Where its own calls are, below the list.
    pub(super) fn path(&self, call: &str) -> String {
        let client_key = utf8_percent_encode(&self.client_key, NON_ALPHANUMERIC);
        format!("{PATH}/{client_key}{call}")
    }

    /// What is wrong with the way through Forge, and what to do.
    pub(super) fn forge_trouble(&self) -> Option<String> {
        let standing = self.forge.as_ref()?.standing.as_ref()?;
        let hint = standing.hint.as_deref().unwrap_or_default();
        (standing.verdict != "ok").then(|| format!("{}\n  {hint}", standing.message))
    }

    /// Whether somebody means this site: by its key, its address, or the host in it.
    pub(super) fn is(&self, wanted: &str) -> bool {
        let host = |url: &str| url.split_once("://").map(|(_, host)| host.to_owned());
        let wanted_url = wanted.trim_end_matches('/');
        self.client_key == wanted
            || [Some(&self.base_url), self.display_url.as_ref()]
                .into_iter()
                .flatten()
                .any(|url| url == wanted_url || host(url).is_some_and(|host| host == wanted_url))
    }
}
