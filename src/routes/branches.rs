//! `branches/route`, `branches/new`: from Jira's "Create branch" to the GitLab that is to have it.
//!
//! GitLab's own proxy hands Jira's token on to the instance (GitLab `branches_controller.rb`); the relay never does:
//! only issue key and summary go on, and `branches/new` wants a GitLab login and nothing else, in every version
//! since 15.7.

use std::sync::LazyLock;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use maud::{DOCTYPE, PreEscaped, html};
use ring::digest::{SHA256, digest};

use super::{
    Public,
    assets::Entry,
    caller::{Bound, target},
    cookie,
    page::{HTML, Policy, with_policy},
    toolchain::asked,
};
use crate::{
    domain::{CONNECT_PATH, Link, LinkId},
    exchange::{Arrival, typed},
    jwt::Target,
    reject::Reject,
};

/// Remembers the last choice of a browser; holds a link's id and nothing of a person.
const COOKIE: &str = "jira_connect_proxy_instance";

/// A year.
const COOKIE_AGE_SECS: u32 = 31_536_000;

/// What the chooser has beside the look of the other pages without the app.
const STYLE: &str = include_str!("branches.css");

/// It stands in the document, so the policy has to know it.
static STYLE_SOURCE: LazyLock<String> = LazyLock::new(|| {
    let hash = STANDARD.encode(digest(&SHA256, STYLE.as_bytes()));
    format!(" 'sha256-{hash}'")
});

/// Jira's user wants a branch. With one linked instance straight on, with several a choice.
pub(super) fn route(
    public: &Public,
    request: Request<Incoming>,
    arrival: &Arrival,
) -> Result<Response<Full<Bytes>>, Reject> {
    let (head, _) = request.into_parts();
    let (target, mut asking) = asked(public, &head, None, arrival, Bound::RequestOrUser)?;
    let issue = Issue::of(&target);
    match asking.links.as_slice() {
        [] => Err(Reject {
            code: "no_instance",
            message: "no GitLab is linked to this Jira site".to_owned(),
            hint: "a Jira admin or the relay's operator can link one".to_owned(),
            ..Reject::not_found("linked instance")
        }),
        [link] => redirect(&issue.new_branch_url(link), None),
        _ => {
            let last = last_choice(&head.headers);
            // The last choice comes first; the others stay in their order.
            asking.links.sort_by_key(|link| Some(link.id) != last);
            chooser(public, &issue, &asking.links, last)
        }
    }
}

/// The choice was made: remembers it and goes on. Whoever knows a link's id may come here: what it tells is the
/// address of that instance.
pub(super) fn new(
    public: &Public,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Reject> {
    let (head, _) = request.into_parts();
    let target = target(public, &head, None)?;
    let link = target
        .query("link")
        .and_then(LinkId::parse)
        .and_then(|id| public.store.link(id))
        .filter(|link| link.wants_installed())
        .ok_or_else(|| Reject {
            hint: "open \"Create branch\" in Jira again".to_owned(),
            ..Reject::not_found("such linked instance")
        })?;
    let secure = if public.is_https { "; Secure" } else { "" };
    let cookie = format!(
        "{COOKIE}={}; Path={}/branches; Max-Age={COOKIE_AGE_SECS}; HttpOnly; SameSite=Lax{secure}",
        link.id, public.base_path
    );
    redirect(&Issue::of(&target).new_branch_url(&link), Some(&cookie))
}

/// What goes on to GitLab.
struct Issue<'a> {
    key: &'a str,
    summary: &'a str,
}

impl<'a> Issue<'a> {
    fn of(target: &'a Target) -> Self {
        Self {
            key: target.query("issue_key").unwrap_or_default(),
            summary: target.query("issue_summary").unwrap_or_default(),
        }
    }

    fn query(&self, link: Option<LinkId>) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        if let Some(link) = link {
            query.append_pair("link", &link.to_string());
        }
        query.append_pair("issue_key", self.key);
        query.append_pair("issue_summary", self.summary);
        query.finish()
    }

    fn new_branch_url(&self, link: &Link) -> String {
        format!(
            "{}{CONNECT_PATH}/branches/new?{}",
            link.instance_url,
            self.query(None)
        )
    }
}

fn redirect(url: &str, cookie: Option<&str>) -> Result<Response<Full<Bytes>>, Reject> {
    let mut response = Response::builder()
        .status(StatusCode::FOUND)
        .header(header::LOCATION, url);
    if let Some(cookie) = cookie {
        response = response.header(header::SET_COOKIE, cookie);
    }
    response.body(Full::default()).map_err(Reject::internal)
}

/// Links, so it needs no script, works with a keyboard alone, and reads well aloud.
fn chooser(
    public: &Public,
    issue: &Issue<'_>,
    links: &[std::sync::Arc<Link>],
    last: Option<LinkId>,
) -> Result<Response<Full<Bytes>>, Reject> {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                (public.pages.head(&format!("Create a branch for {}", issue.key), Entry::ShellStyle))
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    h1 { "Create a branch for " (issue.key) }
                    @if !issue.summary.is_empty() {
                        p { (issue.summary) }
                    }
                    h2 id="instances" { "In which GitLab?" }
                    ul aria-labelledby="instances" {
                        @for link in links {
                            @let address = link.instance_url.as_str();
                            @let name = address.split_once("://").map_or(address, |(_, name)| name);
                            li {
                                a href={ (public.base_path) "/branches/new?" (issue.query(Some(link.id))) }
                                    autofocus[last == Some(link.id)] {
                                    (name)
                                    @if last == Some(link.id) {
                                        span class="last" { "last used" }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    };
    let policy = public.pages.policy(&Policy {
        styles: &STYLE_SOURCE,
        ..Policy::default()
    })?;
    with_policy(typed(StatusCode::OK, HTML, page.into_string())?, policy)
}

/// Ours among the cookies, if it is one.
fn last_choice(headers: &HeaderMap) -> Option<LinkId> {
    cookie(headers, COOKIE).and_then(LinkId::parse)
}
