//! Which requests share a forward pass, which of them come first, and which are turned away.
//!
//! In: the [`Sequence`]s of a request, from anywhere. Out: their pooled rows. Nothing waits for a timer: while the device computes, what
//! arrives gathers, and when it is free the next batch is chosen from all of it.
//!
//! - Two lanes: work somebody waits for does not stand behind bulk work, which gets a tenth of the device all the same.
//! - In a lane, tenants take turns (`lane`), so no key's flood delays another's requests by more than its own.
//! - A pass of bulk work is kept short by what was measured (`cost`), sequence by sequence. One sequence is never split: a single
//!   very large picture or video keeps the device for as long as it takes.
//! - The same input twice in flight is computed once.
//! - The queue is bounded in tokens and bytes, and takes nothing that is not expected to be answered in time (`door`).
//! - What failed in company is tried once more alone (`settling`).
//!
//! All of that is decided by `schedule`, which knows neither threads nor time; `worker` drives it.

mod content;
mod cost;
mod counters;
mod door;
mod forming;
mod lane;
mod schedule;
mod settling;
mod worker;

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use content::ContentKey;
pub use cost::Cost;
pub use counters::{Counters, Refused, Waiting};
use futures_util::FutureExt;
use schedule::{Entry, Group, Schedule, Ticket};
use tokio::sync::{Notify, oneshot, watch};

use crate::engine::{Encoded, Engine, EngineError, Heartbeat};
use crate::model::{PackedBatch, Sequence, Tenant};

/// How batches are formed and when the queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchPolicy {
    /// Most tokens of one forward pass, vision tokens included; a longer input goes alone.
    pub max_tokens: usize,
    /// Most sequences of one forward pass.
    pub max_sequences: usize,
    /// Most tokens waiting; beyond, requests are refused.
    pub max_queue_tokens: usize,
    /// Most bytes of pixels waiting; beyond, requests with pixels are refused.
    pub max_queue_bytes: usize,
    /// Longest pass of bulk work, unless one input or the fixed part of passes makes it longer.
    pub max_bulk: Duration,
    /// How long a batch that could still grow waits for company while the device is free.
    pub max_wait: Duration,
}

impl Default for BatchPolicy {
    fn default() -> Self {
        Self {
            max_tokens: 16_384,
            max_sequences: 256,
            max_queue_tokens: 1_048_576,
            max_queue_bytes: 2 << 30,
            max_bulk: Duration::from_millis(50),
            max_wait: Duration::ZERO,
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

/// Why a sequence was not computed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BatcherError {
    /// The queue is full.
    #[error("{waiting} {unit} wait to be computed, of {limit} that may")]
    Overloaded {
        /// What of.
        unit: &'static str,
        /// How much waits.
        waiting: usize,
        /// The policy's limit.
        limit: usize,
        /// When there may be room.
        retry_after: Duration,
    },
    /// It would not be computed in the time it has.
    #[error("what waits to be computed takes longer than the {} ms this request has left", .allowed.as_millis())]
    TooLate {
        /// The time it has.
        allowed: Duration,
        /// When what is before it will have been computed.
        retry_after: Duration,
    },
    /// Its time was up before its pass began.
    #[error("the request's time was up before it was computed")]
    Expired,
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
    /// `[hidden_size]`, not normalised, finite.
    pub row: Vec<f32>,
    /// How many of its tokens were kept from an earlier pass.
    pub cached_tokens: usize,
    /// Time in the queue.
    pub queued: Duration,
    /// Time of the forward pass it was part of.
    pub forward: Duration,
}

/// The inputs of one request: they enter the queue together or not at all.
#[derive(Debug)]
pub struct Submission {
    /// What to compute, each with [`ContentKey::of`] it.
    pub inputs: Vec<(Sequence, ContentKey)>,
    /// Whose they are.
    pub tenant: Tenant,
    /// The lane the client asked for; `None`: a lone short text is interactive, anything else bulk.
    pub priority: Option<Priority>,
    /// When nobody waits any more.
    pub deadline: Instant,
}

type Outcome = Result<Embedding, BatcherError>;

/// How somebody who waits is told.
type Reply = oneshot::Sender<Outcome>;

/// A sequence in the queue. Dropping it gives its place up.
pub struct Pending {
    shared: Arc<Shared>,
    ticket: Ticket,
    answer: oneshot::Receiver<Outcome>,
    answered: bool,
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pending")
            .field("ticket", &self.ticket)
            .finish_non_exhaustive()
    }
}

impl Pending {
    /// Waits for the row.
    ///
    /// # Errors
    /// [`BatcherError::Failed`], [`BatcherError::Expired`], [`BatcherError::Unavailable`].
    pub async fn row(mut self) -> Result<Embedding, BatcherError> {
        let outcome = (&mut self.answer).await;
        self.answered = true;
        outcome.map_err(|_| BatcherError::Unavailable)?
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.answered {
            self.shared.lock().leave(self.ticket);
        }
    }
}

struct Shared {
    schedule: Mutex<Schedule<Arc<Sequence>, Reply>>,
    arrived: Notify,
    policy: BatchPolicy,
    began: Instant,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Schedule<Arc<Sequence>, Reply>> {
        // Nothing in the schedule panics by design; should it all the same, the worker ends and tells everybody (see `start`).
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The schedule's time.
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn close(&self) {
        self.lock().close();
        self.arrived.notify_one();
    }

    /// Tells everybody that nothing will be computed any more.
    fn lose(&self) {
        let answers = {
            let mut schedule = self.lock();
            schedule.lose();
            schedule.take_answers()
        };
        worker::tell(answers);
    }
}

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
    fn with_encoder<E, F>(policy: BatchPolicy, heart: Heartbeat, encode: E) -> Self
    where
        E: Fn(PackedBatch) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Vec<Encoded>, EngineError>> + Send + 'static,
    {
        let shared = Arc::new(Shared {
            schedule: Mutex::new(Schedule::new(policy)),
            arrived: Notify::new(),
            policy,
            began: Instant::now(),
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

    /// Puts the sequences of one request into the queue: all of them or, when there is no room or no time, none.
    ///
    /// # Errors
    /// [`BatcherError`], except [`BatcherError::Failed`].
    pub fn submit(&self, submission: Submission) -> Result<Vec<Pending>, BatcherError> {
        let shared = &self.handle.shared;
        let mut receivers = Vec::with_capacity(submission.inputs.len());
        let entry = |(sequence, key): (Sequence, ContentKey)| {
            let (waiter, receiver) = oneshot::channel();
            receivers.push(receiver);
            Entry {
                cost: Cost::of(&sequence),
                payload: Arc::new(sequence),
                key,
                waiter,
            }
        };
        let group = Group {
            entries: submission.inputs.into_iter().map(entry).collect(),
            tenant: submission.tenant,
            priority: submission.priority,
            deadline: submission.deadline.saturating_duration_since(shared.began),
        };
        let tickets = shared.lock().submit(shared.now(), group)?;
        shared.arrived.notify_one();
        let pending = tickets.into_iter().zip(receivers);
        Ok(pending
            .map(|(ticket, answer)| Pending {
                shared: Arc::clone(shared),
                ticket,
                answer,
                answered: false,
            })
            .collect())
    }

    /// What has been done so far, and what waits now.
    pub fn counters(&self) -> Counters {
        self.handle.shared.lock().counters()
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
