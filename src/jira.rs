//! The Jira side: what the app says of itself, the lifecycle calls that Jira makes, and what instances want of Jira:
//! whose call it is, whether it is passed on, under which ids, and what Jira said.

mod addresses;
pub mod admins;
pub mod calls;
pub mod credentials;
pub mod deliver;
pub mod descriptor;
pub mod forward;
pub mod lifecycle;
pub mod mend;
pub mod namespace;
pub mod rate_limit;
pub mod recognise;
pub mod server_info;
pub mod shape;
pub mod split;
pub mod tenant;
pub mod tokens;
pub mod toolchain;
pub mod touches;
pub mod user;

pub use admins::Admins;
pub use deliver::{Delivered, Setback};
pub use forward::Forwarder;
pub use recognise::Recogniser;
