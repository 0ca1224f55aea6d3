//! Has the kernel choose again who runs on each core, a thousand times a second, while pictures are decoded or large requests read.
//!
//! In: blocking work. Out: what it returned; meanwhile others wait less for a core. On Linux; elsewhere the work simply runs.
//!
//! Linux looks whose turn it is when a thread wakes up, and then at its ticks, 4 ms apart on many systems. A decoder computes for a tenth of a
//! second without a pause, in libraries that know nothing of turns. A pass that lets go of its core for a moment, because one of its threads
//! waits for another, has it back at the next tick, and that is longer than a whole pass of a small model. A thread that does nothing but wake
//! up is an occasion in between.

#[cfg(target_os = "linux")]
pub(super) use linux::Metronome;

/// Beats nowhere.
#[cfg(not(target_os = "linux"))]
#[derive(Debug)]
pub(super) struct Metronome;

#[cfg(not(target_os = "linux"))]
impl Metronome {
    pub(super) fn new(_threads: usize) -> std::io::Result<Self> {
        Ok(Metronome)
    }

    pub(super) fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        work()
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
    use std::time::Duration;
    use std::{io, thread};

    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    use crate::kernels::prefer_short_turns;

    /// Between two beats.
    ///
    /// # Source
    /// `cargo bench --bench serving -- flood --rounds 2` on two cores, p99 of texts beside pictures over p99 alone, in turn: 1.40 and 1.52
    /// without beats, 1.08 and 1.09 with one each millisecond, 1.31 and 1.49 with one each half.
    const EVERY: Duration = Duration::from_millis(1);

    /// On more cores than these nothing beats: waking all of them would take longer than a small picture, and likely another one is free.
    /// Chosen, not measured.
    const MAX_CORES: usize = 16;

    /// A thread for each core this process may use. They end with it.
    #[derive(Debug)]
    pub(in crate::service) struct Metronome(Arc<Shared>);

    #[derive(Debug, Default)]
    struct Shared {
        state: Mutex<State>,
        changed: Condvar,
        #[cfg(test)]
        beats: std::sync::atomic::AtomicUsize,
    }

    #[derive(Debug, Default)]
    struct State {
        /// How much work is under way.
        running: usize,
        has_ended: bool,
    }

    impl Metronome {
        /// For work of so many threads. Nothing beats where there are more cores than those, for then a quota of processor time says how much
        /// of them this process has, or where the system does not say which cores there are.
        ///
        /// # Errors
        /// When the system gives no thread.
        pub(in crate::service) fn new(threads: usize) -> io::Result<Self> {
            let found = Metronome(Arc::default());
            let allowed = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
            let cores = (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core));
            let cores: Vec<usize> = cores.collect();
            if cores.len() > threads.min(MAX_CORES) {
                return Ok(found);
            }
            for core in cores {
                let shared = Arc::clone(&found.0);
                thread::Builder::new()
                    .name(format!("beat-{core}"))
                    .spawn(move || shared.beat(core))?;
            }
            Ok(found)
        }

        /// Runs `work` and beats meanwhile.
        pub(in crate::service) fn during<T>(&self, work: impl FnOnce() -> T) -> T {
            /// Counts it out, also when it panics.
            struct Running<'a>(&'a Shared);
            impl Drop for Running<'_> {
                fn drop(&mut self) {
                    self.0.lock().running -= 1;
                }
            }
            let mut state = self.0.lock();
            state.running += 1;
            if state.running == 1 {
                self.0.changed.notify_all();
            }
            drop(state);
            let _running = Running(&self.0);
            work()
        }
    }

    impl Drop for Metronome {
        fn drop(&mut self) {
            self.0.lock().has_ended = true;
            self.0.changed.notify_all();
        }
    }

    impl Shared {
        fn lock(&self) -> MutexGuard<'_, State> {
            self.state.lock().unwrap_or_else(PoisonError::into_inner)
        }

        /// Waits for work; `false` when there will be none.
        fn has_work(&self) -> bool {
            let is_idle = |state: &mut State| state.running == 0 && !state.has_ended;
            let waited = self.changed.wait_while(self.lock(), is_idle);
            !waited.unwrap_or_else(PoisonError::into_inner).has_ended
        }

        fn beat(&self, core: usize) {
            prefer_short_turns();
            let mut only = CpuSet::new();
            only.set(core);
            // A core that is taken away while this starts needs no beats.
            if sched_setaffinity(None, &only).is_err() {
                return;
            }
            while self.has_work() {
                #[cfg(test)]
                self.beats
                    .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                thread::sleep(EVERY);
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use std::panic::{AssertUnwindSafe, catch_unwind};
        use std::sync::atomic::Ordering;

        use super::*;

        #[test]
        fn it_beats_during_work_alone_and_ends_with_its_handle() {
            let allowed = sched_getaffinity(None).unwrap();
            let cores = allowed.count() as usize;
            let metronome = Metronome::new(cores).unwrap();
            let shared = Arc::clone(&metronome.0);
            let beats = || shared.beats.load(Ordering::Relaxed);
            let more = |count| {
                let before = beats();
                while beats() < before + count {
                    thread::yield_now();
                }
            };
            assert_eq!(beats(), 0);
            if cores <= MAX_CORES {
                metronome.during(|| more(10));
            }
            let panicked = catch_unwind(AssertUnwindSafe(|| {
                metronome.during(|| metronome.during(|| panic!("a decoder")))
            }));
            assert!(panicked.is_err());
            assert_eq!(shared.lock().running, 0);
            let is_silent = || {
                let before = beats();
                thread::sleep(20 * EVERY);
                beats() == before
            };
            while !is_silent() {}
            let too_few = Metronome::new(cores - 1).unwrap();
            assert_eq!(Arc::strong_count(&too_few.0), 1);
            drop(metronome);
            while Arc::strong_count(&shared) > 1 {
                thread::yield_now();
            }
        }
    }
}
