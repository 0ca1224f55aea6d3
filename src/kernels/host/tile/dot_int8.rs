//! int8 rows times an int8 panel. Sums are exact in i32, so every version gives the same numbers.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::super::format::{BLOCK_GROUPS, PANEL_COLUMNS};
#[cfg(target_arch = "x86_64")]
use super::Fetch;
use super::Pair;

/// Plain Rust.
///
/// # Safety
/// The pointers reach as far as `pair` says and `to` has room for the tile.
pub(super) unsafe fn portable(pair: Pair, to: *mut i32) {
    for row in 0..pair.count {
        let mut sums = [0_i32; PANEL_COLUMNS];
        if pair.accumulate {
            // SAFETY: the row is inside the tile.
            sums = unsafe {
                to.add(row * PANEL_COLUMNS)
                    .cast::<[i32; PANEL_COLUMNS]>()
                    .read()
            };
        }
        for at in 0..pair.blocks * BLOCK_GROUPS {
            let (block, group) = (at / BLOCK_GROUPS, at % BLOCK_GROUPS);
            // SAFETY: inside the tile and the panel.
            let (x, w) = unsafe {
                let x = *pair
                    .rows
                    .add((block * pair.height + row) * BLOCK_GROUPS + group);
                (x.to_le_bytes(), pair.panel.add(at * PANEL_COLUMNS))
            };
            for (column, sum) in sums.iter_mut().enumerate() {
                // SAFETY: a group has a word for each column.
                let w = unsafe { *w.add(column) }.to_le_bytes();
                for (x, w) in x.into_iter().zip(w) {
                    *sum += i32::from(x as i8) * i32::from(w as i8);
                }
            }
        }
        // SAFETY: the row is inside the tile.
        unsafe {
            std::ptr::copy_nonoverlapping(sums.as_ptr(), to.add(row * PANEL_COLUMNS), PANEL_COLUMNS)
        };
    }
}

/// By `vpmaddubsw`, which wants one side unsigned: the rows' magnitudes, with the rows' signs put on the weights. The pairwise
/// sums stay below 2 * 127 * 127 and so within i16.
///
/// # Safety
/// As [`portable`], and AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn avx2(pair: Pair, to: *mut i32) {
    // Three rows times sixteen columns fit sixteen registers with the widening's temporaries.
    for row in (0..pair.count).step_by(3) {
        for column in [0, PANEL_COLUMNS / 2] {
            // SAFETY: the height of an AVX2 tile is six, that of an AVX-512 one twelve: three rows from a multiple of three exist.
            unsafe {
                let ones = _mm256_set1_epi16(1);
                let mut sums = [[_mm256_setzero_si256(); 2]; 3];
                if pair.accumulate {
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let from = to.add((row + r) * PANEL_COLUMNS + column);
                        sums[0] = _mm256_loadu_si256(from.cast());
                        sums[1] = _mm256_loadu_si256(from.add(8).cast());
                    }
                }
                let (mut x, mut w) = (pair.rows.add(row * BLOCK_GROUPS), pair.panel.add(column));
                for _ in 0..pair.blocks {
                    for group in 0..BLOCK_GROUPS {
                        let ws = [
                            _mm256_loadu_si256(w.cast()),
                            _mm256_loadu_si256(w.add(8).cast()),
                        ];
                        for (r, sums) in sums.iter_mut().enumerate() {
                            let x = _mm256_set1_epi32(*x.add(r * BLOCK_GROUPS + group) as i32);
                            let magnitude = _mm256_abs_epi8(x);
                            for (sum, w) in sums.iter_mut().zip(ws) {
                                let pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(w, x));
                                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
                            }
                        }
                        w = w.add(PANEL_COLUMNS);
                    }
                    x = x.add(pair.height * BLOCK_GROUPS);
                }
                for (r, sums) in sums.into_iter().enumerate().take(pair.count - row) {
                    let to = to.add((row + r) * PANEL_COLUMNS + column);
                    _mm256_storeu_si256(to.cast(), sums[0]);
                    _mm256_storeu_si256(to.add(8).cast(), sums[1]);
                }
            }
        }
    }
}

/// By `vpdpbusd`, whose left side is unsigned: the rows carry an offset of 128, which the caller takes off again.
///
/// # Safety
/// As [`portable`], and AVX-512 F and VNNI.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
pub(super) unsafe fn vnni(pair: Pair, to: *mut i32) {
    // SAFETY: the caller's contract.
    unsafe { for_count!(vnni_rows, pair, to) }
}

/// # Safety
/// As [`vnni`]; `ROWS <= height`.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn vnni_rows<const ROWS: usize>(pair: Pair, to: *mut i32) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut sums = [[_mm512_setzero_si512(); 2]; ROWS];
        if pair.accumulate {
            for (row, [first, second]) in sums.iter_mut().enumerate() {
                *first = _mm512_loadu_si512(to.add(row * PANEL_COLUMNS).cast());
                *second =
                    _mm512_loadu_si512(to.add(row * PANEL_COLUMNS + PANEL_COLUMNS / 2).cast());
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
                let low = _mm512_load_si512(w.cast());
                let high = _mm512_load_si512(w.add(PANEL_COLUMNS / 2).cast());
                for (row, [first, second]) in sums.iter_mut().enumerate() {
                    let x = _mm512_set1_epi32(*x.add(row * BLOCK_GROUPS + group) as i32);
                    *first = _mm512_dpbusd_epi32(*first, x, low);
                    *second = _mm512_dpbusd_epi32(*second, x, high);
                }
                w = w.add(PANEL_COLUMNS);
            }
            x = x.add(pair.height * BLOCK_GROUPS);
        }
        for (row, [first, second]) in sums.into_iter().enumerate() {
            _mm512_storeu_si512(to.add(row * PANEL_COLUMNS).cast(), first);
            _mm512_storeu_si512(
                to.add(row * PANEL_COLUMNS + PANEL_COLUMNS / 2).cast(),
                second,
            );
        }
    }
}
