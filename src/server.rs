//! Sockets: accept, TLS, HTTP/1.1 and HTTP/2, limits, and a drain with a deadline.
//!
//! Knows nothing of paths; every request goes to one handler.

mod connection;
mod crowd;
mod door;
mod socket;
mod workers;

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use http::{Request, Response};
use hyper::body::Incoming;
use tokio::{
    net::TcpStream,
    runtime::Handle,
    sync::{Semaphore, watch},
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use connection::{Failure, Protocols};
pub use crowd::PerAddress;
use crowd::{Crowd, Place};
use door::Settled;
pub use door::{Door, UnixDoor};
pub use workers::{Stuck, Turning, Workers};

use crate::{
    body::Body,
    config::LimitsConfig,
    domain::Peer,
    metrics::{Counted, Metrics},
    tls::ACME_PROTOCOL,
};

/// The pause after an `accept` that failed for want of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// A caller gets no answer, so that it tries again.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the connection was closed instead of an answer")]
struct HungUp;

/// An address has as many connections as it may have.
struct TooMany;

/// One listening socket and what it allows.
pub struct Server {
    /// Metric label and log field.
    pub name: &'static str,
    /// Where connections come from.
    pub door: Door,
    /// Ends TLS here, if given; not on a Unix socket.
    pub tls: Option<TlsAcceptor>,
    /// How much, how long.
    pub limits: LimitsConfig,
    /// How many connections of one address, if that matters.
    pub per_address: Option<PerAddress>,
    /// Where connections are served, if not where they are accepted.
    pub workers: Option<Workers>,
    /// Counts connections.
    pub metrics: Arc<Metrics>,
}

impl Server {
    /// Serves until `shutdown`, then lets open requests finish for at most the drain deadline.
    pub async fn run<H, F>(self, handler: H, shutdown: impl Future<Output = ()>)
    where
        H: Fn(Request<Incoming>, Peer) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let protocols = Arc::new(Protocols::new(&self.limits));
        let permits = Arc::new(Semaphore::new(self.limits.connections_max));
        let crowd = Arc::new(Crowd::default());
        let (stop, stopping) = watch::channel(false);
        let mut connections = JoinSet::new();
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            // Waiting for a permit leaves new connections in the kernel's queue, which is bounded too.
            let accepted = async {
                let permit = Arc::clone(&permits).acquire_owned().await;
                (permit, self.door.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                biased;
                () = &mut shutdown => break,
                Some(_) = connections.join_next() => continue,
                accepted = accepted => accepted,
            };
            let (visitor, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    self.accept_failed(&error).await;
                    continue;
                }
            };
            let Ok(place) = self.place(&crowd, peer.ip()) else {
                self.metrics
                    .connection_failures
                    .with_label_values(&[self.name, "too_many_of_address"])
                    .inc();
                continue;
            };
            let (handler, stopping) = (handler.clone(), stopping.clone());
            let (protocols, tls) = (Arc::clone(&protocols), self.tls.clone());
            let receive_timeout = self.limits.receive_timeout;
            let open = Counted::new(self.metrics.connections.with_label_values(&[self.name]));
            let failures = self.metrics.connection_failures.clone();
            let name = self.name;
            let seat = self.workers.as_ref().and_then(Workers::seat);
            let runtime = seat
                .as_ref()
                .map_or_else(Handle::current, |s| s.runtime.clone());
            let serving = async move {
                let _held = (permit, place, open, seat);
                let served = match (visitor.settled(), tls) {
                    (Err(_), _) => Err("accept"),
                    (Ok(Settled::Unix(unix)), _) => {
                        protocols.http1(unix, peer, &handler, stopping).await
                    }
                    // HTTP/2 without TLS would have to be guessed from the first bytes; nobody needs it.
                    (Ok(Settled::Tcp(tcp)), None) => {
                        protocols.http1(tcp, peer, &handler, stopping).await
                    }
                    // Boxed: the others should not keep the room for it.
                    (Ok(Settled::Tcp(tcp)), Some(acceptor)) => {
                        Box::pin(async {
                            let stream = accept(acceptor, tcp, peer, receive_timeout).await?;
                            match stream.get_ref().1.alpn_protocol() {
                                Some(b"h2") => {
                                    let served = protocols.http2(stream, peer, &handler, stopping);
                                    Box::pin(served).await
                                }
                                // The handshake has said it all (RFC 8737 section 3).
                                Some(ACME_PROTOCOL) => Ok(()),
                                _ => protocols.http1(stream, peer, &handler, stopping).await,
                            }
                        })
                        .await
                    }
                };
                if let Err(cause) = served {
                    failures.with_label_values(&[name, cause]).inc();
                }
            };
            connections.spawn_on(serving, &runtime);
        }
        stop.send_replace(true);
        self.drain(connections).await;
    }

    /// A connection's place among those of its address; none is needed where there is no limit.
    fn place(&self, crowd: &Arc<Crowd>, ip: IpAddr) -> Result<Option<Place>, TooMany> {
        match &self.per_address {
            Some(limit) if !limit.exempt.contains(ip) => {
                crowd.enter(ip, limit.max).map(Some).ok_or(TooMany)
            }
            _ => Ok(None),
        }
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

    async fn drain(self, mut connections: JoinSet<()>) {
        let Self {
            name,
            door,
            limits,
            workers,
            ..
        } = self;
        drop(door);
        let open = connections.len();
        let drained = tokio::time::timeout(limits.drain_deadline, async {
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
        drop(workers);
    }
}

async fn accept(
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    peer: Peer,
    timeout: Duration,
) -> Result<TlsStream<TcpStream>, Failure> {
    match tokio::time::timeout(timeout, acceptor.accept(tcp)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => {
            tracing::debug!(%peer, "TLS handshake failed: {error}");
            Err("tls")
        }
        Err(_) => Err("tls_timeout"),
    }
}
