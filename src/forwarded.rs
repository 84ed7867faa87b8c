//! Who a request comes from when proxies stand in front.
//!
//! `X-Forwarded-For` is a list: each proxy appends the address that it was spoken to from. Everything that a client
//! wrote itself stands further left, so the list is read from the right, for as long as trusted proxies vouch for
//! what stands before them; what is further left is never looked at, and nobody's rubbish there changes anything.

use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering},
};

use http::{HeaderMap, HeaderName};

use crate::domain::{Networks, Peer, address};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Trusted proxies in a row.
const HOPS_MAX: usize = 16;

/// The longest spelling of an address, with zone-less brackets, port and quotes.
const ENTRY_MAX_BYTES: usize = 64;

/// Tells clients from the proxies in front.
pub struct Forwarded {
    trusted: Networks,
    is_plain: bool,
    warned: AtomicBool,
}

impl Forwarded {
    /// Believes these. `is_plain`: somebody in front ends TLS.
    pub fn new(trusted: Networks, is_plain: bool) -> Self {
        Self {
            trusted,
            is_plain,
            warned: AtomicBool::new(false),
        }
    }

    /// The client behind a request. Whatever the header says, there is one: at worst who is connected.
    pub fn client(&self, peer: Peer, headers: &HeaderMap) -> Peer {
        let Peer::Socket(socket) = peer else {
            return peer;
        };
        if !self.trusted.contains(socket.ip()) {
            self.warn_once(socket, headers);
            return Peer::Socket(socket);
        }
        let lines = headers.get_all(X_FORWARDED_FOR).iter().rev();
        let entries = lines.flat_map(|line| line.as_bytes().rsplit(|&byte| byte == b','));
        let mut farthest = None;
        for (hop, entry) in entries.enumerate() {
            let Some(ip) = address(entry).filter(|_| hop < HOPS_MAX) else {
                return Peer::Socket(socket);
            };
            if !self.trusted.contains(ip) {
                return Peer::Forwarded(ip);
            }
            farthest = Some(ip);
        }
        // A client that is on the list itself, or a proxy that says nothing.
        farthest.map_or(Peer::Socket(socket), Peer::Forwarded)
    }

    /// Once, not for every request: strangers can send the header too.
    fn warn_once(&self, socket: SocketAddr, headers: &HeaderMap) {
        let suspicious = self.is_plain
            && (self.trusted.is_empty() || !address::is_public(socket.ip()))
            && headers.contains_key(X_FORWARDED_FOR);
        if suspicious && !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                peer = %socket,
                "a request came with X-Forwarded-For from {}, which is not in public.trusted_proxies: the header is not believed, so all clients behind that proxy look like one address",
                socket.ip()
            );
        }
    }
}

/// One entry: an address, maybe with a port, an IPv6 address maybe in brackets (RFC 7239 section 6 has the forms).
fn address(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry.get(..entry.len().min(ENTRY_MAX_BYTES))?).ok()?;
    let text = text.trim().trim_matches('"');
    let bare = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let ip: Option<IpAddr> = text.parse().ok().or_else(bare);
    ip.or_else(|| text.parse::<SocketAddr>().ok().map(|socket| socket.ip()))
        .map(|ip| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn forwarded() -> Forwarded {
        let trusted = ["10.0.0.0/24", "2001:db8:1::1", "127.0.0.1"];
        Forwarded::new(Networks::parse(&trusted).expect("networks"), true)
    }

    /// What comes of a header, of several lines, that a peer sends.
    fn seen(peer: &str, lines: &[&[u8]]) -> String {
        let mut headers = HeaderMap::new();
        for line in lines {
            let value = HeaderValue::from_bytes(line).expect("value");
            headers.append(X_FORWARDED_FOR, value);
        }
        let socket = SocketAddr::new(peer.parse().expect("ip"), 5);
        forwarded()
            .client(Peer::Socket(socket), &headers)
            .to_string()
    }

    #[test]
    fn the_rightmost_that_is_no_proxy_is_the_client() {
        for (line, client) in [
            ("203.0.113.7", "203.0.113.7"),
            ("1.1.1.1, 203.0.113.7", "203.0.113.7"),
            ("1.1.1.1, 203.0.113.7, 10.0.0.9", "203.0.113.7"),
            ("203.0.113.7,10.0.0.9 , 2001:db8:1::1", "203.0.113.7"),
            ("203.0.113.7:4711", "203.0.113.7"),
            ("[2001:db8::5]:443", "2001:db8::5"),
            ("\"[2001:db8::5]\"", "2001:db8::5"),
            ("2001:db8::5", "2001:db8::5"),
            ("::ffff:203.0.113.7", "203.0.113.7"),
            // All are trusted: the one that is farthest away.
            ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ] {
            assert_eq!(seen("10.0.0.1", &[line.as_bytes()]), client, "{line}");
        }
        let lines: [&[u8]; 2] = [b"1.1.1.1, 203.0.113.7", b"10.0.0.2"];
        assert_eq!(seen("10.0.0.1", &lines), "203.0.113.7");
        assert_eq!(seen("::ffff:10.0.0.1", &[b"203.0.113.7"]), "203.0.113.7");
    }

    #[test]
    fn only_a_trusted_peer_is_believed() {
        assert_eq!(seen("10.0.1.1", &[b"203.0.113.7"]), "10.0.1.1:5");
        assert_eq!(seen("198.51.100.1", &[b"10.0.0.1"]), "198.51.100.1:5");
        assert_eq!(seen("10.0.0.1", &[]), "10.0.0.1:5");
    }

    #[test]
    fn rubbish_left_of_the_client_changes_nothing_and_elsewhere_the_peer_counts() {
        let long = vec![b'x'; 60_000];
        let mut left = long.clone();
        left.extend_from_slice(b", 203.0.113.7");
        for line in [
            left.as_slice(),
            b"unknown, 203.0.113.7",
            b"\xff\xfe, 203.0.113.7",
            b",,,203.0.113.7",
        ] {
            assert_eq!(seen("10.0.0.1", &[line]), "203.0.113.7");
        }
        let many = [b"10.0.0.2".as_slice(); 17].join(&b","[..]);
        let hidden = [b"203.0.113.7".as_slice(), &many].join(&b","[..]);
        for line in [
            b"".as_slice(),
            b"unknown",
            b"203.0.113.7, unknown",
            b"203.0.113.7, ",
            b"203.0.113.7 10.0.0.2",
            b"10.0.0.300",
            b"\xff",
            &long,
            &many,
            &hidden,
        ] {
            assert_eq!(seen("10.0.0.1", &[line]), "10.0.0.1:5");
        }
    }

    #[test]
    fn an_unlisted_proxy_is_told_of_and_a_stranger_beside_a_listed_one_is_not() {
        let told = |trusted: &[&str], is_plain, peer: &str, header| {
            let trusted = Networks::parse(trusted).expect("networks");
            let forwarded = Forwarded::new(trusted, is_plain);
            let mut headers = HeaderMap::new();
            if header {
                headers.insert(X_FORWARDED_FOR, HeaderValue::from_static("203.0.113.7"));
            }
            let socket = SocketAddr::new(peer.parse().expect("ip"), 5);
            forwarded.client(Peer::Socket(socket), &headers);
            forwarded.warned.load(Ordering::Relaxed)
        };
        assert!(told(&[], true, "127.0.0.1", true));
        assert!(told(&[], true, "1.1.1.1", true));
        assert!(told(&["10.0.0.1"], true, "10.0.0.2", true));
        assert!(!told(&["10.0.0.1"], true, "1.1.1.1", true));
        assert!(!told(&["10.0.0.1"], true, "10.0.0.1", true));
        assert!(!told(&[], false, "1.1.1.1", true), "it ends TLS itself");
        assert!(!told(&[], true, "127.0.0.1", false));
    }
}
