//! The router without a model: what can be told from a request before anything is computed.

mod dialects;
mod faults;
mod provoked;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::*;

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let value = self.headers.get(name)?;
        Some(value.to_str().expect("visible characters"))
    }

    fn status_and_code(&self) -> (StatusCode, &str) {
        let error = self.body["error"].as_object().expect("an error object");
        let keys: Vec<&str> = error.keys().map(String::as_str).collect();
        assert_eq!(keys, ["message", "type", "param", "code"]);
        (self.status, error["code"].as_str().expect("a code"))
    }
}

fn state(keys: &[&str]) -> ApiState {
    ApiState::new(ApiSettings {
        keys: ApiKeys::new(keys.iter().copied()),
        ..ApiSettings::default()
    })
}

fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> Request {
    let mut builder = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(Body::empty()).expect("a request")
}

async fn ask(router: Router, request: Request) -> Answer {
    let response = router.oneshot(request).await.expect("an answer");
    let (parts, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, 1 << 20).await.expect("a body");
    Answer {
        status: parts.status,
        headers: parts.headers,
        body: serde_json::from_slice(&bytes).expect("JSON"),
    }
}

async fn get_with(state: &ApiState, path: &str, headers: &[(&str, &str)]) -> Answer {
    ask(router(state.clone()), request("GET", path, headers)).await
}

#[tokio::test]
async fn unknown_routes_and_methods_answer_in_the_shape_of_errors() {
    let open = state(&[]);
    let missing = get_with(&open, "/v1/nothing", &[]).await;
    assert_eq!(
        missing.status_and_code(),
        (StatusCode::NOT_FOUND, "not_found")
    );
    for (path, method, allowed) in [
        ("/v1/embeddings", "GET", "POST"),
        ("/embeddings", "DELETE", "POST"),
        ("/v1/models", "POST", "GET"),
        ("/v1/models/a/b", "PUT", "GET"),
        ("/health", "POST", "GET"),
    ] {
        let answer = ask(router(open.clone()), request(method, path, &[])).await;
        let expected = (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed");
        assert_eq!(answer.status_and_code(), expected, "{method} {path}");
        let allow = answer.header("allow").expect("an Allow header");
        assert!(allow.contains(allowed), "{method} {path}: {allow}");
    }
}

#[tokio::test]
async fn everything_but_health_and_the_page_needs_a_key() {
    let state = state(&["right", "also"]);
    let refused: [&[(&str, &str)]; 6] = [
        &[],
        &[("authorization", "Bearer wrong")],
        &[("authorization", "Basic right")],
        &[("authorization", "right")],
        &[("x-api-key", "right")],
        // What a client may choose freely says nothing about the route.
        &[("host", "x/health"), ("x-original-url", "/health")],
    ];
    for path in [
        "/v1/models",
        "/v1/models/x",
        "/v1/embeddings",
        "/metrics",
        "/nothing",
        "//",
        "/health/",
        "/HEALTH",
    ] {
        for headers in refused {
            let answer = get_with(&state, path, headers).await;
            let expected = (StatusCode::UNAUTHORIZED, "invalid_api_key");
            assert_eq!(answer.status_and_code(), expected, "{path} {headers:?}");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        }
    }
    for key in ["Bearer right", "bearer also"] {
        let answer = get_with(&state, "/v1/models", &[("authorization", key)]).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    }
    let health = get_with(&state, "/health/live", &[]).await;
    assert_eq!(health.status, StatusCode::OK);
    let page = router(state).oneshot(request("GET", "/", &[])).await;
    assert_eq!(page.expect("an answer").status(), StatusCode::OK);
}

#[tokio::test]
async fn keys_that_are_set_anew_replace_the_old_ones() {
    let state = state(&["old"]);
    state.set_keys(ApiKeys::new(["new"]));
    for (key, status) in [
        ("Bearer old", StatusCode::UNAUTHORIZED),
        ("Bearer new", StatusCode::SERVICE_UNAVAILABLE),
    ] {
        let answer = get_with(&state, "/v1/models", &[("authorization", key)]).await;
        assert_eq!(answer.status, status, "{key}");
    }
}

#[tokio::test]
async fn requests_are_told_to_come_again_until_the_model_is_loaded() {
    let state = state(&[]);
    let body = Body::from(json!({"input": "x"}).to_string());
    let post = Request::post("/v1/embeddings")
        .body(body)
        .expect("a request");
    let answers = [
        get_with(&state, "/v1/models", &[]).await,
        get_with(&state, "/v1/models/Qwen/Qwen3-VL-Embedding-2B", &[]).await,
        get_with(&state, "/v1/models/Qwen%2FQwen3-VL-Embedding-2B", &[]).await,
        get_with(&state, "/health", &[]).await,
        get_with(&state, "/health/ready", &[]).await,
        get_with(&state, "/health/startup", &[]).await,
        ask(router(state.clone()), post).await,
    ];
    for answer in answers {
        let expected = (StatusCode::SERVICE_UNAVAILABLE, "model_loading");
        assert_eq!(answer.status_and_code(), expected);
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    let live = get_with(&state, "/health/live", &[]).await;
    assert_eq!(live.status, StatusCode::OK);
}

#[tokio::test]
async fn a_server_that_stops_is_alive_but_not_ready() {
    let state = state(&[]);
    state.set_draining();
    let ready = get_with(&state, "/health/ready", &[]).await;
    let expected = (StatusCode::SERVICE_UNAVAILABLE, "draining");
    assert_eq!(ready.status_and_code(), expected);
    let live = get_with(&state, "/health/live", &[]).await;
    assert_eq!(live.status, StatusCode::OK);
    // Whoever is answered now takes another connection for the next request.
    assert_eq!(live.header("connection"), Some("close"));
}

#[tokio::test]
async fn a_request_id_is_echoed_when_it_is_one_and_made_when_not() {
    let state = state(&[]);
    let longest = "a".repeat(128);
    for id in ["abc-123", "{\"odd\":1}", &longest] {
        let answer = get_with(&state, "/health/live", &[("x-request-id", id)]).await;
        assert_eq!(answer.header("x-request-id"), Some(id));
    }
    let too_long = "a".repeat(129);
    for id in ["", "a b", "\u{e9}", &too_long] {
        let answer = get_with(&state, "/nothing", &[("x-request-id", id)]).await;
        let made = answer.header("x-request-id").expect("an id");
        assert!(made.starts_with("req-") && made.len() == 36, "{made}");
    }
    let timed = get_with(&state, "/health/live", &[]).await;
    let ms = timed.header("openai-processing-ms").expect("a time");
    assert!(ms.parse::<u64>().is_ok(), "{ms}");
}

#[tokio::test]
async fn a_panic_is_an_answer() {
    async fn boom() -> Response {
        panic!("on purpose")
    }
    let router = Router::new()
        .route("/boom", get(boom))
        .layer(middleware::from_fn_with_state(state(&[]), record::record));
    let answer = ask(router, request("GET", "/boom", &[])).await;
    let expected = (StatusCode::INTERNAL_SERVER_ERROR, "internal_error");
    assert_eq!(answer.status_and_code(), expected);
    assert!(answer.header("x-request-id").is_some());
    assert!(!answer.body.to_string().contains("on purpose"));
}

async fn scrape(router: Router, accept: &str) -> (String, String) {
    let request = request("GET", "/metrics", &[("accept", accept)]);
    let response = router.oneshot(request).await.expect("an answer");
    let kind = response.headers()["content-type"].to_str().expect("ASCII");
    let kind = kind.to_owned();
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await;
    let text = String::from_utf8(bytes.expect("a body").to_vec()).expect("text");
    (kind, text)
}

#[tokio::test]
async fn metrics_count_by_declared_routes_and_never_by_the_path_that_was_sent() {
    let state = state(&[]);
    get_with(&state, "/no/such/path", &[]).await;
    get_with(&state, "/v1/models/some%20model", &[]).await;
    let (kind, text) = scrape(router(state), "*/*").await;
    assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
    for line in [
        "manifold_requests_total{route=\"unmatched\",status=\"404\"}",
        "manifold_requests_total{route=\"/v1/models/{*id}\",status=\"503\"}",
        "manifold_rejections_total{reason=\"not_found\"}",
        "# TYPE manifold_requests_total counter",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    assert!(!text.contains("such/path") && !text.contains("some model"));
}

#[tokio::test]
async fn the_operators_listener_needs_no_key_and_has_nothing_but_metrics_and_health() {
    let state = state(&["right"]);
    let router = operator_router(state);
    let (kind, text) = scrape(router.clone(), "application/openmetrics-text;q=0.9").await;
    assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
    assert!(text.ends_with("# EOF\n"));
    let live = ask(router.clone(), request("GET", "/health/live", &[])).await;
    assert_eq!(live.status, StatusCode::OK);
    for path in ["/v1/models", "/v1/embeddings", "/"] {
        let answer = ask(router.clone(), request("GET", path, &[])).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}");
    }
}
