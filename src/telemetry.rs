//! The log: one line per request and per attempt, as text for people or JSON for machines.
//!
//! Lines are gathered for a moment and written together by a thread of their own: a system call for each line would
//! cost a relayed request a fifth of its time. Warnings and errors are written at once.

use std::{
    io::{self, Write as _},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use tracing::{
    Level, Metadata,
    field::{Field, Visit},
};
use tracing_subscriber::{
    EnvFilter,
    field::{RecordFields, VisitOutput as _},
    fmt,
    fmt::{
        FormatFields, MakeWriter,
        format::{DefaultVisitor, Writer},
        time::FormatTime,
    },
};

use crate::config::LogConfig;

/// How long a line may wait for others.
const GATHERED_FOR: Duration = Duration::from_millis(50);

/// What may wait if nobody takes the log; what comes then is dropped and counted.
const WAITING_MAX_BYTES: usize = 8 * 1024 * 1024;

/// Keeps the log going; writes the rest of it when dropped.
#[must_use = "the log ends when this is dropped"]
pub struct Log {
    lines: Arc<Lines>,
    writer: Option<JoinHandle<()>>,
}

/// Lines that wait to be written. Short std locks: nothing is awaited or written while one is held.
#[derive(Default)]
struct Lines {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    text: Vec<u8>,
    urgent: bool,
    dropped: u64,
    closing: bool,
}

/// Takes the lines of one event.
struct Line<'a> {
    lines: &'a Lines,
    urgent: bool,
}

/// Makes the log go to standard error. The second call in a process changes nothing.
pub fn install(config: &LogConfig) -> Log {
    let lines = Arc::new(Lines::default());
    let filter = EnvFilter::builder()
        .parse(&config.filter)
        .unwrap_or_else(|_| EnvFilter::new("info"));
    let log = fmt()
        .with_env_filter(filter)
        .with_timer(Clock)
        .with_writer(ToLines(Arc::clone(&lines)))
        .with_target(config.json);
    // An error only says that there is a log already.
    let _ = if config.json {
        log.json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .try_init()
            .map_err(drop)
    } else {
        use std::io::IsTerminal as _;
        if io::stderr().is_terminal() {
            log.with_ansi(true).try_init().map_err(drop)
        } else {
            log.with_ansi(false)
                .fmt_fields(PlainFields)
                .try_init()
                .map_err(drop)
        }
    };
    let writing = Arc::clone(&lines);
    let writer = std::thread::Builder::new()
        .name("log".to_owned())
        .spawn(move || writing.write_until_closed())
        .inspect_err(|error| eprintln!("there is no log: {error}"))
        .ok();
    Log { lines, writer }
}

/// RFC 3339 with microseconds, in UTC.
struct Clock;

impl FormatTime for Clock {
    fn format_time(&self, to: &mut Writer<'_>) -> std::fmt::Result {
        write!(to, "{:.6}", crate::clock::now())
    }
}

/// Fields without colours, in the words of [`DefaultVisitor`]. That asks for each name and each `=` how it is to be
/// painted, which took more time than the rest of a line.
struct PlainFields;

struct PlainVisitor<'w> {
    writer: Writer<'w>,
    is_empty: bool,
    result: std::fmt::Result,
}

impl<'w> FormatFields<'w> for PlainFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> std::fmt::Result {
        let mut visitor = PlainVisitor {
            writer,
            is_empty: true,
            result: Ok(()),
        };
        fields.record(&mut visitor);
        visitor.result
    }
}

impl PlainVisitor<'_> {
    fn write(&mut self, field: &Field, value: impl FnOnce(&mut Writer<'_>) -> std::fmt::Result) {
        let writer = &mut self.writer;
        let write = || {
            if !self.is_empty {
                writer.write_char(' ')?;
            }
            let name = field.name();
            writer.write_str(name.strip_prefix("r#").unwrap_or(name))?;
            writer.write_char('=')?;
            value(writer)
        };
        self.result = self.result.and_then(|()| write());
        self.is_empty = false;
    }

    /// What has escapes and sources of its own.
    fn as_default(&mut self, record: impl FnOnce(&mut DefaultVisitor<'_>)) {
        if self.result.is_ok() {
            let mut visitor = DefaultVisitor::new(self.writer.by_ref(), self.is_empty);
            record(&mut visitor);
            self.result = visitor.finish();
            self.is_empty = false;
        }
    }
}

impl Visit for PlainVisitor<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            return self.as_default(|visitor| visitor.record_str(field, value));
        }
        let plain = |b: u8| matches!(b, b' '..=b'~') && b != b'"' && b != b'\\';
        self.write(field, |writer| {
            if value.bytes().all(plain) {
                writer.write_char('"')?;
                writer.write_str(value)?;
                writer.write_char('"')
            } else {
                write!(writer, "{value:?}")
            }
        });
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.as_default(|visitor| visitor.record_error(field, value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            return self.as_default(|visitor| visitor.record_debug(field, value));
        }
        self.write(field, |writer| write!(writer, "{value:?}"));
    }
}

struct ToLines(Arc<Lines>);

impl<'a> MakeWriter<'a> for ToLines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line {
            lines: &self.0,
            urgent: true,
        }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line<'a> {
        Line {
            lines: &self.0,
            urgent: *metadata.level() <= Level::WARN,
        }
    }
}

impl io::Write for Line<'_> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let mut waiting = self.lines.waiting();
        if waiting.text.len() + text.len() > WAITING_MAX_BYTES {
            waiting.dropped += 1;
            return Ok(text.len());
        }
        let wake = waiting.text.is_empty() || (self.urgent && !waiting.urgent);
        waiting.text.extend_from_slice(text);
        waiting.urgent |= self.urgent;
        drop(waiting);
        if wake {
            self.lines.changed.notify_one();
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lines {
    fn write_until_closed(&self) {
        let mut text = Vec::new();
        loop {
            let waiting = self.waiting();
            let waiting = self
                .changed
                .wait_while(waiting, |waiting| {
                    waiting.text.is_empty() && !waiting.closing
                })
                .unwrap_or_else(PoisonError::into_inner);
            // Others may come in the meantime.
            let (mut waiting, _) = self
                .changed
                .wait_timeout_while(waiting, GATHERED_FOR, |waiting| {
                    !waiting.urgent && !waiting.closing
                })
                .unwrap_or_else(PoisonError::into_inner);
            std::mem::swap(&mut waiting.text, &mut text);
            let closing = waiting.closing;
            let dropped = std::mem::take(&mut waiting.dropped);
            waiting.urgent = false;
            drop(waiting);
            let mut stderr = io::stderr().lock();
            // Nobody reads it: then there is no place to say so either.
            let _ = stderr.write_all(&text);
            if dropped > 0 {
                let _ = writeln!(
                    stderr,
                    "{dropped} lines of the log were dropped: nothing took it fast enough"
                );
            }
            text.clear();
            if closing {
                return;
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.lines.waiting().closing = true;
        self.lines.changed.notify_one();
        if let Some(writer) = self.writer.take() {
            // A panic of its own was told on standard error.
            let _ = writer.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::fmt::format::DefaultFields;

    use super::*;

    /// Takes what is written, for the test to look at.
    #[derive(Clone, Default)]
    struct Said(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Said {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            crate::lock::lock(&self.0).extend_from_slice(text);
            Ok(text.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn said(fields: impl for<'w> FormatFields<'w> + Send + Sync + 'static) -> String {
        let said = Said::default();
        let writer = said.clone();
        let log = fmt()
            .with_ansi(false)
            .without_time()
            .fmt_fields(fields)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(log, || {
            let error = io::Error::other(std::fmt::Error);
            let error: &(dyn std::error::Error + 'static) = &error;
            let absent: Option<&str> = None;
            let span = tracing::info_span!("request", id = "a \"b\"", r#type = 1);
            let _entered = span.enter();
            tracing::info!(
                id = "plain", quoted = "a\"b\\c", lines = "a\nb\u{1b}[1m\u{e4}", absent, some = Some("x"), n = 1_u64,
                minus = -1, truth = true, part = 1.5, client.key = %"k\u{1b}", list = ?["a"], error, r#type = "t",
                "message {}\u{1b} \u{e4}", 1
            );
            tracing::warn!(id = "no message");
            tracing::warn!("only a message");
        });
        let text = crate::lock::lock(&said.0).clone();
        String::from_utf8(text).expect("text")
    }

    #[test]
    fn plain_fields_are_written_as_the_library_writes_them() {
        let plain = said(PlainFields);
        assert!(plain.contains("n=1 minus=-1 truth=true"), "{plain}");
        assert_eq!(plain, said(DefaultFields::new()));
    }
}
