//! Threads that stay awake between the steps of a forward pass.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::pausing::give_way;

/// How long the work waits for threads to wake up: about as long as that takes them on cores that have nothing else to do.
const WAKING: Duration = Duration::from_micros(100);

/// Runs `work` while the other threads of the rayon pool it is called in look for work without going to sleep.
///
/// A forward pass is hundreds of short parallel steps: waking a thread for each would cost a short input more than its arithmetic.
/// Between the steps a waiting thread yields to whoever else wants the core.
///
/// A thread that is not awake when the work begins sleeps as rayon has it. It may be in the midst of a part of the work already, waiting
/// for another part, when it finds that it should stay awake; there it would stay, and the work would wait for its part for ever.
pub fn keep_awake<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    /// Lets the threads go, also when the work panics.
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }
    let (awake, has_begun, done) = (
        AtomicUsize::new(0),
        AtomicBool::new(false),
        AtomicBool::new(false),
    );
    let own = rayon::current_thread_index();
    rayon::scope(|scope| {
        // A broadcast, not a spawned task: this thread would take that up itself while it waits for a step, and never return.
        scope.spawn_broadcast(|_, context| {
            // A thread that has taken up a part of the work has seen that it has begun.
            if Some(context.index()) == own || has_begun.load(Ordering::Acquire) {
                return;
            }
            awake.fetch_add(1, Ordering::Release);
            while !done.load(Ordering::Acquire) {
                give_way();
                if rayon::yield_now() != Some(rayon::Yield::Executed) {
                    std::thread::yield_now();
                }
            }
        });
        let _done = Done(&done);
        let (others, called) = (rayon::current_num_threads() - 1, Instant::now());
        while awake.load(Ordering::Acquire) < others && called.elapsed() < WAKING {
            std::thread::yield_now();
        }
        has_begun.store(true, Ordering::Release);
        work()
    })
}
