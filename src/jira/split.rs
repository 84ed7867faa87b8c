//! Makes several requests of one that is over Jira's limits, and one answer of theirs.
//!
//! GitLab sends a full synchronisation as one request and looks at no limit (GitLab `sync_project_worker.rb`); Jira
//! takes 1000 entities in all and 400 of a kind in a repository, and answers 413 above a size that is not
//! published. Every piece repeats what stands around the entities.

use std::{borrow::Cow, fmt, sync::Arc};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::{Value, value::RawValue};

use crate::domain::Family;

/// Entities in one request (Atlassian's API reference, "Store development information").
pub const ENTITIES_MAX: usize = 1000;

/// Entities of one kind in one repository.
pub const LIST_MAX: usize = 400;

/// The lists of a repository that hold entities.
const NESTED: [&str; 3] = ["commits", "branches", "pullRequests"];

/// A body, and how it is divided. The pieces are written one at a time: each repeats what stands around the entities,
/// so all together can be many times the body.
pub struct Split<'a> {
    top: Fields<'a>,
    list_key: &'static str,
    pieces: Vec<Vec<Member<'a>>>,
}

/// A member of the list that a piece has.
enum Member<'a> {
    Whole(&'a RawValue),
    /// A repository with some of its entities, each with its kind.
    Part(Arc<Fields<'a>>, Vec<(&'static str, &'a str)>),
}

impl<'a> Split<'a> {
    /// Divides a body, in its order, into pieces with at most `entities_max` entities each, and `list_max` of a kind
    /// in a repository. One piece if there is nothing to divide.
    pub fn new(
        family: Family,
        body: &'a str,
        entities_max: usize,
        list_max: usize,
    ) -> Result<Self, serde_json::Error> {
        let top: Fields<'a> = serde_json::from_str(body)?;
        let list_key = list_key(family);
        let mut pieces = Pieces::default();
        for member in top.list(list_key)? {
            if pieces.used >= entities_max {
                pieces.next();
            }
            if family != Family::Devinfo {
                pieces.add(Member::Whole(member), 1);
                continue;
            }
            let repository: Arc<Fields<'a>> = Arc::new(serde_json::from_str(member.get())?);
            let mut chunk = Vec::new();
            for kind in NESTED {
                let mut of_kind = 0;
                for entity in repository.list(kind)? {
                    // The repository counts as well, unless it stands alone with its first entity.
                    let full = pieces.used + 1 + chunk.len() >= entities_max;
                    let alone = pieces.used == 0 && chunk.is_empty();
                    if of_kind >= list_max || (full && !alone) {
                        if !chunk.is_empty() {
                            let part = std::mem::take(&mut chunk);
                            pieces.add(Member::Part(Arc::clone(&repository), part), 0);
                        }
                        pieces.next();
                        of_kind = 0;
                    }
                    chunk.push((kind, entity.get()));
                    of_kind += 1;
                }
            }
            // Also a repository without entities says something.
            let entities = 1 + chunk.len();
            pieces.add(Member::Part(repository, chunk), entities);
        }
        pieces.next();
        Ok(Self {
            top,
            list_key,
            pieces: pieces.whole,
        })
    }

    /// How many pieces there are.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Whether there are none, because there is no list.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Writes the pieces, one after the other.
    pub fn pieces(&self) -> impl Iterator<Item = String> {
        self.pieces.iter().map(|members| {
            let members: Vec<Cow<'_, str>> = members
                .iter()
                .map(|member| match member {
                    Member::Whole(value) => Cow::Borrowed(value.get()),
                    Member::Part(repository, chunk) => Cow::Owned(repository.with(chunk)),
                })
                .collect();
            self.top.replacing(self.list_key, &members.join(","))
        })
    }
}

/// One answer made of several: objects and lists are joined, of single values the first counts.
pub fn merge(answers: impl IntoIterator<Item = Value>) -> Value {
    answers
        .into_iter()
        .reduce(joined)
        .unwrap_or_else(|| Value::Object(serde_json::Map::new()))
}

fn joined(first: Value, second: Value) -> Value {
    match (first, second) {
        (Value::Object(mut all), Value::Object(more)) => {
            for (key, value) in more {
                let value = match all.remove(&key) {
                    Some(known) => joined(known, value),
                    None => value,
                };
                all.insert(key, value);
            }
            Value::Object(all)
        }
        (Value::Array(mut all), Value::Array(more)) => {
            for value in more {
                // The same unknown issue key can come with every piece.
                if value.is_object() || !all.contains(&value) {
                    all.push(value);
                }
            }
            Value::Array(all)
        }
        (Value::Null, second) => second,
        (first, _) => first,
    }
}

fn list_key(family: Family) -> &'static str {
    match family {
        Family::Devinfo => "repositories",
        Family::Builds => "builds",
        Family::Deployments => "deployments",
        Family::FeatureFlags => "flags",
        Family::RemoteLinks => "remoteLinks",
    }
}

/// Pieces so far.
#[derive(Default)]
struct Pieces<'a> {
    whole: Vec<Vec<Member<'a>>>,
    open: Vec<Member<'a>>,
    /// Entities in the open one.
    used: usize,
}

impl<'a> Pieces<'a> {
    fn add(&mut self, member: Member<'a>, entities: usize) {
        self.open.push(member);
        self.used += entities;
    }

    fn next(&mut self) {
        if !self.open.is_empty() {
            self.whole.push(std::mem::take(&mut self.open));
        }
        self.used = 0;
    }
}

/// An object's fields in their order, values as they were written.
struct Fields<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Fields<'a> {
    fn list(&self, key: &str) -> Result<Vec<&'a RawValue>, serde_json::Error> {
        let value = self.0.iter().find(|(name, _)| name == key);
        let list = value.map(|(_, value)| serde_json::from_str::<Option<_>>(value.get()));
        Ok(list.transpose()?.flatten().unwrap_or_default())
    }

    /// The object with one list replaced.
    fn replacing(&self, key: &str, members: &str) -> String {
        self.written(|name| (name == key).then(|| format!("[{members}]")))
    }

    /// A repository with these entities, each with its kind, and no others.
    fn with(&self, chunk: &[(&str, &str)]) -> String {
        self.written(|name| {
            NESTED.contains(&name).then(|| {
                let of_kind = chunk.iter().filter(|(kind, _)| *kind == name);
                let members: Vec<&str> = of_kind.map(|(_, entity)| *entity).collect();
                format!("[{}]", members.join(","))
            })
        })
    }

    fn written(&self, replaced: impl Fn(&str) -> Option<String>) -> String {
        let fields = self.0.iter().map(|(name, value)| {
            let value = replaced(name).map_or_else(|| Cow::Borrowed(value.get()), Cow::Owned);
            format!("{}:{value}", Value::from(name.as_ref()))
        });
        format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry::<String, &RawValue>()? {
                    fields.push((Cow::Owned(field.0), field.1));
                }
                Ok(Fields(fields))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pieces(family: Family, body: &Value, entities: usize, list: usize) -> Vec<Value> {
        let body = body.to_string();
        let split = Split::new(family, &body, entities, list).expect("split");
        let pieces = split.pieces();
        pieces
            .map(|piece| serde_json::from_str(&piece).expect("JSON"))
            .collect()
    }

    #[test]
    fn builds_are_divided_by_number() {
        let body = json!({"a": 1, "builds": [1, 2, 3, 4, 5], "properties": {"x": "y"}});
        let piece = |builds: Value| json!({"a": 1, "builds": builds, "properties": {"x": "y"}});
        assert_eq!(
            pieces(Family::Builds, &body, 2, 400),
            [
                piece(json!([1, 2])),
                piece(json!([3, 4])),
                piece(json!([5]))
            ]
        );
        assert_eq!(pieces(Family::Builds, &body, 5, 400), [body]);
    }

    #[test]
    fn repositories_are_divided_and_repeat_what_they_say_of_themselves() {
        let body = json!({
            "repositories": [
                {"id": "1", "name": "one", "commits": [1, 2, 3], "pullRequests": [4]},
                {"id": "2", "name": "empty"},
                {"id": "3", "name": "three", "branches": [5]},
            ],
            "providerMetadata": {"product": "GitLab"},
        });
        let found = pieces(Family::Devinfo, &body, 3, 2);
        let names = |piece: &Value| {
            let list = piece["repositories"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            list.iter()
                .map(|r| r["name"].as_str().unwrap_or("?").to_owned())
                .collect::<Vec<_>>()
        };
        assert!(
            found
                .iter()
                .all(|piece| piece["providerMetadata"]["product"] == "GitLab")
        );
        assert_eq!(names(&found[0]), ["one"]);
        let mut commits = Vec::new();
        let mut all = Vec::new();
        for piece in &found {
            let mut size = 0;
            for repository in piece["repositories"].as_array().expect("list") {
                all.push(repository["name"].clone());
                for kind in NESTED {
                    let list = repository[kind].as_array().cloned().unwrap_or_default();
                    assert!(list.len() <= 2);
                    size += list.len();
                    if kind == "commits" {
                        commits.extend(list);
                    }
                }
            }
            assert!(size <= 3, "{piece}");
        }
        assert_eq!(commits, [1, 2, 3]);
        assert!(all.contains(&json!("empty")) && all.contains(&json!("three")));
    }

    #[test]
    fn numbers_and_unknown_fields_are_kept_as_written() {
        let body = r#"{"x":1.50e3,"builds":[{"n":12345678901234567890.10},{"n":2}]}"#;
        let split = Split::new(Family::Builds, body, 1, 400).expect("split");
        assert_eq!(
            split.pieces().collect::<Vec<_>>(),
            [
                r#"{"x":1.50e3,"builds":[{"n":12345678901234567890.10}]}"#,
                r#"{"x":1.50e3,"builds":[{"n":2}]}"#
            ]
        );
    }

    #[test]
    fn answers_become_one() {
        let merged = merge([
            json!({"acceptedDevinfoEntities": {"1": {"commits": ["a"]}}, "unknownIssueKeys": ["A-1"]}),
            json!({"acceptedDevinfoEntities": {"1": {"commits": ["b"]}, "2": {}}, "unknownIssueKeys": ["A-1", "A-2"]}),
        ]);
        assert_eq!(
            merged,
            json!({
                "acceptedDevinfoEntities": {"1": {"commits": ["a", "b"]}, "2": {}},
                "unknownIssueKeys": ["A-1", "A-2"],
            })
        );
        assert_eq!(merge([]), json!({}));
    }
}
