//! From a URL's host to the addresses that are dialled. In: a [`Url`]. Out: all addresses the system knows for it, unchecked.
//!
//! The system's own resolver is asked, once for each fetch, so names mean what they mean to every other program here. It blocks
//! a thread and cannot be stopped, so only so many of its questions are open at a time, and one that nobody waits for any more still counts.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use tokio::sync::Semaphore;
use url::{Host, Url};

/// Questions to the system's resolver at a time.
const MAX_QUESTIONS: usize = 32;
/// Addresses of one name that are dialled in turn, at most.
const MAX_DIALLED: usize = 4;

/// Asks the system for addresses.
#[derive(Debug, Clone)]
pub(super) struct Resolver {
    questions: Arc<Semaphore>,
}

impl Resolver {
    pub(super) fn new() -> Self {
        Self {
            questions: Arc::new(Semaphore::new(MAX_QUESTIONS)),
        }
    }

    /// Every address of the URL's host, with the URL's port.
    pub(super) async fn resolve(&self, url: &Url) -> io::Result<Vec<SocketAddr>> {
        let port = url.port_or_known_default().unwrap_or_default();
        let name = match url.host() {
            Some(Host::Ipv4(v4)) => return Ok(vec![SocketAddr::new(IpAddr::V4(v4), port)]),
            Some(Host::Ipv6(v6)) => return Ok(vec![SocketAddr::new(IpAddr::V6(v6), port)]),
            Some(Host::Domain(name)) => name.to_owned(),
            None => return Err(io::ErrorKind::InvalidInput.into()),
        };
        let question = self.questions.clone().acquire_owned().await;
        let question = question.map_err(io::Error::other)?;
        let asking = tokio::task::spawn_blocking(move || {
            let _question = question;
            (name.as_str(), port)
                .to_socket_addrs()
                .map(Iterator::collect)
        });
        asking.await.map_err(io::Error::other)?
    }
}

/// The few addresses to dial, in order: both families in turn, for one of them may lead nowhere from here.
pub(super) fn in_turn(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let (mut first, mut second): (Vec<SocketAddr>, Vec<SocketAddr>) = addresses
        .iter()
        .copied()
        .partition(|address| Some(address.is_ipv6()) == addresses.first().map(SocketAddr::is_ipv6));
    first.dedup();
    second.dedup();
    let mut turns = Vec::with_capacity(addresses.len());
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    loop {
        let (one, other) = (first.next(), second.next());
        if one.is_none() && other.is_none() {
            break;
        }
        turns.extend(one);
        turns.extend(other);
    }
    turns.truncate(MAX_DIALLED);
    turns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_have_their_turn_and_no_name_has_many() {
        let addresses = |texts: &[&str]| -> Vec<SocketAddr> {
            let of = |text: &&str| SocketAddr::new(text.parse().unwrap(), 80);
            texts.iter().map(of).collect()
        };
        let many = addresses(&[
            "2000::1", "2000::1", "2000::2", "2000::3", "2000::4", "8.8.8.8",
        ]);
        let dialled = addresses(&["2000::1", "8.8.8.8", "2000::2", "2000::3"]);
        assert_eq!(in_turn(&many), dialled);
        assert!(in_turn(&[]).is_empty());
    }
}
