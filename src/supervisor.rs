//! What the service manager hears (systemd's `sd_notify`): ready, reloading, stopping, and a ping for as long as the
//! relay answers.

use std::{io, net::SocketAddr};

use sd_notify::NotifyState;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

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

/// Pings while the admin listener answers `/healthz`, if the service manager wants pings. A relay whose threads are
/// stuck does not answer, and is started anew.
pub(crate) async fn watchdog(admin: SocketAddr) {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return;
    };
    // One answer that is late, or lost, is no reason yet.
    let period = limit / 3;
    loop {
        let answer = tokio::time::timeout(period, answers(admin)).await;
        match answer {
            Ok(Ok(())) => tell(&[NotifyState::Watchdog]),
            // The listener is closed first when the relay stops; the rest of that has a deadline of its own.
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
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

async fn answers(admin: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(admin).await?;
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
