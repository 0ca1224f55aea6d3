//! What the service is asked and what it answers, in the domain's words: nothing here knows HTTP or JSON.

use std::time::Duration;

use super::quota::QuotaError;
use crate::batcher::{BatcherError, Priority};
use crate::media::{MediaError, MediaSource};
use crate::model::Tenant;
use crate::processor::{ContextLimit, PixelOptions, ProcessorError, TokenCounts};
use crate::vectors::VectorError;

/// What a client wants embedded.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbedRequest {
    /// One vector each.
    pub inputs: Vec<EmbedInput>,
    /// Matryoshka size; `None` is the model's own.
    pub dimensions: Option<usize>,
    /// Whether vectors are brought to length 1.
    pub normalize: bool,
    /// Whether inputs are answered independently, rather than all or none.
    pub partial: bool,
    /// Time the whole request may take.
    pub timeout: Duration,
    /// Whose it is.
    pub tenant: Tenant,
    /// The lane the client asked for; `None` goes by what the request costs.
    pub priority: Option<Priority>,
}

/// One input: an instruction and the parts of the user's turn, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbedInput {
    /// Where it stands in the request, for errors: `input[3]`.
    pub at: String,
    /// The system turn; `None` is the default instruction.
    pub instruction: Option<String>,
    /// The user turn.
    pub parts: Vec<InputPart>,
    /// No template.
    pub raw: bool,
    /// How long it may be.
    pub limit: ContextLimit,
    /// Most tokens of its own text; what is beyond is cut at its end.
    pub max_text_tokens: Option<usize>,
}

/// One part of an input and where it stands in the request.
#[derive(Debug, Clone, PartialEq)]
pub struct InputPart {
    /// For errors: `input[2].content[0].image_url`.
    pub at: String,
    /// What it is.
    pub content: PartContent,
}

/// What a part is, media not yet loaded.
#[derive(Debug, Clone, PartialEq)]
pub enum PartContent {
    /// Text.
    Text(String),
    /// Token ids.
    TokenIds(Vec<u32>),
    /// A picture.
    Image(MediaSource, PixelOptions),
    /// A video file.
    VideoFile(MediaSource, PixelOptions),
    /// A list of frames, shown at a rate in frames per second.
    Frames(Vec<MediaSource>, f64, PixelOptions),
}

/// Why one input has no vector.
#[derive(Debug, thiserror::Error)]
#[error("{cause}")]
pub struct ServiceError {
    /// The part or input at fault, where one is.
    pub at: Option<String>,
    /// What is wrong.
    #[source]
    pub cause: Cause,
}

impl ServiceError {
    pub(super) fn at(at: &str, cause: impl Into<Cause>) -> Self {
        ServiceError {
            at: Some(at.to_owned()),
            cause: cause.into(),
        }
    }

    /// An input that cannot be rendered or tokenised.
    pub(super) fn unprepared(at: String, error: ProcessorError) -> Self {
        ServiceError {
            at: Some(at),
            cause: Cause::Processor {
                error,
                video: false,
            },
        }
    }

    pub(super) fn worker() -> Self {
        ServiceError {
            at: None,
            cause: Cause::Worker,
        }
    }
}

/// The stage that refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// Loading or decoding.
    #[error(transparent)]
    Media(#[from] MediaError),
    /// Preparing; whether a video was at fault.
    #[error("{error}")]
    Processor {
        /// What is wrong.
        #[source]
        error: ProcessorError,
        /// Whether the part is a video.
        video: bool,
    },
    /// Queueing or computing.
    #[error(transparent)]
    Batcher(#[from] BatcherError),
    /// Finishing.
    #[error(transparent)]
    Vector(#[from] VectorError),
    /// The key has had its tokens.
    #[error(transparent)]
    Quota(#[from] QuotaError),
    /// Pairs of queries and documents with too many tokens together.
    #[error(
        "{pairs} pairs have {tokens} tokens with their queries, the limit is {limit}: split the request"
    )]
    TooManyPairTokens {
        /// How many pairs.
        pairs: usize,
        /// Tokens of their queries, for each pair.
        tokens: usize,
        /// Most that may be.
        limit: usize,
    },
    /// The request took too long.
    #[error("the request took longer than {} ms", .0.as_millis())]
    Deadline(Duration),
    /// A worker of ours panicked.
    #[error("a worker failed")]
    Worker,
}

/// A vector and what it cost.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedded {
    /// Cut, and normalised if asked.
    pub vector: Vec<f32>,
    /// Tokens of the input.
    pub tokens: TokenCounts,
    /// How many of them were not computed again but kept from an earlier pass.
    pub cached_tokens: usize,
    /// Whether the model computed it for an earlier request.
    pub from_cache: bool,
    /// Whether text was cut.
    pub truncated: bool,
}

/// Time a request spent in each stage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// Fetching and reading media.
    pub media: Duration,
    /// Decoding, resizing, tokenising.
    pub prepare: Duration,
    /// Until the engine began with the first of its inputs.
    pub queue: Duration,
    /// From then until the last was computed.
    pub forward: Duration,
}

/// All vectors of a request, in order.
#[derive(Debug)]
pub struct EmbedResponse {
    /// One for each input.
    pub outputs: Vec<Result<Embedded, ServiceError>>,
    /// Where the time went.
    pub timings: Timings,
}
