//! The bare encoder: forward passes of fixed inputs, without HTTP, tokenizer or batcher.
//!
//! `cargo bench --bench encode` runs the embedded tiny model; `MANIFOLD_BENCH_MODEL=<directory>` another one, for instance a
//! full-size random checkpoint of `tests/fixtures/scripts/make_random_checkpoint.py`, and `MANIFOLD_BENCH_DTYPE` is `f32`, `bf16` or `int8`.
//! `MANIFOLD_BENCH_CASES=1x512` runs the cases whose name contains it, `MANIFOLD_BENCH_RUNS=100` each so often. Each case prints the median of its
//! runs; each run must give the same bits as the first.

use std::sync::Arc;
use std::time::{Duration, Instant};

use manifold::engine::{Checkpoint, CheckpointSource};
use manifold::kernels::{Kernels, Precision, keep_awake};
use manifold::model::{GridThw, PackedBatch, Patches, Qwen3VlEncoder, Sequence, Task};

/// Runs that count, where nothing else is asked for; one before them warms the caches.
const RUNS: usize = 3;

/// A sequence of `tokens` ordinary tokens.
fn text(tokens: u32, vocabulary: u32, seed: u32) -> Sequence {
    let positions: Vec<u32> = (0..tokens).collect();
    Sequence {
        input_ids: (0..tokens)
            .map(|i| (i * 37 + seed * 101) % (vocabulary / 2))
            .collect(),
        position_ids: [positions.clone(), positions.clone(), positions],
        media: Vec::new(),
        vision_rows: Vec::new(),
        prefix_tokens: 0,
        task: Task::Embed,
    }
}

/// A picture of `grid` and one token after it.
fn image(grid: GridThw, pad: u32) -> Sequence {
    let tokens = grid.vision_tokens() as u32;
    let pixels = (0..grid.patches() * 1536)
        .map(|i| (i * 31 % 251) as u8)
        .collect();
    Sequence {
        input_ids: std::iter::repeat_n(pad, tokens as usize)
            .chain([1])
            .collect(),
        media: vec![Arc::new(Patches { grid, pixels })],
        vision_rows: (0..tokens).collect(),
        ..text(tokens + 1, pad, 0)
    }
}

fn forward(encoder: &Qwen3VlEncoder, batch: &PackedBatch) -> Vec<Vec<f32>> {
    encoder
        .forward(batch)
        .and_then(|rows| rows.to_vec2::<f32>())
        .expect("a forward pass")
}

fn run(name: &str, encoder: &Qwen3VlEncoder, sequences: &[Sequence], runs: usize) {
    let batch = PackedBatch::pack(sequences);
    // In a thread of the pool and with the others awake, as the engine runs it.
    let encode = || rayon::scope(|_| keep_awake(|| forward(encoder, &batch)));
    let first = encode();
    let mut times: Vec<Duration> = (0..runs)
        .map(|_| {
            let started = Instant::now();
            let rows = encode();
            let took = started.elapsed();
            assert_eq!(rows, first, "{name}: another run, other bits");
            took
        })
        .collect();
    times.sort();
    let median = times[runs / 2].as_secs_f64();
    println!(
        "encode/{name:<18} {:>10.1} ms {:>10.1} tokens/s",
        median * 1e3,
        batch.tokens() as f64 / median
    );
}

fn main() {
    let source = match std::env::var_os("MANIFOLD_BENCH_MODEL") {
        Some(directory) => CheckpointSource::Directory(directory.into()),
        None => CheckpointSource::Embedded,
    };
    let precision = match std::env::var("MANIFOLD_BENCH_DTYPE").as_deref() {
        Ok("bf16") => Precision::Bf16,
        Ok("int8") => Precision::Int8,
        _ => Precision::F32,
    };
    let checkpoint = Checkpoint::open(&source).expect("a checkpoint");
    let config = checkpoint.model_config().expect("a configuration");
    let kernels = Kernels::host(precision);
    println!("{} with {kernels:?}", checkpoint.name);
    let loading = Instant::now();
    let encoder =
        Qwen3VlEncoder::load(&config, &checkpoint.weights, kernels).expect("weights that fit");
    println!("load {:>31.2} s", loading.elapsed().as_secs_f64());
    let vocabulary = config.text.vocab_size as u32;
    let texts = |count: u32, tokens| {
        (0..count)
            .map(|seed| text(tokens, vocabulary, seed))
            .collect::<Vec<_>>()
    };
    let wanted = std::env::var("MANIFOLD_BENCH_CASES").unwrap_or_default();
    let runs = std::env::var("MANIFOLD_BENCH_RUNS").map_or(RUNS, |runs| {
        let runs = runs.parse().ok().filter(|&runs| runs > 0);
        runs.expect("MANIFOLD_BENCH_RUNS must be a whole number above 0")
    });
    for (name, sequences) in [
        ("text/1x17", texts(1, 17)),
        ("text/1x64", texts(1, 64)),
        ("text/1x512", texts(1, 512)),
        ("text/32x128", texts(32, 128)),
        ("text/1x2048", texts(1, 2048)),
        ("text/1x8192", texts(1, 8192)),
        (
            "image/1024x768",
            vec![image(GridThw { t: 1, h: 48, w: 64 }, config.image_token_id)],
        ),
        (
            "video/8x448x448",
            vec![image(GridThw { t: 4, h: 28, w: 28 }, config.image_token_id)],
        ),
    ] {
        if name.contains(&wanted) {
            run(name, &encoder, &sequences, runs);
        }
    }
}
