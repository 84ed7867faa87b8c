//! `POST /api/v1/installations/{client_key}/move`: another way to a site, with everything that hangs on it.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{AdminParts, installations};
use crate::{
    domain::{Family, Installation, JiraCall, UpstreamKind},
    exchange::{Arrival, json, parse_json, read_small_body},
    reject::{Reject, RejectKind},
    sites::{self, MoveRefusal, Moved},
    store::TransactError,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wish {
    to: UpstreamKind,
    #[serde(default)]
    dry_run: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Join {
    /// The record that stays.
    into: String,
}

/// What was done, or would be, and what else there is to know.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    moved: Moved,
    /// Writes that wait for Jira, and go the new way.
    waiting_writes: usize,
    notes: Vec<&'static str>,
}

pub(super) async fn move_to(
    admin: &AdminParts,
    client_key: &str,
    request: Request<Incoming>,
    arrival: &Arrival,
) -> Result<Response<Full<Bytes>>, Reject> {
    let known = installations::find(admin, client_key, arrival)?;
    let client_key = known.client_key.clone();
    let (head, body) = request.into_parts();
    let Wish { to, dry_run } =
        parse_json(&read_small_body(body, &head.headers, &admin.limits).await?)?;
    let now = arrival.now;
    if let Ok((next, _)) = known.move_to(to, now) {
        works(admin, next, now).await?;
    }
    let waiting = admin.store.spooled();
    let waiting = waiting
        .iter()
        .filter(|write| write.client_key == client_key);
    let waiting_writes = waiting.count();
    let audit = AdminParts::audit_entry(arrival, "installation_moved");
    let key = client_key.clone();
    let moved = admin
        .store
        .transact(move |transaction| sites::move_to(transaction, &key, to, !dry_run, audit, now))
        .await;
    let moved = match moved {
        Ok(moved) => {
            admin.spool.moved(&client_key);
            moved
        }
        Err(TransactError::Refused(MoveRefusal::Unchanged(would))) => *would,
        Err(error) => return Err(error.into()),
    };
    let notes = notes(&moved, waiting_writes);
    let report = Report {
        moved,
        waiting_writes,
        notes,
    };
    json(StatusCode::OK, &report)
}

/// `POST /api/v1/installations/{client_key}/join`: the ways of this record stand by with the other, and it goes.
pub(super) async fn join(
    admin: &AdminParts,
    client_key: &str,
    request: Request<Incoming>,
    arrival: &Arrival,
) -> Result<Response<Full<Bytes>>, Reject> {
    let goes = installations::find(admin, client_key, arrival)?
        .client_key
        .clone();
    let (head, body) = request.into_parts();
    let wish: Join = parse_json(&read_small_body(body, &head.headers, &admin.limits).await?)?;
    let stays = installations::find(admin, &wish.into, arrival)?
        .client_key
        .clone();
    // Nothing comes any more when it has no links, and what came before must get through first.
    if admin
        .store
        .spooled()
        .iter()
        .any(|write| write.client_key == goes)
    {
        return Err(Reject::new(
            RejectKind::Conflict,
            "writes_wait",
            "writes of the record that would go wait for Jira",
            "GET /api/v1/spool says why; try again when they got through",
        ));
    }
    let audit = AdminParts::audit_entry(arrival, "installations_joined");
    let (one, other) = (goes, stays.clone());
    admin
        .store
        .transact(move |transaction| sites::merge(transaction, &one, &other, audit))
        .await?;
    installations::show(admin, stays, StatusCode::OK)
}

/// A way that does not work now is no way to move to.
async fn works(admin: &AdminParts, next: Installation, now: Timestamp) -> Result<(), Reject> {
    let to = next.upstream.kind().as_str();
    let call = JiraCall::Probe(Family::Devinfo);
    let answer = admin
        .forwarder
        .call(&Arc::new(next), &call, Bytes::new(), now)
        .await;
    let cause = match answer {
        Ok(answer) if answer.status().is_success() => return Ok(()),
        Ok(answer) => format!("Jira answered {}", answer.status()),
        Err(error) => error.to_string(),
    };
    Err(Reject::new(
        RejectKind::Conflict,
        "upstream_does_not_work",
        format!("the site can't be reached through {to} now: {cause}"),
        "nothing was changed; try again when that is mended",
    ))
}

/// Jira keeps what is sent by who sent it (Atlassian's API reference on uniqueness: the scope is the provider).
fn notes(moved: &Moved, waiting_writes: usize) -> Vec<&'static str> {
    let mut notes = vec![
        "what Jira has taken so far stays there as it is, and is not sent again: it goes when its app, or its credentials, are removed there",
        "until then Jira shows an entity that is sent again the new way beside the one that was sent before",
    ];
    if waiting_writes > 0 {
        notes.push("among what waits there may be writes that Jira took and whose answer was lost: they go the new way too");
    }
    match moved.to {
        UpstreamKind::Connect => {}
        UpstreamKind::Forge => notes.push("Jira can't search repositories through Forge"),
        UpstreamKind::Oauth => notes.push(
            "there is no page in Jira: `jira-connect-proxy page` opens it outside; Jira can't search repositories or start branches",
        ),
    }
    if !moved.no_longer_direct.is_empty() {
        notes.push("links that were direct are told a secret of their own and the relay's address");
    }
    if moved.from == UpstreamKind::Connect && moved.can_go_back {
        notes.push(
            "the Connect app stays installed: uninstall it in Jira when the new way has proven itself",
        );
    }
    notes
}
