//! A rotation of what int8 is multiplied along, so that no number of a row is much larger than the rest.
//!
//! Both sides of an int8 product are multiplied by the same orthogonal matrix, up to a factor: the product stays what it was, but an
//! outlier in one channel, which would take the scale of the whole row for itself, becomes a small share of many channels.
//!
//! Numbers a multiple of sixteen apart are mixed, which is vector code without shuffles, and all sums are the same on any
//! instruction set: additions only.
//!
//! Source: the Walsh-Hadamard transform; that it takes the outliers out of activations is the finding of QuaRot, arXiv:2404.00456.

use super::lanes::{LANES, Lanes, Task};

/// Most vectors that are mixed with each other.
const MAX_ORDER: usize = 256;

/// How many numbers are mixed with each other in rows of this depth: a power of two, 1 where the depth has none in it.
pub(crate) fn order(depth: usize) -> usize {
    if !depth.is_multiple_of(LANES) || depth == 0 {
        return 1;
    }
    let vectors = depth / LANES;
    (1 << vectors.trailing_zeros()).min(MAX_ORDER)
}

/// Whether the numbers of a vector change their sign before they are mixed: else a mean that is not zero would become an outlier.
///
/// The signs are those of a bent function, which spreads a constant evenly over all outcomes, as far as the order allows.
///
/// Source: O. S. Rothaus, On "bent" functions, 1976: the sum of products of pairs of bits.
fn is_negated(vector: usize) -> bool {
    (vector & (vector >> 1) & 0x5555).count_ones() % 2 == 1
}

/// A row, mixed in place. It becomes longer by the square root of its [`order`].
pub(crate) struct Mix<'a>(pub(crate) &'a mut [f32]);

impl Task for Mix<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let order = order(self.0.len());
        if order == 1 {
            return;
        }
        for block in self.0.chunks_exact_mut(order * LANES) {
            let start = block.as_mut_ptr();
            // SAFETY: a block is `order` vectors; the instruction set is there by the task's contract.
            unsafe {
                for vector in (0..order).filter(|&vector| is_negated(vector)) {
                    let at = start.add(vector * LANES);
                    L::zero().sub(L::load(at)).store(at);
                }
                let mut apart = 1;
                if order.trailing_zeros() % 2 == 1 {
                    mix_pairs::<L>(start, order);
                    apart = 2;
                }
                while apart < order {
                    mix_fours::<L>(start, order, apart);
                    apart *= 4;
                }
            }
        }
    }
}

/// Sums and differences of neighbouring vectors.
///
/// # Safety
/// `start` has `order` vectors, an even number; the instruction set of `L`.
#[inline(always)]
unsafe fn mix_pairs<L: Lanes>(start: *mut f32, order: usize) {
    for pair in (0..order).step_by(2) {
        // SAFETY: the caller's contract.
        unsafe {
            let (first, second) = (start.add(pair * LANES), start.add((pair + 1) * LANES));
            let (a, b) = (L::load(first), L::load(second));
            a.add(b).store(first);
            a.sub(b).store(second);
        }
    }
}

/// Two steps of the transform at once: sums and differences of vectors `apart`, then of those twice as far apart.
///
/// # Safety
/// `start` has `order` vectors, a multiple of `4 * apart`; the instruction set of `L`.
#[inline(always)]
unsafe fn mix_fours<L: Lanes>(start: *mut f32, order: usize, apart: usize) {
    for group in (0..order).step_by(4 * apart) {
        for vector in group..group + apart {
            // SAFETY: the caller's contract.
            unsafe {
                let first = start.add(vector * LANES);
                let second = first.add(apart * LANES);
                let third = second.add(apart * LANES);
                let fourth = third.add(apart * LANES);
                let (a, b) = (L::load(first), L::load(second));
                let (c, d) = (L::load(third), L::load(fourth));
                let (sum, difference) = (a.add(b), a.sub(b));
                let (later_sum, later_difference) = (c.add(d), c.sub(d));
                sum.add(later_sum).store(first);
                difference.add(later_difference).store(second);
                sum.sub(later_sum).store(third);
                difference.sub(later_difference).store(fourth);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::simd::Simd;
    use super::*;

    fn mixed(simd: Simd, row: &[f32]) -> Vec<f32> {
        let mut row = row.to_vec();
        simd.run(Mix(&mut row));
        row
    }

    fn dot(a: &[f32], b: &[f32]) -> f64 {
        let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
        products.sum()
    }

    #[test]
    fn products_stay_what_they_were_for_any_depth_and_instruction_set() {
        for depth in [
            0, 1, 15, 16, 17, 32, 48, 64, 96, 256, 1024, 2048, 4096, 6144, 12288,
        ] {
            let row = |phase: f32| -> Vec<f32> {
                let wave = (0..depth).map(|i| (i as f32 * 0.731 + phase).sin());
                wave.collect()
            };
            let (a, b) = (row(0.1), row(0.9));
            let portable = mixed(Simd::Portable, &a);
            let product = dot(&portable, &mixed(Simd::Portable, &b)) / order(depth) as f64;
            let exact = dot(&a, &b);
            assert!(
                (product - exact).abs() < 1e-3 * (1.0 + exact.abs()),
                "{depth}: {product} {exact}"
            );
            for simd in Simd::present() {
                assert_eq!(mixed(simd, &a), portable, "{simd:?}, depth {depth}");
            }
        }
    }

    #[test]
    fn an_outlier_and_a_constant_are_spread_evenly() {
        for depth in [1024, 2048, 4096, 6144] {
            let mut outlier = vec![0.0; depth];
            outlier[depth / 3] = 1.0;
            let constant = vec![1.0; depth];
            let length = (order(depth) as f32).sqrt();
            for (row, most) in [(outlier, 1.0), (constant, 1.5 * length)] {
                let row = mixed(Simd::Portable, &row);
                let largest = row.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
                assert!(largest <= most, "depth {depth}: {largest}, at most {most}");
            }
        }
    }
}
