//! What the operator asked for. In: flags, environment variables, a TOML file. Out: one [`Config`], or every fault at once.
//!
//! Flags win over the environment, the environment over the file, the file over the defaults. [`Config::resolve`] is pure;
//! [`Config::load`] fetches what it needs. `table` holds every setting once; `args`, `environment` and `file` each read one
//! source into a layer; `values` stacks the layers; `print` shows the result.

mod args;
mod environment;
mod error;
mod file;
mod print;
mod table;
mod value;
mod values;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use args::{ConfigArgs, hide_sections};
pub use error::{ConfigFault, Origin};
pub use file::ConfigFile;

use crate::batcher::BatchPolicy;
use crate::engine::{CheckpointSource, DtypeChoice, EngineSettings};
use crate::media::MediaSettings;
use crate::processor::PixelOptions;
use crate::telemetry::{LogFormat, TelemetrySettings};
use value::Value;
use values::Values;

/// Everything the server can be told, decided once.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Which checkpoint, under which names.
    pub model: ModelSettings,
    /// Number format, device, threads.
    pub engine: EngineSettings,
    /// How batches are formed.
    pub batch: BatchPolicy,
    /// The listener and the way it stops.
    pub server: ServerSettings,
    /// What one request may ask for.
    pub limits: LimitSettings,
    /// Who may ask.
    pub auth: AuthSettings,
    /// What `input_type`, `prompt_name` and `task` stand for; an empty text is the model's default instruction.
    pub instructions: BTreeMap<String, String>,
    /// Pixels and frames of an input that names none itself.
    pub pixels: PixelOptions,
    /// What may be fetched and decoded.
    pub media: MediaSettings,
    /// What is logged.
    pub telemetry: TelemetrySettings,
}

/// Which checkpoint is served, under which names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSettings {
    /// Where the weights come from.
    pub source: CheckpointSource,
    /// Names clients may use, the echoed one first. Empty: the checkpoint's own name.
    pub served_names: Vec<String>,
}

/// The listener and the way it stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerSettings {
    /// Address or name to listen on.
    pub host: String,
    /// Port; 0 is any free one.
    pub port: u16,
    /// Most open connections.
    pub max_connections: usize,
    /// How long requests are accepted after the signal, readiness already off.
    pub drain_delay: Duration,
    /// How long accepted requests may then take.
    pub drain_timeout: Duration,
}

/// What one request may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitSettings {
    /// Largest request body.
    pub max_body_bytes: usize,
    /// Most inputs of one request.
    pub max_inputs: usize,
    /// Most tokens of one input, media and template included.
    pub max_input_tokens: usize,
    /// Longest a request may take.
    pub request_timeout: Duration,
}

/// Who may ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthSettings {
    /// Keys of the environment.
    pub api_keys: Vec<Secret>,
    /// A file of further keys.
    pub api_key_file: Option<PathBuf>,
}

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text itself, for the one place that compares it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Everything a configuration is made from.
pub struct Inputs<'a> {
    /// The flags.
    pub args: &'a ConfigArgs,
    /// All variables of the environment.
    pub environment: Vec<(OsString, OsString)>,
    /// The file that flag or environment named.
    pub file: Option<ConfigFile>,
    /// Whether a path is a directory: a model's name may be one.
    pub is_directory: &'a dyn Fn(&Path) -> bool,
}

impl fmt::Debug for Inputs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The environment is left out: it holds secrets.
        let mut shown = f.debug_struct("Inputs");
        shown.field("args", &self.args).field("file", &self.file);
        shown.finish_non_exhaustive()
    }
}

/// What one source of settings says.
#[derive(Default)]
struct Layer {
    given: Vec<Given>,
    faults: Vec<ConfigFault>,
}

/// A value somebody wrote.
struct Given {
    /// Index in the table.
    index: usize,
    value: Value,
    origin: Origin,
}

impl<'a> Inputs<'a> {
    /// Fetches what the process was started with.
    ///
    /// # Errors
    /// A fault when the named file cannot be read.
    pub fn of_process(args: &'a ConfigArgs) -> Result<Self, Vec<ConfigFault>> {
        let environment: Vec<_> = std::env::vars_os().collect();
        let named = match &args.config {
            Some(path) => Some((
                path.clone(),
                Origin::Flag {
                    flag: "--config".to_owned(),
                },
            )),
            None => environment::config_file(&environment).map(|path| {
                let variable = environment::CONFIG_VARIABLE.to_owned();
                (path, Origin::Environment { variable })
            }),
        };
        let file = match named {
            None => None,
            Some((path, origin)) => match std::fs::read_to_string(&path) {
                Ok(text) => Some(ConfigFile { path, text }),
                Err(error) => {
                    let problem = format!("cannot read {}: {error}", path.display());
                    return Err(vec![ConfigFault::new(origin, problem)]);
                }
            },
        };
        Ok(Self {
            args,
            environment,
            file,
            is_directory: &|path| path.is_dir(),
        })
    }

    fn stacked(&self) -> (Values, Vec<ConfigFault>) {
        let file = self.file.as_ref().map(file::layer).unwrap_or_default();
        let layers = [
            file,
            environment::layer(&self.environment),
            self.args.layer(),
        ];
        Values::stack(layers)
    }
}

impl Config {
    /// Decides every setting.
    ///
    /// # Errors
    /// Every fault of every source, in the order file, environment, flags, then contradictions between settings.
    pub fn resolve(inputs: &Inputs<'_>) -> Result<Self, Vec<ConfigFault>> {
        let (values, mut faults) = inputs.stacked();
        let source = checkpoint_source(&values, inputs.is_directory);
        faults.extend(contradictions(&values));
        match source {
            Ok(source) if faults.is_empty() => Ok(Self::from_values(&values, source)),
            Ok(_) => Err(faults),
            Err(fault) => {
                faults.push(fault);
                Err(faults)
            }
        }
    }

    /// [`Self::resolve`] with what the process was started with.
    ///
    /// # Errors
    /// As [`Self::resolve`], or a fault when the named file cannot be read.
    pub fn load(args: &ConfigArgs) -> Result<Self, Vec<ConfigFault>> {
        Self::resolve(&Inputs::of_process(args)?)
    }

    /// Every setting with its value and origin, as TOML that can be used as a file; secrets as `***`.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub fn print(inputs: &Inputs<'_>) -> Result<String, Vec<ConfigFault>> {
        Self::resolve(inputs)?;
        Ok(print::with_origins(&inputs.stacked().0))
    }

    fn from_values(values: &Values, source: CheckpointSource) -> Self {
        Self {
            model: ModelSettings {
                source,
                served_names: values.texts("model.served_names"),
            },
            engine: EngineSettings {
                dtype: match values.text("engine.dtype") {
                    "f32" => DtypeChoice::F32,
                    "bf16" => DtypeChoice::Bf16,
                    _ => DtypeChoice::Auto,
                },
                device: value::device(values.text("engine.device")).unwrap_or_default(),
                threads: values.count("engine.threads"),
            },
            batch: BatchPolicy {
                max_tokens: values.count("batch.max_tokens"),
                max_sequences: values.count("batch.max_sequences"),
                max_queue_tokens: values.count("batch.max_queue_tokens"),
            },
            server: ServerSettings {
                host: values.text("server.host").to_owned(),
                port: values.small("server.port"),
                max_connections: values.count("server.max_connections"),
                drain_delay: values.duration("server.drain_delay_ms"),
                drain_timeout: values.duration("server.drain_timeout_ms"),
            },
            limits: LimitSettings {
                max_body_bytes: values.count("limits.max_body_bytes"),
                max_inputs: values.count("limits.max_inputs"),
                max_input_tokens: values.count("limits.max_input_tokens"),
                request_timeout: values.duration("limits.request_timeout_ms"),
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
            },
        }
    }
}

impl AuthSettings {
    /// All keys: those of the environment and those of the file, which is read now. None at all: everybody may ask.
    ///
    /// # Errors
    /// A fault when the file cannot be read, holds no key or one that no client can send.
    pub fn read_keys(&self) -> Result<Vec<Secret>, ConfigFault> {
        let mut keys = self.api_keys.clone();
        if let Some(path) = &self.api_key_file {
            let at = |line: usize| Origin::File {
                path: path.clone(),
                line,
            };
            let text = std::fs::read_to_string(path).map_err(|error| {
                ConfigFault::new(at(1), format!("auth.api_key_file cannot be read: {error}"))
            })?;
            let before = keys.len();
            for (index, line) in text.lines().map(str::trim).enumerate() {
                if line.is_empty() || line.starts_with('#') {
                    continue;
                }
                let key = value::secret(line.to_owned());
                let key = key.map_err(|problem| ConfigFault::new(at(index + 1), problem))?;
                keys.push(Secret(key));
            }
            if keys.len() == before {
                return Err(ConfigFault::new(at(1), "auth.api_key_file holds no key"));
            }
        }
        Ok(keys)
    }
}

fn pixel_options(values: &Values) -> PixelOptions {
    PixelOptions {
        min_pixels: values.integer("processor.min_pixels"),
        max_pixels: values.integer("processor.max_pixels"),
        fps: values.number("processor.fps"),
        max_frames: values.count("processor.max_frames"),
        total_pixels: Some(values.integer("processor.total_pixels")).filter(|pixels| *pixels > 0),
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
        fetch_timeout: values.duration("media.fetch_timeout_ms"),
        file_root: values.path("media.file_root"),
        apply_exif_orientation: values.boolean("media.apply_exif_orientation"),
        ffmpeg: PathBuf::from(values.text("media.ffmpeg")),
        ffprobe: PathBuf::from(values.text("media.ffprobe")),
        video_timeout: values.duration("media.video_timeout_ms"),
    }
}

/// A path, an id or nothing. A directory that exists wins over an id of the same spelling.
fn checkpoint_source(
    values: &Values,
    is_directory: &dyn Fn(&Path) -> bool,
) -> Result<CheckpointSource, ConfigFault> {
    let id = values.text("model.id");
    let revision = Some(values.text("model.revision")).filter(|revision| !revision.is_empty());
    let source = if id.is_empty() {
        CheckpointSource::Embedded
    } else if is_directory(Path::new(id)) || id.starts_with(['.', '/', '~']) || id.ends_with('/') {
        CheckpointSource::Directory(PathBuf::from(id))
    } else if is_hub_id(id) {
        CheckpointSource::Hub {
            id: id.to_owned(),
            revision: revision.map(str::to_owned),
            offline: values.boolean("model.offline"),
        }
    } else {
        let problem = format!("{id:?} is neither a directory nor a Hugging Face id (owner/name)");
        return Err(ConfigFault::new(values.origin("model.id"), problem));
    };
    match (&source, revision) {
        (CheckpointSource::Hub { .. }, _) | (_, None) => Ok(source),
        (_, Some(revision)) => Err(ConfigFault::new(
            values.origin("model.revision"),
            format!("{revision:?} needs a Hugging Face id in model.id, which is {id:?}"),
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
    // What never fits the queue could never be answered.
    at_most("limits.max_input_tokens", "batch.max_queue_tokens");
    at_most("batch.max_tokens", "batch.max_queue_tokens");
    for key in ["server.host", "media.ffmpeg", "media.ffprobe"] {
        if values.text(key).is_empty() {
            let problem = format!("{key} may not be empty");
            faults.push(ConfigFault::new(values.origin(key), problem));
        }
    }
    let names = values.texts("model.served_names");
    for (index, name) in names.iter().enumerate() {
        if names[..index].contains(name) {
            let problem = format!("{name:?} stands twice in model.served_names");
            faults.push(ConfigFault::new(
                values.origin("model.served_names"),
                problem,
            ));
        }
    }
    faults
}

#[cfg(test)]
mod tests;
