//! Vision tower and language model, stage by stage, from pixels and ids to the vector.

use std::collections::BTreeMap;

use candle_core::Tensor;
use manifold::kernels::{Kernels, Precision};
use manifold::model::{PackedBatch, Patches, Qwen3VlEncoder, Sequence};
use serde_json::Value;

use crate::fixture::{self, Fixture, distance, has, normalized};

/// The tensors of one forward pass by stage.
fn trace(encoder: &Qwen3VlEncoder, sequence: &Sequence) -> (Vec<f32>, BTreeMap<String, Tensor>) {
    let mut stages = BTreeMap::new();
    let pooled = encoder
        .forward_traced(&PackedBatch::pack([sequence]), &mut |stage, tensor| {
            stages.insert(stage.to_owned(), tensor.to_tensor()?);
            Ok(())
        })
        .unwrap();
    (pooled.to_vec2::<f32>().unwrap().remove(0), stages)
}

/// Ours of a request; where ids differ by design, the reference's ids are encoded, for the model is what is tested here.
fn sequence(fixture: &Fixture, request: &Value) -> Sequence {
    let prepared = fixture.prepare(&fixture.processor(), request);
    let id = request["id"].as_str().unwrap();
    if id != "text_special_tokens_in_input" {
        return prepared.sequence;
    }
    let ids = fixture.golden(id)["input_ids"].as_array().unwrap();
    let input_ids: Vec<u32> = ids.iter().map(|id| id.as_u64().unwrap() as u32).collect();
    let positions: Vec<u32> = (0..input_ids.len() as u32).collect();
    Sequence {
        input_ids,
        position_ids: [positions.clone(), positions.clone(), positions],
        prefix_tokens: 0,
        ..prepared.sequence
    }
}

/// The rows of a stage that belong to images, or to videos.
///
/// `merge` is how many patches one row stands for.
fn rows_of_kind(
    request: &Value,
    sequence: &Sequence,
    stage: &Tensor,
    (is_video, merge): (bool, usize),
) -> Vec<Vec<f32>> {
    let all = stage.to_vec2::<f32>().unwrap();
    let wanted: Vec<*const Patches> = fixture::of_kind(request, sequence, is_video)
        .into_iter()
        .map(std::ptr::from_ref)
        .collect();
    let mut rows = Vec::new();
    let mut at = 0;
    for medium in &sequence.media {
        let count = medium.grid.patches() / merge;
        if wanted.contains(&std::ptr::from_ref(&**medium)) {
            rows.extend_from_slice(&all[at..at + count]);
        }
        at += count;
    }
    rows
}

fn assert_rows(fixture: &Fixture, name: &str, ours: &[Vec<f32>], tolerance: f32) {
    let Some((theirs, shape)) = fixture.tensor(name) else {
        panic!("{name} is not in the goldens")
    };
    let mut picked: Vec<usize> = vec![0, ours.len() / 2, ours.len() - 1];
    picked.dedup();
    assert_eq!(picked.len(), shape[0], "{name}: rows");
    for (theirs, row) in theirs.chunks_exact(shape[1]).zip(picked) {
        let (largest, cosine) = distance(&ours[row], theirs);
        assert!(
            largest <= tolerance,
            "{name} row {row}: max abs {largest}, cosine {cosine}"
        );
    }
}

#[test]
fn every_stage_of_the_vision_tower_equals_the_reference_in_f32() {
    for fixture in fixture::all() {
        for kernels in fixture::exact_kernels() {
            let encoder = fixture.encoder(kernels);
            // Other decoders' pixels (JPEG, video files) are bounded at the vector; the largest image is one of many.
            let exact = |r: &&Value| !has(r, "jpg") && !has(r, "mp4") && r["id"] != "img_huge";
            for request in fixture.requests.iter().filter(exact) {
                let id = request["id"].as_str().unwrap();
                let sequence = sequence(&fixture, request);
                let (_, stages) = trace(&encoder, &sequence);
                for (kind, is_video) in [("image", false), ("video", true)] {
                    if fixture::of_kind(request, &sequence, is_video).is_empty() {
                        continue;
                    }
                    let rows = |stage: &str, merge| {
                        rows_of_kind(request, &sequence, &stages[stage], (is_video, merge))
                    };
                    assert_rows(
                        &fixture,
                        &format!("{id}/{kind}_patch_embed_rows"),
                        &rows("vision.patch_embed", 1),
                        1e-4,
                    );
                    assert_rows(
                        &fixture,
                        &format!("{id}/{kind}_block0_in_rows"),
                        &rows("vision.block0_in", 1),
                        1e-4,
                    );
                    assert_rows(
                        &fixture,
                        &format!("{id}/{kind}_merged_rows"),
                        &rows("vision.merged", 4),
                        1e-4,
                    );
                    for k in
                        (0..).take_while(|k| stages.contains_key(&format!("vision.deepstack{k}")))
                    {
                        let stage = format!("vision.deepstack{k}");
                        let name = format!("{id}/{kind}_deepstack{k}_rows");
                        assert_rows(&fixture, &name, &rows(&stage, 4), 1e-4);
                    }
                }
            }
        }
    }
}

#[test]
fn every_layer_of_the_language_model_equals_the_reference_in_f32() {
    for fixture in fixture::all() {
        for kernels in fixture::exact_kernels() {
            let encoder = fixture.encoder(kernels);
            let text = |r: &&Value| !has(r, "png") && !has(r, "jpg") && !has(r, "mp4");
            for request in fixture.requests.iter().filter(text) {
                let id = request["id"].as_str().unwrap();
                let (pooled, stages) = trace(&encoder, &sequence(&fixture, request));
                let (states, shape) = fixture.tensor(&format!("{id}/last_token_states")).unwrap();
                let mut ours: Vec<Vec<f32>> = (0..shape[0] - 2)
                    .map(|layer| {
                        stages[&format!("text.layer{layer}")]
                            .to_vec2::<f32>()
                            .unwrap()
                            .pop()
                            .unwrap()
                    })
                    .collect();
                ours.push(stages["text.norm_in"].to_vec2::<f32>().unwrap().remove(0));
                ours.push(pooled);
                for (layer, (ours, theirs)) in
                    ours.iter().zip(states.chunks_exact(shape[1])).enumerate()
                {
                    let (largest, cosine) = distance(ours, theirs);
                    // The states grow to about 30: 1e-4 is a few units of the last place.
                    assert!(
                        largest <= 1e-4,
                        "{id} state {layer}: max abs {largest}, cosine {cosine}"
                    );
                }
            }
        }
    }
}

#[test]
fn every_vector_equals_the_reference_in_f32() {
    for fixture in fixture::all() {
        for kernels in fixture::exact_kernels() {
            let name = format!("{kernels:?}");
            let encoder = fixture.encoder(kernels);
            for request in &fixture.requests {
                let id = request["id"].as_str().unwrap();
                let (pooled, _) = trace(&encoder, &sequence(&fixture, request));
                for golden in [
                    "embedding",
                    "embedding_mrl16",
                    "embedding_mrl32",
                    "embedding_mrl64",
                    "embedding_mrl100",
                ] {
                    let Some((theirs, _)) = fixture.tensor(&format!("{id}/{golden}")) else {
                        continue;
                    };
                    let (largest, cosine) = distance(&normalized(&pooled[..theirs.len()]), &theirs);
                    if has(request, "jpg") {
                        assert!(cosine >= 0.9999, "{name} {id} {golden}: cosine {cosine}");
                    } else {
                        let tolerance = if request.to_string().contains("video") {
                            2e-4
                        } else {
                            1e-5
                        };
                        assert!(
                            largest <= tolerance,
                            "{name} {id} {golden}: max abs {largest}"
                        );
                    }
                }
            }
        }
    }
}

/// The lowest cosine between our vectors and the reference's over all requests of a fixture, and whose it is.
fn lowest_cosine(fixture: &Fixture, precision: Precision) -> (f32, String) {
    let encoder = fixture.encoder(Kernels::host(precision));
    let mut lowest = (1.0_f32, String::new());
    for request in &fixture.requests {
        let id = request["id"].as_str().unwrap();
        let (pooled, _) = trace(&encoder, &sequence(fixture, request));
        let (theirs, _) = fixture.tensor(&format!("{id}/embedding")).unwrap();
        let (_, cosine) = distance(&normalized(&pooled), &theirs);
        if cosine < lowest.0 {
            lowest = (cosine, id.to_owned());
        }
    }
    let (cosine, id) = &lowest;
    let root = fixture.root.display();
    println!("{root}: lowest cosine in {precision:?} {cosine} ({id})");
    lowest
}

#[test]
fn every_vector_is_close_to_the_reference_in_bf16() {
    for fixture in fixture::all() {
        let (cosine, id) = lowest_cosine(&fixture, Precision::Bf16);
        assert!(cosine >= 0.998, "{id}: cosine {cosine}");
    }
}

#[test]
fn every_vector_is_close_to_the_reference_in_int8() {
    for fixture in fixture::all() {
        let (cosine, id) = lowest_cosine(&fixture, Precision::Int8);
        assert!(cosine >= 0.99, "{id}: cosine {cosine}");
        // Nearer than rounding to 255 steps allows: that was not int8.
        assert!(cosine <= 0.9999, "{id}: cosine {cosine}");
    }
}
