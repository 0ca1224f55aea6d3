//! How rows of f32 become the numbers of an operand.

use super::format::{BLOCK_GROUPS, Format, bf16_bits, int8, largest_magnitude, round_to_bf16};
use super::lanes::{LANES, Lanes, Task};

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

/// The largest magnitude of some values.
pub(crate) struct Largest<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) largest: &'a mut f32,
}

impl Task for Largest<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        *self.largest = largest_magnitude(self.values);
    }
}

/// Rows of one tile, rounded and written.
pub(crate) struct RoundRows<'a> {
    pub(crate) rounding: Rounding,
    pub(crate) rows: &'a [&'a [f32]],
    pub(crate) inverse_scale: f32,
    /// Where the first row has the block of its first value; the next row follows.
    pub(crate) start: *mut u32,
    /// Which number of that block the first value is.
    pub(crate) first: usize,
    /// Words from a block of a row to its next.
    pub(crate) block_words: usize,
}

impl Task for RoundRows<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let block_numbers = self.rounding.format().group() * BLOCK_GROUPS;
        for (i, row) in self.rows.iter().enumerate() {
            let (mut row, mut first) = (*row, self.first);
            // SAFETY: the rows are in one tile and their columns in the operand, as the writer asserted.
            let mut block = unsafe { self.start.add(i * BLOCK_GROUPS) };
            while !row.is_empty() {
                let (now, rest) = row.split_at(row.len().min(block_numbers - first));
                // SAFETY: a block of a row has room for `block_numbers`.
                unsafe { round_block(self.rounding, now, self.inverse_scale, (block, first)) };
                (row, first) = (rest, 0);
                block = block.wrapping_add(self.block_words);
            }
        }
    }
}

/// Rounds with `$round` and writes, sixteen at a time, so that it becomes vector code.
macro_rules! write_rounded {
    ($values:expr, $to:expr, $number:ty, $value:ident => $round:expr) => {{
        let to = $to.0.cast::<$number>().add($to.1);
        let chunks = $values.chunks_exact(LANES);
        let rest = chunks.remainder();
        let whole = $values.len() - rest.len();
        for (i, chunk) in chunks.enumerate() {
            let mut out = [<$number>::default(); LANES];
            for (out, &$value) in out.iter_mut().zip(chunk) {
                *out = $round;
            }
            to.add(i * LANES)
                .cast::<[$number; LANES]>()
                .write_unaligned(out);
        }
        for (i, &$value) in rest.iter().enumerate() {
            *to.add(whole + i) = $round;
        }
    }};
}

/// Writes values into a block from one of its numbers on.
///
/// # Safety
/// The block has room for them.
#[inline(always)]
unsafe fn round_block(
    rounding: Rounding,
    values: &[f32],
    inverse_scale: f32,
    to: (*mut u32, usize),
) {
    // SAFETY: the caller's contract.
    unsafe {
        match rounding {
            Rounding::F32 => write_rounded!(values, to, f32, value => value),
            Rounding::WidenedBf16 => write_rounded!(values, to, f32, value => round_to_bf16(value)),
            Rounding::Bf16 => write_rounded!(values, to, u16, value => bf16_bits(value)),
            Rounding::Int8 => write_rounded!(values, to, i8, value => int8(value, inverse_scale)),
            Rounding::OffsetInt8 => {
                write_rounded!(values, to, u8, value => int8(value, inverse_scale) as u8 ^ 0x80);
            }
        }
    }
}
