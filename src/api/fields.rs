//! Reading JSON by hand, so that every refusal names the path, the value and what would do.

use serde_json::{Map, Value};

use super::error::ApiError;

/// A JSON object and where it stands.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    pub(super) map: &'a Map<String, Value>,
    pub(super) at: &'a str,
}

/// `at.field`, or `field` at the top.
pub(super) fn path(at: &str, field: &str) -> String {
    if at.is_empty() {
        field.to_owned()
    } else {
        format!("{at}.{field}")
    }
}

/// Longest value and name an error repeats: a client may send megabytes of either.
const MOST_SHOWN: usize = 60;

/// A value as an error shows it: its JSON, cut short. What is cut is not written first.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::Object(_) => "an object".to_owned(),
        other => other.to_string(),
    }
}

/// A text as an error shows it: quoted, cut short.
pub(super) fn quoted(text: &str) -> String {
    match cut(text) {
        whole if whole.len() == text.len() => format!("{text:?}"),
        start => format!("{start:?}..."),
    }
}

fn cut(text: &str) -> &str {
    let end = text.char_indices().nth(MOST_SHOWN);
    &text[..end.map_or(text.len(), |(end, _)| end)]
}

impl<'a> Fields<'a> {
    /// A field that is there and not null, with its path.
    pub(super) fn get(&self, name: &str) -> Option<(String, &'a Value)> {
        match self.map.get(name) {
            None | Some(Value::Null) => None,
            Some(value) => Some((path(self.at, name), value)),
        }
    }

    /// A field by any of its names. Two of them that say different things are refused: neither could be meant by silence.
    pub(super) fn one_of(&self, names: &[&str]) -> Result<Option<(String, &'a Value)>, ApiError> {
        let mut given = names.iter().filter_map(|name| self.get(name));
        let Some((at, value)) = given.next() else {
            return Ok(None);
        };
        match given.find(|(_, other)| *other != value) {
            None => Ok(Some((at, value))),
            Some((other, _)) => {
                let message =
                    format!("{at} and {other} mean the same and have different values; give one");
                Err(ApiError::invalid(other, message))
            }
        }
    }

    pub(super) fn string(&self, names: &[&str]) -> Result<Option<&'a str>, ApiError> {
        let Some((at, value)) = self.one_of(names)? else {
            return Ok(None);
        };
        string(&at, value).map(Some)
    }

    pub(super) fn boolean(&self, names: &[&str]) -> Result<Option<bool>, ApiError> {
        let Some((at, value)) = self.one_of(names)? else {
            return Ok(None);
        };
        let wrong = || {
            ApiError::invalid(
                &at,
                format!("{at} is {}, it must be true or false", shown(value)),
            )
        };
        value.as_bool().map(Some).ok_or_else(wrong)
    }

    /// A whole number within bounds.
    pub(super) fn integer(
        &self,
        names: &[&str],
        (low, high): (u64, u64),
    ) -> Result<Option<u64>, ApiError> {
        let Some((at, value)) = self.one_of(names)? else {
            return Ok(None);
        };
        match whole(value).and_then(|number| u64::try_from(number).ok()) {
            Some(number) if (low..=high).contains(&number) => Ok(Some(number)),
            _ => Err(ApiError::invalid(
                &at,
                format!(
                    "{at} is {}, it must be a whole number from {low} to {high}",
                    shown(value)
                ),
            )),
        }
    }

    /// A number above zero.
    pub(super) fn positive(&self, names: &[&str], high: f64) -> Result<Option<f64>, ApiError> {
        let Some((at, value)) = self.one_of(names)? else {
            return Ok(None);
        };
        match value.as_f64() {
            Some(number) if number > 0.0 && number <= high => Ok(Some(number)),
            _ => Err(ApiError::invalid(
                &at,
                format!(
                    "{at} is {}, it must be a number above 0 and up to {high}",
                    shown(value)
                ),
            )),
        }
    }

    /// A time in seconds, 0 included.
    pub(super) fn seconds(&self, names: &[&str], high: f64) -> Result<Option<f64>, ApiError> {
        let Some((at, value)) = self.one_of(names)? else {
            return Ok(None);
        };
        match value.as_f64() {
            Some(number) if (0.0..=high).contains(&number) => Ok(Some(number)),
            _ => Err(ApiError::invalid(
                &at,
                format!(
                    "{at} is {}, it must be seconds, from 0 to {high}",
                    shown(value)
                ),
            )),
        }
    }

    /// Refuses every field that is not in one of the lists.
    pub(super) fn only(&self, known: &[&[&str]]) -> Result<(), ApiError> {
        match self
            .map
            .keys()
            .find(|key| !known.iter().any(|list| list.contains(&key.as_str())))
        {
            Some(key) => Err(ApiError::unknown_field(
                path(self.at, cut(key)),
                &known.concat(),
            )),
            None => Ok(()),
        }
    }
}

/// A number without a fraction, however it is written: 64 and 64.0 are the same, as in JSON Schema.
pub(super) fn whole(value: &Value) -> Option<i128> {
    let written = value.as_i64().map(i128::from);
    let written = written.or_else(|| value.as_u64().map(i128::from));
    written.or_else(|| {
        let number = value.as_f64().filter(|number| number.fract() == 0.0);
        number.map(|number| number as i128)
    })
}

/// A string, or why not.
pub(super) fn string<'a>(at: &str, value: &'a Value) -> Result<&'a str, ApiError> {
    value.as_str().ok_or_else(|| {
        ApiError::invalid(at, format!("{at} is {}, it must be a string", shown(value)))
    })
}

/// An object, or why not.
pub(super) fn object<'a>(at: &'a str, value: &'a Value) -> Result<Fields<'a>, ApiError> {
    let map = value.as_object().ok_or_else(|| {
        ApiError::invalid(
            at,
            format!("{at} is {}, it must be an object", shown(value)),
        )
    })?;
    Ok(Fields { map, at })
}
