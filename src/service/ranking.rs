//! How relevant documents are to a query: what a reranker says of each pair, or, without one, the cosine of their embeddings.
//!
//! In: a [`RankRequest`]. Out: a score for each pair. A query is loaded, decoded and tokenised once, and the model computes it once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::gathering::{LOADS_AT_A_TIME, Loading};
use super::ingest::{Extent, Loaded, Means, has_media, patched};
use super::relevance::{cosine, scored};
use super::stages::in_order;
use super::{
    Cause, EmbedInput, EmbedRequest, Embedder, InputPart, Outcome, Ready, ServiceError, Terms,
    Timings, of_all,
};
use crate::batcher::{Cost, Held, Identity, Input, Outline, Priority};
use crate::media::video::Patience;
use crate::model::{MediaKey, Task, Tenant};
use crate::processor::{ContextLimit, DocumentLimit, PairHead, Query, TokenCounts, Truncation};

/// Most tokens that all pairs of a request have together, each with its query: a small body can name a long query and thousands of
/// documents, and every pair's ids and positions take 16 bytes a token before anything is computed.
const MAX_TOKENS: usize = 4 << 20;
/// What the template adds to each pair, as bytes of text.
const PAIR_BYTES: usize = 128;

/// A query or a document.
#[derive(Debug, Clone, PartialEq)]
pub struct RankItem {
    /// Where it stands in the request, for errors: `documents[3]`.
    pub at: String,
    /// What it is, in order.
    pub parts: Vec<InputPart>,
}

/// What a client wants scored.
#[derive(Debug, Clone, PartialEq)]
pub struct RankRequest {
    /// What is looked for.
    pub queries: Vec<RankItem>,
    /// What may be it; each stands in one pair, in their order.
    pub documents: Vec<RankItem>,
    /// Query and document of each score, by their places; those of one query together.
    pub pairs: Vec<(usize, usize)>,
    /// What "relevant" means; `None` is the default.
    pub instruction: Option<String>,
    /// How long a pair may be, and how much of a document counts.
    pub limit: DocumentLimit,
    /// Time the whole request may take.
    pub timeout: Duration,
    /// Whose it is.
    pub tenant: Tenant,
    /// The lane the client asked for; `None` goes by what the request costs.
    pub priority: Option<Priority>,
}

/// A score and what it cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scored {
    /// A reranker's from 0 to 1; a cosine from -1 to 1.
    pub score: f32,
    /// What it was made of: a reranker's logit, the cosine itself.
    pub raw: f32,
    /// Tokens of the pair; of a cosine those of the document, and of its query where it is the query's first.
    pub tokens: TokenCounts,
    /// How many of them were not computed again.
    pub cached_tokens: usize,
    /// Whether text of the document was cut.
    pub truncated: bool,
}

/// All scores of a request, in the order of its pairs.
#[derive(Debug)]
pub struct RankResponse {
    /// One for each pair.
    pub scores: Vec<Scored>,
    /// Where the time went.
    pub timings: Timings,
}

/// The stages of a reranker.
#[derive(Debug, Clone)]
pub struct Reranker {
    stages: Embedder,
    /// Whether the engine computes what pairs have in common once.
    reuses_prefixes: bool,
}

/// A query that documents can be put to.
struct Head {
    prompt: PairHead,
    media: Vec<MediaKey>,
    /// Held until the last document has its score.
    _held: Held,
}

impl Reranker {
    /// Over stages whose processor and batcher are the reranker's.
    pub fn new(stages: Embedder, reuses_prefixes: bool) -> Self {
        Reranker {
            stages,
            reuses_prefixes,
        }
    }

    /// Scores all pairs of a request.
    ///
    /// # Errors
    /// [`ServiceError`] for the first part at fault; [`Cause::Deadline`] for the whole.
    pub async fn rank(&self, request: RankRequest) -> Result<RankResponse, ServiceError> {
        let timeout = request.timeout;
        tokio::time::timeout(timeout, self.rank_all(request))
            .await
            .unwrap_or(Err(ServiceError {
                at: None,
                cause: Cause::Deadline(timeout),
            }))
    }

    async fn rank_all(&self, request: RankRequest) -> Result<RankResponse, ServiceError> {
        let started = Instant::now();
        let stages = &self.stages;
        let terms = Terms {
            tenant: request.tenant,
            priority: request.priority,
            deadline: started + request.timeout,
            partial: false,
        };
        let (outline, small) = outline(&request, terms);
        let reserves = !small || stages.quota.is_some();
        let reserve = || match reserves {
            false => Ok(None),
            true => stages.batcher.reserve(&outline).map(Some).map_err(of_all),
        };
        // As in `Embedder::embed_all`.
        drop(reserve()?);
        let loading = Loading::new(stages, terms.tenant);
        let all = request.queries.into_iter().chain(request.documents);
        let loads = all.map(async |item| {
            let loaded = loading.parts(&item.parts).await?;
            Ok((item, loaded))
        });
        let mut loaded = fully(in_order(loads, LOADS_AT_A_TIME, false).await?);
        let media = started.elapsed();
        let reservation = reserve()?;

        let queries: Vec<usize> = request.pairs.iter().map(|(query, _)| *query).collect();
        let count = queries.iter().max().map_or(0, |last| last + 1);
        let documents = loaded.split_off(count.min(loaded.len()));
        let limit = request.limit;
        let heads = loaded
            .into_iter()
            .map(|item| self.head(item, request.instruction.clone(), (limit, small, terms)));
        let heads: Vec<Arc<Head>> = fully(in_order(heads, stages.cores, false).await?);
        check_tokens(&heads, &queries)?;
        let places: Vec<String> = documents.iter().map(|(item, _)| item.at.clone()).collect();
        let pixel_bytes =
            AtomicUsize::new(heads.iter().map(|head| head.prompt.pixel_bytes()).sum());
        let preparing = documents.into_iter().enumerate().map(async |(i, item)| {
            let follows = self.reuses_prefixes && i > 0 && queries[i] == queries[i - 1];
            let ready = self.pair(Arc::clone(&heads[queries[i]]), item, (limit, small, terms));
            let (mut ready, own) = ready.await?;
            let before = pixel_bytes.fetch_add(own, Ordering::Relaxed);
            let held = stages.batcher.hold(own, before);
            ready.input.held = held.map_err(|error| ServiceError::at(&places[i], error))?;
            ready.input.follows = follows;
            Ok(ready)
        });
        let prepared = in_order(preparing, stages.cores, false).await?;
        let prepare = started.elapsed() - media;

        let computing = Instant::now();
        let (rows, queue) = stages
            .compute((prepared, reservation), &places, terms)
            .await?;
        Ok(RankResponse {
            scores: rows.into_iter().map(scored).collect::<Result<_, _>>()?,
            timings: Timings {
                media,
                prepare,
                queue,
                forward: computing.elapsed().saturating_sub(queue),
            },
        })
    }

    /// Decodes a query and renders the prompt up to the document.
    async fn head(
        &self,
        (item, (loaded, bytes)): LoadedItem,
        instruction: Option<String>,
        (limit, small, terms): (DocumentLimit, bool, Terms),
    ) -> Outcome<Arc<Head>> {
        let stages = &self.stages;
        let (processor, media) = (stages.processor.clone(), stages.media.clone());
        let at = item.at.clone();
        let batcher = stages.batcher.clone();
        let place = (small, has_media(&loaded));
        // Goes with this future, when the client leaves.
        let (_waiter, patience) = Patience::until(terms.deadline);
        let preparing = move || {
            // Their bytes are needed no longer than this.
            let _held = bytes;
            let means = Means {
                processor: &processor,
                media: &media,
                patience: &patience,
                hold: &|bytes| batcher.hold(bytes, 0),
            };
            let query = Query {
                instruction,
                parts: patched(&means, &item.parts, loaded)?.0,
            };
            let prompt = processor
                .pair_head(&query, limit.context.max_tokens)
                .map_err(|error| ServiceError::unprepared(item.at, error))?;
            let keys = Identity::media_keys(prompt.media());
            Ok((prompt, keys))
        };
        let (prompt, media) = stages.prepared(place, preparing).await?;
        let held = stages.batcher.hold(prompt.pixel_bytes(), 0);
        Ok(Arc::new(Head {
            prompt,
            media,
            _held: held.map_err(|error| ServiceError::at(&at, error))?,
        }))
    }

    /// Decodes a document and renders the rest of its prompt. Also returns the memory of its own pixels.
    async fn pair(
        &self,
        head: Arc<Head>,
        (item, (loaded, bytes)): LoadedItem,
        (limit, small, terms): (DocumentLimit, bool, Terms),
    ) -> Outcome<(Ready, usize)> {
        let stages = &self.stages;
        let (processor, media) = (stages.processor.clone(), stages.media.clone());
        let batcher = stages.batcher.clone();
        let place = (small, has_media(&loaded));
        // Goes with this future, when the client leaves.
        let (_waiter, patience) = Patience::until(terms.deadline);
        let preparing = move || {
            let _held = bytes;
            let means = Means {
                processor: &processor,
                media: &media,
                patience: &patience,
                hold: &|bytes| batcher.hold(bytes, 0),
            };
            let (parts, _) = patched(&means, &item.parts, loaded)?;
            let prepared = processor
                .pair(&head.prompt, &parts, limit)
                .map_err(|error| ServiceError::unprepared(item.at, error))?;
            let identity = Identity::of_knowing(&prepared.sequence, &head.media);
            let own = Cost::of(&prepared.sequence).pixel_bytes - head.prompt.pixel_bytes();
            let ready = Ready {
                tokens: prepared.tokens,
                truncated: prepared.truncated,
                input: Input {
                    sequence: prepared.sequence,
                    identity,
                    held: Held::default(),
                    follows: false,
                },
            };
            Ok((ready, own))
        };
        stages.prepared(place, preparing).await
    }
}

impl Embedder {
    /// Scores all pairs of a request by the cosine of their embeddings: what can be said without a reranker. `documents` is the
    /// instruction documents are embedded with, the request's own is for its queries.
    ///
    /// # Errors
    /// As [`Embedder::embed`].
    pub async fn rank(
        &self,
        request: RankRequest,
        documents: Option<String>,
    ) -> Result<RankResponse, ServiceError> {
        let input = |instruction: Option<String>, limit: DocumentLimit| {
            move |item: RankItem| EmbedInput {
                at: item.at,
                instruction: instruction.clone(),
                parts: item.parts,
                raw: false,
                limit: limit.context,
                max_text_tokens: limit.max_document_tokens,
            }
        };
        let count = request.queries.len();
        // As with a reranker, only documents are ever cut.
        let whole = DocumentLimit {
            context: ContextLimit {
                truncation: Truncation::None,
                ..request.limit.context
            },
            max_document_tokens: None,
        };
        let queries = request
            .queries
            .into_iter()
            .map(input(request.instruction, whole));
        let documents = request
            .documents
            .into_iter()
            .map(input(documents, request.limit));
        let embedding = EmbedRequest {
            inputs: queries.chain(documents).collect(),
            dimensions: None,
            normalize: true,
            partial: false,
            timeout: request.timeout,
            tenant: request.tenant,
            priority: request.priority,
        };
        let answer = self.embed(embedding).await?;
        let mut queries = fully(answer.outputs);
        let documents = queries.split_off(count.min(queries.len()));
        let mut charged = vec![false; count];
        let mut scores = Vec::with_capacity(request.pairs.len());
        for (query, document) in request.pairs {
            let (of, document) = (&queries[query], &documents[document]);
            let cosine = cosine(&of.vector, &document.vector);
            let mut scored = Scored {
                score: cosine,
                raw: cosine,
                tokens: document.tokens,
                cached_tokens: document.cached_tokens,
                truncated: document.truncated,
            };
            if !std::mem::replace(&mut charged[query], true) {
                scored.tokens.text_tokens += of.tokens.text_tokens;
                scored.tokens.image_tokens += of.tokens.image_tokens;
                scored.tokens.video_tokens += of.tokens.video_tokens;
                scored.cached_tokens += of.cached_tokens;
            }
            scores.push(scored);
        }
        Ok(RankResponse {
            scores,
            timings: answer.timings,
        })
    }
}

/// The results of a stage that ended without a fault.
fn fully<T>(outcomes: Vec<Outcome<T>>) -> Vec<T> {
    outcomes.into_iter().flatten().collect()
}

/// A query or document whose bytes are here: its parts, and the memory of what was not in the request itself.
type LoadedItem = (RankItem, (Vec<Loaded>, Vec<Held>));

/// What a request shows before it is prepared, and whether that is little.
fn outline(request: &RankRequest, terms: Terms) -> (Outline, bool) {
    let extent = extent(request);
    let outline = Outline {
        task: Task::Rerank,
        tenant: terms.tenant,
        priority: terms.priority,
        deadline: terms.deadline,
        inputs: request.pairs.len(),
        text_bytes: extent.text_bytes,
        media: extent.media,
    };
    (outline, extent.is_small())
}

/// How much there is to prepare. A query that stands before many documents is prepared, and computed, once.
fn extent(request: &RankRequest) -> Extent {
    let mut extent = Extent::default();
    for item in request.queries.iter().chain(&request.documents) {
        extent.text_bytes += PAIR_BYTES;
        extent.add_parts(&item.parts);
    }
    extent
}

/// Refuses a request whose pairs would take too much memory.
fn check_tokens(heads: &[Arc<Head>], queries: &[usize]) -> Result<(), ServiceError> {
    let of_pair = |query: &usize| heads[*query].prompt.tokens();
    let tokens: usize = queries.iter().map(of_pair).sum();
    if tokens <= MAX_TOKENS {
        return Ok(());
    }
    Err(ServiceError {
        at: Some("documents".to_owned()),
        cause: Cause::TooManyPairTokens {
            pairs: queries.len(),
            tokens,
            limit: MAX_TOKENS,
        },
    })
}
