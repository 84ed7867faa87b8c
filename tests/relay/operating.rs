//! What operators see and do: health, metrics, TLS, drain.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use crate::{
    fakes::{FakeInstance, FakeJira},
    harness::{SECRET, TestRelay},
};

#[tokio::test]
async fn metrics_tell_what_happened() {
    let jira = FakeJira::start("tenant").await;
    let relay = TestRelay::start(&jira).await;
    let instance = FakeInstance::start(&relay.url(), "").await;
    jira.installed(&relay.app_base_url(), SECRET).await;
    relay.link("tenant", &instance.url()).await;
    for (name, labels, least) in [
        (
            "jira_connect_proxy_requests_total",
            "route=\"events/installed\",status=\"204\"",
            1.0,
        ),
        (
            "jira_connect_proxy_request_duration_seconds_count",
            "route=\"events/installed\"",
            1.0,
        ),
        (
            "jira_connect_proxy_lifecycle_events_total",
            "change=\"installation_created\"",
            1.0,
        ),
        (
            "jira_connect_proxy_deliveries_total",
            "event=\"installed\",outcome=\"delivered\"",
            1.0,
        ),
        (
            "jira_connect_proxy_delivery_duration_seconds_count",
            "event=\"installed\"",
            1.0,
        ),
        ("jira_connect_proxy_links", "state=\"connected\"", 1.0),
        (
            "jira_connect_proxy_installations",
            "state=\"installed\"",
            1.0,
        ),
        (
            "jira_connect_proxy_public_key_requests_total",
            "owner=\"ours\"",
            1.0,
        ),
        (
            "jira_connect_proxy_install_key_fetches_total",
            "outcome=\"found\"",
            1.0,
        ),
        ("jira_connect_proxy_store_flush_seconds_count", "", 2.0),
        ("jira_connect_proxy_store_writable", "", 1.0),
        ("process_open_fds", "", 1.0),
    ] {
        let value = relay.metric(name, labels).await;
        assert!(value >= least, "{name} {labels}: {value}");
    }
    let audit = relay
        .admin("GET", "/api/v1/audit?limit=10", None, 200)
        .await;
    let actions: Vec<&str> = audit
        .as_array()
        .expect("list")
        .iter()
        .filter_map(|entry| entry["action"].as_str())
        .collect();
    assert_eq!(
        actions,
        [
            "link_connected",
            "link_created",
            "installation_created",
            "signing_key_created"
        ]
    );
    relay.admin("GET", "/api/v1/audit?limit=0", None, 400).await;
}

#[tokio::test]
async fn the_descriptor_is_served() {
    let jira = FakeJira::start("tenant").await;
    let relay = TestRelay::start(&jira).await;
    let with = relay
        .get(&format!("{}/app_descriptor.json", relay.app_base_url()))
        .await;
    let without = relay
        .get(&format!("{}/app_descriptor", relay.app_base_url()))
        .await;
    assert_eq!((with.status().as_u16(), with.body()), (200, without.body()));
    let descriptor: serde_json::Value = serde_json::from_slice(with.body()).expect("JSON");
    assert_eq!(descriptor["baseUrl"], relay.app_base_url());
    let logo = descriptor
        .pointer("/modules/jiraDevelopmentTool/logoUrl")
        .and_then(|url| url.as_str())
        .expect("logo");
    let logo = relay.get(logo).await;
    assert_eq!(logo.headers()["content-type"], "image/svg+xml");
}

#[tokio::test]
async fn tls_speaks_both_versions_of_http_and_takes_a_new_certificate() {
    let folder = tempfile::tempdir().expect("folder");
    let (cert, key) = (
        folder.path().join("cert.pem"),
        folder.path().join("key.pem"),
    );
    let write = || {
        let pair =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("certificate");
        std::fs::write(&cert, pair.cert.pem()).expect("write");
        std::fs::write(&key, pair.signing_key.serialize_pem()).expect("write");
        pair.cert.der().clone()
    };
    let first = write();
    let jira = FakeJira::start("tenant").await;
    let relay = TestRelay::start_with(&jira, |settings| {
        settings.set("PUBLIC__TLS_CERT", cert.to_str().expect("path"));
        settings.set("PUBLIC__TLS_KEY", key.to_str().expect("path"));
    })
    .await;
    let port = relay.settings.public_port;
    assert_eq!(over_tls(port, &first, b"http/1.1").await, Some(200));
    assert_eq!(over_tls(port, &first, b"h2").await, Some(200));
    let second = write();
    relay.reload.apply(&relay.settings.config()).await;
    assert_eq!(over_tls(port, &second, b"h2").await, Some(200));
    assert_eq!(
        over_tls(port, &first, b"h2").await,
        None,
        "the old certificate is gone"
    );
    std::fs::write(&cert, "rubbish").expect("write");
    relay.reload.apply(&relay.settings.config()).await;
    assert_eq!(
        over_tls(port, &second, b"h2").await,
        Some(200),
        "a broken file changes nothing"
    );
    // Plain HTTP on the TLS port is no way in.
    let mut plain = TcpStream::connect(("127.0.0.1", port))
        .await
        .expect("connect");
    plain
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .expect("write");
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"));
}

/// The authority, its responder and the client are OpenSSL.
#[tokio::test(flavor = "multi_thread")]
async fn an_ocsp_response_is_shown_until_it_says_something_else() {
    let folder = tempfile::tempdir().expect("folder");
    let script = |script: &str| {
        let mut command = std::process::Command::new("bash");
        let command = command.current_dir(folder.path()).args(["-euc", script]);
        let output = command.output().expect("bash");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let respond = r#"openssl ocsp -index index.txt -CA ca.pem -rsigner ca.pem -rkey ca-key.pem -issuer ca.pem \
        -cert cert.pem -ndays 1 -noverify -respout ocsp.der >/dev/null"#;
    let end = r#"end=$(date -u -d '+1 day' +%y%m%d%H%M%SZ)"#;
    script(&format!(
        r#"key="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
        openssl req -x509 $key -keyout ca-key.pem -out ca.pem -subj /CN=authority -days 2
        openssl req $key -keyout key.pem -out leaf.csr -subj /CN=localhost
        echo subjectAltName=DNS:localhost >names
        openssl x509 -req -in leaf.csr -CA ca.pem -CAkey ca-key.pem -set_serial 1 -days 1 -extfile names -out cert.pem
        {end}
        printf 'V\t%s\t\t01\tunknown\t/CN=localhost\n' "$end" >index.txt
        {respond}"#
    ));
    let jira = FakeJira::start("tenant").await;
    let relay = TestRelay::start_with(&jira, |settings| {
        for (key, file) in [
            ("CERT", "cert.pem"),
            ("KEY", "key.pem"),
            ("OCSP", "ocsp.der"),
        ] {
            let path = folder.path().join(file);
            settings.set(&format!("PUBLIC__TLS_{key}"), path.to_str().expect("path"));
        }
    })
    .await;
    let shown = || {
        let port = relay.settings.public_port;
        script(&format!(
            "openssl s_client -connect 127.0.0.1:{port} -servername localhost -status -CAfile ca.pem </dev/null"
        ))
    };
    let text = shown();
    assert!(text.contains("Cert Status: good"), "{text}");
    let metric = "jira_connect_proxy_tls_ocsp_expiry_timestamp_seconds";
    let until = relay.metric(metric, "").await;
    assert!(until > jiff::Timestamp::now().as_second() as f64, "{until}");

    script(&format!(
        r#"{end}
        printf 'R\t%s\t%s\t01\tunknown\t/CN=localhost\n' "$end" "$(date -u +%y%m%d%H%M%SZ)" >index.txt
        {respond}"#
    ));
    relay.reload.apply(&relay.settings.config()).await;
    let text = shown();
    assert!(text.contains("OCSP response: no response sent"), "{text}");
    assert!((relay.metric(metric, "").await - 1.0).abs() < f64::EPSILON);
}

#[tokio::test]
async fn a_stop_lets_requests_in_flight_finish() {
    let jira = FakeJira::start("tenant").await;
    let mut relay = TestRelay::start(&jira).await;
    let call = jira.call(&relay.app_base_url(), "installed", Some(SECRET));
    let body = call.body.to_string();
    let mut stream = TcpStream::connect(("127.0.0.1", relay.settings.public_port))
        .await
        .expect("connect");
    let head = format!(
        "POST /-/jira_connect/events/installed HTTP/1.1\r\nhost: relay\r\nauthorization: JWT {}\r\ncontent-length: {}\r\n\r\n",
        call.token(),
        body.len()
    );
    let (first, second) = body.split_at(10);
    stream
        .write_all(format!("{head}{first}").as_bytes())
        .await
        .expect("write");
    let in_flight = || relay.metric("jira_connect_proxy_requests_in_flight", "public");
    while in_flight().await < 1.0 {
        tokio::task::yield_now().await;
    }
    let port = relay.settings.public_port;
    let stopping = relay.stop();
    let finish = async {
        // The listener is gone before the request is done.
        while TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            tokio::task::yield_now().await;
        }
        stream.write_all(second.as_bytes()).await.expect("write");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    };
    let ((), answer) = tokio::join!(stopping, finish);
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
}

#[tokio::test]
async fn a_connection_that_never_finishes_does_not_hold_up_a_stop() {
    let jira = FakeJira::start("tenant").await;
    let mut relay = TestRelay::start_with(&jira, |settings| {
        settings.set("LIMITS__DRAIN_DEADLINE_SECS", "1");
        settings.set("LIMITS__RECEIVE_TIMEOUT_SECS", "60");
    })
    .await;
    let mut stream = TcpStream::connect(("127.0.0.1", relay.settings.public_port))
        .await
        .expect("connect");
    stream
        .write_all(b"POST /-/jira_connect/events/installed HTTP/1.1\r\n")
        .await
        .expect("write");
    tokio::time::timeout(Duration::from_secs(10), relay.stop())
        .await
        .expect("stopped");
}

/// A GET of the descriptor over TLS with this protocol, trusting this certificate: its status.
async fn over_tls(
    port: u16,
    trusted: &rustls::pki_types::CertificateDer<'static>,
    protocol: &[u8],
) -> Option<u16> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).expect("root");
    let mut tls = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![protocol.to_vec()];
    let tcp = TcpStream::connect(("127.0.0.1", port))
        .await
        .expect("connect");
    let name = ServerName::try_from("localhost").expect("name");
    let stream = TlsConnector::from(Arc::new(tls))
        .connect(name, tcp)
        .await
        .ok()?;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(protocol));
    let io = TokioIo::new(stream);
    let request = Request::get("https://localhost/-/jira_connect/app_descriptor.json")
        .header("host", "localhost")
        .body(Full::<Bytes>::default())
        .expect("request");
    let answer = if protocol == b"h2" {
        let (mut send, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
                .await
                .ok()?;
        tokio::spawn(connection);
        send.send_request(request).await.ok()?
    } else {
        let (mut send, connection) = hyper::client::conn::http1::handshake(io).await.ok()?;
        tokio::spawn(connection);
        send.send_request(request).await.ok()?
    };
    let status = answer.status().as_u16();
    answer.into_body().collect().await.ok()?;
    Some(status)
}
