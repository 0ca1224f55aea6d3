//! The vision tower: patches in, one feature for 2 x 2 patches out, and the DeepStack features tapped on the way.

use std::ops::Range;

use candle_core::Result;

use super::config::{MERGED_PATCHES, PATCH_VALUES, VisionConfig};
use super::input::{GridThw, PIXEL_MEAN, PIXEL_STD, Patches};
use super::parameters::Parameters;
use super::rope::{merge_block_order, vision_rope};
use super::{ModelError, Trace};
use crate::kernels::{
    Activation, Activations, HeadRange, Kernels, Linear, Norm, Projections, Rope, Sensitivity,
    Spans, Table,
};

/// Source: `Qwen3VLVisionBlock`, transformers 4.57.
const LAYER_NORM_EPS: f64 = 1e-6;

/// What the tower says about pictures, one after the other.
#[derive(Debug)]
pub struct VisionFeatures {
    /// `[vision_tokens, out_hidden]`.
    pub(super) merged: Activations,
    /// One for each tap, `[vision_tokens, out_hidden]`.
    pub(super) deepstack: Vec<Activations>,
}

impl VisionFeatures {
    /// Memory in use on the CPU.
    pub fn bytes(&self) -> usize {
        let all = std::iter::once(&self.merged).chain(&self.deepstack);
        size_of::<f32>() * all.map(|x| x.rows() * x.width()).sum::<usize>()
    }

    /// A copy of some of the vision tokens.
    pub(super) fn part(&self, tokens: Range<usize>, kernels: &Kernels) -> Result<Self> {
        let rows: Vec<u32> = tokens.map(|row| row as u32).collect();
        let deepstack = self.deepstack.iter();
        Ok(VisionFeatures {
            merged: kernels.gather_rows(&self.merged, &rows)?,
            deepstack: deepstack
                .map(|x| kernels.gather_rows(x, &rows))
                .collect::<Result<_>>()?,
        })
    }
}

#[derive(Debug)]
struct Block {
    norm1: Norm,
    qkv: Linear,
    proj: Linear,
    norm2: Norm,
    linear_fc1: Linear,
    linear_fc2: Linear,
}

/// Joins 2 x 2 patches and projects them to the language model's width.
#[derive(Debug)]
struct PatchMerger {
    norm: Norm,
    /// The taps normalise the joined patches, the final merger each patch before joining.
    norm_after_join: bool,
    linear_fc1: Linear,
    linear_fc2: Linear,
}

/// The vision tower.
#[derive(Debug)]
pub(super) struct VisionTower {
    config: VisionConfig,
    patch_embed: Linear,
    pos_embed: Table,
    blocks: Vec<Block>,
    merger: PatchMerger,
    deepstack_mergers: Vec<PatchMerger>,
}

impl VisionTower {
    pub(super) fn load(
        config: &VisionConfig,
        parameters: Parameters<'_>,
    ) -> std::result::Result<Self, ModelError> {
        let parameters = parameters.with(Sensitivity::High);
        let width = config.hidden_size;
        let blocks = (0..config.depth)
            .map(|i| Block::load(config, parameters, &format!("model.visual.blocks.{i}")))
            .collect::<std::result::Result<_, _>>()?;
        let deepstack_mergers = (0..config.deepstack_visual_indexes.len())
            .map(|k| {
                let prefix = format!("model.visual.deepstack_merger_list.{k}");
                PatchMerger::load(config, parameters, &prefix, true)
            })
            .collect::<std::result::Result<_, _>>()?;
        let positions = config.position_side * config.position_side;
        Ok(VisionTower {
            config: config.clone(),
            patch_embed: parameters
                .linear("model.visual.patch_embed.proj", (width, &[3, 2, 16, 16]))?,
            pos_embed: parameters.table("model.visual.pos_embed.weight", [positions, width])?,
            blocks,
            merger: PatchMerger::load(config, parameters, "model.visual.merger", false)?,
            deepstack_mergers,
        })
    }

    /// Runs all pictures of a batch together.
    ///
    /// # Shapes
    /// `media` of `patches` patches in total -> `[vision_tokens, out_hidden]` and the taps.
    pub(super) fn forward(
        &self,
        media: &[&Patches],
        kernels: &Kernels,
        trace: Trace<'_>,
    ) -> Result<VisionFeatures> {
        let grids: Vec<GridThw> = media.iter().map(|patches| patches.grid).collect();
        let pixels = pixel_values(media, kernels)?; // [patches, 1536]
        let x = kernels.apply(&pixels, &self.patch_embed, Activation::None)?; // [patches, vision_hidden]
        trace("vision.patch_embed", &x)?;
        let mut x = kernels.add(x, &self.position_embedding(&grids, kernels)?)?;
        let rope = vision_rope(&grids, self.config.heads.head_dim, kernels)?;
        let frames = Spans::of(&frame_offsets(&grids), false);
        let mut deepstack = Vec::with_capacity(self.deepstack_mergers.len());
        for (i, block) in self.blocks.iter().enumerate() {
            trace(&format!("vision.block{i}_in"), &x)?;
            x = block.forward(x, &self.config, (&rope, &frames), kernels)?;
            if let Some(k) = self
                .config
                .deepstack_visual_indexes
                .iter()
                .position(|&tap| tap == i)
            {
                let features = self.deepstack_mergers[k].forward(&x, kernels)?;
                trace(&format!("vision.deepstack{k}"), &features)?;
                deepstack.push(features);
            }
        }
        let merged = self.merger.forward(&x, kernels)?;
        trace("vision.merged", &merged)?;
        Ok(VisionFeatures { merged, deepstack })
    }

    /// The position table, interpolated bilinearly to each grid with the corners aligned.
    ///
    /// # Shapes
    /// `[patches, vision_hidden]`.
    fn position_embedding(&self, grids: &[GridThw], kernels: &Kernels) -> Result<Activations> {
        let side = self.config.position_side;
        let mut corners: [(Vec<u32>, Vec<f32>); 4] = Default::default();
        for grid in grids {
            let (rows, columns) = (align_corners(side, grid.h), align_corners(side, grid.w));
            for _ in 0..grid.t {
                for (row, column) in merge_block_order(*grid) {
                    let (r, c) = (rows[row as usize], columns[column as usize]);
                    for (i, (ids, weights)) in corners.iter_mut().enumerate() {
                        let (row, row_weight) = if i < 2 {
                            (r.floor, 1.0 - r.part)
                        } else {
                            (r.ceil, r.part)
                        };
                        let (column, column_weight) = if i % 2 == 0 {
                            (c.floor, 1.0 - c.part)
                        } else {
                            (c.ceil, c.part)
                        };
                        ids.push(row * side as u32 + column);
                        weights.push(row_weight * column_weight);
                    }
                }
            }
        }
        kernels.interpolate(&self.pos_embed, &corners)
    }
}

impl Block {
    fn load(
        config: &VisionConfig,
        parameters: Parameters<'_>,
        prefix: &str,
    ) -> std::result::Result<Self, ModelError> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let linear = |name: &str, columns, depth| {
            let name = format!("{prefix}.{name}");
            parameters.linear(&name, (columns, &[depth]))
        };
        Ok(Block {
            norm1: parameters.layer_norm(&format!("{prefix}.norm1"), width, LAYER_NORM_EPS)?,
            qkv: linear("attn.qkv", 3 * width, width)?,
            proj: linear("attn.proj", width, width)?,
            norm2: parameters.layer_norm(&format!("{prefix}.norm2"), width, LAYER_NORM_EPS)?,
            linear_fc1: linear("mlp.linear_fc1", inner, width)?,
            linear_fc2: linear("mlp.linear_fc2", width, inner)?,
        })
    }

    /// `[patches, vision_hidden]` -> the same; each frame attends to itself.
    fn forward(
        &self,
        x: Activations,
        config: &VisionConfig,
        (rope, frames): (&Rope, &Spans),
        kernels: &Kernels,
    ) -> Result<Activations> {
        let width = config.hidden_size;
        let [qkv] = kernels.norm_apply(&x, &self.norm1, [&self.qkv])?; // [patches, 3 * vision_hidden]
        let queries_and_keys = HeadRange {
            columns: 0..2 * width,
            norm: None,
        };
        let qkv = kernels.rotate(qkv, &[queries_and_keys], rope)?;
        let projections = Projections {
            q: (&qkv, 0),
            k: (&qkv, width),
            v: (&qkv, 2 * width),
        };
        let mixed = kernels.attention(projections, &[], frames, config.heads)?;
        drop(qkv);
        let x = kernels.apply_add(&mixed, &self.proj, x)?;
        let linears = [&self.linear_fc1, &self.linear_fc2];
        kernels.mlp(x, &self.norm2, linears, Activation::GeluTanh)
    }
}

impl PatchMerger {
    fn load(
        config: &VisionConfig,
        parameters: Parameters<'_>,
        prefix: &str,
        norm_after_join: bool,
    ) -> std::result::Result<Self, ModelError> {
        let joined = config.hidden_size * MERGED_PATCHES;
        let norm_width = if norm_after_join {
            joined
        } else {
            config.hidden_size
        };
        let linear = |name: &str, columns| {
            let name = format!("{prefix}.{name}");
            parameters.linear(&name, (columns, &[joined]))
        };
        Ok(PatchMerger {
            norm: parameters.layer_norm(&format!("{prefix}.norm"), norm_width, LAYER_NORM_EPS)?,
            norm_after_join,
            linear_fc1: linear("linear_fc1", joined)?,
            linear_fc2: linear("linear_fc2", config.out_hidden_size)?,
        })
    }

    /// `[patches, vision_hidden]` -> `[vision_tokens, out_hidden]`; the rows already stand in merge-block order.
    fn forward(&self, x: &Activations, kernels: &Kernels) -> Result<Activations> {
        let x = if self.norm_after_join {
            kernels.norm(&x.clone().join_rows(MERGED_PATCHES)?, &self.norm)?
        } else {
            kernels.norm(x, &self.norm)?.join_rows(MERGED_PATCHES)?
        };
        // The blocks use the tanh approximation, the mergers the exact GELU.
        let inner = kernels.apply(&x, &self.linear_fc1, Activation::GeluErf)?;
        kernels.apply(&inner, &self.linear_fc2, Activation::None)
    }
}

/// Where one patch row or column falls in the position table.
#[derive(Clone, Copy)]
struct Interpolated {
    floor: u32,
    ceil: u32,
    part: f32,
}

/// `linspace(0, side - 1, count)`, computed from both ends as PyTorch does.
fn align_corners(side: usize, count: u32) -> Vec<Interpolated> {
    let last = (side - 1) as f32;
    let step = if count > 1 {
        last / (count - 1) as f32
    } else {
        0.0
    };
    (0..count)
        .map(|i| {
            let at = if i < count / 2 || count == 1 {
                step * i as f32
            } else {
                last - step * (count - 1 - i) as f32
            };
            let floor = at as u32;
            Interpolated {
                floor,
                ceil: (floor + 1).min(side as u32 - 1),
                part: at - floor as f32,
            }
        })
        .collect()
}

/// `(x - 127.5) / 127.5` of all pixels.
///
/// # Shapes
/// `[patches, 1536]`.
fn pixel_values(media: &[&Patches], kernels: &Kernels) -> Result<Activations> {
    let parts: Vec<&[u8]> = media.iter().map(|media| &media.pixels[..]).collect();
    kernels.bytes(&parts, PATCH_VALUES, normalize_pixel)
}

/// Less the mean, by the standard deviation, the rescaling by 1/255 fused, in f32.
pub(crate) fn normalize_pixel(pixel: u8) -> f32 {
    (f32::from(pixel) - 255.0 * PIXEL_MEAN) / (255.0 * PIXEL_STD)
}

/// `[frames + 1]`: where each frame pair begins.
fn frame_offsets(grids: &[GridThw]) -> Vec<u32> {
    let mut offsets = vec![0];
    let mut at = 0;
    for grid in grids {
        for _ in 0..grid.t {
            at += grid.h * grid.w;
            offsets.push(at);
        }
    }
    offsets
}
