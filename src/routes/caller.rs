//! Who asks: the site, and the user in it, that one of Jira's tokens proves; or an operator's session.

use std::{borrow::Cow, sync::Arc};

use http::request::Parts;

use super::{Public, outside, path_and_query};
use crate::{
    domain::Installation,
    exchange::Arrival,
    jwt::{Target, TokenKind, UnverifiedToken, VerifyError, context, request},
    reject::Reject,
    sessions::Session,
    trace::{self, Hop},
};

/// A site of Jira's, and perhaps a user of it, or an operator at its page outside Jira.
pub(super) struct Caller {
    pub(super) installation: Arc<Installation>,
    /// The user's, or the session's.
    pub(super) account_id: Option<String>,
    pub(super) session: Option<Arc<Session>>,
}

/// What a token must be bound to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Bound {
    /// Method, path and query.
    Request,
    /// These, or at least tenant and user: for what a browser opens, or GitLab's own page would send.
    RequestOrUser,
    /// Tenant and user, or an operator's session: for what our own page asks.
    User,
}

/// Jira's client may sign a form's fields like a query; then they are part of what is hashed and read.
pub(super) fn target(public: &Public, head: &Parts, form: Option<&str>) -> Result<Target, Reject> {
    let came = path_and_query(head);
    let whole = match form {
        Some(form) if came.contains('?') => Cow::Owned(format!("{came}&{form}")),
        Some(form) => Cow::Owned(format!("{came}?{form}")),
        None => Cow::Borrowed(came),
    };
    public.target(&whole, TokenKind::Request)
}

/// Who asks, by Jira's token: in a header, the query, or a field of the body.
pub(super) fn caller(
    public: &Public,
    head: &Parts,
    target: &Target,
    body_token: Option<&str>,
    arrival: &Arrival,
    bound: Bound,
) -> Result<Caller, Reject> {
    if bound == Bound::User && outside::is_call(&head.headers) {
        let (session, installation) = outside::caller(public, head, arrival)?;
        return Ok(Caller {
            installation,
            account_id: Some(session.account_id.clone()),
            session: Some(session),
        });
    }
    let kind = match bound {
        Bound::User => TokenKind::Context,
        Bound::Request | Bound::RequestOrUser => TokenKind::Request,
    };
    let proven = prove(public, head, target, body_token, arrival, bound);
    let caller = proven.map_err(|error| public.unbelieved(kind, error))?;
    // Noted before is as good.
    let client_key = caller.installation.client_key.clone();
    trace::note(|| Hop::Recognised {
        client_key: client_key.clone(),
        link: None,
    });
    let _ = arrival.notes.client_key.set(client_key);
    Ok(caller)
}

fn prove(
    public: &Public,
    head: &Parts,
    target: &Target,
    body_token: Option<&str>,
    arrival: &Arrival,
    bound: Bound,
) -> Result<Caller, VerifyError> {
    let token = UnverifiedToken::find(&head.headers, target.tokens(), body_token)?;
    let find = |client_key: &_| public.store.installation(client_key);
    let by_user = || {
        let proven = context::verify(&token, &public.audiences, find, arrival.now);
        trace::note(|| token.seen(TokenKind::Context, proven.as_ref().err()));
        proven.map(|claims| Caller {
            installation: claims.installation,
            account_id: claims.account_id,
            session: None,
        })
    };
    if bound == Bound::User {
        return by_user();
    }
    let proven = request::verify(
        &token,
        head.method.as_str(),
        &public.base_path,
        target,
        &public.audiences,
        find,
        arrival.now,
    );
    trace::note(|| token.seen(TokenKind::Request, proven.as_ref().err()));
    match proven {
        Err(VerifyError::ContextToken) if bound == Bound::RequestOrUser => by_user(),
        proven => proven.map(|claims| Caller {
            installation: claims.installation,
            account_id: claims.account_id,
            session: None,
        }),
    }
}
