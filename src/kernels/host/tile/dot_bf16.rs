//! bf16 rows times a bf16 panel by `vdpbf16ps`: two products and two additions in f32 for each lane.

use std::arch::x86_64::*;

use super::super::format::{BLOCK_GROUPS, PANEL_COLUMNS};
use super::{Fetch, Pair};

/// # Safety
/// The pointers reach as far as `pair` says and `to` has room for the tile; AVX-512 F and BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn multiply(pair: Pair, to: *mut f32) {
    // SAFETY: the caller's contract.
    unsafe { for_count!(rows, pair, to) }
}

/// # Safety
/// As [`multiply`]; `ROWS <= height`.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn rows<const ROWS: usize>(pair: Pair, to: *mut f32) {
    // SAFETY: the caller's contract. A register of sixteen pairs is the same 64 bytes whatever its elements are called.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        if pair.accumulate {
            for (row, [first, second]) in sums.iter_mut().enumerate() {
                *first = _mm512_loadu_ps(to.add(row * PANEL_COLUMNS));
                *second = _mm512_loadu_ps(to.add(row * PANEL_COLUMNS + PANEL_COLUMNS / 2));
            }
        }
        let (mut x, mut w) = (pair.rows, pair.panel);
        let mut fetch = Fetch::of(pair);
        for _ in 0..pair.blocks {
            for group in 0..BLOCK_GROUPS {
                fetch.group(w);
                if group < ROWS {
                    Fetch::row(x, pair.height * BLOCK_GROUPS, group);
                }
                let low = w.cast::<__m512bh>().read();
                let high = w.add(PANEL_COLUMNS / 2).cast::<__m512bh>().read();
                for (row, [first, second]) in sums.iter_mut().enumerate() {
                    let x = _mm512_set1_epi32(*x.add(row * BLOCK_GROUPS + group) as i32);
                    let x = std::mem::transmute::<__m512i, __m512bh>(x);
                    *first = _mm512_dpbf16_ps(*first, x, low);
                    *second = _mm512_dpbf16_ps(*second, x, high);
                }
                w = w.add(PANEL_COLUMNS);
            }
            x = x.add(pair.height * BLOCK_GROUPS);
        }
        for (row, [first, second]) in sums.into_iter().enumerate() {
            _mm512_storeu_ps(to.add(row * PANEL_COLUMNS), first);
            _mm512_storeu_ps(to.add(row * PANEL_COLUMNS + PANEL_COLUMNS / 2), second);
        }
    }
}
