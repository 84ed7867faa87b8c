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
        ClientKey, Family, Installation, InstanceUrl, JiraSites, LifecycleEvent, Link, LinkMode,
        Namespace, SharedSecret,
        event::{EventStamp, LifecycleChange, SiteFacts},
    },
    jira::{
        Recogniser,
        lifecycle::{LifecycleRules, apply},
        mend::mend,
        namespace,
    },
    jwt::{
        InstallKeys, SharedKey, Signer, Target, TokenKind, UnverifiedToken, crypto, instance,
        lifecycle::LifecycleVerifier,
        qsh::{self, Rule},
        request::{self, Audiences},
        signer::{InstanceClaims, generate_key},
    },
    metrics::Metrics,
    relay::Relay,
    store::{Sealer, Store, StoreFull, StoreOwner, Transaction},
    trace::{self, Context, Hop, Shelf, Subject, Traces},
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

/// What `trace` adds to a relayed GET: context, token, link, one call, the end, and what must go for it.
#[divan::bench]
fn remember_a_relayed_read(bencher: Bencher<'_, '_>) {
    let traces = Traces::new(8 << 20, None, clock::now());
    let claims = r#"{"iss":"gitlab-jira-connect-relay.example.com","iat":1,"exp":2,"qsh":"8063ff4ca1e41df7bc90c8ab6d0f6207d491cf6dad7c66ea797b4614b71922e9"}"#;
    let part = |json: &str| base64::Engine::encode(&base64::prelude::BASE64_URL_SAFE_NO_PAD, json);
    let token = format!("{}.{}.c2ln", part(r#"{"alg":"HS256"}"#), part(claims));
    let token = UnverifiedToken::parse(&token).unwrap();
    let client_key = ClientKey::parse("b6a0e7a5-3a3f-4a83-9d5c-7c3c1a6c9a11").unwrap();
    let uri: http::Uri = "https://acme.atlassian.net/rest/api/3/user?accountId=1"
        .parse()
        .unwrap();
    let mut headers = http::HeaderMap::new();
    let id = uuid::Uuid::new_v4();
    let peer = jira_connect_proxy::domain::Peer::Socket("192.0.2.7:1".parse().unwrap());
    let once = || {
        let context = Context::of(&headers, id);
        let subject = Subject::Request {
            listener: "public",
            route: "rest/user",
            method: "GET",
            peer,
        };
        let trace = traces.begin(id, context, subject, jiff::Timestamp::UNIX_EPOCH);
        let handled = trace::within(Arc::clone(&trace), async {
            trace::note(|| token.seen(TokenKind::Instance, None));
            trace::note(|| Hop::Recognised {
                client_key: client_key.clone(),
                link: None,
            });
            let calling = trace::called(&http::Method::GET, &uri, &mut headers);
            calling.unwrap().ended(Ok(200));
        });
        futures_util::FutureExt::now_or_never(handled).unwrap();
        traces.end(trace, Shelf::Routine, Hop::Answered(200, None));
    };
    let mut once = once;
    // Full, so that each new one costs an old one.
    (0..20_000).for_each(|_| once());
    bencher.bench_local(once);
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
            ("LIMITS__REQUESTS_PER_ADDRESS_PER_SEC", "0".to_owned()),
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

/// Everything that is done with the body of a push: mended, walked through, put into the namespace.
#[divan::bench(args = [16, 200])]
fn rewrite_devinfo_kib(bencher: Bencher<'_, '_>, kib: usize) {
    let body = devinfo(kib * 1024);
    let namespace = Namespace::generate().unwrap();
    bencher
        .counter(divan::counter::BytesCount::of_str(&body))
        .bench(|| rewritten(&namespace, black_box(&body)));
}

/// The measure for the one above: what it takes to see that the same text is JSON.
#[divan::bench(args = [16, 200])]
fn validate_devinfo_kib(bencher: Bencher<'_, '_>, kib: usize) {
    let body = devinfo(kib * 1024);
    bencher
        .counter(divan::counter::BytesCount::of_str(&body))
        .bench(|| serde_json::from_str::<serde::de::IgnoredAny>(black_box(&body)).unwrap());
}

/// A push without its sockets: whose it is, its claims, its body, our own token.
#[divan::bench(args = [16, 200])]
fn verify_rewrite_and_sign_kib(bencher: Bencher<'_, '_>, kib: usize) {
    let stage = StoreStage::set();
    let links = stage.link(1);
    let link = links.first().unwrap();
    let recogniser = stage.recogniser();
    let body = devinfo(kib * 1024);
    let path = "/rest/devinfo/0.10/bulk";
    let target = Target::parse_strict(path, &[]).unwrap();
    let now = clock::now();
    let qsh = Rule::GitLab.qsh("POST", &target, "");
    let token = SharedKey::new(&link.secret).sign("app", &qsh, None, now);
    let jiras = SharedKey::new(&SharedSecret::parse(SECRET).unwrap());
    bencher
        .counter(divan::counter::BytesCount::of_str(&body))
        .bench(|| {
            let target = Target::parse_strict(black_box(path), &[]).unwrap();
            let token = UnverifiedToken::parse(&token).unwrap();
            let recognised = recogniser.recognise(&token, [192, 0, 2, 1].into(), now);
            let link = stage.runtime.block_on(recognised).unwrap();
            instance::check_claims(&token, "POST", &target, now).unwrap();
            let body = rewritten(&link.namespace, black_box(&body));
            (body, jiras.sign("app", &qsh, None, now))
        });
}

/// A stranger's token is tried on every secret there is.
#[divan::bench]
fn unknown_token_10_000_links(bencher: Bencher<'_, '_>) {
    let stage = StoreStage::set();
    stage.link(10_000);
    let recogniser = stage.recogniser();
    let now = clock::now();
    let stranger = SharedKey::new(&SharedSecret::generate().unwrap());
    let token = stranger.sign("app", &qsh::Qsh::of(""), None, now);
    let token = UnverifiedToken::parse(&token).unwrap();
    let peer = Cell::new(0_u32);
    bencher.bench_local(|| {
        // Each from an address of its own, or it would be slowed down.
        peer.set(peer.get() + 1);
        let peer = std::net::Ipv4Addr::from_bits(peer.get()).into();
        let recognised = recogniser.recognise(&token, peer, now);
        assert!(stage.runtime.block_on(recognised).is_err());
    });
}

fn rewritten(namespace: &Namespace, body: &str) -> Vec<u8> {
    let body = mend(body);
    let survey = namespace::survey(Family::Devinfo, &body).unwrap();
    namespace::put_in(namespace, Family::Devinfo, &body, &survey).unwrap()
}

/// Merge requests as GitLab's serializer writes them, up to a size.
fn devinfo(bytes: usize) -> String {
    let merge_request = |id: usize| {
        serde_json::json!({
            "id": id.to_string(),
            "issueKeys": ["ABC-1"],
            "displayId": format!("group/project!{id}"),
            "title": format!("ABC-1 Mend the roof of house {id}"),
            "author": {"name": "Ada Author", "email": "ada@example.com", "username": "ada", "url": "https://gitlab.example.com/ada", "avatar": null},
            "reviewers": [],
            "commentCount": 0,
            "sourceBranch": format!("abc-1-mend-{id}"),
            "destinationBranch": "main",
            "lastUpdate": "2026-11-25T12:00:00.000Z",
            "status": "OPEN",
            "sourceBranchUrl": format!("https://gitlab.example.com/group/project/-/tree/abc-1-mend-{id}"),
            "url": format!("https://gitlab.example.com/group/project/-/merge_requests/{id}"),
            "updateSequenceId": 1_795_630_706_358_u64,
        })
    };
    let mut merge_requests = Vec::new();
    let mut length = 0;
    for id in 1.. {
        let next = merge_request(id);
        length += next.to_string().len() + 1;
        if length > bytes {
            break;
        }
        merge_requests.push(next);
    }
    serde_json::json!({
        "providerMetadata": {"product": "GitLab 17.5.1"},
        "repositories": [{
            "id": "42", "name": "project", "url": "https://gitlab.example.com/group/project",
            "updateSequenceId": 1_795_630_706_358_u64, "pullRequests": merge_requests,
        }],
    })
    .to_string()
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

impl StoreStage {
    /// So many links of one site, their secrets confirmed.
    fn link(&self, count: usize) -> Vec<Link> {
        let store = self.owner.store().clone();
        let client_key = ClientKey::parse("tenant").unwrap();
        let now = clock::now();
        let link = move |number: usize, namespace| {
            let url = format!("https://gitlab-{number}.example.com");
            Link::new(
                client_key.clone(),
                InstanceUrl::parse(&url).unwrap(),
                LinkMode::Relay,
                false,
                namespace,
                SharedSecret::generate().unwrap(),
                now,
            )
        };
        let change = move |transaction: &mut Transaction<'_>| {
            let mut links = Vec::new();
            for number in 0..count {
                let link = link(number, transaction.claim_namespace().unwrap());
                transaction.put_link(link.clone())?;
                links.push(link);
            }
            Ok::<_, StoreFull>(links)
        };
        self.runtime.block_on(store.transact(change)).unwrap()
    }

    fn recogniser(&self) -> Recogniser {
        let metrics = Arc::new(Metrics::new().unwrap());
        Recogniser::new(self.owner.store().clone(), metrics)
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
        .transact(move |transaction| {
            apply(
                transaction,
                &event,
                &rules,
                "bench",
                std::net::Ipv4Addr::LOCALHOST.into(),
                now,
            )
        })
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
