//! Scores over HTTP: the reference's, every peer's shape, the cosine without a reranker, and what is refused.

use serde_json::{Value, json};

use crate::server::{Answer, Server, fixture};

const QUERY: &str = "A woman playing with her dog on a beach at sunset.";

/// How far a score in bf16 may be from the reference's in f32.
const BF16_BOUND: f64 = 0.02;

/// The embedded model beside the public fixture's as a reranker, in f32.
fn both(more: &[&str]) -> Server {
    let model = fixture("parity").join("model");
    let media = fixture("parity").join("media");
    let mut arguments = vec![
        "--model",
        "manifold-tiny",
        "--reranker",
        model.to_str().unwrap(),
        "--served-reranker-name",
        "judge",
        "--dtype",
        "f32",
        "--allowed-local-media-path",
        media.to_str().unwrap(),
    ];
    arguments.extend(more);
    Server::start(&arguments, &[])
}

async fn ask(server: &Server, path: &str, body: &Value) -> Answer {
    let json = [("content-type", "application/json")];
    let body = body.to_string().into_bytes();
    server.send(reqwest::Method::POST, path, &json, body).await
}

async fn answer(server: &Server, path: &str, body: Value) -> Value {
    let answer = ask(server, path, &body).await;
    assert_eq!(answer.status, 200, "{path} {body}: {}", answer.json());
    answer.json()
}

/// The scores in the order of the documents.
fn by_index(answer: &Value) -> Vec<f64> {
    let results = answer["results"].as_array().unwrap();
    let mut scores = vec![f64::NAN; results.len()];
    for result in results {
        let index = result["index"].as_u64().unwrap() as usize;
        scores[index] = result["relevance_score"].as_f64().unwrap();
    }
    scores
}

fn url(file: &str) -> String {
    format!(
        "file://{}",
        fixture("parity").join("media").join(file).display()
    )
}

/// A request of the fixture with its media where the server may read them, and the reference's scores.
fn golden(id: &str) -> (Value, Vec<f64>) {
    let read = |file: &str| -> Value {
        let text = std::fs::read(fixture("parity").join(file)).unwrap();
        serde_json::from_slice(&text).unwrap()
    };
    let find = |list: &Value| {
        let mut list = list["rerank"].as_array().unwrap().iter();
        list.find(|entry| entry["id"] == id).unwrap().clone()
    };
    let mut request = find(&read("requests.json"));
    request.as_object_mut().unwrap().remove("id");
    let local = |object: &mut Value| {
        if let Some(image) = object["image"].as_str() {
            object["image"] = url(image).into();
        }
        if let Some(file) = object["video"]["file"].as_str() {
            object["video"] = url(file).into();
        } else if let Some(frames) = object["video"]["frames"].as_array() {
            let frames: Vec<String> = frames.iter().map(|f| url(f.as_str().unwrap())).collect();
            object["video"] = frames.into();
        }
        // Indexing made them.
        object
            .as_object_mut()
            .unwrap()
            .retain(|_, value| !value.is_null());
    };
    local(&mut request["query"]);
    request["documents"]
        .as_array_mut()
        .unwrap()
        .iter_mut()
        .for_each(local);
    let results = find(&read("goldens.json"));
    let results = results["results"].as_array().unwrap().iter();
    let scores = results.map(|result| result["score"].as_f64().unwrap());
    (request, scores.collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scores_of_the_reference_come_over_every_route() {
    let server = both(&[]);
    for id in ["text", "default_instruction", "videos"] {
        let (request, expected) = golden(id);
        for path in ["/v1/rerank", "/rerank", "/v2/rerank"] {
            let answer = answer(&server, path, request.clone()).await;
            assert_eq!(answer["scored_by"], "reranker");
            assert_eq!(answer["model"], "judge");
            for (score, expected) in by_index(&answer).iter().zip(&expected) {
                assert!(
                    (score - expected).abs() <= 1e-5,
                    "{id}: {score}, {expected}"
                );
            }
            let results = answer["results"].as_array().unwrap();
            let scores = results
                .iter()
                .map(|r| r["relevance_score"].as_f64().unwrap());
            assert!(scores.is_sorted_by(|a, b| a >= b), "{answer}");
        }
        let mut score = json!({ "queries": [request["query"]], "documents": request["documents"] });
        score["instruction"] = request["instruction"].clone();
        for path in ["/v1/score", "/score"] {
            let answer = answer(&server, path, score.clone()).await;
            let data = answer["data"].as_array().unwrap();
            assert_eq!(data.len(), expected.len());
            for (i, (entry, expected)) in data.iter().zip(&expected).enumerate() {
                assert_eq!(
                    (entry["index"].as_u64(), entry["object"].as_str()),
                    (Some(i as u64), Some("score"))
                );
                let score = entry["score"].as_f64().unwrap();
                assert!(
                    (score - expected).abs() <= 1e-5,
                    "{id} {i}: {score}, {expected}"
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_peer_finds_its_fields() {
    let server = both(&[]);
    let documents = json!(["Beijing", { "text": "a dog" }, { "image": url("tiny_20x20.png") }]);
    let body = json!({ "model": "judge", "query": QUERY, "documents": documents, "top_n": 2 });
    let v1 = answer(&server, "/v1/rerank", body.clone()).await;
    assert!(v1["id"].as_str().unwrap().starts_with("rerank-"));
    assert_eq!(v1["results"].as_array().unwrap().len(), 2);
    assert!(v1["usage"]["total_tokens"].as_u64() > Some(300));
    assert_eq!(v1["usage"]["total_tokens"], v1["usage"]["prompt_tokens"]);
    assert_eq!(v1["meta"]["api_version"]["version"], "2");
    for result in v1["results"].as_array().unwrap() {
        let shown = match result["index"].as_u64().unwrap() {
            0 => json!({ "text": "Beijing" }),
            1 => json!({ "text": "a dog" }),
            _ => Value::Null,
        };
        assert_eq!(result["document"], shown, "{v1}");
    }
    let v2 = answer(&server, "/v2/rerank", body.clone()).await;
    assert!(
        v2["results"]
            .as_array()
            .unwrap()
            .iter()
            .all(|r| r.get("document").is_none())
    );
    let mut shown = body.clone();
    shown["return_documents"] = true.into();
    shown.as_object_mut().unwrap().remove("top_n");
    let shown = answer(&server, "/v2/rerank", shown).await;
    let picture = shown["results"]
        .as_array()
        .unwrap()
        .iter()
        .find(|r| r["index"] == 2);
    assert_eq!(picture.unwrap()["document"], documents[2]);

    let tei = json!({ "query": QUERY, "texts": ["Beijing", "a dog"], "return_text": true });
    let plain = answer(&server, "/rerank", tei.clone()).await;
    let first = &plain[0];
    assert!(first["score"].as_f64() >= plain[1]["score"].as_f64());
    let texts = ["Beijing", "a dog"];
    assert_eq!(
        first["text"],
        texts[first["index"].as_u64().unwrap() as usize]
    );
    let mut raw = tei;
    raw["raw_scores"] = true.into();
    let raw = answer(&server, "/rerank", raw).await;
    let logit = raw[0]["score"].as_f64().unwrap();
    let score = 1.0 / (1.0 + (-logit).exp());
    assert!((score - first["score"].as_f64().unwrap()).abs() < 1e-6);
}

#[tokio::test(flavor = "multi_thread")]
async fn scores_pair_one_with_all_or_each_with_its_own() {
    let server = both(&[]);
    let score = async |body: Value| {
        let answer = answer(&server, "/v1/score", body).await;
        assert!(answer["id"].as_str().unwrap().starts_with("score-"));
        assert_eq!(answer["object"], "list");
        let data = answer["data"].as_array().unwrap();
        data.iter()
            .map(|entry| entry["score"].as_f64().unwrap())
            .collect::<Vec<_>>()
    };
    let all = score(json!({ "text_1": "x", "text_2": ["a", "b"] })).await;
    let a = score(json!({ "queries": "x", "documents": "a" })).await;
    let b = score(json!({ "data_1": ["x"], "data_2": ["b"] })).await;
    assert_eq!(all, [a[0], b[0]]);
    let other = score(json!({ "text_1": "y", "text_2": "b" })).await;
    assert_ne!(other, b);
    let each = score(json!({ "queries": ["x", "y"], "items": ["a", "b"] })).await;
    assert_eq!(each, [a[0], other[0]]);
    let turned = score(json!({ "queries": ["y", "x", "y"], "documents": ["b", "b", "b"] })).await;
    assert_eq!(turned, [other[0], b[0], other[0]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_is_computed_once_whatever_is_in_it() {
    let server = both(&[]);
    let whole = both(&["--engine-max-prefix-bytes", "0"]);
    let documents = ["a dog", "Beijing", "a cat", "four", "five"];
    for query in [
        json!(QUERY),
        json!({ "image": url("half_80x48.png"), "text": "like this" }),
    ] {
        let body = json!({ "query": query, "documents": documents });
        let shared = answer(&server, "/v1/rerank", body.clone()).await;
        let alone = answer(&whole, "/v1/rerank", body).await;
        assert_eq!(by_index(&shared), by_index(&alone), "other bits");
        let cached = |answer: &Value| {
            let details = &answer["usage"]["prompt_tokens_details"];
            details["cached_tokens"].as_u64().unwrap()
        };
        let total = shared["usage"]["total_tokens"].as_u64().unwrap();
        assert_eq!(cached(&alone), 0);
        // Four of five documents begin with what the first has computed, some 90 tokens of 100.
        assert!(cached(&shared) > total * 6 / 10, "{shared}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_reranker_the_cosine_of_embeddings_is_the_score_and_the_answer_says_so() {
    let server = Server::of("parity");
    let documents = ["A dog by the sea.", "The capital of China is Beijing."];
    let asked = json!({ "query": QUERY, "documents": documents });
    let reply = ask(&server, "/v1/rerank", &asked).await;
    assert_eq!(reply.header("x-scored-by"), "cosine");
    let reply = reply.json();
    assert_eq!(reply["scored_by"], "cosine");
    assert_eq!(reply["model"], "model");
    // The query as a query, the documents as documents.
    let query = json!({ "input": QUERY, "input_type": "query" });
    let query = server.vectors(&query).await.remove(0);
    let found = server.vectors(&json!({ "input": documents })).await;
    for (vector, score) in found.iter().zip(by_index(&reply)) {
        let products = vector.iter().zip(&query).map(|(a, b)| f64::from(a * b));
        assert!((products.sum::<f64>() - score).abs() < 1e-5);
    }
    // Where both are loaded, the name says which is meant; the reranker without one.
    let server = both(&[]);
    for (model, by) in [
        (Some("manifold-tiny"), "cosine"),
        (Some("judge"), "reranker"),
        (None, "reranker"),
    ] {
        let mut body = asked.clone();
        body["model"] = json!(model);
        let reply = ask(&server, "/v1/rerank", &body).await;
        assert_eq!(reply.header("x-scored-by"), by);
        assert_eq!(reply.json()["scored_by"], by);
    }
}

/// Tokens of an answer.
fn tokens(answer: &Value) -> u64 {
    answer["usage"]["total_tokens"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_documents_counts_their_own_tokens_and_keeps_their_beginning() {
    let server = both(&[]);
    let words = "the first words of a document that goes on and on";
    let other = "the first words of a document about something else";
    for model in ["judge", "manifold-tiny"] {
        // The template around a document has more tokens than this, and it does not count. What may be cut at the start is the prompt.
        for more in [json!({}), json!({ "truncate": "START" })] {
            let ask = async |documents: Value, most: Value| {
                let mut body = json!({ "model": model, "query": QUERY, "documents": documents });
                body["max_tokens_per_doc"] = most;
                body.as_object_mut()
                    .unwrap()
                    .extend(more.as_object().unwrap().clone());
                answer(&server, "/v1/rerank", body).await
            };
            let short = ask(json!([words]), json!(2)).await;
            let longer = ask(json!([words]), json!(5)).await;
            assert_eq!(tokens(&longer) - tokens(&short), 3, "{model}");
            assert_eq!(longer["results"][0]["truncated"], true, "{model}");
            let whole = ask(json!([words]), Value::Null).await;
            assert!(whole["results"][0].get("truncated").is_none(), "{whole}");
            assert_ne!(by_index(&whole), by_index(&longer), "{model}");
            let same = ask(json!([words, other]), json!(5)).await;
            let scores = by_index(&same);
            assert_eq!(scores[0], scores[1], "{model}");
            // Many parts, each longer than the limit, and together than the context.
            let part = json!({ "type": "text", "text": format!("{words} ").repeat(1000) });
            let many = json!([{ "content": vec![part; 5] }]);
            let many = ask(many, json!(5)).await;
            assert_eq!(tokens(&many), tokens(&longer), "{model}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_cut_and_who_asked_is_told_in_every_shape() {
    let server = both(&[]);
    for model in ["judge", "manifold-tiny"] {
        let own =
            json!({ "user": "u1", "request_id": "mine", "max_tokens_per_doc": 3, "model": model });
        let ask = async |path: &str, body: Value| {
            let mut body = body;
            body.as_object_mut()
                .unwrap()
                .extend(own.as_object().unwrap().clone());
            let reply = ask(&server, path, &body).await;
            assert_eq!(reply.status, 200, "{path}: {}", reply.json());
            assert_eq!(reply.header("x-ignored-fields"), "", "{path}");
            reply.json()
        };
        let documents = json!(["a", "a text of many more words than three"]);
        let rerank = json!({ "query": "x", "documents": documents });
        for path in ["/v1/rerank", "/rerank", "/v2/rerank"] {
            let reply = ask(path, rerank.clone()).await;
            assert_eq!(
                (&reply["id"], &reply["user"]),
                (&json!("rerank-mine"), &json!("u1"))
            );
            for result in reply["results"].as_array().unwrap() {
                let cut = result["index"] == 1;
                assert_eq!(result.get("truncated").is_some(), cut, "{path}: {reply}");
            }
        }
        let texts = json!({ "query": "x", "texts": documents });
        for rank in ask("/rerank", texts).await.as_array().unwrap() {
            assert_eq!(
                rank.get("truncated").is_some(),
                rank["index"] == 1,
                "{rank}"
            );
        }
        let pairs = json!({ "queries": "x", "documents": documents });
        let reply = ask("/v1/score", pairs).await;
        assert_eq!(
            (&reply["id"], &reply["user"]),
            (&json!("score-mine"), &json!("u1"))
        );
        assert!(reply["data"][0].get("truncated").is_none(), "{reply}");
        assert_eq!(reply["data"][1]["truncated"], true, "{reply}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_video_is_a_document_like_others() {
    let server = both(&[]);
    let clip = url("clip_160x120.mp4");
    let frames = json!([url("half_80x48.png"), url("half_80x48.png")]);
    for model in ["judge", "manifold-tiny"] {
        let documents = json!([
            "Beijing",
            { "video": clip },
            { "content": [{ "type": "video_url", "video_url": { "url": clip } }] },
            { "video": frames },
            { "video": clip, "text": "a dog", "max_frames": 2 },
        ]);
        let mut body = json!({ "model": model, "query": QUERY, "documents": documents });
        body["max_frames"] = 4.into();
        let reply = answer(&server, "/v1/rerank", body).await;
        let scores = by_index(&reply);
        assert_eq!(scores[1], scores[2], "{model}: spellings of one video");
        for (a, b) in [(0, 1), (1, 3), (1, 4), (3, 4)] {
            assert_ne!(scores[a], scores[b], "{model}: {a}, {b}");
        }
        let details = &reply["usage"]["prompt_tokens_details"];
        assert!(details["video_tokens"].as_u64() > Some(50), "{reply}");
        // Some by themselves as in company, over the other route.
        let some = json!([documents[1], documents[3]]);
        let mut pairs = json!({ "model": model, "queries": QUERY, "documents": some });
        pairs["max_frames"] = 4.into();
        let pairs = answer(&server, "/v1/score", pairs).await;
        let scored = pairs["data"].as_array().unwrap().iter();
        let scored: Vec<f64> = scored.map(|one| one["score"].as_f64().unwrap()).collect();
        assert_eq!(scored, [scores[1], scores[3]], "{model}");
    }
    // A query may be one too.
    let query = json!({ "video": clip, "max_frames": 4 });
    let body = json!({ "query": query, "documents": ["Beijing", "a dog"] });
    let reply = answer(&server, "/v1/rerank", body).await;
    assert_eq!(by_index(&reply).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn scores_in_bf16_are_close_to_the_reference() {
    let model = fixture("parity").join("model");
    let media = fixture("parity").join("media");
    let server = Server::start(
        &[
            "--reranker",
            model.to_str().unwrap(),
            "--dtype",
            "bf16",
            "--allowed-local-media-path",
            media.to_str().unwrap(),
        ],
        &[],
    );
    let mut worst: f64 = 0.0;
    for id in ["text", "default_instruction", "videos"] {
        let (request, expected) = golden(id);
        let answer = answer(&server, "/v1/rerank", request).await;
        for (score, expected) in by_index(&answer).iter().zip(&expected) {
            worst = worst.max((score - expected).abs());
        }
    }
    println!("bf16: the largest difference of a score is {worst:e}");
    // More than f32 rounds, or it was not bf16; less than two documents a person would tell apart differ by.
    assert!(worst > 1e-5 && worst < BF16_BOUND, "{worst}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reranker_alone_embeds_nothing() {
    let model = fixture("parity-untied").join("model");
    let server = Server::start(&["--reranker", model.to_str().unwrap()], &[]);
    let embedding = server.post(&json!({ "input": "x" })).await;
    assert_eq!(embedding.status, 404);
    assert_eq!(embedding.json()["error"]["code"], "model_not_found");
    assert_eq!(server.get("/health/ready").await.status, 200);
    let models = server.get("/v1/models").await.json();
    assert_eq!(models["data"].as_array().unwrap().len(), 1);
    assert_eq!(models["data"][0]["task"], "rerank");
    let reply = answer(
        &server,
        "/v1/rerank",
        json!({ "query": "x", "documents": ["a", "b"] }),
    )
    .await;
    assert!(
        by_index(&reply)
            .iter()
            .all(|score| (0.0..=1.0).contains(score))
    );
    let info = server.get("/info").await.json();
    assert!(info["model_type"]["reranker"].is_object());
}

#[tokio::test(flavor = "multi_thread")]
async fn models_and_info_tell_what_runs() {
    let server = both(&[]);
    let models = server.get("/v1/models").await.json();
    let tasks = models["data"].as_array().unwrap().iter();
    let tasks: Vec<_> = tasks
        .map(|m| (m["id"].clone(), m["task"].clone()))
        .collect();
    assert_eq!(
        tasks,
        [
            ("manifold-tiny".into(), "embed".into()),
            ("judge".into(), "rerank".into())
        ]
    );
    assert_eq!(
        server.get("/v1/models/judge").await.json()["task"],
        "rerank"
    );
    let info = server.get("/info").await.json();
    for field in [
        "model_id",
        "model_sha",
        "model_dtype",
        "served_model_name",
        "model_type",
        "max_concurrent_requests",
        "max_input_length",
        "max_batch_tokens",
        "max_batch_requests",
        "max_client_batch_size",
        "auto_truncate",
        "tokenization_workers",
        "version",
        "sha",
        "docker_label",
    ] {
        assert!(info.get(field).is_some(), "{field} is not in {info}");
    }
    assert_eq!(info["model_id"], "manifold-tiny");
    assert_eq!(info["model_dtype"], "f32");
    let [embedder, reranker] = &info["models"].as_array().unwrap()[..] else {
        panic!("{info}")
    };
    let print = |model: &Value, name: &str| model["fingerprint"][name].as_str().unwrap().to_owned();
    assert_ne!(
        print(embedder, "weights_sample_sha256"),
        print(reranker, "weights_sample_sha256")
    );
    assert_ne!(print(embedder, "id"), print(reranker, "id"));
    assert!(print(reranker, "template").contains("<Document>:{document}"));
    assert!(print(embedder, "numeric_mode").starts_with("f32 on cpu"));
    assert_eq!(
        reranker["fingerprint"]["preprocessing"]["max_pixels"],
        "1843200"
    );
}

/// What is asked, and the status, code and path of the refusal.
type Case = (
    &'static str,
    Value,
    (u16, &'static str, Option<&'static str>),
);

fn refusals() -> Vec<Case> {
    let of = |documents: Value| json!({ "query": "x", "documents": documents });
    let long = "many words make a long text ".repeat(9_000);
    vec![
        (
            "no query",
            json!({ "documents": ["a"] }),
            (400, "invalid_value", Some("query")),
        ),
        (
            "no documents",
            json!({ "query": "x" }),
            (400, "invalid_value", Some("documents")),
        ),
        (
            "no document",
            of(json!([])),
            (400, "invalid_value", Some("documents")),
        ),
        (
            "2049 documents",
            of(json!(vec!["a"; 2049])),
            (400, "too_many_inputs", Some("documents")),
        ),
        (
            "another field",
            of(json!([{ "title": "a" }])),
            (400, "unknown_field", Some("documents[0].title")),
        ),
        (
            "another model",
            json!({ "query": "x", "documents": ["a"], "model": "gpt-4" }),
            (404, "model_not_found", Some("model")),
        ),
        (
            "a long document",
            of(json!(["a", long])),
            (400, "context_length_exceeded", Some("documents[1]")),
        ),
        (
            "a long query",
            json!({ "query": long, "documents": ["a"] }),
            (400, "context_length_exceeded", Some("query")),
        ),
        (
            "no picture",
            of(json!([{ "image": "data:image/png;base64,aGVsbG8=" }])),
            (400, "unsupported_media", Some("documents[0].image")),
        ),
        (
            "a local address",
            of(json!([{ "image": "http://127.0.0.1/a.png" }])),
            (400, "media_url_blocked", Some("documents[0].image")),
        ),
        (
            "an audio",
            of(json!([{ "type": "input_audio", "input_audio": {} }])),
            (400, "unsupported_media", Some("documents[0].type")),
        ),
        (
            "top_n",
            json!({ "query": "x", "documents": ["a"], "top_n": -1 }),
            (400, "invalid_value", Some("top_n")),
        ),
        (
            "no video",
            of(json!([{ "video": [] }])),
            (400, "invalid_video", Some("documents[0].video")),
        ),
    ]
}

/// The same words for the other routes' fields.
fn as_score(body: &Value) -> Value {
    let text = body.to_string();
    serde_json::from_str(&text.replace("\"query\":", "\"queries\":")).unwrap()
}

fn assert_error(answer: &Answer, (status, code, param): (u16, &str, Option<&str>), what: &str) {
    let body = answer.json();
    let error = &body["error"];
    let found = (
        answer.status,
        error["code"].as_str(),
        error["param"].as_str(),
    );
    assert_eq!(found, (status, Some(code), param), "{what}: {body}");
    assert!(error["type"].is_string() && error["message"].is_string());
    assert!(!answer.header("x-request-id").is_empty(), "{what}");
    if status == 400 || status == 413 || status == 415 {
        assert_eq!(answer.header("x-should-retry"), "false", "{what}");
    }
    if status == 429 || status == 503 {
        assert!(!answer.header("retry-after").is_empty(), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_wrong_request_is_refused_with_its_path_on_both_families() {
    let server = both(&["--limits-max-input-tokens", "2048"]);
    for (what, body, expected) in refusals() {
        for path in ["/v1/rerank", "/rerank", "/v2/rerank"] {
            assert_error(&ask(&server, path, &body).await, expected, what);
        }
        let own = ["top_n"];
        if own.contains(&what) {
            continue;
        }
        let param = expected.2.map(|param| match param {
            "query" => "queries",
            other => other,
        });
        let expected = (expected.0, expected.1, param);
        assert_error(
            &ask(&server, "/v1/score", &as_score(&body)).await,
            expected,
            what,
        );
    }
    let uneven = json!({ "text_1": ["a", "b"], "text_2": ["a", "b", "c"] });
    let expected = (400, "invalid_value", Some("text_1"));
    assert_error(
        &ask(&server, "/v1/score", &uneven).await,
        expected,
        "uneven",
    );
    // Nothing of that harmed the server.
    answer(
        &server,
        "/v1/rerank",
        json!({ "query": "x", "documents": ["a"] }),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_times_its_documents_is_bounded_before_it_takes_memory() {
    let server = both(&[]);
    let query = "word ".repeat(6000);
    let body = json!({ "query": query, "documents": vec!["a"; 2048] });
    let refused = ask(&server, "/v1/rerank", &body).await;
    assert_error(
        &refused,
        (400, "too_many_inputs", Some("documents")),
        "many pairs",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_every_route_refuses_these_refuse_too() {
    let server = both(&[
        "--max-body-bytes",
        "10000",
        "--limits-tokens-per-minute",
        "1000",
    ]);
    let json_type = [("content-type", "application/json")];
    let fine = json!({ "query": "x", "documents": ["a"], "queries": "x" });
    for path in ["/v1/rerank", "/rerank", "/v2/rerank", "/v1/score", "/score"] {
        let post = async |headers: &[(&str, &str)], body: &[u8]| {
            server
                .send(reqwest::Method::POST, path, headers, body.to_vec())
                .await
        };
        assert_error(
            &post(&json_type, b"{\"query\": ").await,
            (400, "invalid_json", None),
            path,
        );
        assert_error(
            &post(&json_type, b"[1]").await,
            (400, "invalid_json", None),
            path,
        );
        assert_error(
            &post(&json_type, &[b'x'; 20_000]).await,
            (413, "request_too_large", None),
            path,
        );
        assert_error(
            &post(&[("content-type", "text/plain")], b"{}").await,
            (415, "unsupported_media_type", None),
            path,
        );
        assert_error(
            &server.get(path).await,
            (405, "method_not_allowed", None),
            path,
        );
        let hurried = [json_type[0], ("x-request-timeout-ms", "0")];
        let timeout = Some("x-request-timeout-ms");
        assert_error(
            &post(&hurried, b"{}").await,
            (400, "invalid_value", timeout),
            path,
        );
        let mut many = fine.clone();
        many["documents"] = json!(vec!["a"; 20]);
        assert_error(
            &ask(&server, path, &many).await,
            (429, "rate_limit_exceeded", None),
            path,
        );
    }
    let guarded = {
        let model = fixture("parity").join("model");
        let arguments = ["--reranker", model.to_str().unwrap()];
        Server::start(&arguments, &[("MANIFOLD_API_KEY", "secret")])
    };
    for path in ["/v1/rerank", "/rerank", "/v2/rerank", "/v1/score", "/score"] {
        let refused = ask(&guarded, path, &fine).await;
        assert_error(&refused, (401, "invalid_api_key", None), path);
        assert_eq!(refused.header("www-authenticate"), "Bearer");
    }
    assert_eq!(guarded.get("/info").await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_time_is_told_so() {
    let server = both(&[]);
    let documents: Vec<String> = (0..600)
        .map(|i| format!("{i} {}", "word ".repeat(200)))
        .collect();
    let body = json!({ "query": "x", "documents": documents })
        .to_string()
        .into_bytes();
    let headers = [
        ("content-type", "application/json"),
        ("x-request-timeout-ms", "60"),
    ];
    let late = server
        .send(reqwest::Method::POST, "/v1/rerank", &headers, body)
        .await;
    assert_error(&late, (504, "deadline_exceeded", None), "late");
}

/// What a run of `verify` prints.
fn verify(arguments: &[&str]) -> (bool, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_manifold"))
        .arg("verify")
        .args(arguments)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    (output.status.success(), text.concat())
}

#[test]
fn verify_checks_both_models_and_prints_what_decides_their_bits() {
    let model = fixture("parity").join("model");
    let arguments = [
        "--model",
        "manifold-tiny",
        "--reranker",
        model.to_str().unwrap(),
    ];
    let named = [
        &arguments[..],
        &["--served-reranker-name", "judge", "--dtype", "f32"],
    ]
    .concat();
    let (ok, text) = verify(&named);
    assert!(ok, "{text}");
    for part in [
        "rerank_text 4",
        "each logit alone",
        "each embedding alone",
        "fingerprint",
        "(every byte)",
        "f32 on cpu",
        "limits: 2048 inputs",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    assert!(!text.contains("FAIL"), "{text}");
}

#[test]
fn published_values_are_checked_against_whatever_a_file_says() {
    let model = fixture("parity").join("model");
    let cases = std::fs::read_to_string(fixture("verify").join("cases.json")).unwrap();
    let mut cases: Value = serde_json::from_str(&cases).unwrap();
    let set = &mut cases["sets"][0];
    set["cases"].as_array_mut().unwrap().truncate(2);
    let picture = set["cases"][0]["parts"].clone();
    let of = json!([{ "parts": picture }, { "parts": picture }]);
    set["similarities"] = json!([{ "case": "itself", "of": of, "cosine": 1.0 }]);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("values.json");
    let flag = format!("--published={}", path.display());
    let run = |cases: &Value| {
        std::fs::write(&path, cases.to_string()).unwrap();
        let model = model.to_str().unwrap();
        verify(&[
            "--model",
            model,
            "--reranker",
            model,
            "--served-reranker-name",
            "r",
            "--dtype",
            "f32",
            &flag,
        ])
    };
    let (ok, text) = run(&cases);
    assert!(
        ok && text.contains("itself") && text.contains("rerank_text 0"),
        "{text}"
    );
    // A published value that is not ours is a failure, whichever kind it is.
    let changes: [fn(&mut Value); 3] = [
        |set| set["rerank"][0]["scores"][1] = json!(0.9),
        |set| set["similarities"][0]["cosine"] = json!(0.5),
        |set| set["cases"][0]["expected"][0] = json!(-5.0),
    ];
    for change in changes {
        let mut changed = cases.clone();
        change(&mut changed["sets"][0]);
        let (ok, text) = run(&changed);
        assert!(!ok && text.contains("FAIL"), "{text}");
    }
    // The real ones are of another shape, which is said and not passed over.
    let (ok, text) = verify(&["--model", model.to_str().unwrap(), "--published"]);
    assert!(!ok && text.contains("no reference case applies"), "{text}");
}
