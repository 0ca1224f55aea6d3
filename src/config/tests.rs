//! How the sources of settings come together.

use super::*;
use crate::engine::{DeviceChoice, DtypeChoice};

fn inputs<'a>(
    args: &'a ConfigArgs,
    environment: &[(&str, &str)],
    file: Option<&str>,
) -> Inputs<'a> {
    let own = |(name, text): &(&str, &str)| (OsString::from(name), OsString::from(text));
    Inputs {
        args,
        environment: environment.iter().map(own).collect(),
        file: file.map(|text| ConfigFile {
            path: PathBuf::from("m.toml"),
            text: text.to_owned(),
        }),
        is_directory: &|path| path == Path::new("models/here"),
    }
}

fn typed(words: &[&str]) -> ConfigArgs {
    use clap::{Args, FromArgMatches};
    let command = ConfigArgs::augment_args(clap::Command::new("serve"));
    let words = std::iter::once(&"serve").chain(words);
    let matches = command.try_get_matches_from(words).expect("flags parse");
    ConfigArgs::from_arg_matches(&matches).expect("flags parse")
}

fn resolve(words: &[&str], environment: &[(&str, &str)], file: Option<&str>) -> Config {
    Config::resolve(&inputs(&typed(words), environment, file)).expect("no fault")
}

fn faults(words: &[&str], environment: &[(&str, &str)], file: Option<&str>) -> Vec<String> {
    match Config::resolve(&inputs(&typed(words), environment, file)) {
        Ok(config) => panic!("no fault: {config:?}"),
        Err(faults) => faults.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn flags_win_over_environment_over_file_over_defaults() {
    let file = Some("[batch]\nmax_tokens = 2000\nmax_sequences = 20\n[server]\nport = 2\n");
    let environment = [
        ("MANIFOLD_BATCH_MAX_TOKENS", "3000"),
        ("MANIFOLD_PORT", "3"),
    ];
    let config = resolve(&["--port=4"], &environment, file);
    assert_eq!(config.server.port, 4);
    assert_eq!(config.batch.max_tokens, 3000);
    assert_eq!(config.batch.max_sequences, 20);
    assert_eq!(config.batch.max_queue_tokens, 1_048_576);
}

#[test]
fn the_defaults_are_those_of_the_rooms() {
    let config = resolve(&[], &[], None);
    assert_eq!(config.batch, BatchPolicy::default());
    assert_eq!(config.pixels, PixelOptions::default());
    assert_eq!(config.engine, EngineSettings::default());
    assert_eq!(config.telemetry, TelemetrySettings::default());
    assert_eq!(config.model.source, CheckpointSource::Embedded);
    assert_eq!(config.instructions.len(), 2);
    assert_eq!(config.instructions["document"], "");
}

#[test]
fn all_faults_of_all_sources_are_listed_with_their_origin() {
    let found = faults(
        &["--threads=many"],
        &[("MANIFOLD_DTYPE", "f64"), ("MANIFOLD_COLOUR", "red")],
        Some("[log]\nlevel = \"loud\"\n"),
    );
    assert_eq!(
        found,
        [
            "m.toml:2: log.level: \"loud\" is not allowed, expected a level or a list of target=level directives",
            "environment MANIFOLD_DTYPE: \"f64\" is not allowed, expected auto, f32, bf16, int8",
            "environment MANIFOLD_COLOUR: is no setting",
            "flag --engine-threads, --threads: \"many\" is not allowed, expected a whole number from 0 to 4096",
        ]
    );
}

#[test]
fn a_fault_counts_even_where_a_stronger_source_replaces_the_value() {
    let found = faults(&["--port=80"], &[], Some("[server]\nport = -1\n"));
    assert_eq!(found.len(), 1, "{found:?}");
}

#[test]
fn a_model_is_a_directory_an_id_or_the_embedded_one() {
    let source = |id: &str| resolve(&["--model", id], &[], None).model.source;
    let directory = |path: &str| CheckpointSource::Directory(PathBuf::from(path));
    assert_eq!(source("models/here"), directory("models/here"));
    assert_eq!(source("./x"), directory("./x"));
    assert_eq!(source("/x"), directory("/x"));
    assert_eq!(source(""), CheckpointSource::Embedded);
    assert_eq!(
        source("Qwen/Qwen3-VL-Embedding-2B"),
        CheckpointSource::Hub {
            id: "Qwen/Qwen3-VL-Embedding-2B".to_owned(),
            revision: None,
            offline: false,
        }
    );
    for wrong in ["gpt2", "a/b/c", "a/../b", "a b/c", "https://x/y"] {
        let found = faults(&["--model", wrong], &[], None);
        assert!(
            found[0].contains("neither a directory nor"),
            "{wrong}: {found:?}"
        );
    }
}

#[test]
fn a_revision_needs_an_id() {
    let words = ["--model=models/here", "--revision=abc"];
    assert_eq!(
        faults(&words, &[], None),
        [
            "flag --model-revision, --revision: \"abc\" needs a Hugging Face id in model.id, which is \"models/here\""
        ]
    );
    let config = resolve(&["--model=a/b", "--revision=abc", "--offline"], &[], None);
    let expected = CheckpointSource::Hub {
        id: "a/b".to_owned(),
        revision: Some("abc".to_owned()),
        offline: true,
    };
    assert_eq!(config.model.source, expected);
}

#[test]
fn settings_that_contradict_each_other_are_a_fault() {
    let found = faults(&["--min-pixels=5000000"], &[], None);
    assert_eq!(
        found,
        [
            "flag --processor-min-pixels, --min-pixels: processor.min_pixels (5000000) may not exceed processor.max_pixels (1843200)"
        ]
    );
    let found = faults(&[], &[("MANIFOLD_BATCH_MAX_QUEUE_TOKENS", "100")], None);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found[0].starts_with("environment MANIFOLD_BATCH_MAX_QUEUE_TOKENS: "),
        "{found:?}"
    );
    assert_eq!(faults(&["--host="], &[], None).len(), 1);
    let twice = ["--served-model-name=a", "--served-model-name=a"];
    assert_eq!(faults(&twice, &[], None).len(), 1);
}

#[test]
fn the_device_and_the_lists_reach_their_rooms() {
    let file = "[media]\nallowed_ports = [8000]\nallowed_domains = [\"*.example.org\"]\nfile_root = \"/srv\"\n[processor]\ntotal_pixels = 9\n[prompt.instructions]\ncode = \"Find code.\"\n";
    let config = resolve(&["--device=cuda:1", "--dtype=bf16"], &[], Some(file));
    assert_eq!(config.engine.device, DeviceChoice::Cuda(1));
    assert_eq!(config.engine.dtype, DtypeChoice::Bf16);
    assert_eq!(config.media.allowed_ports, [8000]);
    assert_eq!(config.media.allowed_domains, ["*.example.org"]);
    assert_eq!(config.media.file_root, Some(PathBuf::from("/srv")));
    assert_eq!(config.pixels.total_pixels, Some(9));
    assert_eq!(
        config.instructions,
        BTreeMap::from([("code".to_owned(), "Find code.".to_owned())])
    );
}

#[test]
fn a_key_is_never_shown() {
    let environment = [("MANIFOLD_API_KEY", "hunter2,hunter3")];
    let config = resolve(&[], &environment, None);
    let keys: Vec<&str> = config.auth.api_keys.iter().map(Secret::expose).collect();
    assert_eq!(keys, ["hunter2", "hunter3"]);
    let shown = format!("{config:?}");
    assert!(
        shown.contains("***") && !shown.contains("hunter"),
        "{shown}"
    );
    let args = typed(&[]);
    let inputs = inputs(&args, &environment, None);
    let shown = format!("{inputs:?}") + &Config::print(&inputs).expect("no fault");
    assert!(!shown.contains("hunter"), "{shown}");
    assert!(shown.contains("# api_keys = [\"***\", \"***\"]  # environment MANIFOLD_API_KEY"));
}

#[test]
fn keys_of_the_file_are_added_and_an_empty_file_is_a_fault() {
    let path = tempfile::NamedTempFile::new().expect("a temporary file");
    let auth = AuthSettings {
        api_keys: vec![Secret("one".to_owned())],
        api_key_file: Some(path.path().to_owned()),
    };
    std::fs::write(path.path(), "# keys\n\n two \n").expect("written");
    let keys = auth.read_keys().expect("two keys");
    assert_eq!(keys, ["one", "two"].map(|key| Secret(key.to_owned())));
    for wrong in ["# none\n", "hunter two\n"] {
        std::fs::write(path.path(), wrong).expect("written");
        let fault = auth.read_keys().expect_err("a fault").to_string();
        assert!(!fault.contains("hunter"), "{fault}");
    }
    std::fs::remove_file(path.path()).expect("removed");
    assert!(auth.read_keys().is_err());
}

#[test]
fn printed_settings_are_a_file_that_means_the_same() {
    let words = ["--port=0", "--model=a/b", "--no-url-fetch", "--fps=0.5"];
    let words: Vec<&str> = words
        .into_iter()
        .chain(["--served-model-name=x y\"z"])
        .collect();
    let args = typed(&words);
    let printed = Config::print(&inputs(&args, &[], None)).expect("no fault");
    assert!(
        printed.contains("port = 0  # flag --server-port, --port\n"),
        "{printed}"
    );
    assert!(
        printed.contains("max_tokens = 16384  # default\n"),
        "{printed}"
    );
    assert_eq!(
        resolve(&[], &[], Some(&printed)),
        resolve(&words, &[], None)
    );
}

#[test]
fn the_shipped_file_lists_every_setting_with_its_built_in_default() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/default.toml");
    let expected = print::with_help(&Values::defaults());
    if std::env::var_os("MANIFOLD_TEST_BLESS").is_some() {
        std::fs::write(path, &expected).expect("written");
    }
    let shipped = std::fs::read_to_string(path).expect("configs/default.toml exists");
    assert_eq!(resolve(&[], &[], Some(&shipped)), resolve(&[], &[], None));
    assert!(
        shipped == expected,
        "configs/default.toml is stale: run this test with MANIFOLD_TEST_BLESS=1"
    );
    for row in table::SETTINGS {
        let name = format!("\n{} = ", row.name());
        let hidden = format!("\n# {} = ", row.name());
        assert!(
            shipped.contains(&name) || shipped.contains(&hidden),
            "{}",
            row.key
        );
    }
}
