//! What the routes that score documents have in common: taking a request in, having its pairs scored, and saying by what.
//!
//! In: a body with queries and documents. Out: a score for each pair, by the reranker where one is loaded, else by the cosine of
//! embeddings; the field `scored_by` and the header `x-scored-by` say which.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::extract::Request;
use axum::http::HeaderValue;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use super::error::{ApiError, ErrorCode};
use super::family::{SMALL_BYTES, add, ignored_fields, run, server_timing, stages_took, too_late};
use super::fields::{Fields, object, path, shown};
use super::intake::{self, allowed_time, content_kind};
use super::loaded::Ranker;
use super::options::{PIXEL_FIELDS, limit, pixel_options, priority};
use super::part::{self, Context};
use super::record::Tokens;
use super::{ApiSettings, ApiState, family, grammar, instruction, tei};
use crate::batcher::BatcherError;
use crate::processor::{DocumentLimit, PixelOptions, TokenCounts, Truncation};
use crate::service::{Cause, RankItem, RankRequest, RankResponse, Scored};
use crate::telemetry::{self, metrics::TokensAnswered};

/// Answers of more scores than this, or to large bodies, are written off the async threads.
const FEW_SCORES: usize = 256;
/// Fields all of these routes know beside their own.
pub(super) const KNOWN: &[&str] = &[
    "model",
    "instruction",
    "instruct",
    "prompt",
    "input_type",
    "prompt_name",
    "task",
    "truncate",
    "truncation_side",
    "truncate_prompt_tokens",
    "max_tokens",
    "max_tokens_per_doc",
    "mm_processor_kwargs",
    "priority",
    "user",
    "request_id",
];
/// The configured instruction of queries whose request names none, where embeddings are compared.
const QUERY: &str = "query";
/// That of documents.
const DOCUMENT: &str = "document";

/// Queries and documents, read.
pub(super) struct Asked<T> {
    pub(super) queries: Vec<RankItem>,
    pub(super) documents: Vec<RankItem>,
    /// Query and document of each score.
    pub(super) pairs: Vec<(usize, usize)>,
    /// What the answer needs of the body.
    pub(super) own: T,
}

/// How items are read.
#[derive(Clone, Copy)]
pub(super) struct Reading<'a> {
    settings: &'a ApiSettings,
    pixels: PixelOptions,
}

/// Scores, and what is said beside them.
pub(super) struct Ranked<T> {
    pub(super) scores: Vec<Scored>,
    pub(super) model: String,
    /// `reranker` or `cosine`.
    pub(super) scored_by: &'static str,
    pub(super) echo: Echo,
    pub(super) own: T,
}

/// What a client says to find in the answer.
#[derive(Default)]
pub(super) struct Echo {
    pub(super) user: Option<String>,
    pub(super) request_id: Option<String>,
}

impl<T> Ranked<T> {
    /// The answer's id: the client's own where it can be one.
    pub(super) fn id(&self, prefix: &str) -> String {
        family::answer_id(prefix, self.echo.request_id.as_deref())
    }

    /// Repeats what the client said of itself.
    pub(super) fn with_user(&self, mut answer: Value) -> Value {
        if let Some(user) = &self.echo.user {
            answer["user"] = user.as_str().into();
        }
        answer
    }

    /// `usage` of the OpenAI API.
    pub(super) fn usage(&self) -> Value {
        let (sum, cached) = total(&self.scores);
        json!({
            "prompt_tokens": sum.total(),
            "total_tokens": sum.total(),
            "prompt_tokens_details": {
                "text_tokens": sum.text_tokens,
                "image_tokens": sum.image_tokens,
                "video_tokens": sum.video_tokens,
                "cached_tokens": cached,
            },
        })
    }
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// A request that was understood.
struct Taken<T> {
    request: RankRequest,
    model: Option<String>,
    ignored: Vec<String>,
    echo: Echo,
    own: T,
}

/// What a route does of its own: its fields, how it reads them, and how it writes an answer.
pub(super) struct Schema<T: 'static> {
    pub(super) fields: &'static [&'static str],
    pub(super) read: fn(Fields<'_>, Reading<'_>) -> Result<Asked<T>, ApiError>,
    pub(super) write: fn(Ranked<T>) -> Value,
}

/// A route that scores.
pub(super) async fn answer<T: Send + 'static>(
    state: ApiState,
    request: Request,
    schema: Schema<T>,
) -> Result<Response, ApiError> {
    let started = Instant::now();
    // `guard` says whose request it is.
    let tenant = request.extensions().get().copied().unwrap_or_default();
    let loaded = state.loaded()?;
    content_kind(request.headers(), false)?;
    let allowed = allowed_time(request.headers(), state.settings.request_timeout)?;
    let patience = state.settings.body_timeout.min(allowed);
    let most = state.settings.max_body_bytes;
    let body = state.bodies.read(request, most, patience);
    let body = timeout(allowed, body).await;
    let (body, _held) = body.map_err(|_| too_late(allowed))??;
    let settings = state.settings.clone();
    let (read, fields) = (schema.read, schema.fields);
    let large = body.len() > SMALL_BYTES;
    let parse = move || parse(&intake::json(&body)?, &settings, (fields, read));
    let mut taken = intake::read(&state, large, parse).await??;
    let ranker = loaded.ranker(taken.model.as_deref())?;
    // What the body took is gone.
    taken.request.timeout = allowed.saturating_sub(started.elapsed());
    taken.request.tenant = tenant;
    let answer = match ranker {
        Ranker::Reranker(served) => served.reranker.rank(taken.request).await,
        Ranker::Embedder(served) => {
            let named = |name: &str| state.settings.instructions.get(name).cloned();
            let own = taken.request.instruction.take();
            taken.request.instruction = own.or_else(|| named(QUERY));
            served.embedder.rank(taken.request, named(DOCUMENT)).await
        }
    };
    let answer = answer.map_err(|error| match error.cause {
        Cause::Deadline(_) | Cause::Batcher(BatcherError::Expired) => too_late(allowed),
        _ => error.into(),
    })?;
    let tokens = count(&answer);
    let timings = answer.timings;
    let scored_by = ranker.word();
    let ranked = Ranked {
        scores: answer.scores,
        model: taken.model.unwrap_or_else(|| ranker.name().to_owned()),
        scored_by,
        echo: taken.echo,
        own: taken.own,
    };
    let (write, much) = (schema.write, large || ranked.scores.len() > FEW_SCORES);
    let written = move || axum::Json(write(ranked)).into_response();
    let mut response = run(&state, much, written).await?;
    response.extensions_mut().insert(tokens);
    let headers = response.headers_mut();
    add(headers, "server-timing", &server_timing(timings));
    headers.insert("x-scored-by", HeaderValue::from_static(scored_by));
    let ignored = ignored_fields(&taken.ignored);
    if !ignored.is_empty() {
        add(headers, "x-ignored-fields", &ignored);
    }
    Ok(response)
}

type Read<T> = fn(Fields<'_>, Reading<'_>) -> Result<Asked<T>, ApiError>;

fn parse<T>(
    map: &Map<String, Value>,
    settings: &ApiSettings,
    (own_fields, read): (&[&str], Read<T>),
) -> Result<Taken<T>, ApiError> {
    let body = Fields { map, at: "" };
    let known = [KNOWN, PIXEL_FIELDS, own_fields];
    let is_known = |name: &str| known.iter().any(|list| list.contains(&name));
    let ignored = map.keys().filter(|name| !is_known(name)).cloned();
    let instruction = instruction::parse(body, settings)?;
    let priority = priority(body)?;
    let echo = Echo {
        user: body.string(&["user"])?.map(str::to_owned),
        request_id: body.string(&["request_id"])?.map(str::to_owned),
    };
    let mut pixels = settings.pixels;
    if let Some((at, kwargs)) = body.get("mm_processor_kwargs") {
        let kwargs = object(&at, kwargs)?;
        kwargs.only(&[&PIXEL_FIELDS[..4]])?;
        pixels = pixel_options(kwargs, pixels, settings)?;
    }
    let reading = Reading {
        settings,
        pixels: pixel_options(body, pixels, settings)?,
    };
    let mut limit = document_limit(body, settings)?;
    if own_fields.contains(&tei::DIRECTION)
        && tei::cuts_left(body)?
        && limit.context.truncation == Truncation::End
    {
        limit.context.truncation = Truncation::Start;
    }
    let asked = read(body, reading)?;
    let request = RankRequest {
        queries: asked.queries,
        documents: asked.documents,
        pairs: asked.pairs,
        // A blank one is the default.
        instruction: instruction.filter(|text| !text.trim().is_empty()),
        limit,
        timeout: settings.request_timeout,
        tenant: Default::default(),
        priority,
    };
    Ok(Taken {
        request,
        model: body.string(&["model"])?.map(str::to_owned),
        ignored: ignored.collect(),
        echo,
        own: asked.own,
    })
}

/// How long a pair may be, and how much of a document counts.
fn document_limit(body: Fields<'_>, settings: &ApiSettings) -> Result<DocumentLimit, ApiError> {
    let context = limit(body, settings)?;
    if context.truncation == Truncation::Reference {
        let message = "truncate is \"REFERENCE\", which cuts what is embedded; for pairs it must be true, false, NONE, START or END";
        return Err(ApiError::invalid("truncate", message));
    }
    let most = settings.max_input_tokens as u64;
    let of_document = body.integer(&["max_tokens_per_doc"], (1, u64::from(u32::MAX)))?;
    Ok(DocumentLimit {
        context,
        max_document_tokens: of_document.map(|tokens| tokens.min(most) as usize),
    })
}

impl Reading<'_> {
    /// A query or a document: a text, parts, a part, `{"content": …}` or `{"text", "image", "video"}`.
    pub(super) fn item(&self, at: &str, value: &Value) -> Result<RankItem, ApiError> {
        let settings = self.settings;
        let context = Context {
            pixels: self.pixels,
            settings,
        };
        let parts = match value {
            Value::String(_) | Value::Array(_) => part::content(at, value, context)?,
            Value::Object(map) => {
                let fields = Fields { map, at };
                let own = Context {
                    pixels: pixel_options(fields, self.pixels, settings)?,
                    settings,
                };
                if map.contains_key("type") {
                    vec![part::lone(fields, context)?]
                } else if let Some(content) = map.get("content") {
                    fields.only(&[&["content"], PIXEL_FIELDS])?;
                    part::content(&path(at, "content"), content, own)?
                } else {
                    fields.only(&[&["text", "image", "video"], PIXEL_FIELDS])?;
                    grammar::reference_order(fields, own)?
                }
            }
            other => {
                let message = format!(
                    "{at} is {}, it must be a string, a list of parts or an object",
                    shown(other)
                );
                return Err(ApiError::invalid(at, message));
            }
        };
        Ok(RankItem {
            at: at.to_owned(),
            parts,
        })
    }

    /// A list of them; `{"content": [part, …]}` is vLLM's spelling of one.
    pub(super) fn items(&self, at: &str, value: &Value) -> Result<Vec<RankItem>, ApiError> {
        if let Some(content @ Value::Array(_)) = value.get("content") {
            object(at, value)?.only(&[&["content"]])?;
            return self.items(&path(at, "content"), content);
        }
        let wrong =
            || ApiError::invalid(at, format!("{at} is {}, it must be a list", shown(value)));
        let list = value.as_array().ok_or_else(wrong)?;
        let most = self.settings.max_inputs;
        if list.is_empty() {
            let message = format!("{at} is an empty list, it must hold at least one");
            return Err(ApiError::invalid(at, message));
        }
        if list.len() > most {
            let message = format!("{at} has {} entries, the limit is {most}", list.len());
            return Err(ApiError::at(ErrorCode::TooManyInputs, at, message));
        }
        let items = list.iter().enumerate();
        items
            .map(|(i, item)| self.item(&format!("{at}[{i}]"), item))
            .collect()
    }
}

/// Tokens of all scores, and how many of them were not computed again.
fn total(scores: &[Scored]) -> (TokenCounts, usize) {
    let mut sum = TokenCounts::default();
    let mut cached = 0;
    for scored in scores {
        sum.text_tokens += scored.tokens.text_tokens;
        sum.image_tokens += scored.tokens.image_tokens;
        sum.video_tokens += scored.tokens.video_tokens;
        cached += scored.cached_tokens;
    }
    (sum, cached)
}

/// Counts what was scored and how long each stage took.
fn count(answer: &RankResponse) -> Tokens {
    let (sum, cached) = total(&answer.scores);
    let hits = answer
        .scores
        .iter()
        .filter(|scored| scored.cached_tokens > 0);
    let (hits, all) = (hits.count(), answer.scores.len());
    let metrics = telemetry::metrics();
    metrics.embedded(
        all,
        TokensAnswered {
            text: sum.text_tokens,
            image: sum.image_tokens,
            video: sum.video_tokens,
            cached,
        },
    );
    metrics.cache("prefix", hits, all - hits);
    stages_took(answer.timings);
    Tokens(sum.total())
}

#[cfg(test)]
mod tests;
