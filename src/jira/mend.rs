//! Mends what Jira refuses as a whole: characters that its store does not take.
//!
//! Jira's store takes U+0009, U+000A, U+000D, U+0020 to U+D7FF and U+E000 to U+FFFD; one emoji in a title, and the
//! whole request is refused as "Invalid binary character". A newer GitLab has a sanitizer
//! (`payload_sanitizer.rb`), an older one sends whatever people typed. Such a character becomes U+FFFD: unlike
//! leaving it out, that never empties a name that must not be empty.

use std::borrow::Cow;

const INSTEAD: &str = "\u{fffd}";

/// The same JSON text with nothing in it that Jira's store refuses. `body` must be JSON: text is mended inside of
/// strings, and outside of them JSON has none of these characters.
pub fn mend(body: &str) -> Cow<'_, str> {
    let bytes = body.as_bytes();
    // Four bytes in UTF-8 start with 0xF0 or more, U+FFFE and U+FFFF with 0xEF. Without a branch, so that the
    // compiler can look at many bytes at once.
    let highest = bytes.iter().fold(0, |highest: u8, &byte| highest.max(byte));
    let suspicious = |at: usize| matches!(bytes.get(at + 1), Some(b'u' | b'b' | b'f'));
    if highest < 0xef && !memchr::memchr_iter(b'\\', bytes).any(suspicious) {
        return Cow::Borrowed(body);
    }
    let mut out = String::new();
    let mut done = 0;
    let mut at = 0;
    while let Some(length) = next_bad(body, &mut at) {
        out.push_str(body.get(done..at).unwrap_or_default());
        out.push_str(INSTEAD);
        at += length;
        done = at;
    }
    if done == 0 {
        return Cow::Borrowed(body);
    }
    out.push_str(body.get(done..).unwrap_or_default());
    Cow::Owned(out)
}

/// Moves `at` to the next character that Jira does not take, and gives the length of its spelling.
fn next_bad(body: &str, at: &mut usize) -> Option<usize> {
    let bytes = body.as_bytes();
    while let Some(&byte) = bytes.get(*at) {
        match byte {
            b'\\' => {
                let escape = escape_at(bytes, *at);
                if escape.bad {
                    return Some(escape.length);
                }
                *at += escape.length;
            }
            0xf0.. => return Some(4),
            0xef if bytes
                .get(*at + 1..*at + 3)
                .is_some_and(|rest| matches!(rest, [0xbf, 0xbe | 0xbf])) =>
            {
                return Some(3);
            }
            _ => *at += 1,
        }
    }
    None
}

struct Escape {
    length: usize,
    bad: bool,
}

fn escape_at(bytes: &[u8], at: usize) -> Escape {
    let Some(unit) = unit_at(bytes, at) else {
        // `\"`, `\\`, `\n` and their like; `\b` and `\f` are control characters.
        let bad = matches!(bytes.get(at + 1), Some(b'b' | b'f'));
        return Escape { length: 2, bad };
    };
    match unit {
        0x09 | 0x0a | 0x0d | 0x20..=0xd7ff | 0xe000..=0xfffd => Escape {
            length: 6,
            bad: false,
        },
        // Half a pair with its other half is one character.
        0xd800..=0xdbff
            if unit_at(bytes, at + 6).is_some_and(|low| (0xdc00..=0xdfff).contains(&low)) =>
        {
            Escape {
                length: 12,
                bad: true,
            }
        }
        _ => Escape {
            length: 6,
            bad: true,
        },
    }
}

/// The UTF-16 unit of a `\uXXXX`.
fn unit_at(bytes: &[u8], at: usize) -> Option<u16> {
    let digits = bytes.get(at..at + 6)?.strip_prefix(b"\\u")?;
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_what_jira_refuses_is_replaced() {
        for (before, after) in [
            (r#"{"a":"plain"}"#, r#"{"a":"plain"}"#),
            (
                r#"{"a":"wei\u00df <\u003c\n\t\r"}"#,
                r#"{"a":"wei\u00df <\u003c\n\t\r"}"#,
            ),
            (
                "{\"a\":\"ship it \u{1f680}!\"}",
                "{\"a\":\"ship it \u{fffd}!\"}",
            ),
            (r#"{"a":"\ud83d\ude80!"}"#, "{\"a\":\"\u{fffd}!\"}"),
            (r#"{"a":"\ud83d"}"#, "{\"a\":\"\u{fffd}\"}"),
            (r#"{"a":"\ud83dx\ude80"}"#, "{\"a\":\"\u{fffd}x\u{fffd}\"}"),
            (
                r#"{"a":"\u0000\u001b\b\f"}"#,
                "{\"a\":\"\u{fffd}\u{fffd}\u{fffd}\u{fffd}\"}",
            ),
            (
                r#"{"a":"\ufffe\uFFFF\ufffd"}"#,
                "{\"a\":\"\u{fffd}\u{fffd}\\ufffd\"}",
            ),
            (
                "{\"a\":\"\u{fffe}\u{fffd}\u{ff21}\"}",
                "{\"a\":\"\u{fffd}\u{fffd}\u{ff21}\"}",
            ),
            // A backslash of its own, then plain letters.
            (r#"{"a":"\\ud83d\\ude80"}"#, r#"{"a":"\\ud83d\\ude80"}"#),
            (r#"{"a":"\\\ud83d\ude80"}"#, "{\"a\":\"\\\\\u{fffd}\"}"),
        ] {
            assert_eq!(mend(before), after, "{before}");
        }
    }

    proptest! {
        #[test]
        fn mended_text_is_json_that_jira_takes(text in ".{0,40}", escaped: bool) {
            let json = serde_json::to_string(&text).expect("JSON");
            let json = if escaped {
                let units = json.encode_utf16().map(|unit| match unit {
                    0x20..=0x7e => char::from(unit as u8).to_string(),
                    other => format!("\\u{other:04x}"),
                });
                units.collect()
            } else {
                json
            };
            let mended: String = serde_json::from_str(&mend(&json)).expect("still JSON");
            let takes = |c: char| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}');
            prop_assert!(mended.chars().all(takes));
            let kept: String = text.chars().map(|c| if takes(c) { c } else { '\u{fffd}' }).collect();
            prop_assert_eq!(mended, kept);
        }
    }
}
