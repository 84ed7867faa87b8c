use super::*;

const GRACE: SignedDuration = SignedDuration::from_secs(300);
const WEEK: SignedDuration = SignedDuration::from_hours(168);

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("second")
}

fn link() -> Link {
    Link::new(
        ClientKey::parse("tenant").expect("key"),
        InstanceUrl::parse("https://gitlab.example.com").expect("url"),
        LinkMode::Relay,
        false,
        Namespace::generate().expect("randomness"),
        SharedSecret::generate().expect("randomness"),
        at(0),
    )
}

fn confirmed() -> AttemptOutcome {
    AttemptOutcome::Acknowledged {
        base_url: Some("https://relay.example.com".to_owned()),
    }
}

fn failed(refused: bool) -> AttemptOutcome {
    AttemptOutcome::Failed {
        problem: DeliveryProblem {
            code: "x".to_owned(),
            message: String::new(),
            hint: String::new(),
            at: at(0),
            id: String::new(),
        },
        refused,
        may_have_arrived: true,
        told: true,
        retry_in: SignedDuration::from_secs(5),
    }
}

#[test]
fn goes_from_pending_over_failing_to_connected() {
    let mut link = link();
    assert_eq!(link.state(), LinkState::Pending);
    link.record(link.desired, failed(true), GRACE, WEEK, at(10));
    assert_eq!(
        (link.state(), link.attempts, link.next_attempt_at),
        (LinkState::Failing, 1, at(15))
    );
    link.record(link.desired, confirmed(), GRACE, WEEK, at(15));
    assert_eq!(
        (link.state(), link.attempts, link.last_error.is_none()),
        (LinkState::Connected, 0, true)
    );
}

#[test]
fn a_change_of_mind_during_an_attempt_is_due_at_once() {
    let mut link = link();
    let goal = link.desired;
    link.want_uninstalled(at(1));
    link.record(goal, confirmed(), GRACE, WEEK, at(2));
    assert_eq!((link.acknowledged, link.is_settled()), (Some(goal), false));
    assert_eq!(
        (link.state(), link.next_attempt_at),
        (LinkState::Removing, at(1))
    );
}

#[test]
fn an_undone_removal_leaves_what_was() {
    let mut link = link();
    let removed = |link: &Link| {
        let mut link = link.clone();
        link.remove = true;
        link.want_uninstalled(at(10));
        link.next_attempt_at = at(20);
        link
    };
    for acknowledged in [false, true] {
        if acknowledged {
            link.record(link.desired, confirmed(), GRACE, WEEK, at(1));
        }
        let mut undone = removed(&link);
        assert!(undone.can_be_undone(at(15)));
        undone.undo_removal(at(15));
        // What changed meanwhile passed by a link that was to go, so it is told again.
        assert_eq!((undone.state(), undone.remove), (LinkState::Pending, false));
        assert_eq!(undone.desired.event, LifecycleEventKind::Installed);
        assert_eq!(undone.secret, link.secret);
        undone.record(undone.desired, confirmed(), GRACE, WEEK, at(16));
        assert_eq!(undone.state(), LinkState::Connected);
    }
    // From when the instance may be told on it is too late.
    let mut late = removed(&link);
    assert!(!late.can_be_undone(at(20)) && !link.can_be_undone(at(15)));
    late.record(late.desired, failed(false), GRACE, WEEK, at(20));
    assert!(!late.can_be_undone(at(21)) && late.can_be_taken_back());
    // Who can't be reached has heard nothing; between two attempts there is time.
    let mut unheard = removed(&link);
    let gone = AttemptOutcome::Failed {
        problem: DeliveryProblem {
            code: "connection_failed".to_owned(),
            message: String::new(),
            hint: String::new(),
            at: at(20),
            id: String::new(),
        },
        refused: false,
        may_have_arrived: true,
        told: false,
        retry_in: SignedDuration::from_secs(5),
    };
    unheard.record(unheard.desired, gone, GRACE, WEEK, at(20));
    assert!(unheard.can_be_undone(at(21)) && !unheard.can_be_undone(at(25)));
    unheard.undo_removal(at(21));
    assert_eq!((unheard.state(), unheard.attempts), (LinkState::Pending, 0));
    assert_eq!(unheard.last_error, None);
    // ... not where the instance gets back what it had before an import.
    let mut handed_back = removed(&link);
    handed_back.hand_back = true;
    assert!(!handed_back.can_be_undone(at(15)));
}

#[test]
fn a_removal_that_waits_is_no_removal_yet() {
    let mut link = link();
    link.record(link.desired, confirmed(), GRACE, WEEK, at(1));
    link.remove = true;
    link.want_uninstalled(at(10));
    link.next_attempt_at = at(20);
    assert!(link.is_heard(at(15)) && link.can_be_taken_back());
    assert!(!link.is_heard(at(20)), "it may be told any moment");
    link.purge = Some(Purge {
        namespace: link.namespace.clone(),
        requested_at: at(10),
        not_before: Some(at(20)),
        begun: false,
        done_at: None,
        abandoned_at: None,
        last_error: None,
    });
    assert!(link.can_be_taken_back());
    if let Some(purge) = &mut link.purge {
        purge.begun = true;
    }
    assert!(!link.can_be_taken_back());
}

#[test]
fn an_attempt_that_was_under_way_does_not_cut_the_wait_short() {
    let mut link = link();
    let goal = link.desired;
    link.remove = true;
    link.want_uninstalled(at(10));
    link.next_attempt_at = at(20);
    link.record(goal, confirmed(), GRACE, WEEK, at(12));
    assert_eq!(link.next_attempt_at, at(20));
}

#[test]
fn old_secrets_stay_until_the_new_one_is_confirmed_and_a_grace_time_on() {
    let mut link = link();
    let first = link.secret.clone();
    link.record(link.desired, confirmed(), GRACE, WEEK, at(1));
    link.want_installed(Some(SharedSecret::generate().expect("randomness")), at(10));
    assert_eq!(
        link.retired_secrets
            .first()
            .map(|r| (&r.secret, r.valid_until)),
        Some((&first, None))
    );
    link.record(link.desired, confirmed(), GRACE, WEEK, at(20));
    assert_eq!(
        link.retired_secrets.first().and_then(|r| r.valid_until),
        Some(at(320))
    );
    link.want_installed(None, at(400));
    link.record(link.desired, confirmed(), GRACE, WEEK, at(400));
    assert!(link.retired_secrets.is_empty());
}

#[test]
fn a_removal_that_is_refused_often_enough_counts_as_done() {
    let mut link = link();
    link.record(link.desired, confirmed(), GRACE, WEEK, at(1));
    link.want_uninstalled(at(2));
    link.remove = true;
    for _ in 1..REFUSED_REMOVALS_UNTIL_GONE {
        link.record(link.desired, failed(true), GRACE, WEEK, at(3));
        assert!(!link.is_finished());
    }
    link.record(link.desired, failed(false), GRACE, WEEK, at(3));
    assert!(!link.is_finished(), "no answer proves nothing");
    link.record(link.desired, failed(true), GRACE, WEEK, at(3));
    assert!(link.is_finished());
}

#[test]
fn a_removal_from_a_dead_instance_ends_after_the_deadline() {
    let mut link = link();
    link.want_uninstalled(at(0));
    link.remove = true;
    link.record(link.desired, failed(false), GRACE, WEEK, at(168 * 3600 - 1));
    assert!(!link.is_finished());
    link.record(link.desired, failed(false), GRACE, WEEK, at(168 * 3600));
    assert!(link.is_finished());
}

#[test]
fn who_was_never_reached_need_not_be_told() {
    let unreachable = || match failed(false) {
        AttemptOutcome::Failed {
            problem,
            refused,
            retry_in,
            ..
        } => AttemptOutcome::Failed {
            problem,
            refused,
            retry_in,
            may_have_arrived: false,
            told: false,
        },
        other => other,
    };
    let mut link = link();
    link.record(link.desired, unreachable(), GRACE, WEEK, at(1));
    link.want_uninstalled(at(2));
    link.remove = true;
    link.record(link.desired, unreachable(), GRACE, WEEK, at(3));
    assert!(link.is_finished());
}

#[test]
fn a_late_confirmation_tells_which_secret_is_in_use() {
    let mut link = link();
    link.record(link.desired, confirmed(), GRACE, WEEK, at(1));
    link.want_installed(SharedSecret::generate().ok(), at(2));
    let (second, goal) = (link.secret.clone(), link.desired);
    link.want_installed(SharedSecret::generate().ok(), at(3));
    link.record(goal, confirmed(), GRACE, WEEK, at(4));
    for _ in 0..10 {
        link.want_installed(SharedSecret::generate().ok(), at(5));
    }
    let mut kept = link
        .retired_secrets
        .iter()
        .filter(|retired| retired.confirmed);
    assert!(kept.any(|retired| retired.secret == second));
}

#[test]
fn the_secret_in_use_survives_any_number_of_failed_resends() {
    let mut link = link();
    link.record(link.desired, confirmed(), GRACE, WEEK, at(1));
    let in_use = link.secret.clone();
    for _ in 0..10 {
        link.want_installed(SharedSecret::generate().ok(), at(2));
    }
    assert_eq!(link.retired_secrets.len(), RETIRED_SECRETS_MAX);
    assert!(
        link.retired_secrets
            .iter()
            .any(|retired| retired.secret == in_use)
    );
}

#[test]
fn a_link_that_is_handed_back_ends_with_installed() {
    let mut link = link();
    link.record(link.desired, confirmed(), GRACE, WEEK, at(1));
    link.want_handed_back(at(2));
    assert_eq!(link.state(), LinkState::Removing);
    assert!(link.is_told_jiras_own() && link.is_heard(at(2)) && !link.is_finished());
    let mut refused = link.clone();
    link.record(link.desired, confirmed(), GRACE, WEEK, at(3));
    assert!(link.is_finished());
    for _ in 0..REFUSED_REMOVALS_UNTIL_GONE {
        assert!(!refused.is_finished());
        refused.record(refused.desired, failed(true), GRACE, WEEK, at(3));
    }
    assert!(refused.is_finished(), "it believes another proxy again");
}

#[test]
fn being_linked_again_takes_a_removal_back() {
    let mut link = link();
    link.want_uninstalled(at(1));
    link.remove = true;
    link.want_installed(None, at(2));
    assert_eq!((link.state(), link.remove), (LinkState::Pending, false));
}
