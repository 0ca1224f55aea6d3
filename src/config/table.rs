//! THE table of settings: every name, kind, default and help text, once.
//!
//! Flags, environment variables, the file, `--print-config` and `configs/default.toml` are all derived from it, so they
//! cannot drift apart. A dotted name has three spellings: `batch.max_tokens` in a file, `MANIFOLD_BATCH_MAX_TOKENS` in the
//! environment, `--batch-max-tokens` on the command line; an alias adds a shorter flag and variable that people know from
//! other servers.

/// What a value may be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    /// Any text; empty means "none".
    Text,
    /// One of a few words.
    Choice(&'static [&'static str]),
    /// `auto`, `cpu`, `cuda`, `cuda:N`, `metal`.
    Device,
    /// A log filter: a level, or directives such as `info,manifold::engine=debug`.
    LogFilter,
    /// A whole number within bounds, both included.
    Integer {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// A finite number, above `above` and up to `max`.
    Number {
        /// Exclusive lower bound.
        above: f64,
        /// Inclusive upper bound.
        max: f64,
    },
    /// True or false. `off` is a flag that says false.
    Boolean {
        /// Without its dashes.
        off: Option<&'static str>,
    },
    /// Texts; a repeated flag, commas in a variable.
    Texts,
    /// Whole numbers; a repeated flag, commas in a variable.
    Integers {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// Names to texts: a table in the file, `name=text` in a repeated flag, one such line each in a variable.
    Map,
    /// Texts that must not be shown; by environment only.
    Secrets,
}

/// One setting.
#[derive(Debug)]
pub(super) struct Setting {
    /// The dotted name.
    pub key: &'static str,
    /// What it may be.
    pub kind: Kind,
    /// The default, written in TOML.
    pub default: &'static str,
    /// Further flags without their dashes; in upper case, with underscores, also further variables.
    pub aliases: &'static [&'static str],
    /// What it does, in one or two sentences.
    pub help: &'static str,
}

/// The prefix of our environment variables.
pub(super) const ENVIRONMENT_PREFIX: &str = "MANIFOLD_";

impl Setting {
    /// `batch` of `batch.max_tokens`.
    pub(super) fn section(&self) -> &'static str {
        self.key.split_once('.').map_or("", |(section, _)| section)
    }

    /// `max_tokens` of `batch.max_tokens`.
    pub(super) fn name(&self) -> &'static str {
        self.key.split_once('.').map_or(self.key, |(_, name)| name)
    }

    /// Flags without their dashes, the dotted name's own first. Secrets have none: a command line is no secret.
    pub(super) fn flags(&self) -> Vec<String> {
        if self.kind == Kind::Secrets {
            return Vec::new();
        }
        let own = self.key.replace(['.', '_'], "-");
        std::iter::once(own)
            .chain(self.aliases.iter().map(|alias| (*alias).to_owned()))
            .collect()
    }

    /// Environment variables, the dotted name's own first.
    pub(super) fn variables(&self) -> Vec<String> {
        std::iter::once(self.key)
            .chain(self.aliases.iter().copied())
            .map(|name| {
                let name = name.replace(['.', '-'], "_").to_ascii_uppercase();
                format!("{ENVIRONMENT_PREFIX}{name}")
            })
            .collect()
    }
}

/// What a section of the file is about, in the order they are shown.
pub(super) const SECTIONS: &[(&str, &str)] = &[
    (
        "model",
        "Which checkpoint is served, and under which names.",
    ),
    (
        "reranker",
        "A model that scores documents for a query, beside the one above or, where that is not named, instead of it.",
    ),
    ("engine", "Where and how the model computes."),
    (
        "batch",
        "Which requests share a forward pass, and when the queue is full.",
    ),
    (
        "cache",
        "What is kept for inputs that come again; each API key has its own.",
    ),
    ("server", "The listener, and how the server stops."),
    ("limits", "What one request may ask for."),
    ("auth", "Who may ask. With no key at all, everybody."),
    ("prompt", "Instructions."),
    (
        "processor",
        "Pixels and frames of an input that names none itself; the values of the official script.",
    ),
    (
        "media",
        "What may be fetched and decoded, and how much of it.",
    ),
    ("log", "What is logged, on standard error."),
];

/// Largest count or size: a limit nobody needs to raise, small enough that sums of a few never overflow.
const MOST: u64 = 1 << 40;
/// A day, in milliseconds.
const DAY_MS: u64 = 86_400_000;

/// Shorthand, so that a row of the table reads as one.
const fn setting(
    key: &'static str,
    kind: Kind,
    default: &'static str,
    aliases: &'static [&'static str],
    help: &'static str,
) -> Setting {
    Setting {
        key,
        kind,
        default,
        aliases,
        help,
    }
}

const fn integer(min: u64, max: u64) -> Kind {
    Kind::Integer { min, max }
}

/// Every setting, section by section.
#[rustfmt::skip]
pub(super) static SETTINGS: &[Setting] = &[
    setting("model.id", Kind::Text, r#""""#, &["model"],
        "A directory, or a Hugging Face id (owner/name). Empty or manifold-tiny: the tiny model inside the binary, for trying the API."),
    setting("model.revision", Kind::Text, r#""""#, &["revision"],
        "Branch, tag or commit of the Hugging Face id. Empty: main."),
    setting("model.served_names", Kind::Texts, "[]", &["served-model-name"],
        "Names clients may put in `model`; the first one is echoed. Empty: the id, or the directory's name."),
    setting("model.offline", Kind::Boolean { off: None }, "false", &["offline"],
        "Use only what the Hugging Face cache already holds; HF_HUB_OFFLINE=1 says the same."),

    setting("reranker.id", Kind::Text, r#""""#, &["reranker"],
        "A Qwen3-VL-Reranker: a directory, a Hugging Face id or manifold-tiny. Empty: none; /v1/rerank and /v1/score then compare embeddings."),
    setting("reranker.revision", Kind::Text, r#""""#, &[],
        "Branch, tag or commit of its Hugging Face id. Empty: main."),
    setting("reranker.served_names", Kind::Texts, "[]", &["served-reranker-name"],
        "Names clients may put in `model` for it; the first one is echoed. Empty: the id, or the directory's name."),

    setting("engine.dtype", Kind::Choice(&["auto", "f32", "bf16", "int8"]), r#""auto""#, &["dtype"],
        "Number format. auto: bf16 where the device multiplies it natively, else f32. int8: linear layers, CPU only."),
    setting("engine.device", Kind::Device, r#""auto""#, &["device"],
        "auto, cpu, cuda, cuda:N or metal. auto: the first of CUDA, Metal and CPU that is built in and present."),
    setting("engine.threads", integer(0, 4096), "0", &["threads"],
        "CPU threads of a forward pass. 0: one for each available core."),
    setting("engine.max_prefix_bytes", integer(0, MOST), "268435456", &[],
        "Most memory for keys and values of instructions, which later requests with the same one reuse (CPU). 0: none."),
    setting("engine.watchdog_ms", integer(0, DAY_MS), "300000", &[],
        "How long one layer of a forward pass may take before /health/live fails. 0: for ever."),

    setting("batch.max_tokens", integer(1, MOST), "16384", &["max-batch-tokens", "max-num-batched-tokens"],
        "Most tokens of one forward pass; a longer input goes alone."),
    setting("batch.max_sequences", integer(1, 65_536), "256", &["max-batch-requests", "max-num-seqs"],
        "Most inputs of one forward pass."),
    setting("batch.max_queue_tokens", integer(1, MOST), "1048576", &[],
        "Most tokens waiting; beyond that requests are refused with 429."),
    setting("batch.max_pixel_bytes", integer(1, MOST), "2147483648", &[],
        "Most bytes of fetched media and decoded pixels held until they are computed; beyond that requests with images or videos are refused."),
    setting("batch.max_bulk_ms", integer(1, DAY_MS), "100", &[],
        "Longest forward pass of bulk work, so that a query need not wait long. One input is never split, whatever it takes."),
    setting("batch.max_wait_ms", integer(0, DAY_MS), "0", &[],
        "How long a batch that could grow waits for more while nothing is computed. 0: not at all."),

    setting("cache.max_embedding_bytes", integer(0, MOST), "0", &[],
        "Most memory for the vectors of inputs that may come again. The header x-embed-cache then says hit or miss. 0: none are kept."),

    setting("cache.max_vision_bytes", integer(0, MOST), "0", &[],
        "Most memory for what the vision tower made of images and videos that may come again, in whatever input (CPU). 0: none is kept."),

    setting("cache.max_media_bytes", integer(0, MOST), "0", &[],
        "Most memory for bodies of fetched URLs. Each use asks the URL's server whether its ETag still holds. 0: none are kept."),

    setting("server.host", Kind::Text, r#""127.0.0.1""#, &["host"],
        "Address to listen on. 0.0.0.0 or :: listens on all."),
    setting("server.port", integer(0, 65_535), "8080", &["port"],
        "Port to listen on. 0 picks a free one; the URL is the last start-up line."),
    setting("server.max_connections", integer(1, 1_000_000), "4096", &["max-connections"],
        "Most open connections. Some more are answered health, and 429 to all else; beyond them, clients wait to be accepted."),
    setting("server.threads", integer(0, 1024), "0", &[],
        "Threads that read requests and write answers. 0: one for each two cores, for the encoder computes on all of them."),
    setting("server.idle_timeout_ms", integer(1, DAY_MS), "20000", &[],
        "Time a client has to send its headers, and may leave a connection unused; then it is closed."),
    setting("server.body_timeout_ms", integer(1, DAY_MS), "20000", &[],
        "Time each 64 KiB of a body may take; a slower one is refused with 408 and its connection closed."),
    setting("server.max_header_bytes", integer(8192, 1 << 20), "65536", &[],
        "Largest head of a request: its line and headers."),
    setting("server.max_streams", integer(1, 65_535), "256", &[],
        "HTTP/2: most requests at a time on one connection."),
    setting("server.max_resets", integer(1, 65_535), "64", &[],
        "HTTP/2: most requests a client may cancel before they were looked at; beyond, its connection is closed."),
    setting("server.tls_cert", Kind::Text, r#""""#, &["tls-cert", "ssl-certfile"],
        "A file of certificates in PEM, the server's own first: connections are then encrypted. SIGHUP reads it again. Empty: no TLS."),
    setting("server.tls_key", Kind::Text, r#""""#, &["tls-key", "ssl-keyfile"],
        "The file of its private key, in PEM."),
    setting("server.metrics_address", Kind::Text, r#""""#, &["metrics-address"],
        "A second listener, host:port, with GET /metrics and health and no API key. Empty: none; then /metrics is beside the API, behind its keys."),
    setting("server.drain_delay_ms", integer(0, DAY_MS), "0", &[],
        "After SIGTERM: how long requests are still accepted while readiness is already off, so that load balancers can notice."),
    setting("server.drain_timeout_ms", integer(0, DAY_MS), "30000", &[],
        "After that: how long accepted requests may take before the server stops all the same."),

    setting("limits.max_body_bytes", integer(1, 4 << 30), "67108864", &["max-body-bytes"],
        "Largest request body (64 MiB)."),
    setting("limits.max_held_bytes", integer(1, MOST), "1073741824", &[],
        "Most bytes of request bodies held at a time, from when they arrive until they are answered (1 GiB); beyond, requests are refused with 429."),
    setting("limits.max_inputs", integer(1, 1_000_000), "2048", &["max-inputs"],
        "Most inputs of one request."),
    setting("limits.max_input_tokens", integer(16, MOST), "32768", &["max-input-tokens", "max-model-len"],
        "Most tokens of one input, media and template included."),
    setting("limits.request_timeout_ms", integer(1, DAY_MS), "300000", &["request-timeout-ms"],
        "Longest a request may take."),
    setting("limits.tokens_per_minute", integer(0, u32::MAX as u64), "0", &[],
        "Most tokens one API key may have computed in a minute; without keys, everybody together. 0: no limit."),

    setting("auth.api_keys", Kind::Secrets, "[]", &["api-key"],
        "Keys clients may send, several separated by commas. By environment only: never by flag or in this file."),
    setting("auth.api_key_file", Kind::Text, r#""""#, &["api-key-file"],
        "A file of keys besides those in MANIFOLD_API_KEY, one a line; empty lines and lines that begin with # do not count. SIGHUP reads it again."),

    setting("prompt.instructions", Kind::Map,
        r#"{ document = "", query = "Retrieve images or text relevant to the user's query." }"#, &[],
        "What `input_type`, `prompt_name` and `task` stand for. Empty text: the model's default instruction. Naming any replaces all."),

    setting("processor.min_pixels", integer(1, MOST), "4096", &["min-pixels"],
        "Smallest area an image is resized to."),
    setting("processor.max_pixels", integer(1, MOST), "1843200", &["max-pixels"],
        "Largest area an image is resized to."),
    setting("processor.fps", Kind::Number { above: 0.0, max: 1000.0 }, "1.0", &["fps"],
        "Frames per second sampled from a video file."),
    setting("processor.max_frames", integer(1, 100_000), "64", &["max-frames"],
        "Most frames taken from a video file or a frame list."),
    setting("processor.total_pixels", integer(0, MOST), "0", &["total-pixels"],
        "Pixels of all frames of a video together. 0: the official script's value for the kind of video."),

    setting("media.max_bytes", integer(1, 4 << 30), "33554432", &[],
        "Largest encoded image or video (32 MiB)."),
    setting("media.max_pixels", integer(1, MOST), "50000000", &[],
        "Largest decoded image or frame, in pixels."),
    setting("media.max_side_pixels", integer(1, 65_535), "16384", &[],
        "Longest side of a decoded image or frame."),
    setting("media.max_frames", integer(1, 100_000), "768", &[],
        "Most frames of a frame list, or decoded from a video file."),
    setting("media.max_video_seconds", Kind::Number { above: 0.0, max: 86_400.0 }, "600.0", &[],
        "Longest video file."),
    setting("media.url_fetch", Kind::Boolean { off: Some("no-url-fetch") }, "true", &[],
        "Whether http(s) URLs in requests are fetched."),
    setting("media.allowed_domains", Kind::Texts, "[]", &["allowed-media-domains"],
        "Hosts such URLs may name: exact, or *.suffix. Empty: any public host."),
    setting("media.allow_private_networks", Kind::Boolean { off: None }, "false", &["allow-private-networks"],
        "Whether such URLs may lead to private or local addresses. Only where every client is trusted."),
    setting("media.allowed_ports", Kind::Integers { min: 1, max: 65_535 }, "[80, 443]", &[],
        "Ports such URLs may name."),
    setting("media.max_redirects", integer(0, 3), "0", &[],
        "Redirects of such URLs that are followed, each under all of these rules and never from https to http."),
    setting("media.fetch_timeout_ms", integer(1, DAY_MS), "10000", &[],
        "Time for one whole fetch."),
    setting("media.max_fetches", integer(1, 65_536), "64", &[],
        "Most fetches at a time; more wait."),
    setting("media.max_fetches_per_host", integer(1, 65_536), "8", &[],
        "Most fetches at a time from one address, whatever names it has; in IPv6 from one network of 64 bits."),
    setting("media.tls_roots", Kind::Choice(&["system", "webpki"]), r#""system""#, &[],
        "Whose certificates https URLs need: those the system believes, or Mozilla's list inside the binary."),
    setting("media.file_root", Kind::Text, r#""""#, &["allowed-local-media-path"],
        "The directory beneath which file:// URLs may read. Empty: they are refused."),
    setting("media.bmp", Kind::Boolean { off: None }, "false", &[],
        "Whether BMP images are read, too."),
    setting("media.tiff", Kind::Boolean { off: None }, "false", &[],
        "Whether TIFF images are read, too: the first page, of 8-bit grey, RGB, RGBA or CMYK."),
    setting("media.apply_exif_orientation", Kind::Boolean { off: None }, "false", &[],
        "Whether a photograph's orientation is applied. The official script ignores it, so true gives other vectors."),
    setting("media.ffmpeg", Kind::Text, r#""ffmpeg""#, &[],
        "The FFmpeg program that decodes video files; looked up in PATH when it has no slash."),
    setting("media.ffprobe", Kind::Text, r#""ffprobe""#, &[],
        "The ffprobe program, likewise."),
    setting("media.video_timeout_ms", integer(1, DAY_MS), "30000", &[],
        "Time each step of decoding one video may take."),
    setting("media.max_video_frames", integer(1, MOST), "36000", &[],
        "Most frames of a video file, of which few are sampled; all before the last of those are decoded."),
    setting("media.max_decoder_bytes", integer(1 << 28, 1 << 48), "4294967296", &[],
        "Most address space of the process that decodes a video file (4 GiB)."),
    setting("media.max_decoder_seconds", integer(1, 86_400), "60", &[],
        "Most CPU time of that process, all its threads together."),
    setting("media.require_sandbox", Kind::Boolean { off: None }, "false", &["require-sandbox"],
        "Whether the server refuses to start where that process cannot be confined by Landlock and seccomp (Linux)."),

    setting("log.format", Kind::Choice(&["text", "json"]), r#""text""#, &[],
        "text for people, json for machines."),
    setting("log.level", Kind::LogFilter, r#""info""#, &[],
        "error, warn, info, debug or trace; or directives such as info,manifold::engine=debug. manifold::api=debug logs each request."),
    setting("log.otlp_endpoint", Kind::Text, r#""""#, &["otlp-traces-endpoint"],
        "Address of an OpenTelemetry collector that takes OTLP over HTTP, http://127.0.0.1:4318; it gets a span for each request. Empty: none."),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_spelling_means_two_settings() {
        let mut flags = BTreeSet::from(["config".to_owned(), "print-config".to_owned()]);
        let mut variables = BTreeSet::from(["MANIFOLD_CONFIG".to_owned()]);
        for setting in SETTINGS {
            for flag in setting.flags() {
                assert!(flags.insert(flag.clone()), "--{flag} stands twice");
            }
            for variable in setting.variables() {
                assert!(
                    variables.insert(variable.clone()),
                    "{variable} stands twice"
                );
            }
        }
    }

    #[test]
    fn sections_are_listed_once_and_their_settings_stand_together() {
        let mut seen: Vec<&str> = SETTINGS.iter().map(Setting::section).collect();
        seen.dedup();
        let listed: Vec<&str> = SECTIONS.iter().map(|(name, _)| *name).collect();
        assert_eq!(seen, listed);
    }

    #[test]
    fn a_dotted_name_has_three_spellings() {
        let row = SETTINGS.iter().find(|row| row.key == "batch.max_tokens");
        let row = row.expect("the row exists");
        assert_eq!(row.flags()[0], "batch-max-tokens");
        assert_eq!(row.variables()[0], "MANIFOLD_BATCH_MAX_TOKENS");
    }
}
