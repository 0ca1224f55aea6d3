//! Matrix products: an operand times panels, cut into tasks that keep their panels in the second cache, and what is done with each
//! tile of the result before it leaves the first.

use std::ops::Range;

use rayon::prelude::*;

use super::buffer::Buffer;
use super::format::{BLOCK_GROUPS, Format, PANEL_COLUMNS};
use super::operand::{Operand, Rounding};
use super::panels::Panels;
use super::simd::Simd;
use super::tile::{self, FETCHED_WORDS, Multiply, PRODUCTS, Pair, Products};
use crate::kernels::pausing::give_way;

/// Bytes of panels one task multiplies all its rows with: with the rows of a tile they stay in the second cache.
const TASK_PANEL_BYTES: usize = 768 << 10;

/// Blocks along the depth after which a task goes on to the next tile, so that a deep layer's tiles stay in the second cache, too.
const PIECE_BLOCKS: usize = 64;

/// Rows of a task whose depth is cut: their unfinished products wait in the second cache.
const PIECEWISE_ROWS: usize = 512;

/// Tasks for each thread that even out what the system or uneven cores take away.
const TASKS_A_THREAD: usize = 4;

/// The same where there is one tile of rows: then the time is that of reading the panels, which the last task's reader spends alone.
const STREAMED_TASKS_A_THREAD: usize = 16;

/// A finished tile: the first of its rows and columns, and the products, `[rows][32]`.
pub(crate) struct Tile<'a> {
    /// First row of the operand.
    pub(crate) row: usize,
    /// Which panel.
    pub(crate) panel: usize,
    /// One array for each row that counts; columns beyond the panel's outputs are zero.
    pub(crate) rows: &'a mut [[f32; PANEL_COLUMNS]],
}

/// What becomes of the tiles of a product. Several threads call it, each for its own tiles.
pub(crate) trait Sink: Sync {
    /// Fetches what a tile of these rows and this panel will be written to: it is about to be multiplied.
    fn fetch(&self, rows: Range<usize>, panel: usize);

    /// Takes a finished tile.
    fn take(&self, tile: Tile<'_>);
}

/// Multiplies `rows` by `panels`, and hands each tile of the result to `sink`.
pub(crate) fn product(simd: Simd, rows: &Operand, panels: &Panels, sink: &impl Sink) {
    assert_eq!(
        rows.depth, panels.depth,
        "rows and weights are equally deep"
    );
    let multiply = Multiply::of(rows.rounding.format(), panels.format);
    let ratio = if multiply == Multiply::Widen { 2 } else { 1 };
    assert_eq!(
        rows.blocks,
        panels.blocks * ratio,
        "rows and weights are equally padded"
    );
    let tasks = Tasks::of(rows, panels);
    let shared = Shared {
        simd,
        rows,
        panels,
        multiply,
        pieces: tasks.pieces,
    };
    (0..tasks.columns * tasks.rows)
        .into_par_iter()
        .with_max_len(1)
        .for_each(|task| {
            let (columns, row_tiles) = tasks.ranges(task, rows.tiles(), panels.panels());
            tile::enter(simd);
            shared.run(columns, row_tiles, sink);
            tile::leave(simd);
        });
}

/// What all tasks of a product share.
struct Shared<'a> {
    simd: Simd,
    rows: &'a Operand,
    panels: &'a Panels,
    multiply: Multiply,
    /// Pieces the depth is cut in.
    pieces: usize,
}

impl Shared<'_> {
    fn run(&self, columns: Range<usize>, row_tiles: Range<usize>, sink: &impl Sink) {
        // The rows of the next tile, or those of the first, which the next piece begins with.
        let ahead = |tile: usize| {
            if tile + 1 < row_tiles.end {
                tile + 1
            } else {
                row_tiles.start
            }
        };
        if self.pieces == 1 {
            let mut products = Products::ZERO;
            for row_tile in row_tiles.clone() {
                give_way();
                for panel in columns.clone() {
                    sink.fetch(self.rows_of(row_tile), panel);
                    self.multiply(
                        (row_tile, ahead(row_tile)),
                        (panel, panel - columns.start),
                        0,
                        &mut products,
                    );
                    self.finish(row_tile, panel, &mut products, sink);
                }
            }
            return;
        }
        let mut waiting = Buffer::stale(row_tiles.len() * columns.len() * PRODUCTS);
        let waiting = Products::of(waiting.f32s_mut());
        for piece in 0..self.pieces {
            let mut products = waiting.iter_mut();
            for row_tile in row_tiles.clone() {
                give_way();
                for (panel, products) in columns.clone().zip(products.by_ref()) {
                    let is_last = piece + 1 == self.pieces;
                    if is_last {
                        sink.fetch(self.rows_of(row_tile), panel);
                    }
                    self.multiply(
                        (row_tile, ahead(row_tile)),
                        (panel, panel - columns.start),
                        piece,
                        products,
                    );
                    if is_last {
                        self.finish(row_tile, panel, products, sink);
                    }
                }
            }
        }
    }

    /// Rows of a tile that count.
    fn rows_of(&self, row_tile: usize) -> Range<usize> {
        let first = row_tile * self.rows.height;
        first..self.rows.rows.min(first + self.rows.height)
    }

    /// Multiplies a piece of a row tile by one of a panel, the `turn`-th of the task, while the tile that comes after is fetched.
    fn multiply(
        &self,
        (row_tile, next_tile): (usize, usize),
        (panel, turn): (usize, usize),
        piece: usize,
        products: &mut Products,
    ) {
        let (rows, panels) = (self.rows, self.panels);
        let cut = |piece: usize| piece * panels.blocks / self.pieces;
        let (start, end) = (cut(piece), cut(piece + 1));
        let row_words = rows.blocks / panels.blocks * rows.height * BLOCK_GROUPS;
        let fetched = turn * (end - start) * FETCHED_WORDS;
        // SAFETY: `start` is a block of both sides: operand and panels are as large as they say, which was asserted to fit
        // together, and each block begins a line. What is fetched ahead may lie anywhere.
        unsafe {
            let pair = Pair {
                rows: rows.tile(row_tile).add(start * row_words),
                panel: panels
                    .panel(panel)
                    .add(start * BLOCK_GROUPS * PANEL_COLUMNS),
                blocks: end - start,
                height: rows.height,
                count: self.rows_of(row_tile).len(),
                ahead: rows
                    .tile(next_tile)
                    .wrapping_add(start * row_words + fetched),
                accumulate: piece > 0,
            };
            self.multiply.run(self.simd, pair, products);
        }
    }

    fn finish(&self, row_tile: usize, panel: usize, products: &mut Products, sink: &impl Sink) {
        let rows = self.rows_of(row_tile);
        let products = &mut products.0[..rows.len()];
        if self.panels.format == Format::Int8 {
            self.simd.run(Scale {
                products,
                rows: &self.rows.scales()[rows.clone()],
                columns: self.panels.scales(panel),
                offset: self.rows.rounding == Rounding::OffsetInt8,
            });
        }
        sink.take(Tile {
            row: rows.start,
            panel,
            rows: products,
        });
    }
}

/// How a product is cut: this many ranges of panels times this many of row tiles, each along so many pieces of the depth.
#[derive(Clone, Copy)]
struct Tasks {
    columns: usize,
    rows: usize,
    pieces: usize,
}

impl Tasks {
    fn of(rows: &Operand, panels: &Panels) -> Self {
        let tiles = rows.tiles();
        let each = if tiles == 1 {
            STREAMED_TASKS_A_THREAD
        } else {
            TASKS_A_THREAD
        };
        let wanted = each * rayon::current_num_threads();
        // What fits well is not cut, and one tile has nothing to come back to.
        let pieces = if tiles > 1 && panels.blocks > PIECE_BLOCKS * 3 / 2 {
            panels.blocks.div_ceil(PIECE_BLOCKS)
        } else {
            1
        };
        let whole = (TASK_PANEL_BYTES / (panels.panel_bytes() / pieces)).max(1);
        let columns = panels
            .panels()
            .div_ceil(whole)
            .max(wanted.min(panels.panels()));
        let most_tiles = if pieces > 1 {
            PIECEWISE_ROWS / rows.height
        } else {
            tiles
        };
        let row_ranges = wanted
            .div_ceil(columns)
            .max(tiles.div_ceil(most_tiles.max(1)));
        Tasks {
            columns,
            rows: row_ranges.min(tiles).max(1),
            pieces,
        }
    }

    /// The panels and the row tiles of a task: neighbours in time share panels.
    fn ranges(self, task: usize, tiles: usize, panels: usize) -> (Range<usize>, Range<usize>) {
        let (column, row) = (task / self.rows, task % self.rows);
        let cut = |i: usize, parts: usize, of: usize| i * of / parts..(i + 1) * of / parts;
        (
            cut(column, self.columns, panels),
            cut(row, self.rows, tiles),
        )
    }
}

/// Turns exact integer products into numbers.
struct Scale<'a> {
    products: &'a mut [[f32; PANEL_COLUMNS]],
    rows: &'a [f32],
    columns: (&'a [f32], &'a [i32]),
    /// Whether the rows carried an offset of 128.
    offset: bool,
}

impl super::lanes::Task for Scale<'_> {
    #[inline(always)]
    unsafe fn run<L: super::lanes::Lanes>(self) {
        let (scales, offsets) = self.columns;
        for (products, row_scale) in self.products.iter_mut().zip(self.rows) {
            for ((product, scale), offset) in products.iter_mut().zip(scales).zip(offsets) {
                let offset = if self.offset { *offset } else { 0 };
                let exact = (product.to_bits() as i32).wrapping_sub(offset);
                *product = exact as f32 * (row_scale * scale);
            }
        }
    }
}
