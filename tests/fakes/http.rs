//! A server with one handler, and a client.

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use jira_connect_proxy::client::{Client, Destination, DialSettings};
use rustls::RootCertStore;
use tokio::{net::TcpListener, task::JoinHandle};

use super::secrets;

/// A port of loopback for us alone, also while nobody listens on it: each is given out once, and all lie below those that
/// the system gives to whoever asks for any (`ip_local_port_range`), be it only for a connection.
pub fn free_port() -> u16 {
    const FIRST: u32 = 10_000;
    const PORTS: u32 = 20_000;
    static GIVEN_OUT: AtomicU32 = AtomicU32::new(0);
    // Other test runs begin elsewhere.
    let first = std::process::id() * 500;
    loop {
        let next = first.wrapping_add(GIVEN_OUT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(FIRST + next % PORTS).expect("below 30,000");
        if std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// Serves until dropped.
pub struct FakeServer {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl FakeServer {
    /// Listens on a free port of loopback.
    pub async fn start<H, F>(handler: H) -> Self
    where
        H: Fn(Request<Bytes>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Bytes>> + Send + 'static,
    {
        Self::start_on((Ipv4Addr::LOCALHOST, free_port()).into(), handler).await
    }

    /// Listens on a given port of loopback.
    pub async fn start_on<H, F>(address: SocketAddr, handler: H) -> Self
    where
        H: Fn(Request<Bytes>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Bytes>> + Send + 'static,
    {
        let listener = TcpListener::bind(address)
            .await
            .expect("bind a fake server");
        let address = listener.local_addr().expect("address");
        let task = tokio::spawn(async move {
            // Dropping the set with the task closes all connections, as a server that dies does.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let handler = handler.clone();
                let service = service_fn(move |request: Request<Incoming>| {
                    let handler = handler.clone();
                    async move {
                        let (head, body) = request.into_parts();
                        let body = body.collect().await.map(|body| body.to_bytes());
                        let request = Request::from_parts(head, body.unwrap_or_default());
                        Ok::<_, Infallible>(handler(request).await.map(Full::new))
                    }
                });
                connections.spawn(
                    http1::Builder::new()
                        .timer(TokioTimer::new())
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { address, task }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends the server. When this returns, its port is closed: dropping only asks for that.
    pub async fn stop(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A client that reaches loopback.
pub fn client() -> Client {
    jira_connect_proxy::jwt::crypto::install();
    Client::new(&DialSettings {
        roots: Arc::new(RootCertStore::empty()),
        connect_timeout: Duration::from_secs(5),
        allow_private: true,
    })
}

/// Sends a request and reads the whole answer.
pub async fn send(client: &Client, request: Request<Full<Bytes>>) -> Response<Bytes> {
    try_send(client, request).await.expect("an answer")
}

/// The same, for peers that may be dead.
pub async fn try_send(client: &Client, request: Request<Full<Bytes>>) -> Option<Response<Bytes>> {
    let place = request.uri().path().to_owned();
    let answer = client
        .send(
            Destination::Configured,
            request,
            Duration::from_secs(40),
            16 * 1024 * 1024,
        )
        .await
        .ok()?;
    secrets::hear_answer(&place, &answer);
    Some(answer)
}

/// An answer with a status and a text.
pub fn answer(status: u16, body: impl Into<Bytes>) -> Response<Bytes> {
    let mut response = Response::new(body.into());
    *response.status_mut() = http::StatusCode::from_u16(status).expect("status");
    response
}
