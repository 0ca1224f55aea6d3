//! What a client holds while it waits: a row that was at hand, or a place in the queue that is given up when it is dropped.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::schedule::Ticket;
use super::shared::Shared;
use super::{BatcherError, Embedding, Outcome};

/// A sequence in the queue, or a row that was at hand. Dropping it gives its place up.
pub struct Pending(pub(super) Found);

pub(super) enum Found {
    Row(Embedding),
    Place(Place),
}

/// A place in the queue.
pub(super) struct Place {
    pub(super) shared: Arc<Shared>,
    pub(super) ticket: Ticket,
    pub(super) answer: oneshot::Receiver<Outcome>,
    pub(super) answered: bool,
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Found::Row(row) => f.debug_tuple("Pending").field(row).finish(),
            Found::Place(place) => f.debug_tuple("Pending").field(&place.ticket).finish(),
        }
    }
}

impl Pending {
    /// Waits for the row.
    ///
    /// # Errors
    /// [`BatcherError::Failed`], [`BatcherError::Expired`], [`BatcherError::Unavailable`].
    pub async fn row(self) -> Result<Embedding, BatcherError> {
        let mut place = match self.0 {
            Found::Row(row) => return Ok(row),
            Found::Place(place) => place,
        };
        let outcome = (&mut place.answer).await;
        place.answered = true;
        outcome.map_err(|_| BatcherError::Unavailable)?
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.answered {
            self.shared.lock().leave(self.ticket);
        }
    }
}
