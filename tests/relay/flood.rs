//! Strangers who come in crowds: while they do, an honest instance and a person are served, and the relay, in a
//! process of its own, does not grow by more than a stated number.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::Request;
use http_body_util::Full;
use jira_connect_proxy::client::{Client, DialSettings};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    fakes::{
        FakeInstance, FakeJira,
        http::{FakeServer, answer, try_send},
        instance::Behaviour,
    },
    harness::{PATIENCE, RelayProcess, SECRET, Settings, admin},
    stage::instance_token,
};

const MIB: u64 = 1024 * 1024;

/// A relay in a process of its own that ends TLS, one site, one instance that spoke already.
struct Stage {
    settings: Settings,
    relay: RelayProcess,
    client: Client,
    tls: TlsConnector,
    secret: String,
    /// The most that it had in memory before the attack.
    before: u64,
    _jira: (FakeJira, FakeServer),
    _instance: FakeInstance,
    _folder: TempDir,
}

impl Stage {
    async fn set(change: impl FnOnce(&mut Settings)) -> Self {
        let mut jira = FakeJira::start("tenant").await;
        let site = FakeServer::start(|_| async { answer(200, "{}") }).await;
        jira.base_url = site.url();
        let folder = tempfile::tempdir().expect("folder");
        let pair =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("certificate");
        let path = |name: &str| folder.path().join(name).to_str().expect("path").to_owned();
        std::fs::write(path("cert.pem"), pair.cert.pem()).expect("write");
        std::fs::write(path("key.pem"), pair.signing_key.serialize_pem()).expect("write");
        let mut roots = RootCertStore::empty();
        roots.add(pair.cert.der().clone()).expect("root");
        let roots = Arc::new(roots);

        let mut settings = Settings::new(folder.path(), &jira);
        let url = format!("https://localhost:{}", settings.public_port);
        settings.set("PUBLIC__URL", &url);
        settings.set("PUBLIC__TLS_CERT", &path("cert.pem"));
        settings.set("PUBLIC__TLS_KEY", &path("key.pem"));
        settings.set("APP__KEY", &jira.app_key);
        settings.set("JIRA__EXTRA_SITES", &site.url());
        settings.set("LIMITS__CONNECTIONS_PER_ADDRESS_MAX", "0");
        settings.set("LOG__FILTER", "error");
        change(&mut settings);
        let client = Client::new(&DialSettings {
            roots: Arc::clone(&roots),
            connect_timeout: PATIENCE,
            allow_private: true,
        });
        let mut tls = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"h2".to_vec()];

        let relay = RelayProcess::start(&settings, &client).await;
        let base = format!("{url}/-/jira_connect");
        let call = jira.call(&base, "installed", Some(SECRET));
        let request = Request::post(&call.url)
            .header("authorization", format!("JWT {}", call.token()))
            .body(Full::from(call.body.to_string()));
        let installed = try_send(&client, request.expect("request")).await;
        assert_eq!(installed.expect("an answer").status(), 204);
        let instance = FakeInstance::start(&url, "").await;
        // It trusts no certificate of a test's, so it can't fetch the key.
        instance.behave(Behaviour::Status(200));
        let token = std::fs::read_to_string(folder.path().join("admin-token")).expect("token");
        let wish = json!({"client_key": "tenant", "instance_url": instance.url()});
        let linked = admin(
            &client,
            &settings.admin_url(),
            &token,
            "POST",
            "/api/v1/links",
            Some(wish),
        )
        .await
        .expect("an answer");
        assert_eq!(linked.status(), 201);
        let told = instance.state().events.pop().expect("an event");
        let secret = told.fields.get("sharedSecret").expect("secret").clone();
        let mut stage = Self {
            settings,
            relay,
            client,
            tls: TlsConnector::from(Arc::new(tls)),
            secret,
            before: 0,
            _jira: (jira, site),
            _instance: instance,
            _folder: folder,
        };
        stage.honest().await;
        stage.before = stage.memory();
        stage
    }

    /// The most that the process ever had in memory, in bytes.
    fn memory(&self) -> u64 {
        let status = format!("/proc/{}/status", self.relay.child.id());
        let status = std::fs::read_to_string(status).expect("the relay lives");
        let line = status.lines().find(|line| line.starts_with("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
        kib.expect("VmHWM") * 1024
    }

    /// An instance with a good token, and somebody who opens an address in a browser.
    async fn honest(&self) {
        honest(&self.client, self.settings.public_port, &self.secret).await;
    }

    /// Asks honestly, again and again, until it is told to stop; how often it did.
    fn keep_asking(&self) -> (Arc<AtomicBool>, JoinHandle<usize>) {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, client) = (Arc::clone(&stop), self.client.clone());
        let (port, secret) = (self.settings.public_port, self.secret.clone());
        let asking = tokio::spawn(async move {
            let mut times = 0;
            while !stopped.load(Ordering::Relaxed) {
                honest(&client, port, &secret).await;
                times += 1;
            }
            times
        });
        (stop, asking)
    }

    /// The attack is over: the honest were served all the while and are now, and the memory is in its bounds.
    async fn survived(&self, what: &str, asking: (Arc<AtomicBool>, JoinHandle<usize>), most: u64) {
        self.honest().await;
        let (stop, asking) = asking;
        stop.store(true, Ordering::Relaxed);
        let times = asking.await.expect("the honest were served all the while");
        assert!(times > 0);
        let grown = self.memory().saturating_sub(self.before);
        println!(
            "{what}: {times} rounds of honest calls meanwhile; memory from {} to at most {} KiB",
            self.before / 1024,
            (self.before + grown) / 1024
        );
        assert!(grown <= most, "{what}: it grew by {grown} bytes");
    }

    async fn tcp(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.settings.public_port))
            .await
            .expect("connect")
    }

    async fn tls(&self) -> TlsStream<TcpStream> {
        let name = ServerName::try_from("localhost").expect("name");
        let stream = self.tls.connect(name, self.tcp().await).await;
        stream.expect("TLS")
    }

    /// HTTP/2, after the preface and an empty SETTINGS.
    async fn http2(&self) -> TlsStream<TcpStream> {
        let mut stream = self.tls().await;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
        let mut start = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        start.extend(frame(SETTINGS, 0, 0, &[]));
        stream.write_all(&start).await.expect("write");
        stream
    }
}

async fn honest(client: &Client, port: u16, secret: &str) {
    let path = "/rest/api/3/user?accountId=557058%3Aabc&expand=groups";
    let token = instance_token(secret, "GET", path, Value::Null);
    for (path, token) in [
        (path, Some(token)),
        ("/-/jira_connect/app_descriptor.json", None),
    ] {
        let mut request = Request::get(format!("https://localhost:{port}{path}"));
        if let Some(token) = token {
            request = request.header("authorization", format!("JWT {token}"));
        }
        let request = request.body(Full::default()).expect("request");
        let answer = try_send(client, request).await.expect("an answer");
        assert_eq!(answer.status(), 200, "{path}: {:?}", answer.body());
    }
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// RFC 9113 section 4.1.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("length").to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// RFC 7541: a GET of this path, by the static table.
fn get(path: &str) -> Vec<u8> {
    let mut block = vec![0x82, 0x87, 0x04, u8::try_from(path.len()).expect("short")];
    block.extend(path.as_bytes());
    block.extend([0x01, 9]);
    block.extend(b"localhost");
    block
}

/// Writes all of it, unless the relay has had enough.
async fn push(stream: &mut TlsStream<TcpStream>, bytes: &[u8]) -> bool {
    matches!(
        tokio::time::timeout(PATIENCE, stream.write_all(bytes)).await,
        Ok(Ok(()))
    )
}

/// 10,000 requests, each taken back at once (CVE-2023-44487).
#[tokio::test(flavor = "multi_thread")]
async fn rapid_reset() {
    let stage = Stage::set(|_| {}).await;
    let asking = stage.keep_asking();
    let block = get("/-/jira_connect/app_descriptor.json");
    let (mut sent, mut connections) = (0, 0);
    while sent < 10_000 {
        let mut stream = stage.http2().await;
        connections += 1;
        for stream_id in (1..).step_by(2).take(1_000) {
            let mut both = frame(HEADERS, END_STREAM | END_HEADERS, stream_id, &block);
            both.extend(frame(RST_STREAM, 0, stream_id, &8_u32.to_be_bytes()));
            sent += 1;
            if !push(&mut stream, &both).await {
                break;
            }
        }
        let _ = stream.flush().await;
    }
    println!("{sent} requests taken back on {connections} connections");
    stage.survived("rapid reset", asking, 32 * MIB).await;
}

/// Header blocks that never end, and frames that want an answer which nobody reads.
#[tokio::test(flavor = "multi_thread")]
async fn endless_frames() {
    let stage = Stage::set(|_| {}).await;
    let asking = stage.keep_asking();
    // A literal header field whose value goes on and on, in frames of 16 KiB.
    let chunk = vec![b'x'; 16 * 1024];
    for _ in 0..20 {
        let mut stream = stage.http2().await;
        let block = get("/");
        let mut went_out = push(&mut stream, &frame(HEADERS, END_STREAM, 1, &block)).await;
        let mut bytes = 0;
        while went_out && bytes < 64 * MIB {
            went_out = push(&mut stream, &frame(CONTINUATION, 0, 1, &chunk)).await;
            bytes += chunk.len() as u64;
        }
        assert!(!went_out, "{bytes} bytes of headers were taken");
    }
    // Empty ones are an attack of their own (CVE-2024-27316 and its like).
    let mut stream = stage.http2().await;
    let block = get("/");
    let mut went_out = push(&mut stream, &frame(HEADERS, END_STREAM, 1, &block)).await;
    let empty = frame(CONTINUATION, 0, 1, &[]).repeat(1_000);
    let mut frames = 0;
    while went_out && frames < 10_000_000 {
        went_out = push(&mut stream, &empty).await;
        frames += 1_000;
    }
    assert!(!went_out, "{frames} empty frames were taken");

    // Pings and settings, 300,000 of each on every connection, and not one answer is read.
    let mut deaf = Vec::new();
    let pings = frame(PING, 0, 0, &[7; 8]).repeat(1_000);
    let settings = frame(SETTINGS, 0, 0, &[]).repeat(1_000);
    for _ in 0..10 {
        let mut stream = stage.http2().await;
        for _ in 0..300 {
            let write = async {
                stream.write_all(&pings).await?;
                stream.write_all(&settings).await
            };
            // It stops to read when its answers pile up; that is as good as an end.
            match tokio::time::timeout(Duration::from_millis(500), write).await {
                Ok(Ok(())) => {}
                _ => break,
            }
        }
        deaf.push(stream);
    }
    stage.survived("endless frames", asking, 32 * MIB).await;
}

/// Headers and bodies, a byte at a time.
#[tokio::test(flavor = "multi_thread")]
async fn slow_loris() {
    let stage = Stage::set(|settings| settings.set("LIMITS__RECEIVE_TIMEOUT_SECS", "1")).await;
    let asking = stage.keep_asking();
    let url = format!("https://localhost:{}", stage.settings.public_port);
    let call = stage
        ._jira
        .0
        .call(&format!("{url}/-/jira_connect"), "installed", Some(SECRET));
    let body = format!(
        "POST /-/jira_connect/events/installed HTTP/1.1\r\nhost: localhost\r\nauthorization: JWT {}\r\ncontent-length: 5000\r\n\r\n{{",
        call.token()
    );
    let starts = [
        // Nothing of TLS, half a hello.
        (false, String::new()),
        (false, "\u{16}\u{3}\u{1}".to_owned()),
        (true, "GET / HTTP/1.1\r\nhost: localhost\r\nx".to_owned()),
        (true, body),
        (true, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned()),
    ];
    let mut tls = ClientConfig::clone(stage.tls.config());
    tls.alpn_protocols.clear();
    let plain_http1 = TlsConnector::from(Arc::new(tls));
    let mut drips = tokio::task::JoinSet::new();
    for (encrypted, start) in starts.iter().cycle().take(200).cloned() {
        let tcp = stage.tcp().await;
        let tls = plain_http1.clone();
        drips.spawn(async move {
            if encrypted {
                let name = ServerName::try_from("localhost").expect("name");
                drip(tls.connect(name, tcp).await.expect("TLS"), start).await
            } else {
                drip(tcp, start).await
            }
        });
    }
    let mut longest = Duration::ZERO;
    while let Some(took) = drips.join_next().await {
        longest = longest.max(took.expect("drip"));
    }
    println!("the longest of 200 held its connection for {longest:?}");
    stage.survived("slow loris", asking, 32 * MIB).await;
}

/// A byte now and then, until the relay has had enough, which it must have.
async fn drip(
    mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    start: String,
) -> Duration {
    let began = Instant::now();
    let mut buffer = [0; 4096];
    let _ = stream.write_all(start.as_bytes()).await;
    loop {
        assert!(began.elapsed() < PATIENCE, "it is still open");
        let read = tokio::time::timeout(Duration::from_millis(200), stream.read(&mut buffer));
        match read.await {
            Ok(Ok(0) | Err(_)) => return began.elapsed(),
            Ok(Ok(_)) => {}
            Err(_) => {
                if stream.write_all(b"x").await.is_err() || stream.flush().await.is_err() {
                    return began.elapsed();
                }
            }
        }
    }
}

/// Connections that say nothing, for longer than they may by default: 10,000, if so many files may be open here.
#[tokio::test(flavor = "multi_thread")]
async fn idle_connections() {
    use rustix::process::{Resource, getrlimit, setrlimit};

    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    setrlimit(Resource::Nofile, files).expect("as many files as may be");
    let allowed = files.maximum.unwrap_or(u64::MAX);
    let most = usize::try_from(allowed.saturating_sub(1_000).min(10_000)).expect("number");
    let stage = Stage::set(|settings| {
        settings.set("LIMITS__CONNECTIONS_MAX", "20000");
        settings.set("LIMITS__RECEIVE_TIMEOUT_SECS", "300");
    })
    .await;
    let asking = stage.keep_asking();
    let mut idle = Vec::with_capacity(most);
    for _ in 0..most {
        idle.push(stage.tcp().await);
    }
    println!("{} idle connections", idle.len());
    stage.honest().await;
    let open = idle.iter().filter(|stream| {
        let mut byte = [0];
        matches!(stream.try_read(&mut byte), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    });
    assert_eq!(open.count(), most, "none was closed before its time");
    stage.survived("idle connections", asking, 160 * MIB).await;
}

/// 100,000 tokens that nobody signed, as fast as they go.
#[tokio::test(flavor = "multi_thread")]
async fn bad_tokens() {
    const TOKENS: usize = 100_000;
    let stage = Stage::set(|_| {}).await;
    let asking = stage.keep_asking();
    let path = "/rest/api/3/user?accountId=557058%3Aabc&expand=groups";
    let token = instance_token("nobodys-nobodys-nobodys-nobodys", "GET", path, Value::Null);
    let (signed, _) = token.rsplit_once('.').expect("a token");
    let signed = Arc::new(signed.to_owned());
    let (next, refused) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let (next, refused) = (Arc::clone(&next), Arc::clone(&refused));
        let (client, signed) = (stage.client.clone(), Arc::clone(&signed));
        let port = stage.settings.public_port;
        callers.spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= TOKENS {
                    return;
                }
                let mut signature = [0; 32];
                signature[..8].copy_from_slice(&n.to_be_bytes());
                let signature = URL_SAFE_NO_PAD.encode(signature);
                let request = Request::get(format!("https://localhost:{port}{path}"))
                    .header("authorization", format!("JWT {signed}.{signature}"))
                    .body(Full::default())
                    .expect("request");
                let answer = try_send(&client, request).await.expect("an answer");
                assert!(matches!(answer.status().as_u16(), 401 | 429));
                refused.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    while let Some(done) = callers.join_next().await {
        done.expect("caller");
    }
    assert_eq!(refused.load(Ordering::Relaxed), TOKENS);
    stage.survived("bad tokens", asking, 32 * MIB).await;
}
