//! Scratch memory that is taken, given back and taken again: a forward pass allocates in its first layer only.

use std::sync::{Mutex, PoisonError};

/// Bytes that stay allocated between forward passes; what is beyond goes back to the system.
const KEPT_BYTES: usize = 1 << 30;

/// Classes in which a buffer is looked for, its own the first: less than twice as large, but for the very smallest. Passes of many sizes
/// then share a few buffers, where each would otherwise leave some of its own.
const CLASSES_SEARCHED: usize = 8;

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

/// What was given back, by size class, and how many bytes that is.
struct Free {
    classes: Vec<Vec<Vec<Line>>>,
    bytes: usize,
}

static FREE: Mutex<Free> = Mutex::new(Free {
    classes: Vec::new(),
    bytes: 0,
});

/// The size class of so many lines, and how many lines its buffers have: five to eight times a power of two, so that at most a fifth of a
/// new buffer is idle.
fn class_of(lines: usize) -> (usize, usize) {
    let last = lines.max(1) - 1;
    let shift = (usize::BITS - last.leading_zeros()).saturating_sub(3);
    let eighths = (last >> shift) + 1;
    (8 * shift as usize + eighths, eighths << shift)
}

impl Free {
    fn take(&mut self, class: usize) -> Option<Vec<Line>> {
        let end = self.classes.len().min(class + CLASSES_SEARCHED);
        let mut classes = self.classes.get_mut(class..end)?.iter_mut();
        let lines = classes.find_map(Vec::pop)?;
        self.bytes -= size_of_val(&lines[..]);
        Some(lines)
    }

    /// Keeps a buffer; what then goes back to the system, the largest first, is returned.
    fn give(&mut self, lines: Vec<Line>) -> Vec<Vec<Line>> {
        let (class, _) = class_of(lines.len());
        if self.classes.len() <= class {
            self.classes.resize_with(class + 1, Vec::new);
        }
        self.bytes += size_of_val(&lines[..]);
        self.classes[class].push(lines);
        let mut gone = Vec::new();
        while self.bytes > KEPT_BYTES {
            let Some(lines) = self.classes.iter_mut().rev().find_map(Vec::pop) else {
                break;
            };
            self.bytes -= size_of_val(&lines[..]);
            gone.push(lines);
        }
        gone
    }
}

fn free() -> std::sync::MutexGuard<'static, Free> {
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
        let (class, lines) = class_of(len.div_ceil(LINE_WORDS));
        let found = free().take(class);
        Buffer {
            lines: found.unwrap_or_else(|| vec![Line::ZERO; lines]),
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
        let gone = free().give(lines);
        // Not under the lock.
        drop(gone);
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
    fn a_size_class_has_room_and_at_most_a_quarter_more_and_finds_itself_again() {
        for lines in (0..5000).chain([1 << 20, (1 << 20) + 1, 123_456_789]) {
            let (class, size) = class_of(lines);
            assert!(
                size >= lines && size <= (lines + lines / 4).max(1),
                "{lines}: {size}"
            );
            assert_eq!(class_of(size), (class, size));
        }
    }

    #[test]
    fn a_free_buffer_serves_what_is_more_than_half_as_large() {
        let mut free = Free {
            classes: Vec::new(),
            bytes: 0,
        };
        let mut take = |lines| {
            free.give(vec![Line::ZERO; 1024]);
            let taken = free.take(class_of(lines).0);
            let found = taken.is_some();
            found.then_some(free.bytes)
        };
        assert_eq!((take(1024), take(513)), (Some(0), Some(0)));
        assert_eq!((take(512), take(1025)), (None, None));
    }

    #[test]
    fn a_clone_has_its_own_memory() {
        let mut buffer = Buffer::zeroed(40);
        let copy = buffer.clone();
        buffer.words_mut()[39] = 7;
        assert_eq!((copy.words()[39], buffer.words()[39]), (0, 7));
    }
}
