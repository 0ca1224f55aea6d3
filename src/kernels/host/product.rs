//! Matrix products: an operand times panels, cut into tasks that keep their panels in the second cache (or, where there are few rows, those),
//! and what is done with each tile of the result before it leaves the first.

use std::ops::Range;

use rayon::prelude::*;

use super::buffer::Buffer;
use super::format::{BLOCK_GROUPS, Format, PANEL_COLUMNS};
use super::lanes::{LANES, Lanes, Task};
use super::operand::{Operand, Rounding};
use super::panels::Panels;
use super::simd::Simd;
use super::tile::{self, FETCHED_WORDS, Multiply, PRODUCTS, Pair, Products, STREAMED_WORDS};
use crate::kernels::pausing::give_way;

/// What a task keeps in the second cache.
#[derive(Clone, Copy)]
struct Room {
    /// Bytes of panels one task multiplies all its rows with: with the rows of a tile they stay.
    panel_bytes: usize,
    /// Rows of a task whose depth is cut: their unfinished products wait.
    piecewise_rows: usize,
}

/// Of two megabytes.
const ROOM: Room = Room {
    panel_bytes: 768 << 10,
    piecewise_rows: 512,
};

/// Of one, where bf16 is multiplied as it is: outside AMX that is AMD's cores.
const DOT_ROOM: Room = Room {
    panel_bytes: 512 << 10,
    piecewise_rows: 256,
};

/// Blocks along the depth after which a task goes on to the next tile, so that a deep layer's tiles stay in the second cache, too.
const PIECE_BLOCKS: usize = 64;

/// Tasks for each thread that even out what the system or uneven cores take away.
const TASKS_A_THREAD: usize = 4;

/// The same where panels pass by: then the time is that of reading them, which the last task's reader spends alone.
const STREAMED_TASKS_A_THREAD: usize = 16;

/// Tiles of rows from which on bf16 panels are widened to f32 once for all of them, not in the loop of each: widening takes what two
/// tiles then save. Only where a loop has registers for whole panels, with second caches to match. Fewer stay in the second cache, and
/// it is the panels that pass by.
const WIDENED_TILES: usize = 8;

/// Words of a block of a panel.
const BLOCK_WORDS: usize = BLOCK_GROUPS * PANEL_COLUMNS;

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
    let is_many = rows.tiles() >= WIDENED_TILES;
    let widens = multiply == Multiply::Widen && simd >= Simd::Avx512 && is_many;
    // AMX's loop fetches ahead too little to have more than one tile meet panels that pass by.
    let is_streamed = rows.tiles() == 1 || (simd < Simd::Amx && !is_many);
    let is_dot = multiply == Multiply::Bf16 && simd < Simd::Amx;
    let room = if is_dot { DOT_ROOM } else { ROOM };
    let widened = if widens { ratio } else { 1 };
    let tasks = Tasks::of(rows, panels, (room, widened), is_streamed);
    let shared = Shared {
        simd,
        rows,
        panels,
        multiply,
        widens,
        is_streamed,
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
    /// Whether a task widens its panels before it multiplies its rows with them.
    widens: bool,
    /// Whether the tiles of rows stay in the second cache and the panels pass by, each read once: not the other way round.
    is_streamed: bool,
    /// Pieces the depth is cut in.
    pieces: usize,
}

/// A piece of a task's panels, as they are packed or widened to f32.
struct Piece {
    multiply: Multiply,
    /// Where the first panel's piece begins.
    start: *const u32,
    /// Words from one panel to the next.
    stride: usize,
    /// Blocks of each panel.
    blocks: usize,
    /// Words of a tile of rows that come before the piece.
    row_words: usize,
}

impl Shared<'_> {
    fn run(&self, columns: Range<usize>, row_tiles: Range<usize>, sink: &impl Sink) {
        // Scratch memory is taken under a lock: not by the many small products that need none.
        let mut one = [Products::ZERO];
        let mut several =
            (self.pieces > 1).then(|| Buffer::stale(row_tiles.len() * columns.len() * PRODUCTS));
        let waiting = match &mut several {
            Some(several) => Products::of(several.f32s_mut()),
            None => &mut one,
        };
        let places = waiting.len();
        let mut wide = None;
        for index in 0..self.pieces {
            let piece = self.piece(columns.clone(), index, &mut wide);
            let mut step = |row_tile: usize, panel: usize| {
                let (tile, turn) = (row_tile - row_tiles.start, panel - columns.start);
                let products = &mut waiting[(tile * columns.len() + turn) % places];
                let is_last = index + 1 == self.pieces;
                if is_last {
                    sink.fetch(self.rows_of(row_tile), panel);
                }
                let ahead = self.ahead(&piece, &row_tiles, (row_tile, turn));
                self.multiply(row_tile, (&piece, turn), ahead, (index > 0, products));
                if is_last {
                    self.finish(row_tile, panel, products, sink);
                }
            };
            if self.is_streamed {
                for panel in columns.clone() {
                    give_way();
                    row_tiles.clone().for_each(|row_tile| step(row_tile, panel));
                }
            } else {
                for row_tile in row_tiles.clone() {
                    give_way();
                    columns.clone().for_each(|panel| step(row_tile, panel));
                }
            }
        }
    }

    /// What is fetched meanwhile, and how many words of it with each group: a share of the next panels, or of the next tile of rows,
    /// which after the last is the first again, with the next piece.
    fn ahead(
        &self,
        piece: &Piece,
        row_tiles: &Range<usize>,
        (row_tile, turn): (usize, usize),
    ) -> (*const u32, usize) {
        let groups = piece.blocks * BLOCK_GROUPS;
        if self.is_streamed {
            let share = (row_tile - row_tiles.start) * groups * STREAMED_WORDS;
            let next = piece.start.wrapping_add((turn + 1) * piece.stride);
            return (next.wrapping_add(share), STREAMED_WORDS);
        }
        let next = if row_tile + 1 < row_tiles.end {
            row_tile + 1
        } else {
            row_tiles.start
        };
        let share = turn * groups * FETCHED_WORDS;
        let next = self.rows.tile(next).wrapping_add(piece.row_words);
        (next.wrapping_add(share), FETCHED_WORDS)
    }

    /// A piece of the panels `columns`: where they are, or in `wide` once they are widened.
    fn piece(&self, columns: Range<usize>, index: usize, wide: &mut Option<Buffer>) -> Piece {
        let (rows, panels) = (self.rows, self.panels);
        let cut = |index: usize| index * panels.blocks / self.pieces;
        let (from, blocks) = (cut(index), cut(index + 1) - cut(index));
        let packed = Piece {
            multiply: self.multiply,
            start: panels.panel(columns.start)[from * BLOCK_WORDS..].as_ptr(),
            stride: panels.blocks * BLOCK_WORDS,
            blocks,
            row_words: rows.blocks / panels.blocks * from * rows.height * BLOCK_GROUPS,
        };
        if !self.widens {
            return packed;
        }
        let stride = 2 * blocks * BLOCK_WORDS;
        // The last piece's goes first: memory is given back before it is taken again.
        drop(wide.take());
        let wide = wide.insert(Buffer::stale(columns.len() * stride));
        for (panel, to) in columns.zip(wide.f32s_mut().chunks_exact_mut(stride)) {
            let words = &panels.panel(panel)[from * BLOCK_WORDS..][..blocks * BLOCK_WORDS];
            self.simd.run(Widen { words, to });
        }
        Piece {
            multiply: Multiply::F32,
            start: wide.words().as_ptr(),
            stride,
            blocks: 2 * blocks,
            ..packed
        }
    }

    /// Rows of a tile that count.
    fn rows_of(&self, row_tile: usize) -> Range<usize> {
        let first = row_tile * self.rows.height;
        first..self.rows.rows.min(first + self.rows.height)
    }

    /// Multiplies a piece of a row tile by one of a panel, the `turn`-th of the task.
    fn multiply(
        &self,
        row_tile: usize,
        (piece, turn): (&Piece, usize),
        (ahead, fetched): (*const u32, usize),
        (accumulate, products): (bool, &mut Products),
    ) {
        // SAFETY: operand and panels are as large as they say, which was asserted to fit together; a piece lies inside both, and
        // each block begins a line. What is fetched ahead may lie anywhere.
        unsafe {
            let pair = Pair {
                rows: self.rows.tile(row_tile).add(piece.row_words),
                panel: piece.start.add(turn * piece.stride),
                blocks: piece.blocks,
                height: self.rows.height,
                count: self.rows_of(row_tile).len(),
                ahead,
                fetched,
                accumulate,
            };
            piece.multiply.run(self.simd, pair, products);
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
    /// `widened`: how much longer panels become before they are multiplied.
    fn of(
        rows: &Operand,
        panels: &Panels,
        (room, widened): (Room, usize),
        is_streamed: bool,
    ) -> Self {
        let tiles = rows.tiles();
        let threads = rayon::current_num_threads();
        // What has few panels is read in no time, and more tasks cost more than they even out.
        let has_many_panels = panels.panels() >= 2 * STREAMED_TASKS_A_THREAD * threads;
        let each = if tiles == 1 || (is_streamed && has_many_panels) {
            STREAMED_TASKS_A_THREAD
        } else {
            TASKS_A_THREAD
        };
        let wanted = each * threads;
        // What fits well is not cut, and one tile has nothing to come back to.
        let pieces = if tiles > 1 && panels.blocks > PIECE_BLOCKS * 3 / 2 {
            panels.blocks.div_ceil(PIECE_BLOCKS)
        } else {
            1
        };
        let whole = (room.panel_bytes / (widened * panels.panel_bytes() / pieces)).max(1);
        // As many for each thread: of eleven tasks for two, one would wait for the other half a task's time.
        let columns = panels
            .panels()
            .div_ceil(whole)
            .max(wanted)
            .next_multiple_of(threads)
            .min(panels.panels());
        let most_tiles = if pieces > 1 {
            room.piecewise_rows / rows.height
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

/// Pairs of bf16, for 32 columns each, as f32: `[groups, 32]` words to `[numbers, 32]`.
struct Widen<'a> {
    words: &'a [u32],
    to: &'a mut [f32],
}

impl Task for Widen<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let groups = self.words.chunks_exact(PANEL_COLUMNS);
        for (group, to) in groups.zip(self.to.chunks_exact_mut(2 * PANEL_COLUMNS)) {
            for column in (0..PANEL_COLUMNS).step_by(LANES) {
                let (from, to) = (group[column..].as_ptr(), to[column..].as_mut_ptr());
                // SAFETY: a group is two vectors, and two numbers of it four; the instruction set is there by the task's contract.
                unsafe {
                    L::load_first(from).store(to);
                    L::load_second(from).store(to.add(PANEL_COLUMNS));
                }
            }
        }
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

impl Task for Scale<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
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
