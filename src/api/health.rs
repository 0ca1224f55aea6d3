//! Health: is the process alive, has it started, may it be sent traffic. No key, no work.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::ApiState;

pub(super) async fn live() -> Response {
    Json(json!({ "status": "ok" })).into_response()
}

/// Whether the model is loaded; stays true while draining.
pub(super) async fn startup(State(state): State<ApiState>) -> Response {
    answer(state.is_loaded(), "loading")
}

/// Whether requests are welcome.
pub(super) async fn ready(State(state): State<ApiState>) -> Response {
    if state.is_draining() {
        return answer(false, "draining");
    }
    answer(state.is_loaded(), "loading")
}

fn answer(ok: bool, otherwise: &str) -> Response {
    let (status, word) = if ok {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, otherwise)
    };
    (status, Json(json!({ "status": word }))).into_response()
}
