//! Keeps one signing key active, replaces it in time, and serves the old one until its last token is dead.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;

use crate::{
    clock,
    domain::{Actor, AuditEntry, KeyId, SigningKeyRecord},
    jwt::{
        Signer,
        signer::{RETIRED_KEY_SERVED_FOR, SignError, generate_key},
    },
    reject::Reject,
    store::{Store, StoreError, TransactError},
};

const CHECK_EVERY: Duration = Duration::from_secs(60);

/// Replaces signing keys.
pub struct KeyRotation {
    store: Store,
    signer: Arc<Signer>,
    rotate_after: SignedDuration,
    /// Made ahead, so that nobody waits for a key. A short std lock: no key is made while it is held.
    spare: Mutex<Option<SigningKeyRecord>>,
    /// The spare was taken.
    spare_wanted: Notify,
}

/// No new key.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// None could be made.
    #[error(transparent)]
    Generate(#[from] SignError),
    /// None could be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl KeyRotation {
    /// Takes the keys that are in the store into use; makes the first one.
    pub async fn start(
        store: Store,
        signer: Arc<Signer>,
        rotate_after: SignedDuration,
        now: Timestamp,
    ) -> Result<Self, RotateError> {
        signer.load(&store.signing_keys());
        let rotation = Self {
            store,
            signer,
            rotate_after,
            spare: Mutex::new(None),
            spare_wanted: Notify::new(),
        };
        if rotation.signer.active().is_none() {
            let audit = AuditEntry::new(now, Actor::Relay, "signing_key_created");
            rotation.rotate(audit, now).await?;
        }
        Ok(rotation)
    }

    /// Makes a new key the active one, durably, and retires the others.
    pub async fn rotate(
        &self,
        mut audit: AuditEntry,
        now: Timestamp,
    ) -> Result<KeyId, RotateError> {
        let spare = self.spare().take();
        self.spare_wanted.notify_one();
        let new = match spare {
            Some(spare) => SigningKeyRecord {
                created_at: now,
                ..spare
            },
            None => made(now).await?,
        };
        let kid = new.kid.clone();
        audit.note = Some(kid.to_string());
        let change = move |transaction: &mut crate::store::Transaction<'_>| {
            for key in transaction.signing_keys() {
                if key.retired_at.is_none() {
                    transaction.put_signing_key(SigningKeyRecord {
                        retired_at: Some(now),
                        ..key.as_ref().clone()
                    });
                }
            }
            transaction.put_signing_key(new);
            transaction.audit(audit);
            Ok::<(), Infallible>(())
        };
        self.transact(change).await?;
        tracing::info!(%kid, "a new signing key is active");
        Ok(kid)
    }

    /// Watches age, spare and retired keys until `shutdown`.
    pub async fn run(&self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            let now = clock::now();
            if let Err(error) = self.look(now).await {
                tracing::error!("the signing keys could not be looked after: {error}");
            }
            tokio::select! {
                () = &mut shutdown => return,
                () = tokio::time::sleep(CHECK_EVERY) => {}
                () = self.spare_wanted.notified() => {}
            }
        }
    }

    async fn look(&self, now: Timestamp) -> Result<(), RotateError> {
        if self.spare().is_none() {
            let made = made(now).await?;
            *self.spare() = Some(made);
        }
        let due = self
            .signer
            .active()
            .is_none_or(|(_, since)| now.duration_since(since) >= self.rotate_after);
        if due {
            let audit = AuditEntry::new(now, Actor::Relay, "signing_key_rotated");
            self.rotate(audit, now).await?;
        }
        let dead = self.store.signing_keys().into_iter().filter(|key| {
            key.retired_at
                .is_some_and(|at| now.duration_since(at) >= RETIRED_KEY_SERVED_FOR)
        });
        let dead: Vec<KeyId> = dead.map(|key| key.kid.clone()).collect();
        if !dead.is_empty() {
            let change = move |transaction: &mut crate::store::Transaction<'_>| {
                for kid in dead {
                    transaction.remove_signing_key(&kid);
                }
                Ok::<(), Infallible>(())
            };
            self.transact(change).await?;
        }
        Ok(())
    }

    async fn transact(
        &self,
        change: impl FnOnce(&mut crate::store::Transaction<'_>) -> Result<(), Infallible>
        + Send
        + 'static,
    ) -> Result<(), StoreError> {
        self.store
            .transact(change)
            .await
            .map_err(|error| match error {
                TransactError::Store(error) => error,
                TransactError::Refused(never) => match never {},
            })?;
        self.signer.load(&self.store.signing_keys());
        Ok(())
    }

    fn spare(&self) -> MutexGuard<'_, Option<SigningKeyRecord>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<RotateError> for Reject {
    fn from(error: RotateError) -> Self {
        match error {
            RotateError::Generate(error) => Self::internal(error),
            RotateError::Store(error) => error.into(),
        }
    }
}

async fn made(now: Timestamp) -> Result<SigningKeyRecord, SignError> {
    tokio::task::spawn_blocking(move || generate_key(now))
        .await
        .map_err(|error| SignError::Failed(error.to_string()))?
}
