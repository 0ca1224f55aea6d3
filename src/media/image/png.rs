//! PNG, sample by sample as Pillow reads it.
//!
//! The decoder hands out raw samples: palette indices, 1- to 16-bit grey, colours; the table in [`to_rgb`] is Pillow's.

use std::io::Cursor;

use ::png::{BitDepth, ColorType, Decoder, DecodingError, Limits, Transformations};

use super::{Decoded, assemble, check_size, flatten_on_white, invalid};
use crate::media::{MediaError, MediaSettings};

/// Room for the decoder's own rows and chunks; the picture's samples are ours and counted elsewhere.
const DECODER_BYTES: usize = 16 << 20;

/// One picture's raw samples and what they mean.
struct Samples<'a> {
    data: &'a [u8],
    line_size: usize,
    width: usize,
    color: ColorType,
    depth: BitDepth,
    palette: &'a [u8],
}

pub(super) fn decode(bytes: &[u8], settings: &MediaSettings) -> Result<Decoded, MediaError> {
    let broken = |_: DecodingError| invalid("the PNG is cut short or damaged");
    let mut decoder = Decoder::new_with_limits(
        Cursor::new(bytes),
        Limits {
            bytes: DECODER_BYTES,
        },
    );
    decoder.set_transformations(Transformations::IDENTITY);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let (width, height) = decoder.read_header_info().map_err(broken)?.size();
    check_size(width, height, settings)?;

    let mut reader = decoder.read_info().map_err(broken)?;
    let size = reader
        .output_buffer_size()
        .ok_or_else(|| invalid("the PNG is too large for this machine"))?;
    let mut data = vec![0; size];
    let frame = reader.next_frame(&mut data).map_err(broken)?;
    // Of an animation the first picture is read; one smaller than the canvas is against the standard.
    if (frame.width, frame.height) != (width, height) {
        return Err(invalid(
            "the first frame of the PNG does not fill its canvas",
        ));
    }
    // To the end of the file, so that one cut short within its last chunks is noticed.
    reader.finish().map_err(broken)?;

    let info = reader.info();
    let palette = info.palette.as_deref().unwrap_or_default();
    if frame.color_type == ColorType::Indexed && palette.is_empty() {
        return Err(invalid("the PNG has palette colours and no palette"));
    }
    let rgb = to_rgb(&Samples {
        data: &data,
        line_size: frame.line_size,
        width: width as usize,
        color: frame.color_type,
        depth: frame.bit_depth,
        palette,
    });
    Ok(Decoded {
        image: assemble(width, height, rgb)?,
        exif: info.exif_metadata.as_ref().map(|exif| exif.to_vec()),
    })
}

/// What the header says.
pub(super) fn size(bytes: &[u8]) -> Result<(u32, u32), MediaError> {
    let broken = |_: DecodingError| invalid("the PNG is cut short or damaged");
    let mut decoder = Decoder::new(Cursor::new(bytes));
    Ok(decoder.read_header_info().map_err(broken)?.size())
}

/// # Source
/// `_MODES` of Pillow's `PngImagePlugin.py`: 16-bit colours keep their high byte, 16-bit grey with alpha opens as RGBA (and so
/// goes on white), 16-bit grey opens as `I;16`, whose conversion clips at 255 instead of shifting.
fn to_rgb(samples: &Samples) -> Vec<u8> {
    match (samples.color, samples.depth) {
        (ColorType::Rgb, BitDepth::Sixteen) => high_bytes(samples.data).collect(),
        (ColorType::Rgb, _) => samples.data.to_vec(),
        (ColorType::Rgba, BitDepth::Sixteen) => {
            flatten_on_white(&high_bytes(samples.data).collect::<Vec<u8>>())
        }
        (ColorType::Rgba, _) => flatten_on_white(samples.data),
        (ColorType::GrayscaleAlpha, BitDepth::Sixteen) => {
            let rgba: Vec<u8> = samples
                .data
                .chunks_exact(4)
                .flat_map(|la| [la[0], la[0], la[0], la[2]])
                .collect();
            flatten_on_white(&rgba)
        }
        (ColorType::GrayscaleAlpha, _) => samples
            .data
            .chunks_exact(2)
            .flat_map(|la| [la[0]; 3])
            .collect(),
        (ColorType::Grayscale, BitDepth::Sixteen) => samples
            .data
            .chunks_exact(2)
            .flat_map(|grey| [if grey[0] == 0 { grey[1] } else { 255 }; 3])
            .collect(),
        (ColorType::Grayscale, depth) => {
            // 1, 2 and 4 bits are stretched to 0..=255: times 255, 85, 17.
            let scale = 255 / ((1u16 << depth as u8) - 1) as u8;
            unpacked(samples)
                .flat_map(|grey| [grey * scale; 3])
                .collect()
        }
        (ColorType::Indexed, _) => unpacked(samples)
            .flat_map(|index| {
                // An index beyond the palette is black, as Pillow has it.
                let at = 3 * usize::from(index);
                samples
                    .palette
                    .get(at..at + 3)
                    .map_or([0; 3], |color| [color[0], color[1], color[2]])
            })
            .collect(),
    }
}

fn high_bytes(data: &[u8]) -> impl Iterator<Item = u8> {
    data.chunks_exact(2).map(|sample| sample[0])
}

/// The samples of one to eight bits, row by row; rows begin at whole bytes.
fn unpacked<'a>(samples: &'a Samples) -> impl Iterator<Item = u8> + 'a {
    let bits = samples.depth as usize;
    let mask = ((1u16 << bits) - 1) as u8;
    samples
        .data
        .chunks_exact(samples.line_size)
        .flat_map(move |row| {
            (0..samples.width).map(move |x| {
                let bit = x * bits;
                (row[bit / 8] >> (8 - bits - bit % 8)) & mask
            })
        })
}
