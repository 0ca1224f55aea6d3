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

/// Bytes, and where they are from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedMedia {
    /// What it holds.
    pub bytes: Bytes,
    /// Where that was.
    pub origin: Origin,
}

/// Where bytes were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// In the request itself.
    Inline,
    /// In a file.
    File,
    /// At a URL.
    Fetched,
    /// Here since an earlier fetch; the URL's server says that they are the same.
    Kept,
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

    /// Whether a source would be loaded, by what it says: nothing is resolved, dialled or opened.
    ///
    /// # Errors
    /// [`MediaError::Blocked`] when the policy refuses it, [`MediaError::TooLarge`].
    pub fn permits(&self, source: &MediaSource) -> Result<(), MediaError> {
        match source {
            MediaSource::Inline(bytes) => within(bytes.len() as u64, self.max_bytes),
            MediaSource::Url(url) => self.fetcher()?.permits(url),
            MediaSource::File(url) => self.file_root()?.permits(url),
        }
    }

    /// The bytes of a source. What is kept of one owner's media serves no other's.
    ///
    /// # Errors
    /// [`MediaError::Blocked`] when the policy refuses it, [`MediaError::AddressRefused`], [`MediaError::FetchFailed`],
    /// [`MediaError::TooLarge`].
    pub async fn load(&self, source: &MediaSource, owner: u128) -> Result<LoadedMedia, MediaError> {
        let (bytes, origin) = match source {
            MediaSource::Inline(bytes) => {
                within(bytes.len() as u64, self.max_bytes)?;
                (bytes.clone(), Origin::Inline)
            }
            MediaSource::Url(url) => {
                let fetched = self.fetcher()?.fetch(url, owner).await?;
                match fetched.was_kept {
                    true => (fetched.body, Origin::Kept),
                    false => (fetched.body, Origin::Fetched),
                }
            }
            MediaSource::File(url) => {
                let bytes = self.file_root()?.read(url, self.max_bytes).await?;
                (bytes, Origin::File)
            }
        };
        Ok(LoadedMedia { bytes, origin })
    }

    fn fetcher(&self) -> Result<&Fetcher, MediaError> {
        self.fetcher.as_ref().ok_or_else(|| {
            blocked("this server does not fetch URLs: send the bytes as a data: URI")
        })
    }

    fn file_root(&self) -> Result<&FileRoot, MediaError> {
        self.file_root
            .as_ref()
            .ok_or_else(|| blocked("this server reads no files: send the bytes as a data: URI"))
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
