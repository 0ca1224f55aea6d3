//! The life of a request, stage by stage: load, prepare, batch, finish. The only place that knows every stage.
//!
//! In: an [`EmbedRequest`] in the domain's words. Out: a vector for each input, or why not, with the path of the part at fault.
//! Everything that can be refused is refused before the batcher.

mod exchange;
mod ingest;
mod quota;

pub use exchange::{
    Cause, EmbedInput, EmbedRequest, EmbedResponse, Embedded, InputPart, PartContent, ServiceError,
    Timings,
};
pub use quota::{QuotaError, TokenQuota};

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use futures_util::stream::{self, StreamExt};
use tokio::sync::Semaphore;

use crate::batcher::{Batcher, BatcherError, Cost, Identity, Input, Priority, Submission};
use crate::media::{MediaLoader, MediaSettings, MediaSource};
use crate::model::Tenant;
use crate::processor::{Processor, PromptPart, TokenCounts};
use crate::vectors;
use ingest::{Loaded, prepare};

/// Media of one request that are fetched at the same time.
const FETCHES_AT_A_TIME: usize = 8;

/// Texts up to this many bytes together, instructions included, are prepared where they are: two changes of threads would take longer.
/// A tokenizer reads a megabyte a second at the very least, so this is a millisecond at most.
const SMALL_BYTES: usize = 1024;
/// What the template adds to each input, as bytes of text.
const TEMPLATE_BYTES: usize = 64;
/// Rows up to this many are finished where they are.
const FEW_ROWS: usize = 16;

/// Every stage, wired.
#[derive(Debug, Clone)]
pub struct Embedder {
    loader: MediaLoader,
    media: Arc<MediaSettings>,
    processor: Arc<Processor>,
    batcher: Batcher,
    /// What each key may have computed, where that is limited.
    quota: Option<Arc<TokenQuota>>,
    /// Permits for CPU-heavy preparation: one for each core.
    workers: Arc<Semaphore>,
    cores: usize,
}

/// What came of one input so far.
type Outcome<T> = Result<T, ServiceError>;

/// An input that can be computed.
struct Ready {
    input: Input,
    tokens: TokenCounts,
    truncated: bool,
}

/// What the queue is told about a request beside its inputs.
#[derive(Clone, Copy)]
struct Terms {
    tenant: Tenant,
    priority: Option<Priority>,
    deadline: Instant,
    partial: bool,
}

/// A row of the engine, and what is told about its input.
struct Computed {
    row: Vec<f32>,
    cached_tokens: usize,
    from_cache: bool,
    tokens: TokenCounts,
    truncated: bool,
}

/// Lets the error of one input end the request, or stand in the place of its result.
fn settle<T>(outcome: Outcome<T>, partial: bool) -> Result<Outcome<T>, ServiceError> {
    match outcome {
        Err(error) if !partial => Err(error),
        outcome => Ok(outcome),
    }
}

/// Runs a stage over all inputs, `width` at a time. The first error in the order of the inputs ends it, unless `partial`; then what
/// has not begun does not begin.
async fn in_order<T>(
    inputs: impl Iterator<Item = impl Future<Output = Outcome<T>>>,
    width: usize,
    partial: bool,
) -> Result<Vec<Outcome<T>>, ServiceError> {
    let mut running = stream::iter(inputs).buffered(width.max(1));
    let mut outcomes = Vec::new();
    while let Some(outcome) = running.next().await {
        outcomes.push(settle(outcome, partial)?);
    }
    Ok(outcomes)
}

/// Whether preparing all inputs of a request is so little work that it need not leave the async threads.
fn is_small(inputs: &[EmbedInput]) -> bool {
    let of_part = |part: &InputPart| match &part.content {
        PartContent::Text(text) => text.len(),
        PartContent::TokenIds(ids) => ids.len(),
        PartContent::Image(..) | PartContent::VideoFile(..) | PartContent::Frames(..) => {
            SMALL_BYTES
        }
    };
    let of_input = |input: &EmbedInput| {
        let instruction = input.instruction.as_ref().map_or(0, String::len);
        let parts: usize = input.parts.iter().map(of_part).sum();
        TEMPLATE_BYTES + instruction + parts
    };
    inputs.iter().map(of_input).sum::<usize>() <= SMALL_BYTES
}

impl Embedder {
    /// Wires the stages.
    pub fn new(
        loader: MediaLoader,
        media: MediaSettings,
        processor: Processor,
        batcher: Batcher,
        quota: Option<TokenQuota>,
    ) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Embedder {
            loader,
            media: Arc::new(media),
            processor: Arc::new(processor),
            batcher,
            quota: quota.map(Arc::new),
            workers: Arc::new(Semaphore::new(cores)),
            cores,
        }
    }

    /// The queue before the engine, for those who ask how it is.
    pub fn batcher(&self) -> &Batcher {
        &self.batcher
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
        let started = Instant::now();
        let partial = request.partial;
        let terms = Terms {
            tenant: request.tenant,
            priority: request.priority,
            deadline: started + request.timeout,
            partial,
        };
        let places: Vec<String> = request
            .inputs
            .iter()
            .map(|input| input.at.clone())
            .collect();
        let small = is_small(&request.inputs);
        let fetches = Semaphore::new(FETCHES_AT_A_TIME);
        let loads = request
            .inputs
            .into_iter()
            .map(|input| self.load(input, &fetches));
        let loaded = in_order(loads, FETCHES_AT_A_TIME, partial).await?;
        let media = started.elapsed();
        let pixel_bytes = AtomicUsize::new(0);
        let preparing = loaded
            .into_iter()
            .map(async |input| self.prepare(input?, (small, &pixel_bytes)).await);
        let prepared = in_order(preparing, self.cores, partial).await?;
        let prepare = started.elapsed() - media;
        let computing = Instant::now();
        let (rows, queue) = self.compute(prepared, &places, terms).await?;
        let timings = Timings {
            media,
            prepare,
            queue,
            forward: computing.elapsed().saturating_sub(queue),
        };
        let (dimensions, normalize) = (request.dimensions, request.normalize);
        let finish = move |(row, at): (Outcome<Computed>, String)| {
            let computed = row?;
            let vector = vectors::truncate(&computed.row, dimensions, normalize);
            let vector = vector.map_err(|error| ServiceError::at(&at, error))?;
            Ok(Embedded {
                vector,
                tokens: computed.tokens,
                cached_tokens: computed.cached_tokens,
                from_cache: computed.from_cache,
                truncated: computed.truncated,
            })
        };
        let few = rows.len() <= FEW_ROWS;
        let finishing = move || {
            let mut outputs = Vec::with_capacity(rows.len());
            for output in rows.into_iter().zip(places).map(finish) {
                outputs.push(settle(output, partial)?);
            }
            Ok(EmbedResponse { outputs, timings })
        };
        if few {
            return finishing();
        }
        // Off the async threads: there may be thousands of rows.
        let finished = tokio::task::spawn_blocking(finishing).await;
        finished.map_err(|_| ServiceError::worker())?
    }

    /// Has the batcher compute what was prepared. The request enters the queue whole or not at all, so that being refused costs
    /// nobody a forward pass. Also returns how long the first of its inputs waited.
    async fn compute(
        &self,
        prepared: Vec<Outcome<Ready>>,
        places: &[String],
        terms: Terms,
    ) -> Result<(Vec<Outcome<Computed>>, Duration), ServiceError> {
        let mut inputs = Vec::with_capacity(prepared.len());
        let facts: Vec<Outcome<(TokenCounts, bool)>> = prepared
            .into_iter()
            .map(|prepared| {
                let ready = prepared?;
                inputs.push(ready.input);
                Ok((ready.tokens, ready.truncated))
            })
            .collect();
        let of_all = |error: BatcherError| ServiceError {
            at: None,
            cause: error.into(),
        };
        if let Some(quota) = &self.quota {
            let tokens = facts
                .iter()
                .flatten()
                .map(|(tokens, _)| tokens.total())
                .sum();
            let spent = quota.spend(terms.tenant, tokens);
            spent.map_err(|error| ServiceError {
                at: None,
                cause: error.into(),
            })?;
        }
        let submission = Submission {
            inputs,
            tenant: terms.tenant,
            priority: terms.priority,
            deadline: terms.deadline,
        };
        let mut pending = self.batcher.submit(submission).map_err(of_all)?.into_iter();
        let mut first_wait = None;
        let mut rows = Vec::with_capacity(facts.len());
        for (facts, at) in facts.into_iter().zip(places) {
            let (tokens, truncated) = match facts {
                Ok(facts) => facts,
                Err(error) => {
                    rows.push(Err(error));
                    continue;
                }
            };
            let computed = match pending.next() {
                Some(pending) => pending.row().await,
                None => Err(BatcherError::Unavailable),
            };
            let computed = match computed {
                Ok(computed) => computed,
                // Without an engine or time no input is answered, so this is the fault of none of them.
                Err(error @ (BatcherError::Unavailable | BatcherError::Expired)) => {
                    return Err(of_all(error));
                }
                Err(error) => {
                    rows.push(settle(Err(ServiceError::at(at, error)), terms.partial)?);
                    continue;
                }
            };
            first_wait = Some(first_wait.map_or(computed.queued, |wait| computed.queued.min(wait)));
            rows.push(Ok(Computed {
                row: computed.row,
                cached_tokens: computed.cached_tokens,
                from_cache: computed.from_cache,
                tokens,
                truncated,
            }));
        }
        Ok((rows, first_wait.unwrap_or_default()))
    }

    /// Fetches what an input names, a few media at the same time.
    async fn load(
        &self,
        input: EmbedInput,
        fetches: &Semaphore,
    ) -> Result<(EmbedInput, Vec<Loaded>), ServiceError> {
        let load = async |source: &MediaSource, at: &str| {
            let _place = fetches.acquire().await;
            let loaded = self.loader.load(source).await;
            loaded.map_err(|error| ServiceError::at(at, error))
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

    /// Decodes, resizes and tokenises, on the bounded pool or, where that is little, right here; `pixel_bytes` is what the request's
    /// inputs have come to so far.
    async fn prepare(
        &self,
        (input, parts): (EmbedInput, Vec<Loaded>),
        (small, pixel_bytes): (bool, &AtomicUsize),
    ) -> Outcome<Ready> {
        let at = input.at.clone();
        let (processor, media) = (self.processor.clone(), self.media.clone());
        let preparing = move || {
            let prepared = prepare(&processor, &media, input, parts)?;
            let identity = Identity::of(&prepared.sequence);
            Ok((prepared, identity))
        };
        let (prepared, identity) = if small {
            preparing()?
        } else {
            self.on_the_pool(preparing).await?
        };
        let bytes = Cost::of(&prepared.sequence).pixel_bytes;
        let own = pixel_bytes.fetch_add(bytes, Ordering::Relaxed);
        let held = self.batcher.hold(bytes, own);
        Ok(Ready {
            input: Input {
                sequence: prepared.sequence,
                identity,
                held: held.map_err(|error| ServiceError::at(&at, error))?,
            },
            tokens: prepared.tokens,
            truncated: prepared.truncated,
        })
    }

    /// Runs `work` off the async threads, when one of the bounded number of workers is free.
    async fn on_the_pool<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Outcome<T> + Send + 'static,
    ) -> Outcome<T> {
        let permit = self.workers.clone().acquire_owned().await;
        let permit = permit.map_err(|_| ServiceError::worker())?;
        let working = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        });
        working.await.map_err(|_| ServiceError::worker())?
    }
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
        }
    }

    #[test]
    fn only_a_few_short_texts_are_small() {
        let text = |bytes: usize| PartContent::Text("a".repeat(bytes));
        let frames = || PartContent::Frames(Vec::new(), 1.0, PixelOptions::default());
        assert!(is_small(&[input(vec![text(900)])]));
        assert!(is_small(&[input(vec![text(400), text(400)])]));
        assert!(is_small(&[input(vec![PartContent::TokenIds(vec![
            1;
            900
        ])])]));
        assert!(!is_small(&[input(vec![text(1024)])]));
        assert!(!is_small(&[input(vec![text(8), frames()])]));
        assert!(!is_small(&vec![input(vec![text(1)]); 20]));
        let mut instructed = input(vec![text(1)]);
        instructed.instruction = Some("a".repeat(1024));
        assert!(!is_small(&[instructed]));
    }
}
