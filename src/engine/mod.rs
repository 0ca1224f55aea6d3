//! The thread that owns the device and the model. In: a [`PackedBatch`]. Out: one [`Encoded`] a sequence.

pub mod checkpoint;
mod device;
mod download;
pub mod error;
mod heartbeat;
mod hub;
mod hub_cache;
mod pass;
mod progress;
mod refusal;
#[cfg(test)]
mod sample_checkpoint;
mod shards;
mod sights;

pub use checkpoint::{Checkpoint, CheckpointSource};
pub use error::EngineError;
pub use heartbeat::Heartbeat;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;

use pass::{Memory, Prefixes};
use sights::Sights;

use crate::kernels::keep_awake;
use crate::model::{ModelError, PackedBatch, Qwen3VlEncoder};

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
    /// CPU threads of a forward pass.
    pub threads: usize,
    /// Width of a vector before truncation.
    pub hidden_size: usize,
    /// `max_position_embeddings` of the checkpoint.
    pub max_position_embeddings: usize,
    /// Parameters in use.
    pub parameters: u64,
}

/// What came of one sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// `[hidden_size]`: pooled, after the final norm, not normalised.
    pub row: Vec<f32>,
    /// How many of its first tokens were not computed again, their keys and values being kept from an earlier pass.
    pub cached_tokens: usize,
}

impl Encoded {
    fn new(row: Vec<f32>, cached_tokens: usize) -> Self {
        Encoded { row, cached_tokens }
    }
}

type Outcome = Result<Vec<Encoded>, EngineError>;

/// A batch and where its rows go.
struct Job {
    batch: PackedBatch,
    reply: oneshot::Sender<Outcome>,
}

/// The handle of the engine thread. Cloning it clones the handle; the thread ends when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Engine {
    jobs: mpsc::Sender<Job>,
    info: Arc<EngineInfo>,
    heart: Heartbeat,
}

impl Engine {
    /// Picks the device, loads the weights and starts the thread.
    ///
    /// # Errors
    /// [`EngineError`] when the device is absent or the weights do not fit the configuration.
    pub fn start(checkpoint: &Checkpoint, settings: EngineSettings) -> Result<Self, EngineError> {
        let config = checkpoint.model_config()?;
        let picked = device::pick(settings.device, settings.dtype)?;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(settings.threads)
            .thread_name(|i| format!("encoder-{i}"))
            .build()
            .map_err(|error| EngineError::Device {
                device: picked.device.clone(),
                reason: error.to_string(),
            })?;
        // Inside the pool: weights are packed by the threads that will multiply them.
        let encoder =
            pool.install(|| Qwen3VlEncoder::load(&config, &checkpoint.weights, picked.kernels))?;
        let head = checkpoint
            .weights
            .get("lm_head.weight")
            .map_or(0, |tensor| tensor.elements());
        let all: usize = checkpoint
            .weights
            .values()
            .map(|tensor| tensor.elements())
            .sum();
        let info = EngineInfo {
            device: picked.device.clone(),
            dtype: picked.dtype,
            threads: pool.current_num_threads(),
            hidden_size: config.text.hidden_size,
            max_position_embeddings: config.text.max_position_embeddings,
            parameters: (all - head) as u64,
        };
        let heart = Heartbeat::new(settings.watchdog);
        let work = Work {
            encoder,
            pool,
            memory: Mutex::new(Memory {
                prefixes: Prefixes::new(settings.max_prefix_bytes),
                sights: Sights::new(settings.max_vision_bytes),
            }),
            heart: heart.clone(),
        };
        let (jobs, queue) = mpsc::channel::<Job>();
        thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || work.run(&Mutex::new(queue)))
            .map_err(|error| EngineError::Device {
                device: picked.device,
                reason: error.to_string(),
            })?;
        Ok(Engine {
            jobs,
            info: Arc::new(info),
            heart,
        })
    }

    /// What runs where.
    pub fn info(&self) -> &EngineInfo {
        &self.info
    }

    /// Whether the thread gets on with its work.
    pub fn heartbeat(&self) -> &Heartbeat {
        &self.heart
    }

    /// One forward pass: one [`Encoded`] for each sequence, in order. It begins now, not when the future is first polled.
    ///
    /// # Errors
    /// [`EngineError::Panicked`], [`EngineError::Forward`] or [`EngineError::OutOfMemory`] when the pass failed: the thread lives on.
    /// [`EngineError::Lost`] or [`EngineError::Stopped`] when no further pass can succeed.
    pub fn encode(
        &self,
        batch: PackedBatch,
    ) -> impl Future<Output = Result<Vec<Encoded>, EngineError>> + Send + use<> {
        let (reply, rows) = oneshot::channel();
        // From here on: a thread that never takes the batch up has stalled too.
        self.heart.beat();
        let sent = self.jobs.send(Job { batch, reply }).is_ok();
        async move {
            if !sent {
                return Err(EngineError::Stopped);
            }
            rows.await.map_err(|_| EngineError::Stopped)?
        }
    }
}

/// Where batches come from. Locked by the engine thread, or by the pass it waits for.
type Jobs = Mutex<mpsc::Receiver<Job>>;

/// What the thread works with.
struct Work {
    encoder: Qwen3VlEncoder,
    pool: rayon::ThreadPool,
    memory: Mutex<Memory>,
    heart: Heartbeat,
}

impl Work {
    /// Until the last handle has gone.
    fn run(&self, jobs: &Jobs) {
        loop {
            let next = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(job) = next else {
                return;
            };
            self.heart.beat();
            let pass = || self.answer(job, Some(jobs));
            self.pool.install(|| keep_awake(pass));
            self.heart.rest();
        }
    }

    /// Computes a batch; with `jobs`, one that comes meanwhile has a pass of its own between two layers of this one. Whoever sends a
    /// second before the first is answered wants that.
    fn answer(&self, job: Job, jobs: Option<&Jobs>) {
        let between = || {
            self.heart.beat();
            let jobs = jobs.and_then(|jobs| jobs.try_lock().ok());
            let next = jobs.and_then(|jobs| jobs.try_recv().ok());
            // One, not all: the long pass gets on with a layer for each.
            if let Some(job) = next {
                self.answer(job, None);
            }
        };
        // The encoder is only read and what is kept is kept whole or not at all, so a panic leaves nothing half-done behind.
        let pass =
            AssertUnwindSafe(|| pass::run(&self.encoder, &self.memory, &job.batch, &between));
        let outcome = match catch_unwind(pass) {
            Ok(rows) => rows.map_err(|error| EngineError::of_pass(error.to_string())),
            Err(_) => Err(EngineError::Panicked),
        };
        // The receiver may have left; then nobody wants the rows.
        let _ = job.reply.send(outcome);
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
