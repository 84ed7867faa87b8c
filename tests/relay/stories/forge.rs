//! A site with the operator's Forge app, from its first event to its last, and what the app's page may do. Forge, its
//! tokens and Jira are the judges'.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::Request;
use http_body_util::Full;
use jiff::{SignedDuration, Timestamp};
use jira_connect_proxy::{metrics::Metrics, sites, store::StoreOwner};
use serde_json::{Value, json};

use super::Scene;
use crate::{
    cloud::{Cloud, Installed},
    fakes::{
        FakeJira,
        http::{client, send},
    },
    harness::{PATIENCE, RelayProcess, SECRET, Settings, admin, checked, printed},
    stage::{APP_KEY, CLIENT_KEY, linked},
};

const SERVER_INFO: &str = "/rest/api/3/serverInfo";

impl Scene {
    /// How often sites were asked what they are.
    fn questions(&self) -> usize {
        self.questions_below("")
    }

    /// ... below this path of the gateway's.
    fn questions_below(&self, path: &str) -> usize {
        let requests = self.cloud.requests("api");
        let asked = |request: &&Value| {
            let asked = request["path"].as_str().unwrap_or_default();
            asked.starts_with(path) && asked.ends_with(SERVER_INFO)
        };
        requests.iter().filter(asked).count()
    }

    async fn until_asked(&self, times: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.questions() < times {
            assert!(Instant::now() < deadline, "Jira was not asked");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn until_state(&self, state: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let installation = self.installation().await;
            if installation["state"] == state {
                return installation;
            }
            assert!(Instant::now() < deadline, "never {state}: {installation:#}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn until_problem(&self, code: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let installation = self.installation().await;
            if installation["problem"]["code"] == code {
                return;
            }
            assert!(Instant::now() < deadline, "never {code}: {installation:#}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// A call of the page's, which Forge must hand to it.
    fn page(&self, installed: &Installed, call: Value) -> (u64, Value) {
        let answer = self.cloud.with(installed, "invoke", call.clone());
        assert_eq!(answer["swallowed"], Value::Null, "{call}: {answer:#}");
        let body = answer["body"].as_str().unwrap_or_default();
        let body = serde_json::from_str(body).unwrap_or_default();
        (answer["status"].as_u64().expect("status"), body)
    }
}

fn status(told: &Value) -> Option<u64> {
    told["status"].as_u64()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_story_of_a_forge_app() {
    let scene = Scene::set().await;
    let installed = scene.cloud.install(&scene.app, &scene.acme, json!({}));
    assert_eq!(installed.told["delivered"], true, "{}", installed.told);
    let installation = scene.installation().await;
    assert_eq!(installation["upstream"], "forge");
    assert_eq!(installation["base_url"], scene.acme.url);
    let client_key = installation["client_key"].as_str().expect("key");

    let (gitlabs, links) = linked(&scene.relay, client_key, 2).await;
    scene
        .both_push(&installed.provider, &gitlabs, &links, 1)
        .await;
    // The site's own account is asked about through Forge.
    let user = gitlabs[0].send("user", json!({})).await;
    assert_eq!(
        (&user["status"], &user["gitlab_ok"]),
        (&json!(200), &json!(true))
    );
    scene.an_outage(&installed.provider, &gitlabs, &links).await;

    // There is no token any more: writes wait until the next invocation brings one.
    scene.cloud.with(&installed, "expire", json!({}));
    for gitlab in &gitlabs {
        gitlab.sends("builds", json!({"build_number": 60})).await;
    }
    let spool = scene.relay.spool().await;
    assert_eq!(spool["waiting"], 2, "{spool:#}");
    let told = scene.cloud.with(&installed, "scheduled", json!({}));
    assert_eq!(told["delivered"], true, "{told}");
    scene.relay.until_drained().await;
    scene.built(&installed.provider, &links, 60);

    let told = scene.cloud.with(&installed, "uninstall", json!({}));
    assert_eq!(told["delivered"], true, "{told}");
    scene.everybody_knows_the_end(&gitlabs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_wait_for_a_token_over_a_restart() {
    // Silence alone is no goodbye, however long.
    let mut scene = Scene::set_with(|settings| {
        settings.set("FORGE__CHECK_EVERY_SECS", "1");
        settings.set("FORGE__GONE_AFTER_SECS", "1");
    })
    .await;
    scene
        .cloud
        .ask("system_tokens", json!({"lifetime_secs": 2}));
    let installed = scene.cloud.install(&scene.app, &scene.acme, json!({}));
    let client_key = scene.installation().await["client_key"].clone();
    let client_key = client_key.as_str().expect("key");
    let (gitlabs, links) = linked(&scene.relay, client_key, 1).await;
    let deadline = Instant::now() + PATIENCE;
    let mut number = 1;
    while scene.relay.spool().await["waiting"] == 0 {
        assert!(Instant::now() < deadline, "the token did not end");
        gitlabs[0]
            .sends("builds", json!({"build_number": number}))
            .await;
        number += 1;
    }
    let spool = scene.relay.spool().await;
    assert!(spool.to_string().contains("token_awaited"), "{spool:#}");
    assert_eq!(
        scene
            .relay
            .metric("jira_connect_proxy_forge_installations", "missing")
            .await,
        1.0
    );

    // What waits for nobody is told so.
    let user = gitlabs[0].send("user", json!({})).await;
    assert_eq!(user["status"], 502, "{user:#}");
    assert!(user.to_string().contains("every hour"), "{user:#}");
    for command in ["installations", "status", "doctor"] {
        let output = scene.relay.command_line(&[command]).await;
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(told.contains("writes wait for the next one"), "{told}");
        assert!(told.contains("Forge sends one every hour"), "{told}");
    }

    scene.relay.restart().await;
    scene.relay.new_client();
    gitlabs[0]
        .sends("builds", json!({"build_number": number}))
        .await;
    assert!(scene.relay.spool().await["waiting"].as_u64() >= Some(1));
    scene
        .cloud
        .ask("system_tokens", json!({"lifetime_secs": 3300}));
    let told = scene.cloud.with(&installed, "scheduled", json!({}));
    assert_eq!(told["delivered"], true, "{told}");
    scene.relay.until_drained().await;
    for number in 1..=number {
        scene.built(&installed.provider, &links, number);
    }
    assert_eq!(
        scene
            .relay
            .metric("jira_connect_proxy_forge_installations", "valid")
            .await,
        1.0
    );
    assert_eq!(scene.cloud.violations(), json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_repeated_until_jira_says_where_the_site_is() {
    let scene = Scene::set().await;
    scene
        .cloud
        .fault("api", json!({"mode": "status", "status": 503, "times": 2}));
    let installed = scene.cloud.install(&scene.app, &scene.acme, json!({}));
    let statuses = |told: &Value| {
        let attempts = told["attempts"].as_array().expect("attempts");
        let statuses = attempts.iter().map(|attempt| attempt["status"].as_u64());
        statuses.collect::<Vec<_>>()
    };
    assert_eq!(statuses(&installed.told), [Some(503), Some(503), Some(204)]);
    assert_eq!(scene.installations().await.len(), 1);

    // One whose token is not new is good again after a failure of ours, and only then.
    let anew = scene.cloud.site("anew");
    let silent = json!({"silent": true});
    let again = scene.cloud.install(&scene.app, &anew, silent);
    let fit = scene.cloud.with(&again, "fit", json!({"kind": "event"}));
    let how = json!({"token": fit["token"], "retries": 2});
    let down = json!({"mode": "status", "status": 500, "times": 1});
    scene.cloud.fault("api", down);
    let told = scene.cloud.with(&again, "upgrade", how);
    assert_eq!(
        statuses(&told),
        [Some(503), Some(403), Some(401)],
        "its address is none of ours"
    );

    // Never: nothing is kept of it. The hourly trigger makes up for it.
    let other = scene.cloud.site("unlisted");
    scene
        .cloud
        .fault("api", json!({"mode": "status", "status": 500}));
    let lost = scene.cloud.install(&scene.app, &other, json!({}));
    assert_eq!(statuses(&lost.told), [Some(503); 5]);
    assert_eq!(scene.installations().await.len(), 1);
    scene.cloud.heal("api");
    // A site that nobody listed has an address that is not taken.
    let told = scene.cloud.with(&lost, "scheduled", json!({}));
    assert_eq!(status(&told), Some(403), "{told}");
    assert_eq!(scene.installations().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_calls_first_brings_a_site_whose_event_was_lost() {
    let scene = Scene::set().await;
    let installed = scene
        .cloud
        .install(&scene.app, &scene.acme, json!({"silent": true}));
    let without = json!({"system_token": false});
    let told = scene.cloud.with(&installed, "scheduled", without.clone());
    assert_eq!(
        status(&told),
        Some(422),
        "there is nothing to ask with: {told}"
    );
    assert_eq!(scene.installations().await.len(), 0);
    let boot = json!({"path": "/-/jira_connect/page/boot"});
    let (status, _) = scene.page(&installed, boot.clone());
    assert_eq!(status, 200);
    assert_eq!(
        scene.questions(),
        0,
        "the page's token says where the site is"
    );
    let site = scene.installation().await;
    assert_eq!(
        (&site["upstream"], &site["base_url"]),
        (&json!("forge"), &json!(scene.acme.url))
    );
    // Known now, so the way to it need not be shown again.
    let told = scene.cloud.with(&installed, "scheduled", without);
    assert_eq!(told["delivered"], true, "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_changes_the_version_and_only_a_better_token_is_kept() {
    let mut scene = Scene::set().await;
    let installed = scene.cloud.install(&scene.app, &scene.acme, json!({}));
    let before = scene.installation().await["forge"].clone();
    assert_eq!(before["app_version"], "1.0.0");
    assert_eq!(before["installation_id"], installed.id);
    assert!(before["token_expires_at"].is_string(), "{before:#}");
    let trail = scene.audit("installation_created").await;
    assert_eq!(trail.len(), 1);

    // One that ends sooner, in an event that came late.
    scene
        .cloud
        .ask("system_tokens", json!({"lifetime_secs": 600}));
    let told = scene
        .cloud
        .with(&installed, "upgrade", json!({"version": "2.1.0"}));
    assert_eq!(told["delivered"], true, "{told}");
    let after = scene.installation().await["forge"].clone();
    assert_eq!(after["app_version"], "2.1.0");
    assert_eq!(after["token_expires_at"], before["token_expires_at"]);

    // One that lives longer, and does not say so.
    scene
        .cloud
        .ask("system_tokens", json!({"lifetime_secs": 7200}));
    scene.cloud.with(&installed, "scheduled", json!({}));
    let longer = scene.installation().await["forge"].clone();
    assert!(longer["token_expires_at"].as_str() > after["token_expires_at"].as_str());
    let told = scene.cloud.with(
        &installed,
        "invoke",
        json!({"path": "/-/jira_connect/links"}),
    );
    assert_eq!(told["status"], 200);
    assert_eq!(
        scene.installation().await["forge"],
        longer,
        "a page writes nothing"
    );
    scene.relay.restart().await;
    scene.relay.new_client();
    assert_eq!(scene.installation().await["forge"], longer);
    assert_eq!(scene.audit("installation_created").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_uninstall_is_the_end_of_an_installation_and_not_of_the_site() {
    let scene = Scene::set().await;
    let installed = scene.cloud.install(&scene.app, &scene.acme, json!({}));
    let client_key = scene.installation().await["client_key"].clone();
    // An operator need not, as long as Forge can say it.
    let path = format!(
        "/api/v1/installations/{}",
        client_key.as_str().expect("key")
    );
    let refused = scene.relay.admin("DELETE", &path, None, 409).await;
    assert_eq!(refused["error"]["code"], "installation_has_app");
    let told = scene.cloud.with(&installed, "uninstall", json!({}));
    assert_eq!(status(&told), Some(204));
    assert_eq!(scene.installation().await["state"], "uninstalled");
    // A repeat of an event that was sent before, and a call of a page that is still open.
    let told = scene
        .cloud
        .with(&installed, "upgrade", json!({"retries": 0}));
    assert_eq!(status(&told), Some(204), "there is nothing to repeat");
    let (status_of_page, body) = scene.page(&installed, json!({"path": "/-/jira_connect/links"}));
    assert_eq!(
        (status_of_page, &body["error"]["code"]),
        (409, &json!("installation_uninstalled"))
    );
    assert_eq!(scene.installation().await["state"], "uninstalled");
    let told = scene.cloud.with(&installed, "uninstall", json!({}));
    assert_eq!(status(&told), Some(204));

    // Installed anew it has another name, and the record is the same.
    let again = scene.cloud.install(&scene.app, &scene.acme, json!({}));
    assert_eq!(again.told["delivered"], true);
    let site = scene.installation().await;
    assert_eq!(
        (&site["state"], &site["client_key"]),
        (&json!("installed"), &client_key)
    );
    // Nobody can say goodbye in its name.
    let told = scene.cloud.with(&installed, "uninstall", json!({}));
    assert_eq!(status(&told), Some(204), "a stranger's goodbye");
    assert_eq!(scene.installation().await["state"], "installed");
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_tokens_change_nothing_and_are_answered_401() {
    let scene = Scene::set_with(|settings| {
        settings.set("LIMITS__REQUESTS_PER_ADDRESS_PER_SEC", "0");
    })
    .await;
    let installed = scene.cloud.install(&scene.app, &scene.acme, json!({}));
    let before = scene.installation().await;
    let forged = "ari:cloud:ecosystem::app/00000000-0000-4000-8000-000000000000";
    let past = 1_700_000_000;
    for (what, how) in [
        ("another app's", json!({"claims": {"aud": forged}})),
        ("for nobody", json!({"claims": {"aud": null}})),
        (
            "another issuer",
            json!({"claims": {"iss": "forge/invocation-token/"}}),
        ),
        (
            "HS256 with the public key",
            json!({"signer": "hs256_public"}),
        ),
        ("unsigned", json!({"signer": "none"})),
        (
            "a stranger's key under a known name",
            json!({"signer": "stranger"}),
        ),
        (
            "an unknown key",
            json!({"header": {"kid": "forge/invocation-token/wf-0"}}),
        ),
        (
            "a hostile key id",
            json!({"header": {"kid": "../../../etc/passwd"}}),
        ),
        ("no key id", json!({"header": {"kid": null}})),
        (
            "keys of its own",
            json!({"signer": "stranger", "header": {"jku": format!("{}/evil", scene.acme.url)}}),
        ),
        (
            "expired",
            json!({"claims": {"exp": past + 25, "iat": past, "nbf": past}}),
        ),
        (
            "another environment",
            json!({"claims": {"app.environment.type": "STAGING"}}),
        ),
        (
            "a gateway of its own",
            json!({"claims": {"app.apiBaseUrl": format!("https://evil.tld/ex/jira/{}", scene.acme.cloud_id)}}),
        ),
        ("no token id", json!({"claims": {"jti": null}})),
    ] {
        for command in ["upgrade", "scheduled", "uninstall"] {
            let mut how = how.clone();
            how["retries"] = 0.into();
            how["version"] = "6.6.6".into();
            // The sites' end is its own business, so its tokens go on.
            if command == "uninstall" {
                how["status"] = Value::Null;
            }
            let told = scene.cloud.with(&installed, command, how);
            assert_eq!(status(&told), Some(401), "{what}, {command}: {told:#}");
        }
        let mut how = how.clone();
        how["path"] = "/-/jira_connect/links".into();
        let told = scene.cloud.with(&installed, "invoke", how);
        assert_eq!(status(&told), Some(401), "{what}: {told:#}");
        assert_eq!(told["swallowed"], "INVALID_FORGE_INVOCATION_TOKEN");
        assert_eq!(scene.installation().await, before, "{what}");
    }
    // One that is the page's is believed, and is no trigger's.
    for command in ["upgrade", "scheduled", "uninstall"] {
        let fit = scene.cloud.with(&installed, "fit", json!({"kind": "ui"}));
        let how = json!({"token": fit["token"], "retries": 0, "status": null});
        let told = scene.cloud.with(&installed, command, how);
        assert_eq!(status(&told), Some(403), "{command}: {told:#}");
        assert_eq!(scene.installation().await, before, "{command}");
    }
    // Nor is a trigger's the page's.
    let fit = scene
        .cloud
        .with(&installed, "fit", json!({"kind": "event"}));
    let how = json!({"path": "/-/jira_connect/links", "token": fit["token"]});
    let (status_of_page, body) = scene.page(&installed, how);
    assert_eq!(
        (status_of_page, &body["error"]["code"]),
        (403, &json!("user_missing"))
    );
    assert_eq!(scene.installation().await, before);
    let evil = scene.cloud.requests("acme");
    assert!(evil.is_empty(), "nobody asked where a token said: {evil:?}");

    // Each is good for one request.
    let fit = scene
        .cloud
        .with(&installed, "fit", json!({"kind": "scheduled"}));
    let how = json!({"token": fit["token"]});
    let told = scene.cloud.with(&installed, "scheduled", how.clone());
    assert_eq!(status(&told), Some(204));
    for command in ["scheduled", "uninstall"] {
        let told = scene.cloud.with(
            &installed,
            command,
            json!({"token": fit["token"], "status": null}),
        );
        assert_eq!(status(&told), Some(401), "{told:#}");
    }
    assert_eq!(scene.installation().await["state"], "installed");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_at_the_page_does_not_speak_for_forge() {
    let scene = Scene::set_with(|settings| {
        settings.set("FORGE__ENVIRONMENTS", "PRODUCTION,STAGING");
        settings.set("LIMITS__REQUESTS_PER_ADDRESS_PER_SEC", "0");
    })
    .await;
    let installed = scene.cloud.install(&scene.app, &scene.acme, json!({}));
    let staging = json!({"environment": "STAGING", "silent": true});
    let staging = scene.cloud.install(&scene.app, &scene.acme, staging);
    let client_key = scene.installation().await["client_key"].clone();
    let (gitlabs, _links) = linked(&scene.relay, client_key.as_str().expect("key"), 1).await;
    let before = scene.installation().await;
    let mut refused = 0;
    for trigger in ["events", "scheduled", "uninstall"] {
        for (what, how) in [
            ("an admin of the page's", json!({})),
            ("somebody else", json!({"principal": "member"})),
            (
                "a browser",
                json!({"via": "requestRemote", "principal": "member"}),
            ),
            (
                "nobody, at the page",
                json!({"claims": {"principal": null}}),
            ),
            (
                "nobody, at the page's endpoint",
                json!({"claims": {"principal": null, "app.module": {"type": "core:endpoint", "key": "page"}}}),
            ),
            (
                "somebody, as if from elsewhere",
                json!({"claims": {"app.module": {"type": "core:trigger", "key": "lifecycle"}}}),
            ),
        ] {
            for installed in [&installed, &staging] {
                let mut call = how.clone();
                call["method"] = "POST".into();
                call["path"] = format!("/-/jira_connect/forge/{trigger}").into();
                call["body"] = json!({"eventType": "avi:forge:installed:app"});
                let (status, body) = scene.page(installed, call);
                let told = (status, &body["error"]["code"]);
                assert_eq!(
                    told,
                    (403, &json!("trigger_not_forges")),
                    "{what}, {trigger}"
                );
                refused += 1;
            }
        }
    }
    assert_eq!(scene.installation().await, before);
    assert!(scene.audit("installation_uninstalled").await.is_empty());
    assert_ne!(gitlabs[0].state().await["installations"], json!({}));
    let counted = scene
        .relay
        .metric("jira_connect_proxy_rejections_total", "trigger_not_forges")
        .await;
    assert_eq!(counted, f64::from(refused));
    // Forge itself still does.
    let told = scene.cloud.with(&installed, "uninstall", json!({}));
    assert_eq!(told["delivered"], true, "{told}");
    scene.everybody_knows_the_end(&gitlabs).await;
}

/// A token for Jira's API that somebody made up.
fn made_up(life_secs: i64) -> String {
    let exp = Timestamp::now().as_second() + life_secs;
    let claims = URL_SAFE_NO_PAD.encode(format!(r#"{{"exp":{exp}}}"#));
    format!("e30.{claims}.c2ln")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_somebody_at_the_page_made_up_keeps_no_better_one_away() {
    let scene = Scene::set_with(|settings| settings.set("FORGE__CHECK_EVERY_SECS", "1")).await;
    let installed = scene.cloud.install(&scene.app, &scene.acme, json!({}));
    let client_key = scene.installation().await["client_key"].clone();
    let (gitlabs, links) = linked(&scene.relay, client_key.as_str().expect("key"), 1).await;
    let brings = |token: Value| {
        let call = json!({
            "path": "/-/jira_connect/links", "principal": "member", "via": "requestRemote",
            "headers": {"x-forge-oauth-system": token},
        });
        scene.page(&installed, call)
    };
    let end = async || scene.installation().await["forge"]["token_expires_at"].clone();

    // While Forge's own is good, nobody's word is taken.
    let before = end().await;
    assert_eq!(brings(made_up(86_400).into()).0, 200);
    assert_eq!(end().await, before);
    gitlabs[0]
        .sends("builds", json!({"build_number": 80}))
        .await;
    assert_eq!(scene.relay.spool().await["waiting"], 0);
    scene.built(&installed.provider, &links, 80);

    // Two are one too many, whichever is meant.
    let token = token_of(&scene, &installed);
    let (status_of_page, body) = brings(json!([token, made_up(86_400)]));
    let told = (status_of_page, &body["error"]["code"]);
    assert_eq!(told, (400, &json!("system_token_ambiguous")));

    // Once Jira has said no to it, the page brings another one: a false one for as long as Jira is not asked ...
    scene.cloud.with(&installed, "expire", json!({}));
    gitlabs[0]
        .sends("builds", json!({"build_number": 81}))
        .await;
    assert_eq!(scene.relay.spool().await["waiting"], 1);
    scene.until_problem("forge_token_refused").await;
    assert_eq!(brings(made_up(86_400).into()).0, 200);
    assert_ne!(end().await, before);
    scene.until_problem("forge_token_refused").await;
    // ... and then a good one, though it ends long before that.
    assert_eq!(brings(token_of(&scene, &installed)).0, 200);
    scene.relay.until_drained().await;
    scene.built(&installed.provider, &links, 81);

    // What Forge sends by itself is better than whatever came from the page.
    scene.cloud.with(&installed, "expire", json!({}));
    gitlabs[0]
        .sends("builds", json!({"build_number": 82}))
        .await;
    scene.until_problem("forge_token_refused").await;
    assert_eq!(brings(made_up(86_400).into()).0, 200);
    let told = scene.cloud.with(&installed, "scheduled", json!({}));
    assert_eq!(told["delivered"], true, "{told}");
    scene.relay.until_drained().await;
    scene.built(&installed.provider, &links, 82);
}

#[tokio::test(flavor = "multi_thread")]
async fn that_jira_refuses_a_made_up_token_is_no_goodbye() {
    let scene = Scene::set_with(|settings| {
        settings.set("FORGE__CHECK_EVERY_SECS", "1");
        settings.set("FORGE__GONE_AFTER_SECS", "1");
    })
    .await;
    let silent = json!({"silent": true});
    let installed = scene.cloud.install(&scene.app, &scene.acme, silent);
    let call = json!({
        "path": "/-/jira_connect/links", "principal": "member", "via": "requestRemote",
        "headers": {"x-forge-oauth-system": made_up(3600)},
    });
    assert_eq!(scene.page(&installed, call).0, 200);
    scene.until_asked(4).await;
    assert_eq!(scene.installation().await["state"], "installed");
    let told = scene.cloud.with(&installed, "scheduled", json!({}));
    assert_eq!(told["delivered"], true, "{told}");
    assert_eq!(scene.installation().await["problem"], Value::Null);
}

fn token_of(scene: &Scene, installed: &Installed) -> Value {
    scene.cloud.with(installed, "system_token", json!({}))["token"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_was_revoked_yields_to_one_that_ends_sooner() {
    let scene = Scene::set().await;
    scene
        .cloud
        .ask("system_tokens", json!({"lifetime_secs": 7200}));
    let installed = scene.cloud.install(&scene.app, &scene.acme, json!({}));
    let client_key = scene.installation().await["client_key"].clone();
    let (gitlabs, links) = linked(&scene.relay, client_key.as_str().expect("key"), 1).await;
    scene.cloud.with(&installed, "expire", json!({}));
    gitlabs[0]
        .sends("builds", json!({"build_number": 90}))
        .await;
    assert_eq!(scene.relay.spool().await["waiting"], 1);
    scene
        .cloud
        .ask("system_tokens", json!({"lifetime_secs": 3300}));
    let told = scene.cloud.with(&installed, "scheduled", json!({}));
    assert_eq!(told["delivered"], true, "{told}");
    scene.relay.until_drained().await;
    scene.built(&installed.provider, &links, 90);
    assert_eq!(scene.cloud.violations(), json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_while_jira_is_asked_stays_noted() {
    let scene = Scene::set().await;
    let installed = scene.cloud.install(&scene.app, &scene.acme, json!({}));
    let url = format!("{}/forge/scheduled", scene.relay.app_base_url());
    let deadline = Instant::now() + PATIENCE;
    // On a slow machine Jira's no may come too late to be one.
    for minor in 1.. {
        assert!(Instant::now() < deadline, "Jira's no was never heard");
        let fit = scene
            .cloud
            .with(&installed, "fit", json!({"kind": "scheduled"}));
        let slow = json!({"mode": "status", "status": 401, "delay_ms": 1000, "times": 1});
        scene.cloud.fault("api", slow);
        let asked = scene.questions();
        let bearer = format!("Bearer {}", fit["token"].as_str().expect("token"));
        let request = Request::post(&url).header("authorization", bearer);
        let request = request.body(Full::default()).expect("request");
        let trigger = tokio::spawn(async move { send(&client(), request).await });
        scene.until_asked(asked + 1).await;
        let version = format!("2.{minor}.0");
        let upgrade = json!({"version": version, "system_token": false});
        let told = scene.cloud.with(&installed, "upgrade", upgrade);
        assert_eq!(told["delivered"], true, "{told}");
        assert_eq!(checked(trigger.await.expect("task")).status(), 204);
        let site = scene.installation().await;
        assert_eq!(site["forge"]["app_version"], version);
        if site["problem"]["code"] == "forge_token_refused" {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_speaks_for_itself_only() {
    let scene = Scene::set().await;
    let acme = scene.cloud.install(&scene.app, &scene.acme, json!({}));
    let other = scene.cloud.site("unlisted");
    let other = scene
        .cloud
        .install(&scene.app, &other, json!({"silent": true}));
    let bare = acme.id.rsplit('/').next().expect("id");
    // Whatever a body says, it is the token that counts.
    for command in ["upgrade", "scheduled", "uninstall"] {
        let body = json!({
            "id": bare, "installationId": acme.id, "context": {"cloudId": scene.acme.cloud_id},
            "version": "6.6.6",
        });
        let how = json!({"body": body, "retries": 0, "system_token": false});
        scene.cloud.with(&other, command, how);
    }
    let site = scene.installation().await;
    assert_eq!(site["state"], "installed");
    assert_eq!(site["forge"]["app_version"], "1.0.0");
    assert_eq!(site["forge"]["installation_id"], acme.id);
    // What is no body of Forge's is no body, and one that is too large is not read.
    for (body, expected) in [
        (Vec::new(), 204),
        (b"rubbish\xff".to_vec(), 204),
        (vec![b' '; 2 << 20], 413),
    ] {
        let fit = scene.cloud.with(&acme, "fit", json!({"kind": "scheduled"}));
        let token = fit["token"].as_str().expect("token");
        let url = format!("{}/forge/scheduled", scene.relay.app_base_url());
        let request = Request::post(url).header("authorization", format!("Bearer {token}"));
        let answer = send(&client(), request.body(Full::from(body)).expect("request")).await;
        assert_eq!(checked(answer).status(), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_in_forge_does_for_admins_what_the_one_in_jira_does() {
    let scene = Scene::set().await;
    let installed = scene.cloud.install(&scene.app, &scene.acme, json!({}));
    let client_key = scene.installation().await["client_key"].clone();
    let (gitlabs, links) = linked(&scene.relay, client_key.as_str().expect("key"), 1).await;
    let id = links[0]["id"].as_str().expect("id");

    let (status, boot) = scene.page(&installed, json!({"path": "/-/jira_connect/page/boot"}));
    assert_eq!(status, 200);
    assert_eq!(boot["base"], "/-/jira_connect");
    assert_eq!(boot["proxyUrl"], scene.relay.url());
    assert_eq!(boot["origins"], json!([gitlabs[0].url]));
    let redirect = format!("{}/oauth_callbacks", scene.relay.app_base_url());
    assert_eq!(boot["redirectUri"], redirect);
    assert_eq!(boot["pageToken"], Value::Null);

    let list = json!({"path": "/-/jira_connect/links"});
    let (status, page) = scene.page(&installed, list.clone());
    assert_eq!(
        (status, &page["may_change"], &page["site"]),
        (200, &json!(true), &json!(scene.acme.url))
    );
    assert_eq!(page["links"][0]["id"], id);
    let asks =
        json!({"method": "POST", "path": format!("/-/jira_connect/links/{id}/context_token")});
    let (status, token) = scene.page(&installed, asks.clone());
    assert_eq!((status, token["token"].is_string()), (200, true));

    // Somebody who is no administrator may look.
    let as_member = |mut call: Value| {
        call["principal"] = "member".into();
        scene.page(&installed, call)
    };
    let (status, page) = as_member(list.clone());
    assert_eq!((status, &page["may_change"]), (200, &json!(false)));
    assert_eq!(page["reason"]["code"], "not_jira_admin");
    let removal =
        json!({"method": "DELETE", "path": format!("/-/jira_connect/links/{id}?purge=true")});
    for call in [asks, removal.clone()] {
        let (status, body) = as_member(call);
        assert_eq!(
            (status, &body["error"]["code"]),
            (403, &json!("not_jira_admin"))
        );
    }
    let wish = json!({"method": "POST", "path": "/-/jira_connect/links", "body": {"instance_url": "https://gitlab.example.com"}});
    let (status, _) = as_member(wish);
    assert_eq!(status, 403);
    // Nobody is nobody.
    let nobody = json!({"path": "/-/jira_connect/links", "claims": {"principal": null}});
    let (status, body) = scene.page(&installed, nobody);
    assert_eq!(
        (status, &body["error"]["code"]),
        (403, &json!("user_missing"))
    );
    // Another site's links are not there.
    let other = json!({"path": "/-/jira_connect/links/00000000-0000-4000-8000-000000000000"});
    let (status, body) = scene.page(&installed, other);
    assert_eq!(
        (status, &body["error"]["code"]),
        (404, &json!("link_unknown"))
    );

    let (status, _) = scene.page(&installed, removal);
    assert_eq!(status, 202);
    let trail = scene.audit("link_purge_requested").await;
    assert_eq!((trail.len(), &trail[0]["account_id"]), (1, &json!("admin")));
    assert_eq!(scene.cloud.violations(), json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_works_while_forge_stands_by_and_says_when_nothing_else_is_left() {
    let scene = Scene::set().await;
    scene.cloud.connect(&scene.acme, APP_KEY, &[SECRET]);
    let base = scene.relay.app_base_url();
    assert_eq!(scene.jira.installed(&base, SECRET).await.status(), 204);
    let installed = scene.cloud.install(&scene.app, &scene.acme, json!({}));
    assert_eq!(installed.told["delivered"], true, "{}", installed.told);
    let site = scene.installation().await;
    assert_eq!(
        (&site["upstream"], &site["standby"]),
        (&json!("connect"), &json!(["forge"]))
    );
    let list = json!({"path": "/-/jira_connect/links"});
    let (status, page) = scene.page(&installed, list.clone());
    assert_eq!(
        (status, &page["may_change"]),
        (200, &json!(true)),
        "as Connect says"
    );

    assert_eq!(scene.jira.uninstalled(&base).await.status(), 204);
    let (status, body) = scene.page(&installed, list.clone());
    assert_eq!(
        (status, &body["error"]["code"]),
        (409, &json!("installation_not_moved"))
    );
    let path = format!("/api/v1/installations/{CLIENT_KEY}/move");
    scene
        .relay
        .admin("POST", &path, Some(json!({"to": "forge"})), 200)
        .await;
    let (status, page) = scene.page(&installed, list);
    assert_eq!(
        (status, &page["may_change"]),
        (200, &json!(true)),
        "as Forge says"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connect_part_that_came_too_late_is_told_with_the_cure() {
    let scene = Scene::set().await;
    scene.cloud.install(&scene.app, &scene.acme, json!({}));
    let client_key = scene.installation().await["client_key"].clone();
    let client_key = client_key.as_str().expect("key");
    let (_gitlabs, _links) = linked(&scene.relay, client_key, 1).await;
    scene.cloud.connect(&scene.acme, APP_KEY, &[SECRET]);
    let base = scene.relay.app_base_url();
    assert_eq!(scene.jira.installed(&base, SECRET).await.status(), 204);
    let output = scene.relay.command_line(&["doctor"]).await;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    for part in [
        "twin_installations",
        client_key,
        CLIENT_KEY,
        "installations join",
    ] {
        assert!(told.contains(part), "{part} is not in {told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_that_was_renamed_is_followed_at_the_next_trigger() {
    let scene = Scene::set().await;
    let installed = scene.cloud.install(&scene.app, &scene.acme, json!({}));
    let name = "https://acme-new.atlassian.net";
    scene
        .cloud
        .ask("rename", json!({"site": "acme", "base_url": name}));
    let told = scene.cloud.with(&installed, "scheduled", json!({}));
    assert_eq!(told["delivered"], true, "{told}");
    assert_eq!(scene.installation().await["base_url"], name);
    let trail = scene.audit("installation_renamed").await;
    assert_eq!((trail.len(), &trail[0]["actor"]), (1, &json!("relay")));
    scene.cloud.with(&installed, "scheduled", json!({}));
    assert_eq!(scene.audit("installation_renamed").await.len(), 1, "once");
    // An address that is none changes nothing.
    scene.cloud.ask(
        "rename",
        json!({"site": "acme", "base_url": "https://evil.tld"}),
    );
    scene.cloud.with(&installed, "scheduled", json!({}));
    assert_eq!(scene.installation().await["base_url"], name);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_is_gone_when_jira_says_so_again_and_nothing_comes() {
    let scene = Scene::set_with(|settings| {
        settings.set("FORGE__CHECK_EVERY_SECS", "1");
        settings.set("FORGE__GONE_AFTER_SECS", "1");
    })
    .await;
    // Near its end, a token is good for a last question.
    scene
        .cloud
        .ask("system_tokens", json!({"lifetime_secs": 600}));
    let installed = scene.cloud.install(&scene.app, &scene.acme, json!({}));
    let client_key = scene.installation().await["client_key"].clone();
    let (gitlabs, _links) = linked(&scene.relay, client_key.as_str().expect("key"), 1).await;

    // Silent for longer than it may be, and Jira refuses a write; but whoever asks hears nothing, or one no, or yes.
    let below =
        |path: &str| json!({"path_prefix": format!("/ex/jira/{}{path}", scene.acme.cloud_id)});
    for (mode, status, times) in [("status", 503, 2), ("reset", 0, 2), ("status", 401, 1)] {
        let on = below(SERVER_INFO);
        let fault = json!({"mode": mode, "status": status, "times": times, "match": on});
        scene.cloud.fault("api", fault);
    }
    let on = below("/rest/builds");
    let fault = json!({"mode": "status", "status": 401, "times": 1, "match": on});
    scene.cloud.fault("api", fault);
    let asked = scene.questions();
    gitlabs[0].sends("builds", json!({})).await;
    scene.until_asked(asked + 6).await;
    assert_eq!(scene.installation().await["state"], "installed");
    scene.relay.until_drained().await;

    // Gone without a word.
    scene
        .cloud
        .with(&installed, "uninstall", json!({"silent": true}));
    gitlabs[0]
        .sends("builds", json!({"build_number": 70}))
        .await;
    scene.until_state("uninstalled").await;
    scene.everybody_knows_the_end(&gitlabs).await;
    let trail = scene.audit("installation_uninstalled").await;
    assert_eq!((trail.len(), &trail[0]["actor"]), (1, &json!("relay")));
    assert!(
        trail[0]["note"]
            .as_str()
            .is_some_and(|note| note.contains("refused"))
    );
    scene.relay.until_drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jira_is_asked_once_about_a_token_that_it_takes() {
    let scene = Scene::set_with(|settings| settings.set("FORGE__CHECK_EVERY_SECS", "1")).await;
    scene
        .cloud
        .ask("system_tokens", json!({"lifetime_secs": 600}));
    let of = |cloud_id: &str| format!("/ex/jira/{cloud_id}/");
    let (acme, other) = (of(&scene.acme.cloud_id), of(&scene.other.cloud_id));
    let unknown = json!({"mode": "status", "status": 503, "match": {"path_prefix": other}});
    scene.cloud.fault("api", unknown);
    // Its page says where it is, so it is asked by nothing but the look at tokens that are about to end.
    for site in [&scene.acme, &scene.other] {
        let installed = scene
            .cloud
            .install(&scene.app, site, json!({"silent": true}));
        let (status, _) = scene.page(&installed, json!({"path": "/-/jira_connect/page/boot"}));
        assert_eq!(status, 200);
    }
    let deadline = Instant::now() + PATIENCE;
    while scene.questions_below(&acme) < 1 || scene.questions_below(&other) < 4 {
        assert!(Instant::now() < deadline, "Jira was not asked");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // One answer is enough, and none is not.
    assert_eq!(scene.questions_below(&acme), 1);
}

/// Takes it that so much time has passed since anything was noted of the only site. The relay must not run.
fn time_passed(settings: &Settings, passed: SignedDuration) {
    let (store, metrics) = (settings.config().store, Metrics::new().expect("metrics"));
    tokio::task::block_in_place(|| {
        let owner = StoreOwner::open(&store, Arc::new(metrics)).expect("store");
        let known = owner.store().installations().pop().expect("a site");
        let mut forge = known.forge().expect("a Forge app").clone();
        forge.told_at -= passed;
        if let Some(token) = &mut forge.system_token {
            token.expires_at -= passed;
        }
        let key = known.client_key.clone();
        let noted = owner
            .store()
            .transact(move |transaction| sites::told(transaction, &key, forge));
        tokio::runtime::Handle::current()
            .block_on(noted)
            .expect("noted");
        owner.close().expect("closed");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn who_vanished_while_the_relay_was_away_is_silent_until_an_operator_removes_it() {
    let mut scene = Scene::set_with(|settings| {
        settings.set("FORGE__CHECK_EVERY_SECS", "1");
        settings.set("FORGE__GONE_AFTER_SECS", "1");
    })
    .await;
    let installed = scene.cloud.install(&scene.app, &scene.acme, json!({}));
    let client_key = scene.installation().await["client_key"].clone();
    let client_key = client_key.as_str().expect("key");
    let (gitlabs, _links) = linked(&scene.relay, client_key, 1).await;
    let remove = ["installations", "remove", client_key];
    let refused = printed(&scene.relay, &remove, 1).await;
    assert!(refused.contains("installation_has_app"), "{refused}");

    // There is nothing to ask Jira with when the relay comes back, so Jira can't say no.
    scene.relay.stop().await;
    scene
        .cloud
        .with(&installed, "uninstall", json!({"silent": true}));
    time_passed(&scene.relay.settings, SignedDuration::from_hours(4));
    scene.relay.restart().await;
    scene.relay.new_client();
    gitlabs[0]
        .sends("builds", json!({"build_number": 71}))
        .await;
    scene.until_problem("forge_silent").await;
    assert_eq!(scene.relay.spool().await["waiting"], 1, "lost is nothing");
    let silent = "jira_connect_proxy_forge_silent_installations";
    assert_eq!(scene.relay.metric(silent, "").await, 1.0);
    for command in ["installations", "status", "doctor"] {
        let output = scene.relay.command_line(&[command]).await;
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(told.contains("Forge has sent nothing for long"), "{told}");
        assert!(told.contains("installations remove KEY"), "{told}");
    }
    // Silence alone is no goodbye, whatever forge.gone_after_secs says.
    assert_eq!(scene.installation().await["state"], "installed");
    printed(&scene.relay, &remove, 0).await;
    scene.everybody_knows_the_end(&gitlabs).await;
    scene.relay.until_drained().await;
    assert_eq!(scene.relay.metric(silent, "").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_environment_of_the_app_serves_a_site() {
    let scene = Scene::set_with(|settings| {
        settings.set("FORGE__ENVIRONMENTS", "PRODUCTION,STAGING");
    })
    .await;
    let installed = scene.cloud.install(&scene.app, &scene.acme, json!({}));
    let staging = json!({"environment": "STAGING", "silent": true});
    let staging = scene.cloud.install(&scene.app, &scene.acme, staging);
    let told = scene.cloud.with(&staging, "scheduled", json!({}));
    assert_eq!(status(&told), Some(409), "{told:#}");
    let (status, body) = scene.page(&staging, json!({"path": "/-/jira_connect/links"}));
    assert_eq!(
        (status, &body["error"]["code"]),
        (409, &json!("another_installation"))
    );
    let site = scene.installation().await;
    assert_eq!(site["forge"]["installation_id"], installed.id);
    // An event is another matter: the one before may have gone without a word.
    let told = scene.cloud.with(&staging, "upgrade", json!({}));
    assert_eq!(told["delivered"], true, "{told}");
    let site = scene.installation().await;
    assert_eq!(site["forge"]["installation_id"], staging.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_was_installed_anew_in_silence_serves_once_jira_refuses_the_old_token() {
    let mut scene = Scene::set_with(|settings| settings.set("FORGE__CHECK_EVERY_SECS", "1")).await;
    scene
        .cloud
        .ask("system_tokens", json!({"lifetime_secs": 7200}));
    let old = scene.cloud.install(&scene.app, &scene.acme, json!({}));
    let client_key = scene.installation().await["client_key"].clone();
    let (gitlabs, links) = linked(&scene.relay, client_key.as_str().expect("key"), 1).await;
    scene.relay.stop().await;
    let silent = json!({"silent": true});
    scene.cloud.with(&old, "uninstall", silent.clone());
    let new = scene.cloud.install(&scene.app, &scene.acme, silent);
    time_passed(&scene.relay.settings, SignedDuration::from_mins(101));
    scene.relay.restart().await;
    scene.relay.new_client();
    let told = scene.cloud.with(&new, "scheduled", json!({}));
    assert_eq!(status(&told), Some(409), "nobody knows yet: {told:#}");
    let asked = scene.questions();
    gitlabs[0]
        .sends("builds", json!({"build_number": 72}))
        .await;
    scene.until_asked(asked + 3).await;
    let told = scene.cloud.with(&new, "scheduled", json!({}));
    assert_eq!(told["delivered"], true, "{told}");
    let site = scene.installation().await;
    assert_eq!(site["client_key"], client_key);
    assert_eq!(site["forge"]["installation_id"], new.id);
    scene.relay.until_drained().await;
    scene.built(&new.provider, &links, 72);
}

#[tokio::test(flavor = "multi_thread")]
async fn forge_calls_for_many_and_strangers_for_themselves() {
    let scene = Scene::set_with(|settings| {
        settings.set("LIMITS__REQUESTS_PER_ADDRESS_PER_SEC", "1");
        settings.set("LIMITS__REQUESTS_PER_ADDRESS_BURST", "3");
    })
    .await;
    let installed = scene.cloud.install(&scene.app, &scene.acme, json!({}));
    for _ in 0..10 {
        let (status, _) = scene.page(&installed, json!({"path": "/-/jira_connect/links"}));
        assert_eq!(status, 200);
    }
    // One a second comes back, so a slow machine needs more of them to see it.
    let mut strangers = (0..100).map(|_| {
        let call = json!({"path": "/-/jira_connect/links", "signer": "stranger"});
        status(&scene.cloud.with(&installed, "invoke", call))
    });
    assert!(strangers.any(|status| status == Some(429)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_forge_told_outlives_kill_9() {
    let cloud = Cloud::start();
    let acme = cloud.site("acme");
    let app = cloud.ask("app", json!({}))["app_id"].clone();
    let app = app.as_str().expect("app").to_owned();
    let jira = FakeJira::start(CLIENT_KEY).await;
    let folder = tempfile::tempdir().expect("folder");
    let mut settings = Settings::new(folder.path(), &jira);
    cloud.aim(&mut settings, &app, &[&acme]);
    cloud.ask("app", json!({"app_id": app, "remote": settings.url()}));
    let client = client();
    let relay = RelayProcess::start(&settings, &client).await;
    let token = settings.know_secrets();
    cloud.ask("system_tokens", json!({"lifetime_secs": 600}));
    let installed = cloud.install(&app, &acme, json!({}));
    assert_eq!(installed.told["delivered"], true, "{}", installed.told);
    relay.kill();
    // While nobody is there, nothing is lost that the next hour would not bring.
    let told = cloud.with(&installed, "scheduled", json!({}));
    assert_eq!(told["delivered"], false);
    let relay = RelayProcess::start(&settings, &client).await;
    let (admin_url, path) = (settings.admin_url(), "/api/v1/installations");
    let rows = async || {
        let answer = admin(&client, &admin_url, &token, "GET", path, None).await;
        let rows = serde_json::from_slice::<Value>(checked(answer.expect("answer")).body());
        rows.expect("JSON")
    };
    let before = rows().await;
    assert_eq!(before[0]["forge"]["installation_id"], installed.id);
    assert_eq!(before[0]["problem"], Value::Null);
    cloud.ask("system_tokens", json!({"lifetime_secs": 3300}));
    cloud.with(&installed, "scheduled", json!({}));
    let after = rows().await;
    let end = |rows: &Value| {
        rows[0]["forge"]["token_expires_at"]
            .as_str()
            .map(str::to_owned)
    };
    assert!(end(&after) > end(&before), "{after:#}");
    relay.kill();
    let relay = RelayProcess::start(&settings, &client).await;
    assert_eq!(end(&rows().await), end(&after), "durable before the answer");
    drop(relay);
    assert_eq!(cloud.violations(), json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_app_nothing_of_forge_is_there() {
    let scene = Scene::set_with(|settings| settings.set("FORGE__APP_ID", "")).await;
    let how = json!({"retries": 0});
    let installed = scene.cloud.install(&scene.app, &scene.acme, how);
    assert_eq!(status(&installed.told), Some(404), "{}", installed.told);
    let (status, body) = scene.page(&installed, json!({"path": "/-/jira_connect/links"}));
    assert_eq!((status, &body["error"]["code"]), (404, &json!("forge_off")));
    assert_eq!(scene.installations().await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn forge_calls_from_atlassians_addresses_only_if_they_are_listed() {
    let scene = Scene::set_with(|settings| settings.set("ACCESS__JIRA", "192.0.2.0/24")).await;
    let installed = scene
        .cloud
        .install(&scene.app, &scene.acme, json!({"retries": 0}));
    assert_eq!(status(&installed.told), Some(403), "{}", installed.told);
    for path in ["page/boot", "links"] {
        let path = format!("/-/jira_connect/{path}");
        let (status, body) = scene.page(&installed, json!({"path": path}));
        assert_eq!(
            (status, &body["error"]["code"]),
            (403, &json!("address_not_allowed"))
        );
    }
}
