//! What the service manager hears (systemd's `sd_notify`): ready, reloading, stopping, and a ping for as long as the
//! relay answers.

use std::{io, net::SocketAddr, path::PathBuf};

use jira_connect_proxy::server::Turning;
use sd_notify::NotifyState;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
};

/// Where the relay can be felt.
pub(crate) enum Pulse {
    /// The admin listener.
    Plain(SocketAddr),
    /// Its socket.
    Unix(PathBuf),
    /// The admin listener speaks TLS, maybe with those only who show a certificate; so what `/healthz` would have looked
    /// at is looked at from here.
    Encrypted(SocketAddr, Turning),
}

/// The relay is up.
pub(crate) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The configuration is being read again; [`ready`] says when that is done.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!("the service manager was not told of the reload: {error}"),
    }
}

/// The relay stops.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Pings while the admin listener answers `/healthz` with 200, if the service manager wants pings. A relay of which a
/// thread is stuck does not, and is started anew.
pub(crate) async fn watchdog(admin: Pulse) {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return;
    };
    // One answer that is late, or lost, is no reason yet.
    let period = limit / 3;
    loop {
        let answer = tokio::time::timeout(period, answers(&admin)).await;
        match answer {
            Ok(Ok(())) => tell(&[NotifyState::Watchdog]),
            // The listener is closed first when the relay stops; the rest of that has a deadline of its own.
            Ok(Err(error))
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
                ) =>
            {
                tell(&[NotifyState::Watchdog]);
            }
            Ok(Err(error)) => tracing::error!("no ping to the service manager: /healthz: {error}"),
            Err(_) => {
                tracing::error!("no ping to the service manager: /healthz took too long");
                continue;
            }
        }
        tokio::time::sleep(period).await;
    }
}

async fn answers(admin: &Pulse) -> io::Result<()> {
    match admin {
        Pulse::Plain(address) => ask(TcpStream::connect(address).await?).await,
        Pulse::Unix(path) => ask(UnixStream::connect(path).await?).await,
        Pulse::Encrypted(address, turning) => {
            // It takes this for a broken handshake and says so, or hangs up: a sign of life.
            let refused = ask(TcpStream::connect(address).await?).await;
            match refused {
                Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(error),
                _ => turning.check().await.map_err(io::Error::other),
            }
        }
    }
}

async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    stream
        .write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        .await?;
    let mut head = [0; 12];
    stream.read_exact(&mut head).await?;
    if head == *b"HTTP/1.1 200" {
        Ok(())
    } else {
        Err(io::Error::other("it does not answer 200"))
    }
}

/// Without a service manager this does nothing.
fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!("the service manager can't be told: {error}");
    }
}
