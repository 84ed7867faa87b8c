//! The Jira side: the descriptor that Jira reads, and the lifecycle calls that it makes.

pub mod descriptor;
pub mod lifecycle;
