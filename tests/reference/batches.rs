//! What is beside an input in a batch, and how many threads there are, changes no bit of its vector.

use manifold::kernels::{Kernels, Precision};
use manifold::model::{PackedBatch, Qwen3VlEncoder, Sequence};
use proptest::prelude::*;

use crate::fixture::{self, Fixture, distance, normalized};

fn encode(encoder: &Qwen3VlEncoder, threads: usize, sequences: &[&Sequence]) -> Vec<Vec<f32>> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .unwrap();
    let batch = PackedBatch::pack(sequences.iter().copied());
    pool.install(|| encoder.forward(&batch).unwrap().to_vec2::<f32>().unwrap())
}

/// Small requests of every kind: short and long text, images, frame lists, several media in one input.
fn sequences(fixture: &Fixture) -> Vec<Sequence> {
    let processor = fixture.processor();
    let few_tokens = |request: &&serde_json::Value| {
        fixture.golden(request["id"].as_str().unwrap())["num_tokens"].as_u64() < Some(340)
    };
    fixture
        .requests
        .iter()
        .filter(few_tokens)
        .map(|request| fixture.prepare(&processor, request).sequence)
        .collect()
}

#[test]
fn batch_of_many_equals_each_alone_bit_for_bit() {
    for fixture in fixture::all() {
        let sequences = sequences(&fixture);
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            for simd in fixture::instruction_sets(precision) {
                let encoder = fixture.encoder(Kernels::Host { precision, simd });
                let alone: Vec<Vec<f32>> = sequences
                    .iter()
                    .map(|s| encode(&encoder, 1, &[s]).remove(0))
                    .collect();
                let runner =
                    &mut proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(6));
                let batches = prop::collection::vec(0..sequences.len(), 2..9);
                runner
                    .run(&(batches, 1_usize..3), |(picked, threads)| {
                        let batch: Vec<&Sequence> = picked.iter().map(|&i| &sequences[i]).collect();
                        for (rows, &i) in encode(&encoder, threads, &batch).iter().zip(&picked) {
                            prop_assert_eq!(
                                rows,
                                &alone[i],
                                "{:?} {:?} input {} of {:?}",
                                precision,
                                simd,
                                i,
                                &picked
                            );
                        }
                        Ok(())
                    })
                    .unwrap();
            }
        }
    }
}

#[test]
fn the_reference_batches_come_out_as_each_alone() {
    for fixture in fixture::all() {
        let encoder = fixture.encoder(Kernels::host(Precision::F32));
        let processor = fixture.processor();
        for batch in fixture.goldens["batches"].as_array().unwrap() {
            let prepared: Vec<Sequence> = batch["requests"]
                .as_array()
                .unwrap()
                .iter()
                .map(|id| {
                    fixture
                        .requests
                        .iter()
                        .find(|request| request["id"] == *id)
                        .unwrap()
                })
                .map(|request| fixture.prepare(&processor, request).sequence)
                .collect();
            let rows = encode(&encoder, 2, &prepared.iter().collect::<Vec<_>>());
            let name = format!("batch/{}/embedding", batch["id"].as_str().unwrap());
            let (theirs, shape) = fixture.tensor(&name).unwrap();
            for (i, (row, theirs)) in rows.iter().zip(theirs.chunks_exact(shape[1])).enumerate() {
                let (largest, _) = distance(&normalized(row), theirs);
                // The batches hold frame lists, whose resized values may differ by one step.
                assert!(largest <= 2e-4, "{name}[{i}]: max abs {largest}");
            }
        }
    }
}
