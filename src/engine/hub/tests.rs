//! Downloads from a hub on loopback, whole and broken.

mod stand_in;

use std::fs;
use std::path::Component;
use std::time::Instant;

use proptest::prelude::*;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use self::stand_in::{COMMIT, Faults, ID, Seen, StandIn};
use super::*;
use crate::engine::sample_checkpoint::{Files, index, sharded, single};

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// A hub, an empty cache, and how to fetch from one into the other.
struct Bench {
    hub: Option<StandIn>,
    cache: TempDir,
    settings: HubSettings,
}

impl Bench {
    fn new(files: Files, faults: Faults) -> Self {
        let hub = StandIn::start(files, faults);
        let cache = TempDir::new().unwrap();
        let settings = HubSettings {
            endpoint: Some(hub.endpoint()),
            cache: Some(cache.path().to_owned()),
            // A token of its own, so that the one of whoever runs the tests is not sent.
            token: Some("unasked".to_owned()),
            offline: false,
            retry_delay: Duration::from_millis(1),
            stall: Duration::from_secs(20),
        };
        Self {
            hub: Some(hub),
            cache,
            settings,
        }
    }

    fn hub(&self) -> &StandIn {
        self.hub.as_ref().unwrap()
    }

    fn fetch(&self, revision: Option<&str>) -> Result<Snapshot, String> {
        fetch(ID, revision, self.settings.clone()).map_err(|error| error.to_string())
    }

    fn offline(mut self) -> Self {
        self.hub = None;
        self.settings.offline = true;
        self
    }

    /// The error must name the repository and hold every one of the words.
    fn assert_refused(&self, revision: Option<&str>, words: &[&str]) {
        let error = self.fetch(revision).expect_err("the hub refuses");
        let repository = format!("{ID}@{}", revision.unwrap_or("main"));
        for word in words.iter().chain([&repository.as_str()]) {
            assert!(error.contains(word), "{error:?} does not say {word:?}");
        }
    }

    /// Where an interrupted download leaves the weights of [`single`].
    fn partial(&self) -> PathBuf {
        let key = &sha256(&single()["model.safetensors"])[..40];
        self.cache
            .path()
            .join(format!("models--owner--tiny-model/blobs/{key}.part"))
    }
}

fn assert_holds(snapshot: &Snapshot, files: &Files) {
    assert_eq!(snapshot.commit, COMMIT);
    for (name, bytes) in files {
        assert!(
            fs::read(snapshot.directory.join(name)).unwrap() == *bytes,
            "{name} differs"
        );
    }
}

fn gets(seen: &[Seen], name: &str) -> Vec<Option<String>> {
    let of_file = seen
        .iter()
        .filter(|seen| seen.method == "GET" && seen.path.ends_with(&format!("/cdn/{name}")));
    of_file.map(|seen| seen.range.clone()).collect()
}

#[test]
fn downloads_what_a_checkpoint_needs_and_nothing_else() {
    let mut shelf = sharded();
    for extra in [
        "pytorch_model.bin",
        "README.md",
        "other.safetensors",
        "tokenizer_config.json",
    ] {
        shelf.insert(extra.to_owned(), b"x".to_vec());
    }
    let bench = Bench::new(shelf, Faults::default());
    let snapshot = bench.fetch(None).unwrap();
    assert_holds(&snapshot, &sharded());
    assert_eq!(
        fs::read_dir(&snapshot.directory).unwrap().count(),
        sharded().len()
    );
    let blobs = bench.cache.path().join("models--owner--tiny-model/blobs");
    assert_eq!(fs::read_dir(blobs).unwrap().count(), sharded().len());
}

#[test]
fn checkpoint_carries_the_hub_id_and_the_resolved_commit() {
    let bench = Bench::new(single(), Faults::default());
    let snapshot = bench.fetch(Some("v1")).unwrap();
    assert_holds(&snapshot, &single());
    let reference = bench.cache.path().join("models--owner--tiny-model/refs/v1");
    assert_eq!(fs::read_to_string(reference).unwrap(), COMMIT);
    let checkpoint =
        crate::engine::Checkpoint::from_hub(ID, Some("v1"), bench.settings.clone()).unwrap();
    assert_eq!(
        (checkpoint.name.as_str(), checkpoint.revision.as_deref()),
        (ID, Some(COMMIT))
    );
    assert_eq!(checkpoint.weights.len(), 3);
}

#[test]
fn second_fetch_asks_only_what_the_branch_stands_for() {
    let bench = Bench::new(single(), Faults::default());
    let first = bench.fetch(None).unwrap();
    bench.hub().take_seen();
    assert_eq!(bench.fetch(None).unwrap(), first);
    let paths: Vec<String> = bench
        .hub()
        .take_seen()
        .into_iter()
        .map(|seen| seen.path)
        .collect();
    assert_eq!(paths, [format!("/api/models/{ID}/revision/main")]);
}

#[test]
fn pinned_commit_in_the_cache_needs_no_hub() {
    let mut bench = Bench::new(sharded(), Faults::default());
    assert_holds(&bench.fetch(Some(COMMIT)).unwrap(), &sharded());
    bench.hub = None;
    assert_holds(&bench.fetch(Some(COMMIT)).unwrap(), &sharded());
}

#[test]
fn offline_finds_what_was_fetched() {
    let bench = Bench::new(sharded(), Faults::default());
    bench.fetch(None).unwrap();
    let bench = bench.offline();
    assert_holds(&bench.fetch(None).unwrap(), &sharded());
    assert_holds(&bench.fetch(Some(COMMIT)).unwrap(), &sharded());
}

#[test]
fn offline_says_what_is_missing_and_where_it_looked() {
    let bench = Bench::new(sharded(), Faults::default()).offline();
    bench.assert_refused(None, &["offline", "refs/main"]);
    bench.assert_refused(Some("refs/pr/1"), &["offline", "refs/refs/pr/1"]);
    bench.assert_refused(
        Some(COMMIT),
        &[
            "offline",
            "config.json, tokenizer.json, the safetensors weights",
            COMMIT,
        ],
    );

    let bench = Bench::new(sharded(), Faults::default());
    let snapshot = bench.fetch(None).unwrap();
    let bench = bench.offline();
    fs::remove_file(
        snapshot
            .directory
            .join("two.safetensors")
            .canonicalize()
            .unwrap(),
    )
    .unwrap();
    bench.assert_refused(
        None,
        &[
            "offline",
            "lacks two.safetensors",
            snapshot.directory.to_str().unwrap(),
        ],
    );
}

#[test]
fn file_that_left_the_cache_is_fetched_again_alone() {
    let bench = Bench::new(sharded(), Faults::default());
    let snapshot = bench.fetch(None).unwrap();
    fs::remove_file(
        snapshot
            .directory
            .join("two.safetensors")
            .canonicalize()
            .unwrap(),
    )
    .unwrap();
    bench.hub().take_seen();
    assert_holds(&bench.fetch(Some(COMMIT)).unwrap(), &sharded());
    let seen = bench.hub().take_seen();
    assert_eq!(
        (
            gets(&seen, "one.safetensors").len(),
            gets(&seen, "two.safetensors").len()
        ),
        (0, 1)
    );
}

#[test]
fn token_is_sent_and_its_absence_explained() {
    let faults = Faults {
        token: Some("sesame".to_owned()),
        ..Faults::default()
    };
    let mut bench = Bench::new(single(), faults);
    bench.assert_refused(None, &["refuses access (401)", "HF_TOKEN"]);
    bench.settings.token = Some("sesame".to_owned());
    assert_holds(&bench.fetch(None).unwrap(), &single());
    let bearer = |seen: &&Seen| seen.authorization.as_deref() == Some("Bearer sesame");
    assert!(bench.hub().take_seen().iter().any(|seen| bearer(&seen)));
}

#[test]
fn gated_repository_says_what_to_do() {
    let bench = Bench::new(
        single(),
        Faults {
            gated: true,
            ..Faults::default()
        },
    );
    bench.assert_refused(
        None,
        &["refuses access (403)", "accept its terms", "HF_TOKEN"],
    );
}

#[test]
fn what_does_not_exist_is_named() {
    let bench = Bench::new(single(), Faults::default());
    bench.assert_refused(Some("v9"), &["has no revision v9"]);
    let error = fetch("owner/other", None, bench.settings.clone())
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("owner/other@main: http://127.0.0.1:")
            && error.ends_with("has no such repository"),
        "{error}"
    );
    let mut files = single();
    files.remove("tokenizer.json");
    Bench::new(files, Faults::default())
        .assert_refused(None, &["has no file tokenizer.json", COMMIT]);
    let mut files = sharded();
    files.insert(
        "model.safetensors.index.json".to_owned(),
        index(&[("a", "three.safetensors")]),
    );
    Bench::new(files, Faults::default()).assert_refused(None, &["has no file three.safetensors"]);
}

#[test]
fn repository_of_pickle_files_is_refused_before_any_download() {
    let mut files = single();
    files.remove("model.safetensors");
    files.insert("pytorch_model.bin".to_owned(), b"x".to_vec());
    let bench = Bench::new(files, Faults::default());
    bench.assert_refused(None, &["pytorch_model.bin", "only safetensors is loaded"]);
    assert!(
        bench
            .hub()
            .take_seen()
            .iter()
            .all(|seen| seen.path.starts_with("/api/"))
    );
}

#[test]
fn unreachable_hub_points_at_offline_mode() {
    let mut bench = Bench::new(single(), Faults::default());
    bench.fetch(None).unwrap();
    let endpoint = bench.hub().endpoint();
    bench.hub = None;
    // The cache holds the branch, yet nobody asked for a copy of unknown age.
    bench.assert_refused(
        None,
        &[
            &endpoint,
            "cannot be reached",
            "offline mode",
            bench.cache.path().to_str().unwrap(),
        ],
    );
}

#[test]
fn silent_hub_is_given_up() {
    let mut bench = Bench::new(
        single(),
        Faults {
            silent: true,
            ..Faults::default()
        },
    );
    bench.settings.stall = Duration::from_millis(100);
    let started = Instant::now();
    bench.assert_refused(None, &["no answer for 100ms"]);
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[test]
fn cut_connection_resumes_at_the_missing_byte() {
    let bench = Bench::new(
        single(),
        Faults {
            cut_after: Some(70_000),
            ..Faults::default()
        },
    );
    assert_holds(&bench.fetch(None).unwrap(), &single());
    let last = single()["model.safetensors"].len() - 1;
    // How much of what was sent before the cut arrives is the network's choice, so the ranges are checked for what they must be.
    let ranges = gets(&bench.hub().take_seen(), "model.safetensors");
    assert!(ranges.len() >= 3, "{ranges:?}");
    assert_eq!(ranges[0], None);
    let starts: Vec<usize> = ranges[1..]
        .iter()
        .map(|range| {
            range
                .as_deref()
                .unwrap()
                .strip_prefix("bytes=")
                .unwrap()
                .strip_suffix(&format!("-{last}"))
                .unwrap()
        })
        .map(|start| start.parse().unwrap())
        .collect();
    assert!(starts[0] > 0 && starts.is_sorted(), "{starts:?}");
}

#[test]
fn interrupted_download_is_taken_up_by_the_next_start() {
    let faults = Faults {
        cut_after: Some(50_000),
        then_nothing: true,
        ..Faults::default()
    };
    let bench = Bench::new(single(), faults);
    bench.assert_refused(
        None,
        &["model.safetensors stopped at byte", "goes on from there"],
    );
    let kept = fs::metadata(bench.partial()).unwrap().len();
    assert!(kept > 0 && kept <= 50_000, "{kept}");

    bench.hub().set_faults(Faults::default());
    bench.hub().take_seen();
    assert_holds(&bench.fetch(None).unwrap(), &single());
    let last = single()["model.safetensors"].len() - 1;
    assert_eq!(
        gets(&bench.hub().take_seen(), "model.safetensors"),
        [Some(format!("bytes={kept}-{last}"))]
    );
    assert!(!bench.partial().exists());
}

#[test]
fn server_without_ranges_gives_the_right_file_all_the_same() {
    let bench = Bench::new(
        single(),
        Faults {
            cut_after: Some(50_000),
            ..Faults::default()
        },
    );
    leave_partial(&bench, 50_000);
    bench.hub().set_faults(Faults {
        ignores_ranges: true,
        ..Faults::default()
    });
    assert_holds(&bench.fetch(None).unwrap(), &single());
}

/// Puts the first bytes of the weights where an interrupted download leaves them.
fn leave_partial(bench: &Bench, bytes: usize) {
    let partial = bench.partial();
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    fs::write(partial, &single()["model.safetensors"][..bytes]).unwrap();
}

#[test]
fn partial_file_is_continued_not_repeated() {
    let bench = Bench::new(single(), Faults::default());
    leave_partial(&bench, 123_456);
    assert_holds(&bench.fetch(None).unwrap(), &single());
    let last = single()["model.safetensors"].len() - 1;
    assert_eq!(
        gets(&bench.hub().take_seen(), "model.safetensors"),
        [Some(format!("bytes=123456-{last}"))]
    );
}

#[test]
fn server_that_always_cuts_and_never_resumes_is_given_up() {
    let faults = Faults {
        cut_after: Some(50_000),
        ignores_ranges: true,
        ..Faults::default()
    };
    Bench::new(single(), faults).assert_refused(None, &["model.safetensors stopped at byte"]);
}

#[test]
fn file_of_another_length_than_listed_is_refused() {
    let longer = [single()["model.safetensors"].as_slice(), b"x"].concat();
    let bench = Bench::new(
        single(),
        Faults {
            forged: Some(longer),
            ..Faults::default()
        },
    );
    bench.assert_refused(None, &["model.safetensors is longer than"]);
    let shorter = single()["model.safetensors"][..1000].to_vec();
    let bench = Bench::new(
        single(),
        Faults {
            forged: Some(shorter),
            ..Faults::default()
        },
    );
    assert!(bench.fetch(None).is_err());
}

#[test]
fn file_of_another_digest_than_listed_is_thrown_away() {
    let mut forged = single()["model.safetensors"].clone();
    *forged.last_mut().unwrap() ^= 1;
    let faults = Faults {
        forged: Some(forged),
        lists_sha256: true,
        ..Faults::default()
    };
    let bench = Bench::new(single(), faults);
    bench.assert_refused(None, &["model.safetensors has SHA-256", "thrown away"]);
    bench.hub().set_faults(Faults {
        lists_sha256: true,
        ..Faults::default()
    });
    assert_holds(&bench.fetch(None).unwrap(), &single());
}

#[test]
fn two_starts_at_once_download_each_file_once() {
    let bench = Bench::new(single(), Faults::default());
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| assert_holds(&bench.fetch(None).unwrap(), &single()));
        }
    });
    assert_eq!(gets(&bench.hub().take_seen(), "model.safetensors").len(), 1);
}

#[test]
fn names_that_are_no_repository_or_revision_are_refused() {
    for id in [
        "",
        "/",
        "a/",
        "/a",
        "a/b/c",
        "../x",
        "a/..",
        "a b/c",
        "a/b\n",
        ".a/b",
        "a/-b",
        "a/b?x",
        "C:\\models",
    ] {
        assert!(Repository::parse(id, None).is_err(), "{id:?}");
    }
    for revision in [
        "", "/", "../main", "a/../b", "a//b", "/etc", "a b", "a~1", "a:b", ".git", "a\\b", "\0",
    ] {
        assert!(
            Repository::parse("a/b", Some(revision)).is_err(),
            "{revision:?}"
        );
    }
    for revision in ["main", "v1.0", "refs/pr/1", "feature/x-y_z", COMMIT] {
        assert!(
            Repository::parse("Qwen/Qwen3-VL-Embedding-2B", Some(revision)).is_ok(),
            "{revision:?}"
        );
    }
}

proptest! {
    #[test]
    fn accepted_names_stay_inside_the_cache(id in r"[a./\\:-]{1,6}/?[a./\\-]{0,6}", revision in r"[a./\\:~-]{1,8}") {
        if let Ok(repository) = Repository::parse(&id, Some(&revision)) {
            let cache = RepositoryCache::new(std::path::Path::new("cache"), &repository.id);
            let path = cache.reference(&repository.revision);
            prop_assert!(path.components().all(|part| matches!(part, Component::Normal(_))), "{}", path.display());
            prop_assert!(path.starts_with("cache"));
        }
    }
}
