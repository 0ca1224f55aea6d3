//! `POST /v1/embeddings` and `/v1/embeddings/explain`: the OpenAI schema and all that is added to it.

use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::{Value, json};

use super::error::ApiError;
use super::family::{self, Asked, Explanations, Family, Reading};
use super::fields::Fields;
use super::intake::Body;
use super::options::{self, Encoding};
use super::response::{self, Answered, Envelope};
use super::{ApiState, grammar};
use crate::processor::Truncation;
use crate::service::{Explained, ExplainedPart, PartFacts};

/// Most inputs `encoding_format: "bytes"` answers: its `metadata` header has about 120 bytes for each, and Python's HTTP client
/// reads no header line above 64 KiB.
pub(super) const MOST_IN_BYTES: usize = 256;
/// Sides of the patches a grid counts, in pixels.
const PATCH_PIXELS: u32 = 16;

/// The schema.
pub(super) struct OpenAi;

impl Family for OpenAi {
    const FORMS: bool = true;

    fn read(body: Body, reading: Reading<'_>) -> Result<(Asked, Self), ApiError> {
        let asked = match body {
            Body::Form(form) => form.read(reading)?,
            Body::Json(map) => {
                let fields = Fields { map: &map, at: "" };
                let options = options::parse(fields, reading.settings, reading.hidden_size)?;
                let inputs = grammar::parse(fields, &options.item, reading.settings)?;
                Asked { inputs, options }
            }
        };
        let count = asked.inputs.ids.len();
        let described = asked.options.encoding == (Encoding::Bytes { metadata: true });
        if described && count > MOST_IN_BYTES {
            let message = format!(
                "encoding_format is \"bytes\", which answers up to {MOST_IN_BYTES} inputs; these are {count}"
            );
            return Err(ApiError::invalid("encoding_format", message));
        }
        Ok((asked, OpenAi))
    }

    fn write(self, answered: Answered) -> Result<Response, ApiError> {
        response::build(answered)
    }
}

/// `POST /v1/embeddings/explain`.
pub(super) async fn explain(
    State(state): State<ApiState>,
    request: Request,
) -> Result<Response, ApiError> {
    family::explain::<OpenAi>(state, request, write).await
}

fn write(outputs: Explanations, ids: Vec<Option<String>>, envelope: &Envelope) -> Response {
    let counts = outputs.iter().flatten().map(|output| (output.tokens, 0));
    let usage = response::usage_of(counts);
    let data = outputs.into_iter().zip(ids).enumerate();
    let data: Vec<Value> = data
        .map(|(index, (output, id))| {
            let mut object = match output {
                Ok(explained) => explanation(&explained),
                Err(error) => json!({ "error": error.body() }),
            };
            object["object"] = "embedding.explanation".into();
            object["index"] = index.into();
            if let Some(id) = id {
                object["id"] = id.into();
            }
            object
        })
        .collect();
    response::json(&json!({
        "object": "list",
        "id": envelope.id,
        "created": envelope.created,
        "model": envelope.model,
        "data": data,
        "usage": usage,
    }))
}

fn explanation(explained: &Explained) -> Value {
    let tokens = explained.tokens;
    let cut: usize = explained.parts.iter().map(|part| part.tokens.cut).sum();
    let mode = match explained.limit.truncation {
        Truncation::None => "NONE",
        Truncation::Start => "START",
        Truncation::End => "END",
        Truncation::Reference => "REFERENCE",
    };
    json!({
        "prompt": explained.prompt,
        "tokens": {
            "total": tokens.total(),
            "text": tokens.text_tokens,
            "image": tokens.image_tokens,
            "video": tokens.video_tokens,
            "template": explained.template_tokens,
        },
        "truncation": {
            "mode": mode,
            "max_tokens": explained.limit.max_tokens,
            "truncated": explained.truncated,
            "cut_tokens": cut,
        },
        "parts": explained.parts.iter().map(part).collect::<Vec<Value>>(),
    })
}

fn part(part: &ExplainedPart) -> Value {
    let mut told = json!({ "at": part.at, "tokens": part.tokens.tokens });
    let (kind, size, grid) = match &part.facts {
        PartFacts::Text => {
            told["type"] = "text".into();
            told["cut_tokens"] = part.tokens.cut.into();
            return told;
        }
        PartFacts::Image { size, grid } => ("image", size, grid),
        PartFacts::Video(video) => {
            told["source_frames"] = video.frames.into();
            told["source_fps"] = video.fps.into();
            told["frame_indices"] = json!(video.indices);
            told["frame_times"] = json!(video.times);
            told["pair_times"] = json!(video.pair_times);
            ("video", &video.size, &video.grid)
        }
    };
    told["type"] = kind.into();
    told["width"] = size.0.into();
    told["height"] = size.1.into();
    told["resized_width"] = (grid.w * PATCH_PIXELS).into();
    told["resized_height"] = (grid.h * PATCH_PIXELS).into();
    told["grid_thw"] = json!([grid.t, grid.h, grid.w]);
    told
}
