//! `installations`: the Jira sites that have the app.

use anyhow::Context as _;
use jiff::Timestamp;
use serde::Deserialize;

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
    links: usize,
}

pub(super) async fn list(api: &Api, json: bool) -> anyhow::Result<bool> {
    let answer = api.get(PATH).await?;
    if json {
        print::json(&answer)?;
        return Ok(true);
    }
    let installations: Vec<Installation> = parsed(answer)?;
    let rows = installations.into_iter().map(|site| {
        [
            site.base_url,
            site.state,
            site.links.to_string(),
            print::time(site.installed_at),
            site.client_key,
        ]
    });
    print::table(
        ["site", "state", "links", "installed", "client key"],
        rows.collect(),
        "no Jira site has the app yet: Jira sends `installed` when a Jira admin installs it",
    )?;
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
