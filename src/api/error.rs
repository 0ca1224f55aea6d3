//! THE table: every cause a client can meet, its status, type and code, and the body and headers it leaves with.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::batcher::BatcherError;
use crate::media::MediaError;
use crate::processor::ProcessorError;
use crate::service::{Cause, QuotaError, ServiceError};
use crate::vectors::VectorError;

/// A cause, as clients know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// The body is not JSON.
    InvalidJson,
    /// A field has a value it cannot have.
    InvalidValue,
    /// An input or a part has a field it cannot have.
    UnknownField,
    /// More inputs than a request may have.
    TooManyInputs,
    /// An input has more tokens than the context.
    ContextLengthExceeded,
    /// `dimensions` is out of range.
    InvalidDimensions,
    /// A picture cannot be decoded or used.
    InvalidImage,
    /// A video cannot be decoded or used.
    InvalidVideo,
    /// A format this server does not read.
    UnsupportedMedia,
    /// A URL could not be fetched.
    MediaFetchFailed,
    /// A URL the policy refuses.
    MediaUrlBlocked,
    /// No key, or a wrong one.
    InvalidApiKey,
    /// A model that is not served.
    ModelNotFound,
    /// No such route.
    NotFound,
    /// The route has another method.
    MethodNotAllowed,
    /// The body did not come.
    RequestTimeout,
    /// The body is over the limit.
    RequestTooLarge,
    /// A picture or video is over a limit.
    MediaTooLarge,
    /// The body is not declared as JSON.
    UnsupportedMediaType,
    /// Too much is waiting.
    QueueFull,
    /// The key has had its tokens.
    RateLimitExceeded,
    /// The model is not loaded yet.
    ModelLoading,
    /// The server is stopping.
    Draining,
    /// The engine is gone.
    DeviceUnavailable,
    /// The request took too long.
    DeadlineExceeded,
    /// A fault of ours.
    InternalError,
}

impl ErrorCode {
    /// Every code, in the order of their declaration.
    pub const ALL: [ErrorCode; 26] = [
        ErrorCode::InvalidJson,
        ErrorCode::InvalidValue,
        ErrorCode::UnknownField,
        ErrorCode::TooManyInputs,
        ErrorCode::ContextLengthExceeded,
        ErrorCode::InvalidDimensions,
        ErrorCode::InvalidImage,
        ErrorCode::InvalidVideo,
        ErrorCode::UnsupportedMedia,
        ErrorCode::MediaFetchFailed,
        ErrorCode::MediaUrlBlocked,
        ErrorCode::InvalidApiKey,
        ErrorCode::ModelNotFound,
        ErrorCode::NotFound,
        ErrorCode::MethodNotAllowed,
        ErrorCode::RequestTimeout,
        ErrorCode::RequestTooLarge,
        ErrorCode::MediaTooLarge,
        ErrorCode::UnsupportedMediaType,
        ErrorCode::QueueFull,
        ErrorCode::RateLimitExceeded,
        ErrorCode::ModelLoading,
        ErrorCode::Draining,
        ErrorCode::DeviceUnavailable,
        ErrorCode::DeadlineExceeded,
        ErrorCode::InternalError,
    ];

    /// Status, `type` and `code` on the wire.
    pub fn row(self) -> (StatusCode, &'static str, &'static str) {
        const BAD: StatusCode = StatusCode::BAD_REQUEST;
        const INVALID: &str = "invalid_request_error";
        const LATER: StatusCode = StatusCode::SERVICE_UNAVAILABLE;
        const OURS: &str = "server_error";
        match self {
            ErrorCode::InvalidJson => (BAD, INVALID, "invalid_json"),
            ErrorCode::InvalidValue => (BAD, INVALID, "invalid_value"),
            ErrorCode::UnknownField => (BAD, INVALID, "unknown_field"),
            ErrorCode::TooManyInputs => (BAD, INVALID, "too_many_inputs"),
            ErrorCode::ContextLengthExceeded => (BAD, INVALID, "context_length_exceeded"),
            ErrorCode::InvalidDimensions => (BAD, INVALID, "invalid_dimensions"),
            ErrorCode::InvalidImage => (BAD, INVALID, "invalid_image"),
            ErrorCode::InvalidVideo => (BAD, INVALID, "invalid_video"),
            ErrorCode::UnsupportedMedia => (BAD, INVALID, "unsupported_media"),
            ErrorCode::MediaFetchFailed => (BAD, INVALID, "media_fetch_failed"),
            ErrorCode::MediaUrlBlocked => (BAD, INVALID, "media_url_blocked"),
            ErrorCode::InvalidApiKey => (StatusCode::UNAUTHORIZED, INVALID, "invalid_api_key"),
            ErrorCode::ModelNotFound => (StatusCode::NOT_FOUND, INVALID, "model_not_found"),
            ErrorCode::NotFound => (StatusCode::NOT_FOUND, INVALID, "not_found"),
            ErrorCode::MethodNotAllowed => (
                StatusCode::METHOD_NOT_ALLOWED,
                INVALID,
                "method_not_allowed",
            ),
            ErrorCode::RequestTimeout => (StatusCode::REQUEST_TIMEOUT, INVALID, "request_timeout"),
            ErrorCode::RequestTooLarge => {
                (StatusCode::PAYLOAD_TOO_LARGE, INVALID, "request_too_large")
            }
            ErrorCode::MediaTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, INVALID, "media_too_large"),
            ErrorCode::UnsupportedMediaType => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                INVALID,
                "unsupported_media_type",
            ),
            ErrorCode::QueueFull => (
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_error",
                "queue_full",
            ),
            ErrorCode::RateLimitExceeded => (
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_error",
                "rate_limit_exceeded",
            ),
            ErrorCode::ModelLoading => (LATER, OURS, "model_loading"),
            ErrorCode::Draining => (LATER, OURS, "draining"),
            ErrorCode::DeviceUnavailable => (LATER, OURS, "device_unavailable"),
            ErrorCode::DeadlineExceeded => (StatusCode::GATEWAY_TIMEOUT, OURS, "deadline_exceeded"),
            ErrorCode::InternalError => (StatusCode::INTERNAL_SERVER_ERROR, OURS, "internal_error"),
        }
    }
}

/// An error on its way to a client: our own words, and where in the request the fault is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// What kind.
    pub code: ErrorCode,
    /// For people.
    pub message: String,
    /// The path of the field at fault.
    pub param: Option<String>,
    /// When to try again.
    pub retry_after: Option<Duration>,
    /// Whether the same request would fail again although its status says otherwise.
    pub lasting: bool,
}

impl ApiError {
    /// An error about the whole request.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        ApiError {
            code,
            message: message.into(),
            param: None,
            retry_after: None,
            lasting: false,
        }
    }

    /// An error about one field.
    pub fn at(code: ErrorCode, param: impl Into<String>, message: impl Into<String>) -> Self {
        ApiError {
            param: Some(param.into()),
            ..ApiError::new(code, message)
        }
    }

    /// A value a field cannot have.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        ApiError::at(ErrorCode::InvalidValue, param, message)
    }

    /// A fault of ours: what went wrong inside is for the log.
    pub fn internal() -> Self {
        ApiError::new(
            ErrorCode::InternalError,
            "the server failed on this request",
        )
    }

    /// A field that is not known where it stands.
    pub fn unknown_field(param: String, known: &[&str]) -> Self {
        let message = format!(
            "{param} is not a known field; known here are {}",
            known.join(", ")
        );
        ApiError::at(ErrorCode::UnknownField, param, message)
    }

    /// The `error` object of the body.
    pub fn body(&self) -> serde_json::Value {
        let (_, kind, code) = self.code.row();
        json!({ "message": self.message, "type": kind, "param": self.param, "code": code })
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, ..) = self.code.row();
        let mut response = (status, Json(json!({ "error": self.body() }))).into_response();
        response.extensions_mut().insert(self.code);
        response.extensions_mut().insert(self.clone());
        let headers = response.headers_mut();
        // The official clients retry 408, 409, 429 and every 5xx; what the client must mend first is said not to be worth it.
        let client_must_mend = matches!(
            status,
            StatusCode::BAD_REQUEST
                | StatusCode::PAYLOAD_TOO_LARGE
                | StatusCode::UNSUPPORTED_MEDIA_TYPE
        );
        if client_must_mend || self.lasting {
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        let waits = matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
        );
        if waits {
            let wait = self.retry_after.unwrap_or(Duration::from_secs(1));
            headers.insert(
                header::RETRY_AFTER,
                HeaderValue::from(wait.as_secs_f64().ceil() as u64),
            );
            headers.insert("retry-after-ms", HeaderValue::from(wait.as_millis() as u64));
        }
        response
    }
}

impl From<ServiceError> for ApiError {
    fn from(error: ServiceError) -> Self {
        let mut retry_after = None;
        let code = match &error.cause {
            Cause::Media(error) => media_code(error),
            Cause::Processor { error, video } => processor_code(error, *video),
            Cause::Batcher(
                BatcherError::Overloaded {
                    retry_after: wait, ..
                }
                | BatcherError::TooLate {
                    retry_after: wait, ..
                },
            ) => {
                retry_after = Some(*wait);
                ErrorCode::QueueFull
            }
            Cause::Quota(QuotaError::Spent {
                retry_after: wait, ..
            }) => {
                retry_after = Some(*wait);
                ErrorCode::RateLimitExceeded
            }
            Cause::Quota(QuotaError::TooMany { .. }) => ErrorCode::RateLimitExceeded,
            Cause::Batcher(BatcherError::TooManyPixels { .. }) => ErrorCode::MediaTooLarge,
            Cause::Batcher(BatcherError::Draining) => ErrorCode::Draining,
            Cause::Batcher(BatcherError::Unavailable) => ErrorCode::DeviceUnavailable,
            Cause::Batcher(BatcherError::Failed(_))
            | Cause::Vector(VectorError::NotFinite)
            | Cause::Worker => ErrorCode::InternalError,
            Cause::Vector(VectorError::Dimensions { .. }) => ErrorCode::InvalidDimensions,
            Cause::TooManyPairTokens { .. } => ErrorCode::TooManyInputs,
            Cause::Deadline(_) | Cause::Batcher(BatcherError::Expired) => {
                ErrorCode::DeadlineExceeded
            }
        };
        if code == ErrorCode::InternalError {
            tracing::error!(at = error.at, error = chain(&error), "a request failed");
        }
        let at = match (error.at, &error.cause) {
            (Some(at), Cause::Processor { error, .. }) => Some(within(at, error)),
            (at, _) => at,
        };
        let words = match code {
            ErrorCode::InternalError => ApiError::internal().message,
            _ => error.cause.to_string(),
        };
        let message = match &at {
            Some(at) => format!("{at}: {words}"),
            None => words,
        };
        ApiError {
            code,
            message,
            param: at,
            retry_after,
            // The batcher has tried it alone, or no minute has so many tokens: it would fail again.
            lasting: matches!(
                &error.cause,
                Cause::Batcher(BatcherError::Failed(_)) | Cause::Quota(QuotaError::TooMany { .. })
            ),
        }
    }
}

/// What an error says and what each of its sources adds.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let words = error.to_string();
        // Some errors only pass on what their source says.
        if !text.ends_with(&words) {
            text = format!("{text}: {words}");
        }
        source = error.source();
    }
    text
}

/// The path of what an input's preparation names within it.
fn within(at: String, error: &ProcessorError) -> String {
    match error {
        ProcessorError::TokenId { position, .. } => format!("{at}[{position}]"),
        _ => at,
    }
}

fn media_code(error: &MediaError) -> ErrorCode {
    match error {
        MediaError::InvalidSource { .. } => ErrorCode::InvalidValue,
        MediaError::Blocked { .. } => ErrorCode::MediaUrlBlocked,
        MediaError::AddressRefused | MediaError::FetchFailed { .. } => ErrorCode::MediaFetchFailed,
        MediaError::TooLarge { .. } | MediaError::TooCostly { .. } => ErrorCode::MediaTooLarge,
        MediaError::Abandoned => ErrorCode::DeadlineExceeded,
        MediaError::Unsupported { .. } => ErrorCode::UnsupportedMedia,
        MediaError::InvalidImage { .. } => ErrorCode::InvalidImage,
        MediaError::InvalidVideo { .. } => ErrorCode::InvalidVideo,
        MediaError::Internal(_) => ErrorCode::InternalError,
    }
}

fn processor_code(error: &ProcessorError, video: bool) -> ErrorCode {
    match error {
        ProcessorError::AspectRatio { .. } | ProcessorError::TooFewPixels { .. } if !video => {
            ErrorCode::InvalidImage
        }
        ProcessorError::AspectRatio { .. }
        | ProcessorError::TooFewPixels { .. }
        | ProcessorError::TooFewFrames { .. }
        | ProcessorError::FrameSizes { .. } => ErrorCode::InvalidVideo,
        ProcessorError::TokenId { .. } | ProcessorError::Empty | ProcessorError::Excerpt { .. } => {
            ErrorCode::InvalidValue
        }
        ProcessorError::TooLong { .. } => ErrorCode::ContextLengthExceeded,
        ProcessorError::Tokenizer { .. } => ErrorCode::InternalError,
    }
}

/// Where a media string itself is wrong, before anything is loaded.
pub(super) fn media_error(at: &str, error: &MediaError) -> ApiError {
    ApiError::at(media_code(error), at, format!("{at}: {error}"))
}

#[cfg(test)]
mod tests;
