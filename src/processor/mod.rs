//! From decoded parts to a [`Sequence`]: prompt, tokens, patches, M-RoPE positions.
//!
//! # Source
//! The official embedding script (QwenLM/Qwen3-VL-Embedding `src/models/qwen3_vl_embedding.py`, 8ce3aab),
//! qwen-vl-utils 0.0.14 and transformers 4.57.

mod draft;
pub mod error;
mod linear_split;
mod overflow;
mod pair;
mod patches;
mod positions;
mod rendered;
mod resize;
mod sampling;
mod smart_resize;
mod template;
#[cfg(test)]
mod tests;
mod text_tokenizer;

pub use error::ProcessorError;
pub use pair::{DocumentLimit, PairHead, Query, pair_template};

use std::sync::Arc;

pub(crate) use patches::{FRAMES, MERGE, PATCH};
pub(crate) use resize::RESAMPLE;
use resize::pillow_bicubic;
pub(crate) use smart_resize::{FILE_TOTAL_PIXELS, LIST_TOTAL_PIXELS};
use smart_resize::{IMAGE_FACTOR, smart_resize};
use template::Template;

use crate::media::RgbImage;
use crate::model::{ModelConfig, Patches, Sequence};

/// Pixel and frame limits of one part; the reference's values by default.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PixelOptions {
    /// Smallest area an image is resized to, in pixels.
    pub min_pixels: u64,
    /// Largest area an image is resized to, in pixels.
    pub max_pixels: u64,
    /// Frames per second sampled from a video file.
    pub fps: f64,
    /// Most frames taken from a video file or a frame list.
    pub max_frames: usize,
    /// Pixels of all frames together. `None`: the reference's value for the kind of video.
    pub total_pixels: Option<u64>,
    /// Which frames of a video file come into question, and how many of them.
    pub excerpt: Excerpt,
}

/// A part of a video file; by default the whole, sampled by `fps`.
///
/// # Source
/// `video_start`, `video_end` and `nframes` of qwen-vl-utils 0.0.14.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Excerpt {
    /// Where it begins, in seconds.
    pub start: Option<f64>,
    /// Where it ends, in seconds.
    pub end: Option<f64>,
    /// How many frames are taken, whatever `fps` and `max_frames` say; an odd number is rounded to an even one.
    pub num_frames: Option<u64>,
}

impl Default for PixelOptions {
    fn default() -> Self {
        // Source: MIN_PIXELS, MAX_PIXELS, FPS, MAX_FRAMES of the official script.
        Self {
            min_pixels: 4096,
            max_pixels: 1_843_200,
            fps: 1.0,
            max_frames: 64,
            total_pixels: None,
            excerpt: Excerpt::default(),
        }
    }
}

/// A video, cut into patches, with the time of each frame pair.
#[derive(Debug, Clone, PartialEq)]
pub struct VideoPatches {
    /// Grid and pixels; `grid.t` frame pairs.
    pub patches: Arc<Patches>,
    /// `[grid.t]`, in seconds: the mean of the first and the last frame time of the pair.
    pub timestamps: Vec<f64>,
}

/// One part of the user's turn, media already patched.
#[derive(Debug, Clone, PartialEq)]
pub enum PromptPart {
    /// Text, verbatim; special-token strings in it stay text.
    Text(String),
    /// Token ids, taken as they are (checked against the vocabulary).
    TokenIds(Vec<u32>),
    /// An image.
    Image(Arc<Patches>),
    /// A video.
    Video(VideoPatches),
}

/// One input, ready to be rendered.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Prompt {
    /// The system turn; `None` or blank is the default instruction.
    pub instruction: Option<String>,
    /// The user turn, in order. Empty is the text `NULL`.
    pub parts: Vec<PromptPart>,
    /// No template: the parts alone, then the tokenizer's post-processing.
    pub raw: bool,
}

/// What happens to an input that is too long.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Truncation {
    /// It is refused.
    #[default]
    None,
    /// User text is cut at its end; the template's tail and the pooled token stay.
    End,
    /// User text is cut at its start.
    Start,
    /// As the reference script does: the whole prompt is cut at the right, the tail goes, the post-processor's tokens stay.
    Reference,
}

/// How many tokens an input may have, and what happens beyond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContextLimit {
    /// Most tokens, media and post-processor included.
    pub max_tokens: usize,
    /// What happens beyond.
    pub truncation: Truncation,
}

/// Tokens of one prepared input, by modality.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TokenCounts {
    /// Template, instruction, text, timestamps and post-processor.
    pub text_tokens: usize,
    /// Merged image tokens.
    pub image_tokens: usize,
    /// Merged video tokens.
    pub video_tokens: usize,
}

impl TokenCounts {
    /// All of them.
    pub fn total(self) -> usize {
        self.text_tokens + self.image_tokens + self.video_tokens
    }
}

/// Tokens of one part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PartTokens {
    /// Those of the prompt that begin in it: its text, or its media with the tokens around them and the times of its frames.
    pub tokens: usize,
    /// Those truncation took; of a text far over the limit only those that were looked at.
    pub cut: usize,
}

/// A rendered, tokenised, positioned input.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// What the encoder eats.
    pub sequence: Sequence,
    /// Its tokens by modality.
    pub tokens: TokenCounts,
    /// One for each part of the prompt; what of `tokens` is in none of them is the template's and the post-processor's.
    pub parts: Vec<PartTokens>,
    /// Whether text was cut.
    pub truncated: bool,
}

/// What the processor needs of the checkpoint's `config.json`: the ids it places itself, and how many the model has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VisionTokenIds {
    /// `vocab_size`: rows of the embedding table.
    pub vocab_size: usize,
    /// `image_token_id`.
    pub image_token_id: u32,
    /// `video_token_id`.
    pub video_token_id: u32,
    /// `vision_start_token_id`.
    pub vision_start_token_id: u32,
    /// `vision_end_token_id`.
    pub vision_end_token_id: u32,
}

impl From<&ModelConfig> for VisionTokenIds {
    fn from(config: &ModelConfig) -> Self {
        VisionTokenIds {
            vocab_size: config.text.vocab_size,
            image_token_id: config.image_token_id,
            video_token_id: config.video_token_id,
            vision_start_token_id: config.vision_start_token_id,
            vision_end_token_id: config.vision_end_token_id,
        }
    }
}

/// The tokenizer and the template of one checkpoint.
#[derive(Debug)]
pub struct Processor {
    template: Template,
}

impl Processor {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// [`ProcessorError::Tokenizer`] when it cannot be read, lacks a template token or disagrees with `config.json`'s ids.
    pub fn new(tokenizer_json: &[u8], ids: VisionTokenIds) -> Result<Self, ProcessorError> {
        Ok(Processor {
            template: Template::new(tokenizer_json, ids)?,
        })
    }

    /// Resizes and patches an image.
    ///
    /// # Errors
    /// [`ProcessorError::AspectRatio`], [`ProcessorError::TooFewPixels`].
    pub fn image(
        &self,
        image: &RgbImage,
        options: &PixelOptions,
    ) -> Result<Patches, ProcessorError> {
        let bounds = (options.min_pixels as f64, options.max_pixels as f64);
        let (width, height) = smart_resize(image.dimensions(), IMAGE_FACTOR, bounds)?;
        let resized = pillow_bicubic(image, width, height);
        // The reference shows an image as two equal frames.
        Ok(patches::cut(&[&resized, &resized]))
    }

    /// Refuses frames of a shape that would not be resized, before they are decoded.
    ///
    /// # Errors
    /// [`ProcessorError::AspectRatio`].
    pub fn check_aspect(&self, size: (u32, u32)) -> Result<(), ProcessorError> {
        smart_resize::check_aspect(size)
    }

    /// Which frames of a file of `frames` frames at `fps` frames per second are taken, ascending.
    ///
    /// # Errors
    /// [`ProcessorError::TooFewFrames`], [`ProcessorError::Excerpt`].
    pub fn sample_file(
        &self,
        frames: u64,
        fps: f64,
        options: &PixelOptions,
    ) -> Result<Vec<u64>, ProcessorError> {
        sampling::sample_file(frames, fps, options)
    }

    /// Which frames of a list of `frames` are taken, ascending.
    pub fn sample_list(&self, frames: usize, options: &PixelOptions) -> Vec<usize> {
        sampling::sample_list(frames, options.max_frames)
    }

    /// Resizes and patches the sampled frames of a file; `indices` and `fps` give the timestamps.
    ///
    /// # Errors
    /// [`ProcessorError::AspectRatio`], [`ProcessorError::TooFewFrames`], [`ProcessorError::FrameSizes`].
    pub fn file_video(
        &self,
        frames: &[RgbImage],
        indices: &[u64],
        fps: f64,
        options: &PixelOptions,
    ) -> Result<VideoPatches, ProcessorError> {
        // Other frames than were asked for would get wrong times.
        if frames.len() != indices.len() {
            return Err(ProcessorError::TooFewFrames {
                frames: frames.len() as u64,
                minimum: indices.len() as u64,
            });
        }
        let total = options.total_pixels.unwrap_or(FILE_TOTAL_PIXELS);
        let mut frames: Vec<&RgbImage> = frames.iter().collect();
        let mut times = times(indices, fps);
        // Sampling gives whole pairs. Should a caller not: the last frame counts twice, at the same time.
        if frames.len() % 2 == 1 {
            frames.extend(frames.last().copied());
            times.extend(times.last().copied());
        }
        patches::video(&frames, total, &times)
    }

    /// Resizes and patches a frame list, already subsampled by [`Self::sample_list`], shown at `fps` frames per second.
    ///
    /// # Errors
    /// [`ProcessorError::AspectRatio`], [`ProcessorError::TooFewFrames`], [`ProcessorError::FrameSizes`].
    pub fn list_video(
        &self,
        frames: &[RgbImage],
        fps: f64,
        options: &PixelOptions,
    ) -> Result<VideoPatches, ProcessorError> {
        let first = frames
            .iter()
            .map(patches::first_resize)
            .collect::<Result<Vec<RgbImage>, ProcessorError>>()?;
        let mut all: Vec<&RgbImage> = first.iter().collect();
        // The reference completes the last pair by showing the last frame twice.
        if all.len() % 2 == 1 {
            all.extend(first.last());
        }
        let indices: Vec<u64> = (0..all.len() as u64).collect();
        let total = options.total_pixels.unwrap_or(LIST_TOTAL_PIXELS);
        patches::video(&all, total, &times(&indices, fps))
    }

    /// The prompt as a person reads it: placeholders not expanded, without the post-processor's tokens.
    ///
    /// # Errors
    /// [`ProcessorError::Tokenizer`] when token ids of it cannot be decoded.
    pub fn render(&self, prompt: &Prompt) -> Result<String, ProcessorError> {
        self.template.render(prompt)
    }

    /// The template around an input, as a person reads it, with `{instruction}` and `{input}` where those go.
    pub fn template_text(&self) -> String {
        let prompt = Prompt {
            instruction: Some("{instruction}".to_owned()),
            parts: vec![PromptPart::Text("{input}".to_owned())],
            raw: false,
        };
        // Only token ids can fail to be rendered.
        self.render(&prompt).unwrap_or_default()
    }

    /// Renders, tokenises and positions one input.
    ///
    /// # Errors
    /// [`ProcessorError::TooLong`], [`ProcessorError::TokenId`], [`ProcessorError::Empty`].
    pub fn prepare(
        &self,
        prompt: &Prompt,
        limit: ContextLimit,
    ) -> Result<Prepared, ProcessorError> {
        self.template.prepare(prompt, limit)
    }

    /// The same, where the input's own text has a limit too.
    ///
    /// # Errors
    /// As [`Processor::prepare`].
    pub fn prepare_document(
        &self,
        prompt: &Prompt,
        limit: DocumentLimit,
    ) -> Result<Prepared, ProcessorError> {
        self.template.prepare_document(prompt, limit)
    }
}

/// When each frame is shown, in seconds.
fn times(indices: &[u64], fps: f64) -> Vec<f64> {
    indices.iter().map(|&index| index as f64 / fps).collect()
}
