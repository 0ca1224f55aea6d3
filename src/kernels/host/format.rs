//! The number formats products are taken in, and how they lie in memory.
//!
//! Both sides of a product are cut along the depth into *groups* of four bytes (one f32, two bf16 or four int8) and *blocks* of
//! sixteen groups. Rows ([`Operand`](super::operand::Operand)) and weights ([`Panels`](super::panels::Panels)) agree on that, so
//! every instruction set reads the same weights: a 16-column half of a group is one AVX-512 register or one row of an AMX tile.

/// Groups of a block: 64 bytes of one row.
pub(crate) const BLOCK_GROUPS: usize = 16;

/// Columns of a panel of weights.
pub(crate) const PANEL_COLUMNS: usize = 32;

/// The number format of one side of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Single precision.
    F32,
    /// Brain floating point.
    Bf16,
    /// Signed bytes of -127..=127 with a scale for each row or column.
    Int8,
}

impl Format {
    /// Numbers in a group.
    pub(crate) fn group(self) -> usize {
        match self {
            Format::F32 => 1,
            Format::Bf16 => 2,
            Format::Int8 => 4,
        }
    }

    /// Blocks that hold `depth` numbers.
    pub(crate) fn blocks(self, depth: usize) -> usize {
        depth.div_ceil(self.group() * BLOCK_GROUPS)
    }
}

/// Rounds to the nearest bf16, ties to even: its bits.
#[inline(always)]
pub(crate) fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    // A NaN must stay one: rounding its payload could make it infinite.
    ((if x.is_nan() {
        bits | 0x40_0000
    } else {
        rounded
    }) >> 16) as u16
}

/// Rounds to the nearest bf16, ties to even, and widens again.
#[inline(always)]
pub(crate) fn round_to_bf16(x: f32) -> f32 {
    f32::from_bits(u32::from(bf16_bits(x)) << 16)
}

/// The largest magnitude of an int8 number: symmetric, so that negation never overflows.
pub(crate) const INT8_MAX: f32 = 127.0;

/// The largest magnitude of some numbers; NaN where one of them is: no finite number may come of it.
#[inline(always)]
pub(crate) fn largest_magnitude(values: &[f32]) -> f32 {
    // The bits of magnitudes are in the order of the magnitudes, and those of NaN are above all.
    let mut largest = 0;
    for value in values {
        largest = largest.max(value.to_bits() & 0x7fff_ffff);
    }
    f32::from_bits(largest)
}

/// The scale at which `largest` becomes 127; 1 for a row of zeros, which any scale represents.
#[inline(always)]
pub(crate) fn int8_scale(largest: f32) -> f32 {
    if largest == 0.0 {
        1.0
    } else {
        largest / INT8_MAX
    }
}

/// Rounds to the nearest int8, ties to even.
#[inline(always)]
pub(crate) fn int8(x: f32, inverse_scale: f32) -> i8 {
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits of the sum.
    const TO_INTEGER: f32 = 12_582_912.0;
    let bounded = (x * inverse_scale).clamp(-INT8_MAX, INT8_MAX);
    (bounded + TO_INTEGER).to_bits() as i8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounding_equals_the_half_crate() {
        for bits in (0..=u32::MAX).step_by(65_521) {
            let x = f32::from_bits(bits);
            let ours = round_to_bf16(x);
            let theirs = half::bf16::from_f32(x).to_f32();
            assert!(
                ours == theirs || (ours.is_nan() && theirs.is_nan()),
                "{x}: {ours} {theirs}"
            );
        }
    }

    #[test]
    fn int8_rounds_to_the_nearest_and_stays_within_127() {
        for i in -3000..3000 {
            let x = i as f32 * 0.05;
            let expected = x.clamp(-127.0, 127.0).round_ties_even() as i8;
            assert_eq!(int8(x, 1.0), expected, "{x}");
        }
        assert_eq!(int8_scale(0.0), 1.0);
        assert_eq!(largest_magnitude(&[0.5, -3.0, 2.0]), 3.0);
        assert!(int8_scale(largest_magnitude(&[0.5, f32::NAN, 2.0])).is_nan());
    }
}
