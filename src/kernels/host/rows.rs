//! What happens to each row between matrix products: norms and rotary embedding. A row never sees another.

use rayon::prelude::*;

use super::lanes::{LANES, Lanes, Task};
use super::simd::Simd;
use crate::kernels::pausing::give_way;

/// Rows one parallel task takes: enough that handing it out costs nothing.
const ROWS_A_TASK: usize = 16;

/// The weights of a norm: a layer norm with a bias, else a root-mean-square norm.
#[derive(Clone, Copy)]
pub(crate) struct NormWeights<'a> {
    /// `[width]`.
    pub(crate) weight: &'a [f32],
    /// `[width]`.
    pub(crate) bias: Option<&'a [f32]>,
    /// Added to the variance.
    pub(crate) eps: f32,
}

impl NormWeights<'_> {
    /// `out = x / sqrt(mean(x^2) + eps) * weight`, or of a layer norm
    /// `out = (x - mean) / sqrt(variance + eps) * weight + bias`, the variance being the biased one.
    ///
    /// # Shapes
    /// `x` and `out` `[width]`.
    pub(crate) fn row(&self, simd: Simd, x: &[f32], out: &mut [f32]) {
        simd.run(NormRow {
            norm: *self,
            x,
            out,
        });
    }
}

/// A row of a norm.
struct NormRow<'a> {
    norm: NormWeights<'a>,
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Task for NormRow<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let width = self.x.len() as f32;
        let scale = |squares: f32| 1.0 / (squares / width + self.norm.eps).sqrt();
        match self.norm.bias {
            None => {
                // SAFETY: the instruction set, by the task's contract.
                let scale = scale(unsafe { sum_of_squares::<L>(self.x, 0.0) });
                for ((out, x), weight) in self.out.iter_mut().zip(self.x).zip(self.norm.weight) {
                    *out = x * scale * weight;
                }
            }
            Some(bias) => {
                // SAFETY: the instruction set, by the task's contract.
                let mean = unsafe { sum::<L>(self.x) } / width;
                // SAFETY: as above.
                let scale = scale(unsafe { sum_of_squares::<L>(self.x, mean) });
                let weights = self.norm.weight.iter().zip(bias);
                for ((out, x), (weight, bias)) in self.out.iter_mut().zip(self.x).zip(weights) {
                    *out = (x - mean) * scale * weight + bias;
                }
            }
        }
    }
}

/// The sum of a row.
///
/// # Safety
/// The instruction set of `L`.
#[inline(always)]
unsafe fn sum<L: Lanes>(row: &[f32]) -> f32 {
    let chunks = row.chunks_exact(LANES);
    let rest: f32 = chunks.remainder().iter().sum();
    // SAFETY: reads of sixteen stay inside a chunk.
    unsafe {
        let mut sum = L::zero();
        for chunk in chunks {
            sum = sum.add(L::load(chunk.as_ptr()));
        }
        sum.sum() + rest
    }
}

/// The sum of the squares of a row's distances from `mean`.
///
/// # Safety
/// The instruction set of `L`.
#[inline(always)]
unsafe fn sum_of_squares<L: Lanes>(row: &[f32], mean: f32) -> f32 {
    let chunks = row.chunks_exact(LANES);
    // The padding is the mean: it adds nothing.
    let mut padded = [mean; LANES];
    padded[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    // SAFETY: reads of sixteen stay inside a chunk.
    unsafe {
        let minus_mean = L::splat(-mean);
        let mut squares = L::zero();
        for chunk in chunks {
            let centred = L::load(chunk.as_ptr()).add(minus_mean);
            squares = centred.mul_add(centred, squares);
        }
        let centred = L::load(padded.as_ptr()).add(minus_mean);
        centred.mul_add(centred, squares).sum()
    }
}

/// The norm of every row.
///
/// # Shapes
/// `x` and `out` `[rows, width]`.
pub(crate) fn norm(simd: Simd, x: &[f32], norm: NormWeights<'_>, out: &mut [f32]) {
    let width = norm.weight.len();
    out.par_chunks_mut(width * ROWS_A_TASK)
        .zip(x.par_chunks(width * ROWS_A_TASK))
        .for_each(|(out, x)| {
            give_way();
            for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                norm.row(simd, x, out);
            }
        });
}

/// The rotation of every row: cosines and sines, `[rows, head_dim / 2]` each.
#[derive(Clone, Copy)]
pub(crate) struct Rotation<'a> {
    /// Cosines.
    pub(crate) cos: &'a [f32],
    /// Sines.
    pub(crate) sin: &'a [f32],
    /// Twice the width of a row of `cos`.
    pub(crate) head_dim: usize,
}

/// Heads that stand side by side in a row, and their norm.
pub(crate) struct RotatedHeads<'a> {
    /// First column.
    pub(crate) start: usize,
    /// One after the last column.
    pub(crate) end: usize,
    /// `[head_dim]`.
    pub(crate) norm: Option<NormWeights<'a>>,
}

/// Normalises heads of every row (where they have a norm), then rotates their halves against each other, in place.
///
/// # Shapes
/// `x [rows, width]`.
pub(crate) fn rotate(
    simd: Simd,
    x: &mut [f32],
    width: usize,
    heads: &[RotatedHeads<'_>],
    rotation: Rotation<'_>,
) {
    let half = rotation.head_dim / 2;
    x.par_chunks_mut(width * ROWS_A_TASK)
        .enumerate()
        .for_each(|(task, rows)| {
            give_way();
            for (i, row) in rows.chunks_exact_mut(width).enumerate() {
                let at = (task * ROWS_A_TASK + i) * half;
                let (cos, sin) = (&rotation.cos[at..at + half], &rotation.sin[at..at + half]);
                for kind in heads {
                    for head in row[kind.start..kind.end].chunks_exact_mut(rotation.head_dim) {
                        simd.run(RotateHead {
                            head,
                            norm: kind.norm,
                            cos,
                            sin,
                        });
                    }
                }
            }
        });
}

/// One head of one row.
struct RotateHead<'a> {
    head: &'a mut [f32],
    norm: Option<NormWeights<'a>>,
    cos: &'a [f32],
    sin: &'a [f32],
}

impl Task for RotateHead<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        if let Some(norm) = self.norm {
            // SAFETY: the instruction set, by the task's contract.
            let squares = unsafe { sum_of_squares::<L>(self.head, 0.0) };
            let scale = 1.0 / (squares / self.head.len() as f32 + norm.eps).sqrt();
            for (x, weight) in self.head.iter_mut().zip(norm.weight) {
                *x = *x * scale * weight;
            }
        }
        let (low, high) = self.head.split_at_mut(self.cos.len());
        let halves = low.iter_mut().zip(high);
        for ((low, high), (cos, sin)) in halves.zip(self.cos.iter().zip(self.sin)) {
            let (a, b) = (*low, *high);
            *low = a * cos - b * sin;
            *high = b * cos + a * sin;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_norm_has_zero_mean_and_unit_variance_for_any_width() {
        for width in [1_usize, 7, 16, 33, 96] {
            let x: Vec<f32> = (0..width * 3)
                .map(|i| (i as f32 * 0.7).sin() * 3.0 + 100.0)
                .collect();
            for simd in Simd::present() {
                let mut out = vec![0.0; x.len()];
                let (weight, bias) = (vec![1.0; width], vec![0.0; width]);
                let weights = NormWeights {
                    weight: &weight,
                    bias: Some(&bias),
                    eps: 1e-6,
                };
                norm(simd, &x, weights, &mut out);
                let row = &out[width..2 * width];
                let mean = row.iter().sum::<f32>() / width as f32;
                let variance = row.iter().map(|v| v * v).sum::<f32>() / width as f32;
                assert!(mean.abs() < 1e-4, "{simd:?} width {width}: mean {mean}");
                assert!(
                    width == 1 || (variance - 1.0).abs() < 1e-3,
                    "{simd:?}: variance {variance}"
                );
            }
        }
    }
}
