//! `page`, `page/open`, `page/session`: the page outside Jira, for operators that the command `page` invited.
//!
//! Nothing here goes by the cookie alone. A call of the page's also shows a token that only its document holds, which
//! nobody can read from elsewhere; a form must come from a page of ours. The address of an invitation shows a button
//! first: programs that look at the addresses in messages before people do would use it up otherwise.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode, header, request::Parts};
use http_body_util::Full;
use hyper::body::Incoming;
use maud::{DOCTYPE, html};

use super::{
    Public,
    assets::Entry,
    cookie,
    page::{HTML, Policy, app, connect, origins, with_policy},
};
use crate::{
    domain::{Actor, AuditEntry, ClientKey, Installation},
    exchange::{Arrival, read_small_body, typed},
    linking::LinkRefusal,
    reject::{Reject, RejectKind},
    sessions::{Session, SessionError},
    trace::{self, Hop},
};

/// In which a call of the page's shows that it is one. Another site's page can't send it without asking first (the
/// Fetch standard's preflight), and is never answered yes.
static PAGE_TOKEN: HeaderName = HeaderName::from_static("x-page-token");

/// Says where a request comes from; scripts can't set it (W3C Fetch Metadata Request Headers).
const SEC_FETCH_SITE: &str = "sec-fetch-site";

/// Only for all paths may a cookie have the prefix that keeps other hosts from setting it (RFC 6265bis section 4.1.3.2).
const COOKIE: &str = "jira_connect_proxy_page";
const HOST_COOKIE: &str = "__Host-jira_connect_proxy_page";

/// What of the page outside Jira is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Door {
    /// The page.
    Page,
    /// An invitation.
    Open,
    /// The session, to end it.
    Session,
}

impl Door {
    /// In metrics and logs.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Page => "page",
            Self::Open => "page/open",
            Self::Session => "page/session",
        }
    }
}

/// Answers whatever comes to one of these doors.
pub(super) async fn serve(
    public: &Public,
    door: Door,
    request: Request<Incoming>,
    arrival: &Arrival,
) -> Result<Response<Full<Bytes>>, Reject> {
    let (head, body) = request.into_parts();
    match (door, &head.method) {
        (Door::Open, &Method::GET | &Method::HEAD) => {
            let ticket = ticket(head.uri.query().unwrap_or_default().as_bytes());
            invitation(public, &ticket, arrival)
        }
        (Door::Open, &Method::POST) => {
            let body = read_small_body(body, &head.headers, &public.limits).await?;
            let opened = open(public, &head, &ticket(&body), arrival).await;
            opened.map_err(|reject| refused(public, reject, arrival))
        }
        (Door::Page, &Method::GET | &Method::HEAD) => {
            let shown = page(public, &head, arrival);
            shown.map_err(|reject| refused(public, reject, arrival))
        }
        (Door::Session, &Method::DELETE) => log_out(public, &head, arrival).await,
        (Door::Open, _) => Err(Reject::method_not_allowed("GET or POST")),
        (Door::Page, _) => Err(Reject::method_not_allowed("GET")),
        (Door::Session, _) => Err(Reject::method_not_allowed("DELETE")),
    }
}

/// Whether a call claims to be one of the page's outside Jira.
pub(super) fn is_call(headers: &HeaderMap) -> bool {
    headers.contains_key(&PAGE_TOKEN)
}

/// The session that a call of the page's proves, and its site.
pub(super) fn caller(
    public: &Public,
    head: &Parts,
    arrival: &Arrival,
) -> Result<(Arc<Session>, Arc<Installation>), Reject> {
    if came_from(public, &head.headers) == Some(false) {
        return Err(cross_site());
    }
    let token = head.headers.get(&PAGE_TOKEN);
    let token = token.and_then(|token| token.to_str().ok());
    let session = public.sessions.call(
        given_cookie(public, &head.headers).ok_or(SessionError::Over)?,
        token.unwrap_or_default(),
        head.method != Method::GET,
        arrival.now,
    )?;
    let installation = site(public, &session.client_key, arrival)?;
    Ok((session, installation))
}

/// An entry about what an operator does at the page.
pub(super) fn audit(arrival: &Arrival, session: &Session, action: &str) -> AuditEntry {
    AuditEntry {
        account_id: Some(session.account_id.clone()),
        client_key: Some(session.client_key.clone()),
        request_id: Some(arrival.id.clone()),
        peer: Some(arrival.peer.ip()),
        ..AuditEntry::new(arrival.now, Actor::Operator, action)
    }
}

/// Shows what an invitation opens, and the button.
fn invitation(
    public: &Public,
    ticket: &str,
    arrival: &Arrival,
) -> Result<Response<Full<Bytes>>, Reject> {
    let looked = public.sessions.look(ticket, arrival.now);
    let installation = looked
        .map_err(Reject::from)
        .and_then(|invitation| site(public, &invitation.client_key, arrival))
        .map_err(|reject| refused(public, reject, arrival))?;
    let pages = &public.pages;
    let site = site_name(&installation);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                (pages.head("GitLab for Jira", Entry::ShellStyle))
                // For whom Fetch Metadata is missing, the form has to name its origin, and no more than that.
                meta name="referrer" content="strict-origin";
                link rel="icon" href={ (pages.base_path) "/logo.svg" };
            }
            body {
                main {
                    h1 { "GitLab for Jira" }
                    p {
                        "You were invited to the page of " b { (site) } ", outside Jira. What you do there you do as an "
                        "administrator of that site, and it stands in the relay's audit trail."
                    }
                    form method="post" action={ (pages.base_path) "/page/open" } {
                        input type="hidden" name="ticket" value=(ticket);
                        button autofocus { "Open the page" }
                    }
                    p { "This works once." }
                }
            }
        }
    };
    let policy = pages.policy(&Policy {
        forms: "'self'",
        ..Policy::default()
    })?;
    with_policy(typed(StatusCode::OK, HTML, page.into_string())?, policy)
}

/// Somebody pressed the button.
async fn open(
    public: &Public,
    head: &Parts,
    ticket: &str,
    arrival: &Arrival,
) -> Result<Response<Full<Bytes>>, Reject> {
    if came_from(public, &head.headers) != Some(true) {
        return Err(cross_site());
    }
    let invitation = public.sessions.look(ticket, arrival.now)?;
    site(public, &invitation.client_key, arrival)?;
    let (cookie, session) = public.sessions.open(ticket, arrival.now)?;
    let entry = AuditEntry {
        note: Some(format!("invitation {}", invitation.number)),
        ..audit(arrival, &session, "page_opened")
    };
    // Nobody gets in without a trace.
    if let Err(error) = public.store.record(entry).await {
        public.sessions.close(&session);
        return Err(error.into());
    }
    tracing::info!(
        id = arrival.id, client.key = %session.client_key, session = session.account_id,
        "an operator opens the page outside Jira"
    );
    Response::builder()
        .status(StatusCode::SEE_OTHER)
        .header(header::LOCATION, format!("{}/page", public.base_path))
        .header(
            header::SET_COOKIE,
            set_cookie(
                public,
                cookie.expose(),
                public.sessions.lifetime().as_secs(),
            ),
        )
        .body(Full::default())
        .map_err(Reject::internal)
}

/// The page, for whoever has a session.
fn page(public: &Public, head: &Parts, arrival: &Arrival) -> Result<Response<Full<Bytes>>, Reject> {
    let cookie = given_cookie(public, &head.headers).ok_or(SessionError::Over)?;
    let (session, token) = public.sessions.page(cookie, arrival.now)?;
    let installation = site(public, &session.client_key, arrival)?;
    let links = public.store.links_of(&session.client_key);
    let origins = origins(&links);
    let pages = &public.pages;
    let boot = pages.boot(&installation, &origins, Some(token.expose()))?;
    let title = format!("GitLab for Jira: {}", site_name(&installation));
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                (pages.head(&title, Entry::PageStyle))
                link rel="icon" href={ (pages.base_path) "/logo.svg" };
                script type="module" src=(pages.asset(Entry::PageScript)) {}
            }
            (app(&boot))
        }
    };
    let policy = pages.policy(&Policy {
        connect: &connect(&origins),
        ..Policy::default()
    })?;
    with_policy(typed(StatusCode::OK, HTML, page.into_string())?, policy)
}

async fn log_out(
    public: &Public,
    head: &Parts,
    arrival: &Arrival,
) -> Result<Response<Full<Bytes>>, Reject> {
    let (session, _) = caller(public, head, arrival)?;
    public.sessions.close(&session);
    let entry = audit(arrival, &session, "page_closed");
    // The session is over; that this can't be noted is no failure of it.
    if let Err(error) = public.store.record(entry).await {
        tracing::error!(
            id = arrival.id,
            "an entry in the audit trail is missing: {error}"
        );
    }
    Response::builder()
        .status(StatusCode::NO_CONTENT)
        .header(header::SET_COOKIE, set_cookie(public, "", 0))
        .body(Full::default())
        .map_err(Reject::internal)
}

/// The installation, if the app is on it.
fn site(
    public: &Public,
    client_key: &ClientKey,
    arrival: &Arrival,
) -> Result<Arc<Installation>, Reject> {
    trace::note(|| Hop::Recognised {
        client_key: client_key.clone(),
        link: None,
    });
    let _ = arrival.notes.client_key.set(client_key.clone());
    let installation = public.store.installation(client_key);
    let installation =
        installation.ok_or_else(|| LinkRefusal::UnknownInstallation(client_key.clone()))?;
    if installation.is_installed() {
        return Ok(installation);
    }
    Err(LinkRefusal::Uninstalled(client_key.clone()).into())
}

/// The site as people know it.
fn site_name(installation: &Installation) -> &str {
    let url = installation.display_url.as_deref();
    let url = url.unwrap_or_else(|| installation.base_url.as_str());
    url.split_once("://").map_or(url, |(_, name)| name)
}

/// A refusal as a page.
fn refused(public: &Public, reject: Reject, arrival: &Arrival) -> Reject {
    let title = match reject.code {
        "session_over" => "You are not logged in here (any more)",
        _ => "This page can't be shown",
    };
    let text = html! {
        p { (sentence(&reject.message)) }
        p { (sentence(&reject.hint)) }
        p class="id" { "Request ID " code { (arrival.id) } }
    };
    public.pages.refusal(reject, title, &text, "'none'")
}

/// Refusals are parts of a sentence.
fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(letters).chain(['.']).collect()
}

fn cross_site() -> Reject {
    Reject::new(
        RejectKind::Forbidden,
        "cross_site",
        "this does not come from a page of this relay",
        "open the address that `jira-connect-proxy page` printed, in a new window",
    )
}

/// Whether a page of ours sends this; nothing, if the browser does not say. It always does for a form, and where our
/// address is https.
fn came_from(public: &Public, headers: &HeaderMap) -> Option<bool> {
    let is = |name: &str, expected: &str| headers.get(name).map(|value| value == expected);
    is(SEC_FETCH_SITE, "same-origin")
        .or_else(|| is(header::ORIGIN.as_str(), &public.pages.public_url))
}

fn ticket(form: &[u8]) -> String {
    form_urlencoded::parse(form)
        .find(|(name, _)| name == "ticket")
        .map(|(_, ticket)| ticket.into_owned())
        .unwrap_or_default()
}

fn given_cookie<'a>(public: &Public, headers: &'a HeaderMap) -> Option<&'a str> {
    cookie(headers, cookie_name(public))
}

fn cookie_name(public: &Public) -> &'static str {
    if public.is_https { HOST_COOKIE } else { COOKIE }
}

fn set_cookie(public: &Public, value: &str, max_age_secs: i64) -> String {
    let secure = if public.is_https { "; Secure" } else { "" };
    format!(
        "{}={value}; Path=/; Max-Age={max_age_secs}; HttpOnly; SameSite=Strict{secure}",
        cookie_name(public)
    )
}
