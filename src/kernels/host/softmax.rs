//! The softmax of attention, online: a block of scores at a time, under a bound of the largest score so far.
//!
//! Scores are taken to base 2, and the bound is the largest of them rounded up to an integer. So what was summed under an earlier
//! bound is brought under a later one by a power of two, which loses nothing, and seldom has to be.

use super::activation::{LONG_EXP2, SHORT_EXP2, exp2};
use super::format::{BLOCK_GROUPS, PANEL_COLUMNS};
use super::lanes::{LANES, Lanes, Task};
use super::tile::Products;

/// Keys a block of scores covers.
pub(crate) const KEYS: usize = 512;
/// Panels of a block of scores.
pub(crate) const KEY_PANELS: usize = KEYS / PANEL_COLUMNS;

/// Probabilities are written a panel's keys at a time: one block of a row in bf16, two in f32.
const _: () = assert!(PANEL_COLUMNS == 2 * BLOCK_GROUPS && PANEL_COLUMNS == 2 * LANES);

/// A tile's block of scores, turned into probabilities that are not yet divided by their sum.
pub(crate) struct SoftmaxTile<'a> {
    pub(crate) scores: &'a [Products; KEY_PANELS],
    /// Keys of the block each row sees; at least one in the first block of a sequence.
    pub(crate) seen: &'a [usize],
    /// Keys any row of the tile sees: so many probabilities are written, those of keys a row does not see being zero.
    pub(crate) written: usize,
    /// What makes a product a score, to base e.
    pub(crate) scale: f32,
    /// The largest score so far of each row, to base 2 and rounded up; minus infinity before the first.
    pub(crate) largest: &'a mut [f32],
    /// The sum of the probabilities so far of each row.
    pub(crate) total: &'a mut [f32],
    /// Probabilities times values so far, a panel of values each; brought, like the total, under the new bound.
    pub(crate) sums: &'a mut [Products],
    pub(crate) bf16: bool,
    /// Where the probabilities go, and the words from one block of a row to its next.
    pub(crate) to: (*mut u32, usize),
}

impl Task for SoftmaxTile<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        for (row, &seen) in self.seen.iter().enumerate() {
            let (start, step) = self.to;
            let softmax = SoftmaxRow {
                scores: self.scores,
                row,
                seen,
                written: self.written,
                scale: self.scale * std::f32::consts::LOG2_E,
                bf16: self.bf16,
                to: (start.wrapping_add(row * BLOCK_GROUPS), step),
            };
            // SAFETY: the instruction set, by the task's contract.
            let rescale = unsafe {
                let so_far = (&mut self.largest[row], &mut self.total[row]);
                if self.bf16 {
                    // What is rounded to eight bits need not be closer.
                    softmax.run::<L, 5>(&SHORT_EXP2, so_far)
                } else {
                    softmax.run::<L, 7>(&LONG_EXP2, so_far)
                }
            };
            if rescale != 1.0 {
                for sums in &mut *self.sums {
                    for sum in &mut sums.0[row] {
                        *sum *= rescale;
                    }
                }
            }
        }
    }
}

/// One row of it.
struct SoftmaxRow<'a> {
    scores: &'a [Products; KEY_PANELS],
    row: usize,
    seen: usize,
    written: usize,
    scale: f32,
    bf16: bool,
    to: (*mut u32, usize),
}

impl SoftmaxRow<'_> {
    /// The scores of a panel's keys, those not seen being minus infinity.
    #[inline(always)]
    fn scores(&self, panel: usize) -> [f32; PANEL_COLUMNS] {
        let mut scores = self.scores[panel].0[self.row];
        let seen = self.seen.saturating_sub(panel * PANEL_COLUMNS);
        for score in scores.iter_mut().skip(seen) {
            *score = f32::NEG_INFINITY;
        }
        scores
    }

    /// Writes the probabilities of a panel's keys.
    ///
    /// # Safety
    /// The instruction set of `L`, and room for [`KEYS`] probabilities.
    #[inline(always)]
    unsafe fn write<L: Lanes>(&self, panel: usize, [low, high]: [L; 2]) {
        let (start, step) = self.to;
        // SAFETY: the caller's contract.
        unsafe {
            if self.bf16 {
                low.store_bf16(high, start.add(panel * step).cast());
            } else {
                low.store(start.add(2 * panel * step).cast());
                high.store(start.add((2 * panel + 1) * step).cast());
            }
        }
    }

    /// Writes the probabilities, brings `largest` and `total` up to date, and returns what earlier sums are to be multiplied by.
    ///
    /// # Safety
    /// The instruction set of `L`.
    #[inline(always)]
    unsafe fn run<L: Lanes, const TERMS: usize>(
        &self,
        polynomial: &[f32; TERMS],
        (largest_so_far, total_so_far): (&mut f32, &mut f32),
    ) -> f32 {
        let (whole, some) = (
            self.seen / PANEL_COLUMNS,
            !self.seen.is_multiple_of(PANEL_COLUMNS),
        );
        // SAFETY: the caller's contract; panels are two sixteens wide; `written` is at most `KEYS`.
        unsafe {
            let mut highest = [L::splat(f32::NEG_INFINITY); 2];
            for panel in &self.scores[..whole] {
                let scores = panel.0[self.row].as_ptr();
                highest[0] = highest[0].max(L::load(scores));
                highest[1] = highest[1].max(L::load(scores.add(LANES)));
            }
            if some {
                let scores = self.scores(whole);
                highest[0] = highest[0].max(L::load(scores.as_ptr()));
                highest[1] = highest[1].max(L::load(scores.as_ptr().add(LANES)));
            }
            let largest = highest[0].max(highest[1]).largest();
            let largest = largest_so_far.max((largest * self.scale).ceil());
            let (scale, minus_largest) = (L::splat(self.scale), L::splat(-largest));
            let mut total = [L::zero(); 2];
            for (panel, scores) in self.scores[..whole].iter().enumerate() {
                let scores = scores.0[self.row].as_ptr();
                let low = L::load(scores).mul_add(scale, minus_largest);
                let high = L::load(scores.add(LANES)).mul_add(scale, minus_largest);
                let (low, high) = (exp2(low, polynomial), exp2(high, polynomial));
                total[0] = total[0].add(low);
                total[1] = total[1].add(high);
                self.write(panel, [low, high]);
            }
            if some {
                let mut scores = self.scores(whole);
                for half in [0, LANES] {
                    let to = scores.as_mut_ptr().add(half);
                    exp2(L::load(to).mul_add(scale, minus_largest), polynomial).store(to);
                }
                // What the function leaves of minus infinity is small but not nothing.
                scores[self.seen % PANEL_COLUMNS..].fill(0.0);
                let halves = [
                    L::load(scores.as_ptr()),
                    L::load(scores.as_ptr().add(LANES)),
                ];
                total[0] = total[0].add(halves[0]);
                total[1] = total[1].add(halves[1]);
                self.write(whole, halves);
            }
            for panel in whole + usize::from(some)..self.written.div_ceil(PANEL_COLUMNS) {
                self.write(panel, [L::zero(); 2]);
            }
            // Before the first block there is nothing to rescale.
            let rescale = if largest_so_far.is_finite() && *largest_so_far != largest {
                (*largest_so_far - largest).exp2()
            } else {
                1.0
            };
            *total_so_far = *total_so_far * rescale + total[0].add(total[1]).sum();
            *largest_so_far = largest;
            rescale
        }
    }
}
