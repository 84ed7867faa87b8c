//! What happened lately, hop by hop: the requests, deliveries and replays that are remembered for `trace`.
//!
//! In memory only, and bounded in bytes. What went well, what did not, and what strangers sent stand on shelves of
//! their own, so that neither a busy relay nor an attack makes it forget what an operator asks for. Whoever works on
//! something finds its trace as the current one of the task, so that nobody has to hand it through.

mod context;
pub mod hop;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use http::{HeaderMap, Method, Uri};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::Instant};
use uuid::Uuid;

use crate::{
    domain::{ClientKey, InstanceUrl, LifecycleEventKind, Link, LinkId, Peer, link::Goal},
    lock::lock,
};
pub use context::{Context, TRACEPARENT, TRACESTATE};
use hop::with;
pub use hop::{Call, Fault, Hop};

/// Hops of one trace; what comes then is counted. A write that goes to Jira in many pieces has many.
const HOPS_MAX: usize = 48;

/// How much of the room each shelf has, in eighths.
const EIGHTHS: [(Shelf, usize); 3] = [
    (Shelf::Routine, 3),
    (Shelf::Notable, 4),
    (Shelf::Strangers, 1),
];

/// Faults told by [`Traces::faults`], of all and of strangers.
const FAULTS_MAX: usize = 8;
const STRANGERS_FAULTS_MAX: usize = 3;

tokio::task_local! {
    static CURRENT: Arc<Trace>;
}

/// What is remembered. One for each relay.
pub struct Traces {
    since: Timestamp,
    max_bytes: usize,
    shelves: [Mutex<Kept>; 3],
    export: Option<Export>,
}

/// Where traces go beside the memory.
pub struct Export {
    /// Takes them; what finds no room is lost.
    pub sender: mpsc::Sender<Arc<Trace>>,
    /// The part of traces to send, of `u64::MAX`.
    pub threshold: u64,
    /// Counts what is lost.
    pub dropped: prometheus::IntCounter,
}

/// Who is kept beside whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shelf {
    /// Somebody known did something, and it went well.
    Routine,
    /// It did not, or it is rare: deliveries, changes.
    Notable,
    /// Nobody known.
    Strangers,
}

#[derive(Default)]
struct Kept {
    traces: VecDeque<Entry>,
    bytes: usize,
    /// When the last one began that had to go.
    forgotten: Option<Timestamp>,
}

struct Entry {
    trace: Arc<Trace>,
    bytes: usize,
}

/// One request, delivery, replay or look.
#[derive(Debug)]
pub struct Trace {
    /// Its id in the log. A replay has that of the request that brought the write.
    pub id: Uuid,
    /// What it is.
    pub subject: Subject,
    /// When it began.
    pub started_at: Timestamp,
    /// In which larger trace.
    pub context: Context,
    /// Whether it is exported.
    pub sampled: bool,
    started: Instant,
    steps: Mutex<Steps>,
}

#[derive(Debug, Default)]
struct Steps {
    /// With microseconds from the beginning.
    hops: Vec<(u64, Hop)>,
    left_out: usize,
    over: bool,
}

/// What a trace is about.
#[derive(Clone, Debug)]
pub enum Subject {
    /// Somebody asked us.
    Request {
        /// `public` or `admin`.
        listener: &'static str,
        /// The matched route.
        route: &'static str,
        /// A method that we know.
        method: &'static str,
        /// Who.
        peer: Peer,
    },
    /// An instance is told something.
    Delivery {
        /// Of which link.
        link: LinkId,
        /// For which site.
        client_key: ClientKey,
        /// Who.
        instance_url: InstanceUrl,
        /// What.
        goal: Goal,
    },
    /// A write that waited goes to Jira.
    Replay {
        /// Of which link.
        link: LinkId,
        /// For which site.
        client_key: ClientKey,
        /// Where to.
        endpoint: &'static str,
        /// When it came.
        received_at: Timestamp,
    },
    /// What a removed link wrote is deleted from Jira.
    Deletion {
        /// Which link.
        link: LinkId,
        /// For which site.
        client_key: ClientKey,
        /// Which family of data.
        family: &'static str,
    },
    /// An instance is looked at.
    Look {
        /// Which.
        instance_url: InstanceUrl,
    },
}

/// Runs a future with this trace as the current one.
pub fn within<F: Future>(trace: Arc<Trace>, future: F) -> impl Future<Output = F::Output> {
    CURRENT.scope(trace, future)
}

/// What this task works on, if that is traced.
pub fn current() -> Option<Arc<Trace>> {
    CURRENT.try_with(Arc::clone).ok()
}

/// Notes a hop with the current trace; makes none if there is no trace.
pub fn note(hop: impl FnOnce() -> Hop) {
    // Nobody traces this task.
    let _ = CURRENT.try_with(|trace| trace.note(hop()));
}

/// Notes what a link is to be told from now on.
pub fn wanted(link: &Link) {
    note(|| Hop::Wanted {
        link: link.id,
        goal: link.desired,
    });
}

/// Writes the current trace into a request, and notes how that went when it is known.
pub fn called(method: &Method, uri: &Uri, headers: &mut HeaderMap) -> Option<Calling> {
    let trace = current()?;
    let span_id = trace.context.pass_on(trace.sampled, headers);
    Some(Calling {
        began_us: trace.elapsed_us(),
        span_id,
        method: method.clone(),
        uri: uri.clone(),
        trace,
    })
}

/// A call that is under way.
pub struct Calling {
    trace: Arc<Trace>,
    method: Method,
    uri: Uri,
    began_us: u64,
    span_id: u64,
}

impl Calling {
    /// It has an answer, or there is none.
    pub fn ended(self, outcome: Result<u16, String>) {
        let Self {
            trace,
            method,
            uri,
            began_us,
            span_id,
        } = self;
        trace.note(Hop::Called(Box::new(Call {
            method,
            uri,
            outcome: outcome.map_err(|cause| hop::short(&cause).into()),
            began_us,
            took_us: trace.elapsed_us().saturating_sub(began_us),
            span_id,
        })));
    }
}

impl Trace {
    /// Notes a hop.
    pub fn note(&self, hop: Hop) {
        let at = self.elapsed_us();
        let mut steps = lock(&self.steps);
        if steps.over {
            return;
        }
        if steps.hops.len() < HOPS_MAX {
            steps.hops.push((at, hop));
        } else {
            steps.left_out += 1;
        }
    }

    /// Looks at its hops, with microseconds from the beginning.
    pub fn hops<T>(&self, look: impl FnOnce(&[(u64, Hop)]) -> T) -> T {
        look(&lock(&self.steps).hops)
    }

    fn elapsed_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// The end, which is noted always; returns what all of it takes in memory, roughly.
    fn end(&self, hop: Hop) -> usize {
        let at = self.elapsed_us();
        let mut steps = lock(&self.steps);
        steps.hops.push((at, hop));
        steps.over = true;
        let hops = steps.hops.iter().map(|(_, hop)| hop.bytes());
        size_of::<Self>()
            + size_of::<Entry>()
            + steps.hops.capacity() * size_of::<(u64, Hop)>()
            + hops.sum::<usize>()
            + self.context.bytes()
            + self.subject.bytes()
    }

    fn is(&self, id: u128) -> bool {
        self.id.as_u128() == id || self.context.trace_id == id
    }

    /// Whether it is a delivery of what `wanted` lists, or a deletion that goes with it.
    fn delivers(&self, wanted: &[(LinkId, Goal)]) -> bool {
        match &self.subject {
            Subject::Delivery { link, goal, .. } => wanted.contains(&(*link, *goal)),
            Subject::Deletion { link, .. } => wanted.iter().any(|(removed, goal)| {
                removed == link && goal.event == LifecycleEventKind::Uninstalled
            }),
            Subject::Request { .. } | Subject::Replay { .. } | Subject::Look { .. } => false,
        }
    }

    fn wanted(&self) -> Vec<(LinkId, Goal)> {
        let wanted = |(_, hop): &(u64, Hop)| match hop {
            Hop::Wanted { link, goal } => Some((*link, *goal)),
            _ => None,
        };
        self.hops(|hops| hops.iter().filter_map(wanted).collect())
    }

    fn view(&self) -> Value {
        let steps = lock(&self.steps);
        let hops = steps.hops.iter();
        let hops = hops.map(|(at, hop)| with(hop.view(), json!({"after_us": at})));
        let own = json!({
            "id": self.id.simple().to_string(),
            "trace_id": format!("{:032x}", self.context.trace_id),
            "started_at": self.started_at.to_string(),
            "hops": hops.collect::<Vec<_>>(),
            "hops_left_out": steps.left_out,
        });
        with(self.subject.view(), own)
    }
}

impl Subject {
    fn bytes(&self) -> usize {
        match self {
            Self::Request { .. } => 0,
            Self::Delivery {
                client_key,
                instance_url,
                ..
            } => client_key.as_str().len() + instance_url.as_str().len(),
            Self::Replay { client_key, .. } | Self::Deletion { client_key, .. } => {
                client_key.as_str().len()
            }
            Self::Look { instance_url } => instance_url.as_str().len(),
        }
    }

    /// What it is, in one line.
    pub fn text(&self) -> String {
        match self {
            Self::Request {
                listener,
                route,
                method,
                peer,
            } => format!("{method} {route} on the {listener} listener, from {peer}"),
            Self::Delivery {
                client_key,
                instance_url,
                goal,
                ..
            } => format!("{} of {client_key} to {instance_url}", goal.event),
            Self::Replay {
                client_key,
                endpoint,
                received_at,
                ..
            } => format!("a write to {endpoint} of {client_key}, received {received_at:.0}"),
            Self::Deletion {
                link,
                client_key,
                family,
            } => format!("the {family} data of the link {link} of {client_key}, in Jira"),
            Self::Look { instance_url } => format!("a look at {instance_url}"),
        }
    }

    /// The same without what differs each time, so that faults can be counted.
    fn kind_text(&self) -> String {
        match self {
            Self::Request { route, method, .. } => format!("{method} {route}"),
            Self::Delivery {
                instance_url, goal, ..
            } => format!("{} to {instance_url}", goal.event),
            Self::Replay { endpoint, .. } => format!("replay to {endpoint}"),
            Self::Deletion { link, family, .. } => format!("deletion of {family} of {link}"),
            Self::Look { instance_url } => format!("look at {instance_url}"),
        }
    }

    fn view(&self) -> Value {
        let shown = match self {
            Self::Request {
                listener,
                route,
                method,
                peer,
            } => json!({
                "what": "request", "listener": listener, "route": route, "method": method,
                "peer": peer.to_string(),
            }),
            Self::Delivery {
                link,
                client_key,
                instance_url,
                goal,
            } => json!({
                "what": "delivery", "link_id": link, "client_key": client_key,
                "instance_url": instance_url, "event": goal.event.as_str(),
                "generation": goal.generation,
            }),
            Self::Replay {
                link,
                client_key,
                endpoint,
                received_at,
            } => json!({
                "what": "replay", "link_id": link, "client_key": client_key, "endpoint": endpoint,
                "received_at": received_at.to_string(),
            }),
            Self::Deletion {
                link,
                client_key,
                family,
            } => json!({
                "what": "deletion", "link_id": link, "client_key": client_key, "family": family,
            }),
            Self::Look { instance_url } => json!({"what": "look", "instance_url": instance_url}),
        };
        with(shown, json!({"text": self.text()}))
    }
}

impl Traces {
    /// Remembers as much as there is room for.
    pub fn new(max_bytes: usize, export: Option<Export>, now: Timestamp) -> Self {
        Self {
            since: now,
            max_bytes,
            shelves: Default::default(),
            export,
        }
    }

    /// Something begins.
    pub fn begin(
        &self,
        id: Uuid,
        context: Context,
        subject: Subject,
        now: Timestamp,
    ) -> Arc<Trace> {
        // By our own random number: whoever chooses a trace id does not choose what we send.
        let (_, random) = id.as_u64_pair();
        let sampled = self
            .export
            .as_ref()
            .is_some_and(|export| random << 2 <= export.threshold);
        Arc::new(Trace {
            id,
            subject,
            started_at: now,
            context,
            sampled,
            started: Instant::now(),
            steps: Mutex::new(Steps {
                hops: Vec::with_capacity(6),
                ..Steps::default()
            }),
        })
    }

    /// It is over; what is older may have to go.
    pub fn end(&self, trace: Arc<Trace>, shelf: Shelf, last: Hop) {
        let bytes = trace.end(last);
        if trace.sampled
            && let Some(export) = &self.export
            && export.sender.try_send(Arc::clone(&trace)).is_err()
        {
            export.dropped.inc();
        }
        let (room, kept) = self.shelf(shelf);
        if bytes > room {
            return;
        }
        let mut gone = Vec::new();
        {
            let mut kept = lock(kept);
            kept.bytes += bytes;
            kept.traces.push_back(Entry { trace, bytes });
            while kept.bytes > room {
                let Some(oldest) = kept.traces.pop_front() else {
                    break;
                };
                kept.bytes -= oldest.bytes;
                kept.forgotten = Some(oldest.trace.started_at);
                gone.push(oldest);
            }
        }
        // Freed while nobody waits for it.
        drop(gone);
    }

    fn shelf(&self, shelf: Shelf) -> (usize, &Mutex<Kept>) {
        let [routine, notable, strangers] = &self.shelves;
        let kept = match shelf {
            Shelf::Routine => routine,
            Shelf::Notable => notable,
            Shelf::Strangers => strangers,
        };
        let eighths = EIGHTHS.iter().find(|(known, _)| *known == shelf);
        (self.max_bytes / 8 * eighths.map_or(0, |(_, n)| *n), kept)
    }

    /// Everything with this id, and the deliveries that it caused, the oldest first. The id may also be that of a
    /// W3C trace.
    pub fn find(&self, id: Uuid) -> Option<Value> {
        let id = id.as_u128();
        let mut found = self.pick(|trace| trace.is(id));
        let wanted: Vec<(LinkId, Goal)> = found.iter().flat_map(|trace| trace.wanted()).collect();
        if !wanted.is_empty() {
            found.extend(self.pick(|trace| !trace.is(id) && trace.delivers(&wanted)));
        }
        found.sort_by_key(|trace| (trace.started_at, trace.started));
        let parts: Vec<Value> = found.iter().map(|trace| trace.view()).collect();
        (!parts.is_empty()).then(|| json!({"parts": parts, "remembered_since": self.reach()}))
    }

    fn pick(&self, wanted: impl Fn(&Trace) -> bool) -> Vec<Arc<Trace>> {
        let mut found = Vec::new();
        for shelf in &self.shelves {
            let kept = lock(shelf);
            let traces = kept.traces.iter().map(|entry| &entry.trace);
            found.extend(traces.filter(|trace| wanted(trace)).cloned());
        }
        found
    }

    /// From when on everything is remembered, by shelf.
    pub fn reach(&self) -> Value {
        let since = |shelf| {
            let (_, kept) = self.shelf(shelf);
            // What began at that moment may be gone as well.
            lock(kept).forgotten.unwrap_or(self.since).to_string()
        };
        json!({
            "routine": since(Shelf::Routine),
            "notable": since(Shelf::Notable),
            "strangers": since(Shelf::Strangers),
        })
    }

    /// What went wrong lately, the newest first; the same again and again counts up.
    pub fn faults(&self) -> Vec<Value> {
        struct Told {
            what: String,
            fault: Fault,
            last: Arc<Trace>,
            times: usize,
        }

        let mut told: Vec<Told> = Vec::new();
        for (shelf, max) in [
            (Shelf::Notable, FAULTS_MAX),
            (Shelf::Strangers, STRANGERS_FAULTS_MAX),
        ] {
            let room = told.len() + max;
            let (_, kept) = self.shelf(shelf);
            for entry in lock(kept).traces.iter().rev() {
                let trace = &entry.trace;
                let fault = |hops: &[(u64, Hop)]| hops.last().and_then(|(_, h)| h.fault()).cloned();
                // The Internet knocks at doors that are not there all day long.
                let Some(fault) = trace.hops(fault).filter(|fault| fault.code != "not_found")
                else {
                    continue;
                };
                let what = trace.subject.kind_text();
                let again = |told: &&mut Told| told.what == what && told.fault.code == fault.code;
                if let Some(known) = told.iter_mut().find(again) {
                    known.times += 1;
                } else if told.len() < room {
                    let last = Arc::clone(trace);
                    told.push(Told {
                        what,
                        fault,
                        last,
                        times: 1,
                    });
                }
            }
        }
        told.sort_by_key(|told| std::cmp::Reverse(told.last.started_at));
        let told = told.into_iter().map(|told| {
            json!({
                "at": told.last.started_at.to_string(), "id": told.last.id.simple().to_string(),
                "what": told.what, "code": told.fault.code, "message": told.fault.message,
                "hint": told.fault.hint, "times": told.times,
            })
        });
        told.collect()
    }
}

#[cfg(test)]
mod tests;
