//! `GET /api/v1/trace/{id}`: what happened to one request or delivery.

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use serde_json::Value;
use uuid::Uuid;

use super::AdminParts;
use crate::{
    exchange::json,
    reject::{Reject, RejectKind},
};

pub(super) fn show(admin: &AdminParts, id: &str) -> Result<Response<Full<Bytes>>, Reject> {
    let id = Uuid::try_parse(id).map_err(|_| {
        Reject::new(
            RejectKind::Malformed,
            "trace_id_malformed",
            "an id has 32 hexadecimal digits",
            "take it from the log, an answer's x-request-id, last_error of a link, or `jira-connect-proxy status`",
        )
    })?;
    match admin.traces.find(id) {
        Some(found) => json(StatusCode::OK, &found),
        None => Err(unknown(&admin.traces.reach())),
    }
}

fn unknown(reach: &Value) -> Reject {
    let since = |shelf: &str| {
        reach
            .get(shelf)
            .and_then(Value::as_str)
            .unwrap_or("-")
            .to_owned()
    };
    Reject::new(
        RejectKind::NotFound,
        "trace_unknown",
        "nothing of that id is remembered: it is too long ago, is not over yet, was before this start of the relay, or never was here",
        format!(
            "what went well is remembered since {}, failures and deliveries since {}, strangers since {}; the log may reach further back, and telemetry.trace_max_bytes is the room for it",
            since("routine"),
            since("notable"),
            since("strangers"),
        ),
    )
}
