//! `manifold verify`: how far this machine's results are from the reference. In: a [`Config`]. Out: a table, one line a
//! case, and success only when every line is within its bound.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use anyhow::{Context, bail};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

use crate::config::{Config, ConfigArgs};
use crate::engine::{Checkpoint, Engine};
use crate::media::{self, MediaSettings, RgbImage};
use crate::model::{ModelConfig, PackedBatch, Sequence};
use crate::processor::{ContextLimit, PixelOptions, Processor, Prompt, PromptPart, Truncation};
use crate::{telemetry, vectors};

/// What the operator typed after `verify`.
#[derive(Debug, clap::Args)]
pub(super) struct VerifyArgs {
    /// Run only the cases whose name contains this
    #[arg(long, value_name = "TEXT")]
    case: Option<String>,
    #[command(flatten)]
    pub(super) config: ConfigArgs,
}

/// One comparison with the reference.
#[derive(Debug, Clone, PartialEq)]
struct Comparison {
    /// The reference case.
    case: String,
    /// What was compared: "embedding", "input_ids", …
    what: String,
    /// Cosine similarity; `None` where the compared things are not vectors.
    cosine: Option<f64>,
    /// Largest absolute difference.
    max_abs: f64,
    /// Whether it is within the bound of its kind.
    ok: bool,
}

/// Computes the cases and prints the table.
///
/// # Errors
/// When the model cannot be loaded, no case applies, or a case is out of bounds.
pub(super) fn run(config: &Config, args: &VerifyArgs) -> anyhow::Result<()> {
    let _telemetry = telemetry::init(&config.telemetry)?;
    let named = |row: &Comparison| match &args.case {
        Some(text) => row.case.contains(text.as_str()),
        None => true,
    };
    let rows: Vec<Comparison> = compare(config)?.into_iter().filter(named).collect();
    print_table(&mut std::io::stdout().lock(), &rows)?;
    let failed = rows.iter().filter(|row| !row.ok).count();
    match (rows.len(), failed) {
        (0, _) => bail!("no reference case applies to this checkpoint"),
        (_, 0) => Ok(()),
        (all, failed) => bail!("{failed} of {all} comparisons are out of bounds"),
    }
}

/// Loads the checkpoint, computes the built-in cases that apply to it and compares them.
fn compare(config: &Config) -> anyhow::Result<Vec<Comparison>> {
    let checkpoint = Checkpoint::open(&config.model.source)?;
    let model = checkpoint.model_config()?;
    let engine = Engine::start(&checkpoint, config.engine)?;
    let processor = Processor::new(&checkpoint.tokenizer_json, (&model).into())?;
    let info = engine.info();
    eprintln!("{} on {}, {}", checkpoint.name, info.device, info.dtype);
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let cases: BuiltIn =
        serde_json::from_str(CASES).context("the built-in cases cannot be read")?;
    let mut prepared = Vec::new();
    for set in cases.sets.into_iter().filter(|set| set.applies(&model)) {
        eprintln!("{}", set.about);
        let bound = set.min_cosine.get(info.dtype).copied().unwrap_or(0.99);
        for case in set.cases {
            let sequence = case.sequence(&processor, &config.media)?;
            prepared.push((case, bound, sequence));
        }
    }
    let mut rows = Vec::new();
    let mut alone = Vec::new();
    for (case, bound, sequence) in &prepared {
        let row = runtime
            .block_on(engine.encode(PackedBatch::pack([sequence])))?
            .remove(0)
            .row;
        rows.push(case.against(&row, *bound)?);
        alone.push(row);
    }
    if prepared.len() > 1 {
        let batch = PackedBatch::pack(prepared.iter().map(|(.., sequence)| sequence));
        let together = runtime.block_on(engine.encode(batch))?;
        let together: Vec<Vec<f32>> = together.into_iter().map(|encoded| encoded.row).collect();
        rows.push(batch_against_alone(&together, &alone, info.device == "cpu"));
    }
    Ok(rows)
}

/// The cases inside the binary; `tests/fixtures/scripts/make_verify_cases.py` makes them.
const CASES: &str = include_str!("../../tests/fixtures/verify/cases.json");

#[derive(Deserialize)]
struct BuiltIn {
    sets: Vec<CaseSet>,
}

/// Cases of one model.
#[derive(Deserialize)]
struct CaseSet {
    about: String,
    hidden_size: usize,
    num_hidden_layers: usize,
    vocab_size: usize,
    min_cosine: BTreeMap<String, f64>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    case: String,
    instruction: Option<String>,
    parts: Vec<CasePart>,
    /// The first dimensions of the normalised vector, or all of them.
    expected: Vec<f64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum CasePart {
    Text(String),
    Image(String),
    Frames(Vec<String>),
}

impl CaseSet {
    fn applies(&self, model: &ModelConfig) -> bool {
        let text = &model.text;
        (text.hidden_size, text.num_hidden_layers, text.vocab_size)
            == (self.hidden_size, self.num_hidden_layers, self.vocab_size)
    }
}

impl Case {
    fn sequence(&self, processor: &Processor, media: &MediaSettings) -> anyhow::Result<Sequence> {
        let pixels = PixelOptions::default();
        let decode = |text: &String| -> anyhow::Result<RgbImage> {
            let bytes = BASE64_STANDARD.decode(text)?;
            Ok(media::image::decode(&bytes, media)?)
        };
        let mut parts = Vec::new();
        for part in &self.parts {
            parts.push(match part {
                CasePart::Text(text) => PromptPart::Text(text.clone()),
                CasePart::Image(image) => {
                    PromptPart::Image(Arc::new(processor.image(&decode(image)?, &pixels)?))
                }
                CasePart::Frames(frames) => {
                    let frames = frames
                        .iter()
                        .map(decode)
                        .collect::<anyhow::Result<Vec<_>>>()?;
                    // Source: qwen-vl-utils' rate of a frame list.
                    PromptPart::Video(processor.list_video(&frames, 2.0, &pixels)?)
                }
            });
        }
        let prompt = Prompt {
            instruction: self.instruction.clone(),
            parts,
            raw: false,
        };
        let limit = ContextLimit {
            max_tokens: 32_768,
            truncation: Truncation::None,
        };
        Ok(processor.prepare(&prompt, limit)?.sequence)
    }

    fn against(&self, row: &[f32], bound: f64) -> anyhow::Result<Comparison> {
        let vector = vectors::truncate(row, None, true)?;
        let ours: Vec<f64> = vector
            .iter()
            .take(self.expected.len())
            .map(|&x| f64::from(x))
            .collect();
        let (cosine, max_abs) = distance(&ours, &self.expected);
        let what = if self.expected.len() < row.len() {
            format!("first {}", self.expected.len())
        } else {
            "embedding".to_owned()
        };
        Ok(Comparison {
            case: self.case.clone(),
            what,
            cosine: Some(cosine),
            max_abs,
            ok: cosine >= bound,
        })
    }
}

/// All cases in one batch: the same bits on the CPU, nearly so elsewhere.
fn batch_against_alone(together: &[Vec<f32>], alone: &[Vec<f32>], exact: bool) -> Comparison {
    let wide = |rows: &[Vec<f32>]| {
        rows.iter()
            .flatten()
            .map(|&x| f64::from(x))
            .collect::<Vec<f64>>()
    };
    let (cosine, max_abs) = distance(&wide(together), &wide(alone));
    let ok = if exact {
        together == alone
    } else {
        cosine >= 0.9995
    };
    Comparison {
        case: "all in one batch".to_owned(),
        what: "each alone".to_owned(),
        cosine: Some(cosine),
        max_abs,
        ok,
    }
}

/// Cosine and largest absolute difference.
fn distance(a: &[f64], b: &[f64]) -> (f64, f64) {
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let largest = a
        .iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f64::max);
    (dot(a, b) / (dot(a, a) * dot(b, b)).sqrt(), largest)
}

/// Writes one line a comparison, columns as wide as their longest entry.
fn print_table(to: &mut impl Write, rows: &[Comparison]) -> std::io::Result<()> {
    let width = |of: fn(&Comparison) -> &str, least: &str| {
        let widths = rows.iter().map(|row| of(row).chars().count());
        widths.max().unwrap_or(0).max(least.len())
    };
    let case_width = width(|row| &row.case, "case");
    let what_width = width(|row| &row.what, "what");
    writeln!(
        to,
        "{:<case_width$}  {:<what_width$}  {:>11}  {:>8}  ok",
        "case", "what", "cosine", "max abs"
    )?;
    for row in rows {
        // Eight digits: the bound of a good vector lies in the fifth.
        let cosine = row
            .cosine
            .map_or("-".to_owned(), |cosine| format!("{cosine:.8}"));
        let ok = if row.ok { "ok" } else { "FAIL" };
        writeln!(
            to,
            "{:<case_width$}  {:<what_width$}  {cosine:>11}  {:>8.2e}  {ok}",
            row.case, row.what, row.max_abs
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_aligned_and_marks_failures() {
        let row = |case: &str, what: &str, cosine, max_abs, ok| Comparison {
            case: case.to_owned(),
            what: what.to_owned(),
            cosine,
            max_abs,
            ok,
        };
        let rows = [
            row("text_plain", "embedding", Some(0.999_999_99), 1.5e-7, true),
            row("png", "input_ids", None, 0.0, true),
            row("video", "embedding", Some(-0.5), 0.25, false),
        ];
        let mut text = Vec::new();
        print_table(&mut text, &rows).expect("written");
        assert_eq!(
            String::from_utf8(text).expect("UTF-8"),
            "\
case        what            cosine   max abs  ok
text_plain  embedding   0.99999999   1.50e-7  ok
png         input_ids            -    0.00e0  ok
video       embedding  -0.50000000   2.50e-1  FAIL
"
        );
    }
}
