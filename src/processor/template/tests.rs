//! Prompts by the fixture's tokenizer. Whole requests are held against the goldens in `tests/reference`.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::model::Patches;

const TOKENIZER: &[u8] = include_bytes!("../../../tests/fixtures/parity/model/tokenizer.json");
const IDS: VisionTokenIds = VisionTokenIds {
    vocab_size: 2048,
    image_token_id: 2017,
    video_token_id: 2018,
    vision_start_token_id: 2014,
    vision_end_token_id: 2015,
};
const EOT: u32 = 2005;
const NO_LIMIT: ContextLimit = ContextLimit {
    max_tokens: 100_000_000,
    truncation: Truncation::None,
};

fn template() -> Template {
    Template::new(TOKENIZER, IDS).unwrap()
}

fn text(parts: &[&str]) -> Prompt {
    Prompt {
        parts: parts
            .iter()
            .map(|&part| PromptPart::Text(part.to_owned()))
            .collect(),
        ..Prompt::default()
    }
}

fn image(h: u32, w: u32) -> PromptPart {
    let grid = GridThw { t: 1, h, w };
    PromptPart::Image(Arc::new(Patches {
        grid,
        pixels: vec![0; grid.patches() * 1536],
    }))
}

fn ids(prompt: &Prompt) -> Vec<u32> {
    template()
        .prepare(prompt, NO_LIMIT)
        .unwrap()
        .sequence
        .input_ids
}

#[test]
fn parts_that_touch_are_one_text() {
    assert_eq!(
        ids(&text(&["first part.", "second part."])),
        ids(&text(&["first part.second part."]))
    );
    assert_eq!(ids(&Prompt::default()), ids(&text(&["NULL"])));
    assert_ne!(ids(&text(&[""])), ids(&text(&["NULL"])));
}

#[test]
fn token_ids_stand_for_the_text_they_spell() {
    let encoded = template()
        .tokenizer
        .encode("What is the capital?", false)
        .unwrap();
    let spelled = Prompt {
        parts: vec![PromptPart::TokenIds(encoded.get_ids().to_vec())],
        ..Prompt::default()
    };
    assert_eq!(ids(&spelled), ids(&text(&["What is the capital?"])));
}

#[test]
fn raw_text_gets_the_post_processor_and_nothing_else() {
    let raw = Prompt {
        raw: true,
        ..text(&["hello"])
    };
    let mut expected = template()
        .tokenizer
        .encode("hello", false)
        .unwrap()
        .get_ids()
        .to_vec();
    expected.push(EOT);
    assert_eq!(ids(&raw), expected);
}

#[test]
fn a_tokenizer_without_post_processor_appends_nothing_and_one_with_a_prefix_moves_the_spans() {
    let mut json: serde_json::Value = serde_json::from_slice(TOKENIZER).unwrap();
    let prompt = Prompt {
        parts: vec![image(4, 4)],
        ..Prompt::default()
    };
    let with = template().prepare(&prompt, NO_LIMIT).unwrap().sequence;
    let template_step = json["post_processor"]["processors"][1].take();
    json["post_processor"] = serde_json::Value::Null;
    let without = Template::new(json.to_string().as_bytes(), IDS)
        .unwrap()
        .prepare(&prompt, NO_LIMIT)
        .unwrap()
        .sequence;
    assert_eq!(
        without.input_ids,
        with.input_ids[..with.input_ids.len() - 1]
    );
    let mut prefixing = template_step;
    prefixing["single"].as_array_mut().unwrap().reverse();
    json["post_processor"] = prefixing;
    let prefixed = Template::new(json.to_string().as_bytes(), IDS)
        .unwrap()
        .prepare(&prompt, NO_LIMIT)
        .unwrap()
        .sequence;
    assert_eq!(prefixed.input_ids[0], EOT);
    assert_eq!(prefixed.vision_rows[0], with.vision_rows[0] + 1);
    assert!(
        prefixed
            .vision_rows
            .iter()
            .all(|&row| prefixed.input_ids[row as usize] == 2017)
    );
}

#[test]
fn a_configuration_that_disagrees_with_the_tokenizer_is_refused() {
    let ids = VisionTokenIds {
        image_token_id: 2018,
        ..IDS
    };
    let error = Template::new(TOKENIZER, ids).unwrap_err().to_string();
    assert!(
        error.contains("image_token_id is 2018") && error.contains("2017"),
        "{error}"
    );
}

#[test]
fn a_token_id_outside_the_vocabulary_or_special_is_refused_with_its_position() {
    let refused = |id: u32| {
        let prompt = Prompt {
            parts: vec![PromptPart::TokenIds(vec![1, id])],
            ..Prompt::default()
        };
        template()
            .prepare(&prompt, NO_LIMIT)
            .unwrap_err()
            .to_string()
    };
    let beyond = refused(2031);
    assert!(
        beyond.contains("token id 2031 at position 1") && beyond.contains("2031"),
        "{beyond}"
    );
    assert!(refused(2017).contains("special token"));
}

#[test]
fn too_long_names_both_counts() {
    let limit = ContextLimit {
        max_tokens: 30,
        truncation: Truncation::None,
    };
    let error = template()
        .prepare(
            &text(&["one two three four five six seven eight nine ten eleven"]),
            limit,
        )
        .unwrap_err();
    let ProcessorError::TooLong {
        tokens, limit: 30, ..
    } = error
    else {
        panic!("{error}")
    };
    assert!(tokens > 30);
    let huge = "a".repeat(30 * template().longest_token * MAX_COMPOSITION + 1);
    assert!(matches!(
        template().prepare(&text(&[&huge]), limit),
        Err(ProcessorError::TooLong { .. })
    ));
}

#[test]
fn truncation_keeps_media_and_the_tail_or_refuses() {
    let template = template();
    let prompt = Prompt {
        parts: vec![
            image(8, 8),
            PromptPart::Text("many words follow the picture here".to_owned()),
        ],
        ..Prompt::default()
    };
    let whole = template
        .prepare(&prompt, NO_LIMIT)
        .unwrap()
        .sequence
        .input_ids;
    for truncation in [Truncation::End, Truncation::Start] {
        let limit = ContextLimit {
            max_tokens: whole.len() - 3,
            truncation,
        };
        let cut = template.prepare(&prompt, limit).unwrap();
        assert!(cut.truncated);
        assert_eq!(cut.sequence.input_ids.len(), whole.len() - 3);
        assert_eq!(cut.sequence.vision_rows.len(), 16);
        assert_eq!(
            cut.sequence.input_ids[whole.len() - 9..],
            whole[whole.len() - 6..]
        );
        let too_short = ContextLimit {
            max_tokens: 30,
            truncation,
        };
        assert!(matches!(
            template.prepare(&prompt, too_short),
            Err(ProcessorError::TooLong {
                media_tokens: 16,
                ..
            })
        ));
    }
    let reference = ContextLimit {
        max_tokens: 30,
        truncation: Truncation::Reference,
    };
    assert!(matches!(
        template.prepare(&prompt, reference),
        Err(ProcessorError::TooLong { .. })
    ));
}

#[test]
fn long_runs_cost_linear_time_and_decode_to_themselves() {
    let template = template();
    for unit in ["a", " ", "\n", " \n", "!", "海", "👩\u{200d}", "\t x"] {
        let time = |n: usize| {
            let text = unit.repeat(n);
            // The best of a few: the machine may do other things at the same time.
            let took = (0..4).map(|_| {
                let start = std::time::Instant::now();
                let encoding = template.tokenizer.encode(text.as_str(), false).unwrap();
                let took = start.elapsed().as_secs_f64();
                assert_eq!(
                    template
                        .tokenizer
                        .decode(encoding.get_ids(), false)
                        .unwrap(),
                    text,
                    "{unit:?} x {n}"
                );
                took
            });
            took.fold(f64::INFINITY, f64::min)
        };
        let (one, two) = (time(60_000), time(120_000));
        // 2.5 is the promise; the rest is for a machine that does other things at the same time.
        assert!(
            two / one < 4.0,
            "{unit:?}: {one} s, then {two} s for twice as much"
        );
    }
}

proptest! {
    #[test]
    fn no_text_becomes_a_special_token(words in prop::collection::vec(prop_oneof![
        Just("<|im_end|>"), Just("<|vision_start|>"), Just("<|image_pad|>"), Just("<|endoftext|>"), Just("<|"), Just("|>"), Just(" "), Just("\n"), Just("im_start"), Just("é"),
    ], 0..12)) {
        let template = template();
        let joined = words.concat();
        let prepared = template.prepare(&text(&[&joined]), NO_LIMIT).unwrap().sequence;
        let special = |id: &&u32| template.special.contains(id);
        // <|im_start|> three times, <|im_end|> twice, <|endoftext|> once: the template's own.
        prop_assert_eq!(prepared.input_ids.iter().filter(special).count(), 6);
        prop_assert!(prepared.vision_rows.is_empty());
    }

    #[test]
    fn truncation_never_exceeds_the_limit(n in 0_usize..60, max_tokens in 1_usize..80, from_start: bool) {
        let truncation = if from_start { Truncation::Start } else { Truncation::End };
        let prompt = text(&[&"word ".repeat(n), "and more"]);
        match template().prepare(&prompt, ContextLimit { max_tokens, truncation }) {
            Ok(prepared) => {
                prop_assert!(prepared.sequence.input_ids.len() <= max_tokens);
                prop_assert_eq!(*prepared.sequence.input_ids.last().unwrap(), EOT);
                prop_assert_eq!(prepared.tokens.total(), prepared.sequence.input_ids.len());
            }
            Err(error) => {
                let too_long = matches!(error, ProcessorError::TooLong { .. });
                prop_assert!(too_long && max_tokens < 30);
            }
        }
    }
}
