//! Sizes and counts the reference computes before it touches a pixel: image sides, frame numbers.
//!
//! # Source
//! qwen-vl-utils 0.0.14 `vision_process.py`.

use super::ProcessorError;

/// One side may be this many times the other.
pub(crate) const MAX_ASPECT_RATIO: u32 = 200;
/// `patch_size * spatial_merge_size`: merged patches tile an image without a remainder.
pub(crate) const IMAGE_FACTOR: u32 = 32;
/// Fewest frames taken from a file; fewer only if it has fewer.
const MIN_FRAMES: f64 = 4.0;
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
    let (long, short) = (width.max(height), width.min(height));
    if u64::from(long) > u64::from(short) * u64::from(MAX_ASPECT_RATIO) {
        return Err(ProcessorError::AspectRatio {
            width,
            height,
            limit: MAX_ASPECT_RATIO,
        });
    }
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

/// Which frames of a file are taken, ascending: `fps` a second of the `total` at `video_fps`, at most `max_frames`, evenly spaced.
///
/// # Errors
/// [`ProcessorError::TooFewFrames`] when fewer than one pair is left.
///
/// # Source
/// `smart_nframes` and `torch.linspace`, rounded half to even.
pub(crate) fn sample_file(
    total: u64,
    video_fps: f64,
    (fps, max_frames): (f64, usize),
) -> Result<Vec<u64>, ProcessorError> {
    let most = (max_frames as u64 / FRAME_FACTOR * FRAME_FACTOR) as f64;
    let wanted = (total as f64 / video_fps * fps)
        .max(MIN_FRAMES)
        .min(most)
        .min(total as f64);
    let count = (wanted / FRAME_FACTOR as f64).floor() as u64 * FRAME_FACTOR;
    if count < FRAME_FACTOR || count > total {
        return Err(ProcessorError::TooFewFrames {
            frames: count.min(total),
            minimum: FRAME_FACTOR,
        });
    }
    Ok(linspace(total - 1, count)
        .map(|at| at.round_ties_even() as u64)
        .collect())
}

/// `torch.linspace(0, last, count)` in f32: from both ends towards the middle.
fn linspace(last: u64, count: u64) -> impl Iterator<Item = f32> {
    let last = last as f32;
    let step = last / (count - 1) as f32;
    (0..count).map(move |i| {
        if i < count / 2 {
            step * i as f32
        } else {
            last - step * (count - 1 - i) as f32
        }
    })
}

/// Which frames of a list are taken, ascending: all, or `max_frames` evenly spaced ones.
///
/// # Source
/// `np.linspace(0, n - 1, max_frames, dtype=int)`, which truncates, in the embedding script.
pub(crate) fn sample_list(frames: usize, max_frames: usize) -> Vec<usize> {
    if frames <= max_frames {
        return (0..frames).collect();
    }
    let last = (frames - 1) as f64;
    let step = last / (max_frames.max(2) - 1) as f64;
    // numpy sets the last value to the stop exactly, whatever the product rounds to.
    let at = |i: usize| {
        if i + 1 == max_frames && i > 0 {
            frames - 1
        } else {
            (i as f64 * step) as usize
        }
    };
    (0..max_frames).map(at).collect()
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

    #[test]
    fn a_file_gives_the_frames_of_the_reference() {
        assert_eq!(sample_file(50, 10.0, (1.0, 64)).unwrap(), [0, 16, 33, 49]);
        assert_eq!(
            sample_file(50, 10.0, (2.0, 64)).unwrap(),
            [0, 5, 11, 16, 22, 27, 33, 38, 44, 49]
        );
        assert_eq!(
            sample_file(50, 10.0, (10.0, 6)).unwrap(),
            [0, 10, 20, 29, 39, 49]
        );
        assert_eq!(sample_file(2, 10.0, (1.0, 64)).unwrap(), [0, 1]);
        assert!(sample_file(1, 10.0, (1.0, 64)).is_err());
        assert!(sample_file(50, 10.0, (1.0, 1)).is_err());
    }

    #[test]
    fn a_long_list_is_thinned_towards_zero() {
        assert_eq!(sample_list(7, 4), [0, 2, 4, 6]);
        assert_eq!(sample_list(6, 4), [0, 1, 3, 5]);
        assert_eq!(sample_list(5, 1), [0]);
        assert_eq!(sample_list(3, 4), [0, 1, 2]);
    }

    proptest! {
        #[test]
        fn a_resized_image_is_whole_patches_within_bounds(w in 1_u32..20_000, h in 1_u32..20_000) {
            match smart_resize((w, h), 32, IMAGE) {
                Ok((nw, nh)) => {
                    prop_assert!(nw.is_multiple_of(32) && nh.is_multiple_of(32) && nw > 0 && nh > 0);
                    let area = f64::from(nw) * f64::from(nh);
                    prop_assert!((IMAGE.0..=IMAGE.1).contains(&area), "{} x {}", nw, nh);
                }
                Err(_) => prop_assert!(w.max(h) > 200 * w.min(h)),
            }
        }

        #[test]
        fn sampled_frames_ascend_and_exist(total in 2_u64..100_000, video_fps in 1.0_f64..120.0, fps in 0.01_f64..60.0, max in 2_usize..800) {
            let indices = sample_file(total, video_fps, (fps, max)).unwrap();
            prop_assert!(indices.len().is_multiple_of(2) && indices.len() <= max.max(2));
            prop_assert!(indices.is_sorted() && *indices.last().unwrap() < total);
        }
    }
}
