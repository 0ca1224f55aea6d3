//! Animated pictures as videos: frames as they are shown, in the time the file gives them, within a file's limits.

use bytes::Bytes;
use manifold::media::video::VideoFile;
use manifold::media::{MediaError, MediaSettings, RgbImage, image};

use crate::clips::{self, make, settings};
use crate::server::fixture;

fn picture(name: &str) -> Bytes {
    std::fs::read(fixture("images").join(name)).unwrap().into()
}

fn all_frames(bytes: Bytes) -> (VideoFile, Vec<RgbImage>) {
    let video = VideoFile::open(bytes, &settings()).unwrap();
    let every: Vec<u64> = (0..video.info.frames).collect();
    let frames = video.frames(&every).unwrap();
    (video, frames)
}

/// Frames that FFmpeg's own program makes of a file, in RGB.
fn by_ffmpeg(bytes: &[u8], name: &str, (width, height): (u32, u32)) -> Vec<RgbImage> {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    let raw = make(
        "a.rgb",
        &[
            "-i",
            path.to_str().unwrap(),
            "-f",
            "rawvideo",
            "-pix_fmt",
            "rgb24",
            "-fps_mode",
            "passthrough",
        ],
    );
    let size = width as usize * height as usize * 3;
    raw.chunks_exact(size)
        .map(|frame| RgbImage::from_raw(width, height, frame.to_vec()).unwrap())
        .collect()
}

#[test]
fn a_gif_gives_the_frames_ffmpeg_gives() {
    // Frames that cover a part, with transparency, and each way of going away again.
    let source = ["-f", "lavfi", "-i", "testsrc2=s=96x64:r=10:d=1"];
    let plain = make("a.gif", &source);
    let partial = make(
        "b.gif",
        &[&source[..], &["-gifflags", "+offsetting+transdiff"]].concat(),
    );
    for bytes in [plain, partial] {
        let (video, frames) = all_frames(bytes.clone());
        assert_eq!(
            (video.info.frames, video.info.width, video.info.height),
            (10, 96, 64)
        );
        assert!((video.info.fps - 10.0).abs() < 1e-9, "{}", video.info.fps);
        let theirs = by_ffmpeg(&bytes, "a.gif", (96, 64));
        assert_eq!(frames.len(), theirs.len());
        for (index, (ours, theirs)) in frames.iter().zip(&theirs).enumerate() {
            assert!(ours == theirs, "frame {index}");
        }
    }
}

/// A GIF of 3 x 1 pixels whose three frames are one pixel each, red, green and blue, with a way of disposal.
fn three_dots(disposal: u8) -> Bytes {
    let mut bytes = b"GIF89a\x03\0\x01\0\x81\0\0\xff\0\0\0\xff\0\0\0\xff\0\0\0".to_vec();
    for (index, code) in [0x44_u8, 0x4c, 0x54].into_iter().enumerate() {
        bytes.extend([0x21, 0xf9, 4, disposal << 2, 50, 0, 0, 0]);
        bytes.extend([0x2c, index as u8, 0, 0, 0, 1, 0, 1, 0, 0, 2, 2, code, 1, 0]);
    }
    bytes.push(b';');
    bytes.into()
}

#[test]
fn frames_go_away_as_the_file_says() {
    let (r, g, b, w) = ([255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]);
    for (disposal, expected) in [
        (1, [[r, w, w], [r, g, w], [r, g, b]]),
        (2, [[r, w, w], [w, g, w], [w, w, b]]),
        (3, [[r, w, w], [w, g, w], [w, w, b]]),
    ] {
        let (video, frames) = all_frames(three_dots(disposal));
        assert!((video.info.fps - 2.0).abs() < 1e-9, "{}", video.info.fps);
        let found: Vec<&[u8]> = frames
            .iter()
            .map(|frame| frame.as_raw().as_slice())
            .collect();
        let expected: Vec<Vec<u8>> = expected.iter().map(|frame| frame.concat()).collect();
        assert_eq!(found, expected, "disposal {disposal}");
    }
}

#[test]
fn an_animated_webp_is_read_and_its_first_frame_is_its_picture() {
    let bytes = picture("webp_animated.webp");
    let (video, frames) = all_frames(bytes.clone());
    assert!(video.info.frames >= 2);
    assert_eq!(frames[0], image::decode(&bytes, &settings()).unwrap());
    assert_ne!(frames[0], frames[1]);
    let last = video.info.frames - 1;
    assert_eq!(
        video.frames(&[last, last]).unwrap(),
        [frames[last as usize].clone(), frames[last as usize].clone()]
    );
}

#[test]
fn what_does_not_move_or_is_cut_short_is_no_video() {
    let still = VideoFile::open(picture("webp_lossy_rgb_19x13.webp"), &settings());
    assert!(
        matches!(&still, Err(MediaError::Unsupported { reason }) if reason.contains("send it as an image")),
        "{still:?}"
    );
    for bytes in [picture("webp_animated.webp"), three_dots(1)] {
        for cut in [12, bytes.len() / 2, bytes.len() - 1] {
            let result = VideoFile::open(bytes.slice(..cut), &settings())
                .and_then(|video| video.frames(&[video.info.frames - 1]));
            assert!(
                matches!(result, Err(MediaError::InvalidVideo { .. })),
                "{cut}: {:?}",
                result.map(|frames| frames.len())
            );
        }
    }
}

#[test]
fn animations_have_the_limits_of_files() {
    let limited = |change: fn(&mut MediaSettings)| {
        let mut settings = clips::settings();
        change(&mut settings);
        VideoFile::open(three_dots(1), &settings).and_then(|video| video.frames(&[0, 1, 2]))
    };
    for result in [
        limited(|settings| settings.max_video_seconds = 1.4),
        limited(|settings| settings.max_side_pixels = 2),
        limited(|settings| settings.max_pixels = 2),
        limited(|settings| settings.max_frames = 2),
    ] {
        assert!(
            matches!(result, Err(MediaError::TooLarge { .. })),
            "{:?}",
            result.map(|frames| frames.len())
        );
    }
    assert_eq!(
        limited(|settings| settings.max_video_seconds = 1.5)
            .unwrap()
            .len(),
        3
    );
}
