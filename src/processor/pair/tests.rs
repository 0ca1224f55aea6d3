//! Pairs against the prompt tokenised whole, and what truncation leaves of them. `tests/reference` compares them with the reference's ids.

use proptest::prelude::*;

use super::*;
use crate::model::ModelConfig;

const NO_LIMIT: DocumentLimit = limit(10_000, Truncation::None);

const fn limit(max_tokens: usize, truncation: Truncation) -> DocumentLimit {
    DocumentLimit {
        context: ContextLimit {
            max_tokens,
            truncation,
        },
        max_document_tokens: None,
    }
}

/// Both fixtures: a tokenizer with a post-processor, and one without.
fn processors() -> [Processor; 2] {
    let processor = |config: &[u8], tokenizer: &[u8]| {
        let config = ModelConfig::from_json(config).unwrap();
        Processor::new(tokenizer, (&config).into()).unwrap()
    };
    macro_rules! model {
        ($name:literal, $file:literal) => {
            include_bytes!(concat!("../../../tests/fixtures/", $name, "/model/", $file))
        };
    }
    [
        processor(
            model!("parity", "config.json"),
            model!("parity", "tokenizer.json"),
        ),
        processor(
            model!("parity-untied", "config.json"),
            model!("parity-untied", "tokenizer.json"),
        ),
    ]
}

fn query(text: &str) -> Query {
    Query {
        instruction: None,
        parts: vec![PromptPart::Text(text.to_owned())],
    }
}

fn document(text: &str) -> Vec<PromptPart> {
    vec![PromptPart::Text(text.to_owned())]
}

/// The ids of a prompt whose every stretch between special tokens is tokenised whole.
fn whole(processor: &Processor, query: &str, document: &str) -> Vec<u32> {
    let tokenizer = &processor.template.tokenizer;
    let ids = tokenizer.ids();
    let text = |text: &str| tokenizer.encode(text).unwrap().ids;
    let user =
        format!("user\n<Instruct>: {DEFAULT_JUDGEMENT}<Query>:{query}\n<Document>:{document}");
    [
        vec![ids.im_start],
        text(&format!("system\n{JUDGE}")),
        vec![ids.im_end],
        text("\n"),
        vec![ids.im_start],
        text(&user),
        vec![ids.im_end],
        text("\n"),
        vec![ids.im_start],
        text("assistant\n"),
    ]
    .concat()
}

#[test]
fn the_parts_are_joined_as_the_reference_joins_them() {
    let template = pair_template();
    for part in [
        "<|im_start|>system\nJudge whether",
        "\"yes\" or \"no\".<|im_end|>\n<|im_start|>user\n<Instruct>: {instruction}<Query>:{query}",
        "\n<Document>:{document}<|im_end|>\n<|im_start|>assistant\n",
    ] {
        assert!(template.contains(part), "{part:?} is not in {template:?}");
    }
    for processor in processors() {
        for (query_text, document_text) in [("", ""), ("a", "(b"), ("x\n\n", "\u{301}y")] {
            let head = processor.pair_head(&query(query_text), 10_000).unwrap();
            let pair = processor
                .pair(&head, &document(document_text), NO_LIMIT)
                .unwrap();
            let ids = whole(&processor, query_text, document_text);
            assert_eq!(pair.sequence.input_ids, ids);
            assert_eq!(pair.sequence.task, Task::Rerank);
            assert_eq!(pair.tokens.text_tokens, ids.len());
        }
        let none = processor.pair_head(&Query::default(), 10_000).unwrap();
        let nothing = processor.pair(&none, &[], NO_LIMIT).unwrap();
        let ids = whole(&processor, "NULL", "NULL");
        assert_eq!(nothing.sequence.input_ids, ids);
    }
}

#[test]
fn only_the_document_is_cut() {
    let [processor, _] = processors();
    let head = processor
        .pair_head(&query("what is asked"), 10_000)
        .unwrap();
    let all = "one two three four five six seven eight nine ten";
    let ids_of = |limit: DocumentLimit| processor.pair(&head, &document(all), limit);
    let full = ids_of(NO_LIMIT).unwrap();
    assert!(!full.truncated);
    let tokens = full.sequence.input_ids.len();
    let tail = &full.sequence.input_ids[tokens - 5..];
    for truncation in [Truncation::End, Truncation::Start] {
        let cut = ids_of(limit(tokens - 4, truncation)).unwrap();
        assert!(cut.truncated);
        let ids = &cut.sequence.input_ids;
        assert_eq!(ids.len(), tokens - 4);
        assert_eq!(&ids[ids.len() - 5..], tail);
        let prefix = cut.sequence.prefix_tokens;
        assert_eq!(prefix, full.sequence.prefix_tokens);
        assert_eq!(ids[..prefix], full.sequence.input_ids[..prefix]);
        let from = if truncation == Truncation::End { 0 } else { 4 };
        let kept = prefix + from..prefix + from + 3;
        assert_eq!(ids[prefix..prefix + 3], full.sequence.input_ids[kept]);
    }
    let refused = ids_of(limit(tokens - 1, Truncation::None)).unwrap_err();
    assert!(matches!(refused, ProcessorError::TooLong { .. }));
    // There is no more to cut than the document.
    let refused = ids_of(limit(head.tokens(), Truncation::End)).unwrap_err();
    assert!(matches!(refused, ProcessorError::TooLong { .. }));
    let refused = processor
        .pair_head(&query("what is asked"), 20)
        .unwrap_err();
    assert!(matches!(refused, ProcessorError::TooLong { .. }));
}

#[test]
fn a_document_has_no_more_tokens_than_it_may() {
    let [processor, _] = processors();
    let head = processor.pair_head(&query("q"), 10_000).unwrap();
    let empty = processor.pair(&head, &document(""), NO_LIMIT).unwrap();
    let own = |most: usize, text: &str| {
        let limit = DocumentLimit {
            max_document_tokens: Some(most),
            ..NO_LIMIT
        };
        let pair = processor.pair(&head, &document(text), limit).unwrap();
        let tokens = pair.sequence.input_ids.len() - empty.sequence.input_ids.len();
        (tokens, pair.truncated)
    };
    let long = "many words ".repeat(5000);
    assert_eq!(own(7, &long), (7, true));
    assert_eq!(own(500, "a"), (1, false));
}

proptest! {
    #[test]
    fn both_ends_apart_give_the_ids_of_the_whole(
        asked in "[a-zA-Z0-9<>:|. \n\r\t'é\u{301}海\u{11a8}]{0,40}",
        found in "[a-zA-Z0-9<>:|. \n\r\t'é\u{301}海\u{11a8}]{0,40}",
        other in "[a-zA-Z:( \n\u{301}]{0,10}",
    ) {
        for processor in processors() {
            let head = processor.pair_head(&query(&asked), 10_000).unwrap();
            let pair = |text: &str| processor.pair(&head, &document(text), NO_LIMIT).unwrap().sequence;
            let (one, two) = (pair(&found), pair(&other));
            prop_assert_eq!(&one.input_ids, &whole(&processor, &asked, &found));
            // What they are said to have in common they have.
            let both = one.prefix_tokens.min(two.prefix_tokens);
            prop_assert_eq!(&one.input_ids[..both], &two.input_ids[..both]);
            prop_assert!(both >= head.tokens() && both < one.input_ids.len());
        }
    }
}
