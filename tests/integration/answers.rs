//! What answers look like: types, sizes, counts, headers, models, health, keys.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::server::{Server, fixture};

fn bytes(value: &Value) -> Vec<u8> {
    BASE64_STANDARD.decode(value.as_str().unwrap()).unwrap()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect()
}

fn integers(value: &Value) -> Vec<i64> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|x| x.as_i64().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_holds_the_same_vector() {
    let server = Server::of("parity");
    let float = server.vectors(&json!({ "input": "types" })).await.remove(0);
    let ask = async |more: Value| {
        let mut body = json!({ "input": "types" });
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        server.post(&body).await
    };
    let base64 = ask(json!({ "encoding_format": "base64" })).await.json();
    assert_eq!(floats(&bytes(&base64["data"][0]["embedding"])), float);
    let raw = ask(json!({ "encoding_format": "bytes" })).await;
    assert_eq!(raw.header("content-type"), "application/octet-stream");
    assert_eq!(floats(&raw.bytes), float);
    let metadata: Value = serde_json::from_str(raw.header("metadata")).unwrap();
    assert_eq!(metadata["data"][0]["end"], 4 * float.len());

    let int8 = ask(json!({ "embedding_type": "int8" })).await.json();
    let scale = int8["data"][0]["scale"].as_f64().unwrap();
    let int8 = integers(&int8["data"][0]["embedding"]);
    assert_eq!(int8.iter().map(|x| x.abs()).max(), Some(127));
    assert!(
        int8.iter()
            .zip(&float)
            .all(|(q, x)| (*q as f64 * scale - f64::from(*x)).abs() <= scale * 0.51)
    );
    let signs: Vec<u8> = float
        .chunks(8)
        .map(|bits| {
            bits.iter()
                .fold(0, |byte, x| byte << 1 | u8::from(*x > 0.0))
        })
        .collect();
    let all = ask(json!({ "embedding_types": ["ubinary", "binary", "uint8", "float16", "bfloat16"], "output_encoding": "base64" })).await.json();
    let typed = &all["data"][0]["embeddings"];
    assert_eq!(bytes(&typed["ubinary"]), signs);
    assert!(
        bytes(&typed["binary"])
            .iter()
            .zip(&signs)
            .all(|(b, u)| i16::from(*b as i8) == i16::from(*u) - 128)
    );
    assert!(
        bytes(&typed["uint8"])
            .iter()
            .zip(&int8)
            .all(|(u, q)| i64::from(*u) == q + 128)
    );
    assert_eq!(
        (
            bytes(&typed["float16"]).len(),
            bytes(&typed["bfloat16"]).len()
        ),
        (128, 128)
    );
    assert_eq!(floats(&bytes(&all["data"][0]["embedding"])), float);
}

#[tokio::test(flavor = "multi_thread")]
async fn matryoshka_sizes_are_cut_and_normalised_again() {
    // The tiny models are 64 wide, so the embedder of the other sizes is checked in `vectors`; here the edges of the range.
    let server = Server::of("parity");
    let whole = server
        .vectors(&json!({ "input": "sizes", "normalize": false }))
        .await
        .remove(0);
    let unit = server
        .vectors(&json!({ "input": "sizes", "output_dimension": 64 }))
        .await
        .remove(0);
    let norm = whole
        .iter()
        .map(|x| f64::from(*x) * f64::from(*x))
        .sum::<f64>()
        .sqrt();
    assert!(
        whole
            .iter()
            .zip(&unit)
            .all(|(a, b)| (f64::from(*a) / norm - f64::from(*b)).abs() < 1e-7)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_count_tokens_and_carry_their_headers() {
    let server = Server::of("parity");
    let image = format!(
        "file://{}",
        fixture("parity").join("media/tiny_20x20.png").display()
    );
    let body = json!({ "input": ["What is the capital of China?", { "image": image, "id": "mine" }], "user": "u", "surprise": 1 });
    let headers = [
        ("content-type", "application/json"),
        ("x-request-id", "abc-1"),
    ];
    let answer = server
        .send(
            reqwest::Method::POST,
            "/embeddings",
            &headers,
            body.to_string().into_bytes(),
        )
        .await;
    let json = answer.json();
    // Source: num_tokens of text_short and img_tiny in the goldens.
    assert_eq!(json["usage"]["prompt_tokens"], 36 + 29);
    assert_eq!(json["usage"]["prompt_tokens_details"]["image_tokens"], 4);
    assert_eq!(
        (&json["object"], &json["data"][1]["index"]),
        (&json!("list"), &json!(1))
    );
    assert_eq!(json["data"][1]["id"], "mine");
    assert_eq!(json["model"], "model");
    assert_eq!(answer.header("x-request-id"), "abc-1");
    assert_eq!(answer.header("x-ignored-fields"), "surprise");
    assert!(answer.header("openai-processing-ms").parse::<u64>().is_ok());
    assert!(answer.header("server-timing").contains("forward;dur="));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instruction_is_computed_once_and_reusing_it_changes_no_bit() {
    let reusing = Server::start(&["--dtype", "bf16"], &[]);
    let forgetful = Server::start(&["--dtype", "bf16", "--engine-max-prefix-bytes", "0"], &[]);
    let body = |text: &str| json!({ "input": text, "instruction": "Find the cat." });
    let cached = |answer: &Value| {
        let usage = &answer["usage"];
        let cached = &usage["prompt_tokens_details"]["cached_tokens"];
        (
            usage["prompt_tokens"].as_u64().unwrap(),
            cached.as_u64().unwrap(),
        )
    };
    let (whole, none) = cached(&reusing.post(&body("a cat on a mat")).await.json());
    assert_eq!(none, 0, "nothing is kept before the first request");
    for text in ["a cat on a mat", "dogs, on the other hand, are not cats"] {
        let answer = reusing.post(&body(text)).await.json();
        let (tokens, cached_tokens) = cached(&answer);
        assert!(cached_tokens > 5 && cached_tokens < tokens, "{answer}");
        assert!(
            text != "a cat on a mat" || tokens == whole,
            "all tokens count"
        );
        let alone = forgetful.post(&body(text)).await.json();
        assert_eq!(cached(&alone), (tokens, 0));
        assert_eq!(answer["data"], alone["data"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_text_is_reported_and_keeps_the_limit() {
    let server = Server::of("parity");
    let long = "one two three four five six seven ".repeat(20);
    for truncate in [
        json!(true),
        json!("END"),
        json!("START"),
        json!("REFERENCE"),
    ] {
        let answer = server
            .post(&json!({ "input": long, "max_tokens": 40, "truncate": truncate }))
            .await
            .json();
        assert_eq!(answer["data"][0]["truncated"], true, "{answer}");
        assert_eq!(answer["usage"]["total_tokens"], 40);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn models_and_health_answer() {
    let model = fixture("parity").join("model");
    let server = Server::start(
        &[
            "--model",
            model.to_str().unwrap(),
            "--served-model-name",
            "Qwen/Tiny",
        ],
        &[],
    );
    let models = server.get("/v1/models").await.json();
    assert_eq!(
        (&models["data"][0]["id"], &models["data"][0]["dimensions"]),
        (&json!("Qwen/Tiny"), &json!(64))
    );
    assert_eq!(
        server.get("/v1/models/Qwen/Tiny").await.json()["id"],
        "Qwen/Tiny"
    );
    assert_eq!(
        server.get("/v1/models/Qwen%2FTiny").await.json()["id"],
        "Qwen/Tiny"
    );
    for path in [
        "/health",
        "/health/live",
        "/health/ready",
        "/health/startup",
    ] {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_guard_everything_but_health() {
    let server = Server::start(&[], &[("MANIFOLD_API_KEY", "first,second")]);
    let body = json!({ "input": "x" }).to_string().into_bytes();
    for (key, status) in [
        (None, 401),
        (Some("Bearer third"), 401),
        (Some("Basic first"), 401),
        (Some("Bearer first"), 200),
        (Some("bearer second"), 200),
    ] {
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(key.map(|key| ("authorization", key)));
        let answer = server
            .send(
                reqwest::Method::POST,
                "/v1/embeddings",
                &headers,
                body.clone(),
            )
            .await;
        assert_eq!(answer.status, status, "{key:?}");
        if status == 401 {
            assert_eq!(answer.header("www-authenticate"), "Bearer");
            assert_eq!(answer.json()["error"]["code"], "invalid_api_key");
        }
    }
    for path in ["/v1/models", "/nothing"] {
        assert_eq!(server.get(path).await.status, 401, "{path}");
    }
    assert_eq!(server.get("/health/ready").await.status, 200);
}
