//! `GET /v1/models` and `/v1/models/{id}`.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use super::error::{ApiError, ErrorCode};
use super::{ApiState, Served, ServedReranker};
use crate::engine::EngineInfo;
use crate::vectors::MIN_DIMENSIONS;

pub(super) async fn list(State(state): State<ApiState>) -> Result<Json<Value>, ApiError> {
    let loaded = state.loaded()?;
    let embedder = loaded.embedder.iter();
    let embedder = embedder.flat_map(|served| {
        let names = served.names.iter();
        names.map(|name| embedder_of(name, &state, served))
    });
    let reranker = loaded.reranker.iter();
    let reranker = reranker.flat_map(|served| {
        let names = served.names.iter();
        names.map(|name| reranker_of(name, &state, served))
    });
    let data: Vec<Value> = embedder.chain(reranker).collect();
    Ok(Json(json!({ "object": "list", "data": data })))
}

pub(super) async fn one(
    State(state): State<ApiState>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    let loaded = state.loaded()?;
    let Path(id) = id.map_err(|_| {
        let message = "the name of the model in the path is not UTF-8";
        ApiError::at(ErrorCode::ModelNotFound, "model", message)
    })?;
    if let Some(served) = &loaded.reranker
        && served.names.contains(&id)
    {
        return Ok(Json(reranker_of(&id, &state, served)));
    }
    let served = state.served()?;
    served.check_name(Some(&id))?;
    Ok(Json(embedder_of(&id, &state, served)))
}

fn embedder_of(name: &str, state: &ApiState, served: &Served) -> Value {
    let mut described = describe(name, state, &served.info);
    described["created"] = served.loaded_at.into();
    described["root"] = served.checkpoint.as_str().into();
    described["revision"] = served.revision.clone().into();
    let width = served.info.hidden_size;
    described["dimensions"] = width.into();
    described["min_dimensions"] = MIN_DIMENSIONS.min(width).into();
    described["task"] = "embed".into();
    described
}

fn reranker_of(name: &str, state: &ApiState, served: &ServedReranker) -> Value {
    let mut described = describe(name, state, &served.info);
    described["created"] = served.loaded_at.into();
    described["root"] = served.checkpoint.as_str().into();
    described["revision"] = served.revision.clone().into();
    described["task"] = "rerank".into();
    described
}

fn describe(name: &str, state: &ApiState, info: &EngineInfo) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": null,
        "owned_by": "manifold",
        "root": null,
        "revision": null,
        "max_tokens": state.settings.max_input_tokens,
        "modalities": ["text", "image", "video"],
        "dtype": info.dtype,
        "device": info.device,
        "parameters": info.parameters,
    })
}
