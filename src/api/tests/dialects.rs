//! Errors as the clients of each family read them, whoever refuses.

use super::*;

const FAMILIES: [&str; 5] = [
    cohere::PATH,
    rerank::COHERE_PATH,
    voyage::PATH,
    dashscope::PATH,
    tei::PATH,
];
const NATIVE: [&str; 3] = ["/v1/embeddings", "/embeddings", "/v1/embeddings/explain"];

/// The code of an error, in whatever shape.
pub(super) fn code_of(body: &Value) -> &str {
    let nested = &body["error"]["code"];
    let code = if nested.is_string() {
        nested
    } else {
        &body["code"]
    };
    code.as_str().unwrap_or_default()
}

/// Whether the body has the words where the family's SDK looks for them.
pub(super) fn assert_spoken(path: &str, answer: &Answer, code: &str) {
    let body = &answer.body;
    let id = answer.header("x-request-id").expect("an id");
    let words = match path {
        cohere::PATH | rerank::COHERE_PATH => {
            assert_eq!(body["id"], id);
            &body["message"]
        }
        voyage::PATH => &body["detail"],
        dashscope::PATH => {
            assert_eq!(
                (&body["code"], &body["request_id"]),
                (&json!(code), &json!(id))
            );
            &body["message"]
        }
        _ => {
            assert_eq!(
                (&body["code"], &body["message"]),
                (&json!(code), &body["error"])
            );
            assert!(body["error_type"].is_string() && body["type"].is_string());
            &body["error"]
        }
    };
    assert!(
        words.as_str().is_some_and(|words| words.len() > 10),
        "{path}: {body}"
    );
    if path != tei::PATH {
        assert_eq!(body["error"]["code"], code, "{path}: {body}");
        assert_eq!(&body["error"]["message"], words, "{path}: {body}");
    }
}

#[tokio::test]
async fn keys_methods_and_a_model_that_loads_are_told_in_each_family_s_own_shape() {
    let locked = state(&["right"]);
    let open = state(&[]);
    let paths = FAMILIES.into_iter().chain(NATIVE);
    let assert_spoken = |path: &str, answer: &Answer, code: &str| {
        assert_eq!(code_of(&answer.body), code, "{path}");
        if FAMILIES.contains(&path) {
            assert_spoken(path, answer, code);
        }
    };
    for path in paths {
        let answer = ask(router(locked.clone()), request("POST", path, &[])).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{path}");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        assert_spoken(path, &answer, "invalid_api_key");
        let answer = ask(router(open.clone()), request("PUT", path, &[])).await;
        assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
        assert_eq!(answer.header("allow"), Some("POST"));
        assert_spoken(path, &answer, "method_not_allowed");
        let answer = ask(router(open.clone()), request("POST", path, &[])).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert_eq!(answer.header("retry-after"), Some("1"));
        assert_spoken(path, &answer, "model_loading");
    }
}
