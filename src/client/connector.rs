//! Name to address to stream, with a judgment in between.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Uri, uri::Scheme};
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use rustls::{CertificateError, ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Instant,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::domain::address;

/// Why no connection came about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// The name has no address, or no name server answers.
    #[error("the name {host} can't be resolved: {cause}")]
    Name {
        /// Which name.
        host: String,
        /// What the resolver said.
        cause: String,
    },
    /// The address is not public, and somebody else named it.
    #[error("{host} is at {address}, which is no public address")]
    BlockedAddress {
        /// Which name.
        host: String,
        /// Where it points.
        address: IpAddr,
    },
    /// Refused, unreachable, reset.
    #[error("{host} can't be reached at {address}: {cause}")]
    Tcp {
        /// Which name.
        host: String,
        /// Where it points.
        address: SocketAddr,
        /// What the operating system said.
        cause: String,
    },
    /// Connected, but no secure channel.
    #[error("no secure connection to {host}: {fault}")]
    Tls {
        /// Which name.
        host: String,
        /// Why.
        fault: TlsFault,
    },
    /// Not connected in time.
    #[error("{host} did not take the connection within {} s", .timeout.as_secs_f32())]
    TimedOut {
        /// Which name.
        host: String,
        /// The limit.
        timeout: Duration,
    },
}

/// What is wrong with a secure channel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsFault {
    /// Self-signed, or an authority that we do not know.
    #[error("its certificate is not signed by a certificate authority known here")]
    UnknownAuthority,
    /// Over.
    #[error("its certificate has expired")]
    Expired,
    /// Not yet.
    #[error("its certificate is not valid yet")]
    NotYetValid,
    /// Made for another host.
    #[error("its certificate is for another name")]
    WrongName,
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// Dials for one pool.
#[derive(Clone)]
pub(super) struct Connector {
    tls: Arc<ClientConfig>,
    timeout: Duration,
    allow_private: bool,
    names: Names,
}

/// Who knows the addresses of names.
#[derive(Clone, Debug, Default)]
pub(super) enum Names {
    /// The system.
    #[default]
    System,
    /// A name server that answers each question with the next of these: what an attacker's does.
    #[cfg(test)]
    Scripted(Arc<std::sync::Mutex<std::collections::VecDeque<IpAddr>>>),
}

/// An open connection, encrypted or not.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connector {
    pub(super) fn new(
        tls: Arc<ClientConfig>,
        timeout: Duration,
        allow_private: bool,
        names: Names,
    ) -> Self {
        Self {
            tls,
            timeout,
            allow_private,
            names,
        }
    }

    async fn connect(self, uri: Uri) -> Result<TokioIo<Stream>, DialError> {
        let host = uri.host().unwrap_or_default().to_owned();
        let encrypted = uri.scheme() != Some(&Scheme::HTTP);
        let port = uri.port_u16().unwrap_or(if encrypted { 443 } else { 80 });
        let timed_out = DialError::TimedOut {
            host: host.clone(),
            timeout: self.timeout,
        };
        let dial = async {
            let addresses = resolve(&self.names, &host, port, self.allow_private).await?;
            let tcp = dial_first(&host, &addresses, self.timeout).await?;
            // Small requests, one answer each: nothing gains from waiting for more to send.
            let _ = tcp.set_nodelay(true);
            if encrypted {
                self.secure(&host, tcp).await
            } else {
                Ok(Stream::Plain(tcp))
            }
        };
        tokio::time::timeout(self.timeout, dial)
            .await
            .unwrap_or(Err(timed_out))
            .map(TokioIo::new)
    }

    async fn secure(&self, host: &str, tcp: TcpStream) -> Result<Stream, DialError> {
        let fault = |fault| DialError::Tls {
            host: host.to_owned(),
            fault,
        };
        let name = ServerName::try_from(without_brackets(host).to_owned()).map_err(|_| {
            fault(TlsFault::Other(
                "its name can't be in a certificate".to_owned(),
            ))
        })?;
        TlsConnector::from(Arc::clone(&self.tls))
            .connect(name, tcp)
            .await
            .map(|stream| Stream::Tls(Box::new(stream)))
            .map_err(|error| fault(TlsFault::from(&error)))
    }
}

impl Names {
    async fn ask(&self, name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        match self {
            Self::System => Ok(tokio::net::lookup_host((name, port)).await?.collect()),
            #[cfg(test)]
            Self::Scripted(answers) => {
                let next = crate::lock::lock(answers).pop_front();
                let ip = next.ok_or_else(|| io::Error::other("asked once too often"))?;
                Ok(vec![SocketAddr::new(ip, port)])
            }
        }
    }
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = DialError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

impl From<&io::Error> for TlsFault {
    fn from(error: &io::Error) -> Self {
        let inner = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match inner {
            Some(rustls::Error::InvalidCertificate(certificate)) => match certificate {
                CertificateError::UnknownIssuer => Self::UnknownAuthority,
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    Self::Expired
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    Self::NotYetValid
                }
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. } => Self::WrongName,
                other => Self::Other(other.to_string()),
            },
            // Typical for a port that speaks plain HTTP.
            Some(rustls::Error::InvalidMessage(_)) => {
                Self::Other("what answers there does not speak TLS".to_owned())
            }
            _ => Self::Other(error.to_string()),
        }
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        match self {
            Self::Tls(stream) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
                Connected::new().negotiated_h2()
            }
            _ => Connected::new(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(context, pieces),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(context, pieces),
        }
    }

    /// Without it, hyper copies each body behind its headers before it writes them.
    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

/// The addresses of a host that may be dialled. One address that may not be refuses the whole name: a name
/// with a public and a private address is a trick or a mistake.
pub(super) async fn resolve(
    names: &Names,
    host: &str,
    port: u16,
    allow_private: bool,
) -> Result<Vec<SocketAddr>, DialError> {
    let bare = without_brackets(host);
    let addresses: Vec<SocketAddr> = match bare.parse::<IpAddr>() {
        Ok(ip) => vec![SocketAddr::new(ip, port)],
        Err(_) => names
            .ask(bare, port)
            .await
            .map_err(|error| DialError::Name {
                host: host.to_owned(),
                cause: error.to_string(),
            })?,
    };
    let blocked = addresses
        .iter()
        .map(SocketAddr::ip)
        .find(|ip| !allow_private && !address::is_public(*ip));
    match blocked {
        Some(address) => Err(DialError::BlockedAddress {
            host: host.to_owned(),
            address,
        }),
        None if addresses.is_empty() => Err(DialError::Name {
            host: host.to_owned(),
            cause: "it has no address".to_owned(),
        }),
        None => Ok(addresses),
    }
}

/// Tries one address after the other, each for its share of the time, so that one that swallows packets does not
/// keep the next from being tried. Tells why the last one failed.
async fn dial_first(
    host: &str,
    addresses: &[SocketAddr],
    timeout: Duration,
) -> Result<TcpStream, DialError> {
    let deadline = Instant::now() + timeout;
    let mut last = DialError::Name {
        host: host.to_owned(),
        cause: "it has no address".to_owned(),
    };
    for (index, &address) in addresses.iter().enumerate() {
        let left = u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
        let share = deadline.saturating_duration_since(Instant::now()) / left;
        match tokio::time::timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => {
                // The number of the error says nothing that the words do not.
                let cause = error.to_string();
                let (words, _) = cause.split_once(" (os error").unwrap_or((&cause, ""));
                last = DialError::Tcp {
                    host: host.to_owned(),
                    address,
                    cause: words.to_owned(),
                };
            }
            Err(_) => {
                last = DialError::TimedOut {
                    host: host.to_owned(),
                    timeout: share,
                };
            }
        }
    }
    Err(last)
}

/// URLs write IPv6 addresses in brackets, resolvers and certificates do not.
fn without_brackets(host: &str) -> &str {
    host.strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host)
}
