//! The program as operators run it: arguments, exit codes, signals, a store that is not as it should be.

use std::{
    io::Read as _,
    process::{Command, Output, Stdio},
};

use crate::{
    fakes::{
        FakeInstance, FakeJira,
        http::{client, send},
        instance::Behaviour,
    },
    harness::{PATIENCE, RelayProcess, SECRET, SECRET_2, Settings, hear_output},
};

fn output(command: &mut Command) -> (Option<i32>, String, String) {
    let output = command.output().expect("run");
    hear_output(&output);
    let Output {
        status,
        stdout,
        stderr,
    } = output;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (status.code(), text(stdout), text(stderr))
}

async fn settings() -> (tempfile::TempDir, FakeJira, Settings) {
    let folder = tempfile::tempdir().expect("folder");
    let jira = FakeJira::start("tenant").await;
    let settings = Settings::new(folder.path(), &jira);
    (folder, jira, settings)
}

#[tokio::test]
async fn a_bad_configuration_ends_with_64_and_all_mistakes() {
    let (folder, _jira, mut settings) = settings().await;
    settings.set("LIMITS__BODY_MAX_BYTES", "many");
    settings.set("PUBLIC__URL", "https://Relay.example.com/");
    let file = folder.path().join("proxy.toml");
    std::fs::write(&file, "[jira]\nextra_sitez = []\n").expect("write");
    for command in ["check", "serve"] {
        let (code, _, stderr) = output(settings.command().args([command, "--config"]).arg(&file));
        assert_eq!(code, Some(64), "{stderr}");
        for part in [
            "proxy.toml:2",
            "extra_sitez",
            "BODY_MAX_BYTES",
            "PUBLIC__URL",
            "3 mistakes",
        ] {
            assert!(stderr.contains(part), "{part} in {stderr}");
        }
        assert!(!folder.path().join("store").exists(), "nothing was made");
    }
    let (code, _, stderr) = output(
        settings
            .command()
            .args(["check", "--config", "missing.toml"]),
    );
    assert_eq!(code, Some(64), "{stderr}");
    assert!(stderr.contains("missing.toml"), "{stderr}");
}

#[tokio::test]
async fn files_that_are_missing_and_odd_variables() {
    let (_folder, _jira, mut settings) = settings().await;
    settings.set("INSTANCES__EXTRA_CA_FILE", "missing.pem");
    for command in ["check", "serve"] {
        let (code, _, stderr) = output(settings.command().arg(command));
        assert_eq!(code, Some(64), "{stderr}");
        assert!(stderr.contains("missing.pem"), "{stderr}");
    }
    use std::os::unix::ffi::OsStrExt as _;
    let odd = std::ffi::OsStr::from_bytes(b"\xff");
    settings.set("INSTANCES__EXTRA_CA_FILE", "/dev/null");
    let (code, _, stderr) = output(settings.command().arg("check").env("SOMEBODY_ELSES", odd));
    assert_eq!(code, Some(0), "{stderr}");
    let ours = "JIRA_CONNECT_PROXY__PUBLIC__URL";
    let (code, _, stderr) = output(settings.command().arg("check").env(ours, odd));
    assert_eq!(code, Some(64), "{stderr}");
}

#[tokio::test]
async fn check_tells_warnings_and_help_teaches() {
    let (_folder, _jira, settings) = settings().await;
    let (code, stdout, _) = output(settings.command().arg("check"));
    assert_eq!(code, Some(0));
    assert!(
        stdout.contains("warning: ") && stdout.contains("is good"),
        "{stdout}"
    );
    let (code, stdout, _) = output(settings.command().args(["check", "--json"]));
    let told: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!(code, Some(0));
    assert!(
        told["warnings"].as_array().is_some_and(|w| !w.is_empty()),
        "{told}"
    );
    let (code, stdout, _) = output(settings.command().arg("--help"));
    assert_eq!(code, Some(0));
    assert!(
        stdout.contains("Examples:") && stdout.contains("Exit codes"),
        "{stdout}"
    );
    let (code, _, stderr) = output(settings.command().arg("--nonsense"));
    assert_ne!(code, Some(0));
    assert!(stderr.contains("--nonsense"));
}

#[tokio::test]
async fn sigterm_ends_with_0_and_the_start_says_what_to_do() {
    let (folder, _jira, settings) = settings().await;
    let mut command = settings.command();
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start");
    let mut stdout = child.stdout.take().expect("stdout");
    let mut said = String::new();
    let mut chunk = [0; 4096];
    while !said.contains("README") {
        let n = stdout.read(&mut chunk).expect("read");
        assert!(n > 0, "ended early: {said}");
        said.push_str(&String::from_utf8_lossy(&chunk[..n]));
    }
    for part in [
        "app_descriptor.json",
        &settings.url(),
        &settings.admin_url(),
        "Next:",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }
    for file in ["admin-token", "store-key"] {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = folder
            .path()
            .join(file)
            .metadata()
            .expect(file)
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    terminate(child.id());
    assert_eq!(child.wait().expect("wait").code(), Some(0));
}

#[tokio::test]
async fn a_store_that_is_not_right_is_one_sentence_and_1() {
    let (folder, _jira, mut settings) = settings().await;
    let client = client();
    let running = RelayProcess::start(&settings, &client).await;
    let (public, admin) = (settings.public_port, settings.admin_port);
    settings.set("PUBLIC__LISTEN", "127.0.0.1:0");
    settings.set("ADMIN__LISTEN", "127.0.0.1:0");
    let refused = |settings: &Settings, part: &str| {
        let (code, _, stderr) = output(&mut settings.command());
        assert_eq!(code, Some(1), "{stderr}");
        let last = stderr.lines().last().unwrap_or_default();
        assert!(
            last.starts_with("jira-connect-proxy: ") && last.contains(part),
            "{part} in {stderr}"
        );
    };
    refused(&settings, "in use by another process");
    running.kill();
    let key = folder.path().join("store-key");
    let good = std::fs::read(&key).expect("key");
    std::fs::write(&key, [7; 32]).expect("write");
    refused(&settings, "does not open the store");
    std::fs::remove_file(&key).expect("remove");
    refused(&settings, "put the key file back");
    std::fs::write(&key, good).expect("write");

    // Damage in the middle of the data file.
    let data = folder.path().join("store/db");
    let whole = std::fs::read(&data).expect("data");
    let mut damaged = whole.clone();
    for byte in damaged.iter_mut().skip(16).step_by(7).take(20_000) {
        *byte ^= 0x5a;
    }
    std::fs::write(&data, &damaged).expect("write");
    let (code, _, stderr) = output(settings.command().arg("serve"));
    assert_eq!(code, Some(1), "{stderr}");
    assert!(
        stderr.contains("damaged") || stderr.contains("can't be opened"),
        "{stderr}"
    );
    assert!(
        data.metadata().expect("data").len() >= whole.len() as u64,
        "nothing was wiped"
    );
    std::fs::write(&data, &whole).expect("write");
    settings.set("PUBLIC__LISTEN", &format!("127.0.0.1:{public}"));
    settings.set("ADMIN__LISTEN", &format!("127.0.0.1:{admin}"));
    RelayProcess::start(&settings, &client).await.kill();
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let (_folder, _jira, mut settings) = settings().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    settings.set(
        "PUBLIC__LISTEN",
        &taken.local_addr().expect("address").to_string(),
    );
    let (code, _, stderr) = output(&mut settings.command());
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("public.listen"), "{stderr}");
}

/// A disk that takes no more: the process may not write past a size, as `ulimit -f` sets it.
#[tokio::test]
async fn a_full_disk_acknowledges_nothing_and_loses_nothing() {
    let (_folder, jira, settings) = settings().await;
    let client = client();
    RelayProcess::start(&settings, &client).await.kill();
    assert!(settings.folder.join("store/db").exists());
    // Room to start (the engine writes in segments of 512 KiB), and for some hundred sites.
    let blocks = 1100;
    let mut limited = Command::new("bash");
    let program = env!("CARGO_BIN_EXE_jira-connect-proxy");
    limited
        .current_dir(&settings.folder)
        .args([
            "-c",
            &format!("trap '' XFSZ; ulimit -f {blocks}; exec {program}"),
        ])
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .envs(
            settings
                .command()
                .get_envs()
                .filter_map(|(k, v)| Some((k.to_owned(), v?.to_owned()))),
        )
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let child = limited.spawn().expect("start");
    let mut relay = RelayProcess { child };
    relay.until_ready(&settings, &client).await;
    let base = settings.app_base_url();
    let mut acknowledged = Vec::new();
    let mut refused = 0;
    for n in 0..4000 {
        let site = format!("tenant-{n}");
        let call = jira.site(&site).call(&base, "installed", Some(SECRET));
        match jira.send(call).await.status().as_u16() {
            204 => acknowledged.push(site),
            503 if refused == 2 => break,
            503 => refused += 1,
            status => panic!("a full disk is answered with {status}"),
        }
    }
    assert!(
        refused > 0,
        "the disk never got full: {} taken",
        acknowledged.len()
    );
    let ready = http::Request::get(format!("{}/readyz", settings.admin_url()));
    let ready = ready
        .body(http_body_util::Full::default())
        .expect("request");
    assert_eq!(send(&client, ready).await.status(), 503);
    relay.kill();
    let relay = RelayProcess::start(&settings, &client).await;
    let token = std::fs::read_to_string(settings.folder.join("admin-token")).expect("token");
    let known = crate::harness::admin(
        &client,
        &settings.admin_url(),
        &token,
        "GET",
        "/api/v1/installations",
        None,
    )
    .await
    .expect("answer");
    let known: serde_json::Value = serde_json::from_slice(known.body()).expect("JSON");
    let known: std::collections::HashSet<&str> = known
        .as_array()
        .expect("list")
        .iter()
        .filter_map(|i| i["client_key"].as_str())
        .collect();
    let lost: Vec<&String> = acknowledged
        .iter()
        .filter(|site| !known.contains(site.as_str()))
        .collect();
    assert!(lost.is_empty(), "acknowledged, but lost: {lost:?}");
    relay.kill();
}

/// Everything that the relay says about the main job and some attacks, at the most talkative level, in both forms.
#[tokio::test]
async fn no_secret_and_no_token_is_ever_logged() {
    for format in ["text", "json"] {
        let (folder, jira, mut settings) = settings().await;
        settings.set("LOG__FORMAT", format);
        settings.set("LOG__FILTER", "trace");
        let log = folder.path().join("log");
        let file = std::fs::File::create(&log).expect("log");
        let child = settings
            .command()
            .stdout(file.try_clone().expect("log"))
            .stderr(file)
            .spawn()
            .expect("start");
        let client = client();
        let mut relay = RelayProcess { child };
        relay.until_ready(&settings, &client).await;
        let instance = FakeInstance::start(&settings.url(), "").await;
        let refusing = FakeInstance::start(&settings.url(), "").await;
        refusing.behave(Behaviour::Status(401));
        let base = settings.app_base_url();
        let token = std::fs::read_to_string(folder.path().join("admin-token")).expect("token");
        let mut secrets = vec![SECRET.to_owned(), SECRET_2.to_owned(), token.clone()];

        for secret in [SECRET, SECRET_2] {
            let call = jira.call(&base, "installed", Some(secret));
            secrets.push(call.token());
            assert_eq!(jira.send(call).await.status(), 204);
        }
        let mut forged = jira
            .call(&base, "installed", Some("short-secret"))
            .with_claim("aud", "x");
        secrets.extend([forged.token(), "short-secret".to_owned()]);
        forged.url = format!("{}?jwt={}", forged.url, forged.token());
        jira.send(forged).await;
        for gitlab in [&instance, &refusing] {
            let wish = serde_json::json!({"client_key": "tenant", "instance_url": gitlab.url()});
            let admin_url = settings.admin_url();
            crate::harness::admin(
                &client,
                &admin_url,
                &token,
                "POST",
                "/api/v1/links",
                Some(wish),
            )
            .await;
            for told in gitlab.state().events {
                secrets.extend(["sharedSecret", "jwt"].map(|field| told.fields[field].clone()));
            }
        }
        terminate(relay.child.id());
        assert_eq!(relay.child.wait().expect("wait").code(), Some(0));
        let log = std::fs::read_to_string(log).expect("log");
        for part in [
            "answered 204",
            "not delivered",
            "shared_secret_unusable",
            "unauthorized",
        ] {
            assert!(log.contains(part), "{part} in {log}");
        }
        if format == "json" {
            every_field_is_documented(&log);
        }
        assert!(secrets.len() > 8);
        for secret in secrets {
            // A token's signature alone would be enough to use it.
            let tail = secret.rsplit('.').next().unwrap_or(&secret);
            assert!(!log.contains(tail), "{tail} is in the log:\n{log}");
        }
    }
}

/// What the relay itself logs, field by field, stands in the README.
fn every_field_is_documented(log: &str) {
    let readme = include_str!("../../README.md");
    let table = readme
        .lines()
        .skip_while(|line| !line.starts_with("| field | on"));
    let table: Vec<&str> = table.take_while(|line| line.starts_with('|')).collect();
    let table = table.join("\n");
    let mut fields = std::collections::BTreeSet::new();
    for line in log.lines() {
        // The greeting on standard output is no log.
        let Ok(line) = serde_json::from_str::<serde_json::Value>(line) else {
            continue;
        };
        if line["target"]
            .as_str()
            .is_some_and(|t| t.starts_with("jira_connect_proxy"))
        {
            fields.extend(line.as_object().expect("an object").keys().cloned());
        }
    }
    for formal in ["timestamp", "level", "target", "message", "span"] {
        fields.remove(formal);
    }
    assert!(fields.len() > 12, "{fields:?}");
    for field in fields {
        assert!(
            table.contains(&format!("`{field}`")),
            "{field} is not in the README's table"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_manager_hears_how_the_relay_is() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let jira = FakeJira::start("tenant").await;
    let settings = Settings::new(folder.path(), &jira);
    let path = folder.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).expect("socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
    let hears = |what: &str| {
        let mut told = [0; 256];
        loop {
            let length = socket.recv(&mut told).expect("the relay tells something");
            let text = String::from_utf8_lossy(&told[..length]).into_owned();
            if text.contains(what) {
                return text;
            }
        }
    };
    let mut relay = settings
        .command()
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "400000")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("start the relay");
    tokio::task::block_in_place(|| {
        hears("READY=1");
        hears("WATCHDOG=1");
        hears("WATCHDOG=1");
        signal(relay.id(), "-HUP");
        assert!(hears("RELOADING=1").contains("MONOTONIC_USEC="));
        hears("READY=1");
        terminate(relay.id());
        hears("STOPPING=1");
    });
    assert_eq!(relay.wait().expect("wait").code(), Some(0));
}

fn terminate(pid: u32) {
    signal(pid, "-TERM");
}

fn signal(pid: u32, name: &str) {
    let status = Command::new("kill")
        .args([name, &pid.to_string()])
        .status()
        .expect("kill");
    assert!(status.success());
}
