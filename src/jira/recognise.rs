//! Which link speaks: told by the secret that signed its token.
//!
//! All instances behind one app sign with the same `iss` (the app key), and old ones drop any path from the
//! `baseUrl` they were given (GitLab `lib/atlassian/jira_connect/client.rb`), so nothing else tells them apart.
//! Links that were recognised from the caller's address lately are tried first. Everybody else costs a look at all
//! secrets, which callers from one address may have only so often; what a friend behind the same address sends is
//! found before that counts.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::IpAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use quick_cache::sync::Cache;
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};

use crate::{
    domain::{Link, LinkId, LinkMode, SharedSecret, peer::network},
    jwt::{SharedKey, UnverifiedToken, VerifyError, shared_key::SignedParts},
    lock::lock,
    metrics::{Counted, Metrics},
    store::Store,
};

/// Addresses whose friends are remembered.
const ADDRESSES_MAX: usize = 10_000;

/// Friends remembered for one address. Behind a load balancer all have the same one.
const FRIENDS_MAX: usize = 1024;

/// A friend found among the first few stays where it is.
const FRONT: usize = 7;

/// Looks at all secrets in vain that one address may cause at once, and per second after that. Those that find
/// somebody are free.
const LOOKS_BURST: f64 = 50.0;
const LOOKS_PER_SECOND: f64 = 5.0;

/// Who would have to wait longer than this for a look is refused at once.
const PATIENCE: Duration = Duration::from_secs(5);

/// Callers of one address that may wait at once.
const WAITING_MAX: usize = 32;

/// With more secrets than this, looking at all of them is too long for a thread that serves requests.
const INLINE_MAX: usize = 300;

/// Such looks under way at once, so that strangers from many addresses leave a core to others.
const LONG_LOOKS_MAX: usize = 1;

/// GitLab's tokens have some 300 bytes. A look costs a hash of the whole token for each secret.
const TOKEN_MAX_BYTES: usize = 1024;

/// Recognises links by their tokens.
pub struct Recogniser {
    store: Store,
    metrics: Arc<Metrics>,
    links: watch::Receiver<u64>,
    /// A short std lock: held while the keys are made anew, never over an await.
    built: Mutex<Built>,
    all: ArcSwap<Vec<Arc<Candidate>>>,
    friends: Cache<IpAddr, Arc<Friends>>,
    strangers: Cache<IpAddr, Arc<Stranger>>,
    long_looks: Semaphore,
}

/// What the candidates were made from.
#[derive(Default)]
struct Built {
    links: Option<u64>,
    made: HashMap<(LinkId, u64), Arc<Candidate>>,
}

/// One secret of one link.
struct Candidate {
    link: LinkId,
    /// The link's generation that first carried the secret.
    generation: u64,
    key: SharedKey,
}

/// Candidates that spoke from one address, those that spoke lately towards the front. Swapped whole, so that
/// nobody waits while somebody tries; of two changes at once one may be lost, which costs a search later.
#[derive(Default)]
struct Friends(ArcSwap<Vec<Arc<Candidate>>>);

/// An address that sent something nobody signed.
struct Stranger {
    /// A short std lock.
    looks: Mutex<Looks>,
    waiting: AtomicUsize,
}

/// A bucket that looks in vain are taken from. (governor takes before it is known whether the look was in vain, and
/// gives nothing back.)
struct Looks {
    left: f64,
    at: Instant,
}

impl Recogniser {
    /// Recognises the links of this store.
    pub fn new(store: Store, metrics: Arc<Metrics>) -> Self {
        Self {
            links: store.link_changes(),
            store,
            metrics,
            built: Mutex::default(),
            all: ArcSwap::default(),
            friends: Cache::new(ADDRESSES_MAX),
            strangers: Cache::new(ADDRESSES_MAX),
            long_looks: Semaphore::new(LONG_LOOKS_MAX),
        }
    }

    /// The link whose secret signed the token. Says nothing of the token's claims.
    ///
    /// # Errors
    /// Nobody's secret did, or the address has used up its looks.
    pub async fn recognise(
        &self,
        token: &UnverifiedToken,
        peer: IpAddr,
        now: Timestamp,
    ) -> Result<Arc<Link>, VerifyError> {
        if token.bytes() > TOKEN_MAX_BYTES {
            return Err(VerifyError::Malformed("it is longer than any of GitLab's"));
        }
        let parts = SignedParts::of(token)?;
        let peer = network(peer);
        if let Some(link) = self.friend(&parts, peer, now) {
            self.count("friend");
            return Ok(link);
        }
        let Ok(stranger) = self
            .strangers
            .get_or_insert_with(&peer, || Ok::<_, Infallible>(Arc::new(Stranger::new())));
        self.wait_for_a_look(&stranger).await?;
        let all = self.candidates();
        let found = if all.len() <= INLINE_MAX {
            find(&all, &parts)
        } else {
            let _turn = self.long_looks.acquire().await;
            let token = token.clone();
            // A panic or a stop of the runtime finds nobody, which is the safe answer.
            tokio::task::spawn_blocking(move || find(&all, &SignedParts::of(&token).ok()?))
                .await
                .ok()
                .flatten()
        };
        let link = found.and_then(|candidate| {
            let link = self.still_counts(&candidate, now)?;
            self.remember(peer, candidate);
            Some(link)
        });
        if link.is_none() {
            stranger.looked_in_vain();
        }
        self.count(if link.is_some() {
            "searched"
        } else {
            "unknown"
        });
        link.ok_or(VerifyError::UnknownSecret)
    }

    /// A look at those who spoke from there lately costs a fraction of a microsecond each.
    fn friend(&self, parts: &SignedParts<'_>, peer: IpAddr, now: Timestamp) -> Option<Arc<Link>> {
        let friends = self.friends.get(&peer)?;
        let known = friends.0.load();
        let at = known.iter().position(|friend| friend.key.signed(parts))?;
        let candidate = known.get(at)?;
        let link = self.still_counts(candidate, now);
        if link.is_none() || at > FRONT {
            let mut changed = Vec::clone(&known);
            let moved = changed.remove(at);
            if link.is_some() {
                changed.insert(0, moved);
            }
            friends.0.store(Arc::new(changed));
        }
        link
    }

    fn remember(&self, peer: IpAddr, candidate: Arc<Candidate>) {
        let friends = self
            .friends
            .get_or_insert_with(&peer, || Ok::<_, Infallible>(Arc::default()));
        let Ok(friends) = friends;
        let mut changed = Vec::clone(&friends.0.load());
        changed.retain(|known| !Arc::ptr_eq(known, &candidate));
        changed.truncate(FRIENDS_MAX - 1);
        changed.insert(0, candidate);
        friends.0.store(Arc::new(changed));
    }

    /// The record may have changed since the key was made.
    fn still_counts(&self, candidate: &Candidate, now: Timestamp) -> Option<Arc<Link>> {
        let link = self.store.link(candidate.link)?;
        let counts = secrets(&link, now).any(|(generation, _)| generation == candidate.generation);
        counts.then_some(link)
    }

    async fn wait_for_a_look(&self, stranger: &Stranger) -> Result<(), VerifyError> {
        let Some(mut pause) = stranger.wait() else {
            return Ok(());
        };
        let refused = || {
            self.count("refused");
            VerifyError::TooManyUnknown
        };
        let _waiting = Waiting::of(stranger).ok_or_else(refused)?;
        let _slowed = Counted::new(self.metrics.strangers_waiting.clone());
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() + pause <= deadline {
            tokio::time::sleep(pause).await;
            match stranger.wait() {
                None => return Ok(()),
                Some(longer) => pause = longer,
            }
        }
        Err(refused())
    }

    /// Every secret that an instance may sign with. Made anew when links have changed; keys that are known stay.
    fn candidates(&self) -> Arc<Vec<Arc<Candidate>>> {
        let now_at = *self.links.borrow();
        let mut built = lock(&self.built);
        if built.links == Some(now_at) {
            return self.all.load_full();
        }
        let mut made = HashMap::with_capacity(built.made.len());
        for link in self.store.links() {
            if link.mode != LinkMode::Relay {
                continue;
            }
            // Expired ones too: whether one counts is asked when it is found.
            for (generation, secret) in secrets(&link, Timestamp::MIN) {
                let id = (link.id, generation);
                let candidate = built.made.remove(&id).unwrap_or_else(|| {
                    Arc::new(Candidate {
                        link: link.id,
                        generation,
                        key: SharedKey::new(secret),
                    })
                });
                made.insert(id, candidate);
            }
        }
        let all = Arc::new(made.values().cloned().collect());
        self.all.store(Arc::clone(&all));
        *built = Built {
            links: Some(now_at),
            made,
        };
        all
    }

    fn count(&self, how: &str) {
        self.metrics.recognitions.with_label_values(&[how]).inc();
    }
}

impl Stranger {
    fn new() -> Self {
        Self {
            looks: Mutex::new(Looks {
                left: LOOKS_BURST,
                at: Instant::now(),
            }),
            waiting: AtomicUsize::new(0),
        }
    }

    /// How long until there is a look left; not at all, if there is one.
    fn wait(&self) -> Option<Duration> {
        let mut looks = lock(&self.looks);
        let now = Instant::now();
        let since = now.duration_since(looks.at).as_secs_f64();
        looks.left = (looks.left + since * LOOKS_PER_SECOND).min(LOOKS_BURST);
        looks.at = now;
        (looks.left < 1.0).then(|| Duration::from_secs_f64((1.0 - looks.left) / LOOKS_PER_SECOND))
    }

    fn looked_in_vain(&self) {
        lock(&self.looks).left -= 1.0;
    }
}

/// A place in an address's queue, given back on drop, also if the caller hangs up.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn of(stranger: &'a Stranger) -> Option<Self> {
        let place = Self(&stranger.waiting);
        (place.0.fetch_add(1, Ordering::AcqRel) < WAITING_MAX).then_some(place)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The secrets that count for a link at a time, with the generation that first carried each.
fn secrets(link: &Link, now: Timestamp) -> impl Iterator<Item = (u64, &SharedSecret)> {
    let retired = link
        .retired_secrets
        .iter()
        .filter(move |retired| retired.valid_until.is_none_or(|until| now < until))
        .map(|retired| (retired.since_generation, &retired.secret));
    std::iter::once((link.secret_since, &link.secret)).chain(retired)
}

fn find(all: &[Arc<Candidate>], parts: &SignedParts<'_>) -> Option<Arc<Candidate>> {
    all.iter().find(|c| c.key.signed(parts)).cloned()
}
