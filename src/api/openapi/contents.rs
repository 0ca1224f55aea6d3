//! What an input may be: the grammar of `input` and `messages` as schemas.

use serde_json::{Map, Value, json};

use super::super::dashscope;
use super::super::options::{ITEM_FIELDS, PIXEL_FIELDS};
use super::vocabulary::{optional, pixels};
use super::{Limits, reference};

/// Whatever: the field is accepted and says nothing.
fn anything() -> Value {
    json!({})
}

fn one_or_list(schema: &Value) -> Value {
    json!({ "anyOf": [schema, { "type": "array", "items": schema }] })
}

/// An object with these fields and the options of pictures and videos, and nothing else.
fn strict(fields: Value, required: &[&str], own: &[&str], limits: Limits<'_>) -> Value {
    let mut properties = match fields {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    for name in own {
        let schema = match PIXEL_FIELDS.contains(name) {
            true => pixels(name, limits),
            false => json!({ "type": ["string", "null"] }),
        };
        properties.insert((*name).to_owned(), schema);
    }
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

pub(super) fn schemas(limits: Limits<'_>) -> Map<String, Value> {
    let most = limits.settings.max_inputs;
    let all = json!({
        "Input": {
            "description": "One input, or a list of them: strings and objects may be mixed. A list of numbers is one sequence of token ids, a list of messages one conversation.",
            "anyOf": [
                reference("Item"),
                { "type": "array", "items": reference("Item"), "minItems": 1, "maxItems": most },
            ],
        },
        "Item": {
            "description": "One vector.",
            "anyOf": [
                { "type": "string" },
                reference("TokenIds"),
                reference("InputObject"),
                reference("Conversation"),
            ],
        },
        "InputObject": {
            "anyOf": [
                reference("ContentObject"),
                reference("KindsObject"),
                reference("Message"),
                part(limits, ITEM_FIELDS),
            ],
        },
        "TokenIds": {
            "description": "Ids of the model's vocabulary; those of special tokens are refused.",
            "type": "array", "minItems": 1, "items": { "type": "integer", "minimum": 0, "maximum": u32::MAX },
        },
        "ContentObject": strict(
            json!({ "content": reference("Content") }), &["content"], &[ITEM_FIELDS, PIXEL_FIELDS].concat(), limits),
        "KindsObject": strict(
            json!({
                "text": optional(one_or_list(&json!({ "type": "string" }))),
                "image": optional(one_or_list(&reference("Picture"))),
                "video": optional(one_or_list(&reference("Video"))),
            }),
            &[], &[ITEM_FIELDS, PIXEL_FIELDS].concat(), limits),
        "Messages": {
            "description": "One conversation, or a list of them.",
            "anyOf": [
                reference("Conversation"),
                { "type": "array", "items": reference("Conversation"), "minItems": 1, "maxItems": most },
            ],
        },
        "Conversation": {
            "description": "A system message, which is the instruction, or none; one user message; an empty assistant message or none.",
            "type": "array", "minItems": 1, "maxItems": 3, "items": reference("Message"),
        },
        "Message": message(),
        "DashScopeContent": dashscope_content(),
    });
    let mut schemas = Map::new();
    for part in [all, pieces(limits)] {
        if let Value::Object(part) = part {
            schemas.extend(part);
        }
    }
    schemas
}

/// What inputs are made of.
fn pieces(limits: Limits<'_>) -> Value {
    json!({
        "Content": {
            "description": "A text, or parts in the caller's order.",
            "anyOf": [
                { "type": "string" },
                { "type": "array", "items": { "anyOf": [{ "type": "string" }, reference("Part")] } },
            ],
        },
        "Part": part(limits, &[]),
        "Picture": {
            "description": "A data: URI, base64, or an http(s):// or file:// URL where the server allows it.",
            "anyOf": [
                { "type": "string" },
                { "type": "object", "properties": { "url": { "type": "string" }, "detail": anything() }, "required": ["url"], "additionalProperties": false },
            ],
        },
        "Video": {
            "description": "A media string, or the frames of a video: as they are, or with their own rate.",
            "anyOf": [
                { "type": "string" },
                { "type": "array", "items": reference("Picture") },
                { "type": "object", "properties": { "url": { "type": "string" }, "frames": { "type": "null" } }, "required": ["url"], "additionalProperties": false },
                {
                    "type": "object", "required": ["frames"], "additionalProperties": false,
                    "properties": {
                        "frames": { "type": "array", "items": reference("Picture"), "minItems": 1, "maxItems": limits.settings.max_frames },
                        "fps": { "type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1000 },
                    },
                },
            ],
        },
    })
}

fn message() -> Value {
    let text_parts = json!({
        "type": "array",
        "items": {
            "type": "object", "required": ["text"], "additionalProperties": false,
            "properties": { "type": { "type": ["string", "null"], "enum": ["text", null] }, "text": { "type": "string" } },
        },
    });
    let nothing = json!([
        { "type": "null" },
        { "type": "string", "maxLength": 0 },
        { "type": "array", "items": { "type": "object", "required": ["text"] } },
    ]);
    let of = |role: &str, content: Value, required: &[&str]| {
        json!({
            "type": "object", "required": required, "additionalProperties": false,
            "properties": { "role": { "const": role }, "content": content, "name": anything() },
        })
    };
    json!({
        "anyOf": [
            of("system", json!({ "anyOf": [{ "type": "string" }, text_parts] }), &["role", "content"]),
            of("user", reference("Content"), &["role", "content"]),
            of("assistant", json!({ "anyOf": nothing }), &["role"]),
        ],
    })
}

/// Every kind of part, with `own` options beside those of pictures and videos.
fn part(limits: Limits<'_>, own: &[&str]) -> Value {
    let media = [PIXEL_FIELDS, own].concat();
    let of = |kind: &str, field: &str, schema: Value| {
        let mut fields = json!({ "type": { "const": kind }, "detail": anything() });
        fields[field] = schema;
        strict(fields, &["type", field], &media, limits)
    };
    let words = strict(
        json!({ "type": { "const": "text" }, "text": { "type": "string" } }),
        &["type", "text"],
        own,
        limits,
    );
    let string_or = |fields: Value, required: &str| {
        json!({
            "anyOf": [
                { "type": "string" },
                { "type": "object", "properties": fields, "required": [required], "additionalProperties": false },
            ],
        })
    };
    let url = string_or(json!({ "url": { "type": "string" } }), "url");
    let data = string_or(
        json!({ "data": { "type": "string" }, "format": anything() }),
        "data",
    );
    json!({
        "anyOf": [
            words,
            of("image_url", "image_url", reference("Picture")),
            of("input_image", "image_url", reference("Picture")),
            of("image", "image", reference("Picture")),
            of("image_base64", "image_base64", reference("Picture")),
            of("video_url", "video_url", url),
            of("video", "video", reference("Video")),
            of("video_base64", "video_base64", json!({ "type": "string" })),
            of("input_video", "input_video", data),
        ],
    })
}

/// One of DashScope's contents; the field list is the parser's.
fn dashscope_content() -> Value {
    let fields = dashscope::CONTENT_FIELDS.iter().map(|name| {
        let schema = match *name {
            "text" => one_or_list(&json!({ "type": "string" })),
            "image" | "multi_images" => one_or_list(&reference("Picture")),
            "video" => one_or_list(&reference("Video")),
            _ => json!({ "const": 1 }),
        };
        let schema = match schema.get("const") {
            Some(_) => json!({ "enum": [1, null] }),
            None => optional(schema),
        };
        ((*name).to_owned(), schema)
    });
    let fields: Map<String, Value> = fields.collect();
    json!({ "type": "object", "properties": fields, "minProperties": 1, "additionalProperties": false })
}
