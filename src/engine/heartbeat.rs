//! Whether the device thread gets on: it beats when it begins with a batch and at every layer, so that a pass may take as long as it
//! needs, but not one layer of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What stands for no work: no number of milliseconds a process lives.
const AT_REST: u64 = u64::MAX;

/// The last sign of life of a thread that has work. Cloning it clones the handle.
#[derive(Debug, Clone)]
pub struct Heartbeat {
    began: Instant,
    last_ms: Arc<AtomicU64>,
    limit: Duration,
}

impl Heartbeat {
    /// A thread at rest, which counts as stalled when it has work and gives no sign for `limit`; zero is never.
    pub fn new(limit: Duration) -> Self {
        Heartbeat {
            began: Instant::now(),
            last_ms: Arc::new(AtomicU64::new(AT_REST)),
            limit,
        }
    }

    /// It has work, and gets on with it.
    pub fn beat(&self) {
        let now_ms = self.began.elapsed().as_millis() as u64;
        self.last_ms.store(now_ms, Ordering::Relaxed);
    }

    /// It has no work.
    pub fn rest(&self) {
        self.last_ms.store(AT_REST, Ordering::Relaxed);
    }

    /// How long it has had work and given no sign.
    pub fn silence(&self) -> Duration {
        match self.last_ms.load(Ordering::Relaxed) {
            AT_REST => Duration::ZERO,
            last_ms => {
                let now = self.began.elapsed();
                now.saturating_sub(Duration::from_millis(last_ms))
            }
        }
    }

    /// Whether that is longer than it may.
    pub fn is_stalled(&self) -> bool {
        !self.limit.is_zero() && self.silence() > self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_silence_with_work_at_hand_is_a_stall() {
        let heart = Heartbeat::new(Duration::from_millis(20));
        let pause = || std::thread::sleep(Duration::from_millis(40));
        pause();
        assert!(!heart.is_stalled(), "it has no work");
        heart.beat();
        assert!(!heart.is_stalled());
        pause();
        assert!(heart.is_stalled() && heart.silence() >= Duration::from_millis(39));
        heart.beat();
        assert!(!heart.is_stalled(), "it got on");
        pause();
        heart.rest();
        assert!(!heart.is_stalled(), "it is done");
        let off = Heartbeat::new(Duration::ZERO);
        off.beat();
        pause();
        assert!(!off.is_stalled());
    }
}
