//! Readable for people: tables, times, sizes.

use std::{
    fmt::Display,
    io::{self, Write as _},
};

use comfy_table::{ContentArrangement, Table, presets};
use jiff::{SpanRound, Timestamp, Unit, tz::TimeZone};
use serde_json::Value;

/// Prints a table, or one sentence if it would be empty.
pub(super) fn table<const N: usize>(
    headings: [&str; N],
    rows: Vec<[String; N]>,
    nothing: &str,
) -> io::Result<()> {
    if rows.is_empty() {
        return line(nothing);
    }
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(headings.map(str::to_uppercase));
    for row in rows {
        table.add_row(row);
    }
    for row in table.lines() {
        // Every column is padded on both sides; the first one should start where other lines do.
        line(row.strip_prefix(' ').unwrap_or(&row).trim_end())?;
    }
    Ok(())
}

/// Prints one line. Nobody may be reading any more (`| head`); that is no fault.
pub(super) fn line(text: impl Display) -> io::Result<()> {
    // What instances and sites say of themselves must not move the cursor.
    let text: String = text
        .to_string()
        .chars()
        .filter(|c| !c.is_control() || *c == '\n')
        .collect();
    writeln!(io::stdout().lock(), "{text}")
}

/// Prints what the API answered.
pub(super) fn json(answer: &Value) -> anyhow::Result<()> {
    Ok(line(serde_json::to_string_pretty(answer)?)?)
}

/// To the second, in UTC, as in the log.
pub(super) fn time(at: Timestamp) -> String {
    at.to_zoned(TimeZone::UTC)
        .strftime("%Y-%m-%d %H:%M:%SZ")
        .to_string()
}

/// The same for a time that may not have come.
pub(super) fn time_or_dash(at: Option<Timestamp>) -> String {
    at.map_or_else(|| "-".to_owned(), time)
}

/// How long ago, or in how long, roughly: `3m ago`, `in 20s`.
pub(super) fn distance(at: Timestamp, now: Timestamp) -> String {
    let span = now.duration_since(at);
    let ago = !span.is_negative();
    let span = span.abs();
    let unit = match span.as_secs() {
        0..=119 => Unit::Second,
        120..=7199 => Unit::Minute,
        7200..=172_799 => Unit::Hour,
        _ => Unit::Day,
    };
    let rounded = jiff::Span::try_from(span).and_then(|span| {
        span.round(
            SpanRound::new()
                .largest(unit)
                .smallest(unit)
                .days_are_24_hours(),
        )
    });
    let text = rounded.map_or_else(|_| "long".to_owned(), |span| format!("{span:#}"));
    if ago {
        format!("{text} ago")
    } else {
        format!("in {text}")
    }
}

/// Bytes, in the unit that makes it short.
pub(super) fn bytes(count: u64) -> String {
    match count {
        0..=9_999 => format!("{count} B"),
        10_000..=9_999_999 => format!("{} KiB", count / 1024),
        10_000_000..=9_999_999_999 => format!("{} MiB", count >> 20),
        _ => format!("{} GiB", count >> 30),
    }
}

/// What is there, or a dash.
pub(super) fn or_dash(text: Option<impl Display>) -> String {
    text.map_or_else(|| "-".to_owned(), |text| text.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_rough_and_readable() {
        let now = Timestamp::from_second(1_800_000_000).expect("second");
        let at = |seconds: i64| Timestamp::from_second(1_800_000_000 + seconds).expect("second");
        assert_eq!(distance(at(-5), now), "5s ago");
        assert_eq!(distance(at(20), now), "in 20s");
        assert_eq!(distance(at(-300), now), "5m ago");
        assert_eq!(distance(at(-3 * 86_400), now), "3d ago");
        assert_eq!(
            (bytes(900).as_str(), bytes(2 << 20).as_str()),
            ("900 B", "2048 KiB")
        );
    }
}
