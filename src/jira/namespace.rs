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

use std::fmt;

use memchr::memmem;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::{
    domain::{Family, Namespace, jira_call::NAMESPACE_PROPERTY},
    reject::{Reject, RejectKind},
};

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

/// What stands at a place of a body, as far as it matters.
enum Rule {
    /// An id that is unique only within the instance: a text, or null.
    Id,
    /// A list whose members are of one kind.
    Each(&'static [(&'static str, Self)]),
    /// The same, and its members count as entities.
    Entities(&'static [(&'static str, Self)]),
    /// An object.
    Object(&'static [(&'static str, Self)]),
    /// The properties of the write.
    Properties,
    /// `GitLab <version>`.
    Product,
}

/// What to look for in an object, by key.
type Fields = &'static [(&'static str, Rule)];

/// Associations name issues, services, commits and repositories; the last two by repository id (Atlassian's API
/// reference, `associations[].values[]`).
const ASSOCIATION: Fields = &[("values", Rule::Each(&[("repositoryId", Rule::Id)]))];

/// Its id is a hash, unique in its repository.
const COMMIT: Fields = &[("associations", Rule::Each(ASSOCIATION))];

/// Its id is a hash of its name, unique in its repository.
const BRANCH: Fields = &[
    ("lastCommit", Rule::Object(COMMIT)),
    ("associations", Rule::Each(ASSOCIATION)),
];

const PULL_REQUEST: Fields = &[("id", Rule::Id), ("associations", Rule::Each(ASSOCIATION))];

const REPOSITORY: Fields = &[
    ("id", Rule::Id),
    ("forkOf", Rule::Id),
    ("commits", Rule::Entities(COMMIT)),
    ("branches", Rule::Entities(BRANCH)),
    ("pullRequests", Rule::Entities(PULL_REQUEST)),
    ("associations", Rule::Each(ASSOCIATION)),
];

const BUILD: Fields = &[
    ("pipelineId", Rule::Id),
    ("associations", Rule::Each(ASSOCIATION)),
];

const DEPLOYMENT: Fields = &[
    ("pipeline", Rule::Object(&[("id", Rule::Id)])),
    ("environment", Rule::Object(&[("id", Rule::Id)])),
    ("associations", Rule::Each(ASSOCIATION)),
];

const FLAG_OR_LINK: Fields = &[("id", Rule::Id), ("associations", Rule::Each(ASSOCIATION))];

const PROPERTIES: (&str, Rule) = ("properties", Rule::Properties);
const METADATA: (&str, Rule) = (
    "providerMetadata",
    Rule::Object(&[("product", Rule::Product)]),
);

fn rules(family: Family) -> &'static Rule {
    match family {
        Family::Devinfo => &Rule::Object(&[
            ("repositories", Rule::Entities(REPOSITORY)),
            PROPERTIES,
            METADATA,
        ]),
        Family::Builds => &Rule::Object(&[("builds", Rule::Entities(BUILD)), PROPERTIES, METADATA]),
        Family::Deployments => &Rule::Object(&[
            ("deployments", Rule::Entities(DEPLOYMENT)),
            PROPERTIES,
            METADATA,
        ]),
        Family::FeatureFlags => &Rule::Object(&[
            ("flags", Rule::Entities(FLAG_OR_LINK)),
            PROPERTIES,
            METADATA,
        ]),
        Family::RemoteLinks => &Rule::Object(&[
            ("remoteLinks", Rule::Entities(FLAG_OR_LINK)),
            PROPERTIES,
            METADATA,
        ]),
    }
}

/// Walks through a body of a family.
pub fn survey(family: Family, body: &str) -> Result<Survey, BodyError> {
    if !body.trim_start().starts_with('{') {
        return Err(BodyError::NotJson("it is something else".to_owned()));
    }
    let mut survey = Survey::default();
    let mut walk = Walk {
        body,
        survey: &mut survey,
        refused: None,
    };
    let mut json = serde_json::Deserializer::from_str(body);
    let walked = At {
        walk: &mut walk,
        rule: rules(family),
    }
    .deserialize(&mut json)
    .and_then(|()| json.end());
    let refused = walk.refused.take();
    match (walked, refused) {
        (_, Some(refused)) => Err(refused),
        (Err(error), None) => Err(BodyError::NotJson(format!(
            "line {}, column {}",
            error.line(),
            error.column()
        ))),
        (Ok(()), None) if survey.entities > ENTITIES_PER_BODY_MAX => {
            Err(BodyError::TooManyEntities)
        }
        (Ok(()), None) => Ok(survey),
    }
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

/// The state of one pass.
struct Walk<'b> {
    body: &'b str,
    survey: &'b mut Survey,
    /// Why it was stopped, if not for its syntax.
    refused: Option<BodyError>,
}

/// One place in the body.
struct At<'w, 'b> {
    walk: &'w mut Walk<'b>,
    rule: &'static Rule,
}

impl Walk<'_> {
    /// Where a text stands that serde borrowed from the body.
    fn offset(&self, text: &str) -> usize {
        text.as_ptr() as usize - self.body.as_ptr() as usize
    }

    fn refuse<E: serde::de::Error>(&mut self, why: BodyError) -> E {
        self.refused.get_or_insert(why);
        E::custom("refused")
    }

    fn unreadable<E: serde::de::Error>(&mut self, what: impl Into<String>) -> E {
        self.refuse(BodyError::Unreadable(what.into()))
    }
}

impl At<'_, '_> {
    /// A single value other than plain text.
    fn scalar<E: serde::de::Error>(&mut self, what: &str) -> Result<(), E> {
        match self.rule {
            Rule::Id => Err(self
                .walk
                .unreadable(format!("an id is {what}, it must be text"))),
            Rule::Properties => Err(self
                .walk
                .unreadable(format!("properties is {what}, it must be an object"))),
            _ => Ok(()),
        }
    }

    /// A list or an object where Jira wants the other, or a text.
    fn misplaced<E: serde::de::Error>(&mut self, what: &str) -> Result<(), E> {
        self.scalar(what)?;
        Err(self
            .walk
            .unreadable(format!("{what} stands where Jira wants something else")))
    }
}

impl<'de> DeserializeSeed<'de> for At<'_, 'de> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for At<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("what Jira takes")
    }

    fn visit_borrowed_str<E: serde::de::Error>(mut self, text: &'de str) -> Result<(), E> {
        match self.rule {
            Rule::Id => self.walk.survey.ids.push(self.walk.offset(text)),
            Rule::Product => self.walk.survey.product = Some(text.to_owned()),
            _ => self.scalar("text")?,
        }
        Ok(())
    }

    /// Not borrowed, so it held an escape.
    fn visit_str<E: serde::de::Error>(mut self, text: &str) -> Result<(), E> {
        if matches!(self.rule, Rule::Product) {
            self.walk.survey.product = Some(text.to_owned());
        }
        self.scalar("written with escapes")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: serde::de::Error>(mut self, _: bool) -> Result<(), E> {
        self.scalar("true or false")
    }

    fn visit_u64<E: serde::de::Error>(mut self, _: u64) -> Result<(), E> {
        self.scalar("a number")
    }

    fn visit_i64<E: serde::de::Error>(mut self, _: i64) -> Result<(), E> {
        self.scalar("a number")
    }

    fn visit_f64<E: serde::de::Error>(mut self, _: f64) -> Result<(), E> {
        self.scalar("a number")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        let (fields, entity) = match self.rule {
            Rule::Each(fields) => (*fields, false),
            Rule::Entities(fields) => (*fields, true),
            Rule::Product => {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                return Ok(());
            }
            _ => return self.misplaced("a list"),
        };
        let mut length = 0;
        while list
            .next_element_seed(Member {
                walk: self.walk,
                fields,
                entity,
            })?
            .is_some()
        {
            length += 1;
        }
        if entity {
            let survey = &mut self.walk.survey;
            survey.entities += length;
            survey.longest_list = survey.longest_list.max(length);
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        match self.rule {
            Rule::Object(fields) => object(self.walk, fields, map),
            Rule::Properties => properties(self.walk, map),
            Rule::Product => {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(())
            }
            _ => self.misplaced("an object"),
        }
    }
}

/// One member of a list: an object, or where it is no entity something without ids (an issue key among association
/// values).
struct Member<'w, 'b> {
    walk: &'w mut Walk<'b>,
    fields: Fields,
    entity: bool,
}

impl Member<'_, '_> {
    fn scalar<E: serde::de::Error>(self) -> Result<(), E> {
        if self.entity {
            return Err(self.walk.unreadable("an entity is no object"));
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Member<'_, 'de> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Member<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member of a list")
    }

    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<(), E> {
        self.scalar()
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.scalar()
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<(), E> {
        self.scalar()
    }

    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<(), E> {
        self.scalar()
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<(), E> {
        self.scalar()
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<(), E> {
        self.scalar()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        Err(self.walk.unreadable("a list stands in a list"))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        object(self.walk, self.fields, map)
    }
}

/// A key is compared as Jira reads it: without its escapes.
fn object<'de, A: MapAccess<'de>>(
    walk: &mut Walk<'de>,
    fields: Fields,
    mut map: A,
) -> Result<(), A::Error> {
    while let Some(key) = map.next_key_seed(KeySeed)? {
        let field = fields.iter().find(|(name, _)| key.text() == *name);
        let Some((_, rule)) = field else {
            map.next_value::<IgnoredAny>()?;
            continue;
        };
        if matches!(rule, Rule::Properties) {
            match key {
                Key::Plain(text) => {
                    // Behind the key's closing quote.
                    let end = walk.offset(text) + text.len() + 1;
                    walk.survey.properties.push(end);
                }
                Key::Escaped(_) => {
                    return Err(walk.unreadable("the key properties is written with escapes"));
                }
            }
        }
        map.next_value_seed(At { walk, rule })?;
    }
    Ok(())
}

/// `projectId` and its like name things of the instance; other values are left alone.
fn properties<'de, A: MapAccess<'de>>(walk: &mut Walk<'de>, mut map: A) -> Result<(), A::Error> {
    while let Some(key) = map.next_key_seed(KeySeed)? {
        let key = key.text();
        if key == NAMESPACE_PROPERTY {
            walk.survey.is_marked = true;
        }
        walk.survey.property_count += 1;
        if key == "id" || key.ends_with("Id") || key.ends_with("_id") {
            map.next_value_seed(At {
                walk,
                rule: &Rule::Id,
            })?;
        } else {
            map.next_value::<IgnoredAny>()?;
        }
    }
    Ok(())
}

/// A key, borrowed from the body unless it holds escapes.
enum Key<'de> {
    Plain(&'de str),
    Escaped(String),
}

impl Key<'_> {
    fn text(&self) -> &str {
        match self {
            Self::Plain(text) => text,
            Self::Escaped(text) => text,
        }
    }
}

struct KeySeed;

impl<'de> DeserializeSeed<'de> for KeySeed {
    type Value = Key<'de>;

    fn deserialize<D: serde::Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> Result<Key<'de>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for KeySeed {
    type Value = Key<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Key<'de>, E> {
        Ok(Key::Plain(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Key<'de>, E> {
        Ok(Key::Escaped(text.to_owned()))
    }
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
