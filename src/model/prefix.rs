//! What a forward pass leaves for later ones.
//!
//! The template and instruction before a user's content, and the query before a document, are computed once, their keys and values kept.
//!
//! The language model is causal, so what a token's keys and values are depends on the tokens before it alone. A sequence that begins
//! with tokens whose keys and values are at hand needs only the rest computed, to the same bits.

use std::ops::Range;
use std::sync::Arc;

use super::vision::VisionFeatures;
use crate::kernels::Activations;

/// Keys and values of the first tokens of a sequence.
#[derive(Debug)]
pub struct Prefix {
    /// How many tokens.
    pub tokens: usize,
    /// For each layer `[tokens, 2 * kv_heads * head_dim]`: rotated keys, then values.
    pub(super) layers: Vec<Activations>,
}

impl Prefix {
    /// Memory in use.
    pub fn bytes(&self) -> usize {
        let numbers = |layer: &Activations| layer.rows() * layer.width();
        4 * self.layers.iter().map(numbers).sum::<usize>()
    }
}

/// What comes before the tokens given of a sequence.
#[derive(Debug, Clone, Default)]
pub enum Past {
    /// Nothing: they are its first.
    #[default]
    Nothing,
    /// What an earlier pass computed.
    Kept(Arc<Prefix>),
    /// What this pass computes as the beginning of another sequence, by its place in [`Reuse::beginnings`].
    Beginning(usize),
}

/// The first rows of a sequence without a past, whose keys and values are of use to others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beginning {
    /// Rows of the packed tokens.
    pub rows: Range<u32>,
    /// Whether they are kept for later passes too.
    pub keep: bool,
}

/// What a forward pass takes from earlier ones and leaves for later ones.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reuse<'a> {
    /// Empty, or for each sequence what comes before the tokens given.
    pub past: &'a [Past],
    /// Beginnings of sequences that others of this pass or later ones have too.
    pub beginnings: &'a [Beginning],
    /// Empty, or for each of the batch's media what the vision tower said of it before.
    pub seen: &'a [Option<Arc<VisionFeatures>>],
    /// Which of the media not seen before are to be kept, by their place among all.
    pub keep_media: &'a [usize],
}

/// What a forward pass was asked to keep, in the order it was asked.
#[derive(Debug, Default)]
pub struct Kept {
    /// Keys and values of the beginnings that were to be kept.
    pub prefixes: Vec<Prefix>,
    /// What the vision tower said.
    pub features: Vec<VisionFeatures>,
}
