//! Pictures of strangers: test images of Pillow and of gdk-pixbuf, many of them broken on purpose, and pictures damaged at random.
//!
//! `tests/fixtures/scripts/make_corpora.py FOLDER` fetches them and asks Pillow; `MANIFOLD_TEST_CORPORA=FOLDER` makes these tests use
//! them. Without it they say that they were skipped, but for the damage, which is then done to the repository's own pictures; where
//! `MANIFOLD_TEST_CLIENTS` is set, as in CI, its absence is a failure.

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use manifold::media::{MediaError, MediaSettings, image};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::server::{Server, fixture, skipped};

/// What Pillow makes of a file.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Expected {
    Picture {
        width: u32,
        height: u32,
        format: String,
        mode: String,
        rgb_sha256: String,
    },
    Error {
        #[expect(dead_code, reason = "its presence tells the variants apart")]
        error: String,
    },
}

/// Files that Pillow opens and we refuse, by a part of their path, with the reason. Besides these, kinds of BMP and TIFF that are not
/// read are refused as such, and pictures beyond the limits for these.
const REFUSED: [(&str, &str); 21] = [
    (
        "bmp/q/pal8os2sp.bmp",
        "a palette shorter than its header allows",
    ),
    // The first picture of these animations is whole, the pictures after it are not; Pillow does not look at them.
    (
        "apng/chunk_repeat_fctl.png",
        "damaged after the first picture",
    ),
    ("apng/sequence_", "damaged after the first picture"),
    // libjpeg-turbo warns of these and goes on; it warns in the same way of what is missing and fills it with grey.
    ("hopper_bad_exif.jpg", "a segment is cut short"),
    ("icc-after-SOF.jpg", "a segment is cut short"),
    ("jpeg_ff00_header.jpg", "stray bytes between segments"),
    ("junk_jpeg_header.jpg", "stray bytes between segments"),
    ("photoshop-200dpi-broken.jpg", "a segment is cut short"),
    ("truncated_app14.jpg", "a segment is cut short"),
    ("no_palette.gif", "a frame's data is damaged"),
    ("bmp/b/badplanes.bmp", "a header against the standard"),
    (
        "bmp/q/pal8os2v2.bmp",
        "a header that the decoder does not know",
    ),
    ("mmap_error.bmp", "pixels within the palette"),
    ("10ct_32bit_128.tiff", "samples of 32 bits"),
    (
        "multipage_single_frame_loop.tiff",
        "pages that lead back to themselves",
    ),
    (
        "old-style-jpeg-compression-no-samplesperpixel.tif",
        "a tag is missing",
    ),
    (
        "tiff_wrong_bits_per_sample.tiff",
        "tags that contradict each other",
    ),
    (
        "tiff_wrong_bits_per_sample_2.tiff",
        "tags that contradict each other",
    ),
    ("bmp/b/badrle.bmp", "damaged"),
    ("bmp/b/badpalettesize.bmp", "a palette that is too large"),
    ("bmp/b/badbitssize.bmp", "a size against the standard"),
];

/// Longest that one file may take: anything near it is an attack that works.
const HANG: Duration = Duration::from_secs(5);

fn corpora() -> Option<(PathBuf, BTreeMap<String, Expected>)> {
    let Some(folder) = std::env::var_os("MANIFOLD_TEST_CORPORA") else {
        let why = "MANIFOLD_TEST_CORPORA names no folder (tests/fixtures/scripts/make_corpora.py makes one)";
        assert!(std::env::var_os("MANIFOLD_TEST_CLIENTS").is_none(), "{why}");
        skipped(why);
        return None;
    };
    let folder = PathBuf::from(folder);
    let text = fs::read_to_string(folder.join("expected.json")).unwrap();
    Some((folder, serde_json::from_str(&text).unwrap()))
}

fn everything() -> MediaSettings {
    MediaSettings {
        bmp: true,
        tiff: true,
        ..MediaSettings::default()
    }
}

/// Decodes, and fails the test for what no file may do: panic, hang, or be our fault.
fn decoded(
    name: &str,
    bytes: &[u8],
    settings: &MediaSettings,
) -> Result<::image::RgbImage, MediaError> {
    let began = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(|| {
        image::held_bytes(bytes, settings).and_then(|_| image::decode(bytes, settings))
    }));
    let result = result.unwrap_or_else(|_| panic!("{name}: a panic"));
    assert!(began.elapsed() < HANG, "{name} took {:?}", began.elapsed());
    if let Err(MediaError::Internal(error)) = &result {
        panic!("{name}: {error}");
    }
    result
}

#[test]
fn what_pillow_opens_has_pillows_samples_or_is_refused_for_a_written_reason() {
    let Some((folder, expected)) = corpora() else {
        return;
    };
    let (mut equal, mut complaints) = (0, Vec::new());
    for (name, expected) in &expected {
        let bytes = fs::read(folder.join(name)).unwrap();
        let found = decoded(name, &bytes, &everything());
        let Expected::Picture {
            width,
            height,
            format,
            mode,
            rgb_sha256,
        } = expected
        else {
            continue;
        };
        let ours = ["JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF"].contains(&format.as_str());
        let found = match found {
            Ok(picture) => {
                let digest: String = Sha256::digest(picture.as_raw())
                    .iter()
                    .map(|byte| format!("{byte:02x}"))
                    .collect();
                if picture.dimensions() == (*width, *height) && digest == *rgb_sha256 {
                    equal += 1;
                    continue;
                }
                "other samples".to_owned()
            }
            Err(_) if !ours => continue,
            Err(MediaError::Unsupported { .. }) if ["BMP", "TIFF"].contains(&format.as_str()) => {
                continue;
            }
            Err(MediaError::TooLarge { .. }) if is_too_large(*width, *height) => continue,
            Err(_) if REFUSED.iter().any(|(part, _)| name.contains(part)) => continue,
            Err(error) => error.to_string(),
        };
        complaints.push(format!("{format} {mode} {width}x{height} {name}: {found}"));
    }
    println!("{equal} files have Pillow's samples");
    assert!(equal > 500, "{equal}");
    assert!(
        complaints.is_empty(),
        "{} files:\n{}",
        complaints.len(),
        complaints.join("\n")
    );
}

fn is_too_large(width: u32, height: u32) -> bool {
    let limits = MediaSettings::default();
    width.max(height) > limits.max_side_pixels
        || u64::from(width) * u64::from(height) > limits.max_pixels
}

/// A generator of numbers that are the same each time (Knuth's MMIX).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides.max(1)
    }
}

#[test]
fn damaged_pictures_never_panic_hang_or_are_our_fault() {
    let magic: [&[u8]; 8] = [
        b"\xff\xd8\xff",
        b"\x89PNG",
        b"RIFF",
        b"GIF8",
        b"BM",
        b"II*\0",
        b"MM\0*",
        b"\x89PNG",
    ];
    let in_folder = |folder: &Path| -> Vec<PathBuf> {
        fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect()
    };
    let (files, rounds) = match corpora() {
        Some((folder, expected)) => (
            expected.keys().map(|name| folder.join(name)).collect(),
            20_000,
        ),
        None => (in_folder(&fixture("images")), 2_000),
    };
    let pictures: Vec<(String, Vec<u8>)> = files
        .into_iter()
        .map(|path| (path.display().to_string(), fs::read(path).unwrap()))
        .filter(|(_, bytes)| {
            bytes.len() < 200_000 && magic.iter().any(|magic| bytes.starts_with(magic))
        })
        .collect();
    assert!(pictures.len() > 40);
    // Small enough that time goes into the beginnings of decoding, where the faults are.
    let settings = MediaSettings {
        max_pixels: 4_000_000,
        apply_exif_orientation: true,
        ..everything()
    };
    let mut dice = Dice(20_261_123);
    let (mut refused, mut slowest) = (0, Duration::ZERO);
    for round in 0..rounds {
        let (name, whole) = &pictures[dice.roll(pictures.len())];
        let mut bytes = whole.clone();
        match dice.roll(3) {
            0 => bytes.truncate(dice.roll(whole.len())),
            1 => {
                let at = dice.roll(whole.len());
                bytes[at] ^= 1 << dice.roll(8);
            }
            _ => {
                for _ in 0..=dice.roll(16) {
                    let at = dice.roll(whole.len());
                    bytes[at] = dice.roll(256) as u8;
                }
            }
        }
        let began = Instant::now();
        let result = decoded(&format!("{name}, round {round}"), &bytes, &settings);
        slowest = slowest.max(began.elapsed());
        refused += usize::from(result.is_err());
    }
    println!("{refused} of {rounds} are refused, the slowest took {slowest:?}");
    assert!(refused > rounds / 4, "{refused} of {rounds}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_answers_every_foreign_picture_with_a_vector_or_a_clients_error() {
    let Some((folder, expected)) = corpora() else {
        return;
    };
    let server = Server::start(
        &[],
        &[
            ("MANIFOLD_MEDIA_BMP", "true"),
            ("MANIFOLD_MEDIA_TIFF", "true"),
        ],
    );
    let (mut vectors, mut slowest) = (0, Duration::ZERO);
    for name in expected.keys() {
        let bytes = fs::read(folder.join(name)).unwrap();
        for kind in ["image", "video"] {
            let media = BASE64_STANDARD.encode(&bytes);
            let body = json!({ "input": { kind: media }, "max_pixels": 16_384, "total_pixels": 262_144, "num_frames": 2 });
            let began = Instant::now();
            let answer = server.post(&body).await;
            slowest = slowest.max(began.elapsed());
            assert!(
                answer.status == 200 || (400..500).contains(&answer.status),
                "{name} as {kind}: {}",
                answer.json()
            );
            assert!(
                began.elapsed() < HANG,
                "{name} as {kind} took {:?}",
                began.elapsed()
            );
            vectors += usize::from(answer.status == 200);
        }
    }
    println!("{vectors} vectors, the slowest answer took {slowest:?}");
    assert!(vectors > 500, "{vectors}");
}
