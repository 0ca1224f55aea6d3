//! Which hosts and addresses the server may dial for a client.
//!
//! In: an IP address or a host name. Out: yes or no, nothing in between. The tables are the IANA special-purpose registries
//! (IPv4 and IPv6), because the standard library's `is_loopback()` and its kin leave out addresses that lead home
//! (0.0.0.0: imgproxy, CVE-2025-24354; NAT64 and 6to4: LightRAG, CVE-2026-85740).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Everything in IPv4 that is not global unicast, with Azure's host address, which looks public and is not.
const DENIED_V4: [([u8; 4], u32); 16] = [
    ([0, 0, 0, 0], 8),
    ([10, 0, 0, 0], 8),
    ([100, 64, 0, 0], 10),
    ([127, 0, 0, 0], 8),
    ([168, 63, 129, 16], 32),
    ([169, 254, 0, 0], 16),
    ([172, 16, 0, 0], 12),
    ([192, 0, 0, 0], 24),
    ([192, 0, 2, 0], 24),
    ([192, 88, 99, 0], 24),
    ([192, 168, 0, 0], 16),
    ([198, 18, 0, 0], 15),
    ([198, 51, 100, 0], 24),
    ([203, 0, 113, 0], 24),
    ([224, 0, 0, 0], 4),
    ([240, 0, 0, 0], 4),
];

/// The only allocated global unicast space of IPv6.
const GLOBAL_V6: ([u16; 8], u32) = ([0x2000, 0, 0, 0, 0, 0, 0, 0], 3);
/// Special purposes inside it: protocol assignments with Teredo, documentation, 6to4, documentation.
const DENIED_V6: [([u16; 8], u32); 4] = [
    ([0x2001, 0, 0, 0, 0, 0, 0, 0], 23),
    ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32),
    ([0x2002, 0, 0, 0, 0, 0, 0, 0], 16),
    ([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20),
];
/// Prefixes behind which the operating system or a NAT64 gateway dials the IPv4 address in the last 32 bits: that address
/// decides. The other embeddings (IPv4-compatible, local NAT64, 6to4, Teredo) lie outside what is allowed, whatever they hold.
const EMBEDDING_V6: [([u16; 8], u32); 2] = [
    ([0, 0, 0, 0, 0, 0xffff, 0, 0], 96),
    ([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96),
];

/// Where clouds, and nobody else, serve credentials and hosts' secrets: link-local IPv4 and IPv6, AWS, Google, Azure, Alibaba, Oracle.
/// Refused even where private networks are allowed.
const METADATA_V4: [([u8; 4], u32); 4] = [
    ([169, 254, 0, 0], 16),
    ([168, 63, 129, 16], 32),
    ([100, 100, 100, 200], 32),
    ([192, 0, 0, 192], 32),
];
/// The same in IPv6.
const METADATA_V6: [([u16; 8], u32); 3] = [
    ([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10),
    ([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0], 32),
    ([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128),
];

/// Names under which clouds serve credentials to whoever asks from inside.
const METADATA_HOSTS: [&str; 4] = [
    "metadata.google.internal",
    "metadata.goog",
    "metadata",
    "instance-data",
];

/// Whether an address is global unicast, that is, surely not of this machine, its network or its cloud.
pub(super) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

/// Whether an address is one a cloud answers with its secrets.
pub(super) fn is_metadata(address: IpAddr) -> bool {
    let v6 = match address {
        IpAddr::V4(v4) => return is_metadata_v4(v4),
        IpAddr::V6(v6) => v6,
    };
    if let Some(v4) = embedded(v6) {
        return is_metadata_v4(v4);
    }
    METADATA_V6.iter().any(|&net| is_within(v6, net))
}

fn is_metadata_v4(address: Ipv4Addr) -> bool {
    METADATA_V4.iter().any(|&net| is_within_v4(address, net))
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    !DENIED_V4.iter().any(|&net| is_within_v4(address, net))
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    if let Some(v4) = embedded(address) {
        return is_public_v4(v4);
    }
    is_within(address, GLOBAL_V6) && !DENIED_V6.iter().any(|&net| is_within(address, net))
}

/// The IPv4 address that is dialled instead of an IPv6 one.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let embeds = EMBEDDING_V6.iter().any(|&net| is_within(address, net));
    embeds.then(|| Ipv4Addr::from_bits(address.to_bits() as u32))
}

fn is_within_v4(address: Ipv4Addr, (network, prefix): ([u8; 4], u32)) -> bool {
    (address.to_bits() ^ u32::from_be_bytes(network)) >> (32 - prefix) == 0
}

fn is_within(address: Ipv6Addr, (network, prefix): ([u16; 8], u32)) -> bool {
    (address.to_bits() ^ Ipv6Addr::from(network).to_bits()) >> (128 - prefix) == 0
}

/// Whether a host name is one a cloud answers with its secrets.
pub(super) fn is_metadata_host(host: &str) -> bool {
    let host = without_root_dot(host);
    METADATA_HOSTS
        .iter()
        .any(|name| host.eq_ignore_ascii_case(name))
}

/// Whether a host name always means this machine.
///
/// # Source
/// RFC 6761, section 6.3.
pub(super) fn is_localhost(host: &str) -> bool {
    let host = without_root_dot(host).to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost")
}

/// Whether `host` is one of `domains`: exactly, or below the suffix of a `*.suffix`. No domains: every host is.
pub(super) fn is_allowed_host(host: &str, domains: &[String]) -> bool {
    let host = without_root_dot(host).to_ascii_lowercase();
    domains.is_empty()
        || domains.iter().any(|domain| {
            let domain = domain.trim().to_ascii_lowercase();
            match domain.strip_prefix("*.") {
                Some(suffix) => host
                    .strip_suffix(without_root_dot(suffix))
                    .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
                None => host == without_root_dot(&domain),
            }
        })
}

/// "example.com." and "example.com" are one name to the resolver, so they are one to the rules.
fn without_root_dot(host: &str) -> &str {
    host.trim_end_matches('.')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn public(text: &str) -> bool {
        is_public(text.parse().unwrap())
    }

    #[test]
    fn special_purpose_ipv4_is_not_public_and_its_neighbours_are() {
        for inside in [
            "0.0.0.0",
            "0.255.255.255",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.255",
            "168.63.129.16",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.255.255",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.7",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
        ] {
            assert!(!public(inside), "{inside}");
        }
        for outside in [
            "1.0.0.0",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "168.63.129.17",
            "169.253.255.255",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.0.3.0",
            "192.167.255.255",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "8.8.8.8",
        ] {
            assert!(public(outside), "{outside}");
        }
    }

    #[test]
    fn ipv6_is_public_only_in_allocated_global_unicast() {
        for inside in [
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "100::1",
            "2001::1",
            "2001:1ff::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:808:808::1",
            "3fff::1",
            "3fff:fff::1",
            "4000::1",
            "64:ff9b:1::808:808",
            "::8.8.8.8",
            "::127.0.0.1",
            "5f00::1",
        ] {
            assert!(!public(inside), "{inside}");
        }
        for outside in [
            "2000::1",
            "2001:200::1",
            "2001:4860:4860::8888",
            "2606:4700::1111",
            "2003::1",
            "3ffe::1",
        ] {
            assert!(public(outside), "{outside}");
        }
    }

    #[test]
    fn an_embedded_ipv4_address_decides() {
        for inside in [
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::127.0.0.1",
            "64:ff9b::10.1.2.3",
        ] {
            assert!(!public(inside), "{inside}");
        }
        assert!(public("::ffff:8.8.8.8") && public("64:ff9b::8.8.8.8"));
    }

    #[test]
    fn a_suffix_allows_what_lies_below_it_and_nothing_that_merely_ends_alike() {
        let domains = ["example.com".to_owned(), "*.Images.example".to_owned()];
        for allowed in [
            "example.com",
            "EXAMPLE.com.",
            "a.images.example",
            "b.a.images.example.",
        ] {
            assert!(is_allowed_host(allowed, &domains), "{allowed}");
        }
        for refused in [
            "www.example.com",
            "images.example",
            "evilimages.example",
            ".images.example",
            "example.com.evil.org",
            "",
        ] {
            assert!(!is_allowed_host(refused, &domains), "{refused}");
        }
        assert!(is_allowed_host("anything", &[]));
    }

    #[test]
    fn metadata_hosts_are_known_with_and_without_the_root_dot() {
        assert!(
            is_metadata_host("metadata.google.internal")
                && is_metadata_host("Metadata.Google.Internal.")
        );
        assert!(!is_metadata_host("metadata.example.com"));
    }

    #[test]
    fn metadata_addresses_are_known_in_every_form_and_private_networks_are_none() {
        let metadata = |text: &str| is_metadata(text.parse().unwrap());
        for inside in [
            "169.254.169.254",
            "169.254.170.2",
            "168.63.129.16",
            "100.100.100.200",
            "192.0.0.192",
            "::ffff:169.254.169.254",
            "64:ff9b::169.254.169.254",
            "fd00:ec2::254",
            "fd20:ce::254",
            "fe80::a9fe:a9fe",
        ] {
            assert!(metadata(inside) && !public(inside), "{inside}");
        }
        for outside in ["127.0.0.1", "10.0.0.1", "192.168.1.1", "fd00::1", "::1"] {
            assert!(!metadata(outside), "{outside}");
        }
    }

    #[test]
    fn localhost_is_known_and_what_merely_holds_the_word_is_not() {
        for local in ["localhost", "LOCALHOST.", "a.localhost", "b.a.localhost."] {
            assert!(is_localhost(local), "{local}");
        }
        for other in ["localhost.example.org", "mylocalhost", "local"] {
            assert!(!is_localhost(other), "{other}");
        }
    }

    proptest! {
        #[test]
        fn mapped_addresses_follow_the_address_they_hold(bits in any::<u32>()) {
            let v4 = Ipv4Addr::from_bits(bits);
            prop_assert_eq!(is_public(IpAddr::V6(v4.to_ipv6_mapped())), is_public(IpAddr::V4(v4)));
        }

        #[test]
        fn nothing_the_standard_library_calls_private_is_public(bits in any::<u32>()) {
            let v4 = Ipv4Addr::from_bits(bits);
            let special = v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_multicast() || v4.is_broadcast() || v4.is_unspecified() || v4.is_documentation();
            prop_assert!(!(special && is_public(IpAddr::V4(v4))));
        }
    }
}
