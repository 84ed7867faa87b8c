//! Who may talk to which part of the public listener, by address.
//!
//! A list is a second lock: every call that changes anything proves itself by a token all the same. An empty list
//! lets everybody in. What browsers open has no list: people are anywhere.

mod ranges;

use std::{net::IpAddr, sync::Arc};

pub use ranges::{AtlassianRanges, RangesError, read_file};

use crate::{
    domain::Networks,
    reject::{Reject, RejectKind},
};

/// Whose calls a route is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Jira Cloud's own servers: lifecycle and toolchain.
    Jira,
    /// GitLab instances: development data and public keys.
    Instances,
}

/// The lists.
pub struct Access {
    /// `access.jira`
    pub jira: Networks,
    /// `access.instances`
    pub instances: Networks,
    /// `access.atlassian_ranges`, beside the first.
    pub ranges: Option<Arc<AtlassianRanges>>,
}

/// A caller may not call this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessRefused {
    /// Its address is on no list.
    #[error("{ip} is not on the list")]
    NotListed {
        /// For whose calls.
        group: Group,
        /// Whence.
        ip: IpAddr,
    },
    /// Atlassian's ranges could not be read yet.
    #[error("{ip} may be Atlassian's or not: its ranges are not known yet")]
    RangesUnknown {
        /// Whence.
        ip: IpAddr,
    },
}

impl Access {
    /// Whether a call may come from there.
    pub fn check(&self, group: Group, ip: IpAddr) -> Result<(), AccessRefused> {
        let (listed, ranges) = match group {
            Group::Jira => (&self.jira, self.ranges.as_ref()),
            Group::Instances => (&self.instances, None),
        };
        if listed.contains(ip) || (listed.is_empty() && ranges.is_none()) {
            return Ok(());
        }
        let Some(ranges) = ranges else {
            return Err(AccessRefused::NotListed { group, ip });
        };
        match ranges.contains(ip) {
            Some(true) => Ok(()),
            Some(false) => Err(AccessRefused::NotListed { group, ip }),
            None => Err(AccessRefused::RangesUnknown { ip }),
        }
    }
}

impl From<AccessRefused> for Reject {
    fn from(refused: AccessRefused) -> Self {
        let internal = Some(refused.to_string());
        let reject = match refused {
            AccessRefused::NotListed { group, .. } => Self::new(
                RejectKind::Forbidden,
                "address_not_allowed",
                "this address may not make this call",
                match group {
                    Group::Jira => {
                        "the operator can list it in access.jira, or look whether access.atlassian_ranges is up to date"
                    }
                    Group::Instances => "the operator can list it in access.instances",
                },
            ),
            AccessRefused::RangesUnknown { .. } => Self::new(
                RejectKind::Unavailable,
                "ranges_unknown",
                "whether this address is Atlassian's is not known yet",
                "the operator should look at the log: access.atlassian_ranges could not be read",
            ),
        };
        Self { internal, ..reject }
    }
}
