//! `POST /v1/embeddings`.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use serde_json::Value;
use tokio::time::timeout;

use super::error::{ApiError, ErrorCode};
use super::fields::Fields;
use super::options::{self, Encoding, Options};
use super::record::{self, Tokens};
use super::response::{self, Envelope};
use super::{ApiSettings, ApiState, body, grammar};
use crate::batcher::{Batcher, BatcherError};
use crate::model::Tenant;
use crate::service::{Cause, EmbedRequest, EmbedResponse, Embedded, ServiceError, Timings};
use crate::telemetry::metrics::TokensAnswered;
use crate::telemetry::{self, traces};

/// Bodies above this many bytes are read off the async threads.
const SMALL_BYTES: usize = 64 * 1024;
/// Most inputs `encoding_format: "bytes"` answers: its `metadata` header has about 120 bytes for each, and Python's HTTP client
/// reads no header line above 64 KiB.
const MOST_IN_BYTES: usize = 256;
/// Longest `x-ignored-fields`.
const MOST_IGNORED_BYTES: usize = 1024;
/// Answers of more vectors than this are written off the async threads.
const FEW_VECTORS: usize = 16;

/// A request body, read.
struct Parsed {
    request: EmbedRequest,
    options: Options,
    ids: Vec<Option<String>>,
}

/// The route.
pub(super) async fn create(
    State(state): State<ApiState>,
    request: Request,
) -> Result<Response, ApiError> {
    let started = Instant::now();
    // `require_key` says whose request it is.
    let tenant = request.extensions().get().copied().unwrap_or_default();
    let served = state.served()?;
    check_content_type(request.headers())?;
    let most = state.settings.request_timeout;
    let allowed = allowed_time(request.headers(), most)?;
    let patience = state.settings.body_timeout.min(allowed);
    let body = body::read(request, state.settings.max_body_bytes, patience);
    let body = timeout(allowed, body)
        .await
        .map_err(|_| too_late(allowed))??;
    let parse = {
        let (settings, hidden_size) = (state.settings.clone(), served.info.hidden_size);
        let large = body.len() > SMALL_BYTES;
        run(&state, large, move || {
            parse(&body, &settings, hidden_size, allowed)
        })
    };
    let Parsed {
        mut request,
        options,
        ids,
    } = parse.await??;
    // What the body took is gone.
    request.timeout = allowed.saturating_sub(started.elapsed());
    request.tenant = tenant;
    served.check_name(options.model.as_deref())?;
    let answer = served.embedder.embed(request).await;
    let answer = answer.map_err(|error| match error.cause {
        Cause::Deadline(_) | Cause::Batcher(BatcherError::Expired) => too_late(allowed),
        _ => error.into(),
    })?;
    let envelope = Envelope {
        id: record::new_id("embd"),
        created: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
        model: options
            .model
            .clone()
            .unwrap_or_else(|| served.names[0].clone()),
    };
    let embed_cache = embed_cache(served.embedder.batcher(), &answer.outputs);
    let ignored = ignored_fields(&options.ignored);
    let (timings, many) = (answer.timings, answer.outputs.len() > FEW_VECTORS);
    let tokens = count(&answer);
    let mut response = run(&state, many, move || {
        response::build(answer.outputs, ids, &options, &envelope)
    })
    .await?;
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

fn too_late(allowed: Duration) -> ApiError {
    let message = format!("the request took longer than {} ms", allowed.as_millis());
    ApiError::new(ErrorCode::DeadlineExceeded, message)
}

/// Runs `work` here when it is little, else where it may block, as many at a time as there are cores.
async fn run<T: Send + 'static>(
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
        ApiError::new(
            ErrorCode::InternalError,
            "the server failed on this request",
        )
    };
    tokio::task::spawn_blocking(work).await.map_err(failed)
}

fn parse(
    body: &Bytes,
    settings: &ApiSettings,
    hidden_size: usize,
    timeout: Duration,
) -> Result<Parsed, ApiError> {
    let body: Value = serde_json::from_slice(body).map_err(|error| {
        let message = format!(
            "the body is not JSON: line {}, column {}",
            error.line(),
            error.column()
        );
        ApiError::new(ErrorCode::InvalidJson, message)
    })?;
    let Some(map) = body.as_object() else {
        return Err(ApiError::new(
            ErrorCode::InvalidJson,
            "the body must be a JSON object",
        ));
    };
    let fields = Fields { map, at: "" };
    let options = options::parse(fields, settings, hidden_size)?;
    let inputs = grammar::parse(fields, &options.item, settings)?;
    let count = inputs.inputs.len();
    if options.encoding == Encoding::Bytes && count > MOST_IN_BYTES {
        let message = format!(
            "encoding_format is \"bytes\", which answers up to {MOST_IN_BYTES} inputs; these are {count}"
        );
        return Err(ApiError::invalid("encoding_format", message));
    }
    let request = EmbedRequest {
        inputs: inputs.inputs,
        dimensions: options.dimensions,
        normalize: options.normalize,
        partial: options.partial,
        timeout,
        tenant: Tenant::default(),
        priority: options.priority,
    };
    Ok(Parsed {
        request,
        options,
        ids: inputs.ids,
    })
}

/// JSON, or not said.
fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Ok(());
    };
    let essence = value
        .to_str()
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    if essence == "application/json" || essence.ends_with("+json") {
        return Ok(());
    }
    let message = format!("the content type is {essence:?}, it must be application/json");
    Err(ApiError::new(ErrorCode::UnsupportedMediaType, message))
}

/// What the client gives itself, at most what the server gives.
fn allowed_time(headers: &HeaderMap, most: Duration) -> Result<Duration, ApiError> {
    let name = "x-request-timeout-ms";
    let Some(value) = headers.get(name) else {
        return Ok(most);
    };
    let text = value.to_str().unwrap_or_default();
    match text.parse::<u64>() {
        Ok(ms) if ms > 0 => Ok(Duration::from_millis(ms).min(most)),
        _ => Err(ApiError::invalid(
            name,
            format!("{name} is {text:?}, it must be a whole number of milliseconds above 0"),
        )),
    }
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
    let Timings {
        media,
        prepare,
        queue,
        forward,
    } = answer.timings;
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
    Tokens(sum.text + sum.image + sum.video)
}

fn server_timing(timings: Timings) -> String {
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
fn ignored_fields(names: &[String]) -> String {
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

fn add(headers: &mut HeaderMap, name: &'static str, value: &str) {
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
