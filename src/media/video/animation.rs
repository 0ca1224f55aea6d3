//! Animated GIF and WebP as videos: every frame as it is shown, transparency on white.
//!
//! In: the bytes. Out: count and rate of the frames, and those asked for. Decoded here, by the Rust decoders that read such pictures
//! anyway, so nothing has to be installed. Every frame up to the last one wanted is decoded, for each paints over those before it: their
//! number is limited as that of a list's frames is.
//!
//! No process can be killed here, so the end of the time is looked for before each frame, and each time a decoder wants more bytes. Only a
//! lossy frame of a WebP has all of its bytes at once, and is finished.
//!
//! Differs from the reference: it reads a GIF through FFmpeg and an animated WebP not at all. The frames of a GIF are the same.

use std::io::{BufReader, Cursor};
use std::num::NonZeroU64;

use ::gif::{
    ColorOutput, DecodeOptions, Decoder, DecodingError, DisposalMethod, Frame, MemoryLimit,
};
use bytes::Bytes;
use image_webp::WebPDecoder;

use super::patience::{End, Patient};
use super::{VideoInfo, check_held, check_pixels, damaged, not_a_video};
use crate::media::image::{assemble, check_size, flatten_on_white, gif_is_whole, webp_is_whole};
use crate::media::{MediaError, MediaSettings, RgbImage};

/// How long a frame is shown that says nothing or less than browsers take for an oversight, in hundredths of a second.
///
/// # Source
/// FFmpeg's `gifdec.c`: `GIF_DEFAULT_DELAY`, `GIF_MIN_DELAY`.
const DEFAULT_DELAY: u64 = 10;
const MIN_DELAY: u64 = 2;

/// An animated picture.
#[derive(Debug)]
pub(super) enum Animation {
    Gif(Bytes),
    WebP(Bytes),
}

impl Animation {
    /// By the first bytes, when they are those of a picture that may be animated.
    pub(super) fn sniff(bytes: &Bytes) -> Option<Self> {
        if bytes.starts_with(b"GIF87a") || bytes.starts_with(b"GIF89a") {
            Some(Self::Gif(bytes.clone()))
        } else if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
            Some(Self::WebP(bytes.clone()))
        } else {
            None
        }
    }

    /// Counts the frames and their time; nothing is decoded. The second is how many bytes decoding them takes besides what is wanted of
    /// them: the canvas, what it was before, and the samples of the largest frame.
    ///
    /// # Errors
    /// [`MediaError::InvalidVideo`], also at the end of the time, [`MediaError::TooLarge`], [`MediaError::Unsupported`] for a picture that
    /// does not move.
    pub(super) fn probe(
        &self,
        settings: &MediaSettings,
        end: End<'_>,
    ) -> Result<(VideoInfo, u64), MediaError> {
        let Probed {
            size: (width, height),
            frames,
            seconds,
            largest_pixels,
        } = match self {
            Self::Gif(bytes) => probe_gif(bytes, settings, end)?,
            Self::WebP(bytes) => probe_webp(bytes, settings, end)?,
        };
        let most = settings.max_frames as u64;
        if frames > most {
            return Err(too_many(frames, most));
        }
        check_held(frames, (width, height), settings)?;
        if seconds > settings.max_video_seconds {
            return Err(MediaError::TooLarge {
                what: "length of the video in seconds",
                value: seconds.ceil() as u64,
                limit: settings.max_video_seconds as u64,
            });
        }
        let rate = if seconds > 0.0 {
            frames as f64 / seconds
        } else {
            100.0 / DEFAULT_DELAY as f64
        };
        let info = VideoInfo {
            frames,
            fps: rate,
            width,
            height,
        };
        let canvas_pixels = u64::from(width) * u64::from(height);
        Ok((info, 8 * canvas_pixels + 5 * largest_pixels))
    }

    /// The frames at `wanted` (ascending, no repeats).
    ///
    /// # Errors
    /// [`MediaError::InvalidVideo`], also at the end of the time.
    pub(super) fn frames(
        &self,
        wanted: &[u64],
        settings: &MediaSettings,
        end: End<'_>,
    ) -> Result<Vec<RgbImage>, MediaError> {
        match self {
            Self::Gif(bytes) => gif_frames(bytes, wanted, settings, end),
            Self::WebP(bytes) => webp_frames(bytes, wanted, settings, end),
        }
    }
}

fn too_many(frames: u64, limit: u64) -> MediaError {
    MediaError::TooLarge {
        what: "number of frames",
        value: frames,
        limit,
    }
}

fn open_gif<'a>(
    bytes: &'a [u8],
    settings: &MediaSettings,
    end: End<'a>,
    only_headers: bool,
) -> Result<Decoder<Patient<'a, &'a [u8]>>, MediaError> {
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::RGBA);
    options.skip_frame_decoding(only_headers);
    options.allow_unknown_blocks(true);
    let limit = settings.max_pixels.saturating_mul(4);
    options.set_memory_limit(
        NonZeroU64::new(limit).map_or(MemoryLimit::Unlimited, MemoryLimit::Bytes),
    );
    options
        .read_info(Patient::new(bytes, end))
        .map_err(|_: DecodingError| damaged())
}

/// What a look at the headers tells.
struct Probed {
    size: (u32, u32),
    frames: u64,
    seconds: f64,
    /// Pixels of the largest frame: that of a GIF may be larger than its canvas.
    largest_pixels: u64,
}

fn probe_gif(bytes: &[u8], settings: &MediaSettings, end: End<'_>) -> Result<Probed, MediaError> {
    let mut decoder = open_gif(bytes, settings, end, true)?;
    let size = (u32::from(decoder.width()), u32::from(decoder.height()));
    check_size(size.0, size.1, settings)?;
    let (mut frames, mut hundredths) = (0, 0);
    let (mut painted_pixels, mut largest_pixels) = (0, 0);
    let most = settings.max_frames as u64;
    while let Some(frame) = decoder.next_frame_info().map_err(|_| damaged())? {
        frames += 1;
        if frames > most {
            return Err(too_many(frames, most));
        }
        // All of a frame is decoded, however little of it lies on the canvas.
        let (width, height) = (u32::from(frame.width), u32::from(frame.height));
        let pixels = u64::from(width) * u64::from(height);
        if pixels > 0 {
            check_size(width, height, settings)?;
        }
        largest_pixels = pixels.max(largest_pixels);
        painted_pixels += pixels;
        check_pixels(painted_pixels, settings)?;
        let delay = u64::from(frame.delay);
        hundredths += if delay < MIN_DELAY {
            DEFAULT_DELAY
        } else {
            delay
        };
    }
    if frames == 0 || !gif_is_whole(bytes) {
        return Err(damaged());
    }
    Ok(Probed {
        size,
        frames,
        seconds: hundredths as f64 / 100.0,
        largest_pixels,
    })
}

fn gif_frames(
    bytes: &[u8],
    wanted: &[u64],
    settings: &MediaSettings,
    end: End<'_>,
) -> Result<Vec<RgbImage>, MediaError> {
    let mut decoder = open_gif(bytes, settings, end, false)?;
    let (width, height) = (usize::from(decoder.width()), usize::from(decoder.height()));
    let mut canvas = vec![0; width * height * 4];
    let mut shown = Vec::with_capacity(wanted.len());
    let mut samples = Vec::new();
    for index in 0..=wanted.last().copied().unwrap_or(0) {
        if end.has_come() {
            return Err(damaged());
        }
        let next = decoder.next_frame_info().map_err(|_| damaged())?;
        let frame = next.ok_or_else(damaged)?.clone();
        samples.resize(decoder.buffer_size(), 0);
        if !samples.is_empty() {
            decoder
                .read_into_buffer(&mut samples)
                .map_err(|_| damaged())?;
        }
        let before = (frame.dispose == DisposalMethod::Previous).then(|| canvas.clone());
        paint(&mut canvas, width, &frame, |at, below: &mut [u8]| {
            let sample = &samples[at * 4..at * 4 + 4];
            if sample[3] != 0 {
                below.copy_from_slice(sample);
            }
        });
        if wanted.get(shown.len()) == Some(&index) {
            shown.push(assemble(
                width as u32,
                height as u32,
                flatten_on_white(&canvas),
            )?);
        }
        match before {
            Some(before) => canvas = before,
            None if frame.dispose == DisposalMethod::Background => {
                paint(&mut canvas, width, &frame, |_, below| below.fill(0));
            }
            None => {}
        }
    }
    Ok(shown)
}

/// Calls `change` for each pixel of a frame that is on the canvas: with its place in the frame, and what the canvas holds there.
fn paint(canvas: &mut [u8], width: usize, frame: &Frame, mut change: impl FnMut(usize, &mut [u8])) {
    let (left, frame_width) = (usize::from(frame.left), usize::from(frame.width));
    let lines = canvas
        .chunks_exact_mut(width * 4)
        .skip(usize::from(frame.top));
    for (y, line) in lines.take(usize::from(frame.height)).enumerate() {
        let pixels = line.chunks_exact_mut(4).skip(left).take(frame_width);
        for (x, pixel) in pixels.enumerate() {
            change(y * frame_width + x, pixel);
        }
    }
}

/// A decoder that gets bytes as long as there is time.
type WebP<'a> = WebPDecoder<BufReader<Patient<'a, Cursor<&'a [u8]>>>>;

fn open_webp<'a>(
    bytes: &'a [u8],
    settings: &MediaSettings,
    end: End<'a>,
) -> Result<WebP<'a>, MediaError> {
    if !webp_is_whole(bytes) {
        return Err(damaged());
    }
    let source = BufReader::new(Patient::new(Cursor::new(bytes), end));
    let mut decoder = WebPDecoder::new(source).map_err(|_| damaged())?;
    let (width, height) = decoder.dimensions();
    check_size(width, height, settings)?;
    if !decoder.is_animated() {
        return Err(not_a_video(
            "a WebP picture that does not move: send it as an image",
        ));
    }
    // What is not painted shows white, as it does in a picture.
    let _ = decoder.set_background_color([0; 4]);
    Ok(decoder)
}

fn probe_webp(bytes: &[u8], settings: &MediaSettings, end: End<'_>) -> Result<Probed, MediaError> {
    let decoder = open_webp(bytes, settings, end)?;
    let (width, height) = decoder.dimensions();
    Ok(Probed {
        size: (width, height),
        frames: u64::from(decoder.num_frames()),
        seconds: decoder.loop_duration() as f64 / 1000.0,
        // A frame lies within the canvas, or the decoder refuses it.
        largest_pixels: u64::from(width) * u64::from(height),
    })
}

fn webp_frames(
    bytes: &[u8],
    wanted: &[u64],
    settings: &MediaSettings,
    end: End<'_>,
) -> Result<Vec<RgbImage>, MediaError> {
    let mut decoder = open_webp(bytes, settings, end)?;
    let (width, height) = decoder.dimensions();
    let size = decoder.output_buffer_size().ok_or_else(damaged)?;
    let mut samples = vec![0; size];
    let mut shown = Vec::with_capacity(wanted.len());
    for index in 0..=wanted.last().copied().unwrap_or(0) {
        if end.has_come() {
            return Err(damaged());
        }
        decoder.read_frame(&mut samples).map_err(|_| damaged())?;
        if wanted.get(shown.len()) == Some(&index) {
            let rgb = if decoder.has_alpha() {
                flatten_on_white(&samples)
            } else {
                samples.clone()
            };
            shown.push(assemble(width, height, rgb)?);
        }
    }
    Ok(shown)
}
