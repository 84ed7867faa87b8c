//! Traces go on: from the caller, to the peers, to the collector.

use std::{
    process::Stdio,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::Full;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::any_value::Value as Attribute,
    trace::v1::{Span, span::SpanKind},
};
use prost::Message as _;
use serde_json::json;

use crate::{
    fakes::{
        FakeInstance, FakeJira,
        http::{FakeServer, answer, client, send},
        secrets,
    },
    harness::{PATIENCE, RelayProcess, SECRET, Settings, TestRelay, free_port},
    stage::instance_token,
};

const PATH: &str = "/rest/builds/0.1/bulk";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

/// A collector of traces, as a small real server.
struct Collector {
    server: FakeServer,
    requests: Arc<Mutex<Vec<(HeaderMap, ExportTraceServiceRequest)>>>,
}

impl Collector {
    async fn start(port: u16) -> Self {
        let requests = Arc::default();
        let kept: Arc<Mutex<Vec<_>>> = Arc::clone(&requests);
        let address = format!("127.0.0.1:{port}").parse().expect("address");
        let server = FakeServer::start_on(address, move |request: Request<Bytes>| {
            let kept = Arc::clone(&kept);
            async move {
                assert_eq!(request.uri().path(), "/v1/traces");
                let (head, body) = request.into_parts();
                let message = ExportTraceServiceRequest::decode(body).expect("protobuf");
                secrets::hear("exported trace", "collector", &format!("{message:?}"));
                kept.lock().expect("lock").push((head.headers, message));
                answer(200, "")
            }
        })
        .await;
        Self { server, requests }
    }

    fn spans(&self) -> Vec<Span> {
        let requests = self.requests.lock().expect("lock");
        let resources = requests.iter().flat_map(|(_, r)| &r.resource_spans);
        let scopes = resources.flat_map(|resource| &resource.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }

    async fn until(&self, what: &str, wanted: impl Fn(&[Span]) -> bool) -> Vec<Span> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let spans = self.spans();
            if wanted(&spans) {
                return spans;
            }
            assert!(Instant::now() < deadline, "never came: {what}; {spans:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A Jira site that takes everything and remembers the headers of the calls.
async fn site() -> (FakeServer, Arc<Mutex<Vec<HeaderMap>>>) {
    let seen: Arc<Mutex<Vec<HeaderMap>>> = Arc::default();
    let kept = Arc::clone(&seen);
    let server = FakeServer::start(move |request: Request<Bytes>| {
        kept.lock().expect("lock").push(request.headers().clone());
        async { answer(202, "{}") }
    })
    .await;
    (server, seen)
}

fn text(span: &Span, name: &str) -> Option<String> {
    let found = span.attributes.iter().find(|pair| pair.key == name)?;
    match found.value.clone()?.value? {
        Attribute::StringValue(text) => Some(text),
        Attribute::IntValue(number) => Some(number.to_string()),
        _ => None,
    }
}

/// A push under the caller's trace.
async fn push(url: &str, secret: &str, flags: &str) -> Response<Bytes> {
    let token = instance_token(secret, "POST", PATH, json!({}));
    let request = Request::post(format!("{url}{PATH}"))
        .header("authorization", format!("JWT {token}"))
        .header("traceparent", format!("00-{TRACE}-{CALLER}-{flags}"))
        .header("tracestate", "vendor=a-value")
        .body(Full::from(json!({"builds": []}).to_string()))
        .expect("request");
    send(&client(), request).await
}

/// The site, the app installed on it, an instance linked; the secret that it got.
async fn linked(jira: &FakeJira, relay: &TestRelay, instance: &FakeInstance) -> String {
    jira.installed(&relay.app_base_url(), SECRET).await;
    relay.link("tenant", &instance.url()).await;
    instance.known("tenant").expect("told").shared_secret
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_a_span_of_the_callers_trace() {
    let collector = Collector::start(0).await;
    let (site, seen) = site().await;
    let mut jira = FakeJira::start("tenant").await;
    jira.base_url = site.url();
    let headers = tempfile::NamedTempFile::new().expect("file");
    std::fs::write(headers.path(), "x-scope-orgid: relay\n").expect("write");
    let relay = TestRelay::start_with(&jira, |settings| {
        settings.set("JIRA__EXTRA_SITES", &site.url());
        settings.set("TELEMETRY__OTLP_ENDPOINT", &collector.server.url());
        let file = headers.path().to_str().expect("path");
        settings.set("TELEMETRY__OTLP_HEADERS_FILE", file);
    })
    .await;
    let instance = FakeInstance::start(&relay.url(), "").await;
    let secret = linked(&jira, &relay, &instance).await;
    assert_eq!(push(&relay.url(), &secret, "00").await.status(), 202);

    let bytes = |hex: &str| -> Vec<u8> {
        let pairs = (0..hex.len()).step_by(2);
        pairs
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex"))
            .collect()
    };
    let ours = |spans: &[Span]| spans.iter().filter(|s| s.trace_id == bytes(TRACE)).count() == 2;
    let spans = collector.until("the caller's trace", ours).await;
    let mut spans = spans
        .into_iter()
        .filter(|span| span.trace_id == bytes(TRACE));
    let (call, whole) = (spans.next().expect("call"), spans.next().expect("whole"));
    assert_eq!(whole.name, "POST rest/builds");
    assert_eq!(whole.kind, SpanKind::Server as i32);
    assert_eq!(whole.parent_span_id, bytes(CALLER));
    assert_eq!(whole.trace_state, "vendor=a-value");
    assert_eq!(
        text(&whole, "http.response.status_code").as_deref(),
        Some("202")
    );
    assert!(whole.end_time_unix_nano >= call.end_time_unix_nano);
    assert!(call.end_time_unix_nano >= call.start_time_unix_nano);
    assert!(call.start_time_unix_nano >= whole.start_time_unix_nano);
    assert_eq!(call.kind, SpanKind::Client as i32);
    assert_eq!(call.parent_span_id, whole.span_id);
    assert_eq!(text(&call, "url.path").as_deref(), Some(PATH));
    let events: Vec<&str> = whole
        .events
        .iter()
        .map(|event| event.name.as_str())
        .collect();
    assert_eq!(events, ["token", "prepared"]);

    // Jira hears of the same trace, under the span of the call, and that it is sampled here.
    let heard = seen.lock().expect("lock").last().cloned().expect("a call");
    let span_id: String = call.span_id.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(heard["traceparent"], format!("00-{TRACE}-{span_id}-01"));
    assert_eq!(heard["tracestate"], "vendor=a-value");

    // The delivery is a trace of its own, by the id that the log has.
    let delivered = |spans: &[Span]| spans.iter().any(|span| span.name == "deliver installed");
    collector.until("the delivery", delivered).await;
    let requests = collector.requests.lock().expect("lock");
    let (headers, request) = requests.first().expect("a request");
    assert_eq!(headers["x-scope-orgid"], "relay");
    assert_eq!(headers["content-type"], "application/x-protobuf");
    assert!(headers.get("traceparent").is_none(), "no trace of traces");
    let whole = format!("{request:?}");
    assert!(
        whole.contains("service.name") && !whole.contains(SECRET),
        "{whole}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callers_wish_to_be_sampled_is_passed_on_and_costs_nothing_here() {
    let collector = Collector::start(0).await;
    let (site, seen) = site().await;
    let mut jira = FakeJira::start("tenant").await;
    jira.base_url = site.url();
    let mut relay = TestRelay::start_with(&jira, |settings| {
        settings.set("JIRA__EXTRA_SITES", &site.url());
        settings.set("TELEMETRY__OTLP_ENDPOINT", &collector.server.url());
        settings.set("TELEMETRY__OTLP_SAMPLE_RATIO", "0.0");
    })
    .await;
    let instance = FakeInstance::start(&relay.url(), "").await;
    let secret = linked(&jira, &relay, &instance).await;
    for _ in 0..3 {
        let answer = push(&relay.url(), &secret, "01").await;
        assert_eq!(answer.status(), 202);
        let heard = seen.lock().expect("lock").last().cloned().expect("a call");
        let parent = heard["traceparent"].to_str().expect("text").to_owned();
        assert!(parent.starts_with(&format!("00-{TRACE}-")) && parent.ends_with("-01"));
        assert!(!parent.contains(CALLER), "a parent of its own: {parent}");
        // It is found by the caller's trace as well.
        let told = relay
            .admin("GET", &format!("/api/v1/trace/{TRACE}"), None, 200)
            .await;
        assert_eq!(told["parts"][0]["trace_id"], TRACE);
    }
    relay.stop().await;
    assert!(collector.spans().is_empty(), "{:#?}", collector.spans());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_collector_changes_nothing_and_is_told_once() {
    let folder = tempfile::tempdir().expect("folder");
    let jira = FakeJira::start("tenant").await;
    let mut settings = Settings::new(folder.path(), &jira);
    let port = free_port();
    settings.set(
        "TELEMETRY__OTLP_ENDPOINT",
        &format!("http://127.0.0.1:{port}"),
    );
    let log = folder.path().join("log");
    let file = std::fs::File::create(&log).expect("log");
    let child = settings
        .command()
        .stdout(Stdio::null())
        .stderr(file)
        .spawn();
    let client = client();
    let mut relay = RelayProcess {
        child: child.expect("start"),
    };
    relay.until_ready(&settings, &client).await;
    let traces = async |outcome: &str| {
        let url = format!("{}/metrics", settings.admin_url());
        let request = Request::get(url).body(Full::default()).expect("request");
        let answer = send(&client, request).await;
        let text = String::from_utf8_lossy(answer.body()).into_owned();
        let name = format!("jira_connect_proxy_otlp_traces_total{{outcome=\"{outcome}\"}} ");
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(&name)?.parse::<u64>().ok());
        value.unwrap_or(0)
    };
    let until_more = async |outcome: &str| {
        let before = traces(outcome).await;
        let deadline = Instant::now() + PATIENCE;
        while traces(outcome).await <= before {
            let call = jira.call(&settings.app_base_url(), "installed", Some(SECRET));
            assert_eq!(jira.send(call).await.status(), 204);
            assert!(Instant::now() < deadline, "never {outcome}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    for _ in 0..3 {
        until_more("failed").await;
    }
    let collector = Collector::start(port).await;
    until_more("sent").await;
    until_more("sent").await;
    assert!(!collector.spans().is_empty());
    let status = std::process::Command::new("kill")
        .arg(relay.child.id().to_string())
        .status();
    assert!(status.expect("kill").success());
    assert_eq!(relay.child.wait().expect("wait").code(), Some(0));
    let log = std::fs::read_to_string(log).expect("log");
    for line in ["traces can't be exported", "traces are exported again"] {
        assert_eq!(log.matches(line).count(), 1, "{line} in {log}");
    }
    assert!(log.contains(" trace_id="), "{log}");
}
