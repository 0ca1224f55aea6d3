//! Pictures into patches: the rows the vision tower reads.

use std::sync::Arc;

use rayon::prelude::*;

use super::resize::{pillow_bicubic, torch_bicubic};
use super::smart_resize::{IMAGE_FACTOR, frame_pixels, smart_resize};
use super::{ProcessorError, VideoPatches};
use crate::media::RgbImage;
use crate::model::{GridThw, Patches};

/// Side of a patch in pixels.
pub(crate) const PATCH: usize = 16;
/// Frames of a patch.
pub(crate) const FRAMES: usize = 2;
/// Patches along each side of a merged one.
pub(crate) const MERGE: usize = IMAGE_FACTOR as usize / PATCH;
/// Bytes of a patch.
const PATCH_BYTES: usize = 3 * FRAMES * PATCH * PATCH;
/// The factor of a listed frame's first resize: the reference takes the patch size for 32 there.
const LIST_FACTOR: u32 = 64;

/// The resize a listed frame goes through before it becomes part of a video: `fetch_image` with a factor of 64.
///
/// # Errors
/// [`ProcessorError::AspectRatio`].
pub(super) fn first_resize(frame: &RgbImage) -> Result<RgbImage, ProcessorError> {
    let area = f64::from(LIST_FACTOR * LIST_FACTOR);
    let (width, height) = smart_resize(
        frame.dimensions(),
        LIST_FACTOR,
        (4.0 * area, 16_384.0 * area),
    )?;
    Ok(pillow_bicubic(frame, width, height))
}

/// Resizes frames, an even number of equal size, and cuts them; `times` are the frames' times in seconds.
///
/// # Errors
/// [`ProcessorError::TooFewFrames`], [`ProcessorError::FrameSizes`], [`ProcessorError::AspectRatio`].
pub(super) fn video(
    frames: &[&RgbImage],
    total_pixels: u64,
    times: &[f64],
) -> Result<VideoPatches, ProcessorError> {
    if frames.len() < FRAMES {
        return Err(ProcessorError::TooFewFrames {
            frames: frames.len() as u64,
            minimum: FRAMES as u64,
        });
    }
    let (first_width, first_height) = frames[0].dimensions();
    for (index, frame) in frames.iter().enumerate() {
        let (width, height) = frame.dimensions();
        if (width, height) != (first_width, first_height) {
            return Err(ProcessorError::FrameSizes {
                index,
                width,
                height,
                first_width,
                first_height,
            });
        }
    }
    let bounds = frame_pixels(frames.len(), total_pixels);
    let (width, height) = smart_resize((first_width, first_height), IMAGE_FACTOR, bounds)?;
    let resized: Vec<RgbImage> = frames
        .iter()
        .map(|frame| torch_bicubic(frame, width, height))
        .collect();
    let patches = Arc::new(cut(&resized.iter().collect::<Vec<_>>()));
    let timestamps = times
        .chunks(FRAMES)
        .map(|pair| (pair[0] + pair[pair.len() - 1]) / 2.0)
        .collect();
    Ok(VideoPatches {
        patches,
        timestamps,
    })
}

/// Cuts frames (an even number, sides multiples of 32) into rows in merge-block order.
pub(super) fn cut(frames: &[&RgbImage]) -> Patches {
    let (width, height) = frames[0].dimensions();
    let grid = GridThw {
        t: (frames.len() / FRAMES) as u32,
        h: height / PATCH as u32,
        w: width / PATCH as u32,
    };
    let block_bytes = MERGE * MERGE * PATCH_BYTES;
    let (rows, columns) = (grid.h as usize / MERGE, grid.w as usize / MERGE);
    let mut pixels = vec![0_u8; grid.patches() * PATCH_BYTES];
    pixels
        .par_chunks_exact_mut(block_bytes)
        .enumerate()
        .for_each(|(block, out)| {
            let pair = &frames[block / (rows * columns) * FRAMES..][..FRAMES];
            let (row, column) = (block / columns % rows, block % columns);
            for (i, patch) in out.chunks_exact_mut(PATCH_BYTES).enumerate() {
                let (top, left) = (
                    (MERGE * row + i / MERGE) * PATCH,
                    (MERGE * column + i % MERGE) * PATCH,
                );
                copy_patch(pair, (top, left), patch);
            }
        });
    Patches { grid, pixels }
}

/// One patch: channel, frame of the pair, row, column.
fn copy_patch(pair: &[&RgbImage], (top, left): (usize, usize), patch: &mut [u8]) {
    for (i, out) in patch.chunks_exact_mut(PATCH).enumerate() {
        let (channel, frame, line) = (i / (FRAMES * PATCH), i / PATCH % FRAMES, i % PATCH);
        let width = pair[frame].width() as usize;
        let start = ((top + line) * width + left) * 3 + channel;
        for (out, value) in out
            .iter_mut()
            .zip(pair[frame].as_raw()[start..].iter().step_by(3))
        {
            *out = *value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_holds_channel_frame_row_column_in_merge_block_order() {
        let picture =
            |frame: u8| RgbImage::from_fn(64, 32, |x, y| image::Rgb([x as u8, y as u8, frame]));
        let (first, second) = (picture(1), picture(2));
        let patches = cut(&[&first, &second]);
        assert_eq!(patches.grid, GridThw { t: 1, h: 2, w: 4 });
        let patch = |i: usize| &patches.pixels[i * PATCH_BYTES..(i + 1) * PATCH_BYTES];
        // Blocks of 2 x 2: the third patch is the second row's first, the fifth starts the second block.
        assert_eq!((patch(2)[0], patch(2)[512]), (0, 16));
        assert_eq!((patch(4)[0], patch(4)[512]), (32, 0));
        assert_eq!((patch(0)[1024], patch(0)[1024 + 256]), (1, 2));
        assert_eq!((patch(0)[3], patch(0)[512 + 16]), (3, 1));
    }

    #[test]
    fn frames_of_two_sizes_are_refused_by_index() {
        let (a, b) = (RgbImage::new(64, 64), RgbImage::new(64, 128));
        let error = video(&[&a, &b], 7_864_320, &[0.0, 0.5])
            .unwrap_err()
            .to_string();
        assert!(error.contains("frame 1 is 64 x 128"), "{error}");
    }
}
