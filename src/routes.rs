//! The public listener: which address is whose.
//!
//! Jira, instances and browsers speak to this. [`Public::serve`] observes, the handlers do.

mod branches;
mod lifecycle;
mod public_keys;
mod rest;
mod toolchain;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header, request::Parts};
use http_body_util::Full;
use hyper::body::Incoming;
use matchit::Router;

use crate::{
    body::Body,
    config::{Config, LimitsConfig},
    domain::{InstancePolicy, LifecycleEventKind},
    exchange::{Arrival, Labels, observe, typed},
    gitlab::{KeyFetches, ask::Asker},
    jira::{Forwarder, Recogniser, calls, descriptor::descriptor},
    jwt::{self, Signer, TokenKind, VerifyError, lifecycle::LifecycleVerifier, request::Audiences},
    metrics::Metrics,
    reject::Reject,
    sightings::Sightings,
    spool::Spool,
    store::Store,
};

const LISTENER: &str = "public";
const LOGO: &str = include_str!("routes/logo.svg");

/// Everything that the public listener's handlers need.
pub struct Public {
    router: Router<Route>,
    descriptor: Bytes,
    app_key: String,
    base_path: String,
    audiences: Audiences,
    is_https: bool,
    search_patience: Duration,
    sites: crate::domain::JiraSites,
    secret_grace: jiff::SignedDuration,
    limits: LimitsConfig,
    bodies: rest::BodyRoom,
    parts: PublicParts,
}

/// What [`Public`] is made of.
pub struct PublicParts {
    /// Who may be linked.
    pub policy: Arc<ArcSwap<InstancePolicy>>,
    /// What is known.
    pub store: Store,
    /// Believes Atlassian.
    pub verifier: LifecycleVerifier,
    /// Has our public keys.
    pub signer: Arc<Signer>,
    /// Notes who came for one.
    pub key_fetches: Arc<KeyFetches>,
    /// Tells which link speaks.
    pub recogniser: Recogniser,
    /// Notes when it did.
    pub sightings: Arc<Sightings>,
    /// Calls Jira.
    pub forwarder: Arc<Forwarder>,
    /// Keeps what Jira can't take.
    pub spool: Spool,
    /// Asks instances for Jira.
    pub asker: Asker,
    /// Counted in.
    pub metrics: Arc<Metrics>,
}

impl std::ops::Deref for Public {
    type Target = PublicParts;

    fn deref(&self) -> &PublicParts {
        &self.parts
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Descriptor,
    Event(LifecycleEventKind),
    Logo,
    PublicKey,
    Associate,
    BranchNew,
    BranchStart,
    Repositories,
    Workspaces,
}

/// Where instances call us as if we were Jira. Outside of the table: its paths are `jira::calls`' to know.
const REST: &str = "/rest/";

impl Public {
    /// Sets up the table of addresses.
    ///
    /// # Errors
    /// Two addresses that exclude each other: `public.base_path` can't do that.
    pub fn new(config: &Config, parts: PublicParts) -> Result<Self, matchit::InsertError> {
        let mut router = Router::new();
        for (path, route) in [
            ("app_descriptor.json", Route::Descriptor),
            ("app_descriptor", Route::Descriptor),
            (
                "events/installed",
                Route::Event(LifecycleEventKind::Installed),
            ),
            (
                "events/uninstalled",
                Route::Event(LifecycleEventKind::Uninstalled),
            ),
            ("logo.svg", Route::Logo),
            ("public_keys/{*kid}", Route::PublicKey),
            ("branches/new", Route::BranchNew),
            ("branches/route", Route::BranchStart),
            ("repositories/associate", Route::Associate),
            ("repositories/search", Route::Repositories),
            ("workspaces/search", Route::Workspaces),
        ] {
            router.insert(format!("{}/{path}", config.public.base_path), route)?;
        }
        Ok(Self {
            router,
            descriptor: descriptor(config).to_string().into(),
            app_key: config.app.key.clone(),
            base_path: config.public.base_path.clone(),
            audiences: Audiences {
                base_url: config.app_base_url(),
                app_key: config.app.key.clone(),
            },
            is_https: config.public.url.is_https(),
            search_patience: config.jira.search_deadline,
            sites: config.jira.sites.clone(),
            secret_grace: config.jira.secret_grace,
            limits: config.limits,
            bodies: rest::BodyRoom::default(),
            parts,
        })
    }

    /// Answers one request.
    pub async fn serve(
        self: Arc<Self>,
        request: Request<Incoming>,
        peer: SocketAddr,
    ) -> Response<Body> {
        if request.uri().path().starts_with(REST) {
            return self.serve_rest(request, peer).await;
        }
        let path = request.uri().path().to_owned();
        let matched = self.router.at(&path).ok();
        let route = matched.as_ref().map(|m| *m.value);
        let kid = matched
            .and_then(|m| m.params.get("kid").map(str::to_owned))
            .unwrap_or_default();
        let labels = Labels {
            listener: LISTENER,
            route: route.map_or("none", Route::label),
            push_back: false,
        };
        let this = &self;
        observe(
            labels,
            request,
            peer,
            &self.limits,
            &self.metrics,
            |request, arrival| {
                Box::pin(async move {
                    match route {
                        Some(route) => this.handle(route, &kid, request, &arrival).await,
                        None => Err(Reject {
                            // Without its query, which may hold a token.
                            internal: Some(request.uri().path().chars().take(200).collect()),
                            ..Reject::not_found("such address on this relay")
                        }),
                    }
                })
            },
        )
        .await
    }

    /// The address of a request, read strictly: what it holds twice, in odd escapes or in dot segments is refused.
    fn target(&self, path_and_query: &str, kind: TokenKind) -> Result<jwt::Target, Reject> {
        jwt::Target::parse_strict(path_and_query, &[])
            .map_err(|error| self.unbelieved(kind, error.into()))
    }

    /// Counts a token, or an address, that is not believed.
    fn unbelieved(&self, kind: TokenKind, error: VerifyError) -> Reject {
        self.metrics
            .verify_failures
            .with_label_values(&[kind.as_str(), error.code()])
            .inc();
        Reject::from(error)
    }

    async fn serve_rest(&self, request: Request<Incoming>, peer: SocketAddr) -> Response<Body> {
        let labels = Labels {
            listener: LISTENER,
            route: calls::route_label(request.uri().path()),
            push_back: request.method() != Method::GET,
        };
        let (limits, metrics) = (&self.limits, &self.metrics);
        observe(
            labels,
            request,
            peer,
            limits,
            metrics,
            |request, arrival| Box::pin(async move { rest::relay(self, request, &arrival).await }),
        )
        .await
    }

    async fn handle(
        &self,
        route: Route,
        kid: &str,
        request: Request<Incoming>,
        arrival: &Arrival,
    ) -> Result<Response<Full<Bytes>>, Reject> {
        match (route, request.method()) {
            (Route::Event(kind), &Method::POST) => {
                lifecycle::receive(self, kind, request, arrival).await
            }
            (Route::Associate, &Method::POST) => toolchain::associate(self, request, arrival).await,
            (Route::Event(_) | Route::Associate, _) => Err(Reject::method_not_allowed("POST")),
            (_, method) if !matches!(*method, Method::GET | Method::HEAD) => {
                Err(Reject::method_not_allowed("GET"))
            }
            (Route::Descriptor, _) => cacheable(
                "public",
                300,
                typed(StatusCode::OK, "application/json", self.descriptor.clone()),
            ),
            (Route::Logo, _) => cacheable(
                "public",
                86_400,
                typed(StatusCode::OK, "image/svg+xml", LOGO),
            ),
            (Route::BranchNew, _) => branches::new(self, request),
            (Route::BranchStart, _) => branches::route(self, request, arrival),
            (Route::Repositories, _) => toolchain::repositories(self, request, arrival).await,
            (Route::Workspaces, _) => toolchain::workspaces(self, request, arrival).await,
            (Route::PublicKey, _) => public_keys::serve(self, kid, arrival).await,
        }
    }
}

impl Route {
    fn label(self) -> &'static str {
        match self {
            Self::Descriptor => "app_descriptor",
            Self::Event(LifecycleEventKind::Installed) => "events/installed",
            Self::Event(LifecycleEventKind::Uninstalled) => "events/uninstalled",
            Self::Logo => "logo",
            Self::PublicKey => "public_keys",
            Self::Associate => "repositories/associate",
            Self::BranchNew => "branches/new",
            Self::BranchStart => "branches/route",
            Self::Repositories => "repositories/search",
            Self::Workspaces => "workspaces/search",
        }
    }
}

/// Path and query as they came.
fn path_and_query(head: &Parts) -> &str {
    let target = head.uri.path_and_query();
    target.map_or("/", |target| target.as_str())
}

/// `who` may keep it: `public` or `private`.
fn cacheable(
    who: &str,
    seconds: u32,
    response: Result<Response<Full<Bytes>>, Reject>,
) -> Result<Response<Full<Bytes>>, Reject> {
    let mut response = response?;
    let value = HeaderValue::from_str(&format!("{who}, max-age={seconds}"));
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, value.map_err(Reject::internal)?);
    Ok(response)
}
