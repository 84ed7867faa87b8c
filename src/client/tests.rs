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

/// A client whose name server tells one address after the other.
fn rebinding(answers: &[&str]) -> Client {
    let answers = answers.iter().map(|ip| ip.parse().expect("ip")).collect();
    let names = Names::Scripted(Arc::new(std::sync::Mutex::new(answers)));
    crypto::install();
    let settings = DialSettings {
        roots: Arc::new(RootCertStore::empty()),
        connect_timeout: SOON,
        allow_private: false,
    };
    let tls = ClientConfig::builder()
        .with_root_certificates(Arc::clone(&settings.roots))
        .with_no_client_auth();
    let pools = Pools::over(tls, &settings, names);
    Client(Arc::new(ArcSwap::from_pointee(pools)))
}

/// A name that is public when it is looked at and private when it is dialled.
#[tokio::test]
async fn a_name_that_changes_its_mind_gains_nothing() {
    let victim = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let port = victim.local_addr().expect("address").port();
    for private in ["127.0.0.1", "::ffff:127.0.0.1", "169.254.169.254", "::1"] {
        let client = rebinding(&["1.1.1.1", private]);
        let looked_at = client.blocked_address("evil.example", port).await;
        assert_eq!(looked_at, None, "public at the look");
        let url = format!("http://evil.example:{port}/");
        let error = client
            .send(Destination::Named, get(&url), SOON, 100)
            .await
            .expect_err("private at the dial");
        assert!(
            matches!(error, SendError::Dial(DialError::BlockedAddress { .. })),
            "{private}: {error}"
        );
    }
    let nobody = std::future::poll_fn(|context| {
        std::task::Poll::Ready(victim.poll_accept(context).is_pending())
    });
    assert!(nobody.await, "the listener was dialled");
}

/// One dial asks once, and goes to the very address that was judged: there is no second question to answer otherwise.
#[tokio::test]
async fn what_was_judged_is_what_is_dialled() {
    let address = answering(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let client = rebinding(&["127.0.0.1"]);
    let url = format!("http://name.example:{}/", address.port());
    let answer = client
        .send(Destination::Configured, get(&url), SOON, 100)
        .await
        .expect("answer");
    assert_eq!(answer.body().as_ref(), b"ok");
    let again = client.send(Destination::Configured, get(&url), SOON, 100);
    let error = again.await.expect_err("nothing is left to answer with");
    assert!(
        matches!(error, SendError::Dial(DialError::Name { .. })),
        "{error}"
    );
}

#[tokio::test]
async fn a_redirect_into_the_network_is_not_followed() {
    let victim = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let target = victim.local_addr().expect("address");
    let head = format!("HTTP/1.1 307 x\r\nlocation: http://{target}/\r\ncontent-length: 0\r\n\r\n");
    let address = answering(Box::leak(head.into_boxed_str()).as_bytes()).await;
    let answer = client(true)
        .send(
            Destination::Named,
            get(&format!("http://{address}/")),
            SOON,
            100,
        )
        .await
        .expect("answer");
    assert_eq!(answer.status(), 307);
    let nobody = std::future::poll_fn(|context| {
        std::task::Poll::Ready(victim.poll_accept(context).is_pending())
    });
    assert!(nobody.await, "the redirect was followed");
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
