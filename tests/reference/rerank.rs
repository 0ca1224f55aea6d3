//! Scores of pairs: prompt, ids and score, and that what pairs have in common is computed once to the same bits.

use manifold::engine::{
    Checkpoint, DeviceChoice, DtypeChoice, Encoded, Engine, EngineSettings, Models,
};
use manifold::model::{PackedBatch, ScoreHead, Sequence};
use manifold::processor::{
    ContextLimit, DocumentLimit, Prepared, Processor, PromptPart, Query, Truncation,
};
use serde_json::Value;

use crate::fixture::{self, Fixture};

const LIMIT: DocumentLimit = DocumentLimit {
    context: ContextLimit {
        // Source: max_length of the official script.
        max_tokens: 10_240,
        truncation: Truncation::None,
    },
    max_document_tokens: None,
};

/// One request of a fixture: its pairs, and what the reference says of each.
struct Ranked {
    id: String,
    pairs: Vec<Prepared>,
    goldens: Vec<Value>,
}

fn requests(fixture: &Fixture) -> Vec<Ranked> {
    let processor = fixture.processor();
    let goldens = fixture.goldens["rerank"].as_array().unwrap();
    let rank = |request: &Value| {
        let query = Query {
            instruction: request["instruction"].as_str().map(str::to_owned),
            parts: fixture.object_parts(&processor, &request["query"]),
        };
        let head = processor
            .pair_head(&query, LIMIT.context.max_tokens)
            .unwrap();
        let documents = request["documents"].as_array().unwrap().iter();
        let pair = |document: &Value| {
            let document: Vec<PromptPart> = fixture.object_parts(&processor, document);
            processor.pair(&head, &document, LIMIT).unwrap()
        };
        let golden = goldens.iter().find(|golden| golden["id"] == request["id"]);
        Ranked {
            id: request["id"].as_str().unwrap().to_owned(),
            pairs: documents.map(pair).collect(),
            goldens: golden.unwrap()["results"].as_array().unwrap().clone(),
        }
    };
    fixture.reranks.iter().map(rank).collect()
}

fn public() -> Fixture {
    Fixture::open("parity")
}

#[test]
fn every_pair_has_the_ids_of_the_reference() {
    let fixture = public();
    let mut compared = 0;
    for ranked in requests(&fixture) {
        assert_eq!(ranked.pairs.len(), ranked.goldens.len());
        for (pair, golden) in ranked.pairs.iter().zip(&ranked.goldens) {
            let ids: Vec<Value> = pair
                .sequence
                .input_ids
                .iter()
                .map(|&id| id.into())
                .collect();
            assert_eq!(
                &ids,
                golden["input_ids"].as_array().unwrap(),
                "{}",
                ranked.id
            );
            compared += 1;
        }
    }
    assert_eq!(compared, 10);
}

#[test]
fn every_score_equals_the_reference_in_f32() {
    let fixture = public();
    let checkpoint = fixture.checkpoint();
    let config = checkpoint.model_config().unwrap();
    let answers = fixture.processor().answer_ids().unwrap();
    assert_eq!(answers.yes, fixture.goldens["rerank"][0]["yes_id"]);
    assert_eq!(answers.no, fixture.goldens["rerank"][0]["no_id"]);
    let head = ScoreHead::load(&config, &checkpoint.weights, answers, false).unwrap();
    for kernels in fixture::exact_kernels() {
        let name = format!("{kernels:?}");
        let encoder = fixture.encoder(kernels);
        for ranked in requests(&fixture) {
            for (i, (pair, golden)) in ranked.pairs.iter().zip(&ranked.goldens).enumerate() {
                let row = encoder
                    .forward(&PackedBatch::pack([&pair.sequence]))
                    .unwrap();
                let logit = head.logit(&row.to_vec2::<f32>().unwrap()[0]);
                let score = 1.0 / (1.0 + (-f64::from(logit)).exp());
                let expected = golden["score"].as_f64().unwrap();
                let off = (score - expected).abs();
                assert!(
                    off <= 1e-5,
                    "{name} {} {i}: {score}, off by {off}",
                    ranked.id
                );
            }
        }
    }
}

fn engine(checkpoint: &Checkpoint, processor: &Processor, max_prefix_bytes: usize) -> Engine {
    let models = Models {
        embedder: Some(checkpoint),
        reranker: Some((checkpoint, processor.answer_ids().unwrap())),
    };
    let settings = EngineSettings {
        dtype: DtypeChoice::F32,
        device: DeviceChoice::Cpu,
        max_prefix_bytes,
        ..EngineSettings::default()
    };
    Engine::start_with(models, settings).unwrap()
}

fn encode(engine: &Engine, sequences: &[&Sequence]) -> Vec<Encoded> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let batch = PackedBatch::pack(sequences.iter().copied());
    runtime.block_on(engine.encode(batch)).unwrap()
}

#[test]
fn a_query_is_computed_once_and_the_scores_are_the_bits_of_pairs_computed_whole() {
    let fixture = public();
    let (checkpoint, processor) = (fixture.checkpoint(), fixture.processor());
    let (sharing, whole) = (
        engine(&checkpoint, &processor, 1 << 30),
        engine(&checkpoint, &processor, 0),
    );
    for ranked in requests(&fixture)
        .iter()
        .filter(|ranked| ranked.id == "text")
    {
        let sequences: Vec<&Sequence> = ranked.pairs.iter().map(|pair| &pair.sequence).collect();
        let together = encode(&sharing, &sequences);
        for (i, (shared, sequence)) in together.iter().zip(&sequences).enumerate() {
            let alone = encode(&whole, &[sequence]).remove(0);
            assert_eq!(alone.cached_tokens, 0);
            assert_eq!(shared.row, alone.row, "document {i}");
            assert_eq!(shared.row.len(), 1);
            let cached = if i == 0 { 0 } else { sequence.prefix_tokens };
            assert_eq!(shared.cached_tokens, cached, "document {i}");
        }
        // The query's part is most of a prompt with a short document.
        assert!(sequences[1].prefix_tokens > 100);
    }
    // The same thread embeds, with the other model.
    let embedding = fixture.prepare(&processor, &fixture.requests[0]).sequence;
    assert_eq!(encode(&sharing, &[&embedding])[0].row.len(), 64);
}
