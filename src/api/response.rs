//! What a client gets: the `CreateEmbeddingResponse` of the OpenAI API and our additions to it.

use std::collections::BTreeMap;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;
use serde_json::{Value, json};

use super::error::{ApiError, ErrorCode};
use super::options::{Encoding, Options};
use crate::processor::TokenCounts;
use crate::service::Embedded;
use crate::vectors::{self, Quantization, Values};

/// About how many bytes of JSON an answer has beside its vectors, and each vector beside its numbers.
const ENVELOPE_BYTES: usize = 512;
const OBJECT_BYTES: usize = 128;

#[derive(Serialize)]
struct CreateEmbeddingResponse<'a> {
    object: &'static str,
    id: &'a str,
    created: u64,
    model: &'a str,
    data: Vec<EmbeddingObject>,
    usage: Usage,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
}

#[derive(Serialize, Default)]
struct EmbeddingObject {
    object: &'static str,
    index: usize,
    embedding: Option<Numbers>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    embeddings: BTreeMap<&'static str, Numbers>,
    /// What one step of an integer type is worth.
    #[serde(skip_serializing_if = "Option::is_none")]
    scale: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    truncated: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Value>,
}

/// A vector on the wire. f32 are written as f32: the shortest decimals that read back to the same bits.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Numbers {
    Floats(Vec<f32>),
    Signed(Vec<i8>),
    Unsigned(Vec<u8>),
    Base64(String),
}

impl Numbers {
    /// About how many bytes of JSON they are, rather too many than too few.
    fn json_bytes(&self) -> usize {
        match self {
            Numbers::Floats(values) => 14 * values.len(),
            Numbers::Signed(values) => 5 * values.len(),
            Numbers::Unsigned(values) => 4 * values.len(),
            Numbers::Base64(text) => text.len(),
        }
    }
}

impl EmbeddingObject {
    /// About how many bytes of JSON it is.
    fn json_bytes(&self) -> usize {
        let vectors = self.embedding.iter().chain(self.embeddings.values());
        OBJECT_BYTES + vectors.map(Numbers::json_bytes).sum::<usize>()
    }
}

#[derive(Serialize)]
pub(super) struct Usage {
    prompt_tokens: usize,
    pub(super) total_tokens: usize,
    pub(super) prompt_tokens_details: Details,
}

#[derive(Serialize)]
pub(super) struct Details {
    pub(super) text_tokens: usize,
    pub(super) image_tokens: usize,
    pub(super) video_tokens: usize,
    /// How many of all of them were reused.
    cached_tokens: usize,
}

/// Vectors on their way to a client, and what was asked about them.
pub(super) struct Answered {
    /// One for each input, in order.
    pub(super) outputs: Vec<Result<Embedded, ApiError>>,
    /// The `id` each was given.
    pub(super) ids: Vec<Option<String>>,
    pub(super) options: Options,
    pub(super) envelope: Envelope,
}

/// What identifies an answer.
pub(super) struct Envelope {
    pub(super) id: String,
    /// The request's, as the header has it.
    pub(super) request_id: String,
    pub(super) created: u64,
    pub(super) model: String,
}

/// What all inputs together cost.
pub(super) fn usage(outputs: &[Result<Embedded, ApiError>]) -> Usage {
    let outputs = outputs.iter().flatten();
    usage_of(outputs.map(|output| (output.tokens, output.cached_tokens)))
}

/// The sum of token counts and cached tokens.
pub(super) fn usage_of(counts: impl IntoIterator<Item = (TokenCounts, usize)>) -> Usage {
    let mut sum = TokenCounts::default();
    let mut cached_tokens = 0;
    for (tokens, cached) in counts {
        sum.text_tokens += tokens.text_tokens;
        sum.image_tokens += tokens.image_tokens;
        sum.video_tokens += tokens.video_tokens;
        cached_tokens += cached;
    }
    Usage {
        prompt_tokens: sum.total(),
        total_tokens: sum.total(),
        prompt_tokens_details: Details {
            text_tokens: sum.text_tokens,
            image_tokens: sum.image_tokens,
            video_tokens: sum.video_tokens,
            cached_tokens,
        },
    }
}

/// A vector as JSON numbers.
pub(super) fn numbers(values: Values) -> Numbers {
    match values {
        Values::Float(values) => Numbers::Floats(values),
        Values::Float16(values) => {
            Numbers::Floats(values.into_iter().map(half::f16::to_f32).collect())
        }
        Values::Bfloat16(values) => {
            Numbers::Floats(values.into_iter().map(half::bf16::to_f32).collect())
        }
        Values::Int8 { values, .. } => Numbers::Signed(values),
        Values::Uint8 { values, .. } => Numbers::Unsigned(values),
    }
}

/// The bytes of a vector's type, little-endian.
pub(super) fn base64(values: &Values) -> Numbers {
    Numbers::Base64(BASE64_STANDARD.encode(values.to_le_bytes()))
}

/// The vector in a type, unless that type cannot hold it: half precision ends at 65504, which a vector that was not normalised may
/// exceed, and JSON has no infinity.
pub(super) fn quantized(vector: &[f32], quantization: Quantization) -> Result<Values, ApiError> {
    let values = vectors::quantize(vector, quantization);
    if values.is_finite() {
        return Ok(values);
    }
    let name = quantization.name();
    let message = format!(
        "a value of the vector is too large for {name}; leave normalize on, or take another type"
    );
    Err(ApiError::invalid("embedding_type", message))
}

/// One vector in every type asked for.
fn object(output: Embedded, options: &Options) -> Result<EmbeddingObject, ApiError> {
    let typed = |quantization: Quantization| {
        let values = quantized(&output.vector, quantization)?;
        let scale = values.scale();
        let wire = if options.encoding == Encoding::TypedBase64 {
            base64(&values)
        } else {
            numbers(values)
        };
        Ok::<_, ApiError>((wire, scale))
    };
    let mut object = EmbeddingObject {
        truncated: output.truncated.then_some(true),
        ..EmbeddingObject::default()
    };
    let float_beside = options.by_type || options.encoding == Encoding::FloatBase64;
    match options.quantizations[..] {
        [only] if !float_beside => {
            let (wire, scale) = typed(only)?;
            object.embedding = Some(wire);
            object.scale = scale;
        }
        ref all => {
            for &quantization in all {
                let (wire, scale) = typed(quantization)?;
                object.scale = object.scale.or(scale);
                object.embeddings.insert(quantization.name(), wire);
            }
            let float = vectors::quantize(&output.vector, Quantization::Float);
            object.embedding = Some(match options.encoding {
                Encoding::FloatBase64 | Encoding::TypedBase64 => base64(&float),
                Encoding::Numbers | Encoding::Bytes { .. } => numbers(float),
            });
            // Asked for nothing but floats: there is nothing to stand beside.
            if !options.by_type && all == [Quantization::Float] {
                object.embeddings.clear();
            }
        }
    }
    Ok(object)
}

/// The whole answer.
///
/// # Errors
/// The first error among the vectors, unless the request was partial.
pub(super) fn build(answered: Answered) -> Result<Response, ApiError> {
    if matches!(answered.options.encoding, Encoding::Bytes { .. }) {
        return bytes(answered);
    }
    let Answered {
        outputs,
        ids,
        options,
        envelope,
    } = answered;
    let usage = usage(&outputs);
    let mut data = Vec::with_capacity(outputs.len());
    for (index, (output, id)) in outputs.into_iter().zip(ids).enumerate() {
        let object = match output.and_then(|output| object(output, &options)) {
            Ok(object) => object,
            Err(error) if !options.item.partial => return Err(error),
            Err(error) => EmbeddingObject {
                error: Some(error.body()),
                ..EmbeddingObject::default()
            },
        };
        data.push(EmbeddingObject {
            object: "embedding",
            index,
            id,
            ..object
        });
    }
    let bytes: usize = data.iter().map(EmbeddingObject::json_bytes).sum();
    let answer = CreateEmbeddingResponse {
        object: "list",
        id: &envelope.id,
        created: envelope.created,
        model: &envelope.model,
        data,
        usage,
        user: options.user,
    };
    Ok(json_of(&answer, ENVELOPE_BYTES + bytes))
}

/// An answer as JSON.
pub(super) fn json(body: &impl Serialize) -> Response {
    json_of(body, ENVELOPE_BYTES)
}

/// An answer as JSON that has about so many bytes.
fn json_of(body: &impl Serialize, bytes: usize) -> Response {
    let mut json = Vec::with_capacity(bytes);
    match serde_json::to_writer(&mut json, body) {
        Ok(()) => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
        Err(error) => {
            tracing::error!(%error, "a response could not be written");
            ApiError::new(
                ErrorCode::InternalError,
                "the response could not be written",
            )
            .into_response()
        }
    }
}

/// Vectors back to back, what they are in the header `metadata`.
fn bytes(answered: Answered) -> Result<Response, ApiError> {
    let Answered {
        outputs,
        options,
        envelope,
        ..
    } = answered;
    let usage = usage(&outputs);
    let mut body = Vec::new();
    let mut data = Vec::new();
    for (index, output) in outputs.into_iter().enumerate() {
        let values = output.and_then(|output| {
            quantized(&output.vector, options.quantizations[0])
                .map(|values| (values, output.vector.len()))
        });
        let (values, dimensions) = match values {
            Ok(values) => values,
            Err(error) if !options.item.partial => return Err(error),
            Err(error) => {
                data.push(json!({ "index": index, "error": error.body() }));
                continue;
            }
        };
        let start = body.len();
        body.extend(values.to_le_bytes());
        data.push(json!({
            "index": index, "embed_dtype": options.quantizations[0].name(), "endianness": "little", "start": start, "end": body.len(),
            "shape": [dimensions],
        }));
    }
    let metadata = json!({
        "id": envelope.id, "created": envelope.created, "model": envelope.model, "data": data,
        "usage": { "prompt_tokens": usage.prompt_tokens, "total_tokens": usage.total_tokens },
    });
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    if options.encoding == (Encoding::Bytes { metadata: true })
        && let Ok(value) = HeaderValue::from_str(&ascii(&metadata))
    {
        headers.insert("metadata", value);
    }
    Ok(response)
}

/// JSON for a header: what is not ASCII is escaped.
fn ascii(value: &Value) -> String {
    let mut text = String::new();
    for c in value.to_string().chars() {
        if c.is_ascii() {
            text.push(c);
        } else {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                text.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests;
