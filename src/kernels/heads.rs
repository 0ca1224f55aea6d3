//! What attention is told: the heads, which rows attend to which, the rotation, and where queries, keys and values stand.

use std::ops::Range;

use candle_core::Tensor;

use super::{Activations, Norm};

/// How many heads, how wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
}

impl Heads {
    /// `head_dim^-0.5`.
    pub fn scale(self) -> f32 {
        (1.0 / (self.head_dim as f64).sqrt()) as f32
    }
}

/// Which query rows attend to which key rows: sequence `i` has queries `cu_q[i]..cu_q[i + 1]` and keys `cu_k[i]..cu_k[i + 1]`.
///
/// With `causal` the last query sees all keys of its sequence, the one before it one less, and so on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spans {
    /// `[sequences + 1]`.
    pub cu_q: Vec<u32>,
    /// `[sequences + 1]`.
    pub cu_k: Vec<u32>,
    /// Whether later keys are hidden.
    pub causal: bool,
}

impl Spans {
    /// Every sequence attends to itself.
    pub fn of(cu_seqlens: &[u32], causal: bool) -> Self {
        Spans {
            cu_q: cu_seqlens.to_vec(),
            cu_k: cu_seqlens.to_vec(),
            causal,
        }
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.cu_k.len() - 1
    }

    pub(crate) fn queries(&self, sequence: usize) -> Range<usize> {
        self.cu_q[sequence] as usize..self.cu_q[sequence + 1] as usize
    }

    pub(crate) fn keys(&self, sequence: usize) -> Range<usize> {
        self.cu_k[sequence] as usize..self.cu_k[sequence + 1] as usize
    }
}

/// Cosines and sines of a rotary embedding, f32, `[rows, head_dim / 2]` each.
#[derive(Debug, Clone)]
pub struct Rope {
    /// Cosines.
    pub cos: Tensor,
    /// Sines.
    pub sin: Tensor,
}

/// Heads that stand side by side in the columns of activations.
#[derive(Debug, Clone)]
pub struct HeadRange<'a> {
    /// First column and one after the last.
    pub columns: Range<usize>,
    /// Applied to each head before it is rotated.
    pub norm: Option<&'a Norm>,
}

/// Queries, keys and values: whose columns, and from which on.
#[derive(Debug, Clone, Copy)]
pub struct Projections<'a> {
    /// `heads * head_dim` columns of rows `[query_rows, ..]`.
    pub q: (&'a Activations, usize),
    /// `kv_heads * head_dim` columns of rows `[key_rows, ..]`.
    pub k: (&'a Activations, usize),
    /// As `k`.
    pub v: (&'a Activations, usize),
}
