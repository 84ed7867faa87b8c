//! `GET /rest/api/3/user?accountId=...&expand=groups`, where the relay answers in Jira's place.
//!
//! GitLab asks it before it links or unlinks a group, and takes for an admin whoever is in a group named `site-admins`
//! or, from 16.6 on, `org-admins` (GitLab `jira_user.rb`). Only 200 counts; whatever else makes it refuse.

use bytes::Bytes;
use serde_json::json;

use crate::{
    domain::UpstreamKind,
    reject::{Instead, Reject, RejectKind},
    sessions::Account,
};

/// Both names, so that every version finds one.
const ADMIN_GROUPS: [&str; 2] = ["org-admins", "site-admins"];

/// What the relay says of an account by its own authority; nothing, if Jira is to be asked. An app may ask Jira about its
/// users; the OAuth credentials of an installation without one may not.
///
/// # Errors
/// Nobody knows the account.
pub fn own_answer(
    account: Account,
    account_id: &str,
    upstream: UpstreamKind,
) -> Result<Option<Bytes>, Reject> {
    match account {
        Account::Operator { .. } => Ok(Some(operator(account_id))),
        Account::Nobody => Err(unknown(
            "no operator has the page of this site open under that account",
            "run `jira-connect-proxy page` and sign in again",
        )),
        Account::Jiras => match upstream {
            UpstreamKind::Connect | UpstreamKind::Forge => Ok(None),
            UpstreamKind::Oauth => Err(unknown(
                "this Jira site is reached without an app, so it can't be asked about its users",
                "link and unlink groups on the page that `jira-connect-proxy page` opens",
            )),
        },
    }
}

/// In the shape of Jira's answer (Jira REST v3, `UserBean`).
fn operator(account_id: &str) -> Bytes {
    let groups = ADMIN_GROUPS.map(|name| json!({ "name": name }));
    let user = json!({
        "accountId": account_id,
        "accountType": "app",
        "active": true,
        "displayName": "Operator of jira-connect-proxy",
        "groups": { "size": groups.len(), "items": groups },
    });
    user.to_string().into()
}

/// In the shape of Jira's errors (Jira REST v3, `ErrorCollection`).
fn unknown(message: &str, hint: &str) -> Reject {
    let body = json!({ "errorMessages": [message], "errors": {} });
    Reject {
        instead: Some(Box::new(Instead {
            content_type: "application/json",
            body: body.to_string().into(),
            policy: None,
        })),
        ..Reject::new(RejectKind::NotFound, "user_unknown", message, hint)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const ALL: [UpstreamKind; 3] = [
        UpstreamKind::Connect,
        UpstreamKind::Forge,
        UpstreamKind::Oauth,
    ];

    #[test]
    fn an_operator_is_an_admin_in_every_version_of_gitlab() {
        let account = Account::Operator { first: true };
        for upstream in ALL {
            let answer = own_answer(account, "relay-operator-1", upstream);
            let answer = answer.expect("known").expect("ours");
            let user: Value = serde_json::from_slice(&answer).expect("JSON");
            assert_eq!(user["accountId"], "relay-operator-1");
            for name in ["site-admins", "org-admins"] {
                let groups = user["groups"]["items"].as_array().expect("groups");
                assert!(groups.iter().any(|group| group["name"] == name), "{name}");
            }
        }
    }

    #[test]
    fn others_are_left_to_jira_if_there_is_one_to_ask() {
        let answer = |account, upstream| {
            own_answer(account, "x", upstream).map_err(|reject| (reject.code, reject.kind))
        };
        let unknown = Err(("user_unknown", RejectKind::NotFound));
        assert_eq!(answer(Account::Jiras, UpstreamKind::Connect), Ok(None));
        assert_eq!(answer(Account::Jiras, UpstreamKind::Forge), Ok(None));
        assert_eq!(answer(Account::Jiras, UpstreamKind::Oauth), unknown);
        for upstream in ALL {
            assert_eq!(answer(Account::Nobody, upstream), unknown);
        }
    }
}
