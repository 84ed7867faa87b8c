use std::convert::Infallible;

use super::*;
use crate::domain::{
    Actor, CloudId, Credential, ForgeInstallationId, InstanceUrl, JiraSites, LinkMode,
    SharedSecret, Upstream,
    event::{EventStamp, SiteFacts},
    upstream::{Forge, Oauth, SystemToken},
};
use jiff::SignedDuration;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("temporary folder"))
    }

    fn config(&self) -> StoreConfig {
        StoreConfig {
            path: self.0.path().join("store"),
            key_file: self.0.path().join("key"),
            installations_max: 100,
            links_max: 100,
            audit_entries_max: 5,
        }
    }

    fn copy(&self) -> Self {
        let copy = Self::new();
        std::fs::create_dir_all(copy.config().path.join("blobs")).expect("folder");
        std::fs::copy(self.config().key_file, copy.config().key_file).expect("copy");
        for entry in std::fs::read_dir(self.config().path).expect("folder") {
            let entry = entry.expect("entry");
            if entry.path().is_file() {
                let to = copy.config().path.join(entry.file_name());
                std::fs::copy(entry.path(), to).expect("copy");
            }
        }
        copy
    }

    fn open(&self) -> Result<StoreOwner, OpenError> {
        StoreOwner::open(&self.config(), Arc::new(Metrics::new().expect("metrics")))
    }
}

fn open_engine(folder: &Folder) -> Engine {
    let path = folder.config().path;
    let lock = Engine::lock(&path).expect("lock");
    Engine::open(&path, lock).expect("engine")
}

fn installation(client_key: &str) -> Installation {
    let now = Timestamp::UNIX_EPOCH;
    let stamp = EventStamp {
        issued_at: now,
        token_digest: "t".to_owned(),
        body_digest: "b".to_owned(),
        received_at: now,
    };
    let site = SiteFacts {
        base_url: JiraSites::default()
            .parse("https://acme.atlassian.net")
            .expect("base URL"),
        display_url: None,
        shared_secret: SharedSecret::generate().expect("randomness"),
    };
    let client_key = ClientKey::parse(client_key).expect("key");
    Installation::install(None, &client_key, &stamp, &site, SignedDuration::ZERO, now)
        .expect("install")
        .0
}

fn link(transaction: &mut Transaction<'_>, client_key: &str, url: &str) -> Link {
    Link::new(
        ClientKey::parse(client_key).expect("key"),
        InstanceUrl::parse(url).expect("url"),
        LinkMode::Relay,
        false,
        transaction.claim_namespace().expect("namespace"),
        SharedSecret::generate().expect("randomness"),
        Timestamp::UNIX_EPOCH,
    )
}

async fn put(store: &Store, client_key: &str) -> Result<(), TransactError<StoreFull>> {
    let installation = installation(client_key);
    store
        .transact(move |t| t.put_installation(installation))
        .await
}

async fn close(owner: StoreOwner) {
    tokio::task::spawn_blocking(move || owner.close())
        .await
        .expect("close")
        .expect("no panic");
}

#[tokio::test]
async fn what_was_answered_is_there_after_a_restart() {
    let folder = Folder::new();
    let owner = folder.open().expect("open");
    let store = owner.store().clone();
    put(&store, "tenant").await.expect("put");
    let id = store
        .transact(|t| {
            let link = link(t, "tenant", "https://gitlab.example.com");
            let id = link.id;
            t.put_link(link).map(|()| id)
        })
        .await
        .expect("link");
    let before = (store.installations(), store.link(id));
    close(owner).await;
    let owner = folder.open().expect("open again");
    let store = owner.store();
    assert_eq!((store.installations(), store.link(id)), before);
    let tenant = ClientKey::parse("tenant").expect("key");
    assert_eq!(store.links_of(&tenant).len(), 1);
    close(owner).await;
}

#[tokio::test]
async fn transactions_see_each_other_and_share_syncs() {
    let folder = Folder::new();
    let owner = folder.open().expect("open");
    let store = owner.store().clone();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..64 {
        let store = store.clone();
        tasks.spawn(async move {
            let installation = installation(&format!("tenant-{}", n % 8));
            store
                .transact(move |t| {
                    let known = t.installation(&installation.client_key);
                    let count = known.map_or(0, |known| known.installed_at.as_second());
                    t.put_installation(Installation {
                        installed_at: Timestamp::from_second(count + 1).expect("second"),
                        ..installation
                    })
                })
                .await
        });
    }
    while let Some(result) = tasks.join_next().await {
        result.expect("task").expect("transaction");
    }
    let counts: Vec<i64> = store
        .installations()
        .iter()
        .map(|installation| installation.installed_at.as_second())
        .collect();
    assert_eq!(counts, vec![8; 8], "no update was lost");
    close(owner).await;
}

#[tokio::test]
async fn a_refused_transaction_changes_nothing() {
    let folder = Folder::new();
    let owner = folder.open().expect("open");
    let store = owner.store();
    let unwanted = installation("tenant");
    let refused: Result<(), _> = store
        .transact(move |t| {
            t.put_installation(unwanted).expect("room");
            Err("no")
        })
        .await;
    assert_eq!(refused, Err(TransactError::Refused("no")));
    assert!(store.installations().is_empty());
    close(owner).await;
}

#[tokio::test]
async fn limits_hold_within_a_batch_too() {
    let folder = Folder::new();
    let config = StoreConfig {
        installations_max: 2,
        ..folder.config()
    };
    let owner =
        StoreOwner::open(&config, Arc::new(Metrics::new().expect("metrics"))).expect("open");
    let store = owner.store();
    let (a, b, c) = tokio::join!(put(store, "a"), put(store, "b"), put(store, "c"));
    let refused = [a, b, c].iter().filter(|result| result.is_err()).count();
    assert_eq!((refused, store.installations().len()), (1, 2));
    close(owner).await;
}

#[tokio::test]
async fn the_audit_trail_is_bounded_and_newest_first() {
    let folder = Folder::new();
    let owner = folder.open().expect("open");
    let store = owner.store();
    for n in 0..8 {
        store
            .transact(move |t| {
                t.audit(AuditEntry {
                    note: Some(n.to_string()),
                    ..AuditEntry::new(Timestamp::UNIX_EPOCH, Actor::Relay, "tested")
                });
                Ok::<(), Infallible>(())
            })
            .await
            .expect("audit");
    }
    let notes: Vec<_> = store
        .audit(None, 100)
        .await
        .expect("audit")
        .into_iter()
        .filter_map(|chained| chained.entry.note)
        .collect();
    assert_eq!(notes, ["7", "6", "5", "4", "3"]);
    close(owner).await;
}

#[tokio::test]
async fn a_store_that_is_not_ours_is_refused_and_left_alone() {
    let folder = Folder::new();
    let owner = folder.open().expect("open");
    put(owner.store(), "tenant").await.expect("put");
    assert!(matches!(folder.open(), Err(OpenError::Locked(_))));
    close(owner).await;

    let key_file = folder.config().key_file;
    let key = std::fs::read(&key_file).expect("key");
    std::fs::write(&key_file, [1; 32]).expect("write");
    assert!(matches!(folder.open(), Err(OpenError::WrongKey { .. })));
    std::fs::write(&key_file, b"short").expect("write");
    assert!(matches!(
        folder.open(),
        Err(OpenError::KeyFile(KeyFileError::Malformed {
            length: 5,
            ..
        }))
    ));
    std::fs::remove_file(&key_file).expect("remove");
    assert!(matches!(folder.open(), Err(OpenError::KeyMissing { .. })));
    assert!(!key_file.exists(), "no new key was made");

    std::fs::write(&key_file, key).expect("write");
    let mut engine = open_engine(&folder);
    engine
        .commit(vec![(b"m/schema".to_vec(), Some(b"9".to_vec()))])
        .expect("commit");
    drop(engine);
    assert!(matches!(
        folder.open(),
        Err(OpenError::NewerSchema { found: 9, .. })
    ));
    let mut engine = open_engine(&folder);
    engine
        .commit(vec![
            (b"m/schema".to_vec(), Some(SCHEMA.to_string().into_bytes())),
            (b"i/tenant".to_vec(), Some(b"rubbish".to_vec())),
        ])
        .expect("commit");
    drop(engine);
    assert!(matches!(folder.open(), Err(OpenError::Damaged { .. })));
}

#[tokio::test]
async fn nothing_secret_lies_on_the_disk_in_clear() {
    let folder = Folder::new();
    let owner = folder.open().expect("open");
    let store = owner.store().clone();
    let (client_secret, token) = ("ATOA-a-client-secret", "eyJ-a-system-token");
    let cloud_id = CloudId::parse("4c822e2f-510f-48b9-b8d2-8419d0932949").expect("id");
    let credential = |text: &str| Credential::parse(text).expect("credential");
    let oauth = Oauth::new(
        "client".to_owned(),
        credential(client_secret),
        cloud_id.clone(),
    );
    let id = "ari:cloud:ecosystem::installation/0a3a7799-53ae-4a5b-9e7e-03338980abb5";
    let now = Timestamp::UNIX_EPOCH;
    let forge = Forge {
        installation_id: ForgeInstallationId::parse(id).expect("id"),
        cloud_id,
        app_version: None,
        system_token: Some(SystemToken {
            token: credential(token),
            expires_at: now,
            from_page: false,
        }),
        told_at: now,
        refused: None,
    };
    let known = Installation {
        standby: vec![
            Upstream::Oauth(oauth.expect("credentials")),
            Upstream::Forge(forge),
        ],
        ..installation("tenant")
    };
    let of_jira = known
        .connect()
        .expect("an app")
        .shared_secret
        .expose()
        .to_owned();
    let of_link = store.transact(move |t| {
        t.put_installation(known)?;
        let link = link(t, "tenant", "https://gitlab.example.com");
        let secret = link.secret.expose().to_owned();
        t.put_link(link).map(|()| secret)
    });
    let of_link = of_link.await.expect("put");
    close(owner).await;
    let mut files = 0;
    for entry in std::fs::read_dir(folder.config().path).expect("folder") {
        let path = entry.expect("entry").path();
        if path.is_file() {
            files += 1;
            let content = std::fs::read(&path).expect("read");
            for secret in [&*of_jira, &*of_link, client_secret, token] {
                let mut windows = content.windows(secret.len());
                let found = windows.any(|window| window == secret.as_bytes());
                assert!(!found, "{} holds {secret}", path.display());
            }
        }
    }
    assert!(files > 0);
}

#[tokio::test]
async fn a_panic_in_a_transaction_stops_nobody_else() {
    let folder = Folder::new();
    let owner = folder.open().expect("open");
    let store = owner.store();
    let broken: Result<(), TransactError<Infallible>> =
        store.transact(|_| panic!("on purpose")).await;
    assert_eq!(broken, Err(TransactError::Store(StoreError::Closed)));
    put(store, "tenant").await.expect("put");
    close(owner).await;
}

/// sled takes damage in its log for the log's end and goes on without the rest; a store must not shrink in silence.
#[tokio::test]
async fn a_changed_byte_never_shrinks_the_store_in_silence() {
    let folder = Folder::new();
    let owner = folder.open().expect("open");
    for n in 0..90 {
        put(owner.store(), &format!("tenant-{n}"))
            .await
            .expect("put");
    }
    close(owner).await;
    let mut told = 0;
    // Once as it was written, once under a snapshot, which every start makes.
    for restarted in [false, true] {
        if restarted {
            close(folder.open().expect("open")).await;
        }
        let whole = std::fs::read(folder.config().path.join("db")).expect("data");
        let used = whole.iter().rposition(|&byte| byte != 0).expect("data");
        let heads = [0, 4, 8, 12, 16, 19].map(|at| (at, true));
        let flips = (1..16).map(|n| (used * n / 16, true));
        let cuts = [(0, false), (used / 2, false)];
        for (at, flip) in heads.into_iter().chain(flips).chain(cuts) {
            let copy = folder.copy();
            let data = copy.config().path.join("db");
            let mut damaged = whole.clone();
            if flip {
                damaged[at] ^= 0x55;
            } else {
                damaged.truncate(at);
            }
            std::fs::write(&data, &damaged).expect("write");
            match copy.open() {
                Ok(owner) => {
                    assert_eq!(
                        owner.store().installations().len(),
                        90,
                        "flip {flip} at {at}"
                    );
                    put(owner.store(), "one-more").await.expect("put");
                    close(owner).await;
                    let owner = copy
                        .open()
                        .expect("what it took is there at the next start");
                    assert_eq!(
                        owner.store().installations().len(),
                        91,
                        "flip {flip} at {at}"
                    );
                    close(owner).await;
                }
                Err(error @ OpenError::Damaged { .. }) => {
                    assert_eq!(
                        std::fs::read(&data).expect("data"),
                        damaged,
                        "left as it was"
                    );
                    assert!(!error.to_string().contains("backtrace"), "{error}");
                    told += 1;
                }
                Err(other) => panic!("flip {flip} at {at}: {other}"),
            }
        }
    }
    assert!(told > 10, "only {told} were told");
    let copy = folder.copy();
    std::fs::remove_file(copy.config().path.join("db")).expect("remove");
    assert!(
        matches!(copy.open(), Err(OpenError::Damaged { .. })),
        "a missing file is no new store"
    );
    let owner = folder.copy().open().expect("the whole one");
    assert_eq!(owner.store().installations().len(), 90);
    close(owner).await;
}

/// As a full disk or a kill during a start leaves it.
#[tokio::test]
async fn an_unfinished_snapshot_is_no_damage() {
    let folder = Folder::new();
    for round in 0..3 {
        let owner = folder.open().expect("open");
        assert_eq!(owner.store().installations().len(), round);
        put(owner.store(), &format!("tenant-{round}"))
            .await
            .expect("put");
        close(owner).await;
        let unfinished = folder
            .config()
            .path
            .join("snap.00000000000FFFFF.generating");
        std::fs::write(unfinished, b"").expect("write");
        std::fs::write(folder.config().path.join("unsynced"), b"").expect("write");
    }
    let owner = folder.open().expect("open");
    assert_eq!(owner.store().installations().len(), 3);
    assert!(!folder.config().path.join("unsynced").exists());
    close(owner).await;
}

/// A store with something of everything.
async fn furnished(folder: &Folder) -> StoreOwner {
    let owner = folder.open().expect("open");
    let store = owner.store().clone();
    put(&store, "tenant").await.expect("put");
    let link = store
        .transact(|t| {
            let link = link(t, "tenant", "https://gitlab.example.com");
            t.audit(AuditEntry::new(
                Timestamp::UNIX_EPOCH,
                Actor::Admin,
                "link_created",
            ));
            t.put_link(link.clone()).map(|()| link)
        })
        .await
        .expect("link");
    for id in [1, 2] {
        let write = SpooledWrite {
            id: SpoolId(id),
            client_key: link.client_key.clone(),
            link: link.id,
            namespace: link.namespace.clone(),
            call: crate::domain::JiraCall::Submit(crate::domain::Family::Builds),
            bytes: 100_000,
            touches: crate::domain::spooled::Touches::everything(),
            received_at: Timestamp::UNIX_EPOCH,
            request_id: "r".to_owned(),
            reason: "jira_429".to_owned(),
        };
        let body = vec![id as u8; 100_000];
        store.spool(write, body.into()).await.expect("spool");
    }
    owner
}

async fn backup_of(store: &Store) -> Vec<u8> {
    let mut backup = store.backup(Timestamp::UNIX_EPOCH).await.expect("begin");
    let mut file = Vec::new();
    while let Some(part) = backup.next().await.expect("part") {
        file.extend_from_slice(&part);
    }
    file
}

fn key_of(folder: &Folder) -> Zeroizing<[u8; 32]> {
    read_key(&folder.config().key_file)
        .expect("read")
        .expect("key")
}

fn verify(file: &[u8], key: &[u8; 32]) -> Result<BackupContents, BackupError> {
    BackupFile::open(file)?.unlock(key)?.verify()
}

#[tokio::test]
async fn a_backup_holds_everything_and_becomes_the_same_store_again() {
    let folder = Folder::new();
    let owner = furnished(&folder).await;
    let store = owner.store().clone();
    let file = backup_of(&store).await;
    let key = key_of(&folder);
    let contents = verify(&file, &key).expect("whole");
    assert_eq!(
        (
            contents.installations,
            contents.links,
            contents.spooled_writes,
            contents.audit_entries
        ),
        (1, 1, 2, 1)
    );
    let checked = BackupFile::open(file.as_slice()).and_then(BackupFile::check);
    assert_eq!(checked.expect("checksum").records, 7);
    let secret = store.links()[0].secret.expose().to_owned();
    let in_clear = file
        .windows(secret.len())
        .any(|window| window == secret.as_bytes());
    assert!(!in_clear);

    // Under a key of its own.
    let other = Folder::new();
    let restore = || {
        let backup = BackupFile::open(file.as_slice()).expect("file");
        let backup = backup.unlock(&key).expect("key");
        Restored::fill(backup, &other.config(), |_| {})
    };
    // Cut before it was in its place: nobody starts on it, and the next one begins anew.
    drop(restore().expect("restore"));
    assert!(matches!(other.open(), Err(OpenError::RestoreUnfinished(_))));
    restore().expect("again").finish().expect("in place");
    assert!(matches!(restore(), Err(RestoreError::Occupied(_))));
    assert_ne!(key_of(&other), key);
    let copy = other.open().expect("open");
    assert_eq!(copy.store().installations(), store.installations());
    assert_eq!(copy.store().links(), store.links());
    assert_eq!(
        copy.store().audit(None, 10).await,
        store.audit(None, 10).await
    );
    for write in store.spooled() {
        let there = copy.store().spooled_body(write.id).await.expect("body");
        assert_eq!(there, store.spooled_body(write.id).await.expect("body"));
    }
    close(copy).await;
    close(owner).await;
}

#[tokio::test]
async fn a_backup_that_was_touched_is_told_so() {
    let folder = Folder::new();
    let owner = furnished(&folder).await;
    let file = backup_of(owner.store()).await;
    let key = key_of(&folder);
    close(owner).await;
    let checked = |file: &[u8]| BackupFile::open(file).and_then(BackupFile::check);
    for place in (0..file.len())
        .step_by(997)
        .chain(file.len() - 40..file.len())
    {
        let mut changed = file.clone();
        changed[place] ^= 1;
        assert!(verify(&changed, &key).is_err(), "byte {place}");
        assert!(checked(&changed).is_err(), "byte {place}, without the key");
        assert!(verify(&file[..place], &key).is_err(), "cut at {place}");
        assert!(checked(&file[..place]).is_err(), "cut at {place}");
    }
    let longer = [file.as_slice(), b"x"].concat();
    assert!(matches!(
        verify(&longer, &key),
        Err(BackupError::Damaged(_))
    ));
    assert!(matches!(
        verify(&file, &[7; 32]),
        Err(BackupError::WrongKey)
    ));
    assert!(matches!(
        verify(b"PK\x03\x04", &key),
        Err(BackupError::NotABackup)
    ));
    let newer = String::from_utf8_lossy(&file[..300])
        .replace(&format!("\"schema\":{SCHEMA}"), "\"schema\":9");
    assert!(matches!(
        verify(newer.as_bytes(), &key),
        Err(BackupError::Newer { schema: 9, .. })
    ));
}

#[tokio::test]
async fn a_backup_is_of_one_moment() {
    let folder = Folder::new();
    let owner = furnished(&folder).await;
    let store = owner.store().clone();
    let mut backup = store.backup(Timestamp::UNIX_EPOCH).await.expect("begin");
    put(&store, "later").await.expect("put");
    // Jira takes one of the two that wait before its turn comes.
    store
        .unspool(vec![SpoolId(1)], None)
        .await
        .expect("unspool");
    let mut file = Vec::new();
    while let Some(part) = backup.next().await.expect("part") {
        file.extend_from_slice(&part);
    }
    let contents = verify(&file, &key_of(&folder)).expect("whole");
    assert_eq!((contents.installations, contents.spooled_writes), (1, 1));
    close(owner).await;
}

fn resealed() -> AuditEntry {
    AuditEntry::new(Timestamp::UNIX_EPOCH, Actor::Admin, "store_resealed")
}

async fn reseal(store: &Store) -> ResealProgress {
    loop {
        let progress = store.reseal(resealed()).await.expect("reseal");
        if progress.finished {
            return progress;
        }
    }
}

#[tokio::test]
async fn a_new_key_opens_everything_and_the_old_one_nothing() {
    let folder = Folder::new();
    let owner = furnished(&folder).await;
    let store = owner.store().clone();
    let (old, before) = (key_of(&folder), backup_of(&store).await);
    // What is written in the middle of it is under the new key as well.
    assert!(!store.reseal(resealed()).await.expect("page").finished);
    put(&store, "meanwhile").await.expect("put");
    let progress = reseal(&store).await;
    let retired = progress.retired_key_file.expect("kept");
    assert_eq!(read_key(&retired).expect("read").expect("key"), old);
    assert!(progress.sealed >= 6, "{}", progress.sealed);
    assert_ne!(key_of(&folder), old);
    assert!(verify(&before, &old).is_ok());
    let links = store.links();
    close(owner).await;

    let again = folder.open().expect("open");
    assert_eq!(again.store().links(), links);
    assert_eq!(again.store().installations().len(), 2);
    for id in [1, 2] {
        let body = again.store().spooled_body(SpoolId(id)).await.expect("body");
        assert_eq!(body.len(), 100_000);
    }
    close(again).await;
    std::fs::copy(retired, folder.config().key_file).expect("copy");
    assert!(matches!(folder.open(), Err(OpenError::WrongKey { .. })));
}

/// All of a backup opens with the key that it was begun under.
#[tokio::test]
async fn a_new_key_comes_while_a_backup_is_made() {
    let folder = Folder::new();
    let owner = furnished(&folder).await;
    let store = owner.store().clone();
    let old = key_of(&folder);
    let mut backup = store.backup(Timestamp::UNIX_EPOCH).await.expect("begin");
    let mut file = Vec::new();
    for _ in 0..2 {
        file.extend(backup.next().await.expect("part").expect("more"));
    }
    reseal(&store).await;
    while let Some(part) = backup.next().await.expect("part") {
        file.extend_from_slice(&part);
    }
    verify(&file, &old).expect("whole");
    // Twice in one second of the clock: each old key is kept.
    let second = key_of(&folder);
    let kept = reseal(&store).await.retired_key_file.expect("kept");
    assert_eq!(read_key(&kept).expect("read").expect("key"), second);
    close(owner).await;
}

#[tokio::test]
async fn a_new_key_that_was_cut_is_finished_at_the_next_start() {
    let folder = Folder::new();
    let owner = furnished(&folder).await;
    let store = owner.store().clone();
    let old = key_of(&folder);
    // Begun, one page done, then gone.
    store.reseal(resealed()).await.expect("page");
    close(owner).await;
    assert_eq!(key_of(&folder), old);
    let again = folder.open().expect("open");
    assert_ne!(key_of(&folder), old);
    assert_eq!(again.store().links(), store.links());
    assert_eq!(
        again
            .store()
            .spooled_body(SpoolId(2))
            .await
            .expect("body")
            .len(),
        100_000
    );
    close(again).await;
    close(folder.open().expect("and again")).await;
}
