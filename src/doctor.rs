//! Walks the ladder from an instance's name to its traffic, and looks at the relay itself, rung by rung, by the same
//! ways that deliveries and calls take.

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, future::join_all, stream};
use http::{Request, StatusCode};
use http_body_util::Full;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::Value;

use crate::{
    client::{Client, Destination},
    domain::{Installation, InstanceUrl, JiraBaseUrl, Link, LinkId, LinkMode, Upstream},
    forge_sites,
    gitlab::{
        Asker, Prober,
        probe::{Check, Finding, Verdict, compare_clocks},
    },
    jira::{Forwarder, credentials},
    jwt::{KeySet, Signer},
    sites,
    store::Store,
    tls::TlsFiles,
};

const PATIENCE: Duration = Duration::from_secs(15);

/// An instance may be linked to any number of sites. An operator who asks sees so many.
pub const LINKS_TOLD: usize = 8;

/// Links of one instance that are tried out at once.
const LINKS_AT_ONCE: usize = 8;

/// For all of them; the others are left to the next look.
const LINKS_PATIENCE: Duration = Duration::from_secs(60);

/// Sites whose credentials are tried out, all at once.
const SITES_LOOKED_AT: usize = 64;
const ANSWER_MAX_BYTES: usize = 256 * 1024;

/// Lines about sites; those that need nobody are left out first.
const SITES_TOLD: usize = 100;

/// Less room than this for the store and the spool is too little.
const DISK_FAIL_BYTES: u64 = 256 << 20;
const DISK_WARN_BYTES: u64 = 2 << 30;

/// ACME renews certificates of 90 days 30 days before their end: what has only two weeks left was missed.
const CERTIFICATE_WARN: SignedDuration = SignedDuration::from_hours(14 * 24);

/// A link that has been silent for so long is worth a question.
const SILENT_AFTER: SignedDuration = SignedDuration::from_hours(7 * 24);

/// Looks at instances and at the relay.
pub struct Doctor {
    /// Asks instances as a stranger.
    pub prober: Prober,
    /// Asks them with a link's secret.
    pub asker: Asker,
    /// Calls everybody else.
    pub client: Client,
    /// What is known.
    pub store: Store,
    /// Has the signing key.
    pub signer: Arc<Signer>,
    /// As Jira knows us.
    pub app_base_url: String,
    /// Atlassian's key server.
    pub install_keys_url: String,
    /// Forge's keys, if there is a Forge app.
    pub key_set: Option<KeySet>,
    /// Calls Jira sites.
    pub forwarder: Arc<Forwarder>,
    /// Where the store is.
    pub store_path: PathBuf,
    /// The relay's own certificate, if it ends TLS itself.
    pub tls: Option<Arc<TlsFiles>>,
}

/// How closely an instance is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Everything.
    Whole,
    /// Not what leaves a line in the instance's log each time.
    Quiet,
}

/// What was found out about an instance, or about the relay.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The instance's URL, or `relay`.
    pub subject: String,
    /// The worst of its steps.
    pub verdict: Verdict,
    /// In the order of the ladder.
    pub steps: Vec<Step>,
}

/// One rung.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// Which.
    pub rung: &'static str,
    /// Whose, if it is not about the instance as all its links have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link_id: Option<LinkId>,
    /// What was found.
    #[serde(flatten)]
    pub finding: Finding,
}

/// The rungs below an answer, each with the codes that mean that it broke.
const REACH: [(&str, &str, &[&str]); 5] = [
    (
        "allowed",
        "the operator and the address policy allow it",
        &["not_allowed", "address_not_public"],
    ),
    ("dns", "its name can be resolved", &["dns_failed"]),
    (
        "tcp",
        "it takes connections",
        &["connection_failed", "connection_timed_out"],
    ),
    (
        "tls",
        "its certificate is good and for its name",
        &["tls_failed"],
    ),
    (
        "http",
        "it answers at this address",
        &[
            "answer_timed_out",
            "connection_broken",
            "redirected",
            "instance_unavailable",
        ],
    ),
];

/// The rungs above, and what looks at each.
const CHECKS: [(&str, Check); 6] = [
    ("gitlab", Check::Gitlab),
    ("own_address", Check::OwnAddress),
    ("clock", Check::Clock),
    ("proxy_url", Check::ProxyUrl),
    ("public_key", Check::PublicKey),
    ("oauth_application", Check::OauthApplication),
];

impl Doctor {
    /// Walks the ladder of an instance, up to what these of its links find there. What a rung depends on and broke
    /// leaves those above unknown.
    pub async fn instance(
        &self,
        instance: &InstanceUrl,
        links: &[Arc<Link>],
        depth: Depth,
        now: Timestamp,
    ) -> Report {
        let mut steps = Vec::new();
        let prober = &self.prober.afresh();
        let reached = prober.look(instance, Check::Reachable, now).await;
        let broken = REACH
            .iter()
            .position(|(.., codes)| codes.contains(&reached.code));
        for (index, (rung, message, _)) in REACH.iter().enumerate() {
            let finding = match broken {
                Some(broken) if index == broken => reached.clone(),
                Some(broken) if index > broken => not_reached(),
                _ if *rung == "tls" && !instance.is_https() => Finding::warn(
                    "no_tls",
                    "it is http: secrets travel in clear",
                    "give the instance a certificate and link its https address",
                ),
                _ => Finding::ok(rung, *message),
            };
            steps.push(Step::new(rung, finding));
        }
        if broken.is_some() {
            let above = CHECKS.iter().map(|(rung, _)| *rung);
            let above = above.chain(["secret", "traffic"]);
            steps.extend(above.map(|rung| Step::new(rung, not_reached())));
            return Report::new(instance.to_string(), steps);
        }
        let version = links.iter().find_map(|link| link.gitlab_version.as_ref());
        let checks = CHECKS
            .into_iter()
            .filter(|(_, check)| depth == Depth::Whole || *check != Check::PublicKey);
        let checks = checks.map(|(rung, check)| async move {
            let mut finding = prober.look(instance, check, now).await;
            if let (Check::Gitlab, Verdict::Ok, Some(version)) = (check, finding.verdict, version) {
                finding.message = format!("it is GitLab {version}");
            }
            Step::new(rung, finding)
        });
        let of_links = stream::iter(links.to_vec())
            .map(|link| async move {
                let secret = Step::new("secret", self.secret(&link).await);
                let traffic = Step::new("traffic", traffic(&link, now));
                [secret, traffic].map(|step| Step {
                    link_id: Some(link.id),
                    ..step
                })
            })
            .buffered(LINKS_AT_ONCE)
            .take_until(tokio::time::sleep(LINKS_PATIENCE))
            .collect::<Vec<_>>();
        let (checks, of_links) = tokio::join!(join_all(checks), of_links);
        steps.extend(checks);
        steps.extend(of_links.into_iter().flatten());
        Report::new(instance.to_string(), steps)
    }

    /// Looks at the relay itself.
    pub async fn ourselves(&self, now: Timestamp) -> Report {
        let (public, (keys, clock), key_set, credentials) = tokio::join!(
            self.public_url(),
            self.key_server(now),
            self.forge_key_set(),
            self.credentials(now)
        );
        let steps = [
            ("public_url", Some(public)),
            ("key_server", Some(keys)),
            ("clock", Some(clock)),
            ("forge_key_set", key_set),
        ];
        let credentials = credentials.into_iter().map(|found| ("oauth", Some(found)));
        let of_itself = [
            ("certificate", Some(self.certificate(now))),
            ("signing_key", Some(self.signing_key())),
            ("store", Some(self.writable(now).await)),
            ("disk", Some(self.disk())),
        ];
        let of_sites = self.forge_sites(now);
        let of_sites = of_sites.map(|found| ("forge_site", Some(found)));
        let of_twins = self.twins().map(|found| ("sites", Some(found)));
        let steps = steps
            .into_iter()
            .chain(of_sites)
            .chain(credentials)
            .chain(of_twins)
            .chain(of_itself)
            .filter_map(|(rung, finding)| finding.map(|finding| Step::new(rung, finding)));
        Report::new("relay".to_owned(), steps.collect())
    }

    /// The links that an instance knows, or is to know.
    pub fn links_to(&self, instance: &InstanceUrl) -> Vec<Arc<Link>> {
        let mut links = self.store.links();
        links.retain(|link| link.instance_url == *instance && link.wants_installed());
        links
    }

    async fn secret(&self, link: &Link) -> Finding {
        let Some(installation) = self.store.installation(&link.client_key) else {
            return Finding::fail(
                "installation_unknown",
                "the link has no installation",
                "remove the link and make it again",
            );
        };
        match self.asker.check_secret(link, &installation).await {
            Ok(()) => Finding::ok("secret", "it holds the current secret"),
            Err(error) => {
                let reject = error.reject(&self.prober.proxy_url);
                Finding::fail(reject.code, reject.message, reject.hint)
            }
        }
    }

    /// From the relay's own network; what lies between Jira and it can't be seen from here.
    async fn public_url(&self) -> Finding {
        let address = format!("{}/app_descriptor.json", self.app_base_url);
        let hint = "Jira and the instances must reach the relay under public.url: look at DNS, certificate, and what stands in front of it";
        match self.get(&address).await {
            Ok((StatusCode::OK, body, _)) => {
                let descriptor: Value = serde_json::from_slice(&body).unwrap_or_default();
                if descriptor.get("baseUrl").and_then(Value::as_str) == Some(&*self.app_base_url) {
                    self.rest().await
                } else {
                    Finding::fail(
                        "public_url_other",
                        format!("something else than this relay answers at {address}"),
                        hint,
                    )
                }
            }
            Ok((status, ..)) => Finding::fail(
                "public_url_status",
                format!("{address} answers {status}"),
                hint,
            ),
            Err(cause) => Finding::fail("public_url_unreachable", cause, hint),
        }
    }

    /// What stands in front may hand over one folder and not the other.
    async fn rest(&self) -> Finding {
        let address = format!("{}/rest/api/3/user", self.prober.public_url);
        let elsewhere = |what: String| {
            Finding::fail(
                "rest_elsewhere",
                format!("what instances send to {address} does not reach the relay: {what}"),
                "what stands in front of the relay must hand /rest/ to it too; until then everything that instances send is lost",
            )
        };
        match self.get(&address).await {
            Ok((status, body, _)) => {
                // Without a token it is a refusal, in the form that only the relay's have.
                let refusal: Value = serde_json::from_slice(&body).unwrap_or_default();
                if refusal.pointer("/error/id").is_some_and(Value::is_string) {
                    Finding::ok("public_url", "the relay answers under its public URL")
                } else {
                    elsewhere(format!("the answer is {status}"))
                }
            }
            Err(cause) => elsewhere(cause),
        }
    }

    /// Any answer shows that it is there; one for a key that does not exist costs it nothing.
    async fn key_server(&self, now: Timestamp) -> (Finding, Finding) {
        let address = format!("{}/jira-connect-proxy-doctor", self.install_keys_url);
        match self.get(&address).await {
            Ok((.., headers)) => (
                Finding::ok("key_server", "Atlassian's key server answers"),
                compare_clocks(&headers, now, "Atlassian's clock"),
            ),
            Err(cause) => (
                Finding::fail(
                    "key_server_unreachable",
                    format!("Atlassian's key server does not answer: {cause}"),
                    "let the relay call jira.install_keys_url: a new key of Atlassian's could not be fetched",
                ),
                Finding::unknown(
                    "clock_unknown",
                    "nobody told the time",
                    "compare the clock yourself",
                ),
            ),
        }
    }

    /// Fetched and read as for a token, but not used for one.
    async fn forge_key_set(&self) -> Option<Finding> {
        let looked = self.key_set.as_ref()?.look().await;
        Some(looked.map_or_else(
            |cause| {
                Finding::fail(
                    "forge_key_set_unavailable",
                    format!("Forge's key set can't be had: {cause}"),
                    "let the relay call forge.jwks_url: an invocation signed with a new key could not be verified",
                )
            },
            |keys| {
                Finding::ok(
                    "forge_key_set",
                    format!("Forge's key set can be had, with {keys} keys for invocation tokens"),
                )
            },
        ))
    }

    /// A line for each site that is reached through Forge, those that need somebody first.
    fn forge_sites(&self, now: Timestamp) -> impl Iterator<Item = Finding> {
        let sites = self.store.installations();
        let mut found: Vec<Finding> = sites
            .iter()
            .filter_map(|site| Some(forge_sites::standing(site, now)?.finding(&site.base_url)))
            .collect();
        found.sort_by(|a, b| (b.verdict, &a.message).cmp(&(a.verdict, &b.message)));
        found.into_iter().take(SITES_TOLD)
    }

    /// A line for each two records that look like one site.
    fn twins(&self) -> impl Iterator<Item = Finding> {
        let twins = sites::twins(&self.store.installations()).into_iter();
        twins.take(SITES_TOLD).map(|[one, other]| {
            let named = |record: &Installation| {
                format!("{} ({})", record.client_key, record.upstream.kind().as_str())
            };
            Finding::warn(
                "twin_installations",
                format!(
                    "{} and {} look like one site, {}: instances that are linked to both send everything twice",
                    named(&one),
                    named(&other),
                    other.base_url
                ),
                "if one has gone without a word, `jira-connect-proxy installations remove KEY --force`; if both live, `jira-connect-proxy installations join KEY --into KEY`",
            )
        })
    }

    /// A line for each site that is reached with OAuth client credentials.
    async fn credentials(&self, now: Timestamp) -> Vec<Finding> {
        let mut sites = self.store.installations();
        sites.retain(|site| site.is_installed());
        sites.sort_by(|a, b| a.base_url.as_str().cmp(b.base_url.as_str()));
        let credentials: Vec<_> = sites
            .iter()
            .filter_map(|site| match &site.upstream {
                Upstream::Oauth(oauth) => Some((&site.base_url, oauth)),
                _ => None,
            })
            .collect();
        let checks = credentials.iter().take(SITES_LOOKED_AT);
        let checks = checks.map(|(site, oauth)| async move {
            let check = credentials::check(&self.forwarder, oauth, now);
            let checked = tokio::time::timeout(PATIENCE, check).await;
            judge_credentials(site, checked.ok())
        });
        let mut findings = join_all(checks).await;
        if credentials.len() > SITES_LOOKED_AT {
            findings.push(Finding::unknown(
                "not_looked_at",
                "there are more sites with credentials, which were not looked at",
                "`jira-connect-proxy installations` shows those for which no token could be had",
            ));
        }
        findings
    }

    fn certificate(&self, now: Timestamp) -> Finding {
        match &self.tls {
            Some(tls) => certificate(tls.expires_at(), now),
            None => Finding::ok("certificate", "TLS ends in front of the relay"),
        }
    }

    fn signing_key(&self) -> Finding {
        match self.signer.active() {
            Some((kid, _)) => Finding::ok("signing_key", format!("the relay signs with {kid}")),
            None => Finding::fail(
                "no_signing_key",
                "there is no signing key",
                "look at the log: one is made at start",
            ),
        }
    }

    async fn writable(&self, now: Timestamp) -> Finding {
        match self.store.probe(now).await {
            Ok(()) => Finding::ok("store", "the store takes writes"),
            Err(error) => Finding::fail(
                "store_unavailable",
                error.to_string(),
                "look at the disk and its permissions",
            ),
        }
    }

    fn disk(&self) -> Finding {
        let free = rustix::fs::statvfs(&self.store_path)
            .map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize));
        let hint = "make room: without it nothing is acknowledged";
        match free {
            Ok(free) => {
                let message = format!("{} MiB are free for the store", free >> 20);
                match free {
                    0..DISK_FAIL_BYTES => Finding::fail("disk_full", message, hint),
                    DISK_FAIL_BYTES..DISK_WARN_BYTES => Finding::warn("disk_low", message, hint),
                    _ => Finding::ok("disk", message),
                }
            }
            Err(error) => Finding::fail(
                "disk_unknown",
                format!("the room for the store can't be seen: {error}"),
                "look at store.path",
            ),
        }
    }

    async fn get(
        &self,
        address: &str,
    ) -> Result<(StatusCode, bytes::Bytes, http::HeaderMap), String> {
        let request = Request::get(address)
            .body(Full::default())
            .map_err(|error| error.to_string())?;
        let answer = self
            .client
            .send(Destination::Configured, request, PATIENCE, ANSWER_MAX_BYTES)
            .await
            .map_err(|error| error.to_string())?;
        let (head, body) = answer.into_parts();
        Ok((head.status, body, head.headers))
    }
}

impl Step {
    fn new(rung: &'static str, finding: Finding) -> Self {
        Self {
            rung,
            link_id: None,
            finding,
        }
    }

    /// Whether it says that the instance gave no answer.
    pub fn is_out_of_reach(&self) -> bool {
        let code = &self.finding.code;
        self.finding.verdict == Verdict::Fail
            && REACH.iter().any(|(.., codes)| codes.contains(code))
    }
}

impl Report {
    fn new(subject: String, steps: Vec<Step>) -> Self {
        let verdict = steps.iter().map(|step| step.finding.verdict).max();
        Self {
            subject,
            verdict: verdict.unwrap_or(Verdict::Unknown),
            steps,
        }
    }
}

fn not_reached() -> Finding {
    Finding::unknown(
        "not_reached",
        "not looked at, because something it needs is broken",
        "mend that first",
    )
}

fn judge_credentials(
    site: &JiraBaseUrl,
    checked: Option<Result<(), credentials::CredentialFault>>,
) -> Finding {
    match checked {
        Some(Ok(())) => Finding::ok(
            "oauth",
            format!("{site}: a token can be had, and it opens what GitLab sends"),
        ),
        Some(Err(fault)) => Finding::fail(fault.code(), format!("{site}: {fault}"), fault.hint()),
        None => Finding::fail(
            "answer_timed_out",
            format!(
                "{site}: Atlassian did not answer within {} s",
                PATIENCE.as_secs()
            ),
            "the relay must be able to call jira.api_url; Atlassian's status page may know more",
        ),
    }
}

/// Whether a certificate is good for long enough to be renewed without haste.
pub fn certificate(expires_at: Option<Timestamp>, now: Timestamp) -> Finding {
    let hint = "renew it: the relay reads changed files again by itself";
    let Some(expires_at) = expires_at else {
        return Finding::unknown(
            "certificate_unreadable",
            "until when the relay's certificate is good can't be read",
            hint,
        );
    };
    let left = expires_at.duration_since(now);
    let days = left.as_hours() / 24;
    if left.is_negative() {
        Finding::fail(
            "certificate_expired",
            format!("the relay's certificate expired at {expires_at}"),
            hint,
        )
    } else if left < CERTIFICATE_WARN {
        Finding::warn(
            "certificate_expires",
            format!("the relay's certificate is good for {days} more days"),
            hint,
        )
    } else {
        Finding::ok(
            "certificate",
            format!("the relay's certificate is good for {days} more days"),
        )
    }
}

/// Silent Mode, blocked jobs and a missing group look alike from here: nothing comes.
fn traffic(link: &Link, now: Timestamp) -> Finding {
    if link.mode == LinkMode::Direct {
        return Finding::ok("traffic", "a direct link sends to Jira itself");
    }
    let since = link.last_seen_at.unwrap_or(link.created_at);
    let silent = now.duration_since(since) >= SILENT_AFTER;
    let hint = "link a group on the app's page in Jira; else look whether the instance is in Silent Mode, or its outbound requests to the relay are blocked (integrations_json.log)";
    match link.last_seen_at {
        None if silent => Finding::warn(
            "never_seen",
            "it has sent nothing since it was linked, days ago",
            hint,
        ),
        None => Finding::ok("traffic", "it has sent nothing yet; it was linked lately"),
        Some(at) if silent => {
            Finding::warn("silent", format!("it has sent nothing since {at:.0}"), hint)
        }
        Some(at) => Finding::ok("traffic", format!("it last sent something at {at:.0}")),
    }
}
