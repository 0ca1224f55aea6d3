//! The route of DashScope, whose hosted model is the sibling of this one.
//!
//! Its schema is compatible, its vectors are not: the hosted model is another, so vectors of the two must never be compared.
//! `enable_fusion`, or several kinds of content in one object, give one vector for all, in the reference's order either way.

use axum::response::Response;
use serde::Serialize;
use serde_json::{Value, json};

use super::error::{ApiError, ErrorCode};
use super::family::{Asked, Family, Reading, ignore_others};
use super::fields::{Fields, object, path, shown};
use super::grammar::{Inputs, Parser, each, reference_order};
use super::intake::Body;
use super::options::{self, Options, PIXEL_FIELDS};
use super::part::{self, Context};
use super::response::{self, Answered, Numbers};
use crate::processor::Truncation;
use crate::service::{InputPart, PartContent};
use crate::vectors::Quantization;

/// The route.
pub(super) const PATH: &str =
    "/api/v1/services/embeddings/multimodal-embedding/multimodal-embedding";
/// Fields of `parameters`, the schema's and ours that make sense with it.
pub(super) const PARAMETERS: &[&str] = &[
    "dimension",
    "output_type",
    "instruct",
    "enable_fusion",
    "max_video_frames",
    "auto_truncation",
    "priority",
];
/// Fields of the body.
pub(super) const BODY_FIELDS: &[&str] = &["model", "input", "parameters"];
/// Fields of one of the contents.
pub(super) const CONTENT_FIELDS: &[&str] = &["text", "image", "video", "multi_images", "factor"];
/// The only kind of vector there is.
pub(super) const OUTPUT_TYPES: &[&str] = &["dense"];

/// The schema: what each vector is of, and how many pictures there were.
pub(super) struct DashScope {
    kinds: Vec<&'static str>,
    images: usize,
}

#[derive(Serialize)]
struct EmbeddingObject {
    index: usize,
    embedding: Numbers,
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    truncated: Option<bool>,
}

impl Family for DashScope {
    fn read(body: Body, reading: Reading<'_>) -> Result<(Asked, Self), ApiError> {
        let Body::Json(mut map) = body else {
            return Err(ApiError::new(
                ErrorCode::InvalidJson,
                "the body must be JSON",
            ));
        };
        let mut ignored = ignore_others(&mut map, &[BODY_FIELDS]);
        let mut parameters = match map.remove("parameters") {
            None | Some(Value::Null) => serde_json::Map::new(),
            Some(Value::Object(parameters)) => parameters,
            Some(other) => {
                let message = format!("parameters is {}, it must be an object", shown(&other));
                return Err(ApiError::invalid("parameters", message));
            }
        };
        let strange = ignore_others(&mut parameters, &[PARAMETERS, PIXEL_FIELDS]);
        ignored.extend(strange.iter().map(|name| path("parameters", name)));
        let fields = Fields { map: &map, at: "" };
        let given = Fields {
            map: &parameters,
            at: "parameters",
        };
        let mut options = options(given, reading)?;
        options.ignored = ignored;
        options.model = fields.string(&["model"])?.map(str::to_owned);
        let fuse = given.boolean(&["enable_fusion"])?.unwrap_or(false);
        let contents = contents(fields)?;
        let (inputs, kinds) = inputs(contents, fuse, &options, reading)?;
        let parts = inputs.inputs.iter().flat_map(|input| &input.parts);
        let images = parts.filter(|part| matches!(part.content, PartContent::Image(..)));
        let images = images.count();
        Ok((Asked { inputs, options }, DashScope { kinds, images }))
    }

    fn write(self, answered: Answered) -> Result<Response, ApiError> {
        let usage = response::usage(&answered.outputs);
        let mut embeddings = Vec::with_capacity(answered.outputs.len());
        let outputs = answered.outputs.into_iter().zip(self.kinds);
        for (index, (output, kind)) in outputs.enumerate() {
            let output = output?;
            let floats = response::quantized(&output.vector, Quantization::Float)?;
            embeddings.push(EmbeddingObject {
                index,
                embedding: response::numbers(floats),
                r#type: kind,
                truncated: output.truncated.then_some(true),
            });
        }
        let details = &usage.prompt_tokens_details;
        Ok(response::json(&json!({
            "output": { "embeddings": embeddings },
            "usage": {
                "input_tokens": details.text_tokens,
                "image_tokens": details.image_tokens + details.video_tokens,
                "image_count": self.images,
                "total_tokens": usage.total_tokens,
            },
            "request_id": answered.envelope.request_id,
        })))
    }
}

fn options(parameters: Fields<'_>, reading: Reading<'_>) -> Result<Options, ApiError> {
    options::choice(parameters, "output_type", OUTPUT_TYPES)?;
    let mut options = options::parse(parameters, reading.settings, reading.hidden_size)?;
    let most = reading.settings.max_frames as u64;
    if let Some(frames) = parameters.integer(&["max_video_frames"], (1, most))? {
        options.item.pixels.max_frames = frames as usize;
    }
    if parameters.boolean(&["auto_truncation"])? == Some(true) {
        options.item.limit.truncation = Truncation::End;
    }
    Ok(options)
}

/// `input.contents`, not empty.
fn contents(fields: Fields<'_>) -> Result<&[Value], ApiError> {
    let Some((at, input)) = fields.get("input") else {
        return Err(ApiError::invalid("input", "input is missing"));
    };
    object(&at, input)?.only(&[&["contents"]])?;
    let list = input.get("contents").unwrap_or(&Value::Null);
    match list.as_array() {
        Some(list) if !list.is_empty() => Ok(list),
        _ => {
            let at = path(&at, "contents");
            let message = format!("{at} is {}, it must be a list of at least one", shown(list));
            Err(ApiError::invalid(at, message))
        }
    }
}

/// A vector for each of the contents, or one for all, and what each is of.
fn inputs(
    contents: &[Value],
    fuse: bool,
    options: &Options,
    reading: Reading<'_>,
) -> Result<(Inputs, Vec<&'static str>), ApiError> {
    let parser = Parser::new(&options.item, reading.settings);
    let at = "input.contents";
    let instruction = || options.item.instruction.clone();
    if !fuse {
        let kinds = contents.iter().map(kind).collect();
        let inputs = parser.items(at, contents, |parser, at, value| {
            let parts = parts(at, value, parser.context())?;
            Ok((parser.built(at, parts, instruction()), None))
        });
        return Ok((inputs?, kinds));
    }
    parser.check_count(at, contents.len())?;
    let mut all = Vec::new();
    for (i, value) in contents.iter().enumerate() {
        all.extend(parts(&format!("{at}[{i}]"), value, parser.context())?);
    }
    all.sort_by_key(|part| match part.content {
        PartContent::VideoFile(..) | PartContent::Frames(..) => 0,
        PartContent::Image(..) => 1,
        PartContent::Text(_) | PartContent::TokenIds(_) => 2,
    });
    let input = parser.built(at, all, instruction());
    Ok((Inputs::from_iter([Ok((input, None))]), vec![FUSED]))
}

/// What a vector of several kinds of content is of.
const FUSED: &str = "fusion";

fn kind(content: &Value) -> &'static str {
    let kinds = ["text", "image", "video", "multi_images"];
    let mut given = kinds.iter().filter(|kind| !content[**kind].is_null());
    match (given.next(), given.next()) {
        (Some(only), None) => only,
        _ => FUSED,
    }
}

/// The parts of one of the contents, in the reference's order.
fn parts(at: &str, value: &Value, context: Context<'_>) -> Result<Vec<InputPart>, ApiError> {
    let content = object(at, value)?;
    content.only(&[CONTENT_FIELDS])?;
    let mut parts = reference_order(content, context)?;
    if let Some((at, images)) = content.get("multi_images") {
        let texts = parts.iter().rev();
        let texts = texts.take_while(|part| matches!(part.content, PartContent::Text(_)));
        let before_texts = parts.len() - texts.count();
        let images = each(&at, images).into_iter();
        let images = images.map(|(at, image)| part::image(at, image, context));
        let images = images.collect::<Result<Vec<_>, ApiError>>()?;
        parts.splice(before_texts..before_texts, images);
    }
    if parts.is_empty() {
        let message = format!("{at} has none of text, image, video and multi_images");
        return Err(ApiError::invalid(at, message));
    }
    // Older models weighed contents; this one does not, and a weight must not be dropped.
    match content.get("factor") {
        Some((at, factor)) if factor.as_f64() != Some(1.0) => {
            let message = format!(
                "{at} is {}, this model knows no other than 1",
                shown(factor)
            );
            Err(ApiError::invalid(at, message))
        }
        _ => Ok(parts),
    }
}

/// What its clients find in the body of an error, beside the `error` of all routes.
pub(super) fn error_body(error: &ApiError, id: &str) -> Value {
    let (_, _, code) = error.code.row();
    json!({ "error": error.body(), "code": code, "message": error.message, "request_id": id })
}
