//! BMP, where the settings allow it, by the decoder of `image`: colours of a palette, and 24 or 32 bits a pixel.
//!
//! Of 16-bit and run-length coded ones it makes other samples than Pillow, so these are refused.

use std::io::Cursor;

use ::image::codecs::bmp::BmpDecoder;
use ::image::{ColorType, ImageDecoder};

use super::{Decoded, assemble, check_size, flatten_on_white, invalid, unsupported_layout};
use crate::media::{MediaError, MediaSettings};

/// Not compressed.
const BI_RGB: u32 = 0;
/// Not compressed, with masks for the channels.
const BI_BITFIELDS: u32 = 3;

fn open(bytes: &[u8]) -> Result<BmpDecoder<Cursor<&[u8]>>, MediaError> {
    check_layout(bytes)?;
    BmpDecoder::new(Cursor::new(bytes)).map_err(|_| broken())
}

/// Refuses what would be read otherwise than by Pillow.
///
/// # Source
/// `BITMAPCOREHEADER` and `BITMAPINFOHEADER` of the Windows API.
fn check_layout(bytes: &[u8]) -> Result<(), MediaError> {
    let half = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let read = || {
        let (pixels, header) = (word(10)?, word(14)?);
        let (bits, compression, named, entry) = match header {
            12 => (half(24)?, 0, 0, 3),
            _ => (half(28)?, word(30)?, word(46)?, 4),
        };
        Some((pixels, header, bits, compression, named, entry))
    };
    let (pixels, header, bits, compression, named, entry) = read().ok_or_else(broken)?;
    let known = match bits {
        1 | 4 | 8 | 24 => compression == BI_RGB,
        32 => compression == BI_RGB || compression == BI_BITFIELDS,
        _ => false,
    };
    if !known {
        return Err(unsupported_layout("BMP"));
    }
    // Pixels that begin within the palette are looked for elsewhere by Pillow.
    let colors = match (bits, named) {
        (1 | 4 | 8, 0) => 1_u64 << bits,
        (1 | 4 | 8, named) => u64::from(named),
        _ => 0,
    };
    if u64::from(pixels) < 14 + u64::from(header) + colors * entry {
        return Err(broken());
    }
    Ok(())
}

/// What the header says.
pub(super) fn size(bytes: &[u8]) -> Result<(u32, u32), MediaError> {
    Ok(open(bytes)?.dimensions())
}

pub(super) fn decode(bytes: &[u8], settings: &MediaSettings) -> Result<Decoded, MediaError> {
    let decoder = open(bytes)?;
    let (width, height) = decoder.dimensions();
    check_size(width, height, settings)?;
    let color = decoder.color_type();
    let mut samples =
        vec![0; width as usize * height as usize * usize::from(color.bytes_per_pixel())];
    decoder.read_image(&mut samples).map_err(|_| broken())?;
    let rgb = match color {
        ColorType::Rgb8 => samples,
        ColorType::Rgba8 => flatten_on_white(&samples),
        _ => return Err(unsupported_layout("BMP")),
    };
    Ok(Decoded {
        image: assemble(width, height, rgb)?,
        exif: None,
    })
}

fn broken() -> MediaError {
    invalid("the BMP is cut short or damaged")
}
