//! One pass over a body, by the rules of its family: where ids begin, how many entities there are.
//!
//! `serde_json` reads; texts that it borrows from the body tell where they stand. The rules are the table below: what is
//! not in it is passed over.

use std::fmt;

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{BodyError, ENTITIES_PER_BODY_MAX, Survey};
use crate::domain::{Family, jira_call::NAMESPACE_PROPERTY};

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
