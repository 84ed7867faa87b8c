//! A site moves from one way of reaching it to another, with its links, their namespaces and what waits.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::sync::watch;

use super::{Scene, oauth};
use crate::{
    cloud::{Cloud, FAMILIES, Installed},
    fakes::{FakeInstance, FakeJira, http::client},
    harness::{RelayProcess, SECRET, SECRET_2, Settings, admin, checked, code, printed},
    outside::Session,
    spool,
    stage::{APP_KEY, CLIENT_KEY, GitLab, linked},
};

const MOVE: &str = "/api/v1/installations/judged-tenant/move";

/// The site has the Connect app.
async fn with_connect() -> Scene {
    with_connect_and(|_| {}).await
}

async fn with_connect_and(change: impl FnOnce(&mut Settings)) -> Scene {
    let scene = Scene::set_with(change).await;
    scene.cloud.connect(&scene.acme, APP_KEY, &[SECRET]);
    let relay = scene.relay.app_base_url();
    assert_eq!(scene.jira.installed(&relay, SECRET).await.status(), 204);
    scene
}

/// ... and the Forge app beside it.
async fn install_forge(scene: &Scene) -> Installed {
    let installed = scene.cloud.install(&scene.app, &scene.acme, json!({}));
    assert_eq!(installed.told["delivered"], true, "{}", installed.told);
    let site = scene.installation().await;
    assert_eq!(site["upstream"], "connect", "not yet: {site}");
    assert_eq!(site["standby"], json!(["forge"]));
    installed
}

async fn refused(scene: &Scene, to: &str, with: &str) {
    let wish = json!({"to": to, "dry_run": false});
    let answer = scene.relay.try_admin("POST", MOVE, Some(wish)).await;
    assert_eq!(code(&answer), with);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_moves_from_connect_to_forge_in_mid_traffic() {
    let mut scene = with_connect().await;
    let (gitlabs, links) = linked(&scene.relay, CLIENT_KEY, 2).await;
    let forge = install_forge(&scene).await;
    let (pushed, mut seen) = watch::channel(0_u64);
    let stop = AtomicBool::new(false);
    let push = async |gitlab: &GitLab| {
        let mut acknowledged = Vec::new();
        for number in 100_u64.. {
            if stop.load(Ordering::SeqCst) {
                break;
            }
            let build = json!({"build_number": number});
            gitlab.sends("builds", build).await;
            acknowledged.push(number);
            pushed.send_modify(|pushed| *pushed += 1);
        }
        acknowledged
    };
    let moving = async {
        let mut more = async |more: u64| {
            let wanted = *seen.borrow() + more;
            seen.wait_for(|pushed| *pushed >= wanted)
                .await
                .expect("open");
        };
        more(10).await;
        // What the Connect app could not send when the site moved waits, and goes the new way.
        scene
            .cloud
            .fault("acme", json!({"mode": "status", "status": 503}));
        more(10).await;
        for dry_run in [true, false] {
            let wish = json!({"to": "forge", "dry_run": dry_run});
            let moved = scene.relay.admin("POST", MOVE, Some(wish), 200).await;
            assert_eq!(moved["links"], 2);
            assert_eq!(moved["applied"], !dry_run);
            assert!(moved["waiting_writes"].as_u64() > Some(0), "{moved:#}");
            let now = if dry_run { "connect" } else { "forge" };
            assert_eq!(scene.installation().await["upstream"], now);
        }
        more(10).await;
        stop.store(true, Ordering::SeqCst);
    };
    let (first, second, ()) = tokio::join!(push(&gitlabs[0]), push(&gitlabs[1]), moving);
    scene.relay.until_drained().await;

    let before = scene.cloud.keys(&scene.acme, "connect", "builds");
    let after = scene.cloud.keys(&scene.acme, &forge.provider, "builds");
    assert!(!before.is_empty() && !after.is_empty());
    let now = scene.relay.links().await;
    for (link, acknowledged) in links.iter().zip([first, second]) {
        let same = now.iter().find(|same| same["id"] == link["id"]);
        let same = same.expect("the same link");
        assert_eq!(same["namespace"], link["namespace"]);
        assert_eq!(same["state"], "connected");
        let ns = link["namespace"].as_str().expect("namespace");
        for number in acknowledged {
            let key = format!("{ns}-700/{number}");
            let places = [&before, &after].map(|keys| keys.contains(&key));
            assert!(
                places[0] != places[1],
                "{key}: with one of the two, never both"
            );
        }
    }
    assert_eq!(scene.audit("installation_moved").await.len(), 1);

    // The instances were told nothing, and hear nothing of the old app's end.
    let relay = scene.relay.app_base_url();
    assert_eq!(scene.jira.uninstalled(&relay).await.status(), 204);
    let site = scene.installation().await;
    assert_eq!(
        (&site["state"], &site["standby"]),
        (&json!("installed"), &json!([]))
    );
    scene.relay.restart().await;
    scene.both_push(&forge.provider, &gitlabs, &links, 7).await;
    refused(&scene, "connect", "upstream_unknown").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_moves_back_and_on_from_the_command_line() {
    let scene = with_connect().await;
    let (gitlabs, links) = linked(&scene.relay, CLIENT_KEY, 1).await;
    refused(&scene, "connect", "already_there").await;
    refused(&scene, "forge", "upstream_unknown").await;
    refused(&scene, "oauth", "upstream_unknown").await;
    let forge = install_forge(&scene).await;
    let run = async |arguments: &[&str], code| {
        let arguments = [&["installations", "move", CLIENT_KEY, "--to"], arguments].concat();
        printed(&scene.relay, &arguments, code).await
    };

    // A way that does not work now is none.
    let away = json!({"mode": "status", "status": 503});
    scene.cloud.fault("api", away);
    let said = run(&["forge", "--dry-run"], 1).await;
    let cause = "can't be reached through forge now";
    assert!(said.contains(cause), "{said}");
    scene.cloud.heal("api");

    let said = run(&["forge", "--dry-run"], 0).await;
    assert!(
        said.contains("would be reached through forge instead of connect"),
        "{said}"
    );
    assert!(said.contains("nothing was changed"), "{said}");
    let said = run(&["forge"], 0).await;
    assert!(
        said.contains("is reached through forge instead of connect"),
        "{said}"
    );
    scene.both_push(&forge.provider, &gitlabs, &links, 1).await;
    run(&["connect"], 0).await;
    scene.both_push("connect", &gitlabs, &links, 2).await;

    let credential = scene.cloud.credential(&scene.acme, &FAMILIES);
    let wish = oauth::wish(&scene.acme, &credential);
    let path = "/api/v1/installations";
    scene.relay.admin("POST", path, Some(wish), 200).await;
    run(&["oauth"], 0).await;
    scene
        .both_push(&credential.provider, &gitlabs, &links, 3)
        .await;
    let site = scene.installation().await;
    assert_eq!(site["client_key"], CLIENT_KEY, "what the instances know");
    assert_eq!(site["standby"], json!(["forge", "connect"]));
    assert_eq!(scene.cloud.violations(), json!([]));
}

/// Jira's own secret is no secret between the relay and an instance once the site is reached another way.
#[tokio::test(flavor = "multi_thread")]
async fn a_direct_link_gets_a_secret_of_its_own() {
    let scene = with_connect().await;
    let gitlab = GitLab::start(&scene.relay, "", &[]);
    let wish = json!({"client_key": CLIENT_KEY, "instance_url": gitlab.url, "mode": "direct"});
    let link = scene
        .relay
        .admin("POST", "/api/v1/links", Some(wish), 201)
        .await;
    let secret = async || -> Value {
        gitlab.state().await["installations"][CLIENT_KEY]["shared_secret"].clone()
    };
    assert_eq!(secret().await, SECRET);
    install_forge(&scene).await;
    let wish = json!({"to": "forge"});
    let moved = scene.relay.admin("POST", MOVE, Some(wish), 200).await;
    assert_eq!(moved["no_longer_direct"], json!([link["id"]]));
    let told = |links: &[Value]| links[0]["mode"] == "relay" && links[0]["state"] == "connected";
    scene.relay.until_links("told anew", told).await;
    assert_ne!(secret().await, SECRET);
}

/// Jira keeps data by who sent it.
#[tokio::test(flavor = "multi_thread")]
async fn the_data_of_a_link_is_deleted_wherever_it_was_sent() {
    let scene = with_connect().await;
    let (gitlabs, links) = linked(&scene.relay, CLIENT_KEY, 2).await;
    let forge = install_forge(&scene).await;
    scene.both_push("connect", &gitlabs, &links, 1).await;
    let wish = json!({"to": "forge"});
    scene.relay.admin("POST", MOVE, Some(wish), 200).await;
    scene.both_push(&forge.provider, &gitlabs, &links, 2).await;
    let path = format!(
        "/api/v1/links/{}?purge=true",
        links[0]["id"].as_str().expect("id")
    );
    scene.relay.admin("DELETE", &path, None, 202).await;
    refused(&scene, "connect", "link_being_purged").await;
    scene
        .relay
        .until_links("purged", |links| links.len() == 1)
        .await;
    for provider in ["connect", &forge.provider] {
        for (link, left) in links.iter().zip([0, 1]) {
            let ns = link["namespace"].as_str().expect("namespace");
            let keys = scene.cloud.keys(&scene.acme, provider, "builds");
            let of_link = keys.iter().filter(|key| key.starts_with(ns)).count();
            assert_eq!(of_link, left, "{provider}: {keys:?}");
        }
    }
}

impl Scene {
    /// The Connect app is uninstalled.
    async fn connect_ends(&self) {
        let relay = self.relay.app_base_url();
        assert_eq!(self.jira.uninstalled(&relay).await.status(), 204);
    }

    async fn refused_removal(&self, query: &str) -> (String, String) {
        let path = format!("/api/v1/installations/{CLIENT_KEY}{query}");
        let refused = self.relay.admin("DELETE", &path, None, 409).await;
        let text = |name: &str| refused["error"][name].as_str().expect("text").to_owned();
        (text("code"), text("hint"))
    }

    async fn until_told_the_end(&self, gitlab: &GitLab) {
        let told = |links: &[Value]| links[0]["acknowledged"] == "uninstalled";
        self.relay.until_links("told", told).await;
        assert_eq!(gitlab.state().await["installations"], json!({}));
    }
}

/// How often an instance was told that it is over.
async fn endings(gitlab: &GitLab) -> usize {
    let state = gitlab.state().await;
    let events = state["events"].as_array().expect("events");
    let ended = events.iter().filter(|told| told["event"] == "uninstalled");
    ended.count()
}

/// The two steps of a move are easily done in the wrong order.
#[tokio::test(flavor = "multi_thread")]
async fn while_another_way_is_open_no_instance_hears_of_an_uninstall() {
    let scene = with_connect().await;
    let (gitlabs, links) = linked(&scene.relay, CLIENT_KEY, 1).await;
    let forge = install_forge(&scene).await;
    scene
        .cloud
        .fault("acme", json!({"mode": "status", "status": 503}));
    gitlabs[0].sends("builds", json!({"build_number": 8})).await;
    scene.connect_ends().await;
    let site = scene.installation().await;
    assert_eq!(site["state"], "uninstalled");
    assert_eq!(site["problem"]["code"], "move_awaited", "{site:#}");
    let status = printed(&scene.relay, &["status"], 0).await;
    let cure = format!("installations move {CLIENT_KEY} --to forge");
    assert!(status.contains(&cure), "{status}");
    // What was kept and what comes now waits for the move; what can't wait is refused.
    gitlabs[0].sends("builds", json!({"build_number": 9})).await;
    let user = gitlabs[0].send("user", json!({})).await;
    assert_eq!(user["status"], 401, "{user:#}");
    scene.relay.retry_spool().await;
    let awaited = |spool: &Value| spool.to_string().contains("move_awaited");
    scene
        .relay
        .until_spool("it waits for a move", awaited)
        .await;
    assert_eq!(scene.relay.spool().await["waiting"], 2);

    let wish = json!({"to": "forge"});
    scene.relay.admin("POST", MOVE, Some(wish), 200).await;
    scene.relay.until_drained().await;
    for number in [8, 9] {
        scene.built(&forge.provider, &links, number);
    }
    scene.both_push(&forge.provider, &gitlabs, &links, 10).await;
    assert_eq!(endings(&gitlabs[0]).await, 0);

    // Now nothing else is open.
    scene.cloud.with(&forge, "uninstall", json!({}));
    scene.until_told_the_end(&gitlabs[0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_last_way_is_shut_the_instances_hear_of_it() {
    let scene = with_connect().await;
    let (gitlabs, _) = linked(&scene.relay, CLIENT_KEY, 1).await;
    install_forge(&scene).await;
    scene.connect_ends().await;
    // Back as it was, with nothing told.
    let relay = scene.relay.app_base_url();
    assert_eq!(scene.jira.installed(&relay, SECRET).await.status(), 204);
    assert_eq!(scene.installation().await["state"], "installed");
    assert_eq!(endings(&gitlabs[0]).await, 0);
    gitlabs[0].sends("builds", json!({})).await;
    scene.connect_ends().await;
    let arguments = ["installations", "remove", CLIENT_KEY, "--upstream", "forge"];
    let said = printed(&scene.relay, &arguments, 0).await;
    assert!(said.contains("no way to the site is left"), "{said}");
    scene.until_told_the_end(&gitlabs[0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_that_can_be_moved_is_not_left_by_mistake() {
    let scene = with_connect().await;
    let (gitlabs, _) = linked(&scene.relay, CLIENT_KEY, 1).await;
    install_forge(&scene).await;
    let (code, hint) = scene.refused_removal("").await;
    assert_eq!(code, "installation_can_move");
    let cure = format!("installations move {CLIENT_KEY} --to forge");
    assert!(hint.contains(&cure), "{hint}");
    let arguments = ["installations", "move", CLIENT_KEY, "--to", "forge"];
    printed(&scene.relay, &arguments, 0).await;
    let arguments = [
        "installations",
        "remove",
        CLIENT_KEY,
        "--upstream",
        "connect",
    ];
    let said = printed(&scene.relay, &arguments, 0).await;
    assert!(said.contains("connect stands by no more"), "{said}");
    assert_eq!(endings(&gitlabs[0]).await, 0);

    // Meant so: the instances hear of it, whatever stands by.
    let relay = scene.relay.app_base_url();
    assert_eq!(scene.jira.installed(&relay, SECRET).await.status(), 204);
    let arguments = ["installations", "remove", CLIENT_KEY, "--force"];
    let said = printed(&scene.relay, &arguments, 0).await;
    assert!(said.contains("if its app is still installed"), "{said}");
    scene.until_told_the_end(&gitlabs[0]).await;
    let left = scene.installation().await;
    assert_eq!(left["standby"], json!(["connect"]));
    assert_eq!(left["problem"], Value::Null, "nothing is waited for");
    printed(&scene.relay, &arguments, 0).await;
    let trail = scene.audit("installation_uninstalled").await;
    assert_eq!(
        trail.len(),
        1,
        "said once more, nothing happens: {trail:#?}"
    );
}

/// Connect says goodbye once, and a site that was deleted, or imported into another, says nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_connect_app_that_went_without_a_word_is_left_by_force() {
    let scene = with_connect().await;
    let (gitlabs, _) = linked(&scene.relay, CLIENT_KEY, 1).await;
    let (code, hint) = scene.refused_removal("").await;
    assert_eq!(code, "installation_has_app");
    let cure = format!("installations remove {CLIENT_KEY} --force");
    assert!(hint.contains(&cure), "{hint}");
    let malformed = format!("/api/v1/installations/{CLIENT_KEY}?force=perhaps");
    let refused = scene.relay.admin("DELETE", &malformed, None, 400).await;
    assert_eq!(refused["error"]["code"], "force_malformed");
    let arguments = ["installations", "remove", CLIENT_KEY, "--force"];
    let said = printed(&scene.relay, &arguments, 0).await;
    assert!(said.contains("if its app is still installed"), "{said}");
    assert!(!said.contains("credentials"), "{said}");
    scene.until_told_the_end(&gitlabs[0]).await;
    let trail = scene.audit("installation_uninstalled").await;
    assert_eq!(
        (&trail[0]["actor"], &trail[0]["note"]),
        (&json!("admin"), &json!("connect (forced)"))
    );
    // It was alive. (The same again, in the same second, would be a repeat.)
    let relay = scene.relay.app_base_url();
    assert_eq!(scene.jira.installed(&relay, SECRET_2).await.status(), 204);
    let back = |links: &[Value]| links[0]["state"] == "connected";
    scene.relay.until_links("back", back).await;
    assert_eq!(scene.installation().await["state"], "installed");
}

/// Connect may end with any of these, and with another way open nothing of it is an instance's to mend.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_shut_way_refuses_waits_if_another_is_open() {
    // A pause is looked at while it holds, and ended by hand.
    let scene = with_connect_and(|settings| {
        settings.set("SPOOL__RETRY_MIN_MS", "60000");
        settings.set("SPOOL__RETRY_MAX_MS", "60000");
    })
    .await;
    let (gitlabs, links) = linked(&scene.relay, CLIENT_KEY, 1).await;
    let refuse = |status: u16| {
        let refused = json!({"mode": "status", "status": status});
        scene.cloud.fault("acme", refused);
    };
    let push = async |number: u64| {
        let build = json!({"build_number": number});
        gitlabs[0].send("builds", build).await["status"].clone()
    };
    refuse(410);
    assert_eq!(push(1).await, 410, "GitLab knows best while there is none");
    scene.cloud.heal("acme");
    let forge = install_forge(&scene).await;
    for (number, status) in [(401_u64, 401_u16), (403, 403), (404, 404), (410, 410)] {
        refuse(status);
        assert_eq!(push(number).await, 202);
        let spool = scene.relay.spool().await;
        assert_eq!(spool["writes"][0]["reason"], "move_awaited", "{spool:#}");
        let pause = &spool["installations"][0]["paused"][0];
        let whole_site = if status == 401 {
            "installation"
        } else {
            "endpoint"
        };
        assert_eq!(pause["scope"], whole_site, "{pause:#}");
        let message = pause["message"].as_str().expect("message");
        assert!(message.contains(&status.to_string()), "{message}");
        assert!(message.contains("move` to forge"), "{message}");
        scene.cloud.heal("acme");
        scene.relay.retry_spool().await;
        scene.relay.until_drained().await;
        scene.built("connect", &links, number);
    }
    // What is not there need not be deleted.
    refuse(404);
    let branch = json!({"branch": "ABC-1-branch-1"});
    let deleted = gitlabs[0].send("branch_delete", branch).await;
    assert_eq!(deleted["status"], 404, "{deleted:#}");
    scene.cloud.heal("acme");
    refuse(410);
    assert_eq!(push(2).await, 202);
    let wish = json!({"to": "forge"});
    scene.relay.admin("POST", MOVE, Some(wish), 200).await;
    scene.relay.until_drained().await;
    scene.built(&forge.provider, &links, 2);
}

/// A write under way while its site moves ends the old way, whose pauses end there.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_word_of_the_old_way_holds_up_nothing() {
    let scene = with_connect().await;
    let (gitlabs, links) = linked(&scene.relay, CLIENT_KEY, 1).await;
    let forge = install_forge(&scene).await;
    let late = json!({
        "mode": "status", "status": 429, "headers": {"Retry-After": "3600"}, "delay_ms": 1500,
        "match": {"path_prefix": "/rest/builds"},
    });
    scene.cloud.fault("acme", late);
    let arrived = |request: &Value| request["path"] == "/rest/builds/0.1/bulk";
    let push = gitlabs[0].sends("builds", json!({"build_number": 1}));
    let moving = async {
        while !scene.cloud.requests("acme").iter().any(arrived) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let wish = json!({"to": "forge"});
        scene.relay.admin("POST", MOVE, Some(wish), 200).await;
    };
    tokio::join!(push, moving);
    scene.relay.until_drained().await;
    scene.built(&forge.provider, &links, 1);
}

/// Nothing was sent yet, so nothing that an operator made is lost.
#[tokio::test(flavor = "multi_thread")]
async fn links_that_reached_nobody_go_on_with_the_connect_apps_record() {
    for by in ["forge", "oauth"] {
        // No attempt is under way when the site gets its other record.
        let scene = Scene::set_with(|settings| {
            settings.set("INSTANCES__RETRY_MIN_MS", "60000");
            settings.set("INSTANCES__RETRY_MAX_MS", "60000");
        })
        .await;
        if by == "forge" {
            scene.cloud.install(&scene.app, &scene.acme, json!({}));
        } else {
            let credential = scene.cloud.credential(&scene.acme, &FAMILIES);
            let wish = oauth::wish(&scene.acme, &credential);
            let path = "/api/v1/installations";
            scene.relay.admin("POST", path, Some(wish), 201).await;
        }
        let known = scene.installation().await["client_key"].clone();
        let mut instance = FakeInstance::start(&scene.relay.url(), "").await;
        instance.go_down().await;
        let link = scene
            .relay
            .link(known.as_str().expect("key"), &instance.url())
            .await;
        assert_eq!(link["state"], "failing", "{link:#}");

        scene.cloud.connect(&scene.acme, APP_KEY, &[SECRET]);
        let relay = scene.relay.app_base_url();
        assert_eq!(scene.jira.installed(&relay, SECRET).await.status(), 204);
        let site = scene.installation().await;
        assert_eq!(site["client_key"], CLIENT_KEY);
        // Credentials are an operator's choice.
        let (in_use, standby) = match by {
            "forge" => ("connect", "forge"),
            _ => ("oauth", "connect"),
        };
        assert_eq!(site["upstream"], in_use);
        assert_eq!(site["standby"], json!([standby]));
        instance.go_up().await;
        let id = link["id"].as_str().expect("id");
        let resend = format!("/api/v1/links/{id}/resend");
        let same = scene.relay.admin("POST", &resend, None, 200).await;
        for name in ["id", "namespace"] {
            assert_eq!(same[name], link[name]);
        }
        instance
            .until("told of the site by Jira's name", |state| {
                state.installations.keys().eq([CLIENT_KEY])
            })
            .await;
        let of = async |key: &str| {
            let path = format!("/api/v1/links?client_key={key}");
            let links = scene.relay.admin("GET", &path, None, 200).await;
            links.as_array().map(Vec::len)
        };
        assert_eq!(of(CLIENT_KEY).await, Some(1));
        assert_eq!(of(known.as_str().expect("key")).await, Some(0));
    }
}

/// What waits for a move does not wait for ever.
#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_moves_is_given_up_for_its_age() {
    let mut scene = with_connect().await;
    let (_gitlabs, links) = linked(&scene.relay, CLIENT_KEY, 1).await;
    install_forge(&scene).await;
    scene.connect_ends().await;
    scene.relay.stop().await;
    let kept = [(CLIENT_KEY, 73), (CLIENT_KEY, 71)];
    spool::keep_since(&scene.relay.settings, &links[0], &kept).await;
    scene.relay.restart().await;
    scene.relay.new_client();
    let one_is_left = |spool: &Value| spool["waiting"] == 1;
    scene.relay.until_spool("one is left", one_is_left).await;
    let given_up = scene.audit("write_given_up").await;
    assert_eq!(given_up[0]["note"], "builds: too_old");
    let too_old = "jira_connect_proxy_spool_given_up_total";
    assert_eq!(scene.relay.metric(too_old, "too_old").await, 1.0);
}

/// A Forge app that carries a Connect app is installed as both, and tells of the Forge part first.
#[tokio::test(flavor = "multi_thread")]
async fn a_connect_app_and_the_forge_app_that_carries_it_are_one_installation() {
    let scene = Scene::set().await;
    let installed = scene.cloud.install(&scene.app, &scene.acme, json!({}));
    assert_eq!(installed.told["delivered"], true, "{}", installed.told);
    assert_eq!(scene.installation().await["upstream"], "forge");
    scene.cloud.connect(&scene.acme, APP_KEY, &[SECRET]);
    let relay = scene.relay.app_base_url();
    assert_eq!(scene.jira.installed(&relay, SECRET).await.status(), 204);
    let site = scene.installation().await;
    assert_eq!(site["client_key"], CLIENT_KEY);
    assert_eq!(site["upstream"], "connect");
    assert_eq!(site["standby"], json!(["forge"]));
    // The next trigger finds the same record.
    let told = scene.cloud.with(&installed, "scheduled", json!({}));
    assert_eq!(told["delivered"], true, "{told}");
    assert_eq!(scene.installation().await["client_key"], CLIENT_KEY);
}

/// What was tried and given up again leaves a record that knows the site's cloud id, which a Connect app never tells.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_after_a_trial_goes_to_the_record_that_lives() {
    let scene = Scene::set().await;
    let credential = scene.cloud.credential(&scene.acme, &FAMILIES);
    let wish = oauth::wish(&scene.acme, &credential);
    let path = "/api/v1/installations";
    let tried = scene
        .relay
        .admin("POST", path, Some(wish.clone()), 201)
        .await;
    let tried = tried["client_key"].as_str().expect("key").to_owned();
    printed(&scene.relay, &["installations", "remove", &tried], 0).await;

    // Another customer's site of the same name is another site, and none of that record's.
    let namesake = scene.cloud.site("namesake");
    let called = json!({"site": "namesake", "base_url": scene.acme.url});
    scene.cloud.ask("rename", called.clone());
    let stranger = scene.cloud.install(&scene.app, &namesake, json!({}));
    assert_eq!(stranger.told["delivered"], true, "{}", stranger.told);
    let of = async |client_key: &str| {
        let all = scene.installations().await;
        let found = all.iter().find(|site| site["client_key"] == client_key);
        found.cloned().unwrap_or_default()
    };
    let ways = |site: &Value| (site["state"].clone(), site["standby"].clone());
    let shut = (json!("uninstalled"), json!([]));
    assert_eq!(ways(&of(&tried).await), shut, "a namesake's app");
    scene.cloud.with(&stranger, "uninstall", json!({}));
    // ... and neither is a Forge app that was here before.
    let before = scene.cloud.install(&scene.app, &scene.acme, json!({}));
    assert_eq!(of(&tried).await["state"], "uninstalled");
    assert_eq!(of(&tried).await["standby"], json!(["forge"]));
    scene.cloud.with(&before, "uninstall", json!({}));
    assert_eq!(ways(&of(&tried).await), shut);

    scene.cloud.connect(&scene.acme, APP_KEY, &[SECRET]);
    let relay = scene.relay.app_base_url();
    assert_eq!(scene.jira.installed(&relay, SECRET).await.status(), 204);
    let (gitlabs, links) = linked(&scene.relay, CLIENT_KEY, 1).await;
    let forge = scene.cloud.install(&scene.app, &scene.acme, json!({}));
    assert_eq!(forge.told["delivered"], true, "{}", forge.told);
    let standing = scene.relay.admin("POST", path, Some(wish), 200).await;
    assert_eq!(standing["client_key"], CLIENT_KEY, "{standing:#}");
    assert_eq!(ways(&of(&tried).await), shut);
    let both = (json!("installed"), json!(["forge", "oauth"]));
    assert_eq!(ways(&of(CLIENT_KEY).await), both);
    scene
        .relay
        .admin("POST", MOVE, Some(json!({"to": "forge"})), 200)
        .await;
    scene.both_push(&forge.provider, &gitlabs, &links, 1).await;
    // The next trigger finds the same record.
    scene.cloud.with(&forge, "scheduled", json!({}));
    assert_eq!(ways(&of(&tried).await), shut);
    assert_eq!(scene.relay.links().await.len(), 1);
}

/// What told of itself under another address is another record, until an operator says that it is one site.
#[tokio::test(flavor = "multi_thread")]
async fn two_records_of_one_site_are_named_and_made_one() {
    let scene = with_connect().await;
    let called = |name: &str| {
        let rename = json!({"site": "acme", "base_url": name});
        scene.cloud.ask("rename", rename);
    };
    called("https://acme.atlassian.net");
    let forge = scene.cloud.install(&scene.app, &scene.acme, json!({}));
    assert_eq!(forge.told["delivered"], true, "{}", forge.told);
    let all = scene.installations().await;
    let twin = all.iter().find(|site| site["upstream"] == "forge");
    let twin = twin.expect("a record of its own")["client_key"].clone();
    let twin = twin.as_str().expect("key");
    let doctor = async || printed(&scene.relay, &["doctor"], 0).await;
    assert!(
        !doctor().await.contains("twin_installations"),
        "nobody can know"
    );
    called(&scene.acme.url);
    scene.cloud.with(&forge, "scheduled", json!({}));
    let said = doctor().await;
    assert!(
        said.contains("twin_installations") && said.contains(twin),
        "{said}"
    );

    let join = async |one: &str, other: &str, code| {
        let arguments = ["installations", "join", one, "--into", other];
        printed(&scene.relay, &arguments, code).await
    };
    let said = join(CLIENT_KEY, twin, 1).await;
    assert!(said.contains("the other way round"), "{said}");
    let said = join(twin, twin, 1).await;
    assert!(said.contains("no_twins"), "{said}");
    let (gitlabs, _) = linked(&scene.relay, twin, 1).await;
    let said = join(twin, CLIENT_KEY, 1).await;
    assert!(said.contains("installation_has_links"), "{said}");
    scene
        .cloud
        .fault("api", json!({"mode": "status", "status": 503}));
    gitlabs[0].sends("builds", json!({})).await;
    printed(&scene.relay, &["links", "remove", &gitlabs[0].url], 0).await;
    scene.relay.until_links("gone", <[Value]>::is_empty).await;
    let said = join(twin, CLIENT_KEY, 1).await;
    assert!(said.contains("writes_wait"), "{said}");
    scene.cloud.heal("api");
    scene.relay.until_drained().await;

    let (gitlabs, links) = linked(&scene.relay, CLIENT_KEY, 1).await;
    let said = join(twin, CLIENT_KEY, 0).await;
    assert!(
        said.contains("connect is used, and forge stands by"),
        "{said}"
    );
    assert_eq!(scene.audit("installations_joined").await.len(), 1);
    // The next trigger finds the same record.
    let told = scene.cloud.with(&forge, "scheduled", json!({}));
    assert_eq!(told["delivered"], true, "{told}");
    assert_eq!(scene.installation().await["standby"], json!(["forge"]));
    assert!(!doctor().await.contains("twin_installations"));
    let wish = json!({"to": "forge"});
    scene.relay.admin("POST", MOVE, Some(wish), 200).await;
    scene.both_push(&forge.provider, &gitlabs, &links, 1).await;
}

fn purge_path(link: &Value, how: &str) -> String {
    format!(
        "/api/v1/links/{}?purge={how}",
        link["id"].as_str().expect("id")
    )
}

/// What is left of a link's builds.
fn of_link(scene: &Scene, provider: &str, link: &Value) -> usize {
    let ns = link["namespace"].as_str().expect("namespace");
    let keys = scene.cloud.keys(&scene.acme, provider, "builds");
    keys.iter().filter(|key| key.starts_with(ns)).count()
}

/// Connect has ended, which the relay hears from nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_says_which_way_is_dead_and_goes_on_without_it() {
    let scene = with_connect().await;
    let (gitlabs, links) = linked(&scene.relay, CLIENT_KEY, 1).await;
    let forge = install_forge(&scene).await;
    scene.both_push("connect", &gitlabs, &links, 1).await;
    let wish = json!({"to": "forge"});
    scene.relay.admin("POST", MOVE, Some(wish), 200).await;
    scene.both_push(&forge.provider, &gitlabs, &links, 2).await;
    scene
        .cloud
        .fault("acme", json!({"mode": "status", "status": 401}));
    let path = purge_path(&links[0], "true");
    scene.relay.admin("DELETE", &path, None, 202).await;
    let failed = |links: &[Value]| links[0]["purge"]["last_error"].is_object();
    let now = scene.relay.until_links("it fails", failed).await;
    let problem = &now[0]["purge"]["last_error"];
    let text = |name: &str| problem[name].as_str().expect("text").to_owned();
    assert!(
        text("message").starts_with("through connect: "),
        "{problem:#}"
    );
    let cure = format!("installations remove {CLIENT_KEY} --upstream connect");
    assert!(text("hint").contains(&cure), "{problem:#}");
    assert_eq!(
        of_link(&scene, &forge.provider, &links[0]),
        0,
        "the living is not kept waiting"
    );
    let arguments = [
        "installations",
        "remove",
        CLIENT_KEY,
        "--upstream",
        "connect",
    ];
    printed(&scene.relay, &arguments, 0).await;
    scene.relay.until_links("purged", <[Value]>::is_empty).await;
    let trail = scene.audit("link_data_deleted").await;
    let note = trail[0]["note"].as_str().expect("note");
    assert!(note.ends_with("of what was sent through forge"), "{note}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_that_cannot_end_is_given_up() {
    let scene = with_connect().await;
    let (mut gitlabs, links) = linked(&scene.relay, CLIENT_KEY, 1).await;
    scene.both_push("connect", &gitlabs, &links, 1).await;
    let abandon = purge_path(&links[0], "abandon");
    let refused = scene.relay.admin("DELETE", &abandon, None, 409).await;
    assert_eq!(refused["error"]["code"], "link_not_being_purged");
    scene
        .cloud
        .fault("acme", json!({"mode": "status", "status": 401}));
    // The instance is not told either, so that there is something to come back to.
    gitlabs[0].mode("error500").await;
    let path = purge_path(&links[0], "true");
    scene.relay.admin("DELETE", &path, None, 202).await;
    let failed = |links: &[Value]| links[0]["purge"]["last_error"].is_object();
    let now = scene.relay.until_links("it fails", failed).await;
    let id = links[0]["id"].as_str().expect("id");
    let cure = format!("links remove {id} --abandon-purge");
    let hint = now[0]["purge"]["last_error"]["hint"]
        .as_str()
        .expect("hint");
    assert!(hint.contains(&cure), "{hint}");
    // A Jira admin is not told what an operator types.
    let session = Session::enter(&scene.relay, CLIENT_KEY).await;
    let shown = async || session.call("GET", "links", None, 200).await["links"][0]["purge"].clone();
    let hint = shown().await["last_error"]["hint"].to_string();
    assert!(hint.contains("the operator of the relay"), "{hint}");
    for query in ["?force=true", ""] {
        let (code, hint) = scene.refused_removal(query).await;
        if query.is_empty() {
            assert_eq!(code, "installation_has_app");
        } else {
            assert_eq!(code, "link_being_purged");
            assert!(hint.contains(&cure), "{hint}");
        }
    }

    let arguments = ["links", "remove", id, "--abandon-purge"];
    let said = printed(&scene.relay, &arguments, 0).await;
    assert!(
        said.contains("what was not deleted yet stays in Jira"),
        "{said}"
    );
    assert_eq!(scene.relay.links().await[0]["purge"]["state"], "abandoned");
    assert_eq!(shown().await, Value::Null);
    let trail = scene.audit("link_purge_abandoned").await;
    let ns = links[0]["namespace"].as_str().expect("namespace");
    assert!(trail[0]["note"].as_str().expect("note").contains(ns));
    // Linked again, nothing of it is hit by a deletion that may be on its way yet.
    gitlabs[0].mode("ok").await;
    scene.cloud.heal("acme");
    let again = scene.relay.link(CLIENT_KEY, &gitlabs[0].url).await;
    assert_eq!(
        (&again["id"], &again["purge"]),
        (&links[0]["id"], &Value::Null)
    );
    assert_ne!(again["namespace"], links[0]["namespace"]);
    scene.relay.retry_spool().await;
    scene.both_push("connect", &gitlabs, &[again], 2).await;
    assert!(of_link(&scene, "connect", &links[0]) > 0);

    // ... and gone for good, with what was not deleted.
    gitlabs[0].mode("error500").await;
    scene
        .cloud
        .fault("acme", json!({"mode": "status", "status": 401}));
    scene.relay.admin("DELETE", &path, None, 202).await;
    scene.relay.until_links("it fails", failed).await;
    scene.relay.admin("DELETE", &abandon, None, 202).await;
    gitlabs[0].mode("ok").await;
    scene.relay.until_links("gone", <[Value]>::is_empty).await;
    gitlabs.clear();
}

/// Nobody can delete any more what came with credentials that are gone; what the Forge app sent, it can.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_way_that_stands_by_sent_can_be_deleted_after_the_end() {
    let scene = Scene::set().await;
    let credential = scene.cloud.credential(&scene.acme, &FAMILIES);
    let wish = oauth::wish(&scene.acme, &credential);
    let path = "/api/v1/installations";
    let added = scene.relay.admin("POST", path, Some(wish), 201).await;
    let key = added["client_key"].as_str().expect("key");
    let (gitlabs, links) = linked(&scene.relay, key, 1).await;
    let forge = scene.cloud.install(&scene.app, &scene.acme, json!({}));
    for (to, provider) in [("forge", &forge.provider), ("oauth", &credential.provider)] {
        printed(&scene.relay, &["installations", "move", key, "--to", to], 0).await;
        scene.both_push(provider, &gitlabs, &links, 1).await;
    }
    printed(
        &scene.relay,
        &["installations", "remove", key, "--force"],
        0,
    )
    .await;
    scene.until_told_the_end(&gitlabs[0]).await;
    let path = purge_path(&links[0], "true");
    scene.relay.admin("DELETE", &path, None, 202).await;
    scene.relay.until_links("purged", <[Value]>::is_empty).await;
    assert_eq!(of_link(&scene, &forge.provider, &links[0]), 0);
    assert!(of_link(&scene, &credential.provider, &links[0]) > 0);
}

/// Nobody can know that Jira has taken a write whose answer was lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_answer_was_lost_is_sent_the_new_way_too() {
    let scene = with_connect().await;
    let (gitlabs, links) = linked(&scene.relay, CLIENT_KEY, 1).await;
    let forge = install_forge(&scene).await;
    let lost = json!({"mode": "status_after_store", "status": 503, "match": {"method": "POST"}});
    scene.cloud.fault("acme", lost);
    gitlabs[0].sends("builds", json!({"build_number": 5})).await;
    scene.built("connect", &links, 5);
    assert_eq!(scene.relay.spool().await["waiting"], 1);
    let wish = json!({"to": "forge"});
    scene.relay.admin("POST", MOVE, Some(wish), 200).await;
    scene.relay.until_drained().await;
    for provider in ["connect", &forge.provider] {
        scene.built(provider, &links, 5);
    }
    // Both can be deleted.
    scene.cloud.heal("acme");
    let path = purge_path(&links[0], "true");
    scene.relay.admin("DELETE", &path, None, 202).await;
    scene.relay.until_links("purged", <[Value]>::is_empty).await;
    for provider in ["connect", &forge.provider] {
        assert_eq!(of_link(&scene, provider, &links[0]), 0);
    }
}

/// kill -9 somewhere in a move: the site is on one way or on the other, and all that it has is with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_move_is_done_whole_or_not_at_all_whenever_the_relay_dies() {
    let cloud = Cloud::start();
    let acme = cloud.site("acme");
    let app = cloud.ask("app", json!({}))["app_id"].clone();
    let app = app.as_str().expect("app").to_owned();
    let mut jira = FakeJira::start(CLIENT_KEY).await;
    jira.base_url.clone_from(&acme.url);
    let folder = tempfile::tempdir().expect("folder");
    let mut settings = Settings::new(folder.path(), &jira);
    cloud.aim(&mut settings, &app, &[&acme]);
    cloud.ask("app", json!({"app_id": app, "remote": settings.url()}));
    cloud.connect(&acme, APP_KEY, &[SECRET]);
    let client = client();
    let mut relay = RelayProcess::start(&settings, &client).await;
    let token = settings.know_secrets();
    let (admin_url, base) = (settings.admin_url(), settings.app_base_url());
    let ask = async |method: &str, path: &str, body: Option<Value>| {
        let path = format!("/api/v1/{path}");
        let answer = admin(&client, &admin_url, &token, method, &path, body).await?;
        let answer = checked(answer);
        Some((
            answer.status().as_u16(),
            serde_json::from_slice::<Value>(answer.body()).expect("JSON"),
        ))
    };
    let read = async |path: &str| ask("GET", path, None).await.expect("an answer").1;
    assert_eq!(jira.installed(&base, SECRET).await.status(), 204);
    let forge = cloud.install(&app, &acme, json!({}));
    assert_eq!(forge.told["delivered"], true, "{}", forge.told);
    let gitlab = GitLab::start_for(&settings.url(), "", &[]);
    let wish = json!({"client_key": CLIENT_KEY, "instance_url": gitlab.url});
    let linked = ask("POST", "links", Some(wish)).await.expect("an answer");
    assert_eq!(linked.1["state"], "connected", "{linked:?}");
    for door in ["acme", "api"] {
        let away = json!({"mode": "status", "status": 503, "match": {"method": "POST"}});
        cloud.fault(door, away);
    }
    for number in 1..=5 {
        gitlab
            .sends("builds", json!({"build_number": number}))
            .await;
    }

    let (mut in_use, mut moves, mut random) = ("connect", 0, 0x9e37_79b9_7f4a_7c15_u64);
    for round in 0..12 {
        let to = if in_use == "connect" {
            "forge"
        } else {
            "connect"
        };
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let life = Duration::from_micros((random >> 33) % 25_000);
        let path = format!("installations/{CLIENT_KEY}/move");
        let moving = ask("POST", &path, Some(json!({"to": to})));
        // Every fourth may end, so that it is known to have been done.
        let life = if round % 4 == 3 {
            Duration::from_secs(30)
        } else {
            life
        };
        let told = tokio::time::timeout(life, moving).await;
        relay.kill();
        relay = RelayProcess::start(&settings, &client).await;
        let site = read("installations").await[0].clone();
        let now = site["upstream"].as_str().expect("upstream").to_owned();
        if let Ok(Some((status, answer))) = told {
            assert_eq!((status, &*now), (200, to), "acknowledged: {answer:#}");
        }
        if now == to {
            (in_use, moves) = (to, moves + 1);
        }
        let other = if in_use == "connect" {
            "forge"
        } else {
            "connect"
        };
        assert_eq!(
            (&site["state"], &site["upstream"], &site["standby"]),
            (&json!("installed"), &json!(in_use), &json!([other]))
        );
        let trail = read("audit?limit=1000").await;
        let moved = trail.as_array().expect("trail").iter();
        let moved = moved.filter(|entry| entry["action"] == "installation_moved");
        assert_eq!(moved.count(), moves, "a move and its entry are one");
        let links = read("links").await;
        for name in ["id", "namespace", "mode", "state", "generation"] {
            assert_eq!(links[0][name], linked.1[name], "{name}");
        }
        assert_eq!(links.as_array().map(Vec::len), Some(1));
        assert_eq!(read("spool").await["waiting"], 5);
    }
    assert!(moves >= 3, "too few moves were done: {moves}");
    for door in ["acme", "api"] {
        cloud.heal(door);
    }
    ask("POST", "spool/retry", None).await;
    let deadline = std::time::Instant::now() + crate::harness::PATIENCE;
    while read("spool").await["waiting"] != 0 {
        assert!(std::time::Instant::now() < deadline, "it does not drain");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let ns = linked.1["namespace"].as_str().expect("namespace");
    let expected: Vec<String> = (1..=5).map(|number| format!("{ns}-700/{number}")).collect();
    let none: [String; 0] = [];
    let (used, unused) = match in_use {
        "connect" => ("connect", &*forge.provider),
        _ => (&*forge.provider, "connect"),
    };
    assert_eq!(cloud.keys(&acme, used, "builds"), expected);
    assert_eq!(cloud.keys(&acme, unused, "builds"), none);
    drop(relay);
    assert_eq!(cloud.violations(), json!([]));
}
