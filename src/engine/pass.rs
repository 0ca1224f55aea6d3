//! A forward pass, and what it keeps for later ones: keys and values of the prefixes that requests have in common, and what the vision
//! tower said of pictures that come again.
//!
//! In: a [`PackedBatch`]. Out: an [`Encoded`] for each sequence, the same bits whether any of it was at hand or not.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::Result;

use super::Encoded;
use super::sights::Sights;
use crate::kernels::Activations;
use crate::model::{PackedBatch, Prefix, Qwen3VlEncoder, Reuse, Tenant, VisionFeatures};
use crate::telemetry;

/// Whose prefix, and its tokens.
type PrefixKey = (Tenant, Vec<u32>);

/// Prefixes by tenant and tokens, the most recently used last. Each tenant has its own: how long a pass takes tells whether a prefix was
/// at hand, and so whether an instruction was used before.
#[derive(Debug, Default)]
pub(super) struct Prefixes {
    kept: Vec<(PrefixKey, Arc<Prefix>)>,
    max_bytes: usize,
}

/// Most prefixes that are kept, whatever their size: each batch looks through all of them.
const MAX_PREFIXES: usize = 256;

impl Prefixes {
    /// Keeps as many as fit `max_bytes`; 0 keeps none.
    pub(super) fn new(max_bytes: usize) -> Self {
        Prefixes {
            kept: Vec::new(),
            max_bytes,
        }
    }

    fn is_off(&self) -> bool {
        self.max_bytes == 0
    }

    /// The prefix of exactly these tokens, which is now the most recently used.
    fn get(&mut self, tenant: Tenant, ids: &[u32]) -> Option<Arc<Prefix>> {
        let is_it = |(key, _): &(PrefixKey, _)| key.0 == tenant && key.1 == ids;
        let at = self.kept.iter().position(is_it)?;
        let entry = self.kept.remove(at);
        let prefix = Arc::clone(&entry.1);
        self.kept.push(entry);
        Some(prefix)
    }

    /// Keeps a prefix, and lets go of those used longest ago that no longer fit.
    fn insert(&mut self, key: PrefixKey, prefix: Prefix) {
        self.kept.push((key, Arc::new(prefix)));
        let mut bytes: usize = self.kept.iter().map(|(_, prefix)| prefix.bytes()).sum();
        while bytes > self.max_bytes || self.kept.len() > MAX_PREFIXES {
            bytes -= self.kept.remove(0).1.bytes();
        }
    }
}

/// Everything kept for later passes.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) prefixes: Prefixes,
    pub(super) sights: Sights,
}

/// What of a batch is at hand, and what of it is to be kept.
#[derive(Debug, Default)]
struct Recalled {
    /// For each sequence.
    past: Vec<Option<Arc<Prefix>>>,
    /// Prefixes to keep, each with the sequence it is the beginning of.
    keep: Vec<(PrefixKey, usize)>,
    /// For each of the media, or empty.
    seen: Vec<Option<Arc<VisionFeatures>>>,
    /// Media to keep.
    keep_media: Vec<usize>,
}

impl Memory {
    fn recall(&mut self, encoder: &Qwen3VlEncoder, batch: &PackedBatch) -> Recalled {
        let mut recalled = Recalled::default();
        if !self.prefixes.is_off() {
            self.recall_prefixes(encoder, batch, &mut recalled);
        }
        if !self.sights.is_off() && !batch.media_keys.is_empty() {
            self.recall_sights(encoder, batch, &mut recalled);
        }
        recalled
    }

    fn recall_prefixes(
        &mut self,
        encoder: &Qwen3VlEncoder,
        batch: &PackedBatch,
        recalled: &mut Recalled,
    ) {
        let keep = &mut recalled.keep;
        let mut room = self.prefixes.max_bytes;
        for sequence in 0..batch.sequences() {
            let (tenant, ids) = (batch.tenant(sequence), batch.prefix(sequence));
            let known = if ids.is_empty() {
                None
            } else {
                self.prefixes.get(tenant, ids)
            };
            // A prefix that several sequences bring is kept once.
            let is_kept = |(key, _): &(PrefixKey, usize)| key.0 == tenant && key.1 == ids;
            let is_new = known.is_none() && !keep.iter().any(is_kept);
            // What does not fit is not even copied, and does not drive out what does.
            let bytes = encoder.prefix_bytes(ids.len());
            if is_new && !ids.is_empty() && bytes <= room {
                room -= bytes;
                keep.push(((tenant, ids.to_vec()), sequence));
            }
            recalled.past.push(known);
        }
    }

    fn recall_sights(
        &mut self,
        encoder: &Qwen3VlEncoder,
        batch: &PackedBatch,
        recalled: &mut Recalled,
    ) {
        let mut kept = HashSet::new();
        for (i, &key) in batch.media_keys.iter().enumerate() {
            let tenant = batch.tenant(batch.media_sequences[i]);
            let known = self.sights.get(tenant, key);
            let hits = usize::from(known.is_some());
            telemetry::metrics().cache("vision", hits, 1 - hits);
            let bytes = encoder.feature_bytes(batch.media[i].grid.vision_tokens());
            if known.is_none() && self.sights.has_room_for(bytes) && kept.insert((tenant, key)) {
                recalled.keep_media.push(i);
            }
            recalled.seen.push(known);
        }
    }
}

/// What is done between two layers.
pub(super) type Between<'a> = &'a (dyn Fn() + Sync);

fn locked(memory: &Mutex<Memory>) -> MutexGuard<'_, Memory> {
    // What is kept is kept whole or not at all, so a panic elsewhere leaves nothing half-done.
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a batch, skipping what is kept and keeping what is new.
///
/// # Errors
/// Whatever the device says.
pub(super) fn run(
    encoder: &Qwen3VlEncoder,
    memory: &Mutex<Memory>,
    batch: &PackedBatch,
    between: Between<'_>,
) -> Result<Vec<Encoded>> {
    let mut beat = |_: &str, _: &Activations| {
        between();
        Ok(())
    };
    if !encoder.can_reuse() {
        let rows = encoder.forward_traced(batch, &mut beat)?.to_vec2::<f32>()?;
        return Ok(rows.into_iter().map(|row| Encoded::new(row, 0)).collect());
    }
    let recalled = locked(memory).recall(encoder, batch);
    let tokens_of = |past: &Option<Arc<Prefix>>| past.as_ref().map_or(0, |past| past.tokens);
    let mut cached: Vec<usize> = recalled.past.iter().map(tokens_of).collect();
    cached.resize(batch.sequences(), 0);
    let trimmed;
    let rest = if cached.iter().any(|&tokens| tokens > 0) {
        trimmed = batch.without_first(&cached);
        &trimmed
    } else {
        batch
    };
    let rows: Vec<Range<u32>> = recalled
        .keep
        .iter()
        .map(|((_, ids), sequence)| {
            let start = rest.cu_seqlens[*sequence];
            start..start + ids.len() as u32
        })
        .collect();
    let reuse = Reuse {
        past: &recalled.past,
        keep: &rows,
        seen: &recalled.seen,
        keep_media: &recalled.keep_media,
    };
    let (pooled, kept) = encoder.forward_reusing(rest, reuse, &mut beat)?;
    let mut memory = locked(memory);
    for ((key, _), prefix) in recalled.keep.into_iter().zip(kept.prefixes) {
        memory.prefixes.insert(key, prefix);
    }
    for (i, features) in recalled.keep_media.into_iter().zip(kept.features) {
        let tenant = batch.tenant(batch.media_sequences[i]);
        memory.sights.insert(tenant, batch.media_keys[i], features);
    }
    let rows = pooled.to_vec2::<f32>()?.into_iter().zip(cached);
    Ok(rows
        .map(|(row, cached)| Encoded::new(row, cached))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Checkpoint, CheckpointSource};
    use crate::kernels::{Kernels, Precision};
    use crate::model::{GridThw, Patches, Sequence};

    /// That keeps prefixes and nothing else.
    fn memory(max_prefix_bytes: usize) -> Mutex<Memory> {
        Mutex::new(Memory {
            prefixes: Prefixes::new(max_prefix_bytes),
            sights: Sights::new(0),
        })
    }

    fn encoder(precision: Precision) -> Qwen3VlEncoder {
        let checkpoint = Checkpoint::open(&CheckpointSource::Embedded).unwrap();
        let config = checkpoint.model_config().unwrap();
        Qwen3VlEncoder::load(&config, &checkpoint.weights, Kernels::host(precision)).unwrap()
    }

    /// A sequence with a prefix of `prefix` tokens made from `instruction`, then own tokens, and perhaps an image among them.
    fn sequence((prefix, instruction): (usize, u32), own: u32, image: bool) -> Sequence {
        let mut input_ids: Vec<u32> = (0..prefix as u32)
            .map(|i| 100 + (i * 7 + instruction) % 900)
            .collect();
        input_ids.extend((0..own).map(|i| 50 + (i * 13 + own) % 1500));
        let mut media = Vec::new();
        let mut vision_rows = Vec::new();
        if image {
            let grid = GridThw { t: 1, h: 4, w: 4 };
            let pixels = (0..grid.patches() * 1536).map(|i| (i * 31 % 251) as u8);
            media.push(Arc::new(Patches {
                grid,
                pixels: pixels.collect(),
            }));
            vision_rows = (input_ids.len() as u32..input_ids.len() as u32 + 4).collect();
            input_ids.extend([7; 4]);
        }
        input_ids.push(3);
        let positions: Vec<u32> = (0..input_ids.len() as u32).collect();
        Sequence {
            input_ids,
            position_ids: [positions.clone(), positions.clone(), positions],
            media,
            vision_rows,
            prefix_tokens: prefix,
        }
    }

    #[test]
    fn rows_with_a_kept_prefix_are_the_bits_of_rows_computed_whole() {
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            let encoder = encoder(precision);
            let prefixes = memory(1 << 30);
            let sequences = [
                sequence((23, 1), 5, false),
                sequence((23, 1), 300, true),
                sequence((40, 2), 17, false),
                sequence((0, 3), 9, true),
                sequence((23, 1), 1, false),
            ];
            let whole: Vec<Vec<f32>> = sequences
                .iter()
                .map(|sequence| encoder.forward(&PackedBatch::pack([sequence])).unwrap())
                .map(|row| row.to_vec2::<f32>().unwrap().remove(0))
                .collect();
            for cached in [[0; 5], [23, 23, 40, 0, 23]] {
                let batch = PackedBatch::pack(&sequences);
                let encoded = run(&encoder, &prefixes, &batch, &|| ()).unwrap();
                for (i, (encoded, whole)) in encoded.iter().zip(&whole).enumerate() {
                    assert_eq!(encoded.cached_tokens, cached[i], "{precision:?}, {i}");
                    assert_eq!(&encoded.row, whole, "{precision:?}, sequence {i}");
                }
            }
            let alone = run(
                &encoder,
                &prefixes,
                &PackedBatch::pack([&sequences[1]]),
                &|| (),
            );
            assert_eq!(alone.unwrap()[0].row, whole[1]);
        }
    }

    #[test]
    fn a_prefix_serves_only_the_tenant_it_was_kept_of() {
        let encoder = encoder(Precision::F32);
        let prefixes = memory(1 << 30);
        let sequence = sequence((23, 1), 5, false);
        let cached = |tenants: &[u128]| {
            let batch = PackedBatch {
                tenants: tenants.iter().copied().map(Tenant).collect(),
                ..PackedBatch::pack(tenants.iter().map(|_| &sequence))
            };
            let encoded = run(&encoder, &prefixes, &batch, &|| ()).unwrap();
            let cached = encoded.iter().map(|encoded| encoded.cached_tokens);
            cached.collect::<Vec<_>>()
        };
        assert_eq!(cached(&[1, 2]), [0, 0]);
        assert_eq!(cached(&[1, 3, 2]), [23, 0, 23]);
        assert_eq!(cached(&[3]), [23]);
    }

    #[test]
    fn the_prefix_used_longest_ago_goes_first_and_the_bound_holds() {
        let encoder = encoder(Precision::F32);
        let one = |prefixes: &Mutex<Memory>, instruction| {
            let sequence = sequence((20, instruction), 4, false);
            run(&encoder, prefixes, &PackedBatch::pack([&sequence]), &|| ()).unwrap()[0]
                .cached_tokens
        };
        let sizing = memory(usize::MAX);
        one(&sizing, 1);
        let bytes = locked(&sizing).prefixes.kept[0].1.bytes();
        assert_eq!(bytes, encoder.prefix_bytes(20));
        let prefixes = memory(2 * bytes);
        assert_eq!([1, 2, 1, 3].map(|i| one(&prefixes, i)), [0, 0, 20, 0]);
        // 2 was used longest ago and made room for 3.
        assert_eq!([1, 3, 2].map(|i| one(&prefixes, i)), [20, 20, 0]);
        assert_eq!(locked(&prefixes).prefixes.kept.len(), 2);
        // One that is larger than the bound is not kept, and nothing goes for it.
        let large = sequence((41, 9), 4, false);
        let large = PackedBatch::pack([&large]);
        for _ in 0..2 {
            assert_eq!(
                run(&encoder, &prefixes, &large, &|| ()).unwrap()[0].cached_tokens,
                0
            );
        }
        assert_eq!([3, 2].map(|i| one(&prefixes, i)), [20, 20]);
        let off = memory(0);
        assert_eq!([1, 1].map(|i| one(&off, i)), [0, 0]);
    }

    /// A batch whose media have keys; the n-th has the n-th of `keys`.
    fn keyed(sequences: &[Sequence], keys: &[u8]) -> PackedBatch {
        PackedBatch {
            media_keys: keys.iter().map(|&key| [key; 32]).collect(),
            ..PackedBatch::pack(sequences)
        }
    }

    #[test]
    fn rows_with_pictures_seen_before_are_the_bits_of_rows_computed_whole() {
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            let encoder = encoder(precision);
            let mut other = sequence((0, 4), 12, true);
            Arc::make_mut(&mut other.media[0]).pixels.reverse();
            let sequences = [
                sequence((23, 1), 30, true),
                other,
                sequence((23, 1), 5, false),
                sequence((0, 3), 9, true),
            ];
            let whole: Vec<Vec<f32>> = sequences
                .iter()
                .map(|sequence| encoder.forward(&PackedBatch::pack([sequence])).unwrap())
                .map(|row| row.to_vec2::<f32>().unwrap().remove(0))
                .collect();
            for max_prefix_bytes in [0, 1 << 30] {
                let memory = Mutex::new(Memory {
                    prefixes: Prefixes::new(max_prefix_bytes),
                    sights: Sights::new(1 << 30),
                });
                // The first alone; then it is known and the others not; then all are.
                let first = keyed(&sequences[..1], &[1]);
                run(&encoder, &memory, &first, &|| ()).unwrap();
                let one = locked(&memory).sights.bytes();
                assert_eq!(one, encoder.feature_bytes(4) as u64);
                for _ in 0..2 {
                    // The last picture is the first one again.
                    let batch = keyed(&sequences, &[1, 2, 1]);
                    let encoded = run(&encoder, &memory, &batch, &|| ()).unwrap();
                    for (i, (encoded, whole)) in encoded.iter().zip(&whole).enumerate() {
                        assert_eq!(&encoded.row, whole, "{precision:?}, sequence {i}");
                    }
                    assert_eq!(locked(&memory).sights.bytes(), 2 * one);
                }
            }
        }
    }

    #[test]
    fn what_was_seen_serves_its_tenant_only_and_is_used() {
        let encoder = encoder(Precision::F32);
        let memory = Mutex::new(Memory {
            prefixes: Prefixes::new(0),
            sights: Sights::new(1 << 30),
        });
        let mut other = sequence((0, 1), 5, true);
        let same = other.clone();
        Arc::make_mut(&mut other.media[0]).pixels.reverse();
        let row = |sequence: &Sequence, tenant| {
            let batch = PackedBatch {
                tenants: vec![Tenant(tenant)],
                ..keyed(std::slice::from_ref(sequence), &[1])
            };
            run(&encoder, &memory, &batch, &|| ())
                .unwrap()
                .remove(0)
                .row
        };
        let first = row(&same, 1);
        // A key that lies shows that the tower was not asked again, and that another tenant's was.
        assert_eq!(row(&other, 1), first);
        assert_ne!(row(&other, 2), first);
    }
}
