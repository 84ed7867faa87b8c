//! A link as the page inside Jira shows it.

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    domain::{Link, LinkId, link::DeliveryProblem},
    gitlab::probe::{Finding, Verdict},
    rounds::Rounds,
    routes::discreet,
};

/// A link as the page shows it. Never a secret.
#[derive(Serialize)]
pub(super) struct View<'a> {
    id: LinkId,
    instance_url: &'a str,
    state: &'static str,
    gitlab_version: Option<&'a str>,
    last_seen_at: Option<Timestamp>,
    created_at: Timestamp,
    attempts: u32,
    next_attempt_at: Option<Timestamp>,
    last_error: Option<DeliveryProblem>,
    purge: Option<PurgeView>,
    can_purge: bool,
    can_undo: bool,
    /// What the last look at the instance found broken.
    faults: Vec<Fault>,
}

#[derive(Serialize)]
struct Fault {
    #[serde(flatten)]
    finding: Finding,
    /// Of the look that found it first.
    id: String,
}

#[derive(Serialize)]
struct PurgeView {
    state: &'static str,
    last_error: Option<DeliveryProblem>,
}

impl<'a> View<'a> {
    /// How the page shows it at `now`, with what the last look at its instance found.
    pub(super) fn of(link: &'a Link, rounds: &Rounds, now: Timestamp) -> Self {
        Self {
            id: link.id,
            instance_url: link.instance_url.as_str(),
            state: link.state().as_str(),
            gitlab_version: link.gitlab_version.as_deref(),
            last_seen_at: link.last_seen_at,
            created_at: link.created_at,
            attempts: link.attempts,
            next_attempt_at: (!link.is_settled()).then_some(link.next_attempt_at),
            last_error: link.last_error.as_ref().map(discreet::problem),
            purge: purge(link),
            faults: faults(link, rounds),
            can_purge: link.is_marked(),
            can_undo: link.can_be_undone(now),
        }
    }
}

/// One that was given up is none for a Jira admin, who can't type what an operator is told to.
fn purge(link: &Link) -> Option<PurgeView> {
    let purge = link.purge.as_ref().filter(|purge| !purge.is_abandoned())?;
    let last_error = purge.last_error.as_ref().map(|problem| DeliveryProblem {
        hint:
            "it is tried again by itself; if it can't end, the operator of the relay can give it up"
                .to_owned(),
        ..discreet::problem(problem)
    });
    Some(PurgeView {
        state: purge.state(),
        last_error,
    })
}

fn faults(link: &Link, rounds: &Rounds) -> Vec<Fault> {
    let health = rounds.health(link).filter(|_| link.is_settled());
    let faults = health.into_iter().flat_map(|health| health.faults);
    let broken = faults.filter(|fault| fault.step.finding.verdict == Verdict::Fail);
    broken
        .map(|fault| Fault {
            finding: discreet::finding(fault.step.finding),
            id: fault.id,
        })
        .collect()
}
