//! The hub's cache on disk: where a repository's files lie, and which of them are there.
//!
//! The layout is the one all Hugging Face tools share, so that what one has downloaded another finds:
//! `models--{owner}--{name}/refs/{revision}` holds a commit, `snapshots/{commit}/{file}` links to `blobs/{key}`, and
//! `.locks/models--{owner}--{name}/{key}.lock` is held while a blob is written.
//!
//! Source: "Understand caching" in the huggingface_hub documentation; hf-hub 1.0.0 `src/cache/storage.rs`.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use super::EngineError;
use super::checkpoint::{CONFIG_FILE, TOKENIZER_FILE};
use super::shards::{INDEX_FILE, ShardIndex, WeightLayout, read_file};

/// Whether a revision is a full commit, which never changes its meaning.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && is_hex(revision)
}

/// Whether a key from the wire may become a file name.
pub(super) fn is_hex(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The part of the cache that belongs to one repository.
#[derive(Debug, Clone)]
pub(super) struct RepositoryCache {
    directory: PathBuf,
    locks: PathBuf,
}

impl RepositoryCache {
    /// The place of repository `id` (`owner/name`, already checked) in the cache at `cache`.
    pub(super) fn new(cache: &Path, id: &str) -> Self {
        let folder = format!("models--{}", id.replace('/', "--"));
        Self {
            locks: cache.join(".locks").join(&folder),
            directory: cache.join(folder),
        }
    }

    /// The file that remembers the commit of a branch or tag.
    pub(super) fn reference(&self, revision: &str) -> PathBuf {
        self.directory.join("refs").join(revision)
    }

    /// The directory that shows a commit's files under their names.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.directory.join("snapshots").join(commit)
    }

    /// Where a finished file lies under the key of its contents.
    pub(super) fn blob(&self, key: &str) -> PathBuf {
        self.directory.join("blobs").join(key)
    }

    /// Where an unfinished download of a blob lies.
    ///
    /// Other tools leave `{key}.incomplete`, which some of them fill out of order; ours grows from the front only, so its
    /// length says where to go on, and it needs a name of its own.
    pub(super) fn partial(&self, key: &str) -> PathBuf {
        self.directory.join("blobs").join(format!("{key}.part"))
    }

    /// The commit a revision stood for when it was last fetched.
    pub(super) fn commit_of(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let commit = fs::read_to_string(self.reference(revision))
            .ok()?
            .trim()
            .to_owned();
        is_commit(&commit).then_some(commit)
    }

    /// Remembers which commit a branch or tag stands for.
    ///
    /// # Errors
    /// [`EngineError::File`] when the cache cannot be written.
    pub(super) fn remember(&self, revision: &str, commit: &str) -> Result<(), EngineError> {
        // What is known already is not written again: a complete cache may be mounted read-only.
        if self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.reference(revision);
        create_parent(&path)?;
        fs::write(&path, commit).map_err(|error| unwritable(&path, &error))
    }

    /// Shows a finished blob under its name in a commit's snapshot.
    ///
    /// # Errors
    /// [`EngineError::File`] when the cache cannot be written.
    pub(super) fn show(&self, commit: &str, name: &str, key: &str) -> Result<(), EngineError> {
        let link = self.snapshot(commit).join(name);
        create_parent(&link)?;
        let directory = link.parent().unwrap_or(Path::new("."));
        // Made under another name and renamed into place: the one that is there may point at a blob somebody has cleaned away, and who
        // starts at the same time must not find the name gone.
        let fresh = tempfile::Builder::new()
            .prefix(".link-")
            .make_in(directory, |path| {
                // Relative, so that a cache can be moved or mounted elsewhere; a snapshot lies two directories below the repository.
                #[cfg(unix)]
                return std::os::unix::fs::symlink(Path::new("../../blobs").join(key), path);
                #[cfg(not(unix))]
                return fs::hard_link(self.blob(key), path);
            });
        let shown = fresh.and_then(|fresh| Ok(fresh.into_temp_path().persist(&link)?));
        shown.map_err(|error| unwritable(&link, &error))
    }

    /// Waits until no other process writes the blob; the lock ends when the file is dropped.
    ///
    /// # Errors
    /// [`EngineError::File`] when the lock file cannot be made or locked.
    pub(super) async fn lock(&self, key: &str) -> Result<File, EngineError> {
        let path = self.locks.join(format!("{key}.lock"));
        create_parent(&path)?;
        let file = File::create(&path).map_err(|error| unwritable(&path, &error))?;
        let locked = match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::Error(error)) => Err(error),
            Err(TryLockError::WouldBlock) => {
                tracing::info!(lock = %path.display(), "waiting for another process that downloads the same file");
                let waiting = tokio::task::spawn_blocking(move || file.lock().map(|()| file));
                waiting
                    .await
                    .unwrap_or_else(|panic| Err(std::io::Error::other(panic)))
            }
        };
        locked.map_err(|error| unwritable(&path, &error))
    }

    /// Which of the files a checkpoint needs are not in a commit's snapshot; empty when it is complete.
    ///
    /// # Errors
    /// [`EngineError::File`] when the cached index of shards is damaged.
    pub(super) fn missing(&self, commit: &str) -> Result<Vec<String>, EngineError> {
        let snapshot = self.snapshot(commit);
        // `exists` follows the link: a name whose blob is gone does not count.
        let has = |name: &str| snapshot.join(name).exists();
        let mut missing: Vec<String> = [CONFIG_FILE, TOKENIZER_FILE]
            .into_iter()
            .filter(|name| !has(name))
            .map(str::to_owned)
            .collect();
        let entries = fs::read_dir(&snapshot).into_iter().flatten().flatten();
        let names: Vec<String> = entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| has(name))
            .collect();
        match WeightLayout::of(names.iter().map(String::as_str)) {
            Ok(WeightLayout::Single) => {}
            Ok(WeightLayout::Sharded) => {
                let path = snapshot.join(INDEX_FILE);
                let index = ShardIndex::parse(&read_file(&path)?, &path)?;
                missing.extend(
                    index
                        .shards()
                        .into_iter()
                        .filter(|shard| !has(shard))
                        .map(str::to_owned),
                );
            }
            Err(_) => missing.push("the safetensors weights".to_owned()),
        }
        Ok(missing)
    }
}

/// Makes the directory a file is to lie in.
///
/// # Errors
/// [`EngineError::File`] when it cannot be made.
pub(super) fn create_parent(path: &Path) -> Result<(), EngineError> {
    match path.parent() {
        Some(parent) => fs::create_dir_all(parent).map_err(|error| unwritable(parent, &error)),
        None => Ok(()),
    }
}

/// The error for a place in the cache that cannot be written.
pub(super) fn unwritable(path: &Path, error: &std::io::Error) -> EngineError {
    EngineError::File {
        path: path.to_owned(),
        reason: format!("cannot be written: {error}"),
    }
}
