//! kill -9 at random moments during installs, links, rotations and removals: everything acknowledged is there, and
//! every link converges.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use jira_connect_proxy::client::Client;
use serde_json::{Value, json};

use crate::{
    fakes::{FakeInstance, FakeJira, http::client},
    harness::{PATIENCE, RelayProcess, Settings, admin},
};

const ROUNDS: usize = 50;

/// Sites in which everything happens once.
const EVERYTHING: usize = 4;

/// What the relay said yes to.
#[derive(Default)]
struct Promised {
    /// Installed sites, with the number of acknowledged rotations.
    sites: BTreeMap<String, u64>,
    /// (site, instance) pairs that were linked.
    links: Vec<(String, String)>,
    /// Pairs that were unlinked again.
    removed: Vec<(String, String)>,
    /// Sites that uninstalled the app.
    uninstalled: Vec<String>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_and_every_link_converges() {
    let folder = tempfile::tempdir().expect("folder");
    let jira = FakeJira::start("tenant").await;
    let settings = Settings::new(folder.path(), &jira);
    let instances = [
        FakeInstance::start(&settings.url(), "").await,
        FakeInstance::start(&settings.url(), "/gitlab").await,
    ];
    let client = client();
    let mut promised = Promised::default();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    // How long it takes on this machine to do everything once; then the relay dies sooner or later than that.
    let mut once = Duration::MAX;
    for round in 0..ROUNDS {
        let relay = RelayProcess::start(&settings, &client).await;
        check(&settings, &client, &promised).await;
        let began = Instant::now();
        let work = work(&jira, &settings, &client, &instances, &mut promised, round);
        if round == 0 {
            work.await;
            once = began.elapsed();
        } else {
            let life = random.below(once.as_micros() as u64);
            let _ = tokio::time::timeout(Duration::from_micros(life), work).await;
        }
        relay.kill();
    }
    assert!(
        promised.sites.len() > EVERYTHING,
        "nothing but the first round happened"
    );
    assert!(!promised.links.is_empty(), "no link was ever acknowledged");
    assert!(
        !promised.removed.is_empty() && !promised.uninstalled.is_empty(),
        "nothing was ever removed"
    );

    let relay = RelayProcess::start(&settings, &client).await;
    check(&settings, &client, &promised).await;
    let deadline = Instant::now() + PATIENCE;
    let links = loop {
        let links = list(&settings, &client, "/api/v1/links").await;
        if links.iter().all(is_settled) {
            break links;
        }
        assert!(
            Instant::now() < deadline,
            "not all links converged: {links:#?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    for link in &links {
        let site = link["client_key"].as_str().expect("client key");
        let known = instance_of(link, &instances).known(site);
        assert_eq!(known.is_some(), link["desired"] == "installed", "{link:#}");
        assert!(known.is_none_or(|known| known.base_url == settings.url()));
    }
    for (site, instance_url) in &promised.removed {
        let there = links
            .iter()
            .any(|link| is_between(link, site, instance_url));
        assert!(
            !there,
            "the removed link of {site} to {instance_url} is back"
        );
        let instance = instances
            .iter()
            .find(|i| i.url() == *instance_url)
            .expect("instance");
        assert!(
            instance.known(site).is_none(),
            "{site} is still known to {instance_url}"
        );
    }
    for site in &promised.uninstalled {
        assert!(
            instances
                .iter()
                .all(|instance| instance.known(site).is_none()),
            "{site} is gone"
        );
    }
    println!(
        "{ROUNDS} kills; {} sites, {} links, {} removed, {} uninstalled: all as acknowledged",
        promised.sites.len(),
        promised.links.len(),
        promised.removed.len(),
        promised.uninstalled.len()
    );
    relay.kill();
}

/// The relay dies between what an instance heard and what it wrote down of it: the instance must still be told when
/// it is over.
#[tokio::test]
async fn an_instance_that_may_have_heard_is_not_forgotten() {
    let folder = tempfile::tempdir().expect("folder");
    let jira = FakeJira::start("tenant").await;
    let settings = Settings::new(folder.path(), &jira);
    let client = client();
    let relay = RelayProcess::start(&settings, &client).await;
    let secret = "a-secret-a-secret-a-secret-a-secret";
    jira.installed(&settings.app_base_url(), secret).await;
    let instance = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("bind");
    let wish = json!({
        "client_key": "tenant",
        "instance_url": format!("http://{}", instance.local_addr().expect("address")),
    });
    let (token, admin_url) = (token(&settings), settings.admin_url());
    let linking = admin(
        &client,
        &admin_url,
        &token,
        "POST",
        "/api/v1/links",
        Some(wish),
    );
    tokio::select! {
        _ = linking => panic!("the instance never answered"),
        called = instance.accept() => drop(called.expect("a call")),
    }
    relay.kill();
    drop(instance);

    let _relay = RelayProcess::start(&settings, &client).await;
    let links = list(&settings, &client, "/api/v1/links").await;
    let path = format!("/api/v1/links/{}", links[0]["id"].as_str().expect("id"));
    admin(&client, &admin_url, &token, "DELETE", &path, None).await;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let links = list(&settings, &client, "/api/v1/links").await;
        let link = links.first().expect("the link is still there");
        if link["attempts"].as_u64() >= Some(3) {
            assert_eq!(link["state"], "removing");
            return;
        }
        assert!(Instant::now() < deadline, "{link:#}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Installs, links, rotates, removes, uninstalls, until it is cut off. A promise is noted after the answer, as Jira would.
async fn work(
    jira: &FakeJira,
    settings: &Settings,
    client: &Client,
    instances: &[FakeInstance; 2],
    promised: &mut Promised,
    round: usize,
) {
    let base = settings.app_base_url();
    for n in 0..EVERYTHING {
        let site = format!("tenant-{round}-{n}");
        let installed = |secret: u64| {
            let secret = format!("secret-{secret}-of-{site}-secret-secret-secret");
            jira.try_send(jira.site(&site).call(&base, "installed", Some(&secret)))
        };
        if installed(1)
            .await
            .is_none_or(|answer| answer.status() != 204)
        {
            return;
        }
        promised.sites.insert(site.clone(), 1);
        for instance in instances {
            let wish = json!({"client_key": site, "instance_url": instance.url()});
            let token = token(settings);
            let answer = admin(
                client,
                &settings.admin_url(),
                &token,
                "POST",
                "/api/v1/links",
                Some(wish),
            )
            .await;
            if answer.is_none_or(|answer| answer.status() != 201) {
                return;
            }
            promised.links.push((site.clone(), instance.url()));
        }
        if installed(2)
            .await
            .is_none_or(|answer| answer.status() != 204)
        {
            return;
        }
        promised.sites.insert(site.clone(), 2);
        match (round + n) % EVERYTHING {
            1 => {
                let link = (site.clone(), instances[0].url());
                // Neither there nor gone is promised while the answer is out.
                promised.links.retain(|known| *known != link);
                if !remove(settings, client, &link).await {
                    return;
                }
                promised.removed.push(link);
            }
            2 => {
                let call = jira.site(&site).call(&base, "uninstalled", None);
                if jira
                    .try_send(call)
                    .await
                    .is_none_or(|answer| answer.status() != 204)
                {
                    return;
                }
                promised.uninstalled.push(site);
            }
            3 => {
                let path = "/api/v1/keys/rotate";
                admin(
                    client,
                    &settings.admin_url(),
                    &token(settings),
                    "POST",
                    path,
                    None,
                )
                .await;
            }
            _ => {}
        }
    }
}

async fn check(settings: &Settings, client: &Client, promised: &Promised) {
    let installations = list(settings, client, "/api/v1/installations").await;
    let generations: BTreeMap<&str, u64> = installations
        .iter()
        .map(|i| {
            (
                i["client_key"].as_str().expect("key"),
                i["secret_generation"].as_u64().expect("number"),
            )
        })
        .collect();
    for (site, generation) in &promised.sites {
        let known = generations.get(site.as_str()).copied().unwrap_or_default();
        assert!(
            known >= *generation,
            "{site}: promised secret {generation}, there is {known}"
        );
    }
    let links = list(settings, client, "/api/v1/links").await;
    for (site, instance) in &promised.links {
        let there = links
            .iter()
            .any(|link| link["client_key"] == **site && link["instance_url"] == **instance);
        assert!(there, "the link of {site} to {instance} is lost");
    }
    let mut namespaces: Vec<&str> = links
        .iter()
        .filter_map(|link| link["namespace"].as_str())
        .collect();
    namespaces.sort_unstable();
    let count = namespaces.len();
    namespaces.dedup();
    assert_eq!(namespaces.len(), count, "a namespace came twice");
}

async fn remove(settings: &Settings, client: &Client, link: &(String, String)) -> bool {
    let links = list(
        settings,
        client,
        &format!("/api/v1/links?client_key={}", link.0),
    )
    .await;
    let found = links
        .iter()
        .find(|known| is_between(known, &link.0, &link.1));
    let Some(id) = found.and_then(|known| known["id"].as_str()) else {
        panic!("the link of {} to {} is lost", link.0, link.1);
    };
    let path = format!("/api/v1/links/{id}");
    admin(
        client,
        &settings.admin_url(),
        &token(settings),
        "DELETE",
        &path,
        None,
    )
    .await
    .is_some_and(|answer| answer.status() == 202)
}

fn is_between(link: &Value, site: &str, instance_url: &str) -> bool {
    link["client_key"] == *site && link["instance_url"] == *instance_url
}

/// The instance confirmed what it should hold.
fn is_settled(link: &Value) -> bool {
    link["generation"] == link["acknowledged_generation"]
}

fn instance_of<'a>(link: &Value, instances: &'a [FakeInstance]) -> &'a FakeInstance {
    let found = instances.iter().find(|i| i.url() == link["instance_url"]);
    found.expect("instance")
}

async fn list(settings: &Settings, client: &Client, path: &str) -> Vec<Value> {
    let answer = admin(
        client,
        &settings.admin_url(),
        &token(settings),
        "GET",
        path,
        None,
    )
    .await
    .expect("answer");
    assert_eq!(answer.status(), 200);
    serde_json::from_slice(answer.body()).expect("a list")
}

fn token(settings: &Settings) -> String {
    std::fs::read_to_string(settings.folder.join("admin-token")).expect("token")
}

/// xorshift: the moments differ from round to round, and are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
