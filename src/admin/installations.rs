//! `GET /api/v1/installations`.

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use jiff::Timestamp;
use serde::Serialize;

use super::AdminParts;
use crate::{
    clock,
    domain::{Installation, Upstream, UpstreamKind},
    exchange::json,
    forge_sites::standing,
    gitlab::probe::Finding,
    reject::Reject,
};

/// An installation as operators see it. Never a secret.
#[derive(Serialize)]
struct View<'a> {
    client_key: &'a str,
    base_url: &'a str,
    display_url: Option<&'a str>,
    state: &'static str,
    installed_at: Timestamp,
    uninstalled_at: Option<Timestamp>,
    upstream: UpstreamKind,
    standby: Vec<UpstreamKind>,
    secret_generation: Option<u64>,
    links: usize,
    /// What its Forge app told last.
    forge: Option<ForgeView<'a>>,
}

#[derive(Serialize)]
struct ForgeView<'a> {
    installation_id: &'a str,
    app_version: Option<&'a str>,
    token_expires_at: Option<Timestamp>,
    told_at: Timestamp,
    /// How the way is, if it is the one in use.
    standing: Option<Finding>,
}

pub(super) fn list(admin: &AdminParts) -> Result<Response<Full<Bytes>>, Reject> {
    let mut installations = admin.store.installations();
    installations.sort_by_key(|installation| installation.installed_at);
    let views: Vec<View<'_>> = installations
        .iter()
        .map(|installation| view(admin, installation))
        .collect();
    json(StatusCode::OK, &views)
}

fn view<'a>(admin: &AdminParts, installation: &'a Installation) -> View<'a> {
    View {
        client_key: installation.client_key.as_str(),
        base_url: installation.base_url.as_str(),
        display_url: installation.display_url.as_deref(),
        state: installation.state.as_str(),
        installed_at: installation.installed_at,
        uninstalled_at: installation.uninstalled_at,
        upstream: installation.upstream.kind(),
        standby: installation.standby.iter().map(Upstream::kind).collect(),
        secret_generation: installation
            .connect()
            .map(|connect| connect.secret_generation),
        links: admin.store.links_of(&installation.client_key).len(),
        forge: installation.forge().map(|forge| ForgeView {
            installation_id: forge.installation_id.as_str(),
            app_version: forge.app_version.as_deref(),
            token_expires_at: forge.system_token.as_ref().map(|token| token.expires_at),
            told_at: forge.told_at,
            standing: standing(installation, clock::now()),
        }),
    }
}
