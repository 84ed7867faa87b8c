//! What a start says to the person in front of it.

use std::path::PathBuf;

use jira_connect_proxy::{
    config::{Config, PLACEHOLDER_URL},
    relay::Addresses,
};

/// What a person should know after a start.
pub(super) struct Welcome {
    descriptor_path: String,
    app_base_url: String,
    proxy_url: String,
    placeholder: bool,
    scheme: &'static str,
    admin_scheme: &'static str,
    socket: Option<PathBuf>,
    token_file: PathBuf,
}

impl Welcome {
    pub(super) fn of(config: &Config) -> Self {
        Self {
            descriptor_path: format!("{}/app_descriptor.json", config.public.base_path),
            app_base_url: config.app_base_url(),
            proxy_url: config.proxy_url(),
            placeholder: config.public.url.as_str() == PLACEHOLDER_URL,
            scheme: scheme(config.public.ends_tls()),
            admin_scheme: scheme(config.admin.tls.is_some()),
            socket: config.admin.socket.clone(),
            token_file: config.admin.token_file.clone(),
        }
    }

    pub(super) fn text(&self, addresses: Addresses) -> String {
        let Self {
            descriptor_path,
            app_base_url,
            proxy_url,
            placeholder,
            scheme,
            admin_scheme,
            socket,
            token_file,
        } = self;
        let Addresses { public, admin } = addresses;
        let token_file = token_file.display();
        let (curl, socket) = match socket {
            Some(path) => (
                format!("--unix-socket {} http://localhost", path.display()),
                format!("\n  socket      {}  (the same)", path.display()),
            ),
            None => (format!("{admin_scheme}://{admin}"), String::new()),
        };
        let next = if *placeholder {
            "Next: set public.url to the https address under which Jira and your GitLabs reach this relay".to_owned()
        } else {
            format!(
                "Next: install the app in Jira, then type {proxy_url} into each GitLab's \"Jira Connect Proxy URL\" and link it:"
            )
        };
        format!(
            "jira-connect-proxy {version} is running.
  public      {scheme}://{public}  (others reach it as {proxy_url})
  descriptor  {app_base_url}/app_descriptor.json
              (look at it here: {scheme}://{public}{descriptor_path})
  admin       {admin_scheme}://{admin}  (/healthz, /readyz, /metrics; /api/v1 wants the token in {token_file}){socket}
{next}
  curl -H \"Authorization: Bearer $(cat {token_file})\" {curl}/api/v1/installations
README.md goes through it step by step.",
            version = env!("CARGO_PKG_VERSION"),
        )
    }
}

fn scheme(tls: bool) -> &'static str {
    if tls { "https" } else { "http" }
}
