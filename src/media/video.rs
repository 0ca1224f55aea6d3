//! Video files: probed and decoded by FFmpeg in a child process.

use bytes::Bytes;

use super::{MediaError, MediaSettings, RgbImage};

/// What a container says about its video stream.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VideoInfo {
    /// Number of frames in the stream.
    pub frames: u64,
    /// Average frames per second.
    pub fps: f64,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
}

/// A video file, probed.
#[derive(Debug)]
pub struct VideoFile {
    /// What the container says.
    pub info: VideoInfo,
}

impl VideoFile {
    /// Sniffs the container and probes it. Blocks on a child process: call it on the bounded pool.
    ///
    /// # Errors
    /// [`MediaError::Unsupported`] (also when FFmpeg is not installed), [`MediaError::InvalidVideo`], [`MediaError::TooLarge`].
    pub fn open(_bytes: Bytes, _settings: &MediaSettings) -> Result<Self, MediaError> {
        unimplemented!()
    }

    /// The frames at `indices` (ascending, repeats allowed), in order. Blocks on a child process.
    ///
    /// # Errors
    /// [`MediaError::InvalidVideo`] when the stream ends before the last index.
    pub fn frames(&self, _indices: &[u64]) -> Result<Vec<RgbImage>, MediaError> {
        unimplemented!()
    }
}
