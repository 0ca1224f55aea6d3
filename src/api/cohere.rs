//! `POST /v2/embed`: Cohere's schema, as its SDK and vLLM speak it.
//!
//! Too long an input is cut at its end unless told otherwise, as there. `input_type` picks an instruction from the configured table.

use std::collections::BTreeMap;

use axum::response::Response;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::error::{ApiError, ErrorCode};
use super::family::{Asked, Family, Reading, ignore_others};
use super::fields::{Fields, quoted, shown, string};
use super::grammar::{Inputs, Parser};
use super::intake::Body;
use super::options::{self, Options, PIXEL_FIELDS};
use super::part;
use super::response::{self, Answered, Numbers};
use crate::processor::Truncation;
use crate::service::PartContent;
use crate::vectors::Quantization;

/// The route.
pub(super) const PATH: &str = "/v2/embed";
/// The three ways to give inputs, one of them a request.
pub(super) const INPUT_FIELDS: &[&str] = &["texts", "images", "inputs"];
/// The schema's other fields, and ours that make sense with it.
pub(super) const OPTION_FIELDS: &[&str] = &[
    "model",
    "input_type",
    "embedding_types",
    "output_dimension",
    "truncate",
    "max_tokens",
    "priority",
    "instruction",
];
/// Base64 of the floats, beside the types all routes know.
pub(super) const BASE64: &str = "base64";

/// A way a vector is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Typed(Quantization),
    Base64,
}

impl Form {
    fn name(self) -> &'static str {
        match self {
            Form::Typed(quantization) => quantization.name(),
            Form::Base64 => BASE64,
        }
    }
}

/// The schema: what its answer repeats.
pub(super) struct Cohere {
    forms: Vec<Form>,
    /// `texts` as they came.
    texts: Option<Vec<String>>,
}

#[derive(Serialize)]
struct EmbedByTypeResponse {
    id: String,
    response_type: &'static str,
    embeddings: BTreeMap<&'static str, Vec<Numbers>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    texts: Option<Vec<String>>,
    meta: Value,
}

impl Family for Cohere {
    fn read(body: Body, reading: Reading<'_>) -> Result<(Asked, Self), ApiError> {
        let Body::Json(mut map) = body else {
            return Err(ApiError::new(
                ErrorCode::InvalidJson,
                "the body must be JSON",
            ));
        };
        let known = [INPUT_FIELDS, OPTION_FIELDS, PIXEL_FIELDS];
        let ignored = ignore_others(&mut map, &known);
        let forms = forms(map.remove("embedding_types"))?;
        let fields = Fields { map: &map, at: "" };
        let mut options = options::parse(fields, reading.settings, reading.hidden_size)?;
        options.ignored = ignored;
        if fields.get("truncate").is_none() {
            options.item.limit.truncation = Truncation::End;
        }
        let inputs = inputs(fields, &options, reading)?;
        let cohere = Cohere {
            forms,
            texts: texts(&map),
        };
        Ok((Asked { inputs, options }, cohere))
    }

    fn write(self, answered: Answered) -> Result<Response, ApiError> {
        let usage = response::usage(&answered.outputs);
        let mut embeddings: BTreeMap<&'static str, Vec<Numbers>> = self
            .forms
            .iter()
            .map(|form| (form.name(), Vec::with_capacity(answered.outputs.len())))
            .collect();
        let mut truncated = 0;
        for output in answered.outputs {
            let output = output?;
            truncated += usize::from(output.truncated);
            for form in &self.forms {
                let numbers = match form {
                    Form::Base64 => {
                        let floats = response::quantized(&output.vector, Quantization::Float)?;
                        response::base64(&floats)
                    }
                    Form::Typed(quantization) => {
                        response::numbers(response::quantized(&output.vector, *quantization)?)
                    }
                };
                if let Some(vectors) = embeddings.get_mut(form.name()) {
                    vectors.push(numbers);
                }
            }
        }
        let details = &usage.prompt_tokens_details;
        let mut meta = json!({
            "api_version": { "version": "2" },
            "billed_units": {
                "input_tokens": usage.total_tokens,
                "text_tokens": details.text_tokens,
                "image_tokens": details.image_tokens + details.video_tokens,
            },
        });
        if truncated > 0 {
            let warning = format!("{truncated} of the inputs were longer than the limit and cut");
            meta["warnings"] = json!([warning]);
        }
        Ok(response::json(&EmbedByTypeResponse {
            id: answered.envelope.id,
            response_type: "embeddings_by_type",
            embeddings,
            texts: self.texts,
            meta,
        }))
    }
}

/// The one list of inputs there must be.
fn inputs(fields: Fields<'_>, options: &Options, reading: Reading<'_>) -> Result<Inputs, ApiError> {
    let full = |name: &&str| fields.get(name).filter(|(_, value)| *value != &json!([]));
    let mut given = INPUT_FIELDS.iter().filter_map(full);
    let Some((at, list)) = given.next() else {
        let message =
            "inputs are missing; give one of texts, images and inputs, and not an empty list";
        return Err(ApiError::invalid("inputs", message));
    };
    if let Some((other, _)) = given.next() {
        let message = format!("{at} and {other} cannot stand beside each other");
        return Err(ApiError::invalid(other, message));
    }
    let wrong = || ApiError::invalid(&at, format!("{at} is {}, it must be a list", shown(list)));
    let list = list.as_array().ok_or_else(wrong)?;
    let parser = Parser::new(&options.item, reading.settings);
    match at.as_str() {
        "texts" => parser.items(&at, list, |parser, at, value| {
            let text = string(at, value)?.to_owned();
            Ok(parser.plain(at, PartContent::Text(text)))
        }),
        "images" => parser.items(&at, list, |parser, at, value| {
            let image = part::image(at.to_owned(), value, parser.context())?;
            Ok(parser.plain(at, image.content))
        }),
        _ => parser.items(&at, list, |parser, at, value| {
            // Only what has content: bare numbers and texts have a field of their own.
            if value.is_object() {
                return parser.item(at, value);
            }
            let message = format!("{at} is {}, it must be an object", shown(value));
            Err(ApiError::invalid(at, message))
        }),
    }
}

fn texts(map: &Map<String, Value>) -> Option<Vec<String>> {
    let texts = map.get("texts")?.as_array()?.iter();
    let texts: Vec<String> = texts
        .filter_map(|text| text.as_str().map(str::to_owned))
        .collect();
    (!texts.is_empty()).then_some(texts)
}

/// `embedding_types`: a list without repetition; floats where there is none.
fn forms(types: Option<Value>) -> Result<Vec<Form>, ApiError> {
    let at = "embedding_types";
    let types = match types {
        None | Some(Value::Null) => return Ok(vec![Form::Typed(Quantization::Float)]),
        Some(Value::Array(types)) if !types.is_empty() => types,
        Some(other) => {
            let message = format!("{at} is {}, it must be a list of types", shown(&other));
            return Err(ApiError::invalid(at, message));
        }
    };
    let mut forms = Vec::new();
    for (i, value) in types.iter().enumerate() {
        let at = format!("{at}[{i}]");
        let name = string(&at, value)?;
        let form = match Quantization::from_name(name) {
            Some(quantization) => Form::Typed(quantization),
            None if name == BASE64 => Form::Base64,
            None => {
                let known = Quantization::NAMES.map(|(name, _)| name).join(", ");
                let message = format!(
                    "{at} is {}, it must be one of {known}, {BASE64}",
                    quoted(name)
                );
                return Err(ApiError::invalid(at, message));
            }
        };
        if !forms.contains(&form) {
            forms.push(form);
        }
    }
    Ok(forms)
}

/// What its clients find in the body of an error, beside the `error` of all routes.
pub(super) fn error_body(error: &ApiError, id: &str) -> Value {
    json!({ "error": error.body(), "message": error.message, "id": id })
}
