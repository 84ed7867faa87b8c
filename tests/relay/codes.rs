//! Every code of a refusal stands in the README, with its cause and cure.

use std::{collections::BTreeSet, fs, path::Path};

/// The codes that are written beside a kind of refusal in the relay's source.
fn codes(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).expect("folder") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            codes(&path, found);
            continue;
        }
        if path.extension().is_none_or(|ending| ending != "rs") {
            continue;
        }
        let source = fs::read_to_string(&path).expect("source");
        for rest in source.split("RejectKind::").skip(1) {
            let code = rest
                .split_once(',')
                .filter(|(kind, _)| kind.chars().all(char::is_alphabetic))
                .and_then(|(_, rest)| rest.trim_start().strip_prefix('"')?.split_once('"'));
            found.extend(code.map(|(code, _)| code.to_owned()));
        }
    }
}

#[test]
fn every_code_of_a_refusal_stands_in_the_readme() {
    let readme = include_str!("../../README.md");
    let mut found = BTreeSet::new();
    codes(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut found,
    );
    assert!(found.len() > 60, "{found:?}");
    found.retain(|code| !readme.contains(&format!("`{code}`")));
    assert_eq!(found, BTreeSet::new(), "they are not in the README");
}
