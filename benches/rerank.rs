//! One query against many documents, beside as many pairs that have nothing in common: the batcher and the engine, without HTTP.
//!
//! `cargo bench --bench rerank` runs the embedded tiny model; `MANIFOLD_BENCH_MODEL=<directory>` another one (any Qwen3-VL checkpoint can
//! be asked for "yes" and "no"), and `MANIFOLD_BENCH_DTYPE` is `f32`, `bf16` or `int8`. Three figures: the documents of one query, each
//! pair a request of its own with nothing kept, and all pairs in one request with nothing kept. All must give the same bits.

use std::time::{Duration, Instant};

use manifold::batcher::{BatchPolicy, Batcher, Held, Identity, Input, Submission};
use manifold::engine::{
    Checkpoint, CheckpointSource, DeviceChoice, DtypeChoice, Engine, EngineSettings, Models,
};
use manifold::model::{Sequence, Tenant};
use manifold::processor::{ContextLimit, DocumentLimit, Processor, PromptPart, Query, Truncation};

const DOCUMENTS: u32 = 100;
const DOCUMENT_TOKENS: u32 = 128;
/// Runs that count, unless `MANIFOLD_BENCH_RUNS` says another number; one before them warms the caches and teaches the batcher the speed.
const RUNS: usize = 3;
const QUERY: &str = "A woman playing with her dog on a beach at sunset.";

/// The pairs of one query with documents of ordinary tokens.
fn pairs(processor: &Processor, vocabulary: u32, run: u32) -> Vec<Sequence> {
    let query = Query {
        instruction: None,
        // Another query for each run, so that nothing is left of the one before.
        parts: vec![PromptPart::Text(format!("{run}: {QUERY}"))],
    };
    let limit = DocumentLimit {
        context: ContextLimit {
            max_tokens: 8192,
            truncation: Truncation::None,
        },
        max_document_tokens: None,
    };
    let head = processor.pair_head(&query, 8192).expect("a query");
    let pair = |document: u32| {
        let id = |i: u32| 1 + (i * 37 + document * 101) % (vocabulary / 2);
        let ids = (0..DOCUMENT_TOKENS).map(id).collect();
        let pair = processor.pair(&head, &[PromptPart::TokenIds(ids)], limit);
        pair.expect("a document").sequence
    };
    (0..DOCUMENTS).map(pair).collect()
}

/// Has groups of sequences computed, all in the queue at once; how long it took, and the logits.
async fn submit(batcher: &Batcher, groups: &[&[Sequence]], follows: bool) -> (Duration, Vec<f32>) {
    let input = |(i, sequence): (usize, &Sequence)| Input {
        identity: Identity::of(sequence),
        sequence: sequence.clone(),
        held: Held::default(),
        follows: follows && i > 0,
    };
    let submissions: Vec<Submission> = groups
        .iter()
        .map(|group| Submission {
            inputs: group.iter().enumerate().map(input).collect(),
            tenant: Tenant::default(),
            priority: Some(manifold::batcher::Priority::Bulk),
            deadline: Instant::now() + Duration::from_secs(3600),
            reservation: None,
        })
        .collect();
    let started = Instant::now();
    let mut pending = Vec::new();
    for submission in submissions {
        pending.extend(batcher.submit(submission).expect("room"));
    }
    let mut logits = Vec::new();
    for pending in pending {
        logits.push(pending.row().await.expect("a row").row[0]);
    }
    (started.elapsed(), logits)
}

fn engine(checkpoint: &Checkpoint, processor: &Processor, max_prefix_bytes: usize) -> Engine {
    let models = Models {
        embedder: None,
        reranker: Some((checkpoint, processor.answer_ids().expect("yes and no"))),
    };
    let settings = EngineSettings {
        dtype: match std::env::var("MANIFOLD_BENCH_DTYPE").as_deref() {
            Ok("bf16") => DtypeChoice::Bf16,
            Ok("int8") => DtypeChoice::Int8,
            _ => DtypeChoice::F32,
        },
        device: DeviceChoice::Cpu,
        max_prefix_bytes,
        ..EngineSettings::default()
    };
    Engine::start_with(models, settings).expect("an engine")
}

#[tokio::main]
async fn main() {
    let source = match std::env::var_os("MANIFOLD_BENCH_MODEL") {
        Some(directory) => CheckpointSource::Directory(directory.into()),
        None => CheckpointSource::Embedded,
    };
    let checkpoint = Checkpoint::open(&source).expect("a checkpoint");
    let config = checkpoint.model_config().expect("a configuration");
    let processor = Processor::new(&checkpoint.tokenizer_json, (&config).into());
    let processor = processor.expect("a tokenizer");
    let vocabulary = config.text.vocab_size as u32;
    // A length that is the whole pair's, so that the figures can be compared with a text's.
    let whole = pairs(&processor, vocabulary, 0).remove(0);
    println!(
        "{}: {DOCUMENTS} documents of {DOCUMENT_TOKENS} tokens, {} tokens a pair, {} of them the query's",
        checkpoint.name,
        whole.input_ids.len(),
        whole.prefix_tokens
    );
    let runs = std::env::var("MANIFOLD_BENCH_RUNS");
    let runs = runs.map_or(RUNS, |runs| runs.parse().expect("a number"));
    let mut bits: Vec<Vec<f32>> = Vec::new();
    let mut medians = Vec::new();
    for (name, bytes, alone) in [
        ("one query", 256 << 20, false),
        ("each pair by itself", 0, true),
        ("all pairs, nothing shared", 0, false),
    ] {
        let engine = engine(&checkpoint, &processor, bytes);
        let batcher = Batcher::start(engine, BatchPolicy::default());
        let mut times = Vec::new();
        for run in 0..=runs {
            let sequences = pairs(&processor, vocabulary, run as u32);
            let groups: Vec<&[Sequence]> = match alone {
                true => sequences.chunks(1).collect(),
                false => vec![&sequences],
            };
            let (took, logits) = submit(&batcher, &groups, bytes > 0).await;
            match bits.get(run) {
                Some(first) => assert_eq!(&logits, first, "{name}: other bits"),
                None => bits.push(logits),
            }
            times.extend((run > 0).then_some(took));
        }
        times.sort();
        let median = times[runs / 2].as_secs_f64();
        medians.push(median);
        println!(
            "rerank/{name:<26} {:>10.1} ms {:>8.1} documents/s {:>6.2} x",
            median * 1e3,
            f64::from(DOCUMENTS) / median,
            median / medians[0]
        );
        batcher.drain().await;
    }
}
