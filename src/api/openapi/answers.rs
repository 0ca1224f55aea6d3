//! What answers hold. Nothing beside what is described: the tests hold real answers against these.

use serde_json::{Map, Value, json};

use super::super::error::ErrorCode;
use super::super::info::LIMITS;
use super::reference;
use crate::service::Proof;
use crate::vectors::Quantization;

/// An object with exactly these fields, of which some may be absent.
fn exact(fields: Value, absent: &[&str]) -> Value {
    let names = fields.as_object().map(|fields| fields.keys().cloned());
    let required: Vec<String> = names
        .into_iter()
        .flatten()
        .filter(|name| !absent.contains(&name.as_str()))
        .collect();
    json!({ "type": "object", "properties": fields, "required": required, "additionalProperties": false })
}

fn count() -> Value {
    json!({ "type": "integer", "minimum": 0 })
}

fn string() -> Value {
    json!({ "type": "string" })
}

fn list(items: Value) -> Value {
    json!({ "type": "array", "items": items })
}

pub(super) fn schemas() -> Map<String, Value> {
    let mut all = Map::new();
    for part in [
        embeddings(),
        explanations(),
        rankings(),
        peers(),
        models(),
        errors(),
    ] {
        if let Value::Object(part) = part {
            all.extend(part);
        }
    }
    all
}

fn embeddings() -> Value {
    let by_type = Quantization::NAMES.map(|(name, _)| (name.to_owned(), reference("Vector")));
    let by_type: Map<String, Value> = by_type.into_iter().collect();
    json!({
        "CreateEmbeddingResponse": exact(json!({
            "object": { "const": "list" },
            "id": string(),
            "created": count(),
            "model": string(),
            "data": list(reference("Embedding")),
            "usage": reference("Usage"),
            "user": string(),
        }), &["user"]),
        "Embedding": exact(json!({
            "object": { "const": "embedding" },
            "index": count(),
            "embedding": { "anyOf": [reference("Vector"), { "type": "null" }] },
            "embeddings": { "type": "object", "properties": by_type, "additionalProperties": false },
            "scale": { "type": "number", "description": "What one step of an integer type is worth." },
            "truncated": { "const": true },
            "id": string(),
            "error": reference("ErrorObject"),
        }), &["embeddings", "scale", "truncated", "id", "error"]),
        "Vector": {
            "description": "Numbers, or base64 of them.",
            "anyOf": [list(json!({ "type": "number" })), string()],
        },
        "Usage": exact(json!({
            "prompt_tokens": count(),
            "total_tokens": count(),
            "prompt_tokens_details": exact(json!({
                "text_tokens": count(), "image_tokens": count(), "video_tokens": count(), "cached_tokens": count(),
            }), &[]),
        }), &[]),
    })
}

fn rankings() -> Value {
    let score = json!({ "type": "number" });
    let by = json!({ "enum": ["reranker", "cosine"] });
    json!({
        "RerankResponse": exact(json!({
            "id": string(),
            "model": string(),
            "results": list(exact(json!({
                "index": count(),
                "relevance_score": score,
                "document": { "description": "As it came; a text in an object." },
                "truncated": { "const": true },
            }), &["document", "truncated"])),
            "scored_by": by,
            "usage": reference("Usage"),
            "meta": exact(json!({
                "api_version": exact(json!({ "version": { "const": "2" } }), &[]),
                "billed_units": exact(json!({ "search_units": { "const": 1 } }), &[]),
            }), &[]),
            "user": string(),
        }), &["user"]),
        "TeiRanks": list(exact(json!({
            "index": count(), "score": score, "text": string(), "truncated": { "const": true },
        }), &["text", "truncated"])),
        "ScoreResponse": exact(json!({
            "id": string(),
            "object": { "const": "list" },
            "created": count(),
            "model": string(),
            "data": list(exact(json!({
                "index": count(), "object": { "const": "score" }, "score": score, "truncated": { "const": true },
            }), &["truncated"])),
            "scored_by": by,
            "usage": reference("Usage"),
            "user": string(),
        }), &["user"]),
    })
}

fn explanations() -> Value {
    let grid = json!({ "type": "array", "items": count(), "minItems": 3, "maxItems": 3, "description": "Pairs of frames, rows and columns of patches of 16 pixels." });
    let mut picture = json!({
        "at": string(), "type": { "const": "image" }, "tokens": count(),
        "width": count(), "height": count(), "resized_width": count(), "resized_height": count(), "grid_thw": grid,
    });
    let image = exact(picture.clone(), &[]);
    picture["type"] = json!({ "const": "video" });
    picture["source_frames"] = count();
    picture["source_fps"] = json!({ "type": "number" });
    for name in ["frame_indices", "frame_times", "pair_times"] {
        picture[name] = list(json!({ "type": "number" }));
    }
    json!({
        "ExplainResponse": exact(json!({
            "object": { "const": "list" },
            "id": string(),
            "created": count(),
            "model": string(),
            "data": list(reference("Explanation")),
            "usage": reference("Usage"),
        }), &[]),
        "Explanation": { "anyOf": [
            exact(json!({
                "object": { "const": "embedding.explanation" },
                "index": count(),
                "id": string(),
                "prompt": { "type": "string", "description": "As the template renders it, before truncation." },
                "tokens": exact(json!({
                    "total": count(), "text": count(), "image": count(), "video": count(), "template": count(),
                }), &[]),
                "truncation": exact(json!({
                    "mode": { "enum": ["NONE", "START", "END", "REFERENCE"] },
                    "max_tokens": count(),
                    "truncated": { "type": "boolean" },
                    "cut_tokens": count(),
                }), &[]),
                "parts": list(json!({ "anyOf": [
                    exact(json!({ "at": string(), "type": { "const": "text" }, "tokens": count(), "cut_tokens": count() }), &[]),
                    image,
                    exact(picture, &[]),
                ] })),
            }), &["id"]),
            exact(json!({
                "object": { "const": "embedding.explanation" },
                "index": count(),
                "id": string(),
                "error": reference("ErrorObject"),
            }), &["id"]),
        ] },
    })
}

fn peers() -> Value {
    let base64 = [("base64".to_owned(), list(string()))];
    let by_type = Quantization::NAMES.map(|(name, _)| {
        let vectors = list(list(json!({ "type": "number" })));
        (name.to_owned(), vectors)
    });
    let by_type: Map<String, Value> = by_type.into_iter().chain(base64).collect();
    json!({
        "EmbedByTypeResponse": exact(json!({
            "id": string(),
            "response_type": { "const": "embeddings_by_type" },
            "embeddings": { "type": "object", "properties": by_type, "additionalProperties": false },
            "texts": list(string()),
            "meta": exact(json!({
                "api_version": exact(json!({ "version": { "const": "2" } }), &[]),
                "billed_units": exact(json!({ "input_tokens": count(), "text_tokens": count(), "image_tokens": count() }), &[]),
                "warnings": list(string()),
            }), &["warnings"]),
        }), &["texts"]),
        "MultimodalEmbeddingsResponse": exact(json!({
            "object": { "const": "list" },
            "data": list(exact(json!({
                "object": { "const": "embedding" },
                "embedding": reference("Vector"),
                "index": count(),
                "truncated": { "const": true },
            }), &["truncated"])),
            "model": string(),
            "usage": exact(json!({
                "text_tokens": count(), "image_pixels": count(), "video_pixels": count(), "total_tokens": count(),
            }), &[]),
        }), &[]),
        "DashScopeResponse": exact(json!({
            "output": exact(json!({ "embeddings": list(exact(json!({
                "index": count(),
                "embedding": list(json!({ "type": "number" })),
                "type": { "enum": ["text", "image", "video", "multi_images", "fusion"] },
                "truncated": { "const": true },
            }), &["truncated"])) }), &[]),
            "usage": exact(json!({
                "input_tokens": count(), "image_tokens": count(), "image_count": count(), "total_tokens": count(),
            }), &[]),
            "request_id": string(),
        }), &[]),
        "EmbedResponse": list(list(json!({ "type": "number" }))),
    })
}

fn models() -> Value {
    json!({
        "Model": exact(json!({
            "id": string(),
            "object": { "const": "model" },
            "created": count(),
            "owned_by": string(),
            "root": string(),
            "revision": { "type": ["string", "null"] },
            "dimensions": count(),
            "min_dimensions": count(),
            "max_tokens": count(),
            "modalities": list(string()),
            "dtype": string(),
            "device": string(),
            "parameters": count(),
            "task": { "enum": ["embed", "rerank"] },
        }), &["dimensions", "min_dimensions"]),
        "Models": exact(json!({ "object": { "const": "list" }, "data": list(reference("Model")) }), &[]),
        "Info": info(),
        "Health": exact(json!({ "status": { "const": "ok" } }), &[]),
    })
}

/// What `/info` tells.
fn info() -> Value {
    let nullable = || json!({ "type": ["string", "null"] });
    let digest = || json!({ "type": "string", "pattern": "^[0-9a-f]{64}$" });
    let preprocessing = Proof::PREPROCESSING.map(|name| (name.to_owned(), string()));
    let preprocessing: Map<String, Value> = preprocessing.into_iter().collect();
    let limits = LIMITS.map(|(name, _)| (name.to_owned(), count()));
    let limits: Map<String, Value> = limits.into_iter().collect();
    let kind = json!({ "anyOf": [
        exact(json!({ "embedding": exact(json!({ "pooling": { "const": "last_token" } }), &[]) }), &[]),
        exact(json!({ "reranker": exact(json!({
            "id2label": exact(json!({ "0": { "const": "yes" } }), &[]),
            "label2id": exact(json!({ "yes": { "const": 0 } }), &[]),
        }), &[]) }), &[]),
    ] });
    let model = exact(
        json!({
            "task": { "enum": ["embed", "rerank"] },
            "id": string(),
            "names": { "type": "array", "items": string(), "minItems": 1 },
            "revision": nullable(),
            "dimensions": { "type": ["integer", "null"], "minimum": 1 },
            "parameters": count(),
            "max_position_embeddings": count(),
            "device": string(),
            "dtype": string(),
            "threads": count(),
            "fingerprint": exact(json!({
                "id": digest(),
                "weights_sample_sha256": digest(),
                "tokenizer_sha256": digest(),
                "config_sha256": digest(),
                "template": string(),
                "preprocessing": exact(preprocessing.into(), &[]),
                "numeric_mode": string(),
            }), &[]),
        }),
        &[],
    );
    exact(
        json!({
            "model_id": string(),
            "model_sha": nullable(),
            "model_dtype": string(),
            "served_model_name": string(),
            "model_type": kind,
            "max_concurrent_requests": count(),
            "max_input_length": count(),
            "max_batch_tokens": count(),
            "max_batch_requests": count(),
            "max_client_batch_size": count(),
            "auto_truncate": { "type": "boolean" },
            "tokenization_workers": count(),
            "version": string(),
            "sha": nullable(),
            "docker_label": nullable(),
            "limits": exact(limits.into(), &[]),
            "models": { "type": "array", "items": model, "minItems": 1, "maxItems": 2 },
        }),
        &[],
    )
}

fn errors() -> Value {
    let mut kinds = Vec::new();
    let mut codes = Vec::new();
    for code in ErrorCode::ALL {
        let (_, kind, name) = code.row();
        codes.push(name);
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    let object = json!({
        "message": string(),
        "type": { "enum": kinds },
        "param": { "type": ["string", "null"], "description": "The path of the field at fault." },
        "code": { "enum": codes },
    });
    let error = || reference("ErrorObject");
    let mut words = object.clone();
    words["error"] = string();
    words["error_type"] = json!({ "enum": ["Overloaded", "Unhealthy", "Validation", "Backend"] });
    json!({
        "ErrorObject": exact(object, &[]),
        "Error": exact(json!({ "error": error() }), &[]),
        "CohereError": exact(json!({ "error": error(), "message": string(), "id": string() }), &[]),
        "VoyageError": exact(json!({ "error": error(), "detail": string() }), &[]),
        "DashScopeError": exact(json!({
            "error": error(), "code": { "enum": codes }, "message": string(), "request_id": string(),
        }), &[]),
        "TeiError": exact(words, &[]),
    })
}
