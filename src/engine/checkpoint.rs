//! Where the weights come from: a directory, the Hugging Face hub, or the tiny model inside the binary.
//!
//! In: a [`CheckpointSource`]. Out: a [`Checkpoint`] with its text files read and its weights mapped; whether they fit together
//! is the model's question.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::EngineError;
use super::hub::{self, HubSettings};
use super::shards::{map_weights, read_file, read_tensors};
use crate::kernels::WeightMap;
use crate::kernels::weight::SharedBytes;
use crate::model::ModelConfig;

/// The model's configuration.
pub(super) const CONFIG_FILE: &str = "config.json";
/// The tokenizer with its post-processor.
pub(super) const TOKENIZER_FILE: &str = "tokenizer.json";

/// The name of the model inside the binary.
pub const EMBEDDED_NAME: &str = "manifold-tiny";

/// Bytes aligned as a mapped file is, which `include_bytes!` alone does not promise.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

static EMBEDDED_CONFIG: &[u8] = include_bytes!("../../tests/fixtures/demo/model/config.json");
static EMBEDDED_TOKENIZER: &[u8] = include_bytes!("../../tests/fixtures/demo/model/tokenizer.json");
static EMBEDDED_WEIGHTS: &Aligned<[u8]> = &Aligned(*include_bytes!(
    "../../tests/fixtures/demo/model/model.safetensors"
));

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
    /// Blocks, for as long as a download takes: call it from a plain thread, not from an async task. The hub's token, cache
    /// and address come from the environment variables every Hugging Face tool reads (`HF_TOKEN`, `HF_HOME`, `HF_ENDPOINT`,
    /// `HF_HUB_OFFLINE` and their kin).
    ///
    /// # Errors
    /// [`EngineError::File`], [`EngineError::Hub`], [`EngineError::Tensor`].
    pub fn open(source: &CheckpointSource) -> Result<Self, EngineError> {
        match source {
            CheckpointSource::Embedded => Self::embedded(),
            CheckpointSource::Directory(path) => Self::from_directory(path),
            CheckpointSource::Hub {
                id,
                revision,
                offline,
            } => {
                let mut settings = HubSettings::from_environment();
                settings.offline |= offline;
                Self::from_hub(id, revision.as_deref(), settings)
            }
        }
    }

    /// What `config.json` says.
    ///
    /// # Errors
    /// [`EngineError::Config`].
    pub fn model_config(&self) -> Result<ModelConfig, EngineError> {
        Ok(ModelConfig::from_json(&self.config_json)?)
    }

    fn embedded() -> Result<Self, EngineError> {
        let bytes: &'static [u8] = &EMBEDDED_WEIGHTS.0;
        let owner: SharedBytes = Arc::new(bytes);
        Ok(Self {
            name: EMBEDDED_NAME.to_owned(),
            revision: None,
            config_json: EMBEDDED_CONFIG.to_vec(),
            tokenizer_json: EMBEDDED_TOKENIZER.to_vec(),
            weights: read_tensors(&owner, Path::new("embedded model.safetensors"))?
                .into_iter()
                .collect(),
        })
    }

    fn from_directory(path: &Path) -> Result<Self, EngineError> {
        let fail = |reason: String| EngineError::File {
            path: path.to_owned(),
            reason,
        };
        // The canonical path has the name that `.` and a link to the directory hide.
        let canonical = match path.canonicalize() {
            Ok(canonical) if canonical.is_dir() => canonical,
            Ok(_) => return Err(fail("is not a directory".to_owned())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(fail("does not exist".to_owned()));
            }
            Err(error) => return Err(fail(format!("cannot be opened: {error}"))),
        };
        let name = canonical.file_name().map_or_else(
            || path.display().to_string(),
            |name| name.to_string_lossy().into_owned(),
        );
        Self::read(path, name, None)
    }

    pub(super) fn from_hub(
        id: &str,
        revision: Option<&str>,
        settings: HubSettings,
    ) -> Result<Self, EngineError> {
        let snapshot = hub::fetch(id, revision, settings)?;
        Self::read(&snapshot.directory, id.to_owned(), Some(snapshot.commit))
    }

    fn read(directory: &Path, name: String, revision: Option<String>) -> Result<Self, EngineError> {
        Ok(Self {
            name,
            revision,
            config_json: read_file(&directory.join(CONFIG_FILE))?,
            tokenizer_json: read_file(&directory.join(TOKENIZER_FILE))?,
            weights: map_weights(directory)?,
        })
    }
}

#[cfg(test)]
mod tests;
