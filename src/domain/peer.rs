//! Who is at the other end.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

/// The client behind a request, as far as that can be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// At the other end of the connection.
    Socket(SocketAddr),
    /// A trusted proxy passed it on for this client.
    Forwarded(IpAddr),
    /// A process of this machine, over a Unix socket.
    Unix,
}

impl Peer {
    /// Where it is; an IPv4 address mapped into IPv6 is that IPv4 address.
    pub fn ip(self) -> IpAddr {
        match self {
            Self::Socket(address) => address.ip().to_canonical(),
            Self::Forwarded(ip) => ip.to_canonical(),
            Self::Unix => Ipv4Addr::LOCALHOST.into(),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(f),
            Self::Forwarded(ip) => ip.fmt(f),
            Self::Unix => f.write_str("unix"),
        }
    }
}

/// What counts as one address wherever callers are counted: whoever has one IPv6 address has 2^64 of them.
pub fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        v4 => v4,
    }
}
