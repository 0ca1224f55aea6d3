//! Files that broke decoders: nothing is decoded that is too large or of a format nobody needs, and what is wrong is told in our own words.

use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::Canary;
use crate::server::{Answer, Server, fixture, media};

fn picture(bytes: &[u8]) -> Value {
    json!({ "input": { "image": BASE64_STANDARD.encode(bytes) } })
}

fn video(bytes: &[u8]) -> Value {
    let data = BASE64_STANDARD.encode(bytes);
    json!({ "input": { "video": format!("data:video/mp4;base64,{data}") } })
}

fn code(answer: &Answer) -> String {
    answer.json()["error"]["code"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// A PNG of this size as far as its header says; there is nothing behind.
fn header_of_png(width: u32, height: u32) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Rgb);
    drop(encoder.write_header().unwrap());
    file
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_that_would_be_gigabytes_are_refused_at_once() {
    let server = Server::start(&[], &[]);
    let gif = [
        &b"GIF89a\xff\xff\xff\xff\x80\0\0"[..],
        &[0; 6],
        b",\0\0\0\0\xff\xff\xff\xff\0",
    ]
    .concat();
    let mut webp = b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0".to_vec();
    webp.extend([0xff, 0xff, 0x3f, 0xff, 0xff, 0x3f]);
    let jpeg = b"\xff\xd8\xff\xc0\0\x11\x08\xff\xdc\xff\xdc\x03\x01\x11\0\x02\x11\0\x03\x11\0";
    for (what, file) in [
        ("12,000 x 12,000", header_of_png(12_000, 12_000)),
        ("30,000 x 30,000", header_of_png(30_000, 30_000)),
        (
            "as large as can be said",
            header_of_png(i32::MAX as u32, i32::MAX as u32),
        ),
        ("20,000 x 200", header_of_png(20_000, 200)),
        ("GIF", gif),
        ("WebP", webp),
        ("JPEG", jpeg.to_vec()),
    ] {
        let began = Instant::now();
        let answer = server.post(&picture(&file)).await;
        let refused = [400, 413].contains(&answer.status);
        assert!(refused, "{what}: {}", answer.json());
        assert!(began.elapsed() < Duration::from_secs(2), "{what}");
        if file.starts_with(b"\x89PNG") {
            assert_eq!(
                code(&answer),
                "media_too_large",
                "{what}: {}",
                answer.json()
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn formats_nobody_needs_are_refused() {
    let server = Server::start(&[], &[]);
    for (what, start) in [
        ("FITS", &b"SIMPLE  =                    T"[..]),
        ("GD", b"\xff\xfe\0\x01\0\x01\x01\0"),
        ("FPX", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"),
        ("PSD", b"8BPS\0\x01"),
        ("EPS", b"%!PS-Adobe-3.0 EPSF-3.0\n"),
        ("PDF", b"%PDF-1.7\n"),
        ("SVG", b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"),
        ("ICO", b"\0\0\x01\0\x01\0"),
        ("ICNS", b"icns\0\0\0\x10"),
        ("TIFF", b"II*\0\x08\0\0\0"),
        ("BMP", b"BM\x3a\0\0\0"),
        ("EXR", b"v/1\x01\x02\0\0\0"),
        ("HDR", b"#?RADIANCE\n"),
        ("AVIF", b"\0\0\0\x20ftypavif\0\0\0\0"),
        ("HEIC", b"\0\0\0\x20ftypheic\0\0\0\0"),
        ("JPEG XL", b"\xff\x0a\0\0"),
        ("JPEG 2000", b"\0\0\0\x0cjP  \r\n\x87\n"),
        ("TGA", b"\0\0\x02\0\0\0\0\0\0\0\0\0\x01\0\x01\0\x18\0"),
        ("gzip", b"\x1f\x8b\x08\0\0\0\0\0"),
        ("zip", b"PK\x03\x04"),
    ] {
        let file = [start, &[0; 2000]].concat();
        let answer = server.post(&picture(&file)).await;
        assert_eq!(code(&answer), "unsupported_media", "{what}: {}", answer.json());
    }
}

/// A GIF of one black frame, written by hand: no encoder writes one that lies outside of its screen.
fn gif_with_a_frame(screen: (u16, u16), frame: (u16, u16), at: (u16, u16)) -> Vec<u8> {
    let pair = |(one, other): (u16, u16)| [one.to_le_bytes(), other.to_le_bytes()].concat();
    let mut file = [b"GIF89a", &pair(screen)[..], b"\x80\0\0\0\0\0\xff\xff\xff,"].concat();
    file.extend([pair(at), pair(frame)].concat());
    file.extend(b"\0\x02");
    // LZW of codes of three bits, begun anew before they grow: each pixel is one code after a clear.
    let (mut held, mut bits, mut data) = (0_u32, 0, Vec::new());
    let mut push = |code: u32| {
        held |= code << bits;
        bits += 3;
        while bits >= 8 {
            data.push(held as u8);
            (held, bits) = (held >> 8, bits - 8);
        }
    };
    for _ in 0..u32::from(frame.0) * u32::from(frame.1) {
        push(4);
        push(0);
    }
    push(5);
    push(0);
    push(0);
    for block in data.chunks(255) {
        file.push(block.len() as u8);
        file.extend(block);
    }
    file.extend(b"\0;");
    file
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_larger_than_its_gif_counts_with_its_own_size() {
    let server = Server::start(&["--media-max-pixels=10000"], &[]);
    for (screen, frame, at, code) in [
        // As large as its screen, and as large as is allowed.
        ((10, 10), (10, 10), (0, 0), ""),
        ((100, 100), (100, 100), (0, 0), ""),
        // The screen is small, the frame is not.
        ((1, 1), (101, 100), (0, 0), "media_too_large"),
        // All of it is small, but Pillow's canvas would grow to where it lies.
        ((10, 10), (10, 10), (65_000, 65_000), "media_too_large"),
        ((100, 100), (2, 2), (99, 99), "media_too_large"),
    ] {
        let file = gif_with_a_frame(screen, frame, at);
        let answer = server.post(&picture(&file)).await;
        let found = answer.json();
        assert_eq!(
            found["error"]["code"].as_str().unwrap_or_default(),
            code,
            "{frame:?} at {at:?} of {screen:?}: {found}"
        );
    }
    assert_eq!(server.get("/health/live").await.status, 200);
}

/// Numbers that are the same in each run.
fn random(seed: u64) -> impl FnMut(usize) -> usize {
    let mut state = seed;
    move |below| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_pictures_are_answered_in_our_own_words() {
    let server = Server::start(&[], &[]);
    let files = ["tiny_20x20.png", "q60_333x222.jpg", "palette_123x77.png"];
    let files = files.map(|file| media("parity", file));
    let clip = media("parity", "clip_160x120.mp4");
    let mut random = random(7);
    for round in 0..150 {
        let is_video = round % 10 == 9;
        let mut file = if is_video {
            clip.clone()
        } else {
            files[round % 3].clone()
        };
        if round % 2 == 0 {
            file.truncate(random(file.len()));
        }
        for _ in 0..1 + random(8) {
            let length = file.len().max(1);
            if let Some(byte) = file.get_mut(random(length)) {
                *byte ^= 1 << random(8);
            }
        }
        let answer = server
            .post(&if is_video {
                video(&file)
            } else {
                picture(&file)
            })
            .await;
        assert!(
            [200, 400, 413].contains(&answer.status),
            "{round}: {}",
            answer.json()
        );
        let message = answer.json()["error"]["message"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        // Addresses, paths, debug forms, and the names of what decodes.
        for foreign in [
            "0x", "/tmp", "Some(", "Error(", "Err(", "turbo", "libav", "[mov,", ".rs:", "panicked",
        ] {
            assert!(!message.contains(foreign), "{round}: {message}");
        }
    }
    assert_eq!(server.get("/health/live").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn playlists_reach_neither_files_nor_the_network() {
    let canary = Canary::new();
    let secret = fixture("parity").join("media/clip_160x120.mp4");
    let secret = secret.display();
    let server = Server::start(&[], &[]);
    let url = canary.url("x.ts");
    let playlists = [
        format!("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{url}\n#EXT-X-ENDLIST\n"),
        format!("#EXTM3U\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n"),
        format!(
            "#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI=\"{url}\"\n#EXTINF:1,\nsubfile,,start,0,end,64,,:{secret}\n"
        ),
        format!("ffconcat version 1.0\nfile '{secret}'\nfile '{url}'\n"),
        format!(
            "<?xml version='1.0'?><MPD><Period><AdaptationSet><Representation><BaseURL>{url}</BaseURL></Representation></AdaptationSet></Period></MPD>"
        ),
        format!(
            "v=0\nc=IN IP4 127.0.0.1\nm=video {} RTP/AVP 96\n",
            canary.port()
        ),
        format!("[playlist]\nFile1={url}\n"),
    ];
    for playlist in &playlists {
        for dressed in [
            playlist.clone().into_bytes(),
            [b"\0\0\0\x18ftypisom\0\0\0\0isommp42", playlist.as_bytes()].concat(),
            [b"\x1a\x45\xdf\xa3\x84webm", playlist.as_bytes()].concat(),
            [
                &media("parity", "clip_160x120.mp4")[..600],
                playlist.as_bytes(),
            ]
            .concat(),
        ] {
            let answer = server.post(&video(&dressed)).await;
            let refused = ["unsupported_media", "invalid_video"].contains(&code(&answer).as_str());
            assert!(refused, "{playlist}: {}", answer.json());
        }
    }
    assert!(!canary.was_reached());
}

#[test]
fn no_c_but_the_decoder_of_jpeg_and_the_crypto_is_linked() {
    // What builds C or links a library that is there: whatever the name of the package, it depends on one of these to do so.
    const BUILDERS: [&str; 5] = ["cc", "cmake", "pkg-config", "vcpkg", "bindgen"];
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let lock = std::fs::read_to_string(top.join("Cargo.lock")).unwrap();
    let lock: toml::Table = lock.parse().unwrap();
    let builds = |package: &&toml::Value| {
        let needed = package.get("dependencies").and_then(|list| list.as_array());
        let mut names = needed.into_iter().flatten().filter_map(|it| it.as_str());
        // A version follows where there are several.
        names.any(|name| BUILDERS.contains(&name.split(' ').next().unwrap_or_default()))
    };
    let packages = lock["package"].as_array().unwrap();
    let found: Vec<&str> = packages
        .iter()
        .filter(builds)
        .map(|package| package["name"].as_str().unwrap())
        .collect();
    let expected = [
        // Crypto and digests; `ring` is there for other platforms.
        "aws-lc-sys",
        "blake3",
        // For tests only.
        "bolero-afl",
        "bolero-libfuzzer",
        // The tool itself.
        "cmake",
        // Of an operating system we do not build for.
        "iana-time-zone-haiku",
        "ring",
        // libjpeg-turbo.
        "turbojpeg-sys",
    ];
    assert_eq!(found, expected);
}
