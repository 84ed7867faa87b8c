//! Files and folders that hold secrets: made on first start, readable by their owner only.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

/// A file could not be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {cause}", .path.display())]
pub struct SecretFileError {
    /// Which file.
    pub path: PathBuf,
    /// What the operating system said.
    pub cause: io::Error,
}

/// Reads the file; `None` if there is none.
pub fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, SecretFileError> {
    let error = |cause| SecretFileError {
        path: path.to_owned(),
        cause,
    };
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(error(cause)),
    };
    let mode = file.metadata().map_err(error)?.permissions().mode();
    if mode & 0o077 != 0 {
        tracing::warn!(
            path = %path.display(),
            mode = format!("{:o}", mode & 0o777),
            "a file with a secret can be read by others than its owner: chmod 600 it"
        );
    }
    let mut content = Zeroizing::new(Vec::new());
    file.read_to_end(&mut content).map_err(error)?;
    Ok(Some(content))
}

/// Writes a new file, mode 0600, whole or not at all, and durably; makes the folders above it. A file that is
/// there already is an error, never replaced.
pub fn create(path: &Path, content: &[u8]) -> Result<(), SecretFileError> {
    write(path, content, |temporary| {
        let linked = fs::hard_link(temporary, path);
        fs::remove_file(temporary)?;
        linked
    })
}

/// The same, in place of the file that is there.
pub fn replace(path: &Path, content: &[u8]) -> Result<(), SecretFileError> {
    write(path, content, |temporary| fs::rename(temporary, path))
}

fn write(
    path: &Path,
    content: &[u8],
    put: impl FnOnce(&Path) -> io::Result<()>,
) -> Result<(), SecretFileError> {
    let write = || -> io::Result<()> {
        let folder = folder_of(path);
        make_folders(folder)?;
        let temporary = path.with_extension(format!("new-{}", std::process::id()));
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        let written = file
            .write_all(content)
            .and_then(|()| file.sync_all())
            .and_then(|()| put(&temporary));
        if let Err(error) = written {
            // Half a secret is one, too.
            let _ = fs::remove_file(&temporary);
            return Err(error);
        }
        File::open(folder)?.sync_all()
    };
    write().map_err(|cause| SecretFileError {
        path: path.to_owned(),
        cause,
    })
}

/// Where a file is; a bare name is in the working directory.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Makes a folder and those above it that are missing, mode 0700, and durably: a file survives a power cut only
/// if every folder on the way to it does.
pub fn make_folders(folder: &Path) -> io::Result<()> {
    if folder.as_os_str().is_empty() || folder.is_dir() {
        return Ok(());
    }
    let parent = folder_of(folder);
    make_folders(parent)?;
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        // Somebody else may have made it meanwhile.
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    match File::open(parent) {
        Ok(parent) => parent.sync_all(),
        // It may be written but not read: then the folder is there, only not proof against a power cut yet.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(error),
    }
}
