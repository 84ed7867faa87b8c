//! The app's folder: written once, then brought up to date around what its operator changed.
//!
//! Next to the files is a memory of what was generated. What is as it was generated is replaced; what was edited gets
//! only the news, line by line; and where both changed the same place, the operator's file stays and the new one is put
//! beside it. So no edit is ever lost.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{AppFile, NotPossible, files, merge::merge};
use crate::{config::Config, digest::sha256_hex};

const MEMORY: &str = ".jira-connect-proxy.json";

/// Texts that people edit are remembered whole, so that news can be merged; of the page's scripts and of npm's lock
/// a digest is enough: they are not merged line by line.
const REMEMBERED_MAX_BYTES: usize = 20_000;

/// Why the folder was left as it is.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// There is no app for this configuration.
    #[error(transparent)]
    NotPossible(#[from] NotPossible),
    /// `init` never writes over anything.
    #[error("{} is not empty: name a new folder", .0.display())]
    NotEmpty(PathBuf),
    /// `init` made it already.
    #[error("{} has a Forge app already: bring it up to date with `forge upgrade`", .0.display())]
    MadeAlready(PathBuf),
    /// Nothing tells what was generated.
    #[error("{} was not made by `forge init`: {MEMORY} is missing", .0.display())]
    NotMade(PathBuf),
    /// The memory can't be read.
    #[error("{} is damaged ({cause}): put it back from version control", .path.display())]
    Memory {
        /// The memory.
        path: PathBuf,
        /// What is wrong.
        cause: serde_json::Error,
    },
    /// An operator's file has the name that the new version would get.
    #[error("{} is in the way: move it elsewhere, then try again", .0.display())]
    InTheWay(PathBuf),
    /// A file could not be used.
    #[error("{}: {cause}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the operating system said.
        cause: io::Error,
    },
}

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Done {
    /// It is new.
    Created,
    /// It was as it had been generated, and is replaced.
    Updated,
    /// It was edited, and has the news now.
    Merged,
    /// It was edited where the news are: it stays, and the new version is beside it.
    Conflict,
    /// It was edited, and there are no news.
    Kept,
    /// It is up to date.
    Unchanged,
    /// It was deleted by its operator, and stays so.
    StaysDeleted,
    /// It is no longer part of the app.
    Removed,
    /// It is no longer part of the app, but was edited.
    Orphaned,
}

/// A file, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// From the folder on.
    pub path: String,
    /// What was done, or would be.
    pub done: Done,
}

#[derive(Debug, Default, Deserialize, Serialize)]
struct Memory {
    /// Version of the program that wrote last.
    written_by: String,
    connect_key: Option<String>,
    files: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Entry {
    generated: Generated,
    /// Put beside the file because it could not be merged. Once the operator has deleted that, it counts as taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    offered: Option<Generated>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
struct Generated {
    sha256: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

impl Generated {
    fn of(text: &str) -> Self {
        Self {
            sha256: sha256_hex(text.as_bytes()),
            text: (text.len() <= REMEMBERED_MAX_BYTES).then(|| text.to_owned()),
        }
    }

    fn is(&self, text: &str) -> bool {
        self.sha256 == sha256_hex(text.as_bytes())
    }
}

/// What to write, and what to remember.
#[derive(Debug, Default)]
struct Plan {
    changes: Vec<Change>,
    /// From the folder on.
    writes: Vec<(String, String)>,
    deletes: Vec<String>,
    files: BTreeMap<String, Entry>,
}

/// Writes a new app. `connect_key`: of the Connect app that becomes it.
pub fn init(
    folder: &Path,
    config: &Config,
    connect_key: Option<&str>,
) -> Result<Vec<Change>, FolderError> {
    let files = files(config, connect_key)?;
    if folder.join(MEMORY).exists() {
        return Err(FolderError::MadeAlready(folder.to_owned()));
    }
    let mut entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(folder).map_err(|cause| file_error(folder, cause))?;
            fs::read_dir(folder).map_err(|cause| file_error(folder, cause))?
        }
        Err(cause) => return Err(file_error(folder, cause)),
    };
    if entries.next().is_some() {
        return Err(FolderError::NotEmpty(folder.to_owned()));
    }
    let plan = plan(folder, &files, BTreeMap::new())?;
    apply(folder, plan, connect_key.map(ToOwned::to_owned))
}

/// Brings an app up to date with this program and this configuration, or only says what that would change.
pub fn upgrade(folder: &Path, config: &Config, dry_run: bool) -> Result<Vec<Change>, FolderError> {
    let path = folder.join(MEMORY);
    let memory = read(&path)?.ok_or_else(|| FolderError::NotMade(folder.to_owned()))?;
    let memory: Memory =
        serde_json::from_str(&memory).map_err(|cause| FolderError::Memory { path, cause })?;
    let files = files(config, memory.connect_key.as_deref())?;
    let plan = plan(folder, &files, memory.files)?;
    if dry_run {
        Ok(plan.changes)
    } else {
        apply(folder, plan, memory.connect_key)
    }
}

fn plan(
    folder: &Path,
    files: &[AppFile],
    known: BTreeMap<String, Entry>,
) -> Result<Plan, FolderError> {
    let mut plan = Plan::default();
    let theirs: BTreeMap<&str, &str> = files
        .iter()
        .map(|file| (file.path.as_str(), file.text.as_str()))
        .collect();
    let mut paths: BTreeSet<&str> = theirs.keys().copied().collect();
    paths.extend(known.keys().map(String::as_str));
    for path in paths {
        let ours = read(&folder.join(path))?;
        let other = read(&folder.join(beside_path(path)))?;
        let entry = known.get(path);
        if let (Some(text), offered) = (&other, entry.and_then(|entry| entry.offered.as_ref()))
            && !offered.is_some_and(|offered| offered.is(text))
        {
            return Err(FolderError::InTheWay(folder.join(beside_path(path))));
        }
        // What was beside the file and is gone was taken over.
        let base = entry.map(|entry| match &entry.offered {
            Some(offered) if other.is_none() => offered,
            _ => &entry.generated,
        });
        plan.add(path, base, ours.as_deref(), theirs.get(path).copied());
        let settled = plan
            .changes
            .last()
            .is_some_and(|last| last.done != Done::Conflict);
        if settled && other.is_some() {
            plan.deletes.push(beside_path(path));
        }
    }
    Ok(plan)
}

impl Plan {
    fn add(
        &mut self,
        path: &str,
        base: Option<&Generated>,
        ours: Option<&str>,
        theirs: Option<&str>,
    ) {
        let mut offered = None;
        let done = match (ours, theirs) {
            (None, None) => return,
            (None, Some(_)) if base.is_some() => Done::StaysDeleted,
            (None, Some(theirs)) => {
                self.write(path, theirs);
                Done::Created
            }
            (Some(ours), Some(theirs)) if ours == theirs => Done::Unchanged,
            (Some(ours), Some(theirs)) => match base {
                Some(base) if base.is(ours) => {
                    self.write(path, theirs);
                    Done::Updated
                }
                Some(base) if base.is(theirs) => Done::Kept,
                _ => {
                    let known = base.and_then(|base| base.text.as_deref());
                    match known.and_then(|base| merge(base, ours, theirs)) {
                        Some(merged) if merged == ours => Done::Kept,
                        Some(merged) => {
                            self.write(path, &merged);
                            Done::Merged
                        }
                        None => {
                            self.write(&beside_path(path), theirs);
                            offered = Some(Generated::of(theirs));
                            Done::Conflict
                        }
                    }
                }
            },
            (Some(ours), None) => {
                if base.is_some_and(|base| base.is(ours)) {
                    self.deletes.push(path.to_owned());
                    Done::Removed
                } else {
                    Done::Orphaned
                }
            }
        };
        self.changes.push(Change {
            path: path.to_owned(),
            done,
        });
        let Some(theirs) = theirs else { return };
        let generated = match (&offered, base) {
            (None, _) => Generated::of(theirs),
            (Some(_), Some(base)) => base.clone(),
            (Some(_), None) => Generated::of(""),
        };
        self.files
            .insert(path.to_owned(), Entry { generated, offered });
    }

    fn write(&mut self, path: &str, text: &str) {
        self.writes.push((path.to_owned(), text.to_owned()));
    }
}

/// The memory comes last: cut before it, the next run finds files that are as they should be.
fn apply(
    folder: &Path,
    plan: Plan,
    connect_key: Option<String>,
) -> Result<Vec<Change>, FolderError> {
    for (path, text) in &plan.writes {
        write(&folder.join(path), text)?;
    }
    for path in &plan.deletes {
        let path = folder.join(path);
        fs::remove_file(&path).map_err(|cause| file_error(&path, cause))?;
    }
    let memory = Memory {
        written_by: env!("CARGO_PKG_VERSION").to_owned(),
        connect_key,
        files: plan.files,
    };
    let path = folder.join(MEMORY);
    let text = serde_json::to_string_pretty(&memory).map_err(|cause| FolderError::Memory {
        path: path.clone(),
        cause,
    })?;
    write(&path, &(text + "\n"))?;
    Ok(plan.changes)
}

fn beside_path(path: &str) -> String {
    format!("{path}.new")
}

fn read(path: &Path) -> Result<Option<String>, FolderError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(file_error(path, cause)),
    }
}

/// Whole or not at all.
fn write(path: &Path, text: &str) -> Result<(), FolderError> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".part-{}", std::process::id()));
    let part = PathBuf::from(name);
    let written = path
        .parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| fs::write(&part, text))
        .and_then(|()| fs::rename(&part, path));
    written.map_err(|cause| file_error(path, cause))
}

fn file_error(path: &Path, cause: io::Error) -> FolderError {
    FolderError::File {
        path: path.to_owned(),
        cause,
    }
}
