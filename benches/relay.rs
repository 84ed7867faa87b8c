//! What the relay's work costs: `cargo bench`. The numbers that matter are in the README.

#![expect(
    clippy::unwrap_used,
    reason = "a benchmark that can't run should say where"
)]

#[path = "../tests/fakes/mod.rs"]
mod fakes;

use std::{cell::Cell, hint::black_box, io::Write as _, sync::Arc};

use divan::{Bencher, counter::ItemsCount};
use fakes::FakeJira;
use http::Request;
use http_body_util::Full;
use jiff::SignedDuration;
use jira_connect_proxy::{
    clock,
    config::Config,
    domain::{
        ClientKey, Installation, JiraSites, LifecycleEvent, SharedSecret,
        event::{EventStamp, LifecycleChange, SiteFacts},
    },
    jira::lifecycle::{LifecycleRules, apply},
    jwt::{
        InstallKeys, Signer, Target, UnverifiedToken, crypto,
        lifecycle::LifecycleVerifier,
        qsh::{self, Rule},
        request::{self, Audiences},
        signer::{InstanceClaims, generate_key},
    },
    metrics::Metrics,
    relay::Relay,
    store::{Sealer, Store, StoreOwner},
};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use tokio::{runtime::Runtime, task::JoinSet};

const BASE_PATH: &str = "/-/jira_connect";
const INSTALLED: &str = "/-/jira_connect/events/installed";
const FRAME: &str = "/-/jira_connect/subscriptions?xdm_e=https%3A%2F%2Facme.atlassian.net&xdm_c=channel-gitlab-configuration&cp=&xdm_deprecated_addon_key_do_not_use=gitlab-jira-connect-relay.example.com&lic=none&cv=1001.0.0-SNAPSHOT&loc=en-GB&tz=Europe%2FBerlin&user_id=&user_key=&a=%E5%AE%AE&b=1";
const SECRET: &str = "a-secret-of-a-site-a-secret-of-a-site";

fn main() {
    crypto::install();
    divan::main();
}

#[divan::bench(args = [INSTALLED, FRAME])]
fn qsh_of_a_request(bencher: Bencher<'_, '_>, path_and_query: &str) {
    let target = Target::parse(path_and_query).unwrap();
    let hash = Rule::JiraSigns.qsh("GET", &target, BASE_PATH);
    bencher.bench(|| {
        let target = Target::parse_strict(black_box(path_and_query), &[]).unwrap();
        qsh::jira_request_matches(&target, "GET", BASE_PATH, hash.as_str())
    });
}

#[divan::bench]
fn verify_lifecycle_token_rs256(bencher: Bencher<'_, '_>) {
    let runtime = Runtime::new().unwrap();
    let base = format!("https://relay.example.com{BASE_PATH}");
    let (jira, verifier) = runtime.block_on(async {
        let jira = FakeJira::start("tenant").await;
        let metrics = Arc::new(Metrics::new().unwrap());
        let client = fakes::http::client();
        let (keys, _) = InstallKeys::new(&jira.keys.url(), client, Vec::new(), metrics).await;
        let verifier = LifecycleVerifier::new(base.clone(), BASE_PATH.to_owned(), keys);
        (jira, verifier)
    });
    let token = jira.call(&base, "installed", None).token();
    let client_key = ClientKey::parse("tenant").unwrap();
    let target = Target::parse(INSTALLED).unwrap();
    let now = clock::now();
    bencher.bench(|| {
        let token = UnverifiedToken::parse(&token).unwrap();
        let verified = verifier.verify(&token, &client_key, "POST", &target, now);
        runtime.block_on(verified).unwrap()
    });
}

#[divan::bench]
fn verify_request_token_hs256(bencher: Bencher<'_, '_>) {
    let now = clock::now();
    let installation = Arc::new(installation("tenant"));
    let target = Target::parse(FRAME).unwrap();
    let claims = serde_json::json!({
        "iss": "tenant", "iat": now.as_second(), "exp": now.as_second() + 180,
        "qsh": Rule::JiraSigns.qsh("GET", &target, BASE_PATH).as_str(),
    });
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key).unwrap();
    let audiences = Audiences {
        base_url: String::new(),
        app_key: String::new(),
    };
    bencher.bench(|| {
        let token = UnverifiedToken::parse(&token).unwrap();
        let find = |_: &ClientKey| Some(Arc::clone(&installation));
        request::verify(&token, "GET", BASE_PATH, &target, &audiences, find, now).unwrap()
    });
}

#[divan::bench]
fn sign_for_an_instance_rs256_3072(bencher: Bencher<'_, '_>) {
    let now = clock::now();
    let signer = Signer::default();
    signer.load(&[Arc::new(generate_key(now).unwrap())]);
    let audience = format!("https://gitlab.example.com{BASE_PATH}");
    let claims = InstanceClaims::new(vec![audience], "tenant".to_owned(), "0".repeat(64), now);
    bencher.bench(|| signer.sign(&claims).unwrap());
}

#[divan::bench(args = [256, 1024, 4096])]
fn seal_and_open(bencher: Bencher<'_, '_>, bytes: usize) {
    let sealer = Sealer::new(&[7; 32]);
    let plain = vec![b'x'; bytes];
    bencher.bench(|| {
        let sealed = sealer.seal("i/tenant", &plain).unwrap();
        sealer.open("i/tenant", &sealed).unwrap()
    });
}

/// What the disk itself takes for a record of that size: the measure for the next two.
#[divan::bench]
fn bare_append_and_fdatasync(bencher: Bencher<'_, '_>) {
    let mut file = tempfile::tempfile().unwrap();
    let record = [b'x'; 1024];
    bencher.bench_local(|| {
        file.write_all(&record).unwrap();
        file.sync_data().unwrap();
    });
}

/// One caller waits for each sync.
#[divan::bench]
fn durable_installed_one_by_one(bencher: Bencher<'_, '_>) {
    let stage = StoreStage::set();
    let number = Cell::new(0);
    bencher.bench_local(|| {
        number.set(number.get() + 1);
        stage
            .runtime
            .block_on(install(stage.owner.store().clone(), number.get() % 1000));
    });
    stage.owner.close().unwrap();
}

/// 64 callers at once share syncs; the time is for all of them.
#[divan::bench]
fn durable_installed_64_at_once(bencher: Bencher<'_, '_>) {
    let stage = StoreStage::set();
    let number = Cell::new(0);
    bencher.counter(ItemsCount::new(64_usize)).bench_local(|| {
        let first = number.get();
        number.set(first + 64);
        stage.runtime.block_on(async {
            let mut tasks = JoinSet::new();
            for n in first..first + 64 {
                tasks.spawn(install(stage.owner.store().clone(), n % 1000));
            }
            tasks.join_all().await
        });
    });
    stage.owner.close().unwrap();
}

/// A whole `installed` over loopback: HTTP, token, body, transaction, sync, answer.
#[divan::bench]
fn installed_through_a_socket(bencher: Bencher<'_, '_>) {
    let folder = tempfile::tempdir().unwrap();
    let runtime = Runtime::new().unwrap();
    let (jira, base) = runtime.block_on(async {
        let jira = FakeJira::start("tenant").await;
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let settings = [
            ("PUBLIC__URL", format!("http://127.0.0.1:{port}")),
            ("PUBLIC__LISTEN", format!("127.0.0.1:{port}")),
            ("ADMIN__LISTEN", "127.0.0.1:0".to_owned()),
            ("ADMIN__TOKEN_FILE", path("token")),
            ("STORE__PATH", path("store")),
            ("STORE__KEY_FILE", path("key")),
            ("JIRA__INSTALL_KEYS_URL", jira.keys.url()),
        ];
        let settings = settings.map(|(key, value)| (format!("JIRA_CONNECT_PROXY__{key}"), value));
        let config = Config::load(None, settings).unwrap();
        let base = config.app_base_url();
        let relay = Relay::bind(config).await.unwrap();
        tokio::spawn(relay.run(std::future::pending()));
        (jira, base)
    });
    let client = fakes::http::client();
    let number = Cell::new(0_u64);
    bencher
        .with_inputs(|| {
            number.set(number.get() + 1);
            let secret = format!("{SECRET}-{}", number.get());
            let call = jira.call(&base, "installed", Some(&secret));
            Request::post(&call.url)
                .header("authorization", format!("JWT {}", call.token()))
                .body(Full::from(call.body.to_string()))
                .unwrap()
        })
        .bench_local_values(|request| {
            let answer = runtime.block_on(fakes::http::send(&client, request));
            assert_eq!(answer.status(), 204);
        });
}

struct StoreStage {
    runtime: Runtime,
    owner: StoreOwner,
    _folder: tempfile::TempDir,
}

impl StoreStage {
    fn set() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Config::load(None, []).unwrap().store;
        store.path = folder.path().join("store");
        store.key_file = folder.path().join("key");
        let owner = StoreOwner::open(&store, Arc::new(Metrics::new().unwrap())).unwrap();
        Self {
            runtime: Runtime::new().unwrap(),
            owner,
            _folder: folder,
        }
    }
}

async fn install(store: Store, number: u64) {
    let now = clock::now();
    let event = LifecycleEvent {
        client_key: ClientKey::parse(&format!("tenant-{number}")).unwrap(),
        stamp: EventStamp {
            issued_at: now,
            token_digest: now.to_string(),
            body_digest: String::new(),
            received_at: now,
        },
        change: LifecycleChange::Installed(site()),
    };
    let rules = LifecycleRules {
        secret_grace: SignedDuration::from_secs(300),
        auto_link: Vec::new(),
    };
    store
        .transact(move |transaction| apply(transaction, &event, &rules, "bench", now))
        .await
        .unwrap();
}

fn installation(client_key: &str) -> Installation {
    let now = clock::now();
    let stamp = EventStamp {
        issued_at: now,
        token_digest: String::new(),
        body_digest: String::new(),
        received_at: now,
    };
    let client_key = ClientKey::parse(client_key).unwrap();
    Installation::install(
        None,
        &client_key,
        &stamp,
        &site(),
        SignedDuration::ZERO,
        now,
    )
    .unwrap()
    .0
}

fn site() -> SiteFacts {
    SiteFacts {
        base_url: JiraSites::default()
            .parse("https://acme.atlassian.net")
            .unwrap(),
        display_url: None,
        shared_secret: SharedSecret::parse(SECRET).unwrap(),
    }
}
