//! `manifest.yml`: what the app is, told to Atlassian.

use serde_json::{Map, Value, json};

use super::{BUILT_PAGE_FOLDER, NotPossible, UNREGISTERED, egress::Egress, yaml};
use crate::{
    config::Config,
    domain::{
        CONNECT_PATH, InstanceUrl,
        forge::{PAGE_ENDPOINT, PAGE_MODULE},
    },
    jira,
};

/// Texts of Forge's DevOps modules are no longer.
const TEXT_MAX: usize = 255;

/// Scopes, and what each is for. Atlassian's lists: "Jira scopes" and "Forge scopes"; what a call needs stands in the
/// REST reference with it.
const SCOPES: [(&str, &[&str]); 9] = [
    (
        "The app's own token comes with each call of Forge's to the relay. Without it, nothing below can be used.",
        &["read:app-system-token"],
    ),
    (
        "Commits, branches and merge requests in issues; taken away when an instance is removed.",
        &[
            "read:dev-info:jira",
            "write:dev-info:jira",
            "delete:dev-info:jira",
        ],
    ),
    (
        "The same for pipelines.",
        &[
            "read:build-info:jira",
            "write:build-info:jira",
            "delete:build-info:jira",
        ],
    ),
    (
        "The same for deployments.",
        &[
            "read:deployment-info:jira",
            "write:deployment-info:jira",
            "delete:deployment-info:jira",
        ],
    ),
    (
        "The same for feature flags.",
        &[
            "read:feature-flag-info:jira",
            "write:feature-flag-info:jira",
            "delete:feature-flag-info:jira",
        ],
    ),
    (
        "The same for links to other things.",
        &[
            "read:remote-link-info:jira",
            "write:remote-link-info:jira",
            "delete:remote-link-info:jira",
        ],
    ),
    (
        "Whether whoever opens the page is a Jira administrator: only they may change anything.",
        &["read:permission:jira"],
    ),
    (
        "The address of the site: Forge does not tell it, nor that it has changed.",
        &["read:instance-configuration:jira"],
    ),
    (
        "GitLab asks Jira whether who links a group is a Jira administrator.",
        &["read:jira-user"],
    ),
];

/// With them, the Connect part of the app can do what it could.
const CONNECT_SCOPES: [&str; 3] = [
    "read:connect-jira",
    "write:connect-jira",
    "delete:connect-jira",
];

/// The manifest of this relay's app.
pub(super) fn manifest(config: &Config, connect_key: Option<&str>) -> Result<String, NotPossible> {
    let parts = [
        app(config, connect_key),
        remotes(config, connect_key),
        modules(config)?,
        connect_key.map_or_else(String::new, |_| connect_modules(config)),
        permissions(config, connect_key),
    ];
    let head = format!(
        "\
# The Forge app of the relay at {}.
# `jira-connect-proxy forge init` wrote this file; `jira-connect-proxy forge
# upgrade` brings what is new and keeps what you change.
# Reference: https://developer.atlassian.com/platform/forge/manifest-reference/
",
        config.public.url
    );
    Ok(head + &parts.concat())
}

fn app(config: &Config, connect_key: Option<&str>) -> String {
    let id = config
        .forge
        .as_ref()
        .map_or(UNREGISTERED, |forge| forge.app_id.as_str());
    let mut text = format!(
        "
# `forge register` puts the id of your own app here; then tell the relay
# (forge.app_id of its configuration), or it believes no call of Forge's.
# Forge wants a runtime to be named, though no code runs there.
app:
  id: {id}
  runtime:
    name: nodejs24.x
"
    );
    if let Some(key) = connect_key {
        // Forge's tools write this section anew when they register the app, without comments.
        text += &format!(
            "  connect:\n    key: {}\n    remote: connect\n    authentication: jwt\n",
            yaml::text(key)
        );
    }
    text
}

fn remotes(config: &Config, connect_key: Option<&str>) -> String {
    let mut text = format!(
        "
# The relay. It is called with an invocation token, and gets the app's token for
# Jira with it. It keeps what Jira can't take at the moment: issue keys, texts
# of commits and merge requests, names of their authors (in-scope user data).
# Paths are absolute everywhere, because Forge resolves them against baseUrl.
remotes:
  - key: relay
    baseUrl: {}
    operations:
      - compute
      - storage
    auth:
      appSystemToken:
        enabled: true
    storage:
      inScopeEUD: true
",
        config.public.url
    );
    if connect_key.is_some() {
        text += &format!(
            "  # What the Connect app's baseUrl is.
  - key: connect
    baseUrl: {}
    operations:
      - storage
    storage:
      inScopeEUD: true
",
            config.app_base_url()
        );
    }
    text
}

fn modules(config: &Config) -> Result<String, NotPossible> {
    let base_path = &config.public.base_path;
    let mut text = format!(
        "
modules:
  # The page where Jira administrators link instances and groups: Jira settings
  # > Apps. Its calls go to the relay.
  {PAGE_MODULE}:
    - key: gitlab
      title: {}
      resource: page
      resolver:
        endpoint: {PAGE_ENDPOINT}
      useAsGetStarted: true
      useAsConfig: true

  # Where in the relay Forge's calls go. The page says itself where its own go.
  endpoint:
    - key: {PAGE_ENDPOINT}
      remote: relay
      auth:
        appSystemToken:
          enabled: true
",
        yaml::text(&config.app.name)
    );
    for (key, path) in [
        ("events", "events"),
        ("scheduled", "scheduled"),
        ("uninstall", "uninstall"),
    ] {
        text += &format!(
            "    - key: {key}
      remote: relay
      route:
        path: {base_path}/forge/{path}
      auth:
        appSystemToken:
          enabled: true
"
        );
    }
    text += "
  # A site has the app, or a new version of it.
  trigger:
    - key: lifecycle
      endpoint: events
      events:
        - avi:forge:installed:app
        - avi:forge:upgraded:app

  # Brings the relay a fresh token for Jira, which lasts about an hour.
  scheduledTrigger:
    - key: hourly
      endpoint: scheduled
      interval: hour

  # The only word that a remote hears of an uninstall.
  preUninstall:
    - key: before-uninstall
      endpoint: uninstall

  # What GitLab sends to Jira. A family of data is taken only from an app that
  # has its module.
";
    let branch = create_branch(config);
    if branch.is_none() {
        text += "  # There is no createBranch: its address is one for all sites, and does not say
  # which site asks, so the relay can't know whose instances to offer. With
  # exactly one instance in instances.auto_link it leads there.
";
    }
    for (module, key, name) in [
        (
            "developmentInfoProvider",
            "development",
            &config.app.display_name,
        ),
        ("buildInfoProvider", "builds", &"GitLab CI".to_owned()),
        (
            "deploymentInfoProvider",
            "deployments",
            &"GitLab Deployments".to_owned(),
        ),
        (
            "featureFlagInfoProvider",
            "feature-flags",
            &"GitLab Feature Flags".to_owned(),
        ),
        ("remoteLinkInfoProvider", "links", &"GitLab".to_owned()),
    ] {
        let branch = branch.as_deref().filter(|_| key == "development");
        text += &provider(config, module, key, name, branch)?;
    }
    text += &format!(
        "
# The relay's page, as \"npm ci\" and \"npm run build\" make it out of page/. Without
# them there is no such folder, and Forge refuses to deploy.
resources:
  - key: page
    path: {BUILT_PAGE_FOLDER}
"
    );
    Ok(text)
}

fn provider(
    config: &Config,
    module: &str,
    key: &str,
    name: &str,
    create_branch: Option<&str>,
) -> Result<String, NotPossible> {
    let app = &config.app;
    let logo_url = app
        .logo_url
        .clone()
        .unwrap_or_else(|| format!("{}/logo.svg", config.app_base_url()));
    for (key, value) in [
        ("app.display_name", name),
        ("app.vendor_url", &app.vendor_url),
        ("app.documentation_url", &app.documentation_url),
        ("app.logo_url", &logo_url),
        ("instances.auto_link", create_branch.unwrap_or_default()),
    ] {
        if value.chars().count() > TEXT_MAX {
            return Err(NotPossible::TooLong { key });
        }
    }
    let mut text = format!(
        "  devops:{module}:
    - key: {key}
      name:
        value: {}
      homeUrl: {}
      logoUrl: {}
      documentationUrl: {}
",
        yaml::text(name),
        yaml::text(&app.vendor_url),
        yaml::text(&logo_url),
        yaml::text(&app.documentation_url),
    );
    if let Some(template) = create_branch {
        text += &format!(
            "      actions:
        createBranch:
          urlTemplate: {}
",
            yaml::text(template)
        );
    }
    Ok(text)
}

/// The one instance that every site has. `branches/new` wants a GitLab login and nothing else, in every version since
/// 15.7 (GitLab `app/controllers/jira_connect/branches_controller.rb`).
fn create_branch(config: &Config) -> Option<String> {
    match config.instances.policy.auto_link.as_slice() {
        [only] => Some(format!(
            "{only}{CONNECT_PATH}/branches/new?issue_key={{issue.key}}&issue_summary={{issue.summary}}"
        )),
        _ => None,
    }
}

/// The modules of the Connect descriptor, as Forge writes them: lists under `jira:` names, with keys.
fn connect_modules(config: &Config) -> String {
    let descriptor = jira::descriptor::descriptor(config);
    let mut lifecycle = Map::new();
    lifecycle.insert("key".to_owned(), json!("connect-lifecycle"));
    lifecycle.extend(object(&descriptor, "/lifecycle"));
    let modules: Map<String, Value> = object(&descriptor, "/modules")
        .into_iter()
        .chain([("lifecycle".to_owned(), Value::Object(lifecycle))])
        .map(|(name, module)| (format!("jira:{name}"), json!([module])))
        .collect();
    format!(
        "
# The Connect app that this app was: sites that have it go on with its calls.
{}",
        yaml::entry("connectModules", &Value::Object(modules), 0)
    )
}

fn object(descriptor: &Value, pointer: &str) -> Map<String, Value> {
    let found = descriptor.pointer(pointer).and_then(Value::as_object);
    found.cloned().unwrap_or_default()
}

fn permissions(config: &Config, connect_key: Option<&str>) -> String {
    let mut text = "
permissions:
  scopes:
"
    .to_owned();
    let connect = connect_key.map(|_| {
        (
            "What the Connect app could do: READ, WRITE, DELETE.",
            CONNECT_SCOPES.as_slice(),
        )
    });
    for (purpose, scopes) in SCOPES.into_iter().chain(connect) {
        text += &format!("    # {purpose}\n");
        for scope in scopes {
            text += &format!("    - {scope}\n");
        }
    }
    text + &external(config)
}

fn external(config: &Config) -> String {
    let mut egress = Egress::of(&config.instances.policy);
    let linked = config.instances.policy.auto_link.iter();
    if egress.addresses != ["*"] {
        for origin in linked.filter(|url| url.is_https()).map(InstanceUrl::origin) {
            if !egress.addresses.iter().any(|known| known == origin) {
                egress.addresses.push(origin.to_owned());
            }
        }
    }
    let mut text = "  external:
    fetch:
      backend:
        - remote: relay
      # Instances, called by the browser of who signs in to link groups.
"
    .to_owned();
    if egress.addresses == ["*"] {
        text +=
            "      # Everybody may be linked (instances.allow), so this must be any address. Name
      # your instances there, and Jira's administrators are asked for less.
";
    }
    for why in &egress.missing {
        text += &format!("      # Not possible here: {why}\n");
    }
    text += &list("client", &egress.addresses, 3);
    text += "    # The window where they sign in, opened without a question each time.
";
    text + &list("navigation", &egress.addresses, 2)
}

fn list(key: &str, addresses: &[String], depth: usize) -> String {
    let addresses: Vec<Value> = addresses
        .iter()
        .map(|address| json!({ "address": address }))
        .collect();
    yaml::entry(key, &Value::Array(addresses), depth)
}
