//! However events, faults and crashes fall, all links converge.
//!
//! The rules, the store and the ledger are the real ones; only the wire is played, so that it can fail in any way and at
//! any moment. What the wire can do beyond that (an instance that applies a call long after it was given up) no rule can
//! mend: for that there are rounds. kill -9 with real sockets is in `tests/relay/crash.rs`.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::{
    config::StoreConfig,
    domain::{
        ClientKey, ImportId, Installation, JiraSites, LifecycleEvent, SharedSecret,
        event::{EventStamp, LifecycleChange, SiteFacts},
        link::DeliveryProblem,
    },
    gitlab::deliver,
    jira::lifecycle::{LifecycleRules, apply},
    linking::NewLink,
    store::StoreOwner,
    takeover::{self, Fate, Plan, Report, Site, Stopped},
};

const PUBLIC_URL: &str = "https://relay.example.com";
const SITES: usize = 2;
const INSTANCES: usize = 3;

/// One thing that happens. Numbers choose among what is there.
#[derive(Clone, Debug)]
enum Event {
    /// Jira tells of a site, with one of a few secrets.
    Installed { site: usize, secret: u8 },
    /// Jira takes the app away.
    Uninstalled { site: usize },
    /// Somebody links an instance.
    Link {
        site: usize,
        instance: usize,
        direct: bool,
        keep_ids: bool,
    },
    /// Somebody removes a link.
    Unlink { link: usize },
    /// Somebody undoes a removal, if that is possible yet.
    Undo { link: usize },
    /// Somebody has it sent again.
    Resend { link: usize },
    /// The site is taken over from another proxy, with its instance.
    Import {
        site: usize,
        instance: usize,
        secret: u8,
    },
    /// The last import is rolled back.
    RollBack,
    /// An attempt leaves.
    Begin { link: usize },
    /// An attempt that is under way ends.
    End { flight: usize, wire: Wire },
    /// The relay dies, and comes back. Attempts that were under way may have arrived.
    Crash { arrived: bool },
}

/// What the wire does to an attempt.
#[derive(Clone, Copy, Debug)]
enum Wire {
    /// Told and confirmed.
    Works,
    /// Nobody is there.
    Down,
    /// Told, but the answer is lost.
    AnswerLost,
    /// Never arrived, but the relay can't know.
    CallLost,
    /// It refuses, and stores nothing.
    Refuses,
    /// It stores, and answers 500.
    StoresAndFails,
}

/// What an instance holds for a site: secret and `baseUrl`.
type Held = (String, String);

/// One attempt under way: what it carries was fixed when it left.
struct Flight {
    link: LinkId,
    goal: Goal,
    reached: bool,
    told: bool,
    pair: (usize, usize),
    carries: Held,
}

struct World {
    folder: tempfile::TempDir,
    owner: Option<StoreOwner>,
    clock: i64,
    events: i64,
    flights: Vec<Flight>,
    /// What instances hold, by site and instance.
    held: BTreeMap<(usize, usize), Held>,
    /// Sites that have the app, as their last word was, or that an import brought.
    sites: BTreeSet<usize>,
    /// What somebody asked for and was promised.
    wanted: BTreeSet<(usize, usize)>,
    /// What instances keep: they refused to be told that it is over, or were to hold what they had before.
    left: BTreeSet<(usize, usize)>,
    last_import: Option<ImportId>,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            folder: tempfile::tempdir().expect("folder"),
            owner: None,
            clock: 1_800_000_000,
            events: 0,
            flights: Vec::new(),
            held: BTreeMap::new(),
            sites: BTreeSet::new(),
            wanted: BTreeSet::new(),
            left: BTreeSet::new(),
            last_import: None,
        };
        world.open();
        world
    }

    /// In the end all is as it was asked for, whatever happened.
    async fn outlives(events: Vec<Event>) {
        let mut world = Self::new();
        for event in events {
            world.happens(event).await;
        }
        world.heals().await;
        world.check();
        world.close().await;
    }

    fn open(&mut self) {
        let config = StoreConfig {
            path: self.folder.path().join("store"),
            key_file: self.folder.path().join("key"),
            installations_max: 100,
            links_max: 100,
            audit_entries_max: 5,
        };
        let metrics = Arc::new(Metrics::new().expect("metrics"));
        self.owner = Some(StoreOwner::open(&config, metrics).expect("the store opens"));
    }

    fn store(&self) -> &Store {
        self.owner.as_ref().expect("open").store()
    }

    fn ledger(&self) -> Ledger<'_> {
        Ledger {
            store: self.store(),
            secret_grace: SignedDuration::from_secs(300),
            removal_give_up: SignedDuration::from_hours(24 * 365),
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_second(self.clock).expect("time")
    }

    async fn happens(&mut self, event: Event) {
        self.clock += 1;
        match event {
            Event::Installed { site, secret } => {
                self.jira(site, LifecycleChange::Installed(facts(secret)))
                    .await;
                self.sites.insert(site);
            }
            Event::Uninstalled { site } => {
                self.jira(site, LifecycleChange::Uninstalled).await;
                self.sites.remove(&site);
            }
            Event::Link {
                site,
                instance,
                direct,
                keep_ids,
            } => {
                let wish = NewLink {
                    client_key: client_key(site),
                    instance_url: instance_url(instance),
                    mode: if direct {
                        LinkMode::Direct
                    } else {
                        LinkMode::Relay
                    },
                    keep_ids,
                };
                let now = self.now();
                let made = self
                    .store()
                    .transact(move |t| linking::create(t, wish, by_admin(now), now))
                    .await;
                if made.is_ok() {
                    // Also one that was about to go with its links.
                    self.sites.insert(site);
                    self.wanted.insert((site, instance));
                    self.left.remove(&(site, instance));
                }
            }
            Event::Unlink { link } => {
                if let Some(link) = self.pick(link, |_| true) {
                    let (id, now) = (link.id, self.now());
                    self.store()
                        .transact(move |t| linking::remove(t, id, by_admin(now), now))
                        .await
                        .expect("removed");
                    self.wanted.remove(&pair(&link));
                }
            }
            Event::Undo { link } => {
                let now = self.now();
                if let Some(link) = self.pick(link, |link| link.can_be_undone(now)) {
                    let id = link.id;
                    let undone = self
                        .store()
                        .transact(move |t| linking::undo_removal(t, id, by_admin(now), now))
                        .await;
                    // Refused if its site is gone.
                    if undone.is_ok() {
                        self.wanted.insert(pair(&link));
                        self.left.remove(&pair(&link));
                    }
                }
            }
            Event::Resend { link } => {
                if let Some(link) = self.pick(link, |_| true) {
                    let (id, now) = (link.id, self.now());
                    // Refused if it is leaving, or its site is.
                    let _ = self
                        .store()
                        .transact(move |t| linking::resend(t, id, by_admin(now), now))
                        .await;
                }
            }
            Event::Import {
                site,
                instance,
                secret,
            } => self.import(site, instance, secret).await,
            Event::RollBack => self.roll_back().await,
            Event::Begin { link } => self.begin(link).await,
            Event::End { flight, wire } => {
                if !self.flights.is_empty() {
                    let flight = self.flights.remove(flight % self.flights.len());
                    self.end(flight, wire).await;
                }
            }
            Event::Crash { arrived } => {
                for flight in std::mem::take(&mut self.flights) {
                    if arrived {
                        self.arrives(&flight);
                    }
                }
                self.close().await;
                self.open();
            }
        }
    }

    async fn close(&mut self) {
        let owner = self.owner.take().expect("open");
        task::spawn_blocking(|| owner.close().expect("closes"))
            .await
            .expect("task");
    }

    async fn jira(&mut self, site: usize, change: LifecycleChange) {
        self.events += 1;
        let now = self.now();
        let event = LifecycleEvent {
            client_key: client_key(site),
            stamp: EventStamp {
                issued_at: now,
                token_digest: self.events.to_string(),
                body_digest: String::new(),
                received_at: now,
            },
            change,
        };
        let rules = LifecycleRules {
            secret_grace: SignedDuration::from_secs(300),
            auto_link: Vec::new(),
        };
        self.store()
            .transact(move |t| {
                apply(
                    t,
                    &event,
                    &rules,
                    "request",
                    std::net::Ipv4Addr::LOCALHOST.into(),
                    now,
                )
            })
            .await
            .expect("taken");
    }

    async fn import(&mut self, site: usize, instance: usize, secret: u8) {
        let (now, facts) = (self.now(), facts(secret));
        let before = (
            facts.shared_secret.expose().to_owned(),
            facts.base_url.to_string(),
        );
        let rows = vec![Ok(Site {
            client_key: client_key(site),
            facts,
            instance_url: Some(instance_url(instance)),
        })];
        let plan = Plan {
            apply: true,
            skip_refused: false,
            auto_link: Vec::new(),
        };
        let done = self
            .store()
            .transact(move |t| takeover::import(t, rows, &plan, &by_admin(now), now))
            .await;
        let Ok(report) = done else { return };
        let row = report.rows.first().expect("a row");
        self.last_import = report.id;
        if row.installation == Fate::New {
            self.sites.insert(site);
            // The other proxy had told the instance, if it was not linked by us before.
            self.held.entry((site, instance)).or_insert(before);
        }
        if row.link == Fate::New {
            self.wanted.insert((site, instance));
            self.left.remove(&(site, instance));
        }
    }

    async fn roll_back(&mut self) {
        let (Some(by), now) = (self.last_import, self.now()) else {
            return;
        };
        let keys: Vec<ClientKey> = (0..SITES).map(client_key).collect();
        let done = self
            .store()
            .transact(move |t| takeover::roll_back(t, by, &keys, true, &by_admin(now), now))
            .await;
        let report: Report = match done {
            Ok(report) => report,
            Err(TransactError::Refused(Stopped::Unchanged(_))) => return,
            Err(error) => panic!("{error}"),
        };
        for row in &report.rows {
            let site = (0..SITES).find(|site| client_key(*site).as_str() == row.client_key);
            let site = site.expect("a site of ours");
            let instance = (0..INSTANCES)
                .find(|n| row.instance_url.as_deref() == Some(instance_url(*n).as_str()));
            if let Some(instance) = instance
                && matches!(row.link, Fate::Removed | Fate::HandedBack)
            {
                self.wanted.remove(&(site, instance));
                self.left.insert((site, instance));
            }
            if matches!(row.installation, Fate::Removed | Fate::Leaving) {
                self.sites.remove(&site);
            }
        }
    }

    /// As `Reconciler::attempt` begins.
    async fn begin(&mut self, link: usize) {
        let flying: Vec<LinkId> = self.flights.iter().map(|flight| flight.link).collect();
        let free = |link: &Link| !link.is_settled() && !flying.contains(&link.id);
        let Some(link) = self.pick(link, free) else {
            return;
        };
        self.clock = self.clock.max(link.next_attempt_at.as_second());
        let installation = self.store().installation(&link.client_key);
        let installation: Arc<Installation> = installation.expect("a link has an installation");
        if link.hides_an_attempt() {
            let there = self
                .ledger()
                .mark_told(link.id, link.desired)
                .await
                .expect("marked");
            assert!(there, "nobody forgot it in between");
        }
        let (secret, base_url) = deliver::told(&link, &installation, PUBLIC_URL);
        self.flights.push(Flight {
            link: link.id,
            goal: link.desired,
            reached: link.reached,
            told: link.told,
            pair: pair(&link),
            carries: (secret.expose().to_owned(), base_url.to_owned()),
        });
    }

    /// As it ends.
    async fn end(&mut self, flight: Flight, wire: Wire) {
        if matches!(wire, Wire::Works | Wire::AnswerLost | Wire::StoresAndFails) {
            self.arrives(&flight);
        }
        let outcome = match wire {
            Wire::Works => AttemptOutcome::Acknowledged {
                base_url: (flight.goal.event == LifecycleEventKind::Installed)
                    .then(|| flight.carries.1.clone()),
            },
            wire => AttemptOutcome::Failed {
                problem: DeliveryProblem {
                    code: "test".to_owned(),
                    message: String::new(),
                    hint: String::new(),
                    at: self.now(),
                    id: String::new(),
                },
                refused: matches!(wire, Wire::Refuses | Wire::StoresAndFails),
                may_have_arrived: flight.reached || !matches!(wire, Wire::Down),
                told: flight.told || !matches!(wire, Wire::Down),
                retry_in: SignedDuration::from_secs(5),
            },
        };
        let confirmed = matches!(wire, Wire::Works);
        let was_there = self.store().link(flight.link).is_some();
        self.ledger()
            .record(flight.link, flight.goal, outcome, String::new(), self.now())
            .await
            .expect("recorded");
        let after = self.store().link(flight.link);
        let given_up = match &after {
            None => was_there,
            Some(link) => link.is_settled(),
        };
        // Refused so often that the relay stopped asking, or never heard of it: what it holds stays.
        if given_up && !confirmed {
            self.left.insert(flight.pair);
        }
    }

    fn arrives(&mut self, flight: &Flight) {
        match flight.goal.event {
            LifecycleEventKind::Installed => {
                self.held.insert(flight.pair, flight.carries.clone());
            }
            LifecycleEventKind::Uninstalled => {
                self.held.remove(&flight.pair);
            }
        }
    }

    fn pick(&self, number: usize, which: impl Fn(&Link) -> bool) -> Option<Arc<Link>> {
        let mut links = self.store().links();
        links.retain(|link| which(link));
        links.sort_by_key(|link| (pair(link), link.id));
        let count = links.len();
        links.into_iter().nth(number.checked_rem(count)?)
    }

    /// From now on everything works.
    async fn heals(&mut self) {
        let mut attempts = 0;
        loop {
            for flight in std::mem::take(&mut self.flights) {
                self.end(flight, Wire::Works).await;
            }
            if self.pick(0, |link| !link.is_settled()).is_none() {
                return;
            }
            self.begin(0).await;
            attempts += 1;
            assert!(
                attempts <= 2 * SITES * INSTANCES,
                "it goes round in circles"
            );
        }
    }

    fn check(&self) {
        let links = self.store().links();
        let installed: BTreeSet<usize> = (0..SITES)
            .filter(|site| {
                let known = self.store().installation(&client_key(*site));
                known.is_some_and(|known| known.is_installed())
            })
            .collect();
        assert_eq!(installed, self.sites, "sites that have the app");
        let there: BTreeSet<(usize, usize)> = links.iter().map(|link| pair(link)).collect();
        assert_eq!(there.len(), links.len(), "one link for a pair");
        assert_eq!(
            there, self.wanted,
            "links that somebody wants, and no others"
        );
        for link in &links {
            assert!(link.is_settled() && !link.remove, "{link:?}");
            let pair = pair(link);
            if !installed.contains(&pair.0) {
                assert_eq!(link.desired.event, LifecycleEventKind::Uninstalled);
                continue;
            }
            assert_eq!(link.desired.event, LifecycleEventKind::Installed);
            let installation = self.store().installation(&link.client_key).expect("site");
            let (secret, base_url) = deliver::told(link, &installation, PUBLIC_URL);
            let expected = (secret.expose().to_owned(), base_url.to_owned());
            assert_eq!(self.held.get(&pair), Some(&expected), "what {pair:?} holds");
        }
        for pair in self.held.keys().filter(|pair| !self.left.contains(pair)) {
            assert!(
                self.wanted.contains(pair) && installed.contains(&pair.0),
                "{pair:?} was never told that it is over"
            );
        }
    }
}

fn client_key(site: usize) -> ClientKey {
    ClientKey::parse(&format!("site-{site}")).expect("key")
}

fn instance_url(instance: usize) -> InstanceUrl {
    InstanceUrl::parse(&format!("https://gitlab-{instance}.example.com")).expect("url")
}

fn pair(link: &Link) -> (usize, usize) {
    let site = (0..SITES).find(|site| client_key(*site) == link.client_key);
    let instance = (0..INSTANCES).find(|n| instance_url(*n) == link.instance_url);
    (site.expect("site"), instance.expect("instance"))
}

fn facts(secret: u8) -> SiteFacts {
    SiteFacts {
        base_url: JiraSites::default()
            .parse("https://acme.atlassian.net")
            .expect("site"),
        display_url: None,
        shared_secret: SharedSecret::parse(&format!("{secret:040}")).expect("secret"),
    }
}

fn by_admin(now: Timestamp) -> AuditEntry {
    AuditEntry::new(now, Actor::Admin, "test")
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let (site, instance, number) = (0..SITES, 0..INSTANCES, 0..8_usize);
    let wire = prop::sample::select(vec![
        Wire::Works,
        Wire::Works,
        Wire::Down,
        Wire::AnswerLost,
        Wire::CallLost,
        Wire::Refuses,
        Wire::StoresAndFails,
    ]);
    let event = prop_oneof![
        3 => (site.clone(), 0..3_u8).prop_map(|(site, secret)| Event::Installed { site, secret }),
        1 => site.clone().prop_map(|site| Event::Uninstalled { site }),
        5 => (site.clone(), instance.clone(), prop::bool::weighted(0.2), prop::bool::weighted(0.2))
            .prop_map(|(site, instance, direct, keep_ids)| Event::Link { site, instance, direct, keep_ids }),
        2 => number.clone().prop_map(|link| Event::Unlink { link }),
        3 => number.clone().prop_map(|link| Event::Undo { link }),
        2 => number.clone().prop_map(|link| Event::Resend { link }),
        2 => (site, instance, 0..3_u8)
            .prop_map(|(site, instance, secret)| Event::Import { site, instance, secret }),
        1 => Just(Event::RollBack),
        10 => number.clone().prop_map(|link| Event::Begin { link }),
        10 => (number, wire).prop_map(|(flight, wire)| Event::End { flight, wire }),
        1 => any::<bool>().prop_map(|arrived| Event::Crash { arrived }),
    ];
    prop::collection::vec(event, 0..60)
}

/// Somebody removes a link, the import that brought it is rolled back, and the removal is undone: what is kept after
/// all must not go with the import.
#[tokio::test]
async fn an_undone_removal_keeps_the_site_that_was_to_leave() {
    let mut world = World::new();
    world.import(0, 0, 1).await;
    let begin = |links: Vec<Arc<Link>>| links.first().map(|link| link.id).expect("a link");
    let (id, now) = (begin(world.store().links()), world.now());
    let minute = SignedDuration::from_mins(1);
    let removed = world
        .store()
        .transact(move |t| linking::remove_after(t, id, false, minute, by_admin(now), now));
    removed.await.expect("removed");
    world.roll_back().await;
    let imported = |world: &World| {
        let site = world.store().installation(&client_key(0)).expect("a site");
        site.imported.map(|imported| imported.leaving)
    };
    assert_eq!(imported(&world), Some(true));
    let undone = world
        .store()
        .transact(move |t| linking::undo_removal(t, id, by_admin(now), now));
    assert!(!undone.await.expect("undone").remove);
    assert_eq!(imported(&world), Some(false));
}

/// What an undo could get wrong: a direct link that missed another secret, and an instance that heard of the end of a
/// site in an attempt of which nobody knows.
#[tokio::test]
async fn an_undone_removal_tells_what_passed_by() {
    let (begin, undo, unlink) = (
        Event::Begin { link: 0 },
        Event::Undo { link: 0 },
        Event::Unlink { link: 0 },
    );
    let installed = |secret| Event::Installed { site: 0, secret };
    let link = |direct| Event::Link {
        site: 0,
        instance: 0,
        direct,
        keep_ids: false,
    };
    let end = |wire| Event::End { flight: 0, wire };
    let missed = vec![
        installed(1),
        link(true),
        begin.clone(),
        end(Wire::Works),
        unlink.clone(),
        begin.clone(),
        end(Wire::Down),
        installed(2),
        undo.clone(),
    ];
    let unnoted = vec![
        installed(1),
        link(false),
        begin.clone(),
        end(Wire::Works),
        Event::Uninstalled { site: 0 },
        begin.clone(),
        Event::Crash { arrived: true },
        begin,
        end(Wire::Down),
        unlink,
        installed(1),
        undo,
    ];
    for events in [missed, unnoted] {
        World::outlives(events).await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_interleaving_of_events_faults_and_crashes_converges(events in events()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        runtime.block_on(World::outlives(events));
    }
}
