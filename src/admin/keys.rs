//! `GET /api/v1/keys`, `POST /api/v1/keys/rotate`.

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use jiff::Timestamp;
use serde::Serialize;

use super::AdminParts;
use crate::{
    domain::SigningKeyRecord,
    exchange::{Arrival, json},
    jwt::signer::RETIRED_KEY_SERVED_FOR,
    reject::Reject,
};

/// A signing key as operators see it. Never the private half.
#[derive(Serialize)]
struct View<'a> {
    kid: &'a str,
    state: &'static str,
    created_at: Timestamp,
    retired_at: Option<Timestamp>,
    served_until: Option<Timestamp>,
}

pub(super) fn list(admin: &AdminParts) -> Result<Response<Full<Bytes>>, Reject> {
    let mut keys = admin.store.signing_keys();
    keys.sort_by_key(|key| std::cmp::Reverse(key.created_at));
    let views: Vec<View<'_>> = keys.iter().map(|key| view(key)).collect();
    json(StatusCode::OK, &views)
}

pub(super) async fn rotate(
    admin: &AdminParts,
    arrival: &Arrival,
) -> Result<Response<Full<Bytes>>, Reject> {
    let audit = AdminParts::audit_entry(arrival, "signing_key_rotated");
    let kid = admin.rotation.rotate(audit, arrival.now).await?;
    let keys = admin.store.signing_keys();
    let new = keys
        .iter()
        .find(|key| key.kid == kid)
        .ok_or_else(|| Reject::internal("the new key is not in the store"))?;
    json(StatusCode::CREATED, &view(new))
}

fn view(key: &SigningKeyRecord) -> View<'_> {
    View {
        kid: key.kid.as_str(),
        state: if key.retired_at.is_some() {
            "retired"
        } else {
            "active"
        },
        created_at: key.created_at,
        retired_at: key.retired_at,
        served_until: key
            .retired_at
            .and_then(|at| at.checked_add(RETIRED_KEY_SERVED_FOR).ok()),
    }
}
