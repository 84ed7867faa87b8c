//! What the page inside Jira wants of a linked instance: its groups that are linked to the site, and how to sign in.
//!
//! GitLab's own page asks from the browser, which needs CORS, a sub-path that is not doubled, and a network that the
//! browser may reach. The relay knows the link's secret, so it asks itself (GitLab `subscriptions_controller.rb`,
//! `oauth_application_ids_controller.rb`); only what needs the GitLab user's own token is left to the browser.

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Asker,
    ask::{Asking, held_secret},
    deliver::DeliveryError,
};
use crate::{
    domain::{Installation, Link},
    jwt::{SharedKey, qsh::Qsh},
    reject::{Reject, RejectKind},
};

/// A group of an instance that is linked to the site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LinkedGroup {
    /// Of the subscription, to end it by.
    pub id: u64,
    /// The group's own name.
    pub name: String,
    /// With the names of the groups it is in.
    pub full_name: String,
    /// In its owner's words.
    pub description: Option<String>,
    /// When it was linked.
    pub created_at: Option<String>,
}

/// Why an instance did not do what the page wants.
#[derive(Debug, thiserror::Error)]
pub enum GroupsError {
    /// No answer.
    #[error(transparent)]
    NoAnswer(#[from] DeliveryError),
    /// 403 to a read: it holds another secret, or none.
    #[error("the instance does not take the relay's token")]
    Secret,
    /// 403 to a change: it asked Jira, through us, whether the user is an admin of the site.
    #[error("the instance does not take the Jira user for an administrator")]
    NotAdmin,
    /// It has no OAuth application for its users to sign in with.
    #[error("the instance has no OAuth application for GitLab for Jira")]
    NoApplication,
    /// It does not know the group (any more).
    #[error("the instance has no such linked group")]
    Unknown,
    /// It says why not.
    #[error("the instance refused: {0}")]
    Refused(String),
    /// Anything else.
    #[error("the instance answered {0}")]
    Unexpected(StatusCode),
    /// Not in the form that GitLab has.
    #[error("what the instance answered can't be read")]
    Unreadable,
}

#[derive(Deserialize)]
struct Subscriptions {
    subscriptions: Vec<Subscription>,
}

/// GitLab `subscription_entity.rb`: its id stands in the path to unlink it only.
#[derive(Deserialize)]
struct Subscription {
    created_at: Option<String>,
    unlink_path: String,
    group: Group,
}

#[derive(Deserialize)]
struct Group {
    name: String,
    full_name: Option<String>,
    description: Option<String>,
}

impl Asker {
    /// The groups that are linked to the site.
    pub async fn linked_groups(
        &self,
        link: &Link,
        installation: &Installation,
        account_id: Option<&str>,
    ) -> Result<Vec<LinkedGroup>, GroupsError> {
        let answer = self
            .visit(
                Method::GET,
                "/subscriptions.json",
                link,
                installation,
                account_id,
            )
            .await?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => return Err(GroupsError::Secret),
            status => return Err(GroupsError::Unexpected(status)),
        }
        let found: Subscriptions =
            serde_json::from_slice(answer.body()).map_err(|_| GroupsError::Unreadable)?;
        let read = |subscription: Subscription| {
            let (_, id) = subscription.unlink_path.rsplit_once('/')?;
            let Group {
                name,
                full_name,
                description,
            } = subscription.group;
            Some(LinkedGroup {
                id: id.parse().ok()?,
                full_name: full_name.unwrap_or_else(|| name.clone()),
                name,
                description,
                created_at: subscription.created_at,
            })
        };
        let groups: Option<Vec<_>> = found.subscriptions.into_iter().map(read).collect();
        groups.ok_or(GroupsError::Unreadable)
    }

    /// Unlinks a group. The instance asks Jira, through us, whether this user is an admin of the site.
    pub async fn unlink_group(
        &self,
        link: &Link,
        installation: &Installation,
        account_id: &str,
        group: u64,
    ) -> Result<(), GroupsError> {
        let path = format!("/subscriptions/{group}");
        let answer = self
            .visit(Method::DELETE, &path, link, installation, Some(account_id))
            .await?;
        match answer.status() {
            StatusCode::OK | StatusCode::NO_CONTENT => Ok(()),
            StatusCode::FORBIDDEN => Err(GroupsError::NotAdmin),
            StatusCode::UNAUTHORIZED => Err(GroupsError::Secret),
            StatusCode::NOT_FOUND => Err(GroupsError::Unknown),
            StatusCode::UNPROCESSABLE_ENTITY => Err(GroupsError::Refused(said(answer.body()))),
            status => Err(GroupsError::Unexpected(status)),
        }
    }

    /// The id of the OAuth application that the instance's users sign in to us with.
    pub async fn application_id(
        &self,
        link: &Link,
        installation: &Installation,
    ) -> Result<String, GroupsError> {
        #[derive(Deserialize)]
        struct Answer {
            application_id: String,
        }
        let answer = self
            .visit(
                Method::GET,
                "/oauth_application_id",
                link,
                installation,
                None,
            )
            .await?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Err(GroupsError::NoApplication),
            status => return Err(GroupsError::Unexpected(status)),
        }
        serde_json::from_slice(answer.body())
            .map(|Answer { application_id }| application_id)
            .ok()
            .filter(|application_id| !application_id.trim().is_empty())
            .ok_or(GroupsError::NoApplication)
    }

    /// Whether the instance holds the secret that the link has: it shows its own settings to nobody else (GitLab
    /// `installations_controller.rb`).
    pub async fn check_secret(
        &self,
        link: &Link,
        installation: &Installation,
    ) -> Result<(), GroupsError> {
        let answer = self
            .visit(Method::GET, "/installations", link, installation, None)
            .await?;
        match answer.status() {
            StatusCode::OK => Ok(()),
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => Err(GroupsError::Secret),
            status => Err(GroupsError::Unexpected(status)),
        }
    }

    async fn visit(
        &self,
        method: Method,
        path: &str,
        link: &Link,
        installation: &Installation,
        account_id: Option<&str>,
    ) -> Result<Response<Bytes>, DeliveryError> {
        let asking = Asking {
            method,
            path,
            parameters: &[],
            account_id,
            body: String::new(),
        };
        self.0.exchange(link, installation, asking).await
    }
}

/// A token with which the browser of this Jira user speaks to the instance, as `AP.context.getToken()` gives one to
/// GitLab's own page. GitLab's `POST .../jira_connect/subscriptions` takes no other kind.
pub fn context_token(
    link: &Link,
    installation: &Installation,
    account_id: &str,
    now: Timestamp,
) -> String {
    let key = SharedKey::new(held_secret(link, installation));
    key.sign(
        link.client_key.as_str(),
        &Qsh::context(),
        Some(account_id),
        now,
    )
}

/// The reason in an error of GitLab's, of a bounded length.
fn said(body: &[u8]) -> String {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let said = ["error", "errors", "message"]
        .iter()
        .find_map(|key| body.get(key));
    let said = match said {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => "it gave no reason".to_owned(),
    };
    said.chars().filter(|c| !c.is_control()).take(300).collect()
}

impl GroupsError {
    /// As the page is told. `proxy_url` is what the instance should have as its Jira Connect Proxy URL.
    pub fn reject(&self, proxy_url: &str) -> Reject {
        let resend = "tell it anew: \"Try again\" on the app's page in Jira, or `links resend`";
        let (kind, code, hint) = match self {
            Self::NoAnswer(error) => (
                RejectKind::BadGateway,
                error.code(),
                error.hint(proxy_url),
            ),
            Self::Secret => (RejectKind::BadGateway, "instance_secret", resend.to_owned()),
            Self::NotAdmin => (
                RejectKind::Forbidden,
                "instance_denied",
                "GitLab wants a member of the Jira group site-admins or org-admins".to_owned(),
            ),
            Self::NoApplication => (
                RejectKind::Conflict,
                "oauth_application_missing",
                "a GitLab admin creates one (Admin area > Applications) and enters its id (Admin area > Settings > General > GitLab for Jira App)".to_owned(),
            ),
            Self::Unknown => (
                RejectKind::NotFound,
                "group_unknown",
                "load the list again".to_owned(),
            ),
            Self::Refused(_) => (
                RejectKind::Conflict,
                "instance_refused",
                "a GitLab admin can see more in integrations_json.log".to_owned(),
            ),
            Self::Unexpected(StatusCode::NOT_FOUND) => (
                RejectKind::BadGateway,
                "not_found",
                "there is no GitLab 15.7 or newer at this address: check host and sub-path".to_owned(),
            ),
            Self::Unexpected(_) | Self::Unreadable => (
                RejectKind::BadGateway,
                "instance_unavailable",
                "try again; if that does not help, look at what stands between the relay and the instance".to_owned(),
            ),
        };
        Reject::new(kind, code, self.to_string(), hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_reason_that_gitlab_gives() {
        for (body, expected) in [
            (r#"{"error":"no"}"#, "no"),
            (r#"{"errors":{"a":["b"]}}"#, r#"{"a":["b"]}"#),
            (r#"{"message":"never"}"#, "never"),
            ("<html>", "it gave no reason"),
        ] {
            assert_eq!(said(body.as_bytes()), expected);
        }
    }
}
