//! Which addresses a stranger may make us dial.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(s0: u16, s1: u16, s2: u16, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(s0, s1, s2, 0, 0, 0, 0, 0), prefix)
}

/// Not globally reachable, by the IANA special-purpose registries (RFC 6890), and multicast.
const BLOCKED_V4: [Ipv4Net; 16] = [
    v4(0, 0, 0, 0, 8),
    v4(10, 0, 0, 0, 8),
    v4(100, 64, 0, 0, 10),
    v4(127, 0, 0, 0, 8),
    // Azure's own services for its machines; special to nobody but them.
    v4(168, 63, 129, 16, 32),
    // With the metadata service of most clouds.
    v4(169, 254, 0, 0, 16),
    v4(172, 16, 0, 0, 12),
    v4(192, 0, 0, 0, 24),
    v4(192, 0, 2, 0, 24),
    v4(192, 88, 99, 0, 24),
    v4(192, 168, 0, 0, 16),
    v4(198, 18, 0, 0, 15),
    v4(198, 51, 100, 0, 24),
    v4(203, 0, 113, 0, 24),
    v4(224, 0, 0, 0, 4),
    v4(240, 0, 0, 0, 4),
];

/// Only `2000::/3` is handed out; these parts of it are special all the same.
const BLOCKED_V6: [Ipv6Net; 4] = [
    v6(0x2001, 0, 0, 23),
    v6(0x2001, 0xdb8, 0, 32),
    v6(0x3fff, 0, 0, 20),
    v6(0x2620, 0x4f, 0x8000, 48),
];

/// Whether an address belongs to the public Internet. IPv6 forms that carry an IPv4 address (mapped,
/// NAT64, 6to4, ISATAP) are judged by that address.
pub fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    !BLOCKED_V4.iter().any(|net| net.contains(&ip))
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    if let Some(inner) = ip.to_ipv4_mapped() {
        return is_public_v4(inner);
    }
    let [s0, s1, s2, s3, s4, s5, s6, s7] = ip.segments();
    let inner = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    match (s0, s1) {
        (0x64, 0xff9b) if [s2, s3, s4, s5] == [0; 4] => is_public_v4(inner(s6, s7)),
        (0x2002, _) => is_public_v4(inner(s1, s2)),
        // ISATAP (RFC 5214 section 6.1): any prefix, and the address behind 0:5efe.
        _ if s4 & 0xfdff == 0 && s5 == 0x5efe && !is_public_v4(inner(s6, s7)) => false,
        _ => s0 & 0xe000 == 0x2000 && !BLOCKED_V6.iter().any(|net| net.contains(&ip)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_public_internet_is_public() {
        for public in [
            "1.1.1.1",
            "104.192.136.1",
            "2606:4700::1",
            "64:ff9b::101:101",
            "::ffff:1.1.1.1",
            "2002:101:101::1",
            "2606:4700::5efe:101:101",
            "168.63.129.15",
        ] {
            assert!(is_public(public.parse().expect("ip")), "{public}");
        }
        for private in [
            // Unspecified, loopback, private, shared, link-local, broadcast and reserved.
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.255.255.254",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "100.127.255.255",
            "169.254.1.1",
            "240.0.0.1",
            "255.255.255.255",
            // Protocol assignments, documentation, benchmarking, 6to4 relays, multicast.
            "192.0.0.8",
            "192.0.2.1",
            "198.51.100.1",
            "203.0.113.1",
            "198.19.0.1",
            "192.88.99.1",
            "224.0.0.1",
            "239.255.255.250",
            // Metadata and platform services: AWS, GCP, Azure; Alibaba; Oracle; Azure; AWS over IPv6.
            "169.254.169.254",
            "100.100.100.200",
            "192.0.0.192",
            "168.63.129.16",
            "fd00:ec2::254",
            // IPv6's own.
            "::",
            "::1",
            "fe80::1",
            "fec0::1",
            "fc00::1",
            "fd00::1",
            "ff02::1",
            "ff0e::1",
            "100::1",
            "2001:db8::1",
            "3fff::1",
            "5f00::1",
            "2001:2::1",
            "2001:20::1",
            // Forms with an IPv4 address in them: mapped, compatible, translated, NAT64 (well-known and local), 6to4,
            // ISATAP, Teredo.
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:7f00:1",
            "::127.0.0.1",
            "::ffff:0:127.0.0.1",
            "64:ff9b::a00:1",
            "64:ff9b::127.0.0.1",
            "64:ff9b:1::a00:1",
            "64:ff9b:1::101:101",
            "2002:a00:1::",
            "2002:7f00:1::1",
            "2606:4700::5efe:10.0.0.1",
            "2606:4700::200:5efe:127.0.0.1",
            "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        ] {
            assert!(!is_public(private.parse().expect("ip")), "{private}");
        }
    }
}
