//! The acts; each ends with what it proved.

use anyhow::Context as _;
use jira_connect_proxy::jwt::signer::TOKEN_LIFE_SECS;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::Value;
use tokio::time::Instant;

use crate::{
    fakes::instance::Told,
    hops::kid,
    stage::{BOTH, CLIENT_KEY, Which},
    story::Story,
};

impl Story {
    pub async fn install(&mut self) -> anyhow::Result<()> {
        self.tell.act("A Jira admin installs the app");
        self.tell.say(
            "Jira makes a secret for this site and hands it to the relay, in a call that Atlassian signs.",
        );
        let secret = self.secrets.generate()?;
        self.jira_tells("installed", Some(&secret)).await?;
        let stored = self.stage.operator.installation().await?;
        let fetches = self.stage.jira.fetches();
        self.tell.prove(
            "the relay took Jira's call after it fetched Atlassian's public key, and stored the site",
            stored["client_key"] == CLIENT_KEY
                && stored["state"] == "installed"
                && stored["secret_generation"] == 1
                && fetches == 1,
            || format!("{fetches} fetches, {stored}"),
        )
    }

    pub async fn refuse_a_stranger(&mut self) -> anyhow::Result<()> {
        self.tell.act("A stranger tries to replace that secret");
        self.tell.say(
            "The same call for the same site, but signed with HS256 and a secret of the stranger's own.",
        );
        let secret = self.secrets.generate()?;
        let base_url = self.stage.app_base_url();
        let mut call = self.stage.jira.call(&base_url, "installed", Some(&secret));
        call.header.alg = Algorithm::HS256;
        call.key = EncodingKey::from_secret(secret.as_bytes());
        let address = format!("{} {}", call.method, call.url);
        self.tell.hop("stranger", "relay", &address);
        let shown = self.secrets.mask(&secret);
        let body = format!("clientKey     {CLIENT_KEY}\nsharedSecret  {shown}");
        self.tell.detail("body", &body);

        let answer = self.stage.jira.try_send(call).await;
        let answer = answer.context("the relay does not answer the stranger")?;
        let status = answer.status().as_u16();
        let error: Value = serde_json::from_slice(answer.body())?;
        let part = |name: &str| error["error"][name].as_str().unwrap_or("none").to_owned();
        self.tell.party("relay");
        let refusal = format!("{status} {}: {}", part("code"), part("message"));
        self.tell.detail("answers", &refusal);
        let stored = self.stage.operator.installation().await?;
        self.tell.prove(
            "a stranger's call for a known site is refused, and nothing is stored",
            status == 401 && stored["secret_generation"] == 1,
            || format!("{refusal}, {stored}"),
        )
    }

    pub async fn link_both(&mut self) -> anyhow::Result<()> {
        self.tell.act("The operator links both GitLabs to the site");
        self.tell.say(
            "The relay makes a secret for each link, and tells each GitLab as GitLab's own proxy would. \
             The GitLab judges for itself.",
        );
        for which in BOTH {
            self.link(which).await?;
        }
        let fetches = self.stage.operator.key_fetches().await?;
        let calls = self.believed_calls();
        self.tell.prove(
            "both GitLabs fetched the relay's public key, and verified signature, aud, iss and qsh",
            calls == [1, 1] && fetches == 2,
            || format!("calls {calls:?}, {fetches} key fetches"),
        )?;
        let secrets = self.held_secrets();
        let relayed = BOTH.iter().all(|which| {
            let known = self.stage.gitlab(*which).known();
            known.is_some_and(|known| known.base_url == self.stage.url)
        });
        // 1 is Jira's, 2 the stranger's.
        self.tell.prove(
            "each GitLab holds a secret of its own, not Jira's, and the relay's address as base URL",
            secrets == [Some(3), Some(4)] && relayed,
            || format!("secrets {secrets:?}, base URLs: {relayed}"),
        )
    }

    pub async fn rotate(&mut self) -> anyhow::Result<()> {
        self.tell.act("Jira rotates its secret");
        self.tell.say(
            "Jira just sends `installed` again. Its new secret stays in the relay, where the old one counts \
             for a grace time. Each GitLab keeps its own, so it does not matter whether one is down.",
        );
        let before = self.held_secrets();
        let secret = self.secrets.generate()?;
        self.jira_tells("installed", Some(&secret)).await?;
        let stored = self.stage.operator.installation().await?;
        self.tell.prove(
            "after a rotation in Jira the relay holds the new secret",
            stored["secret_generation"] == 2 && stored["links"] == 2,
            || stored.to_string(),
        )?;
        // A link with nothing due has no call on its way either.
        let untouched =
            |link: &Value| link["generation"] == 1 && link["acknowledged_generation"] == 1;
        for which in BOTH {
            self.link_when(which, "the link is as it was", untouched)
                .await?;
        }
        let (after, calls) = (self.held_secrets(), self.believed_calls());
        self.tell.prove(
            "no GitLab was called for it, and each keeps its secret",
            before == after && calls == [1, 1],
            || format!("secrets {before:?}, then {after:?}; calls {calls:?}"),
        )
    }

    pub async fn resend(&mut self) -> anyhow::Result<()> {
        self.tell.act("The operator gives GitLab A a fresh secret");
        self.tell.say("Say it runs on a restored backup, or its secret leaked: one call repairs that one link.");
        let path = format!("/api/v1/links/{}/resend", self.stage.a.link_id);
        self.operator_asks(&path, None, Which::A).await?;
        let (secrets, calls) = (self.held_secrets(), self.believed_calls());
        self.tell.prove(
            "a resend gives one GitLab a fresh secret, and leaves the other alone",
            secrets == [Some(6), Some(4)] && calls == [2, 1],
            || format!("secrets {secrets:?}, calls {calls:?}"),
        )
    }

    pub async fn uninstall_while_one_is_down(&mut self) -> anyhow::Result<()> {
        self.tell
            .act("GitLab B goes down, then the app is uninstalled from Jira");
        self.tell.say(
            "Jira sends `uninstalled` once and never again. The relay takes it at once, and keeps trying \
             whoever does not answer.",
        );
        self.stage.b.go_down().await;
        self.tell.party("GitLab B");
        self.tell.detail("down", "nobody listens on its port");
        self.jira_tells("uninstalled", None).await?;
        let answered = Instant::now();
        let told = self.stage.a.until_it_holds_nothing().await;
        let took = answered.elapsed().as_millis();
        told?;
        self.tell_delivery(Which::A)?;
        self.tell.detail(
            "when",
            &format!("{took} ms after the relay had answered Jira, or sooner"),
        );
        self.link_when(Which::A, "the relay knows that A was told", is_told)
            .await?;
        let tried_twice = |link: &Value| link["attempts"].as_u64() >= Some(2);
        let waiting = self
            .link_when(Which::B, "B is tried again", tried_twice)
            .await?;
        self.tell.hop("relay", "GitLab B", "no connection");
        let tried = format!("{} times so far, with growing pauses", waiting["attempts"]);
        self.tell.detail("tried", &tried);
        for part in ["code", "message", "hint"] {
            let text = waiting["last_error"][part].as_str();
            self.tell.detail(part, text.unwrap_or("none"));
        }
        let (secrets, calls) = (self.held_secrets(), self.believed_calls());
        self.tell.prove(
            "the uninstall was taken, and GitLab A told, without waiting for GitLab B, which was down",
            secrets == [None, Some(4)] && calls == [3, 1] && !is_told(&waiting),
            || format!("secrets {secrets:?}, calls {calls:?}, {waiting}"),
        )
    }

    pub async fn come_back(&mut self) -> anyhow::Result<()> {
        self.tell.act("GitLab B comes back");
        self.tell.say("Nobody does anything. The next attempt carries a token of its own, signed when it is made.");
        self.stage.b.server.go_up().await;
        let up = Instant::now();
        let told = self.stage.b.until_it_holds_nothing().await;
        let took = up.elapsed().as_millis();
        told?;
        self.tell_delivery(Which::B)?;
        self.tell
            .detail("when", &format!("{took} ms after it was up"));
        self.link_when(Which::B, "the relay knows that B was told", is_told)
            .await?;
        let (secrets, calls) = (self.held_secrets(), self.believed_calls());
        self.tell.prove(
            "GitLab B was told by itself once it was back; no GitLab holds anything of the site",
            secrets == [None, None] && calls == [3, 2],
            || format!("secrets {secrets:?}, calls {calls:?}"),
        )
    }

    /// What holds over all acts so far.
    pub async fn look_back(&mut self) -> anyhow::Result<()> {
        self.tell.act("Looking back");
        let told: Vec<Told> = BOTH
            .into_iter()
            .flat_map(|which| self.stage.gitlab(which).events())
            .collect();
        let active = self.stage.operator.active_kid().await?;
        let fetches = self.stage.operator.key_fetches().await?;
        let by_active_key = told
            .iter()
            .all(|told| kid(told).is_ok_and(|kid| kid == active));
        let short_lived = told.iter().all(|told| {
            let second = |name: &str| told.claims[name].as_i64();
            second("exp") == second("iat").map(|iat| iat + TOKEN_LIFE_SECS)
        });
        let mut ids: Vec<_> = told
            .iter()
            .filter_map(|told| told.claims["jti"].as_str())
            .collect();
        ids.sort_unstable();
        ids.dedup();
        let counts = [told.len(), ids.len(), fetches];
        let [calls, jti, fetched] = counts;
        let seen = format!("{calls} calls to GitLabs, {jti} different jti, {fetched} key fetches");
        self.tell.detail("tokens", &seen);
        self.tell.prove(
            "each call to a GitLab had a fresh token: own jti, 180 s of life, the active signing key",
            counts == [5; 3] && by_active_key && short_lived,
            || format!("{counts:?}, active key: {by_active_key}, life: {short_lived}"),
        )?;
        let answers = &self.stage.operator.answers;
        let leaks = answers
            .iter()
            .filter(|answer| self.secrets.any_in(answer.as_bytes()))
            .count();
        let looked = format!(
            "for {} secrets in {} answers",
            self.secrets.count(),
            answers.len()
        );
        self.tell.detail("looked", &looked);
        self.tell.prove(
            "no answer of the admin listener held a secret",
            leaks == 0 && self.secrets.count() >= 6,
            || format!("{leaks} that did"),
        )
    }

    pub async fn reinstall(&mut self) -> anyhow::Result<()> {
        self.tell
            .act("The app is installed again, to have something to look at");
        self.tell
            .say("The links of the site come back by themselves, each with a fresh secret.");
        let secret = self.secrets.generate()?;
        self.jira_tells("installed", Some(&secret)).await?;
        let connected = |link: &Value| link["state"] == "connected";
        for which in BOTH {
            self.link_when(which, "the link is back", connected).await?;
            self.tell_delivery(which)?;
        }
        let (secrets, calls) = (self.held_secrets(), self.believed_calls());
        self.tell.prove(
            "a reinstall brings both links back, with fresh secrets",
            secrets == [Some(8), Some(9)] && calls == [4, 3],
            || format!("secrets {secrets:?}, calls {calls:?}"),
        )
    }

    /// The numbers of the secrets that both instances hold.
    fn held_secrets(&mut self) -> [Option<usize>; 2] {
        BOTH.map(|which| {
            let known = self.stage.gitlab(which).known();
            known.map(|known| self.secrets.number(&known.shared_secret))
        })
    }

    /// How many calls both instances have verified and taken.
    fn believed_calls(&self) -> [usize; 2] {
        BOTH.map(|which| {
            let events = self.stage.gitlab(which).events();
            events
                .iter()
                .filter(|told| told.status == 200 && !told.claims.is_null())
                .count()
        })
    }

    async fn link_when(
        &mut self,
        which: Which,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let id = self.stage.gitlab(which).link_id.clone();
        self.stage.operator.link_when(&id, what, wanted).await
    }
}

/// The instance has confirmed that it is over.
fn is_told(link: &Value) -> bool {
    link["acknowledged"] == "uninstalled"
}
