//! `POST /api/v1/doctor`: what ails an instance, or the relay.

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use serde::Deserialize;

use super::AdminParts;
use crate::{
    doctor::{Depth, LINKS_TOLD},
    domain::InstanceUrl,
    exchange::{Arrival, json, parse_json, read_small_body},
    reject::Reject,
};

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wish {
    /// The relay itself, if there is none.
    #[serde(default)]
    instance_url: Option<String>,
}

pub(super) async fn look(
    admin: &AdminParts,
    request: Request<Incoming>,
    arrival: &Arrival,
) -> Result<Response<Full<Bytes>>, Reject> {
    let (head, body) = request.into_parts();
    let body = read_small_body(body, &head.headers, &admin.limits).await?;
    let wish: Wish = if body.is_empty() {
        Wish::default()
    } else {
        parse_json(&body)?
    };
    let report = match wish.instance_url {
        Some(url) => {
            let instance = InstanceUrl::from_typed(&url)?;
            let mut links = admin.doctor.links_to(&instance);
            links.truncate(LINKS_TOLD);
            admin
                .doctor
                .instance(&instance, &links, Depth::Whole, arrival.now)
                .await
        }
        None => admin.doctor.ourselves(arrival.now).await,
    };
    json(StatusCode::OK, &report)
}
