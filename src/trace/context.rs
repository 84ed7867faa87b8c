//! W3C Trace Context (<https://www.w3.org/TR/trace-context/>): which larger trace a request belongs to.
//!
//! Anybody may send the headers, so only well-formed ones count, what is kept of them is bounded, and the caller's
//! wish to be sampled is passed on but decides nothing here.

use std::fmt::Write as _;

use http::{HeaderMap, HeaderName, HeaderValue};
use uuid::Uuid;

/// `traceparent`, section 3.2.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// `tracestate`, section 3.3.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// What every implementation must pass on (section 3.3.1.5); more is dropped.
const STATE_MAX_BYTES: usize = 512;

/// Section 3.3.1.1.
const STATE_MEMBERS_MAX: usize = 32;

/// Where a request stands in a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// Of the whole trace: the caller's, or the request's own id.
    pub trace_id: u128,
    /// The caller's span, if it named one.
    pub parent: Option<u64>,
    /// Ours.
    pub span_id: u64,
    /// The caller's, bit 0 is "sampled".
    flags: u8,
    state: Option<HeaderValue>,
}

impl Context {
    /// A trace of its own, with the id of what it is about.
    pub fn new(id: Uuid) -> Self {
        Self {
            trace_id: id.as_u128(),
            parent: None,
            span_id: span_id(id),
            flags: 0,
            state: None,
        }
    }

    /// Another span in the trace of a request that is over. What its caller had sent is not kept with a write.
    pub fn replay(id: Uuid) -> Self {
        Self {
            parent: None,
            span_id: span_id(Uuid::new_v4()),
            ..Self::new(id)
        }
    }

    /// Goes on with the caller's trace, if it names one as the standard wants.
    pub fn of(headers: &HeaderMap, id: Uuid) -> Self {
        let mut parents = headers.get_all(TRACEPARENT).iter();
        let named = match (parents.next(), parents.next()) {
            (Some(parent), None) => traceparent(parent.as_bytes()),
            _ => None,
        };
        let Some((trace_id, parent, flags)) = named else {
            return Self::new(id);
        };
        Self {
            trace_id,
            parent: Some(parent),
            flags,
            state: tracestate(headers),
            ..Self::new(id)
        }
    }

    /// Writes it into a request of ours, with a span of its own as the parent there; returns that span.
    pub fn pass_on(&self, sampled: bool, headers: &mut HeaderMap) -> u64 {
        let span = span_id(Uuid::new_v4());
        // A trace that nobody looks at is nobody's business.
        if self.parent.is_none() && !sampled {
            return span;
        }
        let mut text = String::with_capacity(55);
        let flags = (self.flags & 1) | u8::from(sampled);
        // Writing to a String does not fail.
        let _ = write!(text, "00-{:032x}-{span:016x}-{flags:02x}", self.trace_id);
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(TRACEPARENT, value);
        }
        if let Some(state) = &self.state {
            headers.insert(TRACESTATE, state.clone());
        }
        span
    }

    /// The caller's `tracestate`.
    pub fn state(&self) -> Option<&str> {
        self.state.as_ref()?.to_str().ok()
    }

    /// What it keeps on the heap.
    pub(super) fn bytes(&self) -> usize {
        self.state.as_ref().map_or(0, HeaderValue::len)
    }
}

/// The lower half of a random UUID: 62 random bits, and never zero.
fn span_id(id: Uuid) -> u64 {
    id.as_u64_pair().1
}

/// `version "-" trace-id "-" parent-id "-" trace-flags`, in lower case; later versions may have more behind it
/// (section 4.3).
fn traceparent(text: &[u8]) -> Option<(u128, u64, u8)> {
    let (head, rest) = text.split_at_checked(55)?;
    let head = std::str::from_utf8(head).ok()?;
    let mut fields = head.split('-');
    let (version, trace_id) = (hex(fields.next()?, 2)?, hex(fields.next()?, 32)?);
    let (parent, flags) = (hex(fields.next()?, 16)?, hex(fields.next()?, 2)?);
    let rest_fits = match version {
        0 => rest.is_empty(),
        255 => false,
        _ => rest.is_empty() || rest.first() == Some(&b'-'),
    };
    if fields.next().is_some() || !rest_fits || trace_id == 0 || parent == 0 {
        return None;
    }
    Some((
        trace_id,
        u64::try_from(parent).ok()?,
        u8::try_from(flags).ok()?,
    ))
}

fn hex(text: &str, digits: usize) -> Option<u128> {
    let lower = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    if text.len() != digits || !text.bytes().all(lower) {
        return None;
    }
    u128::from_str_radix(text, 16).ok()
}

/// All `tracestate` headers as one, if every member of it is in order.
fn tracestate(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut whole = String::new();
    for value in headers.get_all(TRACESTATE) {
        let text = value.to_str().ok()?;
        if whole.len() + text.len() >= STATE_MAX_BYTES {
            return None;
        }
        if !whole.is_empty() {
            whole.push(',');
        }
        whole.push_str(text);
    }
    let members = || {
        let members = whole
            .split(',')
            .map(|member| member.trim_matches([' ', '\t']));
        members.filter(|member| !member.is_empty())
    };
    if members().next().is_none()
        || members().count() > STATE_MEMBERS_MAX
        || !members().all(is_member)
    {
        return None;
    }
    HeaderValue::try_from(whole).ok()
}

/// `key "=" value`, section 3.3.1.3.
fn is_member(text: &str) -> bool {
    let Some((key, value)) = text.split_once('=') else {
        return false;
    };
    let begins = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let goes_on = |b: u8| begins(b) || b"_-*/@".contains(&b);
    let in_value = |b: u8| matches!(b, b' '..=b'~') && b != b'=';
    (1..=256).contains(&key.len())
        && key.bytes().next().is_some_and(begins)
        && key.bytes().all(goes_on)
        && (1..=256).contains(&value.len())
        && value.bytes().all(in_value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(fields: &[(HeaderName, &str)]) -> HeaderMap {
        let field = |(name, value): &(HeaderName, &str)| {
            (name.clone(), HeaderValue::from_str(value).expect("value"))
        };
        fields.iter().map(field).collect()
    }

    fn of(fields: &[(HeaderName, &str)]) -> Context {
        Context::of(&headers(fields), Uuid::from_u128(7))
    }

    #[test]
    fn a_callers_trace_goes_on_under_a_new_parent() {
        let context = of(&[(TRACEPARENT, PARENT), (TRACESTATE, "rojo=1,t@v=a b")]);
        assert_eq!(context.trace_id, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!(context.parent, Some(0x00f0_67aa_0ba9_02b7));
        let mut out = HeaderMap::new();
        let span = context.pass_on(false, &mut out);
        let expected = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{span:016x}-01");
        assert_eq!(out.get(TRACEPARENT).expect("parent"), expected.as_str());
        assert_eq!(out.get(TRACESTATE).expect("state"), "rojo=1,t@v=a b");
        assert_ne!(Some(span), context.parent);
    }

    #[test]
    fn without_one_it_is_the_requests_own_and_stays_here() {
        let context = of(&[(TRACESTATE, "rojo=1")]);
        assert_eq!((context.trace_id, context.parent), (7, None));
        let mut out = HeaderMap::new();
        context.pass_on(false, &mut out);
        assert!(out.is_empty());
        context.pass_on(true, &mut out);
        let parent = out.get(TRACEPARENT).and_then(|value| value.to_str().ok());
        assert!(parent.is_some_and(|parent| parent.ends_with("-01")));
        assert!(out.get(TRACESTATE).is_none(), "a state alone means nothing");
    }

    #[test]
    fn what_is_not_well_formed_does_not_count() {
        for bad in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            "00-4bf92f3577b34da6a3ce929d0e0e47360-0f067aa0ba902b7-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01x",
        ] {
            assert_eq!(of(&[(TRACEPARENT, bad)]).parent, None, "{bad}");
        }
        let twice = of(&[(TRACEPARENT, PARENT), (TRACEPARENT, PARENT)]);
        assert_eq!(twice.parent, None);
        let later = format!("01{}-more", PARENT.strip_prefix("00").unwrap_or_default());
        assert!(of(&[(TRACEPARENT, &later)]).parent.is_some());
        let long = format!("a={}", "x".repeat(257));
        let many = vec!["a=1"; 33].join(",");
        let large = vec!["abcdefgh=0123456789abcdef"; 21].join(",");
        for bad in [
            "a", "A=1", "a=", "=1", "a=b=c", "a=1,b", ",", &long, &many, &large,
        ] {
            let context = of(&[(TRACEPARENT, PARENT), (TRACESTATE, bad)]);
            assert!(context.parent.is_some(), "{bad}");
            assert_eq!(context.state, None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(parent in "\\PC{0,80}", state in "[ -~]{0,600}") {
            let mut headers = HeaderMap::new();
            for (name, text) in [(TRACEPARENT, parent), (TRACESTATE, state)] {
                if let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) {
                    headers.insert(name, value);
                }
            }
            let context = Context::of(&headers, Uuid::from_u128(7));
            prop_assert!(context.bytes() < STATE_MAX_BYTES);
        }
    }
}
