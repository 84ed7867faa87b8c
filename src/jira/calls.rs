//! Which calls of an instance are passed on to Jira: those that GitLab really makes, and no others.
//!
//! Whoever holds a link's secret may write its own data and ask about a user. Everything else that the app's
//! secret would open (reading other data, deleting by property, the rest of Jira's API) stays shut.

use http::Method;

use crate::{
    domain::{Family, JiraCall},
    jwt::Target,
    reject::{Reject, RejectKind},
};

/// An address or method that no GitLab calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no GitLab calls that address of Jira's, so it is not passed on")]
pub struct NotOnTheList;

/// Finds the call that a request is. The target must be a strict one: what it holds twice, in escapes or in dot
/// segments never gets here.
///
/// The list is that of GitLab `lib/atlassian/jira_connect/client.rb` and `lib/atlassian/jira/dev_info_client.rb`,
/// and remote links, which GitLab's serializers do not make but Jira scopes by app like the others.
pub fn parse(method: &Method, target: &Target) -> Result<JiraCall, NotOnTheList> {
    match *method {
        Method::POST => submit(target),
        Method::DELETE => delete_branch(target),
        Method::GET => user(target),
        _ => Err(NotOnTheList),
    }
}

/// What a path below `/rest` is counted under, before anybody has read it.
pub fn route_label(path: &str) -> &'static str {
    match Family::submitted_to(path) {
        Some(Family::Devinfo) => "rest/devinfo",
        Some(Family::Builds) => "rest/builds",
        Some(Family::Deployments) => "rest/deployments",
        Some(Family::FeatureFlags) => "rest/feature_flags",
        Some(Family::RemoteLinks) => "rest/remote_links",
        None if path == USER => "rest/user",
        None if path.starts_with(REPOSITORY) => "rest/delete_branch",
        None => "rest/other",
    }
}

fn submit(target: &Target) -> Result<JiraCall, NotOnTheList> {
    Family::submitted_to(target.path())
        .filter(|_| target.has_no_query())
        .map(JiraCall::Submit)
        .ok_or(NotOnTheList)
}

fn delete_branch(target: &Target) -> Result<JiraCall, NotOnTheList> {
    let rest = target.path().strip_prefix(REPOSITORY);
    let mut segments = rest.ok_or(NotOnTheList)?.split('/');
    match (
        segments.next(),
        segments.next(),
        segments.next(),
        segments.next(),
    ) {
        (Some(repository), Some("branch"), Some(branch), None)
            if is_id(repository) && is_id(branch) && target.has_no_query() =>
        {
            Ok(JiraCall::DeleteBranch {
                repository: repository.to_owned(),
                branch: branch.to_owned(),
            })
        }
        _ => Err(NotOnTheList),
    }
}

/// Exactly what GitLab asks (`app/services/jira_connect_subscriptions/...`, `jira_user.rb`). Without an account
/// id Jira would tell of the app itself.
fn user(target: &Target) -> Result<JiraCall, NotOnTheList> {
    let account_id = target.query("accountId").unwrap_or_default();
    let named = ["accountId", "expand", "jwt"];
    if target.path() == USER
        && !account_id.is_empty()
        && target.query("expand") == Some("groups")
        && target.names().all(|name| named.contains(&name))
    {
        Ok(JiraCall::User {
            account_id: account_id.to_owned(),
        })
    } else {
        Err(NotOnTheList)
    }
}

/// The characters of Jira's ids, which need no escape in a path.
fn is_id(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"~.-_".contains(&b);
    !text.is_empty() && text.bytes().all(plain)
}

const REPOSITORY: &str = "/rest/devinfo/0.10/repository/";
const USER: &str = "/rest/api/3/user";

impl From<NotOnTheList> for Reject {
    fn from(error: NotOnTheList) -> Self {
        Self::new(
            RejectKind::Forbidden,
            "call_not_allowed",
            error.to_string(),
            "an instance can send development data and ask about a user, as GitLab does; for anything else ask Jira directly",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(method: Method, path_and_query: &str) -> Option<JiraCall> {
        let target = Target::parse_strict(path_and_query, &[]).ok()?;
        parse(&method, &target).ok()
    }

    #[test]
    fn what_gitlab_calls_is_on_the_list() {
        for family in Family::ALL {
            let found = call(Method::POST, &format!("{}/bulk", family.base_path()));
            assert_eq!(found, Some(JiraCall::Submit(family)));
        }
        let branch = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
        assert_eq!(
            call(
                Method::DELETE,
                &format!("/rest/devinfo/0.10/repository/42/branch/{branch}")
            ),
            Some(JiraCall::DeleteBranch {
                repository: "42".to_owned(),
                branch: branch.to_owned()
            })
        );
        assert_eq!(
            call(
                Method::GET,
                "/rest/api/3/user?accountId=557058%3Aabc&expand=groups"
            ),
            Some(JiraCall::User {
                account_id: "557058:abc".to_owned()
            })
        );
    }

    #[test]
    fn nothing_else_is() {
        for (method, path) in [
            (Method::GET, "/rest/devinfo/0.10/bulk"),
            (Method::PUT, "/rest/devinfo/0.10/bulk"),
            (Method::POST, "/rest/devinfo/0.10/bulk/"),
            (Method::POST, "/rest/devinfo/0.10/bulk?operationType=NORMAL"),
            (Method::POST, "/rest/devinfo/0.10%2Fbulk"),
            (Method::POST, "/rest/api/3/issue"),
            (
                Method::DELETE,
                "/rest/devinfo/0.10/bulkByProperties?relayNamespace=x",
            ),
            (
                Method::GET,
                "/rest/devinfo/0.10/existsByProperties?relayNamespace=x",
            ),
            (Method::GET, "/rest/devinfo/0.10/repository/42"),
            (Method::DELETE, "/rest/devinfo/0.10/repository/42"),
            (Method::DELETE, "/rest/devinfo/0.10/repository/42/commit/1"),
            (
                Method::DELETE,
                "/rest/devinfo/0.10/repository/42/branch/a/b",
            ),
            (
                Method::DELETE,
                "/rest/devinfo/0.10/repository/4%322/branch/a",
            ),
            (
                Method::DELETE,
                "/rest/devinfo/0.10/repository/42/branch/a?_updateSequenceId=9",
            ),
            (Method::GET, "/rest/api/3/user"),
            (Method::GET, "/rest/api/3/user?accountId=&expand=groups"),
            (Method::GET, "/rest/api/3/user?accountId=a"),
            (
                Method::GET,
                "/rest/api/3/user?accountId=a&expand=groups&username=b",
            ),
            (
                Method::GET,
                "/rest/api/3/user?accountId=a&expand=applicationRoles",
            ),
            (Method::GET, "/rest/api/3/myself"),
        ] {
            assert_eq!(call(method.clone(), path), None, "{method} {path}");
        }
    }
}
