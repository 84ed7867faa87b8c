use super::*;
use crate::domain::{CloudId, Credential, JiraSites, upstream::Oauth};

const GRACE: SignedDuration = SignedDuration::from_secs(300);

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("second")
}

fn stamp(second: i64, token: &str, body: &str) -> EventStamp {
    EventStamp {
        issued_at: at(second),
        token_digest: token.to_owned(),
        body_digest: body.to_owned(),
        received_at: at(second),
    }
}

fn site(secret: &str, base_url: &str) -> SiteFacts {
    SiteFacts {
        base_url: JiraSites::default().parse(base_url).expect("base URL"),
        display_url: None,
        shared_secret: SharedSecret::parse(&secret.repeat(32)).expect("secret"),
    }
}

fn installed() -> Installation {
    let key = ClientKey::parse("tenant").expect("key");
    let facts = site("a", "https://acme.atlassian.net");
    Installation::install(None, &key, &stamp(100, "t1", "b1"), &facts, GRACE, at(100))
        .expect("install")
        .0
}

fn again(
    known: &Installation,
    stamp: &EventStamp,
    site: &SiteFacts,
    now: i64,
) -> (Installation, InstallationChange) {
    Installation::install(Some(known), &known.client_key, stamp, site, GRACE, at(now))
        .expect("install")
}

#[test]
fn a_rotation_keeps_the_old_secret_for_the_grace_time() {
    let known = installed();
    let facts = site("b", "https://acme.atlassian.net");
    let (next, change) = again(&known, &stamp(200, "t2", "b2"), &facts, 200);
    assert_eq!(
        change,
        InstallationChange::Updated {
            secret: true,
            base_url: false
        }
    );
    assert_eq!(next.connect().map(|c| c.secret_generation), Some(2));
    assert_eq!(next.accepted_secrets(at(499)).count(), 2);
    assert_eq!(next.accepted_secrets(at(500)).count(), 1);
    assert_eq!(
        next.accepted_secrets(at(500)).next(),
        Some(&facts.shared_secret)
    );
}

#[test]
fn a_rename_is_followed_without_a_rotation() {
    let known = installed();
    let facts = site("a", "https://renamed.atlassian.net");
    let (next, change) = again(&known, &stamp(200, "t2", "b2"), &facts, 200);
    assert_eq!(
        change,
        InstallationChange::Updated {
            secret: false,
            base_url: true
        }
    );
    assert_eq!(next.base_url.as_str(), "https://renamed.atlassian.net");
    assert_eq!(next.connect().map(|c| c.secret_generation), Some(1));
}

#[test]
fn an_older_event_changes_nothing() {
    let known = installed();
    let facts = site("z", "https://old.atlassian.net");
    let (next, change) = again(&known, &stamp(99, "t0", "b0"), &facts, 200);
    assert_eq!(
        (next, change),
        (known.clone(), InstallationChange::Unchanged)
    );
    let (next, change) = known
        .uninstall(&stamp(99, "t0", "b0"), at(200))
        .expect("uninstall");
    assert_eq!((next, change), (known, InstallationChange::Unchanged));
}

#[test]
fn a_token_serves_other_bodies_in_its_own_second_only() {
    let known = installed();
    let (same, other) = (
        site("a", "https://acme.atlassian.net"),
        site("z", "https://acme.atlassian.net"),
    );
    let (_, change) = again(&known, &stamp(100, "t1", "b1"), &same, 101);
    assert_eq!(change, InstallationChange::Unchanged);
    let came = |second| EventStamp {
        received_at: at(second),
        ..stamp(100, "t1", "other")
    };
    let (next, _) = again(&known, &came(105), &other, 105);
    assert_eq!(
        next.accepted_secrets(at(105)).next(),
        Some(&other.shared_secret)
    );
    let key = &known.client_key;
    let late = Installation::install(Some(&known), key, &came(106), &other, GRACE, at(106));
    assert_eq!(late, Err(TokenReused));
}

#[test]
fn an_imported_site_is_its_imports_until_jira_speaks() {
    let key = ClientKey::parse("tenant").expect("key");
    let facts = site("a", "https://acme.atlassian.net");
    let imported = Installation::import(key, facts.clone(), ImportId::generate(), at(100));
    assert!(imported.is_installed() && imported.imported.is_some());
    let (same, _) = again(&imported, &stamp(50, "t1", "b1"), &facts, 101);
    assert_eq!(same.imported, None, "even if it says the same");
    let (gone, _) = imported
        .uninstall(&stamp(50, "t2", "b2"), at(101))
        .expect("uninstall");
    assert_eq!((gone.is_installed(), gone.imported), (false, None));
}

#[test]
fn an_uninstall_leaves_a_tombstone_that_a_reinstall_revives() {
    let known = installed();
    let (gone, change) = known
        .uninstall(&stamp(200, "t2", "b2"), at(200))
        .expect("uninstall");
    assert_eq!(change, InstallationChange::Uninstalled);
    assert_eq!(gone.uninstalled_at, Some(at(200)));
    let (back, change) = again(
        &gone,
        &stamp(300, "t3", "b3"),
        &site("b", "https://acme.atlassian.net"),
        300,
    );
    assert_eq!(change, InstallationChange::Reinstalled);
    assert_eq!((back.installed_at, back.uninstalled_at), (at(300), None));
    let (gone, change) = gone
        .uninstall(&stamp(250, "t4", "b4"), at(250))
        .expect("uninstall");
    assert_eq!(change, InstallationChange::Repeated);
    let late = again(
        &gone,
        &stamp(240, "t5", "b5"),
        &site("b", "https://acme.atlassian.net"),
        300,
    );
    assert_eq!(
        late.1,
        InstallationChange::Unchanged,
        "older than the newest uninstall"
    );
}

fn oauth(secret: &str) -> Upstream {
    Upstream::Oauth(Oauth {
        client_id: "client".to_owned(),
        client_secret: Credential::parse(secret).expect("secret"),
        cloud_id: CloudId::parse("4c822e2f-510f-48b9-b8d2-8419d0932949").expect("id"),
    })
}

fn address(base_url: &str) -> SiteAddress {
    SiteAddress {
        base_url: JiraSites::default().parse(base_url).expect("base URL"),
        display_url: None,
    }
}

#[test]
fn another_way_stands_by_until_the_site_is_moved_to_it() {
    let acme = || address("https://acme.atlassian.net");
    let known = installed();
    let moved = known.move_to(UpstreamKind::Oauth, at(200));
    assert_eq!(moved, Err(NoSuchWay(UpstreamKind::Oauth)));
    let (known, change) = known.join(oauth("s1"), acme(), at(200));
    assert_eq!(change, InstallationChange::Standby);
    assert_eq!(known.upstream.kind(), UpstreamKind::Connect);
    let (known, _) = known.join(oauth("s2"), acme(), at(201));
    assert_eq!(known.standby, [oauth("s2")], "one of a kind");

    let (moved, change) = known.move_to(UpstreamKind::Oauth, at(202)).expect("move");
    assert_eq!(change, InstallationChange::Moved);
    assert_eq!((&moved.upstream, moved.standby.len()), (&oauth("s2"), 1));
    assert_eq!(moved.client_key, known.client_key);
    // The app is still there, and Jira still signs with its secret.
    assert_eq!(moved.accepted_secrets(at(203)).count(), 1);
    let (rotated, change) = again(
        &moved,
        &stamp(300, "t3", "b3"),
        &site("b", "https://acme.atlassian.net"),
        300,
    );
    assert_eq!(change, InstallationChange::Standby);
    assert_eq!(rotated.accepted_secrets(at(301)).count(), 2);
    assert_eq!(rotated.upstream, oauth("s2"));

    let (alone, change) = rotated
        .uninstall(&stamp(400, "t4", "b4"), at(400))
        .expect("uninstall");
    assert_eq!(change, InstallationChange::Standby, "it was not in use");
    assert!(alone.is_installed() && alone.standby.is_empty());
    let (gone, change) = alone.leave(UpstreamKind::Oauth, at(500));
    assert_eq!(change, InstallationChange::Uninstalled);
    assert!(!gone.is_installed());
    let (back, change) = gone.join(oauth("s3"), acme(), at(600));
    assert_eq!(change, InstallationChange::Reinstalled);
    assert!(back.is_installed());
    let (_, change) = back.join(oauth("s4"), acme(), at(601));
    let base_url = false;
    let secret = true;
    assert_eq!(change, InstallationChange::Updated { secret, base_url });
}

#[test]
fn a_site_whose_way_was_shut_moves_to_another() {
    let (known, _) = installed().join(oauth("s"), address("https://acme.atlassian.net"), at(200));
    let (gone, change) = known
        .uninstall(&stamp(300, "t2", "b2"), at(300))
        .expect("uninstall");
    assert_eq!(change, InstallationChange::Uninstalled);
    let (moved, change) = gone.move_to(UpstreamKind::Oauth, at(400)).expect("move");
    assert_eq!(change, InstallationChange::Reinstalled);
    assert!(moved.is_installed() && moved.standby.is_empty());
    assert_eq!(moved.accepted_secrets(at(400)).count(), 0);
}
