//! Sixteen f32 at a time, as AVX-512, AVX2 or plain Rust: the vector type every host kernel is written in.
//!
//! A kernel is a [`Task`], written once over [`Lanes`]; [`Simd::run`] compiles it once for each instruction set and picks at run
//! time. Every implementation adds in the same order, so on one machine a result depends on nothing but its inputs. The fused
//! multiply-add of AVX2 and AVX-512 rounds once where plain Rust rounds twice: between machines the last bits may differ.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Lanes of one vector.
pub(crate) const LANES: usize = 16;

/// Sixteen f32.
///
/// # Safety
/// Every function requires the instruction set of the implementing type, and pointers to be valid for what is read or written:
/// sixteen elements, unaligned.
pub(crate) trait Lanes: Copy {
    /// All zero.
    unsafe fn zero() -> Self;
    /// All `value`.
    unsafe fn splat(value: f32) -> Self;
    /// Sixteen f32.
    unsafe fn load(from: *const f32) -> Self;
    /// Sixteen bf16, widened.
    unsafe fn load_bf16(from: *const u16) -> Self;
    /// Writes sixteen f32.
    unsafe fn store(self, to: *mut f32);
    /// `self * by + plus`.
    unsafe fn mul_add(self, by: Self, plus: Self) -> Self;
    /// The sum of all lanes, in an order fixed by the type.
    unsafe fn sum(self) -> f32;
}

/// Plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; LANES]);

impl Lanes for Portable {
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
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: the caller gives sixteen readable u16.
        let halves = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        Portable(halves.map(|half| f32::from_bits(u32::from(half) << 16)))
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
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: the caller gives sixteen readable u16.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(8).cast()));
            Avx2(
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            )
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
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: the caller gives sixteen readable u16.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
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

/// Which instruction set the host kernels use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Simd {
    /// Plain Rust: any CPU.
    Portable,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 F, BW, VL and DQ.
    Avx512,
}

impl Simd {
    /// All that this CPU has, the widest last.
    pub fn present() -> Vec<Simd> {
        let mut present = vec![Simd::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                present.push(Simd::Avx2);
            }
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
            {
                present.push(Simd::Avx512);
            }
        }
        present
    }

    /// The widest that this CPU has.
    pub fn detect() -> Simd {
        Simd::present().pop().unwrap_or(Simd::Portable)
    }

    /// Runs a task. `self` must come from [`Simd::present`] or [`Simd::detect`].
    pub(crate) fn run(self, task: impl Task) {
        match self {
            // SAFETY: plain Rust needs no instruction set.
            Simd::Portable => unsafe { task.run::<Portable>() },
            // SAFETY: `present` found the features.
            #[cfg(target_arch = "x86_64")]
            Simd::Avx2 => unsafe { with_avx2(task) },
            // SAFETY: `present` found the features.
            #[cfg(target_arch = "x86_64")]
            Simd::Avx512 => unsafe { with_avx512(task) },
            #[cfg(not(target_arch = "x86_64"))]
            // SAFETY: as above.
            _ => unsafe { task.run::<Portable>() },
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn with_avx2(task: impl Task) {
    // SAFETY: this function's own contract.
    unsafe { task.run::<Avx2>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
unsafe fn with_avx512(task: impl Task) {
    // SAFETY: this function's own contract.
    unsafe { task.run::<Avx512>() }
}
