//! Jira and one GitLab, simulated, for scripts that run a relay of their own: they stand on loopback and do what they
//! are told on standard input, one line of answer for each line.

#![allow(unreachable_pub, reason = "nothing of a program is reachable")]

#[path = "../fakes/mod.rs"]
mod fakes;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::Parser;
use http::Request;
use http_body_util::Full;

use fakes::{
    FakeInstance, FakeJira, FakeSite,
    http::{client, try_send},
    instance::token,
    site::{Mood, marked_push},
};
use jira_connect_proxy::client::Client;
use serde_json::Value;

const CLIENT_KEY: &str = "acme-jira";
const SECRET: &str = "a-secret-of-a-site-a-secret-of-a-site";

/// In an account id, everything that something between might write in another way: an escaped colon, slash and space,
/// an escaped percent sign, letters that need no escape, small letters in an escape.
const USER: &str = "/rest/api/3/user?accountId=557058%3A5b%2F10%20a%2541%2eb%7E&expand=groups";

/// Starts a simulated Jira and a simulated GitLab, says where they are, and then takes orders.
#[derive(Debug, Parser)]
#[command(
    name = "peers",
    after_help = "Orders, each answered by one line:
  get PATH       a call to the relay without a token: status
  install        Jira sends `installed`: status
  push           the GitLab sends a commit to Jira through the relay: status
  user           the GitLab asks about a user, in an address full of escapes: status
  break WHAT     the GitLab: down, own_host, proxy_url, secret
  mend           undo all that, but `secret`
  jira STATUS    the site answers everything with it; 200 heals it
  arrived        how many different pushes reached the site

Example:
  cargo run --example peers -- --relay http://127.0.0.1:8080"
)]
struct Arguments {
    /// The relay as others reach it: its `public.url`.
    #[arg(long)]
    relay: String,
}

struct Peers {
    relay: String,
    jira: FakeJira,
    site: FakeSite,
    gitlab: FakeInstance,
    client: Client,
    pushes: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let relay = Arguments::parse().relay;
    let site = FakeSite::start().await;
    let mut jira = FakeJira::start(CLIENT_KEY).await;
    jira.base_url = site.url();
    let mut peers = Peers {
        gitlab: FakeInstance::start(&relay, "").await,
        client: client(),
        pushes: 0,
        relay,
        jira,
        site,
    };
    println!(
        "{} {} {}",
        peers.jira.keys.url(),
        peers.site.url(),
        peers.gitlab.url()
    );
    // Waiting for the next order holds up this thread; the peers live on the others.
    for order in std::io::stdin().lines() {
        match peers.obey(&order?).await {
            Ok(answer) => println!("{answer}"),
            Err(error) => println!("error: {error:#}"),
        }
    }
    Ok(())
}

impl Peers {
    async fn obey(&mut self, order: &str) -> anyhow::Result<String> {
        let (verb, object) = order.split_once(' ').unwrap_or((order, ""));
        Ok(match verb {
            "get" => self.call("GET", object, None, "").await?,
            "install" => {
                let app = format!("{}/-/jira_connect", self.relay);
                let call = self.jira.call(&app, "installed", Some(SECRET));
                let answer = self.jira.try_send(call).await.context("no answer")?;
                answer.status().as_u16().to_string()
            }
            "push" => {
                self.pushes += 1;
                let (path, body) = marked_push(&format!("push {}", self.pushes), self.pushes);
                self.signed("POST", path, &body.to_string()).await?
            }
            "user" => self.signed("GET", USER, "").await?,
            "break" => self.spoil(object).await?,
            "mend" => self.mend().await,
            "jira" => {
                let mood = match object.parse()? {
                    200 => Mood::Well,
                    status => Mood::Status(status, None),
                };
                self.site.be(mood);
                "done".to_owned()
            }
            "arrived" => self.site.marks().len().to_string(),
            _ => bail!("nobody knows how to {verb:?}"),
        })
    }

    async fn signed(&self, method: &str, path: &str, body: &str) -> anyhow::Result<String> {
        let known = self.gitlab.known(CLIENT_KEY).context("it is not linked")?;
        let token = token(&known.shared_secret, method, path, Value::Null);
        self.call(method, path, Some(token), body).await
    }

    async fn call(
        &self,
        method: &str,
        path: &str,
        token: Option<String>,
        body: &str,
    ) -> anyhow::Result<String> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.relay))
            .header("content-type", "application/json");
        if let Some(token) = token {
            request = request.header("authorization", format!("JWT {token}"));
        }
        // What strangers say of where a call comes from.
        let request = request
            .header("x-forwarded-for", "203.0.113.7")
            .header("forwarded", "for=203.0.113.7")
            .body(Full::new(Bytes::from(body.to_owned())))?;
        let answer = try_send(&self.client, request).await.context("no answer")?;
        Ok(answer.status().as_u16().to_string())
    }

    async fn spoil(&mut self, what: &str) -> anyhow::Result<String> {
        match what {
            "down" => self.gitlab.go_down().await,
            "secret" => self.gitlab.forget(CLIENT_KEY),
            "own_host" => self.front(|front| front.own_host = Some("gitlab.internal".to_owned())),
            "proxy_url" => {
                let relay = self.relay.clone();
                self.front(|front| front.allowed_origin = format!("{relay}/"));
            }
            _ => bail!("nobody knows how to break {what:?}"),
        }
        Ok("done".to_owned())
    }

    async fn mend(&mut self) -> String {
        self.gitlab.go_down().await;
        self.gitlab.go_up().await;
        let relay = self.relay.clone();
        self.front(|front| {
            front.own_host = None;
            front.allowed_origin = relay;
        });
        "done".to_owned()
    }

    fn front(&self, change: impl FnOnce(&mut fakes::instance::Front)) {
        change(&mut self.gitlab.front.lock().expect("front"));
    }
}
