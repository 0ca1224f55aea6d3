//! How many fetches go on at a time, all together and to one host. In: the address that will be dialled. Out: a place, in turn.
//!
//! A host is what is dialled, not what it is called: names cost nothing, so a limit by name would be none. In IPv6 it is the network of 64 bits
//! that one customer has at least.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Counts fetches.
#[derive(Debug, Clone)]
pub(super) struct Gate {
    all: Arc<Semaphore>,
    per_host: usize,
    hosts: Arc<Mutex<HashMap<IpAddr, Arc<Semaphore>>>>,
}

/// A fetch that goes on, or waits for its host. Forgets the host when it was its last.
#[derive(Debug)]
struct AtHost {
    gate: Gate,
    host: IpAddr,
    places: Option<Arc<Semaphore>>,
    permit: Option<OwnedSemaphorePermit>,
}

/// A fetch that goes on, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    _at_host: AtHost,
    _all: Option<OwnedSemaphorePermit>,
}

impl Gate {
    pub(super) fn new(all: usize, per_host: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(all)),
            per_host,
            hosts: Arc::default(),
        }
    }

    /// Waits until the fetch may go on. Whoever waits for a busy host keeps no place from others.
    pub(super) async fn enter(&self, address: IpAddr) -> Place {
        let host = network(address);
        let places = Arc::clone(
            self.lock()
                .entry(host)
                .or_insert_with(|| Arc::new(Semaphore::new(self.per_host))),
        );
        let mut at_host = AtHost {
            gate: self.clone(),
            host,
            places: Some(Arc::clone(&places)),
            permit: None,
        };
        // Neither is ever closed.
        at_host.permit = places.acquire_owned().await.ok();
        Place {
            _at_host: at_host,
            _all: self.all.clone().acquire_owned().await.ok(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Arc<Semaphore>>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for AtHost {
    fn drop(&mut self) {
        self.permit = None;
        self.places = None;
        let mut hosts = self.gate.lock();
        // Others are counted only under this lock.
        if hosts
            .get(&self.host)
            .is_some_and(|it| Arc::strong_count(it) == 1)
        {
            hosts.remove(&self.host);
        }
    }
}

fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    const SOON: Duration = Duration::from_millis(20);

    fn host(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn a_busy_host_waits_and_keeps_no_place_from_others() {
        let gate = Gate::new(3, 2);
        let first = gate.enter(host("8.8.8.8")).await;
        let _second = gate.enter(host("::ffff:8.8.8.8")).await;
        assert!(timeout(SOON, gate.enter(host("8.8.8.8"))).await.is_err());
        let other = gate.enter(host("9.9.9.9")).await;
        assert!(timeout(SOON, gate.enter(host("1.1.1.1"))).await.is_err());
        drop(other);
        drop(first);
        assert!(timeout(SOON, gate.enter(host("8.8.8.8"))).await.is_ok());
    }

    #[tokio::test]
    async fn one_network_of_ipv6_is_one_host() {
        let gate = Gate::new(9, 1);
        let _one = gate.enter(host("2606:4700::1")).await;
        assert!(
            timeout(SOON, gate.enter(host("2606:4700::2")))
                .await
                .is_err()
        );
        assert!(
            timeout(SOON, gate.enter(host("2606:4700:0:1::2")))
                .await
                .is_ok()
        );
    }

    #[tokio::test]
    async fn hosts_are_forgotten_when_their_last_fetch_ends_or_is_given_up() {
        let gate = Gate::new(9, 1);
        let one = gate.enter(host("8.8.8.8")).await;
        assert!(timeout(SOON, gate.enter(host("8.8.8.8"))).await.is_err());
        assert_eq!(gate.lock().len(), 1);
        drop(one);
        assert_eq!(gate.lock().len(), 0);
        let busy = Gate::new(1, 1);
        let one = busy.enter(host("8.8.8.8")).await;
        assert!(timeout(SOON, busy.enter(host("9.9.9.9"))).await.is_err());
        drop(one);
        assert_eq!(busy.lock().len(), 0);
    }
}
