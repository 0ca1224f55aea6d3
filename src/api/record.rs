//! What every request has in common: an id, the time it took, a line in the log, a count and a span.

use std::hash::{BuildHasher, RandomState};
use std::panic::AssertUnwindSafe;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use tracing::Instrument;

use super::error::{ApiError, ErrorCode};
use super::{ApiState, dialect};
use crate::telemetry::traces::{self, TraceParent};
use crate::telemetry::{self, metrics::GaugeGuard};

/// The route of what no route matches: a label has few values, and what a client may invent is none of them.
const UNMATCHED: &str = "unmatched";
/// How a client that left is counted, by nginx's custom.
const CLIENT_LEFT: u16 = 499;

/// The id of a request; an extension of it.
#[derive(Debug, Clone)]
pub(super) struct RequestId(pub(super) String);

/// How many tokens an answer is about; an extension of the response.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tokens(pub(super) usize);

/// Gives every answer its request's id and the time it took, every error the shape of its route, and a panicking handler's client an answer;
/// counts and logs all of them.
pub(super) async fn record(
    State(state): State<ApiState>,
    mut request: Request,
    next: Next,
) -> Response {
    let version = request.version();
    let id = request_id(request.headers());
    let told = RequestId(id.to_str().unwrap_or_default().to_owned());
    request.extensions_mut().insert(told);
    let route = match request.extensions().get::<MatchedPath>() {
        Some(route) => route.as_str().to_owned(),
        None => UNMATCHED.to_owned(),
    };
    let parent = request
        .headers()
        .get("traceparent")
        .and_then(|header| TraceParent::parse(header.to_str().ok()?));
    let span = traces::request_span(id.to_str().unwrap_or_default(), &route, parent);
    let exchange = Exchange::begin(route);
    let answered = async {
        let answered = AssertUnwindSafe(next.run(request)).catch_unwind().await;
        let response = answered.unwrap_or_else(|_| {
            tracing::error!("a handler panicked");
            ApiError::new(ErrorCode::InternalError, "the request failed").into_response()
        });
        let told = id.to_str().unwrap_or_default();
        let mut response = dialect::speak(&exchange.route, told, response);
        let elapsed_ms = exchange.end(&response);
        let headers = response.headers_mut();
        headers.insert("openai-processing-ms", HeaderValue::from(elapsed_ms));
        headers.insert("x-request-id", id);
        if state.is_draining() && version <= Version::HTTP_11 {
            // The client asks elsewhere from now on, rather than just when this connection is being closed.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    };
    answered.instrument(span).await
}

/// The client's own id where it sent one that can be told back, else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let given = headers.get("x-request-id").filter(|id| {
        let bytes = id.as_bytes();
        !bytes.is_empty() && bytes.len() <= 128 && bytes.iter().all(u8::is_ascii_graphic)
    });
    given.cloned().unwrap_or_else(|| {
        HeaderValue::from_str(&new_id("req")).unwrap_or(HeaderValue::from_static("req-"))
    })
}

/// An id that nobody else makes: 128 bits of a hash whose key is random, of a number that is never used again. Asking the system for
/// random bits each time would be two calls of it a request.
pub(super) fn new_id(prefix: &str) -> String {
    static KEYS: LazyLock<[RandomState; 2]> = LazyLock::new(Default::default);
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let [high, low] = KEYS.each_ref().map(|key| key.hash_one(number));
    format!("{prefix}-{high:016x}{low:016x}")
}

/// A request that is being answered. Dropped before its end, its client has left.
struct Exchange {
    route: String,
    started: Instant,
    ended: bool,
    _in_flight: GaugeGuard,
}

impl Exchange {
    fn begin(route: String) -> Self {
        Exchange {
            route,
            started: Instant::now(),
            ended: false,
            _in_flight: telemetry::metrics().request(),
        }
    }

    /// Counts and logs the answer; returns how many milliseconds it took.
    fn end(mut self, response: &Response) -> u64 {
        self.ended = true;
        let took = self.started.elapsed();
        let status = response.status().as_u16();
        let metrics = telemetry::metrics();
        metrics.answered(&self.route, status, took);
        let error = response.extensions().get::<ErrorCode>();
        let code = error.map(|code| code.row().2);
        if let Some(code) = code {
            metrics.rejected(code);
        }
        let tokens = response.extensions().get::<Tokens>().map(|tokens| tokens.0);
        let ms = took.as_secs_f64() * 1e3;
        tracing::debug!(status, ms, tokens, code, "answered");
        let attributes = [
            ("http.response.status_code", i64::from(status)),
            ("manifold.tokens", tokens.unwrap_or(0) as i64),
        ];
        traces::set_attributes(&tracing::Span::current(), &attributes, status >= 500);
        took.as_millis() as u64
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.ended {
            let took = self.started.elapsed();
            telemetry::metrics().answered(&self.route, CLIENT_LEFT, took);
            let ms = took.as_secs_f64() * 1e3;
            tracing::debug!(status = CLIENT_LEFT, ms, "the client left");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ids_differ_and_do_not_count() {
        let ids: BTreeSet<String> = (0..1000).map(|_| new_id("req")).collect();
        assert_eq!(ids.len(), 1000);
        // Neighbours share next to nothing: on average every 16th digit.
        let ids: Vec<String> = (0..2).map(|_| new_id("x")).collect();
        let same = ids[0].bytes().zip(ids[1].bytes()).filter(|(a, b)| a == b);
        assert!(same.count() < 20, "{ids:?}");
    }
}
