//! Which frames of a video are looked at.
//!
//! # Source
//! qwen-vl-utils 0.0.14 `vision_process.py`; the embedding script for lists.

use super::resize::fused;
use super::smart_resize::FRAME_FACTOR;
use super::{Excerpt, PixelOptions, ProcessorError};

/// Fewest frames taken from a file; fewer only if it has fewer.
const MIN_FRAMES: f64 = 4.0;

/// Which frames of a file are taken, ascending: `fps` a second of the `total` at `video_fps`, at most `max_frames`, evenly spaced; of an
/// excerpt only those in it, and as many as it says.
///
/// # Errors
/// [`ProcessorError::TooFewFrames`] when fewer than one pair is left, [`ProcessorError::Excerpt`] when the excerpt holds no two frames.
///
/// # Source
/// `calculate_video_frame_range`, `smart_nframes` and `torch.linspace`, rounded half to even.
pub(crate) fn sample_file(
    total: u64,
    video_fps: f64,
    options: &PixelOptions,
) -> Result<Vec<u64>, ProcessorError> {
    let (first, last) = frame_range(total, video_fps, &options.excerpt)?;
    let total = last - first + 1;
    let count = match options.excerpt.num_frames {
        Some(frames) => {
            let pairs = (frames as f64 / FRAME_FACTOR as f64).round_ties_even();
            pairs as u64 * FRAME_FACTOR
        }
        None => {
            let most = (options.max_frames as u64 / FRAME_FACTOR * FRAME_FACTOR) as f64;
            let wanted = (total as f64 / video_fps * options.fps)
                .max(MIN_FRAMES)
                .min(most)
                .min(total as f64);
            (wanted / FRAME_FACTOR as f64).floor() as u64 * FRAME_FACTOR
        }
    };
    if count > total && options.excerpt.num_frames.is_some() {
        return Err(ProcessorError::TooFewFrames {
            frames: total,
            minimum: count,
        });
    }
    if count < FRAME_FACTOR || count > total {
        return Err(ProcessorError::TooFewFrames {
            frames: count.min(total),
            minimum: FRAME_FACTOR,
        });
    }
    Ok(linspace(first, last, count)
        .map(|at| at.round_ties_even() as u64)
        .collect())
}

/// The first and the last frame that come into question.
fn frame_range(total: u64, fps: f64, excerpt: &Excerpt) -> Result<(u64, u64), ProcessorError> {
    let seconds = total as f64 / fps;
    let end_of_file = total.saturating_sub(1);
    let frame = |at: f64| at.clamp(0.0, seconds) * fps;
    let first = excerpt.start.map_or(0, |start| frame(start).ceil() as u64);
    let last = excerpt.end.map_or(end_of_file, |end| {
        (frame(end).floor() as u64).min(end_of_file)
    });
    if first < last || (excerpt.start, excerpt.end) == (None, None) {
        return Ok((first, last));
    }
    Err(ProcessorError::Excerpt {
        start: excerpt.start.unwrap_or(0.0),
        end: excerpt.end.unwrap_or(seconds),
        seconds,
    })
}

/// `torch.linspace(first, last, count)` in f32: from both ends towards the middle, each value rounded once, as torch's build fuses
/// it. Rounding twice takes another frame in one of a hundred long videos.
fn linspace(first: u64, last: u64, count: u64) -> impl Iterator<Item = f32> {
    let (first, last) = (first as f32, last as f32);
    let step = (last - first) / (count - 1) as f32;
    (0..count).map(move |i| {
        if i < count / 2 {
            fused(step, i as f32, first)
        } else {
            fused(-step, (count - 1 - i) as f32, last)
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

    fn file(
        total: u64,
        video_fps: f64,
        (fps, max_frames): (f64, usize),
    ) -> Result<Vec<u64>, ProcessorError> {
        let options = PixelOptions {
            fps,
            max_frames,
            ..PixelOptions::default()
        };
        sample_file(total, video_fps, &options)
    }

    /// Of a file of 50 frames at 10 a second.
    fn excerpt(
        start: Option<f64>,
        end: Option<f64>,
        num_frames: Option<u64>,
    ) -> Result<Vec<u64>, ProcessorError> {
        let options = PixelOptions {
            excerpt: Excerpt {
                start,
                end,
                num_frames,
            },
            ..PixelOptions::default()
        };
        sample_file(50, 10.0, &options)
    }

    #[test]
    fn a_file_gives_the_frames_of_the_reference() {
        assert_eq!(file(50, 10.0, (1.0, 64)).unwrap(), [0, 16, 33, 49]);
        assert_eq!(
            file(50, 10.0, (2.0, 64)).unwrap(),
            [0, 5, 11, 16, 22, 27, 33, 38, 44, 49]
        );
        assert_eq!(file(50, 10.0, (10.0, 6)).unwrap(), [0, 10, 20, 29, 39, 49]);
        assert_eq!(file(2, 10.0, (1.0, 64)).unwrap(), [0, 1]);
        assert!(file(1, 10.0, (1.0, 64)).is_err());
        assert!(file(50, 10.0, (1.0, 1)).is_err());
    }

    #[test]
    fn many_frames_of_a_long_file_are_rounded_as_torch_rounds_them() {
        // torch.linspace(0, 34081, 606).round()[453]; with a second rounding it would be 25518.
        let indices = file(34_082, 25.0, (25.0, 606)).unwrap();
        assert_eq!(indices[453], 25_519);
    }

    #[test]
    fn a_long_list_is_thinned_towards_zero() {
        assert_eq!(sample_list(7, 4), [0, 2, 4, 6]);
        assert_eq!(sample_list(6, 4), [0, 1, 3, 5]);
        assert_eq!(sample_list(5, 1), [0]);
        assert_eq!(sample_list(3, 4), [0, 1, 2]);
    }

    /// The numbers are those `fetch_video` gives for `video_start`, `video_end` and `nframes`.
    #[test]
    fn an_excerpt_gives_frames_of_that_time_alone() {
        assert_eq!(
            excerpt(Some(1.0), Some(3.0), None).unwrap(),
            [10, 17, 23, 30]
        );
        assert_eq!(excerpt(Some(4.05), None, None).unwrap(), [41, 44, 46, 49]);
        assert_eq!(excerpt(None, Some(0.35), None).unwrap(), [0, 1, 2, 3]);
        assert_eq!(excerpt(None, Some(99.0), None).unwrap(), [0, 16, 33, 49]);
        assert_eq!(excerpt(Some(4.8), None, None).unwrap(), [48, 49]);
    }

    #[test]
    fn a_number_of_frames_is_taken_whatever_the_rate_says() {
        assert_eq!(excerpt(None, None, Some(2)).unwrap(), [0, 49]);
        assert_eq!(
            excerpt(Some(1.0), Some(2.0), Some(6)).unwrap(),
            [10, 12, 14, 16, 18, 20]
        );
        // Three is one pair and a half, and a half goes to the even number of pairs.
        assert_eq!(excerpt(None, None, Some(3)).unwrap().len(), 4);
        assert_eq!(excerpt(None, None, Some(5)).unwrap().len(), 4);
        assert_eq!(
            excerpt(None, None, Some(50)).unwrap(),
            (0..50).collect::<Vec<u64>>()
        );
    }

    #[test]
    fn an_excerpt_without_two_frames_is_refused_in_seconds() {
        for (start, end) in [
            (Some(5.0), None),
            (Some(3.0), Some(2.0)),
            (Some(9.0), Some(99.0)),
            (None, Some(0.0)),
        ] {
            let error = excerpt(start, end, None).unwrap_err().to_string();
            assert!(error.contains("5 seconds"), "{error}");
        }
        assert!(matches!(
            excerpt(None, None, Some(52)),
            Err(ProcessorError::TooFewFrames {
                frames: 50,
                minimum: 52
            })
        ));
    }

    proptest! {
        #[test]
        fn sampled_frames_ascend_and_exist(total in 2_u64..100_000, video_fps in 1.0_f64..120.0, fps in 0.01_f64..60.0, max in 2_usize..800) {
            let indices = file(total, video_fps, (fps, max)).unwrap();
            prop_assert!(indices.len().is_multiple_of(2) && indices.len() <= max.max(2));
            prop_assert!(indices.is_sorted() && *indices.last().unwrap() < total);
        }

        #[test]
        fn excerpts_never_leave_the_file(total in 1_u64..100_000, fps in 0.1_f64..240.0, start in prop::option::of(0.0_f64..1e6), end in prop::option::of(0.0_f64..1e6), num_frames in prop::option::of(2_u64..800)) {
            let options = PixelOptions { excerpt: Excerpt { start, end, num_frames }, ..PixelOptions::default() };
            if let Ok(indices) = sample_file(total, fps, &options) {
                prop_assert!(indices.is_sorted() && *indices.last().unwrap() < total);
                let times = |&index: &u64| index as f64 / fps;
                prop_assert!(start.is_none_or(|start| indices.iter().map(times).all(|at| at >= start - 1e-6)));
                prop_assert!(end.is_none_or(|end| indices.iter().map(times).all(|at| at <= end + 1e-6)));
            }
        }
    }
}
