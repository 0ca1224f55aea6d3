//! The instruction: what a client gives becomes the system turn, by the reference's rules.

use unicode_general_category::{GeneralCategory, get_general_category};

/// Source: the default of the official embedding script.
pub(crate) const DEFAULT_INSTRUCTION: &str = "Represent the user's input.";
/// The system turn: stripped, and ended with a full stop unless it ends in punctuation.
///
/// # Source
/// The official embedding script; a character is punctuation when its Unicode general category starts with `P`.
pub(super) fn instruction(given: Option<&str>) -> String {
    let text = given.unwrap_or_default().trim_matches(is_python_space);
    match text.chars().last() {
        None => DEFAULT_INSTRUCTION.to_owned(),
        Some(last) if is_punctuation(last) => text.to_owned(),
        Some(_) => format!("{text}."),
    }
}

/// What Python's `str.strip` takes: Unicode white space and the four information separators.
fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn is_punctuation(c: char) -> bool {
    use GeneralCategory::{
        ClosePunctuation, ConnectorPunctuation, DashPunctuation, FinalPunctuation,
        InitialPunctuation, OpenPunctuation, OtherPunctuation,
    };
    matches!(
        get_general_category(c),
        ClosePunctuation
            | ConnectorPunctuation
            | DashPunctuation
            | FinalPunctuation
            | InitialPunctuation
            | OpenPunctuation
            | OtherPunctuation
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_stripped_and_ended_as_in_the_reference() {
        assert_eq!(instruction(None), DEFAULT_INSTRUCTION);
        assert_eq!(instruction(Some(" \n\u{1f} ")), DEFAULT_INSTRUCTION);
        assert_eq!(
            instruction(Some("  Find similar news ")),
            "Find similar news."
        );
        assert_eq!(instruction(Some("检索相关图片。")), "检索相关图片。");
        // `$`, `+` and `~` are symbols, not punctuation.
        assert_eq!(instruction(Some("cost in $")), "cost in $.");
    }
}
