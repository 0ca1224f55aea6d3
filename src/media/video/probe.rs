//! What a container says about its first real video stream, by ffprobe.

use serde::Deserialize;

use super::ffmpeg::{Container, Rotation, input_args};
use super::{VideoInfo, damaged};
use crate::media::{MediaError, MediaSettings};

/// Codecs whose decoders may see a client's bytes.
const CODECS: [&str; 5] = ["h264", "hevc", "vp8", "vp9", "av1"];
/// About half a million packets; ten minutes at 240 frames a second have 144 000.
pub(super) const MAX_REPORT_BYTES: u64 = 16 << 20;

/// Larger frames make the probe fail; below that, our own limit can say what is wrong.
const PROBED_PIXELS: u64 = 1 << 28;

/// The probe's arguments: one pass over the packets, nothing decoded beyond what the stream's header needs.
pub(super) fn args(container: Container) -> Vec<String> {
    let mut args = input_args(container, PROBED_PIXELS);
    args.extend(
        [
            "-select_streams",
            "V:0",
            "-show_entries",
            "packet=flags:stream=codec_name,width,height,avg_frame_rate,duration,nb_frames:stream_side_data=rotation:format=duration",
            "-of",
            "json=compact=1",
        ]
        .map(str::to_owned),
    );
    args
}

#[derive(Deserialize)]
struct Report<'a> {
    #[serde(borrow, default)]
    packets: Vec<Packet<'a>>,
    #[serde(default)]
    streams: Vec<Stream>,
    format: Option<Format>,
}

#[derive(Deserialize)]
struct Packet<'a> {
    flags: &'a str,
}

#[derive(Deserialize)]
struct Stream {
    codec_name: Option<String>,
    width: Option<u32>,
    height: Option<u32>,
    avg_frame_rate: Option<String>,
    duration: Option<String>,
    nb_frames: Option<String>,
    #[serde(default)]
    side_data_list: Vec<SideData>,
}

#[derive(Deserialize)]
struct SideData {
    rotation: Option<f64>,
}

#[derive(Deserialize)]
struct Format {
    duration: Option<String>,
}

/// Reads the probe's report and refuses what the settings refuse.
pub(super) fn read_report(
    report: &[u8],
    settings: &MediaSettings,
) -> Result<(VideoInfo, Rotation), MediaError> {
    let report: Report = serde_json::from_slice(report).map_err(|_| damaged())?;
    let stream = report
        .streams
        .first()
        .ok_or_else(|| MediaError::InvalidVideo {
            reason: "the file has no video stream".to_owned(),
        })?;
    let codec = stream.codec_name.as_deref().unwrap_or("unknown");
    if !CODECS.contains(&codec) {
        // The name comes from FFmpeg's own list, not from the file.
        return Err(MediaError::Unsupported {
            reason: format!(
                "the video is coded in {codec}: this server reads {}",
                CODECS.join(", ")
            ),
        });
    }
    let (Some(width), Some(height)) = (stream.width, stream.height) else {
        return Err(damaged());
    };
    super::super::image::check_size(width, height, settings)?;

    let frames = count_frames(&report, stream, settings)?;
    let fps = stream
        .avg_frame_rate
        .as_deref()
        .and_then(ratio)
        .ok_or_else(damaged)?;
    check_duration(&report, stream, frames as f64 / fps, settings)?;

    let turn = stream
        .side_data_list
        .iter()
        .find_map(|data| data.rotation)
        .unwrap_or(0.0);
    let rotation = Rotation::from_degrees(turn);
    let (width, height) = rotation.turned(width, height);
    Ok((
        VideoInfo {
            frames,
            fps,
            width,
            height,
        },
        rotation,
    ))
}

/// How many frames are shown, unless they are none or too many, or fewer than the container announces are there.
fn count_frames(
    report: &Report,
    stream: &Stream,
    settings: &MediaSettings,
) -> Result<u64, MediaError> {
    // Differs from the reference: decord counts also the packets an edit list hides (a clip trimmed without re-encoding has
    // them), and then returns other frames than asked for, depending on the order of reading. Hidden packets are no frames here.
    let frames = report
        .packets
        .iter()
        .filter(|packet| !packet.flags.contains('D'))
        .count() as u64;
    let announced: u64 = stream
        .nb_frames
        .as_deref()
        .and_then(|n| n.parse().ok())
        .unwrap_or(0);
    if frames == 0 {
        return Err(MediaError::InvalidVideo {
            reason: "the video has no frames".to_owned(),
        });
    }
    if frames > settings.max_video_frames {
        return Err(MediaError::TooLarge {
            what: "number of frames in the video",
            value: frames,
            limit: settings.max_video_frames,
        });
    }
    if (report.packets.len() as u64) < announced {
        return Err(damaged());
    }
    Ok(frames)
}

/// Refuses a clip that is too long by any account: the container's, the stream's, or its frames'.
fn check_duration(
    report: &Report,
    stream: &Stream,
    by_frames: f64,
    settings: &MediaSettings,
) -> Result<(), MediaError> {
    let stated = [
        report
            .format
            .as_ref()
            .and_then(|format| format.duration.as_deref()),
        stream.duration.as_deref(),
    ];
    let seconds = stated
        .into_iter()
        .flatten()
        .filter_map(|text| text.parse::<f64>().ok())
        .chain([by_frames])
        .fold(0.0, f64::max);
    if seconds > settings.max_video_seconds {
        return Err(MediaError::TooLarge {
            what: "length of the video in seconds",
            value: seconds.ceil() as u64,
            limit: settings.max_video_seconds as u64,
        });
    }
    Ok(())
}

/// A rate as FFmpeg writes it, "30000/1001"; nothing when it is not above zero.
fn ratio(text: &str) -> Option<f64> {
    let (over, under) = text.split_once('/')?;
    let rate = over.parse::<f64>().ok()? / under.parse::<f64>().ok()?;
    (rate.is_finite() && rate > 0.0).then_some(rate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn report(stream: &str, flags: &[&str], duration: &str) -> String {
        let packets: Vec<String> = flags
            .iter()
            .map(|flags| format!("{{\"flags\": \"{flags}\"}}"))
            .collect();
        format!(
            "{{\"packets\": [{}], \"programs\": [], \"streams\": [{stream}], \"format\": {{\"duration\": \"{duration}\"}}}}",
            packets.join(",")
        )
    }

    fn read(text: &str) -> Result<(VideoInfo, Rotation), MediaError> {
        read_report(text.as_bytes(), &MediaSettings::default())
    }

    const GOOD: &str = r#"{"codec_name": "h264", "width": 64, "height": 48, "avg_frame_rate": "30000/1001", "nb_frames": "3", "side_data_list": [{}, {"rotation": -90}]}"#;

    #[test]
    fn the_report_is_read_with_hidden_packets_left_out() {
        let (info, rotation) = read(&report(GOOD, &["KD_", "___", "_"], "2.0")).unwrap();
        assert_eq!((info.frames, info.width, info.height), (2, 48, 64));
        assert!((info.fps - 29.97).abs() < 0.01);
        assert_eq!(rotation, Rotation::Clockwise);
    }

    #[test]
    fn what_is_not_allowed_is_refused_with_the_reason() {
        let swap =
            |from: &str, to: &str| read(&report(&GOOD.replace(from, to), &["K", "_", "_"], "2.0"));
        assert!(matches!(
            swap("h264", "mjpeg"),
            Err(MediaError::Unsupported { .. })
        ));
        assert!(matches!(
            swap("\"width\": 64", "\"width\": 20000"),
            Err(MediaError::TooLarge { value: 20_000, .. })
        ));
        assert!(matches!(
            swap("30000/1001", "0/0"),
            Err(MediaError::InvalidVideo { .. })
        ));
        assert!(matches!(
            swap("30000/1001", "1/400"),
            Err(MediaError::TooLarge {
                value: 1200,
                limit: 600,
                ..
            })
        ));
        assert!(
            matches!(swap("\"3\"", "\"4\""), Err(MediaError::InvalidVideo { .. })),
            "fewer packets than announced"
        );
        assert!(matches!(
            read(&report(GOOD, &["K", "_", "_"], "600.5")),
            Err(MediaError::TooLarge {
                value: 601,
                limit: 600,
                ..
            })
        ));
        assert!(matches!(
            read(&report(GOOD, &["KD", "_D", "_D"], "2.0")),
            Err(MediaError::InvalidVideo { .. })
        ));
        assert!(matches!(
            read(&report("", &[], "2.0")),
            Err(MediaError::InvalidVideo { .. })
        ));
    }

    proptest! {
        #[test]
        fn no_report_panics(text in any::<String>(), rate in "[0-9./-]{0,8}", turn in any::<f64>()) {
            let _ = read(&text);
            let stream = GOOD.replace("30000/1001", &rate).replace("-90", &turn.to_string());
            let _ = read(&report(&stream, &["K", "_", "_"], &rate));
        }
    }
}
