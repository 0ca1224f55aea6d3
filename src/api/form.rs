//! `multipart/form-data`, so that `curl -F image=@a.png -F text=…` works. In: a form. Out: the same inputs and options as from JSON.
//!
//! `text`, `image` and `video`, each as often as wanted, are one input, in the order of an object that has them: videos, images,
//! texts. Any other field is the JSON field of that name.

use bytes::Bytes;
use futures_util::stream;
use multer::Multipart;
use serde_json::{Map, Value};

use super::error::{ApiError, ErrorCode, media_error};
use super::family::{Asked, Reading};
use super::fields::{Fields, quoted};
use super::grammar::{self, Inputs, Parser};
use super::options::{self, Options};
use super::part::{self, Context};
use crate::media::{MediaError, MediaSource};
use crate::service::{InputPart, PartContent};

/// Fields that are parts of the one input, in the order of its prompt.
pub(super) const MEDIA: [&str; 3] = ["video", "image", "text"];
/// Further fields of the one input.
pub(super) const INPUT_FIELDS: &[&str] = &["id"];
/// Fields that are text whatever they look like; what else looks like JSON is JSON.
const TEXT: [&str; 9] = [
    "model",
    "user",
    "request_id",
    "instruction",
    "instruct",
    "prompt",
    "input_type",
    "prompt_name",
    "task",
];
/// Most fields of a form: as many inputs as a request may have by default.
const MOST_FIELDS: usize = 2048;

/// One field of a form.
#[derive(Debug)]
struct Field {
    name: String,
    /// Whether it is an uploaded file.
    is_file: bool,
    bytes: Bytes,
}

/// A form, taken apart.
#[derive(Debug)]
pub(super) struct Form {
    fields: Vec<Field>,
}

impl Form {
    /// Takes a body apart; blocks, so it runs off the async threads.
    pub(super) fn parse(bytes: Bytes, boundary: &str) -> Result<Self, ApiError> {
        let whole = stream::once(std::future::ready(Ok::<_, std::io::Error>(bytes)));
        let mut multipart = Multipart::new(whole, boundary);
        let broken = |_| {
            let message = "the body is not multipart/form-data with the declared boundary";
            ApiError::new(ErrorCode::InvalidValue, message)
        };
        let mut fields = Vec::new();
        tokio::runtime::Handle::current().block_on(async {
            while let Some(field) = multipart.next_field().await.map_err(broken)? {
                if fields.len() == MOST_FIELDS {
                    let message = format!("the form has more than {MOST_FIELDS} fields");
                    return Err(ApiError::new(ErrorCode::TooManyInputs, message));
                }
                let name = field.name().unwrap_or_default().to_owned();
                let is_file = field.file_name().is_some();
                let bytes = field.bytes().await.map_err(broken)?;
                fields.push(Field {
                    name,
                    is_file,
                    bytes,
                });
            }
            Ok(Form { fields })
        })
    }

    /// Reads inputs and options.
    ///
    /// # Errors
    /// [`ApiError`] with the name of the field at fault.
    pub(super) fn read(self, reading: Reading<'_>) -> Result<Asked, ApiError> {
        let (media, others): (Vec<Field>, Vec<Field>) = self
            .fields
            .into_iter()
            .partition(|field| MEDIA.contains(&field.name.as_str()));
        let mut map = Map::new();
        for field in others {
            let value = field.value()?;
            if map.contains_key(&field.name) {
                let name = quoted(&field.name);
                let message =
                    format!("the form has {name} twice; only text, image and video repeat");
                return Err(ApiError::invalid(field.name, message));
            }
            map.insert(field.name, value);
        }
        let fields = Fields { map: &map, at: "" };
        let mut options = options::parse(fields, reading.settings, reading.hidden_size)?;
        if media.is_empty() {
            let inputs = grammar::parse(fields, &options.item, reading.settings)?;
            return Ok(Asked { inputs, options });
        }
        if let Some(other) = ["input", "messages"]
            .iter()
            .find(|name| map.contains_key(**name))
        {
            let message = format!("{other} cannot stand beside text, image and video");
            return Err(ApiError::invalid(*other, message));
        }
        options
            .ignored
            .retain(|name| !INPUT_FIELDS.contains(&name.as_str()));
        let id = match map.get("id") {
            Some(Value::String(id)) => Some(id.clone()),
            Some(other) => Some(other.to_string()),
            None => None,
        };
        let parts = parts(&media, reading, &options)?;
        // What is wrong with the input as a whole is most often its text.
        let at = parts.last().map_or("", |part| part.at.as_str()).to_owned();
        let parser = Parser::new(&options.item, reading.settings);
        let input = parser.built(&at, parts, options.item.instruction.clone());
        let inputs = Inputs {
            inputs: vec![input],
            ids: vec![id],
            refused: Vec::new(),
        };
        Ok(Asked { inputs, options })
    }
}

fn parts(
    media: &[Field],
    reading: Reading<'_>,
    options: &Options,
) -> Result<Vec<InputPart>, ApiError> {
    let context = Context {
        pixels: options.item.pixels,
        settings: reading.settings,
    };
    let mut parts = Vec::new();
    for kind in MEDIA {
        let fields: Vec<&Field> = media.iter().filter(|field| field.name == kind).collect();
        for (i, field) in fields.iter().enumerate() {
            let at = match fields.len() {
                1 => kind.to_owned(),
                _ => format!("{kind}[{i}]"),
            };
            parts.push(field.part(at, context)?);
        }
    }
    Ok(parts)
}

impl Field {
    fn text(&self) -> Result<&str, ApiError> {
        std::str::from_utf8(&self.bytes).map_err(|_| {
            let message = format!("{} is not UTF-8 text", quoted(&self.name));
            ApiError::invalid(self.name.clone(), message)
        })
    }

    /// What the JSON field of this name would hold.
    fn value(&self) -> Result<Value, ApiError> {
        let text = self.text()?;
        if TEXT.contains(&self.name.as_str()) {
            return Ok(text.into());
        }
        Ok(serde_json::from_str(text).unwrap_or_else(|_| text.into()))
    }

    fn part(&self, at: String, context: Context<'_>) -> Result<InputPart, ApiError> {
        if self.name == "text" {
            let content = PartContent::Text(self.text()?.to_owned());
            return Ok(InputPart { at, content });
        }
        if !self.is_file {
            // A list or an object is a list of frames, as in JSON; anything else is a media string.
            let value = match serde_json::from_str(self.text()?) {
                Ok(value @ (Value::Array(_) | Value::Object(_))) => value,
                _ => self.text()?.into(),
            };
            return match self.name.as_str() {
                "image" => part::image(at, &value, context),
                _ => part::video(at, &value, context),
            };
        }
        let most = context.settings.max_media_bytes;
        if self.bytes.len() > most {
            let error = MediaError::TooLarge {
                what: "encoded size in bytes",
                value: self.bytes.len() as u64,
                limit: most as u64,
            };
            return Err(media_error(&at, &error));
        }
        let source = MediaSource::Inline(self.bytes.clone());
        let content = match self.name.as_str() {
            "image" => PartContent::Image(source, context.pixels),
            _ => PartContent::VideoFile(source, context.pixels),
        };
        Ok(InputPart { at, content })
    }
}
