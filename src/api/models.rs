//! `GET /v1/models` and `/v1/models/{id}`.

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use super::error::ApiError;
use super::{ApiState, Served};
use crate::vectors::MIN_DIMENSIONS;

pub(super) async fn list(State(state): State<ApiState>) -> Result<Json<Value>, ApiError> {
    let served = state.served()?;
    let data: Vec<Value> = served
        .names
        .iter()
        .map(|name| describe(name, &state, served))
        .collect();
    Ok(Json(json!({ "object": "list", "data": data })))
}

pub(super) async fn one(
    State(state): State<ApiState>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let served = state.served()?;
    served.check_name(Some(&id))?;
    Ok(Json(describe(&id, &state, served)))
}

fn describe(name: &str, state: &ApiState, served: &Served) -> Value {
    let info = &served.info;
    json!({
        "id": name,
        "object": "model",
        "created": served.loaded_at,
        "owned_by": "manifold",
        "root": served.checkpoint,
        "revision": served.revision,
        "dimensions": info.hidden_size,
        "min_dimensions": MIN_DIMENSIONS.min(info.hidden_size),
        "max_tokens": state.settings.max_input_tokens,
        "modalities": ["text", "image", "video"],
        "dtype": info.dtype,
        "device": info.device,
        "parameters": info.parameters,
    })
}
