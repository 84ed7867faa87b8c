//! The whole story of a site without a Connect app, with real instances below: opened, linked, pushed to with equal
//! ids, out of reach, out of tokens, left.

mod oauth;

use serde_json::{Value, json};

use crate::{
    cloud::{Cloud, CloudSite},
    fakes::FakeJira,
    harness::TestRelay,
    stage::{CLIENT_KEY, GitLab},
};

const CALLS: [&str; 4] = ["devinfo", "builds", "deployments", "feature_flags"];

/// A cloud with two sites and one Forge app, and a relay that is the app's remote.
struct Scene {
    cloud: Cloud,
    acme: CloudSite,
    other: CloudSite,
    jira: FakeJira,
    relay: TestRelay,
}

impl Scene {
    async fn set() -> Self {
        let cloud = Cloud::start();
        let (acme, other) = (cloud.site("acme"), cloud.site("other"));
        let app = cloud.ask("app", json!({}))["app_id"].clone();
        let app = app.as_str().expect("app").to_owned();
        let mut jira = FakeJira::start(CLIENT_KEY).await;
        jira.base_url.clone_from(&acme.url);
        let relay = TestRelay::start_with(&jira, |settings| {
            cloud.aim(settings, &app, &[&acme, &other])
        })
        .await;
        cloud.ask("app", json!({"app_id": app, "remote": relay.url()}));
        Self {
            cloud,
            acme,
            other,
            jira,
            relay,
        }
    }

    /// The only installation there is.
    async fn installation(&self) -> Value {
        let path = "/api/v1/installations";
        let rows = self.relay.admin("GET", path, None, 200).await;
        assert_eq!(rows.as_array().map(Vec::len), Some(1), "{rows:#}");
        rows[0].clone()
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
        for link in links {
            let ns = link["namespace"].as_str().expect("namespace");
            let keys = self.cloud.keys(&self.acme, provider, "builds");
            assert!(keys.contains(&format!("{ns}-700/50")), "{keys:?}");
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
