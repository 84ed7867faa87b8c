//! `forge`: the Forge app of this relay, as a folder for Atlassian's Forge CLI.

use std::path::PathBuf;

use clap::Subcommand;
use jira_connect_proxy::{
    config::Config,
    forge_app::{self, Change, Done},
};
use serde_json::json;

use super::print;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write a Forge app for this relay into a new folder.
    ///
    /// Everything in it comes from the configuration: the relay's address, the app's texts, which instances may be called.
    /// The README.md in the folder tells what to do with it, step by step: build, register, deploy, install. No relay needs
    /// to run.
    #[command(after_help = "Examples:
  jira-connect-proxy forge init forge-app
  jira-connect-proxy forge init forge-app --config /etc/jira-connect-proxy/proxy.toml
  jira-connect-proxy forge init forge-app --connect-key gitlab-jira-connect-gitlab.example.com")]
    Init {
        /// A folder that is empty or not there yet.
        dir: PathBuf,
        /// Key of your own installed Connect app, which this app becomes: its sites go on with it.
        #[arg(long, value_name = "KEY")]
        connect_key: Option<String>,
    },
    /// Bring a Forge app up to date with this program and its configuration.
    ///
    /// What you edited stays: files get only the lines that are new. Where both changed the same lines, your file is left
    /// alone and the new one is put beside it, as FILE.new; merge what you want and delete that. Exits with 1 then.
    #[command(after_help = "Examples:
  jira-connect-proxy forge upgrade forge-app --dry-run
  jira-connect-proxy forge upgrade forge-app")]
    Upgrade {
        /// A folder that `forge init` made.
        dir: PathBuf,
        /// Only tell what would change.
        #[arg(long)]
        dry_run: bool,
    },
}

pub(super) fn run(command: Command, config: &Config, json: bool) -> anyhow::Result<bool> {
    let (dir, changes, dry_run) = match command {
        Command::Init { dir, connect_key } => {
            let changes = forge_app::init(&dir, config, connect_key.as_deref())?;
            (dir, changes, false)
        }
        Command::Upgrade { dir, dry_run } => {
            let changes = forge_app::upgrade(&dir, config, dry_run)?;
            (dir, changes, dry_run)
        }
    };
    let merged = !changes.iter().any(|change| change.done == Done::Conflict);
    if json {
        print::json(&json!({ "dry_run": dry_run, "files": changes }))?;
        return Ok(merged);
    }
    let rows = changes.iter().map(|change| {
        let said = if dry_run { would(change) } else { said(change) };
        [change.path.clone(), said]
    });
    print::table(["file", "what"], rows.collect(), "the app has no files")?;
    let created = changes.iter().all(|change| change.done == Done::Created);
    if created {
        print::line(format!(
            "\nWhat to do now: {}",
            dir.join("README.md").display()
        ))?;
    }
    let deploys = changes
        .iter()
        .any(|change| matches!(change.done, Done::Updated | Done::Merged | Done::Removed));
    if deploys && !dry_run {
        print::line(
            "\nBuild and deploy it: npm ci && npm run build && forge deploy --environment production",
        )?;
    }
    Ok(merged)
}

fn said(change: &Change) -> String {
    match change.done {
        Done::Created => "written".to_owned(),
        Done::Updated => "replaced, it was as generated".to_owned(),
        Done::Merged => "your edits kept, what is new put in".to_owned(),
        Done::Conflict => format!(
            "LEFT ALONE: your edits and what is new meet. Merge {}.new by hand, then delete it",
            change.path
        ),
        Done::Kept => "your edits kept, nothing is new".to_owned(),
        Done::Unchanged => "up to date".to_owned(),
        Done::StaysDeleted => "you deleted it, so it stays away".to_owned(),
        Done::Removed => "removed, the app has it no more".to_owned(),
        Done::Orphaned => "left alone: the app has it no more, but you edited it".to_owned(),
    }
}

fn would(change: &Change) -> String {
    match change.done {
        Done::Created => "would be written".to_owned(),
        Done::Updated => "would be replaced, it is as generated".to_owned(),
        Done::Merged => "your edits would be kept, what is new put in".to_owned(),
        Done::Conflict => format!(
            "would be LEFT ALONE: your edits and what is new meet; {}.new would be written",
            change.path
        ),
        Done::Removed => "would be removed, the app has it no more".to_owned(),
        Done::Kept | Done::Unchanged | Done::StaysDeleted | Done::Orphaned => said(change),
    }
}
