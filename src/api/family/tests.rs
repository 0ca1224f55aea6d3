//! The outside of a request: content type, length, time, JSON. What is inside is the grammar's.

use serde_json::json;

use super::super::embeddings::OpenAi;
use super::super::intake::{allowed_time, content_kind};
use super::*;

fn headers(name: &'static str, value: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(name, value.parse().expect("a header value"));
    headers
}

fn code<T>(result: Result<T, ApiError>) -> Option<ErrorCode> {
    result.err().map(|error| error.code)
}

#[test]
fn only_json_is_read_and_saying_nothing_is_json_and_forms_where_they_are_taken() {
    for forms in [false, true] {
        assert_eq!(
            content_kind(&HeaderMap::new(), forms),
            Ok(ContentKind::Json)
        );
        for right in [
            "application/json",
            "Application/JSON; charset=utf-8",
            "application/vnd.api+json",
        ] {
            let found = content_kind(&headers("content-type", right), forms);
            assert_eq!(found, Ok(ContentKind::Json), "{right}");
        }
        for wrong in [
            "text/plain",
            "multipart/form-data",
            "multipart/mixed; boundary=x",
            "",
            "json",
        ] {
            let found = content_kind(&headers("content-type", wrong), forms);
            assert_eq!(
                code(found),
                Some(ErrorCode::UnsupportedMediaType),
                "{wrong}"
            );
        }
    }
    let form = headers("content-type", "Multipart/Form-Data; boundary=\"x y\"");
    assert_eq!(
        content_kind(&form, true),
        Ok(ContentKind::Form("x y".to_owned()))
    );
    assert_eq!(
        code(content_kind(&form, false)),
        Some(ErrorCode::UnsupportedMediaType)
    );
}

#[test]
fn a_client_may_shorten_its_time_but_not_lengthen_it() {
    let most = Duration::from_secs(10);
    let allowed = |value: &str| allowed_time(&headers("x-request-timeout-ms", value), most);
    assert_eq!(allowed_time(&HeaderMap::new(), most), Ok(most));
    assert_eq!(allowed("250"), Ok(Duration::from_millis(250)));
    assert_eq!(allowed("99999999"), Ok(most));
    for wrong in ["0", "-1", "1.5", "soon", ""] {
        assert_eq!(
            code(allowed(wrong)),
            Some(ErrorCode::InvalidValue),
            "{wrong}"
        );
    }
}

fn read(body: &str) -> Result<Asked, ApiError> {
    let settings = ApiSettings::default();
    let body = intake::parse(body.to_owned().into(), &ContentKind::Json)?;
    let reading = Reading {
        settings: &settings,
        hidden_size: 2048,
    };
    OpenAi::read(body, reading).map(|(asked, _)| asked)
}

#[test]
fn what_is_not_a_json_object_is_told_where_it_stops_being_one() {
    for body in [
        "",
        "{",
        "[]",
        "3",
        "{\"input\": \"x\",}",
        "\u{fffd}",
        "{\"input\": NaN}",
    ] {
        assert_eq!(code(read(body)), Some(ErrorCode::InvalidJson), "{body}");
    }
    let deep = format!("{{\"input\": {}", "[".repeat(100_000));
    assert_eq!(code(read(&deep)), Some(ErrorCode::InvalidJson));
    let error = read("{\n\"input\": x}").err().expect("refused");
    assert!(error.message.contains("line 2"), "{}", error.message);
}

#[test]
fn unknown_fields_at_the_top_are_accepted_and_named() {
    let parsed = read(
        r#"{"input": "x", "model": "m", "chat_template": "t", "user": "u", "lora_path": null}"#,
    );
    let options = parsed.expect("accepted").options;
    assert_eq!(options.ignored, ["chat_template", "lora_path"]);
}

#[test]
fn a_header_holds_only_so_many_ignored_names() {
    let names: Vec<String> = (0..1000).map(|i| format!("field_{i}")).collect();
    let text = ignored_fields(&names);
    assert!(text.starts_with("field_0, field_1, ") && text.ends_with(", ..."));
    assert!(text.len() <= MOST_IGNORED_BYTES + 5);
    let mut headers = HeaderMap::new();
    add(&mut headers, "x-ignored-fields", "na\u{ef}ve\r\nx");
    assert_eq!(headers["x-ignored-fields"], "na?ve??x");
}

#[test]
fn bytes_answer_as_many_inputs_as_their_header_holds() {
    let body = |count: usize| json!({"input": vec!["x"; count], "encoding_format": "bytes"});
    assert_eq!(code(read(&body(256).to_string())), None);
    let mut bare = body(257);
    bare["encoding_format"] = "bytes_only".into();
    assert_eq!(code(read(&bare.to_string())), None);
    let error = read(&body(257).to_string()).err().expect("refused");
    assert_eq!(error.param.as_deref(), Some("encoding_format"));
}

#[test]
fn inputs_that_cannot_be_read_stand_in_their_places() {
    let error = |name: &str| ApiError::invalid(name, "no");
    let failed = || {
        Err(ServiceError {
            at: None,
            cause: Cause::Worker,
        })
    };
    let merged = with_refused(
        vec![Ok(1), failed(), Ok(4)],
        vec![(0, error("a")), (2, error("b")), (5, error("c"))],
    );
    let told: Vec<String> = merged
        .into_iter()
        .map(|output| match output {
            Ok(number) => number.to_string(),
            Err(error) => error.param.unwrap_or_default(),
        })
        .collect();
    assert_eq!(told, ["a", "1", "b", "", "4", "c"]);
    let all = with_refused::<u8>(Vec::new(), vec![(0, error("a")), (1, error("b"))]);
    assert_eq!(all.len(), 2);
}

#[test]
fn a_partial_request_loses_only_the_inputs_that_cannot_be_read() {
    let body = |more: &str| {
        format!(r#"{{"input": ["x", 3, {{"text": "y", "id": "mine"}}, {{"no": 1}}]{more}}}"#)
    };
    let error = read(&body("")).err().expect("refused");
    assert_eq!(error.param.as_deref(), Some("input[1]"));
    let inputs = read(&body(r#", "on_error": "partial""#))
        .expect("accepted")
        .inputs;
    assert_eq!(inputs.inputs.len(), 2);
    assert_eq!(inputs.ids, [None, None, Some("mine".to_owned()), None]);
    let refused: Vec<(usize, &str)> = inputs
        .refused
        .iter()
        .map(|(place, error)| (*place, error.param.as_deref().unwrap_or_default()))
        .collect();
    assert_eq!(refused, [(1, "input[1]"), (3, "input[3].no")]);
}
