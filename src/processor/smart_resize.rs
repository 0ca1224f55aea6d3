//! Sizes the reference computes before it touches a pixel.
//!
//! # Source
//! qwen-vl-utils 0.0.14 `vision_process.py`.

use super::ProcessorError;

/// One side may be this many times the other.
pub(crate) const MAX_ASPECT_RATIO: u32 = 200;
/// `patch_size * spatial_merge_size`: merged patches tile an image without a remainder.
pub(crate) const IMAGE_FACTOR: u32 = 32;
/// Frames of one temporal patch.
pub(crate) const FRAME_FACTOR: u64 = 2;
/// Fewest pixels of a frame: 128 merged patches.
const VIDEO_MIN_PIXELS: f64 = 131_072.0;
/// Most pixels of a frame: 768 merged patches.
const VIDEO_MAX_PIXELS: f64 = 786_432.0;
/// Pixels of all frames of a list together, `MAX_TOTAL_PIXELS` of the embedding script.
pub(crate) const LIST_TOTAL_PIXELS: u64 = 7_864_320;
/// Pixels of all frames of a file together: 90 % of a context of 128,000 merged patches.
pub(crate) const FILE_TOTAL_PIXELS: u64 = 117_964_800;

/// Refuses a shape that would not be resized: before anything of that shape is decoded, where its size is known by then.
///
/// # Errors
/// [`ProcessorError::AspectRatio`] when one side is more than 200 times the other.
pub(crate) fn check_aspect((width, height): (u32, u32)) -> Result<(), ProcessorError> {
    let (long, short) = (width.max(height), width.min(height));
    if u64::from(long) > u64::from(short) * u64::from(MAX_ASPECT_RATIO) {
        return Err(ProcessorError::AspectRatio {
            width,
            height,
            limit: MAX_ASPECT_RATIO,
        });
    }
    Ok(())
}

/// Picks the size an image is resized to: both sides multiples of `factor`, the area within `min..=max` pixels, the aspect ratio
/// changed as little as that allows.
///
/// Sizes are `(width, height)` in pixels.
///
/// # Errors
/// [`ProcessorError::AspectRatio`] when one side is more than 200 times the other: the reference refuses these too.
///
/// # Source
/// `smart_resize`, qwen-vl-utils 0.0.14.
pub(crate) fn smart_resize(
    (width, height): (u32, u32),
    factor: u32,
    (min, max): (f64, f64),
) -> Result<(u32, u32), ProcessorError> {
    check_aspect((width, height))?;
    let (w, h, f) = (f64::from(width), f64::from(height), f64::from(factor));
    // Python rounds halves to even and so must we: a side of 80 px gives 64, not 96.
    let nearest = |side: f64| ((side / f).round_ties_even() * f).max(f);
    let area = nearest(w) * nearest(h);
    let (w, h) = if area > max {
        let beta = (h * w / max).sqrt();
        let fit = |side: f64| (side / beta / f).floor() * f;
        (fit(w), fit(h))
    } else if area < min {
        let beta = (min / (h * w)).sqrt();
        let fit = |side: f64| (side * beta / f).ceil() * f;
        (fit(w), fit(h))
    } else {
        (nearest(w), nearest(h))
    };
    if w < f || h < f {
        // The reference goes on with a side of 0 here and fails later, in Pillow.
        return Err(ProcessorError::TooFewPixels {
            width,
            height,
            max_pixels: max as u64,
        });
    }
    Ok((w as u32, h as u32))
}

/// Pixels each of `frames` frames may have, lowest and highest, when all together may have `total`.
pub(crate) fn frame_pixels(frames: usize, total: u64) -> (f64, f64) {
    let share = total as f64 / frames as f64 * FRAME_FACTOR as f64;
    let floor = (VIDEO_MIN_PIXELS * 1.05).trunc();
    (VIDEO_MIN_PIXELS, VIDEO_MAX_PIXELS.min(share).max(floor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const IMAGE: (f64, f64) = (4096.0, 1_843_200.0);

    #[test]
    fn sides_round_half_to_even() {
        assert_eq!(smart_resize((80, 48), 32, IMAGE).unwrap(), (64, 64));
        assert_eq!(smart_resize((112, 144), 32, IMAGE).unwrap(), (128, 128));
    }

    #[test]
    fn one_pixel_is_enough_and_an_aspect_of_201_is_refused() {
        assert_eq!(smart_resize((1, 1), 32, IMAGE).unwrap(), (64, 64));
        assert!(smart_resize((200, 1), 32, IMAGE).is_ok());
        let error = smart_resize((201, 1), 32, IMAGE).unwrap_err().to_string();
        assert!(
            error.contains("201 x 1") && error.contains("200:1"),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn a_resized_image_is_whole_patches_within_bounds(w in 1_u32..20_000, h in 1_u32..20_000) {
            match smart_resize((w, h), 32, IMAGE) {
                Ok((nw, nh)) => {
                    prop_assert!(nw % 32 == 0 && nh % 32 == 0 && nw > 0 && nh > 0);
                    let area = f64::from(nw) * f64::from(nh);
                    prop_assert!((IMAGE.0..=IMAGE.1).contains(&area), "{} x {}", nw, nh);
                }
                Err(_) => prop_assert!(w.max(h) > 200 * w.min(h)),
            }
        }
    }
}
