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

/// What a media string looks like: a URL of a scheme that is read, in either case, or base64 with the blanks and escapes it may have.
const MEDIA_STRING: &str =
    r"^\s*([Dd][Aa][Tt][Aa]:|[Hh][Tt][Tt][Pp][Ss]?:|[Ff][Ii][Ll][Ee]:|[A-Za-z0-9+/_=%\s-]+$)";

fn one_or_list(schema: &Value) -> Value {
    json!({ "anyOf": [schema, { "type": "array", "items": schema }] })
}

/// What is there: null is the same as nothing.
pub(super) fn something() -> Value {
    json!({ "not": { "type": "null" } })
}

/// An object with these fields and the options of pictures and videos, and nothing else.
pub(super) fn strict(fields: Value, required: &[&str], own: &[&str], limits: Limits<'_>) -> Value {
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
                reference("UserMessage"),
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
            kinds(limits), &[], &[ITEM_FIELDS, PIXEL_FIELDS].concat(), limits),
        "Messages": {
            "description": "One conversation, or a list of them.",
            "anyOf": [
                reference("Conversation"),
                { "type": "array", "items": reference("Conversation"), "minItems": 1, "maxItems": most },
            ],
        },
        "Conversation": {
            "description": "A system message, which is the instruction, or none; one user message; an empty assistant message or none.",
            "anyOf": conversations(),
        },
        "DashScopeContent": dashscope_content(limits),
    });
    let mut schemas = Map::new();
    for part in [all, pieces(limits), messages(), ranked(limits)] {
        if let Value::Object(part) = part {
            schemas.extend(part);
        }
    }
    schemas
}

/// What is scored.
fn ranked(limits: Limits<'_>) -> Value {
    let most = limits.settings.max_inputs;
    let items =
        json!({ "type": "array", "items": reference("RankItem"), "minItems": 1, "maxItems": most });
    json!({
        "RankItem": {
            "description": "A query or a document.",
            "anyOf": [
                reference("Content"),
                reference("Part"),
                strict(json!({ "content": reference("Content") }), &["content"], PIXEL_FIELDS, limits),
                reference("RankKinds"),
            ],
        },
        "RankKinds": strict(kinds(limits), &[], PIXEL_FIELDS, limits),
        "RankItems": {
            "description": "A list of them, or such a list as content.",
            "anyOf": [
                items,
                { "type": "object", "properties": { "content": items }, "required": ["content"], "additionalProperties": false },
            ],
        },
    })
}

/// What inputs are made of.
fn pieces(limits: Limits<'_>) -> Value {
    let frames = list_of(&reference("Picture"), limits);
    json!({
        "Content": {
            "description": "A text, or parts in the caller's order.",
            "anyOf": [
                { "type": "string" },
                { "type": "array", "items": { "anyOf": [{ "type": "string" }, reference("Part")] } },
            ],
        },
        "Part": part(limits, &[]),
        "Media": {
            "description": "A data: URI, base64, or an http(s):// or file:// URL where the server allows it.",
            "type": "string", "pattern": MEDIA_STRING,
        },
        "Picture": {
            "anyOf": [
                reference("Media"),
                { "type": "object", "properties": { "url": reference("Media"), "detail": anything() }, "required": ["url"], "additionalProperties": false },
            ],
        },
        "Video": {
            "description": "A media string, or the frames of a video: as they are, or with their own rate.",
            "anyOf": [reference("Media"), frames, reference("VideoObject")],
        },
        "VideoObject": {
            "anyOf": [
                { "type": "object", "properties": { "url": reference("Media"), "frames": { "type": "null" } }, "required": ["url"], "additionalProperties": false },
                {
                    "type": "object", "required": ["frames"], "additionalProperties": false,
                    "properties": {
                        "frames": frames,
                        "fps": { "type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1000 },
                    },
                },
            ],
        },
    })
}

/// Frames of a video, or videos: at least one, and as many as a video may have frames.
fn list_of(items: &Value, limits: Limits<'_>) -> Value {
    json!({ "type": "array", "items": items, "minItems": 1, "maxItems": limits.settings.max_frames })
}

/// One video or several. A list of strings may be the frames of one, any other is a list of videos.
fn videos(limits: Limits<'_>) -> Value {
    json!({ "anyOf": [reference("Media"), reference("VideoObject"), list_of(&reference("Video"), limits)] })
}

fn kinds(limits: Limits<'_>) -> Value {
    json!({
        "text": optional(one_or_list(&json!({ "type": "string" }))),
        "image": optional(one_or_list(&reference("Picture"))),
        "video": optional(videos(limits)),
    })
}

/// Every order there is for the messages of one conversation.
fn conversations() -> Vec<Value> {
    let [system, user, assistant] =
        ["SystemMessage", "UserMessage", "AssistantMessage"].map(reference);
    let orders = [
        vec![&user],
        vec![&system, &user],
        vec![&user, &assistant],
        vec![&system, &user, &assistant],
    ];
    let of = |messages: Vec<&Value>| {
        let count = messages.len();
        json!({ "type": "array", "prefixItems": messages, "items": false, "minItems": count, "maxItems": count })
    };
    orders.map(of).into()
}

fn messages() -> Value {
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
        { "type": "array", "items": { "type": "object", "required": ["text"], "properties": { "text": { "type": ["string", "null"], "maxLength": 0 } } } },
    ]);
    let of = |role: &str, content: Value, required: &[&str]| {
        json!({
            "type": "object", "required": required, "additionalProperties": false,
            "properties": { "role": { "const": role }, "content": content, "name": anything() },
        })
    };
    let words = json!({ "anyOf": [{ "type": "string" }, text_parts] });
    json!({
        "SystemMessage": of("system", words, &["role", "content"]),
        "UserMessage": of("user", reference("Content"), &["role", "content"]),
        "AssistantMessage": of("assistant", json!({ "anyOf": nothing }), &["role"]),
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
    let media_or = |fields: Value, required: &str| {
        json!({
            "anyOf": [
                reference("Media"),
                { "type": "object", "properties": fields, "required": [required], "additionalProperties": false },
            ],
        })
    };
    let url = media_or(json!({ "url": reference("Media") }), "url");
    let data = media_or(
        json!({ "data": reference("Media"), "format": anything() }),
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
            of("video_base64", "video_base64", reference("Media")),
            of("input_video", "input_video", data),
        ],
    })
}

/// One of DashScope's contents; the field list is the parser's.
fn dashscope_content(limits: Limits<'_>) -> Value {
    let fields = dashscope::CONTENT_FIELDS.iter().map(|name| {
        let schema = match *name {
            "text" => one_or_list(&json!({ "type": "string" })),
            "image" | "multi_images" => one_or_list(&reference("Picture")),
            "video" => videos(limits),
            _ => json!({ "const": 1 }),
        };
        let schema = match schema.get("const") {
            Some(_) => json!({ "enum": [1, null] }),
            None => optional(schema),
        };
        ((*name).to_owned(), schema)
    });
    let fields: Map<String, Value> = fields.collect();
    let kinds = ["text", "image", "video", "multi_images"].map(|name| {
        let kind = json!({ "type": ["string", "object", "array"], "minItems": 1 });
        json!({ "required": [name], "properties": { name: kind } })
    });
    json!({ "type": "object", "properties": fields, "anyOf": kinds, "additionalProperties": false })
}
