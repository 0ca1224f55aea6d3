//! `POST /embed`: text-embeddings-inference's schema, as `huggingface_hub` and TEI's other clients speak it.
//!
//! `inputs` may also be all that `input` of `/v1/embeddings` may be, so its clients can send pictures.

use axum::response::Response;
use serde_json::{Value, json};

use super::error::{ApiError, ErrorCode};
use super::family::{Asked, Family, Reading, ignore_others};
use super::fields::{Fields, quoted};
use super::grammar::Parser;
use super::intake::Body;
use super::options::{self, PIXEL_FIELDS};
use super::response::{self, Answered};
use crate::processor::Truncation;
use crate::vectors::Quantization;

/// The route.
pub(super) const PATH: &str = "/embed";
/// The schema's fields beside `inputs`, and ours that make sense with it.
pub(super) const OPTION_FIELDS: &[&str] = &[
    "normalize",
    "truncate",
    "truncation_direction",
    "prompt_name",
    "dimensions",
    "encoding_format",
    "priority",
    "instruction",
];
/// The side to cut at.
pub(super) const DIRECTION: &str = "truncation_direction";
/// Sides to cut at: TEI's own spelling, then its clients'.
pub(super) const DIRECTIONS: &[&str] = &["Left", "Right", "left", "right"];
/// What `encoding_format` may be here: its clients may say it, but the answer has no other form.
pub(super) const ENCODING_FORMATS: &[&str] = &["float"];

/// Whether a body wants the beginning of its texts cut, not their end.
pub(super) fn cuts_left(body: Fields<'_>) -> Result<bool, ApiError> {
    match body.string(&[DIRECTION])? {
        None => Ok(false),
        Some(side) if DIRECTIONS.contains(&side) => Ok(side.eq_ignore_ascii_case("left")),
        Some(other) => {
            let message = format!("{DIRECTION} is {}, it must be Left or Right", quoted(other));
            Err(ApiError::invalid(DIRECTION, message))
        }
    }
}

/// The schema.
pub(super) struct Tei;

impl Family for Tei {
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
        let left = cuts_left(fields)?;
        let mut options = options::parse(fields, reading.settings, reading.hidden_size)?;
        options.ignored = ignored;
        if left && options.item.limit.truncation == Truncation::End {
            options.item.limit.truncation = Truncation::Start;
        }
        let Some((at, inputs)) = fields.get("inputs") else {
            return Err(ApiError::invalid("inputs", "inputs is missing"));
        };
        let parser = Parser::new(&options.item, reading.settings);
        let inputs = parser.input(&at, inputs)?;
        Ok((Asked { inputs, options }, Tei))
    }

    fn write(self, answered: Answered) -> Result<Response, ApiError> {
        let vectors = answered.outputs.into_iter().map(|output| {
            let floats = response::quantized(&output?.vector, Quantization::Float)?;
            Ok(response::numbers(floats))
        });
        let vectors = vectors.collect::<Result<Vec<_>, ApiError>>()?;
        Ok(response::json(&vectors))
    }
}

/// The body of an error: its clients read `error` as words, so the fields of all routes stand beside it rather than within.
pub(super) fn error_body(error: &ApiError) -> Value {
    let mut body = error.body();
    body["error"] = error.message.clone().into();
    let (status, ..) = error.code.row();
    body["error_type"] = match status.as_u16() {
        429 => "Overloaded",
        503 => "Unhealthy",
        400..500 => "Validation",
        _ => "Backend",
    }
    .into();
    json!(body)
}
