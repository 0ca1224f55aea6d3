//! Activation functions and what they are made of, branch-free, so that loops over them become vector code.

/// `e^x` to 2 ulp: range reduction by `ln 2`, then a polynomial of degree 7.
///
/// Below -87 the result is 0 or tiny, above 88 it saturates: the softmax and the gates need no more.
///
/// # Source
/// The polynomial is the Taylor series to degree 7, whose remainder on |r| <= ln 2 / 2 is below 1e-8.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits of the sum.
    const TO_INTEGER: f32 = 12_582_912.0;
    // ln 2 in two pieces, the first with few bits, so that `n * LN_2_HIGH` is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.3, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + TO_INTEGER;
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

/// `x / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// GELU by its tanh approximation, `gelu_pytorch_tanh`.
#[inline(always)]
pub(crate) fn gelu_tanh(x: f32) -> f32 {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    let u = SQRT_2_OVER_PI * (x + 0.044715 * x * x * x);
    // 0.5 (1 + tanh u) = 1 / (1 + e^-2u)
    x / (1.0 + exp(-2.0 * u))
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
