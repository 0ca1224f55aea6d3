//! Errors in the shape a route's clients read. In: an answer of the error table. Out: the same status and headers, and a body whose
//! words stand where the SDK of that family looks for them.
//!
//! Asked by the outermost layer, so that it holds for whatever refuses: keys, methods, the table itself.

use axum::body::Body;
use axum::http::header;
use axum::response::Response;
use serde_json::Value;

use super::error::ApiError;
use super::{cohere, dashscope, rerank, tei, voyage};

/// The body of an error of request `id` on a route, where it is another than OpenAI's.
pub(super) fn body(path: &str, error: &ApiError, id: &str) -> Option<Value> {
    match path {
        cohere::PATH | rerank::COHERE_PATH => Some(cohere::error_body(error, id)),
        voyage::PATH => Some(voyage::error_body(error)),
        dashscope::PATH => Some(dashscope::error_body(error, id)),
        tei::PATH => Some(tei::error_body(error)),
        _ => None,
    }
}

/// Rewrites the body of an error of request `id` on a route of another family than OpenAI's.
pub(super) fn speak(path: &str, id: &str, mut response: Response) -> Response {
    let error = response.extensions_mut().remove::<ApiError>();
    let Some(body) = error.and_then(|error| body(path, &error, id)) else {
        return response;
    };
    // The old one's.
    response.headers_mut().remove(header::CONTENT_LENGTH);
    response.map(|_| Body::from(body.to_string()))
}
