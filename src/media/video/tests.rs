//! Bytes that may be a video, before any decoder sees them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::*;

/// A GIF with a canvas of one pixel and frames of this size, each as little as LZW allows: a clear code and an end.
fn gif_of_large_frames(frames: usize, (width, height): (u16, u16)) -> Vec<u8> {
    let mut bytes = b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff".to_vec();
    for _ in 0..frames {
        bytes.extend([0x2c, 0, 0, 0, 0]);
        bytes.extend(width.to_le_bytes());
        bytes.extend(height.to_le_bytes());
        bytes.extend([0, 2, 1, 0x2c, 0]);
    }
    bytes.push(0x3b);
    bytes
}

#[test]
fn frames_larger_than_their_canvas_count_with_all_they_take() {
    let open = |frames, size| {
        let settings = MediaSettings::default();
        VideoFile::open(gif_of_large_frames(frames, size).into(), &settings)
    };
    let bomb = open(700, (7000, 7000));
    assert!(matches!(bomb, Err(MediaError::TooLarge { value, .. }) if value == 17 * 49_000_000));
    let wide = open(1, (20_000, 2));
    assert!(matches!(
        wide,
        Err(MediaError::TooLarge { limit: 16_384, .. })
    ));
    let held = open(2, (5000, 1000)).unwrap().held_bytes(2);
    assert!(held >= 4 * 5_000_000, "{held}");
}

/// Frames of noise, the slowest there is to decode: each as large, again and again.
fn noise(side: u16) -> Vec<u8> {
    let mut state = 1_u32;
    let byte = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let samples = usize::from(side) * usize::from(side);
    std::iter::repeat_with(byte).take(samples).collect()
}

fn gif_of_noise(frames: usize, side: u16) -> Bytes {
    let mut one = Vec::new();
    let mut encoder = gif::Encoder::new(&mut one, side, side, &[7; 768]).unwrap();
    let frame = gif::Frame::from_indexed_pixels(side, side, noise(side), None);
    encoder.write_frame(&frame).unwrap();
    drop(encoder);
    // Signature, screen and palette; the frame; the trailer.
    let (head, rest) = one.split_at(13 + 768);
    let (frame, trailer) = rest.split_at(rest.len() - 1);
    [head, &frame.repeat(frames), trailer].concat().into()
}

/// # Source
/// The container's specification: <https://developers.google.com/speed/webp/docs/riff_container>.
fn webp_of_noise(frames: usize, side: u16) -> Bytes {
    let mut still = Vec::new();
    image_webp::WebPEncoder::new(&mut still)
        .encode(
            &noise(side),
            side.into(),
            side.into(),
            image_webp::ColorType::L8,
        )
        .unwrap();
    let three = |value: u16| [value.to_le_bytes()[0], value.to_le_bytes()[1], 0];
    let chunk = |name: &[u8; 4], payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap().to_le_bytes();
        [&name[..], &length, payload].concat()
    };
    let size = [three(side - 1), three(side - 1)].concat();
    let header = chunk(b"VP8X", &[&[2, 0, 0, 0][..], &size].concat());
    let control = chunk(b"ANIM", &[0; 6]);
    // At the corner, for a tenth of a second, with the bitstream of the still picture.
    let frame = [&[0; 6][..], &size, &[100, 0, 0, 0], &still[12..]].concat();
    let body = [
        b"WEBP".to_vec(),
        header,
        control,
        chunk(b"ANMF", &frame).repeat(frames),
    ];
    chunk(b"RIFF", &body.concat()).into()
}

#[test]
fn animations_end_with_their_time_and_with_whoever_waits() {
    for bytes in [gif_of_noise(40, 500), webp_of_noise(40, 300)] {
        let settings = MediaSettings::default();
        let began = Instant::now();
        let video = VideoFile::open(bytes.clone(), &settings).unwrap();
        let last = [video.info.frames - 1];
        assert_eq!(video.frames(&last).unwrap().len(), 1);
        let soon = began.elapsed() / 8;

        let frames = |patience: &Patience, settings: &MediaSettings| {
            let video = VideoFile::open_for(bytes.clone(), settings, patience)?;
            video.frames(&last)
        };
        let (_waiter, patience) = Patience::until(Instant::now() + soon);
        let late = frames(&patience, &settings);
        assert!(matches!(late, Err(MediaError::Abandoned)));
        let (waiter, patience) = Patience::until(Instant::now() + Duration::from_secs(600));
        let leaving = std::thread::spawn(move || {
            std::thread::sleep(soon);
            drop(waiter);
        });
        let left = frames(&patience, &settings);
        assert!(matches!(left, Err(MediaError::Abandoned)));
        leaving.join().unwrap();
        let settings = MediaSettings {
            video_timeout: soon,
            ..settings
        };
        let slow = frames(&Patience::default(), &settings);
        assert!(matches!(
            slow,
            Err(MediaError::TooCostly {
                setting: "media.video_timeout_ms",
                ..
            })
        ));
    }
}

/// Fuzz target: the sniff of containers, and animated GIF and WebP through to their frames.
#[test]
fn any_bytes_are_a_video_within_the_limits_or_an_error() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let seeds = [
        "images/gif_animated.gif",
        "images/gif_two_frames.gif",
        "images/webp_animated.webp",
        "images/webp_animated_lossy.webp",
        "parity/media/clip_160x120.mp4",
    ];
    let seeds = seeds.map(|name| std::fs::read(fixtures.join(name)).unwrap());
    let settings = MediaSettings {
        max_pixels: 1 << 16,
        max_frames: 16,
        // Sniffing is what is looked at: no FFmpeg is started.
        ffprobe: PathBuf::from("/nonexistent/ffprobe"),
        ..MediaSettings::default()
    };
    bolero::check!()
        .with_type::<(u8, Vec<(u16, u8)>, Vec<u8>)>()
        .for_each(|(seed, edits, tail)| {
            let mut bytes = match seeds.get(usize::from(*seed) % (seeds.len() + 1)) {
                Some(video) => video.clone(),
                None => tail.clone(),
            };
            for (at, value) in edits {
                let at = usize::from(*at) % bytes.len().max(1);
                bytes
                    .get_mut(at)
                    .into_iter()
                    .for_each(|byte| *byte = *value);
            }
            if seed & 0x80 != 0 {
                bytes.truncate(bytes.len() - tail.len().min(bytes.len()));
            }
            let Ok(video) = VideoFile::open(bytes.into(), &settings) else {
                return;
            };
            assert!(video.info.frames > 0 && video.info.fps > 0.0);
            let last = video.info.frames - 1;
            if let Ok(frames) = video.frames(&[0, last]) {
                let size = (video.info.width, video.info.height);
                assert!(frames.len() == 2 && frames.iter().all(|frame| frame.dimensions() == size));
                assert!(video.held_bytes(2) >= frames[0].as_raw().len());
            }
        });
}
