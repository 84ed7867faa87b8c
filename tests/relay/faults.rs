//! What goes wrong around a relay: its disk, its clock, its certificate. The README's table of faults names these tests,
//! and those elsewhere that show the other rows.

use std::{
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::Request;
use http_body_util::Full;
use jira_connect_proxy::client::{Client, Destination, DialSettings};
use rustls::RootCertStore;

use crate::{
    fakes::{
        FakeJira,
        http::{client, send},
    },
    harness::{RelayProcess, SECRET, SECRET_2, Settings, TestRelay, code},
};

/// The disk takes nothing more, by the limit of the process on the size of files, and later it does again.
#[tokio::test]
async fn a_disk_that_refuses_writes_is_outlived_without_a_restart() {
    let folder = tempfile::tempdir().expect("folder");
    let jira = FakeJira::start("tenant").await;
    let settings = Settings::new(folder.path(), &jira);
    let mut command = Command::new("bash");
    command
        .args(["-c", "trap '' XFSZ; exec \"$0\""])
        .arg(env!("CARGO_BIN_EXE_jira-connect-proxy"));
    let relay = start_as(command, &settings).await;
    let base = settings.app_base_url();
    assert_eq!(jira.installed(&base, SECRET).await.status(), 204);

    let limit = |size: &str| {
        let status = Command::new("prlimit")
            .args(["--pid", &relay.child.id().to_string()])
            .arg(format!("--fsize={size}:unlimited"))
            .status();
        assert!(status.expect("prlimit").success());
    };
    limit("0");
    for _ in 0..2 {
        let refused = jira.installed(&base, SECRET_2).await;
        assert_eq!(refused.status(), 503);
        assert_eq!(code(&refused), "store_unavailable");
    }
    let ready = || {
        let request = Request::get(format!("{}/readyz", settings.admin_url()));
        request.body(Full::default()).expect("request")
    };
    let client = client();
    assert_eq!(send(&client, ready()).await.status(), 503);
    // What was durable is still there to be read: the descriptor and public keys are served on.
    let descriptor = Request::get(format!("{base}/app_descriptor.json"));
    let descriptor = descriptor.body(Full::default()).expect("request");
    assert_eq!(send(&client, descriptor).await.status(), 200);

    limit("unlimited");
    // The first try may find the store still being opened again.
    let mut status = 503;
    for _ in 0..5 {
        status = jira.installed(&base, SECRET_2).await.status().as_u16();
        if status == 204 {
            break;
        }
    }
    assert_eq!(status, 204, "Jira's next attempt is taken");
    relay.kill();
    RelayProcess::start(&settings, &client).await.kill();
}

/// By libfaketime: the relay's clock alone is wrong.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_five_minutes_off_is_refused_and_named() {
    for (offset, refusal) in [("-5m", "token_from_the_future"), ("+5m", "token_expired")] {
        let folder = tempfile::tempdir().expect("folder");
        let jira = FakeJira::start("tenant").await;
        let settings = Settings::new(folder.path(), &jira);
        let mut command = Command::new(env!("CARGO_BIN_EXE_jira-connect-proxy"));
        command
            .env("LD_PRELOAD", faketime())
            .env("FAKETIME", offset)
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("DONT_FAKE_MONOTONIC", "1");
        let relay = start_as(command, &settings).await;
        let refused = jira.installed(&settings.app_base_url(), SECRET).await;
        assert_eq!(refused.status(), 401, "{offset}");
        assert_eq!(code(&refused), refusal, "{offset}");
        let mut doctor = settings.command();
        let doctor = doctor.args(["doctor", "--json"]).output().expect("run");
        let report = String::from_utf8_lossy(&doctor.stdout);
        assert!(report.contains("clock_differs"), "{offset}: {report}");
        relay.kill();
    }
}

/// Whoever is connected stays so while a certificate expires and is replaced.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_expires_under_load_drops_nobody() {
    let folder = tempfile::tempdir().expect("folder");
    let (cert, key) = (
        folder.path().join("cert.pem"),
        folder.path().join("key.pem"),
    );
    let write = |days: i64| {
        let mut parameters =
            rcgen::CertificateParams::new(["localhost".to_owned()]).expect("parameters");
        let now = std::time::SystemTime::now();
        let day = Duration::from_secs(24 * 3600);
        parameters.not_before = (now - 10 * day).into();
        parameters.not_after = if days < 0 { now - day } else { now + 60 * day }.into();
        let pair = rcgen::KeyPair::generate().expect("key");
        let made = parameters.self_signed(&pair).expect("certificate");
        std::fs::write(&cert, made.pem()).expect("write");
        std::fs::write(&key, pair.serialize_pem()).expect("write");
        let mut roots = RootCertStore::empty();
        roots.add(made.der().clone()).expect("root");
        Client::new(&DialSettings {
            roots: Arc::new(roots),
            connect_timeout: Duration::from_secs(5),
            allow_private: true,
        })
    };
    let connected = write(60);
    let jira = FakeJira::start("tenant").await;
    let relay = TestRelay::start_with(&jira, |settings| {
        settings.set("PUBLIC__TLS_CERT", cert.to_str().expect("path"));
        settings.set("PUBLIC__TLS_KEY", key.to_str().expect("path"));
    })
    .await;
    let address = format!(
        "https://localhost:{}/-/jira_connect/app_descriptor.json",
        relay.settings.public_port
    );
    let get = async |client: &Client| {
        let request = Request::get(&address).body(Full::default());
        let request = request.expect("request");
        let patience = Duration::from_secs(30);
        client
            .send(Destination::Configured, request, patience, 1 << 20)
            .await
    };
    let (served, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let load = async {
        while !over.load(Ordering::Relaxed) {
            let answer = get(&connected).await.expect("the connection stays");
            assert_eq!(answer.status(), 200);
            served.fetch_add(1, Ordering::Relaxed);
        }
    };
    let more = async || {
        let before = served.load(Ordering::Relaxed);
        while served.load(Ordering::Relaxed) < before + 50 {
            tokio::task::yield_now().await;
        }
    };
    let story = async {
        more().await;
        let expired = write(-1);
        relay.reload.apply(&relay.settings.config()).await;
        assert!(get(&expired).await.is_err(), "nobody new comes in");
        let ourselves = relay.admin("POST", "/api/v1/doctor", None, 200).await;
        assert!(ourselves.to_string().contains("certificate_expired"));
        more().await;
        let good = write(60);
        relay.reload.apply(&relay.settings.config()).await;
        assert_eq!(get(&good).await.expect("answer").status(), 200);
        more().await;
        over.store(true, Ordering::Relaxed);
    };
    tokio::join!(load, story);
}

/// The relay with these settings, by this command.
async fn start_as(mut command: Command, settings: &Settings) -> RelayProcess {
    let variables = settings.command();
    let variables = variables
        .get_envs()
        .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())));
    let child = command
        .current_dir(&settings.folder)
        .envs(variables)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("start the relay");
    let mut relay = RelayProcess { child };
    relay.until_ready(settings, &client()).await;
    relay
}

/// Where Debian puts it, whatever the machine.
fn faketime() -> std::path::PathBuf {
    let folders = std::fs::read_dir("/usr/lib").expect("/usr/lib");
    let library = Path::new("faketime/libfaketimeMT.so.1");
    folders
        .filter_map(|folder| Some(folder.ok()?.path().join(library)))
        .find(|library| library.exists())
        .expect("tests/run installs libfaketime")
}

/// Takes connections and says nothing: Jira is told to come again before it would give up by itself.
#[tokio::test]
async fn a_key_server_that_says_nothing_is_not_waited_for() {
    let jira = FakeJira::start("tenant").await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("bind");
    let address = silent.local_addr().expect("address");
    let relay = TestRelay::start_with(&jira, |settings| {
        settings.set("JIRA__INSTALL_KEYS_URL", &format!("http://{address}"));
    })
    .await;
    let refused = jira.installed(&relay.app_base_url(), SECRET).await;
    assert_eq!(refused.status(), 503);
    assert_eq!(code(&refused), "key_server_unavailable");
    assert!(refused.headers().contains_key("retry-after"));
}
