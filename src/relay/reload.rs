//! What changes in a relay that runs, on SIGHUP.

use std::{path::PathBuf, sync::Arc};

use arc_swap::ArcSwap;
use zeroize::Zeroizing;

use super::files::{admin_token, dial_settings};
use crate::{
    access::AtlassianRanges,
    client::Client,
    clock,
    config::Config,
    domain::{InstancePolicy, InstanceUrl},
    gitlab::Patience,
    reconcile::realign,
    store::Store,
    tls::TlsFiles,
};

/// Takes a changed configuration in while the relay runs: `[instances]`, and the content of the TLS files.
#[derive(Clone)]
pub struct Reload {
    pub(super) token: Arc<ArcSwap<Zeroizing<String>>>,
    pub(super) token_file: PathBuf,
    pub(super) store: Store,
    pub(super) policy: Arc<ArcSwap<InstancePolicy>>,
    pub(super) patience: Arc<ArcSwap<Patience>>,
    pub(super) client: Client,
    pub(super) public_url: Arc<str>,
    pub(super) ranges: Option<Arc<AtlassianRanges>>,
    pub(super) tls: Option<Arc<TlsFiles>>,
    pub(super) admin_tls: Option<Arc<TlsFiles>>,
}

impl Reload {
    /// Takes over what can change in a running relay.
    pub async fn apply(&self, config: &Config) {
        match dial_settings(config) {
            Ok(settings) => self.client.reconfigure(&settings),
            Err(error) => tracing::error!("{error}; the old authorities stay in use"),
        }
        let policy = config.instances.policy.clone();
        let auto_link: Vec<InstanceUrl> = policy.auto_link.clone();
        self.policy.store(Arc::new(policy));
        self.patience
            .store(Arc::new(Patience::from(&config.instances)));
        if let Err(error) = realign(&self.store, &self.public_url, auto_link, clock::now()).await {
            tracing::error!("the links could not be put in line with [instances]: {error}");
        }
        for tls in [&self.tls, &self.admin_tls].into_iter().flatten() {
            tls.reload();
        }
        if let Some(ranges) = &self.ranges {
            ranges.refresh_now();
        }
        match admin_token(&self.token_file) {
            Ok(token) => self.token.store(Arc::new(token)),
            Err(error) => tracing::error!("{error}; the old admin token stays in use"),
        }
        tracing::info!(
            "[instances], the TLS files, Atlassian's ranges and the admin token were read again; other settings need a restart"
        );
    }
}
