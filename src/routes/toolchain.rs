//! `workspaces/search`, `repositories/search`, `repositories/associate`: Jira asks, the linked instances answer.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, Request, Response, StatusCode, header, request::Parts};
use http_body_util::Full;
use hyper::body::Incoming;
use serde::Deserialize;
use tokio::time::Instant;

use super::{
    Public,
    caller::{Bound, Caller, caller, target},
};
use crate::{
    domain::{Installation, LifecycleEventKind, Link},
    exchange::{Arrival, json, parse_json, read_small_body},
    gitlab::ask::AskError,
    jira::toolchain::{self, Slice},
    jwt::Target,
    reject::{Reject, RejectKind},
};

/// Which groups there are, of all instances together.
pub(super) async fn workspaces(
    public: &Public,
    request: Request<Incoming>,
    arrival: &Arrival,
) -> Result<Response<Full<Bytes>>, Reject> {
    let (head, _) = request.into_parts();
    let (target, asking) = asked(public, &head, None, arrival, Bound::Request)?;
    let (search, deadline) = (
        target.query("searchQuery").unwrap_or_default(),
        public.search_deadline(),
    );
    let lists = join_all(asking.links.iter().map(|link| async {
        let list = public
            .asker
            .workspaces(link, &asking.installation, search, deadline)
            .await;
        toolchain::put_all_in(link, list)
    }));
    let slice = Slice::of(target.query("page"), target.query("limit").or(Some("100")));
    json(
        StatusCode::OK,
        &toolchain::workspaces(toolchain::merged(lists.await, slice)),
    )
}

/// One page of the repositories of all instances together.
pub(super) async fn repositories(
    public: &Public,
    request: Request<Incoming>,
    arrival: &Arrival,
) -> Result<Response<Full<Bytes>>, Reject> {
    let (head, _) = request.into_parts();
    let (target, asking) = asked(public, &head, None, arrival, Bound::Request)?;
    let (search, deadline) = (
        target.query("searchQuery").unwrap_or_default(),
        public.search_deadline(),
    );
    let slice = Slice::of(target.query("page"), target.query("limit"));
    let lists = join_all(asking.links.iter().map(|link| async {
        let found =
            public
                .asker
                .repositories(link, &asking.installation, search, slice.end(), deadline);
        toolchain::put_all_in(link, found.await)
    }));
    json(
        StatusCode::OK,
        &toolchain::repositories(toolchain::merged(lists.await, slice)),
    )
}

/// A Jira user picked a repository.
pub(super) async fn associate(
    public: &Public,
    request: Request<Incoming>,
    arrival: &Arrival,
) -> Result<Response<Full<Bytes>>, Reject> {
    #[derive(Deserialize)]
    struct Wanted {
        id: Id,
    }

    /// Text, as the relay gives it, or the number that GitLab would.
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Id {
        Text(String),
        Number(u64),
    }

    let (head, body) = request.into_parts();
    let body = read_small_body(body, &head.headers, &public.limits).await?;
    let form = is_form(&head.headers).then(|| String::from_utf8_lossy(&body).into_owned());
    let (target, asking) = asked(public, &head, form.as_deref(), arrival, Bound::Request)?;
    let id = match target.query("id") {
        Some(id) => id.to_owned(),
        None => match parse_json::<Wanted>(&body)?.id {
            Id::Text(id) => id,
            Id::Number(id) => id.to_string(),
        },
    };
    let unknown = || Reject::not_found("repository of that id in a linked instance");
    let (link, own_id) = toolchain::owner(&asking.links, &id).ok_or_else(unknown)?;
    arrival.notes.link(link);
    let asked =
        public
            .asker
            .associate(link, &asking.installation, own_id, public.search_deadline());
    match asked.await {
        Ok(repository) => {
            let repository = toolchain::put_in(link, repository).ok_or_else(unknown)?;
            json(StatusCode::OK, &repository)
        }
        Err(AskError::Unknown) => Err(unknown()),
        Err(error) => Err(Reject {
            internal: Some(format!("{}: {error}", link.instance_url)),
            ..Reject::new(
                RejectKind::Unavailable,
                "instance_unavailable",
                "the GitLab that has this repository did not answer",
                "try again; the operator of this relay can see why in its log",
            )
        }),
    }
}

/// A site of Jira's that asks, and the instances that can be asked for it.
pub(super) struct Asking {
    pub(super) installation: Arc<Installation>,
    /// In a lasting order.
    pub(super) links: Vec<Arc<Link>>,
}

/// What is asked, and of whom, by Jira's token.
pub(super) fn asked(
    public: &Public,
    head: &Parts,
    form: Option<&str>,
    arrival: &Arrival,
    bound: Bound,
) -> Result<(Target, Asking), Reject> {
    let target = target(public, head, form)?;
    let Caller { installation, .. } = caller(public, head, &target, None, arrival, bound)?;
    let mut links = public.store.links_of(&installation.client_key);
    // Who never confirmed anything does not know us.
    let told = |link: &Link| {
        link.acknowledged
            .is_some_and(|goal| goal.event == LifecycleEventKind::Installed)
    };
    links.retain(|link| link.wants_installed() && told(link));
    links.sort_by_key(|link| (link.created_at, link.id));
    Ok((
        target,
        Asking {
            installation,
            links,
        },
    ))
}

/// Whether the body is a form's.
pub(super) fn is_form(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.starts_with("application/x-www-form-urlencoded"))
}

impl Public {
    fn search_deadline(&self) -> Instant {
        Instant::now() + self.search_patience
    }
}
