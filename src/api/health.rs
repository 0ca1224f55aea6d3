//! Health: is the process alive, has it started, may it be sent traffic. No key, no work.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::ApiState;
use super::error::{ApiError, ErrorCode};

/// Whether the process is worth keeping: not when the device thread has stopped getting on with its work.
pub(super) async fn live(State(state): State<ApiState>) -> Response {
    match state.loaded() {
        Ok(loaded) if loaded.batcher.is_stalled() => {
            let message = "the device does not get on with its work";
            ApiError::new(ErrorCode::DeviceUnavailable, message).into_response()
        }
        _ => Json(json!({ "status": "ok" })).into_response(),
    }
}

/// Whether the model is loaded; stays true while draining.
pub(super) async fn startup(State(state): State<ApiState>) -> Response {
    answer(&state)
}

/// Whether requests are welcome.
pub(super) async fn ready(State(state): State<ApiState>) -> Response {
    if state.is_draining() {
        let message = "the server is stopping and takes no new work";
        return ApiError::new(ErrorCode::Draining, message).into_response();
    }
    if let Ok(loaded) = state.loaded()
        && loaded.batcher.is_lost()
    {
        let message = "the device is lost and the server is stopping";
        return ApiError::new(ErrorCode::DeviceUnavailable, message).into_response();
    }
    answer(&state)
}

fn answer(state: &ApiState) -> Response {
    match state.loaded() {
        Ok(_) => Json(json!({ "status": "ok" })).into_response(),
        Err(loading) => loading.into_response(),
    }
}
