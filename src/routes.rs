//! The public listener: which address is whose.
//!
//! Jira, instances and browsers speak to this. [`Public::serve`] observes, the handlers do.

mod assets;
mod branches;
mod caller;
mod discreet;
mod forge;
mod installations;
mod lifecycle;
mod links;
mod outside;
mod page;
mod public_keys;
mod rest;
mod toolchain;

pub use page::redirect_uri;

use std::{net::IpAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header, request::Parts};
use http_body_util::Full;
use hyper::body::Incoming;
use matchit::{Params, Router};
use quick_cache::sync::Cache;
use tokio::sync::Semaphore;

use crate::{
    access::{Access, Group},
    body::Body,
    config::{Config, LimitsConfig},
    domain::{ClientKey, InstancePolicy, LifecycleEventKind, Peer, peer::network},
    exchange::{Arrival, Labels, observe, typed},
    forge_sites::ForgeSites,
    forwarded::Forwarded,
    gitlab::{Asker, KeyFetches, Prober},
    jira::{Admins, Forwarder, Recogniser, calls, descriptor::descriptor},
    jwt::{
        self, InvocationVerifier, Signer, TokenKind, VerifyError, lifecycle::LifecycleVerifier,
        request::Audiences,
    },
    linking::Linker,
    metrics::Metrics,
    pace::Paces,
    reject::Reject,
    rounds::Rounds,
    sessions::Sessions,
    sightings::Sightings,
    spool::Spool,
    store::Store,
    trace::Traces,
};

const LISTENER: &str = "public";
/// Sites whose pages are counted.
const SITES_MAX: usize = 10_000;

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
    forwarded: Forwarded,
    address_paces: Paces<IpAddr>,
    site_paces: Paces<ClientKey>,
    limits: LimitsConfig,
    bodies: rest::BodyRoom,
    pages: page::Pages,
    /// Who of a site's page may call instances now.
    page_turns: Cache<ClientKey, Arc<Semaphore>>,
    parts: PublicParts,
}

/// What [`Public`] is made of.
pub struct PublicParts {
    /// Who may call.
    pub access: Access,
    /// Who may be linked.
    pub policy: Arc<ArcSwap<InstancePolicy>>,
    /// Makes and changes links.
    pub linker: Arc<Linker>,
    /// Operators at the page outside Jira.
    pub sessions: Arc<Sessions>,
    /// Looks whether an instance is ready.
    pub prober: Prober,
    /// Tells who may change anything.
    pub admins: Admins,
    /// What is known.
    pub store: Store,
    /// Believes Atlassian.
    pub verifier: LifecycleVerifier,
    /// Believes Forge and keeps what it tells, if there is a Forge app.
    pub forge: Option<(InvocationVerifier, Arc<ForgeSites>)>,
    /// Has our public keys.
    pub signer: Arc<Signer>,
    /// Notes who came for one.
    pub key_fetches: Arc<KeyFetches>,
    /// Tells which link speaks.
    pub recogniser: Recogniser,
    /// Looks at connected instances from time to time.
    pub rounds: Arc<Rounds>,
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
    /// Remembers what happened.
    pub traces: Arc<Traces>,
}

impl std::ops::Deref for Public {
    type Target = PublicParts;

    fn deref(&self) -> &PublicParts {
        &self.parts
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Asset,
    Descriptor,
    Event(LifecycleEventKind),
    Forge(forge::Trigger),
    Installations,
    Links(links::Resource),
    Logo,
    OauthCallback,
    Outside(outside::Door),
    Page,
    PageBoot,
    PublicKey,
    Associate,
    BranchNew,
    BranchStart,
    Repositories,
    Workspaces,
}

/// Why the public listener can't be put together.
#[derive(Debug, thiserror::Error)]
pub enum PublicError {
    /// Of the table of addresses.
    #[error(transparent)]
    Route(#[from] matchit::InsertError),
    /// Of the page's files.
    #[error("the page's files are not whole: {0}")]
    Assets(#[from] std::io::Error),
}

/// Where instances call us as if we were Jira. Outside of the table: its paths are `jira::calls`' to know.
const REST: &str = "/rest/";

impl Public {
    /// Sets up the table of addresses.
    ///
    /// # Errors
    /// Two addresses that exclude each other: `public.base_path` can't do that. A bundle that is not whole.
    pub fn new(config: &Config, parts: PublicParts) -> Result<Self, PublicError> {
        use links::Resource;

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
            ("assets/{name}", Route::Asset),
            ("forge/events", Route::Forge(forge::Trigger::Event)),
            ("forge/scheduled", Route::Forge(forge::Trigger::Scheduled)),
            ("forge/uninstall", Route::Forge(forge::Trigger::Uninstall)),
            ("installations", Route::Installations),
            ("links", Route::Links(Resource::All)),
            ("links/check", Route::Links(Resource::Check)),
            ("links/{id}", Route::Links(Resource::One)),
            (
                "links/{id}/context_token",
                Route::Links(Resource::ContextToken),
            ),
            ("links/{id}/groups", Route::Links(Resource::Groups)),
            ("links/{id}/groups/{group}", Route::Links(Resource::Group)),
            ("links/{id}/look", Route::Links(Resource::Look)),
            ("links/{id}/resend", Route::Links(Resource::Resend)),
            ("links/{id}/sign_in", Route::Links(Resource::SignIn)),
            ("links/{id}/undo", Route::Links(Resource::Undo)),
            ("logo.svg", Route::Logo),
            ("oauth_callbacks", Route::OauthCallback),
            ("page", Route::Outside(outside::Door::Page)),
            ("page/boot", Route::PageBoot),
            ("page/open", Route::Outside(outside::Door::Open)),
            ("page/session", Route::Outside(outside::Door::Session)),
            ("subscriptions", Route::Page),
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
            forwarded: Forwarded::new(
                config.public.trusted_proxies.clone(),
                !config.public.ends_tls(),
            ),
            address_paces: Paces::new(config.limits.requests_per_address),
            site_paces: Paces::new(config.limits.requests_per_installation),
            limits: config.limits,
            bodies: rest::BodyRoom::default(),
            pages: page::Pages::new(config, assets::Assets::load()?),
            page_turns: Cache::new(SITES_MAX),
            parts,
        })
    }

    /// Answers one request.
    pub async fn serve(self: Arc<Self>, request: Request<Incoming>, peer: Peer) -> Response<Body> {
        let peer = self.forwarded.client(peer, request.headers());
        if request.uri().path().starts_with(REST) {
            return self.serve_rest(request, peer).await;
        }
        let path = request.uri().path().to_owned();
        let matched = self.router.at(&path).ok();
        let route = matched.as_ref().map(|m| *m.value);
        let params = matched.map(|m| m.params);
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
            &self.traces,
            |request, arrival| {
                Box::pin(async move {
                    match route {
                        Some(route) => {
                            // Forge calls for all users of all sites from a few addresses.
                            let is_forges = route.is_forges(request.headers());
                            let is_event = is_forges || matches!(route, Route::Event(_));
                            if !is_event {
                                this.check_pace(&arrival)?;
                            }
                            let group = route.group();
                            if let Some(group) = group.or_else(|| is_forges.then_some(Group::Jira))
                            {
                                this.access.check(group, arrival.peer.ip())?;
                            }
                            let params = params.unwrap_or_default();
                            let answer = this.handle(route, &params, request, &arrival).await;
                            match answer {
                                // Jira does not repeat an `uninstalled`, so only what was not believed is counted.
                                Err(reject) if is_event && reject.is_callers_fault() => {
                                    Err(this.check_pace(&arrival).err().unwrap_or(reject))
                                }
                                answer => answer,
                            }
                        }
                        None => this.check_pace(&arrival).and(Err(Reject {
                            // Without its query, which may hold a token.
                            internal: Some(request.uri().path().chars().take(200).collect()),
                            ..Reject::not_found("such address on this relay")
                        })),
                    }
                })
            },
        )
        .await
    }

    /// One more request from this address.
    fn check_pace(&self, arrival: &Arrival) -> Result<(), Reject> {
        let address = network(arrival.peer.ip());
        self.address_paces.take(&address).map_err(|wait| {
            Reject::too_fast(
                "too many requests from this address",
                "try again later; the operator can raise limits.requests_per_address_per_sec, or list the proxies in public.trusted_proxies",
                wait,
            )
        })
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

    async fn serve_rest(&self, request: Request<Incoming>, peer: Peer) -> Response<Body> {
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
            &self.traces,
            |request, arrival| {
                Box::pin(async move {
                    self.access.check(Group::Instances, arrival.peer.ip())?;
                    rest::relay(self, request, &arrival).await
                })
            },
        )
        .await
    }

    async fn handle(
        &self,
        route: Route,
        params: &Params<'_, '_>,
        request: Request<Incoming>,
        arrival: &Arrival,
    ) -> Result<Response<Full<Bytes>>, Reject> {
        let param = |name| params.get(name).unwrap_or_default();
        match (route, request.method()) {
            (Route::Event(kind), &Method::POST) => {
                lifecycle::receive(self, kind, request, arrival).await
            }
            (Route::Associate, &Method::POST) => toolchain::associate(self, request, arrival).await,
            (Route::Forge(trigger), &Method::POST) => {
                forge::receive(self, trigger, request, arrival).await
            }
            (Route::Event(_) | Route::Forge(_) | Route::Associate, _) => {
                Err(Reject::method_not_allowed("POST"))
            }
            (Route::Installations, _) => installations::serve(self, request, arrival).await,
            (Route::Links(resource), _) => {
                let (id, group) = (param("id"), param("group"));
                links::serve(self, resource, id, group, request, arrival).await
            }
            (Route::Outside(door), _) => outside::serve(self, door, request, arrival).await,
            (_, method) if !matches!(*method, Method::GET | Method::HEAD) => {
                Err(Reject::method_not_allowed("GET"))
            }
            (Route::Descriptor, _) => cacheable(
                "public, max-age=300",
                typed(StatusCode::OK, "application/json", self.descriptor.clone()),
            ),
            (Route::Asset, _) => page::asset(self, param("name"), request.headers()),
            (Route::OauthCallback, _) => page::oauth_callback(self),
            (Route::Page, _) => page::subscriptions(self, request, arrival),
            (Route::PageBoot, _) => forge::boot(self, request, arrival).await,
            (Route::Logo, _) => cacheable(
                "public, max-age=86400",
                typed(StatusCode::OK, "image/svg+xml", LOGO),
            ),
            (Route::BranchNew, _) => branches::new(self, request),
            (Route::BranchStart, _) => branches::route(self, request, arrival),
            (Route::Repositories, _) => toolchain::repositories(self, request, arrival).await,
            (Route::Workspaces, _) => toolchain::workspaces(self, request, arrival).await,
            (Route::PublicKey, _) => public_keys::serve(self, param("kid"), arrival).await,
        }
    }
}

impl Route {
    /// Whether Forge calls it, for itself or for its page. What is a call of its page's only the token tells.
    fn is_forges(self, headers: &HeaderMap) -> bool {
        match self {
            Self::Forge(_) | Self::PageBoot => true,
            Self::Links(_) => forge::is_call(headers),
            _ => false,
        }
    }

    /// Whose servers call it; nothing, if browsers do, or anybody.
    fn group(self) -> Option<Group> {
        match self {
            Self::Event(_)
            | Self::Forge(_)
            | Self::PageBoot
            | Self::Associate
            | Self::Repositories
            | Self::Workspaces => Some(Group::Jira),
            Self::PublicKey => Some(Group::Instances),
            // The descriptor is public, and people look at it to see whether the relay is there.
            Self::Descriptor
            | Self::Asset
            | Self::Installations
            | Self::Links(_)
            | Self::Logo
            | Self::OauthCallback
            | Self::Outside(_)
            | Self::Page
            | Self::BranchNew
            | Self::BranchStart => None,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Asset => "assets",
            Self::Descriptor => "app_descriptor",
            Self::Event(LifecycleEventKind::Installed) => "events/installed",
            Self::Event(LifecycleEventKind::Uninstalled) => "events/uninstalled",
            Self::Forge(trigger) => trigger.label(),
            Self::Installations => "installations",
            Self::Links(resource) => resource.label(),
            Self::Logo => "logo",
            Self::OauthCallback => "oauth_callbacks",
            Self::Outside(door) => door.label(),
            Self::Page => "subscriptions",
            Self::PageBoot => "page/boot",
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

/// One of the cookies that came.
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|cookies| cookies.to_str().ok())
        .flat_map(|cookies| cookies.split(';'))
        .filter_map(|cookie| cookie.trim().split_once('='))
        .find(|(known, _)| *known == name)
        .map(|(_, value)| value)
}

/// Others may keep it, as this value of `Cache-Control` says.
fn cacheable(
    control: &'static str,
    response: Result<Response<Full<Bytes>>, Reject>,
) -> Result<Response<Full<Bytes>>, Reject> {
    let mut response = response?;
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static(control));
    Ok(response)
}
