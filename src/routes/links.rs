//! `links...`: what the page inside Jira asks for and changes.
//!
//! Whoever can open the page may look; only Jira admins change anything. Every call carries a context token, which a
//! browser never sends by itself, so nobody else's page can make one.

use std::{borrow::Cow, convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, request::Parts};
use http_body_util::Full;
use hyper::body::Incoming;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    Public,
    caller::{Bound, Caller, caller, target},
};
use crate::{
    client::is_private,
    domain::{Actor, AuditEntry, InstanceUrl, Link, LinkId, link::DeliveryProblem},
    exchange::{Arrival, json, parse_json, read_body},
    gitlab::{
        groups::{GroupsError, context_token},
        probe::{Check, Finding, Verdict},
    },
    jira::admins::NotProven,
    jwt::{Target, shared_key::TOKEN_LIFE_SECS},
    linking,
    reject::{Reject, RejectKind},
};

/// A removal can be taken back for so long.
const REFLECTION: SignedDuration = SignedDuration::from_secs(10);

/// Calls to instances for one site's page.
const CALLS_AT_ONCE: usize = 16;

/// How long a name may take to be looked up before nothing is said about its address.
const LOOKUP_PATIENCE: Duration = Duration::from_secs(3);

/// A slow Jira must not keep the list from whoever may look anyway.
const RIGHTS_PATIENCE: Duration = Duration::from_secs(3);

/// What of the links is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resource {
    /// All of the site.
    All,
    /// One.
    One,
    /// Whether an instance could be linked.
    Check,
    /// To tell one's instance anew.
    Resend,
    /// The groups of one's instance that are linked to the site.
    Groups,
    /// One of these.
    Group,
    /// How to sign in to one's instance.
    SignIn,
    /// A token for one's instance.
    ContextToken,
}

/// A link as the page shows it. Never a secret.
#[derive(Serialize)]
struct View<'a> {
    id: LinkId,
    instance_url: &'a str,
    state: &'static str,
    gitlab_version: Option<&'a str>,
    last_seen_at: Option<Timestamp>,
    created_at: Timestamp,
    attempts: u32,
    next_attempt_at: Option<Timestamp>,
    last_error: Option<Cow<'a, DeliveryProblem>>,
    purge: Option<PurgeView<'a>>,
    can_purge: bool,
    can_undo: bool,
    /// What the last look at the instance found broken.
    faults: Vec<Fault>,
}

#[derive(Serialize)]
struct Fault {
    #[serde(flatten)]
    finding: Finding,
    id: Option<String>,
}

#[derive(Serialize)]
struct PurgeView<'a> {
    state: &'static str,
    last_error: Option<&'a DeliveryProblem>,
}

/// Why somebody may only look.
#[derive(Serialize)]
struct Reason<'a> {
    code: &'a str,
    message: &'a str,
    hint: &'a str,
    id: &'a str,
}

impl Resource {
    /// In metrics and logs.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::All => "links",
            Self::One => "links/id",
            Self::Check => "links/check",
            Self::Resend => "links/id/resend",
            Self::Groups => "links/id/groups",
            Self::Group => "links/id/groups/id",
            Self::SignIn => "links/id/sign_in",
            Self::ContextToken => "links/id/context_token",
        }
    }

    fn methods(self) -> &'static str {
        match self {
            Self::All => "GET or POST",
            Self::One => "GET or DELETE",
            Self::Groups => "GET",
            Self::Group => "DELETE",
            Self::Check | Self::Resend | Self::SignIn | Self::ContextToken => "POST",
        }
    }
}

/// Answers a call of the page's. `id` and `group` are those in the path.
pub(super) async fn serve(
    public: &Public,
    resource: Resource,
    id: &str,
    group: &str,
    request: Request<Incoming>,
    arrival: &Arrival,
) -> Result<Response<Full<Bytes>>, Reject> {
    let (head, body) = request.into_parts();
    let visit = Visit::of(public, &head, arrival)?;
    match (resource, &head.method) {
        (Resource::All, &Method::GET) => visit.list().await,
        (Resource::All, &Method::POST) => {
            visit.create(read(public, body, &head.headers).await?).await
        }
        (Resource::Check, &Method::POST) => {
            visit.check(read(public, body, &head.headers).await?).await
        }
        (Resource::One, &Method::GET) => visit.answer(StatusCode::OK, &*visit.link(id)?),
        (Resource::One, &Method::DELETE) => {
            let purge = visit.target.query("purge") == Some("true");
            visit.remove(id, purge).await
        }
        (Resource::Resend, &Method::POST) => visit.resend(id).await,
        (Resource::Groups, &Method::GET) => visit.groups(id).await,
        (Resource::Group, &Method::DELETE) => visit.unlink_group(id, group).await,
        (Resource::SignIn, &Method::POST) => visit.sign_in(id).await,
        (Resource::ContextToken, &Method::POST) => visit.context_token(id).await,
        (resource, _) => Err(Reject::method_not_allowed(resource.methods())),
    }
}

async fn read(public: &Public, body: Incoming, headers: &HeaderMap) -> Result<Bytes, Reject> {
    let limits = &public.limits;
    read_body(body, headers, limits.body_max_bytes, limits.receive_timeout).await
}

/// One call, and who makes it.
struct Visit<'a> {
    public: &'a Public,
    arrival: &'a Arrival,
    caller: Caller,
    target: Target,
}

impl<'a> Visit<'a> {
    fn of(public: &'a Public, head: &Parts, arrival: &'a Arrival) -> Result<Self, Reject> {
        let target = target(public, head, None)?;
        let caller = caller(public, head, &target, None, arrival, Bound::User)?;
        Ok(Self {
            public,
            arrival,
            caller,
            target,
        })
    }

    async fn list(&self) -> Result<Response<Full<Bytes>>, Reject> {
        #[derive(Serialize)]
        struct Page<'a> {
            site: &'a str,
            may_change: bool,
            reason: Option<Reason<'a>>,
            links: Vec<View<'a>>,
        }

        let installation = &self.caller.installation;
        let refused = tokio::time::timeout(RIGHTS_PATIENCE, self.admin())
            .await
            .unwrap_or_else(|_| Err(NotProven::Unknown("it takes long".to_owned()).into()))
            .err();
        let mut links = self.public.store.links_of(&installation.client_key);
        links.sort_by_key(|link| (link.created_at, link.id));
        let page = Page {
            site: installation
                .display_url
                .as_deref()
                .unwrap_or_else(|| installation.base_url.as_str()),
            may_change: refused.is_none(),
            reason: refused.as_ref().map(|reject| Reason {
                code: reject.code,
                message: &reject.message,
                hint: &reject.hint,
                id: &self.arrival.id,
            }),
            links: links.iter().map(|link| self.view(link)).collect(),
        };
        json(StatusCode::OK, &page)
    }

    async fn create(&self, body: Bytes) -> Result<Response<Full<Bytes>>, Reject> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Wish {
            instance_url: String,
        }

        let Wish { instance_url } = parse_json(&body)?;
        self.admin().await?;
        let instance_url = InstanceUrl::from_typed(&instance_url)?;
        let client_key = self.caller.installation.client_key.clone();
        let linker = &self.public.linker;
        let audit = audit(self.arrival, &self.caller, "link_created");
        let link = linker
            .add(client_key, instance_url, audit, self.arrival.now)
            .await?;
        self.arrival.notes.link(&link);
        self.answer(StatusCode::CREATED, &linker.outcome(link).await)
    }

    async fn check(&self, body: Bytes) -> Result<Response<Full<Bytes>>, Reject> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Wish {
            instance_url: String,
            check: Wanted,
        }
        #[derive(Clone, Copy, Serialize, Deserialize)]
        #[serde(untagged)]
        enum Wanted {
            Of(Check),
            OfUs(Ours),
        }
        /// What the relay knows without asking.
        #[derive(Clone, Copy, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        enum Ours {
            Address,
        }
        #[derive(Serialize)]
        struct Found<'a> {
            check: Wanted,
            instance_url: &'a InstanceUrl,
            #[serde(flatten)]
            finding: Finding,
            id: &'a str,
        }

        let Wish {
            instance_url,
            check,
        } = parse_json(&body)?;
        self.admin().await?;
        let instance_url = InstanceUrl::from_typed(&instance_url)?;
        tracing::info!(
            id = self.arrival.id, client.key = %self.caller.installation.client_key, instance.url = %instance_url,
            "a Jira admin has an address looked at"
        );
        let _turn = self.turn().await?;
        let finding = match check {
            Wanted::OfUs(Ours::Address) => self.address(&instance_url).await,
            Wanted::Of(check) => {
                let prober = &self.public.prober;
                prober.look(&instance_url, check, self.arrival.now).await
            }
        };
        let found = Found {
            check,
            instance_url: &instance_url,
            finding: discreet(finding),
            id: &self.arrival.id,
        };
        json(StatusCode::OK, &found)
    }

    /// Whether this address can be linked at all.
    async fn address(&self, instance_url: &InstanceUrl) -> Finding {
        if let Err(reject) = self.public.linker.check(instance_url).await {
            return Finding::fail(reject.code, reject.message, reject.hint);
        }
        let links = self.links();
        match links.iter().find(|link| link.instance_url == *instance_url) {
            Some(link) if !link.remove => Finding::fail(
                "link_exists",
                "this instance is connected to this Jira site already",
                "look for it in the list",
            ),
            Some(_) => Finding::warn(
                "link_leaving",
                "this instance is just being removed",
                "adding it takes the removal back",
            ),
            None => Finding::ok("address", "the address can be used"),
        }
    }

    async fn remove(&self, id: &str, purge: bool) -> Result<Response<Full<Bytes>>, Reject> {
        let id = self.link(id)?.id;
        self.admin().await?;
        let action = if purge {
            "link_purge_requested"
        } else {
            "link_removal_requested"
        };
        let audit = audit(self.arrival, &self.caller, action);
        let now = self.arrival.now;
        let link = self.public.linker.change(move |transaction| {
            linking::remove_after(transaction, id, purge, REFLECTION, audit, now)
        });
        self.answer(StatusCode::ACCEPTED, &link.await?)
    }

    async fn resend(&self, id: &str) -> Result<Response<Full<Bytes>>, Reject> {
        let id = self.link(id)?.id;
        self.admin().await?;
        let audit = audit(self.arrival, &self.caller, "link_resend_requested");
        let (linker, now) = (&self.public.linker, self.arrival.now);
        let link = linker
            .change(move |transaction| linking::resend(transaction, id, audit, now))
            .await?;
        self.answer(StatusCode::OK, &linker.outcome(link).await)
    }

    /// A site's page makes so many calls to instances at once; the others wait for their turn.
    async fn turn(&self) -> Result<OwnedSemaphorePermit, Reject> {
        let client_key = &self.caller.installation.client_key;
        let new = || Ok::<_, Infallible>(Arc::new(Semaphore::new(CALLS_AT_ONCE)));
        let Ok(turns) = self.public.page_turns.get_or_insert_with(client_key, new);
        turns.acquire_owned().await.map_err(Reject::internal)
    }

    async fn groups(&self, id: &str) -> Result<Response<Full<Bytes>>, Reject> {
        let link = self.link(id)?;
        let _turn = self.turn().await?;
        let account_id = self.caller.account_id.as_deref();
        let groups = self
            .public
            .asker
            .linked_groups(&link, &self.caller.installation, account_id)
            .await
            .map_err(|error| self.refused(&error))?;
        json(StatusCode::OK, &serde_json::json!({ "groups": groups }))
    }

    async fn unlink_group(&self, id: &str, group: &str) -> Result<Response<Full<Bytes>>, Reject> {
        let link = self.link(id)?;
        let account_id = self.admin().await?;
        let group: u64 = group
            .parse()
            .map_err(|_| self.refused(&GroupsError::Unknown))?;
        self.public
            .asker
            .unlink_group(&link, &self.caller.installation, account_id, group)
            .await
            .map_err(|error| self.refused(&error))?;
        let entry = AuditEntry {
            note: Some(format!("{}, linked group {group}", link.instance_url)),
            ..audit(self.arrival, &self.caller, "group_unlinked").about(&link)
        };
        // The group is unlinked; that this can't be noted is no failure of it.
        let noted = self.public.linker.change(move |transaction| {
            transaction.audit(entry);
            Ok(())
        });
        if let Err(reject) = noted.await {
            tracing::error!(link.id = %link.id, "an entry in the audit trail is missing: {}", reject.message);
        }
        Response::builder()
            .status(StatusCode::NO_CONTENT)
            .body(Full::default())
            .map_err(Reject::internal)
    }

    async fn sign_in(&self, id: &str) -> Result<Response<Full<Bytes>>, Reject> {
        let link = self.link(id)?;
        self.admin().await?;
        let application_id = self
            .public
            .asker
            .application_id(&link, &self.caller.installation)
            .await
            .map_err(|error| self.refused(&error))?;
        let instance = &link.instance_url;
        let private = is_private(instance.host(), instance.port());
        let private = tokio::time::timeout(LOOKUP_PATIENCE, private);
        json(
            StatusCode::OK,
            &serde_json::json!({
                "application_id": application_id,
                "authorize_url": format!("{instance}/oauth/authorize"),
                "token_url": format!("{instance}/oauth/token"),
                "api_url": format!("{instance}/api/v4"),
                "redirect_uri": self.public.pages.redirect_uri(),
                // GitLab's API takes no smaller one for linking a group.
                "scope": "api",
                "private_network": private.await.unwrap_or(false),
            }),
        )
    }

    async fn context_token(&self, id: &str) -> Result<Response<Full<Bytes>>, Reject> {
        let link = self.link(id)?;
        let account_id = self.admin().await?;
        let now = self.arrival.now;
        let expires_at = now.saturating_add(SignedDuration::from_secs(TOKEN_LIFE_SECS));
        json(
            StatusCode::OK,
            &serde_json::json!({
                "token": context_token(&link, &self.caller.installation, account_id, now),
                "expires_at": expires_at.unwrap_or(now),
            }),
        )
    }

    /// The caller's account, if it is one of an administrator of the site.
    async fn admin(&self) -> Result<&str, Reject> {
        let account_id = self.caller.account_id.as_deref();
        self.public
            .admins
            .prove(&self.caller.installation, account_id, self.arrival.now)
            .await?;
        Ok(account_id.unwrap_or_default())
    }

    fn links(&self) -> Vec<Arc<Link>> {
        self.public
            .store
            .links_of(&self.caller.installation.client_key)
    }

    /// A link of the caller's site; nobody learns of others.
    fn link(&self, id: &str) -> Result<Arc<Link>, Reject> {
        let unknown = || {
            Reject::new(
                RejectKind::NotFound,
                "link_unknown",
                "this instance is not connected to this Jira site (any more)",
                "load the list again",
            )
        };
        let id = LinkId::parse(id).ok_or_else(unknown)?;
        let link = self.public.store.link(id);
        let link = link.filter(|link| link.client_key == self.caller.installation.client_key);
        let link = link.ok_or_else(unknown)?;
        self.arrival.notes.link(&link);
        Ok(link)
    }

    fn refused(&self, error: &GroupsError) -> Reject {
        error.reject(&self.public.prober.proxy_url)
    }

    fn answer(&self, status: StatusCode, link: &Link) -> Result<Response<Full<Bytes>>, Reject> {
        json(status, &self.view(link))
    }

    fn faults(&self, link: &Link) -> Vec<Fault> {
        let health = self.public.rounds.health(&link.instance_url);
        let health = health.filter(|_| link.is_settled());
        let faults = health.iter().flat_map(|health| &health.faults);
        let broken = faults.filter(|step| step.finding.verdict == Verdict::Fail);
        broken
            .map(|step| Fault {
                finding: discreet(step.finding.clone()),
                id: None,
            })
            .collect()
    }

    fn view<'l>(&self, link: &'l Link) -> View<'l> {
        View {
            id: link.id,
            instance_url: link.instance_url.as_str(),
            state: link.state().as_str(),
            gitlab_version: link.gitlab_version.as_deref(),
            last_seen_at: link.last_seen_at,
            created_at: link.created_at,
            attempts: link.attempts,
            next_attempt_at: (!link.is_settled()).then_some(link.next_attempt_at),
            last_error: link.last_error.as_ref().map(discreet_problem),
            purge: link.purge.as_ref().map(|purge| PurgeView {
                state: if purge.done_at.is_some() {
                    "done"
                } else {
                    "pending"
                },
                last_error: purge.last_error.as_ref(),
            }),
            faults: self.faults(link),
            can_purge: link.is_marked(),
            can_undo: link.can_be_taken_back(),
        }
    }
}

/// Where a name leads inside the operator's network is no business of a site's.
fn discreet(finding: Finding) -> Finding {
    match finding.code {
        "address_not_public" | "instance_address_not_public" => Finding {
            message: PRIVATE.to_owned(),
            hint: Some(PRIVATE_HINT.to_owned()),
            ..finding
        },
        _ => finding,
    }
}

fn discreet_problem(problem: &DeliveryProblem) -> Cow<'_, DeliveryProblem> {
    if problem.code != "address_not_public" {
        return Cow::Borrowed(problem);
    }
    Cow::Owned(DeliveryProblem {
        message: PRIVATE.to_owned(),
        hint: PRIVATE_HINT.to_owned(),
        ..problem.clone()
    })
}

const PRIVATE: &str = "its name leads to an address that is not public";
const PRIVATE_HINT: &str =
    "if the instance lives in a private network, the operator of the relay can allow that";

/// An entry about what a Jira admin does.
pub(super) fn audit(arrival: &Arrival, caller: &Caller, action: &str) -> AuditEntry {
    AuditEntry {
        account_id: caller.account_id.clone(),
        client_key: Some(caller.installation.client_key.clone()),
        request_id: Some(arrival.id.clone()),
        ..AuditEntry::new(arrival.now, Actor::JiraAdmin, action)
    }
}
