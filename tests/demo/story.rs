//! The story: who plays, in which order the acts come, and how it ends.

use std::path::Path;

use crate::{
    narrator::Narrator,
    secrets::{Secrets, contains},
    stage::{CLIENT_KEY, Stage},
};

/// Everybody, and what was told of them so far.
pub struct Story {
    pub stage: Stage,
    pub tell: Narrator,
    pub secrets: Secrets,
}

impl Story {
    /// Says who plays.
    pub fn begin(stage: Stage) -> Self {
        let tell = Narrator::new();
        let Stage {
            jira,
            operator,
            a,
            b,
            url,
            ..
        } = &stage;
        tell.title("jira-connect-proxy: one Jira site, two GitLabs, one relay between");
        for (who, what) in [
            (
                "relay",
                format!(
                    "{url} for Jira and GitLabs, {} for its operator\nkeeps everything in {}",
                    operator.url,
                    stage.folder().display()
                ),
            ),
            (
                "Jira",
                format!(
                    "simulated, calls itself {}, its client key is {CLIENT_KEY}\n\
                     Atlassian's public keys come from {}",
                    jira.base_url,
                    jira.keys.url()
                ),
            ),
            (a.name, format!("simulated, {}", a.server.url())),
            (
                b.name,
                format!("simulated, {} (under a relative URL root)", b.server.url()),
            ),
            (
                "",
                format!("both have {url} as their Jira Connect Proxy URL"),
            ),
        ] {
            tell.role(who, &what);
        }
        tell.say("");
        tell.say(
            "Secrets and tokens are shown as ***; a secret's number tells it from the others.",
        );
        Self {
            stage,
            tell,
            secrets: Secrets::default(),
        }
    }

    /// From nothing to nothing; with `stay`, back to where there is something to look at.
    pub async fn walk(&mut self, stay: bool) -> anyhow::Result<()> {
        self.install().await?;
        self.refuse_a_stranger().await?;
        self.link_both().await?;
        self.rotate().await?;
        self.resend().await?;
        self.uninstall_while_one_is_down().await?;
        self.come_back().await?;
        self.look_back().await?;
        if stay {
            self.reinstall().await?;
        }
        Ok(())
    }

    /// Shows where to look.
    pub fn invite(&mut self) {
        self.tell.act("Look around");
        let Stage {
            url,
            operator,
            a,
            b,
            ..
        } = &self.stage;
        println!(
            "  descriptor  {url}/-/jira_connect/app_descriptor.json
  GitLab A    {}
  GitLab B    {}
  health      {admin}/healthz  {admin}/readyz
  metrics     {admin}/metrics
  admin API   links; likewise installations, keys, audit:

curl -s -H \"Authorization: Bearer $(cat {})\" \\
  {admin}/api/v1/links

Ctrl-C stops everything, in order; the summary follows.",
            a.server.url(),
            b.server.url(),
            operator.token_file.display(),
            admin = operator.url,
        );
    }

    /// Stops the relay, looks into what it left, and sums up.
    pub async fn end(mut self) -> anyhow::Result<()> {
        self.tell.act("The relay stops");
        self.stage.stop().await?;
        let mut left = Vec::new();
        read_all(&self.stage.folder().join("store"), &mut left)?;
        let (leaked, named) = (
            self.secrets.any_in(&left),
            contains(&left, CLIENT_KEY.as_bytes()),
        );
        self.tell.detail(
            "looked",
            &format!(
                "for {} secrets in the {} bytes of the store's files",
                self.secrets.count(),
                left.len()
            ),
        );
        self.tell.prove(
            "the relay stopped in order, and no secret stands readable in its store",
            !leaked && named,
            || format!("secrets: {leaked}, the client key: {named}"),
        )?;
        self.tell.summary();
        Ok(())
    }
}

/// Everything in the files of a folder.
fn read_all(folder: &Path, into: &mut Vec<u8>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            read_all(&path, into)?;
        } else {
            into.extend(std::fs::read(path)?);
        }
    }
    Ok(())
}
