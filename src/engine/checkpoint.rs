//! Where the weights come from: a directory, the Hugging Face hub, or the tiny model inside the binary.

use std::path::PathBuf;

use super::EngineError;
use crate::kernels::WeightMap;

/// Which checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckpointSource {
    /// The tiny model embedded in the binary, for trying the API.
    Embedded,
    /// A local directory in the layout of a Hugging Face repository.
    Directory(PathBuf),
    /// A repository on the hub.
    Hub {
        /// `owner/name`.
        id: String,
        /// Branch, tag or commit; `None` is `main`.
        revision: Option<String>,
        /// Use only what the cache holds.
        offline: bool,
    },
}

/// A checkpoint, opened: its text files read, its weights mapped.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// The name clients use by default: the hub id, the directory's name, or `manifold-tiny`.
    pub name: String,
    /// The commit the hub resolved the revision to, where there is one.
    pub revision: Option<String>,
    /// `config.json`.
    pub config_json: Vec<u8>,
    /// `tokenizer.json`.
    pub tokenizer_json: Vec<u8>,
    /// All tensors of all shards, mapped.
    pub weights: WeightMap,
}

impl Checkpoint {
    /// Finds, downloads where needed (with progress bars on a terminal), checks and maps a checkpoint.
    ///
    /// # Errors
    /// [`EngineError::File`], [`EngineError::Hub`], [`EngineError::Tensor`].
    pub fn open(_source: &CheckpointSource) -> Result<Self, EngineError> {
        unimplemented!()
    }
}
