//! `GET /openapi.json` and `GET /docs`: the whole interface, described for programs and for people.
//!
//! In: the lists of fields the parsers read and the limits of this server. Out: an OpenAPI 3.1 document. The properties of each request
//! are made from the very lists its route reads by, the statuses from the error table, the ranges from the settings; the tests hold
//! routes, bodies and answers against it. Requests are read by hand, so that a refusal can name a path, so there is no type to derive
//! their schema from.

mod answers;
mod comparisons;
mod contents;
mod examples;
mod operations;
#[cfg(test)]
mod tests;
mod vocabulary;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{Html, IntoResponse};
use serde_json::{Map, Value, json};

use super::error::ErrorCode;
use super::{ApiSettings, ApiState, dialect};

/// The viewer: one page, no network but this server's own document.
const VIEWER: &str = include_str!("viewer.html");
/// What the page may load: itself and the document.
const VIEWER_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'";

/// What of this server the document tells.
#[derive(Clone, Copy)]
pub(super) struct Limits<'a> {
    settings: &'a ApiSettings,
    /// Width of the vectors, once the model is loaded.
    hidden_size: Option<usize>,
    /// Whether a key is needed.
    keys: bool,
}

/// One route, described.
pub(super) struct Operation {
    path: &'static str,
    method: &'static str,
    /// The group it is shown in.
    tag: &'static str,
    summary: &'static str,
    description: &'static str,
    /// Content type and schema of each body it takes.
    bodies: Vec<(&'static str, Value)>,
    /// Bodies that are answered with 200, by name.
    examples: Vec<(&'static str, Value)>,
    /// Content type and schema of each answer.
    answers: Vec<(&'static str, Value)>,
    /// Headers of its answers beside those of all.
    headers: &'static [(&'static str, &'static str)],
    /// The schema of its errors.
    errors: &'static str,
    /// What it can be refused with.
    refusals: Refusals,
}

/// Which rows of the error table a route can answer with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusals {
    /// All of them: it reads a body and uses the model.
    All,
    /// Those of a route that only tells what is there.
    Reading,
    /// Those of health: loading, draining, the device.
    Health,
}

impl Refusals {
    fn has(self, code: ErrorCode) -> bool {
        let status = code.row().0.as_u16();
        match self {
            Refusals::All => code != ErrorCode::NotFound,
            Refusals::Reading => {
                matches!(status, 401 | 405 | 500 | 503) || code == ErrorCode::ModelNotFound
            }
            Refusals::Health => matches!(status, 405 | 500 | 503),
        }
    }
}

/// `GET /openapi.json`.
pub(super) async fn document(State(state): State<ApiState>) -> Json<Value> {
    let keys = state.keys.read().is_ok_and(|keys| !keys.is_empty());
    let limits = Limits {
        settings: &state.settings,
        hidden_size: state.served().ok().map(|served| served.info.hidden_size),
        keys,
    };
    Json(build(limits))
}

/// `GET /docs`.
pub(super) async fn docs() -> impl IntoResponse {
    let headers = [(header::CONTENT_SECURITY_POLICY, VIEWER_POLICY)];
    (headers, Html(VIEWER))
}

/// The document.
fn build(limits: Limits<'_>) -> Value {
    let mut schemas = Map::new();
    schemas.extend(contents::schemas(limits));
    schemas.extend(answers::schemas());
    let mut paths = Map::new();
    for operation in operations::all(limits) {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method] = described(&operation, limits);
    }
    let mut document = json!({
        "openapi": "3.1.0",
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "info": {
            "title": "manifold",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Embeddings of text, images and video over the OpenAI API and those of its peers.",
            "description": "Every spelling of the same content gives the identical vector. Unknown fields at the top of a body are \
                accepted and named in the header x-ignored-fields; within an input they are refused with their path.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "tags": [
            { "name": "embeddings", "description": "The OpenAI schema and what is added to it." },
            { "name": "peers", "description": "The schemas of other servers, for their clients." },
            { "name": "reranking", "description": "Scores of documents for a query, and of pairs." },
            { "name": "models", "description": "What is served." },
            { "name": "operation", "description": "Health, metrics and this document." },
        ],
        "paths": paths,
        "components": { "schemas": schemas },
    });
    if limits.keys {
        document["components"]["securitySchemes"] =
            json!({ "key": { "type": "http", "scheme": "bearer" } });
    }
    document
}

fn described(operation: &Operation, limits: Limits<'_>) -> Value {
    let mut headers = json!({
        "x-request-id": header_of("The request's id: the client's own where it sent one.", true),
        "openai-processing-ms": header_of("Milliseconds the answer took.", true),
    });
    for (name, description) in operation.headers {
        headers[name] = header_of(description, false);
    }
    let contents = operation.answers.iter();
    let contents: Map<String, Value> = contents
        .map(|(kind, schema)| ((*kind).to_owned(), json!({ "schema": schema })))
        .collect();
    let mut responses = refusals(operation, limits);
    responses.insert(
        "200".to_owned(),
        json!({ "description": "Done.", "headers": headers, "content": contents }),
    );
    let mut described = json!({
        "operationId": operation_id(operation),
        "tags": [operation.tag],
        "summary": operation.summary,
        "description": operation.description,
        "parameters": parameters(operation),
        "responses": responses,
    });
    if !operation.bodies.is_empty() {
        let bodies = operation.bodies.iter().map(|(kind, schema)| {
            let mut body = json!({ "schema": schema });
            if *kind == "application/json" {
                let examples = operation.examples.iter();
                body["examples"] = examples
                    .map(|(name, value)| ((*name).to_owned(), json!({ "value": value })))
                    .collect::<Map<String, Value>>()
                    .into();
            }
            ((*kind).to_owned(), body)
        });
        let content: Map<String, Value> = bodies.collect();
        described["requestBody"] = json!({ "required": true, "content": content });
    }
    if limits.keys && operation.refusals != Refusals::Health {
        described["security"] = json!([{ "key": [] }]);
    }
    described
}

fn operation_id(operation: &Operation) -> String {
    let words = operation.path.split(|c: char| !c.is_ascii_alphanumeric());
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    format!("{}_{}", operation.method, words.join("_"))
}

fn header_of(description: &str, required: bool) -> Value {
    json!({ "description": description, "required": required, "schema": { "type": "string" } })
}

fn parameters(operation: &Operation) -> Value {
    let mut parameters = vec![json!({
        "name": "x-request-id", "in": "header",
        "description": "An id of the client's own, up to 128 visible ASCII characters; anything else is replaced by a new one.",
        "schema": { "type": "string" },
    })];
    if !operation.bodies.is_empty() {
        parameters.push(json!({
            "name": "x-request-timeout-ms", "in": "header",
            "description": "How long the client waits, up to the server's own limit.",
            "schema": { "type": "integer", "minimum": 1, "maximum": u64::MAX },
        }));
    }
    if operation.path.contains("{id}") {
        parameters.push(json!({
            "name": "id", "in": "path", "required": true,
            "description": "A served name, which may hold slashes.",
            "schema": { "type": "string", "minLength": 1 },
        }));
    }
    parameters.into()
}

/// The rows of the error table the route can answer with, by status.
fn refusals(operation: &Operation, limits: Limits<'_>) -> Map<String, Value> {
    let mut rows: Map<String, Value> = Map::new();
    for code in ErrorCode::ALL {
        let unlocked = code == ErrorCode::InvalidApiKey && !limits.keys;
        if unlocked || !operation.refusals.has(code) {
            continue;
        }
        let (status, _, name) = code.row();
        let row = rows.entry(status.as_str()).or_insert_with(|| {
            let schema = format!("#/components/schemas/{}", operation.errors);
            json!({
                "description": "",
                "headers": refusal_headers(status.as_u16()),
                "content": { "application/json": { "schema": { "$ref": schema }, "examples": {} } },
            })
        });
        let error = examples::of(code, limits.settings);
        let body = dialect::body(operation.path, &error, "req-1");
        let body = body.unwrap_or_else(|| json!({ "error": error.body() }));
        row["content"]["application/json"]["examples"][name] = json!({ "value": body });
        let names = row["description"].as_str().unwrap_or_default();
        let names = match names {
            "" => name.to_owned(),
            names => format!("{names}, {name}"),
        };
        row["description"] = names.into();
    }
    rows
}

fn refusal_headers(status: u16) -> Value {
    let mut headers = json!({
        "x-request-id": header_of("The request's id.", true),
        "openai-processing-ms": header_of("Milliseconds the answer took.", true),
    });
    let more: &[(&str, &str)] = match status {
        400 | 413 | 415 => &[(
            "x-should-retry",
            "false: the same request would fail again.",
        )],
        401 => &[("www-authenticate", "Bearer.")],
        405 => &[("allow", "The methods the route has.")],
        429 | 503 => &[
            ("retry-after", "Seconds until it may work."),
            ("retry-after-ms", "The same in milliseconds."),
        ],
        _ => &[],
    };
    for (name, description) in more {
        headers[name] = header_of(description, true);
    }
    headers
}

/// A reference to a schema of the document.
fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}
