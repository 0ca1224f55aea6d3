//! A prompt on its way: ids so far, what each of them is, and what may be cut to make it fit.
//!
//! In: text and ids, piece by piece. Out: at most as many ids as the limit allows. Cutting takes whole tokens of the user's text after
//! tokenising, so what stays are the ids the whole prompt has there; a character of several tokens may lose some of them, as it may
//! in the reference.

use std::ops::Range;

use super::{ContextLimit, ProcessorError, TokenCounts, Truncation};
use crate::model::GridThw;

/// One id after another, and what each stretch of them is.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) ids: Vec<u32>,
    /// Whether truncation may take the token; as long as `ids`.
    pub(super) cuttable: Vec<bool>,
    /// Where vision tokens stand: first id, size in merged rows and columns.
    pub(super) spans: Vec<(usize, GridThw)>,
    pub(super) tokens: TokenCounts,
    /// Text not yet tokenised, and which bytes of it the user wrote: ascending, none touching the next.
    pub(super) text: String,
    pub(super) user: Vec<Range<usize>>,
    /// How many ids stand before the text the user's first part may merge with; `None` without a template.
    pub(super) fixed: Option<usize>,
    /// Whether a text was shortened before it was tokenised.
    pub(super) clipped: bool,
}

impl Draft {
    /// Cuts what is too much, with `added` tokens of the post-processor to come. Whether anything was cut.
    ///
    /// # Errors
    /// [`ProcessorError::TooLong`] when nothing may be cut, or not enough.
    pub(super) fn truncate(
        &mut self,
        added: usize,
        limit: ContextLimit,
    ) -> Result<bool, ProcessorError> {
        let tokens = self.ids.len() + added;
        if tokens <= limit.max_tokens {
            return Ok(false);
        }
        let excess = tokens - limit.max_tokens;
        let media_tokens = self.tokens.image_tokens + self.tokens.video_tokens;
        let too_long = ProcessorError::TooLong {
            tokens,
            at_least: false,
            media_tokens,
            limit: limit.max_tokens,
        };
        match limit.truncation {
            Truncation::None => Err(too_long),
            Truncation::Reference => {
                let keep = self.ids.len().saturating_sub(excess);
                if keep == 0
                    || self
                        .spans
                        .iter()
                        .any(|(start, grid)| start + grid.vision_tokens() > keep)
                {
                    return Err(too_long);
                }
                self.ids.truncate(keep);
                Ok(true)
            }
            Truncation::End | Truncation::Start => {
                let cuttable = self.cuttable.iter().filter(|&&cuttable| cuttable).count();
                if cuttable < excess {
                    return Err(too_long);
                }
                let from_end = limit.truncation == Truncation::End;
                let dropped = if from_end {
                    cuttable - excess..cuttable
                } else {
                    0..excess
                };
                self.drop_cuttable(&dropped);
                Ok(true)
            }
        }
    }

    /// Appends text of the user's.
    pub(super) fn write(&mut self, text: &str) {
        let start = self.text.len();
        self.text.push_str(text);
        match self.user.last_mut() {
            Some(last) if last.end == start => last.end = self.text.len(),
            _ => self.user.push(start..self.text.len()),
        }
    }

    pub(super) fn push(&mut self, id: u32, cuttable: bool) {
        self.ids.push(id);
        self.cuttable.push(cuttable);
    }

    /// Drops those cuttable tokens whose rank among the cuttable ones is in `dropped`.
    fn drop_cuttable(&mut self, dropped: &std::ops::Range<usize>) {
        let mut rank = 0;
        let mut kept = Vec::with_capacity(self.ids.len());
        // Where each old position went, for the spans.
        let mut moved = Vec::with_capacity(self.ids.len());
        for (&id, &cuttable) in self.ids.iter().zip(&self.cuttable) {
            moved.push(kept.len());
            if !(cuttable && dropped.contains(&rank)) {
                kept.push(id);
            }
            rank += usize::from(cuttable);
        }
        for (start, _) in &mut self.spans {
            *start = moved[*start];
        }
        self.ids = kept;
    }
}
