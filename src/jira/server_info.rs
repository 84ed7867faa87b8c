//! What a site calls itself, asked of Jira with a token of Forge's.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;

use super::{Forwarder, forward::ForwardError, lifecycle::display_url, shape};
use crate::{
    client::{SendError, read_answer},
    domain::{CloudId, Credential, JiraBaseUrl, JiraSites, origin::JiraBaseUrlError},
};

/// An event of Forge's must be answered within 5 s, and more is to be done in them than this.
pub const PATIENCE: Duration = Duration::from_secs(3);

const ANSWER_MAX_BYTES: usize = 64 * 1024;

/// What a site says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerInfo {
    /// Its address.
    pub base_url: JiraBaseUrl,
    /// What users see, if Jira tells that at all: nothing in it, if it is the same.
    pub display_url: Option<Option<String>>,
}

/// Why it says nothing.
#[derive(Debug, thiserror::Error)]
pub enum NotTold {
    /// Jira takes the token for nothing: the app is gone from the site, or the site itself.
    #[error("Jira refuses the app's token with {status}: {told}")]
    Refused {
        /// With this.
        status: StatusCode,
        /// In its words.
        told: String,
    },
    /// The token is good, and the app may not ask.
    #[error("Jira lets the app not ask for the site's address: {0}")]
    Unscoped(String),
    /// An address that no site may have that we serve.
    #[error("the site's address is refused: {0}")]
    Unserved(#[from] JiraBaseUrlError),
    /// Nothing that tells anything.
    #[error("Jira could not be asked for the site's address: {0}")]
    Silent(String),
}

/// As Jira has it (Jira REST v3, `ServerInformation`).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    base_url: String,
    display_url: Option<String>,
}

/// Asks a site for its address.
pub async fn ask(
    forwarder: &Forwarder,
    cloud_id: &CloudId,
    token: &Credential,
    sites: &JiraSites,
) -> Result<ServerInfo, NotTold> {
    let asking = async {
        let answer = forwarder.server_info(cloud_id, token).await?;
        let status = answer.status();
        let answer = read_answer(answer, ANSWER_MAX_BYTES).await?;
        Ok::<_, ForwardError>((status, answer.into_body()))
    };
    let silent = |error: &dyn std::fmt::Display| NotTold::Silent(error.to_string());
    let (status, body) = tokio::time::timeout(PATIENCE, asking)
        .await
        .map_err(|_| silent(&SendError::TimedOut(PATIENCE)))?
        .map_err(|error| silent(&error))?;
    judge(status, &body, sites)
}

fn judge(status: StatusCode, body: &Bytes, sites: &JiraSites) -> Result<ServerInfo, NotTold> {
    match status {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => {
            let told = shape::summary(body);
            // The gateway's words for a good token without the scope; it has the same status for a bad one.
            return Err(if told.contains("scope") {
                NotTold::Unscoped(told)
            } else {
                NotTold::Refused { status, told }
            });
        }
        status => return Err(NotTold::Silent(format!("it answered {status}"))),
    }
    let answer: Answer = serde_json::from_slice(body)
        .map_err(|_| NotTold::Silent("what it answered names no address".to_owned()))?;
    let base_url = sites.parse(&answer.base_url)?;
    Ok(ServerInfo {
        display_url: answer.display_url.map(|text| display_url(&text, &base_url)),
        base_url,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(status: u16, body: &'static str) -> Result<ServerInfo, NotTold> {
        let status = StatusCode::from_u16(status).expect("status");
        judge(
            status,
            &Bytes::from_static(body.as_bytes()),
            &JiraSites::default(),
        )
    }

    #[test]
    fn a_site_tells_its_address_and_what_people_see() {
        let told = judged(
            200,
            r#"{"baseUrl":"https://acme.atlassian.net","deploymentType":"Cloud"}"#,
        );
        let told = told.expect("told");
        assert_eq!(told.base_url.as_str(), "https://acme.atlassian.net");
        assert_eq!(told.display_url, None);
        let told = judged(
            200,
            r#"{"baseUrl":"https://acme.atlassian.net","displayUrl":"https://jira.acme.com/"}"#,
        );
        let display_url = told.expect("told").display_url;
        assert_eq!(display_url, Some(Some("https://jira.acme.com".to_owned())));
        let same =
            r#"{"baseUrl":"https://acme.atlassian.net","displayUrl":"https://acme.atlassian.net"}"#;
        assert_eq!(judged(200, same).expect("told").display_url, Some(None));
    }

    #[test]
    fn only_the_token_is_refused_with_these() {
        for status in [401, 403, 404] {
            let told = judged(status, r#"{"code":401,"message":"Unauthorized"}"#);
            assert!(matches!(told, Err(NotTold::Refused { .. })), "{status}");
        }
        let unscoped = judged(
            401,
            r#"{"code":401,"message":"Unauthorized; scope does not match"}"#,
        );
        assert!(
            matches!(unscoped, Err(NotTold::Unscoped(_))),
            "{unscoped:?}"
        );
        for (status, body) in [
            (429, ""),
            (500, ""),
            (503, "{}"),
            (302, ""),
            (200, "{}"),
            (200, "<html>"),
        ] {
            let told = judged(status, body);
            assert!(matches!(told, Err(NotTold::Silent(_))), "{status} {body}");
        }
        let evil = judged(200, r#"{"baseUrl":"https://acme.atlassian.net.evil.tld"}"#);
        assert!(matches!(evil, Err(NotTold::Unserved(_))), "{evil:?}");
    }
}
