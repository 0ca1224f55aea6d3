//! Why the engine could not start, or a forward pass failed. All of them are the server's or the operator's to mend.

use std::path::PathBuf;

/// What went wrong in the engine room.
#[derive(Debug, Clone, thiserror::Error)]
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
    /// The device had not enough memory for a forward pass.
    #[error("the device has not enough memory: {reason}")]
    OutOfMemory {
        /// The device's own words, for the log.
        reason: String,
    },
    /// The device will not compute anything any more, whatever it is asked.
    #[error("the device is lost: {reason}")]
    Lost {
        /// The device's own words, for the log.
        reason: String,
    },
    /// The forward pass gave something that is no number.
    #[error("the forward pass gave infinity or not-a-number")]
    NotFinite,
    /// A forward pass panicked; the thread lives on.
    #[error("the forward pass panicked")]
    Panicked,
    /// The engine thread is gone.
    #[error("the engine has stopped")]
    Stopped,
}

/// How a device says that it has not enough memory: CUDA's driver, cuBLAS, and Metal.
const NO_MEMORY: [&str; 4] = [
    "CUDA_ERROR_OUT_OF_MEMORY",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "out of memory",
    "Insufficient Memory",
];

/// After these every further call of the process fails likewise.
///
/// # Source
/// CUDA driver API, `CUresult`: those of which it says that "the process must be terminated and relaunched", and those that say that
/// the device or the driver has gone.
const LOST: [&str; 15] = [
    "CUDA_ERROR_ILLEGAL_ADDRESS",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION",
    "CUDA_ERROR_MISALIGNED_ADDRESS",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE",
    "CUDA_ERROR_INVALID_PC",
    "CUDA_ERROR_LAUNCH_FAILED",
    "CUDA_ERROR_LAUNCH_TIMEOUT",
    "CUDA_ERROR_HARDWARE_STACK_ERROR",
    "CUDA_ERROR_ASSERT",
    "CUDA_ERROR_ECC_UNCORRECTABLE",
    "CUDA_ERROR_NVLINK_UNCORRECTABLE",
    "CUDA_ERROR_EXTERNAL_DEVICE",
    "CUDA_ERROR_CONTEXT_IS_DESTROYED",
    "CUDA_ERROR_DEINITIALIZED",
    "CUDA_ERROR_DEVICE_UNAVAILABLE",
];

impl EngineError {
    /// What a forward pass failed with, by the device's own words: its library has no other way to tell.
    pub(super) fn of_pass(reason: String) -> Self {
        let says = |marks: &[&str]| marks.iter().any(|mark| reason.contains(mark));
        if says(&LOST) {
            EngineError::Lost { reason }
        } else if says(&NO_MEMORY) {
            EngineError::OutOfMemory { reason }
        } else {
            EngineError::Forward { reason }
        }
    }

    /// Whether every later pass would fail too.
    pub fn is_lasting(&self) -> bool {
        matches!(self, EngineError::Lost { .. } | EngineError::Stopped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_a_device_tell_what_a_failed_pass_means() {
        let of = |words: &str| EngineError::of_pass(words.to_owned());
        let memory = "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")";
        assert!(matches!(of(memory), EngineError::OutOfMemory { .. }));
        let lost = of(
            "DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"an illegal memory access was encountered\")",
        );
        assert!(lost.is_lasting());
        let ordinary = of("shape mismatch in matmul");
        assert!(matches!(ordinary, EngineError::Forward { .. }) && !ordinary.is_lasting());
    }
}
