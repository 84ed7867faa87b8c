//! Sockets: accept, TLS, HTTP/1.1 and HTTP/2, limits, and a drain with a deadline.
//!
//! Knows nothing of paths; every request goes to one handler.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    config::LimitsConfig,
    metrics::{Counted, Metrics},
};

/// The pause after an `accept` that failed for want of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

const H2_STREAMS_MAX: u32 = 100;

/// One listening socket and what it allows.
pub struct Server {
    /// Metric label and log field.
    pub name: &'static str,
    /// Where connections come from.
    pub listener: TcpListener,
    /// Ends TLS here, if given.
    pub tls: Option<TlsAcceptor>,
    /// How much, how long.
    pub limits: LimitsConfig,
    /// Counts connections.
    pub metrics: Arc<Metrics>,
}

impl Server {
    /// Serves until `shutdown`, then lets open requests finish for at most the drain deadline.
    pub async fn run<H, F>(self, handler: H, shutdown: impl Future<Output = ()>)
    where
        H: Fn(Request<Incoming>, SocketAddr) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
    {
        let http = self.http();
        let permits = Arc::new(Semaphore::new(self.limits.connections_max));
        let graceful = GracefulShutdown::new();
        let mut connections = JoinSet::new();
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            // Waiting for a permit leaves new connections in the kernel's queue, which is bounded too.
            let accepted = async {
                let permit = Arc::clone(&permits).acquire_owned().await;
                (permit, self.listener.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                biased;
                () = &mut shutdown => break,
                Some(_) = connections.join_next() => continue,
                accepted = accepted => accepted,
            };
            let (tcp, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    self.accept_failed(&error).await;
                    continue;
                }
            };
            let _ = tcp.set_nodelay(true);
            let handler = handler.clone();
            let service = service_fn(move |request| {
                let answer = handler(request, peer);
                async move { Ok::<_, std::convert::Infallible>(answer.await) }
            });
            let watcher = graceful.watcher();
            let http = http.clone();
            let tls = self.tls.clone();
            let handshake_timeout = self.limits.receive_timeout;
            let open = Counted::new(self.metrics.connections.with_label_values(&[self.name]));
            let failures = self.metrics.connection_failures.clone();
            let name = self.name;
            connections.spawn(async move {
                let _held = (permit, open);
                let failed = |cause: &str| failures.with_label_values(&[name, cause]).inc();
                let stream = match tls {
                    None => MaybeTls::Plain(tcp),
                    Some(acceptor) => {
                        match tokio::time::timeout(handshake_timeout, acceptor.accept(tcp)).await {
                            Ok(Ok(stream)) => MaybeTls::Tls(Box::new(stream)),
                            Ok(Err(error)) => {
                                tracing::debug!(%peer, "TLS handshake failed: {error}");
                                return failed("tls");
                            }
                            Err(_) => return failed("tls_timeout"),
                        }
                    }
                };
                let result = match stream {
                    MaybeTls::Plain(stream) => connection(&http, stream, service, watcher).await,
                    MaybeTls::Tls(stream) => connection(&http, stream, service, watcher).await,
                };
                if let Err(error) = result {
                    tracing::debug!(%peer, "connection ended: {error}");
                    failed("http");
                }
            });
        }
        self.drain(graceful, connections).await;
    }

    fn http(&self) -> auto::Builder<TokioExecutor> {
        let mut http = auto::Builder::new(TokioExecutor::new());
        http.http1()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.receive_timeout)
            .max_buf_size(self.limits.header_max_bytes);
        http.http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(H2_STREAMS_MAX)
            .max_header_list_size(u32::try_from(self.limits.header_max_bytes).unwrap_or(u32::MAX))
            .keep_alive_interval(Some(Duration::from_secs(30)))
            .keep_alive_timeout(self.limits.receive_timeout);
        http
    }

    async fn accept_failed(&self, error: &io::Error) {
        // A peer that hung up before we got to it is no trouble of ours.
        let theirs = matches!(
            error.kind(),
            io::ErrorKind::ConnectionAborted
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionRefused
        );
        if !theirs {
            tracing::error!(
                listener = self.name,
                "no connection can be accepted: {error}"
            );
            self.metrics
                .connection_failures
                .with_label_values(&[self.name, "accept"])
                .inc();
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }

    async fn drain(self, graceful: GracefulShutdown, mut connections: JoinSet<()>) {
        let Self {
            name,
            listener,
            limits,
            ..
        } = self;
        drop(listener);
        let open = connections.len();
        let drained = tokio::time::timeout(limits.drain_deadline, async {
            graceful.shutdown().await;
            while connections.join_next().await.is_some() {}
        });
        if drained.await.is_err() {
            tracing::warn!(
                listener = name,
                "{} of {open} connections were still busy after {} s and are cut",
                connections.len(),
                limits.drain_deadline.as_secs()
            );
            connections.shutdown().await;
        }
    }
}

enum MaybeTls {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
}

async fn connection<I, S>(
    http: &auto::Builder<TokioExecutor>,
    io: I,
    service: S,
    watcher: hyper_util::server::graceful::Watcher,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: hyper::service::Service<
            Request<Incoming>,
            Response = Response<Full<Bytes>>,
            Error = std::convert::Infallible,
        > + Send
        + 'static,
    S::Future: Send + 'static,
{
    watcher
        .watch(
            http.serve_connection(TokioIo::new(io), service)
                .into_owned(),
        )
        .await
}
