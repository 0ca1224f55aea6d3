//! Threads that stay awake between the steps of a forward pass.

use std::sync::atomic::{AtomicBool, Ordering};

use super::pausing::give_way;

/// Runs `work` while the other threads of the rayon pool it is called in look for work without going to sleep.
///
/// A forward pass is hundreds of short parallel steps: waking a thread for each would cost a short input more than its arithmetic.
/// Between the steps a waiting thread yields to whoever else wants the core.
pub fn keep_awake<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    /// Lets the threads go, also when the work panics.
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }
    let done = AtomicBool::new(false);
    let own = rayon::current_thread_index();
    rayon::scope(|scope| {
        // A broadcast, not a spawned task: this thread would take that up itself while it waits for a step, and never return.
        scope.spawn_broadcast(|_, context| {
            while Some(context.index()) != own && !done.load(Ordering::Acquire) {
                give_way();
                if rayon::yield_now() != Some(rayon::Yield::Executed) {
                    std::thread::yield_now();
                }
            }
        });
        let _done = Done(&done);
        work()
    })
}
