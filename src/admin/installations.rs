//! `/api/v1/installations`: the sites, those that are reached with OAuth client credentials, and how these come and go.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{AdminParts, parameter};
use crate::{
    clock,
    domain::{
        AuditEntry, ClientKey, Credential, Installation, LinkId, Upstream, UpstreamKind,
        installation::{InstallationChange, SiteAddress},
        origin::JiraBaseUrlError,
        upstream::{ClientIdError, Oauth},
    },
    exchange::{Arrival, json, parse_json, read_small_body},
    forge_sites::{self, Standing},
    jira::{credentials, tenant},
    linking::{self, LinkRefusal},
    reject::{Reject, RejectKind},
    sites,
};

/// A site tells its id at once or not at all, and a token and what it opens must come in the same request's time.
const TENANT_PATIENCE: Duration = Duration::from_secs(5);

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
    #[serde(skip_serializing_if = "Option::is_none")]
    forge: Option<ForgeView<'a>>,
    /// Why nothing reaches Jira, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<Problem>,
    /// What an operator may want to do next.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

#[derive(Serialize)]
struct ForgeView<'a> {
    installation_id: &'a str,
    app_version: Option<&'a str>,
    token_expires_at: Option<Timestamp>,
    told_at: Timestamp,
}

/// What is wrong with the way to a site.
#[derive(Serialize)]
struct Problem {
    code: &'static str,
    message: String,
    hint: String,
    since: Timestamp,
}

/// Credentials that a Jira admin made.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewInstallation {
    #[serde(rename = "upstream")]
    _upstream: OnlyOauth,
    site_url: String,
    client_id: String,
    client_secret: ClientSecret,
}

/// The others come by themselves: an app is installed in Jira.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum OnlyOauth {
    Oauth,
}

/// Not yet known to be one; wiped all the same.
#[derive(Deserialize)]
#[serde(transparent)]
struct ClientSecret(Zeroizing<String>);

/// Why a site is not added or removed.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    /// It is no Jira site of ours.
    #[error(transparent)]
    Site(#[from] JiraBaseUrlError),
    /// That is no client id.
    #[error(transparent)]
    ClientId(#[from] ClientIdError),
    /// That is no secret. It is not repeated.
    #[error("the client secret is empty, has spaces in it, or is very long")]
    ClientSecret,
    /// The word is unknown.
    #[error("upstream is connect, forge or oauth")]
    UpstreamMalformed,
    /// The site has no such way.
    #[error("the site has no way through {}", .0.as_str())]
    NoSuchWay(UpstreamKind),
    /// Jira has an app there.
    #[error("the site is reached through an app that is installed in Jira ({})", .in_use.as_str())]
    HasApp {
        /// Which site.
        client_key: ClientKey,
        /// Whose app.
        in_use: UpstreamKind,
    },
    /// The site can go on another way.
    #[error("the site can be moved to what stands by ({})", .others.iter().map(|way| way.as_str()).collect::<Vec<_>>().join(", "))]
    CanMove {
        /// Which site.
        client_key: ClientKey,
        /// The way that is in use.
        in_use: UpstreamKind,
        /// What stands by.
        others: Vec<UpstreamKind>,
    },
    /// The word is unknown.
    #[error("force is true or false")]
    ForceMalformed,
    /// A deletion needs the credentials yet.
    #[error("the data of the link {0} is being deleted from Jira, which needs the credentials")]
    BeingPurged(LinkId),
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

/// Adds a site that is reached with credentials, or gives it new ones. They are tried out first.
pub(super) async fn add(
    admin: &AdminParts,
    request: Request<Incoming>,
    arrival: &Arrival,
) -> Result<Response<Full<Bytes>>, Reject> {
    let (head, body) = request.into_parts();
    let body = read_small_body(body, &head.headers, &admin.limits).await?;
    let wish: NewInstallation = parse_json(&body)?;
    let base_url = admin.sites.parse(&wish.site_url).map_err(Refusal::from)?;
    let client_secret = Credential::parse(wish.client_secret.0.trim());
    let client_secret = client_secret.map_err(|_| Refusal::ClientSecret)?;
    let client = &admin.linker.client;
    let patience = admin.forwarder.timeout().min(TENANT_PATIENCE);
    let cloud_id = tenant::cloud_id(client, &admin.sites, &base_url, patience).await?;
    let oauth = Oauth::new(wish.client_id, client_secret, cloud_id).map_err(Refusal::from)?;
    credentials::check(&admin.forwarder, &oauth, arrival.now).await?;

    let known = admin.store.installations();
    let known = known.iter().find(|known| known.base_url == base_url);
    let address = SiteAddress {
        // Only Jira tells an app.
        display_url: known.and_then(|known| known.display_url.clone()),
        base_url,
    };
    let audit = AuditEntry {
        note: Some(format!("OAuth credentials {}", oauth.client_id)),
        // The name of the change comes later.
        ..AdminParts::audit_entry(arrival, "unchanged")
    };
    let auto_link = admin.linker.policy.load().auto_link.clone();
    let (way, now) = (Upstream::Oauth(oauth), arrival.now);
    let joined = admin.store.transact(move |transaction| {
        let joined = sites::join(transaction, way, address, &auto_link, audit, now)?;
        // Refused, nothing of it is done.
        if joined.replaced.is_some()
            && let Some(id) = linking::being_purged(&transaction.links_of(&joined.client_key))
        {
            return Err(Refusal::BeingPurged(id).into());
        }
        Ok::<_, Reject>(joined)
    });
    let joined = joined.await?;
    let _ = arrival.notes.client_key.set(joined.client_key.clone());
    // What waited for good credentials waits no more.
    admin.spool.release(&joined.client_key);
    let status = match joined.change {
        InstallationChange::Created => StatusCode::CREATED,
        _ => StatusCode::OK,
    };
    let installation = admin.store.installation(&joined.client_key);
    let installation = installation.ok_or(LinkRefusal::UnknownInstallation(joined.client_key))?;
    let mut view = view(admin, &installation);
    if installation.upstream.kind() != UpstreamKind::Oauth {
        view.hint = Some(how_to_move(&installation));
    } else if let Some(client_id) = joined.replaced {
        view.hint = Some(format!(
            "what was sent with the credentials {client_id} stays in Jira as it is: only they can change or delete it, and what is sent again may be shown twice"
        ));
    }
    json(status, &view)
}

/// For a site that has an app, or had one.
fn how_to_move(installation: &Installation) -> String {
    let app = installation.upstream.kind().as_str();
    let so_far = if installation.is_installed() {
        format!("the site is reached through {app} as before")
    } else {
        format!("the app that opened the site ({app}) was uninstalled")
    };
    format!(
        "{so_far}, and the credentials stand by: `jira-connect-proxy installations move {} --to oauth` uses them",
        installation.client_key
    )
}

/// Leaves a site that is reached with credentials, or forgets a way that stands by. `?force=true` leaves any site, and
/// whatever stands by: an app may have gone without a word, and Connect says goodbye once.
pub(super) async fn remove(
    admin: &AdminParts,
    client_key: &str,
    query: Option<&str>,
    arrival: &Arrival,
) -> Result<Response<Full<Bytes>>, Reject> {
    let installation = find(admin, client_key, arrival)?;
    let client_key = installation.client_key.clone();
    let in_use = installation.upstream.kind();
    let kind = match parameter(query, "upstream") {
        None => in_use,
        Some(text) => UpstreamKind::parse(&text).ok_or(Refusal::UpstreamMalformed)?,
    };
    if !installation.ways().any(|way| way.kind() == kind) {
        return Err(Refusal::NoSuchWay(kind).into());
    }
    let force = match parameter(query, "force").as_deref() {
        None | Some("false") => false,
        Some("true" | "") => true,
        Some(_) => return Err(Refusal::ForceMalformed.into()),
    };
    let for_good = force && kind == in_use;
    if kind == in_use {
        let others: Vec<_> = installation.standby.iter().map(Upstream::kind).collect();
        if !force && !others.is_empty() {
            return Err(Refusal::CanMove {
                client_key,
                in_use,
                others,
            }
            .into());
        }
        // Forge says once that its app is gone, and that may have been lost.
        let is_left = installation.forge().is_some_and(|forge| {
            kind == UpstreamKind::Forge && forge_sites::is_silent(forge, arrival.now)
        });
        let has_app = kind != UpstreamKind::Oauth && installation.is_installed() && !is_left;
        if !force && has_app {
            return Err(Refusal::HasApp { client_key, in_use }.into());
        }
        if let Some(id) = linking::being_purged(&admin.store.links_of(&client_key)) {
            return Err(Refusal::BeingPurged(id).into());
        }
    }
    let how = if for_good { " (forced)" } else { "" };
    let audit = AuditEntry {
        note: Some(format!("{}{how}", kind.as_str())),
        ..AdminParts::audit_entry(arrival, "unchanged")
    };
    let now = arrival.now;
    let of = client_key.clone();
    admin
        .store
        .transact(move |transaction| {
            if for_good {
                return Ok(sites::leave_for_good(transaction, &of, audit, now)?);
            }
            sites::leave(transaction, &of, kind, audit, now).map(drop)
        })
        .await?;
    // What waited for a move waits no more.
    admin.spool.release(&client_key);
    show(admin, client_key, StatusCode::ACCEPTED)
}

/// One of them, after a change.
pub(super) fn show(
    admin: &AdminParts,
    client_key: ClientKey,
    status: StatusCode,
) -> Result<Response<Full<Bytes>>, Reject> {
    let installation = admin.store.installation(&client_key);
    let installation = installation.ok_or(LinkRefusal::UnknownInstallation(client_key))?;
    json(status, &view(admin, &installation))
}

/// The installation that an address names.
pub(super) fn find(
    admin: &AdminParts,
    client_key: &str,
    arrival: &Arrival,
) -> Result<Arc<Installation>, Reject> {
    let client_key = AdminParts::client_key(client_key)?;
    let _ = arrival.notes.client_key.set(client_key.clone());
    let installation = admin.store.installation(&client_key);
    Ok(installation.ok_or(LinkRefusal::UnknownInstallation(client_key))?)
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
        }),
        problem: problem(admin, installation),
        hint: None,
    }
}

fn problem(admin: &AdminParts, installation: &Installation) -> Option<Problem> {
    if !installation.is_installed() {
        let links = admin.store.links_of(&installation.client_key);
        // Left for good, nothing is waited for.
        let goes_on = links.is_empty() || links.iter().any(|link| link.wants_installed());
        return waits_for_a_move(installation).filter(|_| goes_on);
    }
    if let Some(standing) = forge_sites::standing(installation, clock::now()) {
        let Standing {
            code,
            message,
            hint,
            since,
            ..
        } = standing;
        return hint.map(|hint| Problem {
            code,
            message,
            hint: hint.to_owned(),
            since,
        });
    }
    let trouble = admin.forwarder.trouble(installation)?;
    Some(Problem {
        code: trouble.error.code(),
        message: trouble.error.to_string(),
        hint: trouble.error.hint().to_owned(),
        since: trouble.since,
    })
}

/// Nobody but an operator goes on with a site whose way is shut.
fn waits_for_a_move(installation: &Installation) -> Option<Problem> {
    let (key, way) = (&installation.client_key, installation.upstream.kind());
    let other = installation.standby.first()?.kind().as_str();
    Some(Problem {
        code: "move_awaited",
        message: format!(
            "the way through {} is shut, and {other} stands by: what instances send waits until the site is moved",
            way.as_str()
        ),
        hint: format!(
            "`jira-connect-proxy installations move {key} --to {other}` goes on that way; `jira-connect-proxy installations remove {key} --force` tells the instances that it is over"
        ),
        since: installation
            .uninstalled_at
            .unwrap_or(installation.installed_at),
    })
}

impl From<Refusal> for Reject {
    fn from(refusal: Refusal) -> Self {
        let (kind, code, hint) = match &refusal {
            Refusal::Site(JiraBaseUrlError::NotAllowed(_)) => (
                RejectKind::Forbidden,
                "site_not_allowed",
                "the operator can list the site in jira.extra_sites".to_owned(),
            ),
            Refusal::Site(JiraBaseUrlError::Unusable(_)) => (
                RejectKind::Malformed,
                "site_url_malformed",
                "give scheme and host alone, like https://acme.atlassian.net".to_owned(),
            ),
            Refusal::ClientId(_) => (
                RejectKind::Malformed,
                "client_id_malformed",
                "copy it from Jira: Settings > Apps > OAuth credentials".to_owned(),
            ),
            Refusal::ClientSecret => (
                RejectKind::Malformed,
                "client_secret_malformed",
                "copy it from Jira: Settings > Apps > OAuth credentials".to_owned(),
            ),
            Refusal::UpstreamMalformed => (
                RejectKind::Malformed,
                "upstream_malformed",
                "leave it out for the way that is in use".to_owned(),
            ),
            Refusal::NoSuchWay(_) => (
                RejectKind::NotFound,
                "upstream_unknown",
                "GET /api/v1/installations shows the ways of each site".to_owned(),
            ),
            Refusal::HasApp { client_key, .. } => (
                RejectKind::Conflict,
                "installation_has_app",
                format!(
                    "a Jira admin uninstalls the app in Jira, which tells the relay; if it is gone and the relay never heard, `jira-connect-proxy installations remove {client_key} --force` (force=true)"
                ),
            ),
            Refusal::CanMove {
                client_key,
                in_use,
                others,
            } => {
                let to = others.first().map_or("", |way| way.as_str());
                let in_use = in_use.as_str();
                (
                    RejectKind::Conflict,
                    "installation_can_move",
                    format!(
                        "`jira-connect-proxy installations move {client_key} --to {to}` first, then `installations remove {client_key} --upstream {in_use}`; to have the instances told that it is over, for which they forget their groups, --force (force=true)"
                    ),
                )
            }
            Refusal::ForceMalformed => (
                RejectKind::Malformed,
                "force_malformed",
                "leave it out to leave a site only when nothing speaks against it".to_owned(),
            ),
            Refusal::BeingPurged(id) => (
                RejectKind::Conflict,
                "link_being_purged",
                linking::how_purges_end(*id),
            ),
        };
        Self::new(kind, code, refusal.to_string(), hint)
    }
}
