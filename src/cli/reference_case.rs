//! Cases of the reference: inputs, and what it answers. In: sets of them, and a model. Out: how far ours is.
//!
//! `tests/fixtures/scripts/make_verify_cases.py` makes the files that are inside the binary.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

use super::loading::LoadedModel;
use super::verify::Comparison;
use crate::engine::Engine;
use crate::media::{self, MediaSettings, RgbImage};
use crate::model::{PackedBatch, Sequence};
use crate::processor::{
    ContextLimit, DocumentLimit, PixelOptions, Prompt, PromptPart, Query, Truncation,
};
use crate::vectors;

/// Cases of the embedded model.
const BUILT_IN: &str = include_str!("../../tests/fixtures/verify/cases.json");
/// Values others published of real models.
const PUBLISHED: &str = include_str!("../../tests/fixtures/verify/published.json");

/// What a vector may differ in a number format the set names no bound for.
const MIN_COSINE: f64 = 0.99;
/// What a score may differ in a number format the set names no bound for.
const MAX_SCORE_DIFFERENCE: f64 = 0.02;

/// A file of cases.
#[derive(Debug, Deserialize)]
pub(super) struct CaseFile {
    pub(super) sets: Vec<CaseSet>,
}

/// Cases of models of one shape.
#[derive(Debug, Deserialize)]
pub(super) struct CaseSet {
    about: String,
    hidden_size: usize,
    num_hidden_layers: usize,
    vocab_size: usize,
    /// By number format.
    #[serde(default)]
    min_cosine: BTreeMap<String, f64>,
    /// By number format.
    #[serde(default)]
    max_score_difference: BTreeMap<String, f64>,
    #[serde(default)]
    cases: Vec<Case>,
    #[serde(default)]
    similarities: Vec<Similarity>,
    #[serde(default)]
    rerank: Vec<RerankCase>,
}

/// An input.
#[derive(Debug, Deserialize)]
struct CaseInput {
    instruction: Option<String>,
    parts: Vec<CasePart>,
}

#[derive(Debug, Deserialize)]
struct Case {
    case: String,
    #[serde(flatten)]
    input: CaseInput,
    /// The first dimensions of the normalised vector, or all of them.
    expected: Vec<f64>,
}

/// The cosine of two vectors.
#[derive(Debug, Deserialize)]
struct Similarity {
    case: String,
    of: [CaseInput; 2],
    cosine: f64,
}

/// Scores of documents for a query.
#[derive(Debug, Deserialize)]
struct RerankCase {
    case: String,
    instruction: Option<String>,
    query: Vec<CasePart>,
    documents: Vec<Vec<CasePart>>,
    scores: Vec<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum CasePart {
    Text(String),
    Image(String),
    Frames(Vec<String>),
}

/// Those of the embedded model and, for models of their shape, the published ones.
pub(super) fn built_in() -> anyhow::Result<Vec<CaseSet>> {
    let mut sets = read(BUILT_IN)?;
    sets.extend(published()?);
    Ok(sets)
}

/// The published ones.
pub(super) fn published() -> anyhow::Result<Vec<CaseSet>> {
    read(PUBLISHED)
}

fn read(json: &str) -> anyhow::Result<Vec<CaseSet>> {
    let file: CaseFile = serde_json::from_str(json).context("the built-in cases cannot be read")?;
    Ok(file.sets)
}

/// Computes cases with a model.
pub(super) struct Runner<'a> {
    engine: &'a Engine,
    model: &'a LoadedModel,
    media: &'a MediaSettings,
    runtime: tokio::runtime::Runtime,
    shape: (usize, usize, usize),
}

impl<'a> Runner<'a> {
    pub(super) fn new(
        engine: &'a Engine,
        model: &'a LoadedModel,
        media: &'a MediaSettings,
    ) -> anyhow::Result<Self> {
        let text = model.checkpoint.model_config()?.text;
        Ok(Runner {
            engine,
            model,
            media,
            runtime: tokio::runtime::Builder::new_current_thread().build()?,
            shape: (text.hidden_size, text.num_hidden_layers, text.vocab_size),
        })
    }

    fn applies(&self, set: &CaseSet) -> bool {
        self.shape == (set.hidden_size, set.num_hidden_layers, set.vocab_size)
    }

    fn bound(&self, bounds: &BTreeMap<String, f64>, default: f64) -> f64 {
        bounds
            .get(self.model.info.dtype)
            .copied()
            .unwrap_or(default)
    }

    /// Vectors and similarities, each computed alone, and all vectors in one batch against that.
    pub(super) fn embed(&self, set: &CaseSet) -> anyhow::Result<Vec<Comparison>> {
        if !self.applies(set) || set.cases.is_empty() && set.similarities.is_empty() {
            return Ok(Vec::new());
        }
        eprintln!("{}", set.about);
        let bound = self.bound(&set.min_cosine, MIN_COSINE);
        let mut rows = Vec::new();
        let mut sequences = Vec::new();
        let mut alone = Vec::new();
        for case in &set.cases {
            let sequence = self.sequence(&case.input)?;
            let row = self.compute([&sequence])?.remove(0);
            rows.push(case.against(&row, bound)?);
            alone.push(row);
            sequences.push(sequence);
        }
        if sequences.len() > 1 {
            let together = self.compute(&sequences)?;
            rows.push(self.batch_against_alone("embedding", &together, &alone));
        }
        let most = self.bound(&set.max_score_difference, MAX_SCORE_DIFFERENCE);
        for similarity in &set.similarities {
            let mut vectors = Vec::new();
            for input in &similarity.of {
                let row = self.compute([&self.sequence(input)?])?.remove(0);
                let vector = vectors::truncate(&row, None, true)?;
                vectors.push(vector.into_iter().map(f64::from).collect::<Vec<f64>>());
            }
            let (cosine, _) = distance(&vectors[0], &vectors[1]);
            let difference = (cosine - similarity.cosine).abs();
            rows.push(number(&similarity.case, "similarity", (difference, most)));
        }
        Ok(rows)
    }

    /// Scores, each computed alone, and all of a query in one batch against that.
    pub(super) fn rerank(&self, set: &CaseSet) -> anyhow::Result<Vec<Comparison>> {
        if !self.applies(set) || set.rerank.is_empty() {
            return Ok(Vec::new());
        }
        eprintln!("{}", set.about);
        let most = self.bound(&set.max_score_difference, MAX_SCORE_DIFFERENCE);
        let mut rows = Vec::new();
        for case in &set.rerank {
            let query = Query {
                instruction: case.instruction.clone(),
                parts: self.parts(&case.query)?,
            };
            let limit = DocumentLimit {
                context: LIMIT,
                max_document_tokens: None,
            };
            let processor = &self.model.processor;
            let head = processor.pair_head(&query, LIMIT.max_tokens)?;
            let mut sequences = Vec::new();
            let mut alone = Vec::new();
            for (i, (document, expected)) in case.documents.iter().zip(&case.scores).enumerate() {
                let pair = processor.pair(&head, &self.parts(document)?, limit)?;
                let row = self.compute([&pair.sequence])?.remove(0);
                let score = 1.0 / (1.0 + (-f64::from(row[0])).exp());
                let name = format!("{} {i}", case.case);
                rows.push(number(&name, "score", ((score - expected).abs(), most)));
                alone.push(row);
                sequences.push(pair.sequence);
            }
            let together = self.compute(&sequences)?;
            rows.push(self.batch_against_alone("logit", &together, &alone));
        }
        Ok(rows)
    }

    fn compute<'s>(
        &self,
        sequences: impl IntoIterator<Item = &'s Sequence>,
    ) -> anyhow::Result<Vec<Vec<f32>>> {
        let batch = PackedBatch::pack(sequences);
        let encoded = self.runtime.block_on(self.engine.encode(batch))?;
        Ok(encoded.into_iter().map(|encoded| encoded.row).collect())
    }

    fn sequence(&self, input: &CaseInput) -> anyhow::Result<Sequence> {
        let prompt = Prompt {
            instruction: input.instruction.clone(),
            parts: self.parts(&input.parts)?,
            raw: false,
        };
        Ok(self.model.processor.prepare(&prompt, LIMIT)?.sequence)
    }

    fn parts(&self, given: &[CasePart]) -> anyhow::Result<Vec<PromptPart>> {
        let (processor, pixels) = (&self.model.processor, PixelOptions::default());
        let decode = |text: &String| -> anyhow::Result<RgbImage> {
            let bytes = BASE64_STANDARD.decode(text)?;
            Ok(media::image::decode(&bytes, self.media)?)
        };
        let mut parts = Vec::new();
        for part in given {
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
        Ok(parts)
    }

    /// All cases in one batch: the same bits on the CPU, nearly so elsewhere.
    fn batch_against_alone(
        &self,
        what: &str,
        together: &[Vec<f32>],
        alone: &[Vec<f32>],
    ) -> Comparison {
        let wide = |rows: &[Vec<f32>]| {
            rows.iter()
                .flatten()
                .map(|&x| f64::from(x))
                .collect::<Vec<f64>>()
        };
        let (cosine, max_abs) = distance(&wide(together), &wide(alone));
        let ok = match self.model.info.device.as_str() {
            "cpu" => together == alone,
            _ => cosine >= 0.9995,
        };
        Comparison {
            case: "all in one batch".to_owned(),
            what: format!("each {what} alone"),
            cosine: Some(cosine),
            max_abs,
            ok,
        }
    }
}

const LIMIT: ContextLimit = ContextLimit {
    max_tokens: 32_768,
    truncation: Truncation::None,
};

/// A comparison of two numbers.
fn number(case: &str, what: &str, (difference, most): (f64, f64)) -> Comparison {
    Comparison {
        case: case.to_owned(),
        what: what.to_owned(),
        cosine: None,
        max_abs: difference,
        ok: difference <= most,
    }
}

impl Case {
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
