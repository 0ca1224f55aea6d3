//! Scratch memory that is taken, given back and taken again: a forward pass allocates in its first layer only.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// Bytes that stay allocated between forward passes; what is beyond goes back to the system.
const KEPT_BYTES: usize = 1 << 30;

/// Bytes there are beside what was in use at once: small passes of different sizes then keep what each needs.
///
/// # Source
/// `cargo bench --bench serving -- throughput`: without, the first seconds of 32 texts at once zeroed 340 MB of pages a second.
const SPARE_BYTES: usize = 64 << 20;

/// Classes in which a buffer is looked for, its own the first: less than twice as large, but for the very smallest. Passes of many sizes
/// then share a few buffers, where each would otherwise leave some of its own.
const CLASSES_SEARCHED: usize = 8;

/// Bytes from which on memory is the system's again as soon as it is freed.
///
/// # Source
/// `cargo bench --bench serving -- mixed` with the server stopped for 0.8 s every four seconds: 216 MB before the first stop and 248 to 283
/// after it; at the library's own size, with [`SPARE_BYTES`] less in the pool, 242 to 280 MB before and 358 to 434 after. Both without
/// [`return_free_memory`].
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const RETURNED_FROM: libc::c_int = 1 << 20;

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

/// Has the C library give large memory back when it is freed, in the whole process; without it, what the pool lets go stays.
///
/// The GNU library raises the size from which it does so with each such piece that is freed, to 32 MB. Pixels, bodies and buffers of ever
/// other sizes then share its heaps with what is small and stays, and after every rush the process is larger than after the last. With
/// other libraries nothing changes.
pub fn return_large_memory() {
    // SAFETY: it takes numbers only, and may be called at any time. Where it refuses, nothing has changed.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, RETURNED_FROM);
    }
}

/// Gives the system back what the C library keeps of freed memory. It takes a few milliseconds, and each heap is locked for its share.
///
/// What a rush of requests needed lies free between what is still in use, where the GNU library keeps it until something is freed at the
/// heap's very end. With other libraries nothing happens.
///
/// # Source
/// `cargo bench --bench serving -- mixed` with the server stopped for 0.8 s every four seconds: the heaps had 53 MB before, 80 MB at most and
/// 75 MB from then on; with this every ten seconds 37, 65 and a minute later 43 MB.
pub fn return_free_memory() {
    // SAFETY: it takes a number only, and may be called at any time.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::malloc_trim(0);
    }
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

/// What was given back, by size class, and how much memory there is.
///
/// Together with what is in use it is at most `spare` bytes more than was in use at once before: who finds no buffer of a fitting size
/// takes the place of those that were not needed for longest. Else passes of ever other sizes would each leave some of their own.
struct Pool {
    /// Of each class, those given back last at the end, with when that was.
    classes: Vec<VecDeque<(u64, Vec<Line>)>>,
    /// Bytes of them.
    free: usize,
    /// Bytes of buffers in use.
    used: usize,
    /// The most there ever were.
    most_used: usize,
    /// Bytes there may be beside.
    spare: usize,
    /// Buffers given back so far.
    given: u64,
}

static POOL: Mutex<Pool> = Mutex::new(Pool::new(SPARE_BYTES));

/// The size class of so many lines, and how many lines its buffers have: five to eight times a power of two, so that at most a fifth of a
/// new buffer is idle.
fn class_of(lines: usize) -> (usize, usize) {
    let last = lines.max(1) - 1;
    let shift = (usize::BITS - last.leading_zeros()).saturating_sub(3);
    let eighths = (last >> shift) + 1;
    (8 * shift as usize + eighths, eighths << shift)
}

impl Pool {
    const fn new(spare: usize) -> Self {
        Pool {
            classes: Vec::new(),
            free: 0,
            used: 0,
            most_used: 0,
            spare,
            given: 0,
        }
    }

    /// A buffer of at least so many lines, a size class's, or what goes back to the system before another is allocated.
    fn take(&mut self, lines: usize) -> Result<Vec<Line>, Vec<Vec<Line>>> {
        let (class, _) = class_of(lines);
        let end = self.classes.len().min(class + CLASSES_SEARCHED);
        let fitting = self.classes.get_mut(class.min(end)..end);
        let mut classes = fitting.into_iter().flatten();
        if let Some((_, lines)) = classes.find_map(VecDeque::pop_back) {
            self.free -= size_of_val(&lines[..]);
            self.count(size_of_val(&lines[..]));
            return Ok(lines);
        }
        self.count(lines * size_of::<Line>());
        let mut gone = Vec::new();
        while self.used + self.free > self.most_used + self.spare {
            let classes = self.classes.iter_mut();
            let oldest =
                classes.min_by_key(|class| class.front().map_or(u64::MAX, |first| first.0));
            let Some((_, lines)) = oldest.and_then(VecDeque::pop_front) else {
                break;
            };
            self.free -= size_of_val(&lines[..]);
            gone.push(lines);
        }
        Err(gone)
    }

    /// Counts a buffer of so many bytes as in use.
    fn count(&mut self, bytes: usize) {
        self.used += bytes;
        self.most_used = self.most_used.max(self.used);
    }

    /// Keeps a buffer; what then goes back to the system, the largest first, is returned.
    fn give(&mut self, lines: Vec<Line>) -> Vec<Vec<Line>> {
        let (class, _) = class_of(lines.len());
        if self.classes.len() <= class {
            self.classes.resize_with(class + 1, VecDeque::new);
        }
        let bytes = size_of_val(&lines[..]);
        self.used -= bytes;
        self.free += bytes;
        self.given += 1;
        self.classes[class].push_back((self.given, lines));
        let mut gone = Vec::new();
        while self.free > KEPT_BYTES {
            let mut classes = self.classes.iter_mut().rev();
            let Some((_, lines)) = classes.find_map(VecDeque::pop_front) else {
                break;
            };
            self.free -= size_of_val(&lines[..]);
            gone.push(lines);
        }
        gone
    }
}

fn pool() -> std::sync::MutexGuard<'static, Pool> {
    // Every change under the lock is complete in itself.
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
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
        let (_, lines) = class_of(len.div_ceil(LINE_WORDS));
        let taken = pool().take(lines);
        let lines = taken.unwrap_or_else(|gone| {
            // Before there is more, and not under the lock.
            drop(gone);
            vec![Line::ZERO; lines]
        });
        Buffer { lines, len }
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
        let gone = pool().give(lines);
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

    /// Takes a buffer of so many lines, allocating it where there is none; whether there was one, and the bytes that went for it.
    fn taken(pool: &mut Pool, lines: usize) -> (Vec<Line>, Option<usize>) {
        let (_, whole) = class_of(lines);
        match pool.take(whole) {
            Ok(lines) => (lines, None),
            Err(gone) => {
                let bytes = gone.iter().map(|lines| size_of_val(&lines[..])).sum();
                (vec![Line::ZERO; whole], Some(bytes))
            }
        }
    }

    #[test]
    fn a_free_buffer_serves_what_is_more_than_half_as_large() {
        for (lines, is_found) in [(1024, true), (513, true), (512, false), (1025, false)] {
            let mut pool = Pool::new(0);
            let (first, _) = taken(&mut pool, 1024);
            assert!(pool.give(first).is_empty());
            let (own, gone) = taken(&mut pool, lines);
            assert_eq!(gone.is_none(), is_found, "{lines}");
            assert_eq!(pool.used, size_of_val(&own[..]), "{lines}");
        }
    }

    #[test]
    fn there_is_never_more_than_was_in_use_at_once_and_what_waited_longest_goes_first() {
        let mut pool = Pool::new(0);
        let (large, _) = taken(&mut pool, 1024);
        let (small, _) = taken(&mut pool, 128);
        pool.give(large);
        pool.give(small);
        let most = 64 * (1024 + 128);
        // Nothing of its size: the large one makes room, the small one can stay.
        let (middle, gone) = taken(&mut pool, 320);
        assert_eq!((gone, pool.free), (Some(64 * 1024), 64 * 128));
        pool.give(middle);
        let (again, gone) = taken(&mut pool, 128);
        assert_eq!((again.len(), gone), (128, None));
        pool.give(again);
        assert_eq!((pool.used, pool.free, pool.most_used), (0, 64 * 448, most));
        // Passes of ever other sizes.
        for step in 0..1000 {
            let sizes = [1 + step * 37 % 500, 1 + step * 101 % 400];
            let held: Vec<_> = sizes.map(|lines| taken(&mut pool, lines).0).into();
            assert!(pool.used + pool.free <= most, "step {step}");
            for lines in held {
                pool.give(lines);
            }
        }
        assert_eq!((pool.used, pool.most_used), (0, most));
    }

    #[test]
    fn a_clone_has_its_own_memory() {
        let mut buffer = Buffer::zeroed(40);
        let copy = buffer.clone();
        buffer.words_mut()[39] = 7;
        assert_eq!((copy.words()[39], buffer.words()[39]), (0, 7));
    }
}
