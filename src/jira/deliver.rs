//! One write, all the way to Jira: in as many requests as its limits want, with one answer.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use jiff::Timestamp;
use serde_json::Value;
use tokio::time::Instant;

use super::{
    Forwarder,
    credentials::permission,
    forward::ForwardError,
    namespace,
    rate_limit::{Scope, Throttle, throttle},
    shape,
    split::{self, Split},
    tokens::TokenError,
};
use crate::{
    client::{SendError, read_answer},
    domain::{Family, Installation, JiraCall, UpstreamKind},
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
    // A Connect app's secret comes with Jira's next `installed`, and until then GitLab may know better. Of a token and
    // what it opens the instance knows nothing: that is ours and the Jira admin's to mend.
    if installation.upstream.as_connect().is_none()
        && let Some(setback) = Setback::of_refusal(call, &delivered)
    {
        return Err(setback);
    }
    Ok(delivered)
}

/// The statuses that may be another one the next time: what GitLab would lose (GitLab reference: no retry on 429
/// and 503), and redirects, which a renamed site gives until its `installed` arrives.
fn later(status: StatusCode) -> Option<&'static str> {
    match status.as_u16() {
        429 => Some("throttled"),
        502 => Some("bad_gateway"),
        503 => Some("unavailable"),
        504 => Some("gateway_timeout"),
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

    /// The way in use is shut, and another is open.
    pub fn move_awaited(others: impl Iterator<Item = UpstreamKind>) -> Self {
        let others: Vec<_> = others.map(UpstreamKind::as_str).collect();
        let others = others.join(" or ");
        Self {
            reason: "move_awaited",
            message: format!(
                "the way to the site is shut; it can be moved: `jira-connect-proxy installations move` to {others}"
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

    /// Jira refuses what a token should open.
    ///
    /// A permission that is missing is one family's matter: 403, or 401 with these words (`api.atlassian.com`, see the
    /// reference of its error bodies in Forge's "Product REST API"). Any other 401 is about the token.
    fn of_refusal(call: &JiraCall, delivered: &Delivered) -> Option<Self> {
        let mut setback = Self::of_answer(delivered);
        let lacking = match delivered.status {
            StatusCode::UNAUTHORIZED => setback.message.contains(SCOPE_MISMATCH),
            StatusCode::FORBIDDEN => true,
            // Nobody sends new data to nowhere: the gateway does not know the site any more.
            StatusCode::NOT_FOUND if matches!(call, JiraCall::Submit(_)) => false,
            _ => return None,
        };
        if lacking {
            let what = call.family().map_or("this call", permission);
            setback.reason = "forbidden";
            setback.message = format!("{}; the permission for {what} is missing", setback.message);
            setback.throttle.scope = Scope::Endpoint;
        }
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

    fn refusal(call: &JiraCall, status: u16, body: &'static str) -> Option<(&'static str, Scope)> {
        let delivered = Delivered {
            status: StatusCode::from_u16(status).expect("status"),
            body: Bytes::from_static(body.as_bytes()),
            content_type: None,
            throttle: None,
        };
        let setback = Setback::of_refusal(call, &delivered)?;
        Some((setback.reason, setback.throttle.scope))
    }

    #[test]
    fn a_refused_token_holds_the_site_and_a_missing_permission_its_family() {
        let builds = JiraCall::Submit(Family::Builds);
        let over = r#"{"code":401,"message":"Unauthorized"}"#;
        let scope = r#"{"code":401,"message":"Unauthorized; scope does not match"}"#;
        for (status, body, expected) in [
            (401, over, ("unauthorized", Scope::Installation)),
            (401, "", ("unauthorized", Scope::Installation)),
            (401, scope, ("forbidden", Scope::Endpoint)),
            (403, "[]", ("forbidden", Scope::Endpoint)),
            (404, "", ("jira_error", Scope::Installation)),
        ] {
            assert_eq!(
                refusal(&builds, status, body),
                Some(expected),
                "{status} {body}"
            );
        }
        // What is not there need not be deleted, and other refusals are the write's own.
        let branch = JiraCall::DeleteBranch {
            repository: "1".to_owned(),
            branch: "2".to_owned(),
        };
        assert_eq!(refusal(&branch, 404, ""), None);
        assert_eq!(refusal(&builds, 400, ""), None);
        assert_eq!(refusal(&builds, 413, ""), None);
    }
}
