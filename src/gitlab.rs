//! The instance side: lifecycle calls signed by us, what their failures mean, whether an instance is ready for us, and
//! questions for Jira's toolchain and its admins.

pub mod ask;
pub mod deliver;
pub mod export;
pub mod groups;
pub mod key_fetches;
pub mod patience;
pub mod probe;

pub use ask::Asker;
pub use key_fetches::{KeyFetch, KeyFetches};
pub use patience::Patience;
pub use probe::Prober;
