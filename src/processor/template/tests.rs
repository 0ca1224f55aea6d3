//! Prompts by the fixture's tokenizer. Whole requests are held against the goldens in `tests/reference`.

use std::sync::Arc;

use proptest::prelude::*;

use super::super::text_tokenizer::TemplateIds;
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
fn instructions_are_stripped_and_ended_as_in_the_reference() {
    assert_eq!(instruction(None), DEFAULT_INSTRUCTION);
    assert_eq!(instruction(Some(" \n\u{1f} ")), DEFAULT_INSTRUCTION);
    assert_eq!(
        instruction(Some("  Find similar news ")),
        "Find similar news."
    );
    assert_eq!(instruction(Some("检索相关图片。")), "检索相关图片。");
    // `$`, `+` and `~` are symbols, not punctuation.
    assert_eq!(instruction(Some("cost in $")), "cost in $.");
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
    let encoded = template().tokenizer.encode("What is the capital?").unwrap();
    let spelled = Prompt {
        parts: vec![PromptPart::TokenIds(encoded.ids)],
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
    let mut expected = template().tokenizer.encode("hello").unwrap().ids;
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
    let huge = "a".repeat(template().tokenizer.length_bound("a", 30).most_bytes + 1);
    assert!(matches!(
        template().prepare(&text(&[&huge]), limit),
        Err(ProcessorError::TooLong { .. })
    ));
}

#[test]
fn a_long_text_is_refused_after_a_look_and_the_count_is_called_a_lower_bound() {
    let limit = ContextLimit {
        max_tokens: 30,
        truncation: Truncation::None,
    };
    let long = "one two three ".repeat(1_000_000);
    let error = template().prepare(&text(&[&long]), limit).unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("has at least ") && message.ends_with("the limit is 30"),
        "{message}"
    );
}

#[test]
fn a_long_text_cut_early_keeps_the_ids_of_the_whole() {
    let template = template();
    let long = "one two three ".repeat(2_000);
    let whole = ids(&text(&[&long]));
    let limit = |truncation| ContextLimit {
        max_tokens: 60,
        truncation,
    };
    let cut = template
        .prepare(&text(&[&long]), limit(Truncation::End))
        .unwrap();
    assert!(cut.truncated);
    assert_eq!(cut.sequence.input_ids[..54], whole[..54]);
    let cut = template
        .prepare(&text(&[&long]), limit(Truncation::Start))
        .unwrap();
    assert_eq!(cut.sequence.input_ids[20..], whole[whole.len() - 40..]);
    let cut = template
        .prepare(&text(&[&long]), limit(Truncation::Reference))
        .unwrap();
    assert_eq!(cut.sequence.input_ids[..59], whole[..59]);
}

#[test]
fn a_token_of_two_touching_texts_can_be_cut() {
    let template = template();
    // "wo" and "rd" meet inside tokens, a thousand times.
    let parts: Vec<&str> = ["wo", "rd "].into_iter().cycle().take(2_000).collect();
    let limit = ContextLimit {
        max_tokens: 26,
        truncation: Truncation::End,
    };
    assert_eq!(
        template
            .prepare(&text(&parts), limit)
            .unwrap()
            .tokens
            .total(),
        26
    );
}

#[test]
fn an_input_without_any_token_is_refused() {
    let mut json: serde_json::Value = serde_json::from_slice(TOKENIZER).unwrap();
    json["post_processor"] = serde_json::Value::Null;
    let bare = Template::new(json.to_string().as_bytes(), IDS).unwrap();
    let empty = Prompt {
        raw: true,
        ..text(&[""])
    };
    assert!(matches!(
        bare.prepare(&empty, NO_LIMIT),
        Err(ProcessorError::Empty)
    ));
    assert_eq!(
        template()
            .prepare(&empty, NO_LIMIT)
            .unwrap()
            .sequence
            .input_ids,
        [EOT]
    );
}

#[test]
fn a_template_token_that_is_not_special_is_refused() {
    let json = std::str::from_utf8(TOKENIZER).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(json).unwrap();
    for token in json["added_tokens"].as_array_mut().unwrap() {
        if token["content"] == "<|image_pad|>" {
            token["special"] = false.into();
        }
    }
    let error = Template::new(json.to_string().as_bytes(), IDS)
        .unwrap_err()
        .to_string();
    assert!(error.contains("<|image_pad|>"), "{error}");
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
            let start = std::time::Instant::now();
            let encoded = template.tokenizer.encode(&text).unwrap();
            let took = start.elapsed().as_secs_f64();
            let decoded = template.tokenizer.decode(&encoded.ids).unwrap();
            assert_eq!(decoded, text, "{unit:?} x {n}");
            took
        };
        // The best of several rounds counts, for the machine may do other things at the same time. Four times the text takes about
        // four times as long, by a quadratic step sixteen times; caches and neighbours blur the space between.
        let (mut one, mut four) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..20 {
            one = one.min(time(20_000));
            four = four.min(time(80_000));
            if four / one <= 6.0 {
                break;
            }
        }
        assert!(
            four / one <= 10.0,
            "{unit:?}: {one} s, then {four} s for four times as much"
        );
    }
}

/// The ids of a prompt up to where the user's first part begins, tokenised without one.
fn prefix(instructed: &str) -> Vec<u32> {
    let tokenizer = template().tokenizer;
    let encode = |text: &str| tokenizer.encode(text).unwrap().ids;
    let TemplateIds {
        im_start, im_end, ..
    } = tokenizer.ids();
    [
        vec![im_start],
        encode(&format!("system\n{instructed}")),
        vec![im_end],
        encode("\n"),
        vec![im_start],
        encode("user\n"),
    ]
    .concat()
}

#[test]
fn inputs_with_the_same_instruction_share_the_prefix_whatever_the_user_s_text_begins_with() {
    let template = template();
    // The first characters, and whether the template's line break stays a token of its own before them.
    let beginnings = [
        ("", true),
        ("hello", true),
        (" hello", true),
        ("   ", true),
        ("\t", true),
        ("\u{301}e", true),
        ("e\u{301}", true),
        ("\u{11a8}", true),
        ("user\n", true),
        ("<|im_end|>", true),
        ("<|im_start|>user\n", true),
        ("<|vision_start|>", true),
        ("<think>", true),
        ("\r\nhello", true),
        ("\n", false),
        ("\nhello", false),
        ("\n\n\n", false),
        ("\n<|im_end|>", false),
    ];
    for (given, instructed) in [
        (None, DEFAULT_INSTRUCTION),
        (Some("Find similar news"), "Find similar news."),
        (Some("a\n<|im_end|>\n!"), "a\n<|im_end|>\n!"),
    ] {
        let shared = prefix(instructed);
        for (beginning, apart) in beginnings {
            let prompt = Prompt {
                instruction: given.map(str::to_owned),
                ..text(&[beginning, "and more"])
            };
            let sequence = template.prepare(&prompt, NO_LIMIT).unwrap().sequence;
            let expected = shared.len() - usize::from(!apart);
            assert_eq!(sequence.prefix_tokens, expected, "{beginning:?}");
            assert_eq!(
                sequence.input_ids[..expected],
                shared[..expected],
                "{beginning:?}"
            );
        }
    }
}

#[test]
fn the_prefix_ends_before_a_first_part_that_is_no_text() {
    let shared = prefix(DEFAULT_INSTRUCTION);
    let frames = Patches {
        grid: GridThw { t: 1, h: 4, w: 4 },
        pixels: vec![0; 16 * 1536],
    };
    let video = PromptPart::Video(VideoPatches {
        patches: Arc::new(frames),
        timestamps: vec![0.5],
    });
    let line_break = template().tokenizer.encode("\n").unwrap().ids;
    for (parts, next) in [
        (vec![image(4, 4)], Some(IDS.vision_start_token_id)),
        (vec![video], None),
        (
            vec![PromptPart::TokenIds(line_break.clone())],
            Some(line_break[0]),
        ),
        (Vec::new(), None),
    ] {
        let prompt = Prompt {
            parts,
            ..Prompt::default()
        };
        let sequence = template().prepare(&prompt, NO_LIMIT).unwrap().sequence;
        let (found, rest) = sequence.input_ids.split_at(sequence.prefix_tokens);
        assert_eq!(found, shared);
        assert!(next.is_none_or(|next| rest[0] == next));
        let first_row = sequence.vision_rows.first();
        assert!(first_row.is_none_or(|&row| row as usize > shared.len()));
        for axis in &sequence.position_ids {
            assert!(
                axis.iter()
                    .take(shared.len())
                    .copied()
                    .eq(0..shared.len() as u32)
            );
        }
    }
}

#[test]
fn a_raw_input_has_no_prefix_and_a_post_processor_s_first_token_belongs_to_it() {
    for words in ["hello", "user\n", "", "<|im_start|>system\n"] {
        let raw = Prompt {
            raw: true,
            ..text(&[words])
        };
        let sequence = template().prepare(&raw, NO_LIMIT).unwrap().sequence;
        assert_eq!(sequence.prefix_tokens, 0);
    }
    let mut json: serde_json::Value = serde_json::from_slice(TOKENIZER).unwrap();
    let mut prefixing = json["post_processor"]["processors"][1].take();
    prefixing["single"].as_array_mut().unwrap().reverse();
    json["post_processor"] = prefixing;
    let prefixing = Template::new(json.to_string().as_bytes(), IDS).unwrap();
    let sequence = prefixing.prepare(&text(&["a"]), NO_LIMIT).unwrap().sequence;
    let shared = [vec![EOT], prefix(DEFAULT_INSTRUCTION)].concat();
    assert_eq!(sequence.input_ids[..sequence.prefix_tokens], shared);
    let raw = Prompt {
        raw: true,
        ..text(&["a"])
    };
    let sequence = prefixing.prepare(&raw, NO_LIMIT).unwrap().sequence;
    assert_eq!(sequence.prefix_tokens, 0);
}

#[test]
fn a_cut_prompt_keeps_the_prefix_that_is_left_and_one_token_to_compute() {
    let mut json: serde_json::Value = serde_json::from_slice(TOKENIZER).unwrap();
    json["post_processor"] = serde_json::Value::Null;
    let bare = Template::new(json.to_string().as_bytes(), IDS).unwrap();
    let shared = prefix(DEFAULT_INSTRUCTION);
    let long = text(&["one two three four five six"]);
    let sequence = |template: &Template, max_tokens, truncation| {
        let limit = ContextLimit {
            max_tokens,
            truncation,
        };
        template.prepare(&long, limit).unwrap().sequence
    };
    for max_tokens in 2..shared.len() + 4 {
        for template in [&template(), &bare] {
            let sequence = sequence(template, max_tokens, Truncation::Reference);
            let expected = shared.len().min(max_tokens - 1);
            assert_eq!(sequence.input_ids.len(), max_tokens);
            assert_eq!(sequence.prefix_tokens, expected);
            assert_eq!(sequence.input_ids[..expected], shared[..expected]);
        }
    }
    for truncation in [Truncation::End, Truncation::Start] {
        let sequence = sequence(&template(), shared.len() + 8, truncation);
        assert_eq!(sequence.input_ids.len(), shared.len() + 8);
        assert_eq!(sequence.input_ids[..sequence.prefix_tokens], shared);
    }
}

proptest! {
    #[test]
    fn the_prefix_of_any_text_begins_that_of_another_with_the_same_instruction(
        instruction in proptest::option::of("[a-z \n<|>é\u{301}海]{0,12}"),
        words in prop_oneof![any::<String>(), "[\r\n \t\u{b}\u{85}\u{300}-\u{310}a<|!]{0,8}"],
    ) {
        let template = template();
        let prepare = |words: &str| {
            let prompt = Prompt { instruction: instruction.clone(), ..text(&[words]) };
            template.prepare(&prompt, NO_LIMIT).unwrap().sequence
        };
        let (found, other) = (prepare(&words), prepare("another"));
        let prefix_tokens = found.prefix_tokens;
        prop_assert!(prefix_tokens < found.input_ids.len());
        prop_assert_eq!(&found.input_ids[..prefix_tokens], &other.input_ids[..prefix_tokens]);
        // At most the line break at the border is lost to the user's text.
        prop_assert!((other.prefix_tokens - 1..=other.prefix_tokens).contains(&prefix_tokens));
        prop_assert_eq!(*other.input_ids[..other.prefix_tokens].last().unwrap(), template.user_role[1]);
    }

    #[test]
    fn no_text_becomes_a_special_token(words in prop::collection::vec(prop_oneof![
        Just("<|im_end|>"), Just("<|vision_start|>"), Just("<|image_pad|>"), Just("<|endoftext|>"), Just("<|"), Just("|>"), Just(" "), Just("\n"), Just("im_start"), Just("é"),
    ], 0..12)) {
        let template = template();
        let joined = words.concat();
        let prepared = template.prepare(&text(&[&joined]), NO_LIMIT).unwrap().sequence;
        let special = |id: &&u32| template.tokenizer.check_ids(&[**id]).is_err();
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

/// Fuzz target: from a prompt to token ids, with text that spells special tokens, media, and every way to cut.
#[test]
fn any_prompt_becomes_tokens_within_the_limit_with_its_media_whole() {
    const SPELLED: [&str; 5] = [
        "<|image_pad|>",
        "<|vision_start|>",
        "<|im_end|>",
        "<think>",
        "<|endoftext|>",
    ];
    let template = template();
    bolero::check!()
        .with_type::<(Vec<(u8, u8, String)>, Option<String>, u8, bool)>()
        .for_each(|(parts, instruction, limit, raw)| {
            let mut vision_tokens = 0;
            let mut part = |(kind, size, words): &(u8, u8, String)| match kind % 4 {
                0 => PromptPart::Text(words.clone()),
                1 => PromptPart::Text(format!("{words}{}", SPELLED[usize::from(*size) % 5])),
                2 => PromptPart::TokenIds(
                    words
                        .bytes()
                        .map(|byte| u32::from(byte) * u32::from(*size))
                        .collect(),
                ),
                _ => {
                    let (h, w) = (2 + 2 * u32::from(size % 4), 2 + 2 * u32::from(size / 64));
                    vision_tokens += (h * w / 4) as usize;
                    image(h, w)
                }
            };
            let prompt = Prompt {
                parts: parts.iter().take(8).map(&mut part).collect(),
                instruction: instruction.clone(),
                raw: *raw,
            };
            let truncations = [
                Truncation::None,
                Truncation::End,
                Truncation::Start,
                Truncation::Reference,
            ];
            let limit = ContextLimit {
                max_tokens: usize::from(*limit) * 2,
                truncation: truncations[usize::from(*limit) % 4],
            };
            let Ok(prepared) = template.prepare(&prompt, limit) else {
                return;
            };
            let sequence = &prepared.sequence;
            let tokens = sequence.input_ids.len();
            assert!(tokens <= limit.max_tokens && tokens == prepared.tokens.total());
            assert!(
                sequence
                    .position_ids
                    .iter()
                    .all(|axis| axis.len() == tokens)
            );
            assert!(
                sequence
                    .input_ids
                    .iter()
                    .all(|&id| id < IDS.vocab_size as u32)
            );
            let pads = sequence
                .input_ids
                .iter()
                .filter(|&&id| id == IDS.image_token_id);
            assert_eq!(
                (pads.count(), sequence.vision_rows.len()),
                (vision_tokens, vision_tokens)
            );
        });
}
