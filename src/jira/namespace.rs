//! Puts the ids of an instance into its link's namespace, and takes them out again.
//!
//! GitLab's ids are plain database ids and Jira scopes them by app, so two instances behind one app would overwrite
//! each other's data (Atlassian's API reference on uniqueness; GitLab `lib/atlassian/jira_connect/serializers`).
//! Every id that is unique only within an instance gets `<namespace>-` in front of it, and every write is marked
//! with a property that names the namespace, so that one link's data can be deleted.
//!
//! One pass over the body notes where ids begin; then the pieces are joined. Not a byte between is touched:
//! unknown fields, numbers and order stay as they came. What an id could hide in (an escaped spelling of an id, a
//! number or an object in its place) is refused, because Jira might read it in another way than we do.

mod walk;

use memchr::memmem;

use crate::{
    domain::{Family, Namespace, jira_call::NAMESPACE_PROPERTY},
    reject::{Reject, RejectKind},
};

pub use walk::survey;

/// Properties of one write that Jira takes.
const PROPERTIES_MAX: usize = 5;

/// Entities in one body. GitLab's largest has some 800; each thousand or less goes to Jira with everything around it.
const ENTITIES_PER_BODY_MAX: usize = 20_000;

/// What one pass over a body found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Byte offsets at which an id begins, ascending.
    ids: Vec<usize>,
    /// Byte offsets just behind the `properties` key (there should be one).
    properties: Vec<usize>,
    /// Properties that the body has.
    property_count: usize,
    /// Our own is among them.
    is_marked: bool,
    /// Entities in all.
    pub entities: usize,
    /// The most of one kind in one list.
    pub longest_list: usize,
    /// `providerMetadata.product`: `GitLab <version>`.
    pub product: Option<String>,
}

/// Why a body can't be put into a namespace.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// No JSON object.
    #[error("the body is no JSON object ({0})")]
    NotJson(String),
    /// Bytes that are no text.
    #[error("the body is not UTF-8")]
    NotUtf8,
    /// A place that holds an id holds something else, or hides it.
    #[error("{0}")]
    Unreadable(String),
    /// Longer than Jira takes, with the namespace in front.
    #[error("an id is longer than the {max} bytes that Jira takes with the relay's prefix")]
    IdTooLong {
        /// The limit.
        max: usize,
    },
    /// An instance that keeps its ids uses one of another link's.
    #[error("an id looks like one that the relay gave to another instance")]
    ForeignId,
    /// So many that no project has them.
    #[error("the body has more than {ENTITIES_PER_BODY_MAX} entities")]
    TooManyEntities,
    /// The instance writes our property itself.
    #[error("the property {NAMESPACE_PROPERTY} is the relay's own")]
    PropertyTaken,
    /// No room for our property.
    #[error(
        "the body has {PROPERTIES_MAX} properties already, as many as Jira takes, and the relay needs one"
    )]
    TooManyProperties,
}

/// The body with all its ids in the namespace, marked with it.
pub fn put_in(
    namespace: &Namespace,
    family: Family,
    body: &str,
    survey: &Survey,
) -> Result<Vec<u8>, BodyError> {
    let prefix = format!("{}-", namespace.as_str());
    let max = family.id_max_bytes();
    if survey.is_marked {
        return Err(BodyError::PropertyTaken);
    }
    if survey.property_count >= PROPERTIES_MAX {
        return Err(BodyError::TooManyProperties);
    }
    let mut out = Vec::with_capacity(body.len() + survey.ids.len() * prefix.len() + 64);
    let mut done = 0;
    let copy = |out: &mut Vec<u8>, from: usize, to: usize| {
        out.extend_from_slice(body.as_bytes().get(from..to).unwrap_or_default());
    };
    let mut ids = survey.ids.iter().copied().peekable();
    for insertion in marks(namespace, body, survey) {
        while let Some(id) = ids.next_if(|id| *id < insertion.at) {
            copy(&mut out, done, id);
            out.extend_from_slice(prefix.as_bytes());
            done = id;
        }
        copy(&mut out, done, insertion.at);
        out.extend_from_slice(insertion.text.as_bytes());
        done = insertion.at + insertion.replaces;
    }
    for id in ids {
        copy(&mut out, done, id);
        out.extend_from_slice(prefix.as_bytes());
        done = id;
    }
    copy(&mut out, done, body.len());
    let room = max.saturating_sub(prefix.len());
    let too_long = |id: &usize| {
        let rest = body.as_bytes().get(*id..).unwrap_or_default();
        // No id holds an escape, so the next quote ends it.
        memchr::memchr(b'"', rest).is_none_or(|length| length > room)
    };
    if survey.ids.iter().any(too_long) {
        return Err(BodyError::IdTooLong { max: room });
    }
    Ok(out)
}

/// A body of a link that keeps its ids goes on as it is, if it stays out of the others' namespaces.
pub fn check_kept(body: &str, survey: &Survey) -> Result<(), BodyError> {
    if survey.is_marked {
        return Err(BodyError::PropertyTaken);
    }
    let foreign = |at: &usize| {
        let rest = body.get(*at..).unwrap_or_default();
        Namespace::is_in_one(rest.split('"').next().unwrap_or_default())
    };
    if survey.ids.iter().any(foreign) {
        return Err(BodyError::ForeignId);
    }
    Ok(())
}

/// The same id in the namespace, for a path.
pub fn id_in(namespace: &Namespace, id: &str) -> String {
    format!("{}-{id}", namespace.as_str())
}

/// What an id is called by its instance, if it is in this namespace.
pub fn id_out<'a>(namespace: &Namespace, id: &'a str) -> Option<&'a str> {
    id.strip_prefix(namespace.as_str())?.strip_prefix('-')
}

/// An answer of Jira's in the instance's words. A namespace is eight random characters, so wherever it stands with
/// its dash it is ours: in ids, in keys, and in the sentences that quote them.
pub fn take_out(namespace: &Namespace, answer: &[u8]) -> Option<Vec<u8>> {
    let prefix = format!("{}-", namespace.as_str());
    let finder = memmem::Finder::new(prefix.as_bytes());
    let mut found = finder.find_iter(answer).peekable();
    found.peek()?;
    let mut out = Vec::with_capacity(answer.len());
    let mut done = 0;
    for at in found {
        out.extend_from_slice(answer.get(done..at).unwrap_or_default());
        done = at + prefix.len();
    }
    out.extend_from_slice(answer.get(done..).unwrap_or_default());
    Some(out)
}

/// Where the property goes.
struct Insertion {
    at: usize,
    text: String,
    replaces: usize,
}

/// Into the properties that are there, else as the first field of the body.
fn marks(namespace: &Namespace, body: &str, survey: &Survey) -> Vec<Insertion> {
    let mark = format!("\"{NAMESPACE_PROPERTY}\":\"{}\"", namespace.as_str());
    let skip_space = |at: usize| {
        let rest = body.get(at..).unwrap_or_default();
        at + rest.len() - rest.trim_start().len()
    };
    let starts = |at: usize, text: &str| body.get(at..).is_some_and(|rest| rest.starts_with(text));
    if survey.properties.is_empty() {
        let brace = skip_space(0);
        let comma = if starts(skip_space(brace + 1), "}") {
            ""
        } else {
            ","
        };
        return vec![Insertion {
            at: brace + 1,
            text: format!("\"properties\":{{{mark}}}{comma}"),
            replaces: 0,
        }];
    }
    // It is valid JSON, so behind the key come a colon and an object or null; the survey saw to the latter.
    let insertion = |&key_end: &usize| {
        let value = skip_space(skip_space(key_end) + 1);
        if starts(value, "null") {
            return Insertion {
                at: value,
                text: format!("{{{mark}}}"),
                replaces: 4,
            };
        }
        let empty = starts(skip_space(value + 1), "}");
        Insertion {
            at: value + 1,
            text: if empty {
                mark.clone()
            } else {
                format!("{mark},")
            },
            replaces: 0,
        }
    };
    survey.properties.iter().map(insertion).collect()
}

impl From<BodyError> for Reject {
    fn from(error: BodyError) -> Self {
        let code = match error {
            BodyError::NotJson(_) | BodyError::NotUtf8 => "body_malformed",
            BodyError::Unreadable(_) => "ids_unreadable",
            BodyError::IdTooLong { .. } => "id_too_long",
            BodyError::ForeignId => "id_of_another_link",
            BodyError::TooManyEntities => "too_many_entities",
            BodyError::PropertyTaken => "property_taken",
            BodyError::TooManyProperties => "too_many_properties",
        };
        Self::new(
            RejectKind::Malformed,
            code,
            error.to_string(),
            "send what GitLab sends; nothing of it was passed on to Jira",
        )
    }
}

#[cfg(test)]
mod tests;
