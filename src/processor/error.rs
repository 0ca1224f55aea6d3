//! Why an input cannot be prepared.

/// What is wrong with an input, or with the checkpoint's tokenizer.
#[derive(Debug, thiserror::Error)]
pub enum ProcessorError {
    /// One side more than 200 times the other.
    #[error("the aspect ratio of {width} x {height} pixels is more than {limit}:1")]
    AspectRatio {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// The reference's limit.
        limit: u32,
    },
    /// A limit so low that a side of this shape would shrink to nothing.
    #[error(
        "{width} x {height} pixels cannot be resized to at most {max_pixels} pixels: the short side would be 0"
    )]
    TooFewPixels {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// The limit asked for.
        max_pixels: u64,
    },
    /// Fewer frames than one pair.
    #[error("the video gives {frames} frames, at least {minimum} are needed")]
    TooFewFrames {
        /// What it has, or what sampling leaves of it.
        frames: u64,
        /// What is needed.
        minimum: u64,
    },
    /// A part of a file that holds no two frames.
    #[error(
        "from {start} to {end} seconds there are no two frames: the video has {seconds} seconds"
    )]
    Excerpt {
        /// Where it begins, in seconds.
        start: f64,
        /// Where it ends.
        end: f64,
        /// How long the file is.
        seconds: f64,
    },
    /// Frames of one list that differ in size once resized.
    #[error(
        "frame {index} is {width} x {height} pixels once resized, the first frame is {first_width} x {first_height}"
    )]
    FrameSizes {
        /// Which frame.
        index: usize,
        /// Its width in pixels.
        width: u32,
        /// Its height in pixels.
        height: u32,
        /// The first frame's width in pixels.
        first_width: u32,
        /// The first frame's height in pixels.
        first_height: u32,
    },
    /// An id outside the vocabulary, or a special token's.
    #[error("token id {id} at position {position} {reason}")]
    TokenId {
        /// Where in the array.
        position: usize,
        /// The id.
        id: u32,
        /// "is not below the vocabulary size 151936", "is a special token".
        reason: String,
    },
    /// More tokens than the context has, and truncation off or unable to help.
    #[error(
        "the input has {}{tokens} tokens ({media_tokens} of them media), the limit is {limit}",
        if *at_least { "at least " } else { "" }
    )]
    TooLong {
        /// All tokens of the input.
        tokens: usize,
        /// Whether counting stopped early: there may be more.
        at_least: bool,
        /// Those that cannot be cut because they are media.
        media_tokens: usize,
        /// The limit.
        limit: usize,
    },
    /// No token at all: an empty text without template, where the tokenizer adds none.
    #[error("the input has no tokens")]
    Empty,
    /// The checkpoint's tokenizer is not usable.
    #[error("tokenizer.json: {reason}")]
    Tokenizer {
        /// What is wrong with it.
        reason: String,
    },
}
