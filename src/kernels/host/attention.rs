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
use super::operand::{MAX_HEIGHT, Operand, Rounding, tile_height};
use super::output::Output;
use super::simd::Simd;
use super::softmax::{KEY_PANELS, KEYS, SoftmaxTile};
use super::tile::{self, FETCHED_WORDS, Multiply, PRODUCTS, Pair, Products};
use crate::kernels::Heads;
use crate::kernels::pausing::give_way;

/// Most queries of one task: every task reads all keys, from the third cache when there are many.
const MAX_QUERIES: usize = 256;

/// Fewest, where there are threads that would have nothing to do.
const MIN_QUERIES: usize = 64;

/// Tasks for each thread: they are not equally long.
const TASKS_A_THREAD: usize = 4;

/// Tiles of queries that share the fetching of the next block of keys.
const FETCHING_TILES: usize = PANEL_COLUMNS / FETCHED_WORDS;

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
    let queries: usize = sequences.iter().map(|of| of.queries.len()).sum();
    let each = queries * heads.kv_heads / (TASKS_A_THREAD * rayon::current_num_threads());
    let each = each
        .next_multiple_of(MIN_QUERIES)
        .clamp(MIN_QUERIES, MAX_QUERIES);
    let mut tasks = Vec::new();
    for (pair, &(sequence, _)) in pairs.iter().enumerate() {
        let queries = &sequences[sequence].queries;
        // The last queries see the most keys: first, so that no thread is left with them at the end.
        for first in queries.clone().step_by(each).rev() {
            tasks.push((pair, first..(first + each).min(queries.end)));
        }
    }
    let output = Output::of(out, heads.heads * heads.head_dim);
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

/// Queries of the heads that share a key/value head, against all keys of their sequence. Its rows are the queries in order, the
/// heads of each side by side.
struct Chunk<'a> {
    plan: &'a Plan,
    packed: &'a KeyPanels,
    kv_head: usize,
    queries: Range<usize>,
    /// One after the sequence's last query.
    last: usize,
    /// Rows of a tile.
    height: usize,
    /// `[tiles, head_panels]` products: probabilities times values, not yet divided.
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
        let height = tile_height(plan.mode.simd, plan.format);
        let products = rows.div_ceil(height) * plan.head_panels;
        Chunk {
            plan,
            packed,
            kv_head,
            queries,
            last,
            height,
            sums: Buffer::stale(products * PRODUCTS),
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
            give_way();
            for tile in 0..queries.tiles() {
                let row = tile * queries.height;
                let rows = row..rows.min(row + queries.height);
                let seen = self.visible(rows.end - 1).saturating_sub(first).min(KEYS);
                if seen > 0 {
                    self.score(&queries, tile, (first, seen, rows.len()), &mut scores);
                    self.soften(tile, (first, seen), &scores, &mut probabilities);
                    self.add_values(&probabilities, (first, seen), (tile, rows.len()));
                }
            }
        }
        for row in 0..rows {
            let (query, head) = self.place(row);
            let columns = head * heads.head_dim..(head + 1) * heads.head_dim;
            // SAFETY: this task alone has this query and this head.
            let out = unsafe { output.columns(query, columns) };
            let inverse = 1.0 / self.total[row];
            let (panels, in_tile) = (out.chunks_mut(PANEL_COLUMNS), row % self.height);
            for (out, sums) in panels.zip(self.tile_sums(row / self.height)) {
                for (out, sum) in out.iter_mut().zip(&sums.0[in_tile]) {
                    *out = sum * inverse;
                }
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
        // This tile's share of the panel that comes a block of keys later.
        let ahead = tile % FETCHING_TILES * self.plan.head_blocks * BLOCK_GROUPS * FETCHED_WORDS;
        for (panel, scores) in scores
            .iter_mut()
            .enumerate()
            .take(seen.div_ceil(PANEL_COLUMNS))
        {
            let at = (first / PANEL_COLUMNS + panel) * panel_words;
            let start = self.packed.keys.words()[at..].as_ptr();
            let pair = Pair {
                rows: queries.tile(tile),
                panel: start,
                blocks: self.plan.head_blocks,
                height: queries.height,
                count,
                ahead: start.wrapping_add(KEYS / PANEL_COLUMNS * panel_words + ahead),
                fetched: FETCHED_WORDS,
                accumulate: false,
            };
            // SAFETY: both sides have `head_blocks` blocks; a panel is there for every key that is seen.
            unsafe { multiply.run(self.plan.mode.simd, pair, scores) };
        }
    }

    /// The sums of a tile, one for each panel of values.
    fn tile_sums(&mut self, tile: usize) -> &mut [Products] {
        let panels = self.plan.head_panels;
        &mut Products::of(self.sums.f32s_mut())[tile * panels..(tile + 1) * panels]
    }

    /// Turns the scores of a block into unnormalised probabilities under each row's running maximum, and brings what was summed
    /// before under the new maximum.
    fn soften(
        &mut self,
        tile: usize,
        (first, written): (usize, usize),
        scores: &[Products; KEY_PANELS],
        probabilities: &mut Operand,
    ) {
        let rows = tile * self.height..self.total.len().min((tile + 1) * self.height);
        let mut seen = [0; MAX_HEIGHT];
        for (seen, row) in seen.iter_mut().zip(rows.clone()) {
            *seen = self.visible(row).saturating_sub(first).min(KEYS);
        }
        let panels = self.plan.head_panels;
        let sums = &mut Products::of(self.sums.f32s_mut())[tile * panels..(tile + 1) * panels];
        self.plan.mode.simd.run(SoftmaxTile {
            scores,
            seen: &seen[..rows.len()],
            written,
            scale: self.plan.heads.scale(),
            largest: &mut self.largest[rows.clone()],
            total: &mut self.total[rows],
            sums,
            bf16: self.plan.mode.bf16,
            to: probabilities.first_tile(),
        });
    }

    /// Adds the probabilities of a block times its values.
    fn add_values(
        &mut self,
        probabilities: &Operand,
        (first, seen): (usize, usize),
        (tile, count): (usize, usize),
    ) {
        let (format, simd, packed) = (self.plan.format, self.plan.mode.simd, self.packed);
        let multiply = Multiply::of(format, format);
        let ahead = tile % FETCHING_TILES * format.blocks(seen) * BLOCK_GROUPS * FETCHED_WORDS;
        let value_words = format.blocks(packed.count) * BLOCK_GROUPS * PANEL_COLUMNS;
        for (panel, sums) in self.tile_sums(tile).iter_mut().enumerate() {
            let at = panel * value_words + first / format.group() * PANEL_COLUMNS;
            let start = packed.values.words()[at..].as_ptr();
            let pair = Pair {
                rows: probabilities.tile(0),
                panel: start,
                blocks: format.blocks(seen),
                height: probabilities.height,
                count,
                ahead: start.wrapping_add(KEYS / format.group() * PANEL_COLUMNS + ahead),
                fetched: FETCHED_WORDS,
                accumulate: first > 0,
            };
            // SAFETY: the probabilities have blocks for `KEYS` keys, the values for all that are seen.
            unsafe { multiply.run(simd, pair, sums) };
        }
    }
}
