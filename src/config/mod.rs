//! What the operator asked for. In: flags, environment variables, a TOML file. Out: one [`Config`], or every fault at once.
//!
//! Flags win over the environment, the environment over the file, the file over the defaults. [`Config::resolve`] is pure;
//! [`Config::load`] fetches what it needs. `table` holds every setting once; `args`, `environment` and `file` each read one
//! source into a layer; `values` stacks the layers; `resolve` makes a [`Config`] of them, `print` shows it.

mod args;
mod environment;
mod error;
mod file;
mod print;
mod resolve;
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

use crate::api::TlsFiles;
use crate::batcher::BatchPolicy;
use crate::engine::{CheckpointSource, EngineSettings};
use crate::media::MediaSettings;
use crate::processor::PixelOptions;
use crate::telemetry::TelemetrySettings;
use value::Value;
use values::Values;

/// Everything the server can be told, decided once.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Which checkpoint embeds, under which names.
    pub model: ModelSettings,
    /// Whether it is loaded: not where only a reranker was named.
    pub embeds: bool,
    /// Which checkpoint scores documents, under which names.
    pub reranker: Option<ModelSettings>,
    /// Whether only what the Hugging Face cache holds is used.
    pub offline: bool,
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
    /// Threads that read requests and write answers; 0 is one for each two cores.
    pub threads: usize,
    /// Time a client has to send its headers, and may leave a connection unused.
    pub idle_timeout: Duration,
    /// Time each 64 KiB of a body may take.
    pub body_timeout: Duration,
    /// Largest head of a request.
    pub max_header_bytes: usize,
    /// Most requests at a time on one connection of HTTP/2.
    pub max_streams: u16,
    /// Most of those that a client may cancel unseen.
    pub max_resets: u16,
    /// What connections are encrypted with.
    pub tls: Option<TlsFiles>,
    /// Where operators' metrics and health are served without a key, besides beside the API.
    pub metrics_address: Option<String>,
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
    /// Most bytes of request bodies at a time.
    pub max_held_bytes: usize,
    /// Most inputs of one request.
    pub max_inputs: usize,
    /// Most tokens of one input, media and template included.
    pub max_input_tokens: usize,
    /// Longest a request may take.
    pub request_timeout: Duration,
    /// Most tokens of one key in a minute; 0 is no limit.
    pub tokens_per_minute: u32,
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

#[cfg(test)]
mod tests;
