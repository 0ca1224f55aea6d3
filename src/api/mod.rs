//! The only room that knows HTTP: routes, the grammar of requests, the shape of answers, the error table.
//!
//! In: HTTP requests. Out: [`crate::service::EmbedRequest`]s to the service, its answers as JSON.
//!
//! # Source
//! The OpenAI embeddings API; vLLM, Jina, Cohere and Voyage for the spellings of content it does not have.

mod auth;
mod body;
mod embeddings;
pub mod error;
mod fields;
mod grammar;
mod health;
mod listener;
mod models;
mod options;
mod part;
mod record;
mod response;
mod scrape;
mod tls;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

pub use auth::ApiKeys;
use axum::Router;
use axum::http::{Method, Uri};
use axum::middleware;
use axum::routing::{get, post};
pub use error::{ApiError, ErrorCode};
pub use listener::{ListenerSettings, serve};
pub use tls::{Tls, TlsError, TlsFiles, own_client};
use tokio::sync::Semaphore;

use crate::engine::EngineInfo;
use crate::processor::PixelOptions;
use crate::service::Embedder;
use crate::telemetry::{self, metrics::ModelLabels};

/// What the wire allows.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiSettings {
    /// Keys of those who may ask.
    pub keys: ApiKeys,
    /// Largest request body in bytes.
    pub max_body_bytes: usize,
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
}

impl Served {
    /// Whether a request names this model; not naming any is fine.
    fn check_name(&self, model: Option<&str>) -> Result<(), ApiError> {
        match model {
            Some(model) if !self.names.iter().any(|name| name == model) => {
                let message = format!(
                    "the model {} is not served here; served is {}",
                    fields::quoted(model),
                    self.names.join(", ")
                );
                Err(ApiError::at(ErrorCode::ModelNotFound, "model", message))
            }
            _ => Ok(()),
        }
    }
}

/// What all handlers share. Health answers from it while the model is still loading.
#[derive(Debug, Clone)]
pub struct ApiState {
    settings: Arc<ApiSettings>,
    /// Those of the settings, until others are read.
    keys: Arc<RwLock<ApiKeys>>,
    served: Arc<OnceLock<Served>>,
    draining: Arc<AtomicBool>,
    /// Permits for reading and writing JSON of megabytes: one for each core.
    workers: Arc<Semaphore>,
}

impl ApiState {
    /// A state without a model.
    pub fn new(settings: ApiSettings) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        ApiState {
            keys: Arc::new(RwLock::new(settings.keys.clone())),
            settings: Arc::new(settings),
            served: Arc::default(),
            draining: Arc::default(),
            workers: Arc::new(Semaphore::new(cores)),
        }
    }

    /// The model is here: from now on requests are served.
    pub fn set_served(&self, served: Served) {
        telemetry::metrics().model(&ModelLabels {
            model: served.names.first().cloned().unwrap_or_default(),
            revision: served.revision.clone().unwrap_or_default(),
            dtype: served.info.dtype.to_owned(),
            device: served.info.device.clone(),
        });
        // A second model would be a mistake in the wiring; the first stays.
        let _ = self.served.set(served);
    }

    /// From now on these keys open the door, and no others.
    pub fn set_keys(&self, keys: ApiKeys) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    /// Readiness goes off; requests are still served.
    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    fn served(&self) -> Result<&Served, ApiError> {
        self.served
            .get()
            .ok_or_else(|| ApiError::new(ErrorCode::ModelLoading, "the model is still loading"))
    }
}

/// All routes.
pub fn router(state: ApiState) -> Router {
    let guarded = Router::new()
        .route("/v1/embeddings", post(embeddings::create))
        .route("/embeddings", post(embeddings::create))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
        .route("/metrics", get(scrape::metrics))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn_with_state(
            state.clone(),
            auth::require_key,
        ));
    health_routes()
        .merge(guarded)
        .layer(middleware::from_fn_with_state(
            state.clone(),
            record::record,
        ))
        .with_state(state)
}

/// The routes of a listener for operators: metrics and health, without a key. Whoever reaches it may read them.
pub fn operator_router(state: ApiState) -> Router {
    health_routes()
        .route("/metrics", get(scrape::metrics))
        .fallback(not_found)
        .layer(middleware::from_fn_with_state(
            state.clone(),
            record::record,
        ))
        .with_state(state)
}

fn health_routes() -> Router<ApiState> {
    Router::new()
        .route("/health", get(health::ready))
        .route("/health/ready", get(health::ready))
        .route("/health/live", get(health::live))
        .route("/health/startup", get(health::startup))
        .method_not_allowed_fallback(method_not_allowed)
}

async fn not_found(uri: Uri) -> ApiError {
    ApiError::new(
        ErrorCode::NotFound,
        format!("there is no route {}", uri.path()),
    )
}

async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    ApiError::new(
        ErrorCode::MethodNotAllowed,
        format!("{} does not have the method {method}", uri.path()),
    )
}

#[cfg(test)]
mod tests;
