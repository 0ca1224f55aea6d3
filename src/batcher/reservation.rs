//! A place in the queue, taken before a request is prepared. In: an [`Outline`]. Out: a [`Reservation`], given up when it is dropped.

use std::sync::Arc;

use super::door::Promise;
use super::shared::Shared;
use super::{Batcher, BatcherError, Outline};

/// A place in the queue for what is still being prepared: see [`Batcher::reserve`]. Dropping it gives the place up.
pub struct Reservation {
    shared: Arc<Shared>,
    promise: Option<Promise>,
}

impl std::fmt::Debug for Reservation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Reservation").field(&self.promise).finish()
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(promise) = self.promise.take() {
            self.shared.lock().redeem(promise, None);
        }
    }
}

impl Reservation {
    /// What was promised, for the request that has come.
    pub(super) fn redeemed(mut self) -> Option<Promise> {
        self.promise.take()
    }
}

impl Batcher {
    /// Takes a place in the queue for a request that is still to be prepared, so that one that would be refused is refused before
    /// that work. What it will cost is guessed from what those before it came to; [`Self::submit`] knows better, and may still refuse.
    ///
    /// # Errors
    /// [`BatcherError`], except [`BatcherError::Failed`] and [`BatcherError::TooManyPixels`].
    pub fn reserve(&self, outline: &Outline) -> Result<Reservation, BatcherError> {
        let shared = &self.handle.shared;
        let deadline = outline.deadline.saturating_duration_since(shared.began);
        let promise = shared.lock().promise(shared.now(), (outline, deadline))?;
        Ok(Reservation {
            shared: Arc::clone(shared),
            promise: Some(promise),
        })
    }
}
