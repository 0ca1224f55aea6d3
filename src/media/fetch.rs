//! Bytes from http(s) URLs that strangers chose.
//!
//! In: a parsed [`Url`]. Out: the body, or a refusal in fixed words. The rules: only http and https, only the allowed ports and
//! hosts, only public addresses, no redirects, no proxy, no cookies, no content encoding, a cap on bytes and on time.
//!
//! The address that is checked is the address that is dialled: names go through our own resolver, which refuses a name when any
//! of its addresses is refused and hands the checked ones to the connector, so a second answer of the name server (DNS
//! rebinding) is never asked for. Literal addresses do not reach a resolver (hyper-util dials them at once), so they are checked
//! in the URL; the peer is checked once more when connected.

use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, HeaderMap, HeaderValue,
};
use reqwest::{Client, Response, redirect};
use url::{Host, Url};

use super::address::{is_allowed_host, is_metadata_host, is_public};
use super::loader::{blocked, failed, within};
use super::{MediaError, MediaSettings};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Connecting, and then three seconds for the first byte.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

const NOT_PUBLIC: &str = "the URL leads to an address this server does not fetch from";
const UNREACHABLE: &str = "the URL could not be fetched";
const BROKEN_OFF: &str = "the transfer from the URL broke off";

/// The HTTP client with its policy. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Fetcher {
    client: Client,
    policy: Arc<Policy>,
}

#[derive(Debug)]
struct Policy {
    allowed_domains: Vec<String>,
    allowed_ports: Vec<u16>,
    allow_private_networks: bool,
    timeout: Duration,
    max_bytes: usize,
}

impl Fetcher {
    /// Builds the client.
    ///
    /// # Errors
    /// [`MediaError::Internal`] when TLS cannot be set up, as on a machine without certificate authorities.
    pub(super) fn new(settings: &MediaSettings) -> Result<Self, MediaError> {
        let mut headers = HeaderMap::new();
        headers.insert(
            ACCEPT,
            HeaderValue::from_static("image/*, video/*;q=0.9, */*;q=0.1"),
        );
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let client = Client::builder()
            .user_agent(concat!("manifold/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            .no_proxy()
            .redirect(redirect::Policy::none())
            .referer(false)
            .connect_timeout(CONNECT_TIMEOUT)
            // A connection is never reused, so that each fetch is resolved and checked anew.
            .pool_max_idle_per_host(0)
            .dns_resolver(CheckedResolver {
                allow_private_networks: settings.allow_private_networks,
            })
            .build()
            .map_err(|error| MediaError::Internal(std::io::Error::other(error)))?;
        let policy = Policy {
            allowed_domains: settings.allowed_domains.clone(),
            allowed_ports: settings.allowed_ports.clone(),
            allow_private_networks: settings.allow_private_networks,
            timeout: settings.fetch_timeout,
            max_bytes: settings.max_bytes,
        };
        Ok(Self {
            client,
            policy: Arc::new(policy),
        })
    }

    /// The body a URL answers with.
    pub(super) async fn fetch(&self, url: &Url) -> Result<Bytes, MediaError> {
        self.policy.check_url(url)?;
        match tokio::time::timeout(self.policy.timeout, self.transfer(url)).await {
            Ok(result) => result,
            Err(_) => Err(failed("fetching the URL took too long")),
        }
    }

    async fn transfer(&self, url: &Url) -> Result<Bytes, MediaError> {
        let request = self.client.get(url.clone()).send();
        let response = match tokio::time::timeout(RESPONSE_TIMEOUT, request).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) if was_refused(&error) => return Err(blocked(NOT_PUBLIC)),
            Ok(Err(_)) => return Err(failed(UNREACHABLE)),
            Err(_) => return Err(failed("the URL did not answer in time")),
        };
        self.policy.check_response(&response)?;
        read_body(response, self.policy.max_bytes).await
    }
}

impl Policy {
    fn check_url(&self, url: &Url) -> Result<(), MediaError> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(blocked("only http:// and https:// URLs are fetched"));
        }
        let host = url.host_str().unwrap_or_default();
        if is_metadata_host(host) {
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
        let literal = match url.host() {
            Some(Host::Ipv4(v4)) => Some(IpAddr::V4(v4)),
            Some(Host::Ipv6(v6)) => Some(IpAddr::V6(v6)),
            _ => None,
        };
        match literal {
            Some(address) if !self.allows(address) => Err(blocked(NOT_PUBLIC)),
            _ => Ok(()),
        }
    }

    fn allows(&self, address: IpAddr) -> bool {
        self.allow_private_networks || is_public(address)
    }

    fn check_response(&self, response: &Response) -> Result<(), MediaError> {
        let peer = response.remote_addr().map(|peer| peer.ip());
        if !peer.is_some_and(|address| self.allows(address)) {
            return Err(blocked(NOT_PUBLIC));
        }
        if response.status().is_redirection() {
            return Err(blocked(
                "the URL redirects, which is not followed: send the final URL",
            ));
        }
        // The status itself is not told: it would let clients explore what only this server can reach.
        if response.status().as_u16() != 200 {
            return Err(failed(UNREACHABLE));
        }
        let encoding = response.headers().get(CONTENT_ENCODING);
        if encoding.is_some_and(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity")) {
            return Err(failed(
                "the URL answered with a content encoding, which was not asked for",
            ));
        }
        let announced = response
            .headers()
            .get(CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse().ok());
        within(announced.unwrap_or(0), self.max_bytes)
    }
}

async fn read_body(mut response: Response, max_bytes: usize) -> Result<Bytes, MediaError> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|_| failed(BROKEN_OFF))? {
        within((body.len() + chunk.len()) as u64, max_bytes)?;
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// Resolves a name once and refuses it when any of its addresses is refused.
struct CheckedResolver {
    allow_private_networks: bool,
}

/// Said by the resolver, found again in the client's error.
#[derive(Debug, thiserror::Error)]
#[error("an address of the host is not public")]
struct AddressRefused;

impl Resolve for CheckedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let allow_private_networks = self.allow_private_networks;
        Box::pin(async move {
            let addresses: Vec<SocketAddr> =
                tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let checked = checked_addresses(addresses, allow_private_networks)?;
            Ok(Box::new(checked.into_iter()) as Addrs)
        })
    }
}

fn checked_addresses(
    addresses: Vec<SocketAddr>,
    allow_private_networks: bool,
) -> Result<Vec<SocketAddr>, AddressRefused> {
    if allow_private_networks || addresses.iter().all(|address| is_public(address.ip())) {
        Ok(addresses)
    } else {
        Err(AddressRefused)
    }
}

fn was_refused(error: &reqwest::Error) -> bool {
    let mut source = error.source();
    while let Some(error) = source {
        if error.is::<AddressRefused>() {
            return true;
        }
        source = error.source();
    }
    false
}

#[cfg(test)]
mod tests;
