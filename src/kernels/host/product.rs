//! Matrix products: an operand times panels, cut into tasks that keep their panels in the second cache, and what is done with each
//! tile of the result before it leaves the first.

use rayon::prelude::*;

use super::format::{Format, PANEL_COLUMNS};
use super::operand::{Operand, Rounding};
use super::panels::Panels;
use super::simd::Simd;
use super::tile::{self, Multiply, Pair, Products};

/// Bytes of panels one task multiplies all its rows with: half of a common second cache, the rest is for rows.
const TASK_PANEL_BYTES: usize = 512 << 10;

/// Tasks for each thread that even out what the system or uneven cores take away.
const TASKS_A_THREAD: usize = 4;

/// A finished tile: the first of its rows and columns, and the products, `[rows][32]`.
pub(crate) struct Tile<'a> {
    /// First row of the operand.
    pub(crate) row: usize,
    /// Which panel.
    pub(crate) panel: usize,
    /// One array for each row that counts; columns beyond the panel's outputs are zero.
    pub(crate) rows: &'a mut [[f32; PANEL_COLUMNS]],
}

/// `finish(tile)` for every tile of `rows` times `panels`, from several threads.
pub(crate) fn product(
    simd: Simd,
    rows: &Operand,
    panels: &Panels,
    finish: impl Fn(Tile<'_>) + Sync,
) {
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
    let tasks = Tasks::of(rows.tiles(), panels);
    (0..tasks.columns * tasks.rows)
        .into_par_iter()
        .with_max_len(1)
        .for_each(|task| {
            let (columns, row_tiles) = tasks.ranges(task, rows.tiles(), panels.panels());
            let mut products = Products::ZERO;
            tile::enter(simd);
            for row_tile in row_tiles {
                let row = row_tile * rows.height;
                let count = rows.height.min(rows.rows - row);
                for panel in columns.clone() {
                    let pair = Pair {
                        rows: rows.tile(row_tile),
                        panel: panels.panel(panel),
                        blocks: panels.blocks,
                        height: rows.height,
                        count,
                    };
                    // SAFETY: operand and panels are as large as they say, which was asserted to fit together; both begin lines.
                    unsafe { multiply.run(simd, pair, &mut products) };
                    let products = &mut products.0[..count];
                    if panels.format == Format::Int8 {
                        simd.run(Scale {
                            products,
                            rows: &rows.scales()[row..row + count],
                            columns: panels.scales(panel),
                            offset: rows.rounding == Rounding::OffsetInt8,
                        });
                    }
                    finish(Tile {
                        row,
                        panel,
                        rows: products,
                    });
                }
            }
            tile::leave(simd);
        });
}

/// How a product is cut: this many ranges of panels times this many of row tiles.
#[derive(Clone, Copy)]
struct Tasks {
    columns: usize,
    rows: usize,
}

impl Tasks {
    fn of(tiles: usize, panels: &Panels) -> Self {
        let wanted = TASKS_A_THREAD * rayon::current_num_threads();
        let whole = (TASK_PANEL_BYTES / panels.panel_bytes()).max(1);
        let columns = panels
            .panels()
            .div_ceil(whole)
            .max(wanted.min(panels.panels()));
        Tasks {
            columns,
            rows: wanted.div_ceil(columns).min(tiles).max(1),
        }
    }

    /// The panels and the row tiles of a task: neighbours in time share panels.
    fn ranges(
        self,
        task: usize,
        tiles: usize,
        panels: usize,
    ) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
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
