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

/// A value as an error shows it: its JSON, cut short.
pub(super) fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

impl<'a> Fields<'a> {
    /// The first of `names` that is there and not null, with its path.
    pub(super) fn first(&self, names: &[&str]) -> Option<(String, &'a Value)> {
        names.iter().find_map(|name| match self.map.get(*name) {
            None | Some(Value::Null) => None,
            Some(value) => Some((path(self.at, name), value)),
        })
    }

    pub(super) fn string(&self, names: &[&str]) -> Result<Option<&'a str>, ApiError> {
        let Some((at, value)) = self.first(names) else {
            return Ok(None);
        };
        string(&at, value).map(Some)
    }

    pub(super) fn boolean(&self, names: &[&str]) -> Result<Option<bool>, ApiError> {
        let Some((at, value)) = self.first(names) else {
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
        let Some((at, value)) = self.first(names) else {
            return Ok(None);
        };
        let whole = value.as_u64().or_else(|| {
            value
                .as_f64()
                .filter(|n| n.fract() == 0.0 && *n >= 0.0)
                .map(|n| n as u64)
        });
        match whole {
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
        let Some((at, value)) = self.first(names) else {
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

    /// Refuses every field that is not in one of the lists.
    pub(super) fn only(&self, known: &[&[&str]]) -> Result<(), ApiError> {
        match self
            .map
            .keys()
            .find(|key| !known.iter().any(|list| list.contains(&key.as_str())))
        {
            Some(key) => Err(ApiError::unknown_field(path(self.at, key), &known.concat())),
            None => Ok(()),
        }
    }
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
