//! A device that fails, as clients and load balancers see it: the whole router around an engine of the test's own.

use std::sync::Mutex;

use super::*;
use crate::batcher::{BatchPolicy, Batcher};
use crate::engine::{Checkpoint, CheckpointSource, Encoded, EngineError, Fingerprint, Heartbeat};
use crate::media::{MediaLoader, MediaSettings};
use crate::model::PackedBatch;
use crate::processor::Processor;
use crate::service::Background;

/// Ids that make a batch panic, give no number, or end the device.
const PANICS: u32 = 13;
const NO_NUMBER: u32 = 14;
const ENDS: u32 = 15;

const WIDTH: usize = 256;

/// How many sequences each pass had.
type Sizes = Arc<Mutex<Vec<usize>>>;

/// Rows spell the first id of their sequence.
fn encode(batch: &PackedBatch) -> Result<Vec<Encoded>, EngineError> {
    if batch.input_ids.contains(&ENDS) {
        let reason = "on purpose".to_owned();
        return Err(EngineError::Lost { reason });
    }
    if batch.input_ids.contains(&PANICS) {
        return Err(EngineError::Panicked);
    }
    let row = |bounds: &[u32]| {
        let mut row = vec![1.0; WIDTH];
        row[0] = match batch.input_ids[bounds[0] as usize] {
            NO_NUMBER => f32::NAN,
            id => id as f32,
        };
        Encoded {
            row,
            cached_tokens: 0,
        }
    };
    Ok(batch.cu_seqlens.windows(2).map(row).collect())
}

fn served(heart: Heartbeat) -> (ApiState, Sizes) {
    let checkpoint = Checkpoint::open(&CheckpointSource::Embedded).expect("it is built in");
    let config = checkpoint.model_config().expect("a configuration");
    let processor = Processor::new(&checkpoint.tokenizer_json, (&config).into());
    let media = MediaSettings::default();
    let loader = MediaLoader::new(&media).expect("a client");
    let sizes = Sizes::default();
    let seen = Arc::clone(&sizes);
    let batcher = Batcher::with_encoder(BatchPolicy::default(), heart, move |batch| {
        seen.lock().expect("no panic").push(batch.sequences());
        std::future::ready(encode(&batch))
    });
    let processor: Processor = processor.expect("a tokenizer");
    let state = state(&[]);
    let info = EngineInfo {
        device: "fake".to_owned(),
        dtype: "f32",
        kernels: "fake".to_owned(),
        threads: 1,
        hidden_size: WIDTH,
        max_position_embeddings: 4096,
        parameters: 0,
        reuses_prefixes: false,
    };
    let fingerprint = Fingerprint::of(&checkpoint);
    let template = processor.template_text();
    let served = Served {
        names: vec!["fake".to_owned()],
        embedder: Embedder::new(loader, media, processor, batcher.clone(), None).expect("threads"),
        proof: Proof::new(fingerprint, template, &PixelOptions::default(), &info),
        info,
        checkpoint: "fake".to_owned(),
        revision: None,
        loaded_at: 0,
    };
    state.set_loaded(Loaded {
        batcher,
        embedder: Some(served),
        reranker: None,
        readers: Background::new(1).expect("threads"),
    });
    (state, sizes)
}

fn healthy() -> Heartbeat {
    Heartbeat::new(Duration::ZERO)
}

/// Embeds token ids, each list an input; all of them share a pass.
async fn embed(state: &ApiState, ids: &[&[u32]]) -> Answer {
    let body =
        json!({ "input": ids, "raw": true, "on_error": "partial", "priority": "interactive" });
    let post = Request::post("/v1/embeddings").body(Body::from(body.to_string()));
    ask(router(state.clone()), post.expect("a request")).await
}

#[tokio::test]
async fn an_input_that_fails_the_device_is_answered_alone() {
    for (poison, passes) in [(PANICS, vec![3, 1, 1, 1]), (NO_NUMBER, vec![3])] {
        let (state, sizes) = served(healthy());
        let answer = embed(&state, &[&[10, 11], &[poison, 11], &[12, 11]]).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
        let data = answer.body["data"].as_array().expect("a list");
        assert!(data[0]["embedding"].is_array() && data[2]["embedding"].is_array());
        assert_ne!(data[0]["embedding"], data[2]["embedding"]);
        assert!(data[1]["embedding"].is_null());
        assert_eq!(data[1]["error"]["code"], "internal_error");
        assert_eq!(*sizes.lock().expect("no panic"), passes);
    }
}

#[tokio::test]
async fn when_the_device_is_lost_requests_and_readiness_say_so() {
    let (state, _) = served(healthy());
    let ready = get_with(&state, "/health/ready", &[]).await;
    assert_eq!(ready.status, StatusCode::OK);
    let unavailable = (StatusCode::SERVICE_UNAVAILABLE, "device_unavailable");
    for ids in [[ENDS, 11], [10, 11]] {
        let answer = embed(&state, &[&ids]).await;
        assert_eq!(answer.status_and_code(), unavailable);
        assert!(answer.header("retry-after").is_some());
        assert_eq!(answer.header("x-should-retry"), None);
    }
    let ready = get_with(&state, "/health/ready", &[]).await;
    assert_eq!(ready.status_and_code(), unavailable);
}

#[tokio::test]
async fn a_device_thread_that_hangs_is_not_alive() {
    let heart = Heartbeat::new(Duration::from_millis(10));
    let (state, _) = served(heart.clone());
    heart.beat();
    tokio::time::sleep(Duration::from_millis(30)).await;
    let live = get_with(&state, "/health/live", &[]).await;
    let expected = (StatusCode::SERVICE_UNAVAILABLE, "device_unavailable");
    assert_eq!(live.status_and_code(), expected);
    heart.rest();
    let live = get_with(&state, "/health/live", &[]).await;
    assert_eq!(live.status, StatusCode::OK);
}
