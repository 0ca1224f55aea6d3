//! Ids, positions, grids and pixels: exact.

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::fixture::{self, has};

/// Source: SAFETY of user text, `text_special_tokens_in_input`: the reference parses special-token strings inside a user's text,
/// we encode them as text. Its ids differ by design, everything else must not.
const DIFFERS_BY_DESIGN: &str = "text_special_tokens_in_input";

fn ids(golden: &Value) -> Vec<u32> {
    golden["input_ids"]
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_u64().unwrap() as u32)
        .collect()
}

#[test]
fn every_request_has_the_reference_ids_and_positions() {
    for fixture in fixture::all() {
        let processor = fixture.processor();
        for request in &fixture.requests {
            let id = request["id"].as_str().unwrap();
            let prepared = fixture.prepare(&processor, request);
            let golden = fixture.golden(id);
            if id == DIFFERS_BY_DESIGN {
                assert_ne!(
                    prepared.sequence.input_ids,
                    ids(golden),
                    "{id}: special tokens were parsed in user text"
                );
                continue;
            }
            assert_eq!(prepared.sequence.input_ids, ids(golden), "{id}: input_ids");
            assert_eq!(
                prepared.tokens.total() as u64,
                golden["num_tokens"],
                "{id}: token count"
            );
            let (positions, shape) = fixture.tensor(&format!("{id}/position_ids")).unwrap();
            for (axis, ours) in prepared.sequence.position_ids.iter().enumerate() {
                let theirs = &positions[axis * shape[1]..(axis + 1) * shape[1]];
                let same = ours.iter().map(|&p| p as f32).eq(theirs.iter().copied());
                assert!(same, "{id}: positions of axis {axis}");
            }
        }
    }
}

#[test]
fn every_picture_has_the_reference_grid_and_pixels() {
    for fixture in fixture::all() {
        let processor = fixture.processor();
        for request in &fixture.requests {
            let id = request["id"].as_str().unwrap();
            let prepared = fixture.prepare(&processor, request);
            let golden = fixture.golden(id);
            for (grids, hash) in [
                ("image_grid_thw", "pixel_values_f32_sha256"),
                ("video_grid_thw", "pixel_values_videos_f32_sha256"),
            ] {
                let Some(expected) = golden[grids].as_array() else {
                    continue;
                };
                let is_video = grids == "video_grid_thw";
                let media: Vec<_> = fixture::of_kind(request, &prepared.sequence, is_video);
                let ours: Vec<Value> = media
                    .iter()
                    .map(|m| serde_json::json!([m.grid.t, m.grid.h, m.grid.w]))
                    .collect();
                assert_eq!(&ours, expected, "{id}: {grids}");
                // What FFmpeg decodes differs between its versions: `encoder` bounds what that does to the vector.
                if has(request, "mp4") && is_video {
                    continue;
                }
                let mut digest = Sha256::new();
                for medium in media {
                    for &pixel in &medium.pixels {
                        digest.update(((f32::from(pixel) - 127.5) / 127.5).to_le_bytes());
                    }
                }
                let ours: String = digest
                    .finalize()
                    .iter()
                    .map(|byte| format!("{byte:02x}"))
                    .collect();
                assert_eq!(ours, golden[hash], "{id}: {hash}");
            }
        }
    }
}

#[test]
fn special_token_strings_in_user_text_stay_text() {
    let fixture = fixture::Fixture::open("parity");
    let request = fixture
        .requests
        .iter()
        .find(|r| r["id"] == DIFFERS_BY_DESIGN)
        .unwrap();
    let golden = ids(fixture.golden(DIFFERS_BY_DESIGN));
    let ours = fixture
        .prepare(&fixture.processor(), request)
        .sequence
        .input_ids;
    let (end, eot) = (2007, 2005);
    let count = |ids: &[u32], id: u32| ids.iter().filter(|&&other| other == id).count();
    assert_eq!(
        (count(&golden, end), count(&golden, eot)),
        (3, 2),
        "the reference parses both strings"
    );
    assert_eq!(
        (count(&ours, end), count(&ours, eot)),
        (2, 1),
        "ours keeps the template's own only"
    );
}
