//! The bytes behind a media string, under one policy.
//!
//! In: a [`MediaSource`]. Out: its bytes, never more than `max_bytes`. What may be loaded from where is decided in `fetch` (URLs)
//! and `local_file` (`file://`).

use bytes::Bytes;

use super::fetch::Fetcher;
use super::local_file::FileRoot;
use super::{MediaError, MediaSettings, MediaSource};

/// Loads media under one policy.
#[derive(Debug, Clone)]
pub struct MediaLoader {
    fetcher: Option<Fetcher>,
    file_root: Option<FileRoot>,
    max_bytes: usize,
}

impl MediaLoader {
    /// Builds the one HTTP client of this program.
    ///
    /// # Errors
    /// [`MediaError::Internal`] when TLS cannot be set up or `file_root` is not a directory.
    pub fn new(settings: &MediaSettings) -> Result<Self, MediaError> {
        Ok(Self {
            fetcher: settings
                .url_fetch
                .then(|| Fetcher::new(settings))
                .transpose()?,
            file_root: settings
                .file_root
                .as_deref()
                .map(FileRoot::new)
                .transpose()?,
            max_bytes: settings.max_bytes,
        })
    }

    /// The bytes of a source.
    ///
    /// # Errors
    /// [`MediaError::Blocked`] when the policy refuses it, [`MediaError::FetchFailed`], [`MediaError::TooLarge`].
    pub async fn load(&self, source: &MediaSource) -> Result<Bytes, MediaError> {
        match source {
            MediaSource::Inline(bytes) => {
                within(bytes.len() as u64, self.max_bytes)?;
                Ok(bytes.clone())
            }
            MediaSource::Url(url) => match &self.fetcher {
                Some(fetcher) => fetcher.fetch(url).await,
                None => Err(blocked(
                    "this server does not fetch URLs: send the bytes as a data: URI",
                )),
            },
            MediaSource::File(url) => match &self.file_root {
                Some(root) => root.read(url, self.max_bytes).await,
                None => Err(blocked(
                    "this server reads no files: send the bytes as a data: URI",
                )),
            },
        }
    }
}

/// Refuses an encoded size above the limit.
pub(super) fn within(value: u64, limit: usize) -> Result<(), MediaError> {
    let limit = limit as u64;
    if value > limit {
        return Err(MediaError::TooLarge {
            what: "encoded size in bytes",
            value,
            limit,
        });
    }
    Ok(())
}

/// A refusal by policy, in fixed words: they hold no address and no status, so nobody can map a network with them.
pub(super) fn blocked(reason: &str) -> MediaError {
    MediaError::Blocked {
        reason: reason.to_owned(),
    }
}

/// A failure on the way, in fixed words.
pub(super) fn failed(reason: &str) -> MediaError {
    MediaError::FetchFailed {
        reason: reason.to_owned(),
    }
}
