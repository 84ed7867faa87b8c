//! The instance side: lifecycle calls signed by us, and what their failures mean.

pub mod deliver;
pub mod key_fetches;
pub mod patience;

pub use key_fetches::{KeyFetch, KeyFetches};
pub use patience::Patience;
