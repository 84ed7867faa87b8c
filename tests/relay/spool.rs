//! Jira can't take it now: the write is safe before the instance hears so, and gets there in order.

use std::time::{Duration, Instant};

use jira_connect_proxy::{
    domain::{
        ClientKey, Family, JiraCall, LinkId, Namespace, SpoolId, SpooledWrite, spooled::Touches,
    },
    metrics::Metrics,
    store::StoreOwner,
};
use serde_json::{Value, json};

use crate::{
    fakes::http::client,
    harness::{PATIENCE, RelayProcess, SECRET_2, Settings},
    stage::{CLIENT_KEY, JiraSite, Stage},
};

/// Longer than any test: an end to such a pause is asked for.
const PAUSE_SECS: &str = "3600";

/// The build numbers of the submitted builds, in the order in which Jira took them.
fn taken(site: &JiraSite) -> Vec<i64> {
    let requests = site.requests();
    let builds = requests
        .iter()
        .filter(|r| r["path"] == "/rest/builds/0.1/bulk" && r["status"] == 202);
    builds
        .flat_map(|r| r["body"]["builds"].as_array().cloned().unwrap_or_default())
        .filter_map(|build| build["buildNumber"].as_i64())
        .collect()
}

/// Ends all pauses, and waits for what they held back.
async fn drain(stage: &Stage) {
    stage.relay.retry_spool().await;
    stage.until_drained().await;
}

async fn build(stage: &Stage, instance: usize, number: i64) {
    stage.gitlabs[instance]
        .sends("builds", json!({"build_number": number}))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_trouble_of_jiras_is_outlived_in_order() {
    let stage = Stage::set(1).await;
    let mut number = 0;
    for fault in [
        json!({"mode": "status", "status": 429, "headers": {"Retry-After": "1"}}),
        json!({"mode": "status", "status": 502}),
        json!({"mode": "status", "status": 503, "headers": {"Retry-After": "1"}}),
        json!({"mode": "status", "status": 504}),
        json!({"mode": "status", "status": 408}),
        // What a renamed site says to who follows its redirect.
        json!({"mode": "status", "status": 405}),
        json!({"mode": "status", "status": 302, "headers": {"Location": "https://renamed.atlassian.net/"}}),
        json!({"mode": "reset"}),
        json!({"mode": "silence"}),
        json!({"mode": "reset_after_store"}),
    ] {
        stage.site.fault(fault.clone());
        for _ in 0..3 {
            number += 1;
            build(&stage, 0, number).await;
        }
        let spool = stage.spool().await;
        assert_eq!(spool["waiting"], 3, "{fault}: {spool:#}");
        assert!(
            spool["writes"][0]["reason"].is_string()
                && !spool["installations"].as_array().expect("list").is_empty()
        );
        stage.site.heal();
        stage.until_drained().await;
        let link = stage
            .relay
            .admin("GET", &stage.link_path(0), None, 200)
            .await;
        assert_eq!(link["state"], "connected");
    }
    let mut seen: Vec<i64> = taken(&stage.site);
    seen.dedup();
    assert_eq!(seen, (1..=number).collect::<Vec<_>>());
    assert_eq!(stage.site.violations(), json!([]));
    assert_eq!(
        stage
            .relay
            .metric("jira_connect_proxy_spool_given_up_total", "")
            .await,
        0.0
    );
    assert!(
        stage
            .relay
            .metric("jira_connect_proxy_spooled_total", "")
            .await
            >= 30.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_survives_kill_9() {
    let mut stage = Stage::set(1).await;
    // The same folder in a process of its own, to be killed.
    stage.relay.stop().await;
    let Stage {
        site,
        relay,
        gitlabs,
        ..
    } = &stage;
    let settings = &relay.settings;
    site.fault(json!({"mode": "status", "status": 503}));
    let process = RelayProcess::start(settings, &client()).await;
    for number in 1..=5 {
        gitlabs[0]
            .sends("builds", json!({"build_number": number}))
            .await;
    }
    gitlabs[0]
        .sends("branch_delete", json!({"branch": "gone"}))
        .await;
    process.kill();
    site.heal();
    site.clear_requests();
    let _process = RelayProcess::start(settings, &client()).await;
    let deadline = Instant::now() + PATIENCE;
    while site
        .requests()
        .iter()
        .filter(|r| r["status"] == 202)
        .count()
        < 6
    {
        assert!(Instant::now() < deadline, "{:#}", json!(site.requests()));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(taken(site), [1, 2, 3, 4, 5]);
    assert_eq!(site.requests()[5]["method"], "DELETE");
    assert_eq!(site.violations(), json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_holds_back_what_its_reason_names() {
    let stage = Stage::set(2).await;
    let throttled = |reason: &str, path: &str| {
        json!({"mode": "status", "status": 429, "times": 1, "match": {"path_prefix": path},
               "headers": {"Retry-After": PAUSE_SECS, "RateLimit-Reason": reason}})
    };
    // Too many calls a second to one endpoint: the others go on, for both instances.
    stage
        .site
        .fault(throttled("jira-burst-based", "/rest/builds"));
    build(&stage, 0, 1).await;
    build(&stage, 1, 2).await;
    stage.gitlabs[1].sends("devinfo", json!({})).await;
    let spool = stage.spool().await;
    assert_eq!(spool["waiting"], 2, "{spool:#}");
    assert_eq!(spool["installations"][0]["paused"][0]["scope"], "endpoint");
    assert_eq!(spool["installations"][0]["paused"][0]["endpoint"], "builds");
    drain(&stage).await;

    // The tenant's quota is shared by all of its instances.
    stage
        .site
        .fault(throttled("jira-quota-tenant-based", "/rest/builds"));
    build(&stage, 0, 3).await;
    stage.gitlabs[1]
        .sends("devinfo", json!({"sequence": 5}))
        .await;
    let spool = stage.spool().await;
    assert_eq!(spool["waiting"], 2, "{spool:#}");
    assert_eq!(
        spool["installations"][0]["paused"][0]["scope"],
        "installation"
    );
    let user = stage.gitlabs[0]
        .send("user", json!({"account_id": "a"}))
        .await;
    assert_eq!(
        user["status"], 429,
        "reads respect it too, and are never kept: {user:#}"
    );
    drain(&stage).await;

    // The app's quota is shared by all sites.
    stage
        .site
        .fault(throttled("jira-quota-global-based", "/rest/builds"));
    build(&stage, 0, 4).await;
    let spool = stage.spool().await;
    assert_eq!(spool["paused"][0]["scope"], "app", "{spool:#}");
    drain(&stage).await;

    // One issue that had too many writes holds back what is about that issue.
    stage.site.clear_requests();
    stage
        .site
        .fault(throttled("jira-per-issue-on-write", "/rest/builds"));
    stage.gitlabs[0]
        .sends("builds", json!({"build_number": 5, "issue_key": "HOT-1"}))
        .await;
    stage.gitlabs[0]
        .sends("builds", json!({"build_number": 6, "issue_key": "HOT-1"}))
        .await;
    stage.gitlabs[0]
        .sends("builds", json!({"build_number": 7, "issue_key": "CALM-1"}))
        .await;
    drain(&stage).await;
    assert_eq!(taken(&stage.site), [7, 5, 6]);
    assert_eq!(stage.site.violations(), json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_write_takes_the_place_of_one_that_waits() {
    let stage = Stage::set(1).await;
    let gitlab = &stage.gitlabs[0];
    stage
        .site
        .fault(json!({"mode": "status", "status": 503, "headers": {"Retry-After": PAUSE_SECS}}));
    for sequence in [10, 30, 20] {
        gitlab
            .sends("builds", json!({"build_number": 1, "sequence": sequence}))
            .await;
    }
    gitlab
        .sends("builds", json!({"build_number": 2, "sequence": 5}))
        .await;
    let spool = stage.spool().await;
    // 30 takes the place of 10, if it gets through; 20 is older and stays behind it; 2 is another build.
    let states: Vec<&str> = spool["writes"]
        .as_array()
        .expect("writes")
        .iter()
        .filter_map(|write| write["state"].as_str())
        .collect();
    assert_eq!(
        states.iter().filter(|state| **state == "replaced").count(),
        1,
        "{spool:#}"
    );
    assert_eq!(states.len(), 4);
    assert_eq!(
        stage
            .relay
            .metric("jira_connect_proxy_spool_superseded_total", "")
            .await,
        1.0
    );
    stage.site.heal();
    drain(&stage).await;
    let builds = stage.site.entities("builds");
    let key = format!("{}-700/1", stage.namespace(0));
    assert_eq!(builds[&key]["seq"], 30, "{builds:#}");
    assert_eq!(builds[&key]["history"], json!([30]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_keeps_its_place() {
    let stage = Stage::set(1).await;
    let gitlab = &stage.gitlabs[0];
    let branch = json!({"branch": "ABC-1-branch-1"});
    gitlab.sends("devinfo", json!({"sequence": 1})).await;
    // The deletion fails first, then the branch is pushed again: the push must come last.
    stage.site.fault(json!({"mode": "status", "status": 503, "times": 1, "match": {"method": "DELETE"}, "headers": {"Retry-After": PAUSE_SECS}}));
    gitlab.sends("branch_delete", branch.clone()).await;
    gitlab.sends("devinfo", json!({"sequence": 2})).await;
    drain(&stage).await;
    let count = |keys: Vec<String>| keys.iter().filter(|key| key.contains("/branch/")).count();
    assert_eq!(count(stage.site.keys("devinfo")), 1);
    // A push that Jira is silent about is under way when the branch is deleted: the deletion must come last.
    stage
        .site
        .fault(json!({"mode": "silence", "times": 1, "match": {"method": "POST"}}));
    stage.site.clear_requests();
    let options = json!({"sequence": 3});
    let (pushed, deleted) = tokio::join!(gitlab.send("devinfo", options), async {
        let deadline = Instant::now() + PATIENCE;
        while stage.site.requests().is_empty() {
            assert!(Instant::now() < deadline, "nothing was pushed");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        gitlab.send("branch_delete", branch).await
    });
    assert_eq!(
        (&pushed["status"], &deleted["status"]),
        (&json!(202), &json!(202))
    );
    stage.until_drained().await;
    assert_eq!(
        count(stage.site.keys("devinfo")),
        0,
        "{:?}",
        stage.site.keys("devinfo")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_take_turns_when_jira_throttles() {
    let stage = Stage::set(2).await;
    stage
        .site
        .fault(json!({"mode": "status", "status": 429, "headers": {"Retry-After": "1"}}));
    for number in 1..=40 {
        build(&stage, 0, number).await;
    }
    for number in 101..=103 {
        build(&stage, 1, number).await;
    }
    stage.site.clear_requests();
    stage.site.heal();
    stage.until_drained().await;
    let order = taken(&stage.site);
    let last = order
        .iter()
        .position(|number| *number == 103)
        .expect("taken");
    assert!(
        last < 12,
        "the pushes of one waited for the synchronisation of the other: {order:?}"
    );
    let of_first: Vec<_> = order.into_iter().filter(|number| *number < 100).collect();
    assert_eq!(of_first, (1..=40).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_spool_acknowledges_nothing_and_breaks_the_connection() {
    let stage = Stage::set_with(1, |settings| {
        settings.set("LIMITS__REST_BODY_MAX_BYTES", "16384");
        settings.set("SPOOL__INSTALLATION_MAX_BYTES", "16384");
    })
    .await;
    let gitlab = &stage.gitlabs[0];
    stage.site.fault(json!({"mode": "status", "status": 503}));
    let big = json!({"state": "x".repeat(9000), "build_number": 1});
    gitlab.sends("builds", big).await;
    let refused = gitlab
        .send(
            "builds",
            json!({"state": "x".repeat(9000), "build_number": 2}),
        )
        .await;
    // An error status would be the end of it for GitLab; a broken connection is tried again.
    assert!(refused["error"].is_string(), "{refused:#}");
    assert_eq!(stage.spool().await["waiting"], 1);
    assert!(
        stage
            .relay
            .metric("jira_connect_proxy_rejections_total", "spool_full")
            .await
            >= 1.0
    );
    stage.site.heal();
    stage.until_drained().await;
    gitlab
        .sends(
            "builds",
            json!({"state": "x".repeat(9000), "build_number": 2}),
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_jira_finally_refuses_is_given_up_loudly_and_holds_up_nobody() {
    let stage = Stage::set(1).await;
    stage.site.fault(
        json!({"mode": "status", "status": 503, "times": 1, "headers": {"Retry-After": PAUSE_SECS}}),
    );
    build(&stage, 0, 1).await;
    build(&stage, 0, 2).await;
    stage.site.fault(json!({"mode": "status", "status": 400, "body": [{"message": "no such thing"}], "match": {"body_contains": "\"buildNumber\":1"}}));
    drain(&stage).await;
    assert_eq!(taken(&stage.site), [2]);
    assert_eq!(
        stage
            .relay
            .metric("jira_connect_proxy_spool_given_up_total", "refused")
            .await,
        1.0
    );
    let audit = stage.relay.admin("GET", "/api/v1/audit", None, 200).await;
    assert!(audit.to_string().contains("write_given_up"), "{audit:#}");
}

/// Connect's end may look like this. What was acknowledged could still go another way.
#[tokio::test(flavor = "multi_thread")]
async fn a_way_that_is_gone_takes_nothing_with_it() {
    let stage = Stage::set(1).await;
    let unwell = json!({"mode": "status", "status": 503, "times": 1});
    stage.site.fault(unwell);
    stage.site.fault(json!({"mode": "status", "status": 410}));
    build(&stage, 0, 1).await;
    let held = |spool: &Value| {
        let pause = &spool["installations"][0]["paused"][0];
        pause["scope"] == "endpoint" && pause["message"].to_string().contains("410 Gone")
    };
    stage.relay.until_spool("held", held).await;
    stage.site.heal();
    stage.until_drained().await;
    assert_eq!(taken(&stage.site), [1]);
    let given_up = "jira_connect_proxy_spool_given_up_total";
    assert_eq!(stage.relay.metric(given_up, "").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_jira_does_not_take_waits_for_the_next_installed() {
    let stage = Stage::set_with(1, |settings| {
        settings.set("SPOOL__RETRY_MIN_MS", "60000");
        settings.set("SPOOL__RETRY_MAX_MS", "60000");
    })
    .await;
    stage.site.fault(
        json!({"mode": "status", "status": 503, "times": 1, "headers": {"Retry-After": "0"}}),
    );
    stage.site.secrets(&[SECRET_2]);
    build(&stage, 0, 1).await;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let spool = stage.spool().await;
        if spool["installations"][0]["paused"][0]["reason"] == "unauthorized" {
            break;
        }
        assert!(Instant::now() < deadline, "{spool:#}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let started = Instant::now();
    stage
        .jira
        .installed(&stage.relay.app_base_url(), SECRET_2)
        .await;
    stage.until_drained().await;
    assert!(
        started.elapsed() < Duration::from_secs(40),
        "it waited for its pause"
    );
    assert_eq!(taken(&stage.site), [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_can_have_everything_tried_now() {
    let stage = Stage::set(1).await;
    stage.site.fault(
        json!({"mode": "status", "status": 429, "times": 1, "headers": {"Retry-After": "3600"}}),
    );
    build(&stage, 0, 1).await;
    let retried = stage.relay.retry_spool().await;
    assert_eq!(retried["waiting"], 1, "{retried:#}");
    stage.until_drained().await;
    assert_eq!(taken(&stage.site), [1]);
}

/// Keeps writes as the relay would have done so many hours ago: client key, hours. It must not run.
pub async fn keep_since(settings: &Settings, link: &Value, writes: &[(&str, i64)]) {
    let config = settings.config();
    let metrics = std::sync::Arc::new(Metrics::new().expect("metrics"));
    let owner = tokio::task::spawn_blocking(move || StoreOwner::open(&config.store, metrics))
        .await
        .expect("task")
        .expect("store");
    let now = crate::fakes::jira::now();
    let text = |name: &str| link[name].as_str().expect("text");
    for (id, (client_key, hours)) in (1..).zip(writes) {
        let write = SpooledWrite {
            id: SpoolId(id),
            client_key: ClientKey::parse(client_key).expect("key"),
            link: LinkId::parse(text("id")).expect("id"),
            namespace: Namespace::parse(text("namespace")).expect("namespace"),
            call: JiraCall::Submit(Family::Builds),
            bytes: 2,
            touches: Touches::default(),
            received_at: now - jiff::SignedDuration::from_hours(*hours),
            request_id: "test".to_owned(),
            reason: "unavailable".to_owned(),
        };
        let kept = owner.store().spool(write, "{}".into()).await;
        kept.expect("spool");
    }
    tokio::task::spawn_blocking(|| owner.close())
        .await
        .expect("task")
        .expect("close");
}

/// Writes that are too old, or for a site that is gone, end with an error in the log and the audit trail.
#[tokio::test(flavor = "multi_thread")]
async fn what_waited_too_long_is_given_up() {
    let mut stage = Stage::set(1).await;
    stage.relay.stop().await;
    let kept = [(CLIENT_KEY, 73), (CLIENT_KEY, 71), ("gone", 1)];
    keep_since(&stage.relay.settings, &stage.links[0], &kept).await;
    stage.site.clear_requests();
    stage.relay.restart().await;
    stage.until_drained().await;
    assert_eq!(
        stage.site.requests().len(),
        1,
        "only the one that is young enough"
    );
    let given_up = |reason| {
        stage
            .relay
            .metric("jira_connect_proxy_spool_given_up_total", reason)
    };
    assert_eq!(
        (given_up("too_old").await, given_up("uninstalled").await),
        (1.0, 1.0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_outlives_a_jira_that_is_down_and_takes_what_waits_with_it() {
    let stage = Stage::set(2).await;
    for gitlab in &stage.gitlabs {
        gitlab.sends("builds", json!({"build_number": 1})).await;
    }
    stage.site.fault(json!({"mode": "status", "status": 503}));
    build(&stage, 0, 2).await;
    let path = format!("{}?purge=true", stage.link_path(0));
    stage.relay.admin("DELETE", &path, None, 202).await;
    let links = stage
        .relay
        .until_links("the instance is told, Jira is not", |links| {
            links.iter().any(|link| {
                link["acknowledged"] == "uninstalled" && link["purge"]["last_error"].is_object()
            })
        })
        .await;
    let link = links
        .iter()
        .find(|link| link["purge"].is_object())
        .expect("link");
    assert_eq!(
        (
            &link["purge"]["state"],
            &link["purge"]["last_error"]["code"]
        ),
        (&json!("pending"), &json!("unavailable")),
        "{link:#}"
    );
    let wish = json!({"client_key": CLIENT_KEY, "instance_url": stage.gitlabs[0].url});
    let refused = stage
        .relay
        .try_admin("POST", "/api/v1/links", Some(wish.clone()))
        .await;
    assert_eq!(
        (
            refused.status().as_u16(),
            crate::harness::code(&refused).as_str()
        ),
        (409, "link_being_purged")
    );
    stage.site.heal();
    stage
        .relay
        .until_links("it is gone", |links| links.len() == 1)
        .await;
    assert_eq!(
        stage.site.keys("builds"),
        [format!("{}-700/1", stage.namespace(1))]
    );
    stage.until_drained().await;
    // It can come back, under another namespace.
    let link = stage
        .relay
        .admin("POST", "/api/v1/links", Some(wish), 201)
        .await;
    assert_ne!(link["namespace"].as_str(), Some(stage.namespace(0)));
}

/// Jira is back, the backlog is being replayed, and in the middle of it the link goes with its data.
#[tokio::test(flavor = "multi_thread")]
async fn a_purge_beside_replays_leaves_nothing() {
    let stage = Stage::set(2).await;
    stage
        .site
        .fault(json!({"mode": "status", "status": 503, "headers": {"Retry-After": "1"}}));
    for number in 1..=30 {
        build(&stage, 0, number).await;
    }
    build(&stage, 1, 1).await;
    stage.site.heal();
    stage.site.fault(json!({"mode": "delay", "delay_ms": 50}));
    let deadline = Instant::now() + PATIENCE;
    while taken(&stage.site).len() < 3 {
        assert!(Instant::now() < deadline, "nothing is replayed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let path = format!("{}?purge=true", stage.link_path(0));
    stage.relay.admin("DELETE", &path, None, 202).await;
    stage
        .relay
        .until_links("it is gone", |links| links.len() == 1)
        .await;
    stage.site.heal();
    stage.until_drained().await;
    let left = stage.site.keys("builds");
    assert_eq!(left, [format!("{}-700/1", stage.namespace(1))]);
    // A deletion that Jira does not allow is not done.
    stage
        .site
        .fault(json!({"mode": "status", "status": 403, "match": {"method": "DELETE"}}));
    let path = format!("{}?purge=true", stage.link_path(1));
    stage.relay.admin("DELETE", &path, None, 202).await;
    stage
        .relay
        .until_links("Jira says no", |links| {
            links
                .iter()
                .any(|link| link["purge"]["last_error"]["code"] == "jira_error")
        })
        .await;
    stage.site.heal();
    stage.relay.until_links("it is gone", <[_]>::is_empty).await;
    assert!(stage.site.keys("builds").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_instance_can_not_take_all_the_room() {
    let stage = Stage::set_with(2, |settings| {
        settings.set("LIMITS__REST_BODY_MAX_BYTES", "16384");
        settings.set("SPOOL__INSTALLATION_MAX_BYTES", "40000");
    })
    .await;
    stage.site.fault(json!({"mode": "status", "status": 503}));
    let mut kept = 0;
    for number in 1..=20 {
        let sent = stage.gitlabs[0]
            .send("builds", json!({"build_number": number}))
            .await;
        kept += usize::from(sent["status"] == 202);
    }
    assert!((3..15).contains(&kept), "{kept} of 20 were kept");
    build(&stage, 1, 1).await;
    stage.site.heal();
    stage.until_drained().await;
}
