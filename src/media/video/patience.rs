//! How long a video is waited for. In: a request's deadline, and whoever waits. Out: whether there is still a point in decoding.
//!
//! Decoding blocks a thread, and a thread cannot be dropped as a request's future is. So the future keeps a [`Waiter`], whose end the
//! thread sees.

use std::sync::{Arc, Weak};
use std::time::Instant;

/// Somebody who waits, until this is dropped.
#[derive(Debug)]
pub struct Waiter {
    _alive: Arc<()>,
}

/// Until when, and for whom, a video is decoded.
#[derive(Debug, Clone, Default)]
pub struct Patience {
    until: Option<Instant>,
    waiter: Option<Weak<()>>,
}

impl Patience {
    /// Of a request: it ends at its deadline, or with the waiter.
    pub fn until(deadline: Instant) -> (Waiter, Self) {
        let alive = Arc::new(());
        let patience = Self {
            until: Some(deadline),
            waiter: Some(Arc::downgrade(&alive)),
        };
        (Waiter { _alive: alive }, patience)
    }

    /// Whether nobody waits any more.
    pub(super) fn is_over(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
            || (self.waiter.as_ref()).is_some_and(|waiter| waiter.strong_count() == 0)
    }

    /// The deadline, or an earlier one.
    pub(super) fn clip(&self, deadline: Instant) -> Instant {
        self.until.map_or(deadline, |until| until.min(deadline))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn it_ends_at_the_deadline_or_with_the_waiter_and_else_never() {
        let (soon, later) = (Instant::now(), Instant::now() + Duration::from_secs(60));
        let (waiter, patience) = Patience::until(later);
        assert!(!patience.is_over());
        assert_eq!((patience.clip(soon), patience.clip(later)), (soon, later));
        assert_eq!(patience.clip(later + Duration::from_secs(1)), later);
        let kept = patience.clone();
        drop(waiter);
        assert!(patience.is_over() && kept.is_over());
        let (_waiter, patience) = Patience::until(soon);
        assert!(patience.is_over());
        assert!(!Patience::default().is_over());
        assert_eq!(Patience::default().clip(later), later);
    }
}
