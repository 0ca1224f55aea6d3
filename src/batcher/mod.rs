//! Which requests share a forward pass.
//!
//! In: one [`Sequence`] at a time, from anywhere. Out: its pooled row. Nothing waits for a timer: while the engine computes, what
//! arrives gathers, and goes as one batch when the engine is free.

mod queue;
mod worker;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use queue::Queue;
use tokio::sync::{Notify, oneshot};

use crate::engine::{Engine, EngineError};
use crate::model::Sequence;

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
    /// Time in the queue.
    pub queued: Duration,
    /// Time of the forward pass it was part of.
    pub forward: Duration,
}

/// A sequence that waits, and who for.
struct Ticket {
    sequence: Sequence,
    since: Instant,
    reply: oneshot::Sender<Result<Embedding, BatcherError>>,
}

struct State {
    queue: Queue<Ticket>,
    closed: bool,
    /// Smoothed speed of the engine, for Retry-After.
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
}

struct Shared {
    state: Mutex<State>,
    arrived: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is complete in itself, so a panic elsewhere leaves nothing half-done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The handle of the batcher. Cloning it clones the handle.
#[derive(Clone)]
pub struct Batcher {
    shared: Arc<Shared>,
    policy: BatchPolicy,
}

impl std::fmt::Debug for Batcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batcher")
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

impl Batcher {
    /// Starts the worker on the current tokio runtime.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(engine: Engine, policy: BatchPolicy) -> Self {
        let state = State {
            queue: Queue::new(policy),
            closed: false,
            tokens_per_second: 0.0,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            arrived: Notify::new(),
        });
        tokio::spawn(worker::run(shared.clone(), engine));
        Batcher { shared, policy }
    }

    /// Waits for a sequence's row. Dropping the future takes the sequence out of the queue.
    ///
    /// # Errors
    /// [`BatcherError`].
    pub async fn embed(&self, sequence: Sequence) -> Result<Embedding, BatcherError> {
        let (reply, row) = oneshot::channel();
        let tokens = sequence.input_ids.len();
        {
            let mut state = self.shared.lock();
            if state.closed {
                return Err(BatcherError::Draining);
            }
            let ticket = Ticket {
                sequence,
                since: Instant::now(),
                reply,
            };
            if let Err(full) = state.queue.push(tokens, ticket) {
                let speed = state.tokens_per_second.max(1.0);
                return Err(BatcherError::Overloaded {
                    queued_tokens: full.queued_tokens,
                    limit: self.policy.max_queue_tokens,
                    retry_after: Duration::from_secs_f64(
                        (full.queued_tokens as f64 / speed).clamp(0.1, 600.0),
                    ),
                });
            }
        }
        self.shared.arrived.notify_one();
        row.await.map_err(|_| BatcherError::Unavailable)?
    }

    /// Accepts nothing more; what was accepted is still computed.
    pub fn close(&self) {
        self.shared.lock().closed = true;
        self.shared.arrived.notify_one();
    }
}
