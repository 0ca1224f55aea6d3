//! Bytes from http(s) URLs that strangers chose: nothing else in this program builds an HTTP client for what a request names.
//!
//! In: a parsed [`Url`]. Out: the body, or a refusal in fixed words. `policy` judges what the URL says, `resolver` finds its addresses, `gate`
//! lets only so many fetches go on, `dial` connects and asks, `trust` says whose certificates count, `kept` holds bodies that were
//! fetched before.
//!
//! # The address that is checked is the address that is dialled
//!
//! A name is resolved once a fetch and refused when any of its addresses is; the checked ones are dialled as they are, so a second answer of the
//! name server (DNS rebinding) is never asked for. Literal addresses go the same way. Connections are never shared or kept. Each hop of a redirect
//! goes through all of it again.
//!
//! # What a client learns
//!
//! What it wrote itself: a scheme, port, host or literal address that the policy refuses is `media_url_blocked`, with the rule. Everything that
//! depends on where this server stands is one error with one text: that a name does not exist here, that it leads to an address that is not
//! public, that nothing listens, that TLS fails, that nothing comes in time, that the status is not 200. A name that leads to a private address fails as soon as it is
//! resolved, as one that does not exist does, so time does not tell them apart either. How long a public host takes can be seen; a client could
//! measure that itself. Once a public host has answered with 200, its own faults are named: too large, broken off, encoded.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::Response;
use hyper::body::Incoming;
use hyper::header::{CONTENT_ENCODING, CONTENT_LENGTH, HeaderMap, LOCATION};
use tokio::time::{Instant, timeout};
use tokio_rustls::rustls::ClientConfig;
use url::Url;

use self::dial::{Connection, connect, encrypt, is_own};
use self::gate::{Gate, Place};
use self::kept::KeptBodies;
use self::policy::Policy;
use self::resolver::{Resolver, in_turn};
use super::error::UNREACHABLE;
use super::loader::{failed, within};
use super::{MediaError, MediaSettings};

mod address;
mod dial;
mod gate;
mod kept;
mod policy;
mod resolver;
mod trust;

const BROKEN_OFF: &str = "the transfer from the URL broke off";

/// How long each step may take.
#[derive(Debug, Clone, Copy)]
struct Times {
    /// Resolving, connecting and encrypting.
    connect: Duration,
    /// From then to the head of the answer.
    first_byte: Duration,
    /// All hops and the body, without waiting for a place.
    whole: Duration,
}

/// The HTTP client with its policy. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Fetcher(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    policy: Policy,
    resolver: Resolver,
    gate: Gate,
    tls: Arc<ClientConfig>,
    kept: Option<KeptBodies>,
    times: Times,
    max_bytes: usize,
}

/// A body, and whether it was here already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fetched {
    pub(super) body: Bytes,
    pub(super) was_kept: bool,
}

/// What one request came to.
enum Hop {
    Body(Fetched),
    Redirect(Url),
}

impl Fetcher {
    /// Builds the client.
    ///
    /// # Errors
    /// [`MediaError::Internal`] when TLS cannot be set up, as on a machine without certificate authorities.
    pub(super) fn new(settings: &MediaSettings) -> Result<Self, MediaError> {
        let tls = trust::tls_config(settings.tls_roots).map_err(MediaError::Internal)?;
        Ok(Self::with_tls(settings, tls))
    }

    fn with_tls(settings: &MediaSettings, tls: ClientConfig) -> Self {
        Self(Arc::new(Shared {
            policy: Policy::new(settings),
            resolver: Resolver::new(),
            gate: Gate::new(settings.max_fetches, settings.max_fetches_per_host),
            tls: Arc::new(tls),
            kept: KeptBodies::new(settings.max_kept_bytes),
            times: Times {
                connect: Duration::from_secs(2),
                first_byte: Duration::from_secs(3),
                whole: settings.fetch_timeout,
            },
            max_bytes: settings.max_bytes,
        }))
    }

    /// Whether a URL would be fetched, by what it says.
    pub(super) fn permits(&self, url: &Url) -> Result<(), MediaError> {
        self.0.policy.check(url)
    }

    /// The body a URL answers with. What is kept of one owner's fetches serves no other's.
    pub(super) async fn fetch(&self, url: &Url, owner: u128) -> Result<Fetched, MediaError> {
        self.0.policy.check(url)?;
        let mut url = url.clone();
        let mut left = Budget(self.0.times.whole);
        for followed in 0.. {
            match self.0.hop(&url, (owner, followed), &mut left).await? {
                Hop::Body(fetched) => return Ok(fetched),
                Hop::Redirect(next) => url = next,
            }
        }
        // Redirects end long before numbers do.
        Err(failed(UNREACHABLE))
    }
}

/// Time that is left for some steps together.
struct Budget(Duration);

impl Budget {
    /// Does one step, which may take `most` of it; `None` when it took longer.
    async fn spend<T>(&mut self, most: Duration, step: impl Future<Output = T>) -> Option<T> {
        let began = Instant::now();
        let done = timeout(most.min(self.0), step).await;
        self.0 = self.0.saturating_sub(began.elapsed());
        done.ok()
    }
}

impl Shared {
    /// Resolves, connects, asks. `left` is what is left of the whole time.
    async fn hop(
        &self,
        url: &Url,
        (owner, followed): (u128, usize),
        left: &mut Budget,
    ) -> Result<Hop, MediaError> {
        let allowed = self.times.connect.min(left.0);
        let mut connecting = Budget(allowed);
        let resolved = connecting.spend(allowed, self.resolver.resolve(url)).await;
        let resolved = resolved.and_then(Result::ok);
        let addresses = self.checked(url, &resolved.unwrap_or_default())?;
        let reached = self.reach(url, &addresses, &mut connecting).await;
        let (connection, _place) = reached.ok_or_else(|| failed(UNREACHABLE))?;
        left.0 = left.0.saturating_sub(allowed.saturating_sub(connecting.0));
        let asked = self.ask(url, (owner, followed), connection);
        let asked = left.spend(left.0, asked).await;
        asked.ok_or_else(|| failed(UNREACHABLE))?
    }

    /// Connects to the first address that answers, once there is a place for it: waiting for others is not the URL's fault, and the
    /// request's own deadline bounds it.
    async fn reach(
        &self,
        url: &Url,
        addresses: &[SocketAddr],
        connecting: &mut Budget,
    ) -> Option<(Connection, Place)> {
        for (tried, address) in addresses.iter().enumerate() {
            let place = self.gate.enter(address.ip()).await;
            // What is left is shared among those that are left, so that one that says nothing does not use up all of it.
            let others = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
            let share = connecting.0 / others;
            if let Some(Ok(stream)) = connecting.spend(share, connect(*address)).await {
                let encrypting = encrypt(url, stream, &self.tls);
                let encrypted = connecting.spend(connecting.0, encrypting).await;
                return Some((encrypted?.ok()?, place));
            }
        }
        None
    }

    /// The addresses to dial, if every address of the host may be.
    fn checked(&self, url: &Url, all: &[SocketAddr]) -> Result<Vec<SocketAddr>, MediaError> {
        if all.is_empty() {
            return Err(failed(UNREACHABLE));
        }
        let dialled = in_turn(all);
        let foreign = all.iter().all(|address| self.policy.allows(address.ip()));
        let at_home = !self.policy.allows_itself() && dialled.iter().any(|it| is_own(*it));
        if !foreign || at_home {
            tracing::debug!(
                host = url.host_str(),
                "a URL's host has an address that is refused"
            );
            return Err(MediaError::AddressRefused);
        }
        Ok(dialled)
    }

    async fn ask(
        &self,
        url: &Url,
        (owner, followed): (u128, usize),
        connection: Connection,
    ) -> Result<Hop, MediaError> {
        let kept = self.kept.as_ref().and_then(|kept| kept.get(owner, url));
        let asking = connection.get(url, kept.as_ref().map(|kept| &kept.tag));
        let answer = timeout(self.times.first_byte, asking).await;
        let answer = answer.map_err(|_| failed(UNREACHABLE))?;
        // Its other half reads the connection, until this returns.
        let exchange = answer.map_err(|_| failed(UNREACHABLE))?;
        let response = exchange.response;
        match (response.status().as_u16(), kept) {
            (200, _) => {}
            (304, Some(kept)) => {
                let (body, was_kept) = (kept.body, true);
                return Ok(Hop::Body(Fetched { body, was_kept }));
            }
            (301 | 302 | 303 | 307 | 308, _) => {
                let location = response.headers().get(LOCATION);
                let location = location.map(|location| location.as_bytes());
                let next = self.policy.redirected(url, location, followed)?;
                return Ok(Hop::Redirect(next));
            }
            // The status itself is not told: it would let clients explore what only this server can reach.
            _ => return Err(failed(UNREACHABLE)),
        }
        check_head(response.headers(), self.max_bytes)?;
        let headers = response.headers().clone();
        let body = read_body(response, self.max_bytes).await?;
        if let Some(kept) = &self.kept {
            kept.insert(owner, url, &headers, &body);
        }
        let was_kept = false;
        Ok(Hop::Body(Fetched { body, was_kept }))
    }
}

fn check_head(headers: &HeaderMap, max_bytes: usize) -> Result<(), MediaError> {
    let encodings = headers.get_all(CONTENT_ENCODING);
    let is_identity = |value: &[u8]| value.trim_ascii().eq_ignore_ascii_case(b"identity");
    if !encodings.iter().all(|value| is_identity(value.as_bytes())) {
        return Err(failed(
            "the URL answered with a content encoding, which was not asked for",
        ));
    }
    let announced = headers.get(CONTENT_LENGTH);
    let announced = announced.and_then(|value| value.to_str().ok()?.parse().ok());
    within(announced.unwrap_or(0), max_bytes)
}

async fn read_body(response: Response<Incoming>, max_bytes: usize) -> Result<Bytes, MediaError> {
    let mut incoming = response.into_body();
    let mut body = BytesMut::new();
    while let Some(frame) = incoming.frame().await {
        let frame = frame.map_err(|_| failed(BROKEN_OFF))?;
        // Trailers say nothing that is used.
        let Ok(data) = frame.into_data() else {
            continue;
        };
        within((body.len() + data.len()) as u64, max_bytes)?;
        body.extend_from_slice(&data);
    }
    Ok(body.freeze())
}

#[cfg(test)]
mod tests;
