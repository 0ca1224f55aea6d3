//! A prompt while it is put together: ids, and what each stretch of them is.

use std::ops::Range;

use super::TokenCounts;
use crate::model::GridThw;

/// Where a run of vision tokens stands: its first id, and the grid of its one frame.
pub(super) type Span = (usize, GridThw);

/// One id after another, and what each stretch of them is.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) ids: Vec<u32>,
    /// Whether truncation may take the token; as long as `ids`.
    pub(super) cuttable: Vec<bool>,
    /// Where vision tokens stand: first id, size in merged rows and columns.
    pub(super) spans: Vec<Span>,
    pub(super) tokens: TokenCounts,
    /// Text not yet tokenised, and which bytes of it the user wrote.
    pub(super) text: String,
    pub(super) user: Vec<Range<usize>>,
}

impl Draft {
    pub(super) fn push(&mut self, id: u32, cuttable: bool) {
        self.ids.push(id);
        self.cuttable.push(cuttable);
    }

    /// Drops those cuttable tokens whose rank among the cuttable ones is in `dropped`.
    pub(super) fn drop_cuttable(&mut self, dropped: &Range<usize>) {
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
