//! A setting's value: read from a file's TOML or from the text of a flag or variable, checked against its kind, written
//! back as TOML. In: text or TOML. Out: [`Value`], or the words of a fault.

use std::collections::BTreeMap;

use toml::de::DeValue;

use super::table::Kind;
use crate::engine::DeviceChoice;
use crate::telemetry;

/// A value that fits its kind.
#[derive(Clone, PartialEq)]
pub(super) enum Value {
    Text(String),
    Integer(u64),
    Number(f64),
    Boolean(bool),
    Texts(Vec<String>),
    Integers(Vec<u64>),
    Map(BTreeMap<String, String>),
    Secrets(Vec<String>),
}

/// Reads what was typed: one text for a variable, one for each repetition of a flag.
///
/// # Errors
/// What is wrong, naming the value and what is allowed, without the setting's name.
pub(super) fn from_typed(kind: Kind, typed: &[String]) -> Result<Value, String> {
    let last = typed.last().map_or("", String::as_str);
    match kind {
        Kind::Text | Kind::Choice(_) | Kind::Device | Kind::LogFilter => text(kind, last),
        Kind::Integer { min, max } => whole(last, min, max).map(Value::Integer),
        Kind::Number { above, max } => {
            let number = last.trim().parse().map_err(|_| not(last, "a number"))?;
            bounded(number, above, max).map(Value::Number)
        }
        Kind::Boolean { .. } => match last.trim() {
            "true" | "1" => Ok(Value::Boolean(true)),
            "false" | "0" => Ok(Value::Boolean(false)),
            _ => Err(not(last, "true or false")),
        },
        Kind::Texts => Ok(Value::Texts(split(typed, ',').collect())),
        Kind::Integers { min, max } => split(typed, ',')
            .map(|item| whole(&item, min, max))
            .collect::<Result<_, _>>()
            .map(Value::Integers),
        Kind::Map => split(typed, '\n')
            .map(|line| match line.split_once('=') {
                Some((name, text)) => Ok((map_name(name.trim())?, text.trim().to_owned())),
                None => Err(not(&line, "name=text")),
            })
            .collect::<Result<_, _>>()
            .and_then(map),
        Kind::Secrets => split(typed, ',')
            .map(secret)
            .collect::<Result<_, _>>()
            .map(Value::Secrets),
    }
}

/// Reads a value of the file.
///
/// # Errors
/// As [`from_typed`]; a kind the file may not hold is also one.
pub(super) fn from_toml(kind: Kind, value: &DeValue<'_>) -> Result<Value, String> {
    let wanted = |what: &str| format!("is {}, expected {what}", value.type_str());
    match kind {
        Kind::Text | Kind::Choice(_) | Kind::Device | Kind::LogFilter => {
            text(kind, value.as_str().ok_or_else(|| wanted("a string"))?)
        }
        Kind::Integer { min, max } => toml_whole(value, min, max).map(Value::Integer),
        Kind::Number { above, max } => {
            let written = match (value.as_float(), value.as_integer()) {
                (Some(float), _) => float.as_str(),
                (_, Some(integer)) if integer.radix() == 10 => integer.as_str(),
                _ => return Err(wanted("a number")),
            };
            let number = written.parse().map_err(|_| not(written, "a number"))?;
            bounded(number, above, max).map(Value::Number)
        }
        Kind::Boolean { .. } => match value.as_bool() {
            Some(flag) => Ok(Value::Boolean(flag)),
            None => Err(wanted("true or false")),
        },
        Kind::Texts => array(value, "strings", |item| {
            let item = item.as_str().ok_or_else(|| wanted("an array of strings"))?;
            Ok(item.to_owned())
        })
        .map(Value::Texts),
        Kind::Integers { min, max } => {
            array(value, "integers", |item| toml_whole(item, min, max)).map(Value::Integers)
        }
        Kind::Map => {
            let table = value
                .as_table()
                .ok_or_else(|| wanted("a table of strings"))?;
            let mut pairs = Vec::new();
            for (name, text) in table {
                let text = text.get_ref().as_str();
                let text = text.ok_or_else(|| format!("{} is no string", name.get_ref()))?;
                pairs.push((map_name(name.get_ref())?, text.to_owned()));
            }
            map(pairs)
        }
        Kind::Secrets => Err("is a secret and may not stand in a file of settings".to_owned()),
    }
}

impl Value {
    /// As TOML on one line; a secret as `"***"`.
    pub(super) fn to_toml(&self) -> String {
        let quoted = |text: &str| toml::Value::from(text).to_string();
        let array = |items: Vec<String>| format!("[{}]", items.join(", "));
        match self {
            Self::Text(text) => quoted(text),
            Self::Integer(integer) => integer.to_string(),
            Self::Number(number) => toml::Value::from(*number).to_string(),
            Self::Boolean(flag) => flag.to_string(),
            Self::Texts(texts) => array(texts.iter().map(|text| quoted(text)).collect()),
            Self::Integers(integers) => array(integers.iter().map(u64::to_string).collect()),
            Self::Map(pairs) if pairs.is_empty() => "{}".to_owned(),
            Self::Map(pairs) => {
                let pairs = pairs
                    .iter()
                    .map(|(name, text)| format!("{name} = {}", quoted(text)));
                format!("{{ {} }}", pairs.collect::<Vec<_>>().join(", "))
            }
            Self::Secrets(secrets) => array(secrets.iter().map(|_| quoted("***")).collect()),
        }
    }
}

/// Reads a device's name.
pub(super) fn device(name: &str) -> Option<DeviceChoice> {
    match name {
        "auto" => Some(DeviceChoice::Auto),
        "cpu" => Some(DeviceChoice::Cpu),
        "cuda" => Some(DeviceChoice::Cuda(0)),
        "metal" => Some(DeviceChoice::Metal),
        _ => {
            let ordinal = name.strip_prefix("cuda:")?;
            let digits = ordinal.bytes().all(|byte| byte.is_ascii_digit());
            // No machine has a thousand devices; a longer number is a slip of the finger.
            (digits && (1..=3).contains(&ordinal.len())).then_some(())?;
            ordinal.parse().ok().map(DeviceChoice::Cuda)
        }
    }
}

fn text(kind: Kind, text: &str) -> Result<Value, String> {
    match kind {
        Kind::Choice(words) if !words.contains(&text) => Err(not(text, &words.join(", "))),
        Kind::Device if device(text).is_none() => {
            Err(not(text, "auto, cpu, cuda, cuda:N or metal"))
        }
        Kind::LogFilter => match telemetry::check_filter(text) {
            true => Ok(Value::Text(text.to_owned())),
            false => Err(not(text, "a level or a list of target=level directives")),
        },
        _ => Ok(Value::Text(text.to_owned())),
    }
}

fn whole(typed: &str, min: u64, max: u64) -> Result<u64, String> {
    let digits = typed.trim().replace('_', "");
    match digits.parse() {
        Ok(integer) if (min..=max).contains(&integer) => Ok(integer),
        _ => Err(not(typed, &format!("a whole number from {min} to {max}"))),
    }
}

fn toml_whole(value: &DeValue<'_>, min: u64, max: u64) -> Result<u64, String> {
    let wanted = format!("a whole number from {min} to {max}");
    let Some(written) = value.as_integer() else {
        return Err(format!("is {}, expected {wanted}", value.type_str()));
    };
    match u64::from_str_radix(written.as_str(), written.radix()) {
        Ok(integer) if (min..=max).contains(&integer) => Ok(integer),
        _ => Err(not(written.as_str(), &wanted)),
    }
}

fn bounded(number: f64, above: f64, max: f64) -> Result<f64, String> {
    if number > above && number <= max {
        Ok(number)
    } else {
        let wanted = format!("a number above {above} and up to {max}");
        Err(not(&number.to_string(), &wanted))
    }
}

fn array<T>(
    value: &DeValue<'_>,
    what: &str,
    read: impl Fn(&DeValue<'_>) -> Result<T, String>,
) -> Result<Vec<T>, String> {
    let Some(items) = value.as_array() else {
        return Err(format!(
            "is {}, expected an array of {what}",
            value.type_str()
        ));
    };
    items.iter().map(|item| read(item.get_ref())).collect()
}

/// The non-empty, trimmed pieces of all texts.
fn split(typed: &[String], separator: char) -> impl Iterator<Item = String> {
    typed
        .iter()
        .flat_map(move |text| text.split(separator))
        .map(|piece| piece.trim().to_owned())
        .filter(|piece| !piece.is_empty())
}

/// A bare TOML key, so that what is printed can be read again.
fn map_name(name: &str) -> Result<String, String> {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !name.is_empty() && name.chars().all(bare) {
        Ok(name.to_owned())
    } else {
        Err(not(name, "a name of letters, digits, _ and -"))
    }
}

fn map(pairs: Vec<(String, String)>) -> Result<Value, String> {
    let mut unique = BTreeMap::new();
    for (name, text) in pairs {
        if unique.contains_key(&name) {
            return Err(format!("{name} is given twice"));
        }
        unique.insert(name, text);
    }
    Ok(Value::Map(unique))
}

/// A key as it can stand in an `Authorization` header. The fault does not repeat it.
pub(super) fn secret(text: String) -> Result<String, String> {
    if text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(text)
    } else {
        Err("holds a key with a space, a control character or a character outside ASCII".to_owned())
    }
}

/// `"abc" is not …`, with a value nobody wants to read in full cut short.
fn not(typed: &str, wanted: &str) -> String {
    const SHOWN: usize = 80;
    let mut shown: String = typed.chars().take(SHOWN).collect();
    if shown.len() < typed.len() {
        shown.push('…');
    }
    format!("{shown:?} is not allowed, expected {wanted}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::table::SETTINGS;

    fn typed(kind: Kind, text: &str) -> Result<Value, String> {
        from_typed(kind, &[text.to_owned()])
    }

    fn read_back(kind: Kind, value: &Value) -> Result<Value, String> {
        let written = value.to_toml();
        let parsed = DeValue::parse(&written).expect("what is written is TOML");
        from_toml(kind, parsed.get_ref())
    }

    #[test]
    fn devices_are_read_as_the_help_says() {
        assert_eq!(device("cuda"), Some(DeviceChoice::Cuda(0)));
        assert_eq!(device("cuda:3"), Some(DeviceChoice::Cuda(3)));
        for wrong in [
            "",
            "gpu",
            "cuda:",
            "cuda:-1",
            "cuda:+1",
            "CUDA",
            "cuda:1234",
        ] {
            assert_eq!(device(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_number_out_of_bounds_names_value_and_bounds() {
        let kind = Kind::Integer { min: 1, max: 9 };
        let fault = typed(kind, "10").err();
        assert_eq!(
            fault.as_deref(),
            Some("\"10\" is not allowed, expected a whole number from 1 to 9")
        );
        assert!(typed(kind, "-1").is_err());
        assert!(typed(kind, "").is_err());
        let kind = Kind::Number {
            above: 0.0,
            max: 5.0,
        };
        for wrong in ["0", "NaN", "inf", "5.1", "x"] {
            assert!(typed(kind, wrong).is_err(), "{wrong}");
        }
        assert!(typed(kind, "0.25") == Ok(Value::Number(0.25)));
    }

    #[test]
    fn a_fault_in_a_secret_does_not_repeat_it() {
        let fault = typed(Kind::Secrets, "hunter two").err();
        assert!(fault.is_some_and(|fault| !fault.contains("hunter")));
    }

    #[test]
    fn flags_repeat_and_variables_use_commas() {
        let repeated = from_typed(Kind::Texts, &["a".to_owned(), "b,c".to_owned()]);
        assert!(repeated == typed(Kind::Texts, " a, b ,c,"));
    }

    #[test]
    fn a_map_refuses_a_name_twice() {
        assert!(typed(Kind::Map, "a=1\na=2").is_err());
        assert!(typed(Kind::Map, "a b=1").is_err());
        assert!(typed(Kind::Map, "no text").is_err());
    }

    #[test]
    fn every_default_of_the_table_fits_its_kind() {
        for setting in SETTINGS {
            let parsed = DeValue::parse(setting.default).expect(setting.key);
            let value = match setting.kind {
                Kind::Secrets => Value::Secrets(Vec::new()),
                kind => from_toml(kind, parsed.get_ref()).expect(setting.key),
            };
            assert_eq!(value.to_toml(), setting.default, "{}", setting.key);
        }
    }

    proptest! {
        #[test]
        fn any_text_survives_the_way_through_toml(text in ".*") {
            let value = Value::Text(text);
            prop_assert!(read_back(Kind::Text, &value) == Ok(value));
        }

        #[test]
        fn any_map_survives_the_way_through_toml(text in ".*", name in "[a-z_-]{1,9}") {
            let value = Value::Map(BTreeMap::from([(name, text)]));
            prop_assert!(read_back(Kind::Map, &value) == Ok(value));
        }

        #[test]
        fn any_typed_text_is_a_value_or_a_fault(text in ".*") {
            for setting in SETTINGS {
                // Reading must not panic, and what was read must survive being printed.
                if let (Ok(value), false) = (typed(setting.kind, &text), setting.kind == Kind::Secrets) {
                    prop_assert!(read_back(setting.kind, &value) == Ok(value));
                }
            }
        }
    }
}
