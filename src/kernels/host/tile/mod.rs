//! The innermost loops: one tile of rows times one panel of 32 columns, over the whole depth.
//!
//! Every sum runs along the depth in an order that neither the other rows nor the other columns change, so a row's products are
//! the same bits in any batch. Between instruction sets the order differs, except in int8, where sums are exact.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod dot_bf16;
mod dot_int8;
mod fma;

use super::format::{Format, PANEL_COLUMNS};
use super::operand::MAX_HEIGHT;
use super::simd::Simd;

/// Words of [`Pair::ahead`] that are fetched with each block: an eighth of a panel's.
pub(crate) const FETCHED_WORDS: usize = 64;

/// A tile's products, `[height][32]`: f32, or for int8 sides i32 in the same bits.
#[repr(C, align(64))]
pub(crate) struct Products(pub(crate) [[f32; PANEL_COLUMNS]; MAX_HEIGHT]);

/// Numbers of [`Products`].
pub(crate) const PRODUCTS: usize = PANEL_COLUMNS * MAX_HEIGHT;

impl Products {
    /// All zero.
    pub(crate) const ZERO: Products = Products([[0.0; PANEL_COLUMNS]; MAX_HEIGHT]);

    /// Scratch memory as products: one for each [`PRODUCTS`] numbers.
    pub(crate) fn of(numbers: &mut [f32]) -> &mut [Products] {
        // SAFETY: products are f32 without padding; what is not aligned is left out, which the assertion does not let happen.
        let (before, products, after) = unsafe { numbers.align_to_mut::<Products>() };
        assert!(
            before.is_empty() && after.is_empty(),
            "whole products at the start of a line"
        );
        products
    }
}

/// A tile of rows and a panel.
#[derive(Clone, Copy)]
pub(crate) struct Pair {
    /// `[blocks, height, 16]` groups; twice the blocks when the rows are f32 and the panel bf16.
    pub(crate) rows: *const u32,
    /// `[blocks, 16, 32]` groups.
    pub(crate) panel: *const u32,
    /// Blocks of the panel.
    pub(crate) blocks: usize,
    /// Rows the tile has room for.
    pub(crate) height: usize,
    /// Rows that count; the others' products are garbage.
    pub(crate) count: usize,
    /// What a later tile needs: fetched into the second cache meanwhile, [`FETCHED_WORDS`] a block, as are later parts of the panel
    /// into the first. Any address will do.
    pub(crate) ahead: *const u32,
    /// Whether the products are added to what is there: a depth cut in pieces gives the bits of the whole, because each sum goes
    /// on where it stopped.
    pub(crate) accumulate: bool,
}

/// Which loop multiplies two formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Multiply {
    /// f32 rows, f32 panel.
    F32,
    /// f32 rows, bf16 panel, widened on the fly.
    Widen,
    /// bf16 on both sides.
    Bf16,
    /// int8 on both sides.
    Int8,
}

impl Multiply {
    /// The loop for rows and panels of these formats.
    pub(crate) fn of(rows: Format, panel: Format) -> Self {
        match (rows, panel) {
            (Format::F32, Format::F32) => Multiply::F32,
            (Format::F32, Format::Bf16) => Multiply::Widen,
            (Format::Bf16, Format::Bf16) => Multiply::Bf16,
            (Format::Int8, Format::Int8) => Multiply::Int8,
            (rows, panel) => unreachable!("nothing multiplies {rows:?} by {panel:?}"),
        }
    }

    /// Multiplies. Threads that call it are between [`enter`] and [`leave`].
    ///
    /// # Safety
    /// The pointers of `pair` reach as far as it says, at the start of a cache line; `simd` is present; for [`Multiply::Bf16`] it
    /// is one that [`Simd::multiplies_bf16`].
    #[inline]
    pub(crate) unsafe fn run(self, simd: Simd, pair: Pair, products: &mut Products) {
        let to = products.0.as_mut_ptr().cast::<f32>();
        // SAFETY: the caller's contract; the products have room for the tallest tile.
        unsafe {
            match self {
                Multiply::F32 => simd.run(fma::Tile::<false>(pair, to)),
                Multiply::Widen => simd.run(fma::Tile::<true>(pair, to)),
                #[cfg(target_arch = "x86_64")]
                Multiply::Bf16 if simd == Simd::Amx => amx::multiply::<false>(pair, to),
                #[cfg(target_arch = "x86_64")]
                Multiply::Bf16 => dot_bf16::multiply(pair, to),
                #[cfg(not(target_arch = "x86_64"))]
                Multiply::Bf16 => unreachable!("no instruction set here multiplies bf16"),
                Multiply::Int8 => match simd {
                    #[cfg(target_arch = "x86_64")]
                    Simd::Amx => amx::multiply::<true>(pair, to),
                    #[cfg(target_arch = "x86_64")]
                    Simd::Avx512Vnni | Simd::Avx512Bf16 => dot_int8::vnni(pair, to.cast()),
                    #[cfg(target_arch = "x86_64")]
                    Simd::Avx512 | Simd::Avx2 => dot_int8::avx2(pair, to.cast()),
                    _ => dot_int8::portable(pair, to.cast()),
                },
            }
        }
    }
}

/// Prepares the thread for tiles of an instruction set.
pub(crate) fn enter(simd: Simd) {
    #[cfg(target_arch = "x86_64")]
    if simd == Simd::Amx {
        // SAFETY: AMX is present, or `simd` would be another.
        unsafe { amx::configure() }
    }
    let _ = simd;
}

/// Undoes [`enter`]: a thread with tiles in use is dearer to switch.
pub(crate) fn leave(simd: Simd) {
    #[cfg(target_arch = "x86_64")]
    if simd == Simd::Amx {
        // SAFETY: as in `enter`.
        unsafe { amx::release() }
    }
    let _ = simd;
}
