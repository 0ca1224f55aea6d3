//! What each row of the error table looks like on the wire. In: a row. Out: an error such as a client may meet, made by the code that makes
//! those; its route gives it the shape.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, Method, header};
use serde_json::{Value, json};

use super::super::error::{ApiError, ErrorCode, media_error};
use super::super::fields::Fields;
use super::super::grammar::{self, Parser};
use super::super::{ApiSettings, auth, body, family, intake, loaded, options};
use super::operations::PIXEL;
use crate::batcher::BatcherError;
use crate::media::{self, MediaError, MediaLoader, MediaSettings, MediaSource};
use crate::processor::ProcessorError;
use crate::service::{Cause, QuotaError, ServiceError};

/// Where the examples' pictures stand.
const PICTURE: &str = "input[0].image";
/// Width of the vectors they are of.
const HIDDEN_SIZE: usize = 2048;

/// One error of a row.
///
/// # Panics
/// Where an example no longer goes wrong: the tests build the document of every route.
pub(super) fn of(code: ErrorCode, settings: &ApiSettings) -> ApiError {
    match code {
        ErrorCode::InvalidJson => refused(intake::json(b"{\"input\":")),
        ErrorCode::InvalidValue => parsed(json!({ "priority": "urgent" }), settings),
        ErrorCode::UnknownField => parsed(
            json!({ "input": [{ "text": "a cat", "colour": "red" }] }),
            settings,
        ),
        ErrorCode::TooManyInputs => too_many(settings),
        ErrorCode::ContextLengthExceeded => too_long(settings),
        ErrorCode::InvalidDimensions => parsed(json!({ "dimensions": 1 }), settings),
        ErrorCode::InvalidImage => undecodable(&pixel()[..40]),
        ErrorCode::InvalidVideo => parsed(
            json!({ "input": [{ "video": { "frames": [] } }] }),
            settings,
        ),
        ErrorCode::UnsupportedMedia => undecodable(b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>"),
        ErrorCode::MediaFetchFailed => served(Some(PICTURE), MediaError::AddressRefused),
        ErrorCode::MediaUrlBlocked => blocked(),
        ErrorCode::InvalidApiKey => auth::refusal(None),
        ErrorCode::ModelNotFound => loaded::not_served("gpt-4", &["Qwen3-VL-Embedding-2B"]),
        ErrorCode::NotFound => super::super::no_route("/v2/nothing"),
        ErrorCode::MethodNotAllowed => super::super::no_method(&Method::PUT, "/v1/embeddings"),
        ErrorCode::RequestTimeout => body::too_slow(settings.body_timeout),
        ErrorCode::RequestTooLarge => body::too_large(settings.max_body_bytes),
        ErrorCode::MediaTooLarge => media_error(PICTURE, &refused(MediaSource::parse(PIXEL, 64))),
        ErrorCode::UnsupportedMediaType => plain_text(),
        ErrorCode::QueueFull => served(None, full()),
        ErrorCode::RateLimitExceeded => served(None, spent()),
        ErrorCode::ModelLoading => super::super::still_loading(),
        ErrorCode::Draining => served(None, BatcherError::Draining),
        ErrorCode::DeviceUnavailable => served(None, BatcherError::Unavailable),
        ErrorCode::DeadlineExceeded => family::too_late(settings.request_timeout),
        ErrorCode::InternalError => ApiError::internal(),
    }
}

/// The error of what must fail.
fn refused<T, E>(result: Result<T, E>) -> E {
    match result {
        Err(error) => error,
        Ok(_) => panic!("the example of an error is none"),
    }
}

/// What the parsers of `/v1/embeddings` say to a body.
fn parsed(body: Value, settings: &ApiSettings) -> ApiError {
    let map = body.as_object().cloned().unwrap_or_default();
    let fields = Fields { map: &map, at: "" };
    let options = options::parse(fields, settings, HIDDEN_SIZE);
    refused(options.and_then(|options| grammar::parse(fields, &options.item, settings)))
}

/// What the service's errors become.
fn served(at: Option<&str>, cause: impl Into<Cause>) -> ApiError {
    let error = ServiceError {
        at: at.map(str::to_owned),
        cause: cause.into(),
    };
    error.into()
}

fn too_many(settings: &ApiSettings) -> ApiError {
    let nothing = serde_json::Map::new();
    let body = Fields {
        map: &nothing,
        at: "",
    };
    match options::parse(body, settings, HIDDEN_SIZE) {
        Ok(options) => {
            let parser = Parser::new(&options.item, settings);
            refused(parser.check_count("input", settings.max_inputs + 1))
        }
        Err(error) => error,
    }
}

fn too_long(settings: &ApiSettings) -> ApiError {
    let error = ProcessorError::TooLong {
        tokens: settings.max_input_tokens + 1000,
        at_least: false,
        media_tokens: 0,
        limit: settings.max_input_tokens,
    };
    let video = false;
    served(Some("input[1]"), Cause::Processor { error, video })
}

fn pixel() -> Vec<u8> {
    match MediaSource::parse(PIXEL, PIXEL.len()) {
        Ok(MediaSource::Inline(bytes)) => bytes.to_vec(),
        _ => Vec::new(),
    }
}

/// What becomes of a picture of these bytes.
fn undecodable(bytes: &[u8]) -> ApiError {
    let decoded = media::image::decode(bytes, &MediaSettings::default());
    served(Some(PICTURE), refused(decoded))
}

/// What a server that fetches nothing says to a URL.
fn blocked() -> ApiError {
    let settings = MediaSettings {
        url_fetch: false,
        ..MediaSettings::default()
    };
    let url = MediaSource::parse("https://example.com/cat.png", 0);
    let permitted = MediaLoader::new(&settings)
        .and_then(|loader| url.and_then(|source| loader.permits(&source)));
    served(Some(PICTURE), refused(permitted))
}

fn plain_text() -> ApiError {
    let kind = HeaderValue::from_static("text/plain");
    let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, kind)]);
    refused(intake::content_kind(&headers, false))
}

fn full() -> BatcherError {
    BatcherError::Overloaded {
        unit: "tokens",
        waiting: 1_048_000,
        limit: 1_048_576,
        retry_after: Duration::from_millis(1500),
    }
}

fn spent() -> QuotaError {
    QuotaError::Spent {
        tokens: 400,
        limit: 100_000,
        retry_after: Duration::from_secs(12),
    }
}
