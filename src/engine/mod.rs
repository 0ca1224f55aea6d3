//! The thread that owns the device and the model. In: a [`PackedBatch`](crate::model::PackedBatch). Out: one row a sequence.

pub mod checkpoint;
mod download;
pub mod error;
mod hub;
mod hub_cache;
mod progress;
mod refusal;
#[cfg(test)]
mod sample_checkpoint;
mod shards;

pub use checkpoint::{Checkpoint, CheckpointSource};
pub use error::EngineError;

use crate::model::PackedBatch;

/// Which number format the model computes in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DtypeChoice {
    /// `bf16` where the device computes it natively, else `f32`.
    #[default]
    Auto,
    /// Single precision.
    F32,
    /// Brain floating point, f32 accumulation.
    Bf16,
}

/// Which device the model runs on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// CUDA, else Metal, else the CPU: the first that was built in and is present.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A CUDA device by ordinal.
    Cuda(usize),
    /// The default Metal device.
    Metal,
}

/// How the engine runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineSettings {
    /// Number format.
    pub dtype: DtypeChoice,
    /// Device.
    pub device: DeviceChoice,
    /// CPU threads of a forward pass; 0 is one for each available core.
    pub threads: usize,
}

/// What runs where, for people and for `/v1/models`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineInfo {
    /// "cpu", "cuda:0", "metal".
    pub device: String,
    /// "f32", "bf16".
    pub dtype: &'static str,
    /// CPU threads of a forward pass.
    pub threads: usize,
    /// Width of a vector before truncation.
    pub hidden_size: usize,
    /// `max_position_embeddings` of the checkpoint.
    pub max_position_embeddings: usize,
    /// Parameters in use.
    pub parameters: u64,
}

/// The handle of the engine thread. Cloning it clones the handle; the thread ends when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Engine {}

impl Engine {
    /// Picks the device, loads the weights and starts the thread.
    ///
    /// # Errors
    /// [`EngineError`] when the device is absent or the weights do not fit the configuration.
    pub fn start(_checkpoint: &Checkpoint, _settings: EngineSettings) -> Result<Self, EngineError> {
        unimplemented!()
    }

    /// What runs where.
    pub fn info(&self) -> &EngineInfo {
        unimplemented!()
    }

    /// One forward pass: one pooled row (`[hidden_size]`, after the final norm, not normalised) for each sequence, in order.
    ///
    /// # Errors
    /// [`EngineError::Panicked`] or [`EngineError::Forward`] when the pass failed: the thread lives on.
    /// [`EngineError::Stopped`] when it does not.
    pub async fn encode(&self, _batch: PackedBatch) -> Result<Vec<Vec<f32>>, EngineError> {
        unimplemented!()
    }
}
