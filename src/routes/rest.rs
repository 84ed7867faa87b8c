//! `/rest/...`: an instance takes us for Jira.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header, request::Parts};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::Instant,
};

use super::{Public, path_and_query};
use crate::{
    body::Body,
    clock,
    domain::{Actor, AuditEntry, ClientKey, Family, Installation, JiraCall, Link, Namespace},
    exchange::{Arrival, read_body},
    jira::{
        Setback, calls,
        deliver::{Delivered, Size, deliver},
        forward::ForwardError,
        mend::mend,
        namespace::{self, BodyError, Survey},
        rate_limit::throttle,
        shape, user,
    },
    jwt::{Target, TokenKind, UnverifiedToken, VerifyError, instance},
    reject::{Reject, RejectKind},
    sessions::Account,
    spool::{Admission, Why},
    trace::{self, Hop, hop},
};

/// An instance that proved which link it is, and what it wants.
struct Caller {
    link: Arc<Link>,
    installation: Arc<Installation>,
    call: JiraCall,
}

/// Passes a call on to Jira. A write that Jira can't take now is kept, and the instance hears that it is safe.
pub(super) async fn relay(
    public: &Public,
    request: Request<Incoming>,
    arrival: &Arrival,
) -> Result<Response<Body>, Reject> {
    let (head, body) = request.into_parts();
    let is_write = head.method != Method::GET;
    let caller = caller(public, &head, arrival)
        .await
        .map_err(|reject| match reject.kind {
            RejectKind::Throttled if is_write => pushed_back(reject),
            RejectKind::Throttled => reject,
            // Who has no good token is nobody's honest instance, so nothing is lost by saying 429.
            _ => public.check_pace(arrival).err().unwrap_or(reject),
        })?;
    if caller.call.is_read() {
        if !caller.installation.is_installed() {
            return Err(VerifyError::Uninstalled.into());
        }
        wait_for_a_turn(public, &caller.link.client_key).await?;
        public.sightings.note(&caller.link, None, arrival.now);
        return match &caller.call {
            JiraCall::User { account_id } => ask_about(public, &caller, account_id, arrival).await,
            _ => read(public, &caller).await,
        };
    }
    let max_bytes = match caller.call {
        JiraCall::Submit(_) => public.limits.rest_body_max_bytes,
        // GitLab sends none with a DELETE, and Jira would not look at it.
        _ => public.limits.header_max_bytes,
    };
    let patience = public.limits.receive_timeout;
    let _room = public
        .bodies
        .take(&head.headers, max_bytes, patience)
        .await?;
    let body = read_body(body, &head.headers, max_bytes, patience)
        .await
        .map_err(|reject| match reject.kind {
            RejectKind::TooSlow => pushed_back(reject),
            _ => reject,
        })?;
    write(public, caller, body, arrival).await
}

/// A read waits a little while its site is too fast: GitLab asks while a person waits.
async fn wait_for_a_turn(public: &Public, client_key: &ClientKey) -> Result<(), Reject> {
    let deadline = Instant::now() + TURN_PATIENCE;
    while let Err(wait) = public.site_paces.take(client_key) {
        if Instant::now() + wait > deadline {
            return Err(Reject::too_fast(
                "the instances of this site make too many calls at once",
                "try again later; the operator can raise limits.requests_per_installation_per_sec",
                wait,
            ));
        }
        tokio::time::sleep(wait).await;
    }
    Ok(())
}

/// Memory for bodies that are being handled. Large ones have their own, so that full synchronisations leave room for
/// everybody's pushes.
pub(super) struct BodyRoom {
    small: Semaphore,
    large: Semaphore,
}

/// How long a read waits for its turn.
const TURN_PATIENCE: Duration = Duration::from_secs(3);

/// KiB for bodies of either kind.
const BODY_ROOM_KIB: u32 = 128 * 1024;

/// A large body has more.
const SMALL_BODY_MAX_KIB: u32 = 256;

impl Default for BodyRoom {
    fn default() -> Self {
        let room = || Semaphore::new(BODY_ROOM_KIB as usize);
        Self {
            small: room(),
            large: room(),
        }
    }
}

impl BodyRoom {
    /// Waits for room for a body of the announced size, or of the largest there may be.
    async fn take(
        &self,
        headers: &HeaderMap,
        max_bytes: usize,
        patience: Duration,
    ) -> Result<SemaphorePermit<'_>, Reject> {
        let length = headers.get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        let kib = length.unwrap_or(max_bytes).min(max_bytes).div_ceil(1024);
        let kib = u32::try_from(kib).unwrap_or(u32::MAX).min(BODY_ROOM_KIB);
        let room = if kib <= SMALL_BODY_MAX_KIB {
            &self.small
        } else {
            &self.large
        };
        match tokio::time::timeout(patience, room.acquire_many(kib)).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(pushed_back(Reject::new(
                RejectKind::Unavailable,
                "too_many_bodies",
                "the relay has as many bodies in hand as it has room for",
                "try again",
            ))),
        }
    }
}

/// Who calls, from the token alone: see `jira::recognise`. Then the token's claims, then whether the link still
/// stands, then whether the call is one that GitLab makes.
async fn caller(public: &Public, head: &Parts, arrival: &Arrival) -> Result<Caller, Reject> {
    let unbelieved = |error| public.unbelieved(TokenKind::Instance, error);
    let target = public.target(path_and_query(head), TokenKind::Instance)?;
    let token = UnverifiedToken::find(&head.headers, target.tokens(), None).map_err(unbelieved)?;
    let proven = prove(public, head, &target, &token, arrival).await;
    trace::note(|| token.seen(TokenKind::Instance, proven.as_ref().err()));
    let (link, installation) = proven.map_err(unbelieved)?;
    trace::note(|| Hop::Recognised {
        client_key: link.client_key.clone(),
        link: Some((link.id, link.instance_url.clone())),
    });
    let call = calls::parse(&head.method, &target).map_err(|error| Reject {
        internal: Some(format!(
            "{} {}",
            head.method,
            target.path().chars().take(200).collect::<String>()
        )),
        ..Reject::from(error)
    })?;
    Ok(Caller {
        link,
        installation,
        call,
    })
}

/// The link and the site that the token proves.
async fn prove(
    public: &Public,
    head: &Parts,
    target: &Target,
    token: &UnverifiedToken,
    arrival: &Arrival,
) -> Result<(Arc<Link>, Arc<Installation>), VerifyError> {
    let recognised = public
        .recogniser
        .recognise(token, arrival.peer.ip(), arrival.now);
    let link = recognised.await?;
    arrival.notes.link(&link);
    instance::check_claims(token, head.method.as_str(), target, arrival.now)?;
    // The signature proves that the instance holds the link's secret, whatever its acknowledgement said.
    if !link.is_heard(arrival.now) {
        return Err(VerifyError::LinkRemoved);
    }
    let installation = public.store.installation(&link.client_key);
    // While one stands by, what is sent waits for a move to it.
    let installation = installation.filter(|site| site.open_ways().next().is_some());
    Ok((link, installation.ok_or(VerifyError::Uninstalled)?))
}

/// An operator at the page outside Jira is known to us alone; all others to Jira.
async fn ask_about(
    public: &Public,
    caller: &Caller,
    account_id: &str,
    arrival: &Arrival,
) -> Result<Response<Body>, Reject> {
    let link = &caller.link;
    let account = public
        .sessions
        .account(account_id, &link.client_key, link.id, arrival.now);
    let upstream = caller.installation.upstream.kind();
    let Some(answer) = user::own_answer(account, account_id, upstream)? else {
        return read(public, caller).await;
    };
    // Once is enough: an instance that goes on asking must not push other entries out of the trail.
    if account == (Account::Operator { first: true }) {
        let entry = AuditEntry {
            account_id: Some(account_id.to_owned()),
            request_id: Some(arrival.id.clone()),
            peer: Some(arrival.peer.ip()),
            note: Some(format!(
                "{} was told that it is an admin's",
                link.instance_url
            )),
            ..AuditEntry::new(arrival.now, Actor::Relay, "operator_vouched_for").about(link)
        };
        public.store.record(entry).await?;
        public.sessions.vouched(account_id, link.id);
    }
    Ok(json(StatusCode::OK, answer))
}

async fn read(public: &Public, caller: &Caller) -> Result<Response<Body>, Reject> {
    let Caller {
        link,
        installation,
        call,
    } = caller;
    let now = clock::now();
    if let Some(wait) = public.spool.held(&link.client_key, call.endpoint(), now) {
        return Err(Reject::new(
            RejectKind::Throttled,
            "jira_throttled",
            format!(
                "Jira wants no more calls for another {} s",
                wait.as_secs() + 1
            ),
            "try again then; GET /api/v1/spool says which limit it is",
        ));
    }
    let answer = public
        .forwarder
        .call(installation, call, Bytes::new(), now)
        .await?;
    if answer.status() == StatusCode::TOO_MANY_REQUESTS
        && let Some(throttle) = throttle(answer.status(), answer.headers(), now)
    {
        public
            .spool
            .exhausted(installation, call.endpoint(), throttle, now);
    }
    if answer.status().is_redirection() {
        return Err(Reject::new(
            RejectKind::BadGateway,
            "jira_redirected",
            "Jira answered with a redirect, which is not followed: the site may have been renamed",
            "it works again when Jira has sent `installed` with the new address",
        ));
    }
    let (head, body) = answer.into_parts();
    let mut response = Response::new(Body::Streamed(body));
    *response.status_mut() = head.status;
    for name in [header::CONTENT_TYPE, header::RETRY_AFTER] {
        if let Some(value) = head.headers.get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    Ok(response)
}

async fn write(
    public: &Public,
    caller: Caller,
    body: Bytes,
    arrival: &Arrival,
) -> Result<Response<Body>, Reject> {
    let Caller {
        link,
        installation,
        call,
    } = caller;
    let prepared = prepare(public, &link, call, body)?;
    public
        .sightings
        .note(&link, prepared.product.as_deref(), arrival.now);
    let Prepared {
        call, body, size, ..
    } = prepared;
    let now = clock::now();
    let admission = public.spool.admit(&link, &call, &body, now);
    // The body took its time, in which the site may have been moved or renamed.
    let installation = public
        .store
        .installation(&link.client_key)
        .unwrap_or(installation);
    let (ticket, why) = match admission {
        Admission::Removed => return Err(VerifyError::LinkRemoved.into()),
        Admission::Wait(ticket, reason) => (ticket, Why::Behind(reason)),
        // GitLab would drop it after a 429; from the spool it goes in its turn.
        Admission::Direct(ticket) if public.site_paces.take(&link.client_key).is_err() => {
            (ticket, Why::Behind("over_rate"))
        }
        Admission::Direct(ticket) if !installation.is_installed() => {
            let setback = Setback::of_shut_way(&installation.standby);
            (ticket, Why::SetBack(setback, installation))
        }
        Admission::Direct(ticket) => {
            let sent = deliver(&public.forwarder, &installation, &call, &body, size, now);
            // GitLab waits 20 s; a write in many pieces, or signed twice, may take longer.
            let patience = public.forwarder.timeout() * 3 / 2;
            let sent = tokio::time::timeout(patience, sent).await;
            match sent.unwrap_or_else(|_| Err(Setback::slow(patience))) {
                Ok(delivered) => {
                    ticket.got_through(call.endpoint());
                    if let Some(throttle) = delivered.throttle {
                        public
                            .spool
                            .exhausted(&installation, call.endpoint(), throttle, now);
                    }
                    return Ok(answer(&link, &call, delivered));
                }
                Err(setback) => (ticket, Why::SetBack(setback, installation)),
            }
        }
    };
    let _ = arrival.notes.spooled.set(why.reason());
    trace::note(|| Hop::Waits(why.reason(), why.message().map(|m| hop::short(m).into())));
    let kept = public.spool.park(ticket, call, body, &arrival.id, why, now);
    kept.await.map_err(|error| pushed_back(error.into()))?;
    trace::note(|| Hop::Kept);
    Ok(json(StatusCode::ACCEPTED, Bytes::from_static(b"{}")))
}

/// An error status is the end of a write for GitLab; a connection that breaks is tried again.
fn pushed_back(reject: Reject) -> Reject {
    Reject {
        kind: RejectKind::PushedBack,
        ..reject
    }
}

/// A write in the words of the app.
struct Prepared {
    call: JiraCall,
    body: Bytes,
    size: Size,
    product: Option<String>,
}

impl Prepared {
    fn without_body(call: JiraCall) -> Self {
        Self {
            call,
            body: Bytes::new(),
            size: Size::default(),
            product: None,
        }
    }
}

fn prepare(
    public: &Public,
    link: &Link,
    call: JiraCall,
    body: Bytes,
) -> Result<Prepared, BodyError> {
    match call {
        JiraCall::Submit(family) => {
            let text = std::str::from_utf8(&body).map_err(|_| BodyError::NotUtf8)?;
            let mended = mend(text);
            let changed = matches!(mended, std::borrow::Cow::Owned(_));
            if changed {
                public
                    .metrics
                    .mended
                    .with_label_values(&["characters"])
                    .inc();
            }
            let mut survey = namespace::survey(family, &mended)?;
            let product = survey.product.take();
            let size = Size::from(&survey);
            count_oversize(public, size);
            let own = rewritten(link, family, &mended, &survey)?;
            trace::note(|| Hop::Prepared {
                entities: size.entities,
                rewritten: own.is_some(),
                mended: changed,
            });
            let body = match own {
                Some(own) => Bytes::from(own),
                None if changed => Bytes::from(mended.into_owned()),
                None => body,
            };
            Ok(Prepared {
                call,
                body,
                size,
                product,
            })
        }
        JiraCall::DeleteBranch { repository, .. }
            if link.keep_ids && Namespace::is_in_one(&repository) =>
        {
            Err(BodyError::ForeignId)
        }
        JiraCall::DeleteBranch { repository, branch } => {
            let repository = if link.keep_ids {
                repository
            } else {
                namespace::id_in(&link.namespace, &repository)
            };
            Ok(Prepared::without_body(JiraCall::DeleteBranch {
                repository,
                branch,
            }))
        }
        call => Ok(Prepared::without_body(call)),
    }
}

/// `None` for a link that keeps its ids.
fn rewritten(
    link: &Link,
    family: Family,
    body: &str,
    survey: &Survey,
) -> Result<Option<Vec<u8>>, BodyError> {
    if link.keep_ids {
        return namespace::check_kept(body, survey).map(|()| None);
    }
    namespace::put_in(&link.namespace, family, body, survey).map(Some)
}

fn count_oversize(public: &Public, size: Size) {
    if size.is_over() {
        public.metrics.mended.with_label_values(&["entities"]).inc();
    }
}

/// Jira's answer, in the instance's words and in the shape that it digests.
fn answer(link: &Link, call: &JiraCall, delivered: Delivered) -> Response<Body> {
    let Delivered {
        status,
        body,
        content_type,
        ..
    } = delivered;
    let shaped = shape::for_gitlab(call.endpoint(), status, body.clone());
    let own_words = if link.keep_ids {
        None
    } else {
        namespace::take_out(&link.namespace, &shaped)
    };
    let mut response = json(
        status,
        own_words.map_or_else(|| shaped.clone(), Bytes::from),
    );
    // What was not put into shape is as it came.
    if shaped == body
        && let Some(content_type) = content_type
    {
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, content_type);
    }
    response
}

fn json(status: StatusCode, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::Whole(Full::new(body)));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

impl From<ForwardError> for Reject {
    fn from(error: ForwardError) -> Self {
        let internal = Some(error.to_string());
        let (code, message, hint) = match error {
            ForwardError::Send(_) => (
                "jira_unreachable",
                "Jira did not answer",
                "try again; if it stays so, the operator should look at the log",
            ),
            ForwardError::Token(_) => (
                "jira_token_missing",
                "the relay has no token for this Jira site now",
                "try again; if it stays so, the operator should look at the log",
            ),
            ForwardError::TokenAwaited => (
                "jira_token_missing",
                "the relay has no token for this Jira site until Atlassian sends one, which it does every hour",
                "try again in some minutes, or open the app's page in Jira, which brings one at once; if it stays so, the operator should run the doctor",
            ),
            ForwardError::Lacking(_) => {
                return Self::new(
                    RejectKind::NotFound,
                    "call_not_available",
                    error.to_string(),
                    "the way in which the relay reaches this Jira site does not have it",
                );
            }
            ForwardError::Unsendable(cause) => return Self::internal(cause),
        };
        Self {
            internal,
            ..Self::new(RejectKind::BadGateway, code, message, hint)
        }
    }
}
