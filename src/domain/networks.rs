//! A set of addresses, written as networks.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

/// Addresses, as a list of networks names them. A look costs a binary search.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks {
    /// First and last address of each, in order and apart; IPv4 as mapped into IPv6.
    ranges: Vec<(u128, u128)>,
}

impl Networks {
    /// The union of these.
    pub fn new(networks: impl IntoIterator<Item = IpNet>) -> Self {
        let mut all: Vec<(u128, u128)> = networks
            .into_iter()
            .map(|net| (number(net.network()), number(net.broadcast())))
            .collect();
        all.sort_unstable();
        let mut ranges: Vec<(u128, u128)> = Vec::with_capacity(all.len());
        for (first, last) in all {
            match ranges.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                _ => ranges.push((first, last)),
            }
        }
        Self { ranges }
    }

    /// Reads `10.1.2.0/24`, `2001:db8::/32` and single addresses.
    ///
    /// # Errors
    /// Tells which text is none of these.
    pub fn parse<T: AsRef<str>>(texts: &[T]) -> Result<Self, String> {
        let networks: Result<Vec<_>, _> = texts.iter().map(|text| network(text.as_ref())).collect();
        networks.map(Self::new)
    }

    /// Whether an address is in one of them. An IPv4 address mapped into IPv6 is that IPv4 address.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = number(ip.to_canonical());
        let after = self.ranges.partition_point(|(first, _)| *first <= ip);
        let before = after.checked_sub(1).and_then(|at| self.ranges.get(at));
        before.is_some_and(|(_, last)| ip <= *last)
    }

    /// Nobody is in it.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Stretches of addresses that do not touch.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }
}

fn network(text: &str) -> Result<IpNet, String> {
    let text = text.trim();
    let net = match text.parse::<IpAddr>() {
        Ok(ip) => IpNet::from(ip.to_canonical()),
        Err(_) => text.parse::<IpNet>().map_err(|_| {
            format!(
                "{text:?} is neither an address nor a network like 10.1.2.0/24 or 2001:db8::/32"
            )
        })?,
    };
    if net.trunc() != net {
        let meant = net.trunc();
        return Err(format!(
            "{text:?} has bits behind its prefix: write {meant}"
        ));
    }
    Ok(net)
}

fn number(ip: IpAddr) -> u128 {
    let v6: Ipv6Addr = match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    v6.to_bits()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("ip")
    }

    #[test]
    fn an_address_is_in_its_network_and_in_no_other() {
        let networks = ["10.1.2.0/24", "192.0.2.7", "2001:db8::/32", "::1"];
        let networks = Networks::parse(&networks).expect("networks");
        for inside in [
            "10.1.2.0",
            "10.1.2.255",
            "192.0.2.7",
            "::ffff:10.1.2.9",
            "2001:db8::5",
            "::1",
        ] {
            assert!(networks.contains(ip(inside)), "{inside}");
        }
        for outside in [
            "10.1.1.255",
            "10.1.3.0",
            "192.0.2.6",
            "192.0.2.8",
            "2001:db9::",
            "::2",
            "::",
        ] {
            assert!(!networks.contains(ip(outside)), "{outside}");
        }
        assert!(!Networks::default().contains(ip("10.1.2.3")));
    }

    #[test]
    fn what_touches_becomes_one() {
        let networks = [
            "10.0.0.0/9",
            "10.128.0.0/9",
            "10.1.0.0/16",
            "0.0.0.0/0",
            "::/0",
        ];
        let (two, all) = (Networks::parse(&networks[..3]), Networks::parse(&networks));
        assert_eq!(two.expect("networks").len(), 1);
        let all = all.expect("networks");
        assert_eq!(all.len(), 1);
        assert!(all.contains(ip("255.255.255.255")) && all.contains(ip("ffff::")));
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "10.1.2.3/24",
            "10.1.2.0/33",
            "example.com",
            "10.1.2",
            "10.1.2.0/-1",
            "*",
        ] {
            assert!(Networks::parse(&[text]).is_err(), "{text}");
        }
    }
}
