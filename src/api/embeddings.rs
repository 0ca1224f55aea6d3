//! `POST /v1/embeddings`.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::Response;
use serde_json::Value;

use super::error::{ApiError, ErrorCode};
use super::fields::Fields;
use super::options::{self, Options};
use super::response::{self, Envelope};
use super::{ApiSettings, ApiState, input};
use crate::service::{EmbedRequest, Timings};

/// Bodies above this many bytes are read off the async threads.
const SMALL_BYTES: usize = 64 * 1024;
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
    let served = state.served()?;
    check_content_type(request.headers())?;
    let timeout = timeout(request.headers(), state.settings.request_timeout)?;
    let body = read_body(request, state.settings.max_body_bytes).await?;
    let parse = {
        let (settings, hidden_size) = (state.settings.clone(), served.info.hidden_size);
        let large = body.len() > SMALL_BYTES;
        run(large, move || parse(&body, &settings, hidden_size, timeout))
    };
    let Parsed {
        request,
        options,
        ids,
    } = parse.await??;
    served.check_name(options.model.as_deref())?;
    let answer = served.embedder.embed(request).await?;
    let envelope = Envelope {
        id: format!("embd-{}", uuid::Uuid::new_v4().simple()),
        created: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
        model: options
            .model
            .clone()
            .unwrap_or_else(|| served.names[0].clone()),
    };
    let ignored = options.ignored.join(", ");
    let (timings, many) = (answer.timings, answer.outputs.len() > FEW_VECTORS);
    let mut response = run(many, move || {
        response::build(answer.outputs, ids, &options, &envelope)
    })
    .await?;
    let headers = response.headers_mut();
    add(
        headers,
        "openai-processing-ms",
        &started.elapsed().as_millis().to_string(),
    );
    add(headers, "server-timing", &server_timing(timings));
    if !ignored.is_empty() {
        add(headers, "x-ignored-fields", &ignored);
    }
    Ok(response)
}

/// Runs `work` here when it is little, else where it may block.
async fn run<T: Send + 'static>(
    much: bool,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    if !much {
        return Ok(work());
    }
    let failed = |_| ApiError::new(ErrorCode::InternalError, "a worker failed");
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
    let inputs = input::parse(fields, &options.item, settings)?;
    let request = EmbedRequest {
        inputs: inputs.inputs,
        dimensions: options.dimensions,
        normalize: options.normalize,
        partial: options.partial,
        timeout,
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
fn timeout(headers: &HeaderMap, most: Duration) -> Result<Duration, ApiError> {
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

/// The body, refused as soon as it is known to be too large.
async fn read_body(request: Request, limit: usize) -> Result<Bytes, ApiError> {
    let too_large = || {
        ApiError::new(
            ErrorCode::RequestTooLarge,
            format!("the body is larger than the limit of {limit} bytes"),
        )
    };
    let declared = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if declared.is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    axum::body::to_bytes(request.into_body(), limit)
        .await
        .map_err(|error| {
            let source = std::error::Error::source(&error);
            if source.is_some_and(|source| source.is::<http_body_util::LengthLimitError>()) {
                return too_large();
            }
            ApiError::new(
                ErrorCode::InvalidJson,
                "the body ended before it was complete",
            )
        })
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
