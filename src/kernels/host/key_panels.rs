//! Keys and values of one head, packed like weights: the keys as columns, the values as what a row of probabilities is multiplied by.

use std::ops::Range;

use super::buffer::Buffer;
use super::format::{BLOCK_GROUPS, Format, PANEL_COLUMNS, bf16_bits};
use super::lanes::{Lanes, Task};
use super::simd::Simd;
use crate::kernels::pausing::give_way;

/// Numbers of the widest head.
const MAX_HEAD_DIM: usize = 512;

/// Columns of rows: those of heads side by side, from `start` on, in rows `stride` apart.
#[derive(Clone, Copy)]
pub(crate) struct Columns<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) stride: usize,
    pub(crate) start: usize,
}

impl<'a> Columns<'a> {
    /// One head of a row.
    pub(crate) fn head(&self, row: usize, head: usize, head_dim: usize) -> &'a [f32] {
        let at = row * self.stride + self.start + head * head_dim;
        &self.data[at..at + head_dim]
    }
}

/// Some rows of keys and values.
#[derive(Clone)]
pub(crate) struct KeyRows<'a> {
    pub(crate) keys: Columns<'a>,
    pub(crate) values: Columns<'a>,
    pub(crate) rows: Range<usize>,
}

/// Keys and values of one sequence and one head.
pub(crate) struct KeyPanels {
    /// `[panels of 32 keys, groups of the head's width, 32]`.
    pub(crate) keys: Buffer,
    /// `[panels of 32 numbers of the head's width, groups of keys, 32]`.
    pub(crate) values: Buffer,
    /// How many keys.
    pub(crate) count: usize,
}

/// A head of a key, and of the value beside it.
type KeyValue<'a> = (&'a [f32], &'a [f32]);

impl KeyPanels {
    /// Packs one head of a sequence's keys and values, which may lie in several pieces. What pads them is zero.
    pub(crate) fn pack(
        simd: Simd,
        format: Format,
        pieces: &[KeyRows<'_>],
        (head, head_dim): (usize, usize),
    ) -> Self {
        assert!(head_dim <= MAX_HEAD_DIM, "a head of {head_dim} numbers");
        let mut rows: Vec<KeyValue<'_>> = Vec::new();
        for piece in pieces {
            rows.extend(piece.rows.clone().map(|row| {
                let key = piece.keys.head(row, head, head_dim);
                (key, piece.values.head(row, head, head_dim))
            }));
        }
        let count = rows.len();
        let key_words = format.blocks(head_dim) * BLOCK_GROUPS * PANEL_COLUMNS;
        let value_words = format.blocks(count) * BLOCK_GROUPS * PANEL_COLUMNS;
        let mut keys = Buffer::zeroed(count.div_ceil(PANEL_COLUMNS) * key_words);
        let mut values = Buffer::zeroed(head_dim.div_ceil(PANEL_COLUMNS) * value_words);
        let key_panels = keys.words_mut().chunks_exact_mut(key_words);
        for (rows, panel) in rows.chunks(PANEL_COLUMNS).zip(key_panels) {
            give_way();
            simd.run(PackKeys {
                format,
                rows,
                panel,
            });
        }
        let value_panels = values.words_mut().chunks_exact_mut(value_words);
        for (panel, words) in value_panels.enumerate() {
            give_way();
            let columns = panel * PANEL_COLUMNS..head_dim.min((panel + 1) * PANEL_COLUMNS);
            simd.run(PackValues {
                format,
                rows: &rows,
                columns,
                words,
            });
        }
        KeyPanels {
            keys,
            values,
            count,
        }
    }
}

/// Up to 32 keys, as columns of a panel.
struct PackKeys<'a> {
    format: Format,
    rows: &'a [KeyValue<'a>],
    panel: &'a mut [u32],
}

impl Task for PackKeys<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // The groups of a key are made side by side, then put below each other.
        let mut groups = [0_u32; MAX_HEAD_DIM];
        for (column, (key, _)) in self.rows.iter().enumerate() {
            let used = key.len().div_ceil(self.format.group());
            if self.format == Format::Bf16 {
                let pairs = key.chunks_exact(2);
                if let [last] = pairs.remainder() {
                    groups[used - 1] = u32::from(bf16_bits(*last));
                }
                for (group, pair) in groups.iter_mut().zip(pairs) {
                    *group = u32::from(bf16_bits(pair[0])) | u32::from(bf16_bits(pair[1])) << 16;
                }
            } else {
                for (group, value) in groups.iter_mut().zip(*key) {
                    *group = value.to_bits();
                }
            }
            let column = self.panel[column..].iter_mut().step_by(PANEL_COLUMNS);
            for (to, group) in column.zip(&groups[..used]) {
                *to = *group;
            }
        }
    }
}

/// Up to 32 numbers of each value, as a panel.
struct PackValues<'a> {
    format: Format,
    rows: &'a [KeyValue<'a>],
    columns: Range<usize>,
    words: &'a mut [u32],
}

impl Task for PackValues<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let groups = self.rows.chunks(self.format.group());
        for (rows, words) in groups.zip(self.words.chunks_exact_mut(PANEL_COLUMNS)) {
            let first = &rows[0].1[self.columns.clone()];
            match (self.format, rows.get(1)) {
                (Format::Bf16, Some((_, second))) => {
                    let pairs = first.iter().zip(&second[self.columns.clone()]);
                    for (word, (&low, &high)) in words.iter_mut().zip(pairs) {
                        *word = u32::from(bf16_bits(low)) | u32::from(bf16_bits(high)) << 16;
                    }
                }
                (Format::Bf16, None) => {
                    for (word, &value) in words.iter_mut().zip(first) {
                        *word = u32::from(bf16_bits(value));
                    }
                }
                _ => {
                    for (word, value) in words.iter_mut().zip(first) {
                        *word = value.to_bits();
                    }
                }
            }
        }
    }
}
