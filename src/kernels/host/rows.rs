//! What happens to each row between matrix products: norms, activations, rotary embedding. A row never sees another.

use rayon::prelude::*;

use super::lanes::{LANES, Lanes, Simd, Task};

/// Rows one parallel task takes: enough that handing it out costs nothing.
const ROWS_A_TASK: usize = 16;

/// `e^x` to 2 ulp: range reduction by `ln 2`, then a polynomial of degree 6. Branch-free, so loops over it become vector code.
///
/// Below -87 the result is 0 or tiny, above 88 it saturates: the softmax and the gates need no more.
///
/// # Source
/// The polynomial is the Taylor series to degree 7, whose remainder on |r| <= ln 2 / 2 is below 1e-8.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits of the sum.
    const TO_INTEGER: f32 = 12_582_912.0;
    // ln 2 in two pieces, the first with few bits, so that `n * LN_2_HIGH` is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.3, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + TO_INTEGER;
    let n = shifted - TO_INTEGER;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let mut p = 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    let power = shifted
        .to_bits()
        .wrapping_sub(TO_INTEGER.to_bits())
        .wrapping_add(127)
        << 23;
    p * f32::from_bits(power)
}

/// `x / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// GELU by its tanh approximation, `gelu_pytorch_tanh`.
#[inline(always)]
pub(crate) fn gelu_tanh(x: f32) -> f32 {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    let u = SQRT_2_OVER_PI * (x + 0.044715 * x * x * x);
    // 0.5 (1 + tanh u) = 1 / (1 + e^-2u)
    x / (1.0 + exp(-2.0 * u))
}

/// GELU exactly, by the error function.
pub(crate) fn gelu_erf(x: f32) -> f32 {
    let x = f64::from(x);
    (0.5 * x * (1.0 + candle_core::cpu::erf::erf_f64(x * std::f64::consts::FRAC_1_SQRT_2))) as f32
}

/// Rounds to the nearest bf16, ties to even, and widens again.
#[inline(always)]
pub(crate) fn round_to_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000;
    // A NaN must stay one: rounding its payload could make it infinite.
    f32::from_bits(if x.is_nan() { bits } else { rounded })
}

/// The sum of squares and the plain sum of a row.
struct Moments<'a> {
    row: &'a [f32],
    mean: f32,
    squares: &'a mut f32,
    sum: &'a mut f32,
}

impl Task for Moments<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: reads of sixteen stay inside the row, the rest comes from a padded copy.
        unsafe {
            let one = L::splat(1.0);
            let minus_mean = L::splat(-self.mean);
            let mut squares = L::zero();
            let mut sum = L::zero();
            let chunks = self.row.chunks_exact(LANES);
            let rest = chunks.remainder();
            for chunk in chunks {
                let x = L::load(chunk.as_ptr());
                let centred = x.mul_add(one, minus_mean);
                squares = centred.mul_add(centred, squares);
                sum = x.mul_add(one, sum);
            }
            if !rest.is_empty() {
                // The padding is the mean: it adds nothing to the centred squares, and is taken from the sum again.
                let mut padded = [self.mean; LANES];
                padded[..rest.len()].copy_from_slice(rest);
                let centred = L::load(padded.as_ptr()).mul_add(one, minus_mean);
                squares = centred.mul_add(centred, squares);
            }
            *self.squares = squares.sum();
            *self.sum = sum.sum() + rest.iter().sum::<f32>();
        }
    }
}

fn moments(simd: Simd, row: &[f32], mean: f32) -> (f32, f32) {
    let (mut squares, mut sum) = (0.0, 0.0);
    simd.run(Moments {
        row,
        mean,
        squares: &mut squares,
        sum: &mut sum,
    });
    (squares, sum)
}

/// `out = x / sqrt(mean(x^2) + eps) * weight`, row by row.
///
/// # Shapes
/// `x` and `out` `[rows, width]`, `weight [width]`.
pub(crate) fn rms_norm(simd: Simd, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    out.par_chunks_mut(width * ROWS_A_TASK)
        .zip(x.par_chunks(width * ROWS_A_TASK))
        .for_each(|(out, x)| {
            for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                rms_norm_row(simd, x, weight, eps, out);
            }
        });
}

fn rms_norm_row(simd: Simd, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let (squares, _) = moments(simd, x, 0.0);
    let scale = 1.0 / (squares / x.len() as f32 + eps).sqrt();
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * weight;
    }
}

/// `out = (x - mean) / sqrt(variance + eps) * weight + bias`, row by row; the variance is the biased one.
///
/// # Shapes
/// `x` and `out` `[rows, width]`, `weight` and `bias` `[width]`.
pub(crate) fn layer_norm(
    simd: Simd,
    x: &[f32],
    (weight, bias): (&[f32], &[f32]),
    eps: f32,
    out: &mut [f32],
) {
    let width = weight.len();
    out.par_chunks_mut(width * ROWS_A_TASK)
        .zip(x.par_chunks(width * ROWS_A_TASK))
        .for_each(|(out, x)| {
            for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                let (_, sum) = moments(simd, x, 0.0);
                let mean = sum / width as f32;
                let (squares, _) = moments(simd, x, mean);
                let scale = 1.0 / (squares / width as f32 + eps).sqrt();
                for (i, (out, x)) in out.iter_mut().zip(x).enumerate() {
                    *out = (x - mean) * scale * weight[i] + bias[i];
                }
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

/// Normalises every head of every row (when `norm` is given), then rotates its halves against each other.
///
/// # Shapes
/// `x` and `out` `[rows, heads, head_dim]`, `norm` weight `[head_dim]`.
pub(crate) fn rope(
    simd: Simd,
    x: &[f32],
    norm: Option<(&[f32], f32)>,
    rotation: Rotation<'_>,
    out: &mut [f32],
) {
    let half = rotation.head_dim / 2;
    let rows = rotation.cos.len() / half;
    let width = x.len() / rows;
    out.par_chunks_mut(width)
        .zip(x.par_chunks(width))
        .enumerate()
        .for_each(|(row, (out, x))| {
            let cos = &rotation.cos[row * half..(row + 1) * half];
            let sin = &rotation.sin[row * half..(row + 1) * half];
            let heads = out
                .chunks_exact_mut(rotation.head_dim)
                .zip(x.chunks_exact(rotation.head_dim));
            for (out, x) in heads {
                match norm {
                    Some((weight, eps)) => rms_norm_row(simd, x, weight, eps, out),
                    None => out.copy_from_slice(x),
                }
                let (low, high) = out.split_at_mut(half);
                for i in 0..half {
                    let (a, b) = (low[i], high[i]);
                    low[i] = a * cos[i] - b * sin[i];
                    high[i] = b * cos[i] + a * sin[i];
                }
            }
        });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp_of_the_library() {
        let mut worst = 0.0_f32;
        for i in -87_000..88_000 {
            let x = i as f32 * 1e-3;
            let exact = f64::from(x).exp();
            worst = worst.max(((f64::from(exp(x)) - exact) / exact).abs() as f32);
        }
        assert!(worst < 2.4e-7, "worst relative error {worst}");
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn bf16_rounding_equals_the_half_crate() {
        for bits in (0..=u32::MAX).step_by(65_521) {
            let x = f32::from_bits(bits);
            let ours = round_to_bf16(x);
            let theirs = half::bf16::from_f32(x).to_f32();
            assert!(
                ours == theirs || (ours.is_nan() && theirs.is_nan()),
                "{x}: {ours} {theirs}"
            );
        }
    }

    #[test]
    fn layer_norm_has_zero_mean_and_unit_variance_for_any_width() {
        for width in [1_usize, 7, 16, 33, 96] {
            let x: Vec<f32> = (0..width * 3)
                .map(|i| (i as f32 * 0.7).sin() * 3.0 + 100.0)
                .collect();
            for simd in Simd::present() {
                let mut out = vec![0.0; x.len()];
                let (weight, bias) = (vec![1.0; width], vec![0.0; width]);
                layer_norm(simd, &x, (&weight, &bias), 1e-6, &mut out);
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
