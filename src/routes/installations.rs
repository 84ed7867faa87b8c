//! `GET` and `PUT installations`: the one instance of a site, as a GitLab that is the proxy shows and changes it, for
//! tools that know no other way (GitLab `installations_controller.rb`).
//!
//! GitLab knows one instance per site. Of several the oldest is shown, and none is changed: that needs the page.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, request::Parts};
use http_body_util::Full;
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::json;

use super::{
    Public,
    caller::{Bound, Caller, caller, target},
    discreet,
    links::audit,
    toolchain::is_form,
};
use crate::{
    domain::{InstanceUrl, Link, LinkId},
    exchange::{self, Arrival, parse_json, read_small_body},
    linking,
    reject::{Instead, Reject, RejectKind},
};

/// What GitLab answers to somebody who is no admin of the site.
const NOT_ADMIN: &str = "The Jira user is not a site or organization administrator. Check the permissions in Jira and try again.";

#[derive(Deserialize)]
struct Wish {
    jwt: Option<String>,
    installation: Wanted,
}

#[derive(Deserialize)]
struct Wanted {
    /// Null is the wish to have none. Left out it is no wish, so it must be there.
    #[serde(deserialize_with = "Option::deserialize")]
    instance_url: Option<String>,
}

impl Wish {
    /// Rails takes either form for the same.
    fn parse(headers: &HeaderMap, body: &[u8]) -> Result<Self, Reject> {
        if !is_form(headers) {
            return parse_json(body);
        }
        let field = |wanted: &str| {
            form_urlencoded::parse(body)
                .find(|(name, _)| name == wanted)
                .map(|(_, value)| value.into_owned())
        };
        // Left out it is no wish to have none.
        let instance_url = field("installation[instance_url]").ok_or_else(|| {
            Reject::new(
                RejectKind::Malformed,
                "body_malformed",
                "the body lacks installation[instance_url]",
                "send it as GitLab's own page does; empty for no instance",
            )
        })?;
        Ok(Self {
            jwt: field("jwt"),
            installation: Wanted {
                instance_url: Some(instance_url),
            },
        })
    }
}

/// Answers either call.
pub(super) async fn serve(
    public: &Public,
    request: Request<Incoming>,
    arrival: &Arrival,
) -> Result<Response<Full<Bytes>>, Reject> {
    let (head, body) = request.into_parts();
    match head.method {
        Method::GET | Method::HEAD => {
            let caller = who(public, &head, None, arrival)?;
            answer(
                links(public, &caller)
                    .first()
                    .map(|link| &link.instance_url),
            )
        }
        Method::PUT => {
            let body = read_small_body(body, &head.headers, &public.limits).await?;
            let wish = Wish::parse(&head.headers, &body)?;
            let caller = who(public, &head, wish.jwt.as_deref(), arrival)?;
            let changed = change(public, &caller, wish.installation.instance_url, arrival).await;
            answer(changed.map_err(in_gitlabs_words)?.as_ref())
        }
        _ => Err(Reject::method_not_allowed("GET or PUT")),
    }
}

fn who(
    public: &Public,
    head: &Parts,
    body_token: Option<&str>,
    arrival: &Arrival,
) -> Result<Caller, Reject> {
    let target = target(public, head, None)?;
    let bound = Bound::RequestOrUser;
    let caller = caller(public, head, &target, body_token, arrival, bound);
    // GitLab's number for whoever it does not believe. It takes a token that was made for any request; here it must be
    // this one's or the user's, so that an address that Jira signed for a browser changes nothing.
    caller.map_err(|reject| match reject.kind {
        RejectKind::Unauthenticated => Reject {
            kind: RejectKind::Forbidden,
            ..reject
        },
        _ => reject,
    })
}

fn links(public: &Public, caller: &Caller) -> Vec<Arc<Link>> {
    let mut links = public.store.links_of(&caller.installation.client_key);
    links.retain(|link| !link.remove);
    links.sort_by_key(|link| (link.created_at, link.id));
    links
}

async fn change(
    public: &Public,
    caller: &Caller,
    wanted: Option<String>,
    arrival: &Arrival,
) -> Result<Option<InstanceUrl>, Reject> {
    public
        .admins
        .prove(
            &caller.installation,
            caller.account_id.as_deref(),
            arrival.now,
        )
        .await?;
    let wanted = wanted.filter(|url| !url.trim().is_empty());
    let wanted = wanted
        .map(|url| InstanceUrl::from_typed(&url))
        .transpose()?;
    let links = links(public, caller);
    // The one that GET shows.
    let shown = links.first();
    match (&wanted, shown) {
        // GitLab tells an instance that it knows once more, and does not mind a failure.
        (Some(url), Some(shown)) if shown.instance_url == *url => {
            resend(public, caller, shown.id, arrival).await?;
            return Ok(wanted);
        }
        _ if links.len() > 1 => {
            return Err(unprocessable(
                "several_instances",
                "Several GitLab instances are connected to this Jira site: add and remove them on the app's page in Jira.",
            ));
        }
        (Some(url), _) => install(public, caller, url, arrival).await?,
        (None, _) => {}
    }
    // Only now: until the new one is connected, the old one stays.
    if let Some(old) = shown {
        remove(public, caller, old.id, arrival).await?;
    }
    Ok(wanted)
}

/// Links the instance; if it can't be told, it is as if nobody had asked.
async fn install(
    public: &Public,
    caller: &Caller,
    instance_url: &InstanceUrl,
    arrival: &Arrival,
) -> Result<(), Reject> {
    let client_key = caller.installation.client_key.clone();
    let site = public.store.installation(&client_key);
    let site = site.and_then(|site| site.imported);
    let leaving = public.store.links_of(&client_key).into_iter();
    let leaving = { leaving }.find(|link| link.remove && link.instance_url == *instance_url);
    let created = audit(arrival, caller, "link_created");
    let link = public
        .linker
        .add(client_key, instance_url.clone(), created, arrival.now)
        .await?;
    arrival.notes.link(&link);
    let link = public.linker.outcome(link).await;
    if link.is_settled() {
        return Ok(());
    }
    match leaving {
        Some(before) => {
            let audit = audit(arrival, caller, "link_removal_requested");
            let now = arrival.now;
            let removed = public.linker.change(move |transaction| {
                linking::leave_again(transaction, &before, site, audit, now)
            });
            removed.await?;
        }
        None => remove(public, caller, link.id, arrival).await?,
    }
    let cause = link.last_error.map_or_else(
        || "It did not answer in time.".to_owned(),
        |problem| {
            let problem = discreet::problem(&problem);
            format!("{}: {}.", problem.message, problem.hint)
        },
    );
    Err(unprocessable(
        "not_installed",
        &format!("Could not be installed on the instance. {cause}"),
    ))
}

async fn resend(
    public: &Public,
    caller: &Caller,
    id: LinkId,
    arrival: &Arrival,
) -> Result<(), Reject> {
    let audit = audit(arrival, caller, "link_resend_requested");
    let now = arrival.now;
    let link = public
        .linker
        .change(move |transaction| linking::resend(transaction, id, audit, now))
        .await?;
    public.linker.outcome(link).await;
    Ok(())
}

async fn remove(
    public: &Public,
    caller: &Caller,
    id: LinkId,
    arrival: &Arrival,
) -> Result<(), Reject> {
    let audit = audit(arrival, caller, "link_removal_requested");
    let now = arrival.now;
    let removed = public
        .linker
        .change(move |transaction| linking::remove(transaction, id, audit, now));
    removed.await.map(drop)
}

fn answer(instance_url: Option<&InstanceUrl>) -> Result<Response<Full<Bytes>>, Reject> {
    let view = json!({ "gitlab_com": instance_url.is_none(), "instance_url": instance_url });
    exchange::json(StatusCode::OK, &view)
}

fn unprocessable(code: &'static str, message: &str) -> Reject {
    Reject::new(RejectKind::Unprocessable, code, message, "")
}

/// Tools read `errors`, a text or texts by field.
fn in_gitlabs_words(reject: Reject) -> Reject {
    let reject = discreet::reject(reject);
    let errors = match reject.code {
        "not_jira_admin" => json!(NOT_ADMIN),
        "instance_url_malformed"
        | "instance_not_allowed"
        | "instance_not_https"
        | "instance_address_not_public"
        | "instance_is_relay" => {
            json!({ "instance_url": [format!("is blocked: {}", reject.message)] })
        }
        _ => json!(reject.message),
    };
    let kind = match reject.kind {
        RejectKind::Malformed | RejectKind::Conflict => RejectKind::Unprocessable,
        RejectKind::Forbidden if reject.code != "not_jira_admin" => RejectKind::Unprocessable,
        kind => kind,
    };
    Reject {
        kind,
        instead: Some(Box::new(Instead {
            content_type: "application/json",
            body: Bytes::from(json!({ "errors": errors }).to_string()),
            policy: None,
        })),
        ..reject
    }
}
