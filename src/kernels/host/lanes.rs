//! Sixteen f32 at a time, as AVX-512, AVX2 or plain Rust: the vector type every host kernel is written in.
//!
//! A kernel is a [`Task`], written once over [`Lanes`]; [`Simd::run`](super::simd::Simd::run) compiles it once for each instruction set and picks at run
//! time. Every implementation adds in the same order, so on one machine a result depends on nothing but its inputs. The fused
//! multiply-add of AVX2 and AVX-512 rounds once where plain Rust rounds twice: between machines the last bits may differ.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Lanes of one vector.
pub(crate) const LANES: usize = 16;

/// What makes the bits of `1.5 * 2^23 + n` the biased exponent of `2^n`, once shifted to its place.
const EXPONENT: u32 = 127_u32.wrapping_sub(TO_INTEGER.to_bits());

/// 1.5 * 2^23: adding it leaves the nearest integer in the low bits of the sum.
const TO_INTEGER: f32 = 12_582_912.0;

/// Half of what a bf16 does not keep of an f32.
const HALF: u32 = 0x8000;

/// The odd elements of 64.
#[cfg(target_arch = "x86_64")]
#[repr(C, align(64))]
struct Odd([u16; 32]);

#[cfg(target_arch = "x86_64")]
static UPPER_HALVES: Odd = {
    let mut odd = [0; 32];
    let mut i = 0;
    while i < 32 {
        odd[i] = 2 * i as u16 + 1;
        i += 1;
    }
    Odd(odd)
};

/// Where the second bf16 of a pair lies.
const SECOND: u32 = 0xffff_0000;

/// Sixteen f32.
///
/// # Safety
/// Every function requires the instruction set of the implementing type, and pointers to be valid for what is read or written:
/// sixteen elements, unaligned.
pub(crate) trait Lanes: Copy {
    /// Registers sixteen lanes take; 0 where no such register can be counted on.
    const REGISTERS: usize;
    /// All zero.
    unsafe fn zero() -> Self;
    /// All `value`.
    unsafe fn splat(value: f32) -> Self;
    /// Sixteen f32.
    unsafe fn load(from: *const f32) -> Self;
    /// The first bf16 of each of sixteen pairs, widened. A pair is four bytes, the first number in the low half.
    unsafe fn load_first(from: *const u32) -> Self;
    /// The second bf16 of each of sixteen pairs, widened.
    unsafe fn load_second(from: *const u32) -> Self;
    /// Writes sixteen f32.
    unsafe fn store(self, to: *mut f32);
    /// `self * by + plus`.
    unsafe fn mul_add(self, by: Self, plus: Self) -> Self;
    /// `self + other`.
    unsafe fn add(self, other: Self) -> Self;
    /// `self * other`.
    unsafe fn mul(self, other: Self) -> Self;
    /// The larger of each pair of lanes.
    unsafe fn max(self, other: Self) -> Self;
    /// `2^n` for `self = 1.5 * 2^23 + n`, -127 < n < 128: the sum's low bits are the integer.
    unsafe fn power_of_two(self) -> Self;
    /// Writes 32 bf16, `self` before `other`, rounded to nearest, ties away from zero. None is NaN or infinite.
    unsafe fn store_bf16(self, other: Self, to: *mut u16);
    /// The largest of all lanes.
    unsafe fn largest(self) -> f32;
    /// The sum of all lanes, in an order fixed by the type.
    unsafe fn sum(self) -> f32;
}

/// Plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; LANES]);

impl Lanes for Portable {
    const REGISTERS: usize = 0;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Portable([0.0; LANES])
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Portable([value; LANES])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller gives sixteen readable f32.
        Portable(unsafe { from.cast::<[f32; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_first(from: *const u32) -> Self {
        // SAFETY: the caller gives sixteen readable pairs.
        let pairs = unsafe { from.cast::<[u32; LANES]>().read_unaligned() };
        Portable(pairs.map(|pair| f32::from_bits(pair << 16)))
    }
    #[inline(always)]
    unsafe fn load_second(from: *const u32) -> Self {
        // SAFETY: the caller gives sixteen readable pairs.
        let pairs = unsafe { from.cast::<[u32; LANES]>().read_unaligned() };
        Portable(pairs.map(|pair| f32::from_bits(pair & SECOND)))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller gives room for sixteen f32.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, by: Self, plus: Self) -> Self {
        // Not `f32::mul_add`: without the instruction that is a library call for each lane.
        Portable(std::array::from_fn(|lane| {
            plus.0[lane] + self.0[lane] * by.0[lane]
        }))
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Portable(std::array::from_fn(|lane| self.0[lane] + other.0[lane]))
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        Portable(std::array::from_fn(|lane| self.0[lane] * other.0[lane]))
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        Portable(std::array::from_fn(|lane| self.0[lane].max(other.0[lane])))
    }
    #[inline(always)]
    unsafe fn power_of_two(self) -> Self {
        Portable(
            self.0
                .map(|lane| f32::from_bits(lane.to_bits().wrapping_add(EXPONENT) << 23)),
        )
    }
    #[inline(always)]
    unsafe fn store_bf16(self, other: Self, to: *mut u16) {
        let round = |lanes: [f32; LANES]| lanes.map(|lane| ((lane.to_bits() + HALF) >> 16) as u16);
        // SAFETY: the caller gives room for 32 u16.
        unsafe {
            to.cast::<[[u16; LANES]; 2]>()
                .write_unaligned([round(self.0), round(other.0)]);
        }
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        self.0.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let mut lanes = self.0;
        let mut half = LANES / 2;
        while half > 0 {
            for lane in 0..half {
                lanes[lane] += lanes[lane + half];
            }
            half /= 2;
        }
        lanes[0]
    }
}

/// Two AVX2 registers.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256, __m256);

#[cfg(target_arch = "x86_64")]
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
    unsafe fn load_second(from: *const u32) -> Self {
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
    unsafe fn power_of_two(self) -> Self {
        // SAFETY: AVX2 is there, by the trait's contract.
        unsafe {
            let exponent = _mm256_set1_epi32(EXPONENT as i32);
            let low = _mm256_add_epi32(_mm256_castps_si256(self.0), exponent);
            let high = _mm256_add_epi32(_mm256_castps_si256(self.1), exponent);
            Avx2(
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(high)),
            )
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

/// One AVX-512 register.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Avx512(__m512);

#[cfg(target_arch = "x86_64")]
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
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: AVX-512 is there, by the trait's contract.
        unsafe { Avx512(_mm512_max_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn power_of_two(self) -> Self {
        // SAFETY: AVX-512 is there, by the trait's contract.
        unsafe {
            let bits = _mm512_add_epi32(
                _mm512_castps_si512(self.0),
                _mm512_set1_epi32(EXPONENT as i32),
            );
            Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(bits)))
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

/// A piece of work written over [`Lanes`].
pub(crate) trait Task {
    /// Does the work with one instruction set. Implementations are `#[inline(always)]`, so that they compile with it.
    ///
    /// # Safety
    /// The instruction set of `L` must be there.
    unsafe fn run<L: Lanes>(self);
}

/// `e^x` of sixteen lanes for x <= 0, to 3 ulp; below -87 what is left is below 1.3e-38.
///
/// # Safety
/// The instruction set of `L`.
///
/// # Source
/// As [`super::activation::exp`], with the Taylor series to degree 6: its remainder on |r| <= ln 2 / 2 is below 1.3e-7.
#[inline(always)]
pub(crate) unsafe fn exp_of_negative<L: Lanes>(x: L) -> L {
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // SAFETY: the caller's contract.
    unsafe {
        let x = x.max(L::splat(-87.3));
        let shifted = x.mul_add(L::splat(std::f32::consts::LOG2_E), L::splat(TO_INTEGER));
        let n = shifted.add(L::splat(-TO_INTEGER));
        let r = n.mul_add(L::splat(-LN_2_HIGH), x);
        let r = n.mul_add(L::splat(-LN_2_LOW), r);
        let mut p = L::splat(1.0 / 720.0);
        for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = p.mul_add(r, L::splat(c));
        }
        p.mul(shifted.power_of_two())
    }
}
