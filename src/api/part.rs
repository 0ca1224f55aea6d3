//! Content parts: every spelling of a text, a picture and a video.

use serde_json::Value;

use super::ApiSettings;
use super::error::{ApiError, ErrorCode, media_error};
use super::fields::{Fields, object, path, quoted, shown, string};
use super::options::{ITEM_FIELDS, PIXEL_FIELDS, pixel_options};
use crate::media::MediaSource;
use crate::processor::{Excerpt, PixelOptions};
use crate::service::{InputPart, PartContent};

/// Frames per second of a list that does not say: qwen-vl-utils' `sample_fps`.
const LIST_FPS: f64 = 2.0;
/// Most frames a second of a list.
const MOST_FPS: f64 = 1000.0;

/// What parts inherit.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) pixels: PixelOptions,
    pub(super) settings: &'a ApiSettings,
}

/// `content`: a string, or parts in the caller's order.
pub(super) fn content(
    at: &str,
    value: &Value,
    context: Context<'_>,
) -> Result<Vec<InputPart>, ApiError> {
    match value {
        Value::String(text) => Ok(vec![InputPart {
            at: at.to_owned(),
            content: PartContent::Text(text.clone()),
        }]),
        Value::Array(parts) => {
            let read = |(i, part): (usize, &Value)| {
                let at = format!("{at}[{i}]");
                if let Value::String(text) = part {
                    return Ok(InputPart {
                        at,
                        content: PartContent::Text(text.clone()),
                    });
                }
                typed(object(&at, part)?, context, &[])
            };
            parts.iter().enumerate().map(read).collect()
        }
        other => Err(ApiError::invalid(
            at,
            format!(
                "{at} is {}, it must be a string or a list of parts",
                shown(other)
            ),
        )),
    }
}

/// A part that is an input by itself, with an input's options.
pub(super) fn bare(fields: Fields<'_>, context: Context<'_>) -> Result<InputPart, ApiError> {
    typed(fields, context, ITEM_FIELDS)
}

/// A part that is a query or a document by itself, without options of an input's.
pub(super) fn lone(fields: Fields<'_>, context: Context<'_>) -> Result<InputPart, ApiError> {
    typed(fields, context, &[])
}

fn typed(fields: Fields<'_>, context: Context<'_>, more: &[&str]) -> Result<InputPart, ApiError> {
    let Some(kind) = fields.string(&["type"])? else {
        let at = path(fields.at, "type");
        return Err(ApiError::invalid(
            &at,
            format!("{at} is missing, a part needs one"),
        ));
    };
    // The field that holds the content, by `type`; `openapi` describes the same.
    let field = match kind {
        "text" | "image_url" | "image" | "image_base64" | "video_url" | "video"
        | "video_base64" | "input_video" => kind,
        "input_image" => "image_url",
        // Parts other servers have.
        "input_audio" | "audio_url" | "input_file" => {
            let at = path(fields.at, "type");
            let message = format!("{at} is {kind:?}, this model embeds text, images and videos");
            return Err(ApiError::at(ErrorCode::UnsupportedMedia, at, message));
        }
        other => {
            let at = path(fields.at, "type");
            let known = "text, image_url, image, image_base64, input_image, video_url, video, video_base64, input_video";
            return Err(ApiError::invalid(
                &at,
                format!("{at} is {}, it must be one of {known}", quoted(other)),
            ));
        }
    };
    if kind == "text" {
        fields.only(&[&["type", "text"], more])?;
    } else {
        fields.only(&[&["type", "detail", field], PIXEL_FIELDS, more])?;
    }
    let at = path(fields.at, field);
    let Some((_, value)) = fields.get(field) else {
        return Err(ApiError::invalid(
            &at,
            format!("{at} is missing, a part of type {kind} needs it"),
        ));
    };
    let context = Context {
        pixels: pixel_options(fields, context.pixels, context.settings)?,
        ..context
    };
    match kind {
        "text" => Ok(InputPart {
            content: PartContent::Text(string(&at, value)?.to_owned()),
            at,
        }),
        "image_url" | "input_image" | "image" | "image_base64" => image(at, value, context),
        "video_url" => {
            let url = url_of(&at, value, &["url"])?;
            file(at.clone(), url, context)
        }
        "video_base64" => file(at, value, context),
        "input_video" => {
            let url = url_of(&at, value, &["data", "format"])?;
            file(at.clone(), url, context)
        }
        _ => video(at, value, context),
    }
}

/// A string, or the first of `fields` in an object that may hold the others too.
fn url_of<'a>(at: &'a str, value: &'a Value, fields: &[&str]) -> Result<&'a Value, ApiError> {
    if value.is_string() {
        return Ok(value);
    }
    let object = object(at, value)?;
    object.only(&[fields])?;
    let at = path(at, fields[0]);
    object
        .map
        .get(fields[0])
        .ok_or_else(|| ApiError::invalid(&at, format!("{at} is missing")))
}

fn source(at: &str, value: &Value, settings: &ApiSettings) -> Result<MediaSource, ApiError> {
    MediaSource::parse(string(at, value)?, settings.max_media_bytes)
        .map_err(|error| media_error(at, &error))
}

/// A picture.
pub(super) fn image(
    at: String,
    value: &Value,
    context: Context<'_>,
) -> Result<InputPart, ApiError> {
    let source = source(
        &at,
        url_of(&at, value, &["url", "detail"])?,
        context.settings,
    )?;
    Ok(InputPart {
        content: PartContent::Image(source, context.pixels),
        at,
    })
}

fn file(at: String, value: &Value, context: Context<'_>) -> Result<InputPart, ApiError> {
    let source = source(&at, value, context.settings)?;
    Ok(InputPart {
        content: PartContent::VideoFile(source, context.pixels),
        at,
    })
}

/// One video: a media string, a list of frames, `{"frames": …, "fps"?}` or `{"url": …}`.
pub(super) fn video(
    at: String,
    value: &Value,
    context: Context<'_>,
) -> Result<InputPart, ApiError> {
    match value {
        Value::Array(list) => frames(at, list, LIST_FPS, context),
        Value::Object(_) => {
            let fields = object(&at, value)?;
            let Some((frames_at, list)) = fields.get("frames") else {
                // Frames that are null are none.
                let url = url_of(&at, value, &["url", "frames"])?;
                return file(at.clone(), url, context);
            };
            fields.only(&[&["frames", "fps"]])?;
            let fps = fields.positive(&["fps"], MOST_FPS)?.unwrap_or(LIST_FPS);
            let wrong = || {
                ApiError::invalid(
                    &frames_at,
                    format!("{frames_at} is {}, it must be a list", shown(list)),
                )
            };
            let list = list.as_array().ok_or_else(wrong)?;
            frames(frames_at.clone(), list, fps, context)
        }
        value => file(at, value, context),
    }
}

fn frames(
    at: String,
    list: &[Value],
    fps: f64,
    context: Context<'_>,
) -> Result<InputPart, ApiError> {
    if list.is_empty() {
        return Err(ApiError::at(
            ErrorCode::InvalidVideo,
            &at,
            format!("{at} is a video without frames"),
        ));
    }
    check_count(&at, list, context.settings)?;
    if context.pixels.excerpt != Excerpt::default() {
        let message = format!(
            "{at} is a list of frames, and start, end and num_frames choose those of a video file: send the frames you want"
        );
        return Err(ApiError::invalid(at, message));
    }
    let read = |(i, frame): (usize, &Value)| {
        let at = format!("{at}[{i}]");
        source(
            &at,
            url_of(&at, frame, &["url", "detail"])?,
            context.settings,
        )
    };
    let sources = list
        .iter()
        .enumerate()
        .map(read)
        .collect::<Result<_, _>>()?;
    Ok(InputPart {
        content: PartContent::Frames(sources, fps, context.pixels),
        at,
    })
}

fn check_count(at: &str, list: &[Value], settings: &ApiSettings) -> Result<(), ApiError> {
    let most = settings.max_frames;
    if list.len() <= most {
        return Ok(());
    }
    let message = format!("{at} has {} frames, the limit is {most}", list.len());
    Err(ApiError::at(ErrorCode::MediaTooLarge, at, message))
}

/// The `video` of an object: one video or several.
///
/// A list of strings is the frames of one video, unless every string is a video file itself; a list of lists or objects is a list of
/// videos.
pub(super) fn videos(
    at: &str,
    value: &Value,
    context: Context<'_>,
) -> Result<Vec<InputPart>, ApiError> {
    let Value::Array(list) = value else {
        return Ok(vec![video(at.to_owned(), value, context)?]);
    };
    // Before anything is looked into: looking into it decodes its base64.
    check_count(at, list, context.settings)?;
    let strings = list.iter().all(Value::is_string);
    let files = list
        .iter()
        .filter_map(Value::as_str)
        .filter(|text| is_video_file(text, context.settings))
        .count();
    if strings && files == 0 {
        return Ok(vec![frames(at.to_owned(), list, LIST_FPS, context)?]);
    }
    if strings && files < list.len() {
        let message =
            format!("{at} mixes video files and pictures; list videos, or the frames of one video");
        return Err(ApiError::invalid(at, message));
    }
    list.iter()
        .enumerate()
        .map(|(i, value)| video(format!("{at}[{i}]"), value, context))
        .collect()
}

/// Whether a media string is a video file rather than a frame: by its bytes where they are here, else by its name.
fn is_video_file(text: &str, settings: &ApiSettings) -> bool {
    match MediaSource::parse(text, settings.max_media_bytes) {
        Ok(MediaSource::Inline(bytes)) => {
            bytes.get(4..8) == Some(b"ftyp") || bytes.starts_with(&[0x1a, 0x45, 0xdf, 0xa3])
        }
        Ok(MediaSource::Url(url) | MediaSource::File(url)) => {
            let name = url.path().to_ascii_lowercase();
            ["mp4", "m4v", "mov", "webm", "mkv"]
                .iter()
                .any(|extension| name.ends_with(&format!(".{extension}")))
        }
        Err(_) => false,
    }
}
