//! Whose turn it is where more threads want a core than there are.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// How long a thread computes before it lets the kernel choose again.
///
/// # Source
/// `cargo bench --bench serving -- flood`, where a program of its own interrupted every core: texts beside pictures took 1.1 times as long as
/// alone at the 99th percentile when it did so each millisecond, 1.2 each 0.3 ms, 1.7 to 2.1 without it. Yielding itself was measured at
/// one millisecond only; without it, but with the beats of `service::metronome`, 1.8 and 2.2.
const CHOICE_EVERY: Duration = Duration::from_millis(1);

/// Longest turn asked for, in nanoseconds: the shortest the kernel grants. Source: `sched(7)`, Linux 6.12.
#[cfg(target_os = "linux")]
const TURN_NANOSECONDS: u64 = 100_000;

/// Asks the kernel to give this thread short turns: its share of a core stays the same, but as soon as it has something to do it interrupts
/// a thread that computes for long, where it would wait for the end of that one's turn, three milliseconds. A request is handed from
/// thread to thread half a dozen times. Threads that this one starts inherit it.
///
/// Linux 6.12 or later; elsewhere nothing changes.
pub fn prefer_short_turns() {
    #[cfg(target_os = "linux")]
    ask_for_turns(TURN_NANOSECONDS);
}

/// Takes it back, for a thread that computes for long and was started by one that does not.
pub fn take_usual_turns() {
    #[cfg(target_os = "linux")]
    ask_for_turns(0);
}

/// Has the kernel choose again who runs on this core, when a millisecond has gone since it last did so here; for the midst of long work.
///
/// Linux looks whose turn it is when a thread wakes up, and then at its ticks, 4 ms apart on many systems. One that used up its share just
/// before it slept waits for a tick, however little it wants: an answer that is ready, half a dozen times on its way.
pub fn let_others_in() {
    thread_local! {
        static CHOSEN: Cell<Option<Instant>> = const { Cell::new(None) };
    }
    let now = Instant::now();
    let is_due = CHOSEN.get().is_none_or(|at| now - at >= CHOICE_EVERY);
    if is_due {
        std::thread::yield_now();
        CHOSEN.set(Some(Instant::now()));
    }
}

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "no crate in use wraps these two system calls")]
fn ask_for_turns(nanoseconds: u64) {
    // SAFETY: it holds numbers only, for which zero is a value.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::sched_attr>();
    // SAFETY: the kernel writes no more than `size` bytes there; 0 is this thread.
    let read = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    if read != 0 {
        return;
    }
    // Policy and niceness stay what they are. Other policies than the ordinary ones give the field another meaning.
    let is_ordinary = attributes.sched_policy == libc::SCHED_OTHER as u32;
    if is_ordinary {
        attributes.sched_runtime = nanoseconds;
        // SAFETY: the kernel reads as many bytes as the first field says, which it has set itself. Where it refuses, nothing has changed.
        unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn niceness_stays_whatever_turns_are_asked_for() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        std::thread::spawn(move || {
            let before = nice() + 3;
            rustix::process::setpriority_process(None, before).unwrap();
            for ask in [prefer_short_turns, prefer_short_turns, take_usual_turns] {
                ask();
                assert_eq!(nice(), before);
            }
        })
        .join()
        .unwrap();
    }
}
