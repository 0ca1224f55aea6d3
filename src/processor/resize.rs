//! The two resizers of the reference: Pillow's for pictures, torch's for video frames. RGB in, RGB of another size out.
//!
//! Both are the same filter, bicubic with a = -0.5 whose support grows with the downscale factor, and differ in arithmetic:
//! Pillow multiplies 8-bit pixels by 22-bit fixed-point weights and rounds to 8 bits between the passes, torch stays in f32 until
//! the end. Vectors move by 1e-5 to 1e-3 when single bytes are off by one, so both are followed to the bit.
//!
//! # Source
//! Pillow 12 `src/libImaging/Resample.c` (`precompute_coeffs`, `normalize_coeffs_8bpc`, horizontal pass first, which Pillow 13
//! no longer always does); torch 2.15 `aten/src/ATen/native/cpu/UpSampleKernel.cpp` (antialiased, separable, f32), with
//! torchvision's clamp and round to even. The places where torch's compiler fuses a multiplication with an addition were found by
//! comparison with its output and reproduce it bit for bit on x86-64.

use rayon::prelude::*;

use crate::media::RgbImage;

const CHANNELS: usize = 3;

/// `PRECISION_BITS` of Pillow: 32 bits, less 8 for the pixel, less 2 for the overshoot of the filter.
const PRECISION_BITS: u32 = 22;

/// Rows the horizontal pass handles together: their samples lie side by side, so that one weight meets a whole register.
const ROWS: usize = 16;

/// Samples of one column of such a block.
const SIDE: usize = CHANNELS * ROWS;

/// Samples summed in registers at once.
const LANES: usize = 16;

/// The source samples of every output sample of one axis, and their weights.
struct Taps<W> {
    first: Vec<usize>,
    /// `[outputs + 1]`: where the weights of an output begin.
    offsets: Vec<usize>,
    weights: Vec<W>,
}

impl<W> Taps<W> {
    fn with_outputs(outputs: usize) -> Self {
        Self {
            first: Vec::with_capacity(outputs),
            offsets: vec![0],
            weights: Vec::new(),
        }
    }

    fn push(&mut self, first: usize, weights: impl Iterator<Item = W>) {
        self.first.push(first);
        self.weights.extend(weights);
        self.offsets.push(self.weights.len());
    }

    fn outputs(&self) -> usize {
        self.first.len()
    }

    fn get(&self, output: usize) -> (usize, &[W]) {
        (
            self.first[output],
            &self.weights[self.offsets[output]..self.offsets[output + 1]],
        )
    }
}

/// Resizes as `PIL.Image.resize((width, height))` does, bit for bit; a copy when the size does not change.
pub(crate) fn pillow_bicubic(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    let (old_width, old_height) = image.dimensions();
    // As Pillow does, a pass whose size stays is skipped.
    let wide = (width != old_width).then(|| {
        let taps = fixed_taps(old_width, width);
        horizontal(image.as_raw(), &taps, old_width as usize, blend_fixed)
    });
    if height == old_height {
        return wide.map_or_else(|| image.clone(), |wide| rgb(width, height, wide));
    }
    let rows = wide.as_ref().unwrap_or(image.as_raw());
    let taps = fixed_taps(old_height, height);
    rgb(
        width,
        height,
        vertical(rows, &taps, width as usize * CHANNELS, blend_fixed),
    )
}

/// Resizes as torchvision does a `uint8` tensor with bicubic interpolation and antialiasing.
pub(crate) fn torch_bicubic(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    let (old_width, old_height) = image.dimensions();
    if (width, height) == (old_width, old_height) {
        return image.clone();
    }
    let taps = float_taps(old_width, width);
    let wide: Vec<f32> = horizontal(image.as_raw(), &taps, old_width as usize, blend_float);
    let taps = float_taps(old_height, height);
    let pixels: Vec<f32> = vertical(&wide, &taps, width as usize * CHANNELS, blend_float);
    rgb(
        width,
        height,
        pixels.into_iter().map(round_to_even).collect(),
    )
}

fn rgb(width: u32, height: u32, pixels: Vec<u8>) -> RgbImage {
    RgbImage::from_raw(width, height, pixels)
        .unwrap_or_else(|| unreachable!("the passes fill width * height * 3 bytes"))
}

/// Bicubic kernel, a = -0.5, in the order of operations Pillow uses.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// Pillow's weights: computed and normalised in f64, then rounded half away from zero to fixed point.
fn fixed_taps(inputs: u32, outputs: u32) -> Taps<i32> {
    let scale = f64::from(inputs) / f64::from(outputs);
    let filter_scale = scale.max(1.0);
    let support = 2.0 * filter_scale;
    let inverse = 1.0 / filter_scale;
    let mut taps = Taps::with_outputs(outputs as usize);
    let mut weights = Vec::new();
    for output in 0..outputs {
        let center = (f64::from(output) + 0.5) * scale;
        // These casts truncate, as C's do, and stop at zero, as Pillow's next line does.
        let first = (center - support + 0.5) as usize;
        let end = ((center + support + 0.5) as usize).min(inputs as usize);
        weights.clear();
        weights.extend(
            (0..end - first).map(|x| cubic((x as f64 + first as f64 - center + 0.5) * inverse)),
        );
        let total: f64 = weights.iter().fold(0.0, |sum, weight| sum + weight);
        taps.push(
            first,
            weights.iter().map(|weight| {
                let scaled = weight / total * f64::from(1 << PRECISION_BITS);
                (scaled + if scaled < 0.0 { -0.5 } else { 0.5 }) as i32
            }),
        );
    }
    taps
}

/// torch's weights: f32 throughout, fused where its build fuses.
fn float_taps(inputs: u32, outputs: u32) -> Taps<f32> {
    let scale = inputs as f32 / outputs as f32;
    let support = if scale >= 1.0 { 2.0 * scale } else { 2.0 };
    let inverse = if scale >= 1.0 {
        (1.0 / f64::from(scale)) as f32
    } else {
        1.0
    };
    let most = support.ceil() as usize * 2 + 1;
    let mut taps = Taps::with_outputs(outputs as usize);
    let mut weights = Vec::new();
    for output in 0..outputs {
        // The literals 0.5 are doubles in the C++ source, so these expressions widen and narrow again.
        let center = (f64::from(scale) * (f64::from(output) + 0.5)) as f32;
        let first = (f64::from(center - support) + 0.5) as usize;
        let end = ((f64::from(center + support) + 0.5) as usize).min(inputs as usize);
        weights.clear();
        weights.extend((0..(end - first).min(most)).map(|x| {
            let distance = f64::from((x + first) as f32 - center) + 0.5;
            cubic_f32((distance * f64::from(inverse)) as f32)
        }));
        let total = weights.iter().fold(0.0f32, |sum, weight| sum + weight);
        taps.push(first, weights.iter().map(|weight| weight / total));
    }
    taps
}

/// Bicubic kernel, a = -0.5, as torch's build evaluates it.
fn cubic_f32(x: f32) -> f32 {
    const A: f32 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        fused(fused(A + 2.0, x, -(A + 3.0)) * x, x, 1.0)
    } else if x < 2.0 {
        fused(fused(fused(A, x, -5.0 * A), x, 8.0 * A), x, -4.0 * A)
    } else {
        0.0
    }
}

/// `a * b + c` rounded once. The product of two f32 is exact in f64, so this is a fused multiply-add but for one double rounding
/// in some hundred million, and needs no instruction that not every machine has.
#[inline(always)]
pub(crate) fn fused(a: f32, b: f32, c: f32) -> f32 {
    (f64::from(a) * f64::from(b) + f64::from(c)) as f32
}

/// Clamps and rounds half to even: at this magnitude an f32 of 2^23 and more has no fraction bits left.
fn round_to_even(value: f32) -> u8 {
    const SHIFT: f32 = 8_388_608.0;
    ((value.clamp(0.0, 255.0) + SHIFT) - SHIFT) as u8
}

/// How one output row comes of weighted input rows: rows, their length, weights, output.
type Blend<S, D, W> = fn(&[S], usize, &[W], &mut [D]);

/// Weights rows into every output row. `rows` is `[inputs, row_len]`, the result `[outputs, row_len]`.
fn vertical<S: Copy + Sync, D: Copy + Default + Send, W: Sync>(
    rows: &[S],
    taps: &Taps<W>,
    row_len: usize,
    blend: Blend<S, D, W>,
) -> Vec<D> {
    let mut out = vec![D::default(); taps.outputs() * row_len];
    out.par_chunks_exact_mut(row_len)
        .enumerate()
        .for_each(|(output, row)| {
            let (first, weights) = taps.get(output);
            blend(&rows[first * row_len..], row_len, weights, row);
        });
    out
}

/// Weights the pixels of each row. `rows` is `[height, width, 3]`, the result `[height, outputs, 3]`.
///
/// [`ROWS`] rows at a time are laid side by side, `[width, 3, ROWS]`, which turns this into the vertical pass.
fn horizontal<S: Copy + Default + Sync, D: Copy + Default + Send, W: Sync>(
    rows: &[S],
    taps: &Taps<W>,
    width: usize,
    blend: Blend<S, D, W>,
) -> Vec<D> {
    let (row_len, new_row_len) = (width * CHANNELS, taps.outputs() * CHANNELS);
    let mut out = vec![D::default(); rows.len() / row_len * new_row_len];
    out.par_chunks_mut(new_row_len * ROWS)
        .zip(rows.par_chunks(row_len * ROWS))
        .for_each_init(
            || vec![S::default(); row_len * ROWS],
            |sides, (new_block, block)| {
                for (lane, row) in block.chunks_exact(row_len).enumerate() {
                    for (side, &sample) in sides.chunks_exact_mut(ROWS).zip(row) {
                        side[lane] = sample;
                    }
                } // [width, 3, ROWS]
                blend_columns(sides, taps, new_block, blend);
            },
        );
    out
}

/// The columns of one block of rows: `sides` is `[width, 3, ROWS]`, `block` up to [`ROWS`] rows of `[outputs, 3]`.
fn blend_columns<S, D: Copy + Default, W>(
    sides: &[S],
    taps: &Taps<W>,
    block: &mut [D],
    blend: Blend<S, D, W>,
) {
    let mut column = [D::default(); SIDE];
    for output in 0..taps.outputs() {
        let (first, weights) = taps.get(output);
        blend(&sides[first * SIDE..], SIDE, weights, &mut column); // [3, ROWS]
        for (lane, row) in block
            .chunks_exact_mut(taps.outputs() * CHANNELS)
            .enumerate()
        {
            for (channel, value) in row[output * CHANNELS..][..CHANNELS].iter_mut().enumerate() {
                *value = column[channel * ROWS + lane];
            }
        }
    }
}

/// Pillow's inner loop: fixed-point sums, rounded and clamped to 8 bits.
fn blend_fixed(rows: &[u8], row_len: usize, weights: &[i32], out: &mut [u8]) {
    for (chunk, out) in out.chunks_mut(LANES).enumerate() {
        let mut sums = [1 << (PRECISION_BITS - 1); LANES];
        for (tap, &weight) in weights.iter().enumerate() {
            add(
                &mut sums,
                &rows[tap * row_len + chunk * LANES..][..out.len()],
                |sum, sample| sum + i32::from(sample) * weight,
            );
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = (sum >> PRECISION_BITS).clamp(0, 255) as u8;
        }
    }
}

/// torch's inner loop. Its compiler handles the taps after the first four at a time, with a rounded product added in order, and
/// fuses only the up to three that remain.
fn blend_float<S: Copy + Into<f32>>(rows: &[S], row_len: usize, weights: &[f32], out: &mut [f32]) {
    let plain = 1 + (weights.len() - 1) / 4 * 4;
    for (chunk, out) in out.chunks_mut(LANES).enumerate() {
        let mut sums = [0.0; LANES];
        for (tap, &weight) in weights.iter().enumerate() {
            let samples = &rows[tap * row_len + chunk * LANES..][..out.len()];
            if tap < plain {
                add(&mut sums, samples, |sum, sample| {
                    sum + sample.into() * weight
                });
            } else {
                add(&mut sums, samples, |sum, sample| {
                    fused(sample.into(), weight, sum)
                });
            }
        }
        out.copy_from_slice(&sums[..out.len()]);
    }
}

/// Adds one tap to up to [`LANES`] sums. A whole chunk has a length the compiler knows, which keeps its sums in registers.
#[inline(always)]
fn add<S: Copy, A: Copy>(sums: &mut [A; LANES], samples: &[S], step: impl Fn(A, S) -> A) {
    if let Ok(samples) = <&[S; LANES]>::try_from(samples) {
        for (sum, &sample) in sums.iter_mut().zip(samples) {
            *sum = step(*sum, sample);
        }
    } else {
        for (sum, &sample) in sums.iter_mut().zip(samples) {
            *sum = step(*sum, sample);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sha2::{Digest, Sha256};

    /// Width and height in pixels.
    type Size = (u32, u32);

    /// Sizes before and after, and the beginnings of the SHA-256 of what Pillow 12.3 and torchvision 0.29 (torch 2.15, AVX-512) make
    /// of [`noise`].
    const REFERENCE: [(Size, Size, &str, &str); 9] = [
        ((100, 37), (128, 64), "ec9d10ae04922b0f", "32dd739611508936"),
        (
            (451, 300),
            (448, 288),
            "5bc79208393cb30d",
            "cec2d05bb8be10ba",
        ),
        ((20, 20), (64, 64), "12c692b8f675ea6e", "24e0839646e17abb"),
        ((1, 1), (64, 64), "79caa0ccc4d0af2a", "79caa0ccc4d0af2a"),
        (
            (800, 600),
            (128, 96),
            "b086b143d3dd6d21",
            "77e64b8a176ec7c1",
        ),
        ((128, 96), (64, 96), "7f410c094ff7aae2", "22acb97f4bd8b85f"),
        ((33, 97), (200, 31), "7d3ab7f397ba619c", "e4f8d4d401f8e323"),
        (
            (160, 120),
            (448, 320),
            "3ba3e740b8a9c983",
            "a24ffabcd0d2b0db",
        ),
        (
            (1000, 20),
            (64, 352),
            "5b8504155dd6ed40",
            "4a9b3316a3f74e69",
        ),
    ];

    /// The high bytes of a linear congruential generator (Numerical Recipes).
    fn noise(width: u32, height: u32) -> RgbImage {
        let mut state = 1_u32;
        let bytes = (0..width * height * 3).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        });
        RgbImage::from_raw(width, height, bytes.collect()).unwrap()
    }

    fn hash(image: &RgbImage) -> String {
        let digest = Sha256::digest(image.as_raw());
        digest
            .iter()
            .take(8)
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    #[test]
    fn noise_is_resized_bit_for_bit_as_by_pillow_and_torch() {
        for ((width, height), (new_width, new_height), pillow, torch) in REFERENCE {
            let image = noise(width, height);
            let sizes = format!("{width} x {height} to {new_width} x {new_height}");
            assert_eq!(
                hash(&pillow_bicubic(&image, new_width, new_height)),
                pillow,
                "Pillow, {sizes}"
            );
            assert_eq!(
                hash(&torch_bicubic(&image, new_width, new_height)),
                torch,
                "torch, {sizes}"
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_picture_of_one_colour_stays_it(w in 1_u32..90, h in 1_u32..90, nw in 1_u32..90, nh in 1_u32..90, colour: [u8; 3]) {
            let image = RgbImage::from_pixel(w, h, image::Rgb(colour));
            for resized in [pillow_bicubic(&image, nw, nh), torch_bicubic(&image, nw, nh)] {
                prop_assert_eq!(resized.dimensions(), (nw, nh));
                prop_assert!(resized.pixels().all(|pixel| pixel.0 == colour));
            }
        }

        #[test]
        fn the_same_size_is_a_copy(w in 1_u32..40, h in 1_u32..40, seed: u8) {
            let image = RgbImage::from_fn(w, h, |x, y| image::Rgb([x as u8 ^ seed, y as u8, (x * y) as u8]));
            prop_assert_eq!(&pillow_bicubic(&image, w, h), &image);
            prop_assert_eq!(&torch_bicubic(&image, w, h), &image);
        }
    }
}
