//! Attention over packed sequences: blocked, online softmax, grouped heads, causal or not.
//!
//! Keys and values are packed like weights and multiplied by the same tiles as the linear layers. A query meets the keys of its own
//! sequence in blocks that start at that sequence's first key, so its result depends neither on what else is in the batch, nor on
//! how many of its keys were computed earlier, nor on how many threads there are. Blocks no query of a tile sees are skipped.

use std::ops::Range;

use rayon::prelude::*;

use super::buffer::Buffer;
use super::format::{BLOCK_GROUPS, Format, PANEL_COLUMNS};
use super::key_panels::{Columns, KeyPanels, KeyRows};
use super::lanes::{Lanes, Task};
use super::operand::{Operand, Rounding};
use super::simd::Simd;
use super::softmax::{KEY_PANELS, KEYS, SoftmaxRow};
use super::tile::{self, Multiply, Pair, Products};
use crate::kernels::Heads;

/// Queries of one task: as many as keep the products of a block of keys above what its memory traffic costs.
const QUERIES: usize = 128;

/// One sequence: its queries, and its keys in one or more pieces.
pub(crate) struct Attending<'a> {
    /// Rows of the queries and of the output.
    pub(crate) queries: Range<usize>,
    /// In order.
    pub(crate) keys: Vec<KeyRows<'a>>,
}

/// How attention is computed.
#[derive(Clone, Copy)]
pub(crate) struct Mode {
    pub(crate) simd: Simd,
    /// Whether queries, keys, probabilities and values are multiplied in bf16.
    pub(crate) bf16: bool,
    /// Whether later keys are hidden: the last query sees the last key, the one before it one less.
    pub(crate) causal: bool,
}

/// What every task needs to know.
struct Plan {
    mode: Mode,
    heads: Heads,
    rounding: Rounding,
    format: Format,
    /// Blocks of a head's width.
    head_blocks: usize,
    /// Panels of a head's width.
    head_panels: usize,
}

/// Softmax(q k^T * scale) v for every sequence.
///
/// # Shapes
/// Queries `[rows, heads, head_dim]`, keys and values `[rows, kv_heads, head_dim]`, `out [rows, heads * head_dim]`.
pub(crate) fn attention(
    mode: Mode,
    q: Columns<'_>,
    sequences: &[Attending<'_>],
    heads: Heads,
    out: &mut [f32],
) {
    let (rounding, format) = if mode.bf16 {
        (Rounding::Bf16, Format::Bf16)
    } else {
        (Rounding::F32, Format::F32)
    };
    let plan = Plan {
        mode,
        heads,
        rounding,
        format,
        head_blocks: format.blocks(heads.head_dim),
        head_panels: heads.head_dim.div_ceil(PANEL_COLUMNS),
    };
    let pairs: Vec<(usize, usize)> = (0..sequences.len())
        .flat_map(|sequence| (0..heads.kv_heads).map(move |head| (sequence, head)))
        .collect();
    let packed: Vec<KeyPanels> = pairs
        .par_iter()
        .map(|&(sequence, head)| {
            KeyPanels::pack(
                mode.simd,
                format,
                &sequences[sequence].keys,
                (head, heads.head_dim),
            )
        })
        .collect();
    let mut tasks = Vec::new();
    for (pair, &(sequence, _)) in pairs.iter().enumerate() {
        let queries = &sequences[sequence].queries;
        // The last queries see the most keys: first, so that no thread is left with them at the end.
        for first in queries.clone().step_by(QUERIES).rev() {
            tasks.push((pair, first..(first + QUERIES).min(queries.end)));
        }
    }
    let output = Output {
        start: out.as_mut_ptr(),
        len: out.len(),
    };
    tasks
        .into_par_iter()
        .with_max_len(1)
        .for_each(|(pair, queries)| {
            let (sequence, kv_head) = pairs[pair];
            let last = sequences[sequence].queries.end;
            tile::enter(mode.simd);
            Chunk::new(&plan, &packed[pair], (kv_head, queries, last)).run(q, output);
            tile::leave(mode.simd);
        });
}

/// The output, written by several tasks at disjoint places.
#[derive(Clone, Copy)]
struct Output {
    start: *mut f32,
    len: usize,
}

// SAFETY: tasks write disjoint ranges, nobody reads before all have ended.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

/// Queries of the heads that share a key/value head, against all keys of their sequence. Its rows are the queries in order, the
/// heads of each side by side.
struct Chunk<'a> {
    plan: &'a Plan,
    packed: &'a KeyPanels,
    kv_head: usize,
    queries: Range<usize>,
    /// One after the sequence's last query.
    last: usize,
    /// Width of a row of `sums`.
    padded: usize,
    /// `[rows, padded]`: probabilities times values, not yet divided.
    sums: Buffer,
    /// `[rows]`: the largest score so far.
    largest: Vec<f32>,
    /// `[rows]`: the sum of the probabilities.
    total: Vec<f32>,
}

impl<'a> Chunk<'a> {
    fn new(
        plan: &'a Plan,
        packed: &'a KeyPanels,
        (kv_head, queries, last): (usize, Range<usize>, usize),
    ) -> Self {
        let rows = queries.len() * plan.heads.heads / plan.heads.kv_heads;
        let padded = plan.head_panels * PANEL_COLUMNS;
        Chunk {
            plan,
            packed,
            kv_head,
            queries,
            last,
            padded,
            sums: Buffer::zeroed(rows * padded),
            largest: vec![f32::NEG_INFINITY; rows],
            total: vec![0.0; rows],
        }
    }

    fn group(&self) -> usize {
        self.plan.heads.heads / self.plan.heads.kv_heads
    }

    /// Keys a row sees, from the first on.
    fn visible(&self, row: usize) -> usize {
        let query = self.queries.start + row / self.group();
        let hidden = if self.plan.mode.causal {
            self.last - 1 - query
        } else {
            0
        };
        self.packed.count - hidden
    }

    /// The query and the head a row stands for.
    fn place(&self, row: usize) -> (usize, usize) {
        let group = self.group();
        (
            self.queries.start + row / group,
            self.kv_head * group + row % group,
        )
    }

    fn run(mut self, q: Columns<'_>, output: Output) {
        let Plan {
            mode,
            heads,
            rounding,
            ..
        } = *self.plan;
        let rows = self.total.len();
        let mut queries = Operand::new(mode.simd, rounding, (rows, heads.head_dim), 1);
        let writer = queries.writer();
        for row in 0..rows {
            let (query, head) = self.place(row);
            // SAFETY: the operand is this task's own.
            unsafe { writer.write_row(mode.simd, row, q.head(query, head, heads.head_dim)) };
        }
        let mut probabilities = Operand::new(mode.simd, rounding, (queries.height, KEYS), 1);
        let mut scores = [const { Products::ZERO }; KEY_PANELS];
        for first in (0..self.visible(rows - 1)).step_by(KEYS) {
            for tile in 0..queries.tiles() {
                let row = tile * queries.height;
                let rows = row..rows.min(row + queries.height);
                let seen = self.visible(rows.end - 1).saturating_sub(first).min(KEYS);
                if seen > 0 {
                    self.score(&queries, tile, (first, seen, rows.len()), &mut scores);
                    self.soften(first, rows.clone(), &scores, &mut probabilities);
                    self.add_values(&probabilities, (first, seen), (rows, &mut scores[0]));
                }
            }
        }
        for row in 0..rows {
            let (query, head) = self.place(row);
            let at = (query * heads.heads + head) * heads.head_dim;
            assert!(
                at + heads.head_dim <= output.len,
                "attention writes inside its output"
            );
            // SAFETY: in bounds by the assertion; this task alone has this query and this head.
            let out =
                unsafe { std::slice::from_raw_parts_mut(output.start.add(at), heads.head_dim) };
            let inverse = 1.0 / self.total[row];
            for (out, sum) in out.iter_mut().zip(&self.sums.f32s()[row * self.padded..]) {
                *out = sum * inverse;
            }
        }
    }

    /// The products of a tile of queries with the keys `first..first + seen`.
    fn score(
        &self,
        queries: &Operand,
        tile: usize,
        (first, seen, count): (usize, usize, usize),
        scores: &mut [Products; KEY_PANELS],
    ) {
        let multiply = Multiply::of(self.plan.format, self.plan.format);
        let panel_words = self.plan.head_blocks * BLOCK_GROUPS * PANEL_COLUMNS;
        for (panel, scores) in scores
            .iter_mut()
            .enumerate()
            .take(seen.div_ceil(PANEL_COLUMNS))
        {
            let pair = Pair {
                rows: queries.tile(tile),
                panel: self.packed.keys.words()[(first / PANEL_COLUMNS + panel) * panel_words..]
                    .as_ptr(),
                blocks: self.plan.head_blocks,
                height: queries.height,
                count,
                ahead: queries.tile(tile),
                accumulate: false,
            };
            // SAFETY: both sides have `head_blocks` blocks; a panel is there for every key that is seen.
            unsafe { multiply.run(self.plan.mode.simd, pair, scores) };
        }
    }

    /// Turns the scores of a block into unnormalised probabilities under each row's running maximum, and brings what was summed
    /// before under the new maximum.
    fn soften(
        &mut self,
        first: usize,
        rows: Range<usize>,
        scores: &[Products; KEY_PANELS],
        probabilities: &mut Operand,
    ) {
        let (simd, scale, padded) = (self.plan.mode.simd, self.plan.heads.scale(), self.padded);
        let seen_by_last = self.visible(rows.end - 1).saturating_sub(first).min(KEYS);
        for (i, row) in rows.enumerate() {
            simd.run(SoftmaxRow {
                scores,
                row: i,
                seen: self.visible(row).saturating_sub(first).min(KEYS),
                written: seen_by_last,
                scale,
                largest: &mut self.largest[row],
                total: &mut self.total[row],
                sums: &mut self.sums.f32s_mut()[row * padded..(row + 1) * padded],
                bf16: self.plan.mode.bf16,
                to: probabilities.first_tile_row(i),
            });
        }
    }

    /// Adds the probabilities of a block times its values.
    fn add_values(
        &mut self,
        probabilities: &Operand,
        (first, seen): (usize, usize),
        (rows, products): (Range<usize>, &mut Products),
    ) {
        let format = self.plan.format;
        let multiply = Multiply::of(format, format);
        let value_words = format.blocks(self.packed.count) * BLOCK_GROUPS * PANEL_COLUMNS;
        for panel in 0..self.plan.head_panels {
            let at = panel * value_words + first / format.group() * PANEL_COLUMNS;
            let pair = Pair {
                rows: probabilities.tile(0),
                panel: self.packed.values.words()[at..].as_ptr(),
                blocks: format.blocks(seen),
                height: probabilities.height,
                count: rows.len(),
                ahead: probabilities.tile(0),
                accumulate: false,
            };
            // SAFETY: the probabilities have blocks for `KEYS` keys, the values for all that are seen.
            unsafe { multiply.run(self.plan.mode.simd, pair, products) };
            for (row, products) in rows.clone().zip(&products.0) {
                let at = row * self.padded + panel * PANEL_COLUMNS;
                let sums = &mut self.sums.f32s_mut()[at..at + PANEL_COLUMNS];
                self.plan.mode.simd.run(AddRow(sums, products));
            }
        }
    }
}

/// `x += y` on the columns of a panel.
struct AddRow<'a>(&'a mut [f32], &'a [f32; PANEL_COLUMNS]);

impl Task for AddRow<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        for (x, y) in self.0.iter_mut().zip(self.1) {
            *x += y;
        }
    }
}
