//! The left side of a product: rows of activations, rounded to a format and laid out for the tiles.

use rayon::prelude::*;

use super::buffer::Buffer;
use super::format::{BLOCK_GROUPS, Format, bf16_bits, int8, int8_scale, round_to_bf16};
use super::lanes::{Lanes, Task};
use super::simd::Simd;

/// Most rows a tile has in any instruction set.
pub(crate) const MAX_HEIGHT: usize = 32;

/// How numbers are put into an operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rounding {
    /// As f32.
    F32,
    /// As f32 that are representable in bf16: for instruction sets that multiply f32 only.
    WidenedBf16,
    /// As bf16.
    Bf16,
    /// As int8 with a scale for each row.
    Int8,
    /// As int8 plus 128, unsigned: what `vpdpbusd` takes on its left.
    OffsetInt8,
}

impl Rounding {
    /// What lies in memory.
    pub(crate) fn format(self) -> Format {
        match self {
            Rounding::F32 | Rounding::WidenedBf16 => Format::F32,
            Rounding::Bf16 => Format::Bf16,
            Rounding::Int8 | Rounding::OffsetInt8 => Format::Int8,
        }
    }
}

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
        let padded = depth % (format.group() * BLOCK_GROUPS) != 0 || blocks != format.blocks(depth);
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

    /// The first block of a row of the first tile, and how many words it is to the row's next block.
    pub(crate) fn first_tile_row(&mut self, row: usize) -> (*mut u32, usize) {
        assert!(row < self.height, "inside the first tile");
        let start = self.data.words_mut()[row * BLOCK_GROUPS..].as_mut_ptr();
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

    /// Fills all rows: `row(i, out)` writes row `i` into `out`, `[depth]`.
    pub(crate) fn fill(&mut self, simd: Simd, row: impl Fn(usize, &mut [f32]) + Sync) {
        let (rows, depth, height) = (self.rows, self.depth, self.height);
        let writer = self.writer();
        (0..rows.div_ceil(height)).into_par_iter().for_each_init(
            || Buffer::stale(depth),
            |scratch, tile| {
                for i in tile * height..rows.min((tile + 1) * height) {
                    row(i, scratch.f32s_mut());
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
        if self.rounding.format() != Format::Int8 {
            // SAFETY: the caller's contract.
            return unsafe { self.write(simd, row, 0, values) };
        }
        let mut largest = 0.0;
        simd.run(Largest {
            values,
            largest: &mut largest,
        });
        let scale = int8_scale(largest);
        // SAFETY: the caller's contract; `row` is asserted to be one in `write_scaled`.
        unsafe {
            self.write_scaled(simd, (row, 0), values, 1.0 / scale);
            *self.scales.add(row) = scale;
        }
    }

    /// Writes the columns `column..column + values.len()` of a row, not in int8. `column` begins a group of eight numbers, and so
    /// does what follows, or nothing does.
    ///
    /// # Safety
    /// The operand lives, and nobody else touches these columns meanwhile.
    pub(crate) unsafe fn write(&self, simd: Simd, row: usize, column: usize, values: &[f32]) {
        // SAFETY: the caller's contract.
        unsafe { self.write_scaled(simd, (row, column), values, 1.0) }
    }

    /// # Safety
    /// As [`Writer::write`].
    unsafe fn write_scaled(
        &self,
        simd: Simd,
        (row, column): (usize, usize),
        values: &[f32],
        inverse_scale: f32,
    ) {
        let format = self.rounding.format();
        let width = format.group() * BLOCK_GROUPS;
        assert!(
            row < self.rows && column + values.len() <= self.depth,
            "inside the operand"
        );
        let (tile, row) = (row / self.height, row % self.height);
        let (mut column, mut values) = (column, values);
        while !values.is_empty() {
            let block = column / width;
            let (now, rest) = values.split_at(values.len().min(width - column % width));
            let words = ((tile * self.blocks + block) * self.height + row) * BLOCK_GROUPS;
            // SAFETY: `block < blocks` because the column is inside; the 64 bytes of this row and block hold `width` numbers.
            let start = unsafe { self.data.add(words) };
            simd.run(Round {
                rounding: self.rounding,
                values: now,
                inverse_scale,
                to: start,
                first: column % width,
            });
            (column, values) = (column + now.len(), rest);
        }
    }
}

/// The largest magnitude of some values.
struct Largest<'a> {
    values: &'a [f32],
    largest: &'a mut f32,
}

impl Task for Largest<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // Sixteen at a time, so that the maximum becomes vector code: its order does not matter.
        let mut lanes = [0.0_f32; 16];
        let chunks = self.values.chunks_exact(16);
        let rest = chunks.remainder();
        for chunk in chunks {
            for (lane, value) in lanes.iter_mut().zip(chunk) {
                *lane = lane.max(value.abs());
            }
        }
        let all = lanes
            .iter()
            .chain(rest)
            .fold(0.0_f32, |largest, value| largest.max(value.abs()));
        *self.largest = all;
    }
}

/// Up to a block of one row, rounded and written.
struct Round<'a> {
    rounding: Rounding,
    values: &'a [f32],
    inverse_scale: f32,
    to: *mut u32,
    /// Which number of the block the first value is.
    first: usize,
}

impl Task for Round<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let len = self.values.len();
        // SAFETY: `to` begins a block, which holds `first + len` numbers of the format.
        unsafe {
            match self.rounding {
                Rounding::F32 => {
                    let to = self.to.cast::<f32>().add(self.first);
                    std::ptr::copy_nonoverlapping(self.values.as_ptr(), to, len);
                }
                Rounding::WidenedBf16 => {
                    let to =
                        std::slice::from_raw_parts_mut(self.to.cast::<f32>().add(self.first), len);
                    for (to, &value) in to.iter_mut().zip(self.values) {
                        *to = round_to_bf16(value);
                    }
                }
                Rounding::Bf16 => {
                    let to =
                        std::slice::from_raw_parts_mut(self.to.cast::<u16>().add(self.first), len);
                    for (to, &value) in to.iter_mut().zip(self.values) {
                        *to = bf16_bits(value).to_le();
                    }
                }
                Rounding::Int8 => {
                    let to =
                        std::slice::from_raw_parts_mut(self.to.cast::<i8>().add(self.first), len);
                    for (to, &value) in to.iter_mut().zip(self.values) {
                        *to = int8(value, self.inverse_scale);
                    }
                }
                Rounding::OffsetInt8 => {
                    let to =
                        std::slice::from_raw_parts_mut(self.to.cast::<u8>().add(self.first), len);
                    for (to, &value) in to.iter_mut().zip(self.values) {
                        *to = int8(value, self.inverse_scale) as u8 ^ 0x80;
                    }
                }
            }
        }
    }
}
