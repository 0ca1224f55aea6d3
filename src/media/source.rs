//! What a media string is, and its bytes.

use bytes::Bytes;
use url::Url;

use super::{MediaError, MediaSettings};

/// A media string, classified once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MediaSource {
    /// From a `data:` URI or bare base64, decoded.
    Inline(Bytes),
    /// `http://` or `https://`.
    Url(Url),
    /// `file://`.
    File(Url),
}

impl MediaSource {
    /// Classifies a string and decodes what it carries inline; nothing is fetched or read.
    ///
    /// # Errors
    /// [`MediaError::InvalidSource`] for anything else, [`MediaError::TooLarge`] before decoding more than `max_bytes`.
    pub fn parse(_text: &str, _max_bytes: usize) -> Result<Self, MediaError> {
        unimplemented!()
    }
}

/// Loads media under one policy.
#[derive(Debug, Clone)]
pub struct MediaLoader {}

impl MediaLoader {
    /// Builds the one HTTP client of this program.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(_settings: &MediaSettings) -> Result<Self, MediaError> {
        unimplemented!()
    }

    /// The bytes of a source.
    ///
    /// # Errors
    /// [`MediaError::Blocked`] when the policy refuses it, [`MediaError::FetchFailed`], [`MediaError::TooLarge`].
    pub async fn load(&self, _source: &MediaSource) -> Result<Bytes, MediaError> {
        unimplemented!()
    }
}
