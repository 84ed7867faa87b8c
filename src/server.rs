//! Sockets: accept, TLS, HTTP/1.1 and HTTP/2, limits, and a drain with a deadline.
//!
//! Knows nothing of paths; every request goes to one handler.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Request, Response};
use hyper::{
    body::{Body as _, Incoming},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::graceful::{GracefulConnection, GracefulShutdown, Watcher},
};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet, time::Instant};
use tokio_rustls::TlsAcceptor;

use crate::{
    body::Body,
    config::LimitsConfig,
    metrics::{Counted, Metrics},
    reject::HangUp,
};

/// The pause after an `accept` that failed for want of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

const H2_STREAMS_MAX: u32 = 100;

/// A connection without a request is closed after this; before its first request, after the receive timeout.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// An answer may take as long as this makes it, and the idle time.
const SLOWEST_READER_BYTES_PER_SEC: u64 = 32 * 1024;

/// A caller gets no answer, so that it tries again.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the connection was closed instead of an answer")]
struct HungUp;

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
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let (http1, http2) = self.protocols();
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
            let activity = Arc::new(Activity::new(self.limits.receive_timeout));
            let (handler, active) = (handler.clone(), Arc::clone(&activity));
            let service = service_fn(move |request| {
                let answer = handler(request, peer);
                let request = active.request();
                async move {
                    let answer = answer.await;
                    if answer.extensions().get::<HangUp>().is_some() {
                        return Err(HungUp);
                    }
                    request.answered(answer.body().size_hint().exact().unwrap_or_default());
                    Ok(answer)
                }
            });
            let watcher = graceful.watcher();
            let (http1, http2) = (http1.clone(), http2.clone());
            let tls = self.tls.clone();
            let receive_timeout = self.limits.receive_timeout;
            let open = Counted::new(self.metrics.connections.with_label_values(&[self.name]));
            let failures = self.metrics.connection_failures.clone();
            let name = self.name;
            connections.spawn(async move {
                let _held = (permit, open);
                let served = async {
                    let Some(acceptor) = tls else {
                        // HTTP/2 without TLS would have to be guessed from the first bytes; nobody needs it.
                        return serve(http1.serve_connection(TokioIo::new(tcp), service), watcher)
                            .await;
                    };
                    let stream =
                        match tokio::time::timeout(receive_timeout, acceptor.accept(tcp)).await {
                            Ok(Ok(stream)) => stream,
                            Ok(Err(error)) => {
                                tracing::debug!(%peer, "TLS handshake failed: {error}");
                                return Err("tls");
                            }
                            Err(_) => return Err("tls_timeout"),
                        };
                    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                        serve(
                            http2.serve_connection(TokioIo::new(stream), service),
                            watcher,
                        )
                        .await
                    } else {
                        serve(
                            http1.serve_connection(TokioIo::new(stream), service),
                            watcher,
                        )
                        .await
                    }
                };
                let result = tokio::select! {
                    result = served => result,
                    () = activity.idle() => Ok(()),
                };
                if let Err(cause) = result {
                    failures.with_label_values(&[name, cause]).inc();
                }
            });
        }
        self.drain(graceful, connections).await;
    }

    fn protocols(&self) -> (http1::Builder, http2::Builder<TokioExecutor>) {
        let mut http1 = http1::Builder::new();
        http1
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.receive_timeout)
            .max_buf_size(self.limits.header_max_bytes);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .max_concurrent_streams(H2_STREAMS_MAX)
            .max_header_list_size(u32::try_from(self.limits.header_max_bytes).unwrap_or(u32::MAX))
            .keep_alive_interval(Some(IDLE_TIMEOUT / 2))
            .keep_alive_timeout(self.limits.receive_timeout);
        (http1, http2)
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

/// When a connection last had a request. hyper's own timers begin with the first byte of a request; a peer that
/// sends none would hold its permit for ever.
struct Activity {
    in_flight: AtomicUsize,
    /// Until when nothing need happen. A short std lock: nothing is awaited while it is held.
    quiet_until: Mutex<Instant>,
}

/// A request being answered.
struct ActiveRequest(Arc<Activity>);

impl Activity {
    fn new(first_request_timeout: Duration) -> Self {
        Self {
            in_flight: AtomicUsize::new(0),
            quiet_until: Mutex::new(Instant::now() + first_request_timeout),
        }
    }

    fn request(self: &Arc<Self>) -> ActiveRequest {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        ActiveRequest(Arc::clone(self))
    }

    /// Returns when nothing happened for too long.
    async fn idle(&self) {
        loop {
            let until = *self.quiet_until();
            tokio::time::sleep_until(until).await;
            let unchanged = *self.quiet_until() == until;
            if unchanged && self.in_flight.load(Ordering::Acquire) == 0 {
                return;
            }
            if unchanged {
                // A request is being answered; it has a deadline of its own.
                tokio::time::sleep(IDLE_TIMEOUT / 10).await;
            }
        }
    }

    fn quiet_until(&self) -> MutexGuard<'_, Instant> {
        self.quiet_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl ActiveRequest {
    /// The answer goes out now; a slow reader gets time for its size.
    fn answered(self, bytes: u64) {
        let reading = Duration::from_secs(bytes / SLOWEST_READER_BYTES_PER_SEC);
        *self.0.quiet_until() = Instant::now() + IDLE_TIMEOUT + reading;
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Serves one connection; its failure is a metric label.
async fn serve<C>(connection: C, watcher: Watcher) -> Result<(), &'static str>
where
    C: GracefulConnection,
    C::Error: std::fmt::Display,
{
    watcher.watch(connection).await.map(drop).map_err(|error| {
        tracing::debug!("connection ended: {error}");
        "http"
    })
}
