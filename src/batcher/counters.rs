//! What the batcher has done and what it holds, as plain numbers: for metrics and for tests.

use std::time::Duration;

use super::cost::Cost;
use super::{BatcherError, Priority};
use crate::telemetry::backlog::{BatcherReading, LaneDepth};

/// What waits in a lane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Inputs.
    pub inputs: usize,
    /// Their tokens and bytes.
    pub cost: Cost,
    /// How long the device is expected to take for them.
    pub expected: Duration,
}

/// Requests that were not let in, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Refused {
    /// The queue was full.
    pub full: u64,
    /// What waited would have taken longer than the request had.
    pub too_late: u64,
    /// Its time was up when it came.
    pub expired: u64,
    /// The server was stopping.
    pub draining: u64,
    /// The device was gone.
    pub unavailable: u64,
}

/// One moment of the batcher. What is not said to be of now counts from the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// What waits now, by lane: see [`Self::waiting_in`].
    pub(super) waiting: [Waiting; 2],
    /// Bytes of pixels held now, from when they are decoded until they are computed.
    pub pixel_bytes: usize,
    /// Inputs in the pass that runs now.
    pub running_inputs: usize,
    /// Most tokens of a pass the device was found to have memory for, where it ran out.
    pub learned_max_tokens: Option<usize>,
    /// Requests that were not let in.
    pub refused: Refused,
    /// Inputs that were let in to be computed.
    pub inputs: u64,
    /// Inputs that were the same as one in flight and shared its computation.
    pub computed_once: u64,
    /// Inputs whose client left.
    pub left: u64,
    /// Inputs whose time was up before they were computed.
    pub expired: u64,
    /// Passes that succeeded.
    pub batches: u64,
    /// Inputs of those.
    pub batch_inputs: u64,
    /// Text tokens of those.
    pub text_tokens: u64,
    /// Vision tokens of those.
    pub vision_tokens: u64,
    /// Time of those.
    pub computing: Duration,
    /// Passes that failed, whatever became of their members.
    pub failed_batches: u64,
    /// Those of them for which the device had not enough memory.
    pub out_of_memory: u64,
    /// Inputs that failed for good.
    pub failed_inputs: u64,
    /// Inputs found in the cache.
    pub cache_hits: u64,
    /// Inputs looked for in the cache in vain.
    pub cache_misses: u64,
    /// Bytes of the cache in use now.
    pub cache_bytes: u64,
}

impl Counters {
    /// What waits now in a lane.
    pub fn waiting_in(&self, lane: Priority) -> Waiting {
        self.waiting[lane as usize]
    }

    /// The same as a scraper reads it; `max_tokens` is what a pass may have where the device has memory.
    pub(super) fn reading(&self, max_tokens: usize) -> BatcherReading {
        let lane = |lane, priority| {
            let waiting = self.waiting_in(priority);
            LaneDepth {
                lane,
                sequences: waiting.inputs as u64,
                tokens: waiting.cost.tokens() as u64,
                expected: waiting.expected,
            }
        };
        let Refused {
            full,
            too_late,
            expired,
            draining,
            unavailable,
        } = self.refused;
        let max_tokens = self
            .learned_max_tokens
            .map_or(max_tokens, |learned| learned.min(max_tokens));
        BatcherReading {
            lanes: vec![
                lane("interactive", Priority::Interactive),
                lane("bulk", Priority::Bulk),
            ],
            refused: vec![
                ("full", full),
                ("too_late", too_late),
                ("expired", expired),
                ("draining", draining),
                ("unavailable", unavailable),
            ],
            dropped: vec![
                ("left", self.left),
                ("expired", self.expired),
                ("failed", self.failed_inputs),
            ],
            shared: self.computed_once,
            failed: vec![
                ("out_of_memory", self.out_of_memory),
                ("fault", self.failed_batches - self.out_of_memory),
            ],
            max_tokens: max_tokens as u64,
            pixel_bytes: self.pixel_bytes as u64,
            cache_bytes: self.cache_bytes,
        }
    }

    pub(super) fn refuse(&mut self, refusal: &BatcherError) {
        let counter = match refusal {
            BatcherError::Overloaded { .. } | BatcherError::TooManyPixels { .. } => {
                &mut self.refused.full
            }
            BatcherError::TooLate { .. } => &mut self.refused.too_late,
            BatcherError::Expired => &mut self.refused.expired,
            BatcherError::Draining => &mut self.refused.draining,
            BatcherError::Unavailable | BatcherError::Failed(_) => &mut self.refused.unavailable,
        };
        *counter += 1;
    }
}
