//! Traces on their way to an OpenTelemetry collector: OTLP over HTTP, in protobuf
//! (<https://opentelemetry.io/docs/specs/otlp/#otlphttp>).
//!
//! Nobody waits for the collector: what finds no room in the queue, or no collector, is counted and lost. A collector
//! that is gone is told once, and so is its return. The requests go through our own client.

mod spans;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, header};
use http_body_util::Full;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse},
    resource::v1::Resource,
};
use prost::Message as _;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};

use crate::{
    client::{Client, Destination},
    config::OtlpConfig,
    metrics::Metrics,
    secret_file::{self, SecretFileError},
    trace::{Export, Trace},
};

/// Where a collector takes traces below its address.
const TRACES_PATH: &str = "/v1/traces";

/// Traces that wait to be sent.
const WAITING_MAX: usize = 2048;

/// Traces in one request, and how long the first waits for others.
const BATCH_MAX: usize = 256;
const GATHERED_FOR: Duration = Duration::from_secs(1);

/// For a whole request to the collector.
const PATIENCE: Duration = Duration::from_secs(5);

const ANSWER_MAX_BYTES: usize = 64 * 1024;

/// Sends traces; the one task that speaks to the collector.
pub struct Exporter {
    waiting: mpsc::Receiver<Arc<Trace>>,
    client: Client,
    url: String,
    headers: HeaderMap,
    resource: Resource,
    metrics: Arc<Metrics>,
    failing: bool,
}

/// Why traces can't be exported.
#[derive(Debug, thiserror::Error)]
pub enum OtlpError {
    /// The file with the headers.
    #[error("telemetry.otlp_headers_file can't be used: {0}")]
    File(#[from] SecretFileError),
    /// There is none.
    #[error("telemetry.otlp_headers_file {0} is not there")]
    NoFile(PathBuf),
    /// A line of it. Not quoted: it may hold a secret.
    #[error("telemetry.otlp_headers_file {path}, line {line}: write `name: value`")]
    Line {
        /// Which file.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
}

impl Exporter {
    /// Gets ready to send; what is handed to the [`Export`] comes out here.
    pub fn new(
        config: &OtlpConfig,
        public_url: &str,
        client: Client,
        metrics: Arc<Metrics>,
    ) -> Result<(Export, Self), OtlpError> {
        let mut headers = match &config.headers_file {
            Some(path) => read_headers(path)?,
            None => HeaderMap::new(),
        };
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/x-protobuf"),
        );
        let (sender, waiting) = mpsc::channel(WAITING_MAX);
        let export = Export {
            sender,
            // A float covers it well enough.
            threshold: (config.sample_ratio * u64::MAX as f64) as u64,
            dropped: metrics.exported.with_label_values(&["dropped"]),
        };
        let exporter = Self {
            waiting,
            client,
            url: format!("{}{TRACES_PATH}", config.endpoint),
            headers,
            resource: spans::resource(public_url),
            metrics,
            failing: false,
        };
        Ok((export, exporter))
    }

    /// Sends until `shutdown`, and then what still comes until nobody can hand in any more, or for `drain_deadline`.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>, drain_deadline: Duration) {
        let mut going_on = std::pin::pin!(self.go_on());
        tokio::select! {
            () = &mut going_on => return,
            () = shutdown => {}
        }
        if timeout(drain_deadline, going_on).await.is_err() {
            tracing::warn!("not all traces could be exported before the end");
        }
    }

    /// Until nobody can hand in any more.
    async fn go_on(&mut self) {
        while let Some(batch) = self.gather().await {
            let count = batch.len() as u64;
            let outcome = match self.send(&batch).await {
                Ok(()) => "sent",
                Err(_) => "failed",
            };
            let exported = self.metrics.exported.with_label_values(&[outcome]);
            exported.inc_by(count);
            // The relay stops: then a dead collector is not tried again for what is left.
            if outcome == "failed" && self.waiting.is_closed() {
                return;
            }
        }
    }

    async fn gather(&mut self) -> Option<Vec<Arc<Trace>>> {
        let mut batch = vec![self.waiting.recv().await?];
        let until = Instant::now() + GATHERED_FOR;
        while batch.len() < BATCH_MAX {
            match timeout_at(until, self.waiting.recv()).await {
                Ok(Some(trace)) => batch.push(trace),
                Ok(None) | Err(_) => break,
            }
        }
        Some(batch)
    }

    /// One request, and one line if that went otherwise than the last one.
    async fn send(&mut self, batch: &[Arc<Trace>]) -> Result<(), String> {
        let sent = self.try_send(batch).await;
        match &sent {
            Err(cause) if !self.failing => tracing::warn!(
                otlp.url = self.url,
                "traces can't be exported, and are lost until that works again: {cause}"
            ),
            Ok(()) if self.failing => {
                tracing::info!(otlp.url = self.url, "traces are exported again");
            }
            _ => {}
        }
        self.failing = sent.is_err();
        sent
    }

    async fn try_send(&self, batch: &[Arc<Trace>]) -> Result<(), String> {
        let message = ExportTraceServiceRequest {
            resource_spans: vec![spans::of(self.resource.clone(), batch)],
        };
        let mut request = Request::post(&self.url)
            .body(Full::new(Bytes::from(message.encode_to_vec())))
            .map_err(|error| error.to_string())?;
        *request.headers_mut() = self.headers.clone();
        let answer = self
            .client
            .send(Destination::Configured, request, PATIENCE, ANSWER_MAX_BYTES)
            .await
            .map_err(|error| error.to_string())?;
        if !answer.status().is_success() {
            return Err(format!("the collector answered {}", answer.status()));
        }
        let answer = ExportTraceServiceResponse::decode(answer.into_body());
        match answer.ok().and_then(|answer| answer.partial_success) {
            Some(partial) if partial.rejected_spans > 0 => Err(format!(
                "the collector refused {} spans: {}",
                partial.rejected_spans,
                crate::trace::hop::short(&partial.error_message)
            )),
            _ => Ok(()),
        }
    }
}

/// Reads the headers for the collector: `name: value`, one a line; `#` begins a comment.
pub fn read_headers(path: &Path) -> Result<HeaderMap, OtlpError> {
    let content = secret_file::read(path)?.ok_or_else(|| OtlpError::NoFile(path.to_owned()))?;
    let content = String::from_utf8_lossy(&content);
    let mut headers = HeaderMap::new();
    for (at, line) in content.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let field = line.split_once(':').and_then(|(name, value)| {
            let name = HeaderName::try_from(name.trim()).ok()?;
            let mut value = HeaderValue::try_from(value.trim()).ok()?;
            value.set_sensitive(true);
            Some((name, value))
        });
        let (name, value) = field.ok_or_else(|| OtlpError::Line {
            path: path.to_owned(),
            line: at + 1,
        })?;
        headers.append(name, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn read(text: &str) -> Result<HeaderMap, OtlpError> {
        let mut file = tempfile::NamedTempFile::new().expect("file");
        file.write_all(text.as_bytes()).expect("write");
        read_headers(file.path())
    }

    #[test]
    fn headers_are_read_and_a_mistake_is_not_quoted() {
        let headers =
            read("# a comment\n\nAuthorization: Basic eA==\nX-Scope: a:b\n").expect("headers");
        assert_eq!(headers.get("authorization").expect("one"), "Basic eA==");
        assert!(
            headers
                .get("authorization")
                .is_some_and(HeaderValue::is_sensitive)
        );
        assert_eq!(headers.get("x-scope").expect("one"), "a:b");
        let error = read("a: b\nBearer a-secret-token\n").expect_err("no name");
        assert!(error.to_string().contains("line 2"), "{error}");
        assert!(!error.to_string().contains("a-secret-token"), "{error}");
        let missing = read_headers(Path::new("/nowhere/headers"));
        assert!(matches!(missing, Err(OtlpError::NoFile(_))));
    }
}
