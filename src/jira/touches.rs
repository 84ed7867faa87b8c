//! What a body touches: which entities, with which sequence numbers, and which issues.
//!
//! Read only when a write has to wait, so the comfortable way will do.

use std::collections::{BTreeMap, BTreeSet};

use ring::digest::{SHA256, digest};
use serde_json::Value;

use crate::domain::{Family, JiraCall, spooled::Touches};

/// A write with more is a full synchronisation. What it touches is not listed: its record would be large, and one
/// more write that waits for it does no harm.
const ENTITIES_MAX: usize = 64;

/// Reads a write that is in its namespace already.
pub fn touches(call: &JiraCall, body: &[u8]) -> Touches {
    match call {
        JiraCall::Submit(family) => submitted(*family, body),
        JiraCall::DeleteBranch { repository, branch } => Touches {
            entities: vec![(hash(&["branches", repository, branch]), None)],
            ..Touches::default()
        },
        JiraCall::DeleteMarked { .. }
        | JiraCall::User { .. }
        | JiraCall::Permissions
        | JiraCall::Probe(_)
        | JiraCall::ServerInfo => Touches::default(),
    }
}

/// Entities are told apart as Jira does it (Atlassian's API reference on uniqueness).
fn submitted(family: Family, body: &[u8]) -> Touches {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let mut found = Found::default();
    match family {
        Family::Devinfo => {
            for repository in list(&body, "repositories") {
                let id = text(repository, "id");
                found.entity(&["repositories", &id], repository);
                for kind in ["commits", "branches", "pullRequests"] {
                    for entity in list(repository, kind) {
                        found.entity(&[kind, &id, &text(entity, "id")], entity);
                        if let Some(commit) = entity.get("lastCommit") {
                            found.entity(&["commits", &id, &text(commit, "id")], commit);
                        }
                    }
                }
            }
        }
        Family::Builds => {
            for build in list(&body, "builds") {
                let key = [text(build, "pipelineId"), text(build, "buildNumber")];
                found.entity(&["builds", &key[0], &key[1]], build);
            }
        }
        Family::Deployments => {
            for deployment in list(&body, "deployments") {
                let part = |part: &str| text(deployment.get(part).unwrap_or(&Value::Null), "id");
                let number = text(deployment, "deploymentSequenceNumber");
                let (pipeline, environment) = (part("pipeline"), part("environment"));
                found.entity(
                    &["deployments", &pipeline, &environment, &number],
                    deployment,
                );
                // A command is an order: the next state of the deployment does not repeat it.
                found.orders |= !list(deployment, "commands").is_empty();
            }
        }
        Family::FeatureFlags => {
            for flag in list(&body, "flags") {
                found.entity(&["flags", &text(flag, "id")], flag);
            }
        }
        Family::RemoteLinks => {
            for link in list(&body, "remoteLinks") {
                found.entity(&["remoteLinks", &text(link, "id")], link);
            }
        }
    }
    if found.entities.len() + found.issues.len() > 2 * ENTITIES_MAX {
        return Touches::everything();
    }
    Touches {
        replaceable: !found.orders,
        everything: false,
        entities: found.entities.into_iter().collect(),
        issues: found.issues.into_iter().collect(),
    }
}

#[derive(Default)]
struct Found {
    entities: BTreeMap<u64, Option<i64>>,
    issues: BTreeSet<u64>,
    orders: bool,
}

impl Found {
    fn entity(&mut self, key: &[&str], entity: &Value) {
        let sequence = ["updateSequenceId", "updateSequenceNumber"]
            .iter()
            .find_map(|field| entity.get(field)?.as_i64());
        // A commit can stand in its list and as a branch's last one.
        let known = self.entities.entry(hash(key)).or_insert(sequence);
        *known = (*known).max(sequence);
        let issues = list(entity, "issueKeys").iter();
        let associated = list(entity, "associations").iter();
        let associated = associated.flat_map(|association| list(association, "values"));
        for issue in issues.chain(associated).filter_map(Value::as_str) {
            self.issues.insert(hash(&["issue", issue]));
        }
    }
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value
        .get(key)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

fn text(value: &Value, key: &str) -> String {
    match value.get(key) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}

fn hash(parts: &[&str]) -> u64 {
    let digest = digest(&SHA256, parts.join("\u{0}").as_bytes());
    let first = digest.as_ref().first_chunk::<8>();
    u64::from_be_bytes(first.copied().unwrap_or_default())
}
