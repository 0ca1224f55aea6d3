//! Ours against tensors from transformers, stage by stage, so that a fault names its stage.
//!
//! Tolerances stand at the assertions; `tests/fixtures/README.md` says how the fixtures were made.

mod batches;
mod encoder;
mod fixture;
mod prompt;
