//! Everybody around the relay, and what goes wrong with them.

use std::{path::Path, time::Duration};

use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::{
    fakes::{FakeInstance, FakeSite, instance::Behaviour, site::Mood},
    process::{Cores, Process},
    stage::{CLIENT_KEY, Places, Relay},
    traffic::Done,
};

/// Instances of the one site that writes go to. Others come and go.
pub const INSTANCES: usize = 3;

/// Sites that are installed and uninstalled again and again.
const SITES: usize = 20;

pub struct World {
    pub relay: Relay,
    pub site: FakeSite,
    pub instances: Vec<Mutex<FakeInstance>>,
    /// Comes and goes.
    visitor: FakeInstance,
    secret: Mutex<u32>,
}

impl World {
    pub async fn set(folder: &Path) -> Self {
        let places = Places {
            proxy: Cores::All,
            load: Cores::All,
        };
        let site = FakeSite::start().await;
        let relay = Relay::set_up(folder, places, &site.url()).await;
        let url = format!("http://127.0.0.1:{}", relay.port);
        let mut instances = Vec::new();
        for _ in 0..INSTANCES {
            instances.push(Mutex::new(FakeInstance::start(&url, "/gitlab").await));
        }
        Self {
            visitor: FakeInstance::start(&url, "").await,
            relay,
            site,
            instances,
            secret: Mutex::new(0),
        }
    }

    pub async fn link_others(&self) {
        for instance in &self.instances {
            let url = instance.lock().await.url();
            let link = self.link(&url).await;
            assert_eq!(link["state"], "connected", "{link}");
        }
    }

    async fn link(&self, url: &str) -> Value {
        let wish = json!({"client_key": CLIENT_KEY, "instance_url": url});
        let (_, link) = self.relay.admin("POST", "/api/v1/links", Some(wish)).await;
        link
    }

    async fn links(&self) -> Vec<Value> {
        let (_, links) = self.relay.admin("GET", "/api/v1/links", None).await;
        links.as_array().cloned().unwrap_or_default()
    }

    /// The secret that an instance signs with, if it knows the site.
    pub async fn secret_of(&self, instance: usize) -> Option<String> {
        let instance = self.instances.get(instance)?.lock().await;
        Some(instance.known(CLIENT_KEY)?.shared_secret)
    }

    /// One thing after the other, each healed or replaced by a later one.
    pub async fn spoil(&self, number: usize, process: &Process) {
        match number % 16 {
            0 => self.site.be(Mood::Status(429, Some(1))),
            2 => self.down(0).await,
            3 => self.resend(0).await,
            4 => self.instances[0].lock().await.go_up().await,
            5 => self.site.be(Mood::Status(503, None)),
            6 => self.rotate().await,
            7 => self.site.be(Mood::TakesAndFails(504)),
            9 => process.signal("HUP"),
            10 => self.behave(1, Behaviour::Status(503)).await,
            11 => {
                self.resend(1).await;
                self.site.be(Mood::Silent(Duration::from_secs(20)));
            }
            12 => self.behave(1, Behaviour::StoresThenFails(502)).await,
            14 => {
                self.behave(1, Behaviour::Honest).await;
                self.come_or_go().await;
            }
            15 => {
                self.relay.admin("POST", "/api/v1/keys/rotate", None).await;
                self.other_site(number / 16).await;
            }
            _ => self.site.be(Mood::Well),
        }
    }

    /// Everything is well again.
    pub async fn mend(&self) {
        self.site.be(Mood::Well);
        self.down(0).await;
        self.instances[0].lock().await.go_up().await;
        self.behave(1, Behaviour::Honest).await;
    }

    /// Sends what waits for Jira, and tells how much that is.
    pub async fn retry(&self) -> u64 {
        let path = "/api/v1/spool/retry";
        let (_, spool) = self.relay.admin("POST", path, None).await;
        spool["waiting"].as_u64().unwrap_or_default()
    }

    /// Tries at once what would be tried later.
    pub async fn hurry(&self) {
        self.retry().await;
        for link in self.links().await {
            if link["state"] == "failing" {
                let path = format!("/api/v1/links/{}/resend", link["id"].as_str().unwrap());
                self.relay.admin("POST", &path, None).await;
            }
        }
    }

    /// What is not yet as it was promised, in words.
    pub async fn unsettled(&self, done: &Done) -> Vec<String> {
        let arrived = self.site.marks();
        let mut rest: Vec<String> = done
            .marks()
            .filter(|mark| !arrived.contains_key(mark))
            .map(|mark| format!("acknowledged, but not in Jira: {mark}"))
            .collect();
        let links = self.links().await;
        let off = links.iter().filter(|link| link["state"] != "connected");
        rest.extend(off.map(|link| format!("a link that does not agree: {link}")));
        rest
    }

    async fn down(&self, instance: usize) {
        self.instances[instance].lock().await.go_down().await;
    }

    async fn behave(&self, instance: usize, behaviour: Behaviour) {
        self.instances[instance].lock().await.behave(behaviour);
    }

    /// Does not wait for how it ends: the instance may be down.
    async fn resend(&self, instance: usize) {
        let url = self.instances[instance].lock().await.url();
        let links = self.links().await;
        let link = links.iter().find(|link| link["instance_url"] == url);
        let path = format!(
            "/api/v1/links/{}/resend",
            link.unwrap()["id"].as_str().unwrap()
        );
        self.relay.admin("POST", &path, None).await;
    }

    /// Jira rotates its secret.
    async fn rotate(&self) {
        let mut secret = self.secret.lock().await;
        *secret += 1;
        let secret = format!("a-new-secret-of-a-site-a-new-secret-{}", *secret);
        let app = self.relay.app_base_url();
        self.relay.jira.installed(&app, &secret).await;
    }

    /// Another site is installed and uninstalled.
    async fn other_site(&self, number: usize) {
        let (app, jira) = (self.relay.app_base_url(), &self.relay.jira);
        let name = format!("other-site-{}", number % SITES);
        let site = jira.site(&name);
        let secret = format!("a-secret-of-another-site-another-site-{number}");
        jira.send(site.call(&app, "installed", Some(&secret))).await;
        jira.send(site.call(&app, "uninstalled", None)).await;
    }

    /// An instance is linked, or its link removed.
    async fn come_or_go(&self) {
        let url = self.visitor.url();
        let links = self.links().await;
        match links.iter().find(|link| link["instance_url"] == url) {
            Some(link) => {
                let path = format!("/api/v1/links/{}", link["id"].as_str().unwrap());
                self.relay.admin("DELETE", &path, None).await;
            }
            None => {
                self.link(&url).await;
            }
        }
    }
}
