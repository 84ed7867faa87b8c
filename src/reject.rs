//! What a caller gets instead of what it asked for.
//!
//! The layers below speak in facts (`VerifyError`, `StoreError`, ...); each says beside its enum how a fact
//! is put to a caller, by turning it into a [`Reject`]. The one match from kind to status code is here, and
//! so is the one body: `{"error": {"code", "message", "hint", "id"}}`.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use serde::Serialize;

/// A refusal: what to tell the caller, and apart from it what to tell the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// Decides the status code.
    pub kind: RejectKind,
    /// Stable name of the reason: snake case, also the metric label.
    pub code: &'static str,
    /// One sentence for the caller; repeats nothing secret.
    pub message: String,
    /// What the caller can do.
    pub hint: String,
    /// Seconds after which it may go better, if that is known.
    pub retry_after: Option<u64>,
    /// For the log only.
    pub internal: Option<String>,
    /// What the caller gets in place of the usual body.
    pub instead: Option<Box<Instead>>,
}

/// The body of a refusal for somebody who can't read the usual one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instead {
    /// Its type.
    pub content_type: &'static str,
    /// It.
    pub body: Bytes,
    /// `Content-Security-Policy`, for a page.
    pub policy: Option<HeaderValue>,
}

/// In an answer's extensions: instead of it, the connection is closed.
#[derive(Clone, Copy, Debug)]
pub struct HangUp;

/// Whose fault it is, and of what sort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectKind {
    /// The request makes no sense.
    Malformed,
    /// No token of a peer, or a bad one.
    Unauthenticated,
    /// No admin token, or a wrong one.
    AdminTokenWanted,
    /// Known, but not allowed.
    Forbidden,
    /// No such thing.
    NotFound,
    /// The path exists, the method does not.
    MethodNotAllowed,
    /// At odds with what is there.
    Conflict,
    /// Understood, but it can't be done; GitLab's number for it.
    Unprocessable,
    /// A body over a size limit.
    TooLarge,
    /// Address and headers over a size limit.
    HeadersTooLarge,
    /// The caller did not finish in time.
    TooSlow,
    /// Too often; try again later.
    Throttled,
    /// Not now; try again.
    Unavailable,
    /// Not now, to a caller that only tries again when its connection breaks: it gets no answer at all.
    PushedBack,
    /// Jira, or an instance, did not do its part.
    BadGateway,
    /// Our fault.
    Internal,
}

impl Reject {
    /// A refusal with all that the caller should know.
    pub fn new(
        kind: RejectKind,
        code: &'static str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            code,
            message: message.into(),
            hint: hint.into(),
            retry_after: None,
            internal: None,
            instead: None,
        }
    }

    /// Too fast: there is room again after `wait`.
    pub fn too_fast(message: impl Into<String>, hint: &str, wait: Duration) -> Self {
        Self {
            retry_after: Some(wait.as_secs() + 1),
            ..Self::new(RejectKind::Throttled, "too_many_requests", message, hint)
        }
    }

    /// Whether the caller should not have asked, or not like that.
    pub fn is_callers_fault(&self) -> bool {
        !matches!(
            self.kind,
            RejectKind::Throttled
                | RejectKind::Unavailable
                | RejectKind::PushedBack
                | RejectKind::BadGateway
                | RejectKind::Internal
        )
    }

    /// Our fault: the caller learns nothing but the id to ask us about.
    pub fn internal(cause: impl ToString) -> Self {
        Self {
            internal: Some(cause.to_string()),
            ..Self::new(
                RejectKind::Internal,
                "internal_error",
                "something went wrong here",
                "give the id to the operator of this relay: the cause is in its log",
            )
        }
    }

    /// No such path or record.
    pub fn not_found(what: &str) -> Self {
        Self::new(
            RejectKind::NotFound,
            "not_found",
            format!("there is no {what}"),
            "check the address",
        )
    }

    /// The path exists with other methods.
    pub fn method_not_allowed(allowed: &str) -> Self {
        Self::new(
            RejectKind::MethodNotAllowed,
            "method_not_allowed",
            "this path does not take that method",
            format!("use {allowed}"),
        )
    }

    /// The status code. The only place that knows.
    pub fn status(&self) -> StatusCode {
        match self.kind {
            RejectKind::Malformed => StatusCode::BAD_REQUEST,
            RejectKind::Unauthenticated | RejectKind::AdminTokenWanted => StatusCode::UNAUTHORIZED,
            RejectKind::Forbidden => StatusCode::FORBIDDEN,
            RejectKind::NotFound => StatusCode::NOT_FOUND,
            RejectKind::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            RejectKind::Conflict => StatusCode::CONFLICT,
            RejectKind::Unprocessable => StatusCode::UNPROCESSABLE_ENTITY,
            RejectKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            RejectKind::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            RejectKind::TooSlow => StatusCode::REQUEST_TIMEOUT,
            RejectKind::Throttled => StatusCode::TOO_MANY_REQUESTS,
            RejectKind::Unavailable | RejectKind::PushedBack => StatusCode::SERVICE_UNAVAILABLE,
            RejectKind::BadGateway => StatusCode::BAD_GATEWAY,
            RejectKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The answer, with the request's id in it.
    pub fn response(&self, request_id: &str) -> Response<Full<Bytes>> {
        #[derive(Serialize)]
        struct Envelope<'a> {
            error: Inner<'a>,
        }
        #[derive(Serialize)]
        struct Inner<'a> {
            code: &'a str,
            message: &'a str,
            hint: &'a str,
            id: &'a str,
        }
        let body = serde_json::to_vec(&Envelope {
            error: Inner {
                code: self.code,
                message: &self.message,
                hint: &self.hint,
                id: request_id,
            },
        })
        .unwrap_or_default();
        let mut response = Response::new(Full::from(body));
        *response.status_mut() = self.status();
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        if let Some(instead) = &self.instead {
            *response.body_mut() = Full::from(instead.body.clone());
            let content_type = HeaderValue::from_static(instead.content_type);
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, content_type);
            if let Some(policy) = &instead.policy {
                response
                    .headers_mut()
                    .insert(header::CONTENT_SECURITY_POLICY, policy.clone());
            }
        }
        let mut insert = |name, value: &str| {
            let value = HeaderValue::from_str(value).expect("a number or a plain word");
            response.headers_mut().insert(name, value);
        };
        match self.kind {
            // RFC 9110 section 15.5.2 wants a challenge; "JWT" is the scheme that Connect uses.
            RejectKind::Unauthenticated => {
                insert(header::WWW_AUTHENTICATE, "JWT");
            }
            RejectKind::AdminTokenWanted => {
                insert(header::WWW_AUTHENTICATE, "Bearer");
            }
            RejectKind::Throttled | RejectKind::Unavailable => {
                let seconds = self.retry_after.unwrap_or(5);
                insert(header::RETRY_AFTER, &seconds.to_string());
            }
            RejectKind::PushedBack => {
                response.extensions_mut().insert(HangUp);
            }
            // A body may still be on its way, so the connection cannot be used again.
            RejectKind::TooLarge | RejectKind::HeadersTooLarge | RejectKind::TooSlow => {
                insert(header::CONNECTION, "close");
            }
            _ => {}
        }
        response
    }
}
