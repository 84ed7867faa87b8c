//! The whole story of a site without a Connect app, with real instances below: opened, linked, pushed to with equal
//! ids, out of reach, out of tokens, left.

mod forge;
mod moves;
mod oauth;

use serde_json::{Value, json};

use crate::{
    cloud::{Cloud, CloudSite},
    fakes::FakeJira,
    harness::{Settings, TestRelay},
    stage::{CLIENT_KEY, GitLab},
};

const CALLS: [&str; 4] = ["devinfo", "builds", "deployments", "feature_flags"];

/// A cloud with two sites and one Forge app, and a relay that is the app's remote.
struct Scene {
    cloud: Cloud,
    acme: CloudSite,
    other: CloudSite,
    app: String,
    /// Speaks for the site's Connect app.
    jira: FakeJira,
    relay: TestRelay,
}

impl Scene {
    async fn set() -> Self {
        Self::set_with(|_| {}).await
    }

    async fn set_with(change: impl FnOnce(&mut Settings)) -> Self {
        let cloud = Cloud::start();
        let (acme, other) = (cloud.site("acme"), cloud.site("other"));
        let app = cloud.ask("app", json!({}))["app_id"].clone();
        let app = app.as_str().expect("app").to_owned();
        let mut jira = FakeJira::start(CLIENT_KEY).await;
        jira.base_url.clone_from(&acme.url);
        let relay = TestRelay::start_with(&jira, |settings| {
            cloud.aim(settings, &app, &[&acme, &other]);
            change(settings);
        })
        .await;
        cloud.ask("app", json!({"app_id": app, "remote": relay.url()}));
        Self {
            cloud,
            acme,
            other,
            app,
            jira,
            relay,
        }
    }

    async fn installations(&self) -> Vec<Value> {
        let path = "/api/v1/installations";
        let rows = self.relay.admin("GET", path, None, 200).await;
        rows.as_array().cloned().expect("a list")
    }

    /// The only installation there is.
    async fn installation(&self) -> Value {
        let rows = self.installations().await;
        assert_eq!(rows.len(), 1, "{rows:#?}");
        rows[0].clone()
    }

    /// What stands in the audit trail about this, newest first.
    async fn audit(&self, action: &str) -> Vec<Value> {
        let path = "/api/v1/audit?limit=1000";
        let entries = self.relay.admin("GET", path, None, 200).await;
        let entries = entries.as_array().cloned().unwrap_or_default();
        let of_action = entries
            .into_iter()
            .filter(|entry| entry["action"] == action);
        of_action.collect()
    }

    /// Both instances push with equal ids and numbers; what each wrote stands beside the other's.
    async fn both_push(
        &self,
        provider: &str,
        gitlabs: &[GitLab],
        links: &[Value],
        build_number: u64,
    ) {
        for gitlab in gitlabs {
            for call in CALLS {
                gitlab
                    .sends(
                        call,
                        json!({"build_number": build_number, "deployment_number": build_number}),
                    )
                    .await;
            }
        }
        self.relay.until_drained().await;
        for link in links {
            let ns = link["namespace"].as_str().expect("namespace");
            for (family, key) in [
                ("devinfo", format!("{ns}-42")),
                ("builds", format!("{ns}-700/{build_number}")),
                ("deployments", format!("{ns}-700/{ns}-30/{build_number}")),
                ("featureflags", format!("{ns}-5")),
            ] {
                let keys = self.cloud.keys(&self.acme, provider, family);
                assert!(keys.contains(&key), "{key} is not in {keys:?}");
            }
        }
    }

    /// Jira is away for a while: nothing is lost.
    async fn an_outage(&self, provider: &str, gitlabs: &[GitLab], links: &[Value]) {
        self.cloud
            .fault("api", json!({"mode": "status", "status": 503}));
        for gitlab in gitlabs {
            gitlab.sends("builds", json!({"build_number": 50})).await;
        }
        assert_eq!(self.relay.spool().await["waiting"], gitlabs.len());
        self.cloud.heal("api");
        self.both_push(provider, gitlabs, links, 51).await;
        self.built(provider, links, 50);
    }

    /// A build of this number came through from each link.
    fn built(&self, provider: &str, links: &[Value], build_number: u64) {
        let keys = self.cloud.keys(&self.acme, provider, "builds");
        for link in links {
            let ns = link["namespace"].as_str().expect("namespace");
            let key = format!("{ns}-700/{build_number}");
            assert!(keys.contains(&key), "{key} is not in {keys:?}");
        }
    }

    /// The end of it: every instance was told, and no party did what it must not.
    async fn everybody_knows_the_end(&self, gitlabs: &[GitLab]) {
        let told = |links: &[Value]| {
            links
                .iter()
                .all(|link| link["acknowledged"] == "uninstalled")
        };
        self.relay.until_links("all told", told).await;
        for gitlab in gitlabs {
            assert_eq!(gitlab.state().await["installations"], json!({}));
        }
        assert_eq!(self.cloud.violations(), json!([]));
    }
}
