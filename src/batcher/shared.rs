//! What the handles of the batcher and its worker share: the schedule under its lock, and what is kept beside it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

use super::cache::{CacheKey, RowCache};
use super::pixels::{Held, PixelMemory};
use super::schedule::Schedule;
use super::{BatchPolicy, Counters, Embedding, Outcome};
use crate::model::{MediaKey, Sequence};
use crate::telemetry;

/// What the schedule keeps of an input until it is computed.
#[derive(Debug)]
pub(super) struct Payload {
    pub(super) sequence: Sequence,
    pub(super) media_keys: Vec<MediaKey>,
    /// Given back when the payload goes, wherever that is.
    pub(super) _held: Held,
}

/// How somebody who waits is told, and under what name the row is kept.
pub(super) struct Reply {
    pub(super) sender: oneshot::Sender<Outcome>,
    pub(super) key: CacheKey,
}

/// What the handles and the worker share.
pub(super) struct Shared {
    pub(super) schedule: Mutex<Schedule<Arc<Payload>, Reply>>,
    pub(super) pixels: PixelMemory,
    pub(super) arrived: Notify,
    pub(super) policy: BatchPolicy,
    pub(super) began: Instant,
    pub(super) cache: Option<RowCache>,
    pub(super) cache_hits: AtomicU64,
    pub(super) cache_misses: AtomicU64,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Schedule<Arc<Payload>, Reply>> {
        // Nothing in the schedule panics by design; should it all the same, the worker ends and tells everybody (see `start`).
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The schedule's time.
    pub(super) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// What has been done so far, and what waits now.
    pub(super) fn counters(&self) -> Counters {
        let mut counters = self.lock().counters();
        counters.cache_hits = self.cache_hits.load(Ordering::Relaxed);
        counters.cache_misses = self.cache_misses.load(Ordering::Relaxed);
        counters.pixel_bytes = self.pixels.held();
        counters.cache_bytes = self.cache.as_ref().map_or(0, RowCache::bytes);
        counters
    }

    pub(super) fn close(&self) {
        self.lock().close();
        self.arrived.notify_one();
    }

    /// Tells everybody that nothing will be computed any more.
    pub(super) fn lose(&self) {
        let answers = {
            let mut schedule = self.lock();
            schedule.lose();
            schedule.take_answers()
        };
        self.tell(answers);
    }

    /// Hands answers out, and keeps their rows.
    pub(super) fn tell(&self, answers: Vec<(Reply, Outcome)>) {
        for (reply, outcome) in answers {
            if let (Some(cache), Ok(embedding)) = (&self.cache, &outcome) {
                cache.insert(reply.key, &embedding.row);
            }
            // A client that left meanwhile has no use for it.
            let _ = reply.sender.send(outcome);
        }
    }

    /// The row of an input of so many tokens, if it was computed lately.
    pub(super) fn recall(&self, key: CacheKey, tokens: usize) -> Option<Embedding> {
        let row = self.cache.as_ref()?.get(key);
        let count = match row {
            Some(_) => &self.cache_hits,
            None => &self.cache_misses,
        };
        count.fetch_add(1, Ordering::Relaxed);
        let hits = usize::from(row.is_some());
        telemetry::metrics().cache("embedding", hits, 1 - hits);
        Some(Embedding {
            row: row?,
            cached_tokens: tokens,
            from_cache: true,
            queued: Duration::ZERO,
            forward: Duration::ZERO,
        })
    }
}
