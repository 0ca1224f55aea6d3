//! What a vector looks like on the wire, in every format.

use axum::body::Bytes;
use serde_json::Map;

use super::super::fields::Fields;
use super::super::{ApiSettings, options};
use super::*;
use crate::service::{Cause, ServiceError};

const VECTOR: [f32; 3] = [0.6, -0.8, 1e-7];

fn output(vector: &[f32]) -> Result<Embedded, ServiceError> {
    Ok(Embedded {
        vector: vector.to_vec(),
        tokens: TokenCounts {
            text_tokens: 5,
            image_tokens: 3,
            video_tokens: 2,
        },
        cached_tokens: 4,
        from_cache: false,
        truncated: false,
    })
}

/// The answer to options, whatever came of the vectors.
async fn answer(fields: Value, outputs: Vec<Result<Embedded, ServiceError>>) -> (Response, Bytes) {
    let map: Map<String, Value> = fields.as_object().expect("an object").clone();
    let fields = Fields { map: &map, at: "" };
    let options = options::parse(fields, &ApiSettings::default(), 64).expect("good options");
    let envelope = Envelope {
        id: "embd-1".to_owned(),
        request_id: "req-1".to_owned(),
        created: 7,
        model: "m".to_owned(),
    };
    let ids = outputs.iter().map(|_| None).collect();
    let outputs = outputs.into_iter();
    let answered = Answered {
        outputs: outputs
            .map(|output| output.map_err(ApiError::from))
            .collect(),
        ids,
        options,
        envelope,
    };
    let (parts, body) = build(answered).into_response().into_parts();
    let bytes = axum::body::to_bytes(body, 1 << 20).await.expect("a body");
    (Response::from_parts(parts, Body::empty()), bytes)
}

async fn json_of(fields: Value, outputs: Vec<Result<Embedded, ServiceError>>) -> Value {
    let (_, bytes) = answer(fields, outputs).await;
    serde_json::from_slice(&bytes).expect("JSON")
}

async fn first(fields: Value) -> Value {
    json_of(fields, vec![output(&VECTOR)]).await["data"][0].take()
}

fn float_base64() -> String {
    let bytes: Vec<u8> = VECTOR
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    BASE64_STANDARD.encode(bytes)
}

#[tokio::test]
async fn the_answer_has_openais_shape_and_the_shortest_floats() {
    let (response, bytes) = answer(json!({}), vec![output(&VECTOR), output(&VECTOR)]).await;
    assert_eq!(response.headers()["content-type"], "application/json");
    let object = r#"{"object":"embedding","index":INDEX,"embedding":[0.6,-0.8,1e-7]}"#;
    let objects = [object.replace("INDEX", "0"), object.replace("INDEX", "1")].join(",");
    let usage = r#""usage":{"prompt_tokens":20,"total_tokens":20,"prompt_tokens_details":{"text_tokens":10,"image_tokens":6,"video_tokens":4,"cached_tokens":8}}"#;
    let expected = format!(
        r#"{{"object":"list","id":"embd-1","created":7,"model":"m","data":[{objects}],{usage}}}"#
    );
    assert_eq!(String::from_utf8_lossy(&bytes), expected);
}

#[tokio::test]
async fn base64_is_always_little_endian_float32() {
    let plain = first(json!({"encoding_format": "base64"})).await;
    assert_eq!(plain["embedding"], float_base64());
    assert_eq!(plain.get("embeddings"), None);
    // The official clients ask for base64 unasked and decode it as floats, whatever else was asked for.
    let typed = first(json!({"encoding_format": "base64", "embedding_type": "int8"})).await;
    assert_eq!(typed["embedding"], float_base64());
    assert_eq!(typed["embeddings"]["int8"], json!([95, -127, 0]));
}

#[tokio::test]
async fn one_type_is_the_embedding_and_a_list_stands_beside_it() {
    let one = first(json!({"embedding_type": "int8"})).await;
    assert_eq!(one["embedding"], json!([95, -127, 0]));
    assert!((one["scale"].as_f64().expect("a scale") - 0.8 / 127.0).abs() < 1e-8);
    let list = first(json!({"embedding_types": ["ubinary", "binary", "uint8"]})).await;
    assert_eq!(list["embedding"], json!([0.6, -0.8, 1e-7]));
    let expected = json!({"binary": [32], "ubinary": [160], "uint8": [223, 1, 128]});
    assert_eq!(list["embeddings"], expected);
}

#[tokio::test]
async fn output_encoding_is_the_bytes_of_the_type() {
    let one = first(json!({"output_dtype": "uint8", "output_encoding": "base64"})).await;
    assert_eq!(one["embedding"], BASE64_STANDARD.encode([223, 1, 128]));
    let float = first(json!({"output_encoding": "base64"})).await;
    assert_eq!(float["embedding"], float_base64());
}

#[tokio::test]
async fn bytes_are_vectors_back_to_back_with_a_header_that_says_where() {
    let fields = json!({"encoding_format": "bytes", "embedding_type": "int8"});
    let (response, bytes) = answer(fields, vec![output(&VECTOR), output(&VECTOR)]).await;
    assert_eq!(bytes, [95, 129, 0, 95, 129, 0].as_slice());
    assert_eq!(
        response.headers()["content-type"],
        "application/octet-stream"
    );
    let metadata: Value =
        serde_json::from_slice(response.headers()["metadata"].as_bytes()).expect("JSON");
    let second = json!({"index": 1, "embed_dtype": "int8", "endianness": "little", "start": 3, "end": 6, "shape": [3]});
    assert_eq!(metadata["data"][1], second);
    assert_eq!(metadata["usage"]["total_tokens"], 20);
}

#[tokio::test]
async fn a_partial_answer_has_the_error_where_the_vector_would_be() {
    let failed = Err(ServiceError {
        at: Some("input[0]".to_owned()),
        cause: Cause::Worker,
    });
    let body = json_of(
        json!({"on_error": "partial"}),
        vec![failed, output(&VECTOR)],
    )
    .await;
    assert_eq!(body["data"][0]["embedding"], Value::Null);
    assert_eq!(body["data"][0]["error"]["code"], "internal_error");
    assert_eq!(body["data"][0]["error"]["param"], "input[0]");
    assert_eq!(body["data"][1]["embedding"][0], 0.6);
    assert_eq!(body["usage"]["total_tokens"], 10);
}

#[tokio::test]
async fn what_a_type_cannot_hold_is_an_error_and_not_null() {
    let fields = json!({"embedding_type": "float16", "normalize": false});
    let (response, bytes) = answer(fields, vec![output(&[70_000.0, 1.0])]).await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    let body: Value = serde_json::from_slice(&bytes).expect("JSON");
    assert_eq!(body["error"]["param"], "embedding_type");
}
