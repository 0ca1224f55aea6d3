//! The outside of a request: its time, its content type, its body. In: an HTTP request. Out: a JSON object or a form.

use std::time::Duration;

use axum::http::{HeaderMap, header};
use bytes::Bytes;
use serde_json::{Map, Value};
use tokio::runtime::Handle;

use super::ApiState;
use super::error::{ApiError, ErrorCode};
use super::form::Form;

/// A request body, read.
#[derive(Debug)]
pub(super) enum Body {
    /// A JSON object.
    Json(Map<String, Value>),
    /// `multipart/form-data`.
    Form(Form),
}

/// What a body is declared to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ContentKind {
    Json,
    /// With the boundary between its fields.
    Form(String),
}

/// JSON, or not said; a form where the route takes one.
pub(super) fn content_kind(headers: &HeaderMap, forms: bool) -> Result<ContentKind, ApiError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Ok(ContentKind::Json);
    };
    let value = value.to_str().unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default();
    let essence = essence.trim().to_ascii_lowercase();
    if essence == "application/json" || essence.ends_with("+json") {
        return Ok(ContentKind::Json);
    }
    if forms && essence == "multipart/form-data" {
        let boundary = multer::parse_boundary(value);
        return boundary.map(ContentKind::Form).map_err(|_| {
            let message = "the content type multipart/form-data lacks its boundary";
            ApiError::new(ErrorCode::UnsupportedMediaType, message)
        });
    }
    let right = match forms {
        true => "application/json or multipart/form-data",
        false => "application/json",
    };
    let message = format!("the content type is {essence:?}, it must be {right}");
    Err(ApiError::new(ErrorCode::UnsupportedMediaType, message))
}

/// Has `work` read a request: here when it is small, else behind whatever else wants the cores, for a picture's JSON has megabytes.
pub(super) async fn read<T: Send + 'static>(
    state: &ApiState,
    large: bool,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    if !large {
        return Ok(work());
    }
    // A form is a stream to those who take it apart.
    let runtime = Handle::current();
    let reading = state.loaded()?.readers.run(move || {
        let _entered = runtime.enter();
        work()
    });
    // It panicked, and that was logged.
    reading.await.ok_or_else(ApiError::internal)
}

/// Reads the bytes of a body; blocks while a form is taken apart.
pub(super) fn parse(bytes: Bytes, kind: &ContentKind) -> Result<Body, ApiError> {
    let boundary = match kind {
        ContentKind::Json => return json(&bytes).map(Body::Json),
        ContentKind::Form(boundary) => boundary,
    };
    Form::parse(bytes, boundary).map(Body::Form)
}

/// A JSON object.
pub(super) fn json(bytes: &[u8]) -> Result<Map<String, Value>, ApiError> {
    let body = serde_json::from_slice(bytes).map_err(|error| {
        let message = format!(
            "the body is not JSON: line {}, column {}",
            error.line(),
            error.column()
        );
        ApiError::new(ErrorCode::InvalidJson, message)
    })?;
    match body {
        Value::Object(map) => Ok(map),
        _ => Err(ApiError::new(
            ErrorCode::InvalidJson,
            "the body must be a JSON object",
        )),
    }
}

/// What the client gives itself, at most what the server gives.
pub(super) fn allowed_time(headers: &HeaderMap, most: Duration) -> Result<Duration, ApiError> {
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
