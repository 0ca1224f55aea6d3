//! The whole encoder: vision tower, language model, pooling.

use candle_core::{Result, Tensor};

use super::config::ModelConfig;
use super::input::{PackedBatch, Patches};
use super::parameters::Parameters;
use super::prefix::{Prefix, Reuse};
use super::rope::text_rope;
use super::text::{Packing, TextModel};
use super::vision::VisionTower;
use super::{ModelError, Trace};
use crate::kernels::{Kernels, Sensitivity, WeightError, WeightMap};

/// Qwen3-VL as an encoder, weights in place.
#[derive(Debug)]
pub struct Qwen3VlEncoder {
    config: ModelConfig,
    kernels: Kernels,
    visual: VisionTower,
    language_model: TextModel,
}

impl Qwen3VlEncoder {
    /// Takes the weights a configuration names out of a checkpoint; others (`lm_head`) are left alone.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`] and [`ModelError::Tensor`], naming the first that does not fit.
    pub fn load(
        config: &ModelConfig,
        tensors: &WeightMap,
        kernels: Kernels,
    ) -> std::result::Result<Self, ModelError> {
        let parameters = Parameters {
            tensors,
            kernels: &kernels,
            sensitivity: Sensitivity::Ordinary,
        };
        let head = "lm_head.weight";
        if let Some(tensor) = tensors.get(head) {
            let expected = vec![config.text.vocab_size, config.text.hidden_size];
            if tensor.shape != expected {
                let reason = WeightError::Shape {
                    found: tensor.shape.clone(),
                    expected,
                };
                return Err(ModelError::Tensor {
                    name: head.to_owned(),
                    reason,
                });
            }
        }
        Ok(Qwen3VlEncoder {
            visual: VisionTower::load(&config.vision, parameters)?,
            language_model: TextModel::load(&config.text, parameters)?,
            config: config.clone(),
            kernels,
        })
    }

    /// What the weights were taken by.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// One forward pass: the last token's state of each sequence, after the final norm, not normalised to unit length.
    ///
    /// # Shapes
    /// `[sequences, hidden]`, f32.
    ///
    /// # Errors
    /// Whatever the device says.
    pub fn forward(&self, batch: &PackedBatch) -> Result<Tensor> {
        self.forward_traced(batch, &mut |_, _| Ok(()))
    }

    /// The same, showing the numbers at each stage to `trace` as they are computed.
    ///
    /// Stages, in order: `vision.patch_embed`, `vision.block{i}_in` (`[patches, vision_hidden]`), between them `vision.deepstack{k}`,
    /// `vision.merged` (`[vision_tokens, hidden]`), `text.layer{i}` (the input of layer `i`, `[tokens, hidden]`), `text.norm_in`
    /// and `text.pooled` (`[sequences, hidden]`).
    ///
    /// # Errors
    /// Whatever the device or `trace` says.
    pub fn forward_traced(&self, batch: &PackedBatch, trace: Trace<'_>) -> Result<Tensor> {
        Ok(self.run(batch, Reuse::default(), trace)?.0)
    }

    /// The same for a batch whose sequences may lack their first tokens, where these were computed before: to the same bits on the
    /// CPU. Also returns what the pass was asked to keep.
    ///
    /// # Errors
    /// Whatever the device or `trace` says.
    pub fn forward_reusing(
        &self,
        batch: &PackedBatch,
        reuse: Reuse<'_>,
        trace: Trace<'_>,
    ) -> Result<(Tensor, Vec<Prefix>)> {
        self.run(batch, reuse, trace)
    }

    /// Bytes that keys and values of so many tokens take on the CPU, all layers.
    pub fn prefix_bytes(&self, tokens: usize) -> usize {
        let text = &self.config.text;
        let numbers = 2 * text.heads.kv_heads * text.heads.head_dim;
        tokens * text.num_hidden_layers * numbers * size_of::<f32>()
    }

    /// Whether keys and values of another pass are the bits this pass would compute: on the CPU they are; libraries of other
    /// devices choose their order of sums by the size of the batch.
    pub fn can_reuse(&self) -> bool {
        matches!(self.kernels, Kernels::Host { .. })
    }

    fn run(
        &self,
        batch: &PackedBatch,
        reuse: Reuse<'_>,
        trace: Trace<'_>,
    ) -> Result<(Tensor, Vec<Prefix>)> {
        let kernels = &self.kernels;
        let mut x = self.language_model.embed(&batch.input_ids, kernels)?; // [tokens, hidden]
        let mut deepstack = Vec::new();
        if !batch.media.is_empty() {
            let media: Vec<&Patches> = batch.media.iter().map(|patches| &**patches).collect();
            let features = self.visual.forward(&media, kernels, trace)?;
            x = kernels.replace_rows(x, &batch.vision_rows, &features.merged)?;
            deepstack = features.deepstack;
        }
        let text = &self.config.text;
        let packing = Packing {
            cu_seqlens: &batch.cu_seqlens,
            vision_rows: &batch.vision_rows,
            rope: text_rope(
                &batch.position_ids,
                text.rope_theta,
                text.mrope_section,
                kernels,
            )?,
            reuse,
        };
        let (pooled, kept) =
            self.language_model
                .forward(x, &packing, (&deepstack, kernels), trace)?;
        let pooled = pooled.to_tensor()?.to_dtype(candle_core::DType::F32)?;
        Ok((pooled, kept))
    }
}
