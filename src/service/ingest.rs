//! Decodes, resizes, patches and tokenises one input: blocking work, for the bounded pool.
//!
//! In: an [`EmbedInput`] and the bytes of its media. Out: a [`Prepared`] sequence, or which part is at fault.

use std::sync::Arc;

use bytes::Bytes;

use super::{Cause, EmbedInput, ServiceError};
use crate::media::video::VideoFile;
use crate::media::{self, MediaError, MediaSettings, RgbImage};
use crate::processor::{PixelOptions, Prepared, Processor, ProcessorError, Prompt, PromptPart};

/// A part whose bytes are here.
pub(super) enum Loaded {
    Ready(PromptPart),
    Image(Bytes, PixelOptions),
    VideoFile(Bytes, PixelOptions),
    /// Each with its place in the list.
    Frames(Vec<(usize, Bytes)>, f64, PixelOptions),
}

/// Prepares an input.
///
/// # Errors
/// [`ServiceError`] with the path of the part at fault.
pub(super) fn prepare(
    processor: &Processor,
    media: &MediaSettings,
    input: EmbedInput,
    parts: Vec<Loaded>,
) -> Result<Prepared, ServiceError> {
    let mut prompt = Prompt {
        instruction: input.instruction,
        parts: Vec::with_capacity(parts.len()),
        raw: input.raw,
    };
    for (part, loaded) in input.parts.iter().zip(parts) {
        let video = matches!(loaded, Loaded::VideoFile(..) | Loaded::Frames(..));
        let patched = patch(processor, media, loaded);
        prompt
            .parts
            .push(patched.map_err(|fault| fault.located(&part.at, video))?);
    }
    processor
        .prepare(&prompt, input.limit)
        .map_err(|error| ServiceError {
            at: Some(input.at),
            cause: Cause::Processor {
                error,
                video: false,
            },
        })
}

/// What a part's pixels can fail with; frames know which of them it was.
enum PatchFault {
    Media(Option<usize>, MediaError),
    Processor(ProcessorError),
}

impl From<MediaError> for PatchFault {
    fn from(error: MediaError) -> Self {
        PatchFault::Media(None, error)
    }
}

impl From<ProcessorError> for PatchFault {
    fn from(error: ProcessorError) -> Self {
        PatchFault::Processor(error)
    }
}

impl PatchFault {
    fn located(self, at: &str, video: bool) -> ServiceError {
        match self {
            PatchFault::Media(frame, error) => {
                let at = frame.map_or_else(|| at.to_owned(), |frame| format!("{at}[{frame}]"));
                ServiceError {
                    at: Some(at),
                    cause: error.into(),
                }
            }
            PatchFault::Processor(error) => ServiceError {
                at: Some(at.to_owned()),
                cause: Cause::Processor { error, video },
            },
        }
    }
}

fn patch(
    processor: &Processor,
    media: &MediaSettings,
    loaded: Loaded,
) -> Result<PromptPart, PatchFault> {
    Ok(match loaded {
        Loaded::Ready(part) => part,
        Loaded::Image(bytes, options) => {
            let image = media::image::decode(&bytes, media)?;
            PromptPart::Image(Arc::new(processor.image(&image, &options)?))
        }
        Loaded::VideoFile(bytes, options) => {
            let video = VideoFile::open(bytes, media)?;
            let indices = processor.sample_file(video.info.frames, video.info.fps, &options)?;
            let frames = video.frames(&indices)?;
            PromptPart::Video(processor.file_video(&frames, &indices, video.info.fps, &options)?)
        }
        Loaded::Frames(frames, fps, options) => {
            let decode = |(i, bytes): &(usize, Bytes)| {
                media::image::decode(bytes, media)
                    .map_err(|error| PatchFault::Media(Some(*i), error))
            };
            let frames = frames
                .iter()
                .map(decode)
                .collect::<Result<Vec<RgbImage>, _>>()?;
            PromptPart::Video(processor.list_video(&frames, fps, &options)?)
        }
    })
}
