//! `import-gitlab`: the relay takes over from a GitLab that was the proxy, and gives back. The export is what GitLab's own
//! gem for encrypted attributes writes.

use std::{
    io::Write as _,
    process::{Command, Output, Stdio},
};

use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};

use crate::{
    fakes::{
        FakeInstance, FakeJira,
        http::{client, send},
    },
    harness::{Judge, SECRET, SECRET_2, TestRelay},
    stage::{CLIENT_KEY, GitLab, JiraSite},
};

const DB_KEY_BASE: &str = "0a1b2c3d4e5f60718293a4b5c6d7e8f9-the-rest-is-not-used-for-attributes";

/// Writes an export and the key into the relay's folder.
fn export(relay: &TestRelay, mut table: Value) {
    table["db_key_base"] = DB_KEY_BASE.into();
    let mut ruby = Command::new("ruby")
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/judges/gitlab_export.rb"
        ))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("ruby: tests/run installs it");
    let mut stdin = ruby.stdin.take().expect("stdin");
    write!(stdin, "{table}").expect("write");
    drop(stdin);
    let output = ruby.wait_with_output().expect("output");
    assert!(output.status.success(), "the export was not written");
    let folder = &relay.settings.folder;
    std::fs::write(folder.join("export.csv"), output.stdout).expect("write");
    let secrets = json!({"gitlab_rails": {"db_key_base": DB_KEY_BASE, "secret_key_base": "x"}});
    std::fs::write(folder.join("gitlab-secrets.json"), secrets.to_string()).expect("write");
}

async fn run(relay: &TestRelay, arguments: &[&str], code: i32) -> String {
    let told: Output = relay
        .command_line(&[&["import-gitlab"], arguments].concat())
        .await;
    let text = String::from_utf8_lossy(&told.stdout) + String::from_utf8_lossy(&told.stderr);
    assert_eq!(told.status.code(), Some(code), "{arguments:?}: {text}");
    for secret in [SECRET, SECRET_2, DB_KEY_BASE] {
        assert!(!text.contains(secret), "a secret was printed: {text}");
    }
    text.into_owned()
}

/// An import of the export, with these options.
async fn import(relay: &TestRelay, options: &[&str], code: i32) -> String {
    let file = ["export.csv", "--db-key-base-file", "gitlab-secrets.json"];
    run(relay, &[&file, options].concat(), code).await
}

async fn import_json(relay: &TestRelay, options: &[&str]) -> Value {
    let text = import(relay, &[options, &["--json"]].concat(), 0).await;
    serde_json::from_str(&text).expect("JSON")
}

async fn list(relay: &TestRelay, what: &str) -> Value {
    let path = format!("/api/v1/{what}");
    relay.admin("GET", &path, None, 200).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_goes_on_as_it_was_and_can_be_given_back() {
    let site = JiraSite::start();
    let mut jira = FakeJira::start(CLIENT_KEY).await;
    jira.base_url = site.url.clone();
    let relay = TestRelay::start_with(&jira, |settings| {
        settings.set("JIRA__EXTRA_SITES", &site.url);
    })
    .await;
    // As the GitLab that was the proxy left it: the instance holds Jira's own secret.
    let gitlab = GitLab::start(&relay, "", &[]);
    let before = json!({"client_key": CLIENT_KEY, "shared_secret": SECRET, "base_url": site.url});
    gitlab.control("install", before).await;
    export(
        &relay,
        json!({"rows": [{
            "client_key": CLIENT_KEY, "shared_secret": SECRET, "base_url": site.url,
            "instance_url": format!("{}/", gitlab.url),
        }]}),
    );

    let dry = import(&relay, &[], 0).await;
    assert!(dry.contains(&gitlab.url) && dry.contains("new"), "{dry}");
    assert!(dry.contains("nothing was changed: --apply"), "{dry}");
    assert_eq!(list(&relay, "installations").await, json!([]));
    assert_eq!(relay.links().await, [] as [Value; 0]);
    assert_eq!(gitlab.secret().await, SECRET);

    let done = import_json(&relay, &["--apply"]).await;
    let id = done["id"].as_str().expect("id").to_owned();
    let links = relay
        .until_links("connected", |links| links[0]["state"] == "connected")
        .await;
    assert_eq!(links[0]["keep_ids"], true);
    assert_ne!(gitlab.secret().await, SECRET, "it has one of its own now");

    // Jira's next call is signed with the secret that it always had, and its data keeps its ids.
    let mut judge = Judge::start("node", &["jira.mjs"]);
    let path = "/workspaces/search?searchQuery=";
    let signed = judge.ask(json!({
        "cmd": "sign_request", "method": "GET", "url": format!("{}{path}", relay.app_base_url()),
        "base_url": relay.app_base_url(), "secret": SECRET, "claims": {"iss": CLIENT_KEY},
    }));
    let token = signed["token"].as_str().expect("token");
    let request = Request::get(format!("{}{path}", relay.app_base_url()))
        .header("authorization", format!("JWT {token}"))
        .body(Full::default());
    let answer = send(&client(), request.expect("request")).await;
    assert_eq!(answer.status(), 200, "{:?}", answer.body());
    gitlab.sends("devinfo", json!({"branches": 1})).await;
    let keys = site.keys("devinfo");
    assert!(keys.contains(&"42".to_owned()), "{keys:?}");

    // A second run finds everything there.
    let known = (list(&relay, "installations").await, relay.links().await);
    let audit = list(&relay, "audit").await;
    let again = import_json(&relay, &["--apply"]).await;
    assert_eq!(
        (&again["id"], &again["applied"], &again["rows"][0]["link"]),
        (&Value::Null, &json!(false), &json!("there"))
    );
    let generations = |links: &[Value]| links[0]["generation"].clone();
    assert_eq!(list(&relay, "installations").await, known.0);
    assert_eq!(generations(&relay.links().await), generations(&known.1));
    assert_eq!(list(&relay, "audit").await, audit);

    // Back: the instance holds again what the other proxy gave it, and its groups were never unlinked.
    let dry = run(&relay, &["--rollback", &id], 0).await;
    assert!(dry.contains("handed back"), "{dry}");
    assert_eq!(relay.links().await.len(), 1);
    run(&relay, &["--rollback", &id, "--apply"], 0).await;
    relay.until_links("no link", <[Value]>::is_empty).await;
    assert_eq!(list(&relay, "installations").await, json!([]));
    let state = gitlab.state().await;
    assert_eq!(
        state["installations"][CLIENT_KEY],
        json!({"shared_secret": SECRET, "base_url": site.url})
    );
    assert!(!state["events"].to_string().contains("uninstalled"));
    let audit = list(&relay, "audit").await.to_string();
    for action in [
        "import_applied",
        "installation_imported",
        "link_created_by_import",
        "import_rolled_back",
        "installation_rolled_back",
        "link_handed_back",
    ] {
        assert!(audit.contains(action), "{action} in {audit}");
    }
    let gone = run(&relay, &["--rollback", &id, "--apply"], 1).await;
    assert!(gone.contains("import_unknown"), "{gone}");
    // What is gone can come again.
    import(&relay, &["--apply"], 0).await;
    relay
        .until_links("connected", |links| links[0]["state"] == "connected")
        .await;
}

/// A database server of its own, reached by a socket in its folder.
struct Postgres(tempfile::TempDir);

impl Postgres {
    fn start() -> Self {
        let server = Self(tempfile::tempdir().expect("folder"));
        if is_root() {
            let mut chown = Command::new("chown");
            let ended = chown.arg("postgres").arg(server.0.path()).status();
            assert!(ended.expect("chown").success());
        }
        let data = server.data();
        server.run(
            "initdb",
            &["-A", "trust", "-U", "postgres", "-N", "-D", &data],
            "",
        );
        let options = format!("-c listen_addresses= -c fsync=off -k {data}");
        let log = format!("{data}/log");
        server.run(
            "pg_ctl",
            &["-w", "-D", &data, "-l", &log, "-o", &options, "start"],
            "",
        );
        server
    }

    fn psql(&self, command: &str, input: &str) -> String {
        let data = self.data();
        let arguments = [
            "-h",
            &data,
            "-U",
            "postgres",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-c",
            command,
        ];
        self.run("psql", &arguments, input)
    }

    fn data(&self) -> String {
        let path = self.0.path().join("data");
        path.to_str().expect("path").to_owned()
    }

    /// One of the programs that come with it; none of them runs as root.
    fn run(&self, program: &str, arguments: &[&str], input: &str) -> String {
        let programs = std::fs::read_dir("/usr/lib/postgresql").expect("tests/run installs it");
        let versions = programs.map(|entry| entry.expect("entry").path());
        let program = versions.max().expect("a version").join("bin").join(program);
        let mut command = Command::new(if is_root() { "runuser" } else { "env" });
        if is_root() {
            command.args(["-u", "postgres", "--"]);
        }
        let mut child = command
            .arg(program)
            .args(arguments)
            .current_dir(self.0.path())
            .stdin(Stdio::piped())
            .stdout(std::fs::File::create(self.0.path().join("stdout")).expect("file"))
            .spawn()
            .expect("runs");
        let mut stdin = child.stdin.take().expect("stdin");
        stdin.write_all(input.as_bytes()).expect("write");
        drop(stdin);
        assert!(child.wait().expect("ended").success(), "{arguments:?}");
        // Not a pipe: the server would keep it open.
        std::fs::read_to_string(self.0.path().join("stdout")).expect("text")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.run(
            "pg_ctl",
            &["-m", "immediate", "-D", &self.data(), "stop"],
            "",
        );
    }
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().expect("id");
    id.stdout == b"0\n"
}

/// The table as GitLab's migrations make it, and the export as its documentation's tool writes it; nothing in between
/// touches the disk.
#[tokio::test(flavor = "multi_thread")]
async fn psql_hands_the_table_over() {
    let jira = FakeJira::start("tenant").await;
    let relay = TestRelay::start(&jira).await;
    let instance = FakeInstance::start(&relay.url(), "/gitlab").await;
    export(
        &relay,
        json!({"rows": [
            {"client_key": "tenant", "shared_secret": SECRET, "base_url": "https://acme.atlassian.net",
             "instance_url": instance.url()},
            {"client_key": "own", "shared_secret": SECRET_2, "base_url": "https://own.atlassian.net",
             "display_url": "https://jira.example.com"},
        ]}),
    );
    let file = relay.settings.folder.join("export.csv");
    let written = std::fs::read_to_string(&file).expect("export");
    std::fs::remove_file(&file).expect("removed");
    let exported = tokio::task::spawn_blocking(move || {
        let postgres = Postgres::start();
        postgres.psql(
            "create table jira_connect_installations (id bigint primary key, client_key character varying, \
             encrypted_shared_secret character varying, encrypted_shared_secret_iv character varying, \
             base_url character varying, display_url text, instance_url text)",
            "",
        );
        postgres.psql(
            "\\copy jira_connect_installations from stdin csv header",
            &written,
        );
        let exported = postgres.psql("\\copy jira_connect_installations to stdout csv header", "");
        (postgres, exported)
    });
    let (postgres, exported) = exported.await.expect("task");
    let program = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_jira-connect-proxy"));
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .current_dir(&relay.settings.folder)
            .env("JIRA_CONNECT_PROXY_ADMIN_URL", relay.settings.admin_url())
            .env("JIRA_CONNECT_PROXY_ADMIN_TOKEN_FILE", "admin-token")
            .args(["import-gitlab", "--db-key-base-file", "gitlab-secrets.json"])
            .stdout(Stdio::null());
        command
    };
    let mut dry_run = program();
    dry_run.arg("-").stdin(Stdio::piped());
    let ended = tokio::task::spawn_blocking(move || {
        let mut program = dry_run.spawn().expect("the program runs");
        let mut stdin = program.stdin.take().expect("stdin");
        stdin.write_all(exported.as_bytes()).expect("write");
        drop(stdin);
        program.wait().expect("ended")
    });
    assert!(ended.await.expect("task").success());
    let connection = format!(
        "postgresql:///postgres?host={}&user=postgres",
        postgres.data()
    );
    let mut by_connection = program();
    by_connection
        .arg("--apply")
        .env("JIRA_CONNECT_PROXY_GITLAB_DATABASE", connection);
    let ended = tokio::task::spawn_blocking(move || {
        let ended = by_connection.status().expect("the program runs");
        drop(postgres);
        ended
    });
    assert!(ended.await.expect("task").success());
    let sites = list(&relay, "installations").await;
    assert_eq!(sites.as_array().map(Vec::len), Some(2), "{sites:#}");
    assert!(sites.to_string().contains("https://jira.example.com"));
    relay
        .until_links("connected", |links| links[0]["state"] == "connected")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_cannot_be_taken_stops_all_and_says_why() {
    let jira = FakeJira::start("tenant").await;
    let relay = TestRelay::start_with(&jira, |settings| {
        settings.set("INSTANCES__ALLOW", "127.0.0.1");
    })
    .await;
    let instance = FakeInstance::start(&relay.url(), "/gitlab").await;
    let row = |client_key: &str, base_url: &str, instance_url: Option<&str>| {
        json!({
            "client_key": client_key, "shared_secret": SECRET, "base_url": base_url,
            "instance_url": instance_url,
        })
    };
    let mut other_key = row("other", "https://other.atlassian.net", None);
    other_key["db_key_base"] = "another-key-another-key-another-key".into();
    let acme = "https://acme.atlassian.net";
    export(
        &relay,
        json!({"binary": true, "rows": [
            row("good", acme, Some(&instance.url())),
            row("not-jira", "https://jira.example.com", None),
            row("not-allowed", acme, Some("https://gitlab.example.com")),
            row("odd", acme, Some("https://gitlab.example.com/?x")),
            row("tenant", acme, Some(&instance.url())),
            row("gone", acme, Some(&instance.url())),
            row("own", acme, None),
            other_key,
        ]}),
    );
    // One site has told the relay already, with a newer secret, and another has come and gone.
    jira.installed(&relay.app_base_url(), SECRET_2).await;
    for event in ["installed", "uninstalled"] {
        let secret = (event == "installed").then_some(SECRET_2);
        let call = jira.site("gone").call(&relay.app_base_url(), event, secret);
        assert_eq!(jira.send(call).await.status(), 204);
    }
    let known = list(&relay, "installations").await;

    let key_file = relay.settings.folder.join("wrong-key");
    std::fs::write(&key_file, "not-the-key-of-that-gitlab").expect("write");
    let wrong = ["export.csv", "--db-key-base-file", "wrong-key", "--apply"];
    let told = run(&relay, &wrong, 1).await;
    assert!(told.contains("is not that of the GitLab"), "{told}");

    for options in [&[] as &[&str], &["--apply"]] {
        let told = import(&relay, options, 1).await;
        for code in [
            "base_url_refused",
            "instance_not_allowed",
            "instance_url_malformed",
            "installation_uninstalled",
            "db_key_base_wrong",
            "--skip-refused",
        ] {
            assert!(told.contains(code), "{code} in {told}");
        }
        assert_eq!(list(&relay, "installations").await, known);
        assert_eq!(relay.links().await, [] as [Value; 0]);
    }

    let own = instance.url().replace("127.0.0.1", "localhost");
    let refused = ["--own-instance", &own, "--skip-refused", "--apply"];
    let told = import(&relay, &refused, 1).await;
    assert!(told.contains("instance_not_allowed"), "{told}");

    let other = FakeInstance::start(&relay.url(), "").await;
    let own = other.url();
    let options = ["--own-instance", &own, "--skip-refused", "--apply"];
    let done = import_json(&relay, &options).await;
    let fates: Vec<(&str, &str)> = done["rows"]
        .as_array()
        .expect("rows")
        .iter()
        .map(|row| {
            let text = |name: &str| row[name].as_str().expect("text");
            (text("installation"), text("link"))
        })
        .collect();
    let refused = ("refused", "refused");
    assert_eq!(
        fates,
        [
            ("new", "new"),
            refused,
            refused,
            refused,
            ("there", "new"),
            refused,
            ("new", "new"),
            refused
        ]
    );
    relay
        .until_links("three connected", |links| {
            links.len() == 3 && links.iter().all(|link| link["state"] == "connected")
        })
        .await;
    assert!(other.known("own").is_some() && other.known("good").is_none());
    // What Jira said itself is newer than any export.
    let sites = list(&relay, "installations").await;
    let tenant = sites.as_array().expect("list").iter();
    let mut tenant = tenant.filter(|site| site["client_key"] == "tenant");
    assert_eq!(tenant.next().expect("tenant")["secret_generation"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_leaves_what_has_changed_since() {
    let jira = FakeJira::start("touched").await;
    // An attempt under way counts as told, so who is down must not be tried just when the rollback comes.
    let relay = TestRelay::start_with(&jira, |settings| {
        settings.set("INSTANCES__RETRY_MIN_MS", "60000");
        settings.set("INSTANCES__RETRY_MAX_MS", "60000");
    })
    .await;
    let instance = FakeInstance::start(&relay.url(), "/gitlab").await;
    let mut down = FakeInstance::start(&relay.url(), "").await;
    let down_url = down.url();
    down.go_down().await;
    let row = |client_key: &str, instance_url: &str| {
        json!({
            "client_key": client_key, "shared_secret": SECRET,
            "base_url": "https://acme.atlassian.net", "instance_url": instance_url,
        })
    };
    export(
        &relay,
        json!({"rows": [
            row("touched", &instance.url()), row("linked", &instance.url()), row("never-told", &down_url),
        ]}),
    );
    let done = import_json(&relay, &["--apply"]).await;
    let id = done["id"].as_str().expect("id").to_owned();
    let of = |links: &[Value], client_key: &str| {
        let mut found = links
            .iter()
            .filter(|link| link["client_key"] == *client_key);
        found.next().cloned().unwrap_or_default()
    };
    relay
        .until_links("two connected, one failing", |links| {
            of(links, "touched")["state"] == "connected"
                && of(links, "linked")["state"] == "connected"
                && of(links, "never-told")["state"] == "failing"
        })
        .await;

    // An export of later holds another secret for a site that only an import has told of.
    let mut rotated = row("linked", &instance.url());
    rotated["shared_secret"] = SECRET_2.into();
    export(&relay, json!({"rows": [rotated]}));
    let told = import(&relay, &["--apply"], 1).await;
    assert!(told.contains("secret_differs"), "{told}");

    // Jira rotates the secret of one site; another gets a second instance.
    jira.installed(&relay.app_base_url(), SECRET_2).await;
    let second = FakeInstance::start(&relay.url(), "/second").await;
    relay.link("linked", &second.url()).await;

    let text = run(&relay, &["--rollback", &id, "--apply", "--json"], 0).await;
    let report: Value = serde_json::from_str(&text).expect("JSON");
    let fate = |client_key: &str| {
        let rows = report["rows"].as_array().expect("rows").iter();
        let mut row = rows.filter(|row| row["client_key"] == *client_key);
        let row = row.next().cloned().expect("row");
        (row["installation"].clone(), row["link"].clone())
    };
    assert_eq!(fate("touched"), ("kept".into(), "handed_back".into()));
    assert_eq!(fate("linked"), ("kept".into(), "kept".into()));
    assert_eq!(fate("never-told"), ("removed".into(), "removed".into()));
    relay
        .until_links("two links", |links| {
            links.len() == 2 && links.iter().all(|link| link["client_key"] == "linked")
        })
        .await;
    let known = instance.known("touched").expect("known");
    assert_eq!(known.shared_secret, SECRET_2, "what Jira signs with now");
    assert_eq!(
        list(&relay, "installations").await.as_array().map(Vec::len),
        Some(2)
    );
    down.go_up().await;
    assert!(down.state().events.is_empty(), "it was never told");
}
