//! Which requests share a forward pass.
//!
//! In: the [`Sequence`]s of a request, from anywhere. Out: their pooled rows. Nothing waits for a timer: while the engine computes,
//! what arrives gathers, and goes as one batch when the engine is free; a batch that cannot grow any more is packed before that.

mod queue;
mod worker;

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use queue::Queue;
use tokio::sync::{Notify, oneshot, watch};

use crate::engine::{Encoded, Engine, EngineError};
use crate::model::{PackedBatch, Sequence};
use crate::telemetry::metrics::QueueDepth;

/// How batches are formed and when the queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchPolicy {
    /// Most tokens of one forward pass, vision tokens included; a longer input goes alone.
    pub max_tokens: usize,
    /// Most sequences of one forward pass.
    pub max_sequences: usize,
    /// Most tokens waiting; beyond, requests are refused.
    pub max_queue_tokens: usize,
}

impl Default for BatchPolicy {
    fn default() -> Self {
        Self {
            max_tokens: 16_384,
            max_sequences: 256,
            max_queue_tokens: 1_048_576,
        }
    }
}

/// Retry-After while the engine's speed is not known.
const UNMEASURED_RETRY: Duration = Duration::from_secs(1);
/// Longest Retry-After: the official SDKs ignore one above 120 s, and a client should ask again long before.
const MAX_RETRY_SECONDS: f64 = 60.0;

/// Why a sequence was not computed.
#[derive(Debug, thiserror::Error)]
pub enum BatcherError {
    /// The queue is full.
    #[error("{queued_tokens} tokens are waiting, the limit is {limit}")]
    Overloaded {
        /// Tokens that wait.
        queued_tokens: usize,
        /// The policy's limit.
        limit: usize,
        /// When there may be room.
        retry_after: Duration,
    },
    /// The server is stopping.
    #[error("the server is stopping")]
    Draining,
    /// The forward pass failed for this input, also alone.
    #[error("the forward pass failed")]
    Failed(#[source] EngineError),
    /// The engine is gone.
    #[error("the engine is gone")]
    Unavailable,
}

/// A computed row and what it took.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// `[hidden_size]`, not normalised.
    pub row: Vec<f32>,
    /// How many of its tokens were kept from an earlier pass.
    pub cached_tokens: usize,
    /// Time in the queue.
    pub queued: Duration,
    /// Time of the forward pass it was part of.
    pub forward: Duration,
}

type Outcome = Result<Embedding, BatcherError>;

/// A sequence that waits, and who for.
struct Ticket {
    sequence: Sequence,
    since: Instant,
    reply: oneshot::Sender<Outcome>,
}

impl Ticket {
    /// Whether somebody still waits for the row.
    fn is_wanted(&self) -> bool {
        !self.reply.is_closed()
    }
}

/// A sequence in the queue. Dropping it takes the sequence out again.
#[derive(Debug)]
pub struct Pending(oneshot::Receiver<Outcome>);

impl Pending {
    /// Waits for the row.
    ///
    /// # Errors
    /// [`BatcherError::Failed`], [`BatcherError::Unavailable`].
    pub async fn row(self) -> Result<Embedding, BatcherError> {
        self.0.await.map_err(|_| BatcherError::Unavailable)?
    }
}

struct State {
    queue: Queue<Ticket>,
    closed: bool,
    /// Smoothed speed of the engine, for Retry-After; 0 before the first batch.
    tokens_per_second: f64,
}

impl State {
    fn learn(&mut self, tokens: usize, took: Duration) {
        let measured = tokens as f64 / took.as_secs_f64().max(1e-6);
        self.tokens_per_second = if self.tokens_per_second == 0.0 {
            measured
        } else {
            0.8 * self.tokens_per_second + 0.2 * measured
        };
    }

    /// When what waits now will have been computed.
    fn retry_after(&self) -> Duration {
        if self.tokens_per_second == 0.0 {
            return UNMEASURED_RETRY;
        }
        let seconds = self.queue.tokens() as f64 / self.tokens_per_second;
        Duration::from_secs_f64(seconds.clamp(0.1, MAX_RETRY_SECONDS))
    }
}

struct Shared {
    state: Mutex<State>,
    arrived: Notify,
    policy: BatchPolicy,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is complete in itself, so a panic elsewhere leaves nothing half-done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_one();
    }
}

/// Closes the queue when the last handle goes, which ends the worker and lets the engine go.
struct Handle {
    shared: Arc<Shared>,
    /// Its sender lives in the worker and is dropped when the worker has nothing more to do.
    finished: watch::Receiver<()>,
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
        Self::with_encoder(policy, move |batch| {
            let engine = engine.clone();
            async move { engine.encode(batch).await }
        })
    }

    /// The same around any function from a batch to its rows: the tests bring one that fails on purpose.
    fn with_encoder<E, F>(policy: BatchPolicy, encode: E) -> Self
    where
        E: Fn(PackedBatch) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Vec<Encoded>, EngineError>> + Send + 'static,
    {
        let state = State {
            queue: Queue::new(policy),
            closed: false,
            tokens_per_second: 0.0,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            arrived: Notify::new(),
            policy,
        });
        let (alive, finished) = watch::channel(());
        let worker = worker::run(Arc::clone(&shared), encode);
        tokio::spawn(async move {
            worker.await;
            drop(alive);
        });
        Batcher {
            handle: Arc::new(Handle { shared, finished }),
        }
    }

    /// Puts the sequences of one request into the queue: all of them or, when there is no room, none.
    ///
    /// # Errors
    /// [`BatcherError::Overloaded`], [`BatcherError::Draining`].
    pub fn submit(&self, sequences: Vec<Sequence>) -> Result<Vec<Pending>, BatcherError> {
        let shared = &self.handle.shared;
        let since = Instant::now();
        let (tickets, pending): (Vec<_>, Vec<_>) = sequences
            .into_iter()
            .map(|sequence| {
                let (reply, row) = oneshot::channel();
                let tokens = sequence.input_ids.len();
                let ticket = Ticket {
                    sequence,
                    since,
                    reply,
                };
                ((tokens, ticket), Pending(row))
            })
            .unzip();
        let mut state = shared.lock();
        if state.closed {
            return Err(BatcherError::Draining);
        }
        if let Err(full) = state.queue.push_all(tickets, Ticket::is_wanted) {
            return Err(BatcherError::Overloaded {
                queued_tokens: full.queued_tokens,
                limit: shared.policy.max_queue_tokens,
                retry_after: state.retry_after(),
            });
        }
        drop(state);
        shared.arrived.notify_one();
        Ok(pending)
    }

    /// Waits for a sequence's row. Dropping the future takes the sequence out of the queue.
    ///
    /// # Errors
    /// [`BatcherError`].
    pub async fn embed(&self, sequence: Sequence) -> Result<Embedding, BatcherError> {
        let mut pending = self.submit(vec![sequence])?;
        match pending.pop() {
            Some(pending) => pending.row().await,
            None => Err(BatcherError::Unavailable),
        }
    }

    /// What waits now, for a scraper; it does not keep the batcher alive.
    pub fn watch_queue(&self) -> impl Fn() -> QueueDepth + Send + Sync + use<> {
        let shared = Arc::downgrade(&self.handle.shared);
        move || {
            shared.upgrade().map_or_else(QueueDepth::default, |shared| {
                let state = shared.lock();
                QueueDepth {
                    sequences: state.queue.len(),
                    tokens: state.queue.tokens(),
                }
            })
        }
    }

    /// Accepts nothing more; what was accepted is still computed.
    pub fn close(&self) {
        self.handle.shared.close();
    }

    /// Accepts nothing more, and waits until what was accepted has been computed.
    pub async fn drain(&self) {
        self.close();
        let mut finished = self.handle.finished.clone();
        // Nothing is ever sent: the error that the sender is gone is the news.
        let _ = finished.changed().await;
    }
}

#[cfg(test)]
mod tests;
