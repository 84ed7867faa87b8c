//! What every request gets, on both listeners, whatever it asks for: an id, a span, the clock, a deadline,
//! metrics, one closing line, and an answer that carries the id.

use std::{
    pin::Pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use jiff::Timestamp;
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::{
    body::Body,
    clock,
    config::LimitsConfig,
    domain::{ClientKey, Link, LinkId, Peer},
    metrics::{Counted, Metrics},
    reject::{Reject, RejectKind},
    trace::{self, Context, Fault, Hop, Shelf, Subject, Trace, Traces},
};

/// What is known of a request before anybody looks into it.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Stands in the answer and in every log line about the request.
    pub id: String,
    /// When it came; the only time that its handling goes by.
    pub now: Timestamp,
    /// Who sends it: at the other end of the connection, or behind a trusted proxy there.
    pub peer: Peer,
    /// What is found out about it.
    pub notes: Arc<Notes>,
}

/// What handling a request finds out about it, for its closing line. Each is noted once.
#[derive(Debug, Default)]
pub struct Notes {
    /// The site.
    pub client_key: OnceLock<ClientKey>,
    /// The link.
    pub link: OnceLock<LinkId>,
    /// What a lifecycle event changed.
    pub change: OnceLock<&'static str>,
    /// Why a write waits.
    pub spooled: OnceLock<&'static str>,
}

impl Notes {
    /// It is about this link.
    pub fn link(&self, link: &Link) {
        // Noted before is as good.
        let _ = self.link.set(link.id);
        let _ = self.client_key.set(link.client_key.clone());
    }
}

/// What an exchange is counted under.
#[derive(Clone, Copy, Debug)]
pub struct Labels {
    /// `public` or `admin`.
    pub listener: &'static str,
    /// The matched route, never the path.
    pub route: &'static str,
    /// The caller takes an error status for the end, and tries again only when its connection breaks.
    pub push_back: bool,
}

/// What handling a request comes to. Boxed where it is made: handlers are large, and what wraps them here would
/// copy them several times over.
pub type Handling<'a, B> = Pin<Box<dyn Future<Output = Result<Response<B>, Reject>> + Send + 'a>>;

/// Observes; `handle` does. Whatever happens, the exchange ends in one line in the log.
pub async fn observe<'a, B>(
    labels: Labels,
    request: Request<Incoming>,
    peer: Peer,
    limits: &LimitsConfig,
    metrics: &Arc<Metrics>,
    traces: &Arc<Traces>,
    handle: impl FnOnce(Request<Incoming>, Arrival) -> Handling<'a, B>,
) -> Response<Body>
where
    B: Into<Body> + Send + 'a,
{
    let number = uuid::Uuid::new_v4();
    let arrival = Arrival {
        id: number.simple().to_string(),
        now: clock::now(),
        peer,
        notes: Arc::default(),
    };
    let id = arrival.id.clone();
    let method = known_method(request.method());
    let subject = Subject::Request {
        listener: labels.listener,
        route: labels.route,
        method,
        peer,
    };
    let context = Context::of(request.headers(), number);
    let trace = traces.begin(number, context, subject, arrival.now);
    // The closing line says it all; this is for whoever looks closer.
    let span = tracing::debug_span!("request", id, route = labels.route);
    let mut closing = ClosingLine {
        labels,
        method,
        started: Instant::now(),
        peer,
        metrics: Arc::clone(metrics),
        traces: Arc::clone(traces),
        trace: Arc::clone(&trace),
        id: id.clone(),
        notes: Arc::clone(&arrival.notes),
        told: false,
        _in_flight: Counted::new(
            metrics
                .requests_in_flight
                .with_label_values(&[labels.listener]),
        ),
    };
    let handled: Handling<'_, B> = match check_headers(&request, limits.header_max_bytes) {
        Ok(()) => handle(request, arrival),
        Err(reject) => Box::pin(std::future::ready(Err(reject))),
    };
    let handled = trace::within(trace, handled).instrument(span);
    let result = tokio::time::timeout(limits.request_timeout, handled)
        .await
        .unwrap_or_else(|_| {
            let kind = if labels.push_back {
                RejectKind::PushedBack
            } else {
                RejectKind::Unavailable
            };
            Err(Reject::new(
                kind,
                "timed_out",
                "the relay did not finish this in time",
                "try again; whether it took effect is not certain",
            ))
        });
    let (mut response, reject) = match result {
        Ok(response) => (response.map(Into::into), None),
        Err(reject) => (reject.response(&id).map(Into::into), Some(reject)),
    };
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert("x-request-id", id);
    }
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    // Addresses can carry tokens.
    headers.insert(
        header::REFERRER_POLICY,
        HeaderValue::from_static("no-referrer"),
    );
    closing.tell(response.status().as_u16(), reject.as_ref());
    response
}

/// hyper bounds its buffer, which holds up to twice as much before it notices.
fn check_headers(request: &Request<Incoming>, max_bytes: usize) -> Result<(), Reject> {
    let headers = request.headers().iter();
    let headers: usize = headers
        .map(|(name, value)| name.as_str().len() + value.len() + 4)
        .sum();
    let target = request
        .uri()
        .path_and_query()
        .map_or(0, |target| target.as_str().len());
    if headers + target <= max_bytes {
        return Ok(());
    }
    Err(Reject::new(
        RejectKind::HeadersTooLarge,
        "headers_too_large",
        format!("address and headers have more than {max_bytes} bytes"),
        "the operator can raise limits.header_max_bytes",
    ))
}

/// Reads the whole body of a request that is no instance's write to Jira.
pub async fn read_small_body(
    body: Incoming,
    headers: &HeaderMap,
    limits: &LimitsConfig,
) -> Result<Bytes, Reject> {
    read_body(body, headers, limits.body_max_bytes, limits.receive_timeout).await
}

/// Reads a whole body within a size and a time.
pub async fn read_body(
    body: Incoming,
    headers: &HeaderMap,
    max_bytes: usize,
    deadline: Duration,
) -> Result<Bytes, Reject> {
    let too_large = || {
        Reject::new(
            RejectKind::TooLarge,
            "body_too_large",
            format!("the body has more than {max_bytes} bytes"),
            "the operator can raise limits.body_max_bytes, or limits.rest_body_max_bytes for what instances send to Jira",
        )
    };
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > max_bytes as u64) {
        return Err(too_large());
    }
    match tokio::time::timeout(deadline, Limited::new(body, max_bytes).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => Err(Reject {
            internal: Some(error.to_string()),
            ..Reject::new(
                RejectKind::Malformed,
                "body_incomplete",
                "the body broke off before its end",
                "send it again, whole",
            )
        }),
        Err(_) => Err(Reject::new(
            RejectKind::TooSlow,
            "body_too_slow",
            format!("the body was not complete after {} s", deadline.as_secs()),
            "the operator can raise limits.receive_timeout_secs",
        )),
    }
}

/// Reads JSON. What serde says of it may quote a secret, so only the place is told.
pub fn parse_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Reject> {
    serde_json::from_slice(body).map_err(|error| {
        let what = match error.classify() {
            serde_json::error::Category::Data => {
                "the body lacks a field or has one of another type"
            }
            _ => "the body is no JSON",
        };
        Reject::new(
            RejectKind::Malformed,
            "body_malformed",
            format!("{what} (line {}, column {})", error.line(), error.column()),
            "send a JSON object as documented, each field once",
        )
    })
}

/// Answers with JSON.
pub fn json(
    status: http::StatusCode,
    value: &impl Serialize,
) -> Result<Response<Full<Bytes>>, Reject> {
    let body = serde_json::to_vec(value).map_err(Reject::internal)?;
    typed(status, "application/json", body)
}

/// Answers with a body of some type.
pub fn typed(
    status: http::StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Result<Response<Full<Bytes>>, Reject> {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, content_type)
        .body(Full::new(body.into()))
        .map_err(Reject::internal)
}

/// Ends every exchange with one line, also one whose caller hung up.
struct ClosingLine {
    labels: Labels,
    method: &'static str,
    started: Instant,
    peer: Peer,
    metrics: Arc<Metrics>,
    traces: Arc<Traces>,
    trace: Arc<Trace>,
    id: String,
    notes: Arc<Notes>,
    told: bool,
    _in_flight: Counted,
}

impl ClosingLine {
    fn tell(&mut self, status: u16, reject: Option<&Reject>) {
        self.told = true;
        let Labels {
            listener, route, ..
        } = self.labels;
        let (method, peer) = (self.method, self.peer);
        let elapsed = self.started.elapsed();
        let duration_ms = elapsed.as_millis() as u64;
        self.metrics
            .requests
            .with_label_values(&[listener, route, method, &status.to_string()])
            .inc();
        self.metrics
            .request_duration
            .with_label_values(&[listener, route])
            .observe(elapsed.as_secs_f64());
        self.remember(status, reject);
        let id = self.id.as_str();
        let trace_id = format_args!("{:032x}", self.trace.context.trace_id);
        let client_key = self.notes.client_key.get().map(ClientKey::as_str);
        let link = self.notes.link.get().map(tracing::field::display);
        let (change, spooled) = (self.notes.change.get(), self.notes.spooled.get());
        // A level is a constant of its place in the code, so three levels are three places; the fields stand once.
        macro_rules! line {
            ($level:ident, $($rest:tt)*) => {
                tracing::$level!(
                    id, %trace_id, listener, route, client.key = client_key, link.id = link, change, spooled,
                    %peer, method, status, duration_ms, $($rest)*
                )
            };
        }
        let Some(reject) = reject else {
            return line!(info, "{method} {route} answered {status}");
        };
        self.metrics
            .rejections
            .with_label_values(&[listener, reject.code])
            .inc();
        let reason = reject.code;
        let cause = reject.internal.as_deref().unwrap_or("-");
        let message = &reject.message;
        match reject.kind {
            RejectKind::Internal => {
                line!(error, reason, cause, "{method} {route} failed: {cause}");
            }
            // The Internet knocks at doors that are not there all day long.
            RejectKind::NotFound | RejectKind::MethodNotAllowed => {
                line!(
                    info,
                    reason,
                    cause,
                    "{method} {route} answered {status}: {message}"
                );
            }
            _ => {
                line!(
                    warn,
                    reason,
                    cause,
                    "{method} {route} refused with {status}: {message}"
                );
            }
        }
    }

    fn remember(&self, status: u16, reject: Option<&Reject>) {
        let admin = self.labels.listener == "admin";
        let known = match reject.map(|reject| reject.kind) {
            Some(RejectKind::Internal) => true,
            Some(RejectKind::AdminTokenWanted) => false,
            _ => admin || self.notes.client_key.get().is_some(),
        };
        let changes = self.notes.change.get().is_some() || self.notes.spooled.get().is_some();
        let shelf = match (known, reject) {
            (false, _) => Shelf::Strangers,
            (true, None) if !changes && (!admin || self.method == "GET") => Shelf::Routine,
            (true, _) => Shelf::Notable,
        };
        // Whoever watches the relay should not fill its memory with that.
        if admin && shelf == Shelf::Routine {
            return;
        }
        let fault = reject.map(|reject| {
            Box::new(Fault {
                code: reject.code,
                message: reject.message.clone(),
                hint: reject.hint.clone(),
                cause: reject.internal.clone(),
                retry_in_secs: None,
            })
        });
        let trace = Arc::clone(&self.trace);
        self.traces.end(trace, shelf, Hop::Answered(status, fault));
    }
}

impl Drop for ClosingLine {
    fn drop(&mut self) {
        if !self.told {
            // nginx's number for a caller that did not wait; nothing is sent.
            self.tell(499, None);
        }
    }
}

/// Methods are a caller's text; a label is not.
fn known_method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        Method::PATCH => "PATCH",
        _ => "OTHER",
    }
}
