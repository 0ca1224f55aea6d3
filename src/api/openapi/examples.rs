//! What each row of the error table looks like on the wire. In: a row. Out: an error such as a client may meet; its route gives it the
//! shape.

use super::super::error::{ApiError, ErrorCode};

/// One error of a row.
pub(super) fn of(code: ErrorCode) -> ApiError {
    let (param, message) = match code {
        ErrorCode::InvalidJson => (None, "the body is not JSON: line 1, column 9"),
        ErrorCode::InvalidValue => (
            Some("priority"),
            "priority is \"urgent\", it must be interactive, bulk or a whole number",
        ),
        ErrorCode::UnknownField => (
            Some("input[0].colour"),
            "input[0].colour is not a known field; known here are text, image, video",
        ),
        ErrorCode::TooManyInputs => (Some("input"), "input has 2049 entries, the limit is 2048"),
        ErrorCode::ContextLengthExceeded => (
            Some("input[1]"),
            "input[1]: it has 40000 tokens, the limit is 32768",
        ),
        ErrorCode::InvalidDimensions => (
            Some("dimensions"),
            "dimensions is 1, it must be a whole number between 64 and 2048",
        ),
        ErrorCode::InvalidImage => (
            Some("input[0].image"),
            "input[0].image: the picture ends before it is complete",
        ),
        ErrorCode::InvalidVideo => (
            Some("input[0].video"),
            "input[0].video: the video has no frames",
        ),
        ErrorCode::UnsupportedMedia => (
            Some("input[0].image"),
            "input[0].image: SVG pictures are not read here",
        ),
        ErrorCode::MediaFetchFailed => (
            Some("input[0].image"),
            "input[0].image: the server of the URL answered 404",
        ),
        ErrorCode::MediaUrlBlocked => (
            Some("input[0].image"),
            "input[0].image: addresses of this network are not fetched",
        ),
        ErrorCode::InvalidApiKey => (None, "the API key is missing or wrong"),
        ErrorCode::ModelNotFound => (
            Some("model"),
            "the model \"gpt-4\" is not served here; served is Qwen3-VL-Embedding-2B",
        ),
        ErrorCode::NotFound => (None, "there is no route /v2/nothing"),
        ErrorCode::MethodNotAllowed => (None, "/v1/embeddings does not have the method PUT"),
        ErrorCode::RequestTimeout => (
            None,
            "the body came too slowly: 65536 bytes of it may take 20000 ms",
        ),
        ErrorCode::RequestTooLarge => (None, "the body is larger than the limit of 67108864 bytes"),
        ErrorCode::MediaTooLarge => (
            Some("input[0].image"),
            "input[0].image: it is larger than the limit of 33554432 bytes",
        ),
        ErrorCode::UnsupportedMediaType => (None, "the body must be application/json"),
        ErrorCode::QueueFull => (None, "the queue is full; try again in 1500 ms"),
        ErrorCode::RateLimitExceeded => (None, "the key has had its tokens of this minute"),
        ErrorCode::ModelLoading => (None, "the model is still loading"),
        ErrorCode::Draining => (None, "the server is stopping"),
        ErrorCode::DeviceUnavailable => (None, "the device is lost"),
        ErrorCode::DeadlineExceeded => (None, "the request took longer than 300000 ms"),
        ErrorCode::InternalError => (None, "the server failed on this request"),
    };
    ApiError {
        param: param.map(str::to_owned),
        ..ApiError::new(code, message)
    }
}
