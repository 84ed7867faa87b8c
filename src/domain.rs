//! The words of the product as types: pure, synchronous, sure of themselves.
//!
//! Nothing here knows of HTTP, tokens, files or clocks. A value that exists has passed its rules
//! (`parse`), so nobody above checks it again.

pub mod address;
pub mod audit;
pub mod client_key;
pub mod cloud;
pub mod event;
pub mod forge;
pub mod import;
pub mod installation;
pub mod instance_policy;
pub mod instance_url;
pub mod jira_call;
pub mod key_id;
pub mod keys;
pub mod lack;
pub mod link;
pub mod namespace;
pub mod networks;
pub mod origin;
pub mod peer;
pub mod secret;
pub mod spooled;
pub mod upstream;

pub use audit::{Actor, AuditEntry, AuditHead, ChainedEntry};
pub use client_key::ClientKey;
pub use cloud::{ApiBaseUrl, CloudId, JiraApiUrl};
pub use event::{LifecycleEvent, LifecycleEventKind};
pub use forge::{ForgeAppId, ForgeEnvironmentId, ForgeEnvironmentType, ForgeInstallationId};
pub use import::ImportId;
pub use installation::{Installation, InstallationState};
pub use instance_policy::InstancePolicy;
pub use instance_url::InstanceUrl;
pub use jira_call::{Endpoint, Family, JiraCall};
pub use key_id::KeyId;
pub use keys::{InstallKeyRecord, PrivateKeyDer, SigningKeyRecord};
pub use lack::Lack;
pub use link::{Link, LinkId, LinkMode, LinkState};
pub use namespace::Namespace;
pub use networks::Networks;
pub use origin::{JiraBaseUrl, JiraSites, PublicUrl};
pub use peer::Peer;
pub use secret::{Credential, SharedSecret};
pub use spooled::{SpoolId, SpooledWrite};
pub use upstream::{Upstream, UpstreamKind};

/// Where every GitLab has its Connect endpoints below its own URL, and we have ours.
pub const CONNECT_PATH: &str = "/-/jira_connect";
