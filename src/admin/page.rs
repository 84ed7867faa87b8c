//! `POST /api/v1/installations/{client_key}/page`: an address that opens the page outside Jira, once.

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use jiff::Timestamp;
use percent_encoding::percent_decode_str;
use serde::Serialize;

use super::AdminParts;
use crate::{
    domain::{AuditEntry, ClientKey},
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
    let client_key = percent_decode_str(client_key).decode_utf8().ok();
    let client_key = client_key.and_then(|text| ClientKey::parse(&text).ok());
    let client_key = client_key.ok_or_else(|| {
        let what = "such installation: that is no client key";
        Reject {
            hint: "GET /api/v1/installations lists the client keys".to_owned(),
            ..Reject::not_found(what)
        }
    })?;
    let _ = arrival.notes.client_key.set(client_key.clone());
    match admin.store.installation(&client_key) {
        None => return Err(LinkRefusal::UnknownInstallation(client_key).into()),
        Some(installation) if !installation.is_installed() => {
            return Err(LinkRefusal::Uninstalled(client_key).into());
        }
        Some(_) => {}
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
