//! `forge/events`, `forge/scheduled`, `forge/uninstall`: triggers of the operator's Forge app; and what its page in Jira
//! needs beside `links...`: who calls, and `page/boot`.
//!
//! Contract: Atlassian's "Forge Remote essentials" and "Sending Forge events to a remote". Each call proves itself by an
//! invocation token and nothing else: what a body says of an installation is not even looked at. It may bring the app's
//! own token for Jira, which is why every call is heard, whatever it asks for.
//!
//! Forge keeps a 401 from its page, so only a token that is not believed is answered so. Events that are answered with
//! anything but success within 5 s are repeated up to four times, a minute apart; the other triggers are not.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use jiff::{SignedDuration, Timestamp};

use super::{Public, caller::Caller, page::origins};
use crate::{
    domain::{
        Actor, AuditEntry, Credential,
        upstream::{Forge, SystemToken},
    },
    exchange::{Arrival, read_small_body, typed},
    forge_sites::{ForgeSites, Heard, NotHeard, Told},
    jwt::{
        InvocationVerifier, TokenKind, UnverifiedToken, VerifiedInvocation,
        token::unverified_expiry,
    },
    reject::{Reject, RejectKind},
    trace::{self, Hop},
};

/// In which Forge sends the app's own token (same source, "Forge Remote request headers").
const SYSTEM_TOKEN: &str = "x-forge-oauth-system";

/// A token lives at least so long, and does not always say how long.
const TOKEN_LIFE: SignedDuration = SignedDuration::from_mins(55);

/// Whatever a token says, it is not counted on for longer than Atlassian lets one live ("Configuring scheduled triggers
/// to invoke a remote backend").
const TOKEN_LIFE_MAX: SignedDuration = SignedDuration::from_hours(4);

/// What made Forge call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trigger {
    /// The app was installed or upgraded. Which of both, only the body tells, and nothing depends on it.
    Event,
    /// An hour has passed.
    Scheduled,
    /// The app is about to be uninstalled.
    Uninstall,
}

impl Trigger {
    /// In metrics and logs.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Event => "forge/events",
            Self::Scheduled => "forge/scheduled",
            Self::Uninstall => "forge/uninstall",
        }
    }
}

/// Whether a call brings a token as Forge does. Nobody else's calls to our page's addresses do.
pub(super) fn is_call(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::AUTHORIZATION).iter();
    let mut schemes = values.filter_map(|value| value.as_bytes().split(|b| *b == b' ').next());
    schemes.any(|scheme| scheme.eq_ignore_ascii_case(b"bearer"))
}

/// Takes a trigger. The answer goes out when what it told is durable.
pub(super) async fn receive(
    public: &Public,
    trigger: Trigger,
    request: Request<Incoming>,
    arrival: &Arrival,
) -> Result<Response<Full<Bytes>>, Reject> {
    let (verifier, sites) = app(public)?;
    let (head, body) = request.into_parts();
    let invocation = prove(public, verifier, &head.headers, arrival).await?;
    if invocation.is_pages() {
        return Err(not_forges(sites, &invocation, arrival));
    }
    let taken = async {
        // Nothing in it is needed, but a connection can only be used again behind it.
        read_small_body(body, &head.headers, &public.limits).await?;
        match trigger {
            Trigger::Event | Trigger::Scheduled => {
                hear(sites, trigger, &invocation, &head.headers, arrival).await
            }
            Trigger::Uninstall => {
                let audit = audit(&invocation, arrival);
                let left = sites.leave(&invocation.installation_id, audit, arrival.now);
                Ok(left.await?)
            }
        }
    };
    match taken.await {
        Ok(heard) => {
            if let Some(heard) = heard {
                tell(public, trigger, &heard, arrival);
            }
            Response::builder()
                .status(StatusCode::NO_CONTENT)
                .body(Full::default())
                .map_err(Reject::internal)
        }
        Err(reject) => {
            if !reject.is_callers_fault() {
                verifier.give_back(&invocation);
            }
            Err(reject)
        }
    }
}

/// Somebody at the page tries to speak for Forge: to have the relay leave the site, for one. The log line says who; the
/// audit trail tells what changed, and is nothing that anybody may fill.
fn not_forges(sites: &ForgeSites, invocation: &VerifiedInvocation, arrival: &Arrival) -> Reject {
    if let Some(known) = sites.find(&invocation.installation_id) {
        let _ = arrival.notes.client_key.set(known.client_key.clone());
    }
    let VerifiedInvocation {
        account_id, module, ..
    } = invocation;
    Reject {
        internal: Some(format!(
            "the Jira user {} called it from {} {}",
            account_id.as_deref().unwrap_or("without a name"),
            module.kind,
            module.key
        )),
        ..Reject::new(
            RejectKind::Forbidden,
            "trigger_not_forges",
            "somebody at the app's page called what only Forge itself may call",
            "nothing was changed; whoever wants the app gone uninstalls it in Jira, and Forge tells the relay",
        )
    }
}

/// What an event or a schedule told. Nothing, if it was sent before the app was uninstalled.
async fn hear(
    sites: &ForgeSites,
    trigger: Trigger,
    invocation: &VerifiedInvocation,
    headers: &HeaderMap,
    arrival: &Arrival,
) -> Result<Option<Heard>, Reject> {
    let is_event = trigger == Trigger::Event;
    let told = told(invocation, headers, is_event, arrival.now)?;
    match sites
        .hear(told, audit(invocation, arrival), arrival.now)
        .await
    {
        Ok(heard) => {
            if trigger == Trigger::Scheduled {
                // What came is kept already, whatever comes of this.
                sites.follow(&heard.client_key, arrival.now).await;
            }
            Ok(Some(heard))
        }
        Err(NotHeard::Left) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// For the closing line, the metrics and the trace.
fn tell(public: &Public, trigger: Trigger, heard: &Heard, arrival: &Arrival) {
    let change = heard.change.name();
    let _ = arrival.notes.client_key.set(heard.client_key.clone());
    public
        .metrics
        .lifecycle_events
        .with_label_values(&[trigger.label(), change])
        .inc();
    let _ = arrival.notes.change.set(change);
    trace::note(|| Hop::Changed(change));
    for link in public.store.links_of(&heard.client_key) {
        if !link.is_settled() {
            trace::wanted(&link);
        }
    }
}

/// Who calls from the page in Forge. What the call brings with it is kept.
pub(super) async fn caller(
    public: &Public,
    headers: &HeaderMap,
    arrival: &Arrival,
) -> Result<Caller, Reject> {
    let (verifier, sites) = app(public)?;
    let invocation = prove(public, verifier, headers, arrival).await?;
    let account_id = invocation.account_id.clone().ok_or_else(|| {
        Reject::new(
            RejectKind::Forbidden,
            "user_missing",
            "the invocation token names no Jira user",
            "only the app's page in Jira may call this",
        )
    })?;
    let told = told(&invocation, headers, false, arrival.now)?;
    let heard = sites
        .hear(told, audit(&invocation, arrival), arrival.now)
        .await?;
    let _ = arrival.notes.client_key.set(heard.client_key.clone());
    let installation = public.store.installation(&heard.client_key);
    // The way in use may be another, and shut.
    let installation = installation.filter(|installation| installation.is_installed());
    let installation = installation.ok_or_else(|| {
        Reject::new(
            RejectKind::Conflict,
            "installation_not_moved",
            "this Jira site was reached another way, which is shut",
            "the operator of the relay can move it: `jira-connect-proxy installations move KEY --to forge`",
        )
    })?;
    trace::note(|| Hop::Recognised {
        client_key: heard.client_key,
        link: None,
    });
    Ok(Caller {
        installation,
        account_id: Some(account_id),
        session: None,
    })
}

/// What the page starts with, where its document does not come from us.
pub(super) async fn boot(
    public: &Public,
    request: Request<Incoming>,
    arrival: &Arrival,
) -> Result<Response<Full<Bytes>>, Reject> {
    let caller = caller(public, request.headers(), arrival).await?;
    let links = public.store.links_of(&caller.installation.client_key);
    let boot = public
        .pages
        .boot(&caller.installation, &origins(&links), None)?;
    typed(StatusCode::OK, "application/json", boot)
}

fn app(public: &Public) -> Result<(&InvocationVerifier, &ForgeSites), Reject> {
    let (verifier, sites) = public.forge.as_ref().ok_or_else(|| {
        Reject::new(
            RejectKind::NotFound,
            "forge_off",
            "this relay serves no Forge app",
            "the operator can name it in forge.app_id",
        )
    })?;
    Ok((verifier, sites))
}

async fn prove(
    public: &Public,
    verifier: &InvocationVerifier,
    headers: &HeaderMap,
    arrival: &Arrival,
) -> Result<VerifiedInvocation, Reject> {
    let unbelieved = |error| public.unbelieved(TokenKind::Invocation, error);
    let token = UnverifiedToken::find_bearer(headers).map_err(unbelieved)?;
    let verified = verifier.verify(&token, arrival.now).await;
    trace::note(|| token.seen(TokenKind::Invocation, verified.as_ref().err()));
    verified.map_err(unbelieved)
}

fn told(
    invocation: &VerifiedInvocation,
    headers: &HeaderMap,
    is_event: bool,
    now: Timestamp,
) -> Result<Told, Reject> {
    let mut headers = headers.get_all(SYSTEM_TOKEN).iter();
    let header = headers.next();
    if headers.next().is_some() {
        return Err(Reject::new(
            RejectKind::Malformed,
            "system_token_ambiguous",
            "the request brings more than one token of the app's own",
            "Forge sends one: look what else puts x-forge-oauth-system into requests",
        ));
    }
    Ok(Told {
        forge: Forge {
            installation_id: invocation.installation_id.clone(),
            cloud_id: invocation.cloud_id.clone(),
            app_version: Some(invocation.app_version.clone()),
            system_token: system_token(header, invocation.is_pages(), now),
            told_at: now,
            refused: None,
        },
        site: invocation.site.clone(),
        issued_at: invocation.issued_at,
        is_event,
    })
}

/// The app's token, if the call brings a usable one. Nothing in it is proven, nor bound to the invocation.
fn system_token(
    header: Option<&HeaderValue>,
    from_page: bool,
    now: Timestamp,
) -> Option<SystemToken> {
    let token = Credential::parse(header?.to_str().ok()?).ok()?;
    let from_now = |life| now.saturating_add(life).unwrap_or(now);
    let told = unverified_expiry(token.expose());
    let expires_at = told.unwrap_or_else(|| from_now(TOKEN_LIFE));
    Some(SystemToken {
        token,
        expires_at: expires_at.min(from_now(TOKEN_LIFE_MAX)),
        from_page,
    })
}

fn audit(invocation: &VerifiedInvocation, arrival: &Arrival) -> AuditEntry {
    AuditEntry {
        account_id: invocation.account_id.clone(),
        request_id: Some(arrival.id.clone()),
        peer: Some(arrival.peer.ip()),
        ..AuditEntry::new(arrival.now, Actor::Jira, "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

    #[test]
    fn a_system_token_is_used_until_its_own_end_or_for_55_minutes() {
        let now = Timestamp::from_second(1_800_000_000).expect("timestamp");
        let jwt = |exp: i64| {
            let claims = URL_SAFE_NO_PAD.encode(format!(r#"{{"exp":{exp}}}"#));
            format!("e30.{claims}.c2ln")
        };
        let end = |text: &str| {
            let header = HeaderValue::from_str(text).expect("header");
            let token = system_token(Some(&header), false, now);
            token.map(|token| token.expires_at.as_second() - 1_800_000_000)
        };
        assert_eq!(end(&jwt(1_800_003_000)), Some(3000));
        assert_eq!(end(&jwt(1_799_999_999)), Some(-1), "over");
        assert_eq!(
            end(&jwt(1_900_000_000)),
            Some(4 * 3600),
            "so long is not believed"
        );
        assert_eq!(end("opaque"), Some(55 * 60));
        assert_eq!(end(""), None);
        assert_eq!(end("two words"), None);
        assert_eq!(end(&"k".repeat(8193)), None);
        assert_eq!(system_token(None, false, now), None);
    }

    #[test]
    fn only_bearers_are_forges() {
        let is_call = |value: &'static str| {
            let value = HeaderValue::from_static(value);
            is_call(&[(header::AUTHORIZATION, value)].into_iter().collect())
        };
        assert!(is_call("Bearer x.y.z") && is_call("bearer x") && is_call("Bearer"));
        assert!(!is_call("JWT x.y.z") && !is_call("Bearer.x") && !is_call(""));
        assert!(!super::is_call(&HeaderMap::new()));
    }
}
