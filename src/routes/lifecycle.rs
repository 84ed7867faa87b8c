//! `events/installed` and `events/uninstalled`: Jira speaks.

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;

use super::{Public, path_and_query};
use crate::{
    domain::LifecycleEventKind,
    exchange::{Arrival, read_small_body},
    jira::lifecycle::{LifecycleCall, LifecycleRules, apply},
    jwt::{TokenKind, UnverifiedToken},
    reject::Reject,
    trace::{self, Hop},
};

/// Takes a lifecycle call. The answer goes out when the change is durable; telling the instances is not part
/// of it. Jira counts 200 and 204 as success, and `uninstalled` is never repeated by it.
pub(super) async fn receive(
    public: &Public,
    kind: LifecycleEventKind,
    request: Request<Incoming>,
    arrival: &Arrival,
) -> Result<Response<Full<Bytes>>, Reject> {
    let unbelieved = |error| public.unbelieved(TokenKind::Lifecycle, error);
    let (head, body) = request.into_parts();
    let target = public.target(path_and_query(&head), TokenKind::Lifecycle)?;
    let token = UnverifiedToken::find(&head.headers, target.tokens(), None).map_err(unbelieved)?;
    let body = read_small_body(body, &head.headers, &public.limits).await?;
    let call = LifecycleCall::parse(&body, kind, &public.app_key, &public.sites)?;
    let verified = public
        .verifier
        .verify(
            &token,
            &call.client_key,
            head.method.as_str(),
            &target,
            arrival.now,
        )
        .await;
    trace::note(|| token.seen(TokenKind::Lifecycle, verified.as_ref().err()));
    let claims = verified.map_err(unbelieved)?;
    let _ = arrival.notes.client_key.set(claims.client_key.clone());
    let client_key = claims.client_key.clone();
    let event = call.into_event(claims, arrival.now);
    let rules = LifecycleRules {
        secret_grace: public.secret_grace,
        auto_link: public.policy.load().auto_link.clone(),
    };
    let (request_id, peer, now) = (arrival.id.clone(), arrival.peer.ip(), arrival.now);
    let change = public
        .store
        .transact(move |transaction| apply(transaction, &event, &rules, &request_id, peer, now))
        .await?;
    // A new secret or address may be what writes wait for.
    public.spool.release(&client_key);
    let change = change.name();
    public
        .metrics
        .lifecycle_events
        .with_label_values(&[kind.as_str(), change])
        .inc();
    let _ = arrival.notes.change.set(change);
    trace::note(|| Hop::Changed(change));
    // Those that it may have made due, or that wait for the same thing already.
    for link in public.store.links_of(&client_key) {
        if !link.is_settled() {
            trace::wanted(&link);
        }
    }
    Response::builder()
        .status(StatusCode::NO_CONTENT)
        .body(Full::default())
        .map_err(Reject::internal)
}
