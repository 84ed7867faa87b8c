//! Whether a Jira user may change anything: Jira itself is asked.
//!
//! A context token proves who somebody is and says nothing of rights, and the condition `user_is_admin` of the page's
//! module only hides it. Groups are no proof either: "site-admins" and "org-admins" are names, and Jira admins need not
//! be in them. So the permission itself is asked for (Jira REST v3, `POST /rest/api/3/permissions/check`), with the
//! app's own token, which may ask about anybody.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::StatusCode;
use jiff::Timestamp;
use quick_cache::sync::Cache;
use serde::Deserialize;
use tokio::{sync::watch, task::JoinSet, time::Instant};

use super::{Forwarder, forward::ForwardError};
use crate::{
    client::read_answer,
    domain::{ClientKey, Installation, JiraCall},
    lock::lock,
    reject::{Reject, RejectKind},
    trace,
};

/// A page asks every few seconds, and rights change seldom. Who was just made an admin should not wait long.
const ADMIN_FOR: Duration = Duration::from_secs(60);
const NO_ADMIN_FOR: Duration = Duration::from_secs(10);

/// Whose page is open is asked about again after this long, so that a slow Jira keeps no admin waiting.
const AGAIN_AFTER: Duration = Duration::from_secs(30);

/// Users whose rights are remembered.
const USERS_MAX: usize = 10_000;

/// Questions under way.
const UNDER_WAY_MAX: usize = 1000;

const ANSWER_MAX_BYTES: usize = 64 * 1024;

/// Tells Jira admins from others.
pub struct Admins(Arc<Inner>);

struct Inner {
    forwarder: Arc<Forwarder>,
    /// Whether they are, and since when that is known. That Jira could not be asked is not remembered: whoever tries
    /// again wants to know.
    known: Cache<User, (bool, Instant)>,
    /// A short std lock, never held over an await.
    under_way: Mutex<UnderWay>,
}

/// Site and account.
type User = (ClientKey, String);

/// What Jira says, once it does.
type Answer = watch::Receiver<Option<Result<bool, NotProven>>>;

/// Questions go on when nobody waits for them any more, so that the next who wants to know finds the answer.
#[derive(Default)]
struct UnderWay {
    tasks: JoinSet<()>,
    answers: HashMap<User, Answer>,
}

/// Why somebody may change nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotProven {
    /// The token names nobody. Asked without an account, Jira would answer for the app itself.
    #[error("the token names no Jira user")]
    Nobody,
    /// Jira says no.
    #[error("you are not an administrator of this Jira site")]
    NoAdmin,
    /// Jira can't be asked, also not later: the site is reached without an app (any more), while the page of a Connect
    /// app from before still opens in it.
    #[error(
        "this Jira site is reached without an app, so Jira can't be asked whether you are an administrator"
    )]
    Unaskable,
    /// Jira says nothing.
    #[error("Jira could not be asked whether you are an administrator")]
    Unknown(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Permissions {
    #[serde(default)]
    global_permissions: Vec<String>,
}

impl Admins {
    /// Asks through the forwarder.
    pub fn new(forwarder: Arc<Forwarder>) -> Self {
        Self(Arc::new(Inner {
            forwarder,
            known: Cache::new(USERS_MAX),
            under_way: Mutex::default(),
        }))
    }

    /// Succeeds for an administrator of the site.
    pub async fn prove(
        &self,
        installation: &Arc<Installation>,
        account_id: Option<&str>,
        now: Timestamp,
    ) -> Result<(), NotProven> {
        let account_id = account_id
            .filter(|account_id| !account_id.is_empty())
            .ok_or(NotProven::Nobody)?;
        let user = (installation.client_key.clone(), account_id.to_owned());
        let known = self.0.known.get(&user).filter(|(is_admin, since)| {
            since.elapsed() < if *is_admin { ADMIN_FOR } else { NO_ADMIN_FOR }
        });
        let is_admin = match known {
            Some((is_admin, since)) => {
                if since.elapsed() > AGAIN_AFTER {
                    let _ = self.asked(installation, user, now);
                }
                is_admin
            }
            None => {
                let mut answer = self.asked(installation, user, now)?;
                let answer = answer.wait_for(Option::is_some).await;
                let answer = answer.ok().and_then(|answer| (*answer).clone());
                answer.unwrap_or_else(|| {
                    Err(NotProven::Unknown("the question was dropped".to_owned()))
                })?
            }
        };
        if is_admin {
            Ok(())
        } else {
            Err(NotProven::NoAdmin)
        }
    }

    /// The answer to a question that is under way, or is now.
    fn asked(
        &self,
        installation: &Arc<Installation>,
        user: User,
        now: Timestamp,
    ) -> Result<Answer, NotProven> {
        let mut under_way = lock(&self.0.under_way);
        let answer = under_way.answers.get(&user);
        // Without its sender it would never come.
        if let Some(answer) = answer.filter(|answer| answer.has_changed().is_ok()) {
            return Ok(answer.clone());
        }
        while under_way.tasks.try_join_next().is_some() {}
        if under_way.tasks.len() >= UNDER_WAY_MAX {
            let cause = "too many questions are under way".to_owned();
            return Err(NotProven::Unknown(cause));
        }
        let (sender, answer) = watch::channel(None);
        under_way.answers.insert(user.clone(), answer.clone());
        let (inner, installation) = (Arc::clone(&self.0), Arc::clone(installation));
        let asking = async move {
            let said = inner.ask(&installation, &user.1, now).await;
            if let Ok(is_admin) = said {
                inner.known.insert(user.clone(), (is_admin, Instant::now()));
            }
            lock(&inner.under_way).answers.remove(&user);
            sender.send_replace(Some(said));
        };
        match trace::current() {
            Some(trace) => under_way.tasks.spawn(trace::within(trace, asking)),
            None => under_way.tasks.spawn(asking),
        };
        Ok(answer)
    }
}

impl Inner {
    async fn ask(
        &self,
        installation: &Arc<Installation>,
        account_id: &str,
        now: Timestamp,
    ) -> Result<bool, NotProven> {
        let unknown = |error: &dyn std::fmt::Display| NotProven::Unknown(error.to_string());
        let question = serde_json::json!({
            "accountId": account_id,
            "globalPermissions": ["ADMINISTER"],
        });
        let answer = self
            .forwarder
            .call(
                installation,
                &JiraCall::Permissions,
                Bytes::from(question.to_string()),
                now,
            )
            .await
            .map_err(|error| match error {
                ForwardError::Lacking(_) => NotProven::Unaskable,
                error => unknown(&error),
            })?;
        match answer.status() {
            StatusCode::OK => {}
            // There is no such user on this site.
            StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND => return Ok(false),
            status => return Err(unknown(&format!("Jira answered {status}"))),
        }
        let answer = read_answer(answer, ANSWER_MAX_BYTES);
        let answer = tokio::time::timeout(self.forwarder.timeout(), answer)
            .await
            .map_err(|error| unknown(&error))?
            .map_err(|error| unknown(&error))?;
        let permissions: Permissions = serde_json::from_slice(answer.body())
            .map_err(|_| unknown(&"what Jira answered is no list of permissions"))?;
        let granted = permissions.global_permissions;
        Ok(granted.iter().any(|permission| permission == "ADMINISTER"))
    }
}

impl From<NotProven> for Reject {
    fn from(reason: NotProven) -> Self {
        let message = reason.to_string();
        match reason {
            NotProven::Nobody | NotProven::NoAdmin => Self::new(
                RejectKind::Forbidden,
                "not_jira_admin",
                message,
                "ask somebody with the global permission \"Administer Jira\"",
            ),
            NotProven::Unaskable => Self::new(
                RejectKind::Forbidden,
                "admins_unknown",
                message,
                "who runs the relay can open this page outside Jira: `jira-connect-proxy page`",
            ),
            NotProven::Unknown(cause) => Self {
                internal: Some(cause),
                ..Self::new(
                    RejectKind::Unavailable,
                    "jira_unavailable",
                    message,
                    "try again in a minute; until then nobody can change anything here",
                )
            },
        }
    }
}
