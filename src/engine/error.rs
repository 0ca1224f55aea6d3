//! Why the engine could not start, or a forward pass failed. All of them are the server's or the operator's to mend.

use std::path::PathBuf;

/// What went wrong in the engine room.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A file of the checkpoint is absent or unreadable.
    #[error("{path}: {reason}", path = path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The hub could not give the files.
    #[error("{repository}: {reason}")]
    Hub {
        /// Which repository, with its revision.
        repository: String,
        /// What happened.
        reason: String,
    },
    /// `config.json` describes something this server does not compute.
    #[error("config.json: {reason}")]
    Config {
        /// Field, value and what is supported.
        reason: String,
    },
    /// A tensor is missing or has another shape.
    #[error("tensor {name}: {reason}")]
    Tensor {
        /// Its name in the checkpoint.
        name: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// The device asked for is not built in or not present.
    #[error("device {device}: {reason}")]
    Device {
        /// As the operator named it.
        device: String,
        /// What is the matter.
        reason: String,
    },
    /// A forward pass failed on the device.
    #[error("the forward pass failed: {reason}")]
    Forward {
        /// The device's own words, for the log.
        reason: String,
    },
    /// A forward pass panicked; the thread lives on.
    #[error("the forward pass panicked")]
    Panicked,
    /// The engine thread is gone.
    #[error("the engine has stopped")]
    Stopped,
}
