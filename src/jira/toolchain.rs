//! Answers to Jira's toolchain: several instances' lists as one, ids in their namespaces.
//!
//! Shapes: Atlassian's "Development actions" (`searchConnectedWorkspaces`, `searchRepositories`,
//! `associateRepository`), and what serves in production: GitLab's `containers`, and the `success`, `repositories`
//! and `canCreateContainer` of Atlassian's own GitHub app.

use serde_json::{Value, json};

use super::namespace;
use crate::domain::{Link, LinkMode, Namespace};

/// Repositories on one page, if Jira does not say; and the most that it gets.
const PAGE_DEFAULT: usize = 20;
const PAGE_MAX: usize = 100;

/// Nobody pages further.
const DEPTH_MAX: usize = 1000;

/// Which part of a list Jira wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    start: usize,
    length: usize,
}

impl Slice {
    /// From `page` (from 1) and `limit`, as Jira sends them. What makes no sense counts as not sent.
    pub fn of(page: Option<&str>, limit: Option<&str>) -> Self {
        let number =
            |text: Option<&str>| text.and_then(|text| text.parse().ok()).filter(|&n| n > 0);
        let length = number(limit).unwrap_or(PAGE_DEFAULT).min(PAGE_MAX);
        let page: usize = number(page).unwrap_or(1);
        let start = (page - 1).saturating_mul(length).min(DEPTH_MAX);
        Self { start, length }
    }

    /// So many of each instance are enough to fill it.
    pub fn end(self) -> usize {
        (self.start + self.length).min(DEPTH_MAX)
    }
}

/// One list of several: the first of each, the second of each, ... so that every instance is on the first page.
pub fn merged(lists: Vec<Vec<Value>>, slice: Slice) -> Vec<Value> {
    let longest = lists.iter().map(Vec::len).max().unwrap_or_default();
    let in_turn = (0..longest).flat_map(|n| lists.iter().filter_map(move |list| list.get(n)));
    in_turn
        .skip(slice.start)
        .take(slice.end() - slice.start)
        .cloned()
        .collect()
}

/// An entry in the words of the app: its id, and that of the workspace it is in, as text. GitLab's are numbers.
/// Nothing, if an instance that keeps its ids uses one of another link's.
pub fn put_in(link: &Link, mut entry: Value) -> Option<Value> {
    for place in ["/id", "/workspace/id"] {
        let Some(id) = entry.pointer_mut(place) else {
            continue;
        };
        let own = match &*id {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => continue,
        };
        *id = match has_raw_ids(link) {
            true if Namespace::is_in_one(&own) => return None,
            true => own.into(),
            false => namespace::id_in(&link.namespace, &own).into(),
        };
    }
    Some(entry)
}

/// A list of an instance in the words of the app.
pub fn put_all_in(link: &Link, list: Vec<Value>) -> Vec<Value> {
    let entries = list.into_iter();
    entries.filter_map(|entry| put_in(link, entry)).collect()
}

/// Whose repository an id of ours is, and what the instance calls it.
pub fn owner<'a>(
    links: &'a [std::sync::Arc<Link>],
    id: &'a str,
) -> Option<(&'a std::sync::Arc<Link>, &'a str)> {
    let in_namespace = links
        .iter()
        .filter(|link| !has_raw_ids(link))
        .find_map(|link| Some((link, namespace::id_out(&link.namespace, id)?)));
    in_namespace.or_else(|| {
        // GitLab would take the digits that another one's id may begin with for an id of its own.
        if id.is_empty() || !id.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let raw = links.iter().find(|link| has_raw_ids(link))?;
        Some((raw, id))
    })
}

/// `workspaces/search`
pub fn workspaces(mut list: Vec<Value>) -> Value {
    for workspace in &mut list {
        if let Some(fields) = workspace.as_object_mut() {
            fields.insert("canCreateContainer".to_owned(), false.into());
        }
    }
    json!({ "success": true, "workspaces": list })
}

/// `repositories/search`
pub fn repositories(list: Vec<Value>) -> Value {
    json!({ "success": true, "containers": list, "repositories": list })
}

/// Its data goes to Jira with the ids of its database.
fn has_raw_ids(link: &Link) -> bool {
    link.keep_ids || link.mode == LinkMode::Direct
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_parts_of_one_list() {
        let lists = || {
            vec![
                vec![json!(1), json!(4), json!(6)],
                vec![json!(2)],
                vec![json!(3), json!(5)],
            ]
        };
        let page = |page, limit| merged(lists(), Slice::of(Some(page), Some(limit)));
        assert_eq!(page("1", "4"), [1, 2, 3, 4]);
        assert_eq!(page("2", "4"), [5, 6]);
        assert_eq!(page("3", "4"), Vec::<Value>::new());
        assert_eq!(merged(lists(), Slice::of(None, Some("x"))).len(), 6);
    }

    #[test]
    fn absurd_pages_are_bounded() {
        for (page, limit) in [
            ("0", "0"),
            ("-1", "9999999999999999999999"),
            ("18446744073709551615", "18446744073709551615"),
        ] {
            let slice = Slice::of(Some(page), Some(limit));
            assert!(slice.end() <= DEPTH_MAX && slice.start <= slice.end());
        }
    }
}
