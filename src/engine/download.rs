//! How the bytes of a hub file reach the cache: resumed where they stopped, and checked.
//!
//! In: a file as the repository lists it. Out: a finished blob, linked into the commit's snapshot.
//!
//! Differs from hf-hub 1.0.0's own `download_file`: that one starts an interrupted file from zero, stores the body of an error
//! answer as the file, and falls back to a cached older copy without a word. Here its `download_file_stream` is asked for the
//! byte range that is still missing, and a file counts as finished only with the length (and the SHA-256, where listed) that
//! the repository promises.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use futures_util::StreamExt;
use hf_hub::HFError;
use sha2::{Digest, Sha256};

use super::EngineError;
use super::hub::HubSession;
use super::hub_cache::{create_parent, unwritable};
use super::progress::DownloadProgress;
use super::refusal::transport_fault;

/// Attempts in a row that bring no byte before a download is given up.
const MAX_FRUITLESS_ATTEMPTS: u32 = 5;

/// A file of a repository at one commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RemoteFile {
    /// Its name; files below a directory are never needed.
    pub(super) name: String,
    /// Its length.
    pub(super) size_bytes: u64,
    /// What its blob is called in the cache: the SHA-256 where known, else the id of its git object.
    pub(super) key: String,
    /// Its SHA-256, where the listing has it.
    pub(super) sha256: Option<String>,
}

/// How one attempt at the missing bytes of a file ended.
enum Attempt {
    /// The stream ended by itself.
    Ended,
    /// The connection broke or fell silent; what arrived is kept.
    Interrupted(String),
}

/// The front part of a file that has already arrived.
struct Partial {
    path: PathBuf,
    output: File,
    have_bytes: u64,
}

impl Partial {
    fn open(path: PathBuf) -> Result<Self, EngineError> {
        create_parent(&path)?;
        let opened = File::options().create(true).append(true).open(&path);
        let measured = opened.and_then(|output| Ok((output.metadata()?.len(), output)));
        match measured {
            Ok((have_bytes, output)) => Ok(Self {
                path,
                output,
                have_bytes,
            }),
            Err(error) => Err(unwritable(&path, &error)),
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), EngineError> {
        self.output
            .write_all(bytes)
            .map_err(|error| unwritable(&self.path, &error))?;
        self.have_bytes += bytes.len() as u64;
        Ok(())
    }

    fn clear(&mut self) -> Result<(), EngineError> {
        self.have_bytes = 0;
        self.output
            .set_len(0)
            .map_err(|error| unwritable(&self.path, &error))
    }
}

impl HubSession {
    /// Brings one file into the commit's snapshot, taking what the cache has of it.
    ///
    /// # Errors
    /// [`EngineError::Hub`] when the hub does not give it, or gives something else; [`EngineError::File`] when the cache
    /// cannot be written.
    pub(super) async fn bring(
        &self,
        commit: &str,
        file: &RemoteFile,
        progress: &DownloadProgress,
    ) -> Result<(), EngineError> {
        let blob = self.cache.blob(&file.key);
        let is_finished = || fs::metadata(&blob).is_ok_and(|blob| blob.len() == file.size_bytes);
        // Whoever held the lock before has perhaps brought it meanwhile, so the question is asked with the lock in hand.
        let _lock = self.cache.lock(&file.key).await?;
        if is_finished() {
            progress.present(file.size_bytes);
        } else {
            let mut partial = Partial::open(self.cache.partial(&file.key))?;
            self.complete(commit, file, &mut partial, progress).await?;
            self.check(file, &partial.path)?;
            fs::rename(&partial.path, &blob).map_err(|error| unwritable(&blob, &error))?;
        }
        self.cache.show(commit, &file.name, &file.key)
    }

    /// Appends to a partial file until it has its full length.
    async fn complete(
        &self,
        commit: &str,
        file: &RemoteFile,
        partial: &mut Partial,
        progress: &DownloadProgress,
    ) -> Result<(), EngineError> {
        if partial.have_bytes > file.size_bytes {
            partial.clear()?;
        }
        progress.present(partial.have_bytes);
        let mut furthest = partial.have_bytes;
        let mut fruitless = 0;
        while partial.have_bytes < file.size_bytes {
            let reason = match self.append(commit, file, partial, progress).await? {
                Attempt::Ended if partial.have_bytes == file.size_bytes => break,
                Attempt::Ended => "the connection ended early".to_owned(),
                Attempt::Interrupted(reason) => reason,
            };
            fruitless = if partial.have_bytes > furthest {
                0
            } else {
                fruitless + 1
            };
            furthest = furthest.max(partial.have_bytes);
            if fruitless >= MAX_FRUITLESS_ATTEMPTS {
                return Err(self.fail(format!(
                    "{} stopped at byte {} of {}: {reason}; what arrived is kept, the next start goes on from there",
                    file.name, partial.have_bytes, file.size_bytes
                )));
            }
            tracing::warn!(
                file = file.name,
                have = partial.have_bytes,
                of = file.size_bytes,
                reason,
                "download interrupted, resuming"
            );
            tokio::time::sleep(self.settings.retry_delay * 2u32.pow(fruitless)).await;
        }
        // The name of a blob promises its contents: they are on the disk before it is.
        partial
            .output
            .sync_data()
            .map_err(|error| unwritable(&partial.path, &error))
    }

    /// One request for the bytes that are missing.
    async fn append(
        &self,
        commit: &str,
        file: &RemoteFile,
        partial: &mut Partial,
        progress: &DownloadProgress,
    ) -> Result<Attempt, EngineError> {
        let range = (partial.have_bytes > 0).then_some(partial.have_bytes..file.size_bytes);
        let stall = self.settings.stall;
        let request = self
            .handle
            .download_file_stream()
            .filename(&file.name)
            .revision(commit)
            .maybe_range(range.clone());
        let (length, mut stream) = match tokio::time::timeout(stall, request.send()).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(HFError::Request { source, .. })) => {
                return Ok(Attempt::Interrupted(transport_fault(source)));
            }
            Ok(Err(refusal)) => return Err(self.fail(self.describe(refusal))),
            Err(_) => return Ok(Attempt::Interrupted(format!("no answer for {stall:?}"))),
        };
        if let Some(range) = range
            && length != Some(range.end - range.start)
        {
            // The answer may be the whole file: appended to what is here it would be garbage of a plausible length.
            progress.lost(partial.have_bytes);
            partial.clear()?;
            return Ok(Attempt::Interrupted(
                "the server does not resume downloads, it starts again from the first byte"
                    .to_owned(),
            ));
        }
        loop {
            let chunk = match tokio::time::timeout(stall, stream.next()).await {
                Ok(Some(Ok(chunk))) => chunk,
                Ok(Some(Err(HFError::Request { source, .. }))) => {
                    return Ok(Attempt::Interrupted(transport_fault(source)));
                }
                Ok(Some(Err(refusal))) => return Ok(Attempt::Interrupted(self.describe(refusal))),
                Ok(None) => return Ok(Attempt::Ended),
                Err(_) => return Ok(Attempt::Interrupted(format!("no byte for {stall:?}"))),
            };
            if chunk.len() as u64 > file.size_bytes - partial.have_bytes {
                partial.clear()?;
                return Err(self.fail(format!(
                    "{} is longer than the {} bytes listed",
                    file.name, file.size_bytes
                )));
            }
            partial.append(&chunk)?;
            progress.arrived(chunk.len() as u64);
        }
    }

    /// Compares a complete file with the listed SHA-256, where there is one, and throws it away when it differs.
    fn check(&self, file: &RemoteFile, partial: &Path) -> Result<(), EngineError> {
        let Some(expected) = &file.sha256 else {
            return Ok(());
        };
        let unreadable = |error: io::Error| EngineError::File {
            path: partial.to_owned(),
            reason: format!("cannot be read: {error}"),
        };
        let mut input = File::open(partial).map_err(unreadable)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            match input.read(&mut buffer).map_err(unreadable)? {
                0 => break,
                read => hasher.update(&buffer[..read]),
            }
        }
        let found: String = hasher
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        if found.eq_ignore_ascii_case(expected) {
            return Ok(());
        }
        fs::remove_file(partial).map_err(|error| unwritable(partial, &error))?;
        Err(self.fail(format!(
            "{} has SHA-256 {found}, the repository lists {expected}; it was thrown away",
            file.name
        )))
    }
}
