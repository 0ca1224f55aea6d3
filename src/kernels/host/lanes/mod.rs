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

/// What makes the bits of `1.5 * 2^23 + n` the biased exponent of `2^n`, once shifted to its place.
const EXPONENT: u32 = 127_u32.wrapping_sub(TO_INTEGER.to_bits());

/// 1.5 * 2^23: adding it leaves the nearest integer in the low bits of the sum.
const TO_INTEGER: f32 = 12_582_912.0;

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
/// As [`crate::kernels::host::activation::exp`], with the Taylor series to degree 6: its remainder on |r| <= ln 2 / 2 is below 1.3e-7.
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
