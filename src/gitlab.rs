//! The instance side: lifecycle calls signed by us, what their failures mean, and questions for Jira's toolchain.

pub mod ask;
pub mod deliver;
pub mod key_fetches;
pub mod patience;

pub use key_fetches::{KeyFetch, KeyFetches};
pub use patience::Patience;
