//! A request target, parsed once.
//!
//! The hash that binds a token to its request ([`super::qsh`]) and the handler that answers it read
//! the same parse: nobody can show one request to the check and another to the handler. For the
//! same reason nothing is repaired here. Text on which Jira, GitLab and we would not agree is
//! refused; dot segments and escapes are left as they came.

use std::{fmt, str::Utf8Error};

use percent_encoding::percent_decode_str;

/// A request target in origin form: path and query, as text and decoded.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    path: String,
    parameters: Vec<Parameter>,
    /// The query once more, cut at `;` as well: what GitLab's gem reads. Only if it holds a `;`.
    cut_at_semicolons: Option<Vec<Parameter>>,
}

/// One query parameter, decoded.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Parameter {
    pub(super) name: String,
    /// Nothing, if it came without `=`.
    pub(super) value: Option<String>,
}

/// Why a request target is refused. Each is the sender's fault and stays so on another try; `at`
/// counts bytes from the start of the target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// A character that RFC 3986 does not allow in a path.
    #[error("the path holds a raw {character:?} at byte {at}")]
    CharacterInPath { character: char, at: usize },
    /// A character that RFC 3986 does not allow in a query.
    #[error("the query holds a raw {character:?} at byte {at}")]
    CharacterInQuery { character: char, at: usize },
    /// A `.` or `..` segment, plain or hidden by escapes.
    #[error("the path has a dot segment")]
    DotSegment,
    /// Two slashes in a row. Jira, when it signs, reads leading ones as a host name.
    #[error("the path has two slashes in a row at byte {at}")]
    DoubleSlash { at: usize },
    /// `%2F` or `%5C` in a path that will be split into segments.
    #[error("the path holds an encoded slash or backslash")]
    EncodedSlash,
    /// A `%` without two hex digits.
    #[error("a percent escape is malformed at byte {at}")]
    MalformedEscape { at: usize },
    /// A parameter without a name: Jira leaves it out of the hash, so it could be added by anyone.
    #[error("the query parameter at position {position} has no name")]
    NamelessParameter { position: usize },
    /// Raw non-ASCII text.
    #[error("the target holds a raw byte outside ASCII at byte {at}")]
    NotAscii { at: usize },
    /// A path that does not start with `/`: absolute form, or the `*` of OPTIONS.
    #[error("the target does not start with a slash")]
    NotOriginForm,
    /// Escapes that are not UTF-8. Jira hashes U+FFFD in their place, GitLab the bytes.
    #[error("the target's percent escapes are not UTF-8")]
    NotUtf8(#[from] Utf8Error),
    /// A name that came twice, though the route reads it once; shortened.
    #[error("query parameter {name:?} is repeated")]
    RepeatedParameter { name: String },
    /// More parameters than any honest call has.
    #[error("the query has {count} parameters, more than {MAX_PARAMETERS}")]
    TooManyParameters { count: usize },
}

impl Target {
    /// Parses path and query; a fragment is dropped.
    ///
    /// Refuses what the parties cannot agree on at all: malformed or non-UTF-8 escapes, raw
    /// non-ASCII, and characters outside RFC 3986. One tolerance: raw `[` and `]` in a query.
    pub fn parse(path_and_query: &str) -> Result<Self, TargetError> {
        Self::parse_allowing(path_and_query, Brackets::InQuery)
    }

    /// Parses the target of a call that claims to come from Jira or an instance, and refuses what
    /// an honest one never sends.
    ///
    /// Beyond [`Target::parse`]: raw brackets, double slashes, dot segments, nameless parameters,
    /// more than [`MAX_PARAMETERS`], and repeated names except those in `repeatable`. A repeated
    /// token parameter passes: whoever takes the token has to see both.
    pub fn parse_strict(path_and_query: &str, repeatable: &[&str]) -> Result<Self, TargetError> {
        let target = Self::parse_allowing(path_and_query, Brackets::Nowhere)?;
        target.check_path()?;
        target.check_parameters(repeatable)?;
        Ok(target)
    }

    /// Refuses `%2F` and `%5C` in the path; for routes that read its segments, since Jira's hash
    /// cannot tell an encoded slash from a plain one.
    pub fn refuse_encoded_slash(&self) -> Result<(), TargetError> {
        let path = self.path.to_ascii_lowercase();
        if path.contains("%2f") || path.contains("%5c") {
            return Err(TargetError::EncodedSlash);
        }
        Ok(())
    }

    /// The path as it came, escapes included.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The decoded value of a query parameter: its first, if the route lets it repeat, and empty
    /// if it came without one.
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query_all(name).next()
    }

    /// All decoded values of a query parameter, in order of arrival; Jira's hash does not cover
    /// that order.
    pub fn query_all(&self, name: &str) -> impl Iterator<Item = &str> {
        let named = self.parameters.iter().filter(move |p| p.name == name);
        named.map(Parameter::value_or_empty)
    }

    /// The decoded names of all parameters.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.parameters.iter().map(|p| p.name.as_str())
    }

    /// Whether there is no parameter but tokens.
    pub fn has_no_query(&self) -> bool {
        self.names().all(|name| name == TOKEN_PARAMETER)
    }

    /// The tokens in the query, unverified. No hash covers them.
    pub fn tokens(&self) -> impl Iterator<Item = &str> {
        self.query_all(TOKEN_PARAMETER)
    }

    pub(super) fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The parameters as GitLab's gem reads them, where that differs from ours.
    pub(super) fn cut_at_semicolons(&self) -> Option<&[Parameter]> {
        self.cut_at_semicolons.as_deref()
    }

    fn parse_allowing(path_and_query: &str, brackets: Brackets) -> Result<Self, TargetError> {
        let text = path_and_query.split('#').next().unwrap_or_default();
        check_characters(text, brackets)?;
        // Checking the whole is checking each part: they are cut at ASCII characters.
        if text.contains('%') {
            percent_decode_str(text).decode_utf8()?;
        }

        let (path, query) = text.split_once('?').unwrap_or((text, ""));
        if !path.is_empty() && !path.starts_with('/') {
            return Err(TargetError::NotOriginForm);
        }
        Ok(Self {
            path: path.to_owned(),
            parameters: split_query(query, &['&']),
            cut_at_semicolons: query.contains(';').then(|| split_query(query, &['&', ';'])),
        })
    }

    fn check_path(&self) -> Result<(), TargetError> {
        if let Some(at) = self.path.find("//") {
            return Err(TargetError::DoubleSlash { at });
        }
        // On the decoded path, so that neither `%2e` nor `%2F..` hides one.
        let decoded = percent_decode_str(&self.path).decode_utf8_lossy();
        if decoded.split(['/', '\\']).any(is_dot_segment) {
            return Err(TargetError::DotSegment);
        }
        Ok(())
    }

    fn check_parameters(&self, repeatable: &[&str]) -> Result<(), TargetError> {
        let count = self.parameters.len();
        if count > MAX_PARAMETERS {
            return Err(TargetError::TooManyParameters { count });
        }
        for (position, Parameter { name, .. }) in self.parameters.iter().enumerate() {
            if name.is_empty() {
                return Err(TargetError::NamelessParameter { position });
            }
            let may_repeat = name == TOKEN_PARAMETER || repeatable.contains(&name.as_str());
            let mut earlier = self.parameters.iter().take(position);
            if !may_repeat && earlier.any(|parameter| parameter.name == *name) {
                // A stranger chose it: enough to recognise it in a log line.
                let name = name.chars().take(NAME_SHOWN_CHARS).collect();
                return Err(TargetError::RepeatedParameter { name });
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Target {
    /// Path and parameter names only: values may be tokens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("path", &self.path)
            .field("parameters", &self.parameters)
            .finish_non_exhaustive()
    }
}

impl Parameter {
    fn decode(raw: &str) -> Self {
        match raw.split_once('=') {
            Some((name, value)) => Self {
                name: decode(name),
                value: Some(decode(value)),
            },
            None => Self {
                name: decode(raw),
                value: None,
            },
        }
    }

    pub(super) fn value_or_empty(&self) -> &str {
        self.value.as_deref().unwrap_or_default()
    }
}

impl fmt::Debug for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=***", self.name)
    }
}

impl TargetError {
    /// The refusal's stable name, for answers and logs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::CharacterInPath { .. } => "character_in_path",
            Self::CharacterInQuery { .. } => "character_in_query",
            Self::DotSegment => "dot_segment",
            Self::DoubleSlash { .. } => "double_slash",
            Self::EncodedSlash => "encoded_slash",
            Self::MalformedEscape { .. } => "malformed_escape",
            Self::NamelessParameter { .. } => "nameless_parameter",
            Self::NotAscii { .. } => "not_ascii",
            Self::NotOriginForm => "not_origin_form",
            Self::NotUtf8(_) => "not_utf8",
            Self::RepeatedParameter { .. } => "repeated_parameter",
            Self::TooManyParameters { .. } => "too_many_parameters",
        }
    }
}

/// Where raw brackets may stand. Rails-style names (`ids[]=1`) put them into queries and all
/// parties read them alike, yet Jira always encodes them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Brackets {
    InQuery,
    Nowhere,
}

/// Holds the target to RFC 3986, 3.3 and 3.4.
fn check_characters(text: &str, brackets: Brackets) -> Result<(), TargetError> {
    let mut in_query = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {}
            b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' => {}
            b':' | b'@' | b'/' => {}
            b'?' => in_query = true,
            b'[' | b']' if in_query && brackets == Brackets::InQuery => {}
            b'%' if is_escape(text, at) => {}
            b'%' => return Err(TargetError::MalformedEscape { at }),
            0x80.. => return Err(TargetError::NotAscii { at }),
            _ => {
                let character = char::from(byte);
                return Err(if in_query {
                    TargetError::CharacterInQuery { character, at }
                } else {
                    TargetError::CharacterInPath { character, at }
                });
            }
        }
    }
    Ok(())
}

fn is_escape(text: &str, at: usize) -> bool {
    let digits = text.as_bytes().get(at + 1..at + 3);
    digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
}

pub(super) fn is_dot_segment(segment: &str) -> bool {
    segment == "." || segment == ".."
}

fn split_query(query: &str, separators: &[char]) -> Vec<Parameter> {
    let pieces = query.split(separators).filter(|piece| !piece.is_empty());
    pieces.map(Parameter::decode).collect()
}

/// Decodes a name or value of a query, where `+` is a space too.
fn decode(raw: &str) -> String {
    if !raw.contains(['%', '+']) {
        return raw.to_owned();
    }
    let mut text = String::with_capacity(raw.len());
    for (position, word) in raw.split('+').enumerate() {
        if position > 0 {
            text.push(' ');
        }
        // Lossless: the escapes are known to be UTF-8.
        text.push_str(&percent_decode_str(word).decode_utf8_lossy());
    }
    text
}

/// The most parameters that an honest call has; Jira's frame sends about fifteen.
pub const MAX_PARAMETERS: usize = 100;

/// The query parameter that may carry the token. Case counts: `JWT` is a parameter like any other.
pub const TOKEN_PARAMETER: &str = "jwt";

const NAME_SHOWN_CHARS: usize = 64;
