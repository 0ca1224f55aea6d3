//! What a server says about itself when it starts. In: its settings and what was loaded. Out: lines for people on standard
//! output, or one event where the log is JSON.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::config::{Config, ServerSettings};
use crate::engine::{CheckpointSource, EngineInfo};
use crate::media::MediaSettings;
use crate::telemetry::LogFormat;

/// Shown before the embedded model is loaded. Nobody may take its vectors for real ones.
const EMBEDDED_NOTICE: &str = "\
+---------------------------------------------------------------------------+
|  No --model was given: this is the tiny model inside the binary.          |
|  It is for trying the API. ITS VECTORS MEAN NOTHING.                      |
|  For real ones: manifold serve --model Qwen/Qwen3-VL-Embedding-2B         |
+---------------------------------------------------------------------------+";

/// Warns people, or the log where it is JSON, that the embedded model is served.
pub(super) fn warn_of_embedded(format: LogFormat) {
    match format {
        LogFormat::Text => eprintln!("{EMBEDDED_NOTICE}"),
        LogFormat::Json => {
            tracing::warn!("no model was given: this is the tiny one, and its vectors mean nothing")
        }
    }
}

/// What the settings do not say.
pub(super) struct Facts<'a> {
    /// What clients may call the model.
    pub served_names: &'a [String],
    /// The commit of the hub.
    pub revision: Option<&'a str>,
    /// How many API keys are valid.
    pub keys: usize,
    /// Where the server listens.
    pub address: SocketAddr,
    /// Where metrics and health need no key.
    pub operators: Option<SocketAddr>,
    /// Where FFmpeg was found, with ffprobe beside it.
    pub ffmpeg: Option<PathBuf>,
}

/// Tells what runs.
pub(super) fn tell(config: &Config, info: &EngineInfo, facts: &Facts<'_>) {
    let lines = lines(config, info, facts);
    match config.telemetry.format {
        LogFormat::Text => {
            println!("manifold {}", env!("CARGO_PKG_VERSION"));
            for (what, text) in lines {
                println!("  {what:<9} {text}");
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

fn lines(config: &Config, info: &EngineInfo, facts: &Facts<'_>) -> Vec<(&'static str, String)> {
    let (limits, batch) = (&config.limits, &config.batch);
    let origin = match &config.model.source {
        CheckpointSource::Embedded => "inside the binary".to_owned(),
        CheckpointSource::Directory(path) => path.display().to_string(),
        CheckpointSource::Hub { id, .. } => match facts.revision {
            Some(revision) => format!("{id} at {revision}"),
            None => id.clone(),
        },
    };
    let tokens = limits.max_input_tokens.min(info.max_position_embeddings);
    let threads = match info.device.as_str() {
        "cpu" => format!(", {} threads", info.threads),
        _ => String::new(),
    };
    let video = match &facts.ffmpeg {
        Some(path) => path.display().to_string(),
        None => "NO FFmpeg found, so video files are refused; frame lists work".to_owned(),
    };
    let access = match facts.keys {
        0 => "everybody (no API key is set)".to_owned(),
        1 => "1 API key".to_owned(),
        keys => format!("{keys} API keys"),
    };
    vec![
        (
            "model",
            format!("{} ({origin})", facts.served_names.join(", ")),
        ),
        (
            "device",
            format!("{}, {}{threads}", info.device, info.dtype),
        ),
        (
            "vectors",
            format!(
                "{} dimensions, {} parameters",
                info.hidden_size, info.parameters
            ),
        ),
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
    ]
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

    fn summary_of(ffmpeg: Option<PathBuf>, keys: usize) -> String {
        let config = defaults();
        let info = EngineInfo {
            device: "cpu".to_owned(),
            dtype: "bf16",
            threads: 2,
            hidden_size: 64,
            max_position_embeddings: 4096,
            parameters: 12_345,
        };
        let facts = Facts {
            served_names: &["manifold-tiny".to_owned()],
            revision: None,
            keys,
            address: SocketAddr::from(([127, 0, 0, 1], 8080)),
            operators: None,
            ffmpeg,
        };
        let lines = lines(&config, &info, &facts);
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
            "device cpu, bf16, 2 threads",
            "2048 inputs of 4096 tokens, 67108864 bytes, 300 s",
            "video /usr/bin/ffmpeg",
            "access 2 API keys",
            "listening 127.0.0.1:8080, 4096 connections, closed after 20 s",
            "metrics http://127.0.0.1:8080/metrics (with an API key)",
        ] {
            assert!(summary.contains(part), "{part} is missing:\n{summary}");
        }
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
