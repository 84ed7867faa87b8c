//! Forgets what is over: sites that were uninstalled long ago, and secrets that count no more.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::{
    clock,
    domain::{Actor, AuditEntry, Installation, Link},
    store::{Store, StoreFull, TransactError, Transaction},
};

const EVERY: Duration = Duration::from_secs(60);

/// Looks once a minute until `shutdown`.
pub async fn run(
    store: Store,
    keep_uninstalled: SignedDuration,
    shutdown: impl Future<Output = ()>,
) {
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        if let Err(error) = look(&store, keep_uninstalled, clock::now()).await {
            tracing::error!("what is over could not be forgotten: {error}");
        }
        tokio::select! {
            () = &mut shutdown => return,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

/// Forgets in one transaction, if there is anything to forget.
async fn look(
    store: &Store,
    keep_uninstalled: SignedDuration,
    now: Timestamp,
) -> Result<(), TransactError<StoreFull>> {
    let installations: Vec<_> = store
        .installations()
        .into_iter()
        .filter(|i| is_over(i, keep_uninstalled, now) || i.has_expired_secret(now))
        .map(|i| i.client_key.clone())
        .collect();
    let links: Vec<_> = store
        .links()
        .into_iter()
        .filter(|link| link.has_expired_secret(now))
        .map(|link| link.id)
        .collect();
    if installations.is_empty() && links.is_empty() {
        return Ok(());
    }
    store
        .transact(move |transaction| {
            for id in links {
                if let Some(link) = transaction.link(id) {
                    let mut link = Link::clone(&link);
                    link.forget_expired_secrets(now);
                    transaction.put_link(link)?;
                }
            }
            for client_key in installations {
                // It may have come back between the look and now.
                let Some(installation) = transaction.installation(&client_key) else {
                    continue;
                };
                if is_over(&installation, keep_uninstalled, now) {
                    forget_site(transaction, &installation, now);
                } else {
                    let mut installation = Installation::clone(&installation);
                    installation.forget_expired_secret(now);
                    transaction.put_installation(installation)?;
                }
            }
            Ok(())
        })
        .await
}

fn is_over(installation: &Installation, keep_uninstalled: SignedDuration, now: Timestamp) -> bool {
    // While another way is open, the site can still be moved to it.
    installation.standby.is_empty()
        && installation
            .uninstalled_at
            .is_some_and(|at| now.duration_since(at) >= keep_uninstalled)
}

/// Only once all its instances were told.
fn forget_site(transaction: &mut Transaction<'_>, installation: &Installation, now: Timestamp) {
    let links = transaction.links_of(&installation.client_key);
    if !links.iter().all(|link| link.is_settled()) {
        return;
    }
    for link in links {
        transaction.remove_link(link.id);
    }
    transaction.remove_installation(&installation.client_key);
    transaction.audit(AuditEntry {
        client_key: Some(installation.client_key.clone()),
        ..AuditEntry::new(now, Actor::Relay, "installation_forgotten")
    });
}
