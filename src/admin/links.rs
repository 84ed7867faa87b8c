//! `/api/v1/links`: which instances an installation is linked to, and how that goes.

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{AdminParts, parameter};
use crate::{
    domain::{AuditEntry, ClientKey, InstanceUrl, Link, LinkId, LinkMode, link::DeliveryProblem},
    exchange::{Arrival, json, parse_json, read_small_body},
    linking::{self, LinkRefusal, NewLink},
    reject::{Reject, RejectKind},
    rounds::Health,
    store::Transaction,
    trace,
};

/// A link as operators see it. Never a secret.
#[derive(Serialize)]
struct View<'a> {
    id: LinkId,
    client_key: &'a str,
    instance_url: &'a str,
    mode: LinkMode,
    namespace: &'a str,
    keep_ids: bool,
    state: &'static str,
    desired: &'static str,
    acknowledged: Option<&'static str>,
    generation: u64,
    acknowledged_generation: Option<u64>,
    attempts: u32,
    next_attempt_at: Option<Timestamp>,
    last_error: Option<&'a DeliveryProblem>,
    created_at: Timestamp,
    last_seen_at: Option<Timestamp>,
    gitlab_version: Option<&'a str>,
    purge: Option<PurgeView<'a>>,
    /// How the instance was when it was last looked at.
    health: Option<Health>,
}

/// How far the deletion of a link's data is.
#[derive(Serialize)]
struct PurgeView<'a> {
    /// `pending`, `done` or `abandoned`.
    state: &'static str,
    requested_at: Timestamp,
    done_at: Option<Timestamp>,
    last_error: Option<&'a DeliveryProblem>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewLinkBody {
    client_key: String,
    instance_url: String,
    #[serde(default)]
    mode: LinkMode,
    #[serde(default)]
    keep_ids: bool,
}

pub(super) fn list(
    admin: &AdminParts,
    query: Option<&str>,
) -> Result<Response<Full<Bytes>>, Reject> {
    let mut links = match parameter(query, "client_key") {
        None => admin.store.links(),
        Some(text) => ClientKey::parse(&text)
            .map(|client_key| admin.store.links_of(&client_key))
            .unwrap_or_default(),
    };
    links.sort_by_key(|link| (link.created_at, link.id));
    let views: Vec<View<'_>> = links.iter().map(|link| view(admin, link)).collect();
    json(StatusCode::OK, &views)
}

pub(super) fn show(admin: &AdminParts, id: &str) -> Result<Response<Full<Bytes>>, Reject> {
    let id = parse_id(id)?;
    let link = admin.store.link(id).ok_or(LinkRefusal::UnknownLink(id))?;
    json(StatusCode::OK, &view(admin, &link))
}

pub(super) async fn create(
    admin: &AdminParts,
    request: Request<Incoming>,
    arrival: &Arrival,
) -> Result<Response<Full<Bytes>>, Reject> {
    let (head, body) = request.into_parts();
    let body = read_small_body(body, &head.headers, &admin.limits).await?;
    let body: NewLinkBody = parse_json(&body)?;
    let client_key = ClientKey::parse(&body.client_key).map_err(|error| {
        Reject::new(
            RejectKind::Malformed,
            "client_key_malformed",
            error.to_string(),
            "GET /api/v1/installations lists the client keys",
        )
    })?;
    let instance_url = InstanceUrl::parse(&body.instance_url)?;
    let wish = NewLink {
        client_key,
        instance_url,
        mode: body.mode,
        keep_ids: body.keep_ids,
    };
    let audit = AdminParts::audit_entry(arrival, "link_created");
    let link = admin.linker.create(wish, audit, arrival.now).await?;
    arrival.notes.link(&link);
    let link = admin.linker.outcome(link).await;
    json(StatusCode::CREATED, &view(admin, &link))
}

/// `?purge=true` also deletes what the link wrote from Jira: that is as durable as the removal, and the record
/// stays until it is done. `?purge=abandon` gives such a deletion up.
pub(super) async fn remove(
    admin: &AdminParts,
    id: &str,
    query: Option<&str>,
    arrival: &Arrival,
) -> Result<Response<Full<Bytes>>, Reject> {
    let link = match parameter(query, "purge").as_deref() {
        None | Some("false") => {
            let action = "link_removal_requested";
            change(admin, id, arrival, action, linking::remove).await?
        }
        Some("true" | "") => {
            change(admin, id, arrival, "link_purge_requested", linking::purge).await?
        }
        Some("abandon") => {
            let action = "link_purge_abandoned";
            change(admin, id, arrival, action, linking::abandon_purge).await?
        }
        Some(_) => {
            return Err(Reject::new(
                RejectKind::Malformed,
                "purge_malformed",
                "purge is true, false or abandon",
                "leave it out to keep the link's data in Jira",
            ));
        }
    };
    trace::wanted(&link);
    json(StatusCode::ACCEPTED, &view(admin, &link))
}

pub(super) async fn resend(
    admin: &AdminParts,
    id: &str,
    arrival: &Arrival,
) -> Result<Response<Full<Bytes>>, Reject> {
    let action = "link_resend_requested";
    let link = change(admin, id, arrival, action, linking::resend).await?;
    let link = admin.linker.outcome(link).await;
    json(StatusCode::OK, &view(admin, &link))
}

/// Applies one of the rules of `linking` to a link that is there.
async fn change(
    admin: &AdminParts,
    id: &str,
    arrival: &Arrival,
    action: &str,
    rule: fn(&mut Transaction<'_>, LinkId, AuditEntry, Timestamp) -> Result<Link, LinkRefusal>,
) -> Result<Link, Reject> {
    let id = parse_id(id)?;
    let _ = arrival.notes.link.set(id);
    let audit = AdminParts::audit_entry(arrival, action);
    let now = arrival.now;
    admin
        .linker
        .change(move |transaction| rule(transaction, id, audit, now))
        .await
}

fn parse_id(text: &str) -> Result<LinkId, Reject> {
    LinkId::parse(text).ok_or_else(|| {
        Reject::new(
            RejectKind::NotFound,
            "link_unknown",
            "that is no link's id",
            "GET /api/v1/links lists them",
        )
    })
}

fn view<'a>(admin: &AdminParts, link: &'a Link) -> View<'a> {
    View {
        id: link.id,
        client_key: link.client_key.as_str(),
        instance_url: link.instance_url.as_str(),
        mode: link.mode,
        namespace: link.namespace.as_str(),
        keep_ids: link.keep_ids,
        state: link.state().as_str(),
        desired: link.desired.event.as_str(),
        acknowledged: link.acknowledged.map(|goal| goal.event.as_str()),
        generation: link.desired.generation,
        acknowledged_generation: link.acknowledged.map(|goal| goal.generation),
        attempts: link.attempts,
        next_attempt_at: (!link.is_settled()).then_some(link.next_attempt_at),
        last_error: link.last_error.as_ref(),
        created_at: link.created_at,
        last_seen_at: link.last_seen_at,
        gitlab_version: link.gitlab_version.as_deref(),
        purge: link.purge.as_ref().map(|purge| PurgeView {
            state: purge.state(),
            requested_at: purge.requested_at,
            done_at: purge.done_at,
            last_error: purge.last_error.as_ref(),
        }),
        health: admin.rounds.health(link),
    }
}
