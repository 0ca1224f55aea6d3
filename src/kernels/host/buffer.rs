//! Scratch memory that is taken, given back and taken again: a forward pass allocates in its first layer only.

use std::sync::{Mutex, PoisonError};

/// Bytes that stay allocated between forward passes; what is beyond goes back to the system.
const KEPT_BYTES: usize = 1 << 30;

/// Words of a cache line.
const LINE_WORDS: usize = 16;

/// A cache line: vectors and tiles load fastest from where one begins.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line([u32; LINE_WORDS]);

impl Line {
    /// Sixteen zeros.
    pub(crate) const ZERO: Line = Line([0; LINE_WORDS]);
}

/// The words of lines.
pub(crate) fn words(lines: &[Line]) -> &[u32] {
    // SAFETY: a line is sixteen words without padding, and a word needs less alignment.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * LINE_WORDS) }
}

/// The words of lines.
pub(crate) fn words_mut(lines: &mut [Line]) -> &mut [u32] {
    // SAFETY: as in `words`; any bits are a valid word.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * LINE_WORDS) }
}

/// What was given back, smallest first.
static FREE: Mutex<Vec<Vec<Line>>> = Mutex::new(Vec::new());

fn free() -> std::sync::MutexGuard<'static, Vec<Vec<Line>>> {
    // Every change under the lock is complete in itself.
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Four-byte words at the start of a cache line, read as f32 or as bits. Dropping a buffer gives its memory to the next one.
#[derive(Debug)]
pub(crate) struct Buffer {
    lines: Vec<Line>,
    len: usize,
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl Buffer {
    /// `len` words that hold whatever the last user left: the caller writes before it reads.
    pub(crate) fn stale(len: usize) -> Self {
        let needed = len.div_ceil(LINE_WORDS);
        let mut free = free();
        let at = free.partition_point(|lines| lines.len() < needed);
        let found = (at < free.len()).then(|| free.remove(at));
        drop(free);
        Buffer {
            lines: found.unwrap_or_else(|| vec![Line::ZERO; needed]),
            len,
        }
    }

    /// `len` zeros.
    pub(crate) fn zeroed(len: usize) -> Self {
        let mut buffer = Self::stale(len);
        buffer.words_mut().fill(0);
        buffer
    }

    /// The words as f32.
    pub(crate) fn f32s(&self) -> &[f32] {
        let words = self.words();
        // SAFETY: any bits are a valid f32, of the same size and alignment.
        unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), words.len()) }
    }

    /// The words as f32.
    pub(crate) fn f32s_mut(&mut self) -> &mut [f32] {
        let words = self.words_mut();
        // SAFETY: any bits are a valid f32, of the same size and alignment.
        unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len()) }
    }

    /// The words.
    pub(crate) fn words(&self) -> &[u32] {
        &words(&self.lines)[..self.len]
    }

    /// The words.
    pub(crate) fn words_mut(&mut self) -> &mut [u32] {
        &mut words_mut(&mut self.lines)[..self.len]
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Self {
        let mut copy = Self::stale(self.len);
        copy.words_mut().copy_from_slice(self.words());
        copy
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        let mut free = free();
        let at = free.partition_point(|other| other.len() < lines.len());
        free.insert(at, lines);
        let bytes = |lines: &Vec<Line>| lines.len() * size_of::<Line>();
        let mut kept: usize = free.iter().map(bytes).sum();
        while kept > KEPT_BYTES {
            kept -= free.pop().as_ref().map_or(kept, bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_aligned_and_a_zeroed_one_is_zero_after_another_used_its_memory() {
        for _ in 0..3 {
            let mut used = Buffer::stale(1000);
            assert_eq!(used.words().as_ptr() as usize % 64, 0);
            used.f32s_mut().fill(1.5);
            drop(used);
            assert!(Buffer::zeroed(999).f32s().iter().all(|&value| value == 0.0));
        }
    }

    #[test]
    fn a_clone_has_its_own_memory() {
        let mut buffer = Buffer::zeroed(40);
        let copy = buffer.clone();
        buffer.words_mut()[39] = 7;
        assert_eq!((copy.words()[39], buffer.words()[39]), (0, 7));
    }
}
