//! Why a relay does not start.

use std::{io, net::SocketAddr, path::PathBuf};

#[cfg(feature = "otlp")]
use crate::otlp::OtlpError;
use crate::{
    access::RangesError,
    rotation::RotateError,
    secret_file::SecretFileError,
    store::{OpenError, StoreError},
    tls::TlsError,
};

/// Why a relay does not start. Each is one sentence for an operator.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The store, later.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The signing key.
    #[error("no signing key could be made: {0}")]
    Key(#[from] RotateError),
    /// The admin token.
    #[error("the admin token can't be used: {0}")]
    Token(#[from] SecretFileError),
    /// The admin token is unusable.
    #[error(
        "the admin token in {0} is shorter than 16 characters: remove the file to have one made"
    )]
    ShortToken(PathBuf),
    /// A port.
    #[error("can't listen on {address} ({key}): {cause}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Set by this key.
        key: &'static str,
        /// What the operating system said.
        cause: io::Error,
    },
    /// The admin listener's socket.
    #[error("can't listen on {path} (admin.socket): {cause}", path = .path.display())]
    BindSocket {
        /// Where.
        path: PathBuf,
        /// Why not.
        cause: io::Error,
    },
    /// Who may connect to the admin listener.
    #[error("admin.client_ca_file {path} can't be used: {cause}", path = .path.display())]
    ClientCa {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// A listener's certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The collector of traces.
    #[cfg(feature = "otlp")]
    #[error(transparent)]
    Otlp(#[from] OtlpError),
    /// Atlassian's ranges in a file.
    #[error(transparent)]
    Ranges(#[from] RangesError),
    /// Certificate authorities.
    #[error("instances.extra_ca_file {path} can't be used: {cause}")]
    ExtraCa {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        cause: io::Error,
    },
    /// A mistake of ours.
    #[error("the relay can't be put together: {0}")]
    Internal(String),
}

impl StartError {
    /// Whether a setting, or a file that one names, is wrong.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Tls(_) | Self::Ranges(_) | Self::ExtraCa { .. } | Self::ClientCa { .. } => true,
            #[cfg(feature = "otlp")]
            Self::Otlp(_) => true,
            _ => false,
        }
    }
}

pub(super) fn internal(error: impl ToString) -> StartError {
    StartError::Internal(error.to_string())
}
