//! The life of a request, stage by stage: load, prepare, batch, finish. The only place that knows every stage.
//!
//! In: an [`EmbedRequest`] in the domain's words. Out: a vector for each input, or why not, with the path of the part at fault.
//! Everything that can be refused is refused before the batcher.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::{join_all, try_join_all};
use tokio::sync::Semaphore;

use crate::batcher::{Batcher, BatcherError};
use crate::media::video::VideoFile;
use crate::media::{self, MediaError, MediaLoader, MediaSettings, MediaSource, RgbImage};
use crate::processor::{
    ContextLimit, PixelOptions, Prepared, Processor, ProcessorError, Prompt, PromptPart,
    TokenCounts,
};
use crate::vectors::{self, VectorError};

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
    /// Tokens computed.
    pub tokens: TokenCounts,
    /// Whether text was cut.
    pub truncated: bool,
}

/// Time spent in each stage; the longest of all inputs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// Fetching and reading media.
    pub media: Duration,
    /// Decoding, resizing, tokenising.
    pub prepare: Duration,
    /// Waiting for the engine.
    pub queue: Duration,
    /// Forward pass.
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

/// Every stage, wired.
#[derive(Debug, Clone)]
pub struct Embedder {
    loader: MediaLoader,
    media: Arc<MediaSettings>,
    processor: Arc<Processor>,
    batcher: Batcher,
    /// Permits for CPU-heavy preparation: one for each core.
    workers: Arc<Semaphore>,
}

/// A part whose bytes are here.
enum Loaded {
    Ready(PromptPart),
    Image(Bytes, PixelOptions),
    VideoFile(Bytes, PixelOptions),
    /// Each with its place in the list.
    Frames(Vec<(usize, Bytes)>, f64, PixelOptions),
}

impl Embedder {
    /// Wires the stages.
    pub fn new(
        loader: MediaLoader,
        media: MediaSettings,
        processor: Processor,
        batcher: Batcher,
    ) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Embedder {
            loader,
            media: Arc::new(media),
            processor: Arc::new(processor),
            batcher,
            workers: Arc::new(Semaphore::new(cores)),
        }
    }

    /// Embeds all inputs of a request.
    ///
    /// # Errors
    /// [`ServiceError`] for the first input at fault, unless the request is `partial`; [`Cause::Deadline`] for the whole.
    pub async fn embed(&self, request: EmbedRequest) -> Result<EmbedResponse, ServiceError> {
        let timeout = request.timeout;
        tokio::time::timeout(timeout, self.embed_all(request))
            .await
            .unwrap_or(Err(ServiceError {
                at: None,
                cause: Cause::Deadline(timeout),
            }))
    }

    async fn embed_all(&self, request: EmbedRequest) -> Result<EmbedResponse, ServiceError> {
        let mut timings = Timings::default();
        let started = Instant::now();
        let places: Vec<String> = request
            .inputs
            .iter()
            .map(|input| input.at.clone())
            .collect();
        let loaded = join_all(request.inputs.into_iter().map(|input| self.load(input))).await;
        timings.media = started.elapsed();

        let started = Instant::now();
        let prepared = join_all(
            loaded
                .into_iter()
                .map(async |input| self.prepare(input?).await),
        )
        .await;
        timings.prepare = started.elapsed();
        // All or nothing: a bad input costs its neighbours no forward pass.
        if !request.partial
            && let Some(at) = prepared.iter().position(Result::is_err)
        {
            return Err(prepared
                .into_iter()
                .nth(at)
                .and_then(Result::err)
                .unwrap_or_else(|| unreachable!("it is an error")));
        }

        let finished = prepared
            .into_iter()
            .zip(places)
            .map(async |(prepared, at)| {
                let prepared = prepared?;
                let fault = |cause| ServiceError {
                    at: Some(at.clone()),
                    cause,
                };
                let computed = self
                    .batcher
                    .embed(prepared.sequence)
                    .await
                    .map_err(|error| fault(error.into()))?;
                let vector =
                    vectors::truncate(&computed.row, request.dimensions, request.normalize)
                        .map_err(|error| fault(error.into()))?;
                let embedded = Embedded {
                    vector,
                    tokens: prepared.tokens,
                    truncated: prepared.truncated,
                };
                Ok((embedded, computed.queued, computed.forward))
            });
        let mut outputs = Vec::new();
        for output in join_all(finished).await {
            outputs.push(output.map(|(embedded, queued, forward)| {
                timings.queue = timings.queue.max(queued);
                timings.forward = timings.forward.max(forward);
                embedded
            }));
        }
        if !request.partial
            && let Some(at) = outputs.iter().position(Result::is_err)
        {
            return Err(outputs
                .swap_remove(at)
                .err()
                .unwrap_or_else(|| unreachable!("it is an error")));
        }
        Ok(EmbedResponse { outputs, timings })
    }

    /// Fetches what an input names, all of it at the same time.
    async fn load(&self, input: EmbedInput) -> Result<(EmbedInput, Vec<Loaded>), ServiceError> {
        let load = async |source: &MediaSource, at: &str| {
            let loaded = self.loader.load(source).await;
            loaded.map_err(|error| ServiceError {
                at: Some(at.to_owned()),
                cause: error.into(),
            })
        };
        let parts = input.parts.iter().map(async |part| {
            Ok(match &part.content {
                PartContent::Text(text) => Loaded::Ready(PromptPart::Text(text.clone())),
                PartContent::TokenIds(ids) => Loaded::Ready(PromptPart::TokenIds(ids.clone())),
                PartContent::Image(source, options) => {
                    Loaded::Image(load(source, &part.at).await?, *options)
                }
                PartContent::VideoFile(source, options) => {
                    Loaded::VideoFile(load(source, &part.at).await?, *options)
                }
                PartContent::Frames(sources, fps, options) => {
                    // Frames that will not be shown are not fetched either.
                    let kept = self.processor.sample_list(sources.len(), options);
                    let frames = kept.into_iter().map(async |i| {
                        Ok((i, load(&sources[i], &format!("{}[{i}]", part.at)).await?))
                    });
                    Loaded::Frames(try_join_all(frames).await?, *fps, *options)
                }
            })
        });
        let parts = try_join_all(parts).await?;
        Ok((input, parts))
    }

    /// Decodes, resizes and tokenises on the bounded pool.
    async fn prepare(
        &self,
        (input, parts): (EmbedInput, Vec<Loaded>),
    ) -> Result<Prepared, ServiceError> {
        let worker = || ServiceError {
            at: None,
            cause: Cause::Worker,
        };
        let permit = self
            .workers
            .clone()
            .acquire_owned()
            .await
            .map_err(|_| worker())?;
        let (processor, media) = (self.processor.clone(), self.media.clone());
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            prepare(&processor, &media, input, parts)
        })
        .await
        .map_err(|_| worker())?
    }
}

fn prepare(
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
