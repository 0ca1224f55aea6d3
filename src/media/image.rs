//! Pictures: encoded bytes to RGB, by Pillow's rules.
//!
//! In: bytes of a JPEG, PNG, WebP or GIF, or where the settings say so of a BMP or TIFF. Out: the RGB samples that `PIL.Image.open` (Pillow 12.3) followed by qwen-vl-utils'
//! `to_rgb` gives, bit for bit: RGBA is pasted on white; of every other mode transparency is dropped and the colours are
//! converted (`convert("RGB")`).
//!
//! The format is decided by its first bytes alone, its sizes are checked before anything is decoded, and a file that is cut
//! short is an error, never a grey picture. The ratio of the sides (200:1 at most) is the processor's to check: it is a rule of
//! resizing.
//!
//! Of what Pillow opens these kinds are refused: JPEG with stray bytes between its segments or with more than 100 scans; BMP of 16 bits
//! a pixel or coded in run lengths; TIFF but for a first page of 8-bit grey, RGB, RGBA or CMYK. `tests/integration/corpora.rs` lists the
//! files that show it.

mod bmp;
mod gif;
mod jpeg;
mod png;
mod tiff;
mod webp;

pub(super) use gif::reaches_trailer as gif_is_whole;
pub(super) use webp::is_whole as webp_is_whole;

use ::image::DynamicImage;
use ::image::metadata::Orientation;

use super::{MediaError, MediaSettings, RgbImage};

/// See [`held_bytes`].
const HELD_BYTES_PER_PIXEL: usize = 16;

/// Formats this server reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Jpeg,
    Png,
    WebP,
    Gif,
    Bmp,
    Tiff,
}

/// A decoded picture and the EXIF block of its file, if it has one (from the TIFF header on).
struct Decoded {
    image: RgbImage,
    exif: Option<Vec<u8>>,
}

/// Decodes one picture (the first frame of an animated one) to RGB.
///
/// CPU-heavy: call it on the bounded pool.
///
/// # Errors
/// [`MediaError::Unsupported`], [`MediaError::InvalidImage`], [`MediaError::TooLarge`].
///
/// # Source
/// `to_rgb` and `fetch_image`, qwen-vl-utils 0.0.14 `vision_process.py`; Pillow 12.3.
pub fn decode(bytes: &[u8], settings: &MediaSettings) -> Result<RgbImage, MediaError> {
    let decoded = match sniff(bytes, settings)? {
        Format::Jpeg => jpeg::decode(bytes, settings),
        Format::Png => png::decode(bytes, settings),
        Format::WebP => webp::decode(bytes, settings),
        Format::Gif => gif::decode(bytes, settings),
        Format::Bmp => bmp::decode(bytes, settings),
        Format::Tiff => tiff::decode(bytes, settings),
    }?;
    // The reference ignores orientation; applying it is the operator's explicit wish.
    let orientation = decoded
        .exif
        .filter(|_| settings.apply_exif_orientation)
        .and_then(|exif| Orientation::from_exif_chunk(&exif));
    match orientation {
        Some(orientation) => {
            let mut image = DynamicImage::ImageRgb8(decoded.image);
            image.apply_orientation(orientation);
            Ok(image.into_rgb8())
        }
        None => Ok(decoded.image),
    }
}

/// Bytes a picture takes while it is decoded, by its header: the samples as they are stored, at most eight bytes of a pixel, the
/// decoder's own, and the RGB made of them. For whoever has to find room for them.
///
/// # Errors
/// As [`decode`], whose checks of the header these are.
pub fn held_bytes(bytes: &[u8], settings: &MediaSettings) -> Result<usize, MediaError> {
    let (width, height) = match sniff(bytes, settings)? {
        Format::Jpeg => jpeg::size(bytes),
        Format::Png => png::size(bytes),
        Format::WebP => webp::size(bytes),
        Format::Gif => gif::size(bytes),
        Format::Bmp => bmp::size(bytes),
        Format::Tiff => tiff::size(bytes),
    }?;
    check_size(width, height, settings)?;
    Ok(width as usize * height as usize * HELD_BYTES_PER_PIXEL)
}

/// The format by its first bytes; what a client called it is never asked.
fn sniff(bytes: &[u8], settings: &MediaSettings) -> Result<Format, MediaError> {
    if bytes.is_empty() {
        return Err(invalid("the image is empty (0 bytes)"));
    }
    let begins = |magic: &[u8]| bytes.starts_with(magic);
    let riff_webp = begins(b"RIFF") && bytes.get(8..12) == Some(b"WEBP");
    let found = if begins(b"\xff\xd8\xff") {
        return Ok(Format::Jpeg);
    } else if begins(b"\x89PNG\r\n\x1a\n") {
        return Ok(Format::Png);
    } else if riff_webp {
        return Ok(Format::WebP);
    } else if begins(b"GIF87a") || begins(b"GIF89a") {
        return Ok(Format::Gif);
    } else if settings.bmp && begins(b"BM") {
        return Ok(Format::Bmp);
    } else if settings.tiff && (begins(b"II*\0") || begins(b"MM\0*")) {
        return Ok(Format::Tiff);
    } else if [
        &b"\xff\xd8\xff"[..],
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"GIF87a",
    ]
    .iter()
    .any(|magic| magic.starts_with(bytes))
    {
        return Err(invalid(
            "the image is cut short: it ends within its first bytes",
        ));
    } else {
        other_format(bytes)
    };
    let more = match (settings.bmp, settings.tiff) {
        (false, false) => "",
        (true, false) => ", and BMP",
        (false, true) => ", and TIFF",
        (true, true) => ", and BMP and TIFF",
    };
    let reason = format!(
        "the image is {}: this server reads JPEG, PNG, WebP and GIF (the first frame){more}",
        found.unwrap_or("of no known format")
    );
    Err(MediaError::Unsupported { reason })
}

/// Names what clients send by mistake, so that they know what to convert.
fn other_format(bytes: &[u8]) -> Option<&'static str> {
    let brand = (bytes.get(4..8) == Some(b"ftyp"))
        .then(|| bytes.get(8..12))
        .flatten();
    match brand {
        Some(b"avif" | b"avis") => return Some("AVIF"),
        Some(b"heic" | b"heix" | b"heim" | b"heis" | b"mif1" | b"msf1") => return Some("HEIF"),
        Some(_) => return Some("an MP4 video"),
        None => {}
    }
    let text = bytes.trim_ascii_start();
    [
        (b"BM".as_slice(), "BMP"),
        (b"II*\0", "TIFF"),
        (b"MM\0*", "TIFF"),
        (b"%PDF", "a PDF document"),
        (b"<svg", "SVG"),
        (b"<?xml", "XML (SVG?)"),
        (b"<!DOCTYPE", "an HTML page"),
        (b"<!doctype", "an HTML page"),
        (b"<html", "an HTML page"),
        (b"\0\0\x01\0", "an icon"),
        (b"\x1a\x45\xdf\xa3", "a WebM video"),
        (b"\xff\x0a", "JPEG XL"),
        (b"\0\0\0\x0cJXL ", "JPEG XL"),
        (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    ]
    .into_iter()
    .find(|(magic, _)| text.starts_with(magic) || bytes.starts_with(magic))
    .map(|(_, name)| name)
}

/// Refuses a size before memory is taken for it.
pub(super) fn check_size(
    width: u32,
    height: u32,
    settings: &MediaSettings,
) -> Result<(), MediaError> {
    if width == 0 || height == 0 {
        return Err(invalid("the image has no pixels: one of its sides is 0"));
    }
    let side = |what, value: u32| {
        if value > settings.max_side_pixels {
            return Err(MediaError::TooLarge {
                what,
                value: value.into(),
                limit: settings.max_side_pixels.into(),
            });
        }
        Ok(())
    };
    side("width in pixels", width)?;
    side("height in pixels", height)?;
    let pixels = u64::from(width) * u64::from(height);
    if pixels > settings.max_pixels {
        return Err(MediaError::TooLarge {
            what: "size in pixels (width x height)",
            value: pixels,
            limit: settings.max_pixels,
        });
    }
    Ok(())
}

/// Pastes straight-alpha RGBA on white.
///
/// # Source
/// Pillow's `paste` with a mask (`Paste.c`, `BLEND`): `t = in·a + out·(255 - a) + 128`, result `((t >> 8) + t) >> 8`.
pub(super) fn flatten_on_white(rgba: &[u8]) -> Vec<u8> {
    rgba.chunks_exact(4)
        .flat_map(|pixel| {
            let alpha = u32::from(pixel[3]);
            [pixel[0], pixel[1], pixel[2]].map(|sample| {
                let t = u32::from(sample) * alpha + 255 * (255 - alpha) + 128;
                (((t >> 8) + t) >> 8) as u8
            })
        })
        .collect()
}

/// Samples of a layout that is not read, though their format is.
fn unsupported_layout(format: &str) -> MediaError {
    MediaError::Unsupported {
        reason: format!(
            "the image is a {format} of a kind this server does not read: convert it to PNG"
        ),
    }
}

fn invalid(reason: &str) -> MediaError {
    MediaError::InvalidImage {
        reason: reason.to_owned(),
    }
}

/// An image of samples whose count follows from the size; a decoder that gave another count is at fault.
pub(super) fn assemble(width: u32, height: u32, rgb: Vec<u8>) -> Result<RgbImage, MediaError> {
    RgbImage::from_raw(width, height, rgb)
        .ok_or_else(|| invalid("the image holds fewer samples than its size says"))
}

#[cfg(test)]
mod tests;
