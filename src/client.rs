//! Outbound HTTP: pooled connections, TLS, deadlines, and an eye on what address is really dialled.
//!
//! Addresses that somebody else named are resolved, judged, and then dialled at the very address that was
//! judged, so a name that changes its mind between look and call gains nothing. Redirects are never followed.

mod connector;

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client as Pool, ResponseFuture},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use tokio::runtime::{self, Handle};

use crate::{domain::address, trace};
use connector::{Connector, Names};
pub use connector::{DialError, TlsFault};

const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// As many as the requests that a busy Jira without HTTP/2 gets at once: what is closed has to be opened again.
const IDLE_PER_HOST: usize = 128;

/// Sends requests; cheap to clone.
#[derive(Clone)]
pub struct Client(Arc<ArcSwap<Pools>>);

/// How to dial.
#[derive(Clone, Debug)]
pub struct DialSettings {
    /// Certificate authorities to trust.
    pub roots: Arc<RootCertStore>,
    /// For name, TCP and TLS together.
    pub connect_timeout: Duration,
    /// Whether addresses named by others may be private.
    pub allow_private: bool,
}

struct Pools {
    tls: Arc<ClientConfig>,
    settings: DialSettings,
    names: Names,
    /// A pair for each runtime that sends. The task of a connection runs in the runtime that opened it, and a request
    /// that had to wait for another thread would pay for waking it.
    opened: ArcSwap<Vec<Arc<Pair>>>,
}

/// The pools of one runtime.
struct Pair {
    runtime: runtime::Id,
    configured: Pool<Connector, Full<Bytes>>,
    named: Pool<Connector, Full<Bytes>>,
}

/// Who named the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The operator: any address will do.
    Configured,
    /// Somebody else: it must be public, unless the operator allows others.
    Named,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// No connection.
    #[error(transparent)]
    Dial(DialError),
    /// Connected, but no whole answer within the deadline.
    #[error("no answer within {} s", .0.as_secs_f32())]
    TimedOut(Duration),
    /// The answer is larger than we read.
    #[error("the answer has more than {0} bytes")]
    AnswerTooLarge(usize),
    /// The connection broke, or what came is no HTTP.
    #[error("the connection broke: {0}")]
    Broken(String),
}

impl Client {
    /// Dials by these settings.
    pub fn new(settings: &DialSettings) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(Pools::new(settings))))
    }

    /// Dials by these settings, and shows a certificate to whoever asks for one.
    ///
    /// # Errors
    /// Certificate and key do not belong together, or can't be used.
    pub fn identified(
        settings: &DialSettings,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, rustls::Error> {
        let tls = ClientConfig::builder()
            .with_root_certificates(Arc::clone(&settings.roots))
            .with_client_auth_cert(chain, key)?;
        Ok(Self(Arc::new(ArcSwap::from_pointee(Pools::over(
            tls,
            settings,
            Names::System,
        )))))
    }

    /// Dials by other settings from now on. No connection that was judged by the old ones is used again.
    pub fn reconfigure(&self, settings: &DialSettings) {
        self.0.store(Arc::new(Pools::new(settings)));
    }

    /// One that dials in the same way and has no connections yet, for questions about the connection itself: a pooled
    /// one that the peer has just closed breaks under the next request, which says nothing about the peer.
    #[must_use]
    pub fn afresh(&self) -> Self {
        let pools = self.0.load();
        let fresh = Pools::knowing(&pools.settings, pools.names.clone());
        Self(Arc::new(ArcSwap::from_pointee(fresh)))
    }

    /// Sends a request and returns the answer as soon as its head is there; the body is still to be read.
    pub async fn send_for_stream(
        &self,
        destination: Destination,
        mut request: Request<Full<Bytes>>,
        deadline: Duration,
    ) -> Result<Response<Incoming>, SendError> {
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let calling = trace::called(&method, &uri, request.headers_mut());
        let pools = self.0.load();
        let answer = pools.request(destination, request);
        let answer = match tokio::time::timeout(deadline, answer).await {
            Ok(answer) => answer.map_err(SendError::from_hyper),
            Err(_) => Err(SendError::TimedOut(deadline)),
        };
        if let Some(calling) = calling {
            let status = answer.as_ref().map(|answer| answer.status().as_u16());
            calling.ended(status.map_err(ToString::to_string));
        }
        answer
    }

    /// Sends a request and returns the head of the answer, whatever body it has.
    pub async fn send_for_head(
        &self,
        destination: Destination,
        request: Request<Full<Bytes>>,
        deadline: Duration,
    ) -> Result<Response<()>, SendError> {
        let answer = self.send_for_stream(destination, request, deadline).await?;
        Ok(answer.map(drop))
    }

    /// Sends a request and reads the whole answer, within `deadline` and `answer_max_bytes`.
    pub async fn send(
        &self,
        destination: Destination,
        request: Request<Full<Bytes>>,
        deadline: Duration,
        answer_max_bytes: usize,
    ) -> Result<Response<Bytes>, SendError> {
        let exchange = async {
            let answer = self.send_for_stream(destination, request, deadline).await?;
            read_answer(answer, answer_max_bytes).await
        };
        tokio::time::timeout(deadline, exchange)
            .await
            .unwrap_or(Err(SendError::TimedOut(deadline)))
    }

    /// Resolves a host as a call to it would, and tells if it may not be dialled. A name that can't be
    /// resolved is no refusal: that may be mended.
    pub async fn blocked_address(&self, host: &str, port: u16) -> Option<IpAddr> {
        let pools = self.0.load_full();
        let allow_private = pools.settings.allow_private;
        match connector::resolve(&pools.names, host, port, allow_private).await {
            Err(DialError::BlockedAddress { address, .. }) => Some(address),
            _ => None,
        }
    }
}

/// Whether a host has an address outside of the public Internet. One that can't be resolved has none.
pub async fn is_private(host: &str, port: u16) -> bool {
    let addresses = connector::resolve(&Names::System, host, port, true).await;
    addresses.is_ok_and(|addresses| {
        addresses
            .iter()
            .any(|address| !address::is_public(address.ip()))
    })
}

/// Reads the rest of an answer.
pub async fn read_answer(
    answer: Response<Incoming>,
    answer_max_bytes: usize,
) -> Result<Response<Bytes>, SendError> {
    let (head, body) = answer.into_parts();
    let body = Limited::new(body, answer_max_bytes).collect().await;
    let body = body.map_err(|error| {
        if error.is::<http_body_util::LengthLimitError>() {
            SendError::AnswerTooLarge(answer_max_bytes)
        } else {
            SendError::Broken(error.to_string())
        }
    })?;
    Ok(Response::from_parts(head, body.to_bytes()))
}

impl Pools {
    fn new(settings: &DialSettings) -> Self {
        Self::knowing(settings, Names::System)
    }

    fn knowing(settings: &DialSettings, names: Names) -> Self {
        let tls = ClientConfig::builder()
            .with_root_certificates(Arc::clone(&settings.roots))
            .with_no_client_auth();
        Self::over(tls, settings, names)
    }

    fn over(mut tls: ClientConfig, settings: &DialSettings, names: Names) -> Self {
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Self {
            tls: Arc::new(tls),
            settings: settings.clone(),
            names,
            opened: ArcSwap::default(),
        }
    }

    fn request(&self, destination: Destination, request: Request<Full<Bytes>>) -> ResponseFuture {
        let here = Handle::current().id();
        let of = |opened: &[Arc<Pair>]| opened.iter().find(|pair| pair.runtime == here).cloned();
        if let Some(pair) = of(&self.opened.load()) {
            return pair.of(destination).request(request);
        }
        let pair = Arc::new(self.open(here));
        let answer = pair.of(destination).request(request);
        // Another request of this runtime may have been faster; then this one's connection is used once.
        self.opened.rcu(|opened| {
            let mut opened = Vec::clone(opened);
            if of(&opened).is_none() {
                opened.push(Arc::clone(&pair));
            }
            opened
        });
        answer
    }

    fn open(&self, runtime: runtime::Id) -> Pair {
        let pool = |allow_private| {
            Pool::builder(TokioExecutor::new())
                .timer(TokioTimer::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE_TIMEOUT)
                .pool_max_idle_per_host(IDLE_PER_HOST)
                .build(Connector::new(
                    Arc::clone(&self.tls),
                    self.settings.connect_timeout,
                    allow_private,
                    self.names.clone(),
                ))
        };
        Pair {
            runtime,
            configured: pool(true),
            named: pool(self.settings.allow_private),
        }
    }
}

impl Pair {
    fn of(&self, destination: Destination) -> &Pool<Connector, Full<Bytes>> {
        match destination {
            Destination::Configured => &self.configured,
            Destination::Named => &self.named,
        }
    }
}

impl SendError {
    fn from_hyper(error: hyper_util::client::legacy::Error) -> Self {
        let mut cause: &(dyn std::error::Error + 'static) = &error;
        loop {
            if let Some(dial) = cause.downcast_ref::<DialError>() {
                return Self::Dial(dial.clone());
            }
            match cause.source() {
                Some(next) => cause = next,
                None => return Self::Broken(cause.to_string()),
            }
        }
    }
}

/// The system's certificate authorities and those in `extra_ca_pem`.
///
/// # Errors
/// The extra file can't be read as PEM. A system without authorities is only warned about: instances behind
/// plain http or the extra file's authority still work.
pub fn root_certificates(extra_ca_pem: Option<&[u8]>) -> io::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::warn!("some of the system's certificate authorities can't be read: {error}");
    }
    roots.add_parsable_certificates(native.certs);
    if let Some(pem) = extra_ca_pem {
        add_certificates(&mut roots, pem)?;
    }
    if roots.is_empty() {
        tracing::warn!(
            "no certificate authority is known, so no https address can be called: install ca-certificates or set instances.extra_ca_file"
        );
    }
    Ok(roots)
}

/// The certificate authorities in a PEM file, and no others.
///
/// # Errors
/// It can't be read as PEM.
pub fn certificates(pem: &[u8]) -> io::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    add_certificates(&mut roots, pem)?;
    Ok(roots)
}

fn add_certificates(roots: &mut RootCertStore, pem: &[u8]) -> io::Result<()> {
    use rustls::pki_types::pem::PemObject as _;

    let invalid = |error: &dyn std::fmt::Display| {
        io::Error::new(io::ErrorKind::InvalidData, error.to_string())
    };
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| invalid(&error))?;
        roots.add(certificate).map_err(|error| invalid(&error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
