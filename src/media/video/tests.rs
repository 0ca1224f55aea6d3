//! Bytes that may be a video, before any decoder sees them.

use std::path::{Path, PathBuf};

use super::*;

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
