//! What was noted, as spans: one for the whole, one for each call to a peer, an event for each other hop.
//!
//! Names of attributes are those of OpenTelemetry's semantic conventions for HTTP
//! (<https://opentelemetry.io/docs/specs/semconv/http/http-spans/>) where there is one.

use std::sync::Arc;

use jiff::Timestamp;
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{
        ResourceSpans, ScopeSpans, Span, Status, span, span::SpanKind, status::StatusCode,
    },
};

use crate::trace::{Call, Hop, Subject, Trace, hop::short};

/// Who sends.
pub(super) fn resource(public_url: &str) -> Resource {
    Resource {
        attributes: vec![
            text("service.name", env!("CARGO_PKG_NAME")),
            text("service.version", env!("CARGO_PKG_VERSION")),
            text("service.instance.id", public_url),
        ],
        ..Resource::default()
    }
}

/// Everything that a batch has to say.
pub(super) fn of(resource: Resource, batch: &[Arc<Trace>]) -> ResourceSpans {
    ResourceSpans {
        resource: Some(resource),
        scope_spans: vec![ScopeSpans {
            scope: Some(InstrumentationScope {
                name: env!("CARGO_PKG_NAME").to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                ..InstrumentationScope::default()
            }),
            spans: batch.iter().flat_map(|trace| spans(trace)).collect(),
            ..ScopeSpans::default()
        }],
        ..ResourceSpans::default()
    }
}

fn spans(trace: &Trace) -> Vec<Span> {
    let began = nanoseconds(trace.started_at);
    let at = |after_us: u64| began.saturating_add(after_us.saturating_mul(1000));
    let (context, mut attributes) = (&trace.context, about(&trace.subject));
    attributes.push(text(
        "jira_connect_proxy.id",
        &trace.id.simple().to_string(),
    ));
    let blank = Span {
        trace_id: context.trace_id.to_be_bytes().to_vec(),
        trace_state: context.state().unwrap_or_default().to_owned(),
        // Sampled, or it would not be here.
        flags: 1,
        ..Span::default()
    };
    let mut whole = Span {
        span_id: context.span_id.to_be_bytes().to_vec(),
        parent_span_id: context
            .parent
            .map(|parent| parent.to_be_bytes().to_vec())
            .unwrap_or_default(),
        name: name(&trace.subject),
        kind: match &trace.subject {
            Subject::Request { .. } => SpanKind::Server,
            Subject::Delivery { .. }
            | Subject::Replay { .. }
            | Subject::Deletion { .. }
            | Subject::Look { .. } => SpanKind::Internal,
        } as i32,
        start_time_unix_nano: began,
        end_time_unix_nano: began,
        ..blank.clone()
    };
    let mut calls = Vec::new();
    trace.hops(|hops| {
        for (after_us, hop) in hops {
            whole.end_time_unix_nano = whole.end_time_unix_nano.max(at(*after_us));
            match hop {
                Hop::Called(call) => calls.push(Span {
                    span_id: call.span_id.to_be_bytes().to_vec(),
                    parent_span_id: context.span_id.to_be_bytes().to_vec(),
                    start_time_unix_nano: at(call.began_us),
                    end_time_unix_nano: at(call.began_us.saturating_add(call.took_us)),
                    ..called(call, blank.clone())
                }),
                Hop::Recognised { client_key, link } => {
                    let key = client_key.as_str();
                    attributes.push(text("jira_connect_proxy.client_key", key));
                    if let Some((link, instance_url)) = link {
                        attributes.push(text("jira_connect_proxy.link_id", &link.to_string()));
                        let url = instance_url.as_str();
                        attributes.push(text("jira_connect_proxy.instance_url", url));
                    }
                }
                Hop::Answered(status, _) => {
                    attributes.push(number("http.response.status_code", *status));
                    // 4xx is the caller's error, not this server's.
                    let failed = (*status >= 500).then(|| error(&status.to_string()));
                    whole.status = failed;
                }
                Hop::Ended(outcome, fault) => {
                    attributes.push(text("jira_connect_proxy.outcome", outcome));
                    whole.status = fault.as_ref().map(|fault| error(&fault.message));
                }
                hop => whole.events.push(event(hop, at(*after_us))),
            }
            if let Some(fault) = hop.fault() {
                attributes.push(text("error.type", fault.code));
            }
        }
    });
    whole.attributes = attributes;
    calls.push(whole);
    calls
}

fn name(subject: &Subject) -> String {
    match subject {
        Subject::Request { route, method, .. } => format!("{method} {route}"),
        Subject::Delivery { goal, .. } => format!("deliver {}", goal.event),
        Subject::Replay { endpoint, .. } => format!("replay {endpoint}"),
        Subject::Deletion { family, .. } => format!("delete {family}"),
        Subject::Look { .. } => "look".to_owned(),
    }
}

fn about(subject: &Subject) -> Vec<KeyValue> {
    match subject {
        Subject::Request {
            listener,
            route,
            method,
            peer,
        } => vec![
            text("http.request.method", method),
            text("http.route", route),
            text("network.peer.address", &peer.ip().to_string()),
            text("jira_connect_proxy.listener", listener),
        ],
        Subject::Delivery {
            link,
            client_key,
            instance_url,
            goal,
        } => vec![
            text("jira_connect_proxy.event", goal.event.as_str()),
            text("jira_connect_proxy.link_id", &link.to_string()),
            text("jira_connect_proxy.client_key", client_key.as_str()),
            text("jira_connect_proxy.instance_url", instance_url.as_str()),
        ],
        Subject::Replay {
            link,
            client_key,
            endpoint,
            ..
        } => vec![
            text("jira_connect_proxy.endpoint", endpoint),
            text("jira_connect_proxy.link_id", &link.to_string()),
            text("jira_connect_proxy.client_key", client_key.as_str()),
        ],
        Subject::Deletion {
            link,
            client_key,
            family,
        } => vec![
            text("jira_connect_proxy.family", family),
            text("jira_connect_proxy.link_id", &link.to_string()),
            text("jira_connect_proxy.client_key", client_key.as_str()),
        ],
        Subject::Look { instance_url } => vec![text(
            "jira_connect_proxy.instance_url",
            instance_url.as_str(),
        )],
    }
}

fn called(call: &Call, blank: Span) -> Span {
    let host = call.uri.host().unwrap_or_default();
    let mut attributes = vec![
        text("http.request.method", call.method.as_str()),
        text("server.address", host),
        text("url.path", short(call.uri.path())),
    ];
    if let Some(port) = call.uri.port_u16() {
        attributes.push(number("server.port", port));
    }
    let status = match &call.outcome {
        Ok(status) => {
            attributes.push(number("http.response.status_code", *status));
            (*status >= 400).then(|| error(""))
        }
        Err(cause) => Some(error(cause)),
    };
    Span {
        name: call.method.to_string(),
        kind: SpanKind::Client as i32,
        attributes,
        status,
        ..blank
    }
}

/// A token, a wait, a change: with its sentence.
fn event(hop: &Hop, at: u64) -> span::Event {
    let shown = hop.view();
    let field = |name: &str| shown.get(name).and_then(|text| text.as_str());
    span::Event {
        time_unix_nano: at,
        name: field("hop").unwrap_or_default().to_owned(),
        attributes: vec![text("text", field("text").unwrap_or_default())],
        ..span::Event::default()
    }
}

fn nanoseconds(at: Timestamp) -> u64 {
    u64::try_from(at.as_nanosecond()).unwrap_or_default()
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

fn number(key: &str, value: u16) -> KeyValue {
    attribute(key, Value::IntValue(value.into()))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

fn error(message: &str) -> Status {
    Status {
        message: message.to_owned(),
        code: StatusCode::Error as i32,
    }
}
