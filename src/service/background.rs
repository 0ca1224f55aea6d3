//! The threads that read large requests, decode and resize: of each kind one for each core, behind everything else that wants the cores.
//!
//! In: blocking work. Out: what it returned. A large picture keeps a core busy for a tenth of a second, the JSON it came in for some
//! milliseconds, and as many of them as there are cores would take half of the encoder's time and make every answer wait for the
//! scheduler's turn. With a lower priority they take what the encoder leaves; when that has nothing to do, which is when it waits for
//! pictures, this is all of it.

use std::io;
use std::sync::Arc;

use rayon::{ThreadPool, ThreadPoolBuilder};
use tokio::sync::oneshot;

use super::metronome::Metronome;
use crate::kernels::take_usual_turns;

/// Added to the nice value: the kernel gives such a thread a tenth of a core that another one wants too.
#[cfg(target_os = "linux")]
const NICER: i32 = 10;

/// The pool. Cloning it clones the handle.
#[derive(Debug, Clone)]
pub struct Background {
    pool: Arc<ThreadPool>,
    metronome: Arc<Metronome>,
}

impl Background {
    /// Starts so many threads, for media.
    ///
    /// # Errors
    /// When the system gives none.
    pub fn new(threads: usize) -> io::Result<Self> {
        Self::start("media", threads, Arc::new(Metronome::new(threads)?))
    }

    /// Starts as many others of that name, for work that should not queue behind that of these.
    ///
    /// # Errors
    /// When the system gives none.
    pub fn others(&self, name: &'static str) -> io::Result<Self> {
        let threads = self.pool.current_num_threads();
        Self::start(name, threads, Arc::clone(&self.metronome))
    }

    fn start(name: &'static str, threads: usize, metronome: Arc<Metronome>) -> io::Result<Self> {
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(move |i| format!("{name}-{i}"))
            .start_handler(|_| step_back())
            .build();
        Ok(Background {
            pool: Arc::new(pool.map_err(io::Error::other)?),
            metronome,
        })
    }

    /// Runs `work` when its turn comes, in the order of the calls; not at all when nobody waits for it any more by then. `None`: it
    /// panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (sender, receiver) = oneshot::channel();
        let metronome = Arc::clone(&self.metronome);
        self.pool.spawn_fifo(move || {
            if sender.is_closed() {
                return;
            }
            let work = std::panic::AssertUnwindSafe(|| metronome.during(work));
            // A panic drops the sender; it has been logged where it happened.
            if let Ok(done) = std::panic::catch_unwind(work) {
                let _ = sender.send(done);
            }
        });
        receiver.await.ok()
    }
}

/// Lowers the priority of this thread, and takes back the short turns of the one it was started by. Only Linux has one for each thread; elsewhere they compete as equals.
fn step_back() {
    take_usual_turns();
    #[cfg(target_os = "linux")]
    {
        let nice = rustix::process::getpriority_process(None).unwrap_or(0);
        // Where it is refused they compete as equals.
        let _ = rustix::process::setpriority_process(None, (nice + NICER).min(19));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_no_answer_and_the_next_work_is_done() {
        let pool = Background::new(1).unwrap();
        assert_eq!(pool.run(|| -> u32 { panic!("decoder") }).await, None);
        assert_eq!(pool.run(|| 7).await, Some(7));
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn its_threads_step_back_and_this_one_does_not() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let before = nice();
        let pool = Background::new(2).unwrap();
        let theirs = pool.run(nice).await.unwrap();
        assert_eq!(theirs, (before + NICER).min(19));
        assert_eq!(nice(), before);
    }

    #[tokio::test]
    async fn work_nobody_waits_for_any_more_is_not_begun() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let pool = Background::new(1).unwrap();
        let (begun, (go, wait)) = (Arc::new(AtomicBool::new(false)), std::sync::mpsc::channel());
        let first = tokio::spawn({
            let pool = pool.clone();
            async move { pool.run(move || wait.recv().is_ok()).await }
        });
        tokio::task::yield_now().await;
        let flag = Arc::clone(&begun);
        let left = pool.run(move || flag.store(true, Ordering::SeqCst));
        assert!(futures_util::poll!(std::pin::pin!(left)).is_pending());
        go.send(()).unwrap();
        assert_eq!(first.await.unwrap(), Some(true));
        assert_eq!(pool.run(|| 1).await, Some(1));
        assert!(!begun.load(Ordering::SeqCst));
    }
}
