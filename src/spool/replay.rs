//! One attempt at a write that waits.

use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use tokio::time::Instant;
use uuid::Uuid;

use super::{Shared, site::Site};
use crate::{
    clock,
    domain::{Actor, AuditEntry, Installation, JiraCall, LinkId, SpooledWrite, UpstreamKind},
    jira::{
        Delivered, Setback,
        deliver::{Size, deliver},
        namespace,
        rate_limit::Scope,
    },
    lock::lock,
    store::BodyError,
    trace::{self, Context, Fault, Hop, Shelf, Subject, Trace},
};

/// An error of Jira's own (500) is taken for the last word after so many tries.
const ERRORS_UNTIL_GIVEN_UP: u32 = 10;

/// What became of an attempt.
enum Fate {
    /// Jira took it, this way.
    Done(Delivered, Arc<Installation>),
    /// It never will reach Jira, for this reason.
    GivenUp(&'static str, String),
    /// Not now, this way.
    Later(Setback, Arc<Installation>),
    /// Not now, and it is this write's own trouble.
    Alone(String),
}

impl Shared {
    /// Sends a write that is marked as under way.
    pub(super) async fn replay(&self, site: &Mutex<Site>, write: &SpooledWrite) {
        let started = Instant::now();
        let trace = self.begin(write);
        let fate = trace::within(Arc::clone(&trace), self.attempt(write)).await;
        let now = clock::now();
        let duration_ms = started.elapsed().as_millis() as u64;
        let endpoint = write.call.endpoint();
        let waited_secs = now.duration_since(write.received_at).as_secs();
        let outcome = match &fate {
            Fate::Done(..) => "replayed",
            Fate::GivenUp(..) => "given_up",
            Fate::Later(setback, _) => setback.reason,
            Fate::Alone(_) => "jira_error",
        };
        self.metrics.replays.with_label_values(&[outcome]).inc();
        let (shelf, fault) = match &fate {
            Fate::Done(..) => (Shelf::Routine, None),
            Fate::GivenUp(reason, message) => (
                Shelf::Notable,
                Some((
                    *reason,
                    message,
                    "it will never reach Jira: see `jira-connect-proxy audit`",
                )),
            ),
            Fate::Later(Setback { message, .. }, _) | Fate::Alone(message) => (
                Shelf::Notable,
                Some((
                    outcome,
                    message,
                    "it is tried again: see `jira-connect-proxy spool list`",
                )),
            ),
        };
        let fault = fault.map(|(code, message, hint)| {
            Box::new(Fault {
                code,
                message: message.clone(),
                hint: hint.to_owned(),
                ..Fault::default()
            })
        });
        self.traces.end(trace, shelf, Hop::Ended(outcome, fault));
        match fate {
            Fate::Done(delivered, way) => {
                tracing::info!(
                    id = write.request_id, link.id = %write.link, client.key = %write.client_key,
                    endpoint = endpoint.as_str(), status = delivered.status.as_u16(), waited_secs, duration_ms,
                    "replayed a write to {} that had waited {waited_secs} s", endpoint.as_str()
                );
                self.ended(site, write, None).await;
                let throttle = delivered.throttle;
                lock(site).went_well(endpoint);
                if let Some(throttle) = throttle {
                    let exhausted = Setback::exhausted(throttle);
                    self.set_back(&way, endpoint, &[], &exhausted, now);
                }
            }
            Fate::GivenUp(reason, message) => {
                self.give_up(site, write, reason, &message, now).await;
            }
            Fate::Later(setback, way) => {
                let issues = &write.touches.issues;
                let pause = self.set_back(&way, endpoint, issues, &setback, now);
                let not_before = match setback.throttle.scope {
                    Scope::Write | Scope::Issue => now.saturating_add(pause).unwrap_or(now),
                    _ => now,
                };
                tracing::warn!(
                    id = write.request_id, link.id = %write.link, client.key = %write.client_key,
                    endpoint = endpoint.as_str(), reason = setback.reason, scope = setback.throttle.scope.as_str(),
                    retry_in_secs = pause.as_secs(), waited_secs, duration_ms,
                    "a write to {} waits on: {}", endpoint.as_str(), setback.message
                );
                lock(site).put_back(write.link, write.id, setback.message, not_before);
            }
            Fate::Alone(message) => {
                let attempts = {
                    let mut site = lock(site);
                    let attempts = site.put_back(write.link, write.id, message.clone(), now);
                    let pause = self.backoff(attempts);
                    site.not_before(
                        write.link,
                        write.id,
                        now.saturating_add(pause).unwrap_or(now),
                    );
                    attempts
                };
                if attempts >= ERRORS_UNTIL_GIVEN_UP {
                    self.give_up(site, write, "jira_error", &message, now).await;
                } else {
                    tracing::warn!(
                        id = write.request_id, link.id = %write.link, client.key = %write.client_key,
                        endpoint = endpoint.as_str(), reason = "jira_error", attempts, duration_ms,
                        "a write to {} waits on: {message}", endpoint.as_str()
                    );
                }
            }
        }
        self.wake.notify_one();
    }

    /// Under the id of the request that brought the write.
    fn begin(&self, write: &SpooledWrite) -> Arc<Trace> {
        let id = Uuid::try_parse(&write.request_id).unwrap_or_default();
        let subject = Subject::Replay {
            link: write.link,
            client_key: write.client_key.clone(),
            endpoint: write.call.endpoint().as_str(),
            received_at: write.received_at,
        };
        // Not the request's own span: that is over.
        let context = Context::replay(id);
        self.traces.begin(id, context, subject, clock::now())
    }

    /// An operator may have left the site for good, whatever stands by.
    fn goes_on(&self, link: LinkId) -> bool {
        let link = self.store.link(link);
        link.is_some_and(|link| link.wants_installed())
    }

    async fn attempt(&self, write: &SpooledWrite) -> Fate {
        let now = clock::now();
        let hours = self.settings.max_age.as_hours();
        let too_old = now.duration_since(write.received_at) >= self.settings.max_age;
        let installation = match self.store.installation(&write.client_key) {
            Some(installation) if installation.is_installed() => installation,
            // What is thrown away now could not go the other way after a move.
            Some(left) if !left.standby.is_empty() && self.goes_on(write.link) => {
                if too_old {
                    let message = format!(
                        "the way to the site is shut, and nobody moved it to what stands by for {hours} hours"
                    );
                    return Fate::GivenUp("too_old", message);
                }
                return Fate::Later(Setback::of_shut_way(&left.standby), left);
            }
            Some(left) if left.upstream.kind() == UpstreamKind::Oauth => {
                let message = "the site's credentials were removed";
                return Fate::GivenUp("uninstalled", message.to_owned());
            }
            _ => {
                return Fate::GivenUp(
                    "uninstalled",
                    "the app was uninstalled on the site, and Jira has deleted its data".to_owned(),
                );
            }
        };
        if too_old {
            return Fate::GivenUp("too_old", format!("Jira did not take it for {hours} hours"));
        }
        let body = match self.store.spooled_body(write.id).await {
            Ok(body) => body,
            Err(BodyError::Lost(cause)) => return Fate::GivenUp("body_lost", cause),
            Err(error @ BodyError::Io(_)) => {
                return Fate::Later(Setback::own(error.to_string()), installation);
            }
        };
        let size = match &write.call {
            JiraCall::Submit(family) => std::str::from_utf8(&body)
                .ok()
                .and_then(|text| namespace::survey(*family, text).ok())
                .map(|survey| Size::from(&survey))
                .unwrap_or_default(),
            _ => Size::default(),
        };
        let delivered = deliver(
            &self.forwarder,
            &installation,
            &write.call,
            &body,
            size,
            now,
        )
        .await;
        match delivered {
            Ok(delivered) => judged(delivered, installation),
            Err(setback) => Fate::Later(setback, installation),
        }
    }

    /// The write need not wait any more; its record goes. If that fails it is sent once more, which Jira ignores.
    async fn ended(&self, site: &Mutex<Site>, write: &SpooledWrite, audit: Option<AuditEntry>) {
        // Who was given up replaces nobody.
        let gone = match audit {
            None => lock(site).with_replaced(write),
            Some(_) => vec![write.id],
        };
        if let Err(error) = self.store.unspool(gone.clone(), audit).await {
            tracing::error!(
                id = write.request_id,
                "a write that is done can't be forgotten, it will be sent again: {error}"
            );
            let again = clock::now()
                .saturating_add(self.backoff(0))
                .unwrap_or(Timestamp::MAX);
            lock(site).put_back(write.link, write.id, error.to_string(), again);
            return;
        }
        let mut site = lock(site);
        // The oldest first, or they would count again for a moment.
        for id in gone.into_iter().rev() {
            if let Some(gone) = site.remove(write.link, id) {
                self.bytes
                    .fetch_sub(gone.room(), std::sync::atomic::Ordering::Relaxed);
            }
        }
    }

    /// Loudly: the instance was told that its write is safe.
    pub(super) async fn give_up(
        &self,
        site: &Mutex<Site>,
        write: &SpooledWrite,
        reason: &'static str,
        message: &str,
        now: Timestamp,
    ) {
        self.metrics.given_up.with_label_values(&[reason]).inc();
        let endpoint = write.call.endpoint().as_str();
        tracing::error!(
            id = write.request_id, link.id = %write.link, client.key = %write.client_key, endpoint, reason,
            received_at = %write.received_at,
            "a write to {endpoint} will never reach Jira: {message}"
        );
        let audit = AuditEntry {
            client_key: Some(write.client_key.clone()),
            link_id: Some(write.link),
            note: Some(format!("{endpoint}: {reason}")),
            request_id: Some(write.request_id.clone()),
            ..AuditEntry::new(now, Actor::Relay, "write_given_up")
        };
        self.ended(site, write, Some(audit)).await;
    }
}

/// What an answer means for a write that nobody waits for any more.
fn judged(delivered: Delivered, way: Arc<Installation>) -> Fate {
    let status = delivered.status;
    if status.is_success() {
        return Fate::Done(delivered, way);
    }
    if let Some(setback) = Setback::of_way(&delivered) {
        return Fate::Later(setback, way);
    }
    let message = Setback::of_answer(&delivered).message;
    if status.is_server_error() {
        Fate::Alone(message)
    } else {
        Fate::GivenUp("refused", message)
    }
}
