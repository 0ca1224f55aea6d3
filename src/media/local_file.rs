//! Files beneath the one directory the operator allows.
//!
//! In: a `file://` URL. Out: the file's bytes. A path outside the directory is refused before the file system is asked about it,
//! so its existence is not told; a symbolic link that leads outside is refused after. What is opened is what was checked: the resolved path is
//! walked from the directory down, and a link that somebody puts into it meanwhile is not followed.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use rustix::fs::{Mode, OFlags, open, openat};
use url::Url;

use super::MediaError;
use super::loader::{blocked, failed, within};

const OUTSIDE: &str = "the file is not beneath the directory this server reads from";
const UNREADABLE: &str = "the file does not exist or cannot be read";

/// A directory whose files may be read.
#[derive(Debug, Clone)]
pub(super) struct FileRoot {
    /// As the operator wrote it, made absolute: what clients write begins with it.
    named: PathBuf,
    /// Where that really is: what a resolved path begins with.
    real: PathBuf,
}

impl FileRoot {
    /// # Errors
    /// [`MediaError::Internal`] when `root` is not a directory.
    pub(super) fn new(root: &Path) -> Result<Self, MediaError> {
        let resolve = || -> io::Result<Self> {
            let real = fs::canonicalize(root)?;
            if !real.is_dir() {
                return Err(io::Error::from(io::ErrorKind::NotADirectory));
            }
            Ok(Self {
                named: std::path::absolute(root)?,
                real,
            })
        };
        resolve().map_err(|error| {
            MediaError::Internal(io::Error::new(
                error.kind(),
                format!("file root {}: {error}", root.display()),
            ))
        })
    }

    /// Whether a URL names a path beneath the root.
    pub(super) fn permits(&self, url: &Url) -> Result<(), MediaError> {
        self.checked_path(url).map(|_| ())
    }

    /// The bytes of a file, read off the async threads.
    pub(super) async fn read(&self, url: &Url, max_bytes: usize) -> Result<Bytes, MediaError> {
        let path = self.checked_path(url)?;
        let root = self.clone();
        tokio::task::spawn_blocking(move || root.read_now(&path, max_bytes))
            .await
            .map_err(|error| MediaError::Internal(io::Error::other(error)))?
    }

    /// The path a URL names, if its text lies beneath the root.
    fn checked_path(&self, url: &Url) -> Result<PathBuf, MediaError> {
        // A host would mean another machine; `to_file_path` refuses all but an empty one and localhost.
        let path = url.to_file_path().map_err(|()| blocked(OUTSIDE))?;
        // The URL parser has resolved plain dots; an escaped slash ("..%2f") can still smuggle them in.
        let climbs = path.components().any(|part| part == Component::ParentDir);
        if climbs || !(path.starts_with(&self.named) || path.starts_with(&self.real)) {
            return Err(blocked(OUTSIDE));
        }
        Ok(path)
    }

    fn read_now(&self, path: &Path, max_bytes: usize) -> Result<Bytes, MediaError> {
        let unreadable = |_| failed(UNREADABLE);
        let real = fs::canonicalize(path).map_err(unreadable)?;
        if !real.starts_with(&self.real) {
            return Err(blocked(OUTSIDE));
        }
        let beneath = real.strip_prefix(&self.real).unwrap_or(Path::new(""));
        let file = open_beneath(&self.real, beneath).map_err(unreadable)?;
        let opened = file.metadata().map_err(unreadable)?;
        if !opened.is_file() {
            return Err(blocked("only regular files are read"));
        }
        within(opened.len(), max_bytes)?;
        let mut bytes = Vec::with_capacity(opened.len() as usize);
        file.take(max_bytes as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(unreadable)?;
        within(bytes.len() as u64, max_bytes)?;
        Ok(bytes.into())
    }
}

/// Opens what lies at `path`, which was resolved before, beneath `root`: each step from the directory before it, and over no link.
fn open_beneath(root: &Path, path: &Path) -> io::Result<File> {
    let step = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    let mut at = open(root, step | OFlags::DIRECTORY, Mode::empty())?;
    let mut steps = path.components().peekable();
    while let Some(name) = steps.next() {
        let kind = match steps.peek() {
            Some(_) => OFlags::DIRECTORY,
            // Opening a pipe would wait for its writer, and a terminal would become ours.
            None => OFlags::NONBLOCK | OFlags::NOCTTY,
        };
        at = openat(&at, name.as_os_str(), step | kind, Mode::empty())?;
    }
    Ok(File::from(at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::{MediaLoader, MediaSettings, MediaSource};
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    async fn load(root: &Path, url: &str) -> Result<Bytes, MediaError> {
        let settings = MediaSettings {
            file_root: Some(root.to_owned()),
            max_bytes: 100,
            ..MediaSettings::default()
        };
        MediaLoader::new(&settings)
            .unwrap()
            .load(&MediaSource::parse(url, 100).unwrap(), 0)
            .await
            .map(|loaded| loaded.bytes)
    }

    fn is_outside(result: &Result<Bytes, MediaError>) -> bool {
        matches!(result, Err(MediaError::Blocked { reason }) if reason == OUTSIDE)
    }

    #[tokio::test]
    async fn files_beneath_the_root_are_read_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("sub")).unwrap();
        fs::write(root.join("sub/a b.png"), b"inside").unwrap();
        fs::write(dir.path().join("secret"), b"outside").unwrap();
        fs::write(root.join("large"), [0; 101]).unwrap();
        symlink(dir.path().join("secret"), root.join("escape")).unwrap();
        symlink(dir.path(), root.join("up")).unwrap();
        symlink(root.join("sub/a b.png"), root.join("within")).unwrap();
        symlink(&root, dir.path().join("alias")).unwrap();
        let url = |path: &str| format!("file://{}/{path}", root.display());

        for inside in [
            url("sub/a%20b.png"),
            url("sub/../sub/a%20b.png"),
            url("within"),
            url("sub/a%20b.png").replacen("file://", "file://localhost", 1),
        ] {
            assert_eq!(
                &load(&root, &inside).await.unwrap()[..],
                b"inside",
                "{inside}"
            );
        }
        let alias = dir.path().join("alias");
        assert!(
            load(&alias, &format!("file://{}/within", alias.display()))
                .await
                .is_ok()
        );
        for outside in [
            url("../secret"),
            url("%2e%2e/secret"),
            url("..%2fsecret"),
            url("sub/..%2f..%2fsecret"),
            url("escape"),
            url("up/secret"),
            "file:///etc/passwd".to_owned(),
            "file:///no/such/file".to_owned(),
            "file://other.example/etc/passwd".to_owned(),
            format!("file://{}-sibling/a", root.display()),
        ] {
            let result = load(&root, &outside).await;
            assert!(is_outside(&result), "{outside}: {result:?}");
        }
        assert!(matches!(
            load(&root, &url("missing")).await,
            Err(MediaError::FetchFailed { .. })
        ));
        assert!(matches!(
            load(&root, &url("sub")).await,
            Err(MediaError::Blocked { .. })
        ));
        assert!(matches!(
            load(&root, &url("large")).await,
            Err(MediaError::TooLarge {
                value: 101,
                limit: 100,
                ..
            })
        ));
    }

    #[test]
    fn a_link_put_into_a_resolved_path_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        fs::create_dir_all(root.join("sub")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(root.join("sub/a"), b"inside").unwrap();
        fs::write(outside.join("a"), b"outside").unwrap();
        assert!(open_beneath(&root, Path::new("sub/a")).is_ok());
        // What somebody who may write there does after the path was resolved.
        fs::remove_file(root.join("sub/a")).unwrap();
        symlink(outside.join("a"), root.join("sub/a")).unwrap();
        assert!(open_beneath(&root, Path::new("sub/a")).is_err());
        fs::remove_dir_all(root.join("sub")).unwrap();
        symlink(&outside, root.join("sub")).unwrap();
        assert!(open_beneath(&root, Path::new("sub/a")).is_err());
    }

    #[tokio::test]
    async fn what_is_no_regular_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let _socket = UnixListener::bind(root.join("socket")).unwrap();
        let made = std::process::Command::new("mkfifo")
            .arg(root.join("pipe"))
            .status();
        assert!(made.unwrap().success());
        for name in ["socket", "pipe", ""] {
            let url = format!("file://{}/{name}", root.display());
            let loading = load(root, &url);
            let loaded = tokio::time::timeout(std::time::Duration::from_secs(5), loading).await;
            assert!(loaded.expect("it waits").is_err(), "{name}");
        }
    }

    #[tokio::test]
    async fn without_a_root_no_file_is_read() {
        let loader = MediaLoader::new(&MediaSettings::default()).unwrap();
        let result = loader
            .load(&MediaSource::parse("file:///etc/passwd", 100).unwrap(), 0)
            .await;
        assert!(matches!(result, Err(MediaError::Blocked { .. })));
    }

    #[test]
    fn a_root_that_is_no_directory_is_refused_at_start() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(
            FileRoot::new(file.path()),
            Err(MediaError::Internal(_))
        ));
        assert!(matches!(
            FileRoot::new(Path::new("/no/such/directory")),
            Err(MediaError::Internal(_))
        ));
    }
}
