//! What can be wrong with the configuration, and where a value came from. In: nothing. Out: [`ConfigFault`] and [`Origin`].

use std::fmt;
use std::path::PathBuf;

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody wrote it: the built-in default.
    Default,
    /// The file named by `--config`.
    File {
        /// Which file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
    },
    /// An environment variable.
    Environment {
        /// Its name.
        variable: String,
    },
    /// A flag of the command line.
    Flag {
        /// As it is spelled in the help, `--batch-max-tokens`.
        flag: String,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment { variable } => write!(f, "environment {variable}"),
            Self::Flag { flag } => write!(f, "flag {flag}"),
        }
    }
}

/// One thing wrong with the configuration. The server refuses to start and shows all of them at once.
///
/// A structure and not an enum: whatever the fault, the operator does the same thing, which is to read it and mend the
/// place it names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{origin}: {problem}")]
pub struct ConfigFault {
    /// Where it was written.
    pub origin: Origin,
    /// What is wrong: the name, the value and what is allowed.
    pub problem: String,
}

impl ConfigFault {
    pub(super) fn new(origin: Origin, problem: impl Into<String>) -> Self {
        Self {
            origin,
            problem: problem.into(),
        }
    }
}

/// ` (did you mean …?)` for a misspelled name, or nothing when no candidate is close.
pub(super) fn suggestion(typed: &str, candidates: impl Iterator<Item = String>) -> String {
    let allowed = (typed.chars().count() / 4).max(2);
    candidates
        .map(|candidate| (edit_distance(typed, &candidate), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map_or_else(String::new, |(_, candidate)| {
            format!(" (did you mean {candidate}?)")
        })
}

/// Levenshtein's distance, one row at a time. Names are short, so the quadratic cost does not matter; a name that is not
/// short is no misspelling of ours.
fn edit_distance(a: &str, b: &str) -> usize {
    if a.len() > 100 {
        return usize::MAX;
    }
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelled_name_gets_the_nearest_one() {
        let names = || ["batch.max_tokens", "batch.max_sequences"].map(String::from);
        assert_eq!(
            suggestion("batch.max_token", names().into_iter()),
            " (did you mean batch.max_tokens?)"
        );
        assert_eq!(suggestion("colour", names().into_iter()), "");
    }

    #[test]
    fn edit_distance_counts_single_changes() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("same", "same"), 0);
    }
}
