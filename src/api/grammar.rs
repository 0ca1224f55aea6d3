//! The grammar of `input` and `messages`: every spelling of the same content becomes the same [`EmbedInput`].

use serde_json::Value;

use super::ApiSettings;
use super::error::{ApiError, ErrorCode};
use super::fields::{Fields, object, path, quoted, shown, string, whole};
use super::instruction;
use super::options::{ITEM_FIELDS, ItemOptions, PIXEL_FIELDS, pixel_options};
use super::part::{self, Context};
use crate::service::{EmbedInput, InputPart, PartContent};

/// The inputs of a request.
pub(super) struct Inputs {
    /// Those that can be read, in order.
    pub(super) inputs: Vec<EmbedInput>,
    /// The `id` each was given, those that cannot be read included.
    pub(super) ids: Vec<Option<String>>,
    /// Those of a partial request that cannot be read: their places, ascending, and why not.
    pub(super) refused: Vec<(usize, ApiError)>,
}

impl FromIterator<Result<Item, ApiError>> for Inputs {
    fn from_iter<T: IntoIterator<Item = Result<Item, ApiError>>>(items: T) -> Self {
        let mut all = Inputs {
            inputs: Vec::new(),
            ids: Vec::new(),
            refused: Vec::new(),
        };
        for (place, item) in items.into_iter().enumerate() {
            match item {
                Ok((input, id)) => {
                    all.inputs.push(input);
                    all.ids.push(id);
                }
                Err(error) => {
                    all.refused.push((place, error));
                    all.ids.push(None);
                }
            }
        }
        all
    }
}

/// Reads inputs with the options they inherit.
pub(super) struct Parser<'a> {
    defaults: &'a ItemOptions,
    settings: &'a ApiSettings,
}

/// An input, and the `id` it was given.
pub(super) type Item = (EmbedInput, Option<String>);

/// Reads `input`, or `messages`.
///
/// # Errors
/// [`ApiError`] with the path of what is wrong.
pub(super) fn parse(
    body: Fields<'_>,
    defaults: &ItemOptions,
    settings: &ApiSettings,
) -> Result<Inputs, ApiError> {
    let parser = Parser::new(defaults, settings);
    match (body.get("input"), body.get("messages")) {
        (Some(_), Some(_)) => Err(ApiError::invalid(
            "messages",
            "input and messages cannot stand beside each other",
        )),
        (None, None) => Err(ApiError::invalid(
            "input",
            "input is missing; give input, or messages",
        )),
        (Some((at, input)), None) => parser.input(&at, input),
        (None, Some((at, messages))) => parser.messages(&at, messages),
    }
}

fn is_message(value: &Value) -> bool {
    value.get("role").is_some()
}

impl<'a> Parser<'a> {
    pub(super) fn new(defaults: &'a ItemOptions, settings: &'a ApiSettings) -> Self {
        Parser { defaults, settings }
    }

    /// One input, or a list of them.
    pub(super) fn input(&self, at: &str, input: &Value) -> Result<Inputs, ApiError> {
        let Value::Array(items) = input else {
            return Ok(Inputs::from_iter([Ok(self.item(at, input)?)]));
        };
        match items.first() {
            None => Err(ApiError::invalid(
                at,
                format!("{at} is an empty list, it must hold at least one input"),
            )),
            // A bare list of numbers is one sequence of token ids, a bare list of messages one conversation.
            Some(Value::Number(_)) => Ok(Inputs::from_iter([Ok(self.item(at, input)?)])),
            Some(first) if is_message(first) => Ok(Inputs::from_iter([Ok(self.item(at, input)?)])),
            Some(_) => self.items(at, items, Self::item),
        }
    }

    /// `messages`: one conversation, or a list of them.
    fn messages(&self, at: &str, messages: &Value) -> Result<Inputs, ApiError> {
        match messages {
            Value::Array(items) if matches!(items.first(), Some(Value::Array(_))) => {
                self.items(at, items, Self::conversation)
            }
            _ => Ok(Inputs::from_iter([Ok(self.conversation(at, messages)?)])),
        }
    }

    /// A list of inputs, each read by `read`. Of a partial request those that cannot be read harm no other.
    pub(super) fn items(
        &self,
        at: &str,
        items: &[Value],
        read: impl Fn(&Self, &str, &Value) -> Result<Item, ApiError>,
    ) -> Result<Inputs, ApiError> {
        self.check_count(at, items.len())?;
        let items = items.iter().enumerate();
        let read = items.map(|(i, item)| read(self, &format!("{at}[{i}]"), item));
        if self.defaults.partial {
            return Ok(read.collect());
        }
        let all: Vec<Item> = read.collect::<Result<_, ApiError>>()?;
        Ok(all.into_iter().map(Ok).collect())
    }

    /// Refuses more inputs than a request may have.
    pub(super) fn check_count(&self, at: &str, count: usize) -> Result<(), ApiError> {
        let most = self.settings.max_inputs;
        if count <= most {
            return Ok(());
        }
        let message = format!("{at} has {count} inputs, the limit is {most}");
        Err(ApiError::at(ErrorCode::TooManyInputs, at, message))
    }

    /// Any single input.
    pub(super) fn item(&self, at: &str, item: &Value) -> Result<Item, ApiError> {
        match item {
            Value::String(text) => Ok(self.plain(at, PartContent::Text(text.clone()))),
            Value::Array(list) => match list.first() {
                None => Err(ApiError::invalid(
                    at,
                    format!("{at} is an empty list, it must hold token ids or messages"),
                )),
                Some(Value::Number(_)) => {
                    Ok(self.plain(at, PartContent::TokenIds(token_ids(at, list)?)))
                }
                Some(_) => self.conversation(at, item),
            },
            Value::Object(_) if is_message(item) => {
                self.conversation(at, &Value::Array(vec![item.clone()]))
            }
            Value::Object(_) => self.object(object(at, item)?),
            other => {
                let expected = "a string, a list of token ids, a list of messages or an object";
                Err(ApiError::invalid(
                    at,
                    format!("{at} is {}, it must be {expected}", shown(other)),
                ))
            }
        }
    }

    /// An input of one part without options of its own.
    pub(super) fn plain(&self, at: &str, content: PartContent) -> Item {
        let parts = vec![InputPart {
            at: at.to_owned(),
            content,
        }];
        (
            self.built(at, parts, self.defaults.instruction.clone()),
            None,
        )
    }

    /// An input, under the options all inherit.
    pub(super) fn built(
        &self,
        at: &str,
        parts: Vec<InputPart>,
        instruction: Option<String>,
    ) -> EmbedInput {
        EmbedInput {
            at: at.to_owned(),
            // A blank one is the default instruction, which is also what none is.
            instruction: instruction.filter(|text| !text.trim().is_empty()),
            parts,
            raw: self.defaults.raw,
            limit: self.defaults.limit,
            max_text_tokens: None,
        }
    }

    /// What parts inherit that no item stands between.
    pub(super) fn context(&self) -> Context<'a> {
        Context {
            pixels: self.defaults.pixels,
            settings: self.settings,
        }
    }

    /// `{"content": …}`, `{"text", "image", "video"}`, or a bare part, each with options of its own.
    pub(super) fn object(&self, fields: Fields<'_>) -> Result<Item, ApiError> {
        let own = instruction::parse(fields, self.settings)?;
        if self.defaults.raw && own.is_some() {
            return Err(instruction::in_raw(fields, ITEM_FIELDS));
        }
        let own = own.or_else(|| self.defaults.instruction.clone());
        let id = fields.string(&["id"])?.map(str::to_owned);
        let pixels = pixel_options(fields, self.defaults.pixels, self.settings)?;
        let context = Context {
            pixels,
            settings: self.settings,
        };
        let parts = if fields.map.contains_key("type") {
            vec![part::bare(fields, context)?]
        } else if fields.map.contains_key("content") {
            fields.only(&[&["content"], ITEM_FIELDS, PIXEL_FIELDS])?;
            part::content(&path(fields.at, "content"), &fields.map["content"], context)?
        } else {
            fields.only(&[&["text", "image", "video"], ITEM_FIELDS, PIXEL_FIELDS])?;
            reference_order(fields, context)?
        };
        Ok((self.built(fields.at, parts, own), id))
    }

    /// An instruction in a system message, the parts in one user message, and perhaps an empty assistant message: what the template
    /// has turns for. Anything else would be another prompt than the one that was written, so it is refused.
    fn conversation(&self, at: &str, messages: &Value) -> Result<Item, ApiError> {
        let messages = messages.as_array().filter(|messages| !messages.is_empty());
        let messages = messages.ok_or_else(|| {
            ApiError::invalid(at, format!("{at} must be a list of at least one message"))
        })?;
        let context = self.context();
        let (mut system, mut parts) = (None, None);
        for (i, message) in messages.iter().enumerate() {
            let at = format!("{at}[{i}]");
            let message = object(&at, message)?;
            message.only(&[&["role", "content", "name"]])?;
            let content_at = path(&at, "content");
            let content = message.map.get("content").unwrap_or(&Value::Null);
            let role = message.string(&["role"])?.unwrap_or_default();
            match role {
                "system" if i == 0 => {
                    let text = system_text(&content_at, content)?;
                    if self.defaults.raw {
                        return Err(instruction::in_raw(message, &["content"]));
                    }
                    system = Some(text);
                }
                "user" if parts.is_none() => {
                    parts = Some(part::content(&content_at, content, context)?);
                }
                "assistant" if is_empty(content) && i + 1 == messages.len() => {}
                "system" | "user" | "assistant" => {
                    let rule = "a conversation is a system message or none, one user message, and an empty assistant message or none";
                    let what = match role == "assistant" && !is_empty(content) {
                        true => "an assistant message that says something".to_owned(),
                        false => format!("another {role} message"),
                    };
                    let message = format!("{at} is {what}: {rule}");
                    return Err(ApiError::invalid(at, message));
                }
                other => {
                    let at = path(&at, "role");
                    let message = format!(
                        "{at} is {}, it must be system, user or assistant",
                        quoted(other)
                    );
                    return Err(ApiError::invalid(at, message));
                }
            }
        }
        let parts = parts
            .ok_or_else(|| ApiError::invalid(at, format!("{at} has no message of the user")))?;
        let instruction = system.or_else(|| self.defaults.instruction.clone());
        Ok((self.built(at, parts, instruction), None))
    }
}

/// Videos, then images, then texts, as the reference orders an object.
pub(super) fn reference_order(
    fields: Fields<'_>,
    context: Context<'_>,
) -> Result<Vec<InputPart>, ApiError> {
    let mut parts = Vec::new();
    if let Some((at, value)) = fields.get("video") {
        parts.extend(part::videos(&at, value, context)?);
    }
    if let Some((at, value)) = fields.get("image") {
        for (at, value) in each(&at, value) {
            parts.push(part::image(at, value, context)?);
        }
    }
    if let Some((at, value)) = fields.get("text") {
        for (at, value) in each(&at, value) {
            let text = string(&at, value)?.to_owned();
            parts.push(InputPart {
                at,
                content: PartContent::Text(text),
            });
        }
    }
    Ok(parts)
}

/// A value, or each element of it when it is a list.
pub(super) fn each<'a>(at: &str, value: &'a Value) -> Vec<(String, &'a Value)> {
    match value {
        Value::Array(values) => values
            .iter()
            .enumerate()
            .map(|(i, value)| (format!("{at}[{i}]"), value))
            .collect(),
        value => vec![(at.to_owned(), value)],
    }
}

fn token_ids(at: &str, ids: &[Value]) -> Result<Vec<u32>, ApiError> {
    let read = |(i, id): (usize, &Value)| {
        whole(id)
            .and_then(|id| u32::try_from(id).ok())
            .ok_or_else(|| {
                ApiError::invalid(
                    format!("{at}[{i}]"),
                    format!("{at}[{i}] is {}, it must be a token id", shown(id)),
                )
            })
    };
    ids.iter().enumerate().map(read).collect()
}

fn is_empty(content: &Value) -> bool {
    match content {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(parts) => parts.iter().all(|part| {
            let text = part.get("text");
            text.is_some_and(|text| text.is_null() || text == "")
        }),
        _ => false,
    }
}

/// The text of a system turn: a string, or text parts one after another.
fn system_text(at: &str, content: &Value) -> Result<String, ApiError> {
    let Value::Array(parts) = content else {
        return string(at, content).map(str::to_owned);
    };
    let mut text = String::new();
    for (i, part) in parts.iter().enumerate() {
        let at = format!("{at}[{i}]");
        let part = object(&at, part)?;
        part.only(&[&["type", "text"]])?;
        match (part.string(&["type"])?, part.string(&["text"])?) {
            (Some("text") | None, Some(words)) => text.push_str(words),
            _ => {
                return Err(ApiError::invalid(
                    &at,
                    format!("{at} must be a text part: an instruction is text"),
                ));
            }
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
