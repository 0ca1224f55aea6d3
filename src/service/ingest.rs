//! Decodes, resizes, patches and tokenises one input: blocking work, for the bounded pool.
//!
//! In: an [`EmbedInput`] and the bytes of its media. Out: a [`Prepared`] sequence, or which part is at fault; and, for those who ask,
//! what became of each part. Room for the pixels of a part is taken before it is decoded, by its header, and given back when only its
//! patches are left.

use std::sync::Arc;

use bytes::Bytes;

use super::account::{Explained, PartFacts, VideoFacts};
use super::{Cause, EmbedInput, InputPart, PartContent, ServiceError};
use crate::batcher::{BatcherError, Held};
use crate::media::video::{Patience, VideoFile};
use crate::media::{self, MediaError, MediaSettings, RgbImage};
use crate::processor::{
    DocumentLimit, PixelOptions, Prepared, Processor, ProcessorError, Prompt, PromptPart,
};

/// Texts up to this many bytes together, instructions included, are prepared where they are: two changes of threads would take longer.
/// A tokenizer reads a megabyte a second at the very least, so this is a millisecond at most.
const SMALL_BYTES: usize = 1024;
/// What the template adds to each input, as bytes of text.
const TEMPLATE_BYTES: usize = 64;
/// A part whose bytes are here.
pub(super) enum Loaded {
    Ready(PromptPart),
    Image(Bytes, PixelOptions),
    VideoFile(Bytes, PixelOptions),
    /// Each with its place in the list.
    Frames(Vec<(usize, Bytes)>, f64, PixelOptions),
}

/// Whether any of them has pixels.
pub(super) fn has_media(parts: &[Loaded]) -> bool {
    !parts.iter().all(|part| matches!(part, Loaded::Ready(_)))
}

/// How much there is to prepare, as far as it shows from outside.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Extent {
    /// Bytes of text. A token id counts for the four bytes it stands for in English.
    pub(super) text_bytes: usize,
    /// Pictures and videos.
    pub(super) media: usize,
}

impl Extent {
    /// Of inputs: each has the template, too.
    pub(super) fn of(inputs: &[EmbedInput]) -> Self {
        let mut extent = Extent::default();
        for input in inputs {
            extent.text_bytes += TEMPLATE_BYTES + input.instruction.as_ref().map_or(0, String::len);
            extent.add_parts(&input.parts);
        }
        extent
    }

    /// Counts parts.
    pub(super) fn add_parts(&mut self, parts: &[InputPart]) {
        for part in parts {
            match &part.content {
                PartContent::Text(text) => self.text_bytes += text.len(),
                PartContent::TokenIds(ids) => self.text_bytes += 4 * ids.len(),
                PartContent::Image(..) | PartContent::VideoFile(..) | PartContent::Frames(..) => {
                    self.media += 1;
                }
            }
        }
    }

    /// Whether that is so little work that it need not leave the async threads.
    pub(super) fn is_small(self) -> bool {
        self.media == 0 && self.text_bytes <= SMALL_BYTES
    }
}

/// What preparing needs besides the input itself.
pub(super) struct Means<'a> {
    pub(super) processor: &'a Processor,
    pub(super) media: &'a MediaSettings,
    /// How long the request waits for its videos.
    pub(super) patience: &'a Patience,
    /// Finds room for so many bytes of pixels.
    pub(super) hold: &'a dyn Fn(usize) -> Result<Held, BatcherError>,
}

/// Prepares an input.
///
/// # Errors
/// [`ServiceError`] with the path of the part at fault.
pub(super) fn prepare(
    means: &Means<'_>,
    input: EmbedInput,
    parts: Vec<Loaded>,
) -> Result<Prepared, ServiceError> {
    let (prompt, _) = prompt(means, &input, parts)?;
    means
        .processor
        .prepare_document(&prompt, limit_of(&input))
        .map_err(|error| ServiceError::unprepared(input.at, error))
}

/// Prepares an input and tells what became of it, instead of what the encoder would need.
///
/// # Errors
/// Those of [`prepare`].
pub(super) fn explain(
    means: &Means<'_>,
    input: EmbedInput,
    parts: Vec<Loaded>,
) -> Result<Explained, ServiceError> {
    let (prompt, facts) = prompt(means, &input, parts)?;
    let failed = |error| ServiceError::unprepared(input.at.clone(), error);
    let prepared = means
        .processor
        .prepare_document(&prompt, limit_of(&input))
        .map_err(failed)?;
    let rendered = means.processor.render(&prompt).map_err(failed)?;
    Ok(Explained::new(&input, rendered, &prepared, facts))
}

fn limit_of(input: &EmbedInput) -> DocumentLimit {
    DocumentLimit {
        context: input.limit,
        max_document_tokens: input.max_text_tokens,
    }
}

/// An input as the template sees it, and what became of each of its parts.
fn prompt(
    means: &Means<'_>,
    input: &EmbedInput,
    parts: Vec<Loaded>,
) -> Result<(Prompt, Vec<PartFacts>), ServiceError> {
    let (parts, facts) = patched(means, &input.parts, parts)?;
    let prompt = Prompt {
        instruction: input.instruction.clone(),
        parts,
        raw: input.raw,
    };
    Ok((prompt, facts))
}

/// Decodes and patches parts, in order, and tells what became of each.
///
/// # Errors
/// [`ServiceError`] with the path of the part at fault.
pub(super) fn patched(
    means: &Means<'_>,
    parts: &[InputPart],
    loaded: Vec<Loaded>,
) -> Result<(Vec<PromptPart>, Vec<PartFacts>), ServiceError> {
    let patched = parts.iter().zip(loaded).map(|(part, loaded)| {
        let video = matches!(loaded, Loaded::VideoFile(..) | Loaded::Frames(..));
        let patched = patch(means, loaded);
        patched.map_err(|fault| fault.located(&part.at, video))
    });
    patched.collect()
}

/// What a part's pixels can fail with; frames know which of them it was.
enum PatchFault {
    Media(Option<usize>, MediaError),
    Processor(ProcessorError),
    NoRoom(BatcherError),
}

impl From<BatcherError> for PatchFault {
    fn from(error: BatcherError) -> Self {
        PatchFault::NoRoom(error)
    }
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
            PatchFault::NoRoom(error) => ServiceError::at(at, error),
        }
    }
}

fn patch(means: &Means<'_>, loaded: Loaded) -> Result<(PromptPart, PartFacts), PatchFault> {
    let (processor, media) = (means.processor, means.media);
    Ok(match loaded {
        Loaded::Ready(part) => (part, PartFacts::Text),
        Loaded::Image(bytes, options) => {
            let _held = (means.hold)(media::image::held_bytes(&bytes, media)?)?;
            let image = media::image::decode(&bytes, media)?;
            let patches = processor.image(&image, &options)?;
            let facts = PartFacts::Image {
                size: image.dimensions(),
                grid: patches.grid,
            };
            (PromptPart::Image(Arc::new(patches)), facts)
        }
        Loaded::VideoFile(bytes, options) => {
            let video = VideoFile::open_for(bytes, media, means.patience)?;
            processor.check_aspect((video.info.width, video.info.height))?;
            let (frames, fps) = (video.info.frames, video.info.fps);
            let indices = processor.sample_file(frames, fps, &options)?;
            let _held = (means.hold)(video.held_bytes(indices.len()))?;
            let decoded = video.frames(&indices)?;
            let video = processor.file_video(&decoded, &indices, fps, &options)?;
            let facts = VideoFacts::new(&decoded, (frames, fps), indices, &video);
            (PromptPart::Video(video), PartFacts::Video(facts))
        }
        Loaded::Frames(frames, fps, options) => {
            let at = |i: usize| move |error| PatchFault::Media(Some(i), error);
            let mut room = 0_usize;
            for (i, bytes) in &frames {
                let own = media::image::held_bytes(bytes, media).map_err(at(*i))?;
                room = room.saturating_add(own);
            }
            let _held = (means.hold)(room)?;
            let decode =
                |(i, bytes): &(usize, Bytes)| media::image::decode(bytes, media).map_err(at(*i));
            let decoded = frames
                .iter()
                .map(decode)
                .collect::<Result<Vec<RgbImage>, _>>()?;
            let video = processor.list_video(&decoded, fps, &options)?;
            // The model is told the times of the frames that are shown, as if the list had no others.
            let indices = (0..decoded.len() as u64).collect();
            let mut facts = VideoFacts::new(&decoded, (decoded.len() as u64, fps), indices, &video);
            facts.indices = frames.iter().map(|(i, _)| *i as u64).collect();
            (PromptPart::Video(video), PartFacts::Video(facts))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processor::{ContextLimit, PixelOptions, Truncation};

    fn input(parts: Vec<PartContent>) -> EmbedInput {
        let part = |content| InputPart {
            at: String::new(),
            content,
        };
        EmbedInput {
            at: String::new(),
            instruction: None,
            parts: parts.into_iter().map(part).collect(),
            raw: false,
            limit: ContextLimit {
                max_tokens: 100,
                truncation: Truncation::None,
            },
            max_text_tokens: None,
        }
    }

    #[test]
    fn only_a_few_short_texts_are_small() {
        let text = |bytes: usize| PartContent::Text("a".repeat(bytes));
        let frames = || PartContent::Frames(Vec::new(), 1.0, PixelOptions::default());
        let is_small = |inputs: &[EmbedInput]| Extent::of(inputs).is_small();
        assert!(is_small(&[input(vec![text(900)])]));
        assert!(is_small(&[input(vec![text(400), text(400)])]));
        let ids = |count| PartContent::TokenIds(vec![1; count]);
        assert!(is_small(&[input(vec![ids(200)])]) && !is_small(&[input(vec![ids(300)])]));
        assert!(!is_small(&[input(vec![text(1024)])]));
        assert!(!is_small(&[input(vec![text(8), frames()])]));
        assert!(!is_small(&vec![input(vec![text(1)]); 20]));
        let mut instructed = input(vec![text(1)]);
        instructed.instruction = Some("a".repeat(1024));
        assert!(!is_small(&[instructed]));
    }
}
