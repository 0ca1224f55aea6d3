//! From stacked values to a [`Config`]. In: [`Inputs`]. Out: the settings structures of the rooms, or every fault.

use std::path::{Path, PathBuf};

use super::error::{ConfigFault, Origin};
use super::value;
use super::values::Values;
use super::{AuthSettings, Config, Inputs, LimitSettings, ModelSettings, ServerSettings};
use crate::api::TlsFiles;
use crate::batcher::BatchPolicy;
use crate::engine::{CheckpointSource, DtypeChoice, EMBEDDED_NAME, EngineSettings};
use crate::media::{MediaSettings, TlsRoots};
use crate::processor::{Excerpt, PixelOptions};
use crate::telemetry::{self, LogFormat, TelemetrySettings};

impl Config {
    /// Decides every setting.
    ///
    /// # Errors
    /// Every fault of every source, in the order file, environment, flags, then contradictions between settings.
    pub fn resolve(inputs: &Inputs<'_>) -> Result<Self, Vec<ConfigFault>> {
        let (values, mut faults) = inputs.stacked();
        let model = model_settings(&values, EMBEDDER, inputs.is_directory);
        let reranker = model_settings(&values, RERANKER, inputs.is_directory);
        faults.extend(contradictions(&values));
        match (model, reranker) {
            (Ok(model), Ok(reranker)) if faults.is_empty() => {
                Ok(Self::from_values(&values, model, reranker))
            }
            (model, reranker) => {
                faults.extend(model.err());
                faults.extend(reranker.err());
                Err(faults)
            }
        }
    }

    fn from_values(values: &Values, model: ModelSettings, reranker: ModelSettings) -> Self {
        let is_named = |keys: ModelKeys| !values.text(keys.id).is_empty();
        Self {
            model,
            embeds: is_named(EMBEDDER) || !is_named(RERANKER),
            reranker: is_named(RERANKER).then_some(reranker),
            offline: values.boolean("model.offline"),
            engine: EngineSettings {
                dtype: match values.text("engine.dtype") {
                    "f32" => DtypeChoice::F32,
                    "bf16" => DtypeChoice::Bf16,
                    "int8" => DtypeChoice::Int8,
                    _ => DtypeChoice::Auto,
                },
                device: value::device(values.text("engine.device")).unwrap_or_default(),
                threads: values.count("engine.threads"),
                max_prefix_bytes: values.count("engine.max_prefix_bytes"),
                max_vision_bytes: values.count("cache.max_vision_bytes"),
                watchdog: values.duration("engine.watchdog_ms"),
            },
            batch: BatchPolicy {
                max_tokens: values.count("batch.max_tokens"),
                max_sequences: values.count("batch.max_sequences"),
                max_queue_tokens: values.count("batch.max_queue_tokens"),
                max_pixel_bytes: values.count("batch.max_pixel_bytes"),
                max_bulk: values.duration("batch.max_bulk_ms"),
                max_wait: values.duration("batch.max_wait_ms"),
                max_cache_bytes: values.count("cache.max_embedding_bytes"),
            },
            server: server_settings(values),
            limits: LimitSettings {
                max_body_bytes: values.count("limits.max_body_bytes"),
                max_held_bytes: values.count("limits.max_held_bytes"),
                max_inputs: values.count("limits.max_inputs"),
                max_input_tokens: values.count("limits.max_input_tokens"),
                request_timeout: values.duration("limits.request_timeout_ms"),
                tokens_per_minute: u32::try_from(values.integer("limits.tokens_per_minute"))
                    .unwrap_or(u32::MAX),
            },
            auth: AuthSettings {
                api_keys: values.secrets("auth.api_keys"),
                api_key_file: values.path("auth.api_key_file"),
            },
            instructions: values.map("prompt.instructions"),
            pixels: pixel_options(values),
            media: media_settings(values),
            telemetry: TelemetrySettings {
                format: match values.text("log.format") {
                    "json" => LogFormat::Json,
                    _ => LogFormat::Text,
                },
                filter: values.text("log.level").to_owned(),
                otlp_endpoint: text_if_any(values, "log.otlp_endpoint"),
            },
        }
    }
}

/// A text; empty is none.
fn text_if_any(values: &Values, key: &str) -> Option<String> {
    let text = values.text(key);
    (!text.is_empty()).then(|| text.to_owned())
}

fn server_settings(values: &Values) -> ServerSettings {
    let files = (
        values.path("server.tls_cert"),
        values.path("server.tls_key"),
    );
    ServerSettings {
        host: values.text("server.host").to_owned(),
        port: values.small("server.port"),
        max_connections: values.count("server.max_connections"),
        threads: values.count("server.threads"),
        idle_timeout: values.duration("server.idle_timeout_ms"),
        body_timeout: values.duration("server.body_timeout_ms"),
        max_header_bytes: values.count("server.max_header_bytes"),
        max_streams: values.small("server.max_streams"),
        max_resets: values.small("server.max_resets"),
        // One without the other is a contradiction, told elsewhere.
        tls: files
            .0
            .zip(files.1)
            .map(|(cert, key)| TlsFiles { cert, key }),
        metrics_address: text_if_any(values, "server.metrics_address"),
        drain_delay: values.duration("server.drain_delay_ms"),
        drain_timeout: values.duration("server.drain_timeout_ms"),
    }
}

fn pixel_options(values: &Values) -> PixelOptions {
    PixelOptions {
        min_pixels: values.integer("processor.min_pixels"),
        max_pixels: values.integer("processor.max_pixels"),
        fps: values.number("processor.fps"),
        max_frames: values.count("processor.max_frames"),
        total_pixels: Some(values.integer("processor.total_pixels")).filter(|pixels| *pixels > 0),
        excerpt: Excerpt::default(),
    }
}

fn media_settings(values: &Values) -> MediaSettings {
    MediaSettings {
        max_bytes: values.count("media.max_bytes"),
        max_pixels: values.integer("media.max_pixels"),
        max_side_pixels: values.small("media.max_side_pixels").into(),
        max_frames: values.count("media.max_frames"),
        max_video_seconds: values.number("media.max_video_seconds"),
        url_fetch: values.boolean("media.url_fetch"),
        allowed_domains: values.texts("media.allowed_domains"),
        allow_private_networks: values.boolean("media.allow_private_networks"),
        allowed_ports: values.ports("media.allowed_ports"),
        max_redirects: values.count("media.max_redirects"),
        fetch_timeout: values.duration("media.fetch_timeout_ms"),
        max_fetches: values.count("media.max_fetches"),
        max_fetches_per_host: values.count("media.max_fetches_per_host"),
        max_kept_bytes: values.count("cache.max_media_bytes"),
        tls_roots: match values.text("media.tls_roots") {
            "webpki" => TlsRoots::Webpki,
            _ => TlsRoots::System,
        },
        file_root: values.path("media.file_root"),
        bmp: values.boolean("media.bmp"),
        tiff: values.boolean("media.tiff"),
        apply_exif_orientation: values.boolean("media.apply_exif_orientation"),
        ffmpeg: PathBuf::from(values.text("media.ffmpeg")),
        ffprobe: PathBuf::from(values.text("media.ffprobe")),
        video_timeout: values.duration("media.video_timeout_ms"),
        max_decoder_bytes: values.integer("media.max_decoder_bytes"),
        max_decoder_seconds: values.integer("media.max_decoder_seconds"),
        max_video_frames: values.integer("media.max_video_frames"),
        require_sandbox: values.boolean("media.require_sandbox"),
        // Not for operators to choose: it is the program that runs.
        ..MediaSettings::default()
    }
}

/// What says which checkpoint.
#[derive(Clone, Copy)]
struct ModelKeys {
    id: &'static str,
    revision: &'static str,
    served_names: &'static str,
}

const EMBEDDER: ModelKeys = ModelKeys {
    id: "model.id",
    revision: "model.revision",
    served_names: "model.served_names",
};
const RERANKER: ModelKeys = ModelKeys {
    id: "reranker.id",
    revision: "reranker.revision",
    served_names: "reranker.served_names",
};

fn model_settings(
    values: &Values,
    keys: ModelKeys,
    is_directory: &dyn Fn(&Path) -> bool,
) -> Result<ModelSettings, ConfigFault> {
    Ok(ModelSettings {
        source: checkpoint_source(values, keys, is_directory)?,
        served_names: values.texts(keys.served_names),
    })
}

/// A path, an id, the embedded model's name or nothing. A directory that exists wins over an id of the same spelling.
fn checkpoint_source(
    values: &Values,
    keys: ModelKeys,
    is_directory: &dyn Fn(&Path) -> bool,
) -> Result<CheckpointSource, ConfigFault> {
    let id = values.text(keys.id);
    let revision = Some(values.text(keys.revision)).filter(|revision| !revision.is_empty());
    let is_directory = |path: &str| is_directory(Path::new(path));
    let source = if id.is_empty() || (id == EMBEDDED_NAME && !is_directory(id)) {
        CheckpointSource::Embedded
    } else if is_directory(id) || id.starts_with(['.', '/', '~']) || id.ends_with('/') {
        CheckpointSource::Directory(PathBuf::from(id))
    } else if is_hub_id(id) {
        CheckpointSource::Hub {
            id: id.to_owned(),
            revision: revision.map(str::to_owned),
            offline: values.boolean("model.offline"),
        }
    } else {
        let problem = format!("{id:?} is neither a directory nor a Hugging Face id (owner/name)");
        return Err(ConfigFault::new(values.origin(keys.id), problem));
    };
    match (&source, revision) {
        (CheckpointSource::Hub { .. }, _) | (_, None) => Ok(source),
        (_, Some(revision)) => Err(ConfigFault::new(
            values.origin(keys.revision),
            format!(
                "{revision:?} needs a Hugging Face id in {}, which is {id:?}",
                keys.id
            ),
        )),
    }
}

fn is_hub_id(id: &str) -> bool {
    let word = |text: &str| {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !text.is_empty() && text.len() <= 96 && text.chars().all(fits) && !text.contains("..")
    };
    id.split_once('/')
        .is_some_and(|(owner, name)| word(owner) && word(name))
}

/// What each value alone may be but two together may not.
fn contradictions(values: &Values) -> Vec<ConfigFault> {
    let mut faults = Vec::new();
    let mut at_most = |smaller: &str, larger: &str| {
        let (low, high) = (values.integer(smaller), values.integer(larger));
        if low > high {
            let origin = match values.origin(smaller) {
                Origin::Default => values.origin(larger),
                written => written,
            };
            let problem = format!("{smaller} ({low}) may not exceed {larger} ({high})");
            faults.push(ConfigFault::new(origin, problem));
        }
    };
    at_most("processor.min_pixels", "processor.max_pixels");
    at_most("processor.max_frames", "media.max_frames");
    // What never fits could never be answered.
    at_most("limits.max_body_bytes", "limits.max_held_bytes");
    at_most("limits.max_input_tokens", "batch.max_queue_tokens");
    at_most("batch.max_tokens", "batch.max_queue_tokens");
    for key in ["server.host", "media.ffmpeg", "media.ffprobe"] {
        if values.text(key).is_empty() {
            let problem = format!("{key} may not be empty");
            faults.push(ConfigFault::new(values.origin(key), problem));
        }
    }
    for (given, missing) in [
        ("server.tls_cert", "server.tls_key"),
        ("server.tls_key", "server.tls_cert"),
    ] {
        if !values.text(given).is_empty() && values.text(missing).is_empty() {
            let problem = format!("{given} needs {missing}");
            faults.push(ConfigFault::new(values.origin(given), problem));
        }
    }
    let collector = values.text("log.otlp_endpoint");
    if !collector.is_empty() && !telemetry::check_endpoint(collector) {
        let problem = format!("log.otlp_endpoint ({collector:?}) is not an http(s) address");
        faults.push(ConfigFault::new(
            values.origin("log.otlp_endpoint"),
            problem,
        ));
    }
    // One list: a name must say which of the models is meant.
    let mut names: Vec<String> = Vec::new();
    for keys in [EMBEDDER, RERANKER] {
        for name in values.texts(keys.served_names) {
            if names.contains(&name) {
                let problem = format!("{name:?} stands twice in {}", keys.served_names);
                faults.push(ConfigFault::new(values.origin(keys.served_names), problem));
            }
            names.push(name);
        }
    }
    faults
}
