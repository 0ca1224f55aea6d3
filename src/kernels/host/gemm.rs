//! Matrix products on the host: f32 rows times the rows of a weight, straight from the file's layout.
//!
//! A weight is `[out, in]` row-major, bf16 or f32, as the checkpoint stores it: nothing is packed or copied, the mapped pages are
//! read in place. Each output is one dot product along `in`, kept in sixteen partial sums that are added at the end: the order
//! depends on `in` alone, so a row's result is the same bits whatever rows and threads are beside it.

use rayon::prelude::*;

use super::lanes::{LANES, Lanes, Simd, Task};

/// Output columns one task computes; their weight rows stay in the L2 cache while all rows of `x` pass.
const BLOCK: usize = 64;
/// Rows of `x` in a register tile.
const TILE_ROWS: usize = 4;
/// Rows of the weight in a register tile.
const TILE_COLUMNS: usize = 4;

/// The elements of a weight, `[out, in]` row-major.
#[derive(Clone, Copy)]
pub(crate) enum WeightView<'a> {
    /// bf16 bits.
    Bf16(&'a [u16]),
    /// Single precision.
    F32(&'a [f32]),
}

impl WeightView<'_> {
    fn len(&self) -> usize {
        match self {
            WeightView::Bf16(data) => data.len(),
            WeightView::F32(data) => data.len(),
        }
    }
}

/// A row of output columns, `[TILE_ROWS][BLOCK]`, as a task leaves it for the epilogue.
type Tile = [[f32; BLOCK]; TILE_ROWS];

/// Where an epilogue may write: rows of `stride` f32 behind one pointer, written by several tasks in disjoint columns.
#[derive(Clone, Copy)]
struct Output {
    start: *mut f32,
    stride: usize,
}

// SAFETY: tasks write disjoint column blocks of the same buffer; nobody reads it before all have ended.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

impl Output {
    /// The columns `column..column + width` of `row`.
    ///
    /// # Safety
    /// In bounds, and no other task touches these columns.
    #[expect(
        clippy::mut_from_ref,
        reason = "the pointer is the shared thing, each slice of it is disjoint"
    )]
    unsafe fn row(&self, row: usize, column: usize, width: usize) -> &mut [f32] {
        // SAFETY: the caller's contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.stride + column), width) }
    }
}

/// The rows a product is taken of: `[rows, depth]`, flattened.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    /// `rows * depth` numbers.
    pub(crate) data: &'a [f32],
    /// Length of a row.
    pub(crate) depth: usize,
}

/// `out[row, column] = finish(x[row] . w[column])`, for all rows of `x` and of each weight.
///
/// `finish` gets the row, the first column, one slice of products for each weight, and the slice of `out` to fill; with two
/// weights of equal shape it can combine them (the gate and the up projection).
///
/// # Shapes
/// `x [rows, depth]`, each weight `[columns, depth]`, `out [rows, columns]`.
pub(crate) fn product<const WEIGHTS: usize>(
    simd: Simd,
    Rows { data: x, depth }: Rows<'_>,
    weights: [WeightView<'_>; WEIGHTS],
    out: &mut [f32],
    finish: impl Fn(usize, usize, [&[f32]; WEIGHTS], &mut [f32]) + Sync,
) {
    let rows = x.len() / depth;
    let columns = weights[0].len() / depth;
    assert_eq!(x.len(), rows * depth, "x is [rows, depth]");
    assert_eq!(out.len(), rows * columns, "out is [rows, columns]");
    for weight in &weights {
        assert_eq!(
            weight.len(),
            columns * depth,
            "weights are [columns, depth]"
        );
    }
    let output = Output {
        start: out.as_mut_ptr(),
        stride: columns,
    };
    (0..columns.div_ceil(BLOCK))
        .into_par_iter()
        .for_each(|block| {
            let column = block * BLOCK;
            let width = BLOCK.min(columns - column);
            for row in (0..rows).step_by(TILE_ROWS) {
                let height = TILE_ROWS.min(rows - row);
                let mut tiles: [Tile; WEIGHTS] = [[[0.0; BLOCK]; TILE_ROWS]; WEIGHTS];
                for (weight, tile) in weights.iter().zip(&mut tiles) {
                    let x = &x[row * depth..(row + height) * depth];
                    let range = column * depth..(column + width) * depth;
                    match weight {
                        WeightView::Bf16(data) => {
                            simd.run(DotBlock {
                                x,
                                w: &data[range],
                                depth,
                                tile,
                            });
                        }
                        WeightView::F32(data) => {
                            simd.run(DotBlock {
                                x,
                                w: &data[range],
                                depth,
                                tile,
                            });
                        }
                    }
                }
                for (r, row) in (row..row + height).enumerate() {
                    let products = tiles.each_ref().map(|tile| &tile[r][..width]);
                    // SAFETY: this task alone writes columns `column..column + width`, all rows are in bounds (asserted above).
                    let slice = unsafe { output.row(row, column, width) };
                    finish(row, column, products, slice);
                }
            }
        });
}

/// An element of a weight.
pub(crate) trait Element: Copy {
    /// Sixteen of them, widened.
    ///
    /// # Safety
    /// Sixteen readable elements and the instruction set of `L`.
    unsafe fn load<L: Lanes>(from: *const Self) -> L;
}

impl Element for u16 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const Self) -> L {
        // SAFETY: the caller's contract.
        unsafe { L::load_bf16(from) }
    }
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const Self) -> L {
        // SAFETY: the caller's contract.
        unsafe { L::load(from) }
    }
}

/// All dot products of up to `TILE_ROWS` rows of `x` with up to `BLOCK` rows of `w`.
struct DotBlock<'a, E> {
    x: &'a [f32],
    w: &'a [E],
    depth: usize,
    tile: &'a mut Tile,
}

impl<E: Element + Default> Task for DotBlock<'_, E> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let rows = self.x.len() / self.depth;
        let columns = self.w.len() / self.depth;
        let mut column = 0;
        while column < columns {
            let wide = columns - column >= TILE_COLUMNS;
            let w = &self.w[column * self.depth..];
            // SAFETY: `x` has `rows` rows, `w` at least as many rows as the tile is wide, each of `depth` elements.
            unsafe {
                match (rows == TILE_ROWS, wide) {
                    (true, true) => dot::<L, E, TILE_ROWS, TILE_COLUMNS>(
                        self.x, w, self.depth, column, self.tile,
                    ),
                    (true, false) => {
                        dot::<L, E, TILE_ROWS, 1>(self.x, w, self.depth, column, self.tile)
                    }
                    (false, true) => {
                        for row in 0..rows {
                            let x = &self.x[row * self.depth..];
                            let tile = &mut self.tile[row..];
                            dot::<L, E, 1, TILE_COLUMNS>(x, w, self.depth, column, tile);
                        }
                    }
                    (false, false) => {
                        for row in 0..rows {
                            let x = &self.x[row * self.depth..];
                            dot::<L, E, 1, 1>(x, w, self.depth, column, &mut self.tile[row..]);
                        }
                    }
                }
            }
            column += if wide { TILE_COLUMNS } else { 1 };
        }
    }
}

/// `ROWS` x `COLUMNS` dot products, each in sixteen partial sums.
///
/// # Safety
/// `x` holds `ROWS` and `w` `COLUMNS` rows of `depth` elements; the instruction set of `L` is there.
#[inline(always)]
unsafe fn dot<L: Lanes, E: Element + Default, const ROWS: usize, const COLUMNS: usize>(
    x: &[f32],
    w: &[E],
    depth: usize,
    column: usize,
    tile: &mut [[f32; BLOCK]],
) {
    // SAFETY: all reads are below `depth` within rows the caller vouches for; the tail is read from padded copies.
    unsafe {
        let mut sums = [[L::zero(); COLUMNS]; ROWS];
        let whole = depth / LANES * LANES;
        let mut at = 0;
        while at < whole {
            let ws: [L; COLUMNS] = std::array::from_fn(|c| E::load(w.as_ptr().add(c * depth + at)));
            for (r, sums) in sums.iter_mut().enumerate() {
                let xs = L::load(x.as_ptr().add(r * depth + at));
                for (sum, w) in sums.iter_mut().zip(ws) {
                    *sum = xs.mul_add(w, *sum);
                }
            }
            at += LANES;
        }
        if whole < depth {
            let ws: [L; COLUMNS] = std::array::from_fn(|c| {
                let mut padded = [E::default(); LANES];
                padded[..depth - whole].copy_from_slice(&w[c * depth + whole..(c + 1) * depth]);
                E::load(padded.as_ptr())
            });
            for (r, sums) in sums.iter_mut().enumerate() {
                let mut padded = [0.0; LANES];
                padded[..depth - whole].copy_from_slice(&x[r * depth + whole..(r + 1) * depth]);
                let xs = L::load(padded.as_ptr());
                for (sum, w) in sums.iter_mut().zip(ws) {
                    *sum = xs.mul_add(w, *sum);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (c, sum) in sums.iter().enumerate() {
                tile[r][column + c] = sum.sum();
            }
        }
    }
}
