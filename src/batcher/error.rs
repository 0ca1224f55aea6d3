//! Why an input was not computed: refused at the door, out of time, or failed.

use std::time::Duration;

use crate::engine::EngineError;

/// Why a sequence was not computed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BatcherError {
    /// The queue is full.
    #[error("{waiting} {unit} wait to be computed, of {limit} that may")]
    Overloaded {
        /// What of.
        unit: &'static str,
        /// How much waits.
        waiting: usize,
        /// The policy's limit.
        limit: usize,
        /// When there may be room.
        retry_after: Duration,
    },
    /// The request alone has more pixels than may be held.
    #[error("its images and videos take more than {limit} bytes, fetched and decoded")]
    TooManyPixels {
        /// The policy's limit in bytes.
        limit: usize,
    },
    /// It would not be computed in the time it has.
    #[error("what waits to be computed takes longer than the {} ms this request has left", .allowed.as_millis())]
    TooLate {
        /// The time it has.
        allowed: Duration,
        /// When what is before it will have been computed.
        retry_after: Duration,
    },
    /// Its time was up before its pass began.
    #[error("the request's time was up before it was computed")]
    Expired,
    /// The server is stopping.
    #[error("the server is stopping")]
    Draining,
    /// The forward pass failed for this input, also alone.
    #[error("the forward pass failed")]
    Failed(#[source] EngineError),
    /// The engine is gone.
    #[error("the engine is gone")]
    Unavailable,
}
