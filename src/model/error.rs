//! Why a checkpoint is not a model this crate computes.

use crate::kernels::WeightError;

/// What is wrong with a checkpoint, or with a forward pass.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// `config.json` is not JSON of the expected form.
    #[error("config.json cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    /// `config.json` describes an architecture this crate does not compute.
    #[error("config.json: {field} is {found}, supported is {supported}")]
    Unsupported {
        /// Dotted name of the field.
        field: String,
        /// Its value.
        found: String,
        /// What would be accepted.
        supported: String,
    },
    /// The checkpoint lacks a tensor.
    #[error("tensor {name} is missing")]
    MissingTensor {
        /// Its name.
        name: String,
    },
    /// A tensor is not what the configuration says.
    #[error("tensor {name}: {reason}")]
    Tensor {
        /// Its name.
        name: String,
        /// What was found and what was expected.
        #[source]
        reason: WeightError,
    },
    /// A tensor operation failed on the device.
    #[error("a tensor operation failed")]
    Device(#[from] candle_core::Error),
}
