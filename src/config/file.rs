//! What the file of settings says. In: its path and TOML text. Out: a value or a fault for each thing in it, each with its
//! line, so that all faults of a file are listed at once.

use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::error::{ConfigFault, Origin, suggestion};
use super::table::{Kind, SETTINGS};
use super::value;
use super::{Given, Layer};

/// A file of settings, read but not yet understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFile {
    /// Where it was.
    pub path: PathBuf,
    /// What it says.
    pub text: String,
}

/// Everything the file says.
pub(super) fn layer(file: &ConfigFile) -> Layer {
    let mut reader = Reader {
        path: &file.path,
        text: &file.text,
        layer: Layer::default(),
    };
    let (document, errors) = DeTable::parse_recoverable(&file.text);
    for error in &errors {
        let at = error.span().map_or(0, |span| span.start);
        reader.fault(at, format!("not TOML: {}", error.message()));
    }
    // A table recovered from broken text would add faults that are none: mend the text first.
    if errors.is_empty() {
        reader.table("", document.get_ref());
    }
    // The parser sorts by name; people read from the top.
    reader
        .layer
        .faults
        .sort_by_key(|fault| match &fault.origin {
            Origin::File { line, .. } => *line,
            _ => 0,
        });
    reader.layer
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    layer: Layer,
}

impl Reader<'_> {
    fn table(&mut self, prefix: &str, table: &DeTable<'_>) {
        for (name, item) in table {
            let at = name.span().start;
            let name = name.get_ref();
            // A quoted key may hold dots; it is then one name and none of ours.
            let dotted = name.contains('.');
            let name = if dotted {
                format!("{name:?}")
            } else {
                name.to_string()
            };
            let key = if prefix.is_empty() {
                name
            } else {
                format!("{prefix}.{name}")
            };
            match (
                SETTINGS.iter().position(|row| row.key == key),
                item.get_ref(),
            ) {
                (Some(index), value) if !dotted => self.value(index, at, value),
                (None, DeValue::Table(inner)) if is_section(&key) => {
                    self.table(&key, inner);
                }
                _ => {
                    let candidates = SETTINGS.iter().map(|row| row.key.to_owned());
                    let hint = suggestion(&key, candidates);
                    self.fault(at, format!("{key} is no setting{hint}"));
                }
            }
        }
    }

    fn value(&mut self, index: usize, at: usize, value: &DeValue<'_>) {
        let row = &SETTINGS[index];
        match value::from_toml(row.kind, value) {
            Ok(value) => self.layer.given.push(Given {
                index,
                value,
                origin: self.origin(at),
            }),
            Err(problem) if row.kind == Kind::Secrets => {
                let variables = row.variables();
                let variable = variables.last().map_or("", String::as_str);
                self.fault(at, format!("{} {problem}: use {variable}", row.key));
            }
            Err(problem) => self.fault(at, format!("{}: {problem}", row.key)),
        }
    }

    fn fault(&mut self, at: usize, problem: String) {
        let origin = self.origin(at);
        self.layer.faults.push(ConfigFault::new(origin, problem));
    }

    fn origin(&self, at: usize) -> Origin {
        let before = self.text.as_bytes().iter().take(at);
        Origin::File {
            path: self.path.to_owned(),
            line: 1 + before.filter(|byte| **byte == b'\n').count(),
        }
    }
}

fn is_section(key: &str) -> bool {
    SETTINGS.iter().any(|row| row.section() == key)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Layer {
        layer(&ConfigFile {
            path: PathBuf::from("m.toml"),
            text: text.to_owned(),
        })
    }

    fn faults(text: &str) -> Vec<String> {
        read(text).faults.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn all_faults_of_a_file_are_listed_with_their_lines() {
        let text =
            "colour = 1\n[batch]\nmax_tokens = \"many\"\nmax_token = 3\n[server]\nport = 70_000\n";
        assert_eq!(
            faults(text),
            [
                "m.toml:1: colour is no setting",
                "m.toml:3: batch.max_tokens: is string, expected a whole number from 1 to 1099511627776",
                "m.toml:4: batch.max_token is no setting (did you mean batch.max_tokens?)",
                "m.toml:6: server.port: \"70000\" is not allowed, expected a whole number from 0 to 65535",
            ]
        );
    }

    #[test]
    fn text_that_is_not_toml_is_a_fault_with_its_line() {
        let found = faults("[batch]\nmax_tokens = = 3\n");
        assert!(found[0].starts_with("m.toml:2: not TOML: "), "{found:?}");
    }

    #[test]
    fn a_secret_in_the_file_is_refused_without_repeating_it() {
        let found = faults("[auth]\napi_keys = [\"hunter2\"]\n");
        assert_eq!(
            found,
            [
                "m.toml:2: auth.api_keys is a secret and may not stand in a file of settings: use MANIFOLD_API_KEY"
            ]
        );
    }

    #[test]
    fn a_quoted_key_with_dots_is_no_setting() {
        assert_eq!(
            faults("\"batch.max_tokens\" = 3"),
            ["m.toml:1: \"batch.max_tokens\" is no setting (did you mean batch.max_tokens?)"]
        );
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".*") {
            read(&text);
        }

        #[test]
        fn any_toml_like_text_is_read_or_refused(lines in prop::collection::vec("(\\[[a-z.]{1,9}\\]|[a-z_]{1,9} = [0-9\"\\[\\]{}a-z.-]{0,9})", 0..9)) {
            read(&lines.join("\n"));
        }
    }
}
