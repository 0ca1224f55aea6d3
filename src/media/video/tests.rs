//! Bytes that may be a video, before any decoder sees them.

use std::path::{Path, PathBuf};

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
