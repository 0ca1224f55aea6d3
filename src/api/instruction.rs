//! Instructions: given as text, or picked from the configured table by a name.

use super::ApiSettings;
use super::error::ApiError;
use super::fields::{Fields, path, quoted, string};

/// Names of the instruction itself.
pub(super) const INSTRUCTION: &[&str] = &["instruction", "instruct", "prompt"];
/// Names of a choice among the configured instructions.
pub(super) const INSTRUCTION_NAME: &[&str] = &["input_type", "prompt_name", "task"];
/// Names clients of peers use for the two kinds of instruction every table has: Cohere's, Jina's, and sentence-transformers'.
const SYNONYMS: [(&str, &str); 7] = [
    ("search_query", "query"),
    ("retrieval.query", "query"),
    ("search_document", "document"),
    ("retrieval.passage", "document"),
    ("passage", "document"),
    ("image", "document"),
    ("corpus", "document"),
];

/// The instruction itself, else the configured one of that name.
pub(super) fn parse(
    fields: Fields<'_>,
    settings: &ApiSettings,
) -> Result<Option<String>, ApiError> {
    if let Some(instruction) = fields.string(INSTRUCTION)? {
        return Ok(Some(instruction.to_owned()));
    }
    let Some((at, value)) = fields.one_of(INSTRUCTION_NAME)? else {
        return Ok(None);
    };
    let name = string(&at, value)?;
    let table = &settings.instructions;
    let synonym = SYNONYMS.iter().find(|(synonym, _)| *synonym == name);
    let meant = synonym.and_then(|(_, known)| table.get(*known));
    match table.get(name).or(meant) {
        Some(instruction) => Ok(Some(instruction.clone())),
        None => {
            let known = names(settings);
            Err(ApiError::invalid(
                &at,
                format!(
                    "{at} is {}, this server knows {}",
                    quoted(name),
                    known.join(", ")
                ),
            ))
        }
    }
}

/// The refusal of an instruction that would be dropped, for without a template there is no place for it.
pub(super) fn in_raw(fields: Fields<'_>, names: &[&str]) -> ApiError {
    let given = names.iter().find_map(|name| fields.get(name));
    let at = given.map_or_else(|| path(fields.at, "instruction"), |(at, _)| at);
    let message =
        format!("{at} cannot stand beside raw: without a template there is no place for it");
    ApiError::invalid(at, message)
}

/// Every name an instruction can be picked by.
pub(super) fn names(settings: &ApiSettings) -> Vec<String> {
    let table = &settings.instructions;
    let synonyms = SYNONYMS
        .iter()
        .filter(|(name, meant)| table.contains_key(*meant) && !table.contains_key(*name))
        .map(|(name, _)| (*name).to_owned());
    table.keys().cloned().chain(synonyms).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What the server is configured with unless told otherwise.
    fn settings(table: &[(&str, &str)]) -> ApiSettings {
        let own = |(name, text): &(&str, &str)| ((*name).to_owned(), (*text).to_owned());
        ApiSettings {
            instructions: table.iter().map(own).collect(),
            ..ApiSettings::default()
        }
    }

    fn meant(settings: &ApiSettings, name: &str) -> Result<Option<String>, ApiError> {
        let body = json!({ "input_type": name });
        let map = body.as_object().expect("an object");
        parse(Fields { map, at: "" }, settings)
    }

    #[test]
    fn clients_own_names_mean_query_and_document_unless_the_operator_says_otherwise() {
        let plain = settings(&[("query", "Q"), ("document", "D")]);
        for (name, text) in [
            ("query", "Q"),
            ("search_query", "Q"),
            ("retrieval.query", "Q"),
            ("document", "D"),
            ("search_document", "D"),
            ("retrieval.passage", "D"),
            ("image", "D"),
        ] {
            assert_eq!(meant(&plain, name), Ok(Some(text.to_owned())), "{name}");
        }
        let own = settings(&[("query", "Q"), ("search_query", "S")]);
        assert_eq!(meant(&own, "search_query"), Ok(Some("S".to_owned())));
    }

    #[test]
    fn a_name_nobody_configured_is_refused_with_those_that_are_known() {
        let one = settings(&[("query", "Q")]);
        for name in ["clustering", "document", "search_document", ""] {
            let error = meant(&one, name).expect_err("refused");
            assert_eq!(error.param.as_deref(), Some("input_type"));
            assert!(error.message.contains("query, search_query"), "{error:?}");
        }
        assert_eq!(names(&one), ["query", "search_query", "retrieval.query"]);
    }
}
