//! The tokenizer's pre-tokenizer without a backtracking regex engine: text into the pieces BPE works on, in linear time.
//!
//! In: the `pre_tokenizer` of a `tokenizer.json`. Out: the same splits. The pattern of this model family ends in
//! `\s+(?!\S)|\s+`; the `tokenizers` crate runs its look-ahead on a backtracking engine with a stack of a million entries and takes
//! an overflow for the end of the text, so a long run of spaces would silently give other tokens. Here the look-ahead, which asks
//! no more than that the last space of a run stay with what follows, is one subtraction, and the rest is a regular expression.

use regex::Regex;
use tokenizers::pattern::Pattern;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{Offsets, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior};

/// How the patterns of this family end: whitespace but the last before a word, then any whitespace.
const TRAILING_WHITESPACE: &str = r"|\s+(?!\S)|\s+";

/// A pre-tokenizer all of whose steps take linear time.
#[derive(Debug)]
pub(super) struct LinearPreTokenizer {
    steps: Vec<Step>,
}

#[derive(Debug)]
enum Step {
    Split(LinearSplit),
    /// `ByteLevel` without a regex.
    AsIs(PreTokenizerWrapper),
}

impl LinearPreTokenizer {
    /// Takes over the steps of a file, or says which of them cannot be.
    pub(super) fn from_file(pre_tokenizer: Option<&PreTokenizerWrapper>) -> Result<Self, String> {
        let mut steps = Vec::new();
        let mut pending: Vec<&PreTokenizerWrapper> = pre_tokenizer.into_iter().collect();
        while let Some(step) = pending.pop() {
            match step {
                PreTokenizerWrapper::Sequence(sequence) => {
                    pending.extend(sequence.as_ref().iter().rev())
                }
                PreTokenizerWrapper::Split(split) => {
                    steps.push(Step::Split(LinearSplit::new(split)?))
                }
                PreTokenizerWrapper::ByteLevel(level) if !level.use_regex => {
                    steps.push(Step::AsIs(step.clone()))
                }
                PreTokenizerWrapper::ByteLevel(_) => {
                    return Err(
                        "the pre-tokenizer ByteLevel with use_regex is not supported".to_owned(),
                    );
                }
                _ => {
                    return Err(
                        "the pre-tokenizer has a step other than Split and ByteLevel".to_owned(),
                    );
                }
            }
        }
        Ok(Self { steps })
    }

    /// Whether the model sees bytes, each spelled as one character.
    pub(super) fn is_byte_level(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::AsIs(_)))
    }
}

impl PreTokenizer for LinearPreTokenizer {
    fn pre_tokenize(&self, pretokenized: &mut PreTokenizedString) -> tokenizers::Result<()> {
        for step in &self.steps {
            match step {
                Step::Split(split) => {
                    pretokenized
                        .split(|_, piece| piece.split(split, SplitDelimiterBehavior::Isolated))?;
                }
                Step::AsIs(step) => step.pre_tokenize(pretokenized)?,
            }
        }
        Ok(())
    }
}

/// One `Split` step whose matches are the pieces.
#[derive(Debug)]
struct LinearSplit {
    regex: Regex,
    /// Whether group 1 of `regex` stands for [`TRAILING_WHITESPACE`].
    keeps_last_space: bool,
}

impl LinearSplit {
    fn new(split: &Split) -> Result<Self, String> {
        if split.invert || split.behavior != SplitDelimiterBehavior::Isolated {
            return Err("the pre-tokenizer Split is inverted or does not isolate".to_owned());
        }
        let pattern = match &split.pattern {
            SplitPattern::String(text) => regex::escape(text),
            SplitPattern::Regex(pattern) => pattern.clone(),
        };
        let head = pattern.strip_suffix(TRAILING_WHITESPACE);
        let linear = head.map_or_else(|| pattern.clone(), |head| format!(r"{head}|(\s+)"));
        let regex = Regex::new(&linear).map_err(|_| {
            format!("the pre-tokenizer pattern {pattern:?} cannot be matched in linear time")
        })?;
        // Group 0 is the match. A pattern with groups of its own would shift ours.
        if head.is_some() && regex.captures_len() != 2 {
            return Err(format!(
                "the pre-tokenizer pattern {pattern:?} has capture groups"
            ));
        }
        Ok(Self {
            keeps_last_space: head.is_some(),
            regex,
        })
    }

    /// The end of the piece that begins with the match `start..end`.
    fn piece_end(&self, text: &str, start: usize, end: usize) -> usize {
        let run = &text[start..end];
        let Some(last) = run.chars().next_back() else {
            return end;
        };
        // Cheap tests first: captures cost a second search.
        if !self.keeps_last_space
            || run.len() == last.len_utf8()
            || end == text.len()
            || !last.is_whitespace()
        {
            return end;
        }
        let mut groups = self.regex.capture_locations();
        self.regex.captures_read_at(&mut groups, text, start);
        if groups.get(1).is_some() {
            end - last.len_utf8()
        } else {
            end
        }
    }
}

impl Pattern for &LinearSplit {
    fn find_matches(&self, inside: &str) -> tokenizers::Result<Vec<(Offsets, bool)>> {
        if inside.is_empty() {
            return Ok(vec![((0, 0), false)]);
        }
        let mut pieces = Vec::new();
        let mut end = 0;
        while let Some(found) = self.regex.find_at(inside, end) {
            if found.is_empty() {
                return Err("the pre-tokenizer pattern matches the empty string".into());
            }
            if found.start() > end {
                pieces.push(((end, found.start()), false));
            }
            end = self.piece_end(inside, found.start(), found.end());
            pieces.push(((found.start(), end), true));
        }
        if end < inside.len() {
            pieces.push(((end, inside.len()), false));
        }
        Ok(pieces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokenizers::{OffsetReferential, OffsetType, Tokenizer};

    const TOKENIZER: &[u8] = include_bytes!("../../tests/fixtures/parity/model/tokenizer.json");

    fn pieces(pre_tokenizer: &impl PreTokenizer, text: &str) -> Vec<(usize, usize)> {
        let mut pretokenized = PreTokenizedString::from(text);
        pre_tokenizer.pre_tokenize(&mut pretokenized).unwrap();
        pretokenized
            .get_splits(OffsetReferential::Original, OffsetType::Byte)
            .into_iter()
            .map(|(_, offsets, _)| offsets)
            .collect()
    }

    #[test]
    fn a_run_of_spaces_longer_than_a_backtracking_stack_splits_like_a_short_one() {
        let file = Tokenizer::from_bytes(TOKENIZER).unwrap();
        let linear = LinearPreTokenizer::from_file(file.get_pre_tokenizer()).unwrap();
        for spaces in [3, 1_000_100] {
            let text = format!("{}x yes", " ".repeat(spaces));
            let run = spaces - 1;
            assert_eq!(
                pieces(&linear, &text),
                [(0, run), (run, run + 2), (run + 2, run + 6)]
            );
        }
    }

    #[test]
    fn patterns_that_would_need_backtracking_are_refused() {
        let split = |pattern: &str| {
            let split = Split::new(
                SplitPattern::Regex(pattern.to_owned()),
                SplitDelimiterBehavior::Isolated,
                false,
            );
            LinearPreTokenizer::from_file(Some(&split.unwrap().into()))
        };
        assert!(split(r"\w+|\s+(?!\S)|\s+").is_ok());
        assert!(
            split(r"(?<=a)b|\s+(?!\S)|\s+")
                .unwrap_err()
                .contains("linear time")
        );
        assert!(
            split(r"(a)b|\s+(?!\S)|\s+")
                .unwrap_err()
                .contains("capture groups")
        );
    }

    proptest! {
        #[test]
        fn pieces_are_those_of_the_tokenizers_crate(words in prop::collection::vec(prop_oneof![
            Just(" "), Just("  "), Just("\n"), Just("\r\n"), Just("\t"), Just("\u{3000}"), Just("\u{a0}"), Just("\u{1c}"), Just("a"),
            Just("it's"), Just("'\u{17f}"), Just("é"), Just("e\u{301}"), Just("海"), Just("12"), Just("!?"), Just("👩\u{200d}👧"),
        ], 0..24)) {
            let text = words.concat();
            let file = Tokenizer::from_bytes(TOKENIZER).unwrap();
            let linear = LinearPreTokenizer::from_file(file.get_pre_tokenizer()).unwrap();
            let theirs = file.get_pre_tokenizer().unwrap();
            prop_assert_eq!(pieces(&linear, &text), pieces(theirs, &text));
        }
    }
}
