//! Questions to instances, on behalf of Jira's toolchain: which groups, which repositories.
//!
//! GitLab answers for the groups that are linked to the site (GitLab `workspaces_controller.rb`,
//! `repositories_controller.rb`); the token is HS256 with the secret that the instance holds, and GitLab looks at
//! its signature and times only. How long Jira waits for us is not documented, so nobody's slowness may become ours:
//! an answer that comes after the deadline is kept for the next time, and a recent one stands in while there is none.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use quick_cache::sync::Cache;
use serde_json::Value;
use tokio::{
    sync::{Semaphore, oneshot},
    task::JoinSet,
    time::Instant,
};

use super::deliver::DeliveryError;
use crate::{
    client::{Client, Destination},
    clock,
    domain::{CONNECT_PATH, Installation, InstancePolicy, Link, LinkId, LinkMode, SharedSecret},
    jwt::{SharedKey, qsh::AgreedTarget},
    lock::lock,
    metrics::Metrics,
    trace,
};

/// An answer is as good as new for this long.
const FRESH_FOR: Duration = Duration::from_secs(30);

/// An older one still stands in for an instance that does not answer.
const STANDS_IN_FOR: Duration = Duration::from_secs(600);

/// A question goes on for so long, even if nobody waits for it any more.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Answers remembered in all, each a page of entries of a bounded size.
const ANSWERS_MAX: usize = 1000;
const ENTRY_MAX_BYTES: usize = 4096;

/// Nobody pages further.
const PAGES_MAX: usize = 10;

/// Questions under way, in all and to one instance.
const UNDER_WAY_MAX: usize = 256;
const UNDER_WAY_PER_LINK_MAX: usize = 8;

/// Links whose questions are counted.
const LINKS_MAX: usize = 10_000;

/// Entities asked for at once. GitLab may cap it; then the next page follows its own size all the same.
const PAGE: usize = 100;

const ANSWER_MAX_BYTES: usize = 1024 * 1024;

/// Asks instances; cheap to clone.
#[derive(Clone)]
pub struct Asker(pub(super) Arc<Inner>);

pub(super) struct Inner {
    client: Client,
    policy: Arc<ArcSwap<InstancePolicy>>,
    metrics: Arc<Metrics>,
    answers: Cache<(LinkId, Question), Remembered>,
    /// Questions under way. A short std lock, never held over an await.
    tasks: Mutex<JoinSet<()>>,
    per_link: Cache<LinkId, Arc<Semaphore>>,
}

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Question {
    /// Groups whose name holds this text.
    Workspaces {
        /// The text.
        search: String,
    },
    /// One page of the repositories whose name holds this text.
    Repositories {
        /// The text.
        search: String,
        /// From 1.
        page: usize,
    },
    /// To be told about one repository from now on.
    Associate {
        /// Its id, in the instance's words.
        id: String,
    },
}

/// Why an instance did not answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// 404: there is no such thing.
    #[error("the instance does not know it")]
    Unknown,
    /// It does not take our token.
    #[error("the instance refused the question ({0})")]
    Refused(StatusCode),
    /// It answered, but not in JSON.
    #[error("what the instance answered is no JSON")]
    NoJson,
    /// It did not answer in the time that there is.
    #[error("the instance did not answer in time")]
    Late,
    /// It did not answer at all.
    #[error("the instance did not answer: {0}")]
    Failed(#[from] DeliveryError),
}

/// One call to an instance below its `/-/jira_connect`, signed with the link's secret.
pub(super) struct Asking<'a> {
    pub(super) method: Method,
    pub(super) path: &'a str,
    pub(super) parameters: &'a [(&'a str, &'a str)],
    /// The Jira user on whose behalf it is made.
    pub(super) account_id: Option<&'a str>,
    /// JSON, or nothing.
    pub(super) body: String,
}

#[derive(Clone)]
struct Remembered {
    at: Instant,
    list: Arc<Vec<Value>>,
}

impl Question {
    /// The word in metrics.
    fn label(&self) -> &'static str {
        match self {
            Self::Workspaces { .. } => "workspaces",
            Self::Repositories { .. } => "repositories",
            Self::Associate { .. } => "associate",
        }
    }

    /// Where the list stands in the answer.
    fn list_key(&self) -> Option<&'static str> {
        match self {
            Self::Workspaces { .. } => Some("workspaces"),
            Self::Repositories { .. } => Some("containers"),
            Self::Associate { .. } => None,
        }
    }
}

impl Asker {
    /// Asks instances that this policy allows.
    pub fn new(
        client: Client,
        policy: Arc<ArcSwap<InstancePolicy>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self(Arc::new(Inner {
            client,
            policy,
            metrics,
            answers: Cache::new(ANSWERS_MAX),
            tasks: Mutex::default(),
            per_link: Cache::new(LINKS_MAX),
        }))
    }

    /// Groups that match, as the instance lists them. Nothing, if it does not answer in time and never did lately.
    pub async fn workspaces(
        &self,
        link: &Arc<Link>,
        installation: &Arc<Installation>,
        search: &str,
        deadline: Instant,
    ) -> Vec<Value> {
        let search = search.to_owned();
        let question = Question::Workspaces { search };
        let list = self.list(link, installation, question, deadline).await;
        list.map(|list| list.to_vec()).unwrap_or_default()
    }

    /// The first `wanted` repositories that match, as the instance lists them.
    pub async fn repositories(
        &self,
        link: &Arc<Link>,
        installation: &Arc<Installation>,
        search: &str,
        wanted: usize,
        deadline: Instant,
    ) -> Vec<Value> {
        let mut found = Vec::new();
        for page in 1..=PAGES_MAX {
            let question = Question::Repositories {
                search: search.to_owned(),
                page,
            };
            let list = self.list(link, installation, question, deadline).await;
            let list = list.unwrap_or_default();
            found.extend(list.iter().cloned());
            // A page that is not full may be the last one, or as much as this GitLab gives at once.
            if list.is_empty() || found.len() >= wanted {
                break;
            }
        }
        found
    }

    /// Tells an instance that a repository of its is wanted. Never remembered.
    pub async fn associate(
        &self,
        link: &Link,
        installation: &Installation,
        id: &str,
        deadline: Instant,
    ) -> Result<Value, AskError> {
        let question = Question::Associate { id: id.to_owned() };
        let asked = self.0.fetch(link, installation, &question);
        tokio::time::timeout_at(deadline, asked)
            .await
            .unwrap_or(Err(AskError::Late))
    }

    /// A fresh answer, or one of lately.
    async fn list(
        &self,
        link: &Arc<Link>,
        installation: &Arc<Installation>,
        question: Question,
        deadline: Instant,
    ) -> Option<Arc<Vec<Value>>> {
        let key = (link.id, question);
        let known = self.0.answers.get(&key);
        if let Some(known) = known
            .as_ref()
            .filter(|known| known.at.elapsed() < FRESH_FOR)
        {
            return Some(Arc::clone(&known.list));
        }
        let (reply, answered) = oneshot::channel();
        let (inner, link, installation) = (
            Arc::clone(&self.0),
            Arc::clone(link),
            Arc::clone(installation),
        );
        {
            let mut tasks = lock(&self.0.tasks);
            while tasks.try_join_next().is_some() {}
            if tasks.len() < UNDER_WAY_MAX {
                // It goes on after the deadline, so that the next search has its answer.
                let asking = async move {
                    let _ = reply.send(inner.list(&link, &installation, key).await);
                };
                match trace::current() {
                    Some(trace) => tasks.spawn(trace::within(trace, asking)),
                    None => tasks.spawn(asking),
                };
            }
        }
        let fresh = tokio::time::timeout_at(deadline, answered).await;
        let fresh = fresh.ok().and_then(Result::ok).flatten();
        fresh.or_else(|| {
            let stands_in = known.filter(|known| known.at.elapsed() < STANDS_IN_FOR);
            stands_in.map(|known| known.list)
        })
    }
}

impl Inner {
    async fn list(
        &self,
        link: &Link,
        installation: &Installation,
        key: (LinkId, Question),
    ) -> Option<Arc<Vec<Value>>> {
        let turns = || Ok::<_, Infallible>(Arc::new(Semaphore::new(UNDER_WAY_PER_LINK_MAX)));
        let Ok(turns) = self.per_link.get_or_insert_with(&link.id, turns);
        let _turn = turns.try_acquire().ok()?;
        let question = &key.1;
        let answer = match self.fetch(link, installation, question).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::warn!(
                    link.id = %link.id, instance.url = %link.instance_url, question = question.label(),
                    "{} was not asked with success: {error}", link.instance_url
                );
                return None;
            }
        };
        let list = question
            .list_key()
            .and_then(|key| answer.get(key)?.as_array());
        let fits = |entry: &&Value| entry.is_object() && entry.to_string().len() <= ENTRY_MAX_BYTES;
        let list: Vec<Value> = list?.iter().filter(fits).take(PAGE).cloned().collect();
        let list = Arc::new(list);
        let remembered = Remembered {
            at: Instant::now(),
            list: Arc::clone(&list),
        };
        self.answers.insert(key, remembered);
        Some(list)
    }

    async fn fetch(
        &self,
        link: &Link,
        installation: &Installation,
        question: &Question,
    ) -> Result<Value, AskError> {
        let asked = self.send(link, installation, question).await;
        let outcome = match &asked {
            Ok(_) => "answered",
            Err(AskError::Unknown) => "unknown",
            Err(AskError::Refused(_)) => "refused",
            Err(AskError::NoJson | AskError::Late | AskError::Failed(_)) => "failed",
        };
        self.metrics
            .questions
            .with_label_values(&[question.label(), outcome])
            .inc();
        asked
    }

    async fn send(
        &self,
        link: &Link,
        installation: &Installation,
        question: &Question,
    ) -> Result<Value, AskError> {
        let (page, limit);
        let (method, path, parameters) = match question {
            Question::Workspaces { search } => (
                Method::GET,
                "/workspaces/search",
                vec![("searchQuery", search.as_str())],
            ),
            Question::Repositories {
                search,
                page: number,
            } => {
                (page, limit) = (number.to_string(), PAGE.to_string());
                let parameters = vec![
                    ("searchQuery", search.as_str()),
                    ("page", page.as_str()),
                    ("limit", limit.as_str()),
                ];
                (Method::GET, "/repositories/search", parameters)
            }
            Question::Associate { .. } => (Method::POST, "/repositories/associate", Vec::new()),
        };
        let body = match question {
            Question::Associate { id } => serde_json::json!({ "id": id }).to_string(),
            _ => String::new(),
        };
        let asking = Asking {
            method,
            path,
            parameters: &parameters,
            account_id: None,
            body,
        };
        let answer = self.exchange(link, installation, asking).await?;
        match answer.status() {
            StatusCode::OK => serde_json::from_slice(answer.body()).map_err(|_| AskError::NoJson),
            StatusCode::NOT_FOUND => Err(AskError::Unknown),
            status => Err(AskError::Refused(status)),
        }
    }

    /// One signed call to an instance, and whatever it answers.
    pub(super) async fn exchange(
        &self,
        link: &Link,
        installation: &Installation,
        asking: Asking<'_>,
    ) -> Result<Response<Bytes>, DeliveryError> {
        self.policy.load().check(&link.instance_url)?;
        let base_path = format!("{}{CONNECT_PATH}", link.instance_url.path());
        let target = AgreedTarget::new(&base_path, asking.path, asking.parameters)
            .map_err(|_| DeliveryError::Address)?;
        let key = SharedKey::new(held_secret(link, installation));
        let qsh = target.qsh(asking.method.as_str());
        let token = key.sign(
            link.client_key.as_str(),
            &qsh,
            asking.account_id,
            clock::now(),
        );
        let mut authorization =
            HeaderValue::try_from(format!("JWT {token}")).map_err(|_| DeliveryError::Address)?;
        authorization.set_sensitive(true);
        let mut request = Request::builder()
            .method(asking.method)
            .uri(format!(
                "{}{}",
                link.instance_url.origin(),
                target.path_and_query()
            ))
            .header(header::ACCEPT, "application/json")
            .header(header::AUTHORIZATION, authorization);
        if !asking.body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(Bytes::from(asking.body)))
            .map_err(|_| DeliveryError::Address)?;
        self.client
            .send(
                Destination::Named,
                request,
                ANSWER_TIMEOUT,
                ANSWER_MAX_BYTES,
            )
            .await
            .map_err(DeliveryError::Send)
    }
}

/// What the instance most likely holds: the newest secret that it confirmed.
pub(super) fn held_secret<'a>(link: &'a Link, installation: &'a Installation) -> &'a SharedSecret {
    match (link.mode, installation.connect()) {
        (LinkMode::Direct, Some(connect)) => &connect.shared_secret,
        _ => link.confirmed_secret(),
    }
}
