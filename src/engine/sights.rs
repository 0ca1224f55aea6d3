//! What the vision tower said of pictures and videos, kept for when they come again. In: features by media. Out: the same bits.

use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::unsync::Cache;

use crate::model::{MediaKey, Task, Tenant, VisionFeatures};

/// Which model's, whose, and of what.
pub(super) type SightKey = (Task, Tenant, MediaKey);

#[derive(Debug, Clone)]
struct ByBytes;

impl Weighter<SightKey, Arc<VisionFeatures>> for ByBytes {
    fn weight(&self, _: &SightKey, features: &Arc<VisionFeatures>) -> u64 {
        // Never 0: what weighs nothing would stay for ever.
        features.bytes().max(1) as u64
    }
}

/// Typical size of an entry, to make the table for: a picture of 256 vision tokens in the 2B.
const TYPICAL_BYTES: usize = 8 << 20;

/// The features used lately, each tenant's apart.
#[derive(Debug)]
pub(super) struct Sights {
    kept: Cache<SightKey, Arc<VisionFeatures>, ByBytes>,
    max_bytes: usize,
}

impl Sights {
    /// Keeps as many as fit `max_bytes`; 0 keeps none.
    pub(super) fn new(max_bytes: usize) -> Self {
        let expected = max_bytes / TYPICAL_BYTES + 1;
        Sights {
            kept: Cache::with_weighter(expected, max_bytes as u64, ByBytes),
            max_bytes,
        }
    }

    pub(super) fn is_off(&self) -> bool {
        self.max_bytes == 0
    }

    /// Whether something of that size is worth copying.
    pub(super) fn has_room_for(&self, bytes: usize) -> bool {
        bytes <= self.max_bytes
    }

    pub(super) fn get(&mut self, key: &SightKey) -> Option<Arc<VisionFeatures>> {
        self.kept.get(key).cloned()
    }

    pub(super) fn insert(&mut self, key: SightKey, features: VisionFeatures) {
        self.kept.insert(key, Arc::new(features));
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        self.kept.weight()
    }
}
