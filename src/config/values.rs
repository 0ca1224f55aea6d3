//! The layers of settings, stacked: for each row of the table the value that won, and where it came from. In: layers, the
//! weakest first. Out: [`Values`], asked by dotted name.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeValue;

use super::error::{ConfigFault, Origin};
use super::table::{Kind, SETTINGS};
use super::value::{self, Value};
use super::{Layer, Secret};

/// A value and an origin for each row of the table, in its order.
pub(super) struct Values(Vec<(Value, Origin)>);

impl Values {
    /// The defaults alone.
    pub(super) fn defaults() -> Self {
        let default = |row: &super::table::Setting| match row.kind {
            Kind::Secrets => Value::Secrets(Vec::new()),
            kind => {
                let parsed = DeValue::parse(row.default).expect("a default is TOML");
                value::from_toml(kind, parsed.get_ref()).expect("a default fits its kind")
            }
        };
        let with_origin = |row| (default(row), Origin::Default);
        Self(SETTINGS.iter().map(with_origin).collect())
    }

    /// The defaults, then each layer over what is there. A fault in a value that a stronger layer replaces is still one:
    /// it would surface the day the stronger one goes.
    pub(super) fn stack(layers: impl IntoIterator<Item = Layer>) -> (Self, Vec<ConfigFault>) {
        let mut values = Self::defaults();
        let mut faults = Vec::new();
        for layer in layers {
            for given in layer.given {
                values.0[given.index] = (given.value, given.origin);
            }
            faults.extend(layer.faults);
        }
        (values, faults)
    }

    /// Rows of the table with their values and origins.
    pub(super) fn rows(
        &self,
    ) -> impl Iterator<Item = (&'static super::table::Setting, &Value, &Origin)> {
        let pairs = SETTINGS.iter().zip(&self.0);
        pairs.map(|(row, (value, origin))| (row, value, origin))
    }

    pub(super) fn origin(&self, key: &str) -> Origin {
        self.find(key).1.clone()
    }

    pub(super) fn text(&self, key: &str) -> &str {
        match &self.find(key).0 {
            Value::Text(text) => text,
            _ => wrong_kind(key),
        }
    }

    /// A path; empty is none.
    pub(super) fn path(&self, key: &str) -> Option<PathBuf> {
        let text = self.text(key);
        (!text.is_empty()).then(|| PathBuf::from(text))
    }

    pub(super) fn integer(&self, key: &str) -> u64 {
        match self.find(key).0 {
            Value::Integer(integer) => integer,
            _ => wrong_kind(key),
        }
    }

    /// A count or a size. A machine whose addresses are too short for the value cannot reach it either.
    pub(super) fn count(&self, key: &str) -> usize {
        usize::try_from(self.integer(key)).unwrap_or(usize::MAX)
    }

    /// A number that the table keeps below 65,536.
    pub(super) fn small(&self, key: &str) -> u16 {
        u16::try_from(self.integer(key)).expect("the table bounds it")
    }

    pub(super) fn duration(&self, key: &str) -> Duration {
        Duration::from_millis(self.integer(key))
    }

    pub(super) fn number(&self, key: &str) -> f64 {
        match self.find(key).0 {
            Value::Number(number) => number,
            _ => wrong_kind(key),
        }
    }

    pub(super) fn boolean(&self, key: &str) -> bool {
        match self.find(key).0 {
            Value::Boolean(flag) => flag,
            _ => wrong_kind(key),
        }
    }

    pub(super) fn texts(&self, key: &str) -> Vec<String> {
        match &self.find(key).0 {
            Value::Texts(texts) => texts.clone(),
            _ => wrong_kind(key),
        }
    }

    pub(super) fn ports(&self, key: &str) -> Vec<u16> {
        let port = |port: &u64| u16::try_from(*port).expect("the table bounds it");
        match &self.find(key).0 {
            Value::Integers(integers) => integers.iter().map(port).collect(),
            _ => wrong_kind(key),
        }
    }

    pub(super) fn map(&self, key: &str) -> BTreeMap<String, String> {
        match &self.find(key).0 {
            Value::Map(pairs) => pairs.clone(),
            _ => wrong_kind(key),
        }
    }

    pub(super) fn secrets(&self, key: &str) -> Vec<Secret> {
        match &self.find(key).0 {
            Value::Secrets(secrets) => secrets.iter().cloned().map(Secret).collect(),
            _ => wrong_kind(key),
        }
    }

    fn find(&self, key: &str) -> &(Value, Origin) {
        match SETTINGS.iter().position(|row| row.key == key) {
            Some(index) => &self.0[index],
            None => wrong_kind(key),
        }
    }
}

/// A slip between the table and [`super::Config`], which resolving the defaults in any test finds.
fn wrong_kind(key: &str) -> ! {
    panic!("{key} is not in the table, or of another kind")
}
