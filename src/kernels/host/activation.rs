//! Activation functions and what they are made of: of sixteen lanes, or branch-free, so that loops over them become vector code.

use std::f32::consts::LOG2_E;

use super::lanes::{Lanes, TO_INTEGER};

/// `e^x` to 2 ulp: range reduction by `ln 2`, then a polynomial of degree 7.
///
/// Below -87 the result is 0 or tiny, above 88 it saturates: what calls it needs no more.
///
/// # Source
/// The polynomial is the Taylor series to degree 7, whose remainder on |r| <= ln 2 / 2 is below 1e-8.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // ln 2 in two pieces, the first with few bits, so that `n * LN_2_HIGH` is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.3, 88.0);
    let shifted = x * LOG2_E + TO_INTEGER;
    let n = shifted - TO_INTEGER;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let mut p = 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    let power = shifted
        .to_bits()
        .wrapping_sub(TO_INTEGER.to_bits())
        .wrapping_add(127)
        << 23;
    p * f32::from_bits(power)
}

/// Coefficients of a polynomial close to `2^r` for |r| <= 1/2, the constant first: relative error below 2.7e-6.
///
/// # Source
/// Minimax fits of ours: the relative error is the same at all its extrema. The errors are those in f32 arithmetic.
pub(crate) const SHORT_EXP2: [f32; 5] = [
    0.999_999_3,
    0.693_121_8,
    0.240_247_44,
    0.055_917_86,
    0.009_570_102,
];

/// The same, with an error below 8e-8.
pub(crate) const LONG_EXP2: [f32; 7] = [
    1.0,
    std::f32::consts::LN_2,
    0.240_226_46,
    0.055_503_286,
    0.009_618_489,
    0.001_339_993_1,
    0.000_153_458_13,
];

/// `2^x` of sixteen lanes for x < 127, by a polynomial for what is left of the nearest integer; below -126 it is 2^-126.
///
/// # Safety
/// The instruction set of `L`.
#[inline(always)]
pub(crate) unsafe fn exp2<L: Lanes, const TERMS: usize>(x: L, polynomial: &[f32; TERMS]) -> L {
    // SAFETY: the caller's contract.
    unsafe {
        let x = x.max(L::splat(-126.0));
        let shifted = x.add(L::splat(TO_INTEGER));
        let r = x.sub(shifted.sub(L::splat(TO_INTEGER)));
        let mut p = L::splat(polynomial[TERMS - 1]);
        for c in polynomial[..TERMS - 1].iter().rev() {
            p = p.mul_add(r, L::splat(*c));
        }
        p.times_power_of_two(shifted)
    }
}

/// `x / (1 + 2^power)` of sixteen lanes.
///
/// # Safety
/// The instruction set of `L`.
#[inline(always)]
unsafe fn damped<L: Lanes>(x: L, power: L) -> L {
    // SAFETY: the caller's contract.
    unsafe {
        // Beyond 2^126 next to nothing is left of the quotient.
        let divisor = exp2(power.min(L::splat(126.0)), &LONG_EXP2).add(L::splat(1.0));
        x.mul(divisor.reciprocal())
    }
}

/// `x / (1 + e^-x)` of sixteen lanes.
///
/// # Safety
/// The instruction set of `L`.
#[inline(always)]
pub(crate) unsafe fn silu<L: Lanes>(x: L) -> L {
    // SAFETY: the caller's contract.
    unsafe { damped(x, x.mul(L::splat(-LOG2_E))) }
}

/// GELU by its tanh approximation, `gelu_pytorch_tanh`, of sixteen lanes: `0.5 (1 + tanh u) = 1 / (1 + e^-2u)`.
///
/// # Safety
/// The instruction set of `L`.
#[inline(always)]
pub(crate) unsafe fn gelu_tanh<L: Lanes>(x: L) -> L {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    // SAFETY: the caller's contract.
    unsafe {
        let cubed = x.mul(x).mul(x);
        let u = cubed.mul_add(L::splat(0.044715), x);
        damped(x, u.mul(L::splat(-2.0 * LOG2_E * SQRT_2_OVER_PI)))
    }
}

/// GELU exactly, by the error function: within 4e-7 of the f64 value for |x| < 8.
///
/// # Source
/// `erfc(z) = t exp(-z^2 + P(t))`, `t = 1 / (1 + z / 2)`, Numerical Recipes in C, 6.2: relative error below 1.2e-7 everywhere.
#[inline(always)]
pub(crate) fn gelu_erf(x: f32) -> f32 {
    const P: [f32; 10] = [
        -1.265_512_2,
        1.000_023_7,
        0.374_091_96,
        0.096_784_18,
        -0.186_288_06,
        0.278_868_07,
        -1.135_204,
        1.488_515_9,
        -0.822_152_2,
        0.170_872_77,
    ];
    let z = (x * std::f32::consts::FRAC_1_SQRT_2).abs();
    let t = 1.0 / (1.0 + 0.5 * z);
    let mut p = P[9];
    for &c in P[..9].iter().rev() {
        p = p * t + c;
    }
    let tail = t * exp(p - z * z);
    // 1 + erf(z) is 2 - tail on the right and tail on the left.
    0.5 * x * if x >= 0.0 { 2.0 - tail } else { tail }
}

#[cfg(test)]
mod tests {
    use super::super::lanes::{LANES, Task};
    use super::super::simd::Simd;
    use super::*;

    #[test]
    fn exp_is_within_two_ulp_of_the_library() {
        let mut worst = 0.0_f32;
        for i in -87_000..88_000 {
            let x = i as f32 * 1e-3;
            let exact = f64::from(x).exp();
            worst = worst.max(((f64::from(exp(x)) - exact) / exact).abs() as f32);
        }
        assert!(worst < 2.4e-7, "worst relative error {worst}");
        assert_eq!(exp(0.0), 1.0);
    }

    /// A function of sixteen lanes over many values.
    struct Map<'a, F>(&'a mut [f32], F);

    /// Which function.
    #[derive(Clone, Copy, Debug)]
    enum Of {
        Short,
        Long,
        Silu,
        GeluTanh,
    }

    impl Task for Map<'_, Of> {
        #[inline(always)]
        unsafe fn run<L: Lanes>(self) {
            for values in self.0.chunks_exact_mut(LANES) {
                // SAFETY: a chunk is sixteen wide; the instruction set is there by the task's contract.
                unsafe {
                    let x = L::load(values.as_ptr());
                    let y = match self.1 {
                        Of::Short => exp2(x, &SHORT_EXP2),
                        Of::Long => exp2(x, &LONG_EXP2),
                        Of::Silu => silu(x),
                        Of::GeluTanh => gelu_tanh(x),
                    };
                    y.store(values.as_mut_ptr());
                }
            }
        }
    }

    #[test]
    fn lanes_are_as_close_to_the_exact_functions_as_they_say() {
        let gelu = |x: f64| {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + u.tanh())
        };
        let exact = |of: Of, x: f64| match of {
            Of::Short | Of::Long => x.exp2(),
            Of::Silu => x / (1.0 + (-x).exp()),
            Of::GeluTanh => gelu(x),
        };
        for simd in Simd::present() {
            for (of, low, high, bound) in [
                (Of::Short, -126.0, 126.0, 2.8e-6),
                (Of::Long, -126.0, 126.0, 1.2e-7),
                // The product with log2 e is rounded once: relative to a power of two far on the left that is more.
                (Of::Silu, -20.0, 60.0, 1.5e-6),
                // As above, and the exact value is the difference of 1 and nearly 1.
                (Of::GeluTanh, -3.0, 60.0, 1e-6),
            ] {
                let xs: Vec<f32> = (0..160_000)
                    .map(|i| low + (high - low) * i as f32 / 160_000.0)
                    .collect();
                let mut ys = xs.clone();
                simd.run(Map(&mut ys, of));
                let mut worst = 0.0_f64;
                for (&x, &y) in xs.iter().zip(&ys) {
                    let exact = exact(of, f64::from(x));
                    let distance = (f64::from(y) - exact).abs();
                    worst = worst.max(distance / exact.abs().max(1e-30));
                }
                assert!(worst < bound, "{simd:?} {of:?}: relative error {worst:e}");
            }
        }
    }

    #[test]
    fn activations_end_well_far_out_and_pass_on_what_is_not_a_number() {
        for simd in Simd::present() {
            for of in [Of::Silu, Of::GeluTanh] {
                let mut far = [-3e38_f32; LANES];
                (far[1], far[2], far[3], far[4]) = (1e30, f32::NAN, -200.0, 0.0);
                simd.run(Map(&mut far, of));
                assert!(
                    far[0].abs() < 4.0 && far[3].abs() < 1e-25,
                    "{simd:?} {far:?}"
                );
                assert!(
                    far[1] == 1e30 && far[2].is_nan() && far[4] == 0.0,
                    "{simd:?} {far:?}"
                );
            }
        }
    }

    #[test]
    fn gelu_by_the_error_function_is_within_half_a_millionth() {
        let mut worst = 0.0_f64;
        for i in -80_000..80_000 {
            let x = i as f32 * 1e-4;
            let wide = f64::from(x);
            let erf = candle_core::cpu::erf::erf_f64(wide * std::f64::consts::FRAC_1_SQRT_2);
            worst = worst.max((f64::from(gelu_erf(x)) - 0.5 * wide * (1.0 + erf)).abs());
        }
        assert!(worst < 5e-7, "worst absolute error {worst}");
    }
}
