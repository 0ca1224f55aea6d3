//! Sixteen f32 in one AVX-512 register.

use std::arch::x86_64::*;

use super::{HALF, Lanes, SECOND};

/// The odd elements of 64.
#[repr(C, align(64))]
struct Odd([u16; 32]);

static UPPER_HALVES: Odd = {
    let mut odd = [0; 32];
    let mut i = 0;
    while i < 32 {
        odd[i] = 2 * i as u16 + 1;
        i += 1;
    }
    Odd(odd)
};

/// One AVX-512 register.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(__m512);

impl Lanes for Avx512 {
    const REGISTERS: usize = 1;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: AVX-512 is there, by the trait's contract.
        unsafe { Avx512(_mm512_setzero_ps()) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: AVX-512 is there, by the trait's contract.
        unsafe { Avx512(_mm512_set1_ps(value)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller gives sixteen readable f32.
        unsafe { Avx512(_mm512_loadu_ps(from)) }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const u32) -> Self {
        // SAFETY: the caller gives sixteen readable pairs.
        unsafe {
            let pairs = _mm512_loadu_si512(from.cast());
            Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)))
        }
    }
    #[inline(always)]
    unsafe fn load_second(from: *const u32) -> Self {
        // SAFETY: the caller gives sixteen readable pairs.
        unsafe {
            let pairs = _mm512_loadu_si512(from.cast());
            let mask = _mm512_set1_epi32(SECOND as i32);
            Avx512(_mm512_castsi512_ps(_mm512_and_si512(pairs, mask)))
        }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller gives room for sixteen f32.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, by: Self, plus: Self) -> Self {
        // SAFETY: AVX-512 is there, by the trait's contract.
        unsafe { Avx512(_mm512_fmadd_ps(self.0, by.0, plus.0)) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: AVX-512 is there, by the trait's contract.
        unsafe { Avx512(_mm512_add_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: AVX-512 is there, by the trait's contract.
        unsafe { Avx512(_mm512_mul_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: AVX-512 is there, by the trait's contract.
        unsafe { Avx512(_mm512_sub_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn reciprocal(self) -> Self {
        // SAFETY: AVX-512 is there, by the trait's contract.
        unsafe {
            // Fourteen bits, and one step of Newton's method doubles them; a third of the time of a division.
            let near = _mm512_rcp14_ps(self.0);
            let rest = _mm512_fnmadd_ps(self.0, near, _mm512_set1_ps(1.0));
            Avx512(_mm512_fmadd_ps(near, rest, near))
        }
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        // SAFETY: AVX-512 is there, by the trait's contract.
        unsafe { Avx512(_mm512_min_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: AVX-512 is there, by the trait's contract.
        unsafe { Avx512(_mm512_max_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn times_power_of_two(self, shifted: Self) -> Self {
        // SAFETY: AVX-512 is there, by the trait's contract.
        unsafe {
            let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted.0));
            let bits = _mm512_add_epi32(_mm512_castps_si512(self.0), exponent);
            Avx512(_mm512_castsi512_ps(bits))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, other: Self, to: *mut u16) {
        // SAFETY: AVX-512 is there, by the trait's contract; the caller gives room for 32 u16.
        unsafe {
            let half = _mm512_set1_epi32(HALF as i32);
            let low = _mm512_add_epi32(_mm512_castps_si512(self.0), half);
            let high = _mm512_add_epi32(_mm512_castps_si512(other.0), half);
            // The upper half of each word of both: odd sixteen-bit elements 1, 3, .. 63.
            let odd = _mm512_load_si512(UPPER_HALVES.0.as_ptr().cast());
            _mm512_storeu_si512(to.cast(), _mm512_permutex2var_epi16(low, odd, high));
        }
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        // SAFETY: AVX-512 is there, by the trait's contract.
        unsafe { _mm512_reduce_max_ps(self.0) }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: AVX-512 is there, by the trait's contract.
        unsafe { _mm512_reduce_add_ps(self.0) }
    }
}
