//! The names that Atlassian Forge gives to apps, their environments and their installations.
//!
//! All are Atlassian resource identifiers (ARI), written with lowercase UUIDs. Nobody writes them but Forge and, for
//! the app, the operator who copies it from a manifest, so there is one spelling and ids compare byte by byte.
//! Source: Atlassian's "Forge Remote essentials", section "The Forge Invocation Token (FIT)".

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

const APP: &str = "ari:cloud:ecosystem::app/";
const INSTALLATION: &str = "ari:cloud:ecosystem::installation/";
const ENVIRONMENT: &str = "ari:cloud:ecosystem::environment/";

/// The type of the one module of our app that people see.
pub const PAGE_MODULE: &str = "jira:adminPage";

/// The key of the endpoint that the page's calls go through, and nothing else.
pub const PAGE_ENDPOINT: &str = "page";

/// A Forge app: `ari:cloud:ecosystem::app/<uuid>`, as `app.id` stands in its manifest.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ForgeAppId(String);

/// One installation of a Forge app: `ari:cloud:ecosystem::installation/<uuid>`.
///
/// What Atlassian says a remote is to key its records by. A reinstall has another one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ForgeInstallationId(String);

/// One environment of a Forge app: `ari:cloud:ecosystem::environment/<app uuid>/<environment uuid>`. Atlassian's table
/// shows it without the app, its examples and real tokens with it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ForgeEnvironmentId(String);

/// What an environment of an app is for. Those that developers make for themselves are `DEVELOPMENT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ForgeEnvironmentType {
    /// Where `forge deploy` puts the app by itself.
    Development,
    /// For tests before a release.
    Staging,
    /// What customers have.
    Production,
}

/// Why a text is no id of Forge's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it must look like \"{0}\", with lowercase UUIDs")]
pub struct ForgeIdError(&'static str);

/// Why a text names no environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an environment is DEVELOPMENT, STAGING or PRODUCTION")]
pub struct ForgeEnvironmentTypeError;

impl ForgeAppId {
    /// Parses the id of an app.
    pub fn parse(text: &str) -> Result<Self, ForgeIdError> {
        if text.strip_prefix(APP).is_some_and(is_uuid) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ForgeIdError("ari:cloud:ecosystem::app/<uuid>"))
        }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl ForgeInstallationId {
    /// Parses the id of an installation.
    pub fn parse(text: &str) -> Result<Self, ForgeIdError> {
        if text.strip_prefix(INSTALLATION).is_some_and(is_uuid) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ForgeIdError("ari:cloud:ecosystem::installation/<uuid>"))
        }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl ForgeEnvironmentId {
    /// Parses the id of an environment.
    pub fn parse(text: &str) -> Result<Self, ForgeIdError> {
        let well_formed = text.strip_prefix(ENVIRONMENT).is_some_and(|ids| {
            let (app, environment) = ids.split_once('/').unwrap_or((ids, ids));
            is_uuid(app) && is_uuid(environment)
        });
        if well_formed {
            Ok(Self(text.to_owned()))
        } else {
            Err(ForgeIdError(
                "ari:cloud:ecosystem::environment/<uuid>/<uuid>",
            ))
        }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl ForgeEnvironmentType {
    /// Parses the word that Forge uses.
    pub fn parse(text: &str) -> Result<Self, ForgeEnvironmentTypeError> {
        match text {
            "DEVELOPMENT" => Ok(Self::Development),
            "STAGING" => Ok(Self::Staging),
            "PRODUCTION" => Ok(Self::Production),
            _ => Err(ForgeEnvironmentTypeError),
        }
    }

    /// The word that Forge uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Development => "DEVELOPMENT",
            Self::Staging => "STAGING",
            Self::Production => "PRODUCTION",
        }
    }
}

impl fmt::Display for ForgeAppId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ForgeInstallationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ForgeEnvironmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ForgeEnvironmentType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl TryFrom<String> for ForgeAppId {
    type Error = ForgeIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl TryFrom<String> for ForgeInstallationId {
    type Error = ForgeIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl TryFrom<String> for ForgeEnvironmentId {
    type Error = ForgeIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<ForgeAppId> for String {
    fn from(id: ForgeAppId) -> Self {
        id.0
    }
}

impl From<ForgeInstallationId> for String {
    fn from(id: ForgeInstallationId) -> Self {
        id.0
    }
}

impl From<ForgeEnvironmentId> for String {
    fn from(id: ForgeEnvironmentId) -> Self {
        id.0
    }
}

/// Whether a text is a UUID in the one spelling that Atlassian writes.
pub(super) fn is_uuid(text: &str) -> bool {
    Uuid::try_parse(text).is_ok_and(|uuid| {
        let mut buffer = Uuid::encode_buffer();
        uuid.hyphenated().encode_lower(&mut buffer) == text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "77334c21-3dd0-474f-a53f-28b4eeee5a71";

    #[test]
    fn ids_have_one_spelling() {
        assert!(ForgeAppId::parse(&format!("{APP}{UUID}")).is_ok());
        assert!(ForgeInstallationId::parse(&format!("{INSTALLATION}{UUID}")).is_ok());
        assert!(ForgeEnvironmentId::parse(&format!("{ENVIRONMENT}{UUID}")).is_ok());
        assert!(ForgeEnvironmentId::parse(&format!("{ENVIRONMENT}{UUID}/{UUID}")).is_ok());
        let simple = UUID.replace('-', "");
        for bad in [
            "",
            UUID,
            "../../etc",
            &UUID.to_uppercase(),
            &simple,
            &format!("{{{UUID}}}"),
            &format!("urn:uuid:{UUID}"),
            &format!("{UUID}/"),
            &format!("{UUID}\n"),
            &format!("{UUID}/{UUID}/{UUID}"),
        ] {
            for prefix in ["", APP, INSTALLATION, ENVIRONMENT] {
                let text = format!("{prefix}{bad}");
                if text == format!("{prefix}{UUID}") {
                    continue;
                }
                assert!(ForgeAppId::parse(&text).is_err(), "{text}");
                assert!(ForgeInstallationId::parse(&text).is_err(), "{text}");
                assert!(ForgeEnvironmentId::parse(&text).is_err(), "{text}");
            }
        }
        assert!(ForgeAppId::parse(&format!("{INSTALLATION}{UUID}")).is_err());
        assert!(ForgeInstallationId::parse(&format!("{APP}{UUID}")).is_err());
    }

    #[test]
    fn environments_are_three_words() {
        for word in ["DEVELOPMENT", "STAGING", "PRODUCTION"] {
            let parsed = ForgeEnvironmentType::parse(word).map(ForgeEnvironmentType::as_str);
            assert_eq!(parsed, Ok(word));
        }
        for bad in ["", "production", "PRODUCTION ", "PROD"] {
            assert!(ForgeEnvironmentType::parse(bad).is_err(), "{bad}");
        }
    }
}
