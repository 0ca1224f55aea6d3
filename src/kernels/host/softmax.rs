//! The softmax of attention, online: a block of scores at a time, under the largest score so far.

use super::activation::exp;
use super::format::{BLOCK_GROUPS, PANEL_COLUMNS};
use super::lanes::{LANES, Lanes, Task, exp_of_negative};
use super::tile::Products;

/// Keys a block of scores covers.
pub(crate) const KEYS: usize = 256;
/// Panels of a block of scores.
pub(crate) const KEY_PANELS: usize = KEYS / PANEL_COLUMNS;

/// Probabilities are written in whole groups of values, of which bf16 has the larger blocks.
const WRITTEN: usize = 2 * BLOCK_GROUPS;
const _: () = assert!(
    KEYS.is_multiple_of(WRITTEN),
    "a block of keys is whole blocks of values"
);

/// One row of a block of scores, turned into probabilities that are not yet divided by their sum.
pub(crate) struct SoftmaxRow<'a> {
    pub(crate) scores: &'a [Products; KEY_PANELS],
    pub(crate) row: usize,
    /// Keys of the block this row sees; at least one in the first block of a sequence.
    pub(crate) seen: usize,
    /// Keys any row of the tile sees: so many probabilities are written, those of keys this row does not see being zero.
    pub(crate) written: usize,
    pub(crate) scale: f32,
    /// The largest score so far.
    pub(crate) largest: &'a mut f32,
    /// The sum of the probabilities so far.
    pub(crate) total: &'a mut f32,
    /// Probabilities times values so far; brought, like the total, under the new largest score.
    pub(crate) sums: &'a mut [f32],
    pub(crate) bf16: bool,
    /// Where the probabilities go, and the words from one block of a row to its next.
    pub(crate) to: (*mut u32, usize),
}

impl SoftmaxRow<'_> {
    /// Sixteen scores.
    ///
    /// # Safety
    /// The instruction set of `L`.
    #[inline(always)]
    unsafe fn load<L: Lanes>(&self, vector: usize) -> L {
        let panel = &self.scores[vector * LANES / PANEL_COLUMNS].0[self.row];
        let lanes = &panel[vector * LANES % PANEL_COLUMNS..][..LANES];
        // SAFETY: sixteen numbers.
        unsafe { L::load(lanes.as_ptr()) }
    }

    /// Writes sixteen probabilities; in bf16 every other call writes two sixteens.
    ///
    /// # Safety
    /// The instruction set of `L`, and room for [`KEYS`] probabilities.
    #[inline(always)]
    unsafe fn write<L: Lanes>(&self, vector: usize, [previous, probabilities]: [L; 2]) {
        let (start, step) = self.to;
        // SAFETY: the caller's contract.
        unsafe {
            if !self.bf16 {
                probabilities.store(start.add(vector * step).cast());
            } else if vector % 2 == 1 {
                previous.store_bf16(probabilities, start.add(vector / 2 * step).cast());
            }
        }
    }
}

impl Task for SoftmaxRow<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let (whole, rest) = (self.seen / LANES, self.seen % LANES);
        // SAFETY: the instruction set, by the task's contract; `written` is at most `KEYS`.
        unsafe {
            // The last lanes, with minus infinity where the row sees nothing.
            let mut tail = [f32::NEG_INFINITY; LANES];
            if rest > 0 {
                let mut scores = [0.0; LANES];
                self.load::<L>(whole).store(scores.as_mut_ptr());
                tail[..rest].copy_from_slice(&scores[..rest]);
            }
            let mut largest = L::load(tail.as_ptr());
            for vector in 0..whole {
                largest = largest.max(self.load(vector));
            }
            let largest = self.largest.max(largest.largest() * self.scale);
            let (scale, minus_largest) = (L::splat(self.scale), L::splat(-largest));
            let mut total = L::zero();
            let mut previous = L::zero();
            for vector in 0..whole {
                let scores: L = self.load(vector);
                let probabilities = exp_of_negative(scores.mul_add(scale, minus_largest));
                total = total.add(probabilities);
                self.write(vector, [previous, probabilities]);
                previous = probabilities;
            }
            for vector in whole..self.written.next_multiple_of(WRITTEN) / LANES {
                let mut probabilities = L::zero();
                if vector == whole && rest > 0 {
                    let scores = L::load(tail.as_ptr());
                    exp_of_negative(scores.mul_add(scale, minus_largest)).store(tail.as_mut_ptr());
                    tail[rest..].fill(0.0);
                    probabilities = L::load(tail.as_ptr());
                    total = total.add(probabilities);
                }
                self.write(vector, [previous, probabilities]);
                previous = probabilities;
            }
            // Before the first block there is nothing to rescale.
            let mut rescale = 1.0;
            if self.largest.is_finite() && *self.largest != largest {
                rescale = exp(*self.largest - largest);
                for sum in self.sums {
                    *sum *= rescale;
                }
            }
            *self.total = *self.total * rescale + total.sum();
            *self.largest = largest;
        }
    }
}
