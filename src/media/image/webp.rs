//! WebP, the first frame of an animated one, by a decoder written in Rust (libwebp has had memory faults: CVE-2023-4863).

use std::io::Cursor;

use image_webp::WebPDecoder;

use super::{Decoded, assemble, check_size, flatten_on_white, invalid};
use crate::media::{MediaError, MediaSettings};

/// Bytes a decoder may take at once, per pixel of the canvas, above a floor for small pictures.
const BYTES_PER_PIXEL: usize = 16;
const DECODER_BYTES: usize = 16 << 20;

pub(super) fn decode(bytes: &[u8], settings: &MediaSettings) -> Result<Decoded, MediaError> {
    let broken = |_| invalid("the WebP is cut short or damaged");
    if !is_whole(bytes) {
        return Err(broken(()));
    }
    let broken = |_: image_webp::DecodingError| broken(());
    let mut decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(broken)?;
    let (width, height) = decoder.dimensions();
    check_size(width, height, settings)?;
    let pixels = width as usize * height as usize;
    decoder.set_memory_limit(DECODER_BYTES + pixels * BYTES_PER_PIXEL);

    let channels = if decoder.has_alpha() { 4 } else { 3 };
    let mut samples = vec![0; pixels * channels];
    decoder.read_image(&mut samples).map_err(broken)?;
    let rgb = if channels == 4 {
        flatten_on_white(&samples)
    } else {
        samples
    };
    Ok(Decoded {
        image: assemble(width, height, rgb)?,
        // A block that cannot be read says nothing about the pixels.
        exif: decoder.exif_metadata().ok().flatten(),
    })
}

/// What the header says.
pub(super) fn size(bytes: &[u8]) -> Result<(u32, u32), MediaError> {
    let decoder = WebPDecoder::new(Cursor::new(bytes));
    let decoder = decoder.map_err(|_| invalid("the WebP is cut short or damaged"))?;
    Ok(decoder.dimensions())
}

/// Whether the file is as long as its RIFF header says.
pub(in crate::media) fn is_whole(bytes: &[u8]) -> bool {
    let Some((header, content)) = bytes.split_first_chunk::<8>() else {
        return false;
    };
    let announced = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
    content.len() as u64 >= u64::from(announced)
}
