//! `GET /api/v1/status`: how the relay itself is.

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use jiff::Timestamp;
use serde::Serialize;

use super::AdminParts;
use crate::{
    exchange::{Arrival, json},
    reject::Reject,
};

/// What does not change while the relay runs.
#[derive(Clone, Debug)]
pub struct Standing {
    /// When it was started.
    pub started_at: Timestamp,
    /// As others reach it.
    pub public_url: String,
    /// Where the public listener is bound.
    pub public_listen: String,
    /// Where this listener is bound.
    pub admin_listen: String,
    /// Folder of the store.
    pub store_path: String,
}

#[derive(Serialize)]
struct View<'a> {
    version: &'static str,
    started_at: Timestamp,
    ready: bool,
    /// Why it is not.
    not_ready: Option<String>,
    public: Listener<'a>,
    admin: Listener<'a>,
    store: Store<'a>,
    /// What went wrong lately; `trace` takes the ids.
    last_errors: Vec<serde_json::Value>,
}

#[derive(Serialize)]
struct Listener<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<&'a str>,
    listen: &'a str,
    connections: i64,
}

#[derive(Serialize)]
struct Store<'a> {
    path: &'a str,
    writable: bool,
}

pub(super) async fn show(
    admin: &AdminParts,
    arrival: &Arrival,
) -> Result<Response<Full<Bytes>>, Reject> {
    let standing = &admin.standing;
    let not_ready = admin.check_ready(arrival).await.err();
    let connections = |listener: &str| {
        let connections = &admin.metrics.connections;
        connections.with_label_values(&[listener]).get()
    };
    let view = View {
        version: env!("CARGO_PKG_VERSION"),
        started_at: standing.started_at,
        ready: not_ready.is_none(),
        not_ready: not_ready.map(|reject| format!("{}; {}", reject.message, reject.hint)),
        public: Listener {
            url: Some(&standing.public_url),
            listen: &standing.public_listen,
            connections: connections("public"),
        },
        admin: Listener {
            url: None,
            listen: &standing.admin_listen,
            connections: connections("admin"),
        },
        store: Store {
            path: &standing.store_path,
            writable: admin.metrics.store_writable.get() == 1,
        },
        last_errors: admin.traces.faults(),
    };
    json(StatusCode::OK, &view)
}
