//! What a request says beside its inputs: sizes, formats, instruction, limits. An item's own options win over the request's.

use serde_json::Value;

use super::ApiSettings;
use super::error::{ApiError, ErrorCode};
use super::fields::{Fields, object, path, quoted, shown, string, whole};
use super::instruction::{self, INSTRUCTION, INSTRUCTION_NAME};
use crate::batcher::Priority;
use crate::processor::{ContextLimit, Excerpt, PixelOptions, Truncation};
use crate::vectors::{self, Quantization};

/// Fields an item or a media part may carry itself.
pub(super) const PIXEL_FIELDS: &[&str] = &[
    "fps",
    "max_frames",
    "min_pixels",
    "max_pixels",
    "total_pixels",
    "start",
    "end",
    "num_frames",
];
/// Further fields an item may carry itself.
pub(super) const ITEM_FIELDS: &[&str] = &["instruction", "id"];
pub(super) const DIMENSIONS: &[&str] = &["dimensions", "output_dimension", "dimension"];
pub(super) const EMBEDDING_TYPE: &[&str] = &["embedding_type", "embedding_types", "output_dtype"];
pub(super) const NORMALIZE: &[&str] = &["normalize", "use_activation"];
pub(super) const MAX_TOKENS: &[&str] = &["truncate_prompt_tokens", "max_tokens"];
/// `truncation` is Voyage's name for it.
pub(super) const TRUNCATE: &[&str] = &["truncate", "truncation"];
/// Values of `encoding_format`; the last two are vLLM's.
pub(super) const ENCODING_FORMATS: &[&str] = &["float", "base64", "bytes", "bytes_only"];
/// All top-level fields that mean something here; others are named in `x-ignored-fields`.
const OTHER: &[&str] = &[
    "model",
    "input",
    "messages",
    "encoding_format",
    "output_encoding",
    "truncation_side",
    "mm_processor_kwargs",
    "raw",
    "on_error",
    "priority",
    "user",
    "request_id",
];
/// All of them.
pub(super) const FIELDS: &[&[&str]] = &[
    OTHER,
    PIXEL_FIELDS,
    INSTRUCTION,
    INSTRUCTION_NAME,
    DIMENSIONS,
    EMBEDDING_TYPE,
    NORMALIZE,
    MAX_TOKENS,
    TRUNCATE,
];
/// Pixels one token of a picture stands for: 32 x 32. A picture of more pixels than the context has tokens for is refused in the end,
/// so asking for one is refused at once, before a small file is blown up to it.
pub(super) const PIXELS_PER_TOKEN: u64 = 1024;
/// Most pixels of a whole video: far above what any video keeps, low enough that products stay exact.
pub(super) const MOST_TOTAL_PIXELS: u64 = 1 << 40;
/// Most frames a second.
pub(super) const MOST_FPS: f64 = 1000.0;
/// The latest time in a video: a day, as the longest that can be configured.
pub(super) const MOST_SECONDS: f64 = 86_400.0;

/// How vectors are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Encoding {
    /// JSON numbers.
    Numbers,
    /// Base64 of little-endian f32, whatever other types were asked for: the official clients ask for it unasked and decode it so.
    FloatBase64,
    /// Base64 of the chosen type's bytes.
    TypedBase64,
    /// No JSON: vectors back to back, with or without a header that says where each is.
    Bytes {
        /// The header.
        metadata: bool,
    },
}

/// What inputs inherit.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ItemOptions {
    pub(super) instruction: Option<String>,
    pub(super) pixels: PixelOptions,
    pub(super) raw: bool,
    pub(super) limit: ContextLimit,
    /// Whether an input that cannot be read leaves the others.
    pub(super) partial: bool,
}

/// Everything beside the inputs.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Options {
    pub(super) model: Option<String>,
    pub(super) dimensions: Option<usize>,
    pub(super) normalize: bool,
    pub(super) priority: Option<Priority>,
    pub(super) encoding: Encoding,
    /// At least one; the first is what `embedding` holds when it is the only one.
    pub(super) quantizations: Vec<Quantization>,
    /// Whether the types were asked for as a list: then `embeddings` stands beside `embedding`.
    pub(super) by_type: bool,
    pub(super) item: ItemOptions,
    /// Echoed.
    pub(super) user: Option<String>,
    /// Part of the answer's id.
    pub(super) request_id: Option<String>,
    pub(super) ignored: Vec<String>,
}

/// Reads the top-level fields; `hidden_size` bounds `dimensions`.
///
/// # Errors
/// [`ApiError`] naming the field, its value and what it may be.
pub(super) fn parse(
    body: Fields<'_>,
    settings: &ApiSettings,
    hidden_size: usize,
) -> Result<Options, ApiError> {
    let ignored = body.map.keys().filter(|key| !knows(FIELDS, key)).cloned();
    let (quantizations, by_type) = quantizations(body)?;
    let encoding = encoding(body)?;
    if matches!(encoding, Encoding::Bytes { .. }) && by_type {
        let message = "encoding_format is \"bytes\", which has room for one embedding type: give a name, not a list";
        return Err(ApiError::invalid("encoding_format", message));
    }
    let raw = body.boolean(&["raw"])?.unwrap_or(false);
    let instruction = instruction::parse(body, settings)?;
    if raw && instruction.is_some() {
        return Err(instruction::in_raw(
            body,
            &[INSTRUCTION, INSTRUCTION_NAME].concat(),
        ));
    }
    let partial = choice(body, "on_error", &["fail", "partial"])? == Some("partial");
    let mut pixels = settings.pixels;
    if let Some((at, kwargs)) = body.get("mm_processor_kwargs") {
        let kwargs = object(&at, kwargs)?;
        kwargs.only(&[&PIXEL_FIELDS[..4]])?;
        pixels = pixel_options(kwargs, pixels, settings)?;
    }
    Ok(Options {
        model: body.string(&["model"])?.map(str::to_owned),
        dimensions: dimensions(body, hidden_size)?,
        normalize: body.boolean(NORMALIZE)?.unwrap_or(true),
        priority: priority(body)?,
        encoding,
        quantizations,
        by_type,
        item: ItemOptions {
            instruction,
            pixels: pixel_options(body, pixels, settings)?,
            raw,
            limit: limit(body, settings)?,
            partial,
        },
        user: body.string(&["user"])?.map(str::to_owned),
        request_id: body.string(&["request_id"])?.map(str::to_owned),
        ignored: ignored.collect(),
    })
}

/// Whether one of the lists has a name.
pub(super) fn knows(lists: &[&[&str]], name: &str) -> bool {
    lists.iter().any(|list| list.contains(&name))
}

/// A lane by its name, or as vLLM and Cohere number them: lower goes first, and 0 is where all are.
pub(super) fn priority(body: Fields<'_>) -> Result<Option<Priority>, ApiError> {
    let Some((at, value)) = body.get("priority") else {
        return Ok(None);
    };
    let number = whole(value).and_then(|number| i64::try_from(number).ok());
    match (value.as_str(), number) {
        (_, Some(number)) => Ok((number > 0).then_some(Priority::Bulk)),
        (Some("interactive"), _) => Ok(Some(Priority::Interactive)),
        (Some("bulk"), _) => Ok(Some(Priority::Bulk)),
        _ => {
            let message = format!(
                "{at} is {}, it must be interactive, bulk or a whole number",
                shown(value)
            );
            Err(ApiError::invalid(at, message))
        }
    }
}

/// The options of an item or a part over those it inherits.
///
/// # Errors
/// [`ApiError`] naming the field, its value and what it may be.
pub(super) fn pixel_options(
    fields: Fields<'_>,
    inherited: PixelOptions,
    settings: &ApiSettings,
) -> Result<PixelOptions, ApiError> {
    let most = settings.max_input_tokens as u64 * PIXELS_PER_TOKEN;
    let pixels = |name: &str| fields.integer(&[name], (1, most));
    let max_frames = fields.integer(&["max_frames"], (1, settings.max_frames as u64))?;
    let options = PixelOptions {
        min_pixels: pixels("min_pixels")?.unwrap_or(inherited.min_pixels),
        max_pixels: pixels("max_pixels")?.unwrap_or(inherited.max_pixels),
        fps: fields
            .positive(&["fps"], MOST_FPS)?
            .unwrap_or(inherited.fps),
        max_frames: max_frames.map_or(inherited.max_frames, |frames| frames as usize),
        total_pixels: fields
            .integer(&["total_pixels"], (1, MOST_TOTAL_PIXELS))?
            .or(inherited.total_pixels),
        excerpt: excerpt(fields, inherited.excerpt, settings)?,
    };
    if options.min_pixels > options.max_pixels {
        let at = path(fields.at, "min_pixels");
        let message = format!(
            "{at} is {}, more than max_pixels, {}",
            options.min_pixels, options.max_pixels
        );
        return Err(ApiError::invalid(at, message));
    }
    Ok(options)
}

/// Ours: which part of a video file is looked at, and at how many frames of it.
fn excerpt(
    fields: Fields<'_>,
    inherited: Excerpt,
    settings: &ApiSettings,
) -> Result<Excerpt, ApiError> {
    let most = settings.max_frames as u64;
    let excerpt = Excerpt {
        start: fields
            .seconds(&["start"], MOST_SECONDS)?
            .or(inherited.start),
        end: fields.seconds(&["end"], MOST_SECONDS)?.or(inherited.end),
        num_frames: fields
            .integer(&["num_frames"], (2, most))?
            .or(inherited.num_frames),
    };
    if let (Some(start), Some(end)) = (excerpt.start, excerpt.end)
        && start >= end
    {
        let at = path(fields.at, "end");
        let message = format!("{at} is {end}, it must be after start, {start}");
        return Err(ApiError::invalid(at, message));
    }
    Ok(excerpt)
}

fn dimensions(body: Fields<'_>, hidden_size: usize) -> Result<Option<usize>, ApiError> {
    let Some((at, value)) = body.one_of(DIMENSIONS)? else {
        return Ok(None);
    };
    // Whichever name it was given, for those who look for one; within an object the place says more.
    let param = match body.at {
        "" => "dimensions",
        _ => at.as_str(),
    };
    let wrong = |message: String| ApiError::at(ErrorCode::InvalidDimensions, param, message);
    let Some(number) = whole(value).and_then(|number| u32::try_from(number).ok()) else {
        let range = format!(
            "a whole number from {} to {hidden_size}",
            vectors::MIN_DIMENSIONS.min(hidden_size)
        );
        return Err(wrong(format!(
            "{at} is {}, it must be {range}",
            shown(value)
        )));
    };
    vectors::check_dimensions(u64::from(number), hidden_size)
        .map(Some)
        .map_err(|error| wrong(error.to_string()))
}

/// One of some words.
pub(super) fn choice<'a>(
    body: Fields<'a>,
    field: &str,
    words: &[&str],
) -> Result<Option<&'a str>, ApiError> {
    let Some(word) = body.string(&[field])? else {
        return Ok(None);
    };
    if words.contains(&word) {
        return Ok(Some(word));
    }
    let at = path(body.at, field);
    Err(ApiError::invalid(
        &at,
        format!(
            "{at} is {}, it must be one of {}",
            quoted(word),
            words.join(", ")
        ),
    ))
}

fn encoding(body: Fields<'_>) -> Result<Encoding, ApiError> {
    let typed = choice(body, "output_encoding", &["base64"])?.is_some();
    let format = choice(body, "encoding_format", ENCODING_FORMATS)?;
    match format {
        Some("bytes" | "bytes_only") if typed => {
            let message = "encoding_format is \"bytes\", so output_encoding has nothing to encode";
            Err(ApiError::invalid("output_encoding", message))
        }
        Some("bytes") => Ok(Encoding::Bytes { metadata: true }),
        Some("bytes_only") => Ok(Encoding::Bytes { metadata: false }),
        _ if typed => Ok(Encoding::TypedBase64),
        Some("base64") => Ok(Encoding::FloatBase64),
        _ => Ok(Encoding::Numbers),
    }
}

fn quantizations(body: Fields<'_>) -> Result<(Vec<Quantization>, bool), ApiError> {
    let Some((at, value)) = body.one_of(EMBEDDING_TYPE)? else {
        return Ok((vec![Quantization::Float], false));
    };
    let one = |at: &str, value: &Value| {
        let name = string(at, value)?;
        Quantization::from_name(name).ok_or_else(|| {
            let known: Vec<&str> = Quantization::NAMES.iter().map(|(name, _)| *name).collect();
            ApiError::invalid(
                at,
                format!(
                    "{at} is {}, it must be one of {}",
                    quoted(name),
                    known.join(", ")
                ),
            )
        })
    };
    match value {
        Value::Array(names) if !names.is_empty() && names.len() <= Quantization::NAMES.len() => {
            let all = names
                .iter()
                .enumerate()
                .map(|(i, name)| one(&format!("{at}[{i}]"), name));
            Ok((all.collect::<Result<_, _>>()?, true))
        }
        Value::Array(names) => {
            let most = Quantization::NAMES.len();
            Err(ApiError::invalid(
                &at,
                format!("{at} has {} entries, it must have 1 to {most}", names.len()),
            ))
        }
        value => Ok((vec![one(&at, value)?], false)),
    }
}

/// How long an input may be, and what happens beyond.
pub(super) fn limit(body: Fields<'_>, settings: &ApiSettings) -> Result<ContextLimit, ApiError> {
    let most = settings.max_input_tokens as u64;
    // vLLM's -1 is the model's own limit.
    let whole_context = body.map.get("truncate_prompt_tokens").and_then(whole) == Some(-1);
    let names = if whole_context {
        &MAX_TOKENS[1..]
    } else {
        MAX_TOKENS
    };
    let max_tokens = body.integer(names, (1, most))?.unwrap_or(most) as usize;
    let side = match choice(body, "truncation_side", &["left", "right"])? {
        Some("left") => Truncation::Start,
        _ => Truncation::End,
    };
    let truncation = match body.one_of(TRUNCATE)? {
        None if body.get(MAX_TOKENS[0]).is_some() => side,
        None | Some((_, Value::Bool(false))) => Truncation::None,
        Some((_, Value::Bool(true))) => side,
        Some((at, value)) => match string(&at, value)? {
            "NONE" => Truncation::None,
            "START" => Truncation::Start,
            "END" => Truncation::End,
            "REFERENCE" => Truncation::Reference,
            other => {
                let message = format!(
                    "{at} is {}, it must be true, false, NONE, START, END or REFERENCE",
                    quoted(other)
                );
                return Err(ApiError::invalid(at, message));
            }
        },
    };
    Ok(ContextLimit {
        max_tokens,
        truncation,
    })
}
