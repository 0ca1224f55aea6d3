//! Pictures: encoded bytes to RGB, by Pillow's rules.

use super::{MediaError, MediaSettings, RgbImage};

/// Decodes one picture (the first frame of an animated one) to RGB.
///
/// CPU-heavy: call it on the bounded pool.
///
/// # Errors
/// [`MediaError::Unsupported`], [`MediaError::InvalidImage`], [`MediaError::TooLarge`].
pub fn decode(_bytes: &[u8], _settings: &MediaSettings) -> Result<RgbImage, MediaError> {
    unimplemented!()
}
