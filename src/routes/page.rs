//! `subscriptions`, `oauth_callbacks`, `assets/...`: the page that Jira admins see inside Jira, and what belongs to it.
//!
//! Jira opens the page in a frame, with a signed query (Atlassian's "Understanding JWT for Connect apps"). The document
//! holds no secret and no name of a person; what it shows it asks for with tokens of `AP.context.getToken()`. The same
//! page outside Jira is `outside`'s.

use std::fmt::Write as _;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use maud::{DOCTYPE, Markup, html};
use serde::Serialize;
use url::Url;

use super::{
    Public,
    assets::{Assets, Entry},
    caller::{Bound, caller, target},
};
use crate::{
    config::Config,
    domain::{Installation, Lack, Link, UpstreamKind, origin::has_plain_host},
    exchange::{Arrival, typed},
    reject::{Instead, Reject, RejectKind},
};

pub(super) const HTML: &str = "text/html; charset=utf-8";

/// Where Jira Cloud is (GitLab's own page has the same two).
const JIRA_ANCESTORS: &str = "https://*.atlassian.net https://*.jira.com";

/// The pages and what they need to know of the configuration.
pub(super) struct Pages {
    pub(super) assets: Assets,
    pub(super) base_path: String,
    /// Origin of the relay.
    pub(super) public_url: String,
    proxy_url: String,
    /// Where an instance sends a browser back to after it has signed in.
    redirect_uri: String,
    ap_js_url: String,
    /// What Atlassian's script loads of Jira's current theme, and asks apps to let it.
    themes: String,
    /// Of every site.
    ancestors: String,
    /// Every site is linked to the same one instance.
    one_for_all: bool,
    /// Where the page lives in Forge, if there is an app: origins, with blanks between them.
    forge_origins: Option<String>,
}

/// What the page's script starts with.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Boot<'a> {
    base: &'a str,
    /// Whom this very document may talk to.
    origins: &'a [&'a str],
    proxy_url: &'a str,
    redirect_uri: &'a str,
    upstream: UpstreamKind,
    lacks: &'a [Lack],
    /// Outside Jira, what proves that a call comes from this document.
    #[serde(skip_serializing_if = "Option::is_none")]
    page_token: Option<&'a str>,
}

/// What a document may load, and who may frame it. Without a word of it, nothing and nobody.
pub(super) struct Policy<'a> {
    /// Beside our own.
    pub(super) scripts: &'a str,
    /// Beside our own.
    pub(super) styles: &'a str,
    /// Whom its scripts talk to.
    pub(super) connect: &'a str,
    /// Where its forms go.
    pub(super) forms: &'a str,
    /// Who may have it in a frame.
    pub(super) ancestors: &'a str,
}

impl Default for Policy<'_> {
    fn default() -> Self {
        Self {
            scripts: "",
            styles: "",
            connect: "'none'",
            forms: "'none'",
            ancestors: "'none'",
        }
    }
}

impl Pages {
    pub(super) fn new(config: &Config, assets: Assets) -> Self {
        let extra = config.jira.sites.listed().iter();
        let extra = extra.chain(&config.page.frame_ancestors);
        let mut ancestors = JIRA_ANCESTORS.to_owned();
        for origin in extra {
            // Writing to a String does not fail.
            let _ = write!(ancestors, " {origin}");
        }
        Self {
            assets,
            base_path: config.public.base_path.clone(),
            public_url: config.public.url.as_str().to_owned(),
            proxy_url: config.proxy_url(),
            redirect_uri: redirect_uri(config),
            themes: themes(&config.page.ap_js_url),
            ap_js_url: config.page.ap_js_url.clone(),
            ancestors,
            one_for_all: config.instances.policy.auto_link.len() == 1,
            forge_origins: config
                .forge
                .as_ref()
                .map(|forge| forge.page_origins.join(" ")),
        }
    }

    /// Where the browser comes back to after signing in to an instance.
    pub(super) fn redirect_uri(&self) -> &str {
        &self.redirect_uri
    }

    pub(super) fn asset(&self, entry: Entry) -> String {
        format!("{}/assets/{}", self.base_path, self.assets.name(entry))
    }

    /// Scripts and styles come from our own folder, or as named, and nowhere else; nothing is inline.
    pub(super) fn policy(&self, policy: &Policy<'_>) -> Result<HeaderValue, Reject> {
        let Policy {
            scripts,
            styles,
            connect,
            forms,
            ancestors,
        } = policy;
        let assets = format!("{}{}/assets/", self.public_url, self.base_path);
        let policy = format!(
            "default-src 'none'; script-src {assets}{scripts}; style-src {assets}{styles}; img-src 'self' data:; \
             connect-src {connect}; base-uri 'none'; form-action {forms}; frame-ancestors {ancestors}"
        );
        HeaderValue::from_str(&policy).map_err(Reject::internal)
    }

    pub(super) fn head(&self, title: &str, style: Entry) -> Markup {
        html! {
            meta charset="utf-8";
            meta name="viewport" content="width=device-width, initial-scale=1";
            meta name="color-scheme" content="light dark";
            title { (title) }
            link rel="stylesheet" href=(self.asset(style));
        }
    }

    /// A page that only says something.
    pub(super) fn notice(&self, title: &str, text: &Markup) -> Markup {
        html! {
            (DOCTYPE)
            html lang="en" {
                head { (self.head(title, Entry::ShellStyle)) }
                body {
                    main {
                        h1 { (title) }
                        (text)
                    }
                }
            }
        }
    }

    /// What the page's script starts with, for a document that may talk to these.
    pub(super) fn boot(
        &self,
        installation: &Installation,
        origins: &[&str],
        page_token: Option<&str>,
    ) -> Result<String, Reject> {
        let upstream = installation.upstream.kind();
        let boot = Boot {
            base: &self.base_path,
            origins,
            proxy_url: &self.proxy_url,
            redirect_uri: &self.redirect_uri,
            upstream,
            lacks: Lack::of(upstream, self.one_for_all),
            page_token,
        };
        serde_json::to_string(&boot).map_err(Reject::internal)
    }

    /// The page for one site.
    fn page(
        &self,
        installation: &Installation,
        links: &[std::sync::Arc<Link>],
    ) -> Result<Response<Full<Bytes>>, Reject> {
        let origins = origins(links);
        let boot = self.boot(installation, &origins, None)?;
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    (self.head("GitLab for Jira", Entry::PageStyle))
                    script async id="ac-iframe-options" src=(self.ap_js_url) data-options="sizeToParent:true" {}
                    script type="module" src=(self.asset(Entry::PageScript)) {}
                }
                (app(&boot))
            }
        };
        let mut ancestors = self.ancestors.clone();
        if let Some(origin) = display_origin(installation) {
            let _ = write!(ancestors, " {origin}");
        }
        let policy = self.policy(&Policy {
            scripts: &format!(" {}", self.ap_js_url),
            styles: &self.themes,
            connect: &connect(&origins),
            ancestors: &ancestors,
            ..Policy::default()
        })?;
        with_policy(typed(StatusCode::OK, HTML, page.into_string())?, policy)
    }

    /// The same refusal, as a page that may stand in these frames.
    pub(super) fn refusal(
        &self,
        reject: Reject,
        title: &str,
        text: &Markup,
        ancestors: &str,
    ) -> Reject {
        let page = self.notice(title, text).into_string();
        let policy = Policy {
            ancestors,
            ..Policy::default()
        };
        Reject {
            instead: Some(Box::new(Instead {
                content_type: HTML,
                body: page.into(),
                policy: self.policy(&policy).ok(),
            })),
            ..reject
        }
    }
}

/// The body of the page.
pub(super) fn app(boot: &str) -> Markup {
    html! {
        body {
            div id="app" data-boot=(boot) { p { "Loading…" } }
            noscript { p { "This page needs JavaScript." } }
        }
    }
}

/// Of the instances that the page's script talks to itself.
pub(super) fn origins(links: &[std::sync::Arc<Link>]) -> Vec<&str> {
    let mut origins: Vec<&str> = links
        .iter()
        .filter(|link| link.wants_installed())
        .map(|link| link.instance_url.origin())
        .collect();
    origins.sort_unstable();
    origins.dedup();
    origins
}

/// These and the relay, as a policy says it.
pub(super) fn connect(origins: &[&str]) -> String {
    let mut connect = "'self'".to_owned();
    for origin in origins {
        // Writing to a String does not fail.
        let _ = write!(connect, " {origin}");
    }
    connect
}

/// Where an instance's OAuth application must lead back to.
pub fn redirect_uri(config: &Config) -> String {
    format!("{}/oauth_callbacks", config.app_base_url())
}

/// The page, for whom Jira sends.
pub(super) fn subscriptions(
    public: &Public,
    request: Request<Incoming>,
    arrival: &Arrival,
) -> Result<Response<Full<Bytes>>, Reject> {
    let (head, _) = request.into_parts();
    let pages = &public.pages;
    let query = head.uri.query().unwrap_or_default().as_bytes();
    let has_token = head.headers.contains_key(header::AUTHORIZATION)
        || form_urlencoded::parse(query).any(|(name, _)| name == "jwt");
    if !has_token {
        let reject = Reject::new(
            RejectKind::Unauthenticated,
            "opened_outside_jira",
            "this page belongs inside Jira",
            "open it there: Apps > Manage your apps > GitLab for Jira > Get started",
        );
        return Err(pages.refusal(
            reject,
            "This page lives inside Jira",
            &html! {
                p {
                    "It shows which GitLab instances are connected to a Jira site, and Jira has to say which site that is."
                }
                p {
                    "In Jira, open " b { "Apps > Manage your apps > GitLab for Jira > Get started" }
                    ". You must be a Jira administrator."
                }
                p {
                    "Operators of the relay open it outside Jira with " code { "jira-connect-proxy page" } "."
                }
            },
            &pages.ancestors,
        ));
    }
    let proven = target(public, &head, None)
        .and_then(|target| caller(public, &head, &target, None, arrival, Bound::Request));
    match proven {
        Ok(caller) => {
            let links = public.store.links_of(&caller.installation.client_key);
            pages.page(&caller.installation, &links)
        }
        Err(reject) => {
            let (cause, cure) = unproven(reject.code);
            let text = html! {
                p { (cause) " " (cure) }
                p { "If that does not help, give the request ID to the operator of this relay." }
                p class="id" { "Request ID " code { (arrival.id) } }
            };
            let title = "This page can't be shown";
            Err(pages.refusal(reject, title, &text, &pages.ancestors))
        }
    }
}

/// Why Jira's token opens nothing, and what a Jira admin can do.
fn unproven(code: &str) -> (&'static str, &'static str) {
    match code {
        "token_expired" => (
            "Jira's permission to show it is good for a few minutes only, and these are over.",
            "Reload Jira's page to get a new one.",
        ),
        "token_from_the_future" | "token_not_yet_valid" => (
            "By the relay's clock, Jira's permission to show it is not valid yet.",
            "The operator of this relay has to set its clock.",
        ),
        "token_unknown_issuer" => (
            "This relay does not know this Jira site: nobody told it that the app was installed there.",
            "If another relay or a GitLab served the app before, the operator of this relay has to bring the site over. Else uninstall the app in Jira and install it again.",
        ),
        "token_site_uninstalled" => (
            "This relay was told that the app was uninstalled from this Jira site.",
            "Install the app in Jira again; its instances come back by themselves.",
        ),
        "token_signature" => (
            "Jira signs with another secret than the one this relay was given for this Jira site: the app belongs to another relay now, or Jira's newest secret did not arrive.",
            "Ask the operator of this relay first: the app installed anew has a new secret, but uninstalling it deletes what it wrote to Jira.",
        ),
        "token_audience" => (
            "Jira's permission names another address than that of this relay.",
            "The operator of this relay has to compare its public URL with the app's base URL in Jira.",
        ),
        "token_query_hash" | "token_context_refused" => (
            "Jira's permission is for another address than the one that was opened, so the address was changed on its way.",
            "Reload Jira's page. If it stays so, whatever stands in front of the relay must leave paths and queries as they are.",
        ),
        _ => (
            "What was opened is no address that Jira makes.",
            "Reload Jira's page.",
        ),
    }
}

/// Where an instance sends the popup back to. Its script hands what came to the page that opened it: to our own origin,
/// and to those of the page in Forge. There the two may not hear each other, so a person may carry it.
pub(super) fn oauth_callback(public: &Public) -> Result<Response<Full<Bytes>>, Reject> {
    let pages = &public.pages;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                (pages.head("Signing in to GitLab", Entry::ShellStyle))
                script type="module" src=(pages.asset(Entry::CallbackScript)) {}
            }
            body data-openers=[pages.forge_origins.as_deref()] data-paste[pages.forge_origins.is_some()] {
                main {
                    h1 id="title" { "Signing in…" }
                    p id="text" {}
                }
            }
        }
    };
    let policy = pages.policy(&Policy::default())?;
    with_policy(typed(StatusCode::OK, HTML, page.into_string())?, policy)
}

/// One of the page's files.
pub(super) fn asset(
    public: &Public,
    name: &str,
    headers: &HeaderMap,
) -> Result<Response<Full<Bytes>>, Reject> {
    public.pages.assets.serve(name, headers)
}

pub(super) fn with_policy(
    mut response: Response<Full<Bytes>>,
    policy: HeaderValue,
) -> Result<Response<Full<Bytes>>, Reject> {
    response
        .headers_mut()
        .insert(header::CONTENT_SECURITY_POLICY, policy);
    Ok(response)
}

/// `AP.theming` adds style sheets of its own origin (npm `atlassian-connect-js` 5.3). Whoever gives us the script may
/// give us these.
fn themes(ap_js_url: &str) -> String {
    let Ok(script) = Url::parse(ap_js_url) else {
        return String::new();
    };
    let origin = script.origin().ascii_serialization();
    format!(" {origin}/themes/ {origin}/surfaces.css")
}

/// Where users see the site, if that is another address. It is not proven, so only its origin counts, as the URL
/// standard writes it. Over http, whoever is on the way could frame the page.
fn display_origin(installation: &Installation) -> Option<String> {
    let url = Url::parse(installation.display_url.as_deref()?).ok()?;
    (url.scheme() == "https" && has_plain_host(&url)).then(|| url.origin().ascii_serialization())
}
