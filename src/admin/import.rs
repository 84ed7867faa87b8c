//! `/api/v1/import`: takes over the sites of another proxy, and takes that back.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use serde::Deserialize;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::AdminParts;
use crate::{
    domain::{ClientKey, ImportId, InstanceUrl, JiraSites, SharedSecret, event::SiteFacts},
    exchange::{Arrival, json, parse_json, read_body},
    jira::lifecycle::display_url,
    reject::{Reject, RejectKind},
    store::TransactError,
    takeover::{self, Fate, Plan, Report, Row, Site, Stopped},
};

/// How long the names of all instances may take to be looked up. What is not known by then is left to the deliveries,
/// which look at every address they dial.
const LOOKUPS_PATIENCE: Duration = Duration::from_secs(10);

const LOOKUPS_AT_ONCE: usize = 32;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ImportBody {
    #[serde(default)]
    apply: bool,
    #[serde(default)]
    skip_refused: bool,
    own_instance: Option<String>,
    rows: Vec<RowBody>,
}

/// One row of the other proxy's table, its secret in clear.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RowBody {
    client_key: String,
    base_url: String,
    display_url: Option<String>,
    shared_secret: Zeroizing<String>,
    instance_url: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RollbackBody {
    #[serde(default)]
    apply: bool,
}

pub(super) async fn import(
    admin: &AdminParts,
    request: Request<Incoming>,
    arrival: &Arrival,
) -> Result<Response<Full<Bytes>>, Reject> {
    let limits = &admin.limits;
    let (head, body) = request.into_parts();
    let deadline = limits.receive_timeout;
    let body = read_body(body, &head.headers, limits.rest_body_max_bytes, deadline).await?;
    let body: ImportBody = parse_json(&body)?;
    let own_instance = match &body.own_instance {
        None => None,
        Some(url) => {
            let url = InstanceUrl::parse(url)?;
            admin.linker.check(&url).await?;
            Some(url)
        }
    };
    let mut rows: Vec<Result<Site, Box<Row>>> = body
        .rows
        .into_iter()
        .map(|row| row.into_site(&admin.sites, own_instance.as_ref()))
        .collect();
    check_instances(admin, &mut rows).await;
    let plan = Plan {
        apply: body.apply,
        skip_refused: body.skip_refused,
        auto_link: admin.linker.policy.load().auto_link.clone(),
    };
    let audit = AdminParts::audit_entry(arrival, "import");
    let now = arrival.now;
    let done = admin
        .store
        .transact(move |transaction| takeover::import(transaction, rows, &plan, &audit, now));
    answer(done.await)
}

pub(super) async fn roll_back(
    admin: &AdminParts,
    id: &str,
    request: Request<Incoming>,
    arrival: &Arrival,
) -> Result<Response<Full<Bytes>>, Reject> {
    let (head, body) = request.into_parts();
    let limits = &admin.limits;
    let body = read_body(
        body,
        &head.headers,
        limits.body_max_bytes,
        limits.receive_timeout,
    );
    let RollbackBody { apply } = parse_json(&body.await?)?;
    let unknown = || {
        Reject::new(
            RejectKind::NotFound,
            "import_unknown",
            "nothing that this import made is there, or none has this id",
            "GET /api/v1/audit shows imports with their ids, as import_applied",
        )
    };
    let id = ImportId::parse(id).ok_or_else(unknown)?;
    let client_keys = sites_of(admin, id);
    if client_keys.is_empty() {
        return Err(unknown());
    }
    let audit = AdminParts::audit_entry(arrival, "import_rollback");
    let now = arrival.now;
    let done = admin.store.transact(move |transaction| {
        takeover::roll_back(transaction, id, &client_keys, apply, &audit, now)
    });
    answer(done.await)
}

/// The sites that have something of an import.
fn sites_of(admin: &AdminParts, id: ImportId) -> Vec<ClientKey> {
    let mut client_keys: Vec<ClientKey> = admin
        .store
        .links()
        .iter()
        .filter(|link| link.imported == Some(id))
        .map(|link| link.client_key.clone())
        .collect();
    let installations = admin.store.installations();
    let made = installations
        .iter()
        .filter(|installation| installation.imported.is_some_and(|by| by.by == id));
    client_keys.extend(made.map(|installation| installation.client_key.clone()));
    client_keys.sort();
    client_keys.dedup();
    client_keys
}

/// Refuses the rows whose instance may not be linked.
async fn check_instances(admin: &AdminParts, rows: &mut [Result<Site, Box<Row>>]) {
    let mut refusals: HashMap<InstanceUrl, Option<Reject>> = HashMap::new();
    for site in rows.iter().flatten() {
        if let Some(url) = &site.instance_url
            && !refusals.contains_key(url)
        {
            refusals.insert(url.clone(), admin.linker.check_policy(url).err());
        }
    }
    let allowed: Vec<InstanceUrl> = refusals
        .iter()
        .filter(|(_, refusal)| refusal.is_none())
        .map(|(url, _)| url.clone())
        .collect();
    let deadline = Instant::now() + LOOKUPS_PATIENCE;
    let mut lookups = stream::iter(allowed)
        .map(|url| async move {
            let check = tokio::time::timeout_at(deadline, admin.linker.check(&url)).await;
            (url, check.ok().and_then(Result::err))
        })
        .buffer_unordered(LOOKUPS_AT_ONCE);
    while let Some((url, refusal)) = lookups.next().await {
        refusals.insert(url, refusal);
    }
    for row in rows {
        let Ok(site) = row else { continue };
        let refusal = site.instance_url.as_ref().and_then(|url| refusals.get(url));
        if let Some(Some(reject)) = refusal {
            let bare = Row {
                client_key: site.client_key.to_string(),
                base_url: site.facts.base_url.to_string(),
                instance_url: site.instance_url.as_ref().map(ToString::to_string),
                ..RowBody::nothing()
            };
            *row = Err(Box::new(bare.refused(reject.code, reject.message.clone())));
        }
    }
}

fn answer(done: Result<Report, TransactError<Stopped>>) -> Result<Response<Full<Bytes>>, Reject> {
    match done {
        Ok(report) | Err(TransactError::Refused(Stopped::Unchanged(report))) => {
            json(StatusCode::OK, &report)
        }
        Err(TransactError::Refused(Stopped::Full(full))) => Err(full.into()),
        Err(TransactError::Refused(Stopped::NoRandomness(error))) => Err(Reject::internal(error)),
        Err(TransactError::Store(error)) => Err(error.into()),
    }
}

impl RowBody {
    /// What the row means. An instance that it names wrote raw ids for the site; if it names none, the proxy itself did.
    fn into_site(
        self,
        sites: &JiraSites,
        own_instance: Option<&InstanceUrl>,
    ) -> Result<Site, Box<Row>> {
        let bare = Row {
            client_key: self.client_key.clone(),
            base_url: self.base_url.clone(),
            instance_url: self.instance_url.clone(),
            ..Self::nothing()
        };
        let refused = |code, reason: String| Box::new(bare.clone().refused(code, reason));
        let client_key = ClientKey::parse(&self.client_key)
            .map_err(|error| refused("client_key_malformed", error.to_string()))?;
        let base_url = sites
            .parse(&self.base_url)
            .map_err(|error| refused("base_url_refused", error.to_string()))?;
        let shared_secret = SharedSecret::parse(&self.shared_secret)
            .map_err(|error| refused("secret_malformed", error.to_string()))?;
        let instance_url = match self.instance_url.as_deref() {
            None => own_instance.cloned(),
            Some(text) => Some(
                InstanceUrl::parse(text)
                    .map_err(|error| refused("instance_url_malformed", error.to_string()))?,
            ),
        };
        Ok(Site {
            client_key,
            facts: SiteFacts {
                display_url: self
                    .display_url
                    .and_then(|text| display_url(&text, &base_url)),
                base_url,
                shared_secret,
            },
            instance_url,
        })
    }

    fn nothing() -> Row {
        Row {
            client_key: String::new(),
            base_url: String::new(),
            instance_url: None,
            installation: Fate::None,
            link: Fate::None,
            link_id: None,
            code: None,
            reason: None,
        }
    }
}
