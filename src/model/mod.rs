//! Qwen3-VL as an encoder: packed sequences in, one pooled hidden state each out.
//!
//! # Shapes
//!
//! The vocabulary used in every shape of this crate:
//!
//! | name | meaning |
//! |---|---|
//! | `tokens` | language-model positions of a whole packed batch, all sequences concatenated |
//! | `sequences` | inputs of the batch; `cu_seqlens` has `sequences + 1` entries |
//! | `patches` | 16 x 16 pixel patches (two frames deep) of all images and frame pairs, concatenated |
//! | `vision_tokens` | `patches / 4`: what the patch merger hands to the language model |
//! | `hidden`, `vision_hidden` | width of the language model, of the vision tower |
//! | `heads`, `kv_heads`, `head_dim` | attention heads, their key/value groups, their width |
//!
//! # Source
//! transformers 4.57 `models/qwen3_vl/modeling_qwen3_vl.py`.

mod config;
mod encoder;
mod error;
pub mod input;
mod parameters;
mod prefix;
mod rope;
mod score_head;
mod text;
mod vision;

pub use config::{ModelConfig, TextConfig, VisionConfig};
pub use encoder::Qwen3VlEncoder;
pub use error::ModelError;
pub use input::{GridThw, MediaKey, PackedBatch, Patches, Sequence, Task, Tenant};
pub(crate) use input::{PIXEL_MEAN, PIXEL_STD};
pub use prefix::{Beginning, Kept, Past, Prefix, Reuse};
pub use score_head::{AnswerIds, ScoreHead};
pub use vision::VisionFeatures;

/// Who watches the stages of a forward pass: a name and what was computed there.
pub type Trace<'a> =
    &'a mut dyn FnMut(&str, &crate::kernels::Activations) -> candle_core::Result<()>;
