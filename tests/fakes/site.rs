//! The REST side of a Jira Cloud site: takes development data and remembers it, or does not, as it is told.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, header};
use serde_json::{Value, json};

use super::http::{FakeServer, answer};

/// A site that everybody may write to: who signed is for the judges in `tests/judges`.
pub struct FakeSite {
    server: FakeServer,
    served: Arc<Mutex<Served>>,
}

#[derive(Default)]
struct Served {
    mood: Mood,
    marks: BTreeMap<String, u32>,
}

/// How it takes calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    #[default]
    Well,
    /// Always this status, with a pause that it asks for; nothing is taken.
    Status(u16, Option<u32>),
    /// Says nothing for this long, then that it is unwell.
    Silent(Duration),
    /// Takes the write, then says that it did not.
    TakesAndFails(u16),
}

impl FakeSite {
    pub async fn start() -> Self {
        let served = Arc::<Mutex<Served>>::default();
        let for_server = Arc::clone(&served);
        let server = FakeServer::start(move |request: Request<Bytes>| {
            let served = Arc::clone(&for_server);
            async move {
                let mood = served.lock().expect("site").mood;
                match mood {
                    Mood::Well => take(&served, &request),
                    Mood::Status(status, pause) => unwell(status, pause),
                    Mood::Silent(pause) => {
                        tokio::time::sleep(pause).await;
                        unwell(503, None)
                    }
                    Mood::TakesAndFails(status) => {
                        take(&served, &request);
                        unwell(status, None)
                    }
                }
            }
        })
        .await;
        Self { server, served }
    }

    pub fn url(&self) -> String {
        self.server.url()
    }

    pub fn be(&self, mood: Mood) {
        self.served.lock().expect("site").mood = mood;
    }

    /// How often each marked write came.
    pub fn marks(&self) -> BTreeMap<String, u32> {
        self.served.lock().expect("site").marks.clone()
    }
}

fn take(served: &Mutex<Served>, request: &Request<Bytes>) -> Response<Bytes> {
    if request.method() == Method::GET {
        let user = json!({
            "accountId": "557058:5b10", "displayName": "Mia Krystof", "active": true,
            "groups": {"size": 1, "items": [{"name": "site-admins"}]},
        });
        return answer(200, user.to_string());
    }
    let body: Value = serde_json::from_slice(request.body()).unwrap_or_default();
    let mut served = served.lock().expect("site");
    for (family, name) in [("repositories", "name"), ("builds", "displayName")] {
        for entity in body[family].as_array().into_iter().flatten() {
            if let Some(mark) = entity[name].as_str() {
                *served.marks.entry(mark.to_owned()).or_default() += 1;
            }
        }
    }
    answer(202, "{}")
}

fn unwell(status: u16, pause: Option<u32>) -> Response<Bytes> {
    let mut answer = answer(status, "{}");
    if let Some(pause) = pause {
        answer
            .headers_mut()
            .insert(header::RETRY_AFTER, pause.into());
    }
    answer
}

/// A push to a project of its own, which the site remembers by `mark`: address and body.
pub fn marked_push(mark: &str, number: u64) -> (&'static str, Value) {
    let body = json!({"repositories": [{
        "id": number.to_string(), "name": mark, "url": "https://gitlab.example.com/group/project",
        "updateSequenceId": number,
        "commits": [{
            "id": format!("{number:040x}"), "hash": format!("{number:040x}"), "displayId": "abc", "issueKeys": ["ABC-17"],
            "message": "ABC-17 Mend the roof", "author": {"name": "Ada"}, "fileCount": 1, "updateSequenceId": number,
            "authorTimestamp": "2026-11-25T12:00:00.000+00:00", "url": "https://gitlab.example.com/group/project/-/commit/1",
        }],
    }]});
    ("/rest/devinfo/0.10/bulk", body)
}

/// The same for a pipeline.
pub fn marked_build(mark: &str, number: u64) -> (&'static str, Value) {
    let body = json!({"builds": [{
        "schemaVersion": "1.0", "pipelineId": number.to_string(), "buildNumber": 1, "updateSequenceNumber": number,
        "displayName": mark, "url": "https://gitlab.example.com/group/project/-/pipelines/1", "state": "successful",
        "lastUpdated": "2026-11-25T12:00:00.000+00:00", "issueKeys": ["ABC-17"], "references": [],
    }]});
    ("/rest/builds/0.1/bulk", body)
}
