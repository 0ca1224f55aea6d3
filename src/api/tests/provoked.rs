//! Every row of the error table, provoked over HTTP on the routes of every family: status, headers, and the words where its clients look.
//!
//! The server is the whole router behind the listener, on a port of its own; only the device is the test's. Where a row has no cell on a
//! route, [`Route::cannot_meet`] says why, and every other cell must have been met.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::pin::Pin;

use super::dialects::{assert_spoken, code_of};
use super::*;
use crate::batcher::{BatchPolicy, Batcher};
use crate::engine::{Checkpoint, CheckpointSource, Encoded, EngineError, Fingerprint, Heartbeat};
use crate::media::{MediaLoader, MediaSettings};
use crate::processor::Processor;
use crate::service::{Background, Proof, Reranker, TokenQuota};

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
    reranker: bool,
}

impl Stage {
    fn new() -> Self {
        Stage {
            settings: ApiSettings {
                max_inputs: 3,
                max_input_tokens: 200,
                max_body_bytes: 50_000,
                max_media_bytes: 1000,
                ..ApiSettings::default()
            },
            media: MediaSettings::default(),
            policy: BatchPolicy::default(),
            tokens_per_minute: 0,
            device: Device::Works,
            reranker: false,
        }
    }

    /// As the route needs it.
    fn of(route: &Route) -> Self {
        Stage {
            reranker: route.scored_by == Some("reranker"),
            ..Stage::new()
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
        let quota = TokenQuota::new(self.tokens_per_minute).map(Arc::new);
        let processor: Processor = processor.expect("a tokenizer");
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
        let template = processor.template_text();
        let fingerprint = Fingerprint::of(&checkpoint);
        let proof = Proof::new(fingerprint, template, &PixelOptions::default(), &info);
        let background = Background::new(1).expect("threads");
        let readers = background.others("reader").expect("threads");
        let stages = Embedder::sharing(
            (loader, self.media),
            processor,
            (batcher.clone(), quota, background),
        );
        let state = ApiState::new(self.settings);
        let served = Served {
            names: vec!["fake".to_owned()],
            embedder: stages.clone(),
            proof: proof.clone(),
            info: info.clone(),
            checkpoint: "fake".to_owned(),
            revision: None,
            loaded_at: 0,
        };
        let reranker = self.reranker.then(|| ServedReranker {
            names: vec!["judge".to_owned()],
            reranker: Reranker::new(stages, false),
            proof,
            info,
            checkpoint: "judge".to_owned(),
            revision: None,
            loaded_at: 0,
        });
        state.set_loaded(Loaded {
            batcher,
            embedder: Some(served),
            reranker,
            readers,
        });
        state
    }
}

/// A listener with a router behind it.
struct Port {
    address: SocketAddr,
    state: ApiState,
    client: reqwest::Client,
}

impl Port {
    async fn open(state: ApiState) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a port");
        let address = listener.local_addr().expect("an address");
        let routes = router(state.clone());
        tokio::spawn(serve(
            listener,
            routes,
            ListenerSettings::default(),
            std::future::pending(),
        ));
        Port {
            address,
            state,
            // What refuses a body early closes the connection: each request has its own.
            client: reqwest::Client::builder()
                .pool_max_idle_per_host(0)
                .build()
                .expect("a client"),
        }
    }

    async fn send(&self, method: Method, path: &str, kind: &str, body: Vec<u8>) -> Answer {
        let request = self
            .client
            .request(method, format!("http://{}{path}", self.address))
            .header("content-type", kind)
            .body(body);
        let response = request.send().await.expect("an answer");
        let (status, headers) = (response.status(), response.headers().clone());
        assert_eq!(headers["content-type"], "application/json", "{path}");
        let bytes = response.bytes().await.expect("a body");
        Answer {
            status,
            headers,
            body: serde_json::from_slice(&bytes).expect("JSON"),
        }
    }

    async fn post(&self, path: &str, body: impl Into<Vec<u8>>) -> Answer {
        let body = body.into();
        self.send(Method::POST, path, "application/json", body)
            .await
    }

    /// A head that promises a body, and nothing more.
    async fn post_nothing(&self, path: &str) -> Answer {
        let body = futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>();
        let request = self
            .client
            .post(format!("http://{}{path}", self.address))
            .body(reqwest::Body::wrap_stream(body));
        let response = request.send().await.expect("an answer");
        let (status, headers) = (response.status(), response.headers().clone());
        let bytes = response.bytes().await.expect("a body");
        Answer {
            status,
            headers,
            body: serde_json::from_slice(&bytes).expect("JSON"),
        }
    }
}

/// A route, and how its body spells inputs and options.
#[derive(Clone)]
struct Route {
    path: &'static str,
    inputs: fn(Vec<Value>) -> Value,
    /// Names of the option where this schema has it.
    dimensions: Option<&'static [&'static str]>,
    no_truncation: Value,
    has_model: bool,
    embeds: bool,
    /// Whether inputs can be more than plain texts.
    has_parts: bool,
    /// Of a route that scores.
    scored_by: Option<&'static str>,
}

impl Route {
    /// Why a row has no cell on this route.
    fn cannot_meet(&self, code: ErrorCode) -> Option<&'static str> {
        match code {
            ErrorCode::InvalidDimensions if self.dimensions.is_none() => {
                Some("the answer holds scores, no vectors")
            }
            ErrorCode::ModelNotFound if !self.has_model => {
                Some("the schema has no field to name a model")
            }
            ErrorCode::UnknownField
            | ErrorCode::InvalidImage
            | ErrorCode::InvalidVideo
            | ErrorCode::UnsupportedMedia
            | ErrorCode::MediaFetchFailed
            | ErrorCode::MediaUrlBlocked
            | ErrorCode::MediaTooLarge
                if !self.has_parts =>
            {
                Some("the schema has texts alone: no media, no objects with fields")
            }
            ErrorCode::QueueFull
            | ErrorCode::RateLimitExceeded
            | ErrorCode::Draining
            | ErrorCode::DeviceUnavailable
            | ErrorCode::DeadlineExceeded
            | ErrorCode::InternalError
                if !self.embeds =>
            {
                Some("nothing is queued or computed, and nothing charged")
            }
            _ => None,
        }
    }
}

/// Contents as parts, one an input; DashScope has its own objects for them.
fn routes() -> Vec<Route> {
    let native = |path, embeds| Route {
        path,
        inputs: |list| json!({ "input": list }),
        dimensions: Some(&["dimensions"]),
        no_truncation: json!({}),
        has_model: true,
        embeds,
        has_parts: true,
        scored_by: None,
    };
    let mut all = vec![
        native("/v1/embeddings", true),
        native("/embeddings", true),
        native("/v1/embeddings/explain", false),
        Route {
            inputs: |list| json!({ "inputs": list }),
            dimensions: Some(&["output_dimension"]),
            no_truncation: json!({ "truncate": "NONE" }),
            ..native(cohere::PATH, true)
        },
        Route {
            inputs: |list| json!({ "inputs": list }),
            dimensions: Some(&["output_dimension"]),
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
            dimensions: Some(&["parameters", "dimension"]),
            ..native(dashscope::PATH, true)
        },
        Route {
            inputs: |list| json!({ "inputs": list }),
            has_model: false,
            ..native(tei::PATH, true)
        },
    ];
    for scored_by in ["reranker", "cosine"] {
        let ranks = |path| Route {
            inputs: |list| json!({ "query": "a", "documents": list }),
            dimensions: None,
            scored_by: Some(scored_by),
            ..native(path, true)
        };
        all.extend(["/v1/rerank", "/rerank", rerank::COHERE_PATH].map(ranks));
        // The schema of text-embeddings-inference.
        all.push(Route {
            inputs: |list| {
                let texts = list.iter().map(|item| item["content"][0]["text"].clone());
                json!({ "query": "a", "texts": texts.collect::<Vec<Value>>() })
            },
            has_parts: false,
            ..ranks("/rerank")
        });
        all.extend(["/v1/score", "/score"].map(|path| Route {
            inputs: |list| json!({ "queries": "a", "documents": list }),
            ..ranks(path)
        }));
    }
    all
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
    let mut long = one(text(&"many words ".repeat(150)));
    for (name, value) in route.no_truncation.as_object().expect("options") {
        long[name] = value.clone();
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
        (ErrorCode::ModelNotFound, other),
    ];
    if let Some(names) = route.dimensions {
        let mut narrow = one(text("a"));
        match names {
            [outer, inner] => narrow[outer][inner] = 7.into(),
            names => narrow[names[0]] = 7.into(),
        }
        all.push((ErrorCode::InvalidDimensions, narrow));
    }
    all.retain(|(code, _)| route.cannot_meet(*code).is_none());
    all
}

/// What the contract says of a row: its status, its type, and of its headers whether a retry is said to be in vain and when to come again.
fn contract(code: ErrorCode) -> (u16, &'static str, bool, bool) {
    const INVALID: &str = "invalid_request_error";
    match code {
        ErrorCode::InvalidJson
        | ErrorCode::InvalidValue
        | ErrorCode::UnknownField
        | ErrorCode::TooManyInputs
        | ErrorCode::ContextLengthExceeded
        | ErrorCode::InvalidDimensions
        | ErrorCode::InvalidImage
        | ErrorCode::InvalidVideo
        | ErrorCode::UnsupportedMedia
        | ErrorCode::MediaFetchFailed
        | ErrorCode::MediaUrlBlocked => (400, INVALID, true, false),
        ErrorCode::InvalidApiKey => (401, INVALID, false, false),
        ErrorCode::ModelNotFound | ErrorCode::NotFound => (404, INVALID, false, false),
        ErrorCode::MethodNotAllowed => (405, INVALID, false, false),
        ErrorCode::RequestTimeout => (408, INVALID, false, false),
        ErrorCode::RequestTooLarge | ErrorCode::MediaTooLarge => (413, INVALID, true, false),
        ErrorCode::UnsupportedMediaType => (415, INVALID, true, false),
        ErrorCode::QueueFull | ErrorCode::RateLimitExceeded => {
            (429, "rate_limit_error", false, true)
        }
        ErrorCode::ModelLoading | ErrorCode::Draining | ErrorCode::DeviceUnavailable => {
            (503, "server_error", false, true)
        }
        ErrorCode::DeadlineExceeded => (504, "server_error", false, false),
        // The device has failed on a lone input here, which it would again.
        ErrorCode::InternalError => (500, "server_error", true, false),
    }
}

/// Checks one answer against its row, and notes it.
fn meets(path: &str, answer: &Answer, code: ErrorCode, seen: &mut BTreeSet<&'static str>) {
    let (_, _, name) = code.row();
    let (status, kind, in_vain, come_again) = contract(code);
    let what = format!("{path} {name}: {}", answer.body);
    let found = (answer.status.as_u16(), code_of(&answer.body));
    assert_eq!(found, (status, name), "{what}");
    match path {
        cohere::PATH | rerank::COHERE_PATH | voyage::PATH | dashscope::PATH | tei::PATH => {
            assert_spoken(path, answer, name);
        }
        _ => {
            answer.status_and_code();
        }
    }
    let nested = &answer.body["error"]["type"];
    let spoken = if nested.is_string() {
        nested
    } else {
        &answer.body["type"]
    };
    assert_eq!(spoken, kind, "{what}");
    let header = |name| answer.header(name);
    assert_eq!(
        header("x-should-retry"),
        in_vain.then_some("false"),
        "{what}"
    );
    let number = |name| header(name).map(|value| value.parse::<u64>().expect("a number"));
    let (seconds, ms) = (number("retry-after"), number("retry-after-ms"));
    assert_eq!(
        (seconds.is_some(), ms.is_some()),
        (come_again, come_again),
        "{what}"
    );
    assert_eq!(seconds, ms.map(|ms| ms.div_ceil(1000)), "{what}");
    let bearer = (status == 401).then_some("Bearer");
    assert_eq!(header("www-authenticate"), bearer, "{what}");
    assert_eq!(header("allow"), (status == 405).then_some("POST"), "{what}");
    assert!(header("x-request-id").is_some(), "{what}");
    assert!(header("openai-processing-ms").is_some(), "{what}");
    seen.insert(name);
}

/// The rows that need a server in some state, and the server.
fn states(route: &Route) -> Vec<(ErrorCode, Stage)> {
    let of = |change: fn(&mut Stage)| {
        let mut stage = Stage::of(route);
        change(&mut stage);
        stage
    };
    let all = vec![
        (
            ErrorCode::QueueFull,
            of(|stage| {
                stage.policy.max_queue_tokens = 1;
                stage.device = Device::Hangs;
            }),
        ),
        (
            ErrorCode::RateLimitExceeded,
            of(|stage| stage.tokens_per_minute = 300),
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
        (ErrorCode::Draining, Stage::of(route)),
        (
            ErrorCode::RequestTimeout,
            of(|stage| stage.settings.body_timeout = Duration::from_millis(20)),
        ),
        (
            ErrorCode::InvalidApiKey,
            of(|stage| stage.settings.keys = ApiKeys::new(["secret"])),
        ),
    ];
    let met = |(code, _): &(ErrorCode, Stage)| route.cannot_meet(*code).is_none();
    all.into_iter().filter(met).collect()
}

/// The rows that a request meets by itself.
async fn provoke_without_state(route: &Route, open: &Port, seen: &mut BTreeSet<&'static str>) {
    let path = route.path;
    let good = (route.inputs)(vec![text("a")]).to_string();
    let answer = open.post(path, good.clone()).await;
    assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.body);
    let by = route.scored_by;
    assert_eq!(answer.header("x-scored-by"), by, "{path}");
    for (code, body) in wrong_bodies(route) {
        let answer = open.post(path, body.to_string()).await;
        meets(path, &answer, code, seen);
    }
    let answer = open.post(path, "{").await;
    meets(path, &answer, ErrorCode::InvalidJson, seen);
    let answer = open.post(path, vec![b' '; 60_000]).await;
    meets(path, &answer, ErrorCode::RequestTooLarge, seen);
    let plain = open.send(Method::POST, path, "text/plain", good.into());
    meets(path, &plain.await, ErrorCode::UnsupportedMediaType, seen);
    let put = open.send(Method::PUT, path, "application/json", Vec::new());
    meets(path, &put.await, ErrorCode::MethodNotAllowed, seen);
    // What is no route has no family: OpenAI's shape.
    let below = format!("{path}/nothing");
    let answer = open.post(&below, "{}").await;
    meets(&below, &answer, ErrorCode::NotFound, seen);
}

/// The rows a server in some state answers with.
async fn provoke_with_state(route: &Route, seen: &mut BTreeSet<&'static str>) {
    let good = (route.inputs)(vec![text("a")]).to_string();
    for (code, stage) in states(route) {
        let port = Port::open(stage.open()).await;
        let answer = match code {
            ErrorCode::RequestTimeout => port.post_nothing(route.path).await,
            ErrorCode::RateLimitExceeded => spend(&port, route.path, &good).await,
            _ => {
                if code == ErrorCode::Draining {
                    let served = port.state.served().expect("a model");
                    served.embedder.batcher().close();
                }
                if code == ErrorCode::QueueFull {
                    fill(&port).await;
                }
                port.post(route.path, good.clone()).await
            }
        };
        meets(route.path, &answer, code, seen);
    }
    let loading = Port::open(ApiState::new(ApiSettings::default())).await;
    let answer = loading.post(route.path, good).await;
    meets(route.path, &answer, ErrorCode::ModelLoading, seen);
}

/// Asks until the key has had its tokens.
async fn spend(port: &Port, path: &str, good: &str) -> Answer {
    for _ in 0..30 {
        let answer = port.post(path, good).await;
        if answer.status != StatusCode::OK {
            return answer;
        }
    }
    panic!("{path} charges nothing");
}

/// One request for a device that hangs, and one that waits behind it: an empty queue takes anything.
async fn fill(port: &Port) {
    for words in ["first", "second"] {
        let body = json!({ "input": words }).to_string();
        let url = format!("http://{}/v1/embeddings", port.address);
        let sent = port.client.post(url).body(body).send();
        tokio::spawn(async move { sent.await.is_ok() });
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_of_the_table_is_met_over_http_on_every_family() {
    // A port nobody listens on.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    drop(listener);
    for route in routes() {
        let mut seen = BTreeSet::new();
        let open = Port::open(Stage::of(&route).open()).await;
        provoke_without_state(&route, &open, &mut seen).await;
        if route.has_parts {
            let mut deaf = Stage::of(&route);
            deaf.media.allow_private_networks = true;
            deaf.media.allowed_ports = vec![port];
            let deaf = Port::open(deaf.open()).await;
            let nobody = (route.inputs)(vec![image(&format!("http://127.0.0.1:{port}/a.png"))]);
            let answer = deaf.post(route.path, nobody.to_string()).await;
            meets(route.path, &answer, ErrorCode::MediaFetchFailed, &mut seen);
        }
        provoke_with_state(&route, &mut seen).await;
        for code in ErrorCode::ALL {
            let (_, _, name) = code.row();
            let met = seen.contains(name);
            let reason = route.cannot_meet(code);
            assert_ne!(met, reason.is_some(), "{} {name}: {reason:?}", route.path);
        }
    }
}

/// The families whose routes are in the table above: each route with a body that the router has.
#[test]
fn no_route_that_takes_a_body_is_left_out() {
    let provoked: BTreeSet<&str> = routes().iter().map(|route| route.path).collect();
    let posts = guarded_routes().into_iter();
    let posts = posts.filter(|(_, method, _)| method == Method::POST);
    let posts: BTreeSet<&str> = posts.map(|(path, _, _)| path).collect();
    assert_eq!(provoked, posts);
}
