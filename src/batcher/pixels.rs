//! How much memory decoded pixels take, from when they are decoded until they are computed: bounded, for a small file may become very
//! many of them. In: bytes. Out: a hold on them, which is given back when it is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// All pixels of the process that wait for the device.
#[derive(Debug, Clone)]
pub(super) struct PixelMemory {
    held: Arc<AtomicUsize>,
    limit: usize,
}

/// A hold on the memory of some pixels.
#[derive(Debug, Default)]
pub struct Held(Option<(usize, Arc<AtomicUsize>)>);

impl PixelMemory {
    pub(super) fn new(limit: usize) -> Self {
        PixelMemory {
            held: Arc::default(),
            limit,
        }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Bytes held now.
    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Holds so many bytes more, if that many are free. None are free of charge: text holds nothing.
    pub(super) fn hold(&self, bytes: usize) -> Option<Held> {
        if bytes == 0 {
            return Some(Held(None));
        }
        let more = |held: usize| held.checked_add(bytes).filter(|held| *held <= self.limit);
        let (set, read) = (Ordering::Relaxed, Ordering::Relaxed);
        let before = self.held.fetch_update(set, read, more);
        before.ok()?;
        Some(Held(Some((bytes, Arc::clone(&self.held)))))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some((bytes, held)) = &self.0 {
            held.fetch_sub(*bytes, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_more_is_held_than_may_be_and_all_of_it_comes_back() {
        let memory = PixelMemory::new(1000);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let memory = &memory;
                scope.spawn(move || {
                    let mut holds = Vec::new();
                    for i in 0..2000 {
                        holds.extend(memory.hold(1 + (i * 7 + thread) % 300));
                        assert!(memory.held() <= 1000);
                        if i % 3 == 0 {
                            holds.clear();
                        }
                    }
                });
            }
        });
        assert_eq!(memory.held(), 0);
        let all = memory.hold(1000);
        assert!(all.is_some() && memory.hold(1).is_none() && memory.hold(0).is_some());
        assert!(memory.hold(usize::MAX).is_none());
    }
}
