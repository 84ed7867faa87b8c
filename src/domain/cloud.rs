//! A Jira site as Atlassian's API gateway names it, and the address of its REST API there.

use std::fmt;

use serde::{Deserialize, Serialize};
use url::Url;

use super::{
    forge::is_uuid,
    origin::{self, OriginError},
};

/// The id of one Atlassian Cloud site: a lowercase UUID (`/_edge/tenant_info` of the site, `cloudId` in Forge tokens).
///
/// It becomes part of a path at an address that gets our tokens, so nothing else is taken.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CloudId(String);

/// Why a text is no cloud id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a cloud id is a lowercase UUID")]
pub struct CloudIdError;

/// Atlassian's API gateway (`jira.api_url`), without trailing slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JiraApiUrl(String);

/// What is wrong with the address of an API gateway.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JiraApiUrlError {
    /// It is no plain origin.
    #[error(transparent)]
    Unusable(#[from] OriginError),
    /// Tokens would travel in clear.
    #[error("it must be https (http only on loopback): tokens are sent there")]
    InClear,
}

/// Where the REST API of one site is at the gateway: `https://api.atlassian.com/ex/jira/<cloud id>`, without trailing
/// slash. Made by [`JiraApiUrl::of`] only, so it never leads anywhere else.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ApiBaseUrl(String);

const API_PATH: &str = "/ex/jira/";

impl CloudId {
    /// Parses an id that someone else named.
    pub fn parse(text: &str) -> Result<Self, CloudIdError> {
        is_uuid(text)
            .then(|| Self(text.to_owned()))
            .ok_or(CloudIdError)
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Below this path the gateway has the site's REST API for tokens of Forge (Forge's `apiBaseUrl`).
    pub fn api_path(&self) -> String {
        format!("{API_PATH}{}", self.0)
    }
}

impl JiraApiUrl {
    /// Parses the address from the configuration.
    pub fn parse(text: &str) -> Result<Self, JiraApiUrlError> {
        let (url, canonical) = origin::parse_origin(text)?;
        if is_sealed(&url) {
            Ok(Self(canonical))
        } else {
            Err(JiraApiUrlError::InClear)
        }
    }

    /// The address as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Where the API of this Jira site is.
    pub fn of(&self, cloud_id: &CloudId) -> ApiBaseUrl {
        ApiBaseUrl(format!("{}{}", self.0, cloud_id.api_path()))
    }

    /// Takes an address that somebody else named for a Jira site apart: its cloud id, if it is what [`JiraApiUrl::of`]
    /// makes of it. One trailing slash is forgiven.
    pub fn cloud_id_of(&self, api_base_url: &str) -> Option<CloudId> {
        let path = api_base_url.strip_prefix(&self.0)?;
        let cloud_id = path.strip_prefix(API_PATH)?;
        CloudId::parse(cloud_id.strip_suffix('/').unwrap_or(cloud_id)).ok()
    }
}

impl ApiBaseUrl {
    /// The address as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CloudId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for JiraApiUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ApiBaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for CloudId {
    type Error = CloudIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<CloudId> for String {
    fn from(id: CloudId) -> Self {
        id.0
    }
}

/// Whether what is sent to an address, and what comes from it, can't be read or changed on the way: https, or plain
/// http that does not leave this machine.
pub fn is_sealed(url: &Url) -> bool {
    url.scheme() == "https" || url.scheme() == "http" && origin::is_loopback(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOUD_ID: &str = "4c822e2f-510f-48b9-b8d2-8419d0932949";

    #[test]
    fn tokens_go_to_https_or_stay_on_this_machine() {
        for good in [
            "https://api.atlassian.com",
            "https://api.example.com:8443",
            "http://127.0.0.1:9999",
            "http://[::1]:9999",
            "http://localhost:9999",
        ] {
            assert!(JiraApiUrl::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "api.atlassian.com",
            "http://api.atlassian.com",
            "http://10.0.0.1",
            "https://api.atlassian.com/",
            "https://api.atlassian.com/ex/jira",
            "https://user@api.atlassian.com",
            "https://api.atlassian.com?x",
        ] {
            assert!(JiraApiUrl::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_api_base_url_is_below_the_gateway_and_nowhere_else() {
        let api = JiraApiUrl::parse("https://api.atlassian.com").expect("url");
        let base_url = format!("https://api.atlassian.com/ex/jira/{CLOUD_ID}");
        let cloud_id = api.cloud_id_of(&base_url).expect("cloud id");
        assert_eq!(cloud_id.as_str(), CLOUD_ID);
        assert_eq!(api.of(&cloud_id).as_str(), base_url);
        assert!(api.cloud_id_of(&format!("{base_url}/")).is_some());
        for bad in [
            "",
            "https://api.atlassian.com",
            "https://api.atlassian.com/ex/jira/",
            "https://api.atlassian.com/ex/jira/..",
            &format!("https://api.atlassian.com.evil.tld/ex/jira/{CLOUD_ID}"),
            &format!("https://api.atlassian.com@evil.tld/ex/jira/{CLOUD_ID}"),
            &format!("https://evil.tld/ex/jira/{CLOUD_ID}"),
            &format!("http://api.atlassian.com/ex/jira/{CLOUD_ID}"),
            &format!("https://api.atlassian.com:443/ex/jira/{CLOUD_ID}"),
            &format!("https://api.atlassian.com/ex/confluence/{CLOUD_ID}"),
            &format!("https://api.atlassian.com//ex/jira/{CLOUD_ID}"),
            &format!("{base_url}//"),
            &format!("{base_url}?x"),
            &format!("{base_url}/rest"),
            &base_url.to_uppercase(),
        ] {
            assert_eq!(api.cloud_id_of(bad), None, "{bad}");
        }
    }
}
