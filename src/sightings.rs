//! When an instance last spoke, and in which version: noted with its link, not more often than it is worth a write.

use std::time::Duration;

use dashmap::DashMap;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::mpsc;

use crate::{
    domain::{Link, LinkId},
    store::Store,
};

/// A link that goes on speaking is noted again after this.
const EVERY: SignedDuration = SignedDuration::from_secs(60);

/// Notes that may wait; one that finds no room is made the next time.
const WAITING_MAX: usize = 1024;

/// How long what is known of removed links may stay.
const CLEANED_EVERY: Duration = Duration::from_secs(3600);

/// Takes notes; never waits.
pub struct Sightings {
    noted: DashMap<LinkId, (Timestamp, Option<String>)>,
    sender: mpsc::Sender<Sighting>,
}

/// A link that spoke.
pub struct Sighting {
    link: LinkId,
    at: Timestamp,
    version: Option<String>,
}

impl Sightings {
    /// With what [`keep`] listens to.
    pub fn new() -> (Self, mpsc::Receiver<Sighting>) {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let noted = DashMap::new();
        (Self { noted, sender }, receiver)
    }

    /// A link spoke. `product` is GitLab's `providerMetadata.product`, if it came along.
    pub fn note(&self, link: &Link, product: Option<&str>, now: Timestamp) {
        let version = product.and_then(version);
        let old = {
            let known = self.noted.get(&link.id);
            let (at, known_version) = match known.as_deref() {
                Some((at, version)) => (Some(*at), version.as_deref()),
                None => (link.last_seen_at, link.gitlab_version.as_deref()),
            };
            let due = at.is_none_or(|at| now.duration_since(at) >= EVERY);
            let changed = version.is_some() && version != known_version;
            if !due && !changed {
                return;
            }
            known_version.map(str::to_owned)
        };
        let version = version.map(str::to_owned);
        let sighting = Sighting {
            link: link.id,
            at: now,
            version: version.clone(),
        };
        if self.sender.try_send(sighting).is_ok() {
            self.noted.insert(link.id, (now, version.or(old)));
        }
    }

    fn forget_removed(&self, store: &Store) {
        self.noted.retain(|link, _| store.link(*link).is_some());
    }
}

/// Writes notes into the records until `shutdown`.
pub async fn keep(
    store: Store,
    sightings: std::sync::Arc<Sightings>,
    mut notes: mpsc::Receiver<Sighting>,
    shutdown: impl Future<Output = ()>,
) {
    let mut shutdown = std::pin::pin!(shutdown);
    let mut clean = tokio::time::interval(CLEANED_EVERY);
    loop {
        let Sighting { link, at, version } = tokio::select! {
            () = &mut shutdown => return,
            _ = clean.tick() => {
                sightings.forget_removed(&store);
                continue;
            }
            note = notes.recv() => match note {
                Some(note) => note,
                None => return,
            },
        };
        let kept = store.note_link(link, move |link| {
            link.last_seen_at = link.last_seen_at.max(Some(at));
            link.gitlab_version = version.or_else(|| link.gitlab_version.take());
        });
        if let Err(error) = kept.await {
            tracing::warn!(link.id = %link, "when the instance last spoke could not be noted: {error}");
        }
    }
}

/// `GitLab 17.5.1-ee` without the first word; only what a version looks like.
fn version(product: &str) -> Option<&str> {
    let version = product.strip_prefix("GitLab ")?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b".-_+".contains(&b);
    ((1..=64).contains(&version.len()) && version.bytes().all(plain)).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_told_from_other_texts() {
        assert_eq!(version("GitLab 17.5.1-ee"), Some("17.5.1-ee"));
        for other in ["GitLab", "GitLab ", "Forge 1", "GitLab <b>", "GitLab 1 2"] {
            assert_eq!(version(other), None, "{other}");
        }
    }
}
