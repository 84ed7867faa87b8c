//! `doctor` finds each fault, on the rung where it is, and says what to do.

use std::sync::{Arc, OnceLock};

use http::Request;
use http_body_util::Full;
use jiff::SignedDuration;
use serde_json::{Value, json};

use crate::{
    fakes::{
        FakeInstance, FakeJira,
        http::{FakeServer, answer, client, send},
        instance::Behaviour,
        jira::now,
    },
    harness::{SECRET, TestRelay, free_port},
};

async fn look(relay: &TestRelay, instance: &str) -> Value {
    let wish = json!({ "instance_url": instance });
    relay.admin("POST", "/api/v1/doctor", Some(wish), 200).await
}

/// Everything that is not in order: rung, verdict, code.
fn faults(report: &Value) -> Vec<(&str, &str, &str)> {
    report["steps"]
        .as_array()
        .expect("steps")
        .iter()
        .filter(|step| step["verdict"] != "ok")
        .inspect(|step| {
            let hint = step["hint"].as_str().unwrap_or_default();
            assert!(!hint.is_empty(), "no cure: {step:#}");
        })
        .map(|step| {
            let of = |name| step[name].as_str().unwrap_or_default();
            (of("rung"), of("verdict"), of("code"))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_of_an_instance_is_found_on_its_rung() {
    let jira = FakeJira::start("tenant").await;
    let relay = TestRelay::start_with(&jira, |settings| {
        settings.set("INSTANCES__ALLOW", "127.0.0.1,no-such-name.invalid");
    })
    .await;
    jira.installed(&relay.app_base_url(), SECRET).await;
    let mut instance = FakeInstance::start(&relay.url(), "/gitlab").await;
    let url = instance.url();
    relay.link("tenant", &url).await;
    // Loopback is http; everything else is in order.
    let http = ("tls", "warn", "no_tls");
    let report = look(&relay, &url).await;
    assert_eq!(faults(&report), [http], "{report:#}");
    assert_eq!(report["verdict"], "warn");
    let rungs: Vec<&str> = report["steps"]
        .as_array()
        .expect("steps")
        .iter()
        .filter_map(|step| step["rung"].as_str())
        .collect();
    assert_eq!(
        rungs,
        [
            "allowed",
            "dns",
            "tcp",
            "tls",
            "http",
            "gitlab",
            "own_address",
            "clock",
            "proxy_url",
            "public_key",
            "oauth_application",
            "secret",
            "traffic"
        ]
    );

    let change = |change: &dyn Fn(&mut crate::fakes::instance::Front)| {
        change(&mut instance.front.lock().expect("front"));
    };
    change(&|front| front.own_host = Some("gitlab.internal".to_owned()));
    assert_eq!(
        faults(&look(&relay, &url).await),
        [
            http,
            ("own_address", "fail", "own_address_other"),
            ("public_key", "fail", "unauthorized_key_fetched"),
        ]
    );
    change(&|front| {
        front.own_host = None;
        front.date = Some("Wed, 25 Nov 2020 10:00:00 GMT".to_owned());
        front.allowed_origin = format!("{}/", relay.url());
        front.application_id = None;
    });
    instance.behave(Behaviour::Status(401));
    assert_eq!(
        faults(&look(&relay, &url).await),
        [
            http,
            ("clock", "fail", "clock_differs"),
            ("proxy_url", "fail", "proxy_url_missing"),
            ("public_key", "fail", "public_key_not_fetched"),
            ("oauth_application", "warn", "oauth_application_missing"),
        ]
    );
    change(&|front| {
        front.date = None;
        front.allowed_origin = relay.url();
        front.application_id = Some("application".to_owned());
    });
    instance.behave(Behaviour::Honest);
    instance.forget("tenant");
    assert_eq!(
        faults(&look(&relay, &url).await),
        [http, ("secret", "fail", "instance_secret")]
    );

    // Below an answer, the first broken rung is told, and nothing is guessed about those above.
    let broken = |report: &Value| {
        let faults = faults(report);
        let first = faults.iter().position(|(_, verdict, _)| *verdict == "fail");
        let first = first.unwrap_or_else(|| panic!("{report:#}"));
        let guessed = faults[first + 1..]
            .iter()
            .any(|(.., code)| *code != "not_reached");
        assert!(!guessed, "{report:#}");
        let (rung, _, code) = faults[first];
        (rung.to_owned(), code.to_owned())
    };
    let is = |rung: &str, code: &str| (rung.to_owned(), code.to_owned());
    instance.go_down().await;
    assert_eq!(
        broken(&look(&relay, &url).await),
        is("tcp", "connection_failed")
    );
    instance.go_up().await;
    let encrypted = url.replace("http://", "https://");
    assert_eq!(
        broken(&look(&relay, &encrypted).await),
        is("tls", "tls_failed")
    );
    let nowhere = "https://no-such-name.invalid";
    assert_eq!(
        broken(&look(&relay, nowhere).await),
        is("dns", "dns_failed")
    );
    let denied = "https://gitlab.example.com";
    assert_eq!(
        broken(&look(&relay, denied).await),
        is("allowed", "not_allowed")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_relay_looks_at_itself() {
    let jira = FakeJira::start("tenant").await;
    let relay = TestRelay::start(&jira).await;
    let report = relay.admin("POST", "/api/v1/doctor", None, 200).await;
    assert_eq!(report["subject"], "relay");
    // How much room this machine has is not the relay's doing.
    let mut found = faults(&report);
    found.retain(|(rung, ..)| *rung != "disk");
    assert_eq!(found, [], "{report:#}");

    let jira = FakeJira::start("tenant").await;
    let relay = TestRelay::start_with(&jira, |settings| {
        // Somebody else's port, and a key server that is not there.
        settings.set("PUBLIC__URL", &jira.keys.url());
        let nobody = format!("http://127.0.0.1:{}", free_port());
        settings.set("JIRA__INSTALL_KEYS_URL", &nobody);
    })
    .await;
    let report = relay.admin("POST", "/api/v1/doctor", None, 200).await;
    let mut found = faults(&report);
    found.retain(|(rung, ..)| *rung != "disk");
    assert_eq!(
        found,
        [
            ("public_url", "fail", "public_url_status"),
            ("key_server", "fail", "key_server_unreachable"),
            ("clock", "unknown", "clock_unknown"),
        ]
    );
}

/// A GitLab's web server that hands over the app's folder, and keeps what instances send to itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_front_that_forgets_rest_is_found() {
    let jira = FakeJira::start("tenant").await;
    let port = Arc::new(OnceLock::new());
    let known = Arc::clone(&port);
    let front = FakeServer::start(move |request| {
        let port = *known.get().expect("port");
        async move {
            let path = request.uri().path().to_owned();
            if !path.starts_with("/-/jira_connect/") {
                return answer(404, "GitLab");
            }
            let url = format!("http://127.0.0.1:{port}{path}");
            let request = Request::get(url).body(Full::default()).expect("request");
            send(&client(), request).await
        }
    })
    .await;
    let relay = TestRelay::start_with(&jira, |settings| {
        port.set(settings.public_port).expect("once");
        settings.set("PUBLIC__URL", &front.url());
    })
    .await;
    let report = relay.admin("POST", "/api/v1/doctor", None, 200).await;
    let found = faults(&report);
    assert!(
        found.contains(&("public_url", "fail", "rest_elsewhere")),
        "{report:#}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_runs_out_is_told_in_time() {
    let folder = tempfile::tempdir().expect("folder");
    let write = |days: i64| {
        let end = now() + SignedDuration::from_hours(24 * days);
        let end = end.to_zoned(jiff::tz::TimeZone::UTC).date();
        let mut params =
            rcgen::CertificateParams::new(["localhost".to_owned()]).expect("parameters");
        params.not_after = rcgen::date_time_ymd(
            end.year().into(),
            u8::try_from(end.month()).expect("month"),
            u8::try_from(end.day()).expect("day"),
        );
        let key = rcgen::KeyPair::generate().expect("key");
        let cert = params.self_signed(&key).expect("certificate");
        std::fs::write(folder.path().join("cert.pem"), cert.pem()).expect("write");
        std::fs::write(folder.path().join("key.pem"), key.serialize_pem()).expect("write");
        end
    };
    let jira = FakeJira::start("tenant").await;
    let end = write(6);
    let relay = TestRelay::start_with(&jira, |settings| {
        for (key, file) in [("TLS_CERT", "cert.pem"), ("TLS_KEY", "key.pem")] {
            let path = folder.path().join(file);
            settings.set(&format!("PUBLIC__{key}"), path.to_str().expect("path"));
        }
    })
    .await;
    let finding = async || {
        let report = relay.admin("POST", "/api/v1/doctor", None, 200).await;
        let steps = report["steps"].as_array().cloned().expect("steps");
        let step = steps.into_iter().find(|step| step["rung"] == "certificate");
        step.expect("certificate")["code"]
            .as_str()
            .map(str::to_owned)
    };
    assert_eq!(finding().await.as_deref(), Some("certificate_expires"));
    let expiry = relay
        .metric(
            "jira_connect_proxy_tls_certificate_expiry_timestamp_seconds",
            "",
        )
        .await;
    let expected = end
        .to_zoned(jiff::tz::TimeZone::UTC)
        .expect("time")
        .timestamp();
    assert!(
        (expiry - expected.as_second() as f64).abs() < 1.0,
        "{expiry}"
    );

    let mut check = relay.settings.command();
    check.arg("check");
    let output = tokio::task::spawn_blocking(move || check.output().expect("runs"))
        .await
        .expect("task");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        text.contains("warning: the relay's certificate is good for"),
        "{text}"
    );

    write(60);
    relay.reload.apply(&relay.settings.config()).await;
    assert_eq!(finding().await.as_deref(), Some("certificate"));
    write(-1);
    relay.reload.apply(&relay.settings.config()).await;
    assert_eq!(finding().await.as_deref(), Some("certificate_expired"));
}

#[tokio::test(flavor = "multi_thread")]
async fn connected_instances_are_looked_at_from_time_to_time() {
    let jira = FakeJira::start("tenant").await;
    let relay = TestRelay::start_with(&jira, |settings| {
        settings.set("INSTANCES__LOOK_EVERY_SECS", "1");
    })
    .await;
    jira.installed(&relay.app_base_url(), SECRET).await;
    let instance = FakeInstance::start(&relay.url(), "").await;
    relay.link("tenant", &instance.url()).await;
    let verdict_is =
        |verdict: &'static str| move |links: &[Value]| links[0]["health"]["verdict"] == verdict;
    relay.until_links("looked at", verdict_is("warn")).await;

    instance.front.lock().expect("front").own_host = Some("gitlab.internal".to_owned());
    let links = relay.until_links("drifted", verdict_is("fail")).await;
    let faults = links[0]["health"]["faults"].as_array().expect("faults");
    assert!(
        faults
            .iter()
            .any(|step| step["code"] == "own_address_other"),
        "{faults:#?}"
    );
    assert_eq!(links[0]["state"], "connected");
    let failing = relay
        .metric("jira_connect_proxy_instance_health", "\"fail\"")
        .await;
    assert!((failing - 1.0).abs() < f64::EPSILON);
    assert!(instance.state().events.len() == 1, "a look leaves no trace");

    instance.front.lock().expect("front").own_host = None;
    relay.until_links("mended", verdict_is("warn")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_ends_with_what_it_found() {
    let jira = FakeJira::start("tenant").await;
    let relay = TestRelay::start(&jira).await;
    jira.installed(&relay.app_base_url(), SECRET).await;
    let instance = FakeInstance::start(&relay.url(), "").await;
    relay.link("tenant", &instance.url()).await;
    let run = async |arguments: &[&str]| {
        let output = relay.command_line(arguments).await;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), text)
    };
    let url = instance.url();
    let (code, text) = run(&["doctor", &url]).await;
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("public_key") && text.contains("README.md#doctor"),
        "{text}"
    );
    let (_, text) = run(&["doctor", "--all", "--json"]).await;
    let reports: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(reports[0]["subject"], "relay");
    assert_eq!(reports[1]["subject"], url);

    instance.behave(Behaviour::Status(401));
    let (code, text) = run(&["doctor", &url]).await;
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("FAIL") && text.contains("Jira Connect Proxy URL must be"),
        "{text}"
    );
}
