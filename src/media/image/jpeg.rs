//! JPEG through libjpeg-turbo, the library Pillow uses, with Pillow's settings: accurate integer DCT, fancy upsampling.

use turbojpeg::{Colorspace, DecompressHeader, Decompressor, Image, PixelFormat};

use super::{Decoded, assemble, check_size, invalid};
use crate::media::{MediaError, MediaSettings};

/// Scans of a progressive file. Encoders write about ten; each costs a pass over the whole picture, so thousands of them in a
/// small file are an attack ("Two Issues with the JPEG Standard", libjpeg-turbo).
const MAX_SCANS: u32 = 100;

pub(super) fn decode(bytes: &[u8], settings: &MediaSettings) -> Result<Decoded, MediaError> {
    let broken = |_| invalid("the JPEG is cut short or damaged");
    let mut decompressor =
        Decompressor::new().map_err(|error| MediaError::Internal(std::io::Error::other(error)))?;
    decompressor.set_scan_limit(MAX_SCANS).map_err(broken)?;
    let header = decompressor.read_header(bytes).map_err(broken)?;
    let side = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    let (width, height) = (side(header.width), side(header.height));
    check_size(width, height, settings)?;

    let inks = matches!(header.colorspace, Colorspace::CMYK | Colorspace::YCCK);
    let format = if inks {
        PixelFormat::CMYK
    } else {
        PixelFormat::RGB
    };
    // libjpeg-turbo fills what a damaged file lacks with grey and only warns. A warning fails here: see the crate's `decompress`.
    let pixels = decompress(&mut decompressor, bytes, &header, format).map_err(broken)?;
    let rgb = if inks { cmyk_to_rgb(&pixels) } else { pixels };
    Ok(Decoded {
        image: assemble(width, height, rgb)?,
        exif: exif(bytes),
    })
}

/// What the header says.
pub(super) fn size(bytes: &[u8]) -> Result<(u32, u32), MediaError> {
    let broken = |_| invalid("the JPEG is cut short or damaged");
    let header = turbojpeg::read_header(bytes).map_err(broken)?;
    let side = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    Ok((side(header.width), side(header.height)))
}

fn decompress(
    decompressor: &mut Decompressor,
    bytes: &[u8],
    header: &DecompressHeader,
    format: PixelFormat,
) -> turbojpeg::Result<Vec<u8>> {
    let pitch = header.width * format.size();
    let mut image = Image {
        pixels: vec![0; pitch * header.height],
        width: header.width,
        pitch,
        height: header.height,
        format,
    };
    decompressor.decompress(bytes, image.as_deref_mut())?;
    Ok(image.pixels)
}

/// Samples are inverted, as Adobe writes them and Pillow assumes of every file (`CMYK;I`).
///
/// # Source
/// Pillow's `cmyk2rgb` (`Convert.c`): `clip(k' - c·k' / 255)` with its rounding division, where `k' = 255 - k`.
pub(super) fn cmyk_to_rgb(inverted: &[u8]) -> Vec<u8> {
    inverted
        .chunks_exact(4)
        .flat_map(|pixel| {
            let light = u32::from(pixel[3]);
            [pixel[0], pixel[1], pixel[2]].map(|sample| {
                let t = u32::from(255 - sample) * light + 128;
                light.saturating_sub(((t >> 8) + t) >> 8) as u8
            })
        })
        .collect()
}

/// The EXIF block of the first APP1 segment that holds one.
fn exif(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut rest = bytes.get(2..)?;
    // Segments up to the first scan: a marker, a length that counts itself, the payload.
    loop {
        let (&[0xff, marker, high, low], payload) = rest.split_first_chunk::<4>()? else {
            return None;
        };
        if marker == 0xda {
            return None;
        }
        let length = usize::from(u16::from_be_bytes([high, low])).checked_sub(2)?;
        let segment = payload.get(..length)?;
        match segment.strip_prefix(b"Exif\0\0") {
            Some(exif) if marker == 0xe1 => return Some(exif.to_owned()),
            _ => rest = payload.get(length..)?,
        }
    }
}
