//! Every secret that tests use, and everything that relays say meanwhile: no piece of the first may be in the second.
//!
//! Off until [`watch`] is called. Then each fake tells what it signs with and what it is given, whoever reads an answer
//! or a log tells that, and whatever comes second finds what it has in common with what came first. So the order does
//! not matter, and nothing has to be kept but pieces of sixteen characters.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    sync::{
        LazyLock, Mutex, Once, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use base64::{Engine as _, prelude::*};
use http::Response;
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

/// So much of a secret in a row is a leak.
const PIECE: usize = 16;

static WATCHING: AtomicBool = AtomicBool::new(false);
static LEDGER: LazyLock<Mutex<Ledger>> = LazyLock::new(Mutex::default);

/// What is known of both sides.
#[derive(Default)]
pub struct Ledger {
    secrets: HashMap<[u8; PIECE], &'static str>,
    said: HashMap<[u8; PIECE], usize>,
    /// Words that were looked at before.
    words: HashSet<u64>,
    places: Vec<String>,
    /// Secrets by kind, and texts by where they come from.
    pub known: BTreeMap<&'static str, usize>,
    pub heard: BTreeMap<&'static str, usize>,
    pub leaks: Vec<String>,
}

impl Ledger {
    /// Something that no relay may say.
    pub fn know(&mut self, kind: &'static str, secret: &str) {
        let letters: HashSet<u8> = secret.bytes().collect();
        // Tests send odd ones on purpose: "short", or the same letter over and over.
        if secret.len() < PIECE || letters.len() < 8 {
            return;
        }
        *self.known.entry(kind).or_default() += 1;
        let said = pieces(secret).find_map(|piece| self.said.get(&piece).map(|at| (piece, *at)));
        if let Some((piece, at)) = said {
            let place = self.places.get(at).map_or("", String::as_str);
            self.leaks.push(leak(kind, &piece, place));
        }
        self.secrets
            .extend(pieces(secret).map(|piece| (piece, kind)));
    }

    /// Something that a relay said: `source` is the kind of it, `place` where exactly.
    pub fn hear(&mut self, source: &'static str, place: &str, text: &str) {
        *self.heard.entry(source).or_default() += 1;
        let at = self.places.len();
        let mut is_new = false;
        let in_word = |c: char| c.is_ascii_alphanumeric() || "-_+/=.".contains(c);
        for word in text.split(|c| !in_word(c)) {
            if word.len() < PIECE {
                continue;
            }
            let mut hasher = DefaultHasher::new();
            word.hash(&mut hasher);
            if !self.words.insert(hasher.finish()) {
                continue;
            }
            is_new = true;
            let known = pieces(word).find_map(|piece| Some((piece, *self.secrets.get(&piece)?)));
            if let Some((piece, kind)) = known {
                let found = leak(kind, &piece, &format!("{source}: {place}"));
                self.leaks.push(found);
            }
            for piece in pieces(word) {
                self.said.entry(piece).or_insert(at);
            }
        }
        if is_new {
            self.places.push(format!("{source}: {place}"));
        }
    }
}

/// Says what was found where, without saying it: so one piece of a secret only, and of that only its beginning.
fn leak(kind: &str, piece: &[u8; PIECE], place: &str) -> String {
    let begins = String::from_utf8_lossy(piece.get(..4).unwrap_or_default()).into_owned();
    format!("{kind}, a piece that begins with {begins:?}, in {place}")
}

fn pieces(text: &str) -> impl Iterator<Item = [u8; PIECE]> {
    let windows = text.as_bytes().windows(PIECE);
    windows.filter_map(|window| window.try_into().ok())
}

/// From now on, everything is written down, and the relays of this process log to here in all detail.
pub fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        WATCHING.store(true, Ordering::SeqCst);
        let log = tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new("info,jira_connect_proxy=trace"))
            .with_ansi(false)
            .with_writer(Log);
        log.init();
    });
}

/// A secret that is used from now on.
pub fn know(kind: &'static str, secret: &str) {
    with(|ledger| ledger.know(kind, secret.trim()));
}

/// A key of raw bytes, in the forms in which bytes are written.
pub fn know_bytes(kind: &'static str, key: &[u8]) {
    let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    for text in [
        hex.to_uppercase(),
        hex,
        BASE64_STANDARD_NO_PAD.encode(key),
        BASE64_URL_SAFE_NO_PAD.encode(key),
    ] {
        know(kind, &text);
    }
}

/// A signed token. Its signature is what makes it one: claims alone are shown.
pub fn know_token(kind: &'static str, token: &str) {
    let signature = token.rsplit('.').next();
    know(kind, signature.unwrap_or_default());
}

/// Something that a relay said.
pub fn hear(source: &'static str, place: &str, text: &str) {
    with(|ledger| ledger.hear(source, place, text));
}

/// An answer, if it is a relay's: they all have an id.
pub fn hear_answer(place: &str, answer: &Response<bytes::Bytes>) {
    if !WATCHING.load(Ordering::Relaxed) || !answer.headers().contains_key("x-request-id") {
        return;
    }
    let source = match place {
        place if place.ends_with("/metrics") => "metrics",
        place if place.contains("/api/v1/") => "admin answer",
        _ => "public answer",
    };
    let headers = format!("{:?}", answer.headers());
    hear(source, place, &headers);
    hear(source, place, &String::from_utf8_lossy(answer.body()));
}

/// At the end of each relay's life.
///
/// # Panics
/// Something leaked so far, in whichever test, or nothing was watched.
pub fn check() {
    with(|ledger| {
        assert!(
            ledger.leaks.is_empty(),
            "secrets leaked: {:#?}",
            ledger.leaks
        );
        for kind in ["admin token", "store key"] {
            assert!(ledger.known.contains_key(kind), "no {kind} was known");
        }
        let logs = ["log", "log of a process"];
        let log = logs.iter().any(|log| ledger.heard.contains_key(log));
        assert!(log, "no log was heard");
    });
}

/// How much of what was seen so far.
pub fn counts() -> (BTreeMap<&'static str, usize>, BTreeMap<&'static str, usize>) {
    let ledger = LEDGER.lock().unwrap_or_else(PoisonError::into_inner);
    (ledger.known.clone(), ledger.heard.clone())
}

fn with(act: impl FnOnce(&mut Ledger)) {
    if WATCHING.load(Ordering::Relaxed) {
        act(&mut LEDGER.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Takes what relays in this process log.
struct Log;

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        Self
    }
}

impl io::Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        // Time, level and module; the rest could hold what it must not.
        let head: String = text.chars().take(34).collect();
        let module = text
            .find("jira_connect_proxy::")
            .and_then(|at| text.get(at..));
        let is_path = |c: &char| c.is_ascii_lowercase() || matches!(c, '_' | ':');
        let module: String = module
            .unwrap_or_default()
            .chars()
            .take_while(is_path)
            .collect();
        hear("log", &format!("{head} {module}"), &text);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
