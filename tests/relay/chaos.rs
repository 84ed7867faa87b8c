//! Jira flaps between 202, 429, 503, resets and silence while two instances push for a minute and the relay is killed
//! three times: every acknowledged write reaches Jira, in order per entity, and no older number ever wins.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    fakes::http::client,
    harness::{PATIENCE, RelayProcess},
    stage::Stage,
};

const PUSHING_FOR: Duration = Duration::from_secs(60);
const KILLS: u32 = 3;

/// What an instance was told is safe, by the key that Jira knows the entity under: its number, or that it is gone.
type Promised = Arc<Mutex<BTreeMap<String, Option<u64>>>>;

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_write_reaches_jira_in_order() {
    let mut stage = Stage::set(2).await;
    stage.relay.stop().await;
    let settings = &stage.relay.settings;
    let mut process = RelayProcess::start(settings, &client()).await;
    stage.site.ask(json!({"cmd": "flap", "period_ms": 700, "modes": [
        {"mode": "ok"},
        {"mode": "status", "status": 429, "headers": {"Retry-After": "1", "RateLimit-Reason": "jira-burst-based"}},
        {"mode": "ok"},
        {"mode": "status", "status": 503},
        {"mode": "reset"},
        {"mode": "ok"},
        {"mode": "reset_after_store"},
        {"mode": "status", "status": 429, "headers": {"Retry-After": "1", "RateLimit-Reason": "jira-quota-tenant-based"}},
        {"mode": "ok"},
        {"mode": "silence"},
        {"mode": "status_after_store", "status": 504},
    ]}));
    let stop = AtomicBool::new(false);
    let promised = [Promised::default(), Promised::default()];
    let started = Instant::now();
    let killing = async {
        for kill in 1..=KILLS {
            let next = PUSHING_FOR * kill / (KILLS + 1);
            tokio::time::sleep(next.saturating_sub(started.elapsed())).await;
            process.kill();
            process = RelayProcess::start(settings, &client()).await;
        }
        tokio::time::sleep(PUSHING_FOR.saturating_sub(started.elapsed())).await;
        stop.store(true, Ordering::SeqCst);
        process
    };
    let (process, first, second) = tokio::join!(
        killing,
        push(&stage, 0, &promised[0], &stop),
        push(&stage, 1, &promised[1], &stop),
    );
    stage.site.heal();
    let drained = |site: &crate::stage::JiraSite| {
        let state = site.ask(json!({"cmd": "state"}));
        let missing = missing(&state["entities"], &promised);
        (missing.is_empty(), missing, state)
    };
    let deadline = Instant::now() + PATIENCE;
    let state = loop {
        let (done, missing, state) = drained(&stage.site);
        if done {
            break state;
        }
        assert!(
            Instant::now() < deadline,
            "acknowledged, but not in Jira as acknowledged: {missing:#?}"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    in_order(&stage.site.requests());
    assert_eq!(state["violations"], json!([]));
    let (told, tried) = (first.0 + second.0, first.1 + second.1);
    println!("{tried} writes sent, {told} acknowledged, {KILLS} kills: all as acknowledged");
    assert!(told > 200, "too little happened: {told} of {tried}");
    drop(process);
}

/// Pushes until it is told to stop; returns how many writes were acknowledged, and sent.
async fn push(
    stage: &Stage,
    instance: usize,
    promised: &Promised,
    stop: &AtomicBool,
) -> (u32, u32) {
    let gitlab = &stage.gitlabs[instance];
    let ns = stage.namespace(instance);
    let (mut told, mut tried) = (0, 0);
    let mut sequence = 1_000_000;
    for round in 0_u64.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        sequence += 1;
        let branch = format!("ABC-1-branch-{}", 1 + round % 3);
        let (call, options, keys): (_, Value, Vec<(String, Option<u64>)>) = match round % 5 {
            // One of its own.
            0 => (
                "builds",
                json!({"build_number": round, "sequence": sequence}),
                vec![(format!("builds {ns}-700/{round}"), Some(sequence))],
            ),
            // One that comes again and again.
            1 => (
                "builds",
                json!({"build_number": 0, "pipeline_id": 9, "sequence": sequence}),
                vec![(format!("builds {ns}-9/0"), Some(sequence))],
            ),
            2 => (
                "deployments",
                json!({"deployment_number": round % 7, "sequence": sequence}),
                vec![(
                    format!("deployments {ns}-700/{ns}-30/{}", round % 7),
                    Some(sequence),
                )],
            ),
            3 => (
                "devinfo",
                json!({"branches": 3, "commits": 0, "merge_requests": 1, "sequence": sequence}),
                (1..=3)
                    .map(|n| {
                        format!(
                            "devinfo {ns}-42/branch/{}",
                            sha256(&format!("ABC-1-branch-{n}"))
                        )
                    })
                    .chain([format!("devinfo {ns}-42/pull_request/{ns}-42001")])
                    .map(|key| (key, Some(sequence)))
                    .collect(),
            ),
            _ => (
                "branch_delete",
                json!({"branch": branch}),
                vec![(format!("devinfo {ns}-42/branch/{}", sha256(&branch)), None)],
            ),
        };
        tried += 1;
        // While a write is out, either state may be; an unacknowledged one may have arrived all the same.
        let sent = gitlab.send(call, options).await;
        if sent["status"] == 202 {
            told += 1;
            promised.lock().expect("promised").extend(keys);
            continue;
        }
        let broken = sent["error"].is_string();
        assert!(broken, "neither acknowledged nor broken: {sent:#}");
        promised
            .lock()
            .expect("promised")
            .retain(|known, _| keys.iter().all(|(key, _)| key != known));
        // GitLab's job tries again after a while; here the relay is being started again.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    (told, tried)
}

/// Whatever arrives about an entity, arrives in ascending order, lost answers and repeats included: Jira would ignore an
/// older number, but nobody should have to rely on that.
fn in_order(requests: &[Value]) {
    let mut last: BTreeMap<String, u64> = BTreeMap::new();
    for request in requests {
        let body = &request["body"];
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let mut entities = Vec::new();
        for build in list(&body["builds"]) {
            let key = format!("build {} {}", build["pipelineId"], build["buildNumber"]);
            entities.push((key, build["updateSequenceNumber"].as_u64()));
        }
        for deployment in list(&body["deployments"]) {
            let (pipeline, number) = (
                &deployment["pipeline"]["id"],
                &deployment["deploymentSequenceNumber"],
            );
            entities.push((
                format!("deployment {pipeline} {number}"),
                deployment["updateSequenceNumber"].as_u64(),
            ));
        }
        for repository in list(&body["repositories"]) {
            entities.push((
                format!("repository {}", repository["id"]),
                repository["updateSequenceId"].as_u64(),
            ));
        }
        for (key, number) in entities {
            let number = number.expect("a number");
            let before = last.insert(key.clone(), number).unwrap_or_default();
            assert!(before <= number, "{key}: {number} came after {before}");
        }
    }
}

/// What is not in Jira as it was acknowledged.
fn missing(entities: &Value, promised: &[Promised]) -> Vec<String> {
    let mut missing = Vec::new();
    for promised in promised {
        for (name, number) in promised.lock().expect("promised").iter() {
            let (family, key) = name.split_once(' ').expect("family and key");
            let found = entities[family][key]["seq"].as_u64();
            if found != *number {
                missing.push(format!("{name}: {number:?} promised, {found:?} found"));
            }
        }
    }
    missing
}

fn sha256(text: &str) -> String {
    jira_connect_proxy::digest::sha256_hex(text.as_bytes())
}
