//! f32 rows times an f32 or bf16 panel, by multiply-add: any CPU.

use super::super::format::{BLOCK_GROUPS, PANEL_COLUMNS};
use super::super::lanes::{LANES, Lanes, Task};
use super::{Fetch, Pair};

/// The tile; `WIDEN` when the panel is bf16.
pub(super) struct Tile<const WIDEN: bool>(pub(super) Pair, pub(super) *mut f32);

impl<const WIDEN: bool> Task for Tile<WIDEN> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Tile(pair, to) = self;
        // SAFETY: the caller of `Multiply::run` vouches for the pointers; fewer rows than a size of this list are computed along
        // with stale ones, within the tile's height.
        unsafe {
            if L::REGISTERS == 1 {
                match pair.count {
                    1 => multiply::<L, WIDEN, 1, 2>(pair, 0, to),
                    2 => multiply::<L, WIDEN, 2, 2>(pair, 0, to),
                    3 | 4 => multiply::<L, WIDEN, 4, 2>(pair, 0, to),
                    5 | 6 => multiply::<L, WIDEN, 6, 2>(pair, 0, to),
                    7 | 8 => multiply::<L, WIDEN, 8, 2>(pair, 0, to),
                    _ => multiply::<L, WIDEN, 12, 2>(pair, 0, to),
                }
                return;
            }
            // With sixteen registers or none to count on, half a panel at a time.
            for half in [0, LANES] {
                match pair.count {
                    1 => multiply::<L, WIDEN, 1, 1>(pair, half, to),
                    2 => multiply::<L, WIDEN, 2, 1>(pair, half, to),
                    3 | 4 => multiply::<L, WIDEN, 4, 1>(pair, half, to),
                    _ => multiply::<L, WIDEN, 6, 1>(pair, half, to),
                }
            }
        }
    }
}

/// `ROWS` rows times `VECTORS` times sixteen columns from `column` on.
///
/// # Safety
/// The pointers reach as far as `pair` says, `ROWS <= height`; the instruction set of `L`.
#[inline(always)]
unsafe fn multiply<L: Lanes, const WIDEN: bool, const ROWS: usize, const VECTORS: usize>(
    pair: Pair,
    column: usize,
    to: *mut f32,
) {
    let step = if WIDEN { 2 } else { 1 };
    let row_block = pair.height * BLOCK_GROUPS;
    // SAFETY: the caller's contract.
    unsafe {
        let mut sums = [[L::zero(); VECTORS]; ROWS];
        if pair.accumulate {
            for (row, sums) in sums.iter_mut().enumerate() {
                for (vector, sum) in sums.iter_mut().enumerate() {
                    *sum = L::load(to.add(row * PANEL_COLUMNS + column + vector * LANES));
                }
            }
        }
        let mut panel = pair.panel.add(column);
        let mut fetch = Fetch::of(pair);
        for block in 0..pair.blocks {
            for part in 0..step {
                let rows = pair
                    .rows
                    .add((block * step + part) * row_block)
                    .cast::<f32>();
                for at in (0..BLOCK_GROUPS).step_by(step) {
                    if VECTORS == 2 {
                        fetch.group(panel);
                    }
                    for second in 0..step {
                        if VECTORS == 2 && at + second < ROWS {
                            Fetch::row(rows.cast(), row_block, at + second);
                        }
                        // No closure: a closure would not be compiled with the instruction set.
                        let mut columns = [L::zero(); VECTORS];
                        for (vector, column) in columns.iter_mut().enumerate() {
                            let from = panel.add(vector * LANES);
                            *column = match (WIDEN, second) {
                                (false, _) => L::load(from.cast()),
                                (true, 0) => L::load_first(from),
                                (true, _) => L::load_second(from),
                            };
                        }
                        for (row, sums) in sums.iter_mut().enumerate() {
                            let x = L::splat(*rows.add(row * BLOCK_GROUPS + at + second));
                            for (sum, column) in sums.iter_mut().zip(columns) {
                                *sum = x.mul_add(column, *sum);
                            }
                        }
                    }
                    panel = panel.add(PANEL_COLUMNS);
                }
            }
        }
        for (row, sums) in sums.into_iter().enumerate() {
            for (vector, sum) in sums.into_iter().enumerate() {
                sum.store(to.add(row * PANEL_COLUMNS + column + vector * LANES));
            }
        }
    }
}
