//! The outside of a request: content type, length, time, JSON. What is inside is the grammar's.

use serde_json::json;

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
fn only_json_is_read_and_saying_nothing_is_json() {
    assert_eq!(code(check_content_type(&HeaderMap::new())), None);
    for right in [
        "application/json",
        "Application/JSON; charset=utf-8",
        "application/vnd.api+json",
    ] {
        let found = check_content_type(&headers("content-type", right));
        assert_eq!(code(found), None, "{right}");
    }
    for wrong in ["text/plain", "multipart/form-data; boundary=x", "", "json"] {
        let found = check_content_type(&headers("content-type", wrong));
        assert_eq!(
            code(found),
            Some(ErrorCode::UnsupportedMediaType),
            "{wrong}"
        );
    }
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

fn read(body: &str) -> Result<Parsed, ApiError> {
    let settings = ApiSettings::default();
    parse(
        &Bytes::from(body.to_owned()),
        &settings,
        2048,
        Duration::ZERO,
    )
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
    let error = read(&body(257).to_string()).err().expect("refused");
    assert_eq!(error.param.as_deref(), Some("encoding_format"));
}
