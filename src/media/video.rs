//! Video files: probed and decoded by FFmpeg in a child process.
//!
//! In: bytes of an mp4, mov, webm or mkv file. Out: its frame count and rate, and the frames asked for as RGB, bit-equal to
//! decord's, with which the reference reads videos.
//!
//! FFmpeg is never linked: its decoders run outside this process, on a file without a name, with the container format we saw
//! ourselves forced, so that no playlist format can make it open other files. (Limits on its memory and system calls belong to
//! the operator's container for now.)

mod child;
mod probe;

use std::fs::File;
use std::io::{ErrorKind, Read, Write};

use bytes::Bytes;

use self::child::{Ended, Job};
use super::{MediaError, MediaSettings, RgbImage};

/// Threads of one decoder: enough to overlap decoding and conversion, few enough for several clips at once.
const DECODER_THREADS: usize = 2;
/// Pixels of all frames held at once, in multiples of the largest allowed picture: 16 × 50 megapixels are 2.4 GB of RGB.
const HELD_PICTURES: u64 = 16;

/// What a container says about its video stream.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VideoInfo {
    /// Number of frames in the stream.
    pub frames: u64,
    /// Average frames per second.
    pub fps: f64,
    /// Width in pixels, as shown: after the rotation the container asks for.
    pub width: u32,
    /// Height in pixels, as shown.
    pub height: u32,
}

/// A video file, probed.
#[derive(Debug)]
pub struct VideoFile {
    /// What the container says.
    pub info: VideoInfo,
    container: Container,
    rotation: Rotation,
    file: File,
    settings: MediaSettings,
}

/// The containers that are read, each of which is one FFmpeg demuxer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Container {
    Mov,
    Matroska,
}

/// How frames are turned before they are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rotation {
    None,
    Clockwise,
    Half,
    CounterClockwise,
}

/// Whether both FFmpeg programs are there; a server without them still reads pictures and frame lists.
pub fn available(settings: &MediaSettings) -> bool {
    child::find(&settings.ffmpeg).is_some() && child::find(&settings.ffprobe).is_some()
}

impl VideoFile {
    /// Sniffs the container and probes it. Blocks on a child process: call it on the bounded pool.
    ///
    /// # Errors
    /// [`MediaError::Unsupported`] (also when FFmpeg is not installed), [`MediaError::InvalidVideo`], [`MediaError::TooLarge`].
    pub fn open(bytes: Bytes, settings: &MediaSettings) -> Result<Self, MediaError> {
        let container = sniff(&bytes)?;
        // Unlinked from the start: nothing is left behind, whatever happens to this process.
        let mut file = tempfile::tempfile().map_err(MediaError::Internal)?;
        file.write_all(&bytes).map_err(MediaError::Internal)?;
        let job = Job {
            program: &settings.ffprobe,
            args: probe::args(container),
            input: &file,
            time: settings.video_timeout,
        };
        let ended = child::run(job, |output| {
            child::read_all(output, probe::MAX_REPORT_BYTES).map_err(MediaError::Internal)
        })?;
        let report = match ended {
            Ended::Well(report) => report,
            Ended::Badly => return Err(damaged()),
            Ended::TimedOut => return Err(too_slow()),
        };
        let (info, rotation) = probe::read_report(&report, settings)?;
        Ok(Self {
            info,
            container,
            rotation,
            file,
            settings: settings.clone(),
        })
    }

    /// The frames at `indices` (ascending, repeats allowed), in order. Blocks on a child process.
    ///
    /// # Errors
    /// [`MediaError::InvalidVideo`] when the stream ends before the last index, [`MediaError::TooLarge`] when there are more than
    /// `max_frames` or they would not fit in memory, [`MediaError::Unsupported`] when FFmpeg is not installed.
    pub fn frames(&self, indices: &[u64]) -> Result<Vec<RgbImage>, MediaError> {
        if let Some(last) = indices
            .iter()
            .max()
            .filter(|&&last| last >= self.info.frames)
        {
            return Err(MediaError::InvalidVideo {
                reason: format!(
                    "frame {last} was asked for, the video has {} frames",
                    self.info.frames
                ),
            });
        }
        let mut wanted = indices.to_vec();
        wanted.sort_unstable();
        wanted.dedup();
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        self.check_memory(wanted.len())?;
        let decoded = self.decode(&wanted)?;
        let at = |index| {
            wanted
                .binary_search(index)
                .ok()
                .and_then(|at| decoded.get(at))
        };
        indices
            .iter()
            .map(|index| at(index).cloned().ok_or_else(damaged))
            .collect()
    }

    fn check_memory(&self, frames: usize) -> Result<(), MediaError> {
        if frames > self.settings.max_frames {
            return Err(MediaError::TooLarge {
                what: "number of frames",
                value: frames as u64,
                limit: self.settings.max_frames as u64,
            });
        }
        let pixels = frames as u64 * u64::from(self.info.width) * u64::from(self.info.height);
        let limit = self.settings.max_pixels.saturating_mul(HELD_PICTURES);
        if pixels > limit {
            return Err(MediaError::TooLarge {
                what: "size of the video in pixels (frames x width x height)",
                value: pixels,
                limit,
            });
        }
        Ok(())
    }

    /// Decodes the frames at `wanted` (ascending, no repeats).
    fn decode(&self, wanted: &[u64]) -> Result<Vec<RgbImage>, MediaError> {
        let (width, height) = (self.info.width, self.info.height);
        let job = Job {
            program: &self.settings.ffmpeg,
            args: self.decode_args(wanted),
            input: &self.file,
            time: self.settings.video_timeout,
        };
        let ended = child::run(job, |output| {
            let mut frames = Vec::with_capacity(wanted.len());
            for _ in wanted {
                let mut rgb = vec![0; width as usize * height as usize * 3];
                match output.read_exact(&mut rgb) {
                    Ok(()) => frames.extend(RgbImage::from_raw(width, height, rgb)),
                    Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
                    Err(error) => return Err(MediaError::Internal(error)),
                }
            }
            // Frames of another size than the container said would show up as too many bytes.
            let excess = output.read(&mut [0]).map_err(MediaError::Internal)?;
            Ok((excess == 0).then_some(frames))
        })?;
        match ended {
            Ended::Well(frames) => Ok(frames),
            Ended::Badly => Err(damaged()),
            Ended::TimedOut => Err(too_slow()),
        }
    }

    /// FFmpeg's arguments for raw RGB of the wanted frames.
    ///
    /// Measured against decord 0.6 (FFmpeg 4.x inside): for 8-bit 4:2:0, 4:2:2 and 4:4:4 every scaler gives decord's samples except
    /// with `accurate_rnd`; for 10 bits only `bilinear`, decord's own choice, does. Equal with FFmpeg 4.2, 5.1 and 9.0 (9.0 differs in
    /// 10-bit video). decord turns frames as the container says, which is done here by name so that no version does it otherwise.
    fn decode_args(&self, wanted: &[u64]) -> Vec<String> {
        let (width, height) = (self.info.width, self.info.height);
        let chosen: Vec<String> = wanted
            .iter()
            .map(|index| format!("eq(n\\,{index})"))
            .collect();
        // Chosen first, so that only what is wanted is turned and converted. The chosen frames then get the times of a steady rate:
        // every FFmpeg passes those on one by one, whereas the option that says so (`-vsync`, `-fps_mode`) has changed its name.
        let filters = format!(
            "select={},settb=1/25,setpts=N,fps=25,{}scale={width}:{height}:flags=bilinear,format=rgb24",
            chosen.join("+"),
            self.rotation.filter()
        );
        let threads = DECODER_THREADS.to_string();
        let count = wanted.len().to_string();
        let mut args = vec![
            "-nostdin".to_owned(),
            "-threads".to_owned(),
            threads,
            "-noautorotate".to_owned(),
        ];
        args.extend(input_args(self.container, self.settings.max_pixels));
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
}

/// What both programs are told of their input: how to read it, and that they may open nothing else.
fn input_args(container: Container, max_pixels: u64) -> Vec<String> {
    let demuxer = match container {
        Container::Mov => "mov",
        Container::Matroska => "matroska",
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
        "-f",
        demuxer,
        "-i",
        "file:/dev/stdin",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// The container by its first bytes: an ISO base media `ftyp` box, or an EBML header.
fn sniff(bytes: &[u8]) -> Result<Container, MediaError> {
    if bytes.is_empty() {
        return Err(MediaError::InvalidVideo {
            reason: "the video is empty (0 bytes)".to_owned(),
        });
    }
    // Pictures in the same kind of box are no videos.
    let pictures: [&[u8]; 6] = [b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1"];
    let brand = bytes.get(8..12).unwrap_or_default();
    if bytes.get(4..8) == Some(b"ftyp") && !pictures.contains(&brand) {
        Ok(Container::Mov)
    } else if bytes.starts_with(b"\x1a\x45\xdf\xa3") {
        Ok(Container::Matroska)
    } else {
        Err(MediaError::Unsupported {
            reason: "the video is of no known format: this server reads mp4, mov, webm and mkv files, and lists of frames".to_owned(),
        })
    }
}

impl Rotation {
    /// From the degrees counter-clockwise that FFmpeg reports; quarters only, as in decord.
    fn from_degrees(degrees: f64) -> Self {
        match (-degrees).rem_euclid(360.0).round() as u32 {
            90 => Self::Clockwise,
            180 => Self::Half,
            270 => Self::CounterClockwise,
            _ => Self::None,
        }
    }

    fn filter(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Clockwise => "transpose=clock,",
            Self::Half => "hflip,vflip,",
            Self::CounterClockwise => "transpose=cclock,",
        }
    }

    fn turned(self, width: u32, height: u32) -> (u32, u32) {
        match self {
            Self::None | Self::Half => (width, height),
            Self::Clockwise | Self::CounterClockwise => (height, width),
        }
    }
}

fn damaged() -> MediaError {
    MediaError::InvalidVideo {
        reason: "the video is cut short or damaged".to_owned(),
    }
}

fn too_slow() -> MediaError {
    MediaError::InvalidVideo {
        reason: "the video takes too long to decode".to_owned(),
    }
}

#[cfg(test)]
mod tests;
