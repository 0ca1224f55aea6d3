//! A prompt on its way: ids so far, what each of them is, and what may be cut to make it fit.
//!
//! In: text and ids, piece by piece. Out: at most as many ids as the limit allows. Cutting takes whole tokens of the user's text after
//! tokenising, so what stays are the ids the whole prompt has there; a character of several tokens may lose some of them, as it may
//! in the reference.

use std::ops::Range;

use super::{ContextLimit, PartTokens, ProcessorError, TokenCounts, Truncation};
use crate::model::GridThw;

/// One id after another, and what each stretch of them is.
#[derive(Clone, Default)]
pub(super) struct Draft {
    pub(super) ids: Vec<u32>,
    /// Whether truncation may take the token; as long as `ids`.
    pub(super) cuttable: Vec<bool>,
    /// The part each token is of; as long as `ids`.
    pub(super) owners: Vec<Option<u32>>,
    /// The part that is being written.
    pub(super) part: Option<u32>,
    /// Where in `text` each part begins, ascending.
    pub(super) begins: Vec<(usize, u32)>,
    /// How many tokens each part has lost.
    pub(super) cut: Vec<usize>,
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
                for owner in self.owners.drain(keep..).flatten() {
                    self.cut[owner as usize] += 1;
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

    /// Cuts the end of the user's text where it has more than `most` tokens, whatever stands around it. Whether anything was cut.
    ///
    /// # Errors
    /// None: what is too much may be cut.
    pub(super) fn truncate_document(
        &mut self,
        most: Option<usize>,
    ) -> Result<bool, ProcessorError> {
        let own = self.cuttable.iter().filter(|&&cuttable| cuttable).count();
        let excess = most.map_or(0, |most| own.saturating_sub(most));
        let limit = ContextLimit {
            max_tokens: self.ids.len() - excess,
            truncation: Truncation::End,
        };
        self.truncate(0, limit)
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
        self.push_of(self.part, id, cuttable);
    }

    /// The user's own ids.
    pub(super) fn push_all(&mut self, ids: &[u32]) {
        self.ids.extend_from_slice(ids);
        self.cuttable.resize(self.ids.len(), true);
        self.owners.resize(self.ids.len(), self.part);
    }

    /// A token of a part other than the one being written.
    pub(super) fn push_of(&mut self, owner: Option<u32>, id: u32, cuttable: bool) {
        self.ids.push(id);
        self.cuttable.push(cuttable);
        self.owners.push(owner);
    }

    /// From here on what is written is of this part; `None` is the template.
    pub(super) fn begin(&mut self, part: Option<u32>) {
        self.part = part;
        if let Some(part) = part {
            self.begins.push((self.text.len(), part));
            self.cut.resize(self.cut.len().max(part as usize + 1), 0);
        }
    }

    /// How many tokens each part has, and how many more it had before it was cut.
    pub(super) fn part_tokens(&self) -> Vec<PartTokens> {
        let mut parts: Vec<PartTokens> = self
            .cut
            .iter()
            .map(|&cut| PartTokens { tokens: 0, cut })
            .collect();
        for owner in self.owners.iter().flatten() {
            parts[*owner as usize].tokens += 1;
        }
        parts
    }

    /// Drops those cuttable tokens whose rank among the cuttable ones is in `dropped`.
    fn drop_cuttable(&mut self, dropped: &std::ops::Range<usize>) {
        let mut rank = 0;
        let mut kept = Vec::with_capacity(self.ids.len());
        // Where each old position went, for the spans.
        let mut moved = Vec::with_capacity(self.ids.len());
        let mut owners = Vec::with_capacity(self.ids.len());
        let tokens = self.ids.iter().zip(&self.cuttable).zip(&self.owners);
        for ((&id, &cuttable), &owner) in tokens {
            moved.push(kept.len());
            if !(cuttable && dropped.contains(&rank)) {
                kept.push(id);
                owners.push(owner);
            } else if let Some(owner) = owner {
                self.cut[owner as usize] += 1;
            }
            rank += usize::from(cuttable);
        }
        for (start, _) in &mut self.spans {
            *start = moved[*start];
        }
        let mut rank = 0;
        self.cuttable.retain(|&cuttable| {
            let drop = cuttable && dropped.contains(&rank);
            rank += usize::from(cuttable);
            !drop
        });
        self.ids = kept;
        self.owners = owners;
    }
}
