//! `page`: the page outside Jira.

use http::Method;
use jiff::Timestamp;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use super::{
    api::{Api, parsed},
    installations, print,
};

#[derive(Deserialize)]
struct Invitation {
    url: String,
    expires_at: Timestamp,
}

pub(super) async fn invite(api: &Api, wanted: &str, json: bool) -> anyhow::Result<bool> {
    let site = installations::find(api, Some(wanted)).await?;
    let client_key = utf8_percent_encode(&site.client_key, NON_ALPHANUMERIC);
    let path = format!("/api/v1/installations/{client_key}/page");
    let answer = api.call(Method::POST, &path, None).await?;
    if json {
        print::json(&answer)?;
        return Ok(true);
    }
    let invitation: Invitation = parsed(answer)?;
    print::line(&invitation.url)?;
    print::line(format!(
        "\nopens the page of {} once, until {}\nwhoever opens it acts as an admin of that site: keep it to yourself",
        site.display_url.unwrap_or(site.base_url),
        print::time(invitation.expires_at)
    ))?;
    Ok(true)
}
