//! What FFmpeg's programs are told: which container, which frames, and that they may open nothing else.
//!
//! # Why nothing is sought
//!
//! One process walks all frames up to the last one wanted. To seek would be one process for each wanted frame (FFmpeg's program seeks
//! once, where it begins to read), which costs more than it saves on all but long clips of short groups. CPU seconds on a 3 GHz core,
//! H.264 with B frames, 640 x 360 at 25 frames a second, the wanted frames spread evenly:
//!
//! | clip | group | wanted | walked | sought | frames decoded to seek |
//! |---|---|---|---|---|---|
//! | 60 s | 250 | 60 | 1.8 | 15.0 | 96 % |
//! | 60 s | 30 | 60 | 1.6 | 8.0 | 60 % |
//! | 10 min | 250 | 64 | 12.6 | 18.2 | 53 % |
//! | 10 min | 30 | 64 | 15.3 | 10.1 | 7 % |
//!
//! The frames were the same in all of these, an open group among them, but nothing in the packets proves that they must be: a packet
//! marked as a key frame may be one of recovery (H.264) or begin an open group (HEVC), after which frames are what they would have been
//! only by the encoder's good will. A third of a long clip's time is not worth other vectors for the same file.

use super::VideoInfo;

/// Threads of one decoder: enough to overlap decoding and conversion, few enough for several clips at once.
const DECODER_THREADS: usize = 2;
/// The decoders that may see a client's bytes, of whatever stream: FFmpeg would try others on what lies beside the video, to tell what it is.
/// ffprobe is not told so, for it would fail where it meets another; it opens no decoder but to tell what a stream is.
const DECODERS: &str = "h264,hevc,vp8,vp9,libdav1d,libaom-av1,av1";

/// The containers that are read, each of which is one FFmpeg demuxer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Container {
    Mov,
    Matroska,
}

/// How frames are turned before they are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rotation {
    None,
    Clockwise,
    Half,
    CounterClockwise,
}

/// FFmpeg's arguments for raw RGB of the wanted frames.
///
/// Measured against decord 0.6 (FFmpeg 4.x inside): for 8-bit 4:2:0, 4:2:2 and 4:4:4 every scaler gives decord's samples except
/// with `accurate_rnd`; for 10 bits only `bilinear`, decord's own choice, does. Equal with FFmpeg 4.2, 5.1 and 9.0 (9.0 differs in
/// 10-bit video). decord turns frames as the container says, which is done here by name so that no version does it otherwise.
pub(super) fn decode_args(
    info: &VideoInfo,
    wanted: &[u64],
    container: Container,
    rotation: Rotation,
) -> Vec<String> {
    let (width, height) = (info.width, info.height);
    let chosen: Vec<String> = wanted
        .iter()
        .map(|index| format!("eq(n\\,{index})"))
        .collect();
    // Chosen first, so that only what is wanted is turned and converted. The chosen frames then get the times of a steady rate:
    // every FFmpeg passes those on one by one, whereas the option that says so (`-vsync`, `-fps_mode`) has changed its name.
    let filters = format!(
        "select={},settb=1/25,setpts=N,fps=25,{}scale={width}:{height}:flags=bilinear,format=rgb24",
        chosen.join("+"),
        rotation.filter()
    );
    let threads = DECODER_THREADS.to_string();
    let count = wanted.len().to_string();
    let mut args = vec![
        "-nostdin".to_owned(),
        "-threads".to_owned(),
        threads,
        "-noautorotate".to_owned(),
    ];
    args.extend(["-codec_whitelist", DECODERS].map(str::to_owned));
    // Codecs round frames up to whole blocks, of 128 x 128 pixels at most (AV1).
    let coded = [width, height].map(|side| u64::from(side.next_multiple_of(128)));
    args.extend(input_args(container, coded[0] * coded[1]));
    args.extend(
        [
            "-map",
            "0:V:0",
            "-an",
            "-sn",
            "-dn",
            "-xerror",
            "-vf",
            &filters,
            "-frames:v",
            &count,
        ]
        .map(str::to_owned),
    );
    args.extend(["-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"].map(str::to_owned));
    args
}

/// What both programs are told of their input: how to read it, and that they may open nothing else.
pub(super) fn input_args(container: Container, max_pixels: u64) -> Vec<String> {
    // The list names a demuxer as it names itself.
    let (demuxer, demuxers) = match container {
        Container::Mov => ("mov", "mov,mp4,m4a,3gp,3g2,mj2"),
        Container::Matroska => ("matroska", "matroska,webm"),
    };
    let pixels = max_pixels.to_string();
    // `/dev/stdin` is the file itself, so it can be sought in, which mp4 files with their index at the end need.
    [
        "-v",
        "error",
        "-max_pixels",
        &pixels,
        "-protocol_whitelist",
        "file,pipe",
        "-format_whitelist",
        demuxers,
        "-f",
        demuxer,
        "-i",
        "file:/dev/stdin",
    ]
    .map(str::to_owned)
    .to_vec()
}

impl Rotation {
    /// From the degrees counter-clockwise that FFmpeg reports; quarters only, as in decord.
    pub(super) fn from_degrees(degrees: f64) -> Self {
        match (-degrees).rem_euclid(360.0).round() as u32 {
            90 => Self::Clockwise,
            180 => Self::Half,
            270 => Self::CounterClockwise,
            _ => Self::None,
        }
    }

    pub(super) fn filter(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Clockwise => "transpose=clock,",
            Self::Half => "hflip,vflip,",
            Self::CounterClockwise => "transpose=cclock,",
        }
    }

    pub(super) fn turned(self, width: u32, height: u32) -> (u32, u32) {
        match self {
            Self::None | Self::Half => (width, height),
            Self::Clockwise | Self::CounterClockwise => (height, width),
        }
    }
}
