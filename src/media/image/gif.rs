//! The first frame of a GIF, as Pillow shows it.
//!
//! Indices come from the decoder raw; canvas, palette choice and background follow Pillow's `GifImagePlugin.py`, including
//! where it departs from other readers.

use std::num::NonZeroU64;

use ::gif::{ColorOutput, DecodeOptions, DecodingError, Frame, MemoryLimit};

use super::{Decoded, assemble, check_size, invalid};
use crate::media::{MediaError, MediaSettings};

pub(super) fn decode(bytes: &[u8], settings: &MediaSettings) -> Result<Decoded, MediaError> {
    let broken = |_: DecodingError| cut_short();
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    options.allow_unknown_blocks(true);
    options.set_memory_limit(
        NonZeroU64::new(settings.max_pixels).map_or(MemoryLimit::Unlimited, MemoryLimit::Bytes),
    );
    let mut decoder = options.read_info(bytes).map_err(broken)?;
    let screen = (u32::from(decoder.width()), u32::from(decoder.height()));
    let global = decoder
        .global_palette()
        .filter(|palette| !is_ramp(palette))
        .map(<[u8]>::to_vec);

    let frame = decoder
        .next_frame_info()
        .map_err(broken)?
        .ok_or_else(|| invalid("the GIF has no frame"))?;
    let (width, height) = grown(screen, frame);
    check_size(width, height, settings)?;
    let frame = frame.clone();
    let mut indices = vec![0; decoder.buffer_size()];
    if !indices.is_empty() {
        decoder.read_into_buffer(&mut indices).map_err(broken)?;
    }
    if !reaches_trailer(bytes) {
        return Err(cut_short());
    }

    let canvas = compose(&frame, &indices, width as usize, height as usize);
    let local = frame.palette.as_deref().filter(|palette| !is_ramp(palette));
    let rgb = match local.or(global.as_deref()) {
        Some(palette) => canvas
            .into_iter()
            .flat_map(|index| color(palette, index))
            .collect(),
        None => canvas.into_iter().flat_map(|index| [index; 3]).collect(),
    };
    Ok(Decoded {
        image: assemble(width, height, rgb)?,
        exif: None,
    })
}

/// The canvas of the first frame.
pub(super) fn size(bytes: &[u8]) -> Result<(u32, u32), MediaError> {
    let mut options = DecodeOptions::new();
    options.skip_frame_decoding(true);
    options.allow_unknown_blocks(true);
    let mut decoder = options.read_info(bytes).map_err(|_| cut_short())?;
    let screen = (u32::from(decoder.width()), u32::from(decoder.height()));
    let frame = decoder.next_frame_info().map_err(|_| cut_short())?;
    let frame = frame.ok_or_else(|| invalid("the GIF has no frame"))?;
    Ok(grown(screen, frame))
}

/// A frame that reaches beyond the screen makes the canvas grow, in Pillow too.
fn grown(screen: (u32, u32), frame: &Frame) -> (u32, u32) {
    let width = u32::from(frame.left) + u32::from(frame.width);
    let height = u32::from(frame.top) + u32::from(frame.height);
    (screen.0.max(width), screen.1.max(height))
}

/// The indices of the whole canvas. What the frame leaves free shows the transparent index where there is one and index 0
/// otherwise; the file's background colour plays no part.
fn compose(frame: &Frame, indices: &[u8], width: usize, height: usize) -> Vec<u8> {
    let mut canvas = vec![frame.transparent.unwrap_or(0); width * height];
    let (left, top, frame_width) = (
        usize::from(frame.left),
        usize::from(frame.top),
        usize::from(frame.width),
    );
    if frame_width > 0 {
        for (y, row) in indices.chunks_exact(frame_width).enumerate() {
            let start = (top + y) * width + left;
            canvas[start..start + frame_width].copy_from_slice(row);
        }
    }
    canvas
}

/// The colour of an index. Transparency is dropped, so a transparent index has its colour too; one beyond the palette is black.
fn color(palette: &[u8], index: u8) -> [u8; 3] {
    let at = 3 * usize::from(index);
    palette
        .get(at..at + 3)
        .map_or([0; 3], |color| [color[0], color[1], color[2]])
}

/// Whether a palette only says that index n is the grey n. Pillow then takes it for absent: such a local palette gives way to the
/// global one, and without either an index is its own grey.
fn is_ramp(palette: &[u8]) -> bool {
    palette
        .chunks_exact(3)
        .enumerate()
        .all(|(n, color)| color.iter().all(|&sample| usize::from(sample) == n))
}

fn cut_short() -> MediaError {
    invalid("the GIF is cut short or damaged")
}

/// Whether the blocks of the file lead up to its trailer. The later frames are stepped over, not decoded.
pub(in crate::media) fn reaches_trailer(bytes: &[u8]) -> bool {
    walk(bytes).is_some()
}

fn walk(bytes: &[u8]) -> Option<()> {
    let flags = *bytes.get(10)?;
    let mut rest = bytes.get(13 + table_bytes(flags)..)?;
    loop {
        let (&kind, after) = rest.split_first()?;
        rest = match kind {
            b';' => return Some(()),
            b'!' => skip_sub_blocks(after.get(1..)?)?,
            b',' => {
                let flags = *after.get(8)?;
                // Descriptor, local palette, one byte for the code size.
                skip_sub_blocks(after.get(9 + table_bytes(flags) + 1..)?)?
            }
            // Some encoders leave stray bytes between blocks, and Pillow steps over them.
            _ => after,
        };
    }
}

fn table_bytes(flags: u8) -> usize {
    if flags & 0x80 == 0 {
        0
    } else {
        3 << ((flags & 7) + 1)
    }
}

fn skip_sub_blocks(mut rest: &[u8]) -> Option<&[u8]> {
    loop {
        let (&length, after) = rest.split_first()?;
        rest = after.get(usize::from(length)..)?;
        if length == 0 {
            return Some(rest);
        }
    }
}
