//! Where connections come from: a TCP port, or a socket in the file system.

use std::{
    io,
    os::unix::{
        fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
        net::UnixStream as BlockingStream,
    },
    path::{Path, PathBuf},
};

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::domain::Peer;

/// One listening socket.
pub enum Door {
    /// A port.
    Tcp(TcpListener),
    /// A path.
    Unix(UnixDoor),
}

/// A listening socket in the file system; gone from there when dropped.
pub struct UnixDoor {
    listener: UnixListener,
    path: PathBuf,
    /// Device and number: what stands there later may be somebody else's.
    file: (u64, u64),
}

/// Who came in, and is not at home in any runtime yet.
pub(super) enum Visitor {
    Tcp(std::net::TcpStream),
    Unix(BlockingStream),
}

/// At home in the runtime that serves it.
pub(super) enum Settled {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Door {
    pub(super) async fn accept(&self) -> io::Result<(Visitor, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                let _ = stream.set_nodelay(true);
                Ok((Visitor::Tcp(stream.into_std()?), Peer::Socket(address)))
            }
            Self::Unix(door) => {
                let (stream, _) = door.listener.accept().await?;
                Ok((Visitor::Unix(stream.into_std()?), Peer::Unix))
            }
        }
    }
}

impl Visitor {
    /// In the runtime that this is called in.
    pub(super) fn settled(self) -> io::Result<Settled> {
        match self {
            Self::Tcp(stream) => TcpStream::from_std(stream).map(Settled::Tcp),
            Self::Unix(stream) => UnixStream::from_std(stream).map(Settled::Unix),
        }
    }
}

impl UnixDoor {
    /// Listens at a path that only `mode` lets in. A socket that a relay left behind when it was killed is replaced.
    ///
    /// # Errors
    /// Somebody answers there, or what is there is no socket.
    pub fn open(path: &Path, mode: u32) -> io::Result<Self> {
        match path.symlink_metadata() {
            Ok(found) if !found.file_type().is_socket() => {
                let what = "there is a file of that name, and it is no socket";
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
            }
            Ok(_) => match BlockingStream::connect(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(error),
                Ok(_) => {
                    let what = "another process answers there";
                    return Err(io::Error::new(io::ErrorKind::AddrInUse, what));
                }
            },
            Err(_) => {}
        }
        // Nobody gets in before the mode is right, and nobody sees a moment without a socket.
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        let new = PathBuf::from(new);
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&new)?;
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(mode))?;
        std::fs::rename(&new, path)?;
        let file = path.symlink_metadata()?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            file: (file.dev(), file.ino()),
        })
    }
}

impl Drop for UnixDoor {
    fn drop(&mut self) {
        let there = self.path.symlink_metadata();
        if there.is_ok_and(|file| (file.dev(), file.ino()) == self.file) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_what_nobody_uses_is_replaced() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("admin.sock");
        std::fs::write(&path, "precious").expect("write");
        assert!(UnixDoor::open(&path, 0o600).is_err());
        assert_eq!(std::fs::read(&path).expect("still there"), b"precious");
        std::fs::remove_file(&path).expect("remove");

        let door = UnixDoor::open(&path, 0o660).expect("open");
        let mode = path
            .symlink_metadata()
            .expect("socket")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o660);
        let taken = UnixDoor::open(&path, 0o600).err().expect("taken");
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        drop(door);
        assert!(!path.exists());

        // As after kill -9: the file stays, and nobody listens.
        drop(std::os::unix::net::UnixListener::bind(&path).expect("bind"));
        assert!(path.exists());
        let door = UnixDoor::open(&path, 0o600).expect("stale");
        std::fs::remove_file(&path).expect("remove");
        std::fs::write(&path, "somebody else's").expect("write");
        drop(door);
        assert!(path.exists());
    }
}
