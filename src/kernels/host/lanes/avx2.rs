//! Sixteen f32 in two AVX2 registers.

use std::arch::asm;
use std::arch::x86_64::*;

use super::{LANES, Lanes, Portable, SECOND};

/// Two AVX2 registers.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256, __m256);

impl Lanes for Avx2 {
    const REGISTERS: usize = 2;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: AVX2 is there, by the trait's contract.
        unsafe { Avx2(_mm256_setzero_ps(), _mm256_setzero_ps()) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: AVX2 is there, by the trait's contract.
        unsafe { Avx2(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller gives sixteen readable f32.
        unsafe { Avx2(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const u32) -> Self {
        // SAFETY: the caller gives sixteen readable pairs.
        unsafe {
            let low = _mm256_slli_epi32::<16>(_mm256_loadu_si256(from.cast()));
            let high = _mm256_slli_epi32::<16>(_mm256_loadu_si256(from.add(8).cast()));
            Avx2(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
        }
    }
    #[inline(always)]
    #[expect(
        clippy::pointers_in_nomem_asm_block,
        reason = "the pointer passes through; nothing reads what it points to"
    )]
    unsafe fn load_second(mut from: *const u32) -> Self {
        // The same words as the first halves' in the products of bf16 panels, where no register is left to keep them in: not to know so
        // makes the compiler read them once more rather than write them to the stack, which takes a tenth longer where they happen to lie
        // across a line of the cache.
        // SAFETY: it does nothing.
        unsafe {
            asm!("/* {0} */", inout(reg) from, options(pure, nomem, nostack, preserves_flags));
        }
        // SAFETY: the caller gives sixteen readable pairs.
        unsafe {
            let mask = _mm256_set1_epi32(SECOND as i32);
            let low = _mm256_and_si256(_mm256_loadu_si256(from.cast()), mask);
            let high = _mm256_and_si256(_mm256_loadu_si256(from.add(8).cast()), mask);
            Avx2(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
        }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller gives room for sixteen f32.
        unsafe {
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(8), self.1);
        }
    }
    #[inline(always)]
    unsafe fn mul_add(self, by: Self, plus: Self) -> Self {
        // SAFETY: AVX2 and FMA are there, by the trait's contract.
        unsafe {
            Avx2(
                _mm256_fmadd_ps(self.0, by.0, plus.0),
                _mm256_fmadd_ps(self.1, by.1, plus.1),
            )
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: AVX2 is there, by the trait's contract.
        unsafe {
            Avx2(
                _mm256_add_ps(self.0, other.0),
                _mm256_add_ps(self.1, other.1),
            )
        }
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: AVX2 is there, by the trait's contract.
        unsafe {
            Avx2(
                _mm256_mul_ps(self.0, other.0),
                _mm256_mul_ps(self.1, other.1),
            )
        }
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: AVX2 is there, by the trait's contract.
        unsafe {
            Avx2(
                _mm256_sub_ps(self.0, other.0),
                _mm256_sub_ps(self.1, other.1),
            )
        }
    }
    #[inline(always)]
    unsafe fn reciprocal(self) -> Self {
        // SAFETY: AVX2 is there, by the trait's contract.
        unsafe {
            let one = _mm256_set1_ps(1.0);
            Avx2(_mm256_div_ps(one, self.0), _mm256_div_ps(one, self.1))
        }
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        // SAFETY: AVX2 is there, by the trait's contract.
        unsafe {
            Avx2(
                _mm256_min_ps(self.0, other.0),
                _mm256_min_ps(self.1, other.1),
            )
        }
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: AVX2 is there, by the trait's contract.
        unsafe {
            Avx2(
                _mm256_max_ps(self.0, other.0),
                _mm256_max_ps(self.1, other.1),
            )
        }
    }
    #[inline(always)]
    unsafe fn times_power_of_two(self, shifted: Self) -> Self {
        // SAFETY: AVX2 is there, by the trait's contract.
        unsafe {
            let low = _mm256_slli_epi32::<23>(_mm256_castps_si256(shifted.0));
            let high = _mm256_slli_epi32::<23>(_mm256_castps_si256(shifted.1));
            let low = _mm256_add_epi32(_mm256_castps_si256(self.0), low);
            let high = _mm256_add_epi32(_mm256_castps_si256(self.1), high);
            Avx2(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, other: Self, to: *mut u16) {
        let (mut low, mut high) = ([0.0; LANES], [0.0; LANES]);
        // SAFETY: the arrays have room for sixteen f32; the caller gives room for 32 u16.
        unsafe {
            self.store(low.as_mut_ptr());
            other.store(high.as_mut_ptr());
            Portable(low).store_bf16(Portable(high), to);
        }
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        let mut lanes = [0.0; LANES];
        // SAFETY: `lanes` has room for sixteen f32; the portable version needs nothing.
        unsafe {
            self.store(lanes.as_mut_ptr());
            Portable(lanes).largest()
        }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let mut lanes = [0.0; LANES];
        // SAFETY: `lanes` has room for sixteen f32; the portable sum needs nothing.
        unsafe {
            self.store(lanes.as_mut_ptr());
            Portable(lanes).sum()
        }
    }
}
