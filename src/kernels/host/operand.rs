//! The left side of a product: rows of activations, rounded to a format and laid out for the tiles.

use std::ops::Range;

use rayon::prelude::*;

use super::buffer::Buffer;
use super::format::{BLOCK_GROUPS, Format, PANEL_COLUMNS, int8_scale};
use super::lanes::fetch;
use super::mixing::Mix;
pub(crate) use super::rounding::Rounding;
use super::rounding::{Largest, RoundRows};
use super::simd::Simd;
use crate::kernels::pausing::give_way;

/// Most rows a tile has in any instruction set.
pub(crate) const MAX_HEIGHT: usize = 32;

/// Rows of a tile: as many as an instruction set keeps sums of in its registers, beside 32 columns (16 in AVX2).
pub(crate) fn tile_height(simd: Simd, format: Format) -> usize {
    match (simd, format) {
        (Simd::Portable, _) => 4,
        (Simd::Avx2, _) => 6,
        (Simd::Amx, Format::Bf16 | Format::Int8) => 32,
        _ => 12,
    }
}

/// Rows of `depth` numbers, in tiles of `height` rows: `[tiles, blocks, height, 16 groups]`.
///
/// What pads the last tile's rows is stale: a row never sees another. What pads the depth is zero.
#[derive(Debug)]
pub(crate) struct Operand {
    pub(crate) rounding: Rounding,
    pub(crate) height: usize,
    pub(crate) rows: usize,
    pub(crate) depth: usize,
    pub(crate) blocks: usize,
    data: Buffer,
    /// `[rows]`, for int8.
    scales: Buffer,
}

impl Operand {
    /// Room for `rows` rows of `depth` numbers, in whole blocks of `multiple`.
    pub(crate) fn new(
        simd: Simd,
        rounding: Rounding,
        (rows, depth): (usize, usize),
        multiple: usize,
    ) -> Self {
        let format = rounding.format();
        let height = tile_height(simd, format);
        let blocks = format.blocks(depth).next_multiple_of(multiple);
        let len = rows.div_ceil(height) * height * blocks * BLOCK_GROUPS;
        let mut data = Buffer::stale(len);
        let padded =
            !depth.is_multiple_of(format.group() * BLOCK_GROUPS) || blocks != format.blocks(depth);
        if padded {
            let whole = depth / (format.group() * BLOCK_GROUPS);
            for tile in data
                .words_mut()
                .chunks_exact_mut(height * blocks * BLOCK_GROUPS)
            {
                tile[whole * height * BLOCK_GROUPS..].fill(0);
            }
        }
        let scales = Buffer::stale(if format == Format::Int8 { rows } else { 0 });
        Operand {
            rounding,
            height,
            rows,
            depth,
            blocks,
            data,
            scales,
        }
    }

    /// Number of tiles.
    pub(crate) fn tiles(&self) -> usize {
        self.rows.div_ceil(self.height)
    }

    /// The first word of a tile.
    pub(crate) fn tile(&self, tile: usize) -> *const u32 {
        self.data.words()[tile * self.blocks * self.height * BLOCK_GROUPS..].as_ptr()
    }

    /// The scale of a row of int8.
    pub(crate) fn scales(&self) -> &[f32] {
        self.scales.f32s()
    }

    /// The first block of the first tile, and how many words it is from a row's block to its next.
    pub(crate) fn first_tile(&mut self) -> (*mut u32, usize) {
        let start = self.data.words_mut().as_mut_ptr();
        (start, self.height * BLOCK_GROUPS)
    }

    /// A handle several threads can write rows through.
    pub(crate) fn writer(&mut self) -> Writer {
        Writer {
            rounding: self.rounding,
            height: self.height,
            rows: self.rows,
            depth: self.depth,
            blocks: self.blocks,
            data: self.data.words_mut().as_mut_ptr(),
            scales: self.scales.f32s_mut().as_mut_ptr(),
        }
    }

    /// Fills all rows: `row(i)` is row `i`, `[depth]`.
    pub(crate) fn copy<'a>(&mut self, simd: Simd, row: impl Fn(usize) -> &'a [f32] + Sync) {
        if self.rounding.format() == Format::Int8 {
            // What is to be mixed is copied first.
            return self.fill(simd, |i, out| out.copy_from_slice(row(i)));
        }
        let (rows, height) = (self.rows, self.height);
        let writer = self.writer();
        (0..rows.div_ceil(height)).into_par_iter().for_each(|tile| {
            give_way();
            for i in tile * height..rows.min((tile + 1) * height) {
                // SAFETY: this task alone has the rows of this tile.
                unsafe { writer.write_row(simd, i, row(i)) };
            }
        });
    }

    /// Fills all rows: `row(i, out)` writes row `i` into `out`, `[depth]`. For int8 the rows are mixed, as weights are.
    pub(crate) fn fill(&mut self, simd: Simd, row: impl Fn(usize, &mut [f32]) + Sync) {
        let (rows, depth, height) = (self.rows, self.depth, self.height);
        let writer = self.writer();
        (0..rows.div_ceil(height)).into_par_iter().for_each_init(
            || Buffer::stale(depth),
            |scratch, tile| {
                give_way();
                for i in tile * height..rows.min((tile + 1) * height) {
                    row(i, scratch.f32s_mut());
                    if writer.rounding.format() == Format::Int8 {
                        simd.run(Mix(scratch.f32s_mut()));
                    }
                    // SAFETY: this task alone has the rows of this tile.
                    unsafe { writer.write_row(simd, i, scratch.f32s()) };
                }
            },
        );
    }
}

/// Where rows of an [`Operand`] are written.
#[derive(Clone, Copy)]
pub(crate) struct Writer {
    rounding: Rounding,
    height: usize,
    rows: usize,
    depth: usize,
    blocks: usize,
    data: *mut u32,
    scales: *mut f32,
}

// SAFETY: whoever writes through it promises to write where nobody else does.
unsafe impl Send for Writer {}
// SAFETY: as above.
unsafe impl Sync for Writer {}

impl Writer {
    /// Writes a whole row. For int8 this sets the row's scale.
    ///
    /// # Safety
    /// The operand lives, and nobody else touches this row meanwhile.
    pub(crate) unsafe fn write_row(&self, simd: Simd, row: usize, values: &[f32]) {
        assert_eq!(values.len(), self.depth, "a whole row");
        let mut inverse_scale = 1.0;
        if self.rounding.format() == Format::Int8 {
            let mut largest = 0.0;
            simd.run(Largest {
                values,
                largest: &mut largest,
            });
            let scale = int8_scale(largest);
            inverse_scale = 1.0 / scale;
            assert!(row < self.rows, "inside the operand");
            // SAFETY: in bounds by the assertion; the caller's contract.
            unsafe { *self.scales.add(row) = scale };
        }
        let rows = std::slice::from_ref(&values);
        // SAFETY: the caller's contract.
        unsafe { self.round(simd, (row, 0), rows, inverse_scale) };
    }

    /// Fetches what [`Writer::write_tile`] will write: columns of rows of one tile.
    pub(crate) fn fetch(&self, rows: Range<usize>, columns: Range<usize>) {
        let block_numbers = self.rounding.format().group() * BLOCK_GROUPS;
        let (tile, first_row) = (rows.start / self.height, rows.start % self.height);
        for block in columns.start / block_numbers..columns.end.div_ceil(block_numbers) {
            let row = (tile * self.blocks + block) * self.height + first_row;
            let start = self.data.wrapping_add(row * BLOCK_GROUPS);
            fetch(start.cast(), rows.len() * BLOCK_GROUPS * size_of::<u32>());
        }
    }

    /// Writes the columns `column..column + width` of rows, the first `width` of each array; not in int8. They are rows of one
    /// tile, and `column` is a multiple of sixteen.
    ///
    /// # Safety
    /// The operand lives, and nobody else touches these columns meanwhile.
    pub(crate) unsafe fn write_tile(
        &self,
        simd: Simd,
        (row, column): (usize, usize),
        rows: &[[f32; PANEL_COLUMNS]],
        width: usize,
    ) {
        let mut slices = [&[][..]; MAX_HEIGHT];
        for (slice, row) in slices.iter_mut().zip(rows) {
            *slice = &row[..width];
        }
        // SAFETY: the caller's contract.
        unsafe { self.round(simd, (row, column), &slices[..rows.len()], 1.0) };
    }

    /// # Safety
    /// As [`Writer::write_tile`].
    unsafe fn round(
        &self,
        simd: Simd,
        (row, column): (usize, usize),
        rows: &[&[f32]],
        inverse_scale: f32,
    ) {
        let block_numbers = self.rounding.format().group() * BLOCK_GROUPS;
        let (tile, first_row) = (row / self.height, row % self.height);
        assert!(
            row + rows.len() <= self.rows && first_row + rows.len() <= self.height,
            "rows of one tile"
        );
        assert!(
            rows.iter().all(|row| column + row.len() <= self.depth),
            "inside the operand"
        );
        let block = tile * self.blocks + column / block_numbers;
        simd.run(RoundRows {
            rounding: self.rounding,
            rows,
            inverse_scale,
            // SAFETY: the block exists because the column is inside the operand.
            start: unsafe {
                self.data
                    .add((block * self.height + first_row) * BLOCK_GROUPS)
            },
            first: column % block_numbers,
            block_words: self.height * BLOCK_GROUPS,
        });
    }
}
