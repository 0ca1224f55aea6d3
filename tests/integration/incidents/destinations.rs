//! Nothing but a media field of a request names a place the server goes to. Every server here could reach the canary: private networks and its port are
//! allowed.

use serde_json::{Value, json};

use super::Canary;
use crate::server::Server;

/// A server that would fetch from the canary, were it a picture.
fn server(canary: &Canary) -> Server {
    let port = format!("--media-allowed-ports={}", canary.port());
    Server::start(
        &[
            "--allow-private-networks",
            &port,
            "--media-fetch-timeout-ms=300",
        ],
        &[],
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn links_in_texts_are_not_followed() {
    let canary = Canary::new();
    let server = server(&canary);
    let url = canary.url("a.png");
    for text in [
        format!("![picture]({url})"),
        format!("<img src=\"{url}\">"),
        url.clone(),
        format!("data:image/png;base64,{url}"),
        format!("[image]: {url}"),
    ] {
        for input in [
            json!(text),
            json!({ "text": text }),
            json!({ "content": text }),
            json!({ "content": [{ "type": "text", "text": text }] }),
            json!({ "text": "a", "instruction": text }),
        ] {
            let answer = server.post(&json!({ "input": input })).await;
            assert_eq!(answer.status, 200, "{input}: {}", answer.json());
            let details = &answer.json()["usage"]["prompt_tokens_details"];
            assert_eq!(details["image_tokens"], 0, "{input}");
        }
    }
    assert!(!canary.was_reached());
    // The control: the same URL as a picture is gone to.
    server.post(&json!({ "input": { "image": url } })).await;
    assert!(canary.was_reached());
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_choose_no_destination() {
    let canary = Canary::new();
    let server = server(&canary);
    let (url, host) = (canary.url(""), format!("127.0.0.1:{}", canary.port()));
    let body = json!({ "input": "a" }).to_string().into_bytes();
    for (name, value) in [
        ("x-request-id", url.as_str()),
        ("x-request-id", &host),
        ("host", &host),
        ("x-forwarded-host", &host),
        ("x-forwarded-for", "127.0.0.1"),
        ("forwarded", &format!("host={host}")),
        ("x-original-url", &url),
        ("x-rewrite-url", &url),
        ("referer", &url),
        ("origin", &url),
        ("traceparent", &url),
        ("x-callback-url", &url),
        ("x-api-base", &url),
    ] {
        let headers = [("content-type", "application/json"), (name, value)];
        let post = reqwest::Method::POST;
        let answer = server
            .send(post, "/v1/embeddings", &headers, body.clone())
            .await;
        assert_eq!(answer.status, 200, "{name}: {}", answer.json());
    }
    assert!(!canary.was_reached());
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_choose_no_destination() {
    let canary = Canary::new();
    let server = server(&canary);
    let url = canary.url("");
    let plain = server.vectors(&json!({ "input": "a" })).await;
    for field in [
        "api_base",
        "base_url",
        "endpoint",
        "api_type",
        "callback_url",
        "webhook",
        "proxy",
        "upstream",
        "tokenizer",
        "lora_path",
        "model_path",
        "image",
        "image_url",
        "images",
        "media",
    ] {
        let answer = server.post(&json!({ "input": "a", (field): url })).await;
        assert_eq!(answer.status, 200, "{field}: {}", answer.json());
        assert_eq!(answer.header("x-ignored-fields"), field);
        assert_eq!(crate::server::vectors(&answer.json()), plain, "{field}");
        if !field.starts_with("image") {
            let answer = server
                .post(&json!({ "input": { "text": "a", (field): url } }))
                .await;
            let code = answer.json()["error"]["code"].clone();
            assert_eq!(
                (answer.status, code),
                (400, json!("unknown_field")),
                "{field}"
            );
        }
    }
    assert!(!canary.was_reached());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_a_served_name_and_never_a_path_or_a_host() {
    let canary = Canary::new();
    let server = server(&canary);
    let host = format!("127.0.0.1:{}/library/model", canary.port());
    for model in [
        "../../etc/passwd",
        "/etc/passwd",
        "..\\..\\windows",
        "manifold-tiny/../manifold-tiny",
        "./manifold-tiny",
        "manifold-tiny\0",
        "manifold-tiny ",
        "MANIFOLD-TINY",
        "sha256:0000",
        "Qwen/Qwen3-VL-Embedding-2B",
        "hf.co/Qwen/Qwen3-VL-Embedding-2B",
        &host,
        &canary.url("model"),
        "file:///etc/passwd",
    ] {
        let answer = server.post(&json!({ "input": "a", "model": model })).await;
        let code = answer.json()["error"]["code"].clone();
        assert_eq!(
            (answer.status, code),
            (404, json!("model_not_found")),
            "{model}"
        );
        let escaped: String = model.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let answer = server.get(&format!("/v1/models/{escaped}")).await;
        assert_eq!(answer.status, 404, "{model}");
    }
    assert!(!canary.was_reached());
    let served = server
        .post(&json!({ "input": "a", "model": "manifold-tiny" }))
        .await;
    assert_eq!(served.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_route_loads_or_fetches_for_clients() {
    let canary = Canary::new();
    let server = server(&canary);
    let url = canary.url("");
    let names = [
        "url", "model", "name", "path", "gallery", "id", "image", "file",
    ];
    let body: Value = names
        .iter()
        .map(|name| ((*name).to_owned(), json!(url)))
        .collect();
    let body = body.to_string().into_bytes();
    for route in [
        "/models/apply",
        "/models/load",
        "/api/pull",
        "/api/push",
        "/api/create",
        "/api/show",
        "/v1/load_lora_adapter",
        "/v1/files",
        "/upload",
        "/update_weights_from_disk",
        "/update_weights_from_url",
        "/admin/fetch",
        "/proxy",
        "/invocations",
        "/pooling",
        "/start_profile",
        "/reset_prefix_cache",
        "/v1/chat/completions",
        "/v1/completions",
    ] {
        let headers = [("content-type", "application/json")];
        for method in [reqwest::Method::POST, reqwest::Method::PUT] {
            let answer = server.send(method, route, &headers, body.clone()).await;
            assert_eq!(answer.status, 404, "{route}");
        }
    }
    assert!(!canary.was_reached());
}
