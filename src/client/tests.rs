use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;
use crate::jwt::crypto;

const SOON: Duration = Duration::from_secs(5);

fn client(allow_private: bool) -> Client {
    crypto::install();
    Client::new(&DialSettings {
        roots: Arc::new(RootCertStore::empty()),
        connect_timeout: SOON,
        allow_private,
    })
}

fn get(url: &str) -> Request<Full<Bytes>> {
    Request::get(url).body(Full::default()).expect("request")
}

/// Answers one connection with these bytes.
async fn answering(bytes: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accept");
        let mut request = [0; 1024];
        let _ = stream.read(&mut request).await;
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
    });
    address
}

#[tokio::test]
async fn addresses_named_by_others_must_be_public() {
    let address = answering(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let client = client(false);
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"] {
        let url = format!("http://{host}:{}/", address.port());
        let error = client
            .send(Destination::Named, get(&url), SOON, 100)
            .await
            .expect_err(host);
        assert!(
            matches!(error, SendError::Dial(DialError::BlockedAddress { .. })),
            "{host}: {error}"
        );
    }
    assert!(client.blocked_address("localhost", 80).await.is_some());
    let url = format!("http://{address}/");
    let answer = client
        .send(Destination::Configured, get(&url), SOON, 100)
        .await
        .expect("answer");
    assert_eq!(answer.body().as_ref(), b"ok");
}

#[tokio::test]
async fn redirects_are_answers() {
    let address = answering(
        b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
    )
    .await;
    let url = format!("http://{address}/");
    let answer = client(true)
        .send(Destination::Named, get(&url), SOON, 100)
        .await
        .expect("answer");
    assert_eq!(answer.status(), 302);
}

#[tokio::test]
async fn failures_are_told_apart() {
    let client = client(true);
    let send = |url: String, deadline| {
        let client = client.clone();
        async move {
            client
                .send(Destination::Named, get(&url), deadline, 10)
                .await
                .expect_err("failure")
        }
    };
    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("bind")
        .local_addr()
        .expect("address");
    assert!(matches!(
        send(format!("http://{closed}/"), SOON).await,
        SendError::Dial(DialError::Tcp { .. })
    ));

    let plain = answering(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    let error = send(format!("https://{plain}/"), SOON).await;
    assert!(
        matches!(error, SendError::Dial(DialError::Tls { .. })),
        "{error}"
    );

    let error = send("http://does-not-exist.invalid/".to_owned(), SOON).await;
    assert!(
        matches!(error, SendError::Dial(DialError::Name { .. })),
        "{error}"
    );

    let silent = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let url = format!("http://{}/", silent.local_addr().expect("address"));
    let error = send(url, Duration::from_millis(50)).await;
    assert!(matches!(error, SendError::TimedOut(_)), "{error}");

    let huge = answering(b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n12345678901").await;
    assert!(matches!(
        send(format!("http://{huge}/"), SOON).await,
        SendError::AnswerTooLarge(10)
    ));

    let rubbish = answering(b"SSH-2.0-OpenSSH\r\n").await;
    assert!(matches!(
        send(format!("http://{rubbish}/"), SOON).await,
        SendError::Broken(_)
    ));
}
