//! From decoded parts to a [`Sequence`](crate::model::Sequence): prompt, tokens, patches, M-RoPE positions.
//!
//! # Source
//! `shared` steps of the official embedding script (QwenLM/Qwen3-VL-Embedding `src/models/qwen3_vl_embedding.py`, 8ce3aab),
//! qwen-vl-utils 0.0.14 and transformers 4.57.

pub mod error;

pub use error::ProcessorError;

use std::sync::Arc;

use crate::media::RgbImage;
use crate::model::{Patches, Sequence};

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

/// A rendered, tokenised, positioned input.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// What the encoder eats.
    pub sequence: Sequence,
    /// Its tokens by modality.
    pub tokens: TokenCounts,
    /// Whether text was cut.
    pub truncated: bool,
}

/// Ids of the checkpoint's `config.json` the processor places itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VisionTokenIds {
    /// `image_token_id`.
    pub image_token_id: u32,
    /// `video_token_id`.
    pub video_token_id: u32,
    /// `vision_start_token_id`.
    pub vision_start_token_id: u32,
    /// `vision_end_token_id`.
    pub vision_end_token_id: u32,
}

/// The tokenizer and the template of one checkpoint.
#[derive(Debug)]
pub struct Processor {}

impl Processor {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// [`ProcessorError::Tokenizer`] when it cannot be read, lacks a template token or disagrees with `config.json`'s ids.
    pub fn new(_tokenizer_json: &[u8], _ids: VisionTokenIds) -> Result<Self, ProcessorError> {
        unimplemented!()
    }

    /// Resizes and patches an image.
    ///
    /// # Errors
    /// [`ProcessorError::AspectRatio`].
    pub fn image(
        &self,
        _image: &RgbImage,
        _options: &PixelOptions,
    ) -> Result<Patches, ProcessorError> {
        unimplemented!()
    }

    /// Which frames of a file of `frames` frames at `fps` frames per second are taken, ascending.
    ///
    /// # Errors
    /// [`ProcessorError::TooFewFrames`].
    pub fn sample_file(
        &self,
        _frames: u64,
        _fps: f64,
        _options: &PixelOptions,
    ) -> Result<Vec<u64>, ProcessorError> {
        unimplemented!()
    }

    /// Which frames of a list of `frames` are taken, ascending.
    pub fn sample_list(&self, _frames: usize, _options: &PixelOptions) -> Vec<usize> {
        unimplemented!()
    }

    /// Resizes and patches the sampled frames of a file; `indices` and `fps` give the timestamps.
    ///
    /// # Errors
    /// [`ProcessorError::AspectRatio`], [`ProcessorError::TooFewFrames`].
    pub fn file_video(
        &self,
        _frames: &[RgbImage],
        _indices: &[u64],
        _fps: f64,
        _options: &PixelOptions,
    ) -> Result<VideoPatches, ProcessorError> {
        unimplemented!()
    }

    /// Resizes and patches a frame list, already subsampled by [`Self::sample_list`], shown at `fps` frames per second.
    ///
    /// # Errors
    /// [`ProcessorError::AspectRatio`], [`ProcessorError::TooFewFrames`], [`ProcessorError::FrameSizes`].
    pub fn list_video(
        &self,
        _frames: &[RgbImage],
        _fps: f64,
        _options: &PixelOptions,
    ) -> Result<VideoPatches, ProcessorError> {
        unimplemented!()
    }

    /// Renders, tokenises and positions one input.
    ///
    /// # Errors
    /// [`ProcessorError::TooLong`], [`ProcessorError::TokenId`].
    pub fn prepare(
        &self,
        _prompt: &Prompt,
        _limit: ContextLimit,
    ) -> Result<Prepared, ProcessorError> {
        unimplemented!()
    }
}
