//! Which requests share a forward pass.

/// How batches are formed and when the queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchPolicy {
    /// Most tokens of one forward pass, text and vision patches / 4 together; a longer input goes alone.
    pub max_tokens: usize,
    /// Most sequences of one forward pass.
    pub max_sequences: usize,
    /// Most tokens waiting; beyond, requests are refused.
    pub max_queue_tokens: usize,
}

impl Default for BatchPolicy {
    fn default() -> Self {
        Self {
            max_tokens: 16_384,
            max_sequences: 256,
            max_queue_tokens: 1_048_576,
        }
    }
}
