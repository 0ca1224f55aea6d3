//! The grammar of API.md, spelling by spelling and refusal by refusal.

use axum::response::IntoResponse;
use proptest::prelude::*;
use serde_json::{Map, json};

use super::super::options;
use super::*;
use crate::media::MediaSource;
use crate::processor::{ContextLimit, Excerpt, PixelOptions, Truncation};

const PNG: &str = "data:image/png;base64,iVBORw0KGgo=";
const OTHER_PNG: &str = "iVBORw0KGgoAAAAN";
const MP4: &str = "data:video/mp4;base64,AAAAGGZ0eXBtcDQy";
const OTHER_MP4: &str = "https://example.com/clips/a.mp4";
const QUERY: &str = "Retrieve images or text relevant to the user's query.";
const HIDDEN_SIZE: usize = 2048;

fn parsed(body: &Value) -> Result<Inputs, ApiError> {
    let settings = ApiSettings {
        max_frames: 6,
        ..ApiSettings::default()
    };
    let map = body.as_object().expect("an object");
    let fields = Fields { map, at: "" };
    let options = options::parse(fields, &settings, HIDDEN_SIZE)?;
    parse(fields, &options.item, &settings)
}

/// The inputs of a body, without the places that differ by spelling.
fn inputs(body: &Value) -> Vec<EmbedInput> {
    let inputs = parsed(body).unwrap_or_else(|error| panic!("{body} is refused: {error:?}"));
    let mut inputs = inputs.inputs;
    for input in &mut inputs {
        input.at.clear();
        input.parts.iter_mut().for_each(|part| part.at.clear());
    }
    inputs
}

fn contents(body: &Value) -> Vec<PartContent> {
    let mut inputs = inputs(body);
    assert_eq!(inputs.len(), 1, "{body}");
    let parts = inputs.remove(0).parts.into_iter();
    parts.map(|part| part.content).collect()
}

fn source(text: &str) -> MediaSource {
    MediaSource::parse(text, 1 << 20).expect("a media string")
}

fn text(text: &str) -> PartContent {
    PartContent::Text(text.to_owned())
}

fn image(text: &str) -> PartContent {
    PartContent::Image(source(text), PixelOptions::default())
}

fn file(text: &str) -> PartContent {
    PartContent::VideoFile(source(text), PixelOptions::default())
}

fn frames(texts: &[&str], fps: f64) -> PartContent {
    let sources = texts.iter().map(|text| source(text)).collect();
    PartContent::Frames(sources, fps, PixelOptions::default())
}

/// Asserts that all bodies ask for the same inputs, and returns these.
fn same(bodies: &[Value]) -> Vec<EmbedInput> {
    let first = inputs(&bodies[0]);
    for body in bodies {
        assert_eq!(inputs(body), first, "{body} differs from {}", bodies[0]);
    }
    first
}

#[test]
fn every_spelling_of_a_text_is_the_same_input() {
    let first = same(&[
        json!({"input": "a cat"}),
        json!({"input": ["a cat"]}),
        json!({"input": {"text": "a cat"}}),
        json!({"input": [{"text": "a cat"}]}),
        json!({"input": [{"text": ["a cat"], "image": null, "video": null}]}),
        json!({"input": {"content": "a cat"}}),
        json!({"input": [{"content": [{"type": "text", "text": "a cat"}]}]}),
        json!({"input": [{"type": "text", "text": "a cat"}]}),
        json!({"input": {"type": "text", "text": "a cat"}}),
        json!({"input": [{"role": "user", "content": "a cat"}]}),
        json!({"input": [[{"role": "user", "content": [{"type": "text", "text": "a cat"}]}]]}),
        json!({"messages": [{"role": "user", "content": "a cat"}]}),
        json!({"messages": [[{"role": "user", "content": "a cat"}]]}),
        json!({"messages": [{"role": "user", "content": "a cat"}, {"role": "assistant", "content": ""}]}),
        json!({"input": "a cat", "instruction": " ", "user": "u", "model": "m"}),
        json!({"input": "a cat", "input_type": "document"}),
    ]);
    let expected = EmbedInput {
        at: String::new(),
        instruction: None,
        parts: vec![InputPart {
            at: String::new(),
            content: text("a cat"),
        }],
        raw: false,
        limit: ContextLimit {
            max_tokens: 32_768,
            truncation: Truncation::None,
        },
        max_text_tokens: None,
    };
    assert_eq!(first, [expected]);
}

#[test]
fn every_spelling_of_an_instruction_is_the_same_input() {
    let first = same(&[
        json!({"input": "x", "instruction": QUERY}),
        json!({"input": "x", "instruct": QUERY}),
        json!({"input": "x", "prompt": QUERY}),
        json!({"input": "x", "input_type": "query"}),
        json!({"input": "x", "prompt_name": "query"}),
        json!({"input": "x", "task": "search_query"}),
        json!({"input": {"text": "x", "instruction": QUERY}}),
        json!({"input": {"text": "x", "instruction": QUERY}, "instruction": "another"}),
        json!({"input": {"content": "x", "instruction": QUERY}}),
        json!({"messages": [{"role": "system", "content": QUERY}, {"role": "user", "content": "x"}]}),
        // vLLM's recipe for this model.
        json!({
            "messages": [
                {"role": "system", "content": [{"type": "text", "text": QUERY}]},
                {"role": "user", "content": [{"type": "text", "text": "x"}]},
                {"role": "assistant", "content": [{"type": "text", "text": ""}]},
            ],
            "encoding_format": "float", "continue_final_message": true, "add_special_tokens": true,
        }),
        json!({"input": [{"role": "system", "content": QUERY}, {"role": "user", "content": "x"}], "instruction": "another"}),
    ]);
    assert_eq!(first[0].instruction.as_deref(), Some(QUERY));
}

#[test]
fn every_spelling_of_a_picture_is_the_same_input() {
    let part = |part: Value| json!({"input": [{"content": [part]}]});
    let first = same(&[
        part(json!({"type": "image_url", "image_url": {"url": PNG}})),
        part(json!({"type": "image_url", "image_url": {"url": PNG, "detail": "low"}})),
        part(json!({"type": "image_url", "image_url": PNG})),
        part(json!({"type": "image", "image": PNG})),
        part(json!({"type": "image_base64", "image_base64": PNG})),
        part(json!({"type": "input_image", "image_url": PNG})),
        part(json!({"type": "input_image", "image_url": {"url": PNG}})),
        json!({"input": [{"type": "image_url", "image_url": {"url": PNG}}]}),
        json!({"input": {"image": PNG}}),
        json!({"input": [{"image": [PNG]}]}),
        json!({"input": [{"image": {"url": PNG}}]}),
        json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PNG}}]}]}),
        // The bare base64 of the same bytes.
        json!({"input": {"image": "iVBORw0KGgo="}}),
    ]);
    assert_eq!(first[0].parts[0].content, image(PNG));
}

#[test]
fn every_spelling_of_a_video_file_is_the_same_input() {
    let part = |part: Value| json!({"input": [{"content": [part]}]});
    let first = same(&[
        part(json!({"type": "video_url", "video_url": {"url": MP4}})),
        part(json!({"type": "video_url", "video_url": MP4})),
        part(json!({"type": "video", "video": MP4})),
        part(json!({"type": "video", "video": {"url": MP4}})),
        part(json!({"type": "video_base64", "video_base64": MP4})),
        part(
            json!({"type": "input_video", "input_video": {"data": "AAAAGGZ0eXBtcDQy", "format": "mp4"}}),
        ),
        json!({"input": {"video": MP4}}),
        json!({"input": {"video": [MP4]}}),
        json!({"input": {"video": {"url": MP4}}}),
        json!({"input": {"video": [{"url": MP4}]}}),
        json!({"input": [{"type": "video", "video": MP4}]}),
    ]);
    assert_eq!(first[0].parts[0].content, file(MP4));
}

#[test]
fn every_spelling_of_a_frame_list_is_the_same_input() {
    let part = |part: Value| json!({"input": [{"content": [part]}]});
    let first = same(&[
        part(json!({"type": "video", "video": [PNG, OTHER_PNG]})),
        part(json!({"type": "video", "video": {"frames": [PNG, OTHER_PNG]}})),
        part(json!({"type": "video", "video": {"frames": [{"url": PNG}, OTHER_PNG], "fps": 2}})),
        json!({"input": {"video": [PNG, OTHER_PNG]}}),
        json!({"input": {"video": [[PNG, OTHER_PNG]]}}),
        json!({"input": {"video": {"frames": [PNG, OTHER_PNG]}}}),
        json!({"input": {"video": [{"frames": [PNG, OTHER_PNG], "fps": 2.0}]}}),
    ]);
    assert_eq!(first[0].parts[0].content, frames(&[PNG, OTHER_PNG], 2.0));
}

#[test]
fn a_list_under_video_is_frames_unless_it_holds_videos() {
    let video = |video: Value| contents(&json!({"input": {"video": video}}));
    assert_eq!(video(json!([MP4, OTHER_MP4])), [file(MP4), file(OTHER_MP4)]);
    assert_eq!(
        video(json!([[PNG], {"frames": [OTHER_PNG], "fps": 4}, MP4])),
        [frames(&[PNG], 2.0), frames(&[OTHER_PNG], 4.0), file(MP4)]
    );
}

#[test]
fn an_object_has_the_order_of_the_reference_and_content_the_callers() {
    let object =
        json!({"input": {"text": ["t", "u"], "image": [PNG, OTHER_PNG], "video": [[PNG]]}});
    let expected = [
        frames(&[PNG], 2.0),
        image(PNG),
        image(OTHER_PNG),
        text("t"),
        text("u"),
    ];
    assert_eq!(contents(&object), expected);
    let content = json!({"input": {"content": [
        {"type": "text", "text": "before"}, {"type": "image", "image": PNG}, {"type": "text", "text": "after"},
    ]}});
    let expected = [text("before"), image(PNG), text("after")];
    assert_eq!(contents(&content), expected);
}

#[test]
fn one_element_is_one_input_in_order_whatever_its_form() {
    let body = json!({"input": ["a", [1, 2, 3], {"text": "b", "id": "second"}, [{"role": "user", "content": "c"}],
        {"type": "text", "text": "d"}]});
    let parsed = parsed(&body).unwrap();
    let places: Vec<&str> = parsed
        .inputs
        .iter()
        .map(|input| input.at.as_str())
        .collect();
    assert_eq!(
        places,
        ["input[0]", "input[1]", "input[2]", "input[3]", "input[4]"]
    );
    assert_eq!(
        parsed.inputs[1].parts[0].content,
        PartContent::TokenIds(vec![1, 2, 3])
    );
    assert_eq!(
        parsed.ids,
        [None, None, Some("second".to_owned()), None, None]
    );
}

#[test]
fn a_bare_list_of_numbers_is_one_input() {
    let ids = PartContent::TokenIds(vec![1, 0, u32::MAX]);
    for body in [
        json!({"input": [1, 0, u32::MAX]}),
        json!({"input": [[1, 0, u32::MAX]]}),
    ] {
        assert_eq!(contents(&body), std::slice::from_ref(&ids));
    }
}

#[test]
fn what_has_no_part_is_an_input_and_an_empty_text_is_a_part() {
    for body in [
        json!({"input": {}}),
        json!({"input": [{"text": null}]}),
        json!({"input": {"content": []}}),
    ] {
        assert_eq!(contents(&body), [], "{body}");
    }
    for body in [json!({"input": ""}), json!({"input": {"text": ""}})] {
        assert_eq!(contents(&body), [text("")], "{body}");
    }
}

#[test]
fn the_nearest_pixel_option_wins() {
    let options = |body: &Value| match contents(body).remove(0) {
        PartContent::Image(_, options) => options,
        other => panic!("{other:?}"),
    };
    let bare = json!({"input": {"image": PNG}, "min_pixels": 5000, "max_pixels": 60_000, "fps": 2.5, "max_frames": 4,
        "total_pixels": 70_000, "start": 0, "end": 1.5, "num_frames": 6});
    let given = PixelOptions {
        min_pixels: 5000,
        max_pixels: 60_000,
        fps: 2.5,
        max_frames: 4,
        total_pixels: Some(70_000),
        excerpt: Excerpt {
            start: Some(0.0),
            end: Some(1.5),
            num_frames: Some(6),
        },
    };
    assert_eq!(options(&bare), given);
    let layers = json!({
        "mm_processor_kwargs": {"min_pixels": 4100, "max_pixels": 80_000, "fps": 3},
        "max_pixels": 70_000,
        "input": {"min_pixels": 4200, "content": [{"type": "image", "image": PNG, "max_frames": 2}]},
    });
    let expected = PixelOptions {
        min_pixels: 4200,
        max_pixels: 70_000,
        fps: 3.0,
        max_frames: 2,
        total_pixels: None,
        excerpt: Excerpt::default(),
    };
    assert_eq!(options(&layers), expected);
}

#[test]
fn an_excerpt_of_a_list_of_frames_is_refused_not_ignored() {
    for body in [
        json!({"input": {"video": [PNG, PNG], "num_frames": 2}}),
        json!({"input": {"content": [{"type": "video", "video": {"frames": [PNG, PNG]}, "start": 1}]}}),
    ] {
        let error = parsed(&body)
            .err()
            .unwrap_or_else(|| panic!("{body} is taken"));
        assert!(
            error.message.contains("list of frames"),
            "{}",
            error.message
        );
    }
}

#[test]
fn an_excerpt_has_bounds_in_their_order() {
    for (field, value) in [
        ("start", json!(-1)),
        ("start", json!("0:10")),
        ("end", json!(1e9)),
        ("num_frames", json!(1)),
        ("num_frames", json!(1_000_000)),
        ("num_frames", json!(2.5)),
    ] {
        let mut body = json!({"input": {"video": PNG}});
        body["input"][field] = value;
        let error = parsed(&body)
            .err()
            .unwrap_or_else(|| panic!("{body} is taken"));
        assert_eq!(error.param, Some(format!("input.{field}")));
    }
    let turned = json!({"input": {"video": PNG, "end": 1}, "start": 2});
    assert_eq!(
        parsed(&turned).err().unwrap().param.as_deref(),
        Some("input.end")
    );
}

#[test]
fn truncation_has_one_meaning_for_each_spelling() {
    let limit = |fields: Value| {
        let mut body = fields;
        body["input"] = json!("x");
        inputs(&body)[0].limit
    };
    let of = |max_tokens, truncation| ContextLimit {
        max_tokens,
        truncation,
    };
    for (fields, expected) in [
        (json!({}), of(32_768, Truncation::None)),
        (json!({"truncate": false}), of(32_768, Truncation::None)),
        (json!({"truncate": "NONE"}), of(32_768, Truncation::None)),
        (json!({"truncate": true}), of(32_768, Truncation::End)),
        (json!({"truncate": "END"}), of(32_768, Truncation::End)),
        (json!({"truncate": "START"}), of(32_768, Truncation::Start)),
        (
            json!({"truncate": "REFERENCE", "max_tokens": 64}),
            of(64, Truncation::Reference),
        ),
        (
            json!({"truncate": true, "truncation_side": "left"}),
            of(32_768, Truncation::Start),
        ),
        (
            json!({"truncation_side": "left"}),
            of(32_768, Truncation::None),
        ),
        (json!({"max_tokens": 100}), of(100, Truncation::None)),
        (
            json!({"truncate_prompt_tokens": 100}),
            of(100, Truncation::End),
        ),
        (
            json!({"truncate_prompt_tokens": -1}),
            of(32_768, Truncation::End),
        ),
        (
            json!({"truncate_prompt_tokens": 9, "truncation_side": "left"}),
            of(9, Truncation::Start),
        ),
    ] {
        assert_eq!(limit(fields.clone()), expected, "{fields}");
    }
}

#[test]
fn raw_reaches_every_input() {
    let inputs = inputs(&json!({"input": ["a", [1]], "raw": true}));
    assert!(inputs.iter().all(|input| input.raw));
}

/// What is refused, with its code and the path it names. `PNG` and `MP4` stand for media strings.
const REFUSALS: &str = r#"
{}                                                                    => invalid_value input
{"input": null}                                                       => invalid_value input
{"input": []}                                                         => invalid_value input
{"input": 3}                                                          => invalid_value input
{"input": true}                                                       => invalid_value input
{"input": [[]]}                                                       => invalid_value input[0]
{"input": ["x", 3]}                                                   => invalid_value input[1]
{"input": ["x", null]}                                                => invalid_value input[1]
{"input": [1, "x"]}                                                   => invalid_value input[1]
{"input": [1, -2]}                                                    => invalid_value input[1]
{"input": [[1, 2.5]]}                                                 => invalid_value input[0][1]
{"input": [4294967296]}                                               => invalid_value input[0]
{"input": "x", "messages": [{"role": "user", "content": "x"}]}        => invalid_value messages
{"input": {"text": "x", "txet": 1}}                                   => unknown_field input.txet
{"input": ["x", {"content": "x", "text": "y"}]}                       => unknown_field input[1].text
{"input": [{"text": 3}]}                                              => invalid_value input[0].text
{"input": [{"text": ["x", 3]}]}                                       => invalid_value input[0].text[1]
{"input": [{"content": null}]}                                        => invalid_value input[0].content
{"input": [{"content": {}}]}                                          => invalid_value input[0].content
{"input": [{"text": "x", "id": 3}]}                                   => invalid_value input[0].id
{"input": [{"image": "not a picture!"}]}                              => invalid_value input[0].image
{"input": [{"image": ["PNG", ""]}]}                                   => invalid_value input[0].image[1]
{"input": [{"image": 3}]}                                             => invalid_value input[0].image
{"input": {"video": []}}                                              => invalid_video input.video
{"input": {"video": ["MP4", "PNG"]}}                                  => invalid_value input.video
{"part": {"text": "x"}}                                               => invalid_value input[0].content[0].type
{"part": {"type": "txt", "text": "x"}}                                => invalid_value input[0].content[0].type
{"part": {"type": "input_audio", "input_audio": {}}}                  => unsupported_media input[0].content[0].type
{"part": {"type": "audio_url", "audio_url": "x"}}                     => unsupported_media input[0].content[0].type
{"part": {"type": "text"}}                                            => invalid_value input[0].content[0].text
{"part": {"type": "text", "text": "x", "image": "PNG"}}               => unknown_field input[0].content[0].image
{"part": {"type": "image_url", "image_url": null}}                    => invalid_value input[0].content[0].image_url
{"part": {"type": "image_url", "image_url": {}}}                      => invalid_value input[0].content[0].image_url.url
{"part": {"type": "image_url", "image_url": {"url": "PNG", "uuid": "1"}}} => unknown_field input[0].content[0].image_url.uuid
{"part": {"type": "image_url", "image_url": {"url": "ftp://x/y"}}}    => invalid_value input[0].content[0].image_url
{"part": {"type": "image", "image": "PNG", "instruction": "x"}}       => unknown_field input[0].content[0].instruction
{"part": {"type": "image", "image": "PNG", "max_pixels": 0}}          => invalid_value input[0].content[0].max_pixels
{"part": {"type": "video", "video": []}}                              => invalid_video input[0].content[0].video
{"part": {"type": "video", "video": {"frames": []}}}                  => invalid_video input[0].content[0].video.frames
{"part": {"type": "video", "video": {"frames": ["PNG"], "fps": 0}}}   => invalid_value input[0].content[0].video.fps
{"part": {"type": "video", "video": {"frames": ["PNG"], "rate": 1}}}  => unknown_field input[0].content[0].video.rate
{"part": {"type": "video", "video": ["PNG", "?"]}}                    => invalid_value input[0].content[0].video[1]
{"messages": []}                                                      => invalid_value messages
{"messages": "x"}                                                     => invalid_value messages
{"messages": [{"role": "system", "content": "x"}]}                    => invalid_value messages
{"after": {"role": "user", "content": "y"}}                           => invalid_value messages[1]
{"after": {"role": "system", "content": "y"}}                         => invalid_value messages[1]
{"after": {"role": "assistant", "content": "y"}}                      => invalid_value messages[1]
{"after": {"role": "assistant", "content": [{"text": [{"text": ""}]}]}}  => invalid_value messages[1]
{"after": {"role": "assistant", "content": [{"text": 7}]}}            => invalid_value messages[1]
{"after": {"role": "tool", "content": "y"}}                           => invalid_value messages[1].role
{"before": {"role": "assistant", "content": ""}}                      => invalid_value messages[0]
{"before": {"role": "system", "content": [{"type": "image", "image": "PNG"}]}} => unknown_field messages[0].content[0].image
{"messages": [{"content": "y"}]}                                      => invalid_value messages[0].role
{"messages": [{"role": "user"}]}                                      => invalid_value messages[0].content
{"messages": [{"role": "user", "content": "x", "mood": 1}]}           => unknown_field messages[0].mood
{"messages": [[{"role": "user", "content": "x"}], [3]]}               => invalid_value messages[1][0]
{"input": "x", "dimensions": 63}                                      => invalid_dimensions dimensions
{"input": "x", "dimensions": 2049}                                    => invalid_dimensions dimensions
{"input": "x", "dimensions": -1}                                      => invalid_dimensions dimensions
{"input": "x", "dimensions": 4294967296}                              => invalid_dimensions dimensions
{"input": "x", "dimensions": "256"}                                   => invalid_dimensions dimensions
{"input": "x", "output_dimension": 63}                                => invalid_dimensions dimensions
{"input": "x", "dimensions": 256, "output_dimension": 512}            => invalid_value output_dimension
{"input": "x", "encoding_format": "hex"}                              => invalid_value encoding_format
{"input": "x", "encoding_format": "bytes", "embedding_type": ["int8"]} => invalid_value encoding_format
{"input": "x", "encoding_format": "bytes", "output_encoding": "base64"} => invalid_value output_encoding
{"input": "x", "output_encoding": "hex"}                              => invalid_value output_encoding
{"input": "x", "embedding_type": "int4"}                              => invalid_value embedding_type
{"input": "x", "embedding_types": ["float", "int4"]}                  => invalid_value embedding_types[1]
{"input": "x", "output_dtype": []}                                    => invalid_value output_dtype
{"input": "x", "normalize": 1}                                        => invalid_value normalize
{"input": "x", "instruction": 3}                                      => invalid_value instruction
{"input": "x", "instruction": "a", "prompt": "b"}                     => invalid_value prompt
{"input": "x", "input_type": "haiku"}                                 => invalid_value input_type
{"input": "x", "truncate": "MIDDLE"}                                  => invalid_value truncate
{"input": "x", "truncate": 3}                                         => invalid_value truncate
{"input": "x", "truncation_side": "up"}                               => invalid_value truncation_side
{"input": "x", "max_tokens": 0}                                       => invalid_value max_tokens
{"input": "x", "max_tokens": 32769}                                   => invalid_value max_tokens
{"input": "x", "truncate_prompt_tokens": -2}                          => invalid_value truncate_prompt_tokens
{"input": "x", "truncate_prompt_tokens": 5, "max_tokens": 6}          => invalid_value max_tokens
{"input": "x", "mm_processor_kwargs": {"size": 3}}                    => unknown_field mm_processor_kwargs.size
{"input": "x", "mm_processor_kwargs": 3}                              => invalid_value mm_processor_kwargs
{"input": "x", "fps": 0}                                              => invalid_value fps
{"input": "x", "fps": "2"}                                            => invalid_value fps
{"input": "x", "max_frames": 7}                                       => invalid_value max_frames
{"input": "x", "min_pixels": 2000000}                                 => invalid_value min_pixels
{"input": "x", "max_pixels": 33554433}                                => invalid_value max_pixels
{"input": "x", "on_error": "skip"}                                    => invalid_value on_error
{"input": "x", "priority": "high"}                                    => invalid_value priority
{"input": "x", "priority": 0.5}                                       => invalid_value priority
{"input": [1, 2.5]}                                                   => invalid_value input[1]
{"input": "x", "model": 3}                                            => invalid_value model
{"input": "x", "raw": "yes"}                                          => invalid_value raw
{"input": "x", "raw": true, "instruct": "x"}                          => invalid_value instruct
{"input": {"text": "x", "instruction": "y"}, "raw": true}             => invalid_value input.instruction
{"before": {"role": "system", "content": "y"}, "raw": true}           => invalid_value messages[0].content
"#;

#[test]
fn a_video_by_its_url_may_have_frames_that_are_null() {
    let plain = json!({ "input": { "video": { "url": OTHER_MP4 } } });
    let spelt = json!({ "input": { "video": { "url": OTHER_MP4, "frames": null } } });
    assert_eq!(inputs(&plain), inputs(&spelt));
}

#[test]
fn a_whole_number_is_one_with_a_point_too() {
    let read = |body: &str| {
        let body: Value = serde_json::from_str(body).expect("JSON");
        let map = body.as_object().expect("an object");
        let options = options::parse(Fields { map, at: "" }, &ApiSettings::default(), HIDDEN_SIZE);
        (options.expect("options"), inputs(&body))
    };
    let plain = r#"{"input": [1, 2], "dimensions": 64, "priority": 3, "truncate_prompt_tokens": -1, "max_tokens": 9, "max_frames": 4}"#;
    let pointed = r#"{"input": [1.0, 2e0], "dimensions": 64.0, "priority": 3.0, "truncate_prompt_tokens": -1.0, "max_tokens": 9.0, "max_frames": 4.0}"#;
    assert_eq!(read(plain), read(pointed));
}

/// A line of the table: `part` stands for a content of that one part, `before` and `after` for a conversation with that message
/// before or after the user's.
fn refusal(line: &str) -> (Value, &str, &str) {
    let (body, expected) = line.split_once("=>").expect("an arrow");
    let (code, param) = expected.trim().split_once(' ').expect("a code and a path");
    let body = body.replace("\"PNG\"", &json!(PNG).to_string());
    let body = body.replace("\"MP4\"", &json!(MP4).to_string());
    let mut body: Value =
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{line}: {error}"));
    let fields = body.as_object_mut().expect("an object");
    let user = json!({"role": "user", "content": "x"});
    if let Some(part) = fields.shift_remove("part") {
        fields.insert("input".to_owned(), json!([{"content": [part]}]));
    }
    if let Some(message) = fields.shift_remove("before") {
        fields.insert("messages".to_owned(), json!([message, user]));
    }
    if let Some(message) = fields.shift_remove("after") {
        fields.insert("messages".to_owned(), json!([user, message]));
    }
    (body, code, param)
}

fn assert_refused(body: &Value, code: &str, param: &str) {
    let error = match parsed(body) {
        Err(error) => error,
        Ok(inputs) => panic!("{body} is accepted: {:?}", inputs.inputs),
    };
    let (.., found) = error.code.row();
    let found = (found, error.param.as_deref());
    assert_eq!(found, (code, Some(param)), "{body}: {}", error.message);
    let names_it = error.message.contains(param) || param == "dimensions";
    assert!(names_it, "{body}: {}", error.message);
}

#[test]
fn what_is_refused_names_its_place() {
    for line in REFUSALS.trim().lines() {
        let (body, code, param) = refusal(line);
        assert_refused(&body, code, param);
    }
}

#[test]
fn more_than_the_limit_is_refused() {
    let user = json!({"role": "user", "content": "x"});
    let frames = vec![PNG; 7];
    let content = "input[0].content[0].video";
    for (body, code, param) in [
        (
            json!({"input": vec!["x"; 2049]}),
            "too_many_inputs",
            "input",
        ),
        (
            json!({"messages": vec![[user]; 2049]}),
            "too_many_inputs",
            "messages",
        ),
        (
            json!({"input": {"video": frames}}),
            "media_too_large",
            "input.video",
        ),
        (
            json!({"input": {"video": {"frames": frames}}}),
            "media_too_large",
            "input.video.frames",
        ),
        (
            json!({"input": [{"content": [{"type": "video", "video": frames}]}]}),
            "media_too_large",
            content,
        ),
    ] {
        assert_refused(&body, code, param);
    }
}

#[test]
fn counts_are_named_with_their_limits() {
    let message = |body: Value| parsed(&body).err().expect("refused").message;
    let many = message(json!({"input": vec!["x"; 2049]}));
    assert!(many.contains("2049") && many.contains("2048"), "{many}");
    let wide = message(json!({"input": "x", "dimensions": 2049}));
    assert!(wide.contains("2049") && wide.contains("2048"), "{wide}");
}

#[test]
fn an_error_does_not_repeat_what_is_long() {
    let long = "y".repeat(1 << 20);
    for body in [
        json!({"input": "x", "truncate": long}),
        json!({"input": "x", "encoding_format": long}),
        json!({"input": "x", "normalize": long}),
        json!({"input": {(long.clone()): 1}}),
        json!({"input": {"image": long.clone() + "!"}}),
        json!({"input": {"content": [{"type": long, "text": "x"}]}}),
        json!({"messages": [{"role": long, "content": "x"}]}),
    ] {
        let error = parsed(&body).err().expect("refused");
        let length = error.message.len() + error.param.map_or(0, |param| param.len());
        assert!(length < 600, "{length} bytes");
    }
}

/// JSON made of the words of the grammar, so that it often goes deep before it goes wrong.
fn any_json() -> impl Strategy<Value = Value> {
    let word = prop::sample::select(vec![
        "text",
        "image",
        "video",
        "content",
        "type",
        "role",
        "user",
        "system",
        "assistant",
        "image_url",
        "video_url",
        "url",
        "frames",
        "fps",
        "id",
        "instruction",
        "input_video",
        "data",
        "max_pixels",
        PNG,
        MP4,
        "x",
        "",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0_u64..9).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word.clone().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 5, move |inner| {
        let entry = (word.clone().prop_map(str::to_owned), inner.clone());
        prop_oneof![
            prop::collection::vec(inner, 0..5).prop_map(Value::from),
            prop::collection::vec(entry, 0..5)
                .prop_map(|entries| Value::from(entries.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

proptest! {
    #[test]
    fn no_json_panics_and_every_refusal_is_the_clients(
        input in any_json(),
        options in prop::collection::vec((prop::sample::select(vec![
            "dimensions", "encoding_format", "embedding_type", "instruction", "input_type", "normalize", "truncate", "max_tokens",
            "truncate_prompt_tokens", "truncation_side", "mm_processor_kwargs", "raw", "on_error", "fps", "max_frames", "min_pixels",
            "max_pixels", "total_pixels", "model", "user", "output_encoding", "else",
        ]), any_json()), 0..3),
        conversation in any::<bool>(),
    ) {
        let mut body = Map::new();
        body.insert(if conversation { "messages" } else { "input" }.to_owned(), input);
        body.extend(options.into_iter().map(|(name, value)| (name.to_owned(), value)));
        match parsed(&Value::from(body)) {
            Ok(found) => {
                prop_assert!(!found.inputs.is_empty());
                prop_assert_eq!(found.inputs.len(), found.ids.len());
                for input in &found.inputs {
                    prop_assert!(input.parts.iter().all(|part| part.at.starts_with(&input.at)));
                }
            }
            Err(error) => {
                let (status, ..) = error.code.row();
                prop_assert!(status.is_client_error(), "{:?}", &error);
                prop_assert!(error.param.is_some(), "{:?}", &error);
                prop_assert!(error.message.len() < 1000, "{:?}", &error);
            }
        }
    }
}

/// A body that bytes choose, of the words the grammar knows: what is random alone is hardly ever more than a wrong field.
struct Grown<'a> {
    bytes: std::slice::Iter<'a, u8>,
    /// How many values it may still have.
    left: usize,
}

impl Grown<'_> {
    fn pick<'t, T: ?Sized>(&mut self, from: &[&'t T]) -> &'t T {
        from[usize::from(*self.bytes.next().unwrap_or(&0)) % from.len()]
    }

    fn value(&mut self, depth: usize) -> Value {
        let kind = *self.bytes.next().unwrap_or(&0);
        self.left = self.left.saturating_sub(1);
        let few = if depth > 5 || self.left == 0 {
            0
        } else {
            usize::from(kind >> 5)
        };
        match kind & 7 {
            0 => json!(self.pick(&[
                PNG,
                OTHER_PNG,
                MP4,
                OTHER_MP4,
                "a",
                "",
                "data:,",
                "file:///x"
            ])),
            1 => json!(self.pick(&[
                "user",
                "system",
                "assistant",
                "text",
                "image_url",
                "video",
                "NONE"
            ])),
            2 => json!(f64::from(kind) - 100.0),
            3 => json!(u64::from(kind) << (kind >> 2)),
            4 => self
                .pick(&[
                    &Value::Null,
                    &json!(true),
                    &json!(false),
                    &json!(-1),
                    &json!(1e300),
                ])
                .clone(),
            5 => (0..few).map(|_| self.value(depth + 1)).collect(),
            _ => self.object(few, depth),
        }
    }

    fn object(&mut self, fields: usize, depth: usize) -> Value {
        let mut object = Map::new();
        for _ in 0..fields {
            let name = self.pick(&[
                "type",
                "text",
                "image",
                "video",
                "image_url",
                "video_url",
                "input_image",
                "input_video",
                "image_base64",
                "url",
                "frames",
                "fps",
                "data",
                "format",
                "detail",
                "content",
                "role",
                "messages",
                "input",
                "instruction",
                "max_frames",
                "min_pixels",
                "max_pixels",
                "total_pixels",
                "start",
                "end",
                "num_frames",
                "id",
                "dimensions",
                "truncate",
                "max_tokens",
                "normalize",
                "embedding_type",
                "encoding_format",
                "raw",
                "input_type",
                "mm_processor_kwargs",
            ]);
            object.insert(name.to_owned(), self.value(depth + 1));
        }
        object.into()
    }
}

/// Fuzz target: the body of a request, as text and as what the grammar is made of.
#[test]
fn any_body_is_read_or_refused_with_the_client_s_fault() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let written: Option<Value> = serde_json::from_slice(bytes).ok();
        let (&first, rest) = bytes.split_first().unwrap_or((&0, &[]));
        let mut grown = Grown {
            bytes: rest.iter(),
            left: 200,
        };
        let mut body = json!({ "model": "m" });
        body["input"] = grown.value(0);
        if first & 1 != 0 {
            body["messages"] = grown.value(0);
        }
        if let (2.., Value::Object(more)) = (first, grown.object(usize::from(first >> 6), 1)) {
            more.into_iter()
                .for_each(|(name, value)| body[&name] = value);
        }
        for body in written.into_iter().filter(Value::is_object).chain([body]) {
            match parsed(&body) {
                Ok(read) => assert!(
                    !read.inputs.is_empty()
                        && read.inputs.len() <= ApiSettings::default().max_inputs
                ),
                Err(error) => {
                    let status = error.into_response().status();
                    assert!(status.is_client_error(), "{body}: {status}");
                }
            }
        }
    });
}
