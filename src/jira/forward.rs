//! One signed call to Jira.
//!
//! Only what is built here goes out: method, path, query and body from a [`JiraCall`], headers of our own. Nothing
//! of the instance's request line or headers does, so nothing can be smuggled in them.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header, uri::PathAndQuery};
use http_body_util::Full;
use hyper::body::Incoming;
use jiff::Timestamp;
use quick_cache::sync::Cache;
use tokio::time::Instant;

use crate::{
    client::{Client, Destination, SendError},
    domain::{
        ClientKey, Endpoint, Family, Installation, JiraCall, JiraSites,
        jira_call::NAMESPACE_PROPERTY,
    },
    jwt::{
        SharedKey,
        qsh::{AgreedTarget, Qsh},
    },
    metrics::Metrics,
};

/// Sites whose keys are kept expanded.
const SITES_MAX: usize = 10_000;

/// Calls Jira with the app's own token.
pub struct Forwarder {
    client: Client,
    app_key: String,
    listed: JiraSites,
    timeout: Duration,
    /// Where new entities go, made once: nearly all calls are of these.
    submits: Vec<(Family, SignedTarget)>,
    sites: Cache<ClientKey, Arc<Site>>,
    metrics: Arc<Metrics>,
}

/// What is sent to where, and its hash.
#[derive(Clone)]
struct SignedTarget {
    path_and_query: PathAndQuery,
    qsh: Qsh,
}

/// A site, ready to be called.
struct Site {
    /// What it was made from; another record makes another.
    installation: Arc<Installation>,
    origin: Uri,
    destination: Destination,
    current: SharedKey,
    previous: Option<SharedKey>,
}

/// A call that can't be made.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// No answer.
    #[error(transparent)]
    Send(#[from] SendError),
    /// A mistake of ours: ids and addresses were judged before.
    #[error("the call can't be put into a request: {0}")]
    Unsendable(String),
}

impl Forwarder {
    /// `timeout` is for the head of an answer.
    pub fn new(
        client: Client,
        app_key: String,
        listed: JiraSites,
        timeout: Duration,
        metrics: Arc<Metrics>,
    ) -> Self {
        let submit = |family: Family| {
            let target = SignedTarget::new("POST", family.submit_path(), &[]);
            target.ok().map(|target| (family, target))
        };
        Self {
            client,
            app_key,
            listed,
            timeout,
            submits: Family::ALL.into_iter().filter_map(submit).collect(),
            sites: Cache::new(SITES_MAX),
            metrics,
        }
    }

    /// How long an answer may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Signs with the site's current secret and sends. If Jira does not know that secret (any more, or yet) and
    /// there is another one within its grace time, tries that one once.
    pub async fn call(
        &self,
        installation: &Arc<Installation>,
        call: &JiraCall,
        body: Bytes,
        now: Timestamp,
    ) -> Result<Response<Incoming>, ForwardError> {
        let site = self.site(installation)?;
        let target = self.target(call)?;
        let answer = self
            .send(&site, &site.current, call, &target, body.clone(), now)
            .await?;
        let in_grace = installation.accepted_secrets(now).nth(1).is_some();
        match &site.previous {
            Some(previous) if answer.status() == StatusCode::UNAUTHORIZED && in_grace => {
                tracing::info!(
                    client.key = %installation.client_key,
                    "Jira does not take the current secret, the one before is tried"
                );
                self.send(&site, previous, call, &target, body, now).await
            }
            _ => Ok(answer),
        }
    }

    async fn send(
        &self,
        site: &Site,
        key: &SharedKey,
        call: &JiraCall,
        target: &SignedTarget,
        body: Bytes,
        now: Timestamp,
    ) -> Result<Response<Incoming>, ForwardError> {
        let token = format!("JWT {}", key.sign(&self.app_key, &target.qsh, None, now));
        let mut authorization = HeaderValue::try_from(token).map_err(unsendable)?;
        authorization.set_sensitive(true);
        let mut uri = site.origin.clone().into_parts();
        uri.path_and_query = Some(target.path_and_query.clone());
        let has_body = !body.is_empty();
        let mut request = Request::new(Full::new(body));
        *request.uri_mut() = Uri::from_parts(uri).map_err(unsendable)?;
        *request.method_mut() = method(call);
        let json = HeaderValue::from_static("application/json");
        let headers = request.headers_mut();
        headers.insert(header::AUTHORIZATION, authorization);
        headers.insert(header::ACCEPT, json.clone());
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        // Jira answers 403 to a GET with a body (Atlassian CHANGE-2328), and a DELETE needs none.
        if has_body {
            headers.insert(header::CONTENT_TYPE, json);
        }
        let started = Instant::now();
        let result = self
            .client
            .send_for_stream(site.destination, request, self.timeout)
            .await;
        self.observe(call.endpoint(), &result, started);
        Ok(result?)
    }

    fn observe(
        &self,
        endpoint: Endpoint,
        result: &Result<Response<Incoming>, SendError>,
        started: Instant,
    ) {
        let endpoint = endpoint.as_str();
        let outcome = match result {
            Ok(answer) => status_label(answer.status()),
            Err(error) => send_label(error),
        };
        self.metrics
            .jira_requests
            .with_label_values(&[endpoint, outcome])
            .inc();
        self.metrics
            .jira_request_duration
            .with_label_values(&[endpoint])
            .observe(started.elapsed().as_secs_f64());
    }

    fn site(&self, installation: &Arc<Installation>) -> Result<Arc<Site>, ForwardError> {
        let known = self.sites.get(&installation.client_key);
        if let Some(site) = known.filter(|site| Arc::ptr_eq(&site.installation, installation)) {
            return Ok(site);
        }
        let Some(connect) = installation.upstream.as_connect() else {
            return Err(unsendable("only Connect so far"));
        };
        let site = Arc::new(Site {
            installation: Arc::clone(installation),
            origin: installation.base_url.as_str().parse().map_err(unsendable)?,
            // Listing a site is the operator's word for its address; another one must be public.
            destination: if self.listed.is_listed(&installation.base_url) {
                Destination::Configured
            } else {
                Destination::Named
            },
            current: SharedKey::new(&connect.shared_secret),
            previous: connect
                .previous_secret
                .as_ref()
                .map(|retired| SharedKey::new(&retired.secret)),
        });
        self.sites
            .insert(installation.client_key.clone(), Arc::clone(&site));
        Ok(site)
    }

    fn target(&self, call: &JiraCall) -> Result<SignedTarget, ForwardError> {
        match call {
            JiraCall::Submit(family) => {
                let known = self.submits.iter().find(|(known, _)| known == family);
                known
                    .map(|(_, target)| target.clone())
                    .ok_or_else(|| unsendable("its family has no address"))
            }
            JiraCall::DeleteBranch { repository, branch } => SignedTarget::new(
                "DELETE",
                &format!("/rest/devinfo/0.10/repository/{repository}/branch/{branch}"),
                &[],
            ),
            JiraCall::DeleteMarked { family, namespace } => SignedTarget::new(
                "DELETE",
                family.delete_marked_path(),
                &[(NAMESPACE_PROPERTY, namespace.as_str())],
            ),
            JiraCall::User { account_id } => SignedTarget::new(
                "GET",
                "/rest/api/3/user",
                &[("accountId", account_id), ("expand", "groups")],
            ),
            JiraCall::Permissions => {
                SignedTarget::new("POST", "/rest/api/3/permissions/check", &[])
            }
        }
    }
}

impl SignedTarget {
    fn new(method: &str, path: &str, parameters: &[(&str, &str)]) -> Result<Self, ForwardError> {
        let target = AgreedTarget::new("", path, parameters).map_err(unsendable)?;
        Ok(Self {
            qsh: target.qsh(method),
            path_and_query: PathAndQuery::try_from(target.path_and_query()).map_err(unsendable)?,
        })
    }
}

fn method(call: &JiraCall) -> Method {
    match call {
        JiraCall::Submit(_) | JiraCall::Permissions => Method::POST,
        JiraCall::DeleteBranch { .. } | JiraCall::DeleteMarked { .. } => Method::DELETE,
        JiraCall::User { .. } => Method::GET,
    }
}

fn unsendable(error: impl ToString) -> ForwardError {
    ForwardError::Unsendable(error.to_string())
}

/// Jira's statuses that mean something to us; a peer's number is no label by itself.
fn status_label(status: StatusCode) -> &'static str {
    match status.as_u16() {
        200 => "200",
        202 => "202",
        201 | 203..=299 => "2xx",
        300..=399 => "3xx",
        400 => "400",
        401 => "401",
        403 => "403",
        404 => "404",
        413 => "413",
        429 => "429",
        405..=499 | 402 => "4xx",
        500 => "500",
        502 => "502",
        503 => "503",
        504 => "504",
        _ => "5xx",
    }
}

fn send_label(error: &SendError) -> &'static str {
    match error {
        SendError::Dial(_) => "connection_failed",
        SendError::TimedOut(_) => "answer_timed_out",
        SendError::AnswerTooLarge(_) | SendError::Broken(_) => "connection_broken",
    }
}

const USER_AGENT: &str = concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION"));
