//! One call to Jira, with what opens the site: a token signed with the app's secret, Forge's system token, or a token
//! for OAuth client credentials.
//!
//! Only what is built here goes out: method, path, query and body from a [`JiraCall`], headers of our own. Nothing
//! of the instance's request line or headers does, so nothing can be smuggled in them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::try_join_all;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header, uri::PathAndQuery};
use http_body_util::Full;
use hyper::body::Incoming;
use jiff::Timestamp;
use quick_cache::sync::Cache;
use tokio::time::Instant;

use super::{
    addresses::{SERVER_INFO, address, origin},
    tokens::{Token, TokenError, TokenTrouble, Tokens, bearer},
};
use crate::{
    client::{Client, Destination, SendError},
    domain::{
        ClientKey, CloudId, Credential, Endpoint, Family, Installation, JiraApiUrl, JiraBaseUrl,
        JiraCall, JiraSites, Upstream, UpstreamKind,
        upstream::{Connect, Oauth, SystemToken},
    },
    jwt::{
        SharedKey,
        qsh::{AgreedTarget, Qsh},
    },
    metrics::Metrics,
};

/// Sites whose keys are kept expanded.
const SITES_MAX: usize = 10_000;

/// Calls Jira in the app's name.
pub struct Forwarder {
    client: Client,
    app_key: String,
    listed: JiraSites,
    api_url: JiraApiUrl,
    timeout: Duration,
    /// Where a Connect app sends new entities, made once: nearly all calls are of these.
    submits: Vec<(Family, Target)>,
    /// By the way to it too: others than the one in use are called as well.
    sites: Cache<(ClientKey, UpstreamKind), Arc<Site>>,
    tokens: Tokens,
    metrics: Arc<Metrics>,
}

/// What is sent to where, and its hash.
#[derive(Clone)]
struct Target {
    path_and_query: PathAndQuery,
    qsh: Qsh,
}

/// A site, ready to be called.
struct Site {
    /// What it was made from; another address or way makes another.
    installation: Arc<Installation>,
    origin: Uri,
    destination: Destination,
    opener: Opener,
    /// Jira has refused Forge's token, or something that was asked with it.
    refused: AtomicBool,
}

/// What opens a site.
enum Opener {
    Signed {
        current: SharedKey,
        previous: Option<Box<SharedKey>>,
    },
    SystemToken(Option<(HeaderValue, Timestamp)>),
    Granted(Oauth),
}

/// A call that can't be made.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// No answer.
    #[error(transparent)]
    Send(#[from] SendError),
    /// OAuth credentials got us no token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Forge has sent us no token that is valid now.
    #[error(
        "Forge has sent no token that is valid now: the next scheduled trigger, or anybody who opens the app's page in Jira, brings one"
    )]
    TokenAwaited,
    /// This way to the site has no such call.
    #[error("a site that is reached through {} has no such call", .0.as_str())]
    Lacking(UpstreamKind),
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
        api_url: JiraApiUrl,
        timeout: Duration,
        metrics: Arc<Metrics>,
    ) -> Self {
        let submit = |family: Family| {
            let path = format!("{}/bulk", family.base_path());
            let target = Target::new(&Method::POST, &path, &[]);
            target.ok().map(|target| (family, target))
        };
        let token_client = client.clone();
        Self {
            client,
            app_key,
            listed,
            timeout,
            submits: Family::ALL.into_iter().filter_map(submit).collect(),
            sites: Cache::new(SITES_MAX),
            tokens: Tokens::new(token_client, &api_url, timeout, Arc::clone(&metrics)),
            api_url,
            metrics,
        }
    }

    /// How long an answer may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Calls the site with what opens it. If Jira does not take that (any more, or yet) and there is something else
    /// (the secret before a rotation in its grace time, another OAuth token), tries that once.
    pub async fn call(
        &self,
        installation: &Arc<Installation>,
        call: &JiraCall,
        body: Bytes,
        now: Timestamp,
    ) -> Result<Response<Incoming>, ForwardError> {
        let site = self.site(installation)?;
        let target = self.target(&installation.upstream, call)?;
        let client_key = &installation.client_key;
        match &site.opener {
            Opener::Signed { current, previous } => {
                let token = self.signed(current, &target, now)?;
                let answer = self.send(&site, token, call, &target, body.clone()).await?;
                let in_grace = installation.accepted_secrets(now).nth(1).is_some();
                match previous {
                    Some(previous) if answer.status() == StatusCode::UNAUTHORIZED && in_grace => {
                        tracing::info!(
                            client.key = %client_key,
                            "Jira does not take the current secret, the one before is tried"
                        );
                        let token = self.signed(previous, &target, now)?;
                        self.send(&site, token, call, &target, body).await
                    }
                    _ => Ok(answer),
                }
            }
            Opener::SystemToken(token) => {
                let valid = token.as_ref().filter(|(_, expires_at)| now < *expires_at);
                let (token, _) = valid.ok_or(ForwardError::TokenAwaited)?;
                let answer = self.send(&site, token.clone(), call, &target, body).await?;
                if matches!(answer.status().as_u16(), 401 | 403 | 404) {
                    site.refused.store(true, Ordering::Relaxed);
                }
                Ok(answer)
            }
            Opener::Granted(oauth) => {
                let token = self.tokens.get(client_key, oauth, now).await?;
                let authorization = token.authorization.clone();
                let answer = self
                    .send(&site, authorization, call, &target, body.clone())
                    .await?;
                if answer.status() != StatusCode::UNAUTHORIZED {
                    return Ok(answer);
                }
                self.tokens.drop_token(client_key, &token);
                let token = self.tokens.get(client_key, oauth, now).await?;
                let authorization = token.authorization.clone();
                self.send(&site, authorization, call, &target, body).await
            }
        }
    }

    /// Whether Jira has refused something since Forge's token is known. After a restart nothing is known of that.
    pub fn was_refused(&self, installation: &Arc<Installation>) -> bool {
        self.known_site(installation)
            .is_some_and(|site| site.refused.load(Ordering::Relaxed))
    }

    /// It was another reason than the token.
    pub fn forget_refusal(&self, installation: &Arc<Installation>) {
        if let Some(site) = self.known_site(installation) {
            site.refused.store(false, Ordering::Relaxed);
        }
    }

    /// Asks the site for its own address, with a token that no record has yet, or one of a way that stands by.
    pub async fn server_info(
        &self,
        cloud_id: &CloudId,
        token: &Credential,
    ) -> Result<Response<Incoming>, ForwardError> {
        let call = JiraCall::ServerInfo;
        let path = format!("{}{SERVER_INFO}", cloud_id.api_path());
        let target = Target::new(&method(&call), &path, &[])?;
        let authorization = bearer(token).ok_or_else(|| unsendable("the token fits no header"))?;
        let gateway: Uri = self.api_url.as_str().parse().map_err(unsendable)?;
        let to = (&gateway, Destination::Configured);
        self.send_to(to, authorization, &call, &target, Bytes::new())
            .await
    }

    /// Tries credentials out, whatever is known of them: what Jira answers to something harmless in each family.
    pub async fn try_out(
        &self,
        oauth: &Oauth,
        families: &[Family],
        now: Timestamp,
    ) -> Result<Vec<(Family, StatusCode)>, ForwardError> {
        let token = self.tokens.fetch(oauth, now).await?;
        self.probe(oauth, families, &token).await
    }

    /// The same with the token that a site's calls have.
    pub(super) async fn try_on(
        &self,
        client_key: &ClientKey,
        oauth: &Oauth,
        families: &[Family],
        now: Timestamp,
    ) -> Result<Vec<(Family, StatusCode)>, ForwardError> {
        let token = self.tokens.get(client_key, oauth, now).await?;
        self.probe(oauth, families, &token).await
    }

    async fn probe(
        &self,
        oauth: &Oauth,
        families: &[Family],
        token: &Token,
    ) -> Result<Vec<(Family, StatusCode)>, ForwardError> {
        let upstream = &Upstream::Oauth(oauth.clone());
        let gateway: &Uri = &self.api_url.as_str().parse().map_err(unsendable)?;
        let authorization = &token.authorization;
        let asked = families.iter().map(|family| async move {
            let call = JiraCall::Probe(*family);
            let target = self.target(upstream, &call)?;
            let to = (gateway, Destination::Configured);
            let answer = self.send_to(to, authorization.clone(), &call, &target, Bytes::new());
            Ok((*family, answer.await?.status()))
        });
        try_join_all(asked).await
    }

    /// Why there has been no token for a site lately, if that is so.
    pub fn trouble(&self, installation: &Installation) -> Option<Arc<TokenTrouble>> {
        let Upstream::Oauth(oauth) = &installation.upstream else {
            return None;
        };
        self.tokens.trouble(&installation.client_key, oauth)
    }

    fn signed(
        &self,
        key: &SharedKey,
        target: &Target,
        now: Timestamp,
    ) -> Result<HeaderValue, ForwardError> {
        let token = format!("JWT {}", key.sign(&self.app_key, &target.qsh, None, now));
        let mut authorization = HeaderValue::try_from(token).map_err(unsendable)?;
        authorization.set_sensitive(true);
        Ok(authorization)
    }

    async fn send(
        &self,
        site: &Site,
        authorization: HeaderValue,
        call: &JiraCall,
        target: &Target,
        body: Bytes,
    ) -> Result<Response<Incoming>, ForwardError> {
        let to = (&site.origin, site.destination);
        self.send_to(to, authorization, call, target, body).await
    }

    async fn send_to(
        &self,
        (origin, destination): (&Uri, Destination),
        authorization: HeaderValue,
        call: &JiraCall,
        target: &Target,
        body: Bytes,
    ) -> Result<Response<Incoming>, ForwardError> {
        let mut uri = origin.clone().into_parts();
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
            .send_for_stream(destination, request, self.timeout)
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

    fn known_site(&self, installation: &Arc<Installation>) -> Option<Arc<Site>> {
        let site = self.sites.get(&key(installation));
        site.filter(|site| {
            let known = &site.installation;
            // A copy that somebody made of the record must not take the place of the site that all others call.
            Arc::ptr_eq(known, installation)
                || known.upstream == installation.upstream
                    && known.base_url == installation.base_url
        })
    }

    fn site(&self, installation: &Arc<Installation>) -> Result<Arc<Site>, ForwardError> {
        if let Some(site) = self.known_site(installation) {
            return Ok(site);
        }
        let (upstream, base_url) = (&installation.upstream, &installation.base_url);
        let site = Arc::new(Site {
            installation: Arc::clone(installation),
            origin: origin(upstream, base_url, &self.api_url)
                .parse()
                .map_err(unsendable)?,
            destination: match upstream {
                Upstream::Connect(_) => destination(&self.listed, base_url),
                Upstream::Forge(_) | Upstream::Oauth(_) => Destination::Configured,
            },
            opener: Opener::of(upstream),
            refused: AtomicBool::new(false),
        });
        self.sites.insert(key(installation), Arc::clone(&site));
        Ok(site)
    }

    fn target(&self, upstream: &Upstream, call: &JiraCall) -> Result<Target, ForwardError> {
        if let (Upstream::Connect(_), JiraCall::Submit(family)) = (upstream, call)
            && let Some((_, target)) = self.submits.iter().find(|(known, _)| known == family)
        {
            return Ok(target.clone());
        }
        let address = address(upstream, call)?;
        let parameters: Vec<(&str, &str)> = address
            .parameters
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        Target::new(&method(call), &address.path, &parameters)
    }
}

impl Opener {
    fn of(upstream: &Upstream) -> Self {
        match upstream {
            Upstream::Connect(Connect {
                shared_secret,
                previous_secret,
                ..
            }) => Self::Signed {
                current: SharedKey::new(shared_secret),
                previous: previous_secret
                    .as_ref()
                    .map(|retired| Box::new(SharedKey::new(&retired.secret))),
            },
            Upstream::Forge(forge) => {
                let ready = |token: &SystemToken| Some((bearer(&token.token)?, token.expires_at));
                Self::SystemToken(forge.system_token.as_ref().and_then(ready))
            }
            Upstream::Oauth(oauth) => Self::Granted(oauth.clone()),
        }
    }
}

impl Target {
    fn new(method: &Method, path: &str, parameters: &[(&str, &str)]) -> Result<Self, ForwardError> {
        let target = AgreedTarget::new("", path, parameters).map_err(unsendable)?;
        Ok(Self {
            qsh: target.qsh(method.as_str()),
            path_and_query: PathAndQuery::try_from(target.path_and_query()).map_err(unsendable)?,
        })
    }
}

fn key(installation: &Installation) -> (ClientKey, UpstreamKind) {
    (
        installation.client_key.clone(),
        installation.upstream.kind(),
    )
}

/// Listing a site is the operator's word for its address; another one must be public.
pub(super) fn destination(listed: &JiraSites, site: &JiraBaseUrl) -> Destination {
    if listed.is_listed(site) {
        Destination::Configured
    } else {
        Destination::Named
    }
}

fn method(call: &JiraCall) -> Method {
    match call {
        JiraCall::Submit(_) | JiraCall::Permissions => Method::POST,
        JiraCall::DeleteBranch { .. } | JiraCall::DeleteMarked { .. } => Method::DELETE,
        JiraCall::User { .. } | JiraCall::Probe(_) | JiraCall::ServerInfo => Method::GET,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        client::DialSettings,
        domain::{ForgeInstallationId, installation::SiteAddress, upstream::Forge},
        jwt::crypto,
    };

    fn forwarder() -> Forwarder {
        crypto::install();
        let soon = Duration::from_secs(20);
        let client = Client::new(&DialSettings {
            roots: Arc::new(rustls::RootCertStore::empty()),
            connect_timeout: soon,
            allow_private: false,
        });
        let api_url = JiraApiUrl::parse("https://api.atlassian.com").expect("url");
        let (key, sites) = ("key".to_owned(), JiraSites::default());
        let metrics = Arc::new(Metrics::new().expect("metrics"));
        Forwarder::new(client, key, sites, api_url, soon, metrics)
    }

    fn installation() -> Installation {
        let id = "ari:cloud:ecosystem::installation/0a3a7799-53ae-4a5b-9e7e-03338980abb5";
        let forge = Upstream::Forge(Forge {
            installation_id: ForgeInstallationId::parse(id).expect("id"),
            cloud_id: CloudId::parse("4c822e2f-510f-48b9-b8d2-8419d0932949").expect("id"),
            app_version: None,
            system_token: None,
            told_at: Timestamp::UNIX_EPOCH,
            refused: None,
        });
        let base_url = JiraSites::default().parse("https://acme.atlassian.net");
        let address = SiteAddress {
            base_url: base_url.expect("address"),
            display_url: None,
        };
        Installation::new(ClientKey::generate(), address, forge, Timestamp::UNIX_EPOCH)
    }

    /// A move tries another way out, and a purge goes every way with a copy of the record.
    #[tokio::test]
    async fn what_is_known_of_the_way_in_use_outlives_calls_by_others() {
        let forwarder = forwarder();
        let used = Arc::new(installation());
        let site = forwarder.site(&used).expect("site");
        site.refused.store(true, Ordering::Relaxed);
        let copy = Installation::clone(&used);
        let other = Installation {
            upstream: Upstream::Oauth(Oauth {
                client_id: "id".to_owned(),
                client_secret: Credential::parse("secret").expect("credential"),
                cloud_id: CloudId::parse("4c822e2f-510f-48b9-b8d2-8419d0932949").expect("id"),
            }),
            ..copy.clone()
        };
        for called in [copy, other] {
            forwarder.site(&Arc::new(called)).expect("site");
            assert!(forwarder.was_refused(&used));
        }
        // Another token is another matter.
        let Upstream::Forge(mut forge) = used.upstream.clone() else {
            panic!("a Forge app");
        };
        forge.told_at = Timestamp::MAX;
        let next = Arc::new(Installation {
            upstream: Upstream::Forge(forge),
            ..Installation::clone(&used)
        });
        assert!(!forwarder.was_refused(&next));
    }
}
