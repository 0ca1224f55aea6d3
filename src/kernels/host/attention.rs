//! Attention over packed sequences on the host: blocked, online softmax, grouped heads, causal or not.
//!
//! A query row meets the keys of its own sequence in blocks that start at that sequence's first key, so its result does not
//! depend on what else is in the batch or on how many threads there are.

use rayon::prelude::*;

use super::lanes::{LANES, Lanes, Simd, Task};
use super::rows::exp;
use crate::kernels::{Heads, Spans};

/// Keys a block of scores covers.
const KEYS: usize = 64;
/// Queries that share the keys of a block.
const QUERIES: usize = 4;
/// Queries one parallel task takes.
const QUERIES_A_TASK: usize = 32;

/// Softmax(q k^T * scale) v for every sequence of `spans`.
///
/// # Shapes
/// `q [query_rows, heads, head_dim]`, `k` and `v` `[rows, kv_heads, head_dim]`, `out` as `q`.
pub(crate) fn attention(
    simd: Simd,
    (q, k, v): (&[f32], &[f32], &[f32]),
    spans: &Spans,
    heads: Heads,
    out: &mut [f32],
) {
    let padded = heads.head_dim.div_ceil(LANES) * LANES;
    let keys = by_head(k, heads.kv_heads, heads.head_dim, padded);
    let values = by_head(v, heads.kv_heads, heads.head_dim, padded);
    let rows = k.len() / (heads.kv_heads * heads.head_dim);
    let mut tasks = Vec::new();
    for sequence in 0..spans.sequences() {
        for head in 0..heads.heads {
            for first in spans.queries(sequence).step_by(QUERIES_A_TASK) {
                tasks.push((sequence, head, first));
            }
        }
    }
    let output = Rows {
        start: out.as_mut_ptr(),
        len: out.len(),
    };
    tasks.into_par_iter().for_each(|(sequence, head, first)| {
        let queries = first..(first + QUERIES_A_TASK).min(spans.queries(sequence).end);
        let span = spans.keys(sequence);
        let kv_head = head / (heads.heads / heads.kv_heads);
        let start = (kv_head * rows + span.start) * padded;
        let end = (kv_head * rows + span.end) * padded;
        // Causal: the last query sees the last key, the one before it one key less.
        let hidden_keys = |query: usize| {
            if spans.causal {
                spans.queries(sequence).end - 1 - query
            } else {
                0
            }
        };
        for tile in queries.clone().step_by(QUERIES) {
            let tile = tile..(tile + QUERIES).min(queries.end);
            let mut padded_queries = vec![0.0; QUERIES * padded];
            let mut visible = [0; QUERIES];
            for (r, query) in tile.clone().enumerate() {
                let at = (query * heads.heads + head) * heads.head_dim;
                padded_queries[r * padded..r * padded + heads.head_dim]
                    .copy_from_slice(&q[at..at + heads.head_dim]);
                visible[r] = span.len() - hidden_keys(query);
            }
            let mut result = vec![0.0; QUERIES * padded];
            simd.run(QueryTile {
                queries: &padded_queries,
                keys: &keys[start..end],
                values: &values[start..end],
                padded,
                visible: &visible[..tile.len()],
                scale: heads.scale(),
                result: &mut result,
            });
            for (r, query) in tile.enumerate() {
                let at = (query * heads.heads + head) * heads.head_dim;
                // SAFETY: this task alone has this query and this head.
                unsafe { output.write(at, &result[r * padded..r * padded + heads.head_dim]) };
            }
        }
    });
}

/// The output, written by several tasks at disjoint places.
struct Rows {
    start: *mut f32,
    len: usize,
}

// SAFETY: tasks write disjoint ranges, nobody reads before all have ended.
unsafe impl Sync for Rows {}

impl Rows {
    /// # Safety
    /// No other task writes `at..at + values.len()`.
    unsafe fn write(&self, at: usize, values: &[f32]) {
        assert!(
            at + values.len() <= self.len,
            "attention writes inside its output"
        );
        // SAFETY: in bounds by the assertion, disjoint by the caller's contract.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), self.start.add(at), values.len()) }
    }
}

/// `[rows, heads, head_dim]` to `[heads, rows, padded]`, the padding zero.
fn by_head(x: &[f32], heads: usize, head_dim: usize, padded: usize) -> Vec<f32> {
    let rows = x.len() / (heads * head_dim);
    let mut out = vec![0.0; heads * rows * padded];
    if out.is_empty() {
        return out;
    }
    out.par_chunks_mut(rows * padded)
        .enumerate()
        .for_each(|(head, out)| {
            for (row, out) in out.chunks_exact_mut(padded).enumerate() {
                let at = (row * heads + head) * head_dim;
                out[..head_dim].copy_from_slice(&x[at..at + head_dim]);
            }
        });
    out
}

/// Up to [`QUERIES`] queries of one head against all keys of their sequence.
struct QueryTile<'a> {
    /// `[QUERIES, padded]`.
    queries: &'a [f32],
    /// `[keys, padded]`.
    keys: &'a [f32],
    /// `[keys, padded]`.
    values: &'a [f32],
    padded: usize,
    /// Keys each query sees, from the first on; at least one.
    visible: &'a [usize],
    scale: f32,
    /// `[QUERIES, padded]`.
    result: &'a mut [f32],
}

impl Task for QueryTile<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let mut maximum = [f32::NEG_INFINITY; QUERIES];
        let mut total = [0.0_f32; QUERIES];
        let limit = self.visible.iter().copied().max().unwrap_or(0);
        let mut scores = [[0.0_f32; KEYS]; QUERIES];
        for first in (0..limit).step_by(KEYS) {
            let block = KEYS.min(self.keys.len() / self.padded - first);
            let keys = &self.keys[first * self.padded..(first + block) * self.padded];
            // SAFETY: `keys` has `block` rows of `padded`, a multiple of sixteen.
            unsafe { score_block::<L>(self.queries, keys, self.padded, &mut scores) };
            for (r, &visible) in self.visible.iter().enumerate() {
                let seen = visible.saturating_sub(first).min(block);
                let rescale = soften(&mut scores[r], seen, self.scale, &mut maximum[r]);
                total[r] = total[r] * rescale + scores[r].iter().sum::<f32>();
                for value in &mut self.result[r * self.padded..(r + 1) * self.padded] {
                    *value *= rescale;
                }
            }
            let values = &self.values[first * self.padded..(first + block) * self.padded];
            // SAFETY: as above; rows of `scores` beyond the visible queries are stale but land in unused result rows.
            unsafe { add_values::<L>(&scores, values, self.padded, self.result) };
        }
        for (r, total) in total.iter().enumerate().take(self.visible.len()) {
            for value in &mut self.result[r * self.padded..(r + 1) * self.padded] {
                *value /= total;
            }
        }
    }
}

/// Turns a row of products into unnormalised probabilities under the running maximum; those beyond `seen` become 0. Returns the
/// factor that brings earlier sums under the new maximum.
#[inline(always)]
fn soften(scores: &mut [f32; KEYS], seen: usize, scale: f32, maximum: &mut f32) -> f32 {
    let mut highest = *maximum;
    for score in &mut scores[..seen] {
        *score *= scale;
        highest = highest.max(*score);
    }
    for score in &mut scores[..seen] {
        *score = exp(*score - highest);
    }
    for score in &mut scores[seen..] {
        *score = 0.0;
    }
    // The first block has no earlier sums: any finite factor does.
    let rescale = if maximum.is_finite() {
        exp(*maximum - highest)
    } else {
        0.0
    };
    *maximum = highest;
    if highest.is_finite() { rescale } else { 1.0 }
}

/// `scores[r][j] = queries[r] . keys[j]`.
///
/// # Safety
/// `keys` is `[block, padded]`, `queries [QUERIES, padded]`, `padded` a multiple of sixteen; the instruction set of `L`.
#[inline(always)]
unsafe fn score_block<L: Lanes>(
    queries: &[f32],
    keys: &[f32],
    padded: usize,
    scores: &mut [[f32; KEYS]; QUERIES],
) {
    let block = keys.len() / padded;
    let mut key = 0;
    while key < block {
        let wide = if block - key >= 4 { 4 } else { 1 };
        // SAFETY: rows `key..key + wide` exist.
        unsafe {
            if wide == 4 {
                score_tile::<L, 4>(queries, &keys[key * padded..], padded, key, scores);
            } else {
                score_tile::<L, 1>(queries, &keys[key * padded..], padded, key, scores);
            }
        }
        key += wide;
    }
}

/// # Safety
/// As [`score_block`]; `keys` has at least `COLUMNS` rows.
#[inline(always)]
unsafe fn score_tile<L: Lanes, const COLUMNS: usize>(
    queries: &[f32],
    keys: &[f32],
    padded: usize,
    key: usize,
    scores: &mut [[f32; KEYS]; QUERIES],
) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut sums = [[L::zero(); COLUMNS]; QUERIES];
        let mut at = 0;
        while at < padded {
            let ks: [L; COLUMNS] =
                std::array::from_fn(|c| L::load(keys.as_ptr().add(c * padded + at)));
            for (r, sums) in sums.iter_mut().enumerate() {
                let q = L::load(queries.as_ptr().add(r * padded + at));
                for (sum, k) in sums.iter_mut().zip(ks) {
                    *sum = q.mul_add(k, *sum);
                }
            }
            at += LANES;
        }
        for (row, sums) in scores.iter_mut().zip(&sums) {
            for (c, sum) in sums.iter().enumerate() {
                row[key + c] = sum.sum();
            }
        }
    }
}

/// `result[r] += sum over j of scores[r][j] * values[j]`.
///
/// # Safety
/// `values` is `[block, padded]`, `result [QUERIES, padded]`, `padded` a multiple of sixteen; the instruction set of `L`.
#[inline(always)]
unsafe fn add_values<L: Lanes>(
    scores: &[[f32; KEYS]; QUERIES],
    values: &[f32],
    padded: usize,
    result: &mut [f32],
) {
    let block = values.len() / padded;
    let mut at = 0;
    while at < padded {
        // SAFETY: the caller's contract.
        unsafe {
            let mut sums: [L; QUERIES] =
                std::array::from_fn(|r| L::load(result.as_ptr().add(r * padded + at)));
            for j in 0..block {
                let v = L::load(values.as_ptr().add(j * padded + at));
                for (sum, scores) in sums.iter_mut().zip(scores) {
                    *sum = L::splat(scores[j]).mul_add(v, *sum);
                }
            }
            for (r, sum) in sums.into_iter().enumerate() {
                sum.store(result.as_mut_ptr().add(r * padded + at));
            }
        }
        at += LANES;
    }
}
