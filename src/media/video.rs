//! Video files: probed and decoded by FFmpeg in a child process.
//!
//! In: bytes of an mp4, mov, webm or mkv file, or of an animated GIF or WebP (`animation`). Out: its frame count and rate, and the
//! frames asked for as RGB, bit-equal to decord's, with which the reference reads videos.
//!
//! FFmpeg is never linked: its decoders run outside this process, in a [`sandbox`] that says why, on a file without a name, with the
//! container format we saw ourselves forced, so that no playlist format can make it open other files.

mod animation;
mod child;
mod ffmpeg;
mod patience;
mod probe;
pub mod sandbox;

use std::fs::File;
use std::io::{ErrorKind, Read, Write};

use bytes::Bytes;

use self::animation::Animation;
use self::child::{Ended, Job};
use self::ffmpeg::{Container, Rotation};
use self::patience::End;
pub use self::patience::{Patience, Waiter};
use self::sandbox::Layers;
use super::{MediaError, MediaSettings, RgbImage};

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
    stored: Stored,
    settings: MediaSettings,
    patience: Patience,
}

/// What the frames are decoded from.
#[derive(Debug)]
enum Stored {
    /// By FFmpeg.
    File {
        container: Container,
        rotation: Rotation,
        file: File,
    },
    /// Here, with so many bytes besides the frames.
    Animation(Animation, u64),
}

/// Whether both FFmpeg programs are there; a server without them still reads pictures and frame lists.
pub fn available(settings: &MediaSettings) -> bool {
    child::find(&settings.ffmpeg).is_some() && child::find(&settings.ffprobe).is_some()
}

/// Tells which layers of the sandbox hold, and starts both FFmpeg programs in it, which shows that they run there. Blocks for some
/// tenths of a second.
///
/// # Errors
/// [`MediaError::Unsupported`] when a program is not installed or does not run confined, [`MediaError::Internal`] when this program
/// cannot start itself.
pub fn check_sandbox(settings: &MediaSettings) -> Result<Layers, MediaError> {
    let nothing = tempfile::tempfile().map_err(MediaError::Internal)?;
    let run = |command| {
        let job = Job {
            command,
            input: &nothing,
            settings,
            patience: &Patience::default(),
        };
        child::run(job, |output| {
            child::read_all(output, probe::MAX_REPORT_BYTES).map_err(MediaError::Internal)
        })
    };
    let Ended::Well(names) = run(child::telling_layers(settings)?)? else {
        let reason = "the decoder process could not be started";
        return Err(MediaError::Internal(std::io::Error::other(reason)));
    };
    let layers = Layers::parse(&String::from_utf8_lossy(&names));
    if settings.require_sandbox && !layers.is_complete() {
        return Ok(layers);
    }
    for program in [&settings.ffprobe, &settings.ffmpeg] {
        let asked = child::confined(program, vec!["-version".to_owned()], settings)?;
        if !matches!(run(asked)?, Ended::Well(_)) {
            return Err(MediaError::Unsupported {
                reason: format!(
                    "{} does not run confined: it must be a program, not a script, with its libraries where the system keeps them",
                    program.display()
                ),
            });
        }
    }
    Ok(layers)
}

impl VideoFile {
    /// [`VideoFile::open_for`] somebody who waits as long as it takes.
    ///
    /// # Errors
    /// Those of [`VideoFile::open_for`].
    pub fn open(bytes: Bytes, settings: &MediaSettings) -> Result<Self, MediaError> {
        Self::open_for(bytes, settings, &Patience::default())
    }

    /// Sniffs the container and probes it. Blocks on a child process: call it on the bounded pool.
    ///
    /// # Errors
    /// [`MediaError::Unsupported`] (also when FFmpeg is not installed), [`MediaError::InvalidVideo`], [`MediaError::TooLarge`],
    /// [`MediaError::TooCostly`] at a limit of the decoder's, [`MediaError::Abandoned`] when nobody waits any more.
    pub fn open_for(
        bytes: Bytes,
        settings: &MediaSettings,
        patience: &Patience,
    ) -> Result<Self, MediaError> {
        if let Some(animation) = Animation::sniff(&bytes) {
            let end = patience.end(settings.video_timeout);
            let probed = animation.probe(settings, end);
            let (info, scratch_bytes) = in_time(probed, end, settings)?;
            return Ok(Self {
                info,
                stored: Stored::Animation(animation, scratch_bytes),
                settings: settings.clone(),
                patience: patience.clone(),
            });
        }
        let container = sniff(&bytes)?;
        let file = nameless(&bytes).map_err(MediaError::Internal)?;
        let job = Job {
            command: child::confined(&settings.ffprobe, probe::args(container), settings)?,
            input: &file,
            settings,
            patience,
        };
        let ended = child::run(job, |output| {
            child::read_all(output, probe::MAX_REPORT_BYTES).map_err(MediaError::Internal)
        })?;
        let report = output_of(ended, settings)?;
        let (info, rotation) = probe::read_report(&report, settings)?;
        Ok(Self {
            info,
            stored: Stored::File {
                container,
                rotation,
                file,
            },
            settings: settings.clone(),
            patience: patience.clone(),
        })
    }

    /// The frames at `indices` (ascending, repeats allowed), in order. Blocks on a child process, or decodes here.
    ///
    /// # Errors
    /// [`MediaError::InvalidVideo`] when the stream ends before the last index, [`MediaError::TooLarge`] when there are more than
    /// `max_frames` or they would not fit in memory, and those of [`VideoFile::open_for`].
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
        check_held(
            frames as u64,
            (self.info.width, self.info.height),
            &self.settings,
        )
    }

    /// Bytes that so many frames take while they are decoded and held, for whoever has to find room for them.
    pub fn held_bytes(&self, frames: usize) -> usize {
        let pixels = u64::from(self.info.width) * u64::from(self.info.height);
        let scratch_bytes = match &self.stored {
            Stored::File { .. } => 0,
            Stored::Animation(_, scratch_bytes) => *scratch_bytes,
        };
        let bytes = pixels
            .saturating_mul(3 * frames as u64)
            .saturating_add(scratch_bytes);
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    /// Decodes the frames at `wanted` (ascending, no repeats).
    fn decode(&self, wanted: &[u64]) -> Result<Vec<RgbImage>, MediaError> {
        let (container, rotation, file) = match &self.stored {
            Stored::Animation(animation, _) => {
                let end = self.patience.end(self.settings.video_timeout);
                let frames = animation.frames(wanted, &self.settings, end);
                return in_time(frames, end, &self.settings);
            }
            Stored::File {
                container,
                rotation,
                file,
            } => (*container, *rotation, file),
        };
        let (width, height) = (self.info.width, self.info.height);
        let args = ffmpeg::decode_args(&self.info, wanted, container, rotation);
        let job = Job {
            command: child::confined(&self.settings.ffmpeg, args, &self.settings)?,
            input: file,
            settings: &self.settings,
            patience: &self.patience,
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
        output_of(ended, &self.settings)
    }
}

/// What a child's output is, or why there is none.
fn output_of<T>(ended: Ended<T>, settings: &MediaSettings) -> Result<T, MediaError> {
    let too_costly = |limit, unit, setting| MediaError::TooCostly {
        limit,
        unit,
        setting,
    };
    Err(match ended {
        Ended::Well(output) => return Ok(output),
        Ended::Badly => damaged(),
        Ended::Abandoned => MediaError::Abandoned,
        Ended::TimedOut => {
            let limit = u64::try_from(settings.video_timeout.as_millis()).unwrap_or(u64::MAX);
            too_costly(limit, "milliseconds", "media.video_timeout_ms")
        }
        Ended::OutOfCpu => {
            let limit = settings.max_decoder_seconds;
            too_costly(limit, "seconds of CPU time", "media.max_decoder_seconds")
        }
        Ended::OutOfMemory => {
            let limit = settings.max_decoder_bytes;
            too_costly(limit, "bytes of memory", "media.max_decoder_bytes")
        }
    })
}

/// What came of decoding here, or that its end came first.
fn in_time<T>(
    result: Result<T, MediaError>,
    end: End<'_>,
    settings: &MediaSettings,
) -> Result<T, MediaError> {
    match result {
        // A decoder cannot say why it got no more bytes.
        Err(_) if end.has_come() => output_of(Ended::at(end), settings),
        result => result,
    }
}

/// A file of these bytes that can be read and no more, and that goes with its last descriptor, whatever happens to this process.
fn nameless(bytes: &[u8]) -> std::io::Result<File> {
    let named = tempfile::NamedTempFile::new()?;
    let readable = File::open(named.path())?;
    let (mut writable, path) = named.into_parts();
    path.close()?;
    writable.write_all(bytes)?;
    Ok(readable)
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
        Err(not_a_video("of no known format"))
    }
}

/// Refuses frames that would not fit in memory together.
fn check_held(
    frames: u64,
    (width, height): (u32, u32),
    settings: &MediaSettings,
) -> Result<(), MediaError> {
    check_pixels(
        frames.saturating_mul(u64::from(width) * u64::from(height)),
        settings,
    )
}

/// Refuses more pixels than all frames of a video may have together.
fn check_pixels(pixels: u64, settings: &MediaSettings) -> Result<(), MediaError> {
    let limit = settings.max_pixels.saturating_mul(HELD_PICTURES);
    if pixels > limit {
        return Err(MediaError::TooLarge {
            what: "size of the video in pixels (frames x width x height)",
            value: pixels,
            limit,
        });
    }
    Ok(())
}

fn not_a_video(found: &str) -> MediaError {
    MediaError::Unsupported {
        reason: format!(
            "the video is {found}: this server reads mp4, mov, webm and mkv files, animated GIF and WebP, and lists of frames"
        ),
    }
}

fn damaged() -> MediaError {
    MediaError::InvalidVideo {
        reason: "the video is cut short or damaged".to_owned(),
    }
}

#[cfg(test)]
mod tests;
