//! A checkpoint from the Hugging Face hub: which commit, which files, and what to tell when the hub says no.
//!
//! In: `owner/name` and a revision. Out: a directory in the shared cache that holds every file the checkpoint needs, and the
//! commit they belong to. Only `config.json`, `tokenizer.json`, the safetensors weights and their index are fetched.
//!
//! All requests go through hf-hub 1.0.0, which also finds the token, the cache and the hub's address in the environment.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use hf_hub::repository::{HFRepository, RepoTreeEntry, RepoTypeModel};
use hf_hub::{HFClient, split_id};

use super::EngineError;
use super::checkpoint::{CONFIG_FILE, TOKENIZER_FILE};
use super::download::RemoteFile;
use super::hub_cache::{RepositoryCache, is_commit, is_hex};
use super::progress::DownloadProgress;
use super::shards::{INDEX_FILE, SINGLE_FILE, ShardIndex, WeightLayout, read_file};

/// What `None` means as a revision.
const DEFAULT_REVISION: &str = "main";
/// Files that are fetched at the same time.
const PARALLEL_FILES: usize = 4;
/// How long the hub may stay silent before a request counts as lost.
const STALL: Duration = Duration::from_secs(60);
/// The pause before a lost request is repeated; it doubles each time.
const RETRY_DELAY: Duration = Duration::from_millis(250);

/// Where the hub and its cache are. `None` is what the environment says, by the rules of hf-hub.
#[derive(Clone)]
pub(super) struct HubSettings {
    /// The hub's address; else `HF_ENDPOINT`, else huggingface.co.
    pub(super) endpoint: Option<String>,
    /// The cache; else `HF_HUB_CACHE`, `HF_HOME/hub`, `~/.cache/huggingface/hub`.
    pub(super) cache: Option<PathBuf>,
    /// The secret token; else `HF_TOKEN`, `HF_TOKEN_PATH`, the file a login left in `HF_HOME`.
    pub(super) token: Option<String>,
    /// Use only what the cache holds.
    pub(super) offline: bool,
    /// The pause before a lost request is repeated.
    pub(super) retry_delay: Duration,
    /// How long the hub may stay silent.
    pub(super) stall: Duration,
}

impl HubSettings {
    /// What the environment says.
    pub(super) fn from_environment() -> Self {
        // The values huggingface_hub takes for true.
        let is_true =
            |value: String| ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str());
        Self {
            endpoint: None,
            cache: None,
            token: None,
            offline: std::env::var("HF_HUB_OFFLINE").is_ok_and(is_true),
            retry_delay: RETRY_DELAY,
            stall: STALL,
        }
    }
}

/// A complete checkpoint in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Snapshot {
    /// Where its files are, under their names.
    pub(super) directory: PathBuf,
    /// The commit they belong to.
    pub(super) commit: String,
}

/// A repository at a revision, both checked: they become parts of paths and addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Repository {
    /// `owner/name`, or `name` alone for the oldest repositories.
    pub(super) id: String,
    /// Branch, tag or commit.
    pub(super) revision: String,
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.id, self.revision)
    }
}

impl Repository {
    /// Checks the names.
    ///
    /// # Errors
    /// [`EngineError::Hub`] when the id is not `owner/name` or `name` in the hub's alphabet, or the revision could not be a
    /// git revision.
    fn parse(id: &str, revision: Option<&str>) -> Result<Self, EngineError> {
        let repository = Self {
            id: id.to_owned(),
            revision: revision.unwrap_or(DEFAULT_REVISION).to_owned(),
        };
        let is_name = |name: &str| {
            let alphabet = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            !name.is_empty()
                && name.len() <= 96
                && name.bytes().all(alphabet)
                && !name.starts_with(['.', '-'])
                && !name.contains("..")
        };
        let is_part =
            |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains("..");
        let forbidden = |c: char| c.is_control() || c.is_whitespace() || "\\~^:?*[".contains(c);
        let reason = if id.split('/').count() > 2 || !id.split('/').all(is_name) {
            "is not a repository id: owner/name, of letters, digits, '-', '_' and '.'"
        } else if !repository.revision.split('/').all(is_part)
            || repository.revision.contains(forbidden)
        {
            "is not a revision: a branch, a tag or a commit"
        } else {
            return Ok(repository);
        };
        Err(EngineError::Hub {
            repository: repository.to_string(),
            reason: reason.to_owned(),
        })
    }
}

/// Makes sure the cache holds a repository's checkpoint, downloading what it lacks, and says where.
///
/// A branch or tag is looked up at the hub every time, unless offline; a full commit that is complete in the cache needs no
/// request at all.
///
/// # Errors
/// [`EngineError::Hub`] names the repository with its revision and what the hub, the network or the cache is missing;
/// [`EngineError::File`] when the cache cannot be used.
pub(super) fn fetch(
    id: &str,
    revision: Option<&str>,
    settings: HubSettings,
) -> Result<Snapshot, EngineError> {
    let repository = Repository::parse(id, revision)?;
    let cache_directory = settings
        .cache
        .clone()
        .unwrap_or_else(hf_hub::resolve_cache_dir);
    let cache = RepositoryCache::new(&cache_directory, id);
    if settings.offline {
        return from_cache(&repository, &cache);
    }
    if is_commit(&repository.revision) && cache.missing(&repository.revision)?.is_empty() {
        return Ok(Snapshot {
            directory: cache.snapshot(&repository.revision),
            commit: repository.revision,
        });
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| EngineError::Hub {
        repository: repository.to_string(),
        reason: format!("no runtime for the download: {error}"),
    })?;
    runtime.block_on(async {
        let session = HubSession::open(repository, cache, cache_directory, settings)?;
        session.fetch().await
    })
}

fn from_cache(repository: &Repository, cache: &RepositoryCache) -> Result<Snapshot, EngineError> {
    let fail = |reason: String| EngineError::Hub {
        repository: repository.to_string(),
        reason,
    };
    let Some(commit) = cache.commit_of(&repository.revision) else {
        let path = cache.reference(&repository.revision);
        return Err(fail(format!(
            "offline, and the cache does not know this revision: there is no {}",
            path.display()
        )));
    };
    let directory = cache.snapshot(&commit);
    let missing = cache.missing(&commit)?;
    if !missing.is_empty() {
        return Err(fail(format!(
            "offline, and the cache lacks {}: looked in {}",
            missing.join(", "),
            directory.display()
        )));
    }
    Ok(Snapshot { directory, commit })
}

/// One visit to the hub for one repository.
pub(super) struct HubSession {
    /// Which repository, at which revision.
    pub(super) repository: Repository,
    /// Where the cache is.
    pub(super) cache_directory: PathBuf,
    /// Where the repository's files go.
    pub(super) cache: RepositoryCache,
    /// How long to wait.
    pub(super) settings: HubSettings,
    /// The repository at the hub.
    pub(super) handle: HFRepository<RepoTypeModel>,
    /// The hub's address.
    pub(super) endpoint: String,
}

impl HubSession {
    fn open(
        repository: Repository,
        cache: RepositoryCache,
        cache_directory: PathBuf,
        settings: HubSettings,
    ) -> Result<Self, EngineError> {
        let agent = concat!("manifold/", env!("CARGO_PKG_VERSION"));
        let mut builder = HFClient::builder()
            .user_agent(agent)
            .cache_dir(&cache_directory)
            .retry_base_delay(settings.retry_delay);
        if let Some(endpoint) = &settings.endpoint {
            builder = builder.endpoint(endpoint);
        }
        if let Some(token) = &settings.token {
            builder = builder.token(token);
        }
        let client = builder.build().map_err(|error| EngineError::Hub {
            repository: repository.to_string(),
            reason: format!("the hub's address is not usable: {error}"),
        })?;
        let (owner, name) = split_id(&repository.id);
        let handle = client.model(owner, name);
        Ok(Self {
            handle,
            endpoint: client.endpoint().to_owned(),
            repository,
            cache_directory,
            cache,
            settings,
        })
    }

    async fn fetch(&self) -> Result<Snapshot, EngineError> {
        let commit = self.resolve().await?;
        if !self.cache.missing(&commit)?.is_empty() {
            self.download(&commit).await?;
        }
        self.cache.remember(&self.repository.revision, &commit)?;
        Ok(Snapshot {
            directory: self.cache.snapshot(&commit),
            commit,
        })
    }

    /// The commit the revision stands for now.
    async fn resolve(&self) -> Result<String, EngineError> {
        let info = self
            .ask(
                self.handle
                    .info()
                    .revision(&self.repository.revision)
                    .send(),
            )
            .await?;
        match info.sha {
            Some(commit) if is_commit(&commit) => Ok(commit),
            other => Err(self.fail(format!(
                "the hub resolved the revision to {other:?}, which is not a commit"
            ))),
        }
    }

    /// Brings all files of a checkpoint into the commit's snapshot: first the index of shards, which says what the rest is.
    async fn download(&self, commit: &str) -> Result<(), EngineError> {
        let listed = self.list(commit).await?;
        let take = |name: &str| {
            let file = listed.get(name).cloned();
            file.ok_or_else(|| {
                self.fail(format!(
                    "the repository has no file {name} (commit {commit})"
                ))
            })
        };
        let layout = WeightLayout::of(listed.keys().map(String::as_str))
            .map_err(|reason| self.fail(reason))?;
        let mut files = vec![take(CONFIG_FILE)?, take(TOKENIZER_FILE)?];
        let progress = DownloadProgress::start(self.repository.to_string());
        match layout {
            WeightLayout::Single => files.push(take(SINGLE_FILE)?),
            WeightLayout::Sharded => {
                let index = take(INDEX_FILE)?;
                progress.expect(std::slice::from_ref(&index));
                self.bring(commit, &index, &progress).await?;
                let path = self.cache.snapshot(commit).join(INDEX_FILE);
                let index = ShardIndex::parse(&read_file(&path)?, &path)?;
                for shard in index.shards() {
                    files.push(take(shard)?);
                }
            }
        }
        progress.expect(&files);
        let downloads = stream::iter(&files).map(|file| self.bring(commit, file, &progress));
        downloads
            .buffer_unordered(PARALLEL_FILES)
            .try_collect::<()>()
            .await?;
        progress.finish();
        Ok(())
    }

    /// The files at the top of the repository, by name.
    async fn list(&self, commit: &str) -> Result<BTreeMap<String, RemoteFile>, EngineError> {
        let entries = self
            .ask(async {
                self.handle
                    .list_tree()
                    .revision(commit)
                    .send()?
                    .try_collect::<Vec<_>>()
                    .await
            })
            .await?;
        let mut files = BTreeMap::new();
        for entry in entries {
            if let RepoTreeEntry::File {
                oid,
                size,
                path,
                lfs,
                ..
            } = entry
            {
                // The hub sends the SHA-256 as `lfs.oid`, where hf-hub 1.0.0 does not look for it; mirrors send `lfs.sha256`.
                let sha256 = lfs
                    .and_then(|lfs| lfs.sha256)
                    .filter(|sha256| sha256.len() == 64 && is_hex(sha256));
                let key = sha256.clone().unwrap_or(oid);
                if !is_hex(&key) {
                    return Err(self.fail(format!(
                        "the hub lists {path} with the object id {key:?}, which is not hexadecimal"
                    )));
                }
                files.insert(
                    path.clone(),
                    RemoteFile {
                        name: path,
                        size_bytes: size,
                        key,
                        sha256,
                    },
                );
            }
        }
        Ok(files)
    }
}

#[cfg(test)]
mod tests;
