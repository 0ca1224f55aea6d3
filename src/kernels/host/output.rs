//! Rows that several threads write, each at its own places.

use std::ops::Range;

use super::lanes::fetch;

/// Rows of `width` numbers, written by tasks at disjoint places.
#[derive(Clone, Copy)]
pub(crate) struct Output {
    start: *mut f32,
    rows: usize,
    width: usize,
}

// SAFETY: tasks write disjoint columns or rows of the same buffer; nobody reads it before all have ended.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

impl Output {
    /// Rows to be written over.
    pub(crate) fn of(rows: &mut [f32], width: usize) -> Self {
        Output {
            rows: rows.len() / width,
            width,
            start: rows.as_mut_ptr(),
        }
    }

    /// Fetches some columns of some rows.
    pub(crate) fn fetch(&self, rows: Range<usize>, columns: Range<usize>) {
        for row in rows {
            let start = self.start.wrapping_add(row * self.width + columns.start);
            fetch(start.cast(), columns.len() * size_of::<f32>());
        }
    }

    /// Some columns of a row.
    ///
    /// # Safety
    /// No other task touches these columns, and the rows live.
    #[expect(
        clippy::mut_from_ref,
        reason = "the pointer is the shared thing, each slice of it is disjoint"
    )]
    pub(crate) unsafe fn columns(&self, row: usize, columns: Range<usize>) -> &mut [f32] {
        assert!(
            row < self.rows && columns.end <= self.width,
            "inside the output"
        );
        // SAFETY: in bounds by the assertion, disjoint by the caller's contract.
        unsafe {
            let start = self.start.add(row * self.width + columns.start);
            std::slice::from_raw_parts_mut(start, columns.len())
        }
    }
}
