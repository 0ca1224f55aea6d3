//! What is loaded: an embedder, a reranker or both, and which of them a request means.

use super::Served;
use super::error::{ApiError, ErrorCode};
use super::fields::quoted;
use crate::batcher::Batcher;
use crate::engine::EngineInfo;
use crate::service::{Background, Proof, Reranker};

/// What is served, all of it on one device.
#[derive(Debug)]
pub struct Loaded {
    /// The queue before that device.
    pub batcher: Batcher,
    /// What embeds.
    pub embedder: Option<Served>,
    /// What scores documents.
    pub reranker: Option<ServedReranker>,
    /// The threads that read large requests.
    pub readers: Background,
}

/// A reranker that is loaded and ready.
#[derive(Debug)]
pub struct ServedReranker {
    /// Names it answers to, the first of which is the one in answers to requests that name none. At least one.
    pub names: Vec<String>,
    /// All stages.
    pub reranker: Reranker,
    /// What runs where.
    pub info: EngineInfo,
    /// The checkpoint's own name.
    pub checkpoint: String,
    /// The commit it was pinned to, where there is one.
    pub revision: Option<String>,
    /// When it was loaded, seconds since 1970.
    pub loaded_at: u64,
    /// What decides the bits of its scores.
    pub proof: Proof,
}

/// What scores the documents of a request.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ranker<'a> {
    /// The reranker.
    Reranker(&'a ServedReranker),
    /// The embedder, by cosine.
    Embedder(&'a Served),
}

impl Ranker<'_> {
    /// What answers call it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Ranker::Reranker(_) => "reranker",
            Ranker::Embedder(_) => "cosine",
        }
    }

    /// The model's first name.
    pub(super) fn name(&self) -> &str {
        match self {
            Ranker::Reranker(served) => &served.names[0],
            Ranker::Embedder(served) => &served.names[0],
        }
    }
}

impl Loaded {
    /// All names of all models.
    fn names(&self) -> Vec<&str> {
        let embedder = self.embedder.iter().flat_map(|served| &served.names);
        let reranker = self.reranker.iter().flat_map(|served| &served.names);
        embedder.chain(reranker).map(String::as_str).collect()
    }

    /// The embedder.
    pub(super) fn embedder(&self) -> Result<&Served, ApiError> {
        self.embedder.as_ref().ok_or_else(|| {
            let message = format!(
                "no embedding model is served here; served is the reranker {}",
                self.names().join(", ")
            );
            ApiError::at(ErrorCode::ModelNotFound, "model", message)
        })
    }

    /// What scores documents for a request that names a model or none: the one named, else the reranker where there is one.
    pub(super) fn ranker(&self, model: Option<&str>) -> Result<Ranker<'_>, ApiError> {
        let is_named =
            |names: &[String]| model.is_none_or(|model| names.iter().any(|n| n == model));
        match (&self.reranker, &self.embedder) {
            (Some(reranker), _) if is_named(&reranker.names) => Ok(Ranker::Reranker(reranker)),
            (_, Some(embedder)) if is_named(&embedder.names) => Ok(Ranker::Embedder(embedder)),
            _ => Err(not_served(model.unwrap_or_default(), &self.names())),
        }
    }
}

/// What a model by a name nobody serves is answered with.
pub(super) fn not_served(name: &str, served: &[&str]) -> ApiError {
    let (name, served) = (quoted(name), served.join(", "));
    let message = format!("the model {name} is not served here; served is {served}");
    ApiError::at(ErrorCode::ModelNotFound, "model", message)
}
