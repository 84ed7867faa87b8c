//! `/api/v1/spool`: what waits for Jira, and why.

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;

use super::{AdminParts, limit};
use crate::{
    exchange::{Arrival, json},
    reject::Reject,
};

/// Writes in one answer.
const WRITES_DEFAULT: usize = 100;
const WRITES_MAX: usize = 10_000;

pub(super) fn show(
    admin: &AdminParts,
    query: Option<&str>,
    arrival: &Arrival,
) -> Result<Response<Full<Bytes>>, Reject> {
    let most = limit(query, WRITES_DEFAULT, WRITES_MAX)?;
    json(StatusCode::OK, &admin.spool.view(arrival.now, most))
}

/// Ends all pauses; answers what waited when it was asked.
pub(super) fn retry(
    admin: &AdminParts,
    arrival: &Arrival,
) -> Result<Response<Full<Bytes>>, Reject> {
    let view = admin.spool.view(arrival.now, WRITES_DEFAULT);
    admin.spool.retry_now();
    json(StatusCode::ACCEPTED, &view)
}
