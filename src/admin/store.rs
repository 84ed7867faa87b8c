//! `GET /api/v1/backup` and `POST /api/v1/store/reseal`: what is done with the store as a whole.

use bytes::Bytes;
use futures_util::stream;
use http::{Response, StatusCode, header};
use http_body_util::Full;

use super::AdminParts;
use crate::{
    body::Body,
    exchange::{Arrival, json},
    reject::Reject,
    store::BackupError,
};

/// Streams a backup. One that breaks off is no backup, and whoever reads it can tell.
pub(super) async fn backup(
    admin: &AdminParts,
    arrival: &Arrival,
) -> Result<Response<Body>, Reject> {
    let entry = AdminParts::audit_entry(arrival, "backup_taken");
    admin.store.record(entry).await?;
    let backup = admin.store.backup(arrival.now).await?;
    let parts = stream::try_unfold(backup, |mut backup| async move {
        match backup.next().await {
            Ok(part) => Ok(part.map(|part| (part, backup))),
            Err(error) => {
                tracing::error!("a backup broke off: {error}");
                Err(error.into())
            }
        }
    });
    let mut response = Response::new(Body::Made(Box::pin(parts)));
    let media_type = header::HeaderValue::from_static("application/octet-stream");
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, media_type);
    Ok(response)
}

/// One page of a new store key; the caller asks on until it is finished.
pub(super) async fn reseal(
    admin: &AdminParts,
    arrival: &Arrival,
) -> Result<Response<Full<Bytes>>, Reject> {
    let audit = AdminParts::audit_entry(arrival, "store_resealed");
    let progress = admin.store.reseal(audit).await?;
    json(StatusCode::OK, &progress)
}

impl From<BackupError> for Reject {
    fn from(error: BackupError) -> Self {
        match error {
            BackupError::Store(error) => error.into(),
            error => Self::internal(error),
        }
    }
}
