//! The Forge app of this relay, as a folder that Atlassian's Forge CLI deploys: manifest, page, manual.
//!
//! The manifest follows Atlassian's manifest reference (<https://developer.atlassian.com/platform/forge/manifest-reference/>)
//! and is checked by Atlassian's own `@forge/manifest` in the tests. No code of the app runs at Atlassian: the relay is
//! its remote, and the page is the same as inside Jira, made for Forge's frame.
//!
//! The page reaches its frame by npm `@forge/bridge`, which is under the Atlassian Developer Terms and not ours to pass
//! on. So what is written names it, and the operator's `npm run build` puts the two together.

mod egress;
mod folder;
mod manifest;
mod merge;
mod yaml;

pub use folder::{Change, Done, FolderError, init, upgrade};

use rust_embed::RustEmbed;

use crate::config::{Config, PLACEHOLDER_URL};

/// The page as we give it, from the manifest on.
const PAGE_FOLDER: &str = "page";

/// The page that is deployed, which `npm run build` makes. Not there, `forge lint` and `forge deploy` refuse the manifest.
const BUILT_PAGE_FOLDER: &str = "static/page";

/// What the page's document has in place of the relay's base path.
const BASE_PATH_MARK: &str = "%BASE_PATH%";

/// What `forge register` replaces. Forge's own tools take any id of this form.
const UNREGISTERED: &str = "ari:cloud:ecosystem::app/00000000-0000-0000-0000-000000000000";

const MANUAL: &str = include_str!("forge_app/README.md");

/// What the operator's npm needs. The lock names no registry.
const NPM_FILES: [(&str, &str); 4] = [
    (
        "package.json",
        include_str!("../web/forge-app/package.json"),
    ),
    (
        "package-lock.json",
        include_str!("../web/forge-app/package-lock.json"),
    ),
    (".npmrc", include_str!("../web/forge-app/.npmrc")),
    (".gitignore", include_str!("../web/forge-app/.gitignore")),
];

#[derive(RustEmbed)]
#[folder = "web/dist-forge/"]
struct Page;

/// Why there is no app for this configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotPossible {
    /// There is no relay there.
    #[error(
        "public.url is still the placeholder {PLACEHOLDER_URL}: set it to the relay's own address"
    )]
    Placeholder,
    /// Forge calls remotes by https only.
    #[error("public.url is {0}: Forge only calls a relay that it reaches by https")]
    PublicUrl(String),
    /// Jira would send events for one app to a relay that knows another.
    #[error("the relay knows the Connect app {configured:?}: set app.key to {wanted:?} first")]
    ConnectKey {
        /// Of the command.
        wanted: String,
        /// `app.key`.
        configured: String,
    },
    /// Longer than Forge takes.
    #[error("{key} is too long for Forge, which takes 255 characters")]
    TooLong {
        /// Of the configuration.
        key: &'static str,
    },
    /// The program was built without the page.
    #[error("this program was built without the page for Forge")]
    NoPage,
}

/// A file of the app.
#[derive(Clone, Debug, PartialEq, Eq)]
struct AppFile {
    /// From the app's folder on.
    path: String,
    text: String,
}

/// Everything that is in the folder. `connect_key`: of the Connect app that becomes this Forge app.
fn files(config: &Config, connect_key: Option<&str>) -> Result<Vec<AppFile>, NotPossible> {
    if config.public.url.as_str() == PLACEHOLDER_URL {
        return Err(NotPossible::Placeholder);
    }
    if !config.public.url.is_https() {
        return Err(NotPossible::PublicUrl(config.public.url.to_string()));
    }
    if let Some(wanted) = connect_key.filter(|key| *key != config.app.key) {
        return Err(NotPossible::ConnectKey {
            wanted: wanted.to_owned(),
            configured: config.app.key.clone(),
        });
    }
    let file = |path: &str, text: String| AppFile {
        path: path.to_owned(),
        text,
    };
    let mut files = vec![
        file("manifest.yml", manifest::manifest(config, connect_key)?),
        file("README.md", manual(config)),
    ];
    files.extend(NPM_FILES.map(|(path, text)| file(path, text.to_owned())));
    for name in ["index.html", "licenses.txt", "page.css", "page.js"] {
        let found = Page::get(name).ok_or(NotPossible::NoPage)?;
        let text =
            String::from_utf8_lossy(&found.data).replace(BASE_PATH_MARK, &config.public.base_path);
        files.push(file(&format!("{PAGE_FOLDER}/{name}"), text));
    }
    Ok(files)
}

fn manual(config: &Config) -> String {
    MANUAL
        .replace("%PUBLIC_URL%", config.public.url.as_str())
        .replace("%APP_NAME%", &config.app.name)
}

#[cfg(test)]
mod tests;
