//! The routes that score, and `/info`, described. Their fields stand in `vocabulary` like all others.

use serde_json::{Map, Value, json};

use super::super::options::PIXEL_FIELDS;
use super::super::scoring::KNOWN;
use super::super::{rerank, scores};
use super::contents::something;
use super::operations::{JSON, PIXEL, get};
use super::vocabulary::{body, optional, truncate};
use super::{Limits, Operation, Refusals, reference};

const HEADERS: &[(&str, &str)] = &[
    ("server-timing", "Milliseconds of each stage."),
    (
        "x-ignored-fields",
        "Fields of the body that mean nothing here.",
    ),
    (
        "x-scored-by",
        "reranker, or cosine: then the scores are the cosines of embeddings.",
    ),
];

/// All of them.
pub(super) fn all(limits: Limits<'_>) -> Vec<Operation> {
    let mut all: Vec<Operation> = ["/v1/rerank", "/rerank", rerank::COHERE_PATH]
        .map(|path| reranked(path, limits))
        .into();
    all.extend(["/v1/score", "/score"].map(|path| scored(path, limits)));
    all.push(Operation {
        tag: "models",
        ..get(
            "/info",
            "What runs here, with fingerprints and limits",
            (JSON, reference("Info")),
        )
    });
    all
}

fn reranked(path: &'static str, limits: Limits<'_>) -> Operation {
    let mut schema = body(&[rerank::FIELDS, KNOWN, PIXEL_FIELDS], &["query"], limits);
    schema["oneOf"] = json!([
        { "required": ["documents"], "properties": { "documents": something(), "texts": { "type": "null" } } },
        { "required": ["texts"], "properties": { "texts": { "type": "array", "minItems": 1 }, "documents": { "type": "null" } } },
    ]);
    schema["properties"]["documents"] = optional(reference("RankItems"));
    schema["properties"]["truncate"] = truncate(&["NONE", "START", "END"]);
    Operation {
        path,
        method: "post",
        tag: "reranking",
        summary: "Order documents by how relevant they are to a query",
        description: "By a reranker where one is loaded, else by the cosine of embeddings; scored_by says which. With texts instead of \
            documents the answer is a list, as text-embeddings-inference gives it.",
        bodies: vec![(JSON, schema)],
        examples: vec![
            (
                "texts",
                json!({ "query": "a cat", "documents": ["a dog", "a kitten"], "top_n": 1 }),
            ),
            (
                "pictures",
                json!({ "query": "a pixel", "documents": [{ "image": PIXEL }, "a word"], "return_documents": false }),
            ),
            (
                "tei",
                json!({ "query": "a cat", "texts": ["a dog", "a kitten"], "raw_scores": true }),
            ),
        ],
        answers: vec![(
            JSON,
            json!({ "anyOf": [reference("RerankResponse"), reference("TeiRanks")] }),
        )],
        headers: HEADERS,
        errors: match path {
            rerank::COHERE_PATH => "CohereError",
            _ => "Error",
        },
        refusals: Refusals::All,
    }
}

/// One way to name the two sides, with no name of another beside.
fn two_sides(pair: [&str; 2]) -> Value {
    let names = scores::FIELDS.iter();
    let fields = names.map(|name| match pair.contains(name) {
        true => ((*name).to_owned(), something()),
        false => ((*name).to_owned(), json!({ "type": "null" })),
    });
    let fields: Map<String, Value> = fields.collect();
    json!({ "required": pair, "properties": fields })
}

fn scored(path: &'static str, limits: Limits<'_>) -> Operation {
    let mut schema = body(&[scores::FIELDS, KNOWN, PIXEL_FIELDS], &[], limits);
    schema["anyOf"] = Value::from(scores::SIDES.map(two_sides).to_vec());
    schema["properties"]["truncate"] = truncate(&["NONE", "START", "END"]);
    Operation {
        path,
        method: "post",
        tag: "reranking",
        summary: "Score pairs in their order",
        description: "One query with each of many documents, or each query with its own.",
        bodies: vec![(JSON, schema)],
        examples: vec![
            (
                "one_for_all",
                json!({ "queries": "a cat", "documents": ["a dog", "a kitten"] }),
            ),
            (
                "one_for_each",
                json!({ "text_1": ["a cat", "a dog"], "text_2": ["a kitten", "a puppy"] }),
            ),
        ],
        answers: vec![(JSON, reference("ScoreResponse"))],
        headers: HEADERS,
        errors: "Error",
        refusals: Refusals::All,
    }
}
