//! `POST /v1/multimodalembeddings`: Voyage's schema.
//!
//! Too long an input is cut at its end unless told otherwise, as there. Its SDK asks for base64 unasked and decodes it as the type it
//! asked for, so here base64 is always the bytes of that type.

use axum::response::Response;
use serde::Serialize;
use serde_json::{Value, json};

use super::error::{ApiError, ErrorCode};
use super::family::{Asked, Family, Reading, ignore_others};
use super::fields::{Fields, object, shown};
use super::grammar::Parser;
use super::intake::Body;
use super::options::{self, Encoding, PIXEL_FIELDS};
use super::response::{self, Answered, Numbers};
use crate::processor::Truncation;
use crate::vectors::Quantization;

/// The route.
pub(super) const PATH: &str = "/v1/multimodalembeddings";
/// The schema's fields beside `inputs`, and ours that make sense with it.
pub(super) const OPTION_FIELDS: &[&str] = &[
    "model",
    "input_type",
    "truncation",
    "output_dtype",
    "output_dimension",
    "output_encoding",
    "encoding_format",
    "priority",
    "instruction",
];
/// What `encoding_format` may be here.
pub(super) const ENCODING_FORMATS: &[&str] = &["float", "base64"];
/// Pixels one token of a picture stands for.
const PIXELS_PER_IMAGE_TOKEN: usize = 32 * 32;
/// Pixels one token of a video stands for: two frames.
const PIXELS_PER_VIDEO_TOKEN: usize = 2 * PIXELS_PER_IMAGE_TOKEN;

/// The schema.
pub(super) struct Voyage {
    quantization: Quantization,
    base64: bool,
}

#[derive(Serialize)]
struct MultimodalEmbeddingsResponse {
    object: &'static str,
    data: Vec<EmbeddingObject>,
    model: String,
    usage: Value,
}

#[derive(Serialize)]
struct EmbeddingObject {
    object: &'static str,
    embedding: Numbers,
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    truncated: Option<bool>,
}

impl Family for Voyage {
    fn read(body: Body, reading: Reading<'_>) -> Result<(Asked, Self), ApiError> {
        let Body::Json(mut map) = body else {
            return Err(ApiError::new(
                ErrorCode::InvalidJson,
                "the body must be JSON",
            ));
        };
        let known = [&["inputs"][..], OPTION_FIELDS, PIXEL_FIELDS];
        let ignored = ignore_others(&mut map, &known);
        let fields = Fields { map: &map, at: "" };
        options::choice(fields, "encoding_format", ENCODING_FORMATS)?;
        fields.boolean(&["truncation"])?;
        let mut options = options::parse(fields, reading.settings, reading.hidden_size)?;
        options.ignored = ignored;
        if fields.get("truncation").is_none() {
            options.item.limit.truncation = Truncation::End;
        }
        let is_list = fields
            .get("output_dtype")
            .is_some_and(|(_, value)| value.is_array());
        let [quantization] = options.quantizations[usize::from(is_list)..] else {
            let message = "output_dtype is a list, it must be one type";
            return Err(ApiError::invalid("output_dtype", message));
        };
        let Some((at, list)) = fields.get("inputs") else {
            return Err(ApiError::invalid("inputs", "inputs is missing"));
        };
        let full = list.as_array().filter(|list| !list.is_empty());
        let list = full.ok_or_else(|| {
            let message = format!("{at} is {}, it must be a list of at least one", shown(list));
            ApiError::invalid(&at, message)
        })?;
        let parser = Parser::new(&options.item, reading.settings);
        let inputs = parser.items(&at, list, |parser, at, value| {
            if value.get("content").is_some() {
                return parser.object(object(at, value)?);
            }
            let message = format!(
                "{at} is {}, it must be an object with content",
                shown(value)
            );
            Err(ApiError::invalid(at, message))
        })?;
        let voyage = Voyage {
            quantization,
            base64: options.encoding != Encoding::Numbers,
        };
        Ok((Asked { inputs, options }, voyage))
    }

    fn write(self, answered: Answered) -> Result<Response, ApiError> {
        let usage = response::usage(&answered.outputs);
        let mut data = Vec::with_capacity(answered.outputs.len());
        for (index, output) in answered.outputs.into_iter().enumerate() {
            let output = output?;
            let values = response::quantized(&output.vector, self.quantization)?;
            data.push(EmbeddingObject {
                object: "embedding",
                embedding: if self.base64 {
                    response::base64(&values)
                } else {
                    response::numbers(values)
                },
                index,
                truncated: output.truncated.then_some(true),
            });
        }
        let details = &usage.prompt_tokens_details;
        let usage = json!({
            "text_tokens": details.text_tokens,
            "image_pixels": details.image_tokens * PIXELS_PER_IMAGE_TOKEN,
            "video_pixels": details.video_tokens * PIXELS_PER_VIDEO_TOKEN,
            "total_tokens": usage.total_tokens,
        });
        Ok(response::json(&MultimodalEmbeddingsResponse {
            object: "list",
            data,
            model: answered.envelope.model,
            usage,
        }))
    }
}

/// What its clients find in the body of an error, beside the `error` of all routes.
pub(super) fn error_body(error: &ApiError) -> Value {
    json!({ "error": error.body(), "detail": error.message })
}
