//! The operators' listener behind a socket in the file system, and behind TLS that asks for certificates.

use std::{os::unix::fs::PermissionsExt as _, path::Path, process::Output};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::{
    fakes::{FakeJira, http::client},
    harness::{RelayProcess, Settings},
};

fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!(
        "{}{}",
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(err)
    )
}

/// The program as an operator types it, with the settings of the relay.
async fn run(settings: &Settings, arguments: &[&str]) -> Output {
    let mut command = settings.command();
    command.args(arguments);
    tokio::task::spawn_blocking(move || command.output().expect("run"))
        .await
        .expect("task")
}

#[tokio::test]
async fn commands_go_through_the_socket() {
    let folder = tempfile::tempdir().expect("folder");
    let jira = FakeJira::start("tenant").await;
    let mut settings = Settings::new(folder.path(), &jira);
    let socket = folder.path().join("admin.sock");
    settings.set("ADMIN__SOCKET", socket.to_str().expect("path"));
    let client = client();
    let mut relay = RelayProcess::start(&settings, &client).await;
    let mode = socket.metadata().expect("socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    // By the configuration, and by the argument alone.
    let output = run(&settings, &["status"]).await;
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("unix:"), "{}", text(&output));
    let url = format!("unix:{}", socket.display());
    let mut other = Settings::new(folder.path(), &jira);
    other.set("ADMIN__LISTEN", "127.0.0.1:1");
    let output = run(&other, &["keys", "list", "--admin-url", &url]).await;
    assert!(output.status.success(), "{}", text(&output));
    // One rule: the token, there too.
    std::fs::write(folder.path().join("wrong"), "not-the-token-of-this-relay").expect("write");
    let wrong = ["keys", "rotate", "--admin-token-file", "wrong"];
    let output = run(&settings, &wrong).await;
    assert!(!output.status.success() && text(&output).contains("admin_token"));
    let output = run(&settings, &["keys", "rotate"]).await;
    assert!(output.status.success(), "{}", text(&output));
    // kill -9 leaves the file; the next start takes its place, and a second relay does not.
    relay.child.kill().expect("kill");
    relay.child.wait().expect("wait");
    assert!(socket.exists());
    let output = run(&settings, &["status"]).await;
    assert!(
        text(&output).contains("can't be reached"),
        "{}",
        text(&output)
    );
    let mut relay = RelayProcess::start(&settings, &client).await;
    let second = tempfile::tempdir().expect("folder");
    let mut rival = Settings::new(second.path(), &jira);
    rival.set("ADMIN__SOCKET", socket.to_str().expect("path"));
    let output = run(&rival, &["serve"]).await;
    assert!(
        text(&output).contains("another process answers there"),
        "{}",
        text(&output)
    );
    assert!(run(&settings, &["status"]).await.status.success());

    // An orderly stop takes it away.
    let stop = std::process::Command::new("kill")
        .arg(relay.child.id().to_string())
        .status();
    assert!(stop.expect("kill").success());
    relay.child.wait().expect("wait");
    assert!(!socket.exists());
}

/// An authority's certificate, and one that it signed for `name`, with its key.
fn authority(folder: &Path, name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::<String>::new()).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("key");
    let authority = CertifiedIssuer::self_signed(params, key).expect("authority");
    write(folder, &format!("{name}-ca.pem"), &authority.pem());
    signed(folder, name, &authority);
    authority
}

fn signed(folder: &Path, name: &str, authority: &CertifiedIssuer<'static, KeyPair>) {
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let params = CertificateParams::new(names).expect("parameters");
    let key = KeyPair::generate().expect("key");
    let certificate = params.signed_by(&key, authority).expect("certificate");
    write(folder, &format!("{name}.pem"), &certificate.pem());
    write(folder, &format!("{name}-key.pem"), &key.serialize_pem());
}

fn write(folder: &Path, name: &str, content: &str) {
    std::fs::write(folder.join(name), content).expect("write");
}

#[tokio::test]
async fn only_certificates_of_the_right_authority_get_in() {
    let folder = tempfile::tempdir().expect("folder");
    let ours = authority(folder.path(), "server");
    signed(folder.path(), "operator", &ours);
    authority(folder.path(), "stranger");
    let jira = FakeJira::start("tenant").await;
    let mut settings = Settings::new(folder.path(), &jira);
    settings.set("ADMIN__TLS_CERT", "server.pem");
    settings.set("ADMIN__TLS_KEY", "server-key.pem");
    settings.set("ADMIN__CLIENT_CA_FILE", "server-ca.pem");
    let mut child = settings
        .command()
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("start");
    let ca = ["status", "--admin-ca", "server-ca.pem"];
    let with = |who: &str| {
        let (cert, key) = (format!("{who}.pem"), format!("{who}-key.pem"));
        let mut arguments: Vec<String> = ca.map(str::to_owned).into();
        arguments.extend([
            "--admin-cert".to_owned(),
            cert,
            "--admin-key".to_owned(),
            key,
        ]);
        arguments
    };
    let deadline = std::time::Instant::now() + crate::harness::PATIENCE;
    let operator = with("operator");
    let operator: Vec<&str> = operator.iter().map(String::as_str).collect();
    loop {
        let output = run(&settings, &operator).await;
        if output.status.success() {
            assert!(text(&output).contains("https://"), "{}", text(&output));
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{}", text(&output));
    }
    let stranger = with("stranger");
    let stranger: Vec<&str> = stranger.iter().map(String::as_str).collect();
    for arguments in [stranger.as_slice(), &ca, &["status"]] {
        let output = run(&settings, arguments).await;
        assert!(!output.status.success(), "{arguments:?}: {}", text(&output));
        assert!(
            text(&output).contains("can't be reached"),
            "{}",
            text(&output)
        );
    }
    child.kill().expect("kill");
    child.wait().expect("wait");

    // What can't be used is told before anything starts.
    write(folder.path(), "server-ca.pem", "");
    let output = run(&settings, &["check"]).await;
    assert_eq!(output.status.code(), Some(64));
    assert!(text(&output).contains("admin.client_ca_file"));
}
