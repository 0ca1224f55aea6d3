//! Every route, described. A route of another family is one more entry here, its fields one more name in `vocabulary`.

use serde_json::{Map, Value, json};

use super::super::options::{FIELDS, PIXEL_FIELDS};
use super::super::{cohere, dashscope, form, tei, voyage};
use super::contents::something;
use super::vocabulary::{body, field, narrowed};
use super::{Limits, Operation, Refusals, reference};

pub(super) const JSON: &str = "application/json";
const BYTES: &str = "application/octet-stream";
const FORM: &str = "multipart/form-data";

/// One grey pixel.
pub(super) const PIXEL: &str = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNoAAAAggCB2kUIOwAAAABJRU5ErkJggg==";

const EMBED_HEADERS: &[(&str, &str)] = &[
    ("server-timing", "Milliseconds of each stage."),
    (
        "x-ignored-fields",
        "Fields of the body that mean nothing here.",
    ),
    ("x-embed-cache", "hit or miss, where vectors are kept."),
];
const OPENAI_HEADERS: &[(&str, &str)] = &[
    ("server-timing", "Milliseconds of each stage."),
    (
        "x-ignored-fields",
        "Fields of the body that mean nothing here.",
    ),
    ("x-embed-cache", "hit or miss, where vectors are kept."),
    (
        "metadata",
        "JSON: where each vector is, for encoding_format bytes.",
    ),
];

/// All of them, in the order they are shown in.
pub(super) fn all(limits: Limits<'_>) -> Vec<Operation> {
    let mut all = vec![
        openai("/v1/embeddings", limits),
        openai("/embeddings", limits),
        explain(limits),
        cohere_embed(limits),
        voyage_embed(limits),
        dashscope_embed(limits),
        tei_embed(limits),
    ];
    all.extend(super::comparisons::all(limits));
    all.extend(about());
    all.extend(health());
    all
}

fn openai(path: &'static str, limits: Limits<'_>) -> Operation {
    let examples = vec![
        ("text", json!({ "input": "a cat on a sofa" })),
        (
            "texts",
            json!({ "input": ["a cat", "a dog"], "instruction": "Find the animal.", "encoding_format": "base64" }),
        ),
        ("token_ids", json!({ "input": [[1, 2, 3], [4, 5]] })),
        (
            "fused",
            json!({ "input": [{ "content": [{ "type": "text", "text": "a pixel" }, { "type": "image_url", "image_url": { "url": PIXEL } }] }] }),
        ),
        (
            "kinds",
            json!({ "input": { "text": "a pixel", "image": PIXEL, "max_pixels": 65536, "id": "mine" } }),
        ),
        (
            "frames",
            json!({ "input": { "video": { "frames": [PIXEL, PIXEL], "fps": 1.0 } } }),
        ),
        (
            "vllm",
            json!({
                "messages": [
                    { "role": "system", "content": [{ "type": "text", "text": "Represent the user's input." }] },
                    { "role": "user", "content": [{ "type": "text", "text": "a cat" }] },
                    { "role": "assistant", "content": [{ "type": "text", "text": "" }] },
                ],
                "continue_final_message": true, "add_special_tokens": true,
            }),
        ),
        (
            "types",
            json!({ "input": "a cat", "embedding_types": ["int8", "ubinary"], "output_encoding": "base64" }),
        ),
        (
            "partial",
            json!({ "input": ["a cat", { "image": "data:," }], "on_error": "partial" }),
        ),
    ];
    Operation {
        path,
        method: "post",
        tag: "embeddings",
        summary: "Embed texts, images and videos",
        description: "N elements of input give N vectors, in order. What the OpenAI API has not: pictures and videos, instructions, \
            types, truncation, partial answers.",
        bodies: vec![(JSON, openai_body(limits)), (FORM, form_body(limits))],
        examples,
        answers: vec![
            (JSON, reference("CreateEmbeddingResponse")),
            (BYTES, json!({ "type": "string", "format": "binary" })),
        ],
        headers: OPENAI_HEADERS,
        errors: "Error",
        refusals: Refusals::All,
    }
}

/// One of `input` and `messages`, and all options.
fn openai_body(limits: Limits<'_>) -> Value {
    let mut schema = body(FIELDS, &[], limits);
    schema["anyOf"] = json!([
        { "required": ["input"], "properties": { "input": something(), "messages": { "type": "null" } } },
        { "required": ["messages"], "properties": { "messages": something(), "input": { "type": "null" } } },
    ]);
    for name in ["input", "messages"] {
        schema["properties"][name] = super::vocabulary::optional(reference(match name {
            "input" => "Input",
            _ => "Messages",
        }));
    }
    schema
}

/// The fields of a form: one input of text, image and video, or `input` as JSON, and all options as text.
fn form_body(limits: Limits<'_>) -> Value {
    let mut properties = Map::new();
    for name in FIELDS.iter().copied().flatten().copied() {
        let mut schema = json!({ "type": "string", "description": "As the JSON field." });
        if let Some(about) = field(name, limits).get("description") {
            schema["description"] = about.clone();
        }
        properties.insert(name.to_owned(), schema);
    }
    for name in form::INPUT_FIELDS {
        properties.insert((*name).to_owned(), json!({ "type": "string" }));
    }
    for name in form::MEDIA {
        let one = match name {
            "text" => json!({ "type": "string" }),
            _ => json!({ "type": "string", "format": "binary" }),
        };
        let schema = json!({ "type": "array", "items": one, "description": "As often as wanted; all are one input." });
        properties.insert(name.to_owned(), schema);
    }
    let inputs = ["text", "image", "video"].map(|name| {
        json!({ "required": [name], "properties": { name: { "minItems": 1 }, "input": false, "messages": false } })
    });
    let written = [["input", "messages"], ["messages", "input"]]
        .map(|[one, other]| json!({ "required": [one], "properties": { other: false } }));
    let ways = [&inputs[..], &written].concat();
    json!({ "type": "object", "properties": properties, "anyOf": ways })
}

fn explain(limits: Limits<'_>) -> Operation {
    Operation {
        path: "/v1/embeddings/explain",
        summary: "Tell what would be embedded",
        description: "The same body as /v1/embeddings, and no forward pass: the rendered prompt, the tokens of each part, resized sizes, \
            grids, the times of sampled frames, what truncation takes. What could not be embedded is refused with the same errors.",
        answers: vec![(JSON, reference("ExplainResponse"))],
        headers: &EMBED_HEADERS[..2],
        ..openai("/v1/embeddings", limits)
    }
}

fn cohere_embed(limits: Limits<'_>) -> Operation {
    let lists = [cohere::INPUT_FIELDS, cohere::OPTION_FIELDS, PIXEL_FIELDS];
    let mut schema = body(&lists, &[], limits);
    narrowed(&mut schema, cohere::PATH, limits);
    // An empty list is none, and so is null.
    let only = |given: &str| {
        let lists = cohere::INPUT_FIELDS.iter().map(|name| {
            let list = match *name == given {
                true => json!({ "type": "array", "minItems": 1 }),
                false => json!({ "type": ["array", "null"], "maxItems": 0 }),
            };
            ((*name).to_owned(), list)
        });
        json!({ "required": [given], "properties": lists.collect::<Map<String, Value>>() })
    };
    schema["anyOf"] = cohere::INPUT_FIELDS.iter().map(|name| only(name)).collect();
    Operation {
        path: cohere::PATH,
        method: "post",
        tag: "peers",
        summary: "Embed, in Cohere's schema",
        description: "Give one of texts, images and inputs. Texts that are too long are cut at the end by default, as there.",
        bodies: vec![(JSON, schema)],
        examples: vec![
            (
                "texts",
                json!({ "texts": ["a cat", "a dog"], "input_type": "search_document", "embedding_types": ["float", "int8", "base64"] }),
            ),
            (
                "images",
                json!({ "images": [PIXEL], "input_type": "image" }),
            ),
            (
                "inputs",
                json!({ "inputs": [{ "content": [{ "type": "text", "text": "a pixel" }, { "type": "image_url", "image_url": { "url": PIXEL } }] }], "truncate": "NONE" }),
            ),
        ],
        answers: vec![(JSON, reference("EmbedByTypeResponse"))],
        headers: EMBED_HEADERS,
        errors: "CohereError",
        refusals: Refusals::All,
    }
}

fn voyage_embed(limits: Limits<'_>) -> Operation {
    let lists = [&["inputs"][..], voyage::OPTION_FIELDS, PIXEL_FIELDS];
    let mut schema = body(&lists, &["inputs"], limits);
    narrowed(&mut schema, voyage::PATH, limits);
    Operation {
        path: voyage::PATH,
        method: "post",
        tag: "peers",
        summary: "Embed, in Voyage's schema",
        description: "Texts that are too long are cut at the end by default, as there. Base64 holds the bytes of output_dtype.",
        bodies: vec![(JSON, schema)],
        examples: vec![(
            "fused",
            json!({
                "inputs": [{ "content": [{ "type": "text", "text": "a pixel" }, { "type": "image_base64", "image_base64": PIXEL }] }],
                "input_type": "document",
            }),
        )],
        answers: vec![(JSON, reference("MultimodalEmbeddingsResponse"))],
        headers: EMBED_HEADERS,
        errors: "VoyageError",
        refusals: Refusals::All,
    }
}

fn dashscope_embed(limits: Limits<'_>) -> Operation {
    let mut parameters = body(&[dashscope::PARAMETERS, PIXEL_FIELDS], &[], limits);
    parameters["type"] = json!(["object", "null"]);
    let contents = json!({
        "type": "array", "minItems": 1, "maxItems": limits.settings.max_inputs, "items": reference("DashScopeContent"),
    });
    let schema = json!({
        "type": "object",
        "required": ["input"],
        "properties": {
            "model": field("model", limits),
            "input": { "type": "object", "properties": { "contents": contents }, "required": ["contents"], "additionalProperties": false },
            "parameters": parameters,
        },
    });
    Operation {
        path: dashscope::PATH,
        method: "post",
        tag: "peers",
        summary: "Embed, in DashScope's schema",
        description: "Vectors of the hosted qwen3-vl-embedding are of another space: never compare them with these. enable_fusion gives \
            one vector for all contents, in the order videos, images, texts.",
        bodies: vec![(JSON, schema)],
        examples: vec![
            (
                "each",
                json!({ "input": { "contents": [{ "text": "a pixel" }, { "image": PIXEL }] } }),
            ),
            (
                "fused",
                json!({ "input": { "contents": [{ "text": "a pixel" }, { "image": PIXEL }] }, "parameters": { "enable_fusion": true, "dimension": 64 } }),
            ),
        ],
        answers: vec![(JSON, reference("DashScopeResponse"))],
        headers: EMBED_HEADERS,
        errors: "DashScopeError",
        refusals: Refusals::All,
    }
}

fn tei_embed(limits: Limits<'_>) -> Operation {
    let lists = [&["inputs"][..], tei::OPTION_FIELDS, PIXEL_FIELDS];
    let mut schema = body(&lists, &["inputs"], limits);
    narrowed(&mut schema, tei::PATH, limits);
    Operation {
        path: tei::PATH,
        method: "post",
        tag: "peers",
        summary: "Embed, in text-embeddings-inference's schema",
        description: "The answer is nothing but the vectors. inputs may be all that input of /v1/embeddings may be.",
        bodies: vec![(JSON, schema)],
        examples: vec![
            ("text", json!({ "inputs": "a cat" })),
            (
                "texts",
                json!({ "inputs": ["a cat", "a dog"], "truncate": true, "truncation_direction": "Right", "prompt_name": "query" }),
            ),
        ],
        answers: vec![(JSON, reference("EmbedResponse"))],
        headers: EMBED_HEADERS,
        errors: "TeiError",
        refusals: Refusals::All,
    }
}

/// A route without a body.
pub(super) fn get(
    path: &'static str,
    summary: &'static str,
    answer: (&'static str, Value),
) -> Operation {
    Operation {
        path,
        method: "get",
        tag: "operation",
        summary,
        description: "",
        bodies: Vec::new(),
        examples: Vec::new(),
        answers: vec![answer],
        headers: &[],
        errors: "Error",
        refusals: Refusals::Reading,
    }
}

fn about() -> Vec<Operation> {
    let text = || json!({ "type": "string" });
    let mut metrics = get("/metrics", "Numbers for Prometheus", ("text/plain", text()));
    metrics
        .answers
        .push(("application/openmetrics-text", text()));
    let anything = json!({ "type": "object" });
    vec![
        Operation {
            tag: "models",
            ..get("/v1/models", "What is served", (JSON, reference("Models")))
        },
        Operation {
            tag: "models",
            ..get("/v1/models/{id}", "One model", (JSON, reference("Model")))
        },
        metrics,
        get("/openapi.json", "This document", (JSON, anything)),
        get("/docs", "This document, for people", ("text/html", text())),
        Operation {
            refusals: Refusals::Health,
            ..get("/", "The playground", ("text/html", text()))
        },
    ]
}

fn health() -> [Operation; 4] {
    let of = |path, summary| Operation {
        refusals: Refusals::Health,
        ..get(path, summary, (JSON, reference("Health")))
    };
    [
        of("/health", "The same as /health/ready"),
        of("/health/ready", "Whether requests are welcome"),
        of("/health/live", "Whether the process is worth keeping"),
        of("/health/startup", "Whether the model is loaded"),
    ]
}
