//! A forward pass, and what it keeps for later ones: keys and values of the prefixes that requests have in common, and what the vision
//! tower said of pictures that come again. What sequences of one pass have in common is computed once in it.
//!
//! In: a [`PackedBatch`]. Out: an [`Encoded`] for each sequence, the same bits whether any of it was at hand or not.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::Result;

use super::sights::Sights;
use super::{Encoded, halves};
use crate::kernels::Activations;
use crate::model::{
    Beginning, MediaKey, PackedBatch, Past, Prefix, Qwen3VlEncoder, Reuse, Task, Tenant,
    VisionFeatures,
};
use crate::telemetry;

/// What a prefix is: whose, for which model, and everything the model reads of it. Positions follow from the tokens and the media's
/// grids, which their keys cover.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct PrefixKey {
    task: Task,
    tenant: Tenant,
    ids: Vec<u32>,
    media: Vec<MediaKey>,
}

impl PrefixKey {
    /// Of a sequence of a batch; `None` when it has no prefix, or one whose media nobody can tell apart.
    fn of(batch: &PackedBatch, sequence: usize) -> Option<Self> {
        let ids = batch.prefix(sequence);
        if ids.is_empty() {
            return None;
        }
        let media = batch.media_within(sequence, ids.len());
        Some(PrefixKey {
            task: batch.task,
            tenant: batch.tenant(sequence),
            ids: ids.to_vec(),
            // No media need no keys, even where the batch has none.
            media: match media.is_empty() {
                true => Vec::new(),
                false => batch.media_keys.get(media)?.to_vec(),
            },
        })
    }
}

/// Prefixes, the most recently used last. Each tenant has its own: how long a pass takes tells whether a prefix was at hand, and so
/// whether an instruction was used before.
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

    /// The prefix of that key, which is now the most recently used.
    fn get(&mut self, wanted: &PrefixKey) -> Option<Arc<Prefix>> {
        let at = self.kept.iter().position(|(key, _)| key == wanted)?;
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

/// What of a batch's beginnings is at hand or computed once, and what of them is to be kept.
#[derive(Debug, Default)]
struct Begun {
    /// For each sequence, or empty.
    past: Vec<Past>,
    /// For each sequence how many of its tokens are not computed for it.
    cached: Vec<usize>,
    /// Beginnings that several have or that are kept: the sequence each is computed in, and whether it is kept.
    beginnings: Vec<(PrefixKey, usize, bool)>,
}

/// What of a batch's media is at hand, and what of them is to be kept.
#[derive(Debug, Default)]
struct Seen {
    /// For each of the media, or empty.
    features: Vec<Option<Arc<VisionFeatures>>>,
    /// Media to keep.
    keep: Vec<usize>,
}

impl Memory {
    /// Finds what sequences begin with: kept from earlier passes, or the same as another of this one.
    fn recall_prefixes(&mut self, encoder: &Qwen3VlEncoder, batch: &PackedBatch) -> Begun {
        let mut begun = Begun {
            cached: vec![0; batch.sequences()],
            ..Begun::default()
        };
        if self.prefixes.is_off() {
            return begun;
        }
        let mut leaders: HashMap<PrefixKey, (usize, usize)> = HashMap::new();
        for sequence in 0..batch.sequences() {
            let Some(key) = PrefixKey::of(batch, sequence) else {
                begun.past.push(Past::Nothing);
                continue;
            };
            begun
                .past
                .push(if let Some(prefix) = self.prefixes.get(&key) {
                    begun.cached[sequence] = prefix.tokens;
                    Past::Kept(prefix)
                } else if let Some((place, followers)) = leaders.get_mut(&key) {
                    *followers += 1;
                    begun.cached[sequence] = key.ids.len();
                    Past::Beginning(*place)
                } else {
                    leaders.insert(key.clone(), (begun.beginnings.len(), 0));
                    begun.beginnings.push((key, sequence, false));
                    Past::Nothing
                });
        }
        let mut room = self.prefixes.max_bytes;
        for (key, _, keep) in &mut begun.beginnings {
            // What does not fit is not even copied, and does not drive out what does.
            let bytes = encoder.prefix_bytes(key.ids.len());
            *keep = bytes <= room;
            room -= if *keep { bytes } else { 0 };
        }
        begun.forget_unshared(&leaders);
        begun
    }

    fn recall_sights(&mut self, encoder: &Qwen3VlEncoder, batch: &PackedBatch) -> Seen {
        let mut seen = Seen::default();
        if self.sights.is_off() {
            return seen;
        }
        let mut kept = HashSet::new();
        for (i, &media) in batch.media_keys.iter().enumerate() {
            let key = (batch.task, batch.tenant(batch.media_sequences[i]), media);
            let known = self.sights.get(&key);
            let hits = usize::from(known.is_some());
            telemetry::metrics().cache("vision", hits, 1 - hits);
            let bytes = encoder.feature_bytes(batch.media[i].grid.vision_tokens());
            if known.is_none() && self.sights.has_room_for(bytes) && kept.insert(key) {
                seen.keep.push(i);
            }
            seen.features.push(known);
        }
        seen
    }
}

impl Begun {
    /// Drops the beginnings that are neither kept nor had by a second sequence.
    fn forget_unshared(&mut self, leaders: &HashMap<PrefixKey, (usize, usize)>) {
        let is_used = |(key, _, keep): &(PrefixKey, usize, bool)| {
            *keep
                || leaders
                    .get(key)
                    .is_some_and(|(_, followers)| *followers > 0)
        };
        let mut used = 0;
        let places: Vec<usize> = self
            .beginnings
            .iter()
            .map(|beginning| {
                used += usize::from(is_used(beginning));
                used.saturating_sub(1)
            })
            .collect();
        self.beginnings.retain(is_used);
        for past in &mut self.past {
            if let Past::Beginning(place) = past {
                *place = places[*place];
            }
        }
    }
}

/// What is done between two layers.
pub(super) type Between<'a> = &'a (dyn Fn() + Sync);

fn locked(memory: &Mutex<Memory>) -> MutexGuard<'_, Memory> {
    // What is kept is kept whole or not at all, so a panic elsewhere leaves nothing half-done.
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a batch, skipping what is kept, computing once what sequences have in common, and keeping what is new.
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
    let begun = locked(memory).recall_prefixes(encoder, batch);
    let trimmed;
    let rest = if begun.cached.iter().any(|&tokens| tokens > 0) {
        trimmed = batch.without_first(&begun.cached);
        &trimmed
    } else {
        batch
    };
    let seen = locked(memory).recall_sights(encoder, rest);
    let beginnings: Vec<Beginning> = begun
        .beginnings
        .iter()
        .map(|(key, sequence, keep)| {
            let start = rest.cu_seqlens[*sequence];
            Beginning {
                rows: start..start + key.ids.len() as u32,
                keep: *keep,
            }
        })
        .collect();
    let as_two = match beginnings.is_empty() {
        true => halves::run(encoder, rest, &begun.past, between),
        false => None,
    };
    if let Some(rows) = as_two {
        return Ok(encoded(rows?, begun.cached));
    }
    let reuse = Reuse {
        past: &begun.past,
        beginnings: &beginnings,
        seen: &seen.features,
        keep_media: &seen.keep,
    };
    let (pooled, kept) = encoder.forward_reusing(rest, reuse, &mut beat)?;
    let mut memory = locked(memory);
    let to_keep = begun.beginnings.into_iter().filter(|(.., keep)| *keep);
    for ((key, ..), prefix) in to_keep.zip(kept.prefixes) {
        memory.prefixes.insert(key, prefix);
    }
    for (i, features) in seen.keep.into_iter().zip(kept.features) {
        let tenant = rest.tenant(rest.media_sequences[i]);
        let key = (rest.task, tenant, rest.media_keys[i]);
        memory.sights.insert(key, features);
    }
    Ok(encoded(pooled.to_vec2::<f32>()?, begun.cached))
}

fn encoded(rows: Vec<Vec<f32>>, cached: Vec<usize>) -> Vec<Encoded> {
    let rows = rows.into_iter().zip(cached);
    rows.map(|(row, cached)| Encoded::new(row, cached))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

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
            task: Task::Embed,
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
            // In the first pass one computes what two others begin with too; the second has all at hand.
            for cached in [[0, 23, 0, 0, 23], [23, 23, 40, 0, 23]] {
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
    fn two_halves_begin_with_what_is_kept_and_give_the_bits_of_each_sequence_alone() {
        let (encoder, prefixes) = (encoder(Precision::F32), memory(1 << 30));
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build();
        let pool = pool.unwrap();
        let sequences = [((23, 1), 150), ((40, 2), 30), ((0, 3), 140), ((23, 1), 17)];
        let sequences = sequences.map(|(prefix, own)| sequence(prefix, own, false));
        let alone: Vec<Vec<f32>> = sequences
            .iter()
            .map(|sequence| encoder.forward(&PackedBatch::pack([sequence])).unwrap())
            .map(|row| row.to_vec2::<f32>().unwrap().remove(0))
            .collect();
        let batch = PackedBatch::pack(&sequences);
        // The first pass keeps prefixes and is whole; the second has them.
        let beats = [[0, 0, 0, 23], [23, 40, 0, 23]].map(|cached| {
            let beats = AtomicUsize::new(0);
            let between = || {
                beats.fetch_add(1, Ordering::Relaxed);
            };
            let encoded = pool.install(|| run(&encoder, &prefixes, &batch, &between));
            for (i, (encoded, alone)) in encoded.unwrap().iter().zip(&alone).enumerate() {
                assert_eq!(encoded.cached_tokens, cached[i], "sequence {i}");
                assert_eq!(&encoded.row, alone, "sequence {i}");
            }
            beats.into_inner()
        });
        assert_eq!(beats[1], 2 * beats[0]);
    }

    /// A sequence that begins with a picture among text, as a document's after a query with one, and goes on with `own` tokens and
    /// perhaps another picture.
    fn after_a_picture(own: u32, image: bool) -> Sequence {
        let head = sequence((23, 1), 3, true);
        let mut tail = sequence((0, own), own, image);
        let prefix_tokens = head.input_ids.len();
        let mut input_ids = head.input_ids;
        let start = input_ids.len() as u32;
        input_ids.append(&mut tail.input_ids);
        let positions: Vec<u32> = (0..input_ids.len() as u32).collect();
        let tail_rows = tail.vision_rows.iter().map(|row| start + row);
        Sequence {
            position_ids: [positions.clone(), positions.clone(), positions],
            vision_rows: head.vision_rows.into_iter().chain(tail_rows).collect(),
            media: head.media.into_iter().chain(tail.media).collect(),
            input_ids,
            prefix_tokens,
            task: Task::Rerank,
        }
    }

    #[test]
    fn rows_after_a_picture_in_common_are_the_bits_of_rows_computed_whole() {
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            let encoder = encoder(precision);
            let lone = Sequence {
                task: Task::Rerank,
                ..sequence((0, 3), 9, true)
            };
            let sequences = [
                after_a_picture(5, true),
                lone,
                after_a_picture(300, false),
                after_a_picture(17, true),
            ];
            let prefix = sequences[0].prefix_tokens;
            let whole: Vec<Vec<f32>> = sequences
                .iter()
                .map(|sequence| encoder.forward(&PackedBatch::pack([sequence])).unwrap())
                .map(|row| row.to_vec2::<f32>().unwrap().remove(0))
                .collect();
            for max_vision_bytes in [0, 1 << 30] {
                // Room for the prefix, and for next to nothing: then it is shared in the pass and not kept.
                for (max_prefix_bytes, again) in [(1 << 30, prefix), (1, 0)] {
                    let memory = Mutex::new(Memory {
                        prefixes: Prefixes::new(max_prefix_bytes),
                        sights: Sights::new(max_vision_bytes),
                    });
                    for first in [0, again] {
                        let batch = keyed(&sequences, &[1, 1, 2, 1, 1, 2]);
                        let encoded = run(&encoder, &memory, &batch, &|| ()).unwrap();
                        let cached = encoded.iter().map(|encoded| encoded.cached_tokens);
                        assert!(cached.eq([first, 0, prefix, prefix]), "{precision:?}");
                        for (i, (encoded, whole)) in encoded.iter().zip(&whole).enumerate() {
                            assert_eq!(&encoded.row, whole, "{precision:?}, sequence {i}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_beginning_with_another_picture_or_for_another_model_is_another() {
        let encoder = encoder(Precision::F32);
        let prefixes = memory(1 << 30);
        let embed = Sequence {
            task: Task::Embed,
            ..after_a_picture(5, false)
        };
        let cached = |sequence: &Sequence, key| {
            let batch = keyed(std::slice::from_ref(sequence), &[key]);
            run(&encoder, &prefixes, &batch, &|| ()).unwrap()[0].cached_tokens
        };
        let rerank = after_a_picture(5, false);
        let prefix = rerank.prefix_tokens;
        let found = [(&rerank, 1), (&rerank, 2), (&embed, 1), (&rerank, 1)];
        let found = found.map(|(sequence, key)| cached(sequence, key));
        assert_eq!(found, [0, 0, 0, prefix]);
        // Where nobody says which picture it is, it is none that is known.
        let unnamed = PackedBatch::pack([&rerank, &rerank]);
        let rows = run(&encoder, &prefixes, &unnamed, &|| ()).unwrap();
        assert!(rows.iter().all(|encoded| encoded.cached_tokens == 0));
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
