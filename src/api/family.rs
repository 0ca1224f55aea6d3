//! What all routes that give vectors do, whatever their schema: take a request in, have it embedded, answer.
//!
//! A [`Family`] turns one peer's schema into an [`EmbedRequest`], and vectors into that peer's answer. Everything between is here.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::Response;
use serde_json::{Map, Value};
use tokio::time::timeout;

use super::body::HeldBody;
use super::error::{ApiError, ErrorCode};
use super::grammar::Inputs;
use super::intake::{self, Body, ContentKind};
use super::options::{Options, knows};
use super::record::{self, RequestId, Tokens};
use super::response::{Answered, Envelope};
use super::{ApiSettings, ApiState, Served};
use crate::batcher::{Batcher, BatcherError};
use crate::service::{
    Cause, EmbedRequest, EmbedResponse, Embedded, Explained, ServiceError, Timings,
};
use crate::telemetry::metrics::TokensAnswered;
use crate::telemetry::{self, traces};

/// Bodies above this many bytes are read off the async threads.
pub(super) const SMALL_BYTES: usize = 64 * 1024;
/// Longest `x-ignored-fields`.
const MOST_IGNORED_BYTES: usize = 1024;
/// Answers of more vectors than this are written off the async threads.
const FEW_VECTORS: usize = 16;
/// Longest request id that becomes part of an answer's id, as of the header.
const MOST_ID_BYTES: usize = 128;

/// What bounds the fields of a request.
#[derive(Clone, Copy)]
pub(super) struct Reading<'a> {
    pub(super) settings: &'a ApiSettings,
    /// Width of the model's vectors.
    pub(super) hidden_size: usize,
}

/// What a body asks for.
pub(super) struct Asked {
    pub(super) inputs: Inputs,
    pub(super) options: Options,
}

/// One peer's schema. The value holds what its answer needs of the request beside the options.
pub(super) trait Family: Sized + Send + 'static {
    /// Whether forms are taken beside JSON.
    const FORMS: bool = false;

    /// Reads a body.
    ///
    /// # Errors
    /// [`ApiError`] with the path of what is wrong, as the body has it.
    fn read(body: Body, reading: Reading<'_>) -> Result<(Asked, Self), ApiError>;

    /// Writes an answer.
    ///
    /// # Errors
    /// The first error among the vectors, where the schema has no place for it.
    fn write(self, answered: Answered) -> Result<Response, ApiError>;
}

/// Takes the fields out of a body that its schema does not have, and returns their names.
pub(super) fn ignore_others(map: &mut Map<String, Value>, known: &[&[&str]]) -> Vec<String> {
    let mut ignored = Vec::new();
    map.retain(|name, _| {
        let keep = knows(known, name);
        if !keep {
            ignored.push(name.clone());
        }
        keep
    });
    ignored
}

/// A request that was understood.
struct Taken<F> {
    request: EmbedRequest,
    options: Options,
    ids: Vec<Option<String>>,
    /// Inputs of a partial request that could not be read.
    refused: Vec<(usize, ApiError)>,
    family: F,
    /// Time the client allows.
    allowed: Duration,
    request_id: String,
    /// What its body takes.
    held: HeldBody,
}

/// A route that gives vectors.
pub(super) async fn create<F: Family>(
    State(state): State<ApiState>,
    request: Request,
) -> Result<Response, ApiError> {
    let served = state.served()?;
    let Taken {
        request,
        options,
        ids,
        refused,
        family,
        allowed,
        request_id,
        held: _held,
    } = take_in::<F>(&state, served, request).await?;
    let answer = served.embedder.embed(request).await;
    let answer = answer.map_err(|error| too_late_or(error, allowed))?;
    let embed_cache = embed_cache(served.embedder.batcher(), &answer.outputs);
    let ignored = ignored_fields(&options.ignored);
    let (timings, many) = (answer.timings, answer.outputs.len() > FEW_VECTORS);
    let tokens = count(&answer);
    let answered = Answered {
        outputs: with_refused(answer.outputs, refused),
        ids,
        envelope: envelope(&options, request_id, served),
        options,
    };
    let mut response = run(&state, many, move || family.write(answered)).await??;
    response.extensions_mut().insert(tokens);
    let headers = response.headers_mut();
    add(headers, "server-timing", &server_timing(timings));
    if let Some(word) = embed_cache {
        headers.insert("x-embed-cache", HeaderValue::from_static(word));
    }
    if !ignored.is_empty() {
        add(headers, "x-ignored-fields", &ignored);
    }
    Ok(response)
}

/// What becomes of each input, or why it would be refused.
pub(super) type Explanations = Vec<Result<Explained, ApiError>>;

/// A route that tells what would be embedded; `write` makes its answer.
pub(super) async fn explain<F: Family>(
    state: ApiState,
    request: Request,
    write: fn(Explanations, Vec<Option<String>>, &Envelope) -> Response,
) -> Result<Response, ApiError> {
    let served = state.served()?;
    let taken = take_in::<F>(&state, served, request).await?;
    let explained = served.embedder.explain(taken.request).await;
    let explained = explained.map_err(|error| too_late_or(error, taken.allowed))?;
    let outputs = with_refused(explained.outputs, taken.refused);
    let envelope = envelope(&taken.options, taken.request_id, served);
    let ids = taken.ids;
    let mut response = run(&state, true, move || write(outputs, ids, &envelope)).await?;
    let headers = response.headers_mut();
    add(headers, "server-timing", &server_timing(explained.timings));
    let ignored = ignored_fields(&taken.options.ignored);
    if !ignored.is_empty() {
        add(headers, "x-ignored-fields", &ignored);
    }
    Ok(response)
}

/// Reads a request and checks all that can be checked before media are loaded.
async fn take_in<F: Family>(
    state: &ApiState,
    served: &Served,
    request: Request,
) -> Result<Taken<F>, ApiError> {
    let started = Instant::now();
    // `guard` says whose request it is.
    let tenant = request.extensions().get().copied().unwrap_or_default();
    let request_id = request.extensions().get::<RequestId>().cloned();
    let kind = intake::content_kind(request.headers(), F::FORMS)?;
    let most = state.settings.request_timeout;
    let allowed = intake::allowed_time(request.headers(), most)?;
    let patience = state.settings.body_timeout.min(allowed);
    let most = state.settings.max_body_bytes;
    let body = state.bodies.read(request, most, patience);
    let body = timeout(allowed, body).await;
    let (body, held) = body.map_err(|_| too_late(allowed))??;
    let (settings, hidden_size) = (state.settings.clone(), served.info.hidden_size);
    let large = body.len() > SMALL_BYTES || kind != ContentKind::Json;
    let parse = intake::read(state, large, move || {
        let body = intake::parse(body, &kind)?;
        let reading = Reading {
            settings: &settings,
            hidden_size,
        };
        F::read(body, reading)
    });
    let (Asked { inputs, options }, family) = parse.await??;
    served.check_name(options.model.as_deref())?;
    let request = EmbedRequest {
        inputs: inputs.inputs,
        dimensions: options.dimensions,
        normalize: options.normalize,
        partial: options.item.partial,
        // What the body took is gone.
        timeout: allowed.saturating_sub(started.elapsed()),
        tenant,
        priority: options.priority,
    };
    Ok(Taken {
        request,
        options,
        ids: inputs.ids,
        refused: inputs.refused,
        family,
        allowed,
        request_id: request_id.map_or_else(String::new, |id| id.0),
        held,
    })
}

/// What came of the inputs, and in their places those that could not be read.
fn with_refused<T>(
    outputs: Vec<Result<T, ServiceError>>,
    refused: Vec<(usize, ApiError)>,
) -> Vec<Result<T, ApiError>> {
    let mut read = outputs
        .into_iter()
        .map(|output| output.map_err(ApiError::from));
    let mut refused = refused.into_iter().peekable();
    let mut all = Vec::with_capacity(read.len() + refused.len());
    loop {
        match refused.next_if(|(place, _)| *place == all.len()) {
            Some((_, error)) => all.push(Err(error)),
            None => match read.next() {
                Some(output) => all.push(output),
                None => return all,
            },
        }
    }
}

fn envelope(options: &Options, request_id: String, served: &Served) -> Envelope {
    let model = options.model.clone();
    Envelope {
        id: answer_id("embd", options.request_id.as_deref()),
        request_id,
        created: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
        model: model.unwrap_or_else(|| served.names[0].clone()),
    }
}

/// The id of an answer: a new one unless the client's own can be part of it.
pub(super) fn answer_id(prefix: &str, own: Option<&str>) -> String {
    let own = own.filter(|id| {
        !id.is_empty() && id.len() <= MOST_ID_BYTES && id.bytes().all(|b| b.is_ascii_graphic())
    });
    own.map_or_else(|| record::new_id(prefix), |id| format!("{prefix}-{id}"))
}

pub(super) fn too_late(allowed: Duration) -> ApiError {
    let message = format!("the request took longer than {} ms", allowed.as_millis());
    ApiError::new(ErrorCode::DeadlineExceeded, message)
}

fn too_late_or(error: ServiceError, allowed: Duration) -> ApiError {
    match error.cause {
        Cause::Deadline(_) | Cause::Batcher(BatcherError::Expired) => too_late(allowed),
        _ => error.into(),
    }
}

/// Runs `work` here when it is little, else where it may block, as many at a time as there are cores.
pub(super) async fn run<T: Send + 'static>(
    state: &ApiState,
    much: bool,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    if !much {
        return Ok(work());
    }
    let permit = Arc::clone(&state.workers).acquire_owned().await;
    let work = move || {
        let _permit = permit;
        work()
    };
    let failed = |error| {
        tracing::error!(%error, "a worker failed");
        ApiError::internal()
    };
    tokio::task::spawn_blocking(work).await.map_err(failed)
}

/// Counts what was embedded and how long each stage took.
fn count(answer: &EmbedResponse) -> Tokens {
    let mut sum = TokensAnswered::default();
    let (mut answered, mut hits) = (0, 0);
    for output in answer.outputs.iter().flatten() {
        answered += 1;
        hits += usize::from(output.cached_tokens > 0);
        sum.text += output.tokens.text_tokens;
        sum.image += output.tokens.image_tokens;
        sum.video += output.tokens.video_tokens;
        sum.cached += output.cached_tokens;
    }
    let metrics = telemetry::metrics();
    metrics.embedded(answered, sum);
    metrics.cache("prefix", hits, answered - hits);
    stages_took(answer.timings);
    Tokens(sum.text + sum.image + sum.video)
}

/// Counts how long each stage took.
pub(super) fn stages_took(timings: Timings) {
    let metrics = telemetry::metrics();
    let Timings {
        media,
        prepare,
        queue,
        forward,
    } = timings;
    let stages = [
        ("media", "manifold.media_us", media),
        ("prepare", "manifold.prepare_us", prepare),
        ("queue", "manifold.queue_us", queue),
        ("forward", "manifold.forward_us", forward),
    ];
    for (stage, _, took) in stages {
        metrics.stage(stage, took);
    }
    let attributes = stages.map(|(_, name, took)| (name, took.as_micros() as i64));
    traces::set_attributes(&tracing::Span::current(), &attributes, false);
}

pub(super) fn server_timing(timings: Timings) -> String {
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    format!(
        "media;dur={:.2}, prepare;dur={:.2}, queue;dur={:.2}, forward;dur={:.2}",
        ms(timings.media),
        ms(timings.prepare),
        ms(timings.queue),
        ms(timings.forward)
    )
}

/// Whether all vectors were at hand from earlier requests; not said where none are kept.
fn embed_cache(
    batcher: &Batcher,
    outputs: &[Result<Embedded, ServiceError>],
) -> Option<&'static str> {
    let hit = |output: &Result<Embedded, _>| output.as_ref().is_ok_and(|output| output.from_cache);
    let word = if outputs.iter().all(hit) {
        "hit"
    } else {
        "miss"
    };
    batcher.keeps_rows().then_some(word)
}

/// Names of fields that mean nothing here, as many as fit a header.
pub(super) fn ignored_fields(names: &[String]) -> String {
    let mut text = String::new();
    for name in names {
        if text.len() + name.len() + 2 > MOST_IGNORED_BYTES {
            text.push_str(", ...");
            break;
        }
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(name);
    }
    text
}

pub(super) fn add(headers: &mut HeaderMap, name: &'static str, value: &str) {
    // Field names a client made up may hold characters no header can.
    let visible: String = value
        .chars()
        .map(|c| {
            if c.is_ascii_graphic() || c == ' ' {
                c
            } else {
                '?'
            }
        })
        .collect();
    if let Ok(value) = HeaderValue::from_str(&visible) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

#[cfg(test)]
mod tests;
