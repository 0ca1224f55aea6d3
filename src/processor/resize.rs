//! The two bicubic resizers of the reference: Pillow's fixed-point one for images, torch's f32 one for video frames.
//!
//! Both use the cubic kernel with a = -0.5, widened by the scale when shrinking, horizontal pass first. Pillow rounds to eight
//! bits between the passes; torch keeps f32 and rounds once, half to even.
//!
//! # Source
//! Pillow 12 `Resample.c`; PyTorch 2.15 `UpSampleKernel.cpp`.

use std::array;

use rayon::prelude::*;

use crate::kernels::{Loops, let_others_in, run_loops};
use crate::media::RgbImage;

/// Bits of fraction in Pillow's fixed-point weights: 32 - 8 - 2.
const PRECISION_BITS: u32 = 22;
/// What a sum begins with, so that cutting its fraction off rounds it.
const HALF: i32 = 1 << (PRECISION_BITS - 1);
/// Rows that are shrunk at a time: their sums fill the registers of AVX2, and the columns of a wide picture stay in the second cache.
const ROWS: usize = 16;
/// Rows and columns of bytes that are turned at a time: as many as an integer has.
const SIDE: usize = 8;
/// Half the width of the cubic kernel.
const SUPPORT: f64 = 2.0;

/// The source pixels one output pixel is made of, and their weights.
struct Window {
    first: usize,
    weights: Vec<f64>,
}

/// What [`pillow_bicubic`] computes, and so what pictures are resized by.
pub(crate) const RESAMPLE: &str = "bicubic (Pillow 12)";

/// The cubic kernel with a = -0.5.
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

/// One window for each of `output` pixels over `input` pixels, weights adding up to 1.
fn windows(input: u32, output: u32) -> Vec<Window> {
    let scale = f64::from(input) / f64::from(output);
    let stretch = scale.max(1.0);
    let support = SUPPORT * stretch;
    (0..output)
        .map(|pixel| {
            let center = (f64::from(pixel) + 0.5) * scale;
            // The casts truncate towards zero and stop at it, as the C code's do.
            let first = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(input as usize);
            // Pillow multiplies by the inverse; dividing would differ in the last bit.
            let inverse = 1.0 / stretch;
            let mut weights: Vec<f64> = (first..end)
                .map(|source| cubic((source as f64 - center + 0.5) * inverse))
                .collect();
            let total: f64 = weights.iter().sum();
            for weight in &mut weights {
                *weight /= total;
            }
            Window { first, weights }
        })
        .collect()
}

/// Resizes as `PIL.Image.resize((width, height))` does, bit for bit; an unchanged side is left alone.
///
/// # Source
/// `ImagingResampleInner`, Pillow 12: horizontal pass first whatever the sizes (13 changes the order for some).
pub(crate) fn pillow_bicubic(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    let horizontal = (width != image.width()).then(|| shrink_rows(image, width));
    let image = horizontal.as_ref().unwrap_or(image);
    if height == image.height() {
        return image.clone();
    }
    let row_bytes = image.width() as usize * 3;
    let mut out = vec![0_u8; height as usize * row_bytes];
    let windows = fixed_point(&windows(image.height(), height));
    out.par_chunks_exact_mut(row_bytes)
        .zip(&windows)
        .for_each_init(
            || vec![0; row_bytes],
            |sums, (out, (first, weights))| {
                let_others_in();
                let rows = image.as_raw()[first * row_bytes..].chunks_exact(row_bytes);
                run_loops(WeighRows {
                    rows,
                    weights,
                    sums,
                    out,
                });
            },
        );
    rgb(width, height, out)
}

/// Pillow's horizontal pass, [`ROWS`] rows at a time: turned so that the same byte of all rows lies together, for vector instructions to
/// weigh.
fn shrink_rows(image: &RgbImage, width: u32) -> RgbImage {
    let windows = fixed_point(&windows(image.width(), width));
    let (row_bytes, out_bytes) = (image.width() as usize * 3, width as usize * 3);
    let mut out = vec![0_u8; out_bytes * image.height() as usize];
    let rows = image.as_raw().par_chunks(ROWS * row_bytes);
    let buffers = || (vec![[0; ROWS]; row_bytes], vec![[0; ROWS]; out_bytes]);
    out.par_chunks_mut(ROWS * out_bytes)
        .zip(rows)
        .for_each_init(buffers, |(columns, shrunk), (out, rows)| {
            let_others_in();
            let last = rows.len() / row_bytes - 1;
            run_loops(ShrinkRows {
                // The last of them may be fewer.
                rows: array::from_fn(|row| &rows[row.min(last) * row_bytes..][..row_bytes]),
                windows: &windows,
                columns,
                shrunk,
                out,
            });
        });
    rgb(width, image.height(), out)
}

/// Some rows to a row each of as many pixels as there are windows. `columns` and `shrunk` are memory for both, turned.
struct ShrinkRows<'a> {
    rows: [&'a [u8]; ROWS],
    windows: &'a [(usize, Vec<i32>)],
    columns: &'a mut [[u8; ROWS]],
    shrunk: &'a mut [[u8; ROWS]],
    out: &'a mut [u8],
}

impl Loops for ShrinkRows<'_> {
    #[inline(always)]
    fn run(self) {
        turn(self.rows, self.columns);
        for (pixel, (first, weights)) in self.shrunk.chunks_exact_mut(3).zip(self.windows) {
            for (i, colour) in pixel.iter_mut().enumerate() {
                *colour = weigh_column(&self.columns[first * 3 + i..], weights);
            }
        }
        turn_back(self.shrunk, self.out);
    }
}

/// A row of output from the rows of its window.
struct WeighRows<'a, I> {
    rows: I,
    weights: &'a [i32],
    sums: &'a mut [i32],
    out: &'a mut [u8],
}

impl<'a, I: Iterator<Item = &'a [u8]>> Loops for WeighRows<'a, I> {
    #[inline(always)]
    fn run(self) {
        self.sums.fill(HALF);
        for (row, &weight) in self.rows.zip(self.weights) {
            for (sum, &value) in self.sums.iter_mut().zip(row) {
                *sum += i32::from(value) * weight;
            }
        }
        for (out, &sum) in self.out.iter_mut().zip(self.sums.iter()) {
            *out = clip(sum);
        }
    }
}

/// One colour of a pixel of each row, from the columns where its window begins.
#[inline(always)]
fn weigh_column(columns: &[[u8; ROWS]], weights: &[i32]) -> [u8; ROWS] {
    let mut sums = [HALF; ROWS];
    for (column, &weight) in columns.iter().step_by(3).zip(weights) {
        for (sum, &value) in sums.iter_mut().zip(column) {
            *sum += i32::from(value) * weight;
        }
    }
    let mut out = [0; ROWS];
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = clip(sum);
    }
    out
}

/// Rows of bytes, as the bytes of all rows at each place.
#[inline(always)]
fn turn(rows: [&[u8]; ROWS], columns: &mut [[u8; ROWS]]) {
    let whole = columns.len() / SIDE * SIDE;
    for (at, square) in (0..).step_by(SIDE).zip(columns.chunks_exact_mut(SIDE)) {
        for (rows, first) in rows.chunks_exact(SIDE).zip((0..).step_by(SIDE)) {
            let mut eight = [[0; SIDE]; SIDE];
            for (bytes, row) in eight.iter_mut().zip(rows) {
                bytes.copy_from_slice(&row[at..at + SIDE]);
            }
            for (column, bytes) in square.iter_mut().zip(turned(eight)) {
                column[first..first + SIDE].copy_from_slice(&bytes);
            }
        }
    }
    for (at, column) in columns.iter_mut().enumerate().skip(whole) {
        *column = rows.map(|row| row[at]);
    }
}

/// The other way round, for as many rows as there are.
#[inline(always)]
fn turn_back(columns: &[[u8; ROWS]], rows: &mut [u8]) {
    let row_bytes = columns.len();
    for (at, square) in (0..).step_by(SIDE).zip(columns.chunks(SIDE)) {
        for (first, rows) in (0..).step_by(SIDE).zip(rows.chunks_mut(SIDE * row_bytes)) {
            let mut eight = [[0; SIDE]; SIDE];
            for (bytes, column) in eight.iter_mut().zip(square) {
                bytes.copy_from_slice(&column[first..first + SIDE]);
            }
            for (row, bytes) in rows.chunks_exact_mut(row_bytes).zip(turned(eight)) {
                row[at..at + square.len()].copy_from_slice(&bytes[..square.len()]);
            }
        }
    }
}

/// Eight by eight bytes, mirrored at the diagonal: halves of the square change places, then quarters, then single bytes.
#[inline(always)]
fn turned(rows: [[u8; SIDE]; SIDE]) -> [[u8; SIDE]; SIDE] {
    let mut rows = rows.map(u64::from_le_bytes);
    exchange::<4>(&mut rows, 0x0000_0000_ffff_ffff);
    exchange::<2>(&mut rows, 0x0000_ffff_0000_ffff);
    exchange::<1>(&mut rows, 0x00ff_00ff_00ff_00ff);
    rows.map(u64::to_le_bytes)
}

/// Exchanges what `kept` leaves of each row with what it leaves out of the one `STEP` above.
#[inline(always)]
fn exchange<const STEP: usize>(rows: &mut [u64; SIDE], kept: u64) {
    for pair in 0..SIDE / 2 {
        let upper = pair / STEP * 2 * STEP + pair % STEP;
        let lower = upper + STEP;
        let swapped = (rows[upper] >> (8 * STEP) ^ rows[lower]) & kept;
        rows[lower] ^= swapped;
        rows[upper] ^= swapped << (8 * STEP);
    }
}

/// Weights times 2^22, rounded half away from zero.
fn fixed_point(windows: &[Window]) -> Vec<(usize, Vec<i32>)> {
    let fixed = |weight: &f64| {
        let scaled = weight * f64::from(1 << PRECISION_BITS);
        (scaled + if *weight < 0.0 { -0.5 } else { 0.5 }) as i32
    };
    windows
        .iter()
        .map(|window| (window.first, window.weights.iter().map(fixed).collect()))
        .collect()
}

#[inline(always)]
fn clip(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

fn rgb(width: u32, height: u32, data: Vec<u8>) -> RgbImage {
    RgbImage::from_raw(width, height, data)
        .unwrap_or_else(|| unreachable!("the passes fill width * height * 3 bytes"))
}

/// Resizes as torchvision does a `uint8` tensor with bicubic interpolation and antialiasing: f32 throughout, clamped and rounded half
/// to even at the end. Bit for bit as on x86-64 with AVX2 and later; elsewhere torch itself may differ by one in isolated values.
///
/// # Source
/// `separable_upsample_generic_Nd_kernel_impl`, PyTorch 2.15 `UpSampleKernel.cpp`. Which of its multiplications are fused with the
/// addition after them was found by comparing with its output.
pub(crate) fn torch_bicubic(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    let columns = torch_windows(image.width(), width);
    let row_values = width as usize * 3;
    let mut between = vec![0_f32; image.height() as usize * row_values];
    let rows = image.as_raw().par_chunks_exact(image.width() as usize * 3);
    between
        .par_chunks_exact_mut(row_values)
        .zip(rows)
        .for_each(|(out, row)| {
            for (pixel, (first, weights)) in out.chunks_exact_mut(3).zip(&columns) {
                let mut sums = [0_f32; 3];
                weigh(&mut sums, &row[first * 3..], weights);
                pixel.copy_from_slice(&sums);
            }
        });
    let lines = torch_windows(image.height(), height);
    let mut out = vec![0_u8; height as usize * row_values];
    out.par_chunks_exact_mut(row_values)
        .zip(&lines)
        .for_each(|(out, (first, weights))| {
            let mut sums = vec![0_f32; row_values];
            weigh(&mut sums, &between[first * row_values..], weights);
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = round_to_even(sum);
            }
        });
    rgb(width, height, out)
}

/// Adds one tap after another, each as many values as `sums`.
///
/// torch's compiler takes the taps after the first four at a time, with products rounded before they are added, and fuses only the up
/// to three that remain.
fn weigh<S: Copy + Into<f32>>(sums: &mut [f32], values: &[S], weights: &[f32]) {
    let rounded = 1 + (weights.len() - 1) / 4 * 4;
    let taps = values.chunks_exact(sums.len()).zip(weights).enumerate();
    for (tap, (values, &weight)) in taps {
        if tap < rounded {
            for (sum, &value) in sums.iter_mut().zip(values) {
                *sum += value.into() * weight;
            }
        } else {
            for (sum, &value) in sums.iter_mut().zip(values) {
                *sum = fused(value.into(), weight, *sum);
            }
        }
    }
}

/// The windows of [`windows`] as torch computes them: in f32.
fn torch_windows(input: u32, output: u32) -> Vec<(usize, Vec<f32>)> {
    let scale = input as f32 / output as f32;
    let stretch = scale.max(1.0);
    let support = SUPPORT as f32 * stretch;
    let inverse = (1.0 / f64::from(stretch)) as f32;
    let most = support.ceil() as usize * 2 + 1;
    (0..output)
        .map(|pixel| {
            // The halves are doubles in the C++ code, so its expressions widen and narrow again.
            let center = (f64::from(scale) * (f64::from(pixel) + 0.5)) as f32;
            let first = (f64::from(center - support) + 0.5) as usize;
            let end = ((f64::from(center + support) + 0.5) as usize).min(input as usize);
            let mut weights: Vec<f32> = (first..end.min(first + most))
                .map(|source| {
                    let distance = f64::from(source as f32 - center) + 0.5;
                    torch_cubic((distance * f64::from(inverse)) as f32)
                })
                .collect();
            let total: f32 = weights.iter().sum();
            for weight in &mut weights {
                *weight /= total;
            }
            (first, weights)
        })
        .collect()
}

/// The cubic kernel with a = -0.5, as torch's build evaluates it.
fn torch_cubic(x: f32) -> f32 {
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

/// `a * b + c`, rounded once. The product of two f32 is exact in f64, so but for a double rounding once in some hundred million this
/// is the fused operation, and it needs no instruction a machine may lack.
#[inline]
pub(crate) fn fused(a: f32, b: f32, c: f32) -> f32 {
    (f64::from(a) * f64::from(b) + f64::from(c)) as f32
}

/// Clamps and rounds half to even: an f32 as large as 2^23 has no bits left for a fraction, and adding it rounds.
fn round_to_even(value: f32) -> u8 {
    const WHOLE: f32 = 8_388_608.0;
    ((value.clamp(0.0, 255.0) + WHOLE) - WHOLE) as u8
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
