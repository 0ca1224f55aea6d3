//! What bf16 and int8 cost in accuracy: each stage of the forward pass against f32, row by row.
//!
//! `cargo bench --bench precision` runs the embedded tiny model, `MANIFOLD_BENCH_MODEL=<directory>` another one, for instance a
//! full-size random checkpoint of `tests/fixtures/scripts/make_random_checkpoint.py`.
//!
//! Random weights have no outlier channels, trained ones have. `MANIFOLD_BENCH_OUTLIERS=32` gives every decoder layer some in the
//! inputs of its projections, that many times larger than the rest. With `MANIFOLD_BENCH_COMPENSATED=1` the weights that read
//! them shrink by as much, so that a power of two leaves the function as it was: the rest, now rounded as coarsely as the
//! outliers ask for, still matters as much as before.

use std::collections::BTreeMap;
use std::sync::Arc;

use half::{bf16, f16};
use manifold::engine::{Checkpoint, CheckpointSource};
use manifold::kernels::{HostTensor, Kernels, Precision, WeightDtype, WeightMap};
use manifold::model::{GridThw, ModelConfig, PackedBatch, Patches, Qwen3VlEncoder, Sequence, Task};

/// Outlier channels of a projection's input.
const OUTLIER_CHANNELS: usize = 6;

/// A stage's rows of numbers by the stage's place in the pass and its name.
type Stages = BTreeMap<(usize, String), Vec<Vec<f32>>>;

/// How far a stage is from the same stage in f32.
struct Distance {
    lowest_cosine: f64,
    mean_cosine: f64,
    /// The largest difference over the root mean square of the f32 numbers.
    largest: f64,
}

/// A picture of `grid`, if any, and `tokens` ordinary tokens after it.
fn sequence(grid: Option<GridThw>, tokens: u32, config: &ModelConfig) -> Sequence {
    let vocabulary = config.text.vocab_size as u32;
    let pads = grid.map_or(0, |grid| grid.vision_tokens() as u32);
    let positions: Vec<u32> = (0..pads + tokens).collect();
    let media = grid.map(|grid| {
        // Not periodic in the width of a patch: a constant picture would have equal rows.
        let pixels = (0..grid.patches() * 1536)
            .map(|i| ((i * 31 + i / 1536 * 47) % 251) as u8)
            .collect();
        Arc::new(Patches { grid, pixels })
    });
    Sequence {
        input_ids: std::iter::repeat_n(config.image_token_id, pads as usize)
            .chain((0..tokens).map(|i| (i * 37 + 101) % (vocabulary / 2)))
            .collect(),
        position_ids: [positions.clone(), positions.clone(), positions],
        media: media.into_iter().collect(),
        vision_rows: (0..pads).collect(),
        prefix_tokens: 0,
        task: Task::Embed,
    }
}

/// A copy of a tensor, `[rows, ..]`, each element multiplied by what `factor` says of its row and column.
fn scaled(tensor: &HostTensor, factor: impl Fn(usize, usize) -> f32) -> HostTensor {
    let columns: usize = tensor.shape[1..].iter().product();
    let mut bytes = tensor.bytes().to_vec();
    for (i, element) in bytes
        .chunks_exact_mut(tensor.dtype.size_bytes())
        .enumerate()
    {
        let factor = factor(i / columns, i % columns);
        match (tensor.dtype, &mut *element) {
            (WeightDtype::Bf16, &mut [low, high]) => {
                let value = bf16::from_le_bytes([low, high]).to_f32() * factor;
                element.copy_from_slice(&bf16::from_f32(value).to_le_bytes());
            }
            (WeightDtype::F16, &mut [low, high]) => {
                let value = f16::from_le_bytes([low, high]).to_f32() * factor;
                element.copy_from_slice(&f16::from_f32(value).to_le_bytes());
            }
            _ => {
                let value = f32::from_le_bytes(std::array::from_fn(|i| element[i])) * factor;
                element.copy_from_slice(&value.to_le_bytes());
            }
        }
    }
    HostTensor {
        range: 0..bytes.len(),
        owner: Arc::new(bytes),
        ..tensor.clone()
    }
}

/// Makes some channels of what `q_proj`, `k_proj`, `v_proj`, `gate_proj`, `up_proj` and `down_proj` read `factor` times larger:
/// by the norm before them, and by the rows of `up_proj`.
fn add_outliers(weights: &mut WeightMap, config: &ModelConfig, factor: f32, compensated: bool) {
    let is_outlier = |channel: usize, width: usize| channel % (width / OUTLIER_CHANNELS) == 5;
    let (hidden, inner) = (config.text.hidden_size, config.text.intermediate_size);
    for layer in 0..config.text.num_hidden_layers {
        let mut scale = |name: &str, width: usize, by_row: bool, factor: f32| {
            let name = format!("model.language_model.layers.{layer}.{name}.weight");
            let tensor = scaled(&weights[&name], |row, column| {
                let channel = if by_row { row } else { column };
                if is_outlier(channel, width) {
                    factor
                } else {
                    1.0
                }
            });
            weights.insert(name, tensor);
        };
        scale("input_layernorm", hidden, true, factor);
        scale("post_attention_layernorm", hidden, true, factor);
        scale("mlp.up_proj", inner, true, factor);
        if compensated {
            for name in ["q", "k", "v"] {
                scale(
                    &format!("self_attn.{name}_proj"),
                    hidden,
                    false,
                    1.0 / factor,
                );
            }
            scale("mlp.gate_proj", hidden, false, 1.0 / factor);
            scale("mlp.up_proj", hidden, false, 1.0 / factor);
            scale("mlp.down_proj", inner, false, 1.0 / factor);
        }
    }
}

/// The stages of each input in one precision; the weights are dropped before it returns.
fn stages(
    config: &ModelConfig,
    weights: &WeightMap,
    precision: Precision,
    inputs: &[(&str, Sequence)],
) -> Vec<Stages> {
    let encoder =
        Qwen3VlEncoder::load(config, weights, Kernels::host(precision)).expect("weights that fit");
    let stages_of = |sequence: &Sequence| {
        let mut stages = Stages::new();
        encoder
            .forward_traced(&PackedBatch::pack([sequence]), &mut |stage, x| {
                let rows = x.to_tensor()?.to_vec2()?;
                stages.insert((stages.len(), stage.to_owned()), rows);
                Ok(())
            })
            .expect("a forward pass");
        stages
    };
    inputs.iter().map(|(_, input)| stages_of(input)).collect()
}

fn distance(ours: &[Vec<f32>], exact: &[Vec<f32>]) -> Distance {
    let dot = |x: &[f32], y: &[f32]| -> f64 {
        let products = x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y));
        products.sum()
    };
    let (mut lowest_cosine, mut cosines, mut largest, mut squares) = (1.0_f64, 0.0, 0.0_f64, 0.0);
    for (x, y) in ours.iter().zip(exact) {
        let cosine = dot(x, y) / (dot(x, x) * dot(y, y)).sqrt();
        assert!(cosine.is_finite(), "a row that is not a number");
        lowest_cosine = lowest_cosine.min(cosine);
        cosines += cosine;
        squares += dot(y, y);
        for (x, y) in x.iter().zip(y) {
            largest = largest.max(f64::from((x - y).abs()));
        }
    }
    let rows = exact.len() as f64;
    Distance {
        lowest_cosine,
        mean_cosine: cosines / rows,
        largest: largest / (squares / (rows * exact[0].len() as f64)).sqrt(),
    }
}

fn main() {
    let source = match std::env::var_os("MANIFOLD_BENCH_MODEL") {
        Some(directory) => CheckpointSource::Directory(directory.into()),
        None => CheckpointSource::Embedded,
    };
    let mut checkpoint = Checkpoint::open(&source).expect("a checkpoint");
    let config = checkpoint.model_config().expect("a configuration");
    let outliers = std::env::var("MANIFOLD_BENCH_OUTLIERS").ok();
    let compensated = std::env::var_os("MANIFOLD_BENCH_COMPENSATED").is_some();
    if let Some(factor) = &outliers {
        let factor = factor.parse().expect("MANIFOLD_BENCH_OUTLIERS is a number");
        add_outliers(&mut checkpoint.weights, &config, factor, compensated);
    }
    println!(
        "{}, outliers {outliers:?}, compensated {compensated}",
        checkpoint.name
    );
    let grid = GridThw { t: 1, h: 16, w: 16 };
    let inputs = [
        ("text", sequence(None, 48, &config)),
        ("image", sequence(Some(grid), 8, &config)),
    ];
    let of = |precision| stages(&config, &checkpoint.weights, precision, &inputs);
    let exact = of(Precision::F32);
    let columns = "lowest cos   mean cos  max/rms";
    println!("{:<32}  bf16 {columns}  int8 {columns}", "");
    let (bf16, int8) = (of(Precision::Bf16), of(Precision::Int8));
    for (input, (name, _)) in inputs.iter().enumerate() {
        for (stage, exact) in &exact[input] {
            print!("precision/{name}/{:<20}", stage.1);
            for ours in [&bf16, &int8] {
                let Distance {
                    lowest_cosine,
                    mean_cosine,
                    largest,
                } = distance(&ours[input][stage], exact);
                print!("  {lowest_cosine:>14.7} {mean_cosine:>11.7} {largest:>8.4}");
            }
            println!();
        }
    }
}
