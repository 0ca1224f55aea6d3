//! Rotary angles: interleaved M-RoPE for the language model, rows and columns for the vision tower.
//!
//! Angles are f32 products of a position and an inverse frequency, as in transformers, so that long contexts turn by the same
//! angles; sines and cosines of them are correctly rounded.

use candle_core::{Result, Tensor};

use super::input::GridThw;
use crate::kernels::{Kernels, Rope};

/// `1 / base^(2i / width)` for `i < width / 2`, each step rounded to f32 as PyTorch rounds it.
fn inverse_frequencies(base: f64, width: usize) -> Vec<f32> {
    (0..width / 2)
        .map(|i| {
            let exponent = (2 * i) as f32 / width as f32;
            1.0 / (base.powf(f64::from(exponent)) as f32)
        })
        .collect()
}

fn rope(angles: Vec<f32>, half: usize, kernels: &Kernels) -> Result<Rope> {
    let device = kernels.device();
    let rows = angles.len() / half;
    let cos = angles
        .iter()
        .map(|&angle| f64::from(angle).cos() as f32)
        .collect::<Vec<_>>();
    let sin = angles
        .iter()
        .map(|&angle| f64::from(angle).sin() as f32)
        .collect::<Vec<_>>();
    Ok(Rope {
        cos: Tensor::from_vec(cos, (rows, half), &device)?,
        sin: Tensor::from_vec(sin, (rows, half), &device)?,
    })
}

/// The rotation of every token from its three positions.
///
/// # Shapes
/// `position_ids` three times `[tokens]` -> `[tokens, head_dim / 2]`.
///
/// # Source
/// `apply_interleaved_mrope`, transformers 4.57: frequency `i` turns with height where `i % 3 == 1`, with width where
/// `i % 3 == 2`, each only below three times its section; all others turn with time.
pub(super) fn text_rope(
    position_ids: &[Vec<u32>; 3],
    theta: f64,
    section: [usize; 3],
    kernels: &Kernels,
) -> Result<Rope> {
    let half: usize = section.iter().sum();
    let frequencies = inverse_frequencies(theta, 2 * half);
    let axis: Vec<usize> = (0..half)
        .map(|i| {
            if i % 3 != 0 && i < 3 * section[i % 3] {
                i % 3
            } else {
                0
            }
        })
        .collect();
    let tokens = position_ids[0].len();
    let mut angles = Vec::with_capacity(tokens * half);
    angles.extend((0..tokens).flat_map(|token| {
        let turns = frequencies.iter().zip(&axis);
        turns.map(move |(frequency, &axis)| position_ids[axis][token] as f32 * frequency)
    }));
    rope(angles, half, kernels)
}

/// The rotation of every patch from its row and column, restarting with each frame.
///
/// # Shapes
/// `grids` -> `[patches, head_dim / 2]`, rows in merge-block order.
pub(super) fn vision_rope(grids: &[GridThw], head_dim: usize, kernels: &Kernels) -> Result<Rope> {
    let frequencies = inverse_frequencies(10_000.0, head_dim / 2);
    let mut angles = Vec::new();
    for grid in grids {
        let start = angles.len();
        for (row, column) in merge_block_order(*grid) {
            angles.extend(frequencies.iter().map(|frequency| row as f32 * frequency));
            angles.extend(
                frequencies
                    .iter()
                    .map(|frequency| column as f32 * frequency),
            );
        }
        let frame = start..angles.len();
        for _ in 1..grid.t {
            angles.extend_from_within(frame.clone());
        }
    }
    rope(angles, head_dim / 2, kernels)
}

/// Row and column of each patch of one frame, 2 x 2 blocks together.
pub(super) fn merge_block_order(grid: GridThw) -> impl Iterator<Item = (u32, u32)> {
    (0..grid.h / 2).flat_map(move |block_row| {
        (0..grid.w / 2).flat_map(move |block_column| {
            (0..4).map(move |i| (2 * block_row + i / 2, 2 * block_column + i % 2))
        })
    })
}
