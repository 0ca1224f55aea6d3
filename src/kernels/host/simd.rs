//! Which instructions the CPU has, and which of them the host kernels use: found out once, at run time.

use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
use super::lanes::{Avx2, Avx512};
use super::lanes::{Lanes, Portable, Task};

/// Which instruction set the host kernels use. Each includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Simd {
    /// Plain Rust: any CPU.
    Portable,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 F, BW, VL and DQ.
    Avx512,
    /// And VNNI: int8 dot products, `vpdpbusd`.
    Avx512Vnni,
    /// And BF16: bf16 dot products, `vdpbf16ps`.
    Avx512Bf16,
    /// And AMX: bf16 and int8 products of 16 x 64 byte tiles.
    Amx,
}

impl Simd {
    /// All that this CPU has, the widest last.
    pub fn present() -> Vec<Simd> {
        let mut present = vec![Simd::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            let has = [
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq"),
                is_x86_feature_detected!("avx512vnni"),
                is_x86_feature_detected!("avx512bf16"),
                amx::is_usable(),
            ];
            let sets = [
                Simd::Avx2,
                Simd::Avx512,
                Simd::Avx512Vnni,
                Simd::Avx512Bf16,
                Simd::Amx,
            ];
            let usable = sets.into_iter().zip(has).take_while(|(_, has)| *has);
            present.extend(usable.map(|(set, _)| set));
        }
        present
    }

    /// The fastest that this CPU has.
    pub fn detect() -> Simd {
        let widest = Simd::present().pop().unwrap_or(Simd::Portable);
        // Intel's cores take `vdpbf16ps` once in two cycles, a quarter of the speed of AMD's and half that of their own f32
        // multiply-add: where such a CPU shows no AMX, widening bf16 is the faster way to the same product.
        if widest == Simd::Avx512Bf16 && is_intel() {
            return Simd::Avx512Vnni;
        }
        widest
    }

    /// Whether bf16 numbers are multiplied as they are: faster than f32, which their products would otherwise be widened to.
    pub fn multiplies_bf16(self) -> bool {
        self >= Simd::Avx512Bf16
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
            _ => unsafe { with_avx512(task) },
            #[cfg(not(target_arch = "x86_64"))]
            // SAFETY: as above.
            _ => unsafe { task.run::<Portable>() },
        }
    }
}

/// Plain loops over slices, which the compiler finds vector instructions for: more and wider ones where it knows what the CPU has.
pub(crate) trait Loops {
    /// Runs them. Implementations are `#[inline(always)]`, and so is every function they call: what is a function of its own is
    /// compiled for any CPU.
    fn run(self);
}

/// Runs loops compiled for the widest instructions this CPU has. Integers come out the same on any; floating-point numbers, too, for
/// the compiler fuses nothing by itself.
pub(crate) fn run_loops(loops: impl Loops) {
    static WIDEST: OnceLock<Simd> = OnceLock::new();
    WIDEST.get_or_init(Simd::detect).run(Plain(loops));
}

/// Loops as a [`Task`] that uses no [`Lanes`].
struct Plain<L>(L);

impl<P: Loops> Task for Plain<P> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        self.0.run();
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn with_avx2(task: impl Task) {
    // SAFETY: this function's own contract.
    unsafe { task.run::<Avx2>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
unsafe fn with_avx512(task: impl Task) {
    // SAFETY: this function's own contract.
    unsafe { task.run::<Avx512>() }
}

#[cfg(target_arch = "x86_64")]
fn is_intel() -> bool {
    let vendor = std::arch::x86_64::__cpuid(0);
    [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes) == [*b"Genu", *b"ineI", *b"ntel"]
}

#[cfg(not(target_arch = "x86_64"))]
fn is_intel() -> bool {
    false
}

#[cfg(target_arch = "x86_64")]
mod amx {
    use std::arch::x86_64::__cpuid_count;
    use std::sync::OnceLock;

    /// CPUID leaf 7, EDX: bf16, tiles, int8. Source: Intel SDM volume 2, CPUID.
    const FEATURES: u32 = 1 << 22 | 1 << 24 | 1 << 25;

    /// Whether the CPU has AMX for bf16 and int8 and the system lets this process use the tile registers.
    pub(super) fn is_usable() -> bool {
        static USABLE: OnceLock<bool> = OnceLock::new();
        *USABLE.get_or_init(|| {
            let present = __cpuid_count(7, 0).edx & FEATURES == FEATURES;
            present && tiles_are_permitted()
        })
    }

    /// Linux gives the tile registers' 8 KiB of state only to processes that ask for it.
    ///
    /// Source: `ARCH_REQ_XCOMP_PERM`, Documentation/arch/x86/xstate.rst.
    #[cfg(target_os = "linux")]
    fn tiles_are_permitted() -> bool {
        const REQUEST_PERMISSION: libc::c_int = 0x1023;
        const TILE_DATA: libc::c_ulong = 18;
        // SAFETY: the call reads two integers and changes what this process may save, nothing else.
        unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0 }
    }

    #[cfg(not(target_os = "linux"))]
    fn tiles_are_permitted() -> bool {
        false
    }
}
