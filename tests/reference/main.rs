//! Ours against tensors from transformers, stage by stage, so that a fault names its stage.
//!
//! Tolerances stand at the assertions; `tests/fixtures/README.md` says how the fixtures were made.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should stop where it is"
)]

mod batches;
mod encoder;
mod fixture;
mod prompt;
mod rerank;
