//! Pictures against Pillow's own reading of them, and against damage.

use super::*;
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};

#[derive(serde::Deserialize)]
struct Expected {
    width: u32,
    height: u32,
    rgb_sha256: String,
}

fn fixtures(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(folder)
}

fn picture(name: &str) -> Vec<u8> {
    fs::read(fixtures("images").join(name)).unwrap()
}

fn settings() -> MediaSettings {
    MediaSettings::default()
}

/// The names of the pictures in a folder that Pillow and we read differently.
fn differences(folder: &Path) -> Vec<String> {
    let text = fs::read_to_string(folder.join("expected.json")).unwrap();
    let expected: std::collections::BTreeMap<String, Expected> =
        serde_json::from_str(&text).unwrap();
    assert!(expected.len() > 50);
    expected
        .into_iter()
        .filter_map(|(name, expected)| {
            let found = match decode(&fs::read(folder.join(&name)).unwrap(), &settings()) {
                Ok(image) => {
                    let digest: String = Sha256::digest(image.as_raw())
                        .iter()
                        .map(|byte| format!("{byte:02x}"))
                        .collect();
                    (image.dimensions() != (expected.width, expected.height)
                        || digest != expected.rgb_sha256)
                        .then(|| "other samples".to_owned())
                }
                Err(error) => Some(error.to_string()),
            };
            found.map(|what| format!("{name}: {what}"))
        })
        .collect()
}

#[test]
fn every_mode_and_format_gives_pillows_samples() {
    assert_eq!(differences(&fixtures("images")), Vec::<String>::new());
}

#[test]
fn jpegs_equal_the_reference_decoder_sample_by_sample() {
    for name in ["photo_rocket", "q60_333x222", "exif6_120x90"] {
        let media = fixtures("parity/media");
        let ours = decode(
            &fs::read(media.join(format!("{name}.jpg"))).unwrap(),
            &settings(),
        )
        .unwrap();
        let theirs = decode(
            &fs::read(media.join(format!("{name}_decoded.png"))).unwrap(),
            &settings(),
        )
        .unwrap();
        assert_eq!(ours.dimensions(), theirs.dimensions());
        let differing = ours
            .as_raw()
            .iter()
            .zip(theirs.as_raw())
            .filter(|(a, b)| a != b)
            .count();
        assert_eq!(differing, 0, "{name}");
    }
}

#[test]
fn files_cut_short_at_any_length_are_errors_and_not_grey_images() {
    for name in [
        "jpeg_420_19x13.jpg",
        "jpeg_progressive_19x13.jpg",
        "jpeg_cmyk_19x13.jpg",
        "jpeg_grey_19x13.jpg",
        "png_rgb8.png",
        "png_palette4_interlaced.png",
        "gif_plain.gif",
        "gif_two_frames.gif",
        "gif_interlaced.gif",
        "webp_lossy_rgb_19x13.webp",
        "webp_lossy_rgba_19x13.webp",
        "webp_lossless_rgb_19x13.webp",
        "webp_animated.webp",
    ] {
        let bytes = picture(name);
        assert!(decode(&bytes, &settings()).is_ok(), "{name}");
        for length in 0..bytes.len() {
            let result = decode(&bytes[..length], &settings());
            assert!(
                matches!(
                    result,
                    Err(MediaError::InvalidImage { .. } | MediaError::Unsupported { .. })
                ),
                "{name} cut at {length} of {}: {:?}",
                bytes.len(),
                result.map(|image| image.dimensions())
            );
        }
    }
}

#[test]
fn an_empty_file_is_an_error() {
    assert!(matches!(
        decode(b"", &settings()),
        Err(MediaError::InvalidImage { .. })
    ));
}

#[test]
fn bytes_after_the_end_do_no_harm() {
    for name in [
        "jpeg_420_19x13.jpg",
        "png_rgb8.png",
        "gif_plain.gif",
        "webp_lossy_rgb_19x13.webp",
    ] {
        let mut bytes = picture(name);
        let whole = decode(&bytes, &settings()).unwrap();
        bytes.extend_from_slice(b"\0\0trailing");
        assert_eq!(decode(&bytes, &settings()).unwrap(), whole, "{name}");
    }
}

#[test]
fn a_damaged_png_is_an_error() {
    let mut bytes = picture("png_rgb8.png");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    assert!(matches!(
        decode(&bytes, &settings()),
        Err(MediaError::InvalidImage { .. })
    ));
}

#[test]
fn other_formats_are_named_and_refused() {
    for (bytes, name) in [
        (&b"BM\x46\0\0\0\0\0"[..], "BMP"),
        (b"II*\0\x08\0\0\0", "TIFF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"%PDF-1.7", "PDF"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF"),
        (b"\0\0\0\x1cftypheic\0\0\0\0", "HEIF"),
        (b"<!DOCTYPE html>", "HTML"),
        (b"no picture at all", "no known format"),
    ] {
        match decode(bytes, &settings()) {
            Err(MediaError::Unsupported { reason }) => assert!(
                reason.contains(name) && reason.contains("JPEG, PNG, WebP and GIF"),
                "{reason}"
            ),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn sizes_are_checked_before_decoding() {
    // Only headers: each would fail to decode, and is refused for its size all the same.
    let mut png = picture("png_rgb8.png");
    png.truncate(33);
    png[16..24].copy_from_slice(&[0, 0, 0x60, 0, 0, 0, 0x60, 0]);
    let crc = crc32(&png[12..29]).to_be_bytes();
    png[29..33].copy_from_slice(&crc);
    let mut gif = picture("gif_plain.gif");
    gif[6..10].copy_from_slice(&[0xff, 0xff, 0xff, 0xff]);
    let mut webp = picture("webp_lossless_rgba_19x13.webp");
    assert_eq!(&webp[12..16], b"VP8L");
    webp[21..25].copy_from_slice(&(0x2fff_u32 | 0x2fff << 14).to_le_bytes());
    for (name, bytes) in [("png", png), ("gif", gif), ("webp", webp)] {
        let small = MediaSettings {
            max_side_pixels: 10_000,
            ..settings()
        };
        let result = decode(&bytes, &small);
        assert!(
            matches!(
                result,
                Err(MediaError::TooLarge {
                    what: "width in pixels",
                    limit: 10_000,
                    ..
                })
            ),
            "{name}: {result:?}"
        );
    }
    let mut jpeg = picture("jpeg_420_19x13.jpg");
    let frame = jpeg
        .windows(2)
        .position(|pair| pair == [0xff, 0xc0])
        .unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0x30, 0, 0x30, 0]);
    let result = decode(&jpeg, &settings());
    assert!(
        matches!(
            result,
            Err(MediaError::TooLarge {
                value: 150_994_944,
                limit: 50_000_000,
                ..
            })
        ),
        "{result:?}"
    );

    let exact = MediaSettings {
        max_pixels: 19 * 13,
        max_side_pixels: 19,
        ..settings()
    };
    assert!(decode(&picture("jpeg_420_19x13.jpg"), &exact).is_ok());
    let under = MediaSettings {
        max_pixels: 19 * 13 - 1,
        ..settings()
    };
    assert!(decode(&picture("jpeg_420_19x13.jpg"), &under).is_err());
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            if crc & 1 == 1 {
                crc >> 1 ^ 0xedb8_8320
            } else {
                crc >> 1
            }
        })
    })
}

#[test]
fn exif_orientation_is_applied_only_when_asked_for() {
    let bytes = picture("jpeg_exif6.jpg");
    let plain = decode(&bytes, &settings()).unwrap();
    assert_eq!(plain.dimensions(), (17, 9));
    let turned = decode(
        &bytes,
        &MediaSettings {
            apply_exif_orientation: true,
            ..settings()
        },
    )
    .unwrap();
    // Orientation 6 is shown turned clockwise by a quarter.
    assert_eq!(turned, ::image::imageops::rotate90(&plain));
    let without = picture("jpeg_420_19x13.jpg");
    let asked = MediaSettings {
        apply_exif_orientation: true,
        ..settings()
    };
    assert_eq!(
        decode(&without, &asked).unwrap(),
        decode(&without, &settings()).unwrap()
    );
}

#[test]
fn pasting_on_white_rounds_as_pillow_does() {
    assert_eq!(
        flatten_on_white(&[10, 20, 30, 0, 10, 20, 30, 255, 0, 128, 255, 128]),
        [255, 255, 255, 10, 20, 30, 127, 191, 255]
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn damaged_files_never_panic(
        name in prop::sample::select(vec![
            "jpeg_420_19x13.jpg", "jpeg_progressive_19x13.jpg", "jpeg_exif6.jpg", "png_rgba16_interlaced.png", "png_palette2_trns.png", "png_animated.png",
            "gif_two_frames.gif", "gif_interlaced.gif", "webp_lossy_rgba_19x13.webp", "webp_lossless_rgba_19x13.webp", "webp_animated.webp",
        ]),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = picture(name);
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let small = MediaSettings { max_pixels: 1_000_000, apply_exif_orientation: true, ..settings() };
        let _ = decode(&bytes, &small);
    }

    #[test]
    fn arbitrary_bytes_never_panic(magic in prop::sample::select(vec![&b""[..], b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\x10\0\0\0WEBPVP8 "]), rest in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&[magic, &rest].concat(), &settings());
    }
}

/// A picture of the fixtures with some bytes changed and its end cut off, or bytes that were never a picture.
fn damaged_picture(seeds: &[Vec<u8>], seed: u16, edits: &[(u16, u8)], tail: &[u8]) -> Vec<u8> {
    let Some(picture) = seeds.get(usize::from(seed) % (seeds.len() + 1)) else {
        return tail.to_vec();
    };
    let mut bytes = picture.clone();
    for (at, value) in edits {
        let at = usize::from(*at) % bytes.len();
        bytes[at] = *value;
    }
    if seed & 0x8000 != 0 {
        bytes.truncate(bytes.len() - tail.len().min(bytes.len()));
    }
    bytes
}

/// Fuzz target: every image format.
#[test]
fn any_bytes_are_a_picture_within_the_limits_or_an_error() {
    let files = fs::read_dir(fixtures("images")).unwrap();
    let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    paths.retain(|path| {
        path.extension()
            .is_some_and(|kind| kind != "json" && kind != "py")
    });
    // The order of a directory differs from machine to machine, a failure must not.
    paths.sort();
    let seeds: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
    assert!(seeds.len() > 50);
    let settings = MediaSettings {
        max_pixels: 1 << 16,
        max_side_pixels: 1 << 10,
        bmp: true,
        tiff: true,
        ..settings()
    };
    bolero::check!()
        .with_type::<(u16, Vec<(u16, u8)>, Vec<u8>)>()
        .for_each(|(seed, edits, tail)| {
            let bytes = damaged_picture(&seeds, *seed, edits, tail);
            let Ok(image) = decode(&bytes, &settings) else {
                return;
            };
            let (width, height) = image.dimensions();
            assert!(width > 0 && height > 0 && width.max(height) <= settings.max_side_pixels);
            assert!(u64::from(width) * u64::from(height) <= settings.max_pixels);
            assert!(held_bytes(&bytes, &settings).unwrap() >= image.as_raw().len());
        });
}
