//! Texts of a small model as two passes side by side.
//!
//! A pass of a small model is hundreds of parallel steps of a fraction of a millisecond. Where the system takes one thread off its core, for the
//! requests that come and go have to be served too, all others wait at the end of its step; so a server on two cores lost twice what serving took. With
//! two passes in flight a thread that waits in one takes up tasks of the other. The embedded model's server had 84 to 88 % of the bare encoder's
//! speed as one, and has 95 % and more as two (two cores; `cargo bench --bench serving -- throughput`).

use std::ops::Range;

use candle_core::Result;

use super::pass::Between;
use crate::kernels::Activations;
use crate::model::{PackedBatch, Past, Qwen3VlEncoder, Reuse};

/// Numbers in decoder layers so few that they stay in the caches: both passes read them.
const CACHED_WEIGHTS: usize = 8 << 20;

/// Tokens from which on a half is worth its own steps.
const HALF_TOKENS: u32 = 128;

/// The sequence a batch is cut before, so that its halves are about as long; `None` when one would be too short.
fn middle(batch: &PackedBatch) -> Option<usize> {
    let (tokens, begins) = (batch.tokens() as u32, &batch.cu_seqlens);
    let cut = (1..batch.sequences()).min_by_key(|&at| (2 * begins[at]).abs_diff(tokens))?;
    let shorter = begins[cut].min(tokens - begins[cut]);
    (shorter >= HALF_TOKENS).then_some(cut)
}

/// Runs a batch as two, and returns the rows of its sequences, the bits of one pass; `None` when one pass is as good. `past` is for each
/// sequence what it begins with, or empty; none may begin with what another of the batch computes.
pub(super) fn run(
    encoder: &Qwen3VlEncoder,
    batch: &PackedBatch,
    past: &[Past],
    between: Between<'_>,
) -> Option<Result<Vec<Vec<f32>>>> {
    let is_small = encoder.config().text.layer_weights() <= CACHED_WEIGHTS;
    if !is_small || !batch.media.is_empty() || rayon::current_num_threads() == 1 {
        return None;
    }
    let cut = middle(batch)?;
    let half = |sequences: Range<usize>| {
        let reuse = Reuse {
            past: past.get(sequences.clone()).unwrap_or_default(),
            ..Reuse::default()
        };
        let mut beat = |_: &str, _: &Activations| {
            between();
            Ok(())
        };
        let half = batch.only(sequences);
        let (pooled, _) = encoder.forward_reusing(&half, reuse, &mut beat)?;
        pooled.to_vec2::<f32>()
    };
    let (first, second) = rayon::join(|| half(0..cut), || half(cut..batch.sequences()));
    Some(first.and_then(|mut rows| {
        rows.extend(second?);
        Ok(rows)
    }))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::engine::{Checkpoint, CheckpointSource};
    use crate::kernels::{Kernels, Precision};
    use crate::model::{GridThw, Patches, Sequence, Task};

    fn batch(lengths: &[u32]) -> PackedBatch {
        let text = |&length: &u32| {
            let positions: Vec<u32> = (0..length).collect();
            Sequence {
                input_ids: (0..length).map(|i| 50 + (i * 13 + length) % 1500).collect(),
                position_ids: [positions.clone(), positions.clone(), positions],
                media: Vec::new(),
                vision_rows: Vec::new(),
                prefix_tokens: 0,
                task: Task::Embed,
            }
        };
        PackedBatch::pack(&lengths.iter().map(text).collect::<Vec<_>>())
    }

    fn encoder(precision: Precision) -> Qwen3VlEncoder {
        let checkpoint = Checkpoint::open(&CheckpointSource::Embedded).unwrap();
        let config = checkpoint.model_config().unwrap();
        Qwen3VlEncoder::load(&config, &checkpoint.weights, Kernels::host(precision)).unwrap()
    }

    #[test]
    fn a_batch_is_cut_where_its_halves_are_nearest_to_each_other_if_both_are_long() {
        for (lengths, cut) in [
            (&[200, 200][..], Some(1)),
            (&[128, 300, 40], Some(1)),
            (&[300, 40, 128], Some(1)),
            (&[60, 70, 80, 90], Some(2)),
            (&[127, 900], None),
            (&[900], None),
            (&[], None),
        ] {
            assert_eq!(middle(&batch(lengths)), cut, "{lengths:?}");
        }
    }

    #[test]
    fn halves_give_the_bits_of_the_whole_and_beat_in_both() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build();
        let pool = pool.unwrap();
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            let encoder = encoder(precision);
            let batch = batch(&[40, 200, 7, 90, 128, 60]);
            let whole = encoder.forward(&batch).unwrap().to_vec2::<f32>().unwrap();
            let beats = AtomicUsize::new(0);
            let between = || {
                beats.fetch_add(1, Ordering::Relaxed);
            };
            let halves = pool.install(|| run(&encoder, &batch, &[], &between));
            assert_eq!(halves.unwrap().unwrap(), whole, "{precision:?}");
            let mut stages = 0;
            let mut count = |_: &str, _: &Activations| {
                stages += 1;
                Ok(())
            };
            encoder.forward_traced(&batch, &mut count).unwrap();
            assert_eq!(beats.into_inner(), 2 * stages);
        }
    }

    #[test]
    fn pictures_and_a_thread_alone_are_left_whole() {
        let encoder = encoder(Precision::F32);
        let mut batch = batch(&[200, 200]);
        let run = |batch: &PackedBatch, threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let halves = pool.unwrap().install(|| run(&encoder, batch, &[], &|| ()));
            halves.is_some()
        };
        assert!(run(&batch, 2) && !run(&batch, 1));
        let grid = GridThw { t: 1, h: 2, w: 2 };
        let pixels = vec![0; grid.patches() * 1536];
        batch.media.push(Arc::new(Patches { grid, pixels }));
        assert!(!run(&batch, 2));
    }
}
