//! One write, all the way to Jira: in as many requests as its limits want, with one answer.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use jiff::Timestamp;
use serde_json::Value;
use tokio::time::Instant;

use super::{
    Forwarder,
    credentials::{self, permission},
    forward::ForwardError,
    namespace,
    rate_limit::{Scope, Throttle, throttle},
    shape,
    split::{self, Split},
    tokens::TokenError,
};
use crate::{
    client::{SendError, read_answer},
    domain::{Family, Installation, JiraCall, Upstream},
};

/// A success lists what was taken, up to a thousand entities.
const ANSWER_MAX_BYTES: usize = 4 * 1024 * 1024;

/// What the gateway says of a token that is good but opens something else.
const SCOPE_MISMATCH: &str = "scope does not match";

/// Jira's answer to a write.
#[derive(Clone, Debug)]
pub struct Delivered {
    /// What it said; of several requests, the worst.
    pub status: StatusCode,
    /// How.
    pub body: Bytes,
    /// In which form.
    pub content_type: Option<HeaderValue>,
    /// What it asks for with it.
    pub throttle: Option<Throttle>,
}

/// Jira could not take a write now. The same write can be sent again later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setback {
    /// Stable name, also a metric label.
    pub reason: &'static str,
    /// One sentence.
    pub message: String,
    /// What must wait, and how long at least.
    pub throttle: Throttle,
}

/// Counts of a body, which tell whether it must be divided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Entities in all.
    pub entities: usize,
    /// The most of one kind in one list.
    pub longest_list: usize,
}

impl Size {
    /// Whether Jira would refuse it as one request.
    pub fn is_over(self) -> bool {
        self.entities > split::ENTITIES_MAX || self.longest_list > split::LIST_MAX
    }
}

impl From<&namespace::Survey> for Size {
    fn from(survey: &namespace::Survey) -> Self {
        Self {
            entities: survey.entities,
            longest_list: survey.longest_list,
        }
    }
}

/// Sends a write. A `Setback` of one of its requests is one of the whole: what got through is simply sent again,
/// because Jira ignores a sequence number that it has.
pub async fn deliver(
    forwarder: &Forwarder,
    installation: &Arc<Installation>,
    call: &JiraCall,
    body: &Bytes,
    size: Size,
    now: Timestamp,
) -> Result<Delivered, Setback> {
    let JiraCall::Submit(family) = call else {
        return one(forwarder, installation, call, body.clone(), now).await;
    };
    if !size.is_over() {
        let delivered = one(forwarder, installation, call, body.clone(), now).await?;
        if delivered.status != StatusCode::PAYLOAD_TOO_LARGE || size.entities < 2 {
            return Ok(delivered);
        }
    }
    let entities_max = if size.is_over() {
        split::ENTITIES_MAX
    } else {
        size.entities.div_ceil(2)
    };
    let text = std::str::from_utf8(body).unwrap_or_default();
    let Ok(divided) = Split::new(*family, text, entities_max, split::LIST_MAX) else {
        // Jira says what is wrong with it.
        return one(forwarder, installation, call, body.clone(), now).await;
    };
    let mut answers = Vec::new();
    let mut worst: Option<Delivered> = None;
    let started = Instant::now();
    let mut left = divided.len();
    for piece in divided.pieces() {
        left -= 1;
        // The first one to send comes last.
        let mut pieces = vec![Bytes::from(piece)];
        while let Some(piece) = pieces.pop() {
            // Each is signed with its own time: many may take longer than a token lives.
            let now = now.saturating_add(started.elapsed()).unwrap_or(now);
            let delivered = one(forwarder, installation, call, piece.clone(), now).await?;
            if delivered.status == StatusCode::PAYLOAD_TOO_LARGE {
                let mut smaller = halved(*family, &piece);
                if smaller.len() > 1 {
                    smaller.reverse();
                    pieces.append(&mut smaller);
                    continue;
                }
            }
            let more = left > 0 || !pieces.is_empty();
            if let Some(throttle) = delivered.throttle.filter(|_| more) {
                return Err(Setback::exhausted(throttle));
            }
            if delivered.status.is_success() {
                answers.push(serde_json::from_slice::<Value>(&delivered.body).unwrap_or_default());
            } else if worst
                .as_ref()
                .is_none_or(|worst| worst.status < delivered.status)
            {
                worst = Some(delivered);
            }
        }
    }
    Ok(worst.unwrap_or_else(|| Delivered {
        status: StatusCode::ACCEPTED,
        body: split::merge(answers).to_string().into(),
        content_type: None,
        throttle: None,
    }))
}

async fn one(
    forwarder: &Forwarder,
    installation: &Arc<Installation>,
    call: &JiraCall,
    body: Bytes,
    now: Timestamp,
) -> Result<Delivered, Setback> {
    let answer = match forwarder.call(installation, call, body, now).await {
        Ok(answer) => answer,
        Err(error) => return Err(Setback::from(error)),
    };
    let status = answer.status();
    let throttle = throttle(status, answer.headers(), now);
    if let Some(reason) = later(status) {
        let message = match answer.headers().get(header::LOCATION) {
            Some(location) => format!(
                "Jira answered {status} and points to {}: the site may have been renamed",
                location
                    .to_str()
                    .unwrap_or("?")
                    .chars()
                    .take(200)
                    .collect::<String>()
            ),
            None => format!("Jira answered {status}"),
        };
        return Err(Setback {
            reason,
            message,
            throttle: throttle.unwrap_or_else(Throttle::of_installation),
        });
    }
    let content_type = answer.headers().get(header::CONTENT_TYPE).cloned();
    let reading = tokio::time::timeout(forwarder.timeout(), read_answer(answer, ANSWER_MAX_BYTES));
    let body = match reading
        .await
        .unwrap_or(Err(SendError::TimedOut(forwarder.timeout())))
    {
        Ok(answer) => answer.into_body(),
        // Jira has said that it took it; the rest is for a log.
        Err(_) if status.is_success() => Bytes::from_static(b"{}"),
        Err(error) => return Err(Setback::from(ForwardError::Send(error))),
    };
    let delivered = Delivered {
        status,
        body,
        content_type,
        throttle,
    };
    match Setback::of_refusal(installation, call, &delivered) {
        Some(setback)
            if setback.reason == "unauthorized"
                && credentials::open_anything(forwarder, installation, now).await =>
        {
            Err(setback.lacking(call))
        }
        Some(setback) => Err(setback),
        None => Ok(delivered),
    }
}

/// The statuses that may be another one the next time: what GitLab would lose (GitLab reference: no retry on 429
/// and 503), and what a renamed site gives until its `installed` arrives: redirects, and 405 to who follows one.
fn later(status: StatusCode) -> Option<&'static str> {
    match status.as_u16() {
        429 => Some("throttled"),
        502 => Some("bad_gateway"),
        503 => Some("unavailable"),
        408 | 504 => Some("gateway_timeout"),
        405 => Some("method_refused"),
        300..=399 => Some("redirected"),
        _ => None,
    }
}

/// Two of one, or nothing.
fn halved(family: Family, piece: &Bytes) -> Vec<Bytes> {
    let text = std::str::from_utf8(piece).unwrap_or_default();
    let entities = namespace::survey(family, text).map_or(0, |survey| survey.entities);
    if entities < 2 {
        return Vec::new();
    }
    let divided = Split::new(family, text, entities.div_ceil(2), split::LIST_MAX);
    divided.map_or_else(
        |_| Vec::new(),
        |divided| divided.pieces().map(Bytes::from).collect(),
    )
}

impl Setback {
    /// A success that was the last one for a while.
    pub fn exhausted(throttle: Throttle) -> Self {
        Self {
            reason: "throttled",
            message: "Jira wants no more calls for now".to_owned(),
            throttle,
        }
    }

    /// A write takes longer than its instance waits, though each of its requests is answered in time.
    pub fn slow(patience: Duration) -> Self {
        Self {
            reason: "answer_timed_out",
            message: format!("it was not all sent within {} s", patience.as_secs_f32()),
            throttle: Throttle {
                scope: Scope::Write,
                at_least: Some(Duration::ZERO),
            },
        }
    }

    /// The way in use was left, and others are open.
    pub fn of_shut_way(others: &[Upstream]) -> Self {
        Self::move_awaited(others, "the way to the site is shut")
    }

    /// The way in use takes nothing, and others are open.
    fn move_awaited(others: &[Upstream], told: &str) -> Self {
        let others: Vec<_> = others.iter().map(|way| way.kind().as_str()).collect();
        let others = others.join(" or ");
        Self {
            reason: "move_awaited",
            message: format!(
                "{told}; the site can be moved: `jira-connect-proxy installations move` to {others}"
            ),
            throttle: Throttle::of_installation(),
        }
    }

    /// Our own trouble.
    pub fn own(message: String) -> Self {
        Self {
            reason: "own_trouble",
            message,
            throttle: Throttle {
                scope: Scope::Write,
                at_least: None,
            },
        }
    }

    /// Jira refuses what the instance that waits for the answer can't mend, though it would take it for the end of its
    /// write.
    fn of_refusal(
        installation: &Installation,
        call: &JiraCall,
        delivered: &Delivered,
    ) -> Option<Self> {
        let setback = Self::of_way(delivered)?;
        // What is not there need not be deleted.
        if delivered.status == StatusCode::NOT_FOUND && !matches!(call, JiraCall::Submit(_)) {
            return None;
        }
        if installation.upstream.as_connect().is_none() {
            return Some(setback.of_token(call, delivered.status));
        }
        // The app's secret comes with Jira's next `installed`, and until then GitLab may know better: unless there is
        // somewhere else to go. A deletion of a link's data goes every way by itself.
        let others = &installation.standby;
        if others.is_empty() || matches!(call, JiraCall::DeleteMarked { .. }) {
            return None;
        }
        Some(Self {
            throttle: setback.throttle,
            ..Self::move_awaited(others, &setback.message)
        })
    }

    /// Of a token and what it opens an instance knows nothing: that is ours and the Jira admin's to mend.
    ///
    /// A permission that is missing is one family's matter: 403, or 401 with these words (`api.atlassian.com`, see the
    /// reference of its error bodies in Forge's "Product REST API"). Any other 401 is about the token of a Forge app; for
    /// client credentials nobody documents the words, so they are tried elsewhere.
    fn of_token(mut self, call: &JiraCall, status: StatusCode) -> Self {
        match status {
            StatusCode::FORBIDDEN => self.lacking(call),
            StatusCode::UNAUTHORIZED if self.message.contains(SCOPE_MISMATCH) => self.lacking(call),
            // Nobody sends new data to nowhere: the gateway does not know the site any more.
            _ => {
                self.throttle.scope = Scope::Installation;
                self
            }
        }
    }

    /// It is a permission that is missing.
    fn lacking(self, call: &JiraCall) -> Self {
        let what = call.family().map_or("this call", permission);
        Self {
            reason: "forbidden",
            message: format!("{}; the permission for {what} is missing", self.message),
            throttle: Throttle {
                scope: Scope::Endpoint,
                ..self.throttle
            },
        }
    }

    /// Of an answer that is about the way to the site and not about the write: all of it can be mended while the write
    /// waits, and else the site can be moved.
    pub fn of_way(delivered: &Delivered) -> Option<Self> {
        let scope = match delivered.status {
            // The secret was rotated and we were not told yet, or the app is gone: Jira's next `installed` or
            // `uninstalled` tells.
            StatusCode::UNAUTHORIZED => Scope::Installation,
            // An IP allow list of the site, a module that the app does not declare, a site that is suspended, an API
            // that has ended: others of the endpoint would fare no better.
            StatusCode::FORBIDDEN | StatusCode::NOT_FOUND | StatusCode::GONE => Scope::Endpoint,
            _ => return None,
        };
        let mut setback = Self::of_answer(delivered);
        setback.throttle.scope = scope;
        Some(setback)
    }

    /// For an answer that is final for an instance that waits for it, but not for a write that was acknowledged.
    pub fn of_answer(delivered: &Delivered) -> Self {
        let told = shape::summary(&delivered.body);
        Self {
            reason: match delivered.status {
                StatusCode::UNAUTHORIZED => "unauthorized",
                _ => "jira_error",
            },
            message: format!("Jira answered {}: {told}", delivered.status),
            throttle: Throttle::of_installation(),
        }
    }
}

impl From<ForwardError> for Setback {
    fn from(error: ForwardError) -> Self {
        let reason = match &error {
            ForwardError::Send(SendError::Dial(_)) => "connection_failed",
            ForwardError::Send(SendError::TimedOut(_)) => "answer_timed_out",
            ForwardError::Send(SendError::AnswerTooLarge(_) | SendError::Broken(_)) => {
                "connection_broken"
            }
            ForwardError::Token(TokenError::Refused { .. }) => "token_refused",
            ForwardError::Token(TokenError::NotNow { .. } | TokenError::Silent(_)) => {
                "token_unavailable"
            }
            ForwardError::TokenAwaited => "token_awaited",
            ForwardError::Lacking(_) | ForwardError::Unsendable(_) => "unsendable",
        };
        let at_least = match &error {
            ForwardError::Token(TokenError::NotNow { retry_after, .. }) => *retry_after,
            _ => None,
        };
        let message = match &error {
            ForwardError::Token(error) => format!("{error}; {}", error.hint()),
            error => error.to_string(),
        };
        Self {
            reason,
            message,
            throttle: Throttle {
                at_least,
                ..Throttle::of_installation()
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        ClientKey, CloudId, Credential, JiraSites, SharedSecret,
        event::EventStamp,
        installation::SiteAddress,
        upstream::{Connect, Oauth},
    };

    const BUILDS: JiraCall = JiraCall::Submit(Family::Builds);

    fn oauth() -> Upstream {
        Upstream::Oauth(Oauth {
            client_id: "id".to_owned(),
            client_secret: Credential::parse("secret").expect("credential"),
            cloud_id: CloudId::parse("4c822e2f-510f-48b9-b8d2-8419d0932949").expect("id"),
        })
    }

    fn connect() -> Upstream {
        let secret = "secret-secret-secret-secret-secret-secret";
        let secret = SharedSecret::parse(secret).expect("secret");
        let told = EventStamp {
            issued_at: Timestamp::UNIX_EPOCH,
            token_digest: String::new(),
            body_digest: String::new(),
            received_at: Timestamp::UNIX_EPOCH,
        };
        Upstream::Connect(Connect::new(secret, told))
    }

    fn site(upstream: Upstream, standby: Vec<Upstream>) -> Installation {
        let base_url = JiraSites::default().parse("https://acme.atlassian.net");
        let address = SiteAddress {
            base_url: base_url.expect("address"),
            display_url: None,
        };
        Installation {
            standby,
            ..Installation::new(
                ClientKey::generate(),
                address,
                upstream,
                Timestamp::UNIX_EPOCH,
            )
        }
    }

    fn refusal(
        site: &Installation,
        call: &JiraCall,
        status: u16,
        body: &'static str,
    ) -> Option<(&'static str, Scope)> {
        let delivered = Delivered {
            status: StatusCode::from_u16(status).expect("status"),
            body: Bytes::from_static(body.as_bytes()),
            content_type: None,
            throttle: None,
        };
        let setback = Setback::of_refusal(site, call, &delivered)?;
        Some((setback.reason, setback.throttle.scope))
    }

    fn branch() -> JiraCall {
        JiraCall::DeleteBranch {
            repository: "1".to_owned(),
            branch: "2".to_owned(),
        }
    }

    #[test]
    fn a_refused_token_holds_the_site_and_a_missing_permission_its_family() {
        let site = site(oauth(), vec![]);
        let over = r#"{"code":401,"message":"Unauthorized"}"#;
        let scope = r#"{"code":401,"message":"Unauthorized; scope does not match"}"#;
        for (status, body, expected) in [
            (401, over, ("unauthorized", Scope::Installation)),
            (401, "", ("unauthorized", Scope::Installation)),
            (401, scope, ("forbidden", Scope::Endpoint)),
            (403, "[]", ("forbidden", Scope::Endpoint)),
            (404, "", ("jira_error", Scope::Installation)),
            (410, "", ("jira_error", Scope::Installation)),
        ] {
            assert_eq!(
                refusal(&site, &BUILDS, status, body),
                Some(expected),
                "{status} {body}"
            );
        }
        // What is not there need not be deleted, and other refusals are the write's own.
        assert_eq!(refusal(&site, &branch(), 404, ""), None);
        assert_eq!(refusal(&site, &BUILDS, 400, ""), None);
        assert_eq!(refusal(&site, &BUILDS, 413, ""), None);
    }

    #[test]
    fn a_connect_app_leaves_its_refusals_to_gitlab_unless_there_is_somewhere_to_go() {
        let (alone, other) = (site(connect(), vec![]), site(connect(), vec![oauth()]));
        for (status, scope) in [
            (401, Scope::Installation),
            (403, Scope::Endpoint),
            (404, Scope::Endpoint),
            (410, Scope::Endpoint),
        ] {
            assert_eq!(refusal(&alone, &BUILDS, status, ""), None, "{status}");
            let expected = Some(("move_awaited", scope));
            assert_eq!(refusal(&other, &BUILDS, status, ""), expected, "{status}");
        }
        assert_eq!(refusal(&other, &branch(), 404, ""), None);
        assert_eq!(refusal(&other, &BUILDS, 400, ""), None);
    }
}
