//! `POST /v1/score` and `/score`: pairs in their order, one with each of many or each with its own.
//!
//! # Source
//! vLLM's score API.

use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::{Value, json};

use super::ApiState;
use super::error::ApiError;
use super::fields::Fields;
use super::scoring::{self, Asked, Ranked, Reading, Schema};
use crate::service::{RankItem, Scored};

/// Spellings of the two sides.
pub(super) const SIDES: [[&str; 2]; 4] = [
    ["queries", "documents"],
    ["queries", "items"],
    ["text_1", "text_2"],
    ["data_1", "data_2"],
];
pub(super) const FIELDS: &[&str] = &[
    "queries",
    "documents",
    "items",
    "text_1",
    "text_2",
    "data_1",
    "data_2",
];

/// The routes.
pub(super) async fn create(
    State(state): State<ApiState>,
    request: Request,
) -> Result<Response, ApiError> {
    let schema = Schema {
        fields: FIELDS,
        read,
        write,
    };
    scoring::answer(state, request, schema).await
}

/// One side: a list of items, or one item.
fn side((at, value): (&str, &Value), reading: Reading<'_>) -> Result<Vec<RankItem>, ApiError> {
    let is_list =
        matches!(value, Value::Array(_)) || value.get("content").is_some_and(Value::is_array);
    if is_list {
        return reading.items(at, value);
    }
    Ok(vec![reading.item(at, value)?])
}

fn read(body: Fields<'_>, reading: Reading<'_>) -> Result<Asked<()>, ApiError> {
    let given = SIDES.iter().find_map(|[one, two]| {
        let (one, two) = (body.get(one)?, body.get(two)?);
        Some((one, two))
    });
    let Some(((one_at, one), (two_at, two))) = given else {
        let missing = SIDES
            .iter()
            .find_map(|[one, two]| match (body.get(one), body.get(two)) {
                (Some(_), None) => Some(*two),
                (None, Some(_)) => Some(*one),
                _ => None,
            });
        let missing = missing.unwrap_or("queries");
        let message =
            format!("{missing} is missing; give queries and documents, or text_1 and text_2");
        return Err(ApiError::invalid(missing, message));
    };
    for other in FIELDS {
        let is_chosen = *other == one_at || *other == two_at;
        if !is_chosen && let Some((at, _)) = body.get(other) {
            let message = format!("{at} cannot stand beside {one_at} and {two_at}");
            return Err(ApiError::invalid(at, message));
        }
    }
    let mut queries = side((&one_at, one), reading)?;
    let mut documents = side((&two_at, two), reading)?;
    let (left, right) = (queries.len(), documents.len());
    if left != 1 && left != right {
        let message = format!(
            "{one_at} has {left} entries and {two_at} {right}: it must be one for all, or one for each"
        );
        return Err(ApiError::invalid(one_at, message));
    }
    // A query that comes again next to itself is computed once.
    let mut pairs = Vec::with_capacity(right);
    let mut distinct: Vec<RankItem> = Vec::new();
    if left == 1 {
        pairs.extend((0..right).map(|document| (0, document)));
        distinct.append(&mut queries);
    }
    for (document, query) in queries.into_iter().enumerate() {
        let same = |known: &&RankItem| {
            // Where they stand in the request differs.
            let mut pairs = known.parts.iter().zip(&query.parts);
            known.parts.len() == query.parts.len() && pairs.all(|(a, b)| a.content == b.content)
        };
        if distinct.last().filter(same).is_none() {
            distinct.push(query);
        }
        pairs.push((distinct.len() - 1, document));
    }
    Ok(Asked {
        queries: distinct,
        documents: std::mem::take(&mut documents),
        pairs,
        own: (),
    })
}

fn write(ranked: Ranked<()>) -> Value {
    let score = |(index, scored): (usize, &Scored)| {
        let mut entry = json!({ "index": index, "object": "score", "score": scored.score });
        if scored.truncated {
            entry["truncated"] = true.into();
        }
        entry
    };
    let data: Vec<Value> = ranked.scores.iter().enumerate().map(score).collect();
    let answer = json!({
        "id": ranked.id("score"),
        "object": "list",
        "created": scoring::now(),
        "model": ranked.model,
        "data": data,
        "scored_by": ranked.scored_by,
        "usage": ranked.usage(),
    });
    ranked.with_user(answer)
}
