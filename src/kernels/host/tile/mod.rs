//! The innermost loops: one tile of rows times one panel of 32 columns, over the whole depth.
//!
//! Every sum runs along the depth in an order that neither the other rows nor the other columns change, so a row's products are
//! the same bits in any batch. Between instruction sets the order differs, except in int8, where sums are exact.

/// Calls a loop in the version compiled for the rows that count, at most twelve.
#[cfg(target_arch = "x86_64")]
macro_rules! for_count {
    ($rows:ident, $pair:ident, $to:ident) => {
        match $pair.count {
            1 => $rows::<1>($pair, $to),
            2 => $rows::<2>($pair, $to),
            3 => $rows::<3>($pair, $to),
            4 => $rows::<4>($pair, $to),
            5 => $rows::<5>($pair, $to),
            6 => $rows::<6>($pair, $to),
            7 => $rows::<7>($pair, $to),
            8 => $rows::<8>($pair, $to),
            9 => $rows::<9>($pair, $to),
            10 => $rows::<10>($pair, $to),
            11 => $rows::<11>($pair, $to),
            _ => $rows::<12>($pair, $to),
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod dot_bf16;
mod dot_int8;
mod fma;

use super::format::{BLOCK_GROUPS, Format, PANEL_COLUMNS};
use super::lanes::{fetch, fetch_late};
use super::operand::MAX_HEIGHT;
use super::simd::Simd;

/// Words fetched ahead with each group, of tiles of rows: with a block an eighth of a panel's, or a third of those of twelve rows.
pub(crate) const FETCHED_WORDS: usize = 4;

/// The same of panels that pass by, a line: half as fast as they do.
pub(crate) const STREAMED_WORDS: usize = 16;

/// A tile's products, `[height][32]`: f32, or for int8 sides i32 in the same bits.
#[repr(C, align(64))]
pub(crate) struct Products(
    pub(crate) [[f32; PANEL_COLUMNS]; MAX_HEIGHT],
    [[f32; PANEL_COLUMNS]; APART],
);

/// Rows left between one array of products and the next: 4 KiB apart, the same rows of sixteen of them would not fit the ways of the
/// first cache, and attention's scores would leave it before they are read.
const APART: usize = 2;

/// Numbers of [`Products`].
pub(crate) const PRODUCTS: usize = PANEL_COLUMNS * (MAX_HEIGHT + APART);

impl Products {
    /// All zero.
    pub(crate) const ZERO: Products = Products(
        [[0.0; PANEL_COLUMNS]; MAX_HEIGHT],
        [[0.0; PANEL_COLUMNS]; APART],
    );

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
    /// What is needed later: fetched into the second cache meanwhile, as are later parts of the panel into the first. Any address
    /// will do.
    pub(crate) ahead: *const u32,
    /// Words of it with each group; AMX fetches [`FETCHED_WORDS`] whatever this says.
    pub(crate) fetched: usize,
    /// Whether the products are added to what is there: a depth cut in pieces gives the bits of the whole, because each sum goes
    /// on where it stopped.
    pub(crate) accumulate: bool,
}

/// Groups of a panel, and blocks of rows, that are fetched into the first cache before they are needed: the cores' own prefetching
/// falls behind loops this dense, by a tenth to a fifth of their time (`benches/linears.rs`).
const GROUPS_AHEAD: usize = 16;
const BLOCKS_AHEAD: usize = 2;

/// What a loop over a [`Pair`] with 32 columns at a time fetches.
struct Fetch {
    ahead: *const u32,
    words: usize,
}

impl Fetch {
    #[inline(always)]
    fn of(pair: Pair) -> Self {
        Fetch {
            ahead: pair.ahead,
            words: pair.fetched,
        }
    }

    /// With the group of a panel that begins here: a later one, and what is needed later still, into the second cache. Evenly: in
    /// bursts it would take the buffers that what is needed first waits for.
    #[inline(always)]
    fn group(&mut self, group: *const u32) {
        fetch_late(self.ahead.cast());
        self.ahead = self.ahead.wrapping_add(self.words);
        let later = group.wrapping_add(GROUPS_AHEAD * PANEL_COLUMNS);
        fetch(later.cast(), PANEL_COLUMNS * size_of::<u32>());
    }

    /// With each row of the block of rows that begins here: the same row of a later block.
    #[inline(always)]
    fn row(block: *const u32, block_words: usize, row: usize) {
        let later = block.wrapping_add(BLOCKS_AHEAD * block_words + row * BLOCK_GROUPS);
        fetch(later.cast(), BLOCK_GROUPS * size_of::<u32>());
    }
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
