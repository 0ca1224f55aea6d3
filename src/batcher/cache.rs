//! Rows that were computed before, by whose and what they are, bounded in bytes. In: rows. Out: the same bits.

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};

use super::content::ContentKey;
use crate::model::Tenant;

/// Whose input, and which.
pub(super) type CacheKey = (Tenant, ContentKey);

/// What a row takes beside its numbers: its key, and its place in the table.
const ENTRY_BYTES: u64 = 128;

/// Expected width of a row, to size the table by; wrong guesses cost a resize.
const TYPICAL_ROW_BYTES: usize = 8192;

#[derive(Debug, Clone)]
struct ByBytes;

impl Weighter<CacheKey, Box<[f32]>> for ByBytes {
    fn weight(&self, _: &CacheKey, row: &Box<[f32]>) -> u64 {
        ENTRY_BYTES + size_of_val::<[f32]>(row) as u64
    }
}

/// The rows used lately.
#[derive(Debug)]
pub(super) struct RowCache(Cache<CacheKey, Box<[f32]>, ByBytes>);

impl RowCache {
    /// Holds up to `max_bytes`; `None` for 0, which holds nothing.
    pub(super) fn new(max_bytes: usize) -> Option<Self> {
        if max_bytes == 0 {
            return None;
        }
        // One shard: each would hold only its part of the bytes, and a lookup is far shorter than what it saves.
        let options = OptionsBuilder::new()
            .shards(1)
            .estimated_items_capacity(max_bytes / TYPICAL_ROW_BYTES + 1)
            .weight_capacity(max_bytes as u64)
            .build()
            .ok()?;
        Some(RowCache(Cache::with_options(
            options,
            ByBytes,
            DefaultHashBuilder::default(),
            DefaultLifecycle::default(),
        )))
    }

    pub(super) fn get(&self, key: CacheKey) -> Option<Vec<f32>> {
        self.0.get(&key).map(Vec::from)
    }

    pub(super) fn insert(&self, key: CacheKey, row: &[f32]) {
        self.0.insert(key, row.into());
    }

    /// Bytes in use.
    pub(super) fn bytes(&self) -> u64 {
        self.0.weight()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(tenant: u128, number: u64) -> CacheKey {
        (Tenant(tenant), ContentKey::made_of(number))
    }

    #[test]
    fn a_row_comes_back_bit_for_bit_to_its_own_tenant_only() {
        let cache = RowCache::new(1 << 20).unwrap();
        let row = [1.0, -0.0, f32::MIN_POSITIVE / 2.0, 0.1];
        cache.insert(key(1, 1), &row);
        let found = cache.get(key(1, 1)).unwrap();
        let bits = |row: &[f32]| row.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&found), bits(&row));
        assert_eq!(cache.get(key(2, 1)), None);
        assert_eq!(cache.get(key(1, 2)), None);
    }

    #[test]
    fn it_never_holds_more_than_it_may_and_keeps_what_is_used() {
        let bytes = 100 * (ENTRY_BYTES as usize + 400);
        let cache = RowCache::new(bytes).unwrap();
        cache.insert(key(1, 0), &[0.5; 100]);
        for number in 1..2000 {
            cache.insert(key(1, number), &[1.0; 100]);
            assert!(cache.bytes() <= bytes as u64);
            assert!(
                cache.get(key(1, 0)).is_some(),
                "used all the time, gone at {number}"
            );
        }
        assert!(cache.bytes() > bytes as u64 / 2);
        let kept = (0..2000).filter(|number| cache.get(key(1, *number)).is_some());
        assert!((50..=100).contains(&kept.count()));
        assert!(RowCache::new(0).is_none());
    }
}
