//! From a URL's host to the addresses that are dialled. In: a [`Url`]. Out: all addresses the system knows for it, unchecked.
//!
//! The system's own resolver is asked, once for each fetch, so names mean what they mean to every other program here. It blocks
//! a thread and cannot be stopped, so only so many of its questions are open at a time, and one that nobody waits for any more still counts.
//!
//! # Names that never answer
//!
//! Whoever owns a domain decides how long its names take, and can make up as many as he likes. So the names of one domain have a small share
//! of the questions, and a question that is late moves out of the way of others, as long as there is room for late ones. Honest
//! names answer within a tenth of a second and meet neither bound. Where so many domains are silent that all of this is taken, domains
//! that answered in time before still have places of their own; ones that are new here wait.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use quick_cache::sync::Cache;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::timeout;
use url::{Host, Url};

/// Questions to the system's resolver at a time that are not late.
const MAX_QUESTIONS: usize = 32;
/// Questions about names of one domain at a time, late ones included.
const MAX_OF_A_DOMAIN: usize = 4;
/// Late questions at a time; beyond these they count as others do.
const MAX_LATE: usize = 64;
/// Questions at a time about domains that answered in time before, besides these.
const MAX_PROMPT: usize = 16;
/// Domains of which it is remembered that they answered in time.
const REMEMBERED: usize = 4096;
/// When a question is late.
const LATE: Duration = Duration::from_millis(500);
/// Addresses of one name that are dialled in turn, at most.
const MAX_DIALLED: usize = 4;

type Answer = io::Result<Vec<SocketAddr>>;
type Lookup = dyn Fn(&str, u16) -> Answer + Send + Sync;

/// Asks the system for addresses.
#[derive(Clone)]
pub(super) struct Resolver {
    lookup: Arc<Lookup>,
    questions: Arc<Semaphore>,
    late: Arc<Semaphore>,
    for_prompt: Arc<Semaphore>,
    prompt: Arc<Cache<Box<str>, ()>>,
    domains: Arc<Mutex<HashMap<String, Weak<Semaphore>>>>,
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}

impl Resolver {
    pub(super) fn new() -> Self {
        Self::asking(|name, port| (name, port).to_socket_addrs().map(Iterator::collect))
    }

    fn asking(lookup: impl Fn(&str, u16) -> Answer + Send + Sync + 'static) -> Self {
        Self {
            lookup: Arc::new(lookup),
            questions: Arc::new(Semaphore::new(MAX_QUESTIONS)),
            late: Arc::new(Semaphore::new(MAX_LATE)),
            for_prompt: Arc::new(Semaphore::new(MAX_PROMPT)),
            prompt: Arc::new(Cache::new(REMEMBERED)),
            domains: Arc::default(),
        }
    }

    /// Every address of the URL's host, with the URL's port.
    pub(super) async fn resolve(&self, url: &Url) -> Answer {
        let port = url.port_or_known_default().unwrap_or_default();
        let name = match url.host() {
            Some(Host::Ipv4(v4)) => return Ok(vec![SocketAddr::new(IpAddr::V4(v4), port)]),
            Some(Host::Ipv6(v6)) => return Ok(vec![SocketAddr::new(IpAddr::V6(v6), port)]),
            Some(Host::Domain(name)) => name.to_owned(),
            None => return Err(io::ErrorKind::InvalidInput.into()),
        };
        // In this order, so that who waits for a busy domain keeps no place from others.
        let share = self.share(domain(&name)).acquire_owned().await;
        let share = share.map_err(io::Error::other)?;
        let question = self.place(domain(&name)).await?;
        let (tell, told) = oneshot::channel();
        // A task of its own: the question goes on when nobody waits for it any more.
        tokio::spawn(self.clone().ask((name, port), (share, question), tell));
        told.await.map_err(io::Error::other)?
    }

    /// Waits until a question about this domain may be asked.
    async fn place(&self, domain: &str) -> io::Result<OwnedSemaphorePermit> {
        let common = self.questions.clone().acquire_owned();
        let place = if self.prompt.get(domain).is_some() {
            tokio::select! {
                biased;
                place = common => place,
                place = self.for_prompt.clone().acquire_owned() => place,
            }
        } else {
            common.await
        };
        place.map_err(io::Error::other)
    }

    async fn ask(
        self,
        (name, port): (String, u16),
        (_share, question): (OwnedSemaphorePermit, OwnedSemaphorePermit),
        tell: oneshot::Sender<Answer>,
    ) {
        let lookup = Arc::clone(&self.lookup);
        let domain: Box<str> = domain(&name).into();
        let mut asking = tokio::task::spawn_blocking(move || lookup(&name, port));
        let answer = match timeout(LATE, &mut asking).await {
            Ok(answer) => {
                if matches!(answer, Ok(Ok(_))) {
                    self.prompt.insert(domain, ());
                }
                answer
            }
            Err(_) => {
                self.prompt.remove(&domain);
                let late = self.late.try_acquire_owned();
                let _question = late.is_err().then_some(question);
                asking.await
            }
        };
        let _ = tell.send(answer.map_err(io::Error::other).flatten());
    }

    /// The questions that names of this domain share.
    fn share(&self, domain: &str) -> Arc<Semaphore> {
        let mut domains = self.domains.lock().unwrap_or_else(PoisonError::into_inner);
        domains.retain(|_, share| share.strong_count() > 0);
        if let Some(share) = domains.get(domain).and_then(Weak::upgrade) {
            return share;
        }
        let share = Arc::new(Semaphore::new(MAX_OF_A_DOMAIN));
        domains.insert(domain.to_owned(), Arc::downgrade(&share));
        share
    }
}

/// What a name's owner is taken to own: its last two labels. That many strangers share `co.uk` makes them wait for each other only where
/// several are looked up in the same moment.
fn domain(name: &str) -> &str {
    let name = name.strip_suffix('.').unwrap_or(name);
    let last = name.rfind('.').unwrap_or(0);
    let start = name[..last].rfind('.').map_or(0, |dot| dot + 1);
    &name[start..]
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
    use std::sync::mpsc;

    fn url(name: &str) -> Url {
        Url::parse(&format!("http://{name}/")).unwrap()
    }

    /// Knows the names of `honest.example`; those of `silent` hang until the sender is dropped.
    fn scripted() -> (Resolver, mpsc::Sender<()>) {
        let (hold, held) = mpsc::channel();
        let held = Mutex::new(held);
        let lookup = move |name: &str, port| {
            if name.contains("silent") {
                let held: &Mutex<mpsc::Receiver<()>> = &held;
                let _ = held.lock().unwrap().recv();
                return Err(io::ErrorKind::TimedOut.into());
            }
            Ok(vec![SocketAddr::from(([93, 184, 216, 34], port))])
        };
        (Resolver::asking(lookup), hold)
    }

    async fn is_answered(resolver: &Resolver, name: &str, most: Duration) -> bool {
        let answer = timeout(most, resolver.resolve(&url(name))).await;
        answer.is_ok_and(|answer| answer.is_ok_and(|addresses| !addresses.is_empty()))
    }

    /// Begins to look up so many names, and leaves them as a fetch does that has no time left.
    async fn begin(resolver: &Resolver, names: impl Iterator<Item = String>) {
        for name in names {
            let asked = resolver.clone();
            let asking = tokio::spawn(async move { asked.resolve(&url(&name)).await });
            tokio::task::yield_now().await;
            drop(asking);
        }
    }

    #[tokio::test]
    async fn names_of_one_domain_that_never_answer_keep_no_other_from_being_found() {
        let (resolver, hold) = scripted();
        begin(&resolver, (0..100).map(|i| format!("n{i}.silent.example"))).await;
        let soon = LATE / 2;
        assert!(is_answered(&resolver, "a.honest.example.org", soon).await);
        assert_eq!(
            resolver.questions.available_permits(),
            MAX_QUESTIONS - MAX_OF_A_DOMAIN
        );
        assert!(!is_answered(&resolver, "x.silent.example", soon).await);
        drop(hold);
    }

    #[tokio::test]
    async fn domains_that_never_answer_step_aside_when_they_are_late() {
        let (resolver, hold) = scripted();
        begin(&resolver, (0..40).map(|i| format!("silent{i}.example"))).await;
        assert_eq!(resolver.questions.available_permits(), 0);
        // As long as a fetch may take to connect.
        assert!(is_answered(&resolver, "a.honest.example.org", Duration::from_secs(2)).await);
        // There is an end to it: no more threads than these are ever taken.
        begin(&resolver, (40..200).map(|i| format!("silent{i}.example"))).await;
        tokio::time::sleep(3 * LATE).await;
        assert_eq!(resolver.late.available_permits(), 0);
        assert_eq!(resolver.questions.available_permits(), 0);
        drop(hold);
        assert!(is_answered(&resolver, "a.honest.example.org", 4 * LATE).await);
    }

    #[tokio::test]
    async fn domains_that_answered_are_found_however_many_others_are_silent() {
        let (resolver, hold) = scripted();
        let soon = LATE / 2;
        assert!(is_answered(&resolver, "a.honest.example.org", soon).await);
        begin(&resolver, (0..300).map(|i| format!("silent{i}.example"))).await;
        tokio::time::sleep(3 * LATE).await;
        let taken = resolver.questions.available_permits() + resolver.late.available_permits();
        assert_eq!(taken, 0);
        assert!(is_answered(&resolver, "b.honest.example.org", soon).await);
        assert!(!is_answered(&resolver, "a.new.example.net", soon).await);
        // One that falls silent is as others are.
        assert!(!is_answered(&resolver, "silent.example.org", 2 * LATE).await);
        assert!(!is_answered(&resolver, "b.honest.example.org", soon).await);
        drop(hold);
    }

    #[test]
    fn a_domain_is_its_last_two_labels() {
        for (name, of) in [
            ("a.b.example.org", "example.org"),
            ("example.org.", "example.org"),
            ("example.org", "example.org"),
            ("localhost", "localhost"),
            ("", ""),
            (".", ""),
        ] {
            assert_eq!(domain(name), of, "{name}");
        }
        let (resolver, _hold) = scripted();
        let share = resolver.share("example.org");
        assert!(Arc::ptr_eq(&share, &resolver.share("example.org")));
        drop(share);
        resolver.share("example.net");
        assert_eq!(resolver.domains.lock().unwrap().len(), 1, "forgotten");
    }

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
