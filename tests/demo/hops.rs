//! Who says what to whom: the calls that the acts are made of, made and told.

use anyhow::Context as _;
use jira_connect_proxy::jwt::qsh::Rule;
use serde_json::{Value, json};

use crate::{
    fakes::{instance::Told, jira::path_of},
    narrator::{Token, canonical},
    secrets::mask,
    stage::{CLIENT_KEY, Which},
    story::Story,
};

impl Story {
    /// Jira tells the relay something, and the relay takes it.
    pub async fn jira_tells(&mut self, event: &str, secret: Option<&str>) -> anyhow::Result<()> {
        let base_url = self.stage.app_base_url();
        let call = self.stage.jira.call(&base_url, event, secret);
        let kid = call.header.kid.clone().unwrap_or_default();
        let secret = secret.map(|secret| format!("\nsharedSecret  {}", self.secrets.mask(secret)));
        self.tell
            .hop("Jira", "relay", &format!("{} {}", call.method, call.url));
        let header = format!("Authorization: JWT {}", mask(&call.token()));
        self.tell.detail("header", &header);
        let body = format!(
            "eventType     {event}\nclientKey     {CLIENT_KEY}\nbaseUrl       {}{}",
            self.stage.jira.base_url,
            secret.unwrap_or_default()
        );
        self.tell.detail("body", &body);
        self.tell.token(&Token {
            signed_by: "Atlassian",
            kid: &kid,
            claims: &call.claims,
            request: &canonical(Rule::JiraSigns, path_of(&call.url), path_of(&base_url))?,
        })?;

        let fetches_before = self.stage.jira.fetches();
        let answer = self.stage.jira.try_send(call).await;
        let answer = answer.context("the relay does not answer Jira")?;
        let status = answer.status().as_u16();
        anyhow::ensure!(
            status == 204,
            "the relay answered Jira with {status}: {}",
            String::from_utf8_lossy(answer.body())
        );
        let key = if self.stage.jira.fetches() > fetches_before {
            format!("{}/{kid} (kept from now on)", self.stage.jira.keys.url())
        } else {
            "nothing: it knows the key already".to_owned()
        };
        let stored = self.stage.operator.installation().await?;
        let (state, generation) = (&stored["state"], &stored["secret_generation"]);
        let stored = format!(
            "site {}, secret generation {generation}; on disk before the answer",
            state.as_str().unwrap_or("unknown")
        );
        self.tell.party("relay");
        self.tell.detail("fetches", &key);
        self.tell.detail(
            "checks",
            "signature, aud (its own address), iss (the body's clientKey), qsh (this request), exp",
        );
        self.tell.detail("stores", &stored);
        self.tell.detail("answers", &status.to_string());
        Ok(())
    }

    /// The operator has a GitLab linked, and the relay tells it.
    pub async fn link(&mut self, which: Which) -> anyhow::Result<()> {
        let instance_url = self.stage.gitlab(which).server.url();
        let wish = json!({"client_key": CLIENT_KEY, "instance_url": instance_url});
        let link = self
            .operator_asks("/api/v1/links", Some(&wish), which)
            .await?;
        let id = link["id"].as_str().context("a link without id")?.to_owned();
        self.stage.gitlab_mut(which).link_id = id;
        Ok(())
    }

    /// The operator asks for something that makes the relay tell a GitLab, and sees how that went.
    pub async fn operator_asks(
        &mut self,
        path: &str,
        body: Option<&Value>,
        which: Which,
    ) -> anyhow::Result<Value> {
        let operator = &mut self.stage.operator;
        self.tell
            .hop("operator", "relay", &format!("POST {}{path}", operator.url));
        let header = format!("Authorization: Bearer {}", mask(&operator.token));
        self.tell.detail("header", &header);
        if let Some(body) = body {
            self.tell.detail("body", &body.to_string());
        }
        let (status, link) = operator.call("POST", path, body).await?;
        anyhow::ensure!(
            matches!(status, 200 | 201) && link["state"] == "connected",
            "POST {path} was answered with {status}: {link:#}"
        );
        self.tell_delivery(which)?;
        self.tell.hop("relay", "operator", &status.to_string());
        self.tell.detail(
            "link",
            &format!("{}, namespace {}", link["state"], link["namespace"]).replace('"', ""),
        );
        Ok(link)
    }

    /// What a GitLab was told last, and what it made of it.
    pub fn tell_delivery(&mut self, which: Which) -> anyhow::Result<()> {
        let gitlab = self.stage.gitlab(which);
        let (name, url, root) = (gitlab.name, gitlab.server.url(), gitlab.root);
        let told = gitlab
            .events()
            .pop()
            .context("the GitLab was told nothing")?;
        anyhow::ensure!(
            told.status == 200 && !told.claims.is_null(),
            "{name} did not believe the relay and answered {}",
            told.status
        );
        let holds = gitlab.known();
        let kid = kid(&told)?;
        let base_path = format!("{root}/-/jira_connect");
        let path = format!("{base_path}/events/{}", told.event);
        self.tell.hop(
            "relay",
            name,
            &format!("POST {url}/-/jira_connect/events/{}", told.event),
        );
        let fields: Vec<String> = told
            .fields
            .iter()
            .map(|(field, value)| self.field(field, value))
            .collect();
        self.tell.detail("form", &fields.join("\n"));
        self.tell.token(&Token {
            signed_by: "the relay, with its own key",
            kid: &kid,
            claims: &told.claims,
            request: &canonical(Rule::GitLab, &path, &base_path)?,
        })?;
        let stores = holds.map_or_else(
            || "nothing any more: secret and base URL are removed".to_owned(),
            |known| {
                let secret = self.secrets.number(&known.shared_secret);
                format!(
                    "secret {secret}, base URL {} (the relay, not Jira)",
                    known.base_url
                )
            },
        );
        self.tell.party(name);
        self.tell.detail(
            "fetches",
            &format!("{}/public_keys/{kid}", self.stage.app_base_url()),
        );
        self.tell.detail(
            "checks",
            "signature, aud (one is its own), iss (the form's clientKey), qsh (this request), exp",
        );
        self.tell.detail("stores", &stores);
        self.tell.detail("answers", &told.status.to_string());
        Ok(())
    }

    /// A field of a form, fit to be shown.
    fn field(&mut self, name: &str, value: &str) -> String {
        let shown = match name {
            "jwt" => mask(value),
            "sharedSecret" => self.secrets.mask(value),
            _ => value.to_owned(),
        };
        format!("{name:<13} {shown}")
    }
}

/// The key that a call to a GitLab named.
pub fn kid(told: &Told) -> anyhow::Result<String> {
    let token = told.fields.get("jwt").context("a call without a token")?;
    jsonwebtoken::decode_header(token)?
        .kid
        .context("a token without a kid")
}
