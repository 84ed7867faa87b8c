//! `import-gitlab`: takes over what a GitLab served as the proxy so far, and takes that back.

use std::{
    fs::File,
    io::{self, Read},
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::Args;
use http::{Method, Uri};
use jira_connect_proxy::{
    domain::{InstanceUrl, SharedSecret},
    gitlab::export::{self, DbKeyBase, ExportedSite, SecretError},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use zeroize::Zeroizing;

use super::{
    api::{Api, parsed},
    gitlab_database, print,
};

const PATH: &str = "/api/v1/import";

/// Where a GitLab from the Linux package has its secrets.
const SECRETS_FILE: &str = "/etc/gitlab/gitlab-secrets.json";

#[derive(Debug, Args)]
pub(crate) struct ImportGitlab {
    /// The export, or `-` for standard input.
    #[arg(
        required_unless_present_any = ["rollback", "database"],
        conflicts_with = "rollback",
        value_name = "FILE"
    )]
    export: Option<PathBuf>,
    /// GitLab's database, in place of an export: `postgresql://user:password@host/gitlabhq_production`. Needs psql.
    ///
    /// Arguments can be seen by every user of the machine, so better set the variable.
    #[arg(
        long,
        value_name = "URL",
        env = "JIRA_CONNECT_PROXY_GITLAB_DATABASE",
        hide_env_values = true
    )]
    database: Option<String>,
    /// GitLab's gitlab-secrets.json or secrets.yml, or a file with nothing but `db_key_base`.
    #[arg(long, value_name = "FILE", default_value = SECRETS_FILE)]
    db_key_base_file: PathBuf,
    /// An address under which the exporting GitLab itself answers, to link it to the sites that it served itself.
    #[arg(long, value_name = "URL", conflicts_with = "rollback")]
    own_instance: Option<String>,
    /// Do it. Without this, nothing is changed.
    #[arg(long)]
    apply: bool,
    /// Take the rows that can be taken. Without this, one that can't be taken stops all.
    #[arg(long, conflicts_with = "rollback")]
    skip_refused: bool,
    /// Take an import back: what it made and nobody changed since.
    #[arg(long, value_name = "ID")]
    rollback: Option<String>,
}

/// What the relay answers; rows whose secret does not open are added here.
#[derive(Default, Deserialize, Serialize)]
struct Report {
    id: Option<String>,
    applied: bool,
    rows: Vec<Row>,
}

#[derive(Deserialize, Serialize)]
struct Row {
    client_key: String,
    base_url: String,
    instance_url: Option<String>,
    installation: String,
    link: String,
    link_id: Option<String>,
    code: Option<String>,
    reason: Option<String>,
}

/// The body of a request, with every secret in clear.
#[derive(Serialize)]
struct Request<'a> {
    apply: bool,
    skip_refused: bool,
    own_instance: Option<InstanceUrl>,
    rows: Vec<RequestRow<'a>>,
}

#[derive(Serialize)]
struct RequestRow<'a> {
    client_key: &'a str,
    base_url: &'a str,
    display_url: Option<&'a str>,
    shared_secret: &'a SharedSecret,
    instance_url: Option<&'a str>,
}

pub(super) async fn run(command: ImportGitlab, api: &Api, as_json: bool) -> anyhow::Result<bool> {
    let report = match &command.rollback {
        Some(id) => roll_back(api, id, command.apply).await?,
        None => import(&command, api).await?,
    };
    if as_json {
        print::json(&serde_json::to_value(&report)?)?;
    } else {
        show(&report, &command)?;
    }
    Ok(!report.has("refused") || report.applied)
}

async fn import(command: &ImportGitlab, api: &Api) -> anyhow::Result<Report> {
    let own_instance = command.own_instance.as_deref();
    let own_instance = own_instance.map(InstanceUrl::from_typed).transpose()?;
    let sites = read(command)?;
    let opens = |site: &&ExportedSite| site.shared_secret.is_ok();
    let wrong_key = |site: &ExportedSite| matches!(site.shared_secret, Err(SecretError::WrongKey));
    anyhow::ensure!(
        sites.iter().any(|site| opens(&site)) || !sites.iter().any(wrong_key),
        "none of the secrets opens with the db_key_base in {}: it is not that of the GitLab that wrote the export\n  GitLab has it in {SECRETS_FILE} (Linux package) or config/secrets.yml; give --db-key-base-file",
        command.db_key_base_file.display()
    );
    let complete = sites.iter().all(|site| opens(&site));
    warn_if_overheard(api.url());
    let body = Request {
        apply: command.apply && (complete || command.skip_refused),
        skip_refused: command.skip_refused,
        own_instance,
        rows: sites
            .iter()
            .filter_map(|site| {
                Some(RequestRow {
                    client_key: &site.client_key,
                    base_url: &site.base_url,
                    display_url: site.display_url.as_deref(),
                    shared_secret: site.shared_secret.as_ref().ok()?,
                    instance_url: site.instance_url.as_deref(),
                })
            })
            .collect(),
    };
    let body = Zeroizing::new(serde_json::to_vec(&body)?);
    let answer = api.call_with(Method::POST, PATH, &body).await?;
    let Report { id, applied, rows } = parsed(answer)?;
    // In the order of the export.
    let mut told = rows.into_iter();
    let rows = sites.iter().filter_map(|site| match &site.shared_secret {
        Ok(_) => told.next(),
        Err(error) => Some(Row::unopened(site, error)),
    });
    Ok(Report {
        id,
        applied,
        rows: rows.collect(),
    })
}

async fn roll_back(api: &Api, id: &str, apply: bool) -> anyhow::Result<Report> {
    let id: String = id
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
        .collect();
    let path = format!("{PATH}/{id}/rollback");
    let body = json!({ "apply": apply });
    parsed(api.call(Method::POST, &path, Some(&body)).await?)
}

fn read(command: &ImportGitlab) -> anyhow::Result<Vec<ExportedSite>> {
    let key_file = command.db_key_base_file.display();
    let key = std::fs::read_to_string(&command.db_key_base_file)
        .map(Zeroizing::new)
        .with_context(|| {
            format!("GitLab's db_key_base in {key_file} can't be read: give --db-key-base-file")
        })?;
    let key = DbKeyBase::parse(&key)
        .with_context(|| format!("there is no db_key_base to be found in {key_file}"))?;
    if let (None, Some(connection)) = (&command.export, &command.database) {
        let export = gitlab_database::export(connection)?;
        return export::read(export.as_slice(), &key).context("the export from GitLab's database");
    }
    let path = command.export.as_deref().unwrap_or_else(|| Path::new("-"));
    let file: Box<dyn Read> = if path == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        Box::new(File::open(path).with_context(|| format!("the export {}", path.display()))?)
    };
    export::read(file, &key).with_context(|| format!("the export {}", path.display()))
}

/// What is sent holds the secrets of all sites.
fn warn_if_overheard(url: &str) {
    let uri: Uri = url.parse().unwrap_or_default();
    let host = uri.host().unwrap_or_default();
    let address: Result<IpAddr, _> = host.trim_matches(['[', ']']).parse();
    let local = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
    if uri.scheme_str() != Some("https") && !local && !url.starts_with("unix:") {
        eprintln!(
            "warning: the secrets of all sites travel to {url} in clear: run this on the relay's machine, or through a tunnel to it"
        );
    }
}

fn show(report: &Report, command: &ImportGitlab) -> anyhow::Result<()> {
    let rows = report.rows.iter().map(|row| {
        [
            row.base_url.clone(),
            word(&row.installation).to_owned(),
            print::or_dash(row.instance_url.as_ref()),
            word(&row.link).to_owned(),
            row.client_key.clone(),
        ]
    });
    print::table(
        ["site", "installation", "instance", "link", "client key"],
        rows.collect(),
        "the export has no rows",
    )?;
    for row in &report.rows {
        if let Some(reason) = &row.reason {
            let code = print::or_dash(row.code.as_ref());
            print::line(format!("\n{}: {reason} ({code})", row.base_url))?;
        }
    }
    print::line(format!("\n{}", report.summary(command)))?;
    Ok(())
}

/// A fate, for people.
fn word(fate: &str) -> &str {
    match fate {
        "none" => "-",
        "there" => "already there",
        "handed_back" => "handed back",
        "leaving" => "goes when told",
        fate => fate,
    }
}

impl Report {
    fn has(&self, fate: &str) -> bool {
        let is = |row: &Row| row.installation == fate || row.link == fate;
        self.rows.iter().any(is)
    }

    fn summary(&self, command: &ImportGitlab) -> String {
        let id = print::or_dash(self.id.as_ref());
        let changes = ["new", "removed", "handed_back", "leaving"];
        let something = changes.iter().any(|fate| self.has(fate));
        match (self.applied, command.rollback.is_some()) {
            (true, false) => format!(
                "done, as import {id}; `links watch` shows how the instances take it\n`jira-connect-proxy import-gitlab --rollback {id}` takes it back"
            ),
            (true, true) => "done; `links watch` shows how the instances take it".to_owned(),
            (false, false) if self.has("refused") && !command.skip_refused => {
                "nothing was changed: --skip-refused leaves out what is refused".to_owned()
            }
            (false, _) if !something => "nothing to do".to_owned(),
            (false, _) => "nothing was changed: --apply does it".to_owned(),
        }
    }
}

impl Row {
    fn unopened(site: &ExportedSite, error: &SecretError) -> Self {
        let code = match error {
            SecretError::Missing => "secret_missing",
            SecretError::WrongKey => "db_key_base_wrong",
            SecretError::Encoding(_) | SecretError::VectorLength(_) | SecretError::Unusable(_) => {
                "secret_malformed"
            }
        };
        Self {
            client_key: site.client_key.clone(),
            base_url: site.base_url.clone(),
            instance_url: site.instance_url.clone(),
            installation: "refused".to_owned(),
            link: "refused".to_owned(),
            link_id: None,
            code: Some(code.to_owned()),
            reason: Some(error.to_string()),
        }
    }
}
