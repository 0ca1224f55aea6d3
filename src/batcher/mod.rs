//! Which requests share a forward pass, which of them come first, and which are turned away.
//!
//! In: the [`Sequence`](crate::model::Sequence)s of a request, from anywhere. Out: their pooled rows. Nothing waits for a timer: while the device computes, what
//! arrives gathers, and when it is free the next batch is chosen from all of it.
//!
//! - Two lanes: work somebody waits for does not stand behind bulk work, which gets a tenth of the device all the same.
//! - With an embedder and a reranker the two take turns, each with lanes of its own (`track`), for a pass is of one model.
//! - In a lane, tenants take turns (`lane`), so no key's flood delays another's requests by more than its own.
//! - A pass of bulk work is kept short by what was measured (`cost`), sequence by sequence. One sequence is never split; short
//!   interactive texts have a pass of their own while a long one stands still (`forming`).
//! - The same input twice in flight is computed once.
//! - What was computed lately is not computed again, where the operator gives it memory (`cache`).
//! - The queue is bounded in tokens and bytes, and takes nothing that is not expected to be answered in time (`door`).
//! - What failed in company is tried once more alone (`settling`).
//!
//! All of that is decided by `schedule`, which knows neither threads nor time; `worker` drives it.

mod cache;
mod content;
mod cost;
mod counters;
mod door;
pub mod error;
mod forming;
mod lane;
mod outline;
mod pending;
mod pixels;
mod reservation;
mod schedule;
mod settling;
mod shared;
mod submission;
mod track;
mod worker;

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cache::RowCache;
pub use content::{ContentKey, Identity};
pub use cost::Cost;
pub use counters::{Counters, Refused, Waiting};
pub use error::BatcherError;
use futures_util::FutureExt;
pub use outline::Outline;
pub use pending::Pending;
use pending::{Found, Place};
pub use pixels::Held;
use pixels::PixelMemory;
pub use reservation::Reservation;
use schedule::{Entry, Group, Schedule};
use shared::{Payload, Reply, Shared};
pub use submission::{Input, Submission};
use tokio::sync::{Notify, oneshot, watch};

use crate::engine::{Encoded, Engine, EngineError, Heartbeat};
use crate::model::{PackedBatch, Task};
use crate::telemetry::backlog::BatcherReading;

/// How batches are formed and when the queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchPolicy {
    /// Most tokens of one forward pass, vision tokens included; a longer input goes alone.
    pub max_tokens: usize,
    /// Most sequences of one forward pass.
    pub max_sequences: usize,
    /// Most tokens waiting; beyond, requests are refused.
    pub max_queue_tokens: usize,
    /// Most bytes of pixels held from when they are decoded until they are computed; beyond, requests with pixels are refused.
    pub max_pixel_bytes: usize,
    /// Longest pass of bulk work, unless one input or the fixed part of passes makes it longer.
    pub max_bulk: Duration,
    /// How long a batch that could still grow waits for company while the device is free.
    pub max_wait: Duration,
    /// Most bytes of rows that are kept for inputs that come again; 0 keeps none.
    pub max_cache_bytes: usize,
}

impl Default for BatchPolicy {
    fn default() -> Self {
        Self {
            max_tokens: 16_384,
            max_sequences: 256,
            max_queue_tokens: 1_048_576,
            max_pixel_bytes: 2 << 30,
            max_bulk: Duration::from_millis(100),
            max_wait: Duration::ZERO,
            max_cache_bytes: 0,
        }
    }
}

/// Which lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Priority {
    /// Somebody waits for the answer.
    Interactive,
    /// What matters is that all of it gets done.
    Bulk,
}

/// A computed row and what it took.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// `[hidden_size]`, not normalised; of a [`Task::Rerank`] `[1]`, a logit. Finite.
    pub row: Vec<f32>,
    /// How many of its tokens were kept from an earlier pass; all of them when the row itself was.
    pub cached_tokens: usize,
    /// Whether the row was computed for an earlier request.
    pub from_cache: bool,
    /// Time in the queue.
    pub queued: Duration,
    /// Time of the forward pass it was part of.
    pub forward: Duration,
}

type Outcome = Result<Embedding, BatcherError>;

/// What has become of the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Working,
    /// It was told to stop and had nothing more to do.
    Finished,
    /// There is no device any more.
    Lost,
}

/// Closes the queue when the last handle goes, which ends the worker and lets the engine go.
struct Handle {
    shared: Arc<Shared>,
    heart: Heartbeat,
    fate: watch::Receiver<Fate>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// The handle of the batcher. Cloning it clones the handle; what was accepted is computed even when the last one is dropped.
#[derive(Clone)]
pub struct Batcher {
    handle: Arc<Handle>,
}

impl std::fmt::Debug for Batcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batcher")
            .field("policy", &self.handle.shared.policy)
            .finish_non_exhaustive()
    }
}

impl Batcher {
    /// Starts the worker on the current tokio runtime.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(engine: Engine, policy: BatchPolicy) -> Self {
        let heart = engine.heartbeat().clone();
        Self::with_encoder(policy, heart, move |batch| engine.encode(batch))
    }

    /// The same around any function from a batch to its rows: the tests bring one that fails on purpose.
    pub(crate) fn with_encoder<E, F>(policy: BatchPolicy, heart: Heartbeat, encode: E) -> Self
    where
        E: Fn(PackedBatch) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Vec<Encoded>, EngineError>> + Send + 'static,
    {
        let shared = Arc::new(Shared {
            schedule: Mutex::new(Schedule::new(policy)),
            pixels: PixelMemory::new(policy.max_pixel_bytes),
            arrived: Notify::new(),
            policy,
            began: Instant::now(),
            cache: RowCache::new(policy.max_cache_bytes),
            cache_hits: AtomicU64::new(0),
            cache_misses: AtomicU64::new(0),
        });
        let (sender, fate) = watch::channel(Fate::Working);
        let working = Arc::clone(&shared);
        tokio::spawn(async move {
            let worker = worker::run(Arc::clone(&working), encode);
            let ended = AssertUnwindSafe(worker).catch_unwind().await;
            let fate = ended.unwrap_or_else(|_| {
                tracing::error!("the batcher's worker panicked");
                working.lose();
                Fate::Lost
            });
            // Nobody may be listening.
            let _ = sender.send(fate);
        });
        Batcher {
            handle: Arc::new(Handle {
                shared,
                heart,
                fate,
            }),
        }
    }

    /// Takes hold of the memory of an input's pixels, `own` bytes of the same request being held already.
    ///
    /// # Errors
    /// [`BatcherError::TooManyPixels`], [`BatcherError::Overloaded`].
    pub fn hold(&self, bytes: usize, own: usize) -> Result<Held, BatcherError> {
        let shared = &self.handle.shared;
        let limit = shared.pixels.limit();
        if bytes.saturating_add(own) > limit {
            return Err(BatcherError::TooManyPixels { limit });
        }
        shared.pixels.hold(bytes).ok_or_else(|| {
            let refusal = BatcherError::Overloaded {
                unit: "bytes of pixels",
                waiting: shared.pixels.held(),
                limit,
                retry_after: Duration::ZERO,
            };
            shared.lock().refuse(refusal)
        })
    }

    /// Puts the sequences of one request into the queue: all of them or, when there is no room or no time, none.
    ///
    /// # Errors
    /// [`BatcherError`], except [`BatcherError::Failed`].
    pub fn submit(&self, submission: Submission) -> Result<Vec<Pending>, BatcherError> {
        let shared = &self.handle.shared;
        let tenant = submission.tenant;
        let mut task = Task::default();
        let mut entries = Vec::new();
        let mut receivers = Vec::new();
        let mut recalled = Vec::with_capacity(submission.inputs.len());
        let mut cost = Cost::default();
        for input in submission.inputs {
            let own = input.cost();
            cost.add(own);
            task = input.sequence.task;
            let key = (tenant, input.identity.content);
            let row = shared.recall(key, input.sequence.input_ids.len());
            if row.is_none() {
                let (sender, receiver) = oneshot::channel();
                receivers.push(receiver);
                entries.push(Entry {
                    payload: Arc::new(Payload {
                        sequence: input.sequence,
                        media_keys: input.identity.media,
                        _held: input.held,
                    }),
                    key: key.1,
                    cost: own,
                    waiter: Reply { sender, key },
                });
            }
            recalled.push(row);
        }
        let mut tickets = Vec::new();
        let promise = submission.reservation.and_then(Reservation::redeemed);
        let promised = promise.is_some();
        let mut schedule = shared.lock();
        if let Some(promise) = promise {
            // Where some of its inputs could not be prepared, it says nothing of what others like it will cost.
            let is_whole = promise.inputs == recalled.len();
            schedule.redeem(promise, is_whole.then_some(cost));
        }
        if !entries.is_empty() {
            let group = Group {
                entries,
                task,
                tenant,
                priority: submission.priority,
                deadline: submission.deadline.saturating_duration_since(shared.began),
                promised,
            };
            tickets = schedule.submit(shared.now(), group)?;
            shared.arrived.notify_one();
        }
        drop(schedule);
        let mut places = tickets.into_iter().zip(receivers);
        let pending = recalled.into_iter().filter_map(|row| match row {
            Some(row) => Some(Pending(Found::Row(row))),
            None => places.next().map(|(ticket, answer)| {
                Pending(Found::Place(Place {
                    shared: Arc::clone(shared),
                    ticket,
                    answer,
                    answered: false,
                }))
            }),
        });
        Ok(pending.collect())
    }

    /// How batches are formed.
    pub fn policy(&self) -> BatchPolicy {
        self.handle.shared.policy
    }

    /// Whether rows are kept for inputs that come again.
    pub fn keeps_rows(&self) -> bool {
        self.handle.shared.cache.is_some()
    }

    /// What has been done so far, and what waits now.
    pub fn counters(&self) -> Counters {
        self.handle.shared.counters()
    }

    /// What a scraper is told; it does not keep the batcher alive, and says nothing when that has gone.
    pub fn watch(&self) -> impl Fn() -> Option<BatcherReading> + Send + Sync + use<> {
        let shared = Arc::downgrade(&self.handle.shared);
        move || {
            let shared = shared.upgrade()?;
            Some(shared.counters().reading(shared.policy.max_tokens))
        }
    }

    /// Accepts nothing more; what was accepted is still computed.
    pub fn close(&self) {
        self.handle.shared.close();
    }

    /// Accepts nothing more, and waits until what was accepted has been computed.
    pub async fn drain(&self) {
        self.close();
        let mut fate = self.handle.fate.clone();
        // The error says that the worker is gone, which is as good an end.
        let _ = fate.wait_for(|fate| *fate != Fate::Working).await;
    }

    /// Whether the device thread has stopped getting on with its work.
    pub fn is_stalled(&self) -> bool {
        self.handle.heart.is_stalled()
    }

    /// Whether the device is gone, so that nothing will ever be computed again.
    pub fn is_lost(&self) -> bool {
        *self.handle.fate.borrow() == Fate::Lost
    }

    /// Waits until the device is gone, perhaps for ever.
    pub async fn lost(&self) {
        let mut fate = self.handle.fate.clone();
        if fate.wait_for(|fate| *fate == Fate::Lost).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests;
