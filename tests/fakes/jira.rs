//! A Jira Cloud site and Atlassian's key server.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use jiff::Timestamp;
use jira_connect_proxy::{
    client::Client,
    domain::{KeyId, SigningKeyRecord},
    jwt::{crypto, qsh::Rule, signer::generate_key, target::Target},
};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use super::{
    http::{FakeServer, answer, client, try_send},
    secrets,
};

/// A site with one app installed, as Jira sees it.
pub struct FakeJira {
    /// The key server.
    pub keys: FakeServer,
    pub key: SigningKeyRecord,
    pub client_key: String,
    pub base_url: String,
    pub app_key: String,
    client: Client,
    served: Arc<Served>,
}

#[derive(Default)]
struct Served {
    keys: Mutex<BTreeMap<String, String>>,
    /// Fetches of any key.
    fetches: AtomicUsize,
    /// Answers with this status instead of keys, if not 0.
    broken: AtomicU16,
}

/// One lifecycle call, open to tampering before it is sent.
pub struct Call {
    pub method: &'static str,
    pub url: String,
    pub body: Value,
    pub header: Header,
    pub claims: Value,
    /// Signs; the fake's own key unless changed.
    pub key: EncodingKey,
}

impl FakeJira {
    pub async fn start(client_key: &str) -> Self {
        crypto::install();
        let served = Arc::new(Served::default());
        let for_server = Arc::clone(&served);
        let keys = FakeServer::start(move |request: Request<Bytes>| {
            let served = Arc::clone(&for_server);
            async move {
                served.fetches.fetch_add(1, Ordering::SeqCst);
                match served.broken.load(Ordering::SeqCst) {
                    0 => {}
                    status => return answer(status, "broken on purpose"),
                }
                let kid = request.uri().path().trim_start_matches('/').to_owned();
                let pem = served.keys.lock().expect("keys").get(&kid).cloned();
                pem.map_or_else(|| answer(404, "no such key"), |pem| answer(200, pem))
            }
        })
        .await;
        let key = new_key().await;
        let jira = Self {
            keys,
            client_key: client_key.to_owned(),
            base_url: "https://acme.atlassian.net".to_owned(),
            app_key: "gitlab-jira-connect-127.0.0.1".to_owned(),
            client: client(),
            served,
            key,
        };
        jira.publish(&jira.key.kid, &jira.key.public_pem);
        jira
    }

    /// Another site of the same Atlassian: same key server, same signing key.
    pub fn site(&self, client_key: &str) -> Site<'_> {
        Site {
            jira: self,
            client_key: client_key.to_owned(),
        }
    }

    pub fn publish(&self, kid: &KeyId, pem: &str) {
        let mut keys = self.served.keys.lock().expect("keys");
        keys.insert(kid.to_string(), pem.to_owned());
    }

    pub fn fetches(&self) -> usize {
        self.served.fetches.load(Ordering::SeqCst)
    }

    /// From now on the key server answers with this status; 0 heals it.
    pub fn break_key_server(&self, status: u16) {
        self.served.broken.store(status, Ordering::SeqCst);
    }

    /// What Jira would send to `app_base_url`.
    pub fn call(&self, app_base_url: &str, event: &str, secret: Option<&str>) -> Call {
        self.site(&self.client_key)
            .call(app_base_url, event, secret)
    }

    /// `installed`, with this secret.
    pub async fn installed(&self, app_base_url: &str, secret: &str) -> Response<Bytes> {
        self.send(self.call(app_base_url, "installed", Some(secret)))
            .await
    }

    /// `uninstalled`.
    pub async fn uninstalled(&self, app_base_url: &str) -> Response<Bytes> {
        self.send(self.call(app_base_url, "uninstalled", None))
            .await
    }

    pub async fn send(&self, call: Call) -> Response<Bytes> {
        self.try_send(call).await.expect("an answer from the relay")
    }

    pub async fn try_send(&self, call: Call) -> Option<Response<Bytes>> {
        let request = Request::builder()
            .method(call.method)
            .uri(&call.url)
            .header("authorization", format!("JWT {}", call.token()))
            .header("content-type", "application/json")
            .body(Full::from(call.body.to_string()))
            .expect("request");
        try_send(&self.client, request).await
    }
}

/// One of several sites of a [`FakeJira`].
pub struct Site<'a> {
    jira: &'a FakeJira,
    client_key: String,
}

impl Site<'_> {
    pub fn call(&self, app_base_url: &str, event: &str, secret: Option<&str>) -> Call {
        let url = format!("{app_base_url}/events/{event}");
        let jira = self.jira;
        let mut body = json!({
            "key": jira.app_key,
            "clientKey": self.client_key,
            "baseUrl": jira.base_url,
            "displayUrl": jira.base_url,
            "productType": "jira",
            "description": "Atlassian Jira at acme",
            "eventType": event,
            "oauthClientId": "an-id-that-nobody-asked-for",
        });
        if let (Some(secret), Some(body)) = (secret, body.as_object_mut()) {
            secrets::know("Jira's shared secret", secret);
            body.insert("sharedSecret".to_owned(), secret.into());
        }
        let mut header = Header::new(Algorithm::RS256);
        header.kid = Some(jira.key.kid.to_string());
        Call {
            method: "POST",
            claims: claims(&self.client_key, app_base_url, "POST", &url),
            url,
            body,
            header,
            key: EncodingKey::from_rsa_der(jira.key.pkcs8.expose()),
        }
    }
}

impl Call {
    pub fn token(&self) -> String {
        let token = jsonwebtoken::encode(&self.header, &self.claims, &self.key).expect("sign");
        secrets::know_token("a token that Jira signed", &token);
        token
    }

    pub fn with_claim(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.claims[name] = value.into();
        self
    }

    pub fn without_claim(mut self, name: &str) -> Self {
        self.claims.as_object_mut().expect("claims").remove(name);
        self
    }

    pub fn with_field(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.body[name] = value.into();
        self
    }
}

/// Claims of a token from Jira for this request, as of now.
pub fn claims(issuer: &str, app_base_url: &str, method: &str, url: &str) -> Value {
    let base_path = path_of(app_base_url);
    let target = Target::parse(path_of(url)).expect("target");
    let now = now().as_second();
    json!({
        "iss": issuer,
        "aud": [app_base_url],
        "qsh": Rule::JiraSigns.qsh(method, &target, base_path).as_str(),
        "iat": now,
        "exp": now + 180,
    })
}

/// What stands behind scheme and authority.
pub fn path_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.find('/').and_then(|at| rest.get(at..)).unwrap_or("/")
}

pub async fn new_key() -> SigningKeyRecord {
    tokio::task::spawn_blocking(|| generate_key(now()))
        .await
        .expect("task")
        .expect("key")
}

pub fn now() -> Timestamp {
    jira_connect_proxy::clock::now()
}
