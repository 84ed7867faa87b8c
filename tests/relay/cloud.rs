//! Atlassian's cloud for those who come after Connect: the API gateway with its token endpoint, sites, and the Forge
//! platform, whose tokens npm `jose` signs. See `tests/judges/README.md`.

use std::sync::Mutex;

use serde_json::{Value, json};

use crate::{
    fakes::secrets,
    harness::{Judge, Settings},
};

pub const FAMILIES: [&str; 5] = [
    "devinfo",
    "builds",
    "deployments",
    "featureflags",
    "remotelinks",
];

/// The whole of it. Its doors are `api`, `jwks`, and each site by its name.
pub struct Cloud {
    pub api_url: String,
    pub jwks_url: String,
    judge: Mutex<Judge>,
}

/// A Jira Cloud site.
pub struct CloudSite {
    pub name: String,
    pub url: String,
    pub cloud_id: String,
}

/// What a Jira admin creates under "OAuth credentials". What it writes is kept apart by `provider`.
pub struct Credential {
    pub client_id: String,
    pub client_secret: String,
    pub provider: String,
}

/// An operator's Forge app on a site.
pub struct Installed {
    /// Its ARI, which all the commands want.
    pub id: String,
    pub provider: String,
    pub api_base_url: String,
    /// How the remote took the event: `{delivered, status, attempts}`.
    pub told: Value,
}

impl Cloud {
    pub fn start() -> Self {
        let judge = Judge::start("node", &["atlassian.mjs"]);
        let url = |name: &str| judge.ready[name].as_str().expect("url").to_owned();
        Self {
            api_url: url("api_url"),
            jwks_url: url("jwks_url"),
            judge: Mutex::new(judge),
        }
    }

    /// One command. Waits for the answer, and the remote's if there is one to call: so it leaves the runtime's other
    /// threads to the relay.
    pub fn ask(&self, name: &str, mut command: Value) -> Value {
        command["cmd"] = name.into();
        let answer = tokio::task::block_in_place(|| self.judge.lock().expect("judge").ask(command));
        know(&answer);
        answer
    }

    /// Has a relay find this cloud instead of Atlassian's, take this app's invocations, and serve these sites.
    pub fn aim(&self, settings: &mut Settings, app: &str, sites: &[&CloudSite]) {
        let sites: Vec<&str> = sites.iter().map(|site| site.url.as_str()).collect();
        for (key, value) in [
            ("JIRA__API_URL", self.api_url.as_str()),
            ("JIRA__EXTRA_SITES", &sites.join(",")),
            ("FORGE__JWKS_URL", &self.jwks_url),
            ("FORGE__APP_ID", app),
        ] {
            settings.set(key, value);
        }
    }

    pub fn site(&self, name: &str) -> CloudSite {
        let site = self.ask("site", json!({"name": name}));
        CloudSite {
            name: name.to_owned(),
            url: text(&site, "url"),
            cloud_id: text(&site, "cloud_id"),
        }
    }

    /// Lets the site's Connect app in, too.
    pub fn connect(&self, site: &CloudSite, app_key: &str, secrets: &[&str]) {
        let command = json!({"site": site.name, "app_key": app_key, "secrets": secrets});
        self.ask("configure", command);
    }

    /// A credential that may write these families.
    pub fn credential(&self, site: &CloudSite, permissions: &[&str]) -> Credential {
        let command = json!({"site": site.name, "permissions": permissions});
        let made = self.ask("credential", command);
        Credential {
            client_id: text(&made, "client_id"),
            client_secret: text(&made, "client_secret"),
            provider: text(&made, "provider"),
        }
    }

    /// A Forge app whose remote is a relay; its ARI.
    pub fn app(&self, remote: &str) -> String {
        text(&self.ask("app", json!({"remote": remote})), "app_id")
    }

    /// Installs it; `how` is laid over the command.
    pub fn install(&self, app: &str, site: &CloudSite, how: Value) -> Installed {
        let mut command = json!({"app": app, "site": site.name});
        extend(&mut command, how);
        let told = self.ask("install", command);
        Installed {
            id: text(&told, "installation"),
            provider: text(&told, "provider"),
            api_base_url: text(&told, "api_base_url"),
            told,
        }
    }

    /// A command about an installation: `upgrade`, `scheduled`, `uninstall`, `invoke`, `fit`, `system_token`, `expire`.
    pub fn with(&self, installed: &Installed, command: &str, how: Value) -> Value {
        let mut all = json!({"installation": installed.id});
        extend(&mut all, how);
        self.ask(command, all)
    }

    /// What goes wrong at a door from now on; `{"mode": "ok"}` heals everything there.
    pub fn fault(&self, door: &str, mut fault: Value) {
        fault["at"] = door.into();
        self.ask("fault", fault);
    }

    pub fn heal(&self, door: &str) {
        self.fault(door, json!({"mode": "ok"}));
    }

    /// The entities of a family by key, as far as they are this provider's.
    pub fn entities(&self, site: &CloudSite, provider: &str, family: &str) -> Value {
        let state = self.ask("state", json!({"site": site.name, "provider": provider}));
        state["entities"][family].clone()
    }

    pub fn keys(&self, site: &CloudSite, provider: &str, family: &str) -> Vec<String> {
        let entities = self.entities(site, provider, family);
        let keys = entities
            .as_object()
            .map(|all| all.keys().cloned().collect());
        keys.unwrap_or_default()
    }

    pub fn requests(&self, door: &str) -> Vec<Value> {
        let answer = self.ask("requests", json!({"at": door}));
        answer["requests"].as_array().cloned().unwrap_or_default()
    }

    /// What no honest client does; must be empty at the end of each test that means no harm.
    pub fn violations(&self) -> Value {
        self.ask("violations", json!({}))["violations"].clone()
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        if let Ok(mut judge) = self.judge.lock()
            && !std::thread::panicking()
        {
            let answer = judge.ask(json!({"cmd": "tokens"}));
            for token in answer["tokens"].as_array().into_iter().flatten() {
                secrets::know_token("a token for Jira's API", token.as_str().unwrap_or_default());
            }
        }
    }
}

/// What an answer says that no relay may.
fn know(answer: &Value) {
    match answer {
        Value::Object(members) => {
            for (name, value) in members {
                match (name.as_str(), value.as_str()) {
                    ("client_secret", Some(secret)) => secrets::know("a client secret", secret),
                    ("token", Some(token)) => secrets::know_token("an invocation token", token),
                    ("system_token", Some(token)) => {
                        secrets::know_token("a token for Jira's API", token);
                    }
                    _ => know(value),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(know),
        _ => {}
    }
}

fn extend(command: &mut Value, with: Value) {
    if let (Some(command), Value::Object(with)) = (command.as_object_mut(), with) {
        command.extend(with);
    }
}

fn text(answer: &Value, name: &str) -> String {
    let text = answer[name].as_str();
    text.unwrap_or_else(|| panic!("no {name} in {answer}"))
        .to_owned()
}
