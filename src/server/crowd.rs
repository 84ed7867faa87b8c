//! How many connections each address has.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex},
};

use crate::{
    domain::{Networks, peer::network},
    lock::lock,
};

/// Connections that one address may have open.
#[derive(Clone, Debug)]
pub struct PerAddress {
    /// The most.
    pub max: usize,
    /// Proxies: many clients stand behind one of these.
    pub exempt: Networks,
}

/// Connections by address. Never more entries than open connections. A short std lock.
#[derive(Default)]
pub(super) struct Crowd(Mutex<HashMap<IpAddr, usize>>);

/// A connection's place in the crowd, given back on drop.
pub(super) struct Place {
    crowd: Arc<Crowd>,
    address: IpAddr,
}

impl Crowd {
    /// A place for one more connection, if the address has not too many already.
    pub(super) fn enter(self: &Arc<Self>, ip: IpAddr, max: usize) -> Option<Place> {
        let address = network(ip);
        let mut open = lock(&self.0);
        let count = open.entry(address).or_default();
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Place {
            crowd: Arc::clone(self),
            address,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = lock(&self.crowd.0);
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_come_back_and_leave_nothing() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("ip");
        let crowd = Arc::new(Crowd::default());
        let places: Vec<_> = (0..3).map(|_| crowd.enter(ip("10.0.0.1"), 3)).collect();
        assert!(places.iter().all(Option::is_some));
        assert!(crowd.enter(ip("10.0.0.1"), 3).is_none());
        assert!(crowd.enter(ip("::ffff:10.0.0.1"), 3).is_none());
        let other = crowd.enter(ip("2001:db8::1"), 1);
        assert!(crowd.enter(ip("2001:db8::2"), 1).is_none(), "one network");
        drop(places);
        assert!(crowd.enter(ip("10.0.0.1"), 3).is_some());
        drop(other);
        assert!(lock(&crowd.0).is_empty());
    }
}
