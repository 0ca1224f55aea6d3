//! `GET /metrics`: the numbers of [`crate::telemetry`], in the Prometheus text format.

use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};

use crate::telemetry;

/// What Prometheus asks for since 2.5.
const OPEN_METRICS: &str = "application/openmetrics-text";

/// The form the scraper asks for; the older one, which all can read, to those that ask for none.
pub(super) async fn metrics(headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT);
    let open = accept.is_some_and(|value| {
        let value = value.to_str().unwrap_or_default();
        value.contains(OPEN_METRICS)
    });
    let kind = match open {
        true => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        false => "text/plain; version=0.0.4; charset=utf-8",
    };
    let text = telemetry::metrics().render(!open);
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}
