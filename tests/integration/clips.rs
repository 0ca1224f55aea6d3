//! Video files, decoded by the built program's own child: against decord's frames, and against what does not belong in one. These
//! tests need FFmpeg installed.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use bytes::Bytes;
use manifold::media::video::{VideoFile, VideoInfo, available};
use manifold::media::{MediaError, MediaSettings, image};

use crate::server::fixture;

fn media(name: &str) -> PathBuf {
    fixture("parity/media").join(name)
}

/// The defaults, with the built program as the decoder.
pub(crate) fn settings() -> MediaSettings {
    let settings = MediaSettings {
        decoder: env!("CARGO_BIN_EXE_manifold").into(),
        ..MediaSettings::default()
    };
    assert!(
        available(&settings),
        "these tests need ffmpeg and ffprobe: apt-get install ffmpeg, or brew install ffmpeg"
    );
    settings
}

pub(crate) fn clip() -> Bytes {
    fs::read(media("clip_160x120.mp4")).unwrap().into()
}

fn open(bytes: Bytes) -> Result<VideoFile, MediaError> {
    VideoFile::open(bytes, &settings())
}

/// Makes a clip with FFmpeg; `args` stand between the input and the output.
pub(crate) fn make(name: &str, args: &[&str]) -> Bytes {
    settings();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    let output = Command::new("ffmpeg")
        .args(["-v", "error", "-nostdin"])
        .args(args)
        .arg(&path)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    fs::read(&path).unwrap().into()
}

pub(crate) const SOURCE: [&str; 4] = ["-f", "lavfi", "-i", "testsrc2=s=96x64:r=10:d=2"];

#[test]
fn frames_equal_decords_bit_by_bit() {
    let video = open(clip()).unwrap();
    assert_eq!(
        video.info,
        VideoInfo {
            frames: 50,
            fps: 10.0,
            width: 160,
            height: 120
        }
    );
    let frames = video.frames(&[0, 16, 33, 49]).unwrap();
    for (frame, index) in frames.iter().zip([0, 16, 33, 49]) {
        let expected = image::decode(
            &fs::read(media(&format!("clip_160x120_f{index:02}.png"))).unwrap(),
            &settings(),
        )
        .unwrap();
        let differing = frame
            .as_raw()
            .iter()
            .zip(expected.as_raw())
            .filter(|(a, b)| a != b)
            .count();
        assert_eq!(
            (frame.dimensions(), differing),
            (expected.dimensions(), 0),
            "frame {index}"
        );
    }
}

#[test]
fn indices_may_repeat_and_are_answered_in_their_order() {
    let video = open(clip()).unwrap();
    let frames = video.frames(&[3, 3, 7, 49, 49]).unwrap();
    assert_eq!(frames.len(), 5);
    assert!(frames[0] == frames[1] && frames[3] == frames[4] && frames[1] != frames[2]);
    assert_eq!(video.frames(&[7]).unwrap()[0], frames[2]);
    assert!(video.frames(&[]).unwrap().is_empty());
}

#[test]
fn an_index_beyond_the_last_frame_is_an_error() {
    let result = open(clip()).unwrap().frames(&[0, 50]);
    assert!(
        matches!(result, Err(MediaError::InvalidVideo { .. })),
        "{:?}",
        result.map(|frames| frames.len())
    );
}

/// B frames are stored in another order than they are shown in, open groups begin with frames that need the group before, and phones and
/// screen recorders leave times between frames as they come. Without losses all of them decode to the same twenty pictures.
#[test]
fn frames_are_taken_by_their_place_in_time_whatever_their_order_and_spacing() {
    let lossless = ["-pix_fmt", "yuv420p", "-c:v", "libx264", "-qp", "0"];
    let times = "setpts='(N+floor(N/3)+4*gt(N,10))/10/TB'";
    let uneven = ["-vf", times, "-fps_mode", "vfr"];
    let encoded = |name: &str, more: &[&str]| {
        open(make(name, &[&SOURCE[..], &lossless, more].concat())).unwrap()
    };
    let all: Vec<u64> = (0..20).collect();
    let plain = encoded("a.mp4", &["-g", "1"]);
    let expected = plain.frames(&all).unwrap();
    let closed = ["-bf", "3", "-b_strategy", "0", "-g", "8"];
    let opened = [&closed[..], &["-x264-params", "open-gop=1:scenecut=0"]].concat();
    for (what, name, more, fps) in [
        ("B frames", "a.mp4", closed.to_vec(), 10.0),
        ("B frames", "a.mkv", closed.to_vec(), 10.0),
        ("open groups", "a.mp4", opened.clone(), 10.0),
        ("uneven times", "a.mp4", uneven.to_vec(), 6.9),
        // Where frames have no durations of their own the encoder's rate is written down, and believed.
        ("uneven times", "a.mkv", uneven.to_vec(), 10.0),
        ("all of it", "a.mp4", [&uneven[..], &opened].concat(), 6.9),
    ] {
        let video = encoded(name, &more);
        assert_eq!(video.info.frames, 20, "{what}, {name}");
        let near = (video.info.fps - fps).abs() < 0.5;
        assert!(near, "{what}, {name}: {}", video.info.fps);
        assert!(video.frames(&all).unwrap() == expected, "{what}, {name}");
        for index in [0, 2, 7, 8, 13, 19] {
            let frame = video.frames(&[index]).unwrap().remove(0);
            assert!(frame == expected[index as usize], "{what}, {name}: {index}");
        }
    }
}

#[test]
fn every_allowed_container_and_codec_is_read() {
    for (name, codec) in [
        ("a.webm", "libvpx-vp9"),
        ("a.webm", "libvpx"),
        ("a.mkv", "libx264"),
        ("a.mov", "libx264"),
        ("a.mp4", "libx265"),
        ("a.webm", "libaom-av1"),
    ] {
        let encoder = ["-pix_fmt", "yuv420p", "-c:v", codec];
        let fast: &[&str] = match codec {
            "libaom-av1" => &["-cpu-used", "8"],
            _ => &[],
        };
        let bytes = make(name, &[&SOURCE[..], &encoder, fast].concat());
        let video = open(bytes).unwrap();
        assert_eq!(
            (video.info.frames, video.info.width, video.info.height),
            (20, 96, 64),
            "{name} {codec}"
        );
        assert!((video.info.fps - 10.0).abs() < 0.01);
        let frames = video.frames(&(0..20).collect::<Vec<_>>()).unwrap();
        assert!(
            frames.windows(2).all(|pair| pair[0] != pair[1]),
            "{name} {codec}: a frame came twice"
        );
    }
}

#[test]
fn sound_and_covers_are_passed_over() {
    let sound = ["-f", "lavfi", "-i", "sine=d=2"];
    let bytes = make(
        "a.mp4",
        &[
            &SOURCE[..],
            &sound,
            &["-pix_fmt", "yuv420p", "-c:v", "libx264", "-c:a", "aac"],
        ]
        .concat(),
    );
    assert_eq!(open(bytes).unwrap().frames(&[19]).unwrap().len(), 1);
    let only_sound = make("a.mp4", &[&sound[..], &["-c:a", "aac"]].concat());
    assert!(matches!(
        open(only_sound),
        Err(MediaError::InvalidVideo { .. })
    ));
}

#[test]
fn frames_are_turned_as_the_container_says() {
    let plain = make(
        "a.mp4",
        &[&SOURCE[..], &["-pix_fmt", "yuv420p", "-c:v", "libx264"]].concat(),
    );
    // The display matrix in the track header: from "as is" to a quarter turn, without help of any FFmpeg version.
    let mut turned = plain.to_vec();
    let at = turned.windows(4).position(|kind| kind == b"tkhd").unwrap() + 4 + 40;
    let matrix = [
        0u32,
        0x1_0000,
        0,
        0xffff_0000,
        0,
        0,
        64 << 16,
        0,
        0x4000_0000,
    ];
    for (k, value) in matrix.into_iter().enumerate() {
        turned[at + 4 * k..at + 4 * k + 4].copy_from_slice(&value.to_be_bytes());
    }
    let turned = open(turned.into()).unwrap();
    assert_eq!((turned.info.width, turned.info.height), (64, 96));
    let (upright, shown) = (
        open(plain).unwrap().frames(&[5]).unwrap().remove(0),
        turned.frames(&[5]).unwrap().remove(0),
    );
    // Turning before the conversion to RGB, as decord does, moves chroma by a rounding, so the two agree but for little.
    let expected = ::image::imageops::rotate90(&upright);
    assert_eq!(shown.dimensions(), expected.dimensions());
    let near = shown
        .as_raw()
        .iter()
        .zip(expected.as_raw())
        .filter(|(a, b)| a.abs_diff(**b) < 32)
        .count();
    assert!(
        near * 10 > expected.as_raw().len() * 9,
        "{near} of {}",
        expected.as_raw().len()
    );
}

#[test]
fn frames_an_edit_list_hides_are_not_counted() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole.mp4");
    fs::write(
        &whole,
        make(
            "a.mp4",
            &[
                &SOURCE[..],
                &["-pix_fmt", "yuv420p", "-c:v", "libx264", "-g", "100"],
            ]
            .concat(),
        ),
    )
    .unwrap();
    let trimmed = make(
        "b.mp4",
        &["-ss", "0.7", "-i", whole.to_str().unwrap(), "-c", "copy"],
    );
    let (whole, trimmed) = (
        open(fs::read(&whole).unwrap().into()).unwrap(),
        open(trimmed).unwrap(),
    );
    assert!(
        trimmed.info.frames < whole.info.frames,
        "{:?}",
        trimmed.info
    );
    let last = trimmed.info.frames - 1;
    assert_eq!(
        trimmed.frames(&[last]).unwrap(),
        whole.frames(&[19]).unwrap()
    );
    assert_eq!(
        trimmed.frames(&[0]).unwrap(),
        whole.frames(&[19 - last]).unwrap()
    );
}

#[test]
fn other_files_are_refused_before_ffmpeg_sees_them() {
    let never = MediaSettings {
        ffprobe: "/no/such/program".into(),
        ..MediaSettings::default()
    };
    for bytes in [
        &b"#EXTM3U\nfile:///etc/passwd\n"[..],
        b"RIFF\0\0\0\0AVI LIST",
        b"\x89PNG\r\n\x1a\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"\0\0\0\x1cftypavif",
        b"\0",
    ] {
        let result = VideoFile::open(Bytes::from_static(bytes), &never);
        assert!(
            matches!(&result, Err(MediaError::Unsupported { reason }) if reason.contains("no known format")),
            "{result:?}"
        );
    }
    assert!(matches!(
        VideoFile::open(Bytes::new(), &never),
        Err(MediaError::InvalidVideo { .. })
    ));
    let disguised = [
        &b"\0\0\0\x18ftypisom\0\0\0\0isom\0\0\0\0"[..],
        b"#EXTM3U\nfile:///etc/passwd\n",
    ]
    .concat();
    assert!(matches!(
        open(disguised.into()),
        Err(MediaError::InvalidVideo { .. })
    ));
}

#[test]
fn codecs_outside_the_list_are_refused_by_name() {
    let bytes = make(
        "a.mkv",
        &[&SOURCE[..], &["-c:v", "mjpeg", "-pix_fmt", "yuvj420p"]].concat(),
    );
    assert!(
        matches!(open(bytes), Err(MediaError::Unsupported { reason }) if reason.contains("mjpeg"))
    );
}

#[test]
fn files_cut_short_are_errors() {
    let whole = clip();
    // The index of this file stands at its end, so any cut loses it; with the index first, frames are missing.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.mp4");
    fs::write(&path, &whole).unwrap();
    let index_first = make(
        "b.mp4",
        &[
            "-i",
            path.to_str().unwrap(),
            "-c",
            "copy",
            "-movflags",
            "+faststart",
        ],
    );
    for bytes in [&whole, &index_first] {
        for cut in [bytes.len() / 2, bytes.len() * 3 / 4, bytes.len() - 2000, 40] {
            let result = open(bytes.slice(..cut)).and_then(|video| video.frames(&[0, 49]));
            assert!(
                matches!(result, Err(MediaError::InvalidVideo { .. })),
                "cut at {cut}: {:?}",
                result.map(|frames| frames.len())
            );
        }
    }
}

#[test]
fn limits_hold_before_decoding() {
    let limited = |change: fn(&mut MediaSettings)| {
        let mut settings = settings();
        change(&mut settings);
        VideoFile::open(clip(), &settings).and_then(|video| video.frames(&[0, 1, 2]))
    };
    for result in [
        limited(|settings| settings.max_video_seconds = 4.9),
        limited(|settings| settings.max_side_pixels = 159),
        limited(|settings| settings.max_pixels = 160 * 120 - 1),
        limited(|settings| settings.max_frames = 2),
        limited(|settings| settings.max_video_frames = 49),
    ] {
        assert!(
            matches!(result, Err(MediaError::TooLarge { .. })),
            "{:?}",
            result.map(|frames| frames.len())
        );
    }
    assert!(limited(|settings| settings.max_video_seconds = 5.0).is_ok());
    assert!(limited(|settings| settings.max_video_frames = 50).is_ok());
    // Sixteen times the largest picture may be held.
    let narrow = MediaSettings {
        max_pixels: 160 * 120,
        ..settings()
    };
    let video = VideoFile::open(clip(), &narrow).unwrap();
    let some: Vec<u64> = (0..16).collect();
    assert_eq!(video.frames(&some).unwrap().len(), 16);
    let more: Vec<u64> = (0..17).collect();
    assert!(matches!(
        video.frames(&more),
        Err(MediaError::TooLarge {
            value: 326_400,
            limit: 307_200,
            ..
        })
    ));
}

#[test]
fn a_decoder_that_comes_to_a_limit_is_no_damaged_video() {
    let hasty = MediaSettings {
        video_timeout: std::time::Duration::from_millis(1),
        ..settings()
    };
    let result = VideoFile::open(clip(), &hasty);
    assert!(
        matches!(
            result,
            Err(MediaError::TooCostly {
                limit: 1,
                setting: "media.video_timeout_ms",
                ..
            })
        ),
        "{result:?}"
    );
    // Enough memory for FFmpeg to start and to look at a header, not for frames of this size.
    let large = [
        "-f",
        "lavfi",
        "-i",
        "testsrc2=s=3840x2160:r=5:d=1",
        "-pix_fmt",
        "yuv420p",
        "-c:v",
        "libx264",
        "-preset",
        "ultrafast",
    ];
    let large = make("a.mp4", &large);
    // What it fails at first, and what it says of that, is another thing with each.
    for limit in [350, 400, 450, 500].map(|mebibytes: u64| mebibytes << 20) {
        let narrow = MediaSettings {
            max_decoder_bytes: limit,
            ..settings()
        };
        let result = VideoFile::open(large.clone(), &narrow).and_then(|video| video.frames(&[4]));
        let result = result.map(|frames| frames.len());
        let told = match &result {
            Err(MediaError::TooCostly { limit, setting, .. }) => (*limit, *setting),
            _ => panic!("{limit}: {result:?}"),
        };
        assert_eq!(told, (limit, "media.max_decoder_bytes"));
    }
    let frames = open(large).unwrap().frames(&[4]);
    assert_eq!(frames.unwrap().len(), 1, "the clip itself is whole");
}

#[test]
fn without_ffmpeg_the_error_says_what_to_install() {
    let mut settings = MediaSettings {
        ffprobe: "no-such-ffprobe".into(),
        ..MediaSettings::default()
    };
    assert!(!available(&settings));
    let result = VideoFile::open(clip(), &settings);
    assert!(
        matches!(&result, Err(MediaError::Unsupported { reason }) if reason.contains("no-such-ffprobe") && reason.contains("apt-get install ffmpeg")),
        "{result:?}"
    );
    settings.ffprobe = "/".into();
    assert!(!available(&settings), "a directory is no program");
}
