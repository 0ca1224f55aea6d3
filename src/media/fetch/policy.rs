//! Which URLs are fetched at all, by what they say: scheme, host, port, literal address, and where a redirect may lead.
//!
//! In: a parsed [`Url`], the very value that is dialled. Out: nothing, or a refusal in fixed words. Nothing is resolved or dialled here,
//! so a refusal tells a client no more than it wrote itself.

use std::net::IpAddr;

use url::{Host, Url};

use super::address::{is_allowed_host, is_localhost, is_metadata, is_metadata_host, is_public};
use crate::media::loader::{blocked, failed};
use crate::media::source::MAX_URL_BYTES;
use crate::media::{MediaError, MediaSettings};

pub(super) const NOT_PUBLIC: &str = "the URL leads to an address this server does not fetch from";
const REDIRECTS_ASTRAY: &str = "the URL redirects to where this server does not fetch from";

/// What the operator allows.
#[derive(Debug)]
pub(super) struct Policy {
    allowed_domains: Vec<String>,
    allowed_ports: Vec<u16>,
    allow_private_networks: bool,
    max_redirects: usize,
}

impl Policy {
    pub(super) fn new(settings: &MediaSettings) -> Self {
        Self {
            allowed_domains: settings
                .allowed_domains
                .iter()
                .map(|it| as_in_urls(it))
                .collect(),
            allowed_ports: settings.allowed_ports.clone(),
            allow_private_networks: settings.allow_private_networks,
            max_redirects: settings.max_redirects,
        }
    }

    /// Whether a URL may be fetched, by its text.
    ///
    /// # Errors
    /// [`MediaError::Blocked`].
    pub(super) fn check(&self, url: &Url) -> Result<(), MediaError> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(blocked("only http:// and https:// URLs are fetched"));
        }
        if url.as_str().len() > MAX_URL_BYTES {
            return Err(blocked("the URL is too long once it is percent-encoded"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(blocked("a media URL may not carry a user name or password"));
        }
        let host = url.host_str().unwrap_or_default();
        let refused = match url.host() {
            Some(Host::Ipv4(v4)) => !self.allows(IpAddr::V4(v4)),
            Some(Host::Ipv6(v6)) => !self.allows(IpAddr::V6(v6)),
            Some(Host::Domain(name)) => {
                is_metadata_host(name) || (is_localhost(name) && !self.allow_private_networks)
            }
            None => true,
        };
        if refused {
            return Err(blocked(NOT_PUBLIC));
        }
        if !is_allowed_host(host, &self.allowed_domains) {
            return Err(blocked(
                "the host of the URL is not one this server fetches from",
            ));
        }
        let port = url.port_or_known_default().unwrap_or_default();
        if !self.allowed_ports.contains(&port) {
            return Err(blocked(
                "the port of the URL is not one this server fetches from",
            ));
        }
        Ok(())
    }

    /// Whether an address may be dialled.
    pub(super) fn allows(&self, address: IpAddr) -> bool {
        !is_metadata(address) && (self.allow_private_networks || is_public(address))
    }

    /// Whether this machine's own addresses may be dialled.
    pub(super) fn allows_itself(&self) -> bool {
        self.allow_private_networks
    }

    /// Where a redirect leads, after `followed` others: under the whole rule, and never from https to http.
    ///
    /// # Errors
    /// [`MediaError::Blocked`]; [`MediaError::FetchFailed`] for a location that is none.
    pub(super) fn redirected(
        &self,
        from: &Url,
        location: Option<&[u8]>,
        followed: usize,
    ) -> Result<Url, MediaError> {
        if followed >= self.max_redirects {
            return Err(blocked(match self.max_redirects {
                0 => "the URL redirects, which is not followed: send the final URL",
                _ => "the URL redirects more often than this server follows",
            }));
        }
        // Longer ones are not even parsed.
        let location = location.filter(|location| location.len() <= MAX_URL_BYTES);
        let location = location.and_then(|location| std::str::from_utf8(location).ok());
        let next = location.and_then(|location| from.join(location).ok());
        let mut next = next.ok_or_else(|| failed("the URL redirects to what is no URL"))?;
        next.set_fragment(None);
        let downgrades = from.scheme() == "https" && next.scheme() != "https";
        if downgrades || self.check(&next).is_err() {
            return Err(blocked(REDIRECTS_ASTRAY));
        }
        Ok(next)
    }
}

/// A domain as the parser of URLs writes it: operators write names as people read them.
fn as_in_urls(domain: &str) -> String {
    let domain = domain.trim();
    let (below, name) = match domain.strip_prefix("*.") {
        Some(name) => ("*.", name),
        None => ("", domain),
    };
    let name = Host::parse(name).map_or_else(|_| name.to_owned(), |host| host.to_string());
    format!("{below}{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_are_compared_as_urls_write_them() {
        let domains = [
            "bücher.example",
            "*.Café.example",
            "日本.example.",
            "0x8.8.8.8",
        ];
        let policy = Policy::new(&MediaSettings {
            allowed_domains: domains.map(str::to_owned).to_vec(),
            ..MediaSettings::default()
        });
        let check = |url: &str| policy.check(&Url::parse(url).unwrap()).is_ok();
        for allowed in [
            "http://BÜCHER.example/",
            "http://xn--bcher-kva.example./",
            "http://a.café.example/",
            "http://日本。example/",
            "http://8.8.8.8/",
        ] {
            assert!(check(allowed), "{allowed}");
        }
        for refused in [
            "http://bucher.example/",
            "http://café.example/",
            "http://evil.bücher.example/",
            "http://bücher.example.evil.org/",
            "http://8.8.4.4/",
        ] {
            assert!(!check(refused), "{refused}");
        }
    }

    /// Ways to write an IPv4 address that one parser or another takes.
    fn spelled(address: u32, way: u8) -> String {
        let [a, b, c, d] = address.to_be_bytes();
        match way % 10 {
            0 => format!("{a}.{b}.{c}.{d}"),
            1 => address.to_string(),
            2 => format!("0x{address:x}"),
            3 => format!("0{address:o}"),
            4 => format!("0x{a:x}.0{b:o}.{}", u32::from(c) << 8 | u32::from(d)),
            5 => format!("{a}.{b}.{c}.{d}."),
            6 => format!("[::ffff:{a}.{b}.{c}.{d}]"),
            7 => format!("[64:ff9b::{a}.{b}.{c}.{d}]"),
            8 => format!("[2002:{a:02x}{b:02x}:{c:02x}{d:02x}::1]"),
            _ => format!("{a}%2e{b}\u{3002}{c}\u{ff0e}{d}"),
        }
    }

    /// What the standard library knows of addresses that are not for everyone: less than our own table, and made by others.
    fn is_obviously_private(v4: std::net::Ipv4Addr) -> bool {
        v4.is_private()
            || v4.is_loopback()
            || v4.is_link_local()
            || v4.is_unspecified()
            || v4.is_broadcast()
            || v4.is_multicast()
            || v4.is_documentation()
    }

    /// Fuzz target: URLs, with addresses in every spelling, against the policy.
    #[test]
    fn no_spelling_of_a_url_leads_to_a_private_address() {
        let policy = Policy::new(&MediaSettings::default());
        bolero::check!()
            .with_type::<(u32, u8, String, Option<u16>, String)>()
            .for_each(|(address, way, user, port, rest)| {
                let host = match way & 0x80 {
                    0 => spelled(*address, *way),
                    _ => user.clone(),
                };
                let at = if way & 0x40 == 0 { "" } else { "x@" };
                let port = port.map(|port| format!(":{port}")).unwrap_or_default();
                for text in [
                    format!("http://{at}{host}{port}/{rest}"),
                    format!("https://{host}\\{user}/"),
                    format!("http://{user}#@{host}/"),
                ] {
                    let Ok(url) = Url::parse(&text) else {
                        continue;
                    };
                    if policy.check(&url).is_err() {
                        continue;
                    }
                    assert!(matches!(url.port_or_known_default(), Some(80 | 443)));
                    assert!(url.username().is_empty() && url.password().is_none());
                    match url.host() {
                        Some(Host::Ipv4(v4)) => assert!(!is_obviously_private(v4), "{text}"),
                        Some(Host::Ipv6(v6)) => match v6.segments() {
                            [0, 0, 0, 0, 0, 0 | 0xffff, a, b]
                            | [0x64, 0xff9b, 0, 0, 0, 0, a, b]
                            | [0x2002, a, b, ..] => {
                                let v4 = (u32::from(a) << 16 | u32::from(b)).into();
                                assert!(!is_obviously_private(v4), "{text}");
                            }
                            [first, ..] => assert_eq!(first & 0xe000, 0x2000, "{text}"),
                        },
                        Some(Host::Domain(name)) => {
                            assert!(name.parse::<IpAddr>().is_err(), "{text}")
                        }
                        None => panic!("{text} has no host"),
                    }
                    // What is dialled is what was checked: nobody reads it otherwise.
                    assert_eq!(Url::parse(url.as_str()).as_ref(), Ok(&url));
                }
            });
    }
}
