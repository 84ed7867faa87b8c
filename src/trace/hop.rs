//! One thing that happened to a request, a delivery or a replay.
//!
//! Data when it is noted, a sentence only when somebody asks: noting must cost next to nothing.

use http::{Method, Uri};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::domain::{ClientKey, InstanceUrl, LinkId, link::Goal};

/// What a stranger's text is cut to.
const TEXT_MAX_CHARS: usize = 200;

/// One step. Never a token, a secret, a body or a query.
#[derive(Clone, Debug)]
pub enum Hop {
    /// A token was looked at.
    Token(Box<TokenSeen>),
    /// It is known who speaks.
    Recognised {
        /// The site.
        client_key: ClientKey,
        /// The link and its instance, if that does.
        link: Option<(LinkId, InstanceUrl)>,
    },
    /// A body was put into the app's words.
    Prepared {
        /// Entities in it.
        entities: usize,
        /// Its ids were put into the link's namespace.
        rewritten: bool,
        /// Characters that Jira refuses were replaced.
        mended: bool,
    },
    /// Somebody was called.
    Called(Box<Call>),
    /// A write does not go on now.
    Waits(&'static str, Option<Box<str>>),
    /// It is safe on the disk.
    Kept,
    /// What a lifecycle event changed.
    Changed(&'static str),
    /// What a link is to be told from now on.
    Wanted {
        /// Which link.
        link: LinkId,
        /// What.
        goal: Goal,
    },
    /// The end of a request.
    Answered(u16, Option<Box<Fault>>),
    /// The end of a delivery or a replay: a stable name.
    Ended(&'static str, Option<Box<Fault>>),
}

/// A token as it may be shown: what it says, and why it was not believed.
#[derive(Clone, Debug, Default)]
pub struct TokenSeen {
    /// Which verifier looked at it.
    pub kind: &'static str,
    /// What that looks at, in its order.
    pub checks: &'static [&'static str],
    /// The first check that did not hold, if it was one of them.
    pub failed: Option<&'static str>,
    /// Why it was not believed: a stable name.
    pub refused: Option<&'static str>,
    /// Its texts by name, cut.
    pub texts: Vec<(&'static str, Box<str>)>,
    /// Its times by name, in Unix seconds.
    pub times: [(&'static str, Option<i64>); 3],
}

/// A call to a peer, up to the head of its answer.
#[derive(Clone, Debug)]
pub struct Call {
    /// How.
    pub method: Method,
    /// Where to; shown without its query.
    pub uri: Uri,
    /// The answer's status, or why there was none.
    pub outcome: Result<u16, Box<str>>,
    /// When it began, in microseconds from the beginning of the whole.
    pub began_us: u64,
    /// How long it took.
    pub took_us: u64,
    /// Its span for the peer.
    pub span_id: u64,
}

/// What went wrong at the end.
#[derive(Clone, Debug, Default)]
pub struct Fault {
    /// Stable name.
    pub code: &'static str,
    /// One sentence.
    pub message: String,
    /// What to do.
    pub hint: String,
    /// For operators only.
    pub cause: Option<String>,
    /// When it is tried again.
    pub retry_in_secs: Option<u64>,
}

/// Cuts a text of somebody else's.
pub fn short(text: &str) -> &str {
    let end = text.char_indices().nth(TEXT_MAX_CHARS);
    end.and_then(|(at, _)| text.get(..at)).unwrap_or(text)
}

impl Hop {
    /// What went wrong, if it is an end that did not go well.
    pub fn fault(&self) -> Option<&Fault> {
        match self {
            Self::Answered(_, fault) | Self::Ended(_, fault) => fault.as_deref(),
            _ => None,
        }
    }

    /// What it keeps on the heap, roughly.
    pub(super) fn bytes(&self) -> usize {
        let fault = |fault: &Option<Box<Fault>>| {
            fault.as_ref().map_or(0, |fault| {
                let cause = fault.cause.as_ref().map_or(0, String::len);
                size_of::<Fault>() + fault.message.len() + fault.hint.len() + cause
            })
        };
        match self {
            Self::Token(token) => {
                let texts = token.texts.iter().map(|(_, text)| text.len());
                size_of::<TokenSeen>()
                    + token.texts.capacity() * size_of::<(&str, Box<str>)>()
                    + texts.sum::<usize>()
            }
            // Kept by their records too, but those may be gone.
            Self::Recognised { client_key, link } => {
                let instance_url = link.as_ref().map_or(0, |(_, url)| url.as_str().len());
                client_key.as_str().len() + instance_url
            }
            Self::Called(call) => {
                let failed = call.outcome.as_ref().err().map_or(0, |cause| cause.len());
                let target = call.uri.path_and_query().map_or(0, |t| t.as_str().len());
                let authority = call.uri.authority().map_or(0, |a| a.as_str().len());
                size_of::<Call>() + target + authority + failed
            }
            Self::Waits(_, message) => message.as_ref().map_or(0, |message| message.len()),
            Self::Answered(_, end) | Self::Ended(_, end) => fault(end),
            Self::Prepared { .. } | Self::Kept | Self::Changed(_) | Self::Wanted { .. } => 0,
        }
    }

    /// As it is shown: a stable name, a sentence, and the data.
    pub fn view(&self) -> Value {
        match self {
            Self::Token(token) => token.view(),
            Self::Recognised { client_key, link } => json!({
                "hop": "recognised",
                "text": link.as_ref().map_or_else(
                    || format!("the site is {client_key}"),
                    |(_, url)| format!("the link of {url} to {client_key}"),
                ),
                "client_key": client_key,
                "link_id": link.as_ref().map(|(id, _)| id),
                "instance_url": link.as_ref().map(|(_, url)| url),
            }),
            Self::Prepared {
                entities,
                rewritten,
                mended,
            } => json!({
                "hop": "prepared",
                "text": format!(
                    "{entities} {}, ids {}{}",
                    if *entities == 1 { "entity" } else { "entities" },
                    if *rewritten { "put into the link's namespace" } else { "left as they are" },
                    if *mended { ", characters mended" } else { "" },
                ),
                "entities": entities,
                "rewritten": rewritten,
                "mended": mended,
            }),
            Self::Called(call) => call.view(),
            Self::Waits(reason, message) => json!({
                "hop": "waits",
                "text": message.as_ref().map_or_else(
                    || format!("it waits: {reason}"),
                    |message| format!("it waits: {reason} ({message})"),
                ),
                "reason": reason,
                "message": message,
            }),
            Self::Kept => json!({"hop": "kept", "text": "the write is safe on the disk"}),
            Self::Changed(change) => json!({
                "hop": "changed",
                "text": format!("durable: {change}"),
                "change": change,
            }),
            Self::Wanted { link, goal } => json!({
                "hop": "wanted",
                "text": format!("the link {link} is to be told: {}", goal.event),
                "link_id": link,
                "event": goal.event.as_str(),
                "generation": goal.generation,
            }),
            Self::Answered(499, _) => json!({
                "hop": "answered",
                "text": "nothing was answered: the caller hung up",
                "status": 499,
            }),
            Self::Answered(status, fault) => with(
                end("answered", &format!("{status}"), fault),
                json!({"status": status}),
            ),
            Self::Ended(outcome, fault) => {
                with(end("ended", outcome, fault), json!({"outcome": outcome}))
            }
        }
    }
}

fn end(hop: &str, what: &str, fault: &Option<Box<Fault>>) -> Value {
    let Some(fault) = fault else {
        return json!({"hop": hop, "text": what});
    };
    let (cause, retry) = (&fault.cause, fault.retry_in_secs);
    json!({
        "hop": hop,
        "text": format!(
            "{what}, {}: {}{}{}",
            fault.code,
            fault.message,
            cause.as_ref().map_or_else(String::new, |cause| format!(" ({cause})")),
            retry.map_or_else(String::new, |secs| format!("; tried again in {secs} s")),
        ),
        "code": fault.code,
        "message": fault.message,
        "hint": fault.hint,
        "cause": cause,
        "retry_in_secs": retry,
    })
}

/// Both objects as one.
pub(super) fn with(mut object: Value, more: Value) -> Value {
    if let (Value::Object(object), Value::Object(more)) = (&mut object, more) {
        object.extend(more);
    }
    object
}

impl TokenSeen {
    fn view(&self) -> Value {
        let text = |name: &str| self.texts.iter().find(|(known, _)| *known == name);
        let time = |name: &str| self.times.iter().find(|(known, _)| *known == name);
        let value = |name: &str| match (text(name), time(name)) {
            (Some((_, text)), _) => Value::from(&**text),
            (None, Some((_, Some(second)))) => Timestamp::from_second(*second)
                .map_or_else(|_| Value::from(*second), |at| at.to_string().into()),
            _ => Value::Null,
        };
        let failed_at = self
            .checks
            .iter()
            .position(|check| Some(*check) == self.failed);
        let mut checks = Vec::new();
        for (at, name) in self.checks.iter().enumerate() {
            let held = match (self.refused, failed_at) {
                (None, _) => Some(true),
                (Some(_), Some(failed_at)) if at <= failed_at => Some(at < failed_at),
                _ => None,
            };
            let value = value(name);
            // What need not be there, and is not, was no check.
            if matches!(*name, "nbf" | "aud") && value.is_null() && held != Some(false) {
                continue;
            }
            checks.push(json!({"name": name, "value": value, "held": held}));
        }
        // Said by the token, and of no interest to whoever verified it.
        for (name, text) in &self.texts {
            if !self.checks.contains(name) {
                checks.push(json!({"name": name, "value": text, "held": null}));
            }
        }
        json!({
            "hop": "token",
            "text": match self.refused {
                None => format!("{} token: believed", self.kind),
                Some(code) => format!("{} token: not believed ({code})", self.kind),
            },
            "kind": self.kind,
            "refused": self.refused,
            "checks": checks,
        })
    }
}

impl Call {
    /// Host and path, without the query.
    pub fn target(&self) -> String {
        let host = self.uri.authority().map_or("", |host| host.as_str());
        format!("{host}{}", short(self.uri.path()))
    }

    fn view(&self) -> Value {
        let target = self.target();
        let ms = self.took_us as f64 / 1000.0;
        let (status, error) = match &self.outcome {
            Ok(status) => (Some(status), None),
            Err(error) => (None, Some(error)),
        };
        let told = match &self.outcome {
            Ok(status) => format!("answered {status}"),
            Err(error) => format!("no answer: {error}"),
        };
        json!({
            "hop": "called",
            "text": format!("{} {target}: {told} after {ms:.1} ms", self.method),
            "method": self.method.as_str(),
            "host": self.uri.authority().map(|host| host.as_str()),
            "path": short(self.uri.path()),
            "status": status,
            "error": error,
            "began_us": self.began_us,
            "took_us": self.took_us,
        })
    }
}
