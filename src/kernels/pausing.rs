//! Where the threads of a long forward pass stop while a short one, for which somebody waits, has the cores.
//!
//! A picture's pass takes many times as long as a query's and one operation of it still a large part of that, so it is stopped inside the
//! operations: between two tiles, a fraction of a millisecond. What it has computed stays as it is, so no bit of it changes. There it also
//! lets other threads of the machine have the core.

use std::cell::OnceCell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::turns::let_others_in;

/// Open, until somebody closes it.
#[derive(Debug, Default)]
pub struct Gate {
    /// How many keep it closed.
    closed: AtomicUsize,
    lock: Mutex<()>,
    opened: Condvar,
}

thread_local! {
    /// Where this thread stops.
    static GATE: OnceCell<Arc<Gate>> = const { OnceCell::new() };
}

impl Gate {
    /// Has this thread stop where `gate` is closed, from now on; the first gate it is given stays.
    pub fn guard_this_thread(gate: Arc<Gate>) {
        GATE.with(|own| {
            // A thread of a pool is set up once.
            let _ = own.set(gate);
        });
    }

    /// Runs `work` with the gate closed: the threads it guards stop within a tile, those of `work` must not be among them.
    pub fn closed<T>(&self, work: impl FnOnce() -> T) -> T {
        /// Opens it, also when the work panics.
        struct Closed<'a>(&'a Gate);
        impl Drop for Closed<'_> {
            fn drop(&mut self) {
                let _held = self.0.lock.lock().unwrap_or_else(PoisonError::into_inner);
                self.0.closed.fetch_sub(1, Ordering::Release);
                self.0.opened.notify_all();
            }
        }
        self.closed.fetch_add(1, Ordering::Release);
        let _closed = Closed(self);
        work()
    }

    fn pass(&self) {
        if self.closed.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while self.closed.load(Ordering::Acquire) > 0 {
            held = self
                .opened
                .wait(held)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// In a thread that has a gate: lets others have the core now and then, and stops while the gate is closed. Not to be called with anything
/// locked.
pub(super) fn give_way() {
    GATE.with(|own| {
        if let Some(gate) = own.get() {
            let_others_in();
            gate.pass();
        }
    });
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    use super::*;

    #[test]
    fn guarded_threads_stand_still_while_it_is_closed_and_others_do_not() {
        let gate = Arc::new(Gate::default());
        let (steps, done) = (AtomicUsize::new(0), AtomicBool::new(false));
        let walk = || {
            while !done.load(Ordering::Acquire) {
                give_way();
                steps.fetch_add(1, Ordering::AcqRel);
            }
        };
        let until_more_than = |count| {
            while steps.load(Ordering::Acquire) <= count {
                std::thread::yield_now();
            }
        };
        std::thread::scope(|scope| {
            let guarded = Arc::clone(&gate);
            scope.spawn(move || {
                Gate::guard_this_thread(guarded);
                walk();
            });
            until_more_than(0);
            let moved = gate.closed(|| {
                // One step may have begun before.
                std::thread::sleep(Duration::from_millis(20));
                let before = steps.load(Ordering::Acquire);
                std::thread::sleep(Duration::from_millis(50));
                give_way();
                steps.load(Ordering::Acquire) - before
            });
            assert_eq!(moved, 0);
            until_more_than(steps.load(Ordering::Acquire));
            let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                gate.closed(|| panic!("a pass that fails"));
            }));
            assert!(panicked.is_err());
            until_more_than(steps.load(Ordering::Acquire));
            done.store(true, Ordering::Release);
        });
    }
}
