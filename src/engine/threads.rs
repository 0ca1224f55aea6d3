//! The threads that compute: one that owns the passes, and what lets a short pass in between a long one.
//!
//! In: a [`PackedBatch`]. Out: its rows, through a channel. A device does one thing at a time, so there the short pass runs between two
//! layers of the long one, on the same thread. On the CPU short passes have threads of their own, and those of a long one stop at their
//! [`Gate`] meanwhile, which they reach within a fraction of a millisecond, where a layer of a large picture takes hundreds.

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
use crate::kernels::{Gate, keep_awake};
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
    /// For short passes and for what comes while something is under way, where those have threads of their own: threads that take short
    /// turns wait less for decoders.
    between: Option<mpsc::Sender<Job>>,
    under_way: Arc<AtomicUsize>,
}

impl Lines {
    /// Has a batch computed. The receiver is told that the sender is gone when the threads are.
    pub(super) fn send(&self, batch: PackedBatch) -> oneshot::Receiver<Outcome> {
        let (reply, rows) = oneshot::channel();
        let is_second = self.under_way.fetch_add(1, Ordering::AcqRel) > 0;
        let line = match &self.between {
            Some(between) if is_second || batch.is_short => between,
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
        spawn("engine", pool, move || {
            memory.tell();
            each(&queue, |job| {
                keep_awake(|| self.pass(job, &counted, Some(&queue)).tell_one()).tell();
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
        spawn("engine", pool, move || {
            each(&Mutex::new(queue), |job| {
                keep_awake(|| work.pass(job, &counted, None).tell_one()).tell();
            });
        })?;
        let counted = Arc::clone(&under_way);
        spawn("engine-urgent", between_pool, move || {
            each(&Mutex::new(between_queue), |job| {
                gate.closed(|| keep_awake(|| second.pass(job, &counted, None).tell_one()))
                    .tell();
            });
        })?;
        Ok(Lines {
            whole,
            between: Some(between),
            under_way,
        })
    }

    /// Computes a batch; with `jobs`, one that comes meanwhile has a pass of its own between two layers of this one.
    fn pass(&self, job: Job, under_way: &AtomicUsize, jobs: Option<&Jobs>) -> Answer {
        let between = || {
            self.heart.beat();
            let jobs = jobs.and_then(|jobs| jobs.try_lock().ok());
            let next = jobs.and_then(|jobs| jobs.try_recv().ok());
            // One, not all: the long pass gets on with a layer for each.
            if let Some(job) = next {
                self.pass(job, under_way, None).tell();
            }
        };
        self.heart.beat();
        // The encoder is only read and what is kept is kept whole or not at all, so a panic leaves nothing half-done behind.
        let pass = AssertUnwindSafe(|| self.compute(&job.batch, &between));
        let outcome = catch_unwind(pass).unwrap_or(Err(EngineError::Panicked));
        if under_way.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.heart.rest();
        }
        Answer(Some((outcome, job.reply)))
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

/// What came of a job, until it is told.
///
/// Who waits is woken on the core that sends, and for many sequences goes on there for milliseconds. So those are sent when the other
/// threads of the pass have been let go and the next one can begin; for a single sequence that would only be a wait.
struct Answer(Option<(Outcome, oneshot::Sender<Outcome>)>);

impl Answer {
    fn tell(self) {
        if let Some((outcome, reply)) = self.0 {
            // The receiver may have left; then nobody wants the rows.
            let _ = reply.send(outcome);
        }
    }

    /// Tells what came of a single sequence.
    fn tell_one(self) -> Self {
        match &self.0 {
            Some((Ok(rows), _)) if rows.len() > 1 => self,
            _ => {
                self.tell();
                Answer(None)
            }
        }
    }
}

/// Runs in a thread of the pool, so that a pass begins where its job is taken; a thread of that name keeps the pool.
fn spawn(name: &str, pool: ThreadPool, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || pool.install(run))
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
