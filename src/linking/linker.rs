//! Making and changing links on somebody's word: an operator's through the admin API, a Jira admin's through the
//! page inside Jira.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use jiff::Timestamp;

use super::{LinkRefusal, NewLink, add, create};
use crate::{
    client::Client,
    domain::{
        AuditEntry, CONNECT_PATH, ClientKey, InstancePolicy, InstanceUrl, Link,
        instance_policy::PolicyError, instance_url::InstanceUrlError,
    },
    reject::{Reject, RejectKind},
    store::{Store, Transaction},
    trace,
};

/// How long a caller waits for the outcome of a first delivery, at most. An attempt may take longer; it goes on.
const OUTCOME_PATIENCE_MAX: Duration = Duration::from_secs(10);

/// How long a name may take to be looked up before a link is made without knowing its address.
const LOOKUP_PATIENCE: Duration = Duration::from_secs(3);

/// Applies the rules of linking for a caller who waits for what comes of it.
pub struct Linker {
    /// What is known.
    pub store: Store,
    /// Who may be linked.
    pub policy: Arc<ArcSwap<InstancePolicy>>,
    /// Looks names up as a delivery would.
    pub client: Client,
    /// Nobody is linked to ourselves.
    pub app_base_url: String,
    /// The caller's own deadline.
    pub request_timeout: Duration,
}

impl Linker {
    /// Whether an instance may be linked: it is not ourselves, the operator allows it, and a delivery would dial it.
    pub async fn check(&self, instance_url: &InstanceUrl) -> Result<(), Reject> {
        self.check_policy(instance_url)?;
        // A name that can't be looked up now is left to the deliveries.
        let lookup = self
            .client
            .blocked_address(instance_url.host(), instance_url.port());
        match tokio::time::timeout(LOOKUP_PATIENCE, lookup).await {
            Ok(Some(address)) => Err(PolicyError::NotPublic(address).into()),
            _ => Ok(()),
        }
    }

    /// The same, without a look at its address.
    pub fn check_policy(&self, instance_url: &InstanceUrl) -> Result<(), Reject> {
        if format!("{instance_url}{CONNECT_PATH}") == self.app_base_url {
            return Err(Reject::new(
                RejectKind::Malformed,
                "instance_is_relay",
                "calls to this address come back to the relay itself",
                "link an address under which the GitLab itself answers /-/jira_connect",
            ));
        }
        Ok(self.policy.load().check(instance_url)?)
    }

    /// Makes a link to an instance that may be linked.
    pub async fn create(
        &self,
        wish: NewLink,
        audit: AuditEntry,
        now: Timestamp,
    ) -> Result<Link, Reject> {
        self.check(&wish.instance_url).await?;
        self.change(move |transaction| create(transaction, wish, audit, now))
            .await
    }

    /// Links an instance for a Jira admin: takes its removal back, or makes a new link.
    pub async fn add(
        &self,
        client_key: ClientKey,
        instance_url: InstanceUrl,
        audit: AuditEntry,
        now: Timestamp,
    ) -> Result<Link, Reject> {
        self.check(&instance_url).await?;
        self.change(move |transaction| add(transaction, client_key, instance_url, audit, now))
            .await
    }

    /// Applies one of the rules of linking, durably.
    pub async fn change<T: Send + 'static>(
        &self,
        rule: impl FnOnce(&mut Transaction<'_>) -> Result<T, LinkRefusal> + Send + 'static,
    ) -> Result<T, Reject> {
        Ok(self.store.transact(rule).await?)
    }

    /// Waits until the reconciler has made an attempt at what the link wants now, or for long enough.
    pub async fn outcome(&self, wanted: Link) -> Link {
        trace::wanted(&wanted);
        let mut changes = self.store.link_changes();
        let mut latest = wanted;
        let attempted = async {
            loop {
                changes.borrow_and_update();
                match self.store.link(latest.id) {
                    Some(link) => latest = link.as_ref().clone(),
                    None => return,
                }
                if latest.is_settled() || latest.attempts > 0 || changes.changed().await.is_err() {
                    return;
                }
            }
        };
        let patience = OUTCOME_PATIENCE_MAX.min(self.request_timeout / 2);
        // If that is not enough the link is still pending; it goes on.
        let _ = tokio::time::timeout(patience, attempted).await;
        latest
    }
}

impl From<InstanceUrlError> for Reject {
    fn from(error: InstanceUrlError) -> Self {
        Self::new(
            RejectKind::Malformed,
            "instance_url_malformed",
            error.to_string(),
            "give the address that people use for the GitLab, like https://gitlab.example.com or https://example.com/gitlab",
        )
    }
}

impl From<PolicyError> for Reject {
    fn from(error: PolicyError) -> Self {
        let (code, hint) = match error {
            PolicyError::NotHttps(_) => (
                "instance_not_https",
                "use https, or set instances.dangerous_allow_http",
            ),
            PolicyError::NotListed(_) => (
                "instance_not_allowed",
                "add it to instances.allow and send SIGHUP",
            ),
            PolicyError::NotPublic(_) => (
                "instance_address_not_public",
                "if that is right, set instances.dangerous_allow_private_addresses",
            ),
        };
        Self::new(RejectKind::Forbidden, code, error.to_string(), hint)
    }
}
