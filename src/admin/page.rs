//! `POST /api/v1/installations/{client_key}/page`: an address that opens the page outside Jira, once.

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use jiff::Timestamp;
use serde::Serialize;

use super::{AdminParts, installations};
use crate::{
    domain::AuditEntry,
    exchange::{Arrival, json},
    linking::LinkRefusal,
    reject::Reject,
};

#[derive(Serialize)]
struct Invitation<'a> {
    url: &'a str,
    expires_at: Timestamp,
}

pub(super) async fn invite(
    admin: &AdminParts,
    client_key: &str,
    arrival: &Arrival,
) -> Result<Response<Full<Bytes>>, Reject> {
    let installation = installations::find(admin, client_key, arrival)?;
    let client_key = installation.client_key.clone();
    if !installation.is_installed() {
        return Err(LinkRefusal::Uninstalled(client_key).into());
    }
    let invitation = admin.sessions.invite(client_key.clone(), arrival.now);
    let entry = AuditEntry {
        client_key: Some(client_key),
        note: Some(format!(
            "invitation {}, good until {}",
            invitation.number, invitation.expires_at
        )),
        ..AdminParts::audit_entry(arrival, "page_invitation_created")
    };
    admin.store.record(entry).await?;
    let url = format!(
        "{}/page/open?ticket={}",
        admin.linker.app_base_url,
        invitation.ticket.expose()
    );
    let answer = Invitation {
        url: &url,
        expires_at: invitation.expires_at,
    };
    json(StatusCode::CREATED, &answer)
}
