//! The life of a request, stage by stage: load, prepare, batch, finish. The only place that knows every stage.
//!
//! In: an [`EmbedRequest`] in the domain's words. Out: a vector for each input, or why not, with the path of the part at fault.
//! Everything that can be refused is refused before the batcher.

mod account;
mod background;
mod exchange;
mod gathering;
mod ingest;
mod metronome;
mod proof;
mod quota;
mod ranking;
mod relevance;
mod stages;

pub use account::{ExplainResponse, Explained, ExplainedPart, PartFacts, VideoFacts};
pub use background::Background;
pub use exchange::{
    Cause, EmbedInput, EmbedRequest, EmbedResponse, Embedded, InputPart, PartContent, ServiceError,
    Timings,
};
pub use proof::Proof;
pub use quota::{QuotaError, TokenQuota};
pub use ranking::{RankItem, RankRequest, RankResponse, Reranker, Scored};

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use crate::batcher::{
    Batcher, BatcherError, Cost, Identity, Input, Outline, Priority, Reservation, Submission,
};
use crate::media::{MediaLoader, MediaSettings, video::Patience};
use crate::model::{Task, Tenant};
use crate::processor::{Processor, TokenCounts};
use crate::vectors;
use gathering::{LOADS_AT_A_TIME, LoadedInput, Loading};
use ingest::{Extent, Means, has_media, prepare};
use stages::{in_order, settle};

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
    /// For what has media.
    background: Background,
    /// Permits for preparing text: one for each core.
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

/// An error that is the fault of none of the inputs.
fn of_all(error: BatcherError) -> ServiceError {
    ServiceError {
        at: None,
        cause: error.into(),
    }
}

/// What a request shows before it is prepared.
fn outline(request: &EmbedRequest, deadline: Instant) -> Outline {
    let extent = Extent::of(&request.inputs);
    Outline {
        task: Task::Embed,
        tenant: request.tenant,
        priority: request.priority,
        deadline,
        inputs: request.inputs.len(),
        text_bytes: extent.text_bytes,
        media: extent.media,
    }
}

impl Embedder {
    /// Wires the stages.
    ///
    /// # Errors
    /// When the system gives no threads.
    pub fn new(
        loader: MediaLoader,
        media: MediaSettings,
        processor: Processor,
        batcher: Batcher,
        quota: Option<TokenQuota>,
    ) -> std::io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let background = Background::new(cores)?;
        let quota = quota.map(Arc::new);
        Ok(Self::sharing(
            (loader, media),
            processor,
            (batcher, quota, background),
        ))
    }

    /// The same with a quota and threads that others use too.
    pub fn sharing(
        (loader, media): (MediaLoader, MediaSettings),
        processor: Processor,
        (batcher, quota, background): (Batcher, Option<Arc<TokenQuota>>, Background),
    ) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Embedder {
            loader,
            media: Arc::new(media),
            processor: Arc::new(processor),
            batcher,
            quota,
            background,
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
        let places = request.inputs.iter().map(|input| input.at.clone());
        let places: Vec<String> = places.collect();
        let outline = outline(&request, terms.deadline);
        let small = Extent::of(&request.inputs).is_small();
        // Refusing a small one after it was prepared costs no more, unless its key pays for what is refused.
        let reserves = !small || self.quota.is_some();
        let reserve = || match reserves {
            false => Ok(None),
            true => self.batcher.reserve(&outline).map(Some).map_err(of_all),
        };
        // Who would be turned away has nothing fetched. The place itself is kept only from when it is all here: a slow host must not
        // keep others out.
        drop(reserve()?);
        let loading = Loading::new(self, request.tenant);
        let loads = request.inputs.into_iter().map(|input| loading.load(input));
        let loaded = in_order(loads, LOADS_AT_A_TIME, partial).await?;
        let media = started.elapsed();
        let reservation = reserve()?;
        let pixel_bytes = Arc::new(AtomicUsize::new(0));
        let place = (small, &pixel_bytes, terms.deadline);
        let preparing = loaded
            .into_iter()
            .map(async |input| self.prepare(input?, place).await);
        let prepared = in_order(preparing, self.cores, partial).await?;
        let prepare = started.elapsed() - media;
        let computing = Instant::now();
        let (rows, queue) = self
            .compute((prepared, reservation), &places, terms)
            .await?;
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
        (prepared, reservation): (Vec<Outcome<Ready>>, Option<Reservation>),
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
            reservation,
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

    /// Decodes, resizes and tokenises, on one of the bounded pools or, where that is little, right here; `pixel_bytes` is what the request's
    /// inputs have come to so far.
    async fn prepare(
        &self,
        loaded: LoadedInput,
        (small, pixel_bytes, deadline): (bool, &Arc<AtomicUsize>, Instant),
    ) -> Outcome<Ready> {
        let (_waiter, patience) = Patience::until(deadline);
        let at = loaded.input.at.clone();
        let (processor, media) = (self.processor.clone(), self.media.clone());
        let place = (small, has_media(&loaded.parts));
        let batcher = self.batcher.clone();
        let (total, transient) = (Arc::clone(pixel_bytes), AtomicUsize::new(0));
        let preparing = move || {
            // Their bytes are needed no longer than this.
            let _held = loaded.held;
            let means = Means {
                processor: &processor,
                media: &media,
                patience: &patience,
                // What the request's own decoders hold now counts as the request's: waiting would not help it.
                hold: &|bytes| {
                    transient.fetch_add(bytes, Ordering::Relaxed);
                    batcher.hold(bytes, total.fetch_add(bytes, Ordering::Relaxed))
                },
            };
            let prepared = prepare(&means, loaded.input, loaded.parts);
            total.fetch_sub(transient.into_inner(), Ordering::Relaxed);
            let prepared = prepared?;
            let identity = Identity::of(&prepared.sequence);
            Ok((prepared, identity))
        };
        let (prepared, identity) = self.prepared(place, preparing).await?;
        let bytes = Cost::of(&prepared.sequence).pixel_bytes;
        let own = pixel_bytes.fetch_add(bytes, Ordering::Relaxed);
        let held = self.batcher.hold(bytes, own);
        Ok(Ready {
            input: Input {
                sequence: prepared.sequence,
                identity,
                held: held.map_err(|error| ServiceError::at(&at, error))?,
                follows: false,
            },
            tokens: prepared.tokens,
            truncated: prepared.truncated,
        })
    }

    /// Runs `work` right here when it is `small`, else on the threads for what has media or on those for text.
    async fn prepared<T: Send + 'static>(
        &self,
        (small, has_media): (bool, bool),
        work: impl FnOnce() -> Outcome<T> + Send + 'static,
    ) -> Outcome<T> {
        match (small, has_media) {
            (true, _) => work(),
            (false, false) => self.on_the_pool(work).await,
            (false, true) => {
                let done = self.background.run(work).await;
                done.ok_or_else(ServiceError::worker)?
            }
        }
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
