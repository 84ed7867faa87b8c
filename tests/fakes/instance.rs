//! A self-managed GitLab: verifies lifecycle calls as GitLab does, and remembers what it was told.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::Full;
use jira_connect_proxy::{
    client::Client,
    jwt::{qsh::Rule, target::Target},
};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{
    http::{FakeServer, answer, client, free_port, try_send},
    jira::now,
    secrets,
};

/// One simulated instance.
pub struct FakeInstance {
    server: Option<FakeServer>,
    address: SocketAddr,
    root: String,
    state: watch::Sender<State>,
    behaviour: Arc<Mutex<Behaviour>>,
    proxy_url: String,
    /// What it shows to whoever asks.
    pub front: Arc<Mutex<Front>>,
    client: Client,
}

/// What a GitLab shows beside its events: to strangers, and to who signs with a known secret.
#[derive(Clone, Debug)]
pub struct Front {
    /// `app_descriptor`; none if it is no GitLab.
    pub descriptor: Option<Value>,
    /// `oauth_application_id`.
    pub application_id: Option<String>,
    /// Who may read that from a browser: its Jira Connect Proxy URL.
    pub allowed_origin: String,
    /// Groups linked to the site: id of the subscription, full name.
    pub groups: Vec<(u64, String)>,
    /// Sees itself under this host, whatever it is called by.
    pub own_host: Option<String>,
    /// Says that it is this time.
    pub date: Option<String>,
    /// Signed calls: method, path, claims.
    pub signed: Vec<(String, String, Value)>,
}

/// What it holds and what it was told.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// By client key.
    pub installations: BTreeMap<String, Known>,
    pub events: Vec<Told>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub shared_secret: String,
    pub base_url: String,
}

#[derive(Clone, Debug)]
pub struct Told {
    pub event: String,
    pub fields: BTreeMap<String, String>,
    pub content_type: String,
    pub claims: Value,
    pub status: u16,
}

/// How it answers lifecycle calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// As GitLab does.
    Honest,
    /// Always this status; nothing is verified or stored.
    Status(u16),
    /// Takes the call, then says nothing for this long.
    Silent(Duration),
    /// Stores, but answers with this status: the acknowledgement is lost.
    StoresThenFails(u16),
}

impl FakeInstance {
    /// An instance under `root` (`""` or `/gitlab`) whose Jira Connect Proxy URL is `proxy_url`.
    pub async fn start(proxy_url: &str, root: &str) -> Self {
        let mut instance = Self {
            server: None,
            address: (Ipv4Addr::LOCALHOST, free_port()).into(),
            root: root.to_owned(),
            state: watch::Sender::new(State::default()),
            behaviour: Arc::new(Mutex::new(Behaviour::Honest)),
            proxy_url: proxy_url.to_owned(),
            front: Arc::new(Mutex::new(Front {
                descriptor: Some(serde_json::json!({
                    "key": "gitlab-jira-connect-gitlab.example.com",
                    "apiMigrations": {"signed-install": true},
                })),
                application_id: Some("application".to_owned()),
                allowed_origin: proxy_url.to_owned(),
                groups: Vec::new(),
                own_host: None,
                date: None,
                signed: Vec::new(),
            })),
            client: client(),
        };
        instance.go_up().await;
        instance
    }

    /// The instance dies: its port is closed.
    pub async fn go_down(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop().await;
        }
    }

    /// It comes (back), on the same port.
    pub async fn go_up(&mut self) {
        let (state, behaviour) = (self.state.clone(), Arc::clone(&self.behaviour));
        let (root, proxy_url) = (self.root.clone(), self.proxy_url.clone());
        let (client, front) = (self.client.clone(), Arc::clone(&self.front));
        let server = FakeServer::start_on(self.address, move |request| {
            let (state, behaviour) = (state.clone(), Arc::clone(&behaviour));
            let (root, proxy_url, client) = (root.clone(), proxy_url.clone(), client.clone());
            let front = Arc::clone(&front);
            async move {
                let front_answer = show(&request, &root, &mut front.lock().expect("front"), &state);
                if let Some(answer) = front_answer {
                    return answer;
                }
                let behaviour = behaviour.lock().expect("behaviour").clone();
                let own_host = front.lock().expect("front").own_host.clone();
                let told = judge(&request, &root, &proxy_url, &client, &behaviour, own_host).await;
                let Some((told, known)) = told else {
                    return answer(404, "");
                };
                let status = told.status;
                let client_key = told.fields.get("clientKey").cloned().unwrap_or_default();
                state.send_modify(|state| {
                    match (known, told.event.as_str(), status) {
                        (Some(known), _, _) => {
                            state.installations.insert(client_key, known);
                        }
                        (None, "uninstalled", 200) => {
                            state.installations.remove(&client_key);
                        }
                        _ => {}
                    }
                    state.events.push(told);
                });
                answer(status, "")
            }
        })
        .await;
        self.address = server.address;
        self.server = Some(server);
    }

    pub fn url(&self) -> String {
        format!("http://{}{}", self.address, self.root)
    }

    pub fn behave(&self, behaviour: Behaviour) {
        *self.behaviour.lock().expect("behaviour") = behaviour;
    }

    /// Loses an installation, as a restored backup does.
    pub fn forget(&self, client_key: &str) {
        self.state.send_modify(|state| {
            state.installations.remove(client_key);
        });
    }

    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    pub fn known(&self, client_key: &str) -> Option<Known> {
        self.state().installations.get(client_key).cloned()
    }

    /// Waits until the state is as wanted.
    pub async fn until(&self, what: &str, wanted: impl FnMut(&State) -> bool) -> State {
        let mut states = self.state.subscribe();
        let waiting = states.wait_for(wanted);
        let state = tokio::time::timeout(Duration::from_secs(30), waiting).await;
        match state {
            Ok(Ok(state)) => state.clone(),
            _ => panic!("{} never came to: {what}; {:#?}", self.url(), self.state()),
        }
    }
}

/// A token as an instance signs it, with claims changed or (null) removed.
pub fn token(secret: &str, method: &str, path_and_query: &str, change: Value) -> String {
    let target = Target::parse(path_and_query).expect("target");
    let now = now().as_second();
    let mut claims = json!({
        "iss": "gitlab-jira-connect-127.0.0.1", "iat": now, "exp": now + 60,
        "qsh": Rule::GitLab.qsh(method, &target, "").as_str(),
    });
    for (name, value) in change.as_object().cloned().unwrap_or_default() {
        match value {
            Value::Null => claims.as_object_mut().expect("claims").remove(&name),
            value => claims.as_object_mut().expect("claims").insert(name, value),
        };
    }
    let key = EncodingKey::from_secret(secret.as_bytes());
    let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key).expect("sign");
    secrets::know_token("a token that an instance signed", &token);
    token
}

/// Everything but events.
fn show(
    request: &Request<Bytes>,
    root: &str,
    front: &mut Front,
    state: &watch::Sender<State>,
) -> Option<Response<Bytes>> {
    let path = request.uri().path();
    let path = path.strip_prefix(&format!("{root}/-/jira_connect/"))?;
    let json = |value: Value| answer(200, value.to_string());
    Some(match path {
        "app_descriptor" => {
            let host = request.headers().get(header::HOST);
            let host = host.and_then(|host| host.to_str().ok()).unwrap_or_default();
            let host = front.own_host.as_deref().unwrap_or(host);
            let base_url = format!("https://{host}{root}/-/jira_connect");
            front.descriptor.clone().map_or_else(
                || answer(404, ""),
                |mut descriptor| {
                    descriptor["baseUrl"] = base_url.into();
                    json(descriptor)
                },
            )
        }
        "installations" => match signed_by(request, &state.borrow()) {
            Some(_) => json(serde_json::json!({"gitlab_com": true, "instance_url": null})),
            None => answer(403, ""),
        },
        "oauth_application_id" => {
            let id = front.application_id.as_ref();
            let mut shown = id.map_or_else(
                || answer(404, ""),
                |id| json(serde_json::json!({"application_id": id})),
            );
            if let Some(date) = &front.date {
                let date = date.parse().expect("header value");
                shown.headers_mut().insert(header::DATE, date);
            }
            // rack-cors: byte by byte, and nothing at all for others.
            let origin = request.headers().get(header::ORIGIN);
            if let Some(origin) = origin.filter(|origin| *origin == front.allowed_origin.as_str()) {
                let headers = shown.headers_mut();
                headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            }
            shown
        }
        path if path.starts_with("subscriptions") => {
            let Some(claims) = signed_by(request, &state.borrow()) else {
                return Some(answer(403, ""));
            };
            let method = request.method().to_string();
            front.signed.push((method, path.to_owned(), claims));
            let id = path.strip_prefix("subscriptions/");
            match id.map(|id| id.parse::<u64>().expect("id")) {
                None => json(
                    serde_json::json!({"subscriptions": front.groups.iter().map(|(id, name)| {
                    serde_json::json!({
                        "created_at": "2026-11-01T00:00:00Z",
                        "unlink_path": format!("{root}/-/jira_connect/subscriptions/{id}"),
                        "group": {"name": name, "full_name": name, "avatar_url": null, "description": ""},
                    })
                }).collect::<Vec<_>>()}),
                ),
                Some(id) if front.groups.iter().any(|(known, _)| *known == id) => {
                    front.groups.retain(|(known, _)| *known != id);
                    json(serde_json::json!({"success": true}))
                }
                Some(_) => answer(404, ""),
            }
        }
        _ => return None,
    })
}

/// The claims of a token that one of the known secrets signed.
fn signed_by(request: &Request<Bytes>, state: &State) -> Option<Value> {
    let token = request
        .headers()
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?;
    let token = token.strip_prefix("JWT ")?;
    let mut validation = Validation::new(Algorithm::HS256);
    validation.validate_aud = false;
    state.installations.iter().find_map(|(client_key, known)| {
        let key = DecodingKey::from_secret(known.shared_secret.as_bytes());
        let claims = jsonwebtoken::decode::<Value>(token, &key, &validation)
            .ok()?
            .claims;
        // A context token is for a browser, which gets it in an answer.
        if claims["qsh"] != "context-qsh" {
            secrets::know_token("a token that the relay signed for an instance", token);
        }
        (claims["iss"] == client_key.as_str()).then_some(claims)
    })
}

/// GitLab's order: token, key from the proxy, signature, audience, issuer, hash, record.
async fn judge(
    request: &Request<Bytes>,
    root: &str,
    proxy_url: &str,
    client: &Client,
    behaviour: &Behaviour,
    own_host: Option<String>,
) -> Option<(Told, Option<Known>)> {
    let event = request
        .uri()
        .path()
        .strip_prefix(&format!("{root}/-/jira_connect/events/"))?
        .to_owned();
    let fields: BTreeMap<String, String> = form_urlencoded::parse(request.body())
        .into_owned()
        .collect();
    // What belongs into this call and nowhere else.
    for (name, kind) in [
        ("sharedSecret", "a secret that an instance was given"),
        ("jwt", "a token that the relay signed for an instance"),
    ] {
        if let Some(secret) = fields.get(name) {
            secrets::know_token(kind, secret);
        }
    }
    let text = |name| {
        let value = request
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    let mut told = Told {
        event,
        content_type: text(header::CONTENT_TYPE),
        claims: Value::Null,
        status: 401,
        fields,
    };
    match behaviour {
        Behaviour::Status(status) => {
            told.status = *status;
            return Some((told, None));
        }
        Behaviour::Silent(pause) => {
            tokio::time::sleep(*pause).await;
            told.status = 504;
            return Some((told, None));
        }
        Behaviour::Honest | Behaviour::StoresThenFails(_) => {}
    }
    let host = own_host.unwrap_or_else(|| text(header::HOST));
    let Some(claims) = verified(&told, &host, root, proxy_url, client).await else {
        return Some((told, None));
    };
    told.claims = claims;
    let field = |name: &str| told.fields.get(name).filter(|v| !v.is_empty()).cloned();
    let known = match (told.event.as_str(), field("sharedSecret"), field("baseUrl")) {
        ("installed", Some(shared_secret), Some(base_url)) => Some(Known {
            shared_secret,
            base_url,
        }),
        ("installed", _, _) => {
            told.status = 422;
            return Some((told, None));
        }
        _ => None,
    };
    told.status = match behaviour {
        Behaviour::StoresThenFails(status) => *status,
        _ => 200,
    };
    Some((told, known))
}

async fn verified(
    told: &Told,
    host: &str,
    root: &str,
    proxy_url: &str,
    client: &Client,
) -> Option<Value> {
    let token = told.fields.get("jwt")?;
    let kid = jsonwebtoken::decode_header(token).ok()?.kid?;
    let uuid = kid.len() == 36
        && kid
            .bytes()
            .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'-'));
    if !uuid {
        return None;
    }
    let key = Request::get(format!("{proxy_url}/-/jira_connect/public_keys/{kid}"));
    let key = try_send(client, key.body(Full::default()).ok()?).await?;
    let key = DecodingKey::from_rsa_pem(key.body()).ok()?;
    let mut validation = Validation::new(Algorithm::RS256);
    validation.set_audience(&[format!("https://{host}{root}/-/jira_connect")]);
    validation.set_issuer(&[told.fields.get("clientKey")?]);
    let claims = jsonwebtoken::decode::<Value>(token, &key, &validation)
        .ok()?
        .claims;
    let base_path = format!("{root}/-/jira_connect");
    let target = Target::parse(&format!("{base_path}/events/{}", told.event)).ok()?;
    let hash = Rule::GitLab.qsh("POST", &target, &base_path);
    (claims["qsh"] == hash.as_str()).then_some(claims)
}
