//! Moving in and out: stores of older relays, backups, new keys.

use std::{fs, path::Path};

use serde_json::Value;

use crate::{
    fakes::FakeJira,
    harness::{Settings, TestRelay},
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

/// What a command printed; it must have ended with this code.
async fn printed(relay: &TestRelay, arguments: &[&str], code: i32) -> String {
    let output = relay.command_line(arguments).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let ended = output.status.code();
    assert_eq!(ended, Some(code), "{arguments:?}: {text}{errors}");
    format!("{text}{errors}")
}

async fn audit(relay: &TestRelay) -> Vec<Value> {
    let trail = relay.admin("GET", "/api/v1/audit", None, 200).await;
    trail.as_array().cloned().expect("list")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_of_schema_1_moves_in() {
    let jira = FakeJira::start("tenant").await;
    let mut relay = TestRelay::start_with(&jira, |settings| move_in(settings, 1)).await;
    let sites = relay.admin("GET", "/api/v1/installations", None, 200).await;
    assert_eq!(sites[0]["client_key"], "judged-tenant");
    assert_eq!(sites[0]["links"], 2);
    let links = relay.links().await;
    let heard = |link: &Value| link["acknowledged"] == "installed";
    assert!(links.iter().all(heard), "{links:#?}");
    let spool = relay.admin("GET", "/api/v1/spool", None, 200).await;
    assert_eq!(spool["waiting"], 6, "{spool:#}");

    // Its trail had no hashes; now it has, and goes on from there.
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
