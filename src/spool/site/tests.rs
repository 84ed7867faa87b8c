use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;

use super::*;
use crate::domain::{ClientKey, Family, Namespace, spooled::Touches};

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("second")
}

fn link(number: u8) -> LinkId {
    LinkId::parse(&format!("00000000-0000-0000-0000-0000000000{number:02}")).expect("id")
}

fn call(family: Family) -> JiraCall {
    JiraCall::Submit(family)
}

fn deletion() -> JiraCall {
    JiraCall::DeleteBranch {
        repository: "r".to_owned(),
        branch: "b".to_owned(),
    }
}

/// A write of an entity with a number; none for a deletion.
fn write(lane: u8, id: u64, call: &JiraCall, entity: u64, number: Option<i64>) -> SpooledWrite {
    SpooledWrite {
        id: SpoolId(id),
        client_key: ClientKey::parse("tenant").expect("key"),
        link: link(lane),
        namespace: Namespace::parse("namespace").expect("slug"),
        call: call.clone(),
        bytes: 1,
        touches: Touches {
            entities: vec![(entity, number)],
            replaceable: number.is_some(),
            ..Touches::default()
        },
        received_at: NOW,
        request_id: String::new(),
        reason: String::new(),
    }
}

/// Admits and keeps a write at once.
fn keep(site: &mut Site, write: SpooledWrite) {
    site.admit(write.link, write.id, &write.call, NOW);
    let (link, id) = (write.link, write.id);
    site.reserve(link, write.room());
    site.insert(Waiting::new(Arc::new(write), NOW));
    site.leave(link, id);
}

fn next(site: &mut Site) -> Option<u64> {
    site.next(NOW, &mut at(1000)).map(|write| write.id.0)
}

/// Jira took it.
fn done(site: &mut Site, write: &SpooledWrite) {
    for id in site.with_replaced(write).into_iter().rev() {
        site.remove(write.link, id);
    }
}

/// Sends until nothing more may go, each with success.
fn drain(site: &mut Site) -> Vec<u64> {
    let mut order = Vec::new();
    while let Some(write) = site.next(NOW, &mut at(1000)) {
        order.push(write.id.0);
        done(site, &write);
    }
    order
}

fn hold(until: i64) -> Hold {
    Hold {
        until: at(until),
        reason: "throttled",
        message: String::new(),
    }
}

#[test]
fn later_writes_go_behind_in_their_family_only() {
    let mut site = Site::default();
    let builds = call(Family::Builds);
    assert_eq!(site.admit(link(1), SpoolId(1), &builds, NOW), None);
    site.make_barrier(link(1), SpoolId(1));
    assert_eq!(
        site.admit(link(1), SpoolId(2), &builds, NOW),
        Some("behind_others")
    );
    assert_eq!(
        site.admit(link(1), SpoolId(3), &call(Family::Devinfo), NOW),
        None
    );
    assert_eq!(site.admit(link(2), SpoolId(4), &builds, NOW), None);
}

#[test]
fn a_deletion_waits_for_what_is_under_way_and_holds_up_what_comes_later() {
    let mut site = Site::default();
    let devinfo = call(Family::Devinfo);
    assert_eq!(site.admit(link(1), SpoolId(1), &devinfo, NOW), None);
    assert_eq!(
        site.admit(link(1), SpoolId(2), &deletion(), NOW),
        Some("behind_others")
    );
    assert_eq!(
        site.admit(link(1), SpoolId(3), &devinfo, NOW),
        Some("behind_others")
    );
    site.insert(Waiting::new(
        Arc::new(write(1, 2, &deletion(), 7, None)),
        NOW,
    ));
    site.leave(link(1), SpoolId(2));
    assert_eq!(next(&mut site), None, "1 is still under way");
    site.leave(link(1), SpoolId(1));
    assert_eq!(next(&mut site), Some(2));
}

#[test]
fn pauses_hold_what_they_name() {
    let mut site = Site::default();
    keep(&mut site, write(1, 1, &call(Family::Builds), 1, Some(1)));
    keep(&mut site, write(1, 2, &call(Family::Devinfo), 2, Some(1)));
    site.pauses
        .hold_endpoint(call(Family::Builds).endpoint(), hold(10));
    let mut wake = at(1000);
    let first = site.next(NOW, &mut wake).expect("the other family goes on");
    assert_eq!(first.id, SpoolId(2));
    site.remove(first.link, first.id);
    assert!(site.next(NOW, &mut wake).is_none());
    assert_eq!(wake, at(10));
    assert_eq!(
        site.admit(link(2), SpoolId(3), &call(Family::Builds), NOW),
        Some("endpoint_paused")
    );
    assert_eq!(
        site.pauses.throttled(call(Family::Builds).endpoint(), NOW),
        Some(at(10))
    );
    site.pauses.hold(hold(20));
    site.pauses.hold(hold(15));
    assert_eq!(
        site.admit(link(2), SpoolId(4), &call(Family::Devinfo), at(19)),
        Some("site_paused")
    );
    assert!(site.next(at(20), &mut wake).is_some());
}

#[test]
fn a_pause_of_one_family_never_hides_another_behind_it() {
    let mut site = Site::default();
    for id in 1..=2000 {
        keep(&mut site, write(1, id, &call(Family::Builds), id, Some(1)));
    }
    keep(
        &mut site,
        write(1, 2001, &call(Family::Devinfo), 1, Some(1)),
    );
    site.pauses
        .hold_endpoint(call(Family::Builds).endpoint(), hold(10));
    assert_eq!(next(&mut site), Some(2001));
}

#[test]
fn an_issue_that_had_too_many_holds_all_that_is_about_it() {
    let mut site = Site::default();
    let about = |lane, id, family, issue| {
        let mut write = write(lane, id, &call(family), id, Some(1));
        write.touches.issues = vec![issue];
        write
    };
    keep(&mut site, about(1, 1, Family::Builds, 7));
    keep(&mut site, about(2, 2, Family::Devinfo, 7));
    keep(&mut site, about(2, 3, Family::Devinfo, 8));
    site.pauses.hold_issues(&[7], &hold(10));
    assert_eq!(drain(&mut site), [3]);
    assert!(
        site.pauses.holds_any(&[7], NOW)
            && !site.pauses.holds_any(&[8], NOW)
            && !site.pauses.holds_issues(at(10))
    );
}

#[test]
fn a_replaced_write_counts_again_if_the_newer_one_is_refused() {
    let mut site = Site::default();
    let builds = call(Family::Builds);
    for id in 1..=3 {
        keep(&mut site, write(1, id, &builds, 1, i64::try_from(id).ok()));
    }
    assert_eq!(next(&mut site), Some(3));
    site.remove(link(1), SpoolId(3));
    assert_eq!(next(&mut site), Some(2));
    let write = write(1, 2, &builds, 1, Some(2));
    assert_eq!(site.with_replaced(&write), [SpoolId(2), SpoolId(1)]);
    done(&mut site, &write);
    assert!(site.is_empty());
}

#[test]
fn a_closed_lane_sends_nothing() {
    let mut site = Site::default();
    keep(&mut site, write(1, 1, &call(Family::Builds), 1, Some(1)));
    site.close(link(1));
    assert_eq!(next(&mut site), None);
    site.open_again(link(1));
    assert_eq!(next(&mut site), Some(1));
    assert!(!site.is_quiet(link(1)));
}

#[test]
fn one_is_tried_after_a_setback() {
    let mut site = Site::default();
    for lane in 1..=3 {
        keep(
            &mut site,
            write(lane, u64::from(lane), &call(Family::Builds), 1, Some(1)),
        );
    }
    site.setbacks = 1;
    assert_eq!(next(&mut site), Some(1));
    assert_eq!(next(&mut site), None);
    assert_eq!(
        site.admit(link(9), SpoolId(9), &call(Family::Builds), NOW),
        Some("behind_others")
    );
    site.went_well(call(Family::Builds).endpoint());
    assert_eq!((next(&mut site), next(&mut site)), (Some(2), Some(3)));
}

#[test]
fn lanes_take_turns_and_a_long_one_catches_up() {
    let mut site = Site::default();
    for id in 1..=6 {
        keep(&mut site, write(1, id, &call(Family::Builds), id, Some(1)));
    }
    keep(&mut site, write(2, 7, &call(Family::Builds), 1, Some(1)));
    assert_eq!(drain(&mut site), [1, 7, 2, 3, 4, 5, 6]);
    for id in 1..=300 {
        keep(&mut site, write(1, id, &call(Family::Builds), id % 2, None));
    }
    assert_eq!(
        (next(&mut site), next(&mut site), next(&mut site)),
        (Some(1), Some(2), None),
        "2 touches another entity, 3 does not"
    );
}

#[test]
fn what_touches_everything_is_overtaken_by_nobody() {
    let mut site = Site::default();
    let mut all = write(1, 2, &call(Family::Devinfo), 0, None);
    all.touches = Touches::everything();
    keep(&mut site, write(1, 1, &call(Family::Devinfo), 1, Some(1)));
    keep(&mut site, all);
    keep(&mut site, write(1, 3, &call(Family::Devinfo), 3, Some(1)));
    keep(&mut site, write(1, 4, &call(Family::Builds), 4, Some(1)));
    site.not_before(link(1), SpoolId(1), at(10));
    assert_eq!(drain(&mut site), [4], "another family is another matter");
    site.release(|_| true);
    assert_eq!(drain(&mut site), [1, 2, 3]);
}

/// What can happen to a site, in any order.
#[derive(Clone, Debug)]
enum Event {
    Write {
        lane: u8,
        entity: u64,
    },
    Delete {
        lane: u8,
        entity: u64,
    },
    /// The next one is sent, and Jira takes it.
    Sent,
    /// The next one is sent, and Jira takes it, but the answer is lost.
    AnswerLost,
    /// The next one is sent and refused for now, alone or with its endpoint.
    Later {
        alone: bool,
    },
    Released,
    /// The next one is sent, and Jira refuses it for good.
    Refused,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let place = (1_u8..3, 0_u64..3);
    let event = prop_oneof![
        5 => place.clone().prop_map(|(lane, entity)| Event::Write { lane, entity }),
        2 => place.prop_map(|(lane, entity)| Event::Delete { lane, entity }),
        4 => Just(Event::Sent),
        1 => Just(Event::AnswerLost),
        1 => any::<bool>().prop_map(|alone| Event::Later { alone }),
        1 => Just(Event::Released),
        1 => Just(Event::Refused),
    ];
    prop::collection::vec(event, 0..80)
}

/// A Jira that replaces what it has by what has a larger number, and deletes whatever it is told to.
#[derive(Default)]
struct Jira(BTreeMap<(LinkId, u64), i64>);

impl Jira {
    fn takes(&mut self, write: &SpooledWrite) {
        for (entity, number) in &write.touches.entities {
            let key = (write.link, *entity);
            match number {
                None => {
                    self.0.remove(&key);
                }
                Some(number) => {
                    let known = self.0.entry(key).or_insert(*number);
                    *known = (*known).max(*number);
                }
            }
        }
    }
}

proptest! {
    /// However writes, failures, lost answers, refusals and pauses fall: in the end Jira has what it would have had,
    /// had every write that it did not refuse arrived at once.
    #[test]
    fn any_interleaving_ends_as_if_jira_had_taken_all_at_once(events in events()) {
        let (mut site, mut jira) = (Site::default(), Jira::default());
        let mut history: Vec<SpooledWrite> = Vec::new();
        let mut taken = HashSet::new();
        let send = |site: &mut Site| site.next(NOW, &mut at(1000));
        for (id, event) in (1..).zip(events) {
            match event {
                Event::Write { lane, entity } => {
                    let write = write(lane, id, &call(Family::Devinfo), entity, i64::try_from(id).ok());
                    history.push(write.clone());
                    keep(&mut site, write);
                }
                Event::Delete { lane, entity } => {
                    let write = write(lane, id, &deletion(), entity, None);
                    history.push(write.clone());
                    keep(&mut site, write);
                }
                Event::Sent => {
                    if let Some(write) = send(&mut site) {
                        jira.takes(&write);
                        done(&mut site, &write);
                    }
                }
                Event::AnswerLost => {
                    if let Some(write) = send(&mut site) {
                        jira.takes(&write);
                        taken.insert(write.id);
                        site.put_back(write.link, write.id, String::new(), NOW);
                    }
                }
                Event::Later { alone } => {
                    if let Some(write) = send(&mut site) {
                        let not_before = if alone { at(500) } else { NOW };
                        site.put_back(write.link, write.id, String::new(), not_before);
                        if !alone {
                            site.pauses.hold_endpoint(write.call.endpoint(), hold(500));
                        }
                    }
                }
                Event::Released => site.release(|_| true),
                Event::Refused => {
                    if let Some(write) = send(&mut site) {
                        // What it took once it does not refuse later.
                        if taken.contains(&write.id) {
                            site.put_back(write.link, write.id, String::new(), NOW);
                            continue;
                        }
                        history.retain(|known| known.id != write.id);
                        site.remove(write.link, write.id);
                    }
                }
            }
        }
        site.release(|_| true);
        while let Some(write) = send(&mut site) {
            jira.takes(&write);
            done(&mut site, &write);
        }
        let mut ideal = Jira::default();
        history.iter().for_each(|write| ideal.takes(write));
        prop_assert_eq!(jira.0, ideal.0);
        prop_assert_eq!(site.bytes, 0);
        prop_assert!(site.lanes().all(|(_, mut lane)| lane.next().is_none()));
    }
}
