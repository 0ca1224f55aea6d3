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
    // The decompressor's own limit would be met after a hundred passes over what may be 50 megapixels.
    if scans(bytes) > MAX_SCANS {
        return Err(invalid("the JPEG has more than 100 scans"));
    }

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

/// How many scans begin in a file, as far as its markers can be followed.
///
/// # Source
/// ITU-T T.81, B.1.1: markers within coded data are those of restarts, and a stuffed zero is none.
fn scans(bytes: &[u8]) -> u32 {
    let mut found = 0;
    let mut rest = bytes.get(2..).unwrap_or_default();
    while let Some((&[0xff, marker], after)) = rest.split_first_chunk::<2>() {
        let length = match (marker, after) {
            // A byte that fills, and markers without a segment.
            (0xff, _) => {
                rest = &rest[1..];
                continue;
            }
            (0xd8 | 0xd9 | 0x01, _) => 0,
            (_, &[high, low, ..]) => usize::from(u16::from_be_bytes([high, low])),
            _ => break,
        };
        rest = after.get(length..).unwrap_or_default();
        if marker == 0xda {
            found += 1;
            let is_marker = |pair: &[u8]| pair[0] == 0xff && !matches!(pair[1], 0 | 0xd0..=0xd7);
            let next = rest.windows(2).position(is_marker);
            rest = &rest[next.unwrap_or(rest.len())..];
        }
    }
    found
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

#[cfg(test)]
mod tests {
    use super::scans;

    #[test]
    fn scans_are_counted_by_their_markers_and_not_by_their_data() {
        let fixture = |name: &str| {
            let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/images/");
            std::fs::read(format!("{folder}{name}")).unwrap()
        };
        assert_eq!(scans(&fixture("jpeg_420_19x13.jpg")), 1);
        assert_eq!(scans(&fixture("jpeg_restarts_19x13.jpg")), 1);
        let several = scans(&fixture("jpeg_progressive_19x13.jpg"));
        assert!((2..20).contains(&several), "{several}");
        let one = b"\xff\xda\0\x02\xff\0\xda\xff\xd3\x01".as_slice();
        let many = [b"\xff\xd8".as_slice(), &one.repeat(300), b"\xff\xff\xd9"].concat();
        assert_eq!(scans(&many), 300);
        // Within a segment it is data, and what ends in the middle is not followed further.
        assert_eq!(scans(b"\xff\xd8\xff\xe1\0\x06\xff\xda\0\x02\xff\xd9"), 0);
        for cut in [
            &b""[..],
            b"\xff\xd8\xff",
            b"\xff\xd8\xff\xda",
            b"\xff\xd8\xff\xda\0",
        ] {
            assert_eq!(scans(cut), 0);
        }
    }
}
