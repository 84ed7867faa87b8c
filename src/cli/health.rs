//! `health`: whether the relay answers, for what watches a container.

use jira_connect_proxy::config::Config;

use super::{Remote, api::open_status, print};

/// `false` if it answers, but not that it is well.
pub(super) async fn ask(remote: &Remote, config: &Config, ready: bool) -> anyhow::Result<bool> {
    let (path, word) = if ready {
        ("/readyz", "ready")
    } else {
        ("/healthz", "alive")
    };
    let status = open_status(remote, config, path).await?;
    if status == 200 {
        print::line(word)?;
    } else {
        eprintln!("jira-connect-proxy: {path} answers {status}");
    }
    Ok(status == 200)
}
