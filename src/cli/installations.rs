//! `installations`: the Jira sites that the relay serves, and how it reaches them.

use std::{
    fs::File,
    io::{self, IsTerminal as _, Read},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::{Subcommand, ValueEnum};
use http::Method;
use jiff::Timestamp;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::json;
use zeroize::Zeroizing;

use super::{
    api::{Api, parsed},
    print,
};

const PATH: &str = "/api/v1/installations";

/// Far above what Atlassian gives out.
const SECRET_MAX_BYTES: u64 = 64 * 1024;

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
    problem: Option<Problem>,
    hint: Option<String>,
}

/// Why nothing reaches Jira.
#[derive(Deserialize)]
struct Problem {
    code: String,
    message: String,
    hint: String,
    since: Timestamp,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Add a Jira site that is reached with OAuth client credentials, or give one new credentials.
    ///
    /// A Jira admin makes them (Jira: Settings > Apps > OAuth credentials) with the permissions builds, deployments,
    /// development information and feature flags. The relay asks the site for its id and tries the credentials out
    /// before it takes them. A site that an app opens already goes on as before: `installations move` changes that.
    ///
    /// The secret is read from standard input, or from a file; as an argument every user could see it.
    #[command(after_help = "Examples:
  jira-connect-proxy installations add-oauth --site https://acme.atlassian.net --client-id 2mCfO6a9Kx --client-secret-file secret.txt
  pass show jira/acme | jira-connect-proxy installations add-oauth --site acme.atlassian.net --client-id 2mCfO6a9Kx")]
    AddOauth {
        /// Its address.
        #[arg(long, value_name = "URL")]
        site: String,
        /// The credentials' public half.
        #[arg(long, value_name = "ID")]
        client_id: String,
        /// File with the other half. Without it, standard input.
        #[arg(long, value_name = "FILE")]
        client_secret_file: Option<PathBuf>,
    },
    /// Leave a Jira site that is reached with OAuth client credentials: its instances are told that it is over.
    ///
    /// What they sent stays in Jira. To have it deleted, first remove the links with --purge, and wait until they are
    /// gone. With --upstream, forget a way that stands by, and change nothing else.
    ///
    /// An app leaves when a Jira admin uninstalls it, of which Jira tells the relay. If that word was lost, or can't come
    /// any more (the site was deleted or imported into another, Connect has ended), --force leaves the site all the same;
    /// a Forge app that has been silent for three hours needs no --force. If the app is installed after all, the site is
    /// back with the next thing that Jira says.
    ///
    /// A site that can be moved to another way is not left without --force either: instances that are told that it is
    /// over forget their groups.
    #[command(after_help = "Examples:
  jira-connect-proxy installations remove acme.atlassian.net
  jira-connect-proxy installations remove acme.atlassian.net --upstream oauth
  jira-connect-proxy installations remove 3c8f2b7e-7a6d-3a52-a9c7-0e2d5f1b9a44 --force")]
    Remove {
        /// Client key, or address of the Jira site.
        installation: String,
        /// Which way; without it, the one in use.
        #[arg(long)]
        upstream: Option<Way>,
        /// Leave the site whatever Jira says and whatever stands by.
        #[arg(long, conflicts_with = "upstream")]
        force: bool,
    },
    /// Make one of two records of one site: the ways of the first stand by with the other, and it is gone.
    ///
    /// A site that was known under another address when its app spoke first has two (`doctor` names them). The first must
    /// have no links any more, so that no instance knows it: link its instances to the other, and remove its links. The
    /// record of a Connect app stays, because Jira calls it by its client key.
    #[command(after_help = "Examples:
  jira-connect-proxy installations join 6f0ae1e0-6b0f-4c2b-9a48-4c6f6e2a1c11 --into 3c8f2b7e-7a6d-3a52-a9c7-0e2d5f1b9a44")]
    Join {
        /// Client key of the record that goes.
        client_key: String,
        /// Client key of the one that stays.
        #[arg(long, value_name = "CLIENT_KEY")]
        into: String,
    },
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
        Some(Command::AddOauth {
            site,
            client_id,
            client_secret_file,
        }) => add_oauth(api, &site, &client_id, client_secret_file.as_deref(), json).await,
        Some(Command::Remove {
            installation,
            upstream,
            force,
        }) => remove(api, &installation, upstream, force, json).await,
        Some(Command::Join { client_key, into }) => join(api, &client_key, &into, json).await,
        Some(Command::Move {
            installation,
            to,
            dry_run,
        }) => move_to(api, &installation, to, dry_run, json).await,
    }
}

async fn add_oauth(
    api: &Api,
    site: &str,
    client_id: &str,
    client_secret_file: Option<&Path>,
    as_json: bool,
) -> anyhow::Result<bool> {
    let client_secret = match client_secret_file {
        Some(file) => read_limited(
            File::open(file).with_context(|| format!("{} can't be read", file.display()))?,
        )
        .with_context(|| format!("{} can't be read", file.display()))?,
        None => {
            let input = io::stdin();
            if input.is_terminal() {
                eprintln!("client secret (it will be seen), then Enter and Ctrl-D:");
            }
            read_limited(input.lock()).context("standard input can't be read")?
        }
    };
    let client_secret = client_secret.trim();
    anyhow::ensure!(
        !client_secret.is_empty(),
        "there is no client secret\n  write it to standard input, or give --client-secret-file"
    );
    // What people have at hand is a host.
    let site_url = if site.contains("://") {
        site.to_owned()
    } else {
        format!("https://{site}")
    };
    let wish = json!({
        "upstream": "oauth", "site_url": site_url, "client_id": client_id, "client_secret": client_secret,
    });
    let answer = api.call(Method::POST, PATH, Some(&wish)).await?;
    if as_json {
        print::json(&answer)?;
        return Ok(true);
    }
    let added: Installation = parsed(answer)?;
    print::line(format!(
        "the credentials for {} are good: client key {}",
        added.base_url, added.client_key
    ))?;
    print::line(added.hint.unwrap_or_else(|| {
        format!(
            "  `jira-connect-proxy links add URL --site {}` links an instance",
            added.client_key
        )
    }))?;
    Ok(true)
}

/// A secret, and no more of what may be any file.
fn read_limited(from: impl Read) -> io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    from.take(SECRET_MAX_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

async fn remove(
    api: &Api,
    installation: &str,
    upstream: Option<Way>,
    force: bool,
    as_json: bool,
) -> anyhow::Result<bool> {
    let site = find(api, Some(installation)).await?;
    let upstream = upstream.and_then(|way| way.to_possible_value());
    let upstream = upstream.map(|way| way.get_name().to_owned());
    let query = match &upstream {
        Some(way) => format!("?upstream={way}"),
        None if force => "?force=true".to_owned(),
        None => String::new(),
    };
    let answer = api.call(Method::DELETE, &site.path(&query), None).await?;
    if as_json {
        print::json(&answer)?;
        return Ok(true);
    }
    let left: Installation = parsed(answer)?;
    let told = format!(
        "its {} links are being told: `jira-connect-proxy links watch` shows when they know",
        left.links
    );
    let url = &left.base_url;
    print::line(match upstream.filter(|way| *way != left.upstream) {
        Some(way) if left.state == "installed" => {
            format!(
                "{url}: {way} stands by no more, and {} is used as before",
                left.upstream
            )
        }
        Some(way) if left.standby.is_empty() => {
            format!(
                "{url}: {way} stands by no more, so that no way to the site is left, and {told}"
            )
        }
        Some(way) => format!("{url}: {way} stands by no more"),
        None if left.upstream == "oauth" => format!(
            "{url} is left, and {told}\nnow a Jira admin can delete the credentials in Jira"
        ),
        None => format!(
            "{url} is left, and {told}\nif its app is still installed, the site is back with the next thing that Jira says: then have a Jira admin uninstall it"
        ),
    })?;
    Ok(true)
}

async fn join(api: &Api, client_key: &str, into: &str, as_json: bool) -> anyhow::Result<bool> {
    let site = find(api, Some(client_key)).await?;
    let answer = api
        .call(
            Method::POST,
            &site.path("/join"),
            Some(&json!({ "into": into })),
        )
        .await?;
    if as_json {
        print::json(&answer)?;
        return Ok(true);
    }
    let joined: Installation = parsed(answer)?;
    print::line(format!(
        "{} is one installation now, {}: {} is used, and {} stands by",
        joined.base_url,
        joined.client_key,
        joined.upstream,
        joined.standby.join(" and ")
    ))?;
    Ok(true)
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
    let now = jira_connect_proxy::clock::now();
    let problems: Vec<String> = installations
        .iter()
        .filter_map(|site| site.trouble(now))
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
        "no Jira site has the app yet: Jira sends `installed` when a Jira admin installs it; `installations add-oauth` adds a site without it",
    )?;
    for problem in problems {
        print::line(format!("\n{problem}"))?;
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

    /// Why nothing reaches it, and what to do.
    pub(super) fn trouble(&self, now: Timestamp) -> Option<String> {
        let problem = self.problem.as_ref()?;
        Some(format!(
            "{}: {}\n  {}\n  ({}, since {})",
            self.base_url,
            problem.message,
            problem.hint,
            problem.code,
            print::distance(problem.since, now)
        ))
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
