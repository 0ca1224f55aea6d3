//! TIFF, where the settings allow it: the first page, of 8-bit grey, RGB, RGBA or CMYK samples.

use std::io::Cursor;

use ::image::metadata::Orientation;
use ::image::{DynamicImage, RgbImage};
use ::tiff::ColorType;
use ::tiff::decoder::{Decoder, DecodingResult, Limits};
use ::tiff::tags::Tag;

use super::{Decoded, assemble, check_size, flatten_on_white, invalid, unsupported_layout};
use crate::media::{MediaError, MediaSettings};

/// Room for what the decoder holds besides the samples.
const DECODER_BYTES: usize = 16 << 20;

/// `ExtraSamples` of a transparency the colours know nothing of (TIFF 6.0, page 31).
const UNASSOCIATED_ALPHA: u16 = 2;

fn open(bytes: &[u8]) -> Result<Decoder<Cursor<&[u8]>>, MediaError> {
    Decoder::new(Cursor::new(bytes)).map_err(|_| broken())
}

/// What the first directory says.
pub(super) fn size(bytes: &[u8]) -> Result<(u32, u32), MediaError> {
    open(bytes)?.dimensions().map_err(|_| broken())
}

pub(super) fn decode(bytes: &[u8], settings: &MediaSettings) -> Result<Decoded, MediaError> {
    let mut decoder = open(bytes)?;
    let (width, height) = decoder.dimensions().map_err(|_| broken())?;
    check_size(width, height, settings)?;
    let color = decoder
        .colortype()
        .map_err(|_| unsupported_layout("TIFF"))?;
    let channels = match color {
        ColorType::Gray(8) => 1,
        ColorType::RGB(8) => 3,
        ColorType::RGBA(8) | ColorType::CMYK(8) => 4,
        _ => return Err(unsupported_layout("TIFF")),
    };
    // Pillow divides colours by an alpha they were multiplied with, and drops what is no alpha at all.
    let alpha = decoder.find_tag_unsigned_vec::<u16>(Tag::ExtraSamples);
    let straight = matches!(
        alpha.as_ref().map(|found| found.as_deref()),
        Ok(Some([UNASSOCIATED_ALPHA]))
    );
    if matches!(color, ColorType::RGBA(_)) && !straight {
        return Err(unsupported_layout("TIFF"));
    }
    let size = width as usize * height as usize * channels;
    let mut limits = Limits::default();
    limits.decoding_buffer_size = size;
    limits.intermediate_buffer_size = size + DECODER_BYTES;
    limits.ifd_value_size = DECODER_BYTES;
    let mut decoder = decoder.with_limits(limits);
    let turn = decoder
        .find_tag_unsigned::<u8>(Tag::Orientation)
        .ok()
        .flatten();
    let samples = match decoder.read_image() {
        Ok(DecodingResult::U8(samples)) if samples.len() == size => samples,
        Ok(_) => return Err(unsupported_layout("TIFF")),
        Err(::tiff::TiffError::UnsupportedError(_)) => return Err(unsupported_layout("TIFF")),
        Err(_) => return Err(broken()),
    };
    let rgb = match color {
        ColorType::Gray(_) => samples.into_iter().flat_map(|grey| [grey; 3]).collect(),
        ColorType::RGBA(_) => flatten_on_white(&samples),
        ColorType::CMYK(_) => {
            let inverted: Vec<u8> = samples.iter().map(|ink| 255 - ink).collect();
            super::jpeg::cmyk_to_rgb(&inverted)
        }
        _ => samples,
    };
    Ok(Decoded {
        image: turned(assemble(width, height, rgb)?, turn),
        exif: None,
    })
}

/// Pillow turns the pages of this format, and of no other, as they say.
fn turned(image: RgbImage, turn: Option<u8>) -> RgbImage {
    match turn.and_then(Orientation::from_exif) {
        None | Some(Orientation::NoTransforms) => image,
        Some(orientation) => {
            let mut image = DynamicImage::ImageRgb8(image);
            image.apply_orientation(orientation);
            image.into_rgb8()
        }
    }
}

fn broken() -> MediaError {
    invalid("the TIFF is cut short or damaged")
}
