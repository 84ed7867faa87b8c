//! A write's place in the order, from its admission until it is answered or kept.

use std::sync::{Arc, Mutex};

use super::{shared::Shared, site::Site};
use crate::{
    domain::{Endpoint, Link, SpoolId},
    lock::lock,
};

/// A write on its way: its place in the order, until it is answered or kept.
pub struct Ticket {
    pub(super) shared: Arc<Shared>,
    /// A short std lock, never held over an await.
    pub(super) site: Arc<Mutex<Site>>,
    pub(super) link: Arc<Link>,
    pub(super) id: SpoolId,
    pub(super) got_through: Option<Endpoint>,
}

impl Ticket {
    /// Jira answered.
    pub fn got_through(mut self, endpoint: Endpoint) {
        self.got_through = Some(endpoint);
    }

    /// Whatever comes later waits until this is answered or kept.
    pub(super) fn make_barrier(&self) {
        lock(&self.site).make_barrier(self.link.id, self.id);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut site = lock(&self.site);
        if let Some(endpoint) = self.got_through {
            site.went_well(endpoint);
        }
        let waiting = site.leave(self.link.id, self.id);
        drop(site);
        if waiting {
            self.shared.wake.notify_one();
        }
    }
}
