//! Forge as the remote of one app sees it: a key set, and invocation tokens signed with its keys.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, Request, Response};
use jira_connect_proxy::{domain::SigningKeyRecord, jwt::crypto};
use ring::{
    rand::SystemRandom,
    rsa::PublicKeyComponents,
    signature::{RSA_PKCS1_SHA256, RsaKeyPair},
};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::{
    http::{FakeServer, answer},
    jira::new_key,
    secrets,
};

pub const APP_ID: &str = "ari:cloud:ecosystem::app/8db33809-1f32-48bb-8c52-5877dab48107";
pub const INSTALLATION_ID: &str =
    "ari:cloud:ecosystem::installation/0a3a7799-53ae-4a5b-9e7e-03338980abb5";
pub const ENVIRONMENT_ID: &str = "ari:cloud:ecosystem::environment/8db33809-1f32-48bb-8c52-5877dab48107/aa911f10-c54b-4b93-9e27-dd2947840b9e";
pub const CLOUD_ID: &str = "4c822e2f-510f-48b9-b8d2-8419d0932949";

/// How long a token of Forge's lives.
pub const TOKEN_LIFE_SECS: i64 = 25;

pub struct FakeForge {
    /// Serves the key set.
    pub server: FakeServer,
    pub key: ForgeKey,
    served: Arc<Served>,
    tokens: AtomicUsize,
}

/// A key of Forge's: its name looks like those that the platform uses.
pub struct ForgeKey {
    pub kid: String,
    pub record: SigningKeyRecord,
}

struct Served {
    answer: Mutex<Response<Bytes>>,
    fetches: AtomicUsize,
    /// One permit for each fetch that may be answered.
    gate: Semaphore,
}

/// A token, open to tampering before it is signed.
#[derive(Clone)]
pub struct Fit {
    pub header: Value,
    pub claims: Value,
}

impl FakeForge {
    pub async fn start() -> Self {
        crypto::install();
        let key = ForgeKey::new().await;
        let served = Arc::new(Served {
            answer: Mutex::new(key_set(&[&key])),
            fetches: AtomicUsize::new(0),
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
        });
        let for_server = Arc::clone(&served);
        let server = FakeServer::start(move |_: Request<Bytes>| {
            let served = Arc::clone(&for_server);
            async move {
                served.fetches.fetch_add(1, Ordering::SeqCst);
                served.gate.acquire().await.expect("open").forget();
                served.answer.lock().expect("answer").clone()
            }
        })
        .await;
        Self {
            server,
            key,
            served,
            tokens: AtomicUsize::new(0),
        }
    }

    pub fn jwks_url(&self) -> String {
        format!("{}/.well-known/jwks.json", self.server.url())
    }

    /// From now on the key server answers so.
    pub fn serve(&self, answer: Response<Bytes>) {
        *self.served.answer.lock().expect("answer") = answer;
    }

    pub fn fetches(&self) -> usize {
        self.served.fetches.load(Ordering::SeqCst)
    }

    /// From now on the key server says nothing.
    pub fn fall_silent(&self) {
        self.served.gate.forget_permits(Semaphore::MAX_PERMITS);
    }

    /// Until now.
    pub fn speak_again(&self) {
        self.served.gate.add_permits(1 << 20);
    }

    /// What a trigger of the app brings, as of now: no user, and no address of the site.
    pub fn trigger(&self, now: i64) -> Fit {
        let count = self.tokens.fetch_add(1, Ordering::SeqCst);
        Fit {
            header: json!({"alg": "RS256", "typ": "JWT", "kid": self.key.kid}),
            claims: json!({
                "app": {
                    "id": APP_ID,
                    "version": "8",
                    "appVersion": "2.1.0",
                    "installationId": INSTALLATION_ID,
                    "apiBaseUrl": format!("https://api.atlassian.com/ex/jira/{CLOUD_ID}"),
                    "environment": {"type": "PRODUCTION", "id": ENVIRONMENT_ID},
                    "module": {"type": "core:trigger", "key": "installed"},
                    "installation": {
                        "id": INSTALLATION_ID,
                        "contexts": [{
                            "name": "jira",
                            "apiBaseUrl": format!("https://api.atlassian.com/ex/jira/{CLOUD_ID}"),
                        }],
                    },
                },
                "context": {
                    "cloudId": CLOUD_ID,
                    "moduleKey": "installed",
                    "userAccess": {"enabled": false},
                },
                "aud": APP_ID,
                "iss": "forge/invocation-token",
                "iat": now,
                "nbf": now,
                "exp": now + TOKEN_LIFE_SECS,
                "jti": format!("{count:040x}"),
            }),
        }
    }

    /// What a call of the app's page brings.
    pub fn page(&self, now: i64) -> Fit {
        let mut fit = self.trigger(now);
        fit.claims["app"]["module"] = json!({"type": "jira:adminPage", "key": "page"});
        fit.claims["context"] = json!({
            "cloudId": CLOUD_ID,
            "localId": "4654fa12-4c7c-4792-95a9-6019edb27953",
            "moduleKey": "page",
            "siteUrl": "https://acme.atlassian.net",
            "extension": {"type": "jira:adminPage"},
        });
        fit.claims["principal"] = "655362:312d3308-8954-42b0-aa38-771a10c88656".into();
        fit
    }

    /// Signed as Forge does.
    pub fn sign(&self, fit: &Fit) -> String {
        self.key.sign(fit)
    }
}

impl ForgeKey {
    pub async fn new() -> Self {
        let record = new_key().await;
        Self {
            kid: format!("forge/invocation-token/wf-{}", record.kid),
            record,
        }
    }

    fn pair(&self) -> RsaKeyPair {
        RsaKeyPair::from_pkcs8(self.record.pkcs8.expose()).expect("key")
    }

    /// Its public half as it stands in a key set.
    pub fn jwk(&self) -> Value {
        let public = PublicKeyComponents::<Vec<u8>>::from(self.pair().public());
        json!({
            "kty": "RSA",
            "use": "sig",
            "alg": "RS256",
            "kid": self.kid,
            "n": URL_SAFE_NO_PAD.encode(public.n),
            "e": URL_SAFE_NO_PAD.encode(public.e),
        })
    }

    /// Signs whatever stands in it, under whatever name.
    pub fn sign(&self, fit: &Fit) -> String {
        let (text, pair) = (fit.unsigned(), self.pair());
        let mut signature = vec![0; pair.public().modulus_len()];
        pair.sign(
            &RSA_PKCS1_SHA256,
            &SystemRandom::new(),
            text.as_bytes(),
            &mut signature,
        )
        .expect("sign");
        let token = format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature));
        secrets::know_token("an invocation token of Forge's", &token);
        token
    }
}

impl Fit {
    /// The text that is signed.
    pub fn unsigned(&self) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}", part(&self.header), part(&self.claims))
    }

    pub fn with_header(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.header[name] = value.into();
        self
    }

    /// Sets what stands at a place like `/app/id`.
    pub fn with(mut self, place: &str, value: impl Into<Value>) -> Self {
        let (parent, name) = place.rsplit_once('/').expect("a place");
        let parent = self.claims.pointer_mut(parent).expect("a parent");
        parent[name] = value.into();
        self
    }

    pub fn without(mut self, place: &str) -> Self {
        let (parent, name) = place.rsplit_once('/').expect("a place");
        let parent = self.claims.pointer_mut(parent).expect("a parent");
        let gone = parent.as_object_mut().expect("an object").remove(name);
        assert!(gone.is_some(), "{place} was there");
        self
    }
}

/// A key set as Forge serves it.
pub fn key_set(keys: &[&ForgeKey]) -> Response<Bytes> {
    let keys: Vec<Value> = keys.iter().map(|key| key.jwk()).collect();
    let body = json!({"keys": keys}).to_string();
    with_header(answer(200, body), "cache-control", "public, max-age=600")
}

pub fn with_header(
    mut answer: Response<Bytes>,
    name: &'static str,
    value: &str,
) -> Response<Bytes> {
    let headers: &mut HeaderMap = answer.headers_mut();
    let value = value.parse().expect("value");
    headers.insert(HeaderName::from_static(name), value);
    answer
}
