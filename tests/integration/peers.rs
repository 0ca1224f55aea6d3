//! The routes of peers: the same content in their schemas gives the native vectors, bit for bit, in the answers their clients read.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::server::{Answer, Server, fixture, media, shown};

pub(crate) const COHERE: &str = "/v2/embed";
pub(crate) const VOYAGE: &str = "/v1/multimodalembeddings";
pub(crate) const DASHSCOPE: &str =
    "/api/v1/services/embeddings/multimodal-embedding/multimodal-embedding";
pub(crate) const TEI: &str = "/embed";

pub(crate) async fn post(server: &Server, path: &str, body: &Value) -> Answer {
    let headers = [("content-type", "application/json")];
    let body = body.to_string().into_bytes();
    server
        .send(reqwest::Method::POST, path, &headers, body)
        .await
}

/// The answer to a request that must succeed.
async fn ask(server: &Server, path: &str, body: &Value) -> Value {
    let answer = post(server, path, body).await;
    assert_eq!(
        answer.status,
        200,
        "{path} {}: {}",
        shown(body),
        answer.json()
    );
    answer.json()
}

pub(crate) fn floats(vector: &Value) -> Vec<f32> {
    let numbers = vector.as_array().unwrap().iter();
    numbers.map(|x| x.as_f64().unwrap() as f32).collect()
}

fn all_floats(vectors: &Value) -> Vec<Vec<f32>> {
    vectors.as_array().unwrap().iter().map(floats).collect()
}

/// The vectors in an answer of a peer's route.
pub(crate) fn vectors_of(path: &str, answer: &Value) -> Vec<Vec<f32>> {
    let objects = |list: &Value| {
        let list = list.as_array().unwrap().iter();
        list.map(|object| floats(&object["embedding"])).collect()
    };
    match path {
        COHERE => all_floats(&answer["embeddings"]["float"]),
        VOYAGE => objects(&answer["data"]),
        DASHSCOPE => objects(&answer["output"]["embeddings"]),
        _ => all_floats(answer),
    }
}

pub(crate) fn picture(name: &str) -> String {
    let data = BASE64_STANDARD.encode(media("parity", name));
    format!("data:image/png;base64,{data}")
}

fn bytes(value: &Value) -> Vec<u8> {
    BASE64_STANDARD.decode(value.as_str().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn cohere_gets_every_type_of_the_native_vectors_and_its_texts_back() {
    let server = Server::of("parity");
    let query = json!({ "input": ["one", "two"], "input_type": "query" });
    let native = server.vectors(&query).await;
    let types = [
        "float", "base64", "int8", "uint8", "binary", "ubinary", "float",
    ];
    let body = json!({ "model": "model", "texts": ["one", "two"], "input_type": "search_query", "embedding_types": types });
    let answer = ask(&server, COHERE, &body).await;
    assert_eq!(answer["response_type"], "embeddings_by_type");
    assert_eq!(answer["texts"], json!(["one", "two"]));
    assert_eq!(vectors_of(COHERE, &answer), native);
    let little_endian: Vec<u8> = native[1].iter().flat_map(|x| x.to_le_bytes()).collect();
    assert_eq!(bytes(&answer["embeddings"]["base64"][1]), little_endian);
    for name in ["int8", "uint8", "binary", "ubinary"] {
        let mut typed = query.clone();
        typed["embedding_type"] = name.into();
        let typed = server.post(&typed).await.json();
        assert_eq!(
            answer["embeddings"][name][1], typed["data"][1]["embedding"],
            "{name}"
        );
    }
    let picture = picture("tiny_20x20.png");
    let native = server
        .vectors(&json!({ "input": [{ "image": picture }] }))
        .await;
    let images = json!({ "images": [picture], "texts": null, "inputs": [] });
    let images = ask(&server, COHERE, &images).await;
    assert_eq!(vectors_of(COHERE, &images), native);
    assert!(images["texts"].is_null());
    assert_eq!(images["meta"]["billed_units"]["image_tokens"], 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn voyage_gets_the_bytes_of_the_type_it_asked_for_and_the_pixels_the_model_saw() {
    let server = Server::of("parity");
    let picture = picture("tiny_20x20.png");
    let content = json!([{ "type": "text", "text": "a" }, { "type": "image_base64", "image_base64": picture }]);
    let native = server
        .vectors(&json!({ "input": { "content": content } }))
        .await;
    let body = json!({ "inputs": [{ "content": content }], "model": "model", "input_type": null, "truncation": true });
    let answer = ask(&server, VOYAGE, &body).await;
    assert_eq!(vectors_of(VOYAGE, &answer), native);
    // 20 x 20 becomes 64 x 64.
    assert_eq!(answer["usage"]["image_pixels"], 64 * 64);
    assert_eq!(answer["usage"]["video_pixels"], 0);
    let mut typed = body.clone();
    typed["output_dtype"] = "int8".into();
    let numbers = ask(&server, VOYAGE, &typed).await["data"][0]["embedding"].clone();
    for field in ["encoding_format", "output_encoding"] {
        let mut encoded = typed.clone();
        encoded[field] = "base64".into();
        let encoded = bytes(&ask(&server, VOYAGE, &encoded).await["data"][0]["embedding"]);
        let encoded: Vec<i8> = encoded.into_iter().map(|byte| byte as i8).collect();
        assert_eq!(json!(encoded), numbers, "{field}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dashscope_gets_a_vector_for_each_content_or_one_for_all() {
    let server = Server::of("parity");
    let (one, other) = (picture("tiny_20x20.png"), picture("odd_100x37.png"));
    let contents = json!([{ "text": "a" }, { "image": one }, { "multi_images": [one, other] }, { "text": "a", "image": one, "factor": 1 }]);
    let native = server
        .vectors(&json!({ "input": ["a", { "image": one }, { "image": [one, other] }, { "text": "a", "image": one }] }))
        .await;
    let each = ask(
        &server,
        DASHSCOPE,
        &json!({ "input": { "contents": contents } }),
    )
    .await;
    assert_eq!(vectors_of(DASHSCOPE, &each), native);
    let embeddings = each["output"]["embeddings"].as_array().unwrap();
    let kinds: Vec<&Value> = embeddings.iter().map(|object| &object["type"]).collect();
    assert_eq!(kinds, ["text", "image", "multi_images", "fusion"]);
    assert_eq!(each["usage"]["image_count"], 4);

    let fused = json!({ "input": { "contents": [{ "text": "a" }, { "image": one }] }, "parameters": { "enable_fusion": true, "instruct": "Find it.", "res_level": 1 } });
    let answer = post(&server, DASHSCOPE, &fused).await;
    assert_eq!(answer.header("x-ignored-fields"), "parameters.res_level");
    assert_eq!(answer.json()["request_id"], answer.header("x-request-id"));
    let native = server
        .vectors(&json!({ "input": { "text": "a", "image": one, "instruction": "Find it." } }))
        .await;
    assert_eq!(vectors_of(DASHSCOPE, &answer.json()), native);
}

#[tokio::test(flavor = "multi_thread")]
async fn tei_gets_nothing_but_vectors() {
    let server = Server::of("parity");
    let native = server
        .vectors(&json!({ "input": ["a", "b"], "input_type": "query", "dimensions": 64 }))
        .await;
    let body = json!({ "inputs": ["a", "b"], "prompt_name": "query", "dimensions": 64, "truncate": null, "normalize": true });
    assert_eq!(vectors_of(TEI, &ask(&server, TEI, &body).await), native);
    let raw = server
        .vectors(&json!({ "input": "a", "normalize": false }))
        .await;
    let body = json!({ "inputs": "a", "normalize": false });
    assert_eq!(vectors_of(TEI, &ask(&server, TEI, &body).await), raw);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_long_a_text_is_cut_where_the_peer_cuts_it_and_the_answer_says_so() {
    let model = fixture("parity").join("model");
    let server = Server::start(
        &[
            "--model",
            model.to_str().unwrap(),
            "--dtype",
            "f32",
            "--max-input-tokens",
            "64",
        ],
        &[],
    );
    let words: Vec<String> = (0..200).map(|i| format!("word{i}")).collect();
    let text = words.join(" ");
    let native = async |truncate: &str| {
        let body = json!({ "input": text, "truncate": truncate });
        server.vectors(&body).await
    };
    let (end, start) = (native("END").await, native("START").await);
    assert_ne!(end, start);
    let cohere = ask(&server, COHERE, &json!({ "texts": [text] })).await;
    assert_eq!(vectors_of(COHERE, &cohere), end);
    assert_eq!(cohere["meta"]["warnings"].as_array().map(Vec::len), Some(1));
    let left = json!({ "texts": [text], "truncate": "START" });
    assert_eq!(
        vectors_of(COHERE, &ask(&server, COHERE, &left).await),
        start
    );
    let content = json!([{ "content": [{ "type": "text", "text": text }] }]);
    let voyage = ask(&server, VOYAGE, &json!({ "inputs": content })).await;
    assert_eq!(vectors_of(VOYAGE, &voyage), end);
    assert_eq!(voyage["data"][0]["truncated"], true);
    let tei = json!({ "inputs": text, "truncate": true, "truncation_direction": "Left" });
    assert_eq!(vectors_of(TEI, &ask(&server, TEI, &tei).await), start);
    let contents = json!({ "contents": [{ "text": text }] });
    let dashscope = json!({ "input": contents, "parameters": { "auto_truncation": true } });
    assert_eq!(
        vectors_of(DASHSCOPE, &ask(&server, DASHSCOPE, &dashscope).await),
        end
    );
    for (path, body) in [
        (COHERE, json!({ "texts": [text], "truncate": "NONE" })),
        (VOYAGE, json!({ "inputs": content, "truncation": false })),
        (TEI, json!({ "inputs": text })),
        (DASHSCOPE, json!({ "input": contents })),
    ] {
        let answer = post(&server, path, &body).await;
        assert_eq!(answer.status, 400, "{path}: {}", answer.json());
        assert!(
            answer
                .json()
                .to_string()
                .contains("context_length_exceeded"),
            "{path}"
        );
    }
}

/// A route, a body, and the path of what is wrong with it.
type Wrong = (&'static str, Value, &'static str);

fn wrong_for_cohere_and_voyage(content: fn(Value) -> Value) -> Vec<Wrong> {
    vec![
        (COHERE, json!({}), "inputs"),
        (COHERE, json!({ "texts": [], "images": [] }), "inputs"),
        (COHERE, json!({ "texts": ["a"], "images": ["b"] }), "images"),
        (COHERE, json!({ "texts": ["a", 1] }), "texts[1]"),
        (COHERE, json!({ "texts": "a" }), "texts"),
        (COHERE, json!({ "images": ["data:,"] }), "images[0]"),
        (COHERE, json!({ "inputs": ["a"] }), "inputs[0]"),
        (
            COHERE,
            json!({ "texts": ["a"], "embedding_types": ["int4"] }),
            "embedding_types[0]",
        ),
        (
            COHERE,
            json!({ "texts": ["a"], "embedding_types": "float" }),
            "embedding_types",
        ),
        (
            COHERE,
            json!({ "texts": ["a"], "input_type": "clustering" }),
            "input_type",
        ),
        (
            COHERE,
            json!({ "texts": ["a"], "output_dimension": 1 }),
            "dimensions",
        ),
        (VOYAGE, json!({ "inputs": [] }), "inputs"),
        (VOYAGE, json!({ "inputs": ["a"] }), "inputs[0]"),
        (
            VOYAGE,
            json!({ "inputs": content(json!({ "type": "text" })) }),
            "inputs[0].content[0].text",
        ),
        (
            VOYAGE,
            json!({ "inputs": content(json!({ "type": "text", "text": "a" })), "encoding_format": "bytes" }),
            "encoding_format",
        ),
        (
            VOYAGE,
            json!({ "inputs": content(json!({ "type": "text", "text": "a" })), "output_dtype": ["int8"] }),
            "output_dtype",
        ),
    ]
}

fn wrong_for_dashscope_and_tei() -> Vec<Wrong> {
    vec![
        (DASHSCOPE, json!({ "model": "model" }), "input"),
        (
            DASHSCOPE,
            json!({ "input": { "contents": [] } }),
            "input.contents",
        ),
        (
            DASHSCOPE,
            json!({ "input": { "contents": [{}] } }),
            "input.contents[0]",
        ),
        (
            DASHSCOPE,
            json!({ "input": { "contents": [{ "audio": "x" }] } }),
            "input.contents[0].audio",
        ),
        (
            DASHSCOPE,
            json!({ "input": { "contents": [{ "text": "a", "factor": 2 }] } }),
            "input.contents[0].factor",
        ),
        (
            DASHSCOPE,
            json!({ "input": { "contents": [{ "text": "a" }] }, "parameters": { "dimension": 7 } }),
            "parameters.dimension",
        ),
        (
            DASHSCOPE,
            json!({ "input": { "contents": [{ "text": "a" }] }, "parameters": { "output_type": "sparse" } }),
            "parameters.output_type",
        ),
        (TEI, json!({}), "inputs"),
        (
            TEI,
            json!({ "inputs": ["a"], "truncation_direction": "up" }),
            "truncation_direction",
        ),
        (
            TEI,
            json!({ "inputs": ["a"], "encoding_format": "base64" }),
            "encoding_format",
        ),
        (
            TEI,
            json!({ "inputs": "a", "prompt_name": "nobody" }),
            "prompt_name",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_named_as_the_peer_s_body_has_it() {
    let server = Server::of("parity");
    let content = |part: Value| json!([{ "content": [part] }]);
    let all = wrong_for_cohere_and_voyage(content).into_iter();
    for (path, body, param) in all.chain(wrong_for_dashscope_and_tei()) {
        let answer = post(&server, path, &body).await;
        let told = answer.json();
        let error = if path == TEI { &told } else { &told["error"] };
        assert_eq!(
            (answer.status, &error["param"]),
            (400, &json!(param)),
            "{path} {body}: {told}"
        );
        assert_eq!(answer.header("x-should-retry"), "false");
    }
}
