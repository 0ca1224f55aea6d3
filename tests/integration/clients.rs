//! The clients of other servers, with nothing but their address changed: each vector is the native one, each error has our words.
//!
//! They come from the registry, so they run where they are installed: `MANIFOLD_TEST_PYTHON`, or `target/sdk/python`, has
//! `clients/requirements.txt`. Where `MANIFOLD_TEST_CLIENTS` is set, as in CI, one that is absent is a failure.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::peers::{self, picture};
use crate::sdks::{as_f32, run};
use crate::server::{Server, fixture};

/// The Python that has the clients, unless this one is not there.
pub(crate) fn python_with(module: &str) -> Option<PathBuf> {
    let named = std::env::var_os("MANIFOLD_TEST_PYTHON").map(PathBuf::from);
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = named.unwrap_or_else(|| top.join("target/sdk/python/bin/python"));
    let found = Command::new(&python)
        .args([
            "-c",
            "import importlib.util, sys; sys.exit(importlib.util.find_spec(sys.argv[1]) is None)",
            module,
        ])
        .output();
    if found.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    assert!(
        std::env::var_os("MANIFOLD_TEST_CLIENTS").is_none(),
        "{} has no {module}: install tests/integration/clients/requirements.txt",
        python.display()
    );
    eprintln!("skipped: {} has no {module}", python.display());
    None
}

/// What the native route gives for each case of the clients.
async fn native(server: &Server) -> Value {
    let picture = picture("odd_100x37.png");
    let ask = async |body: Value| json!(server.vectors(&body).await);
    let fused = json!([{ "type": "image", "image": picture }, { "type": "text", "text": "hello" }]);
    let texts = ask(json!({ "input": ["hello", "a longer text"] })).await;
    json!({
        "texts": texts,
        "plain": texts,
        "query": ask(json!({ "input": "hello", "input_type": "query" })).await,
        "short": ask(json!({ "input": "hello", "dimensions": 64 })).await,
        "picture": ask(json!({ "input": [{ "image": picture }] })).await,
        "fused": ask(json!({ "input": { "content": fused } })).await,
        "ranks": ranks(server).await,
        "vllm": ask(json!({ "input": { "content": fused } })).await,
    })
}

/// Place and score of each of two documents, the best first.
async fn ranks(server: &Server) -> Value {
    let body =
        json!({ "model": "judge", "query": "hello", "documents": ["a longer text", "hello"] });
    let answer = peers::post(server, "/v1/rerank", &body).await.json();
    assert_eq!(answer["scored_by"], "reranker");
    let results = answer["results"].as_array().unwrap().iter();
    let results = results.map(|one| json!([one["index"], one["relevance_score"]]));
    results.collect()
}

/// Runs a client's cases, as many as it must have; `says` is in the words of its refusal.
async fn check(name: &str, module: &str, cases: &[&str], says: &str) {
    let Some(python) = python_with(module) else {
        return;
    };
    let reranker = fixture("parity").join("model");
    // Its vectors have 256 dimensions, so that 64 of them are less.
    let server = Server::start(
        &[
            "--model",
            "manifold-tiny",
            "--served-model-name",
            "model",
            "--reranker",
            reranker.to_str().unwrap(),
            "--served-reranker-name",
            "judge",
            "--dtype",
            "f32",
        ],
        &[],
    );
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/integration/clients/call.py");
    let image = fixture("parity").join("media/odd_100x37.png");
    let printed = run(Command::new(python)
        .arg(script)
        .arg(name)
        .arg(&server.url)
        .arg(image));
    // Clients print their own remarks before.
    let last = printed.lines().last().unwrap_or_default();
    let mut got: Value = serde_json::from_str(last).unwrap();
    let refused = got.as_object_mut().unwrap().remove("refused").unwrap();
    assert!(
        refused.as_str().unwrap().contains(says),
        "{name}: {refused}"
    );
    let native = native(&server).await;
    let width = |case: &str| native[case][0].as_array().unwrap().len();
    assert_eq!((width("texts"), width("short")), (256, 64));
    let got = got.as_object().unwrap();
    let keys: Vec<&str> = got.keys().map(String::as_str).collect();
    assert_eq!(keys, cases, "{name}");
    for (case, vectors) in got {
        assert_eq!(as_f32(vectors), as_f32(&native[case]), "{name}: {case}");
    }
}

const TOO_SHORT: &str = "between 64 and 256";

#[tokio::test(flavor = "multi_thread")]
async fn openai_gets_fused_inputs_and_vllm_s_recipe_for_this_model() {
    let cases = ["texts", "query", "short", "fused", "vllm"];
    check("openai", "openai", &cases, TOO_SHORT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cohere_gets_the_native_vectors() {
    let cases = ["texts", "query", "short", "picture", "fused", "ranks"];
    check("cohere", "cohere", &cases, TOO_SHORT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn voyage_gets_the_native_vectors() {
    let cases = ["texts", "query", "short", "picture", "fused", "plain"];
    check("voyageai", "voyageai", &cases, TOO_SHORT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dashscope_gets_the_native_vectors() {
    let cases = ["texts", "short", "picture", "fused"];
    check("dashscope", "dashscope", &cases, TOO_SHORT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn langchain_gets_the_native_vectors() {
    let cases = ["texts", "query", "short"];
    check("langchain_openai", "langchain_openai", &cases, TOO_SHORT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn llama_index_gets_the_native_vectors() {
    let cases = ["texts", "short"];
    check("llama_index", "llama_index", &cases, TOO_SHORT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn litellm_gets_the_native_vectors() {
    check("litellm", "litellm", &["texts"], "encoding_format").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn haystack_gets_the_native_vectors() {
    let cases = ["texts", "short"];
    check("haystack", "haystack", &cases, TOO_SHORT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hugging_face_gets_the_native_vectors() {
    let cases = ["texts", "query", "short"];
    check("huggingface_hub", "huggingface_hub", &cases, TOO_SHORT).await;
}
