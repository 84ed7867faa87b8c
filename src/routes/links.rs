//! `links...`: what the page asks for and changes.
//!
//! Whoever can open the page inside Jira may look; only Jira admins, and operators outside Jira, change anything. Every
//! call carries a context token, a page token or one of Forge's, which a browser never sends by itself, so nobody else's
//! page can make one.

mod view;

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, request::Parts};
use http_body_util::Full;
use hyper::body::Incoming;
use jiff::SignedDuration;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use view::View;

use super::{
    Public,
    caller::{Bound, Caller, caller, target},
    discreet, forge, outside,
};
use crate::{
    client::is_private,
    clock,
    domain::{Actor, AuditEntry, InstanceUrl, Link, LinkId, LinkMode},
    exchange::{Arrival, json, parse_json, read_small_body},
    gitlab::{
        groups::{GroupsError, context_token},
        probe::{Check, Finding, Verdict},
    },
    jira::admins::NotProven,
    jwt::{Target, shared_key::TOKEN_LIFE_SECS},
    linking,
    reject::{Reject, RejectKind},
    rounds::Health,
    trace,
};

/// A removal begins so much later, so that a person can think better of it.
const REFLECTION: SignedDuration = SignedDuration::from_secs(10);

/// Calls to instances for one site's page.
const CALLS_AT_ONCE: usize = 16;

/// For a turn among them.
const TURN_PATIENCE: Duration = Duration::from_secs(10);

/// How long the answer to a resend waits for a look at the instance.
const LOOK_AFTER_RESEND: Duration = Duration::from_secs(5);

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
    /// To look at one's instance before the next round does.
    Look,
    /// To tell one's instance anew.
    Resend,
    /// To leave one as it was before its removal was asked for.
    Undo,
    /// The groups of one's instance that are linked to the site.
    Groups,
    /// One of these.
    Group,
    /// How to sign in to one's instance.
    SignIn,
    /// A token for one's instance.
    ContextToken,
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
            Self::Look => "links/id/look",
            Self::Resend => "links/id/resend",
            Self::Undo => "links/id/undo",
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
            Self::Check
            | Self::Look
            | Self::Resend
            | Self::Undo
            | Self::SignIn
            | Self::ContextToken => "POST",
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
    let answer = answer(public, resource, id, group, request, arrival).await;
    answer.map_err(discreet::reject)
}

async fn answer(
    public: &Public,
    resource: Resource,
    id: &str,
    group: &str,
    request: Request<Incoming>,
    arrival: &Arrival,
) -> Result<Response<Full<Bytes>>, Reject> {
    let (head, body) = request.into_parts();
    let visit = Visit::of(public, &head, arrival).await?;
    match (resource, &head.method) {
        (Resource::All, &Method::GET) => visit.list().await,
        (Resource::All, &Method::POST) => {
            visit
                .create(read_small_body(body, &head.headers, &public.limits).await?)
                .await
        }
        (Resource::Check, &Method::POST) => {
            visit
                .check(read_small_body(body, &head.headers, &public.limits).await?)
                .await
        }
        (Resource::One, &Method::GET) => visit.answer(StatusCode::OK, &*visit.link(id)?),
        (Resource::One, &Method::DELETE) => {
            let purge = visit.target.query("purge") == Some("true");
            visit.remove(id, purge).await
        }
        (Resource::Look, &Method::POST) => visit.look(id).await,
        (Resource::Resend, &Method::POST) => visit.resend(id).await,
        (Resource::Undo, &Method::POST) => visit.undo(id).await,
        (Resource::Groups, &Method::GET) => visit.groups(id).await,
        (Resource::Group, &Method::DELETE) => visit.unlink_group(id, group).await,
        (Resource::SignIn, &Method::POST) => visit.sign_in(id).await,
        (Resource::ContextToken, &Method::POST) => visit.context_token(id).await,
        (resource, _) => Err(Reject::method_not_allowed(resource.methods())),
    }
}

/// One call, and who makes it.
struct Visit<'a> {
    public: &'a Public,
    arrival: &'a Arrival,
    caller: Caller,
    target: Target,
}

impl<'a> Visit<'a> {
    async fn of(public: &'a Public, head: &Parts, arrival: &'a Arrival) -> Result<Self, Reject> {
        let target = target(public, head, None)?;
        let caller = if forge::is_call(&head.headers) {
            forge::caller(public, &head.headers, arrival).await?
        } else {
            caller(public, head, &target, None, arrival, Bound::User)?
        };
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
            links: links
                .iter()
                .map(|link| View::of(link, &self.public.rounds, self.arrival.now))
                .collect(),
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
            "an admin has an address looked at"
        );
        let _turn = self.turn().await?;
        let finding = match check {
            Wanted::OfUs(Ours::Address) => self.address(&instance_url).await,
            Wanted::Of(check) => {
                let prober = self.public.prober.afresh();
                prober.look(&instance_url, check, self.arrival.now).await
            }
        };
        let found = Found {
            check,
            instance_url: &instance_url,
            finding: discreet::finding(finding),
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
        let link = link.await?;
        trace::wanted(&link);
        self.answer(StatusCode::ACCEPTED, &link)
    }

    async fn look(&self, id: &str) -> Result<Response<Full<Bytes>>, Reject> {
        let link = self.link(id)?;
        self.admin().await?;
        let _turn = self.turn().await?;
        self.public.rounds.look_now(&link).await;
        // Much may have happened meanwhile.
        self.answer(StatusCode::OK, &*self.link(id)?)
    }

    async fn resend(&self, id: &str) -> Result<Response<Full<Bytes>>, Reject> {
        let id = self.link(id)?.id;
        self.admin().await?;
        let audit = audit(self.arrival, &self.caller, "link_resend_requested");
        let (linker, now) = (&self.public.linker, self.arrival.now);
        let link = linker
            .change(move |transaction| linking::resend(transaction, id, audit, now))
            .await?;
        let link = linker.outcome(link).await;
        // What the last look found may just have been mended.
        let rounds = &self.public.rounds;
        let broken = |health: Health| health.verdict == Verdict::Fail;
        if link.is_settled() && rounds.health(&link).is_some_and(broken) {
            let look = async {
                if let Ok(_turn) = self.turn().await {
                    rounds.look_now(&Arc::new(link.clone())).await;
                }
            };
            // The rounds look as well; Forge waits 25 s for the whole answer.
            let _ = tokio::time::timeout(LOOK_AFTER_RESEND, look).await;
        }
        self.answer(StatusCode::OK, &link)
    }

    async fn undo(&self, id: &str) -> Result<Response<Full<Bytes>>, Reject> {
        let id = self.link(id)?.id;
        self.admin().await?;
        let audit = audit(self.arrival, &self.caller, "link_removal_undone");
        // By the clock, not from when the request came: the instance may be told meanwhile.
        let undone = self
            .public
            .linker
            .change(move |transaction| linking::undo_removal(transaction, id, audit, clock::now()));
        let link = undone.await?;
        if !link.is_settled() {
            trace::wanted(&link);
        }
        self.answer(StatusCode::OK, &link)
    }

    /// A site's page makes so many calls to instances at once; the others wait for their turn.
    async fn turn(&self) -> Result<OwnedSemaphorePermit, Reject> {
        let client_key = &self.caller.installation.client_key;
        let new = || Ok::<_, Infallible>(Arc::new(Semaphore::new(CALLS_AT_ONCE)));
        let Ok(turns) = self.public.page_turns.get_or_insert_with(client_key, new);
        tokio::time::timeout(TURN_PATIENCE, turns.acquire_owned())
            .await
            .map_err(|_| {
                Reject::new(
                    RejectKind::Unavailable,
                    "page_busy",
                    "this site's page waits for answers from many instances already",
                    "try again in a minute",
                )
            })?
            .map_err(Reject::internal)
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
        self.public.rounds.heard(&link.instance_url);
        json(StatusCode::OK, &serde_json::json!({ "groups": groups }))
    }

    async fn unlink_group(&self, id: &str, group: &str) -> Result<Response<Full<Bytes>>, Reject> {
        let link = self.link(id)?;
        let account_id = self.groups_admin(&link).await?;
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
        self.groups_admin(&link).await?;
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
        let account_id = self.groups_admin(&link).await?;
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

    /// The caller's account, if it is one of an administrator of the site. An operator could do it all with the admin
    /// token.
    async fn admin(&self) -> Result<&str, Reject> {
        let account_id = self.caller.account_id.as_deref();
        if self.caller.session.is_none() {
            self.public
                .admins
                .prove(&self.caller.installation, account_id, self.arrival.now)
                .await?;
        }
        Ok(account_id.unwrap_or_default())
    }

    /// The caller's account, if the instance will hear that it may link groups. An instance that asks Jira itself hears
    /// there that nobody knows an operator.
    async fn groups_admin(&self, link: &Link) -> Result<&str, Reject> {
        let account_id = self.admin().await?;
        if self.caller.session.is_some() && link.mode == LinkMode::Direct {
            return Err(Reject::new(
                RejectKind::Conflict,
                "link_direct",
                "this instance asks Jira itself who may link groups, and Jira knows no operators of the relay",
                "a Jira administrator links and unlinks its groups, on the page inside Jira",
            ));
        }
        Ok(account_id)
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
        let view = View::of(link, &self.public.rounds, self.arrival.now);
        json(status, &view)
    }
}

/// An entry about what a Jira admin does, or an operator in the place of one.
pub(super) fn audit(arrival: &Arrival, caller: &Caller, action: &str) -> AuditEntry {
    if let Some(session) = &caller.session {
        return outside::audit(arrival, session, action);
    }
    AuditEntry {
        account_id: caller.account_id.clone(),
        client_key: Some(caller.installation.client_key.clone()),
        request_id: Some(arrival.id.clone()),
        peer: Some(arrival.peer.ip()),
        ..AuditEntry::new(arrival.now, Actor::JiraAdmin, action)
    }
}
