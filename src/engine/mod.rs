//! The thread that owns the device and the model. In: a [`PackedBatch`]. Out: one [`Encoded`] a sequence.

pub mod checkpoint;
mod device;
mod download;
pub mod error;
mod fingerprint;
mod halves;
mod heartbeat;
mod hub;
mod hub_cache;
mod pass;
mod progress;
mod refusal;
mod roster;
#[cfg(test)]
mod sample_checkpoint;
mod shards;
mod sights;
mod threads;

pub use checkpoint::{Checkpoint, CheckpointSource, EMBEDDED_NAME};
pub use error::EngineError;
pub use fingerprint::{Fingerprint, hash_weights, hexadecimal};
pub use heartbeat::Heartbeat;
pub use roster::Models;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use pass::{Memory, Prefixes};
use roster::{Place, Roster};
use sights::Sights;
use threads::{Lines, Work, workers};

use crate::kernels::{Gate, Kernels, prefer_short_turns, take_usual_turns};
use crate::model::{ModelError, PackedBatch, Task};

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
    /// Int8 weights and activations in the linear layers, bf16 elsewhere; on the CPU.
    Int8,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineSettings {
    /// Number format.
    pub dtype: DtypeChoice,
    /// Device.
    pub device: DeviceChoice,
    /// CPU threads of a forward pass; 0 is one for each available core.
    pub threads: usize,
    /// Most bytes of keys and values that are kept for the prefixes requests have in common; 0 keeps none.
    pub max_prefix_bytes: usize,
    /// Most bytes of what the vision tower said of pictures and videos that may come again; 0 keeps nothing.
    pub max_vision_bytes: usize,
    /// How long the device thread may have work and give no sign of getting on with it; zero is for ever. It gives one at every layer.
    pub watchdog: Duration,
}

impl Default for EngineSettings {
    fn default() -> Self {
        EngineSettings {
            dtype: DtypeChoice::default(),
            device: DeviceChoice::default(),
            threads: 0,
            max_prefix_bytes: 256 << 20,
            max_vision_bytes: 0,
            watchdog: Duration::from_secs(300),
        }
    }
}

/// What runs where, for people and for `/v1/models`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineInfo {
    /// "cpu", "cuda:0", "metal".
    pub device: String,
    /// "f32", "bf16", "int8".
    pub dtype: &'static str,
    /// The kernels it computes with: of the host with its instruction set, or of a device. The bits of a vector depend on them.
    pub kernels: String,
    /// CPU threads of a forward pass.
    pub threads: usize,
    /// Width of a vector before truncation.
    pub hidden_size: usize,
    /// `max_position_embeddings` of the checkpoint.
    pub max_position_embeddings: usize,
    /// Parameters in use.
    pub parameters: u64,
    /// Whether what sequences begin with is computed once for all that begin with it.
    pub reuses_prefixes: bool,
}

/// What came of one sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// `[hidden_size]`: pooled, after the final norm, not normalised. Of a [`Task::Rerank`] `[1]`: the logit of "yes" over "no".
    pub row: Vec<f32>,
    /// How many of its first tokens were not computed again, their keys and values being kept from an earlier pass.
    pub cached_tokens: usize,
}

impl Encoded {
    fn new(row: Vec<f32>, cached_tokens: usize) -> Self {
        Encoded { row, cached_tokens }
    }
}

/// The handle of the engine's threads. Cloning it clones the handle; they end when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Engine {
    lines: Lines,
    infos: Arc<[Option<EngineInfo>; 2]>,
    heart: Heartbeat,
}

impl Engine {
    /// Picks the device, loads the weights of an embedder and starts the thread.
    ///
    /// # Errors
    /// [`EngineError`] when the device is absent or the weights do not fit the configuration.
    pub fn start(checkpoint: &Checkpoint, settings: EngineSettings) -> Result<Self, EngineError> {
        let models = Models {
            embedder: Some(checkpoint),
            reranker: None,
        };
        Self::start_with(models, settings)
    }

    /// The same with an embedder, a reranker or both. One thread computes for both, so that neither's work waits for a device the
    /// other's holds.
    ///
    /// # Errors
    /// [`EngineError`] when the device is absent or the weights of a model do not fit its configuration.
    pub fn start_with(models: Models<'_>, settings: EngineSettings) -> Result<Self, EngineError> {
        let picked = device::pick(settings.device, settings.dtype)?;
        let refused = |reason: String| EngineError::Device {
            device: picked.device.clone(),
            reason,
        };
        let gate = Arc::new(Gate::default());
        let guarded = Arc::clone(&gate);
        let pool = workers("encoder", settings.threads)
            .start_handler(move |_| {
                take_usual_turns();
                Gate::guard_this_thread(Arc::clone(&guarded));
            })
            .build()
            .map_err(|error| refused(error.to_string()))?;
        let memory = device::MemoryProbe::new(&picked);
        let is_host = matches!(picked.kernels, Kernels::Host { .. });
        let place = Place {
            kernels: picked.kernels,
            device: picked.device.clone(),
            dtype: picked.dtype,
            threads: pool.current_num_threads(),
        };
        // Inside the pool: weights are packed by the threads that will multiply them.
        let (roster, infos) = pool.install(|| Roster::load(models, &place))?;
        let heart = Heartbeat::new(settings.watchdog);
        let work = Work {
            roster,
            memory: Mutex::new(Memory {
                prefixes: Prefixes::new(settings.max_prefix_bytes),
                sights: Sights::new(settings.max_vision_bytes),
            }),
            heart: heart.clone(),
        };
        let lines = if is_host {
            let between = workers("urgent", settings.threads)
                .start_handler(|_| prefer_short_turns())
                .build()
                .map_err(|error| refused(error.to_string()))?;
            work.on_the_host(pool, (between, gate))
        } else {
            work.on_a_device(pool, memory)
        };
        Ok(Engine {
            lines: lines.map_err(|error| refused(error.to_string()))?,
            infos: Arc::new(infos),
            heart,
        })
    }

    /// What computes a task where; `None` where no model for it is loaded.
    pub fn info(&self, task: Task) -> Option<&EngineInfo> {
        self.infos[task as usize].as_ref()
    }

    /// Whether the thread gets on with its work.
    pub fn heartbeat(&self) -> &Heartbeat {
        &self.heart
    }

    /// One forward pass: one [`Encoded`] for each sequence, in order. It begins now, not when the future is first polled. While another is
    /// under way it comes in between: whoever sends a second before the first is answered wants that.
    ///
    /// # Errors
    /// [`EngineError::Panicked`], [`EngineError::Forward`] or [`EngineError::OutOfMemory`] when the pass failed: the thread lives on.
    /// [`EngineError::Lost`] or [`EngineError::Stopped`] when no further pass can succeed.
    pub fn encode(
        &self,
        batch: PackedBatch,
    ) -> impl Future<Output = Result<Vec<Encoded>, EngineError>> + Send + use<> {
        // From here on: a thread that never takes the batch up has stalled too.
        self.heart.beat();
        let rows = self.lines.send(batch);
        async move { rows.await.map_err(|_| EngineError::Stopped)? }
    }
}

impl From<ModelError> for EngineError {
    fn from(error: ModelError) -> Self {
        let reason = |error: &dyn std::error::Error| {
            error
                .source()
                .map_or_else(|| error.to_string(), |source| source.to_string())
        };
        match error {
            ModelError::MissingTensor { name } => EngineError::Tensor {
                name,
                reason: "it is missing".to_owned(),
            },
            ModelError::Tensor { ref name, .. } => EngineError::Tensor {
                name: name.clone(),
                reason: reason(&error),
            },
            ModelError::Device(_) => EngineError::Forward {
                reason: reason(&error),
            },
            ModelError::Json(_) => EngineError::Config {
                reason: error.to_string(),
            },
            ModelError::Unsupported {
                field,
                found,
                supported,
            } => EngineError::Config {
                reason: format!("{field} is {found}, supported is {supported}"),
            },
        }
    }
}
