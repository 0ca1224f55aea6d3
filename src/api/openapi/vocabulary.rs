//! The fields a body may have at its top, by name. In: the name a parser reads. Out: its schema.

use serde_json::{Map, Value, json};

use super::super::embeddings::MOST_IN_BYTES;
use super::super::instruction::{INSTRUCTION, INSTRUCTION_NAME, names};
use super::super::options::{
    self, DIMENSIONS, EMBEDDING_TYPE, MAX_TOKENS, NORMALIZE, PIXEL_FIELDS, TRUNCATE,
};
use super::super::{cohere, dashscope, tei, voyage};
use super::contents::strict;
use super::{Limits, reference};
use crate::vectors::{MIN_DIMENSIONS, Quantization};

/// An object with the fields of some lists, and whatever else a client sends.
pub(super) fn body(lists: &[&[&str]], required: &[&str], limits: Limits<'_>) -> Value {
    let mut properties = Map::new();
    for name in lists.iter().copied().flatten() {
        properties.insert((*name).to_owned(), field(name, limits));
    }
    json!({ "type": "object", "properties": properties, "required": required })
}

/// Allows null, which everywhere is the same as not being there.
pub(super) fn optional(schema: Value) -> Value {
    let Value::Object(mut schema) = schema else {
        return schema;
    };
    if schema.contains_key("$ref") {
        return json!({ "anyOf": [schema, { "type": "null" }] });
    }
    if let Some(words) = schema.get_mut("enum").and_then(Value::as_array_mut) {
        words.push(Value::Null);
    }
    if let Some(any) = schema.get_mut("anyOf").and_then(Value::as_array_mut) {
        any.push(json!({ "type": "null" }));
    }
    if let Some(kind) = schema.get_mut("type") {
        *kind = json!([kind.clone(), "null"]);
    }
    schema.into()
}

fn text(description: &str) -> Value {
    optional(json!({ "type": "string", "description": description }))
}

fn flag(description: &str) -> Value {
    optional(json!({ "type": "boolean", "description": description }))
}

fn word(words: &[&str], description: &str) -> Value {
    optional(json!({ "type": "string", "enum": words, "description": description }))
}

/// The schema of a field.
///
/// # Panics
/// For a name nobody described: the tests build the document of every route.
pub(super) fn field(name: &str, limits: Limits<'_>) -> Value {
    if INSTRUCTION.contains(&name) {
        return text("Replaces the default instruction.");
    }
    if INSTRUCTION_NAME.contains(&name) {
        let known = names(limits.settings);
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        return word(&known, "Picks a configured instruction by its name.");
    }
    if DIMENSIONS.contains(&name) {
        return dimensions(limits);
    }
    if EMBEDDING_TYPE.contains(&name) {
        return types();
    }
    if NORMALIZE.contains(&name) {
        return flag("Whether vectors are brought to length 1; they are by default.");
    }
    if TRUNCATE.contains(&name) {
        return truncate(&["NONE", "START", "END", "REFERENCE"]);
    }
    if MAX_TOKENS.contains(&name) {
        return max_tokens(name, limits);
    }
    if PIXEL_FIELDS.contains(&name) {
        return pixels(name, limits);
    }
    other(name, limits)
}

fn other(name: &str, limits: Limits<'_>) -> Value {
    match name {
        "model" => text("A served name; see /v1/models."),
        "input" => reference("Input"),
        "messages" => reference("Messages"),
        "inputs" => reference("Input"),
        "encoding_format" => word(
            options::ENCODING_FORMATS,
            &format!(
                "base64 is always little-endian float32. bytes answers up to {MOST_IN_BYTES} inputs as they are in memory."
            ),
        ),
        "output_encoding" => word(
            &["base64"],
            "Base64 of the bytes of the type that was asked for.",
        ),
        "truncation_side" => word(&["left", "right"], "Which side is cut."),
        "mm_processor_kwargs" => {
            let fields = PIXEL_FIELDS[..4].iter();
            let fields: Map<String, Value> = fields
                .map(|name| ((*name).to_owned(), pixels(name, limits)))
                .collect();
            optional(
                json!({ "type": "object", "properties": fields, "additionalProperties": false }),
            )
        }
        "raw" => flag("No template: text or ids go to the model as they are."),
        "on_error" => word(
            &["fail", "partial"],
            "partial: each input is answered by itself, with a vector or an error.",
        ),
        "priority" => optional(json!({
            "description": "The lane; as a number, lower goes first and 0 is where all are.",
            "anyOf": [
                { "type": "string", "enum": ["interactive", "bulk"] },
                { "type": "integer", "minimum": i64::MIN, "maximum": i64::MAX },
            ],
        })),
        "user" => text("Echoed."),
        "request_id" => {
            text("Becomes part of the answer's id, where it is up to 128 visible ASCII characters.")
        }
        name => peers(name, limits),
    }
}

/// One side of a comparison: a query or document, or some of them.
fn side(what: &str, limits: Limits<'_>) -> Value {
    let words = json!({ "type": "string" });
    let text = strict(
        json!({ "content": words }),
        &["content"],
        PIXEL_FIELDS,
        limits,
    );
    let one = [words, reference("Part"), text, reference("RankKinds")];
    // A list is one of items, never the parts of a single one.
    let any = [&one[..], &[reference("RankItems")]].concat();
    json!({ "description": what, "anyOf": any })
}

/// Fields only a peer's schema has.
fn peers(name: &str, limits: Limits<'_>) -> Value {
    let list = |schema: Value| {
        optional(
            json!({ "type": "array", "items": schema, "maxItems": limits.settings.max_inputs }),
        )
    };
    match name {
        "texts" => list(json!({ "type": "string" })),
        "images" => list(reference("Picture")),
        "enable_fusion" => flag("One vector for all contents."),
        "auto_truncation" => flag("Cuts texts that are too long."),
        "output_type" => word(dashscope::OUTPUT_TYPES, "The only kind of vector there is."),
        "max_video_frames" => pixels("max_frames", limits),
        "query" => reference("RankItem"),
        "queries" | "text_1" | "data_1" => optional(side("What is looked for.", limits)),
        "documents" | "items" | "text_2" | "data_2" => optional(side("What is judged.", limits)),
        "top_n" => optional(json!({
            "type": "integer", "minimum": 0, "maximum": u32::MAX, "description": "How many results; 0 is all.",
        })),
        "max_tokens_per_doc" => optional(json!({
            "type": "integer", "minimum": 1, "maximum": u32::MAX, "description": "Documents are cut to so many tokens.",
        })),
        "return_documents" | "return_text" => flag("Whether results show their documents."),
        "raw_scores" => flag("Logits instead of their sigmoids, in the shape of texts."),
        "truncation_direction" => word(tei::DIRECTIONS, "Which side is cut."),
        name => panic!("the field {name} is not described"),
    }
}

fn dimensions(limits: Limits<'_>) -> Value {
    let mut schema = json!({ "type": "integer", "minimum": MIN_DIMENSIONS, "description": "Shortens the vector; it is normalised again." });
    if let Some(most) = limits.hidden_size {
        schema["minimum"] = MIN_DIMENSIONS.min(most).into();
        schema["maximum"] = most.into();
    }
    optional(schema)
}

/// One of the types.
fn one_type(more: &[&str]) -> Value {
    let names = Quantization::NAMES.iter().map(|(name, _)| *name);
    let names: Vec<&str> = names.chain(more.iter().copied()).collect();
    json!({ "type": "string", "enum": names })
}

/// One of the types, or a list of them.
fn types() -> Value {
    let one = one_type(&[]);
    let most = Quantization::NAMES.len();
    optional(
        json!({ "anyOf": [one, { "type": "array", "items": one, "minItems": 1, "maxItems": most }] }),
    )
}

/// With the words a route knows.
pub(super) fn truncate(words: &[&str]) -> Value {
    optional(json!({
        "description": "What happens to an input that is too long: it is refused (false, NONE), or its text cut at the end (true, END) or the start.",
        "anyOf": [{ "type": "boolean" }, { "type": "string", "enum": words }],
    }))
}

fn max_tokens(name: &str, limits: Limits<'_>) -> Value {
    let most = limits.settings.max_input_tokens;
    let own = json!({ "type": "integer", "minimum": 1, "maximum": most });
    if name == MAX_TOKENS[0] {
        return optional(
            json!({ "description": "-1 is the model's own limit.", "anyOf": [own, { "const": -1 }] }),
        );
    }
    optional(own)
}

/// One of the options of pictures and videos.
pub(super) fn pixels(name: &str, limits: Limits<'_>) -> Value {
    let most = limits.settings.max_input_tokens as u64 * options::PIXELS_PER_TOKEN;
    optional(match name {
        "fps" => {
            json!({ "type": "number", "exclusiveMinimum": 0, "maximum": options::MOST_FPS, "description": "Frames a second taken from a video file." })
        }
        "max_frames" => {
            json!({ "type": "integer", "minimum": 1, "maximum": limits.settings.max_frames, "description": "Most frames of a video." })
        }
        "total_pixels" => {
            json!({ "type": "integer", "minimum": 1, "maximum": options::MOST_TOTAL_PIXELS, "description": "Pixels of all frames together." })
        }
        "start" | "end" => {
            json!({ "type": "number", "minimum": 0, "maximum": options::MOST_SECONDS, "description": "Seconds: which part of a video file is looked at." })
        }
        "num_frames" => {
            json!({ "type": "integer", "minimum": 2, "maximum": limits.settings.max_frames, "description": "How many frames of a video file." })
        }
        _ => {
            json!({ "type": "integer", "minimum": 1, "maximum": most, "description": "The area pictures are resized to." })
        }
    })
}

/// The same field where a route takes less of it than others.
pub(super) fn narrowed(body: &mut Value, path: &str, limits: Limits<'_>) {
    let list = |items: Value| json!({ "type": "array", "items": items, "minItems": 1, "maxItems": limits.settings.max_inputs });
    let properties = &mut body["properties"];
    match path {
        cohere::PATH => {
            let types = one_type(&[cohere::BASE64]);
            properties["embedding_types"] =
                optional(json!({ "type": "array", "minItems": 1, "items": types }));
            properties["inputs"] = optional(json!({
                "type": "array", "items": reference("InputObject"), "maxItems": limits.settings.max_inputs,
            }));
        }
        voyage::PATH => {
            properties["inputs"] = list(reference("ContentObject"));
            properties["output_dtype"] = optional(one_type(&[]));
            properties["truncation"] =
                flag("Whether texts that are too long are cut; they are by default.");
            properties["encoding_format"] =
                word(voyage::ENCODING_FORMATS, "base64: the bytes of the type.");
        }
        tei::PATH => {
            properties["encoding_format"] =
                word(tei::ENCODING_FORMATS, "The answer has no other form.");
        }
        _ => {}
    }
}
