//! `manifold verify`: what is computed here, and how far its results are from the reference. In: a [`Config`]. Out: what decides the bits
//! of an answer, a table with one line a case, and success only when every line is within its bound.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, bail};

use super::loading::{self, LoadedModel, Loading};
use super::reference_case::{self, CaseFile, CaseSet, Runner};
use crate::config::{Config, ConfigArgs, ModelSettings};
use crate::engine::{CheckpointSource, hash_weights};
use crate::telemetry;

/// What the operator typed after `verify`.
#[derive(Debug, clap::Args)]
pub(super) struct VerifyArgs {
    /// Run only the cases whose name contains this
    #[arg(long, value_name = "TEXT")]
    case: Option<String>,
    /// Check against values others published of the real 2B embedder and reranker, which are downloaded unless models are named; or
    /// against those of a file
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    published: Option<Option<PathBuf>>,
    #[command(flatten)]
    pub(super) config: ConfigArgs,
}

/// One comparison with the reference.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Comparison {
    /// The reference case.
    pub(super) case: String,
    /// What was compared: "embedding", "score", …
    pub(super) what: String,
    /// Cosine similarity; `None` where the compared things are not vectors.
    pub(super) cosine: Option<f64>,
    /// Largest absolute difference.
    pub(super) max_abs: f64,
    /// Whether it is within the bound of its kind.
    pub(super) ok: bool,
}

/// Models whose values were published.
const PUBLISHED: [&str; 2] = ["Qwen/Qwen3-VL-Embedding-2B", "Qwen/Qwen3-VL-Reranker-2B"];

/// Computes the cases and prints the table.
///
/// # Errors
/// When a model cannot be loaded, no case applies, or a case is out of bounds.
pub(super) fn run(config: &Config, args: &VerifyArgs) -> anyhow::Result<()> {
    let _telemetry = telemetry::init(&config.telemetry)?;
    let mut config = config.clone();
    let sets = case_sets(args, &mut config)?;
    let loading = loading::load(&config)?;
    let mut out = std::io::stdout().lock();
    print_proofs(&mut out, &config, &loading)?;
    let named = |row: &Comparison| match &args.case {
        Some(text) => row.case.contains(text.as_str()),
        None => true,
    };
    let rows = compare(&config, &loading, sets)?;
    let rows: Vec<Comparison> = rows.into_iter().filter(named).collect();
    print_table(&mut out, &rows)?;
    let failed = rows.iter().filter(|row| !row.ok).count();
    match (rows.len(), failed) {
        (0, _) => bail!("no reference case applies to this checkpoint"),
        (_, 0) => Ok(()),
        (all, failed) => bail!("{failed} of {all} comparisons are out of bounds"),
    }
}

/// The cases that were asked for. Published values are of models that need not be named.
fn case_sets(args: &VerifyArgs, config: &mut Config) -> anyhow::Result<Vec<CaseSet>> {
    let path = match &args.published {
        None => return reference_case::built_in(),
        Some(None) => {
            if config.embeds && config.model.source == CheckpointSource::Embedded {
                let [embedder, reranker] = PUBLISHED.map(|id| published(config, id));
                config.model = embedder;
                config.reranker = config.reranker.take().or(Some(reranker));
            }
            return reference_case::published();
        }
        Some(Some(path)) => path,
    };
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("{} cannot be read", path.display()))?;
    let file: CaseFile = serde_json::from_str(&text)
        .with_context(|| format!("{} is not a file of cases", path.display()))?;
    Ok(file.sets)
}

fn published(config: &Config, id: &str) -> ModelSettings {
    ModelSettings {
        source: CheckpointSource::Hub {
            id: id.to_owned(),
            revision: None,
            offline: config.offline,
        },
        served_names: Vec::new(),
    }
}

/// Computes the cases that apply to what is loaded and compares them.
fn compare(
    config: &Config,
    loading: &Loading,
    sets: Vec<CaseSet>,
) -> anyhow::Result<Vec<Comparison>> {
    let mut rows = Vec::new();
    for (task, model) in [
        ("embedder", loading.embedder.as_ref()),
        ("reranker", loading.reranker.as_ref()),
    ] {
        let Some(model) = model else { continue };
        let runner = Runner::new(&loading.engine, model, &config.media)?;
        let before = rows.len();
        for set in &sets {
            rows.extend(match task {
                "embedder" => runner.embed(set)?,
                _ => runner.rerank(set)?,
            });
        }
        if rows.len() == before {
            let name = &model.checkpoint.name;
            bail!("no reference case applies to the {task} {name}: nothing was compared");
        }
    }
    Ok(rows)
}

/// Tells what decides the bits of the answers of what is loaded.
fn print_proofs(to: &mut impl Write, config: &Config, loading: &Loading) -> std::io::Result<()> {
    let models = [
        ("embedder", loading.embedder.as_ref()),
        ("reranker", loading.reranker.as_ref()),
    ];
    for (task, model) in models {
        if let Some(model) = model {
            print_proof(to, task, model)?;
        }
    }
    let (limits, batch) = (&config.limits, &config.batch);
    writeln!(
        to,
        "limits: {} inputs of {} tokens a request, {} tokens and {} inputs a pass\n",
        limits.max_inputs, limits.max_input_tokens, batch.max_tokens, batch.max_sequences
    )
}

fn print_proof(to: &mut impl Write, task: &str, model: &LoadedModel) -> std::io::Result<()> {
    let LoadedModel {
        checkpoint, proof, ..
    } = model;
    let fingerprint = &proof.fingerprint;
    let pixels: Vec<String> = proof
        .preprocessing
        .iter()
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    writeln!(to, "{task} {}", checkpoint.name)?;
    let lines = [
        (
            "revision",
            checkpoint.revision.as_deref().unwrap_or("none").to_owned(),
        ),
        ("fingerprint", proof.id.clone()),
        (
            "weights",
            format!("{} (every byte)", hash_weights(checkpoint)),
        ),
        (
            "",
            format!("{} (a sample of each tensor)", fingerprint.weights),
        ),
        ("tokenizer", fingerprint.tokenizer.clone()),
        ("config", fingerprint.config.clone()),
        ("numeric", proof.numeric_mode.clone()),
        ("pixels", pixels.join(", ")),
        ("template", format!("{:?}", proof.template)),
    ];
    for (name, value) in lines {
        writeln!(to, "  {name:<11} {value}")?;
    }
    Ok(())
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
