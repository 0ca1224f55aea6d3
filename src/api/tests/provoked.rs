//! Every row of the error table, provoked on the routes of every family: status, code, headers, and the words where its clients look.

use std::collections::BTreeSet;
use std::pin::Pin;

use axum::body::Bytes;
use futures_util::stream;

use super::dialects::{assert_spoken, code_of};
use super::*;
use crate::batcher::{BatchPolicy, Batcher};
use crate::engine::{Checkpoint, CheckpointSource, Encoded, EngineError, Fingerprint, Heartbeat};
use crate::media::{MediaLoader, MediaSettings};
use crate::processor::Processor;
use crate::service::{Proof, TokenQuota};

const WIDTH: usize = 256;

/// What the device does with a batch.
#[derive(Clone, Copy, PartialEq)]
enum Device {
    Works,
    Panics,
    Ends,
    Hangs,
}

type Encoding = Pin<Box<dyn Future<Output = Result<Vec<Encoded>, EngineError>> + Send>>;

/// A server to provoke.
struct Stage {
    settings: ApiSettings,
    media: MediaSettings,
    policy: BatchPolicy,
    tokens_per_minute: u32,
    device: Device,
}

impl Stage {
    fn new() -> Self {
        Stage {
            settings: ApiSettings {
                max_inputs: 3,
                max_input_tokens: 64,
                max_body_bytes: 50_000,
                max_media_bytes: 1000,
                body_timeout: Duration::from_millis(20),
                ..ApiSettings::default()
            },
            media: MediaSettings::default(),
            policy: BatchPolicy::default(),
            tokens_per_minute: 0,
            device: Device::Works,
        }
    }

    fn open(self) -> ApiState {
        let checkpoint = Checkpoint::open(&CheckpointSource::Embedded).expect("it is built in");
        let config = checkpoint.model_config().expect("a configuration");
        let processor = Processor::new(&checkpoint.tokenizer_json, (&config).into());
        let loader = MediaLoader::new(&self.media).expect("a client");
        let device = self.device;
        let heart = Heartbeat::new(Duration::ZERO);
        let batcher = Batcher::with_encoder(self.policy, heart, move |batch| -> Encoding {
            let row = Encoded {
                row: vec![1.0; WIDTH],
                cached_tokens: 0,
            };
            let rows = vec![row; batch.sequences()];
            match device {
                Device::Works => Box::pin(std::future::ready(Ok(rows))),
                Device::Panics => Box::pin(std::future::ready(Err(EngineError::Panicked))),
                Device::Hangs => Box::pin(std::future::pending()),
                Device::Ends => {
                    let reason = "on purpose".to_owned();
                    Box::pin(std::future::ready(Err(EngineError::Lost { reason })))
                }
            }
        });
        let quota = TokenQuota::new(self.tokens_per_minute);
        let processor: Processor = processor.expect("a tokenizer");
        let state = ApiState::new(self.settings);
        let info = EngineInfo {
            device: "fake".to_owned(),
            dtype: "f32",
            kernels: "fake".to_owned(),
            threads: 1,
            hidden_size: WIDTH,
            max_position_embeddings: 4096,
            parameters: 0,
            reuses_prefixes: false,
        };
        let fingerprint = Fingerprint::of(&checkpoint);
        let template = processor.template_text();
        let embedder = Embedder::new(loader, self.media, processor, batcher.clone(), quota);
        let served = Served {
            names: vec!["fake".to_owned()],
            embedder: embedder.expect("threads"),
            proof: Proof::new(fingerprint, template, &PixelOptions::default(), &info),
            info,
            checkpoint: "fake".to_owned(),
            revision: None,
            loaded_at: 0,
        };
        state.set_loaded(Loaded {
            batcher,
            embedder: Some(served),
            reranker: None,
        });
        state
    }
}

/// A route, and how its body spells inputs and options.
struct Route {
    path: &'static str,
    inputs: fn(Vec<Value>) -> Value,
    /// Names of the options where this schema has them.
    dimensions: &'static [&'static str],
    no_truncation: Value,
    has_model: bool,
    embeds: bool,
}

/// Contents as parts, one an input; DashScope has its own objects for them.
fn routes() -> Vec<Route> {
    let native = |path, embeds| Route {
        path,
        inputs: |list| json!({ "input": list }),
        dimensions: &["dimensions"],
        no_truncation: json!({}),
        has_model: true,
        embeds,
    };
    vec![
        native("/v1/embeddings", true),
        native("/v1/embeddings/explain", false),
        Route {
            inputs: |list| json!({ "inputs": list }),
            dimensions: &["output_dimension"],
            no_truncation: json!({ "truncate": "NONE" }),
            ..native(cohere::PATH, true)
        },
        Route {
            inputs: |list| json!({ "inputs": list }),
            dimensions: &["output_dimension"],
            no_truncation: json!({ "truncation": false }),
            ..native(voyage::PATH, true)
        },
        Route {
            inputs: |list| {
                let contents = list.iter().map(|item| {
                    let mut content = item["content"][0].clone();
                    if let Some(map) = content.as_object_mut() {
                        map.remove("type");
                    }
                    content
                });
                json!({ "input": { "contents": contents.collect::<Vec<Value>>() } })
            },
            dimensions: &["parameters", "dimension"],
            ..native(dashscope::PATH, true)
        },
        Route {
            inputs: |list| json!({ "inputs": list }),
            has_model: false,
            ..native(tei::PATH, true)
        },
    ]
}

fn text(words: &str) -> Value {
    json!({ "content": [{ "type": "text", "text": words }] })
}

fn image(string: &str) -> Value {
    json!({ "content": [{ "type": "image", "image": string }] })
}

/// Bodies that are wrong by themselves, with the row each meets.
fn wrong_bodies(route: &Route) -> Vec<(ErrorCode, Value)> {
    let one = |item: Value| (route.inputs)(vec![item]);
    let mut strange = text("a");
    strange["content"][0]["strange"] = 1.into();
    let mut long = one(text(&"many words ".repeat(60)));
    for (name, value) in route.no_truncation.as_object().expect("options") {
        long[name] = value.clone();
    }
    let mut narrow = one(text("a"));
    match route.dimensions {
        [outer, inner] => narrow[outer][inner] = 7.into(),
        names => narrow[names[0]] = 7.into(),
    }
    let video = json!({ "content": [{ "type": "video", "video": [] }] });
    let heavy = format!("data:image/png;base64,{}", "A".repeat(4000));
    let mut other = one(text("a"));
    other["model"] = "other".into();
    let mut all = vec![
        (ErrorCode::InvalidValue, json!({})),
        (ErrorCode::UnknownField, one(strange)),
        (ErrorCode::TooManyInputs, (route.inputs)(vec![text("a"); 4])),
        (ErrorCode::ContextLengthExceeded, long),
        (ErrorCode::InvalidDimensions, narrow),
        (
            ErrorCode::InvalidImage,
            one(image("data:image/png;base64,iVBORw0KGgo=")),
        ),
        (ErrorCode::InvalidVideo, one(video)),
        (
            ErrorCode::UnsupportedMedia,
            one(image("data:image/svg+xml,<svg/>")),
        ),
        (
            ErrorCode::MediaUrlBlocked,
            one(image("http://127.0.0.1/a.png")),
        ),
        (ErrorCode::MediaTooLarge, one(image(&heavy))),
    ];
    if route.has_model {
        all.push((ErrorCode::ModelNotFound, other));
    }
    all
}

fn post_of(path: &str, body: impl Into<Body>) -> Request {
    Request::post(path).body(body.into()).expect("a request")
}

async fn post(state: &ApiState, path: &str, body: impl Into<Body>) -> Answer {
    ask(router(state.clone()), post_of(path, body)).await
}

/// Checks one answer against its row, and notes it.
fn meets(route: &Route, answer: &Answer, code: ErrorCode, seen: &mut BTreeSet<&'static str>) {
    let (status, _, name) = code.row();
    let what = format!("{} {name}: {}", route.path, answer.body);
    assert_eq!(
        (answer.status, code_of(&answer.body)),
        (status, name),
        "{what}"
    );
    match route.path {
        cohere::PATH | voyage::PATH | dashscope::PATH | tei::PATH => {
            assert_spoken(route.path, answer, name);
        }
        _ => {
            answer.status_and_code();
        }
    }
    let number = status.as_u16();
    let final_word = matches!(number, 400 | 413 | 415) || answer.header("x-should-retry").is_some();
    assert_eq!(
        answer.header("x-should-retry"),
        final_word.then_some("false"),
        "{what}"
    );
    let come_again = matches!(number, 429 | 503);
    assert_eq!(answer.header("retry-after").is_some(), come_again, "{what}");
    assert_eq!(
        answer.header("retry-after-ms").is_some(),
        come_again,
        "{what}"
    );
    assert!(answer.header("x-request-id").is_some(), "{what}");
    seen.insert(name);
}

/// The rows that need a server in some state, and the server.
fn states() -> Vec<(ErrorCode, Stage)> {
    let of = |change: fn(&mut Stage)| {
        let mut stage = Stage::new();
        change(&mut stage);
        stage
    };
    vec![
        (
            ErrorCode::QueueFull,
            of(|stage| {
                stage.policy.max_queue_tokens = 1;
                stage.device = Device::Hangs;
            }),
        ),
        (
            ErrorCode::RateLimitExceeded,
            of(|stage| stage.tokens_per_minute = 1),
        ),
        (
            ErrorCode::InternalError,
            of(|stage| stage.device = Device::Panics),
        ),
        (
            ErrorCode::DeviceUnavailable,
            of(|stage| stage.device = Device::Ends),
        ),
        (
            ErrorCode::DeadlineExceeded,
            of(|stage| {
                stage.device = Device::Hangs;
                stage.settings.request_timeout = Duration::from_millis(200);
            }),
        ),
        (ErrorCode::Draining, Stage::new()),
    ]
}

/// The rows that a request meets by itself.
async fn provoke_without_state(route: &Route, open: &ApiState, seen: &mut BTreeSet<&'static str>) {
    let good = (route.inputs)(vec![text("a")]).to_string();
    for (code, body) in wrong_bodies(route) {
        let answer = post(open, route.path, body.to_string()).await;
        meets(route, &answer, code, seen);
    }
    let answer = post(open, route.path, "{").await;
    meets(route, &answer, ErrorCode::InvalidJson, seen);
    let answer = post(open, route.path, vec![b' '; 60_000]).await;
    meets(route, &answer, ErrorCode::RequestTooLarge, seen);
    let never = stream::pending::<Result<Bytes, std::io::Error>>();
    let answer = post(open, route.path, Body::from_stream(never)).await;
    meets(route, &answer, ErrorCode::RequestTimeout, seen);
    let mut plain = post_of(route.path, good);
    let kind = "text/plain".parse().expect("a header");
    plain.headers_mut().insert("content-type", kind);
    let answer = ask(router(open.clone()), plain).await;
    meets(route, &answer, ErrorCode::UnsupportedMediaType, seen);
}

/// One request for a device that hangs, and one that waits behind it: an empty queue takes anything.
async fn fill(state: &ApiState) {
    for words in ["first", "second"] {
        let (state, body) = (state.clone(), json!({ "input": words }).to_string());
        tokio::spawn(async move { post(&state, "/v1/embeddings", body).await.status });
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_of_the_table_is_met_on_every_family() {
    // A port nobody listens on.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    drop(listener);
    let mut deaf = Stage::new();
    deaf.media.allow_private_networks = true;
    deaf.media.allowed_ports = vec![port];
    let (open, deaf) = (Stage::new().open(), deaf.open());
    for route in routes() {
        let mut seen = BTreeSet::new();
        let good = (route.inputs)(vec![text("a")]).to_string();
        let answer = post(&open, route.path, good.clone()).await;
        assert_eq!(
            answer.status,
            StatusCode::OK,
            "{}: {}",
            route.path,
            answer.body
        );
        provoke_without_state(&route, &open, &mut seen).await;
        let nobody = (route.inputs)(vec![image(&format!("http://127.0.0.1:{port}/a.png"))]);
        let answer = post(&deaf, route.path, nobody.to_string()).await;
        meets(&route, &answer, ErrorCode::MediaFetchFailed, &mut seen);
        for (code, stage) in states() {
            if !route.embeds {
                break;
            }
            let state = stage.open();
            if code == ErrorCode::Draining {
                let served = state.served().expect("a model");
                served.embedder.batcher().close();
            }
            if code == ErrorCode::QueueFull {
                fill(&state).await;
            }
            let answer = post(&state, route.path, good.clone()).await;
            meets(&route, &answer, code, &mut seen);
        }
        // Keys, methods and a model that loads are met in `dialects`; a path that is none has no family.
        for name in [
            "invalid_api_key",
            "method_not_allowed",
            "model_loading",
            "not_found",
        ] {
            seen.insert(name);
        }
        let missing: Vec<&str> = ErrorCode::ALL
            .iter()
            .map(|code| code.row().2)
            .filter(|name| !seen.contains(name))
            .collect();
        let expected: &[&str] = match (route.has_model, route.embeds) {
            // Nothing to find, for it names no model.
            (false, _) => &["model_not_found"],
            // Nothing is queued or computed.
            (_, false) => &[
                "queue_full",
                "rate_limit_exceeded",
                "draining",
                "device_unavailable",
                "deadline_exceeded",
                "internal_error",
            ],
            _ => &[],
        };
        assert_eq!(missing, expected, "{}", route.path);
    }
}
