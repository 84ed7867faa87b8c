//! Moving in and out: stores of older relays, backups, new keys.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::{
    fakes::FakeJira,
    harness::{Settings, TestRelay, printed},
    stage::Stage,
};

/// Puts a copy of a store that an older relay left where these settings look for one.
fn move_in(settings: &Settings, schema: u32) {
    let stores = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/relay/stores");
    let from = stores.join(format!("schema-{schema}"));
    // sled wants it, and git keeps no empty folder.
    fs::create_dir_all(settings.folder.join("store/blobs")).expect("folder");
    copy(&from, &settings.folder);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("folder");
    for entry in fs::read_dir(from).expect("folder") {
        let entry = entry.expect("entry");
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).expect("copy");
        }
    }
}

async fn audit(relay: &TestRelay) -> Vec<Value> {
    let trail = relay.admin("GET", "/api/v1/audit", None, 200).await;
    trail.as_array().cloned().expect("list")
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_of_older_relays_move_in() {
    for schema in 1..=2 {
        moves_in(schema).await;
    }
}

async fn moves_in(schema: u32) {
    let jira = FakeJira::start("tenant").await;
    let mut relay = TestRelay::start_with(&jira, |settings| move_in(settings, schema)).await;
    let sites = relay.admin("GET", "/api/v1/installations", None, 200).await;
    assert_eq!(sites[0]["client_key"], "judged-tenant");
    assert_eq!(sites[0]["links"], 2);
    assert_eq!(sites[0]["upstream"], "connect");
    assert_eq!(sites[0]["secret_generation"], 1);
    let links = relay.links().await;
    let heard = |link: &Value| link["acknowledged"] == "installed";
    assert!(links.iter().all(heard), "{links:#?}");
    let spool = relay.admin("GET", "/api/v1/spool", None, 200).await;
    assert_eq!(spool["waiting"], 6, "{spool:#}");

    // A trail that had no hashes has them now, and goes on from there.
    let before = audit(&relay).await;
    assert!(before.len() >= 4, "{before:#?}");
    let whole = printed(&relay, &["audit", "verify"], 0).await;
    let head = whole
        .trim_end()
        .rsplit(' ')
        .next()
        .expect("head")
        .to_owned();
    assert!(whole.contains("the trail is whole"), "{whole}");
    relay.restart().await;
    relay.admin("POST", "/api/v1/keys/rotate", None, 201).await;
    let after = audit(&relay).await;
    assert!(after.len() > before.len());
    printed(&relay, &["audit", "verify", "--head", &head], 0).await;
    let other = format!("0:{}", "0".repeat(64));
    let cut = printed(&relay, &["audit", "verify", "--head", &other], 1).await;
    assert!(cut.contains("the trail does not hold it"), "{cut}");
}

/// A backup taken while Jira is down, the machine lost, another one set up from the backup and the key.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_brings_everything_back_on_another_machine() {
    let mut stage = Stage::set(2).await;
    stage.site.fault(json!({"mode": "status", "status": 503}));
    for number in 1..=3 {
        let build = json!({"build_number": number});
        stage.gitlabs[0].sends("builds", build).await;
    }
    let saved = tempfile::tempdir().expect("folder");
    let file = saved.path().join("relay.backup");
    let file = file.to_str().expect("path");
    let said = printed(&stage.relay, &["backup", file], 0).await;
    assert!(said.contains("opens only with the store key"), "{said}");
    let again = printed(&stage.relay, &["backup", file], 1).await;
    assert!(again.contains("never replaces a file"), "{again}");
    let trail = printed(&stage.relay, &["audit", "verify"], 0).await;
    let head = trail
        .trim_end()
        .rsplit(' ')
        .next()
        .expect("head")
        .to_owned();
    let links = stage.relay.links().await;
    stage.relay.stop().await;

    // The folder is gone, but for the key that was kept elsewhere.
    let settings = &stage.relay.settings;
    fs::remove_dir_all(settings.folder.join("store")).expect("lost");
    let run = |arguments: &[&str]| {
        let output = settings.command().args(arguments).output().expect("run");
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.code(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    };
    let (code, said) = run(&["restore", "--verify", file]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("is whole and opens") && said.contains(&head),
        "{said}"
    );
    assert!(
        !settings.folder.join("store").exists(),
        "nothing was touched"
    );
    let other_key = saved.path().join("other-key");
    fs::write(&other_key, [7; 32]).expect("write");
    let other_key = other_key.to_str().expect("path");
    let (code, said) = run(&["restore", file, "--key-file", other_key]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("the key does not open it"), "{said}");
    let (code, said) = run(&["restore", file]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("2 links fresh secrets"), "{said}");
    let (code, said) = run(&["restore", file]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("never replaces one"), "{said}");

    stage.site.heal();
    stage.relay.restart().await;
    stage.until_drained().await;
    let fresh = |links: &[Value]| {
        links.len() == 2
            && links.iter().all(|link| link["state"] == "connected")
            && links
                .iter()
                .all(|link| link["acknowledged_generation"].as_u64() > Some(1))
    };
    let after = stage.relay.until_links("fresh secrets", fresh).await;
    for link in &links {
        let same =
            |other: &&Value| other["id"] == link["id"] && other["namespace"] == link["namespace"];
        assert!(after.iter().any(|other| same(&other)), "{after:#?}");
    }
    // Instances write on, and the trail goes on where it was.
    stage.gitlabs[1]
        .sends("builds", json!({"build_number": 4}))
        .await;
    printed(&stage.relay, &["audit", "verify", "--head", &head], 0).await;
    assert!(
        audit(&stage.relay)
            .await
            .iter()
            .any(|entry| entry["action"] == "store_restored")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_relay_gets_a_new_store_key() {
    let stage = Stage::set(1).await;
    let key_file = stage.relay.settings.folder.join("store-key");
    let old = fs::read(&key_file).expect("key");
    let said = printed(&stage.relay, &["reseal"], 0).await;
    assert!(said.contains("the store has a new key"), "{said}");
    assert_ne!(fs::read(&key_file).expect("key"), old);
    stage.gitlabs[0]
        .sends("builds", json!({"build_number": 1}))
        .await;
    let mut stage = stage;
    stage.relay.restart().await;
    stage.gitlabs[0]
        .sends("builds", json!({"build_number": 2}))
        .await;
    let trail = audit(&stage.relay).await;
    assert!(
        trail
            .iter()
            .any(|entry| entry["action"] == "store_resealed")
    );
}
