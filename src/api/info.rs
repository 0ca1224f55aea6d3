//! `GET /info`: what runs here, how, and within which limits.
//!
//! # Source
//! The fields of text-embeddings-inference's `/info`, so that its clients find theirs; `models` and `limits` are ours.

use axum::Json;
use axum::extract::State;
use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::{ApiSettings, ApiState};
use crate::batcher::BatchPolicy;
use crate::engine::EngineInfo;
use crate::service::Proof;

/// Where a limit comes from.
type Limit = fn(&ApiSettings, &BatchPolicy) -> usize;

/// Every limit that is told, by its name; `openapi` describes these.
pub(super) const LIMITS: [(&str, Limit); 10] = [
    ("max_body_bytes", |settings, _| settings.max_body_bytes),
    ("max_held_bytes", |settings, _| settings.max_held_bytes),
    ("max_inputs", |settings, _| settings.max_inputs),
    ("max_input_tokens", |settings, _| settings.max_input_tokens),
    ("max_media_bytes", |settings, _| settings.max_media_bytes),
    ("max_frames", |settings, _| settings.max_frames),
    ("request_timeout_ms", |settings, _| {
        settings.request_timeout.as_millis() as usize
    }),
    ("max_batch_tokens", |_, policy| policy.max_tokens),
    ("max_batch_sequences", |_, policy| policy.max_sequences),
    ("max_queue_tokens", |_, policy| policy.max_queue_tokens),
];

/// One model, whichever task it is for.
struct Card<'a> {
    task: &'static str,
    names: &'a [String],
    checkpoint: &'a str,
    revision: Option<&'a str>,
    info: &'a EngineInfo,
    proof: &'a Proof,
}

pub(super) async fn info(State(state): State<ApiState>) -> Result<Json<Value>, ApiError> {
    let loaded = state.loaded()?;
    let mut cards = Vec::new();
    if let Some(served) = &loaded.embedder {
        cards.push(Card {
            task: "embed",
            names: &served.names,
            checkpoint: &served.checkpoint,
            revision: served.revision.as_deref(),
            info: &served.info,
            proof: &served.proof,
        });
    }
    if let Some(served) = &loaded.reranker {
        cards.push(Card {
            task: "rerank",
            names: &served.names,
            checkpoint: &served.checkpoint,
            revision: served.revision.as_deref(),
            info: &served.info,
            proof: &served.proof,
        });
    }
    // The embedder is what clients of the peer mean, the reranker where it is alone.
    let mut body = match cards.first() {
        Some(card) => peer_fields(card),
        None => Map::new(),
    };
    let (settings, policy) = (&state.settings, loaded.batcher.policy());
    let limits =
        LIMITS.map(|(name, limit)| (name.to_owned(), Value::from(limit(settings, &policy))));
    let shared = [
        ("max_concurrent_requests", settings.max_connections.into()),
        ("max_input_length", settings.max_input_tokens.into()),
        ("max_batch_tokens", policy.max_tokens.into()),
        ("max_batch_requests", policy.max_sequences.into()),
        ("max_client_batch_size", settings.max_inputs.into()),
        ("auto_truncate", false.into()),
        ("tokenization_workers", state.workers_count().into()),
        ("version", env!("CARGO_PKG_VERSION").into()),
        ("sha", Value::Null),
        ("docker_label", Value::Null),
        ("limits", Value::Object(Map::from_iter(limits))),
        ("models", cards.iter().map(described).collect()),
    ];
    body.extend(shared.map(|(name, value)| (name.to_owned(), value)));
    Ok(Json(Value::Object(body)))
}

fn peer_fields(card: &Card<'_>) -> Map<String, Value> {
    let kind = match card.task {
        "embed" => json!({ "embedding": { "pooling": "last_token" } }),
        _ => json!({ "reranker": { "id2label": { "0": "yes" }, "label2id": { "yes": 0 } } }),
    };
    let fields = [
        ("model_id", card.checkpoint.into()),
        ("model_sha", card.revision.into()),
        ("model_dtype", card.info.dtype.into()),
        ("served_model_name", card.names[0].as_str().into()),
        ("model_type", kind),
    ];
    fields
        .map(|(name, value)| (name.to_owned(), value))
        .into_iter()
        .collect()
}

fn described(card: &Card<'_>) -> Value {
    let Card { info, proof, .. } = card;
    let preprocessing: Map<String, Value> = proof
        .preprocessing
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.as_str().into()))
        .collect();
    let dimensions = (card.task == "embed").then_some(info.hidden_size);
    json!({
        "task": card.task,
        "id": card.checkpoint,
        "names": card.names,
        "revision": card.revision,
        "dimensions": dimensions,
        "parameters": info.parameters,
        "max_position_embeddings": info.max_position_embeddings,
        "device": info.device,
        "dtype": info.dtype,
        "threads": info.threads,
        "fingerprint": {
            "id": proof.id,
            "weights_sample_sha256": proof.fingerprint.weights,
            "tokenizer_sha256": proof.fingerprint.tokenizer,
            "config_sha256": proof.fingerprint.config,
            "template": proof.template,
            "preprocessing": preprocessing,
            "numeric_mode": proof.numeric_mode,
        },
    })
}
