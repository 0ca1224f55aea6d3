//! What is known of a request before its media are decoded and its text is tokenised, and what it will probably cost.
//!
//! In: bytes and counts, and what requests before it turned out to cost. Out: an expected [`Cost`]. Preparing takes as long as
//! computing on a small model, so a full queue must refuse before it, not after.

use std::time::Instant;

use super::Priority;
use super::cost::Cost;
use crate::model::{Task, Tenant};

/// What a request shows from outside.
#[derive(Debug, Clone, Copy)]
pub struct Outline {
    /// Which model it is for.
    pub task: Task,
    /// Whose it is.
    pub tenant: Tenant,
    /// The lane the client asked for.
    pub priority: Option<Priority>,
    /// When nobody waits any more.
    pub deadline: Instant,
    /// How many inputs it has.
    pub inputs: usize,
    /// Bytes of their text, instructions and template included.
    pub text_bytes: usize,
    /// Pictures and videos in them.
    pub media: usize,
}

/// Tokens of a byte until it is measured: English has four bytes a token, and so, nearly, has Chinese.
const TOKENS_A_BYTE: f64 = 0.25;
/// Tokens of a picture until it is measured: one of 1024 x 768 has 768.
const TOKENS_A_MEDIUM: f64 = 768.0;
/// How far one request moves an estimate.
const STEP: f64 = 1.0 / 16.0;

/// What bytes and media have come to lately.
#[derive(Debug, Clone, Copy)]
pub(super) struct Guess {
    tokens_a_byte: f64,
    tokens_a_medium: f64,
}

impl Default for Guess {
    fn default() -> Self {
        Guess {
            tokens_a_byte: TOKENS_A_BYTE,
            tokens_a_medium: TOKENS_A_MEDIUM,
        }
    }
}

impl Guess {
    /// What so many bytes and media will probably cost.
    pub(super) fn cost(&self, text_bytes: usize, media: usize) -> Cost {
        Cost {
            // The template's, if nothing else.
            text_tokens: ((text_bytes as f64 * self.tokens_a_byte) as usize).max(1),
            vision_tokens: (media as f64 * self.tokens_a_medium) as usize,
            pixel_bytes: 0,
        }
    }

    /// Learns what a request came to.
    pub(super) fn learn(&mut self, (text_bytes, media): (usize, usize), cost: Cost) {
        let step = |old: f64, count: usize, tokens: usize| match count {
            0 => old,
            _ => old + STEP * (tokens as f64 / count as f64 - old),
        };
        self.tokens_a_byte = step(self.tokens_a_byte, text_bytes, cost.text_tokens);
        self.tokens_a_medium = step(self.tokens_a_medium, media, cost.vision_tokens);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guess_follows_what_requests_come_to_each_kind_apart() {
        let mut guess = Guess::default();
        assert_eq!(guess.cost(400, 2).tokens(), 100 + 1536);
        let cost = |text_tokens, vision_tokens| Cost {
            text_tokens,
            vision_tokens,
            pixel_bytes: 0,
        };
        for _ in 0..100 {
            guess.learn((1000, 0), cost(500, 0));
            guess.learn((0, 4), cost(0, 400));
        }
        let learned = guess.cost(1000, 10);
        assert!((495..=505).contains(&learned.text_tokens), "{learned:?}");
        assert!((990..=1030).contains(&learned.vision_tokens), "{learned:?}");
    }
}
