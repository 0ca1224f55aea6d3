//! The right side of a product: weights packed once, when they are loaded.
//!
//! `[panels, groups, 32 columns]` groups of four bytes: a panel is 32 outputs, and what a tile needs next of it always lies next.
//! Rows of the checkpoint become columns here.

use std::io;

use memmap2::MmapMut;
use rayon::prelude::*;

use super::format::{
    BLOCK_GROUPS, Format, PANEL_COLUMNS, bf16_bits, int8, int8_scale, largest_magnitude,
};
use super::lanes::{Lanes, Task};
use super::mixing::{Mix, order};
use super::simd::Simd;
use crate::kernels::weight::{HostTensor, WeightDtype};

/// Panels from this size on ask for huge pages: fewer page faults while packing, fewer misses of the TLB while multiplying.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// How the rows of several weights follow each other as columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrangement {
    /// One weight after the other.
    Stacked,
    /// Sixteen of the first, then the same sixteen of the second: a gate beside what it gates.
    Paired,
}

/// Columns of each weight in a panel of a [`Arrangement::Paired`] pair.
pub(crate) const PAIRED_COLUMNS: usize = PANEL_COLUMNS / 2;

/// Packed weights.
pub(crate) struct Panels {
    pub(crate) format: Format,
    pub(crate) arrangement: Arrangement,
    /// Outputs; of each weight, when paired.
    pub(crate) columns: usize,
    pub(crate) depth: usize,
    /// Blocks of sixteen groups along the depth.
    pub(crate) blocks: usize,
    memory: MmapMut,
    /// `[panels * 32]`, for int8: what one unit of a column is worth.
    scales: Vec<f32>,
    /// `[panels * 32]`, for int8: the sum of a column times 128, which an operand with an offset adds to its products.
    offsets: Vec<i32>,
}

impl std::fmt::Debug for Panels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Panels")
            .field("format", &self.format)
            .field("columns", &self.columns)
            .field("depth", &self.depth)
            .finish_non_exhaustive()
    }
}

impl Panels {
    /// Packs weights of the same depth, `[rows, depth]` each.
    ///
    /// The caller has checked the shapes. Runs on the threads of the pool it is called in.
    ///
    /// # Errors
    /// When there is no memory.
    pub(crate) fn pack(
        format: Format,
        arrangement: Arrangement,
        sources: &[HostTensor],
    ) -> io::Result<Self> {
        let depth = sources[0].shape[1..].iter().product::<usize>();
        let rows: usize = sources.iter().map(|source| source.shape[0]).sum();
        let (columns, panels) = match arrangement {
            Arrangement::Stacked => (rows, rows.div_ceil(PANEL_COLUMNS)),
            Arrangement::Paired => (rows / 2, (rows / 2).div_ceil(PAIRED_COLUMNS)),
        };
        let blocks = format.blocks(depth);
        let panel_words = blocks * BLOCK_GROUPS * PANEL_COLUMNS;
        let mut memory = allocate(panels * panel_words)?;
        let scaled = if format == Format::Int8 {
            panels * PANEL_COLUMNS
        } else {
            0
        };
        let (mut scales, mut offsets) = (vec![1.0; scaled], vec![0; scaled]);
        let row_of = |panel: usize, column: usize| source_row(sources, arrangement, panel, column);
        // SAFETY: any bits are a valid word.
        let all_words = unsafe { &mut memory.align_to_mut::<u32>().1[..panels * panel_words] };
        if format == Format::Int8 {
            all_words
                .par_chunks_mut(panel_words)
                .zip(
                    scales
                        .par_chunks_mut(PANEL_COLUMNS)
                        .zip(offsets.par_chunks_mut(PANEL_COLUMNS)),
                )
                .enumerate()
                .for_each(|(panel, (words, (scales, offsets)))| {
                    pack_int8(
                        words,
                        depth,
                        |column| row_of(panel, column),
                        (scales, offsets),
                    );
                });
        } else {
            all_words
                .par_chunks_mut(panel_words)
                .enumerate()
                .for_each(|(panel, words)| {
                    pack_panel(format, words, depth, |column| row_of(panel, column));
                });
        }
        Ok(Panels {
            format,
            arrangement,
            columns,
            depth,
            blocks,
            memory,
            scales,
            offsets,
        })
    }

    /// Number of panels.
    pub(crate) fn panels(&self) -> usize {
        self.columns.div_ceil(self.width())
    }

    fn panel_words(&self) -> usize {
        self.blocks * BLOCK_GROUPS * PANEL_COLUMNS
    }

    /// Bytes of one panel.
    pub(crate) fn panel_bytes(&self) -> usize {
        self.panel_words() * 4
    }

    /// The words of a panel and of those after it.
    pub(crate) fn panel(&self, panel: usize) -> &[u32] {
        &words(&self.memory)[panel * self.panel_words()..]
    }

    /// Scale and offset of each column of a panel of int8.
    pub(crate) fn scales(&self, panel: usize) -> (&[f32], &[i32]) {
        let columns = panel * PANEL_COLUMNS..(panel + 1) * PANEL_COLUMNS;
        (&self.scales[columns.clone()], &self.offsets[columns])
    }

    /// Outputs one panel holds, and the first of them.
    pub(crate) fn outputs(&self, panel: usize) -> std::ops::Range<usize> {
        let width = self.width();
        panel * width..self.columns.min((panel + 1) * width)
    }

    /// Outputs of a whole panel.
    fn width(&self) -> usize {
        match self.arrangement {
            Arrangement::Stacked => PANEL_COLUMNS,
            Arrangement::Paired => PAIRED_COLUMNS,
        }
    }
}

/// Zeros, on huge pages where the system has them.
fn allocate(word_count: usize) -> io::Result<MmapMut> {
    let memory = MmapMut::map_anon((word_count * 4).max(1))?;
    #[cfg(target_os = "linux")]
    if memory.len() >= HUGE_PAGE_BYTES {
        // A refusal costs speed only.
        let _ = memory.advise(memmap2::Advice::HugePage);
    }
    Ok(memory)
}

/// The words of a map, which begins a page.
fn words(memory: &[u8]) -> &[u32] {
    // SAFETY: any bits are a valid word.
    unsafe { memory.align_to().1 }
}

/// The bytes of the checkpoint's row that becomes a column of a panel; `None` where the panel is padded.
fn source_row(
    sources: &[HostTensor],
    arrangement: Arrangement,
    panel: usize,
    column: usize,
) -> Option<(WeightDtype, &[u8])> {
    let (mut row, sources) = match arrangement {
        Arrangement::Stacked => (panel * PANEL_COLUMNS + column, sources),
        Arrangement::Paired => {
            let which = column / PAIRED_COLUMNS;
            (
                panel * PAIRED_COLUMNS + column % PAIRED_COLUMNS,
                &sources[which..=which],
            )
        }
    };
    for source in sources {
        let rows = source.shape[0];
        if row < rows {
            let bytes = source.range.len() / rows;
            return Some((
                source.dtype,
                &source.bytes()[row * bytes..(row + 1) * bytes],
            ));
        }
        row -= rows;
    }
    None
}

/// A bf16 or f32 panel. Sixteen groups of all columns at a time, so that what is written stays in the first cache.
fn pack_panel<'a>(
    format: Format,
    panel: &mut [u32],
    depth: usize,
    row: impl Fn(usize) -> Option<(WeightDtype, &'a [u8])>,
) {
    let rows: [_; PANEL_COLUMNS] = std::array::from_fn(row);
    let width = format.group() * BLOCK_GROUPS;
    for (block, words) in panel
        .chunks_exact_mut(BLOCK_GROUPS * PANEL_COLUMNS)
        .enumerate()
    {
        let numbers = block * width..depth.min((block + 1) * width);
        for (column, row) in rows.iter().enumerate() {
            let Some((dtype, bytes)) = row else { continue };
            let size = dtype.size_bytes();
            let bytes = &bytes[numbers.start * size..numbers.end * size];
            match (format, dtype) {
                (Format::Bf16, WeightDtype::Bf16) => pack_pairs(bytes, &mut words[column..]),
                (Format::Bf16, _) => {
                    let mut halves = [0_u8; 4 * BLOCK_GROUPS];
                    for (half, value) in halves.chunks_exact_mut(2).zip(dtype.values(bytes)) {
                        half.copy_from_slice(&bf16_bits(value).to_le_bytes());
                    }
                    pack_pairs(&halves[..2 * numbers.len()], &mut words[column..]);
                }
                _ => {
                    for (word, value) in words[column..]
                        .iter_mut()
                        .step_by(PANEL_COLUMNS)
                        .zip(dtype.values(bytes))
                    {
                        *word = value.to_bits();
                    }
                }
            }
        }
    }
}

/// bf16 numbers, two to a word, a word to each row of the panel.
fn pack_pairs(bytes: &[u8], column: &mut [u32]) {
    let pairs = bytes.chunks_exact(4);
    let odd = pairs.remainder();
    let mut words = column.iter_mut().step_by(PANEL_COLUMNS);
    for (pair, word) in pairs.zip(words.by_ref()) {
        *word = u32::from_le_bytes([pair[0], pair[1], pair[2], pair[3]]);
    }
    if let ([low, high], Some(word)) = (odd, words.next()) {
        *word = u32::from_le_bytes([*low, *high, 0, 0]);
    }
}

/// An int8 panel: each column mixed, then scaled so that its largest magnitude is 127.
fn pack_int8<'a>(
    panel: &mut [u32],
    depth: usize,
    row: impl Fn(usize) -> Option<(WeightDtype, &'a [u8])>,
    (scales, offsets): (&mut [f32], &mut [i32]),
) {
    let simd = Simd::detect();
    let mut values = vec![0.0_f32; depth];
    // Columns one after the other, then all of them sixteen groups at a time, so that what is written stays in the first cache.
    let mut rounded = vec![0_u8; PANEL_COLUMNS * depth];
    for (column, rounded) in rounded.chunks_exact_mut(depth).enumerate() {
        let Some((dtype, bytes)) = row(column) else {
            continue;
        };
        simd.run(Read {
            dtype,
            bytes,
            to: &mut values,
        });
        simd.run(Mix(&mut values));
        let mut scale = 0.0;
        let mut sum = 0;
        simd.run(RoundColumn {
            values: &values,
            to: &mut *rounded,
            scale: &mut scale,
            sum: &mut sum,
        });
        // What mixing made longer on both sides.
        (scales[column], offsets[column]) = (scale / order(depth) as f32, 128 * sum);
    }
    let width = 4 * BLOCK_GROUPS;
    for (block, words) in panel
        .chunks_exact_mut(BLOCK_GROUPS * PANEL_COLUMNS)
        .enumerate()
    {
        let numbers = block * width..depth.min((block + 1) * width);
        for (column, rounded) in rounded.chunks_exact(depth).enumerate() {
            pack_fours(&rounded[numbers.clone()], &mut words[column..]);
        }
    }
}

/// int8 numbers, four to a word, a word to each row of the panel.
fn pack_fours(bytes: &[u8], column: &mut [u32]) {
    let (fours, rest) = bytes.as_chunks();
    let mut words = column.iter_mut().step_by(PANEL_COLUMNS);
    for (four, word) in fours.iter().zip(words.by_ref()) {
        *word = u32::from_le_bytes(*four);
    }
    if let (false, Some(word)) = (rest.is_empty(), words.next()) {
        let mut padded = [0; 4];
        padded[..rest.len()].copy_from_slice(rest);
        *word = u32::from_le_bytes(padded);
    }
}

/// A row of the checkpoint as f32.
struct Read<'a> {
    dtype: WeightDtype,
    bytes: &'a [u8],
    to: &'a mut [f32],
}

impl Task for Read<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        self.dtype.read(self.bytes, self.to);
    }
}

/// A column of weights in int8, with its scale and its sum.
struct RoundColumn<'a> {
    values: &'a [f32],
    to: &'a mut [u8],
    scale: &'a mut f32,
    sum: &'a mut i32,
}

impl Task for RoundColumn<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let scale = int8_scale(largest_magnitude(self.values));
        let inverse = 1.0 / scale;
        // Two loops, and the sum in a register: vector code.
        for (to, &value) in self.to.iter_mut().zip(self.values) {
            *to = int8(value, inverse) as u8;
        }
        let sum = self
            .to
            .iter()
            .map(|&rounded| i32::from(rounded as i8))
            .sum();
        (*self.scale, *self.sum) = (scale, sum);
    }
}
