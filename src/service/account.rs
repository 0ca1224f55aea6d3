//! What becomes of an input before the encoder sees it, told rather than computed: the prompt, the tokens of each part, sizes, frames.
//!
//! In: an [`EmbedRequest`]. Out: an [`Explained`] for each input, or why it would be refused. Everything is done as for a vector up to
//! the batcher, by the same code; nothing is queued and no forward pass runs.

use std::time::Instant;

use super::gathering::{LOADS_AT_A_TIME, LoadedInput, Loading};
use super::ingest::{Means, explain, has_media};
use super::stages::in_order;
use super::{Cause, EmbedInput, EmbedRequest, Embedder, Outcome, ServiceError, Timings};
use crate::media::RgbImage;
use crate::media::video::Patience;
use crate::model::GridThw;
use crate::processor::{ContextLimit, PartTokens, Prepared, TokenCounts, VideoPatches};

/// What became of one input.
#[derive(Debug, Clone, PartialEq)]
pub struct Explained {
    /// The prompt as a person reads it: one placeholder for each image or video, before truncation.
    pub prompt: String,
    /// Its tokens, after truncation.
    pub tokens: TokenCounts,
    /// How many of them belong to no part: the template, the instruction, what the post-processor adds.
    pub template_tokens: usize,
    /// How long it may be.
    pub limit: ContextLimit,
    /// Whether text was cut.
    pub truncated: bool,
    /// Its parts, in the order of the prompt.
    pub parts: Vec<ExplainedPart>,
}

/// What became of one part.
#[derive(Debug, Clone, PartialEq)]
pub struct ExplainedPart {
    /// Where it stands in the request.
    pub at: String,
    /// Its tokens, kept and cut.
    pub tokens: PartTokens,
    /// What it is.
    pub facts: PartFacts,
}

/// What a part turned out to be.
#[derive(Debug, Clone, PartialEq)]
pub enum PartFacts {
    /// Text or token ids.
    Text,
    /// A picture.
    Image {
        /// Width and height as it came, in pixels.
        size: (u32, u32),
        /// What it was resized to, in patches of 16 pixels.
        grid: GridThw,
    },
    /// A video.
    Video(VideoFacts),
}

/// What a video turned out to be.
#[derive(Debug, Clone, PartialEq)]
pub struct VideoFacts {
    /// Width and height of its first frame as it came, in pixels.
    pub size: (u32, u32),
    /// What it was resized to: pairs of frames, rows and columns of patches.
    pub grid: GridThw,
    /// How many frames the file has, or how many of the list are shown.
    pub frames: u64,
    /// Its frames per second.
    pub fps: f64,
    /// Which frames are shown, ascending.
    pub indices: Vec<u64>,
    /// When each of them is shown, in seconds.
    pub times: Vec<f64>,
    /// `[grid.t]`: the time of each pair as the prompt says it.
    pub pair_times: Vec<f64>,
}

impl VideoFacts {
    pub(super) fn new(
        decoded: &[RgbImage],
        (frames, fps): (u64, f64),
        indices: Vec<u64>,
        video: &VideoPatches,
    ) -> Self {
        VideoFacts {
            size: decoded.first().map_or((0, 0), RgbImage::dimensions),
            grid: video.patches.grid,
            frames,
            fps,
            times: indices.iter().map(|&index| index as f64 / fps).collect(),
            indices,
            pair_times: video.timestamps.clone(),
        }
    }
}

impl Explained {
    pub(super) fn new(
        input: &EmbedInput,
        prompt: String,
        prepared: &Prepared,
        facts: Vec<PartFacts>,
    ) -> Self {
        let of_parts: usize = prepared.parts.iter().map(|part| part.tokens).sum();
        let parts = input.parts.iter().zip(&prepared.parts).zip(facts);
        Explained {
            prompt,
            tokens: prepared.tokens,
            template_tokens: prepared.tokens.total() - of_parts,
            limit: input.limit,
            truncated: prepared.truncated,
            parts: parts
                .map(|((part, &tokens), facts)| ExplainedPart {
                    at: part.at.clone(),
                    tokens,
                    facts,
                })
                .collect(),
        }
    }
}

/// What became of all inputs of a request, in order.
#[derive(Debug)]
pub struct ExplainResponse {
    /// One for each input.
    pub outputs: Vec<Result<Explained, ServiceError>>,
    /// Where the time went; nothing was queued or computed.
    pub timings: Timings,
}

impl Embedder {
    /// Tells what would be embedded. The request's dimensions, priority and key mean nothing here.
    ///
    /// # Errors
    /// Those of [`Embedder::embed`] that do not come from the queue or the device.
    pub async fn explain(&self, request: EmbedRequest) -> Result<ExplainResponse, ServiceError> {
        let timeout = request.timeout;
        let explained = tokio::time::timeout(timeout, self.explain_all(request)).await;
        explained.unwrap_or(Err(ServiceError {
            at: None,
            cause: Cause::Deadline(timeout),
        }))
    }

    async fn explain_all(&self, request: EmbedRequest) -> Result<ExplainResponse, ServiceError> {
        let started = Instant::now();
        let deadline = started + request.timeout;
        let loading = Loading::new(self, request.tenant);
        let loads = request.inputs.into_iter().map(|input| loading.load(input));
        let loaded = in_order(loads, LOADS_AT_A_TIME, request.partial).await?;
        let media = started.elapsed();
        // Pixels go as soon as they are counted, so no more are held than there are workers.
        let explaining = loaded.into_iter().map(async |input| {
            let LoadedInput { input, parts, held } = input?;
            let (processor, media) = (self.processor.clone(), self.media.clone());
            let batcher = self.batcher.clone();
            let place = (false, has_media(&parts));
            let (_waiter, patience) = Patience::until(deadline);
            let working = move || {
                // Their bytes are needed no longer than this.
                let _held = held;
                let means = Means {
                    processor: &processor,
                    media: &media,
                    patience: &patience,
                    hold: &|bytes| batcher.hold(bytes, 0),
                };
                explain(&means, input, parts)
            };
            self.prepared(place, working).await
        });
        let outputs: Vec<Outcome<Explained>> =
            in_order(explaining, self.cores, request.partial).await?;
        let timings = Timings {
            media,
            prepare: started.elapsed() - media,
            ..Timings::default()
        };
        Ok(ExplainResponse { outputs, timings })
    }
}
