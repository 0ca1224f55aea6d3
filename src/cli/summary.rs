//! What a server says about itself when it starts. In: its settings and what was loaded. Out: lines for people on standard
//! output, or one event where the log is JSON.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::config::{Config, ModelSettings, ServerSettings};
use crate::engine::{CheckpointSource, EngineInfo};
use crate::media::MediaSettings;
use crate::media::video::sandbox::Layers;
use crate::telemetry::LogFormat;

/// Shown before the embedded model is loaded. Nobody may take it for a real one.
const EMBEDDED_NOTICE: &str = "\
+---------------------------------------------------------------------------+
|  No --model was given: this is the small model inside the binary.         |
|  It is for trying the API: it knows emoji and their names, little else.   |
|  For real ones: manifold serve --model Qwen/Qwen3-VL-Embedding-2B         |
+---------------------------------------------------------------------------+";

/// Warns people, or the log where it is JSON, that the embedded model is served.
pub(super) fn warn_of_embedded(format: LogFormat) {
    match format {
        LogFormat::Text => say(io::stderr(), EMBEDDED_NOTICE),
        LogFormat::Json => {
            tracing::warn!(
                "no model was given: this is the small one for trying the API, which knows little"
            )
        }
    }
}

/// What is known of a model that is loaded.
#[derive(Clone, Copy)]
pub(super) struct ModelFacts<'a> {
    /// What clients may call it.
    pub served_names: &'a [String],
    /// Where it comes from.
    pub settings: &'a ModelSettings,
    /// The commit of the hub.
    pub revision: Option<&'a str>,
    /// What runs where.
    pub info: &'a EngineInfo,
    /// The id of its proof.
    pub fingerprint: &'a str,
}

/// What the settings do not say.
pub(super) struct Facts<'a> {
    /// What embeds.
    pub embedder: Option<ModelFacts<'a>>,
    /// What scores documents.
    pub reranker: Option<ModelFacts<'a>>,
    /// How many API keys are valid.
    pub keys: usize,
    /// Where the server listens.
    pub address: SocketAddr,
    /// Where metrics and health need no key.
    pub operators: Option<SocketAddr>,
    /// Where FFmpeg was found, with ffprobe beside it.
    pub ffmpeg: Option<PathBuf>,
    /// What confines it; nothing when it does not run.
    pub sandbox: Option<Layers>,
}

/// Tells what runs.
pub(super) fn tell(config: &Config, facts: &Facts<'_>) {
    let lines = lines(config, facts);
    match config.telemetry.format {
        LogFormat::Text => {
            say(
                io::stdout(),
                concat!("manifold ", env!("CARGO_PKG_VERSION")),
            );
            for (what, text) in lines {
                say(io::stdout(), &format!("  {what:<9} {text}"));
            }
        }
        LogFormat::Json => {
            let lines: Vec<String> = lines
                .into_iter()
                .map(|(what, text)| format!("{what}: {text}"))
                .collect();
            tracing::info!(version = env!("CARGO_PKG_VERSION"), "{}", lines.join("; "));
        }
    }
}

/// The names of a model and where it comes from.
fn named(model: &ModelFacts<'_>) -> String {
    let origin = match &model.settings.source {
        CheckpointSource::Embedded => "inside the binary".to_owned(),
        CheckpointSource::Directory(path) => path.display().to_string(),
        CheckpointSource::Hub { id, .. } => match model.revision {
            Some(revision) => format!("{id} at {revision}"),
            None => id.clone(),
        },
    };
    format!("{} ({origin})", model.served_names.join(", "))
}

/// What is said of the models.
fn of_models(facts: &Facts<'_>) -> Vec<(&'static str, String)> {
    let alone = || "none: the reranker is alone".to_owned();
    let mut lines = vec![("model", facts.embedder.as_ref().map_or_else(alone, named))];
    if let Some(reranker) = &facts.reranker {
        lines.push(("reranker", named(reranker)));
    }
    let models = [
        ("embedder", facts.embedder.as_ref()),
        ("reranker", facts.reranker.as_ref()),
    ];
    let present = models
        .iter()
        .filter_map(|(task, model)| Some((task, (*model)?)));
    let prints = present.clone().map(|(task, model)| {
        let start: String = model.fingerprint.chars().take(12).collect();
        format!("{start} ({task})")
    });
    lines.push(("proof", prints.collect::<Vec<_>>().join(", ")));
    for (_, ModelFacts { info, .. }) in present.take(1) {
        let threads = match info.device.as_str() {
            "cpu" => format!(", {} threads", info.threads),
            _ => String::new(),
        };
        let device = format!("{}, {}{threads}", info.device, info.dtype);
        lines.push(("device", device));
    }
    if let Some(ModelFacts { info, .. }) = &facts.embedder {
        let (width, parameters) = (info.hidden_size, info.parameters);
        let vectors = format!("{width} dimensions, {parameters} parameters");
        lines.push(("vectors", vectors));
    }
    lines
}

fn lines(config: &Config, facts: &Facts<'_>) -> Vec<(&'static str, String)> {
    let (limits, batch) = (&config.limits, &config.batch);
    let models = facts.embedder.iter().chain(&facts.reranker);
    let longest = models.map(|model| model.info.max_position_embeddings).min();
    let tokens = limits.max_input_tokens.min(longest.unwrap_or(usize::MAX));
    let video = video(facts);
    let access = match facts.keys {
        0 => "everybody (no API key is set)".to_owned(),
        1 => "1 API key".to_owned(),
        keys => format!("{keys} API keys"),
    };
    let mut lines = of_models(facts);
    lines.extend([
        (
            "limits",
            format!(
                "{} inputs of {tokens} tokens, {} bytes, {} s a request",
                limits.max_inputs,
                limits.max_body_bytes,
                limits.request_timeout.as_secs_f64()
            ),
        ),
        (
            "batches",
            format!(
                "{} tokens, {} inputs; {} tokens may wait",
                batch.max_tokens, batch.max_sequences, batch.max_queue_tokens
            ),
        ),
        ("media", media_sources(&config.media)),
        ("video", video),
        ("access", access),
        ("listening", listening(&config.server, facts.address)),
        ("metrics", metrics(config, facts)),
    ]);
    lines
}

/// What decodes video files, and what confines it.
fn video(facts: &Facts<'_>) -> String {
    let Some(path) = &facts.ffmpeg else {
        return "NO FFmpeg found, so video files are refused; frame lists work".to_owned();
    };
    let path = path.display();
    match facts.sandbox {
        None => format!("{path} does NOT run, so video files are refused; frame lists work"),
        Some(layers) if layers.is_complete() => format!("{path}, confined by: {layers}"),
        Some(layers) => {
            let missing = layers.missing().join(", ");
            format!("{path}, confined by: {layers}; NOT by: {missing}")
        }
    }
}

/// Where the server listens, how, and for how many.
fn listening(server: &ServerSettings, address: SocketAddr) -> String {
    let tls = match &server.tls {
        Some(files) => format!(" with TLS ({})", files.cert.display()),
        None => String::new(),
    };
    format!(
        "{address}{tls}, {} connections, closed after {} s without use",
        server.max_connections,
        server.idle_timeout.as_secs_f64()
    )
}

/// Where a scraper finds the metrics, and whether it needs a key.
fn metrics(config: &Config, facts: &Facts<'_>) -> String {
    let beside_api = url(&config.server, facts.address);
    match (facts.operators, facts.keys) {
        (Some(address), _) => format!("http://{}/metrics (no key needed)", reachable(address)),
        (None, 0) => format!("{beside_api}/metrics"),
        (None, _) => format!("{beside_api}/metrics (with an API key)"),
    }
}

/// Where media may come from, besides the request itself.
fn media_sources(media: &MediaSettings) -> String {
    let fetched = match (media.url_fetch, media.allowed_domains.as_slice()) {
        (false, _) => "none".to_owned(),
        (true, _) if media.allow_private_networks => "ANY host, private ones too".to_owned(),
        (true, []) => "public hosts".to_owned(),
        (true, domains) => domains.join(", "),
    };
    let files = match &media.file_root {
        Some(root) => root.display().to_string(),
        None => "none".to_owned(),
    };
    format!("URLs of: {fetched}; files beneath: {files}")
}

/// Writes a line, if anybody reads it: whoever wanted only the first and has gone, as `head` does, is no reason not to serve, and
/// `println!` would panic.
pub(super) fn say(mut to: impl Write, line: &str) {
    let _ = writeln!(to, "{line}");
}

/// Where a client on this machine reaches the server.
pub(super) fn url(server: &ServerSettings, address: SocketAddr) -> String {
    let scheme = if server.tls.is_some() {
        "https"
    } else {
        "http"
    };
    format!("{scheme}://{}", reachable(address))
}

/// An address to connect to for one to listen on: nobody can connect to 0.0.0.0.
pub(super) fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

/// Where a program is: the path itself when it has a slash, else the first directory of `PATH` that holds it.
pub(super) fn find_program(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return program.is_file().then(|| program.to_owned());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::TlsFiles;
    use crate::config::{ConfigArgs, Inputs};

    fn defaults() -> Config {
        let inputs = Inputs {
            args: &ConfigArgs::default(),
            environment: Vec::new(),
            file: None,
            is_directory: &|_| false,
        };
        Config::resolve(&inputs).expect("the defaults resolve")
    }

    #[test]
    fn a_line_nobody_reads_is_no_reason_to_panic() {
        let (reader, writer) = io::pipe().expect("a pipe");
        drop(reader);
        say(writer, "the URL");
    }

    fn summary_of(ffmpeg: Option<PathBuf>, keys: usize) -> String {
        summary(ffmpeg, keys, true)
    }

    fn summary(ffmpeg: Option<PathBuf>, keys: usize, with_embedder: bool) -> String {
        let config = defaults();
        let info = EngineInfo {
            device: "cpu".to_owned(),
            dtype: "bf16",
            kernels: "x".to_owned(),
            threads: 2,
            hidden_size: 64,
            max_position_embeddings: 4096,
            parameters: 12_345,
            reuses_prefixes: true,
        };
        let names = ["manifold-tiny".to_owned()];
        let model = ModelFacts {
            served_names: &names,
            settings: &config.model,
            revision: None,
            info: &info,
            fingerprint: "0123456789abcdef",
        };
        let facts = Facts {
            embedder: with_embedder.then_some(model),
            reranker: Some(model),
            keys,
            address: SocketAddr::from(([127, 0, 0, 1], 8080)),
            operators: None,
            ffmpeg,
            sandbox: Some(Layers {
                limits: true,
                ..Layers::default()
            }),
        };
        let lines = lines(&config, &facts);
        lines
            .iter()
            .map(|(what, text)| format!("{what} {text}\n"))
            .collect()
    }

    #[test]
    fn the_summary_names_device_dtype_threads_model_and_limits() {
        let summary = summary_of(Some(PathBuf::from("/usr/bin/ffmpeg")), 2);
        for part in [
            "model manifold-tiny (inside the binary)",
            "reranker manifold-tiny (inside the binary)",
            "proof 0123456789ab (embedder), 0123456789ab (reranker)",
            "device cpu, bf16, 2 threads",
            "2048 inputs of 4096 tokens, 67108864 bytes, 300 s",
            "video /usr/bin/ffmpeg, confined by: limits; NOT by: no new privileges, network namespace, Landlock, seccomp",
            "access 2 API keys",
            "listening 127.0.0.1:8080, 4096 connections, closed after 20 s",
            "metrics http://127.0.0.1:8080/metrics (with an API key)",
        ] {
            assert!(summary.contains(part), "{part} is missing:\n{summary}");
        }
    }

    #[test]
    fn the_summary_of_a_reranker_alone_names_no_embedder() {
        let summary = summary(None, 0, false);
        assert!(
            summary.contains("model none: the reranker is alone"),
            "{summary}"
        );
        assert!(!summary.contains("vectors"), "{summary}");
        assert!(summary.contains("device cpu, bf16, 2 threads"), "{summary}");
    }

    #[test]
    fn the_summary_says_what_is_missing() {
        let summary = summary_of(None, 0);
        assert!(summary.contains("NO FFmpeg found"), "{summary}");
        assert!(summary.contains("everybody"), "{summary}");
    }

    #[test]
    fn the_url_can_be_connected_to() {
        let mut server = defaults().server;
        let everywhere = SocketAddr::from(([0, 0, 0, 0], 9));
        assert_eq!(url(&server, everywhere), "http://127.0.0.1:9");
        let everywhere = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 9));
        assert_eq!(url(&server, everywhere), "http://[::1]:9");
        assert_eq!(
            url(&server, SocketAddr::from(([10, 0, 0, 7], 9))),
            "http://10.0.0.7:9"
        );
        server.tls = Some(TlsFiles {
            cert: PathBuf::from("a.pem"),
            key: PathBuf::from("a.key"),
        });
        assert_eq!(url(&server, everywhere), "https://[::1]:9");
    }

    #[test]
    fn a_program_is_found_in_path_or_where_it_is_named() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let program = directory.path().join("prog");
        assert_eq!(find_program(&program), None);
        std::fs::write(&program, "").expect("written");
        assert_eq!(find_program(&program), Some(program));
        assert_eq!(find_program(Path::new("no-such-program-anywhere")), None);
        assert!(find_program(Path::new("sh")).is_some());
    }
}
