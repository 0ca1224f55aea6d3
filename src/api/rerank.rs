//! `POST /v1/rerank`, `/v2/rerank` and `/rerank`: the documents of one query, the most relevant first.
//!
//! # Source
//! Cohere's and Jina's rerank APIs as vLLM has them; on any of the routes a body with `texts` is text-embeddings-inference's and is
//! answered in its shape.

use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::{Value, json};

use super::ApiState;
use super::error::ApiError;
use super::fields::{Fields, shown};
use super::scoring::{self, Asked, Ranked, Reading, Schema};
use super::tei;
use crate::service::{InputPart, PartContent, RankItem};

/// The one of the routes that only Cohere's clients ask.
pub(super) const COHERE_PATH: &str = "/v2/rerank";
/// The routes' own fields.
pub(super) const FIELDS: &[&str] = &[
    "query",
    "documents",
    "top_n",
    "return_documents",
    "texts",
    "return_text",
    "raw_scores",
    tei::DIRECTION,
];

/// What an answer shows beside the scores.
struct Shown {
    /// How many, at most.
    top_n: Option<usize>,
    /// The documents as they were given; those not to be shown are `null`.
    documents: Vec<Value>,
    peer: Peer,
}

/// Whose shape an answer has.
#[derive(Clone, Copy)]
enum Peer {
    Cohere,
    TextEmbeddingsInference { raw_scores: bool },
}

/// `/v1/rerank` and `/rerank`: texts are shown unless the client does not want them, as vLLM and Jina do.
pub(super) async fn create(
    State(state): State<ApiState>,
    request: Request,
) -> Result<Response, ApiError> {
    let read = |body: Fields<'_>, reading: Reading<'_>| read(body, reading, true);
    answer(state, request, read).await
}

/// `/v2/rerank`: documents are shown where the client wants them, as Cohere does.
pub(super) async fn create_v2(
    State(state): State<ApiState>,
    request: Request,
) -> Result<Response, ApiError> {
    let read = |body: Fields<'_>, reading: Reading<'_>| read(body, reading, false);
    answer(state, request, read).await
}

async fn answer(
    state: ApiState,
    request: Request,
    read: fn(Fields<'_>, Reading<'_>) -> Result<Asked<Shown>, ApiError>,
) -> Result<Response, ApiError> {
    let schema = Schema {
        fields: FIELDS,
        read,
        write,
    };
    scoring::answer(state, request, schema).await
}

fn read(
    body: Fields<'_>,
    reading: Reading<'_>,
    texts_by_default: bool,
) -> Result<Asked<Shown>, ApiError> {
    let missing = |name: &str| ApiError::invalid(name, format!("{name} is missing"));
    let (query_at, query) = body.get("query").ok_or_else(|| missing("query"))?;
    let is_tei = body.get("documents").is_none() && body.get("texts").is_some();
    if !is_tei && let Some((at, _)) = body.get("texts") {
        let message = format!("{at} cannot stand beside documents");
        return Err(ApiError::invalid(at, message));
    }
    let field = if is_tei { "texts" } else { "documents" };
    let (at, given) = body.get(field).ok_or_else(|| missing(field))?;
    if is_tei && let Some(other) = given.as_array().and_then(|list| not_a_text(list)) {
        let (i, value) = other;
        let at = format!("{at}[{i}]");
        let message = format!(
            "{at} is {}, it must be a string; for pictures give documents",
            shown(value)
        );
        return Err(ApiError::invalid(at, message));
    }
    let query = reading.item(&query_at, query)?;
    let documents = reading.items(&at, given)?;
    let top_n = body.integer(&["top_n"], (0, u64::from(u32::MAX)))?;
    let shows = body.boolean(&["return_documents", "return_text"])?;
    let raw_scores = body.boolean(&["raw_scores"])?.unwrap_or(false);
    let peer = match is_tei {
        true => Peer::TextEmbeddingsInference { raw_scores },
        false => Peer::Cohere,
    };
    let list = match given.get("content") {
        Some(content) => content,
        None => given,
    };
    let by_default = texts_by_default && !is_tei;
    let shown = |(item, value): (&RankItem, &Value)| match shows {
        Some(true) => document(value),
        None if by_default && is_text(item) => document(value),
        _ => Value::Null,
    };
    let values = list.as_array().into_iter().flatten();
    let own = Shown {
        // 0 is vLLM's spelling of all.
        top_n: top_n.filter(|n| *n > 0).map(|n| n as usize),
        documents: documents.iter().zip(values).map(shown).collect(),
        peer,
    };
    Ok(Asked {
        pairs: (0..documents.len()).map(|document| (0, document)).collect(),
        queries: vec![query],
        documents,
        own,
    })
}

/// The first entry that is no text.
fn not_a_text(list: &[Value]) -> Option<(usize, &Value)> {
    list.iter()
        .enumerate()
        .find(|(_, value)| !value.is_string())
}

fn is_text(item: &RankItem) -> bool {
    let text = |part: &InputPart| matches!(part.content, PartContent::Text(_));
    item.parts.iter().all(text)
}

/// A document as answers show it: a text in an object, as all peers do; anything else as it came.
fn document(value: &Value) -> Value {
    match value {
        Value::String(text) => json!({ "text": text }),
        other => other.clone(),
    }
}

fn write(ranked: Ranked<Shown>) -> Value {
    let mut order: Vec<usize> = (0..ranked.scores.len()).collect();
    let score = |i: &usize| ranked.scores[*i].score;
    // Equal ones in the order they were given.
    order.sort_by(|a, b| score(b).total_cmp(&score(a)));
    order.truncate(ranked.own.top_n.unwrap_or(usize::MAX));
    let shown = |i: &usize| Some(&ranked.own.documents[*i]).filter(|value| !value.is_null());
    if let Peer::TextEmbeddingsInference { raw_scores } = ranked.own.peer {
        let result = |i: usize| {
            let scored = ranked.scores[i];
            let score = if raw_scores { scored.raw } else { scored.score };
            let mut result = json!({ "index": i, "score": score });
            if let Some(document) = shown(&i) {
                result["text"] = document["text"].clone();
            }
            if scored.truncated {
                result["truncated"] = true.into();
            }
            result
        };
        return order.into_iter().map(result).collect();
    }
    let result = |i: usize| {
        let scored = ranked.scores[i];
        let mut result = json!({ "index": i, "relevance_score": scored.score });
        if let Some(document) = shown(&i) {
            result["document"] = document.clone();
        }
        if scored.truncated {
            result["truncated"] = true.into();
        }
        result
    };
    let results: Vec<Value> = order.into_iter().map(result).collect();
    let answer = json!({
        "id": ranked.id("rerank"),
        "model": ranked.model,
        "results": results,
        "scored_by": ranked.scored_by,
        "usage": ranked.usage(),
        // Cohere's clients read these.
        "meta": { "api_version": { "version": "2" }, "billed_units": { "search_units": 1 } },
    });
    ranked.with_user(answer)
}
