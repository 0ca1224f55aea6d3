//! The threads that compute: one that owns the passes, and what lets a short pass in between a long one.
//!
//! In: a [`PackedBatch`]. Out: its rows, through a channel. A device does one thing at a time, so there the short pass runs between two
//! layers of the long one, on the same thread. On the CPU it has threads of its own, and those of the long one stop at their [`Gate`]
//! meanwhile, which they reach within a fraction of a millisecond, where a layer of a large picture takes hundreds.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::{io, thread};

use rayon::{ThreadPool, ThreadPoolBuilder};
use tokio::sync::oneshot;

use super::device::MemoryProbe;
use super::pass::{self, Memory};
use super::roster::Roster;
use super::{Encoded, EngineError, Heartbeat};
use crate::kernels::{Gate, keep_awake, prefer_short_turns};
use crate::model::PackedBatch;

type Outcome = Result<Vec<Encoded>, EngineError>;

/// A batch and where its rows go.
struct Job {
    batch: PackedBatch,
    reply: oneshot::Sender<Outcome>,
}

/// Where batches come from. Locked by the thread, or by the pass it waits for.
type Jobs = Mutex<mpsc::Receiver<Job>>;

/// So many threads of this name; 0 is one for each core.
pub(super) fn workers(name: &'static str, threads: usize) -> ThreadPoolBuilder {
    ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(move |i| format!("{name}-{i}"))
}

/// The ways to the threads.
#[derive(Debug, Clone)]
pub(super) struct Lines {
    whole: mpsc::Sender<Job>,
    /// For what comes while something is under way, where that has threads of its own.
    between: Option<mpsc::Sender<Job>>,
    under_way: Arc<AtomicUsize>,
}

impl Lines {
    /// Has a batch computed. The receiver is told that the sender is gone when the threads are.
    pub(super) fn send(&self, batch: PackedBatch) -> oneshot::Receiver<Outcome> {
        let (reply, rows) = oneshot::channel();
        let is_second = self.under_way.fetch_add(1, Ordering::AcqRel) > 0;
        let line = match &self.between {
            Some(between) if is_second => between,
            _ => &self.whole,
        };
        // Where it fails the job goes, and with it the reply.
        let _ = line.send(Job { batch, reply });
        rows
    }
}

/// What the threads work with.
pub(super) struct Work {
    pub(super) roster: Roster,
    pub(super) memory: Mutex<Memory>,
    pub(super) heart: Heartbeat,
}

impl Work {
    /// Starts the thread of a device; `pool` is for what the host does for it.
    pub(super) fn on_a_device(
        self,
        pool: ThreadPool,
        mut memory: MemoryProbe,
    ) -> io::Result<Lines> {
        let under_way = Arc::new(AtomicUsize::new(0));
        let (whole, queue) = mpsc::channel();
        let queue = Mutex::new(queue);
        let counted = Arc::clone(&under_way);
        spawn("engine", move || {
            memory.tell();
            each(&queue, |job| {
                pool.install(|| keep_awake(|| self.answer(job, &counted, Some(&queue))));
                memory.tell();
            });
        })?;
        Ok(Lines {
            whole,
            between: None,
            under_way,
        })
    }

    /// Starts the two threads of the CPU. Those of `pool` stand at `gate`, those of the other do not.
    pub(super) fn on_the_host(
        self,
        pool: ThreadPool,
        (between_pool, gate): (ThreadPool, Arc<Gate>),
    ) -> io::Result<Lines> {
        let under_way = Arc::new(AtomicUsize::new(0));
        let ((whole, queue), (between, between_queue)) = (mpsc::channel(), mpsc::channel());
        let work = Arc::new(self);
        let (second, counted) = (Arc::clone(&work), Arc::clone(&under_way));
        spawn("engine", move || {
            each(&Mutex::new(queue), |job| {
                pool.install(|| keep_awake(|| work.answer(job, &counted, None)));
            });
        })?;
        let counted = Arc::clone(&under_way);
        spawn("engine-urgent", move || {
            prefer_short_turns();
            each(&Mutex::new(between_queue), |job| {
                let pass = || keep_awake(|| second.answer(job, &counted, None));
                gate.closed(|| between_pool.install(pass));
            });
        })?;
        Ok(Lines {
            whole,
            between: Some(between),
            under_way,
        })
    }

    /// Computes a batch; with `jobs`, one that comes meanwhile has a pass of its own between two layers of this one.
    fn answer(&self, job: Job, under_way: &AtomicUsize, jobs: Option<&Jobs>) {
        let between = || {
            self.heart.beat();
            let jobs = jobs.and_then(|jobs| jobs.try_lock().ok());
            let next = jobs.and_then(|jobs| jobs.try_recv().ok());
            // One, not all: the long pass gets on with a layer for each.
            if let Some(job) = next {
                self.answer(job, under_way, None);
            }
        };
        self.heart.beat();
        // The encoder is only read and what is kept is kept whole or not at all, so a panic leaves nothing half-done behind.
        let pass = AssertUnwindSafe(|| self.compute(&job.batch, &between));
        let outcome = catch_unwind(pass).unwrap_or(Err(EngineError::Panicked));
        if under_way.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.heart.rest();
        }
        // The receiver may have left; then nobody wants the rows.
        let _ = job.reply.send(outcome);
    }

    fn compute(&self, batch: &PackedBatch, between: pass::Between<'_>) -> Outcome {
        let encoder = self.roster.encoder(batch)?;
        let mut rows = pass::run(encoder, &self.memory, batch, between)
            .map_err(|error| EngineError::of_pass(error.to_string()))?;
        for encoded in &mut rows {
            let row = std::mem::take(&mut encoded.row);
            encoded.row = self.roster.finish(batch.task, row);
        }
        Ok(rows)
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map(drop)
}

/// Until the last handle has gone.
fn each(jobs: &Jobs, mut take: impl FnMut(Job)) {
    loop {
        let next = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = next else {
            return;
        };
        take(job);
    }
}
