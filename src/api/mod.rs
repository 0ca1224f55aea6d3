//! The only room that knows HTTP: routes, the grammar of requests, the shape of answers, the error table.
//!
//! In: HTTP requests. Out: [`crate::service::EmbedRequest`]s to the service, its answers as JSON.
//!
//! # Source
//! The OpenAI embeddings API; vLLM, Jina, Cohere and Voyage for the spellings of content it does not have.

mod auth;
mod body;
mod cohere;
mod dashscope;
mod dialect;
mod embeddings;
pub mod error;
mod family;
mod fields;
mod form;
mod grammar;
mod health;
mod info;
mod instruction;
mod intake;
mod listener;
mod loaded;
mod models;
mod openapi;
mod options;
mod part;
mod playground;
mod record;
mod rerank;
mod response;
mod scores;
mod scoring;
mod scrape;
mod tei;
mod tls;
mod voyage;

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

pub use auth::ApiKeys;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Method, Uri};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{MethodRouter, get, post};
use embeddings::OpenAi;
pub use error::{ApiError, ErrorCode};
pub use listener::{ListenerSettings, serve};
pub use loaded::{Loaded, ServedReranker};
pub use tls::{Tls, TlsError, TlsFiles, own_client};
use tokio::sync::Semaphore;

use crate::engine::EngineInfo;
use crate::processor::PixelOptions;
use crate::service::{Embedder, Proof};
use crate::telemetry::{self, metrics::ModelLabels};
use body::BodyMemory;
use listener::Crowded;

/// What the wire allows.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiSettings {
    /// Keys of those who may ask.
    pub keys: ApiKeys,
    /// Largest request body in bytes.
    pub max_body_bytes: usize,
    /// Most bytes of request bodies held at a time.
    pub max_held_bytes: usize,
    /// Most inputs of one request.
    pub max_inputs: usize,
    /// Most tokens of one input.
    pub max_input_tokens: usize,
    /// Largest encoded image or video in bytes.
    pub max_media_bytes: usize,
    /// Most frames of one video.
    pub max_frames: usize,
    /// Instructions by the names of `input_type`.
    pub instructions: BTreeMap<String, String>,
    /// What media parts that do not say otherwise are resized to.
    pub pixels: PixelOptions,
    /// Longest time a request may take.
    pub request_timeout: Duration,
    /// Longest time 64 KiB of a body may take.
    pub body_timeout: Duration,
    /// Most connections at a time, for those who ask.
    pub max_connections: usize,
}

impl Default for ApiSettings {
    fn default() -> Self {
        // Source: the query instruction of all official examples; documents have the default one.
        let query = "Retrieve images or text relevant to the user's query.";
        let named = [
            ("query", query),
            ("search_query", query),
            ("document", ""),
            ("search_document", ""),
            ("passage", ""),
        ];
        ApiSettings {
            keys: ApiKeys::default(),
            max_body_bytes: 64 << 20,
            max_held_bytes: 1 << 30,
            max_inputs: 2048,
            max_input_tokens: 32_768,
            max_media_bytes: 32 << 20,
            max_frames: 768,
            instructions: named
                .map(|(name, text)| (name.to_owned(), text.to_owned()))
                .into(),
            pixels: PixelOptions::default(),
            request_timeout: Duration::from_secs(300),
            body_timeout: Duration::from_secs(20),
            max_connections: 4096,
        }
    }
}

/// A model that is loaded and ready.
#[derive(Debug)]
pub struct Served {
    /// Names it answers to; the first is the one in answers to requests that name none. At least one.
    pub names: Vec<String>,
    /// All stages.
    pub embedder: Embedder,
    /// What runs where.
    pub info: EngineInfo,
    /// The checkpoint's own name.
    pub checkpoint: String,
    /// The commit it was pinned to, where there is one.
    pub revision: Option<String>,
    /// When it was loaded, seconds since 1970.
    pub loaded_at: u64,
    /// What decides the bits of its vectors.
    pub proof: Proof,
}

impl Served {
    /// Whether a request names this model; not naming any is fine.
    fn check_name(&self, model: Option<&str>) -> Result<(), ApiError> {
        match model {
            Some(model) if !self.names.iter().any(|name| name == model) => {
                let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
                Err(loaded::not_served(model, &names))
            }
            _ => Ok(()),
        }
    }
}

/// What all handlers share. Health answers from it while the model is still loading.
#[derive(Debug, Clone)]
pub struct ApiState(Arc<Shared>);

/// What an [`ApiState`] shares, in one piece: every layer a request passes has a state of its own.
#[derive(Debug)]
pub struct Shared {
    settings: Arc<ApiSettings>,
    /// Those of the settings, until others are read.
    keys: RwLock<ApiKeys>,
    loaded: OnceLock<Loaded>,
    draining: AtomicBool,
    /// Permits for writing JSON of megabytes: one for each core.
    workers: Arc<Semaphore>,
    /// What the bodies of all requests hold.
    bodies: BodyMemory,
}

impl Deref for ApiState {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl ApiState {
    /// A state without a model.
    pub fn new(settings: ApiSettings) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        ApiState(Arc::new(Shared {
            keys: RwLock::new(settings.keys.clone()),
            bodies: BodyMemory::new(settings.max_held_bytes),
            settings: Arc::new(settings),
            loaded: OnceLock::new(),
            draining: AtomicBool::new(false),
            workers: Arc::new(Semaphore::new(cores)),
        }))
    }

    /// The models are here: from now on requests are served.
    pub fn set_loaded(&self, loaded: Loaded) {
        let embedder = loaded.embedder.as_ref();
        let embedder = embedder.map(|served| (&served.names, &served.revision, &served.info));
        let reranker = loaded.reranker.as_ref();
        let reranker = reranker.map(|served| (&served.names, &served.revision, &served.info));
        for (names, revision, info) in embedder.into_iter().chain(reranker) {
            telemetry::metrics().model(&ModelLabels {
                model: names.first().cloned().unwrap_or_default(),
                revision: revision.clone().unwrap_or_default(),
                dtype: info.dtype.to_owned(),
                device: info.device.clone(),
            });
        }
        // A second time would be a mistake in the wiring; the first stays.
        let _ = self.loaded.set(loaded);
    }

    /// From now on these keys open the door, and no others.
    pub fn set_keys(&self, keys: ApiKeys) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    /// Readiness goes off; requests are still served.
    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// How many preparations may run at a time.
    fn workers_count(&self) -> usize {
        std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// The embedder.
    fn served(&self) -> Result<&Served, ApiError> {
        self.loaded()?.embedder()
    }

    fn loaded(&self) -> Result<&Loaded, ApiError> {
        self.loaded.get().ok_or_else(still_loading)
    }
}

/// Every route that needs a key where there are keys: its path, its method, who answers. `openapi` describes each of them.
fn guarded_routes() -> Vec<(&'static str, Method, MethodRouter<ApiState>)> {
    let (get_, post_) = (Method::GET, Method::POST);
    let embeddings = || post(family::create::<OpenAi>);
    vec![
        ("/v1/embeddings", post_.clone(), embeddings()),
        ("/embeddings", post_.clone(), embeddings()),
        (
            "/v1/embeddings/explain",
            post_.clone(),
            post(embeddings::explain),
        ),
        (
            cohere::PATH,
            post_.clone(),
            post(family::create::<cohere::Cohere>),
        ),
        (
            voyage::PATH,
            post_.clone(),
            post(family::create::<voyage::Voyage>),
        ),
        (
            dashscope::PATH,
            post_.clone(),
            post(family::create::<dashscope::DashScope>),
        ),
        (tei::PATH, post_.clone(), post(family::create::<tei::Tei>)),
        ("/v1/rerank", post_.clone(), post(rerank::create)),
        ("/rerank", post_.clone(), post(rerank::create)),
        (rerank::COHERE_PATH, post_.clone(), post(rerank::create_v2)),
        ("/v1/score", post_.clone(), post(scores::create)),
        ("/score", post_, post(scores::create)),
        ("/info", get_.clone(), get(info::info)),
        ("/v1/models", get_.clone(), get(models::list)),
        ("/v1/models/{*id}", get_.clone(), get(models::one)),
        ("/metrics", get_.clone(), get(scrape::metrics)),
        ("/openapi.json", get_.clone(), get(openapi::document)),
        ("/docs", get_, get(openapi::docs)),
    ]
}

/// Every route that needs no key.
fn open_routes() -> Vec<(&'static str, Method, MethodRouter<ApiState>)> {
    let mut routes = Vec::from(health_routes());
    // It says nothing about the server; what it calls needs the key.
    routes.push(("/", Method::GET, get(playground::page)));
    routes
}

fn health_routes() -> [(&'static str, Method, MethodRouter<ApiState>); 4] {
    [
        ("/health", Method::GET, get(health::ready)),
        ("/health/ready", Method::GET, get(health::ready)),
        ("/health/live", Method::GET, get(health::live)),
        ("/health/startup", Method::GET, get(health::startup)),
    ]
}

/// All routes.
pub fn router(state: ApiState) -> Router {
    let mut guarded = Router::new();
    for (path, _, route) in guarded_routes() {
        guarded = guarded.route(path, route);
    }
    let guarded = guarded
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn_with_state(state.clone(), guard));
    unguarded(open_routes())
        .merge(guarded)
        .layer(middleware::from_fn_with_state(
            state.clone(),
            record::record,
        ))
        .with_state(state)
}

/// The routes of a listener for operators: metrics and health, without a key. Whoever reaches it may read them.
pub fn operator_router(state: ApiState) -> Router {
    unguarded(health_routes())
        .route("/metrics", get(scrape::metrics))
        .fallback(not_found)
        .layer(middleware::from_fn_with_state(
            state.clone(),
            record::record,
        ))
        .with_state(state)
}

fn unguarded(
    routes: impl IntoIterator<Item = (&'static str, Method, MethodRouter<ApiState>)>,
) -> Router<ApiState> {
    let mut router = Router::new();
    for (path, _, route) in routes {
        router = router.route(path, route);
    }
    router.method_not_allowed_fallback(method_not_allowed)
}

/// Lets a request pass that came over a connection within the limit and carries a key, and notes whose it is. Health passes without: it is
/// answered above the limit, too.
async fn guard(
    State(state): State<ApiState>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if request.extensions().get::<Crowded>().is_some() {
        let limit = state.settings.max_connections;
        let message = format!("all {limit} connections are in use");
        return Err(ApiError::new(ErrorCode::QueueFull, message));
    }
    let tenant = auth::tenant_of(&state, request.headers())?;
    request.extensions_mut().insert(tenant);
    Ok(next.run(request).await)
}

fn still_loading() -> ApiError {
    ApiError::new(ErrorCode::ModelLoading, "the model is still loading")
}

async fn not_found(uri: Uri) -> ApiError {
    no_route(uri.path())
}

fn no_route(path: &str) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("there is no route {path}"))
}

async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    no_method(&method, uri.path())
}

fn no_method(method: &Method, path: &str) -> ApiError {
    let message = format!("{path} does not have the method {method}");
    ApiError::new(ErrorCode::MethodNotAllowed, message)
}

#[cfg(test)]
mod tests;
