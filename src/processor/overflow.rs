//! Texts that cannot fit, found out before they cost anything: a length, or a look at one end, tells that a text has too many tokens.
//!
//! In: a text and a number of tokens. Out: how many it has at least, and how much of it already has too many.

use super::ProcessorError;
use super::text_tokenizer::TextTokenizer;

/// Most bytes of UTF-8 that canonical composition turns into one: three (three jamo of three bytes make one syllable of three,
/// KELVIN SIGN of three bytes is the letter K). One more leaves room for coming versions of Unicode.
const COMPOSITION_BYTES: usize = 4;

/// A first look at a long text takes this many bytes for each token it may have; few texts have more to a token.
const WINDOW_BYTES_PER_TOKEN: usize = 16;

/// Which end of a text counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Its first bytes.
    Start,
    /// Its last bytes.
    End,
}

/// A part of a text that alone has more tokens than asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Overflow {
    /// How many tokens it has at least.
    pub(super) tokens: usize,
    /// Its length in bytes.
    pub(super) bytes: usize,
}

/// What the length of a text says about its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LengthBound {
    /// Fewest tokens the text can have.
    pub(super) least_tokens: usize,
    /// Most bytes a text of so many tokens can have.
    pub(super) most_bytes: usize,
}

/// The first or last `bytes` bytes of a text, less a character that would be cut.
pub(super) fn end_of(text: &str, bytes: usize, side: Side) -> &str {
    match side {
        Side::Start => &text[..text.floor_char_boundary(bytes)],
        Side::End => &text[text.ceil_char_boundary(text.len().saturating_sub(bytes))..],
    }
}

/// How many tokens stand whatever is beyond the cut: all but those of the two pieces next to it.
fn certain_tokens(pieces: &[Option<u32>], side: Side) -> usize {
    let piece_at_cut = match side {
        Side::Start => pieces.last(),
        Side::End => pieces.first(),
    };
    let Some(&Some(at_cut)) = piece_at_cut else {
        return 0;
    };
    let stands = |piece: u32| piece.abs_diff(at_cut) > 1;
    pieces
        .iter()
        .flatten()
        .filter(|&&piece| stands(piece))
        .count()
}

impl TextTokenizer {
    /// Finds out cheaply whether one end of `text` has more than `limit` tokens, where the text is long enough to be suspected.
    ///
    /// `None` is not a promise: the text is then short enough to be encoded whole. The count leaves out the tokens at the cut, which
    /// the rest of the text could change.
    pub(super) fn overflow(
        &self,
        text: &str,
        limit: usize,
        side: Side,
    ) -> Result<Option<Overflow>, ProcessorError> {
        let mut window = limit.max(1).saturating_mul(WINDOW_BYTES_PER_TOKEN);
        while window < text.len() {
            let part = end_of(text, window, side);
            let encoding = self.encoding(part)?;
            let tokens = certain_tokens(encoding.get_word_ids(), side);
            if tokens > limit {
                return Ok(Some(Overflow {
                    tokens,
                    bytes: part.len(),
                }));
            }
            window = window.saturating_mul(4);
        }
        Ok(None)
    }

    /// The least number of tokens a text can have by its length alone, and the length that still may have `limit` tokens.
    pub(super) fn length_bound(&self, text: &str, limit: usize) -> LengthBound {
        let shrink = if text.is_ascii() {
            1
        } else {
            COMPOSITION_BYTES
        };
        let bytes_per_token = self.longest_token_bytes * shrink;
        LengthBound {
            least_tokens: text.len().div_ceil(bytes_per_token),
            most_bytes: limit.saturating_mul(bytes_per_token),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processor::VisionTokenIds;
    use proptest::prelude::*;
    use tokenizers::normalizers::{NFC, NFD};
    use tokenizers::{NormalizedString, Normalizer};

    fn tokenizer() -> TextTokenizer {
        let ids = VisionTokenIds {
            vocab_size: 2048,
            image_token_id: 2017,
            video_token_id: 2018,
            vision_start_token_id: 2014,
            vision_end_token_id: 2015,
        };
        TextTokenizer::new(
            include_bytes!("../../tests/fixtures/parity/model/tokenizer.json"),
            ids,
        )
        .unwrap()
    }

    #[test]
    fn no_character_is_composed_of_more_bytes_than_assumed() {
        for character in '\0'..=char::MAX {
            let length = |normalizer: &dyn Fn(&mut NormalizedString)| {
                let mut text = NormalizedString::from(character.to_string());
                normalizer(&mut text);
                text.get().len()
            };
            let composed = length(&|text| NFC.normalize(text).unwrap());
            let decomposed = length(&|text| NFD.normalize(text).unwrap());
            let longest = decomposed.max(character.len_utf8());
            assert!(longest <= COMPOSITION_BYTES * composed, "{character:?}");
        }
    }

    #[test]
    fn a_short_text_is_not_looked_at_and_a_long_one_only_at_its_end() {
        let tokenizer = tokenizer();
        assert_eq!(tokenizer.overflow("a b c", 4, Side::Start).unwrap(), None);
        let text = "one two three ".repeat(100_000);
        for side in [Side::Start, Side::End] {
            let overflow = tokenizer.overflow(&text, 50, side).unwrap().unwrap();
            assert!(
                overflow.tokens > 50 && overflow.bytes < 4000,
                "{overflow:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn what_is_said_to_overflow_does(text in "[a-z é\u{301}海\n!]{0,400}", limit in 1_usize..20, from_end: bool) {
            let tokenizer = tokenizer();
            let tokens = tokenizer.encode(&text).unwrap().ids.len();
            prop_assert!(tokenizer.length_bound(&text, limit).least_tokens <= tokens);
            let side = if from_end { Side::End } else { Side::Start };
            if let Some(overflow) = tokenizer.overflow(&text, limit, side).unwrap() {
                prop_assert!(overflow.tokens > limit && overflow.tokens <= tokens);
            }
        }
    }
}
