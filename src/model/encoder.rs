//! The whole encoder: vision tower, language model, pooling.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::config::ModelConfig;
use super::input::{PackedBatch, Patches};
use super::parameters::Parameters;
use super::prefix::{Kept, Reuse};
use super::rope::text_rope;
use super::text::{Packing, TextModel, View};
use super::vision::{VisionFeatures, VisionTower};
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
    ) -> Result<(Tensor, Kept)> {
        self.run(batch, reuse, trace)
    }

    /// Bytes that keys and values of so many tokens take on the CPU, all layers.
    pub fn prefix_bytes(&self, tokens: usize) -> usize {
        let text = &self.config.text;
        let numbers = 2 * text.heads.kv_heads * text.heads.head_dim;
        tokens * text.num_hidden_layers * numbers * size_of::<f32>()
    }

    /// Bytes that what the vision tower says of so many vision tokens takes on the CPU.
    pub fn feature_bytes(&self, vision_tokens: usize) -> usize {
        let layers = 1 + self.config.vision.deepstack_visual_indexes.len();
        vision_tokens * layers * self.config.text.hidden_size * size_of::<f32>()
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
    ) -> Result<(Tensor, Kept)> {
        let kernels = &self.kernels;
        let mut x = self.language_model.embed(&batch.input_ids, kernels)?; // [tokens, hidden]
        let (views, kept_features) = self.look(batch, reuse, trace)?;
        for view in &views {
            x = kernels.replace_rows(x, &view.rows, &view.features.merged)?;
        }
        let text = &self.config.text;
        let packing = Packing {
            cu_seqlens: &batch.cu_seqlens,
            views: &views,
            rope: text_rope(
                &batch.position_ids,
                text.rope_theta,
                text.mrope_section,
                kernels,
            )?,
            reuse,
        };
        let (pooled, prefixes) = self.language_model.forward(x, &packing, kernels, trace)?;
        let pooled = pooled.to_tensor()?.to_dtype(candle_core::DType::F32)?;
        let kept = Kept {
            prefixes,
            features: kept_features,
        };
        Ok((pooled, kept))
    }

    /// What the tower says of a batch's media: those not seen before together, then each of the others.
    fn look(
        &self,
        batch: &PackedBatch,
        reuse: Reuse<'_>,
        trace: Trace<'_>,
    ) -> Result<(Vec<View>, Vec<VisionFeatures>)> {
        let spans = batch.vision_spans();
        let seen = |i: usize| reuse.seen.get(i).and_then(Option::as_ref);
        let new: Vec<usize> = (0..spans.len()).filter(|&i| seen(i).is_none()).collect();
        let mut views = Vec::new();
        let mut kept = Vec::new();
        if !new.is_empty() {
            let media: Vec<&Patches> = new.iter().map(|&i| &*batch.media[i]).collect();
            let features = self.visual.forward(&media, &self.kernels, trace)?;
            let mut rows = Vec::new();
            let mut places = vec![0..0; spans.len()];
            for &i in &new {
                places[i] = rows.len()..rows.len() + spans[i].len();
                rows.extend_from_slice(&batch.vision_rows[spans[i].clone()]);
            }
            for &i in reuse.keep_media {
                kept.push(features.part(places[i].clone(), &self.kernels)?);
            }
            let features = Arc::new(features);
            views.push(View { rows, features });
        }
        for (i, span) in spans.into_iter().enumerate() {
            if let Some(features) = seen(i) {
                let rows = batch.vision_rows[span].to_vec();
                let features = Arc::clone(features);
                views.push(View { rows, features });
            }
        }
        Ok((views, kept))
    }
}
