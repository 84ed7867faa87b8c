//! Sites that are reached with OAuth client credentials.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};

use super::Scene;
use crate::{
    cloud::{CloudSite, Credential, FAMILIES},
    fakes::http::{client, send},
    harness::{SECRET, checked, free_port, hear_output, printed},
    outside::Session,
    page::{context_claims, sign},
    stage::{APP_KEY, CLIENT_KEY, GitLab, linked},
};

const PATH: &str = "/api/v1/installations";

fn code(answer: &Value) -> &str {
    answer["error"]["code"].as_str().unwrap_or_default()
}

/// What an operator wishes who adds a site with credentials.
pub fn wish(site: &CloudSite, credential: &Credential) -> Value {
    json!({
        "upstream": "oauth", "site_url": site.url,
        "client_id": credential.client_id, "client_secret": credential.client_secret,
    })
}

/// The command, with the secret on its standard input.
async fn add_by_standard_input(scene: &Scene, credential: &Credential) -> String {
    let settings = &scene.relay.settings;
    let mut command = Command::new(env!("CARGO_BIN_EXE_jira-connect-proxy"));
    command
        .env_clear()
        .env("JIRA_CONNECT_PROXY_ADMIN_URL", settings.admin_url())
        .env("JIRA_CONNECT_PROXY_ADMIN_TOKEN_FILE", "admin-token")
        .current_dir(&settings.folder)
        .args(["installations", "add-oauth", "--site", &scene.acme.url])
        .args(["--client-id", &credential.client_id])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let secret = format!("{}\n", credential.client_secret);
    let ran = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().expect("it runs");
        let mut input = child.stdin.take().expect("standard input");
        input.write_all(secret.as_bytes()).expect("it reads");
        drop(input);
        child.wait_with_output().expect("it ends")
    });
    let output = ran.await.expect("task");
    hear_output(&output);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl Scene {
    /// Adds the site with a credential, and links so many instances.
    async fn linked_by(&self, credential: &Credential, count: usize) -> (Vec<GitLab>, Vec<Value>) {
        let wish = wish(&self.acme, credential);
        let added = self.relay.admin("POST", PATH, Some(wish), 201).await;
        linked(
            &self.relay,
            added["client_key"].as_str().expect("key"),
            count,
        )
        .await
    }

    /// The pause that holds what waits, once there is one with this reason.
    async fn until_paused(&self, reason: &str) -> Value {
        for _ in 0..3000 {
            let spool = self.relay.spool().await;
            let pauses = spool["installations"][0]["paused"].as_array().cloned();
            let mut pauses = pauses.into_iter().flatten();
            if let Some(pause) = pauses.find(|pause| pause["reason"] == reason) {
                return pause;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("never paused for {reason}: {:#}", self.relay.spool().await);
    }

    /// The step of the doctor's that is about a site.
    async fn diagnosis(&self) -> Value {
        let path = "/api/v1/doctor";
        let report = self.relay.admin("POST", path, Some(json!({})), 200).await;
        let steps = report["steps"].as_array().cloned().unwrap_or_default();
        let step = steps.into_iter().find(|step| step["rung"] == "oauth");
        step.unwrap_or_else(|| panic!("no such step: {report:#}"))
    }

    async fn refused(&self) -> f64 {
        let name = "jira_connect_proxy_oauth_credentials_refused";
        self.relay.metric(name, "").await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_story_of_oauth_credentials() {
    let scene = Scene::set().await;
    let credential = scene.cloud.credential(&scene.acme, &FAMILIES);
    let file = scene.relay.settings.folder.join("client-secret");
    std::fs::write(&file, format!("{}\n", credential.client_secret)).expect("file");
    let added = printed(
        &scene.relay,
        &[
            "installations",
            "add-oauth",
            "--site",
            &scene.acme.url,
            "--client-id",
            &credential.client_id,
            "--client-secret-file",
            "client-secret",
        ],
        0,
    )
    .await;
    assert!(added.contains("are good"), "{added}");
    let installation = scene.installation().await;
    assert_eq!(installation["upstream"], "oauth");
    let client_key = installation["client_key"].as_str().expect("key");
    let list = printed(&scene.relay, &["installations"], 0).await;
    assert!(
        list.contains("UPSTREAM") && list.contains("oauth"),
        "{list}"
    );

    let (gitlabs, links) = linked(&scene.relay, client_key, 2).await;
    let provider = &credential.provider;
    scene.both_push(provider, &gitlabs, &links, 1).await;
    scene.an_outage(provider, &gitlabs, &links).await;

    // The token ends before its time, and one request fetches the next for everybody.
    let fetches = || scene.cloud.ask("oauth_stats", json!({}))["fetches"].as_u64();
    let before = fetches();
    scene.cloud.ask("oauth_expire", json!({}));
    scene.both_push(provider, &gitlabs, &links, 2).await;
    assert_eq!(fetches(), before.map(|before| before + 1));

    // A branch is gone.
    let ns = links[0]["namespace"].as_str().expect("namespace");
    let branches = |keys: Vec<String>| {
        let of_link = |key: &&String| key.starts_with(&format!("{ns}-42/branch/"));
        keys.iter().filter(of_link).count()
    };
    let devinfo = || scene.cloud.keys(&scene.acme, provider, "devinfo");
    assert_eq!(branches(devinfo()), 1);
    gitlabs[0].sends("branch_delete", json!({})).await;
    assert_eq!(branches(devinfo()), 0);

    // An operator links a group: GitLab asks whether it is an admin, and there is no Jira to answer.
    let session = Session::enter(&scene.relay, client_key).await;
    let operator = session.account(&links[0]).await;
    let user = gitlabs[0]
        .send("user", json!({"account_id": operator}))
        .await;
    assert_eq!(user["status"], 200, "{user:#}");
    assert_eq!(user["gitlab_ok"], true, "{user:#}");
    let nobody = gitlabs[0].send("user", json!({})).await;
    assert_eq!(nobody["status"], 404, "{nobody:#}");
    let page = session.call("GET", "links", None, 200).await;
    assert_eq!(page["links"].as_array().map(Vec::len), Some(2), "{page:#}");
    let page = session.page().await;
    let page = String::from_utf8_lossy(page.body()).replace("&quot;", "\"");
    let told =
        r#""upstream":"oauth","lacks":["workspace_search","repository_search","create_branch"]"#;
    assert!(page.contains(told), "{page}");

    // What one instance wrote goes, and what the other wrote stays.
    let path = format!(
        "/api/v1/links/{}?purge=true",
        links[0]["id"].as_str().expect("id")
    );
    scene.relay.admin("DELETE", &path, None, 202).await;
    let gone = |now: &[Value]| now.len() == 1;
    scene.relay.until_links("the purge is done", gone).await;
    let mark = format!("{ns}-");
    for family in ["devinfo", "builds", "deployments", "featureflags"] {
        let keys = scene.cloud.keys(&scene.acme, provider, family);
        assert!(!keys.is_empty(), "the other's {family}");
        assert!(keys.iter().all(|key| !key.starts_with(&mark)), "{keys:?}");
    }

    let left = printed(&scene.relay, &["installations", "remove", client_key], 0).await;
    assert!(left.contains("its 1 links are being told"), "{left}");
    scene.everybody_knows_the_end(&gitlabs).await;
    // Without credentials nothing can be deleted any more, and nobody claims it was.
    let path = format!(
        "/api/v1/links/{}?purge=true",
        links[1]["id"].as_str().expect("id")
    );
    let refused = scene.relay.admin("DELETE", &path, None, 409).await;
    assert_eq!(code(&refused), "installation_uninstalled");
    // The same site again: the same record, and its links come back.
    let credential = scene.cloud.credential(&scene.acme, &FAMILIES);
    let wish = wish(&scene.acme, &credential);
    let again = scene.relay.admin("POST", PATH, Some(wish), 200).await;
    assert_eq!(again["client_key"], client_key);
    let back = |now: &[Value]| now.iter().all(|link| link["state"] == "connected");
    scene.relay.until_links("linked again", back).await;
    for action in [
        "installation_created",
        "installation_uninstalled",
        "installation_reinstalled",
    ] {
        let trail = printed(&scene.relay, &["audit"], 0).await;
        assert!(trail.contains(action), "{action} in {trail}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_tried_out_before_they_are_taken() {
    let scene = Scene::set().await;
    let (cloud, relay) = (&scene.cloud, &scene.relay);
    let good = cloud.credential(&scene.acme, &FAMILIES);
    let change = |member: &str, value: Value| {
        let mut wish = wish(&scene.acme, &good);
        wish[member] = value;
        wish
    };
    let refused = async |wish: Value, status: u16| {
        let answer = relay.admin("POST", PATH, Some(wish), status).await;
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        (code(&answer).to_owned(), message.to_owned())
    };
    let port = free_port();
    for (wish, status, expected) in [
        (
            change("site_url", json!("https://jira.example.com")),
            403,
            "site_not_allowed",
        ),
        (
            change("site_url", json!(format!("{}/jira", scene.acme.url))),
            400,
            "site_url_malformed",
        ),
        (
            change("site_url", json!(format!("http://127.0.0.1:{port}"))),
            403,
            "site_not_allowed",
        ),
        (change("client_id", json!("")), 400, "client_id_malformed"),
        (
            change("client_secret", json!("two words")),
            400,
            "client_secret_malformed",
        ),
        (change("upstream", json!("forge")), 400, "body_malformed"),
        (change("more", json!(1)), 400, "body_malformed"),
        (
            change("client_secret", json!("wrong")),
            422,
            "credentials_refused",
        ),
        (
            change("client_id", json!("nobody")),
            422,
            "credentials_refused",
        ),
        (
            wish(&scene.acme, &cloud.credential(&scene.other, &FAMILIES)),
            422,
            "credentials_open_nothing",
        ),
        (
            wish(&scene.acme, &cloud.credential(&scene.acme, &[])),
            422,
            "credentials_open_nothing",
        ),
    ] {
        assert_eq!(refused(wish, status).await.0, expected);
    }
    let few = cloud.credential(&scene.acme, &["devinfo", "deployments", "remotelinks"]);
    let (lacking, message) = refused(wish(&scene.acme, &few), 422).await;
    assert_eq!(lacking, "permissions_missing");
    assert!(message.ends_with("builds, feature flags"), "{message}");

    for (door, fault, expected) in [
        (
            "acme",
            json!({"mode": "status", "status": 404}),
            "site_unknown",
        ),
        (
            "acme",
            json!({"mode": "status", "status": 302, "headers": {"Location": "https://x"}}),
            "site_moved",
        ),
        (
            "acme",
            json!({"mode": "status", "status": 503}),
            "site_unwell",
        ),
        (
            "acme",
            json!({"mode": "status", "status": 200, "body": "{}"}),
            "site_no_jira",
        ),
        ("acme", json!({"mode": "reset"}), "site_unreachable"),
        (
            "api",
            json!({"mode": "status", "status": 429}),
            "token_unavailable",
        ),
        ("api", json!({"mode": "silence"}), "token_unavailable"),
        ("api", json!({"mode": "reset"}), "token_unavailable"),
        (
            "api",
            json!({"mode": "status", "status": 503, "match": {"path_prefix": "/jira"}}),
            "jira_unwell",
        ),
        (
            "api",
            json!({"mode": "reset", "match": {"path_prefix": "/jira/builds"}}),
            "jira_unreachable",
        ),
    ] {
        cloud.fault(door, fault);
        let answer = relay
            .try_admin("POST", PATH, Some(wish(&scene.acme, &good)))
            .await;
        let error: Value = serde_json::from_slice(answer.body()).expect("JSON");
        assert_eq!(error["error"]["code"], expected, "{error:#}");
        cloud.heal(door);
    }
    assert_eq!(relay.admin("GET", PATH, None, 200).await, json!([]));

    // No GitLab sends remote links, so nobody needs that permission.
    let enough = cloud.credential(
        &scene.acme,
        &["devinfo", "builds", "deployments", "featureflags"],
    );
    let first = relay
        .admin("POST", PATH, Some(wish(&scene.acme, &enough)), 201)
        .await;
    let second = relay
        .admin("POST", PATH, Some(wish(&scene.acme, &good)), 200)
        .await;
    assert_eq!(first["client_key"], second["client_key"]);
    assert_eq!(scene.installation().await["state"], "installed");
    let trail = relay.admin("GET", "/api/v1/audit", None, 200).await;
    let changes: Vec<&str> = trail
        .as_array()
        .into_iter()
        .flatten()
        .filter(|entry| entry["client_key"] == first["client_key"])
        .filter_map(|entry| entry["action"].as_str())
        .collect();
    assert_eq!(
        changes,
        ["installation_secret_rotated", "installation_created"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_good_credentials_goes_when_they_come() {
    let scene = Scene::set().await;
    let (cloud, relay) = (&scene.cloud, &scene.relay);
    let credential = cloud.credential(&scene.acme, &FAMILIES);
    let (gitlabs, links) = scene.linked_by(&credential, 1).await;
    gitlabs[0].sends("builds", json!({"build_number": 1})).await;
    assert_eq!(scene.diagnosis().await["verdict"], "ok");
    assert_eq!(scene.refused().await, 0.0);

    cloud.ask(
        "delete_credential",
        json!({"client_id": credential.client_id}),
    );
    gitlabs[0].sends("builds", json!({"build_number": 2})).await;
    let pause = scene.until_paused("token_refused").await;
    assert_eq!(pause["scope"], "installation");
    let message = pause["message"].as_str().expect("message");
    assert!(message.contains("installations add-oauth"), "{message}");
    let problem = &scene.installation().await["problem"];
    assert_eq!(problem["code"], "credentials_refused", "{problem:#}");
    assert_eq!(scene.refused().await, 1.0);
    let step = scene.diagnosis().await;
    assert_eq!(
        (&step["verdict"], &step["code"]),
        (&json!("fail"), &json!("credentials_refused"))
    );
    for command in ["status", "installations"] {
        let shown = printed(relay, &[command], 0).await;
        assert!(shown.contains("credentials_refused"), "{command}: {shown}");
        assert!(shown.contains("add-oauth"), "{command}: {shown}");
    }

    let new = cloud.credential(&scene.acme, &FAMILIES);
    let added = add_by_standard_input(&scene, &new).await;
    assert!(added.contains("are good"), "{added}");
    relay.until_drained().await;
    let ns = links[0]["namespace"].as_str().expect("namespace");
    let keys = cloud.keys(&scene.acme, &new.provider, "builds");
    assert_eq!(keys, [format!("{ns}-700/2")]);
    assert!(scene.installation().await["problem"].is_null());
    assert_eq!(scene.refused().await, 0.0);
    assert_eq!(cloud.violations(), json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_endpoint_that_is_down_costs_nothing_but_time() {
    let scene = Scene::set().await;
    let credential = scene.cloud.credential(&scene.acme, &FAMILIES);
    let (gitlabs, _) = scene.linked_by(&credential, 1).await;
    let token_path = json!({"path_prefix": "/oauth/token"});
    for (number, fault) in [
        json!({"mode": "status", "status": 429, "headers": {"Retry-After": "0"}}),
        json!({"mode": "status", "status": 500}),
        json!({"mode": "silence"}),
        json!({"mode": "reset"}),
    ]
    .into_iter()
    .enumerate()
    {
        let mut fault = fault;
        fault["match"] = token_path.clone();
        scene.cloud.ask("oauth_expire", json!({}));
        scene.cloud.fault("api", fault);
        let number = json!({"build_number": number});
        gitlabs[0].sends("builds", number).await;
        scene.until_paused("token_unavailable").await;
        assert_eq!(scene.relay.spool().await["waiting"], 1);
        assert_eq!(scene.refused().await, 0.0, "nobody has to do anything");
        scene.cloud.heal("api");
        scene.relay.until_drained().await;
    }
    let keys = scene
        .cloud
        .keys(&scene.acme, &credential.provider, "builds");
    assert_eq!(keys.len(), 4, "{keys:?}");
    assert_eq!(scene.cloud.violations(), json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_permission_holds_its_family_alone() {
    let scene = Scene::set().await;
    let credential = scene.cloud.credential(&scene.acme, &FAMILIES);
    let (gitlabs, _) = scene.linked_by(&credential, 1).await;
    let permit = |permissions: &[&str]| {
        let command = json!({
            "site": "acme", "client_id": credential.client_id, "permissions": permissions,
        });
        scene.cloud.ask("credential", command);
    };
    permit(&["devinfo", "deployments", "featureflags"]);
    gitlabs[0].sends("builds", json!({})).await;
    let pause = scene.until_paused("forbidden").await;
    assert_eq!(
        (&pause["scope"], &pause["endpoint"]),
        (&json!("endpoint"), &json!("builds"))
    );
    let message = pause["message"].as_str().expect("message");
    assert!(
        message.ends_with("the permission for builds is missing"),
        "{message}"
    );
    for call in ["devinfo", "deployments", "feature_flags"] {
        gitlabs[0].sends(call, json!({})).await;
    }
    let spool = scene.relay.spool().await;
    assert_eq!(spool["waiting"], 1, "{spool:#}");
    let step = scene.diagnosis().await;
    assert_eq!(step["code"], "permissions_missing", "{step:#}");

    permit(&FAMILIES);
    scene.relay.until_drained().await;
    assert_eq!(
        scene
            .cloud
            .keys(&scene.acme, &credential.provider, "builds")
            .len(),
        1
    );
    assert_eq!(scene.diagnosis().await["verdict"], "ok");
    assert_eq!(scene.cloud.violations(), json!([]));
}

/// No document says how the gateway puts it that client credentials lack a permission.
#[tokio::test(flavor = "multi_thread")]
async fn a_plain_401_is_a_missing_permission_if_the_token_opens_something_else() {
    let scene = Scene::set().await;
    let credential = scene.cloud.credential(&scene.acme, &FAMILIES);
    let (gitlabs, _) = scene.linked_by(&credential, 1).await;
    let refuse = |path: &str, status: u16| {
        let body = json!({"code": status, "message": "Unauthorized"});
        let refused = json!({
            "mode": "status", "status": status, "body": body, "match": {"path_prefix": path},
        });
        scene.cloud.fault("api", refused);
    };
    refuse("/jira/builds", 401);
    gitlabs[0].sends("builds", json!({})).await;
    let pause = scene.until_paused("forbidden").await;
    assert_eq!(
        (&pause["scope"], &pause["endpoint"]),
        (&json!("endpoint"), &json!("builds"))
    );
    gitlabs[0].sends("devinfo", json!({})).await;
    let spool = scene.relay.spool().await;
    assert_eq!(spool["waiting"], 1, "{spool:#}");

    // Where it opens nothing, it is about the token.
    refuse("/jira", 401);
    gitlabs[0].sends("devinfo", json!({"sequence": 2})).await;
    let pause = scene.until_paused("unauthorized").await;
    assert_eq!(pause["scope"], "installation");
    scene.cloud.heal("api");
    scene.relay.until_drained().await;

    refuse("/jira/builds", 404);
    gitlabs[0].sends("builds", json!({"build_number": 8})).await;
    scene.until_paused("jira_error").await;
    let spooled = "jira_connect_proxy_spooled_total";
    assert_eq!(scene.relay.metric(spooled, "jira_error").await, 1.0);
    scene.cloud.heal("api");
    scene.relay.until_drained().await;
}

/// Nobody needs the permission for remote links, so its lack keeps no data of a link's in Jira.
#[tokio::test(flavor = "multi_thread")]
async fn a_purge_asks_for_no_permission_that_nobody_needs() {
    let scene = Scene::set().await;
    let needed = &FAMILIES[..4];
    let credential = scene.cloud.credential(&scene.acme, needed);
    let (gitlabs, links) = scene.linked_by(&credential, 1).await;
    gitlabs[0].sends("builds", json!({})).await;
    let refused = json!({
        "mode": "status", "status": 401, "body": {"code": 401, "message": "Unauthorized"},
        "match": {"path_prefix": "/jira/remotelinks"},
    });
    scene.cloud.fault("api", refused);
    let id = links[0]["id"].as_str().expect("id");
    let path = format!("/api/v1/links/{id}?purge=true");
    scene.relay.admin("DELETE", &path, None, 202).await;
    let gone = |links: &[Value]| {
        let trouble = links
            .iter()
            .find(|link| link["purge"]["last_error"].is_object());
        assert!(trouble.is_none(), "{trouble:#?}");
        links.is_empty()
    };
    scene.relay.until_links("purged", gone).await;
    assert!(
        scene
            .cloud
            .keys(&scene.acme, &credential.provider, "builds")
            .is_empty()
    );
    assert_eq!(scene.relay.spool().await["installations"], json!([]));
}

/// What was sent is deleted by whom it was sent as.
#[tokio::test(flavor = "multi_thread")]
async fn other_credentials_wait_for_a_deletion_that_needs_the_old_ones() {
    let scene = Scene::set().await;
    let (cloud, relay) = (&scene.cloud, &scene.relay);
    let first = cloud.credential(&scene.acme, &FAMILIES);
    let (gitlabs, links) = scene.linked_by(&first, 1).await;
    scene.both_push(&first.provider, &gitlabs, &links, 1).await;
    cloud.fault(
        "api",
        json!({"mode": "status", "status": 503, "match": {"method": "DELETE"}}),
    );
    let id = links[0]["id"].as_str().expect("id");
    let path = format!("/api/v1/links/{id}?purge=true");
    relay.admin("DELETE", &path, None, 202).await;

    let second = cloud.credential(&scene.acme, &FAMILIES);
    let wish = wish(&scene.acme, &second);
    let refused = relay.admin("POST", PATH, Some(wish.clone()), 409).await;
    assert_eq!(code(&refused), "link_being_purged");
    let hint = refused["error"]["hint"].as_str().expect("a hint");
    assert!(hint.contains("--abandon-purge"), "{hint}");
    cloud.heal("api");
    relay.until_links("purged", <[_]>::is_empty).await;
    assert!(
        cloud
            .keys(&scene.acme, &first.provider, "builds")
            .is_empty()
    );

    let replaced = relay.admin("POST", PATH, Some(wish), 200).await;
    let hint = replaced["hint"].as_str().expect("a hint");
    assert!(hint.contains(&first.client_id), "{hint}");
}

/// Atlassian counts calls by app, and a set of credentials is one.
#[tokio::test(flavor = "multi_thread")]
async fn the_quota_of_an_app_holds_up_nobody_elses_site() {
    let scene = Scene::set().await;
    let (cloud, relay) = (&scene.cloud, &scene.relay);
    cloud.connect(&scene.acme, APP_KEY, &[SECRET]);
    let answer = scene.jira.installed(&relay.app_base_url(), SECRET).await;
    assert_eq!(answer.status(), 204);
    let (of_acme, links) = linked(relay, CLIENT_KEY, 1).await;
    let credential = cloud.credential(&scene.other, &FAMILIES);
    let other = wish(&scene.other, &credential);
    let other = relay.admin("POST", PATH, Some(other), 201).await;
    let other = other["client_key"].as_str().expect("key");
    let (of_other, _) = linked(relay, other, 1).await;

    let exhausted = json!({
        "mode": "status", "status": 429, "times": 1,
        "headers": {"Retry-After": "3600", "RateLimit-Reason": "jira-quota-global-based"},
    });
    cloud.fault("acme", exhausted.clone());
    of_acme[0].sends("builds", json!({"build_number": 1})).await;
    let user = of_acme[0].send("user", json!({"account_id": "a"})).await;
    assert_eq!(user["status"], 429, "{user:#}");
    let held = relay.spool().await;
    let pauses = held["paused"].as_array().expect("a list");
    let pauses: Vec<_> = pauses.iter().map(|p| (&p["scope"], &p["app"])).collect();
    assert_eq!(pauses, [(&json!("app"), &json!("connect"))], "{held:#}");
    let shown = printed(relay, &["spool", "list"], 0).await;
    assert!(
        shown.contains("paused: everything through connect: "),
        "{shown}"
    );
    let pauses = "jira_connect_proxy_jira_pauses_total";
    let of_connect = r#"scope="app",upstream="connect""#;
    assert_eq!(relay.metric(pauses, of_connect).await, 1.0);

    of_other[0]
        .sends("builds", json!({"build_number": 2}))
        .await;
    assert_eq!(relay.spool().await["waiting"], 1, "only of acme");

    // The pause stays with the app that is left.
    let own = cloud.credential(&scene.acme, &FAMILIES);
    relay
        .admin("POST", PATH, Some(wish(&scene.acme, &own)), 200)
        .await;
    let path = format!("{PATH}/{CLIENT_KEY}/move");
    relay
        .admin("POST", &path, Some(json!({"to": "oauth"})), 200)
        .await;
    relay.until_drained().await;
    scene.built(&own.provider, &links, 1);

    // Nor do two sets of credentials have a quota in common.
    cloud.fault("api", exhausted);
    of_acme[0].sends("builds", json!({"build_number": 3})).await;
    of_other[0]
        .sends("builds", json!({"build_number": 4}))
        .await;
    let spool = relay.spool().await;
    assert_eq!(spool["waiting"], 1, "{spool:#}");
    let app = format!("oauth {}", own.client_id);
    let pauses = spool["paused"].as_array().expect("a list");
    assert!(pauses.iter().any(|pause| pause["app"] == app), "{spool:#}");
    relay.retry_spool().await;
    relay.until_drained().await;
    assert_eq!(relay.spool().await["paused"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connect_apps_page_says_who_can_change_something_after_a_move() {
    let scene = Scene::set().await;
    let (cloud, relay) = (&scene.cloud, &scene.relay);
    cloud.connect(&scene.acme, APP_KEY, &[SECRET]);
    let answer = scene.jira.installed(&relay.app_base_url(), SECRET).await;
    assert_eq!(answer.status(), 204);
    let credential = cloud.credential(&scene.acme, &FAMILIES);
    relay
        .admin("POST", PATH, Some(wish(&scene.acme, &credential)), 200)
        .await;
    let path = format!("{PATH}/{CLIENT_KEY}/move");
    relay
        .admin("POST", &path, Some(json!({"to": "oauth"})), 200)
        .await;

    let mut claims = context_claims(CLIENT_KEY);
    claims["sub"] = "admin".into();
    let authorization = format!("JWT {}", sign(&claims, SECRET));
    let call = async |method: &str, body: &str| {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}/links", relay.app_base_url()))
            .header("authorization", &authorization)
            .body(Full::from(body.to_owned()))
            .expect("request");
        let answer = checked(send(&client(), request).await);
        let body: Value = serde_json::from_slice(answer.body()).expect("JSON");
        (answer.status().as_u16(), body)
    };
    let (status, list) = call("GET", "").await;
    assert_eq!((status, &list["may_change"]), (200, &json!(false)));
    assert_eq!(list["reason"]["code"], "admins_unknown");
    let hint = list["reason"]["hint"].as_str().expect("hint");
    assert!(hint.contains("jira-connect-proxy page"), "{hint}");
    let (status, refused) = call("POST", r#"{"instance_url": "https://gitlab.example"}"#).await;
    assert_eq!((status, code(&refused)), (403, "admins_unknown"));
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_an_app_credentials_stand_by() {
    let scene = Scene::set().await;
    let (cloud, relay) = (&scene.cloud, &scene.relay);
    cloud.connect(&scene.acme, APP_KEY, &[SECRET]);
    let answer = scene.jira.installed(&relay.app_base_url(), SECRET).await;
    assert_eq!(answer.status(), 204);
    let credential = cloud.credential(&scene.acme, &FAMILIES);
    let standing = relay
        .admin("POST", PATH, Some(wish(&scene.acme, &credential)), 200)
        .await;
    assert_eq!(standing["client_key"], CLIENT_KEY);
    assert_eq!(standing["upstream"], "connect");
    assert_eq!(standing["standby"], json!(["oauth"]));
    let hint = standing["hint"].as_str().expect("hint");
    assert!(
        hint.contains(&format!("move {CLIENT_KEY} --to oauth")),
        "{hint}"
    );
    let list = printed(relay, &["installations"], 0).await;
    assert!(list.contains("connect (oauth)"), "{list}");

    let path = format!("{PATH}/{CLIENT_KEY}");
    let refused = relay.admin("DELETE", &path, None, 409).await;
    assert_eq!(code(&refused), "installation_can_move");
    for (query, status, expected) in [
        ("?upstream=forge", 404, "upstream_unknown"),
        ("?upstream=telnet", 400, "upstream_malformed"),
    ] {
        let answer = relay
            .admin("DELETE", &format!("{path}{query}"), None, status)
            .await;
        assert_eq!(code(&answer), expected);
    }
    let unknown = relay
        .admin("DELETE", &format!("{PATH}/nobody"), None, 404)
        .await;
    assert_eq!(code(&unknown), "installation_unknown");
    let arguments = [
        "installations",
        "remove",
        &scene.acme.url,
        "--upstream",
        "oauth",
    ];
    let removed = printed(relay, &arguments, 0).await;
    assert!(removed.contains("oauth stands by no more"), "{removed}");
    assert_eq!(scene.installation().await["standby"], json!([]));

    // The app goes, and credentials come: the links come back when the site is moved.
    let gone = scene.jira.uninstalled(&relay.app_base_url()).await;
    assert_eq!(gone.status(), 204);
    let standing = relay
        .admin("POST", PATH, Some(wish(&scene.acme, &credential)), 200)
        .await;
    assert_eq!(standing["state"], "uninstalled");
    let hint = standing["hint"].as_str().expect("hint");
    assert!(hint.contains("was uninstalled, and"), "{hint}");
    let arguments = ["installations", "move", CLIENT_KEY, "--to", "oauth"];
    printed(relay, &arguments, 0).await;
    let moved = scene.installation().await;
    assert_eq!(
        (&moved["state"], &moved["upstream"]),
        (&json!("installed"), &json!("oauth"))
    );

    // Where there is no app, there is no secret of Jira's to hand to an instance.
    let other = cloud.credential(&scene.other, &FAMILIES);
    let other = relay
        .admin("POST", PATH, Some(wish(&scene.other, &other)), 201)
        .await;
    let direct = json!({
        "client_key": other["client_key"], "instance_url": "http://127.0.0.1:1", "mode": "direct",
    });
    let refused = relay
        .admin("POST", "/api/v1/links", Some(direct), 409)
        .await;
    assert_eq!(code(&refused), "link_not_direct");
}
