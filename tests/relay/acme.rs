//! The relay gets its certificate by itself. The judge is Let's Encrypt's own test server, Debian's `pebble`, which also
//! turns away good nonces now and then; its names come from `pebble-challtestsrv`.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use http::Request;
use http_body_util::Full;
use jira_connect_proxy::client::{Client, Destination, DialSettings};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use serde_json::json;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::{
    fakes::{FakeJira, http::client},
    harness::{PATIENCE, RelayProcess, Settings, free_port},
};

const HOST: &str = "relay.example.com";

/// An ACME server that looks for hosts on one port of this machine.
struct Pebble {
    directory_url: String,
    management: String,
    authority: PathBuf,
    client: Client,
    running: [Child; 2],
}

impl Pebble {
    async fn start(folder: &Path, tls_port: u16) -> Self {
        let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("pair");
        let (cert, key) = (folder.join("pebble.pem"), folder.join("pebble-key.pem"));
        std::fs::write(&cert, pair.cert.pem()).expect("write");
        std::fs::write(&key, pair.signing_key.serialize_pem()).expect("write");
        let [port, management, names, challenges] = [(); 4].map(|()| free_port());
        let config = json!({"pebble": {
            "listenAddress": format!("127.0.0.1:{port}"),
            "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": cert,
            "privateKey": key,
            "httpPort": 1,
            "tlsPort": tls_port,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": false,
        }});
        let file = folder.join("pebble.json");
        std::fs::write(&file, config.to_string()).expect("write");
        let start = |command: &mut Command| {
            let command = command.stdout(Stdio::null()).stderr(Stdio::null());
            command.spawn().expect("tests/run installs pebble")
        };
        let mut names_server = Command::new("pebble-challtestsrv");
        names_server
            .args(["-defaultIPv4", "127.0.0.1", "-defaultIPv6", ""])
            .args(["-http01", "", "-https01", "", "-tlsalpn01", ""])
            .args(["-dns01", &format!("127.0.0.1:{names}")])
            .args(["-management", &format!("127.0.0.1:{challenges}")]);
        let mut server = Command::new("pebble");
        server
            .env("PEBBLE_VA_NOSLEEP", "1")
            .env("PEBBLE_AUTHZREUSE", "0")
            .arg("-config")
            .arg(&file)
            .args(["-dnsserver", &format!("127.0.0.1:{names}")]);
        let mut roots = RootCertStore::empty();
        roots.add(pair.cert.der().clone()).expect("root");
        let pebble = Self {
            directory_url: format!("https://localhost:{port}/dir"),
            management: format!("https://localhost:{management}"),
            authority: cert,
            client: Client::new(&DialSettings {
                roots: Arc::new(roots),
                connect_timeout: Duration::from_secs(5),
                allow_private: true,
            }),
            running: [start(&mut names_server), start(&mut server)],
        };
        let deadline = Instant::now() + PATIENCE;
        let named = async || TcpStream::connect(("127.0.0.1", names)).await.is_ok();
        while !named().await || pebble.get(&pebble.directory_url).await.is_none() {
            assert!(Instant::now() < deadline, "pebble never came up");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        pebble
    }

    async fn get(&self, url: &str) -> Option<Vec<u8>> {
        let request = Request::get(url).body(Full::default()).expect("request");
        let patience = Duration::from_secs(5);
        let client = &self.client;
        let answer = client
            .send(Destination::Configured, request, patience, 1 << 20)
            .await;
        answer.ok().map(|answer| answer.into_body().to_vec())
    }

    /// What its certificates are signed with in the end.
    async fn root(&self) -> CertificateDer<'static> {
        let pem = self.get(&format!("{}/roots/0", self.management)).await;
        CertificateDer::from_pem_slice(&pem.expect("root")).expect("PEM")
    }

    fn settings(&self, folder: &Path, jira: &FakeJira) -> Settings {
        let mut settings = Settings::new(folder, jira);
        settings.set("PUBLIC__URL", &format!("https://{HOST}"));
        settings.set("ACME__DIRECTORY_URL", &self.directory_url);
        settings.set("ACME__CONTACT", "mailto:ops@example.com");
        let path = |path: &Path| path.to_str().expect("path").to_owned();
        settings.set("ACME__FOLDER", &path(&folder.join("acme")));
        settings.set("INSTANCES__EXTRA_CA_FILE", &path(&self.authority));
        settings
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        for child in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The certificate that the relay shows who trusts this root.
async fn shown(port: u16, root: &CertificateDer<'static>) -> Option<CertificateDer<'static>> {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).expect("root");
    let tls = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let tcp = TcpStream::connect(address).await.expect("connect");
    let name = ServerName::try_from(HOST).expect("name");
    let stream = TlsConnector::from(Arc::new(tls)).connect(name, tcp).await;
    let (_, session) = stream.as_ref().ok()?.get_ref();
    Some(session.peer_certificates()?.first()?.clone().into_owned())
}

async fn metric(settings: &Settings, name: &str) -> bool {
    let url = format!("{}/metrics", settings.admin_url());
    let request = Request::get(url).body(Full::default()).expect("request");
    let answer = crate::fakes::http::send(&client(), request).await;
    String::from_utf8_lossy(answer.body())
        .lines()
        .any(|line| line.starts_with(name))
}

async fn until(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is().await {
        assert!(Instant::now() < deadline, "never came to: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_got_kept_and_not_asked_for_twice() {
    let folder = tempfile::tempdir().expect("folder");
    let jira = FakeJira::start("tenant").await;
    let port = free_port();
    let pebble = Pebble::start(folder.path(), port).await;
    let mut settings = pebble.settings(folder.path(), &jira);
    settings.set("PUBLIC__LISTEN", &format!("127.0.0.1:{port}"));
    let client = client();
    let relay = RelayProcess::start(&settings, &client).await;
    let root = pebble.root().await;
    until("a certificate", async || shown(port, &root).await.is_some()).await;
    assert!(
        metric(
            &settings,
            "jira_connect_proxy_acme_orders_total{outcome=\"ok\"} 1"
        )
        .await
    );
    let certificate = shown(port, &root).await;
    relay.kill();

    let relay = RelayProcess::start(&settings, &client).await;
    assert_eq!(shown(port, &root).await, certificate);
    assert!(!metric(&settings, "jira_connect_proxy_acme_orders_total{").await);
    relay.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_leads_elsewhere_is_told_so() {
    let folder = tempfile::tempdir().expect("folder");
    let jira = FakeJira::start("tenant").await;
    let pebble = Pebble::start(folder.path(), free_port()).await;
    let settings = pebble.settings(folder.path(), &jira);
    let log = folder.path().join("log");
    let child = settings
        .command()
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log).expect("log"))
        .spawn()
        .expect("start");
    let mut relay = RelayProcess { child };
    relay.until_ready(&settings, &client()).await;
    until("a failure", async || {
        metric(
            &settings,
            "jira_connect_proxy_acme_orders_total{outcome=\"failed\"} 1",
        )
        .await
    })
    .await;
    let said = std::fs::read_to_string(&log).expect("log");
    assert!(
        said.contains("port 443 of it must lead to public.listen"),
        "{said}"
    );
    relay.kill();
}
