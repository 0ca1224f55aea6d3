//! Errors in the shape a route's clients read. In: an answer of the error table. Out: the same status and headers, and a body whose
//! words stand where the SDK of that family looks for them.
//!
//! Outermost of all layers, so that it holds for whatever refuses: keys, methods, the table itself.

use axum::body::Body;
use axum::extract::{MatchedPath, Request};
use axum::http::header;
use axum::middleware::Next;
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

/// Rewrites the bodies of errors on the routes of other families than OpenAI's.
pub(super) async fn speak(request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().cloned();
    let mut response = next.run(request).await;
    let Some(error) = response.extensions_mut().remove::<ApiError>() else {
        return response;
    };
    // The answer's headers say which request it was.
    let id = response.headers().get("x-request-id");
    let id = id.and_then(|id| id.to_str().ok()).unwrap_or_default();
    let body = path.and_then(|path| body(path.as_str(), &error, id));
    let Some(body) = body else {
        return response;
    };
    // The old one's.
    response.headers_mut().remove(header::CONTENT_LENGTH);
    response.map(|_| Body::from(body.to_string()))
}
