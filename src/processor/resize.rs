//! The two bicubic resizers of the reference: Pillow's fixed-point one for images, torch's f32 one for video frames.
//!
//! Both use the cubic kernel with a = -0.5, widened by the scale when shrinking, horizontal pass first. Pillow rounds to eight
//! bits between the passes; torch keeps f32 and rounds once, half to even.
//!
//! # Source
//! Pillow 12 `Resample.c`; PyTorch `upsample_bicubic2d_aa`.

use rayon::prelude::*;

use crate::media::RgbImage;

/// Bits of fraction in Pillow's fixed-point weights: 32 - 8 - 2.
const PRECISION_BITS: u32 = 22;
/// Half the width of the cubic kernel.
const SUPPORT: f64 = 2.0;

/// The source pixels one output pixel is made of, and their weights.
struct Window {
    first: usize,
    weights: Vec<f64>,
}

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
        .for_each(|(out, (first, weights))| {
            let mut sums = vec![1_i32 << (PRECISION_BITS - 1); row_bytes];
            for (source, &weight) in image.as_raw()[first * row_bytes..]
                .chunks_exact(row_bytes)
                .zip(weights)
            {
                for (sum, &value) in sums.iter_mut().zip(source) {
                    *sum += i32::from(value) * weight;
                }
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = clip(sum);
            }
        });
    rgb(width, height, out)
}

/// Pillow's horizontal pass.
fn shrink_rows(image: &RgbImage, width: u32) -> RgbImage {
    let windows = fixed_point(&windows(image.width(), width));
    let mut out = vec![0_u8; width as usize * image.height() as usize * 3];
    let rows = image.as_raw().par_chunks_exact(image.width() as usize * 3);
    out.par_chunks_exact_mut(width as usize * 3)
        .zip(rows)
        .for_each(|(out, row)| {
            for (pixel, (first, weights)) in out.chunks_exact_mut(3).zip(&windows) {
                let mut sums = [1_i32 << (PRECISION_BITS - 1); 3];
                for (source, &weight) in row[first * 3..].chunks_exact(3).zip(weights) {
                    for (sum, &value) in sums.iter_mut().zip(source) {
                        *sum += i32::from(value) * weight;
                    }
                }
                for (out, sum) in pixel.iter_mut().zip(sums) {
                    *out = clip(sum);
                }
            }
        });
    rgb(width, image.height(), out)
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

fn clip(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

fn rgb(width: u32, height: u32, data: Vec<u8>) -> RgbImage {
    RgbImage::from_raw(width, height, data)
        .unwrap_or_else(|| unreachable!("the passes fill width * height * 3 bytes"))
}

/// Resizes as torchvision's antialiased bicubic `resize` of float frames does: f32 throughout, clamped and rounded half to even at
/// the end.
///
/// The reference's sums run in another order on some machines; isolated values may differ from it by one.
pub(crate) fn torch_bicubic(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    let columns = single_precision(&windows(image.width(), width));
    let row_values = width as usize * 3;
    let mut between = vec![0_f32; image.height() as usize * row_values];
    let rows = image.as_raw().par_chunks_exact(image.width() as usize * 3);
    between
        .par_chunks_exact_mut(row_values)
        .zip(rows)
        .for_each(|(out, row)| {
            for (pixel, (first, weights)) in out.chunks_exact_mut(3).zip(&columns) {
                let mut sums = [0_f32; 3];
                for (source, &weight) in row[first * 3..].chunks_exact(3).zip(weights) {
                    for (sum, &value) in sums.iter_mut().zip(source) {
                        *sum += f32::from(value) * weight;
                    }
                }
                pixel.copy_from_slice(&sums);
            }
        });
    let lines = single_precision(&windows(image.height(), height));
    let mut out = vec![0_u8; height as usize * row_values];
    out.par_chunks_exact_mut(row_values)
        .zip(&lines)
        .for_each(|(out, (first, weights))| {
            let mut sums = vec![0_f32; row_values];
            for (source, &weight) in between[first * row_values..]
                .chunks_exact(row_values)
                .zip(weights)
            {
                for (sum, &value) in sums.iter_mut().zip(source) {
                    *sum += value * weight;
                }
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = sum.clamp(0.0, 255.0).round_ties_even() as u8;
            }
        });
    rgb(width, height, out)
}

fn single_precision(windows: &[Window]) -> Vec<(usize, Vec<f32>)> {
    windows
        .iter()
        .map(|window| {
            (
                window.first,
                window.weights.iter().map(|&weight| weight as f32).collect(),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
