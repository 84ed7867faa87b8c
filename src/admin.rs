//! The operators' listener: health, metrics, and the API behind the admin token.

mod doctor;
mod import;
mod installations;
mod keys;
mod links;
mod moving;
mod page;
mod spool;
mod status;
mod store;
mod trace;

pub use status::Standing;

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use matchit::Router;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::{
    body::Body,
    config::LimitsConfig,
    doctor::Doctor,
    domain::{Actor, AuditEntry, ClientKey, InstallationState, JiraSites, LinkState, Peer},
    exchange::{Arrival, Labels, json, observe, typed},
    forge_sites,
    jira::Forwarder,
    jwt::Signer,
    linking::Linker,
    metrics::Metrics,
    reject::{Reject, RejectKind},
    rotation::KeyRotation,
    rounds::Rounds,
    server::Turning,
    sessions::Sessions,
    spool::Spool,
    store::Store,
    trace::Traces,
};
use percent_encoding::percent_decode_str;

const LISTENER: &str = "admin";

/// Entries of the audit trail in one answer.
const AUDIT_DEFAULT: usize = 100;
const AUDIT_MAX: usize = 10_000;

/// Everything that the admin listener's handlers need.
pub struct Admin {
    router: Router<Route>,
    parts: AdminParts,
}

/// What [`Admin`] is made of.
pub struct AdminParts {
    /// Guards the API; the operator can replace it in a running relay.
    pub token: Arc<ArcSwap<Zeroizing<String>>>,
    /// What is known.
    pub store: Store,
    /// Calls Jira.
    pub forwarder: Arc<Forwarder>,
    /// Whether there is a key.
    pub signer: Arc<Signer>,
    /// Replaces keys.
    pub rotation: Arc<KeyRotation>,
    /// Makes and changes links.
    pub linker: Arc<Linker>,
    /// Invites operators to the page outside Jira.
    pub sessions: Arc<Sessions>,
    /// Which sites can be served.
    pub sites: JiraSites,
    /// What waits for Jira.
    pub spool: Spool,
    /// Finds out what ails whom.
    pub doctor: Arc<Doctor>,
    /// What the last round found.
    pub rounds: Arc<Rounds>,
    /// What it says of itself.
    pub standing: Standing,
    /// Whether the threads that serve connections still turn.
    pub workers: Turning,
    /// How much, how long.
    pub limits: LimitsConfig,
    /// Shown, and counted in.
    pub metrics: Arc<Metrics>,
    /// What happened lately, shown and added to.
    pub traces: Arc<Traces>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Audit,
    Backup,
    Doctor,
    Health,
    Import,
    ImportRollback,
    Installation,
    Installations,
    Join,
    Keys,
    KeysRotate,
    Link,
    LinkResend,
    Links,
    Metrics,
    Move,
    Page,
    Ready,
    Spool,
    SpoolRetry,
    Status,
    StoreReseal,
    Trace,
}

impl Admin {
    /// Sets up the table of addresses.
    ///
    /// # Errors
    /// Two addresses that exclude each other: a mistake in this file.
    pub fn new(parts: AdminParts) -> Result<Self, matchit::InsertError> {
        let mut router = Router::new();
        for (path, route) in [
            ("/healthz", Route::Health),
            ("/readyz", Route::Ready),
            ("/metrics", Route::Metrics),
            ("/api/v1/installations", Route::Installations),
            ("/api/v1/installations/{id}", Route::Installation),
            ("/api/v1/installations/{id}/join", Route::Join),
            ("/api/v1/installations/{id}/move", Route::Move),
            ("/api/v1/installations/{id}/page", Route::Page),
            ("/api/v1/links", Route::Links),
            ("/api/v1/links/{id}", Route::Link),
            ("/api/v1/links/{id}/resend", Route::LinkResend),
            ("/api/v1/keys", Route::Keys),
            ("/api/v1/keys/rotate", Route::KeysRotate),
            ("/api/v1/spool", Route::Spool),
            ("/api/v1/spool/retry", Route::SpoolRetry),
            ("/api/v1/import", Route::Import),
            ("/api/v1/import/{id}/rollback", Route::ImportRollback),
            ("/api/v1/doctor", Route::Doctor),
            ("/api/v1/status", Route::Status),
            ("/api/v1/audit", Route::Audit),
            ("/api/v1/backup", Route::Backup),
            ("/api/v1/store/reseal", Route::StoreReseal),
            ("/api/v1/trace/{id}", Route::Trace),
        ] {
            router.insert(path, route)?;
        }
        Ok(Self { router, parts })
    }

    /// Answers one request.
    pub async fn serve(self: Arc<Self>, request: Request<Incoming>, peer: Peer) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let matched = self.router.at(&path).ok();
        let route = matched.as_ref().map(|m| *m.value);
        let id = matched
            .and_then(|m| m.params.get("id").map(str::to_owned))
            .unwrap_or_default();
        let labels = Labels {
            listener: LISTENER,
            route: route.map_or("none", Route::label),
            push_back: false,
        };
        let parts = &self.parts;
        observe(
            labels,
            request,
            peer,
            &parts.limits,
            &parts.metrics,
            &parts.traces,
            |request, arrival| {
                Box::pin(async move {
                    match route {
                        Some(route) => parts.handle(route, &id, request, &arrival).await,
                        // Without the token, nobody learns which addresses of the API there are.
                        None => {
                            let path = request.uri().path().chars().take(200).collect();
                            parts.authorise(request.headers())?;
                            Err(Reject {
                                internal: Some(path),
                                ..Reject::not_found("such address on the admin listener")
                            })
                        }
                    }
                })
            },
        )
        .await
    }
}

impl AdminParts {
    async fn handle(
        &self,
        route: Route,
        id: &str,
        request: Request<Incoming>,
        arrival: &Arrival,
    ) -> Result<Response<Body>, Reject> {
        if !route.is_open() {
            self.authorise(request.headers())?;
        }
        let method = match request.method() {
            &Method::HEAD => &Method::GET,
            method => method,
        };
        if let (Route::Backup, &Method::GET) = (route, method) {
            return store::backup(self, arrival).await;
        }
        let answer = match (route, method) {
            (Route::Health, &Method::GET) => self.health().await,
            (Route::Ready, &Method::GET) => self.ready(arrival).await,
            (Route::Metrics, &Method::GET) => self.metrics(),
            (Route::Installations, &Method::GET) => installations::list(self),
            (Route::Installations, &Method::POST) => {
                installations::add(self, request, arrival).await
            }
            (Route::Installation, &Method::DELETE) => {
                installations::remove(self, id, request.uri().query(), arrival).await
            }
            (Route::Join, &Method::POST) => moving::join(self, id, request, arrival).await,
            (Route::Move, &Method::POST) => moving::move_to(self, id, request, arrival).await,
            (Route::Page, &Method::POST) => page::invite(self, id, arrival).await,
            (Route::Links, &Method::GET) => links::list(self, request.uri().query()),
            (Route::Links, &Method::POST) => links::create(self, request, arrival).await,
            (Route::Link, &Method::GET) => links::show(self, id),
            (Route::Link, &Method::DELETE) => {
                links::remove(self, id, request.uri().query(), arrival).await
            }
            (Route::LinkResend, &Method::POST) => links::resend(self, id, arrival).await,
            (Route::Keys, &Method::GET) => keys::list(self),
            (Route::KeysRotate, &Method::POST) => keys::rotate(self, arrival).await,
            (Route::Spool, &Method::GET) => spool::show(self, request.uri().query(), arrival),
            (Route::SpoolRetry, &Method::POST) => spool::retry(self, arrival),
            (Route::Import, &Method::POST) => import::import(self, request, arrival).await,
            (Route::ImportRollback, &Method::POST) => {
                import::roll_back(self, id, request, arrival).await
            }
            (Route::Doctor, &Method::POST) => doctor::look(self, request, arrival).await,
            (Route::Status, &Method::GET) => status::show(self, arrival).await,
            (Route::Trace, &Method::GET) => trace::show(self, id),
            (Route::Audit, &Method::GET) => self.audit(request.uri().query()).await,
            (Route::StoreReseal, &Method::POST) => store::reseal(self, arrival).await,
            (route, _) => Err(Reject::method_not_allowed(route.methods())),
        };
        answer.map(|response| response.map(Body::from))
    }

    /// A client key in a path.
    fn client_key(text: &str) -> Result<ClientKey, Reject> {
        let text = percent_decode_str(text).decode_utf8().ok();
        text.and_then(|text| ClientKey::parse(&text).ok())
            .ok_or_else(|| Reject {
                hint: "GET /api/v1/installations lists the client keys".to_owned(),
                ..Reject::not_found("such installation: that is no client key")
            })
    }

    fn authorise(&self, headers: &HeaderMap) -> Result<(), Reject> {
        let given = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok()?.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim())
            .unwrap_or_default();
        let token = self.token.load();
        if given.as_bytes().ct_eq(token.as_bytes()).into() {
            return Ok(());
        }
        Err(Reject::new(
            RejectKind::AdminTokenWanted,
            "admin_token",
            "the admin API wants its token",
            "send `Authorization: Bearer <token>` with what stood in admin.token_file when the relay was started or got SIGHUP",
        ))
    }

    /// This runs on another runtime than what is served to Jira and instances, so that one is asked too.
    async fn health(&self) -> Result<Response<Full<Bytes>>, Reject> {
        self.workers.check().await?;
        typed(StatusCode::OK, "text/plain", "ok\n")
    }

    async fn ready(&self, arrival: &Arrival) -> Result<Response<Full<Bytes>>, Reject> {
        self.check_ready(arrival).await?;
        typed(StatusCode::OK, "text/plain", "ready\n")
    }

    /// There is a key to sign with, and the store takes a write.
    async fn check_ready(&self, arrival: &Arrival) -> Result<(), Reject> {
        if self.signer.active().is_none() {
            return Err(Reject::new(
                RejectKind::Unavailable,
                "no_signing_key",
                "there is no signing key",
                "look at the log: one is made at start",
            ));
        }
        Ok(self.store.probe(arrival.now).await?)
    }

    fn metrics(&self) -> Result<Response<Full<Bytes>>, Reject> {
        let links = self.store.links();
        for state in LinkState::ALL {
            let count = links.iter().filter(|link| link.state() == state).count();
            self.metrics
                .links
                .with_label_values(&[state.as_str()])
                .set(count as i64);
        }
        let installations = self.store.installations();
        for state in [InstallationState::Installed, InstallationState::Uninstalled] {
            let count = installations.iter().filter(|i| i.state == state).count();
            self.metrics
                .installations
                .with_label_values(&[state.as_str()])
                .set(count as i64);
        }
        let now = crate::clock::now();
        forge_sites::measure(&installations, &self.metrics, now);
        let refused = installations.iter().filter(|installation| {
            let trouble = self.forwarder.trouble(installation);
            installation.is_installed() && trouble.is_some_and(|trouble| trouble.error.is_refusal())
        });
        self.metrics.oauth_refused.set(refused.count() as i64);
        let sessions = self.sessions.open_now(now);
        self.metrics.page_sessions.set(sessions as i64);
        self.spool.measure(now);
        if let Some(tls) = &self.doctor.tls
            && let Some(expires_at) = tls.expires_at()
        {
            self.metrics.certificate_expiry.set(expires_at.as_second());
            self.metrics.ocsp_expiry.set(tls.ocsp_until());
        }
        if let Some((_, since)) = self.signer.active() {
            let age = crate::clock::now().duration_since(since).as_secs();
            self.metrics.signing_key_age.set(age);
        }
        let text = self.metrics.render().map_err(Reject::internal)?;
        typed(StatusCode::OK, "text/plain; version=0.0.4", text)
    }

    async fn audit(&self, query: Option<&str>) -> Result<Response<Full<Bytes>>, Reject> {
        let most = limit(query, AUDIT_DEFAULT, AUDIT_MAX)?;
        let before = parameter(query, "before").map(|text| {
            text.parse::<u64>().map_err(|_| {
                Reject::new(
                    RejectKind::Malformed,
                    "before_malformed",
                    "before is the number of an entry",
                    "leave it out for the newest entries",
                )
            })
        });
        json(
            StatusCode::OK,
            &self.store.audit(before.transpose()?, most).await?,
        )
    }

    fn audit_entry(arrival: &Arrival, action: &str) -> AuditEntry {
        AuditEntry {
            request_id: Some(arrival.id.clone()),
            peer: Some(arrival.peer.ip()),
            ..AuditEntry::new(arrival.now, Actor::Admin, action)
        }
    }
}

impl Route {
    fn label(self) -> &'static str {
        match self {
            Self::Audit => "audit",
            Self::Backup => "backup",
            Self::Doctor => "doctor",
            Self::Health => "healthz",
            Self::Import => "import",
            Self::ImportRollback => "import/id/rollback",
            Self::Installation => "installations/id",
            Self::Installations => "installations",
            Self::Keys => "keys",
            Self::KeysRotate => "keys/rotate",
            Self::Link => "links/id",
            Self::LinkResend => "links/id/resend",
            Self::Links => "links",
            Self::Metrics => "metrics",
            Self::Join => "installations/id/join",
            Self::Move => "installations/id/move",
            Self::Page => "installations/id/page",
            Self::Ready => "readyz",
            Self::Spool => "spool",
            Self::SpoolRetry => "spool/retry",
            Self::Status => "status",
            Self::StoreReseal => "store/reseal",
            Self::Trace => "trace/id",
        }
    }

    fn is_open(self) -> bool {
        matches!(self, Self::Health | Self::Ready | Self::Metrics)
    }

    fn methods(self) -> &'static str {
        match self {
            Self::Link => "GET or DELETE",
            Self::Installations | Self::Links => "GET or POST",
            Self::Installation => "DELETE",
            Self::Doctor
            | Self::Import
            | Self::ImportRollback
            | Self::KeysRotate
            | Self::LinkResend
            | Self::Move
            | Self::Page
            | Self::SpoolRetry
            | Self::StoreReseal => "POST",
            _ => "GET",
        }
    }
}

/// How many entries a caller wants.
fn limit(query: Option<&str>, default: usize, max: usize) -> Result<usize, Reject> {
    let Some(text) = parameter(query, "limit") else {
        return Ok(default);
    };
    let most = text.parse::<usize>().ok().filter(|n| (1..=max).contains(n));
    most.ok_or_else(|| {
        Reject::new(
            RejectKind::Malformed,
            "limit_malformed",
            format!("limit is a number from 1 to {max}"),
            format!("leave it out for {default} entries"),
        )
    })
}

/// One parameter of a query.
fn parameter(query: Option<&str>, name: &str) -> Option<String> {
    form_urlencoded::parse(query.unwrap_or_default().as_bytes())
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.into_owned())
}
