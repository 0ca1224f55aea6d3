//! Sixteen f32 at a time, as AVX-512, AVX2 or plain Rust: the vector type every host kernel is written in.
//!
//! A kernel is a [`Task`], written once over [`Lanes`]; [`Simd::run`](crate::kernels::host::simd::Simd::run) compiles it once for each instruction set and picks at run
//! time. Every implementation adds in the same order, so on one machine a result depends on nothing but its inputs. The fused
//! multiply-add of AVX2 and AVX-512 rounds once where plain Rust rounds twice: between machines the last bits may differ.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;

/// Lanes of one vector.
pub(crate) const LANES: usize = 16;

/// Bytes of a line of the caches.
const LINE: usize = 64;

/// 1.5 * 2^23: adding it leaves the nearest integer in the low bits of the sum, above nine bits of zero.
pub(crate) const TO_INTEGER: f32 = 12_582_912.0;

/// Half of what a bf16 does not keep of an f32.
const HALF: u32 = 0x8000;

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
    /// `self - other`.
    unsafe fn sub(self, other: Self) -> Self;
    /// `1 / self`, for what is neither subnormal nor has a subnormal reciprocal.
    unsafe fn reciprocal(self) -> Self;
    /// The larger of each pair of lanes; `other` where `self` is NaN.
    unsafe fn max(self, other: Self) -> Self;
    /// The smaller of each pair of lanes; `other` where `self` is NaN.
    unsafe fn min(self, other: Self) -> Self;
    /// `self * 2^n` for `shifted = 1.5 * 2^23 + n`, whose low bits are the integer. Neither side of it may be subnormal.
    unsafe fn times_power_of_two(self, shifted: Self) -> Self;
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
    unsafe fn sub(self, other: Self) -> Self {
        Portable(std::array::from_fn(|lane| self.0[lane] - other.0[lane]))
    }
    #[inline(always)]
    unsafe fn reciprocal(self) -> Self {
        Portable(self.0.map(|lane| 1.0 / lane))
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        Portable(std::array::from_fn(|lane| self.0[lane].max(other.0[lane])))
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        Portable(std::array::from_fn(|lane| self.0[lane].min(other.0[lane])))
    }
    #[inline(always)]
    unsafe fn times_power_of_two(self, shifted: Self) -> Self {
        Portable(std::array::from_fn(|lane| {
            let exponent = shifted.0[lane].to_bits() << 23;
            f32::from_bits(self.0[lane].to_bits().wrapping_add(exponent))
        }))
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

/// A piece of work written over [`Lanes`].
pub(crate) trait Task {
    /// Does the work with one instruction set. Implementations are `#[inline(always)]`, so that they compile with it.
    ///
    /// # Safety
    /// The instruction set of `L` must be there.
    unsafe fn run<L: Lanes>(self);
}

/// Asks for memory that will be read or written soon; where there is no such instruction it does nothing. Any address will do.
#[inline(always)]
pub(crate) fn fetch(start: *const u8, bytes: usize) {
    for offset in (0..bytes).step_by(LINE) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: SSE is part of x86-64, and what cannot be fetched is ignored.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(offset).cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = start.wrapping_add(offset);
    }
}

/// The same for one line that will be read later: it is fetched no further than into the second cache.
#[inline(always)]
pub(crate) fn fetch_late(line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as in `fetch`.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(line.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}
