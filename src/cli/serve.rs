//! `manifold serve`. In: a [`Config`]. Out: a server that answers until it is told to stop.
//!
//! The order matters: the port is taken first, so that a second server on it fails before it loads gigabytes; the URL is
//! printed last, so that whoever waits for that line can send requests at once.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::loading::{self, LoadedModel, Loading};
use super::reload::Reload;
use super::{Misconfigured, summary};
use crate::api::{
    self, ApiKeys, ApiSettings, ApiState, ListenerSettings, Loaded, Served, ServedReranker, Tls,
};
use crate::batcher::{BatchPolicy, Batcher};
use crate::config::{Config, Secret};
use crate::engine::{CheckpointSource, Engine, EngineError};
use crate::kernels::{prefer_short_turns, return_free_memory, return_large_memory};
use crate::media::video::{self, sandbox::Layers};
use crate::media::{MediaError, MediaLoader, MediaSettings};
use crate::service::{Background, Embedder, Reranker, TokenQuota};
use crate::telemetry;

/// How long the process stays after its device was lost, so that every client reads its answer, and then once more for the last spans:
/// well under a second, for until it has gone nobody starts another.
const FAREWELL: Duration = Duration::from_millis(300);
/// Files that are open besides connections: weights, logs, media and the pipes of video decoders.
const OTHER_FILES: u64 = 512;
/// Connections of scrapers and health checks on a listener of their own.
const MAX_OPERATORS: usize = 64;

/// How often memory goes back that requests needed and no longer do: a rush is over when the next person looks, and what comes again has
/// to be faulted in only once in that time.
const RETURNED_EVERY: Duration = Duration::from_secs(10);

/// What puts a batcher before an engine.
type StartBatcher = fn(Engine, BatchPolicy) -> Batcher;

/// Serves until SIGTERM or Ctrl-C.
///
/// # Errors
/// Whatever keeps the server from starting, or stops it before it was told to.
pub(super) fn run(config: Config) -> anyhow::Result<()> {
    return_large_memory();
    run_with(config, Batcher::start)
}

/// The same with another way to put a batcher before the engine: the tests bring one whose device is lost.
fn run_with(config: Config, start: StartBatcher) -> anyhow::Result<()> {
    let mut telemetry = telemetry::init(&config.telemetry)?;
    let read = config.auth.read_keys();
    let keys = read.map_err(|fault| Misconfigured(vec![fault]))?;
    let sandbox = check_video(&config.media)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(async_threads(config.server.threads))
        .on_thread_start(prefer_short_turns)
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    runtime.spawn(return_memory());
    let served = runtime.block_on(serve(config, keys, sandbox, start));
    // A download or a load that was interrupted must not keep the process from ending.
    runtime.shutdown_background();
    if served.is_err() {
        telemetry.hurry(FAREWELL);
    }
    served
}

/// What the async threads do is short, and on the CPU the encoder's threads need the cores: with one for each two cores, 64 clients got a
/// tenth more answers than with one for each (two cores, embedded model).
fn async_threads(asked: usize) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if asked == 0 { cores.div_ceil(2) } else { asked }
}

/// Gives memory back for as long as the server runs.
async fn return_memory() {
    let mut ticks = tokio::time::interval(RETURNED_EVERY);
    loop {
        ticks.tick().await;
        // Milliseconds under locks: not on a thread that answers. It fails only where the runtime ends.
        let _ = tokio::task::spawn_blocking(return_free_memory).await;
    }
}

async fn serve(
    config: Config,
    keys: Vec<Secret>,
    sandbox: Option<Layers>,
    start: StartBatcher,
) -> anyhow::Result<()> {
    let config = Arc::new(config);
    // Before the listener: from here on a signal is never lost.
    let mut signals = listen_for_signals()?;
    allow_open_files(config.server.max_connections as u64 + OTHER_FILES);
    let tls = match config.server.tls.clone() {
        Some(files) => Some(Tls::open(files).context("connections cannot be encrypted")?),
        None => None,
    };
    let listener = bind(&config).await?;
    let address = listener
        .local_addr()
        .context("the listener has no address")?;
    let state = ApiState::new(api_settings(&config, &keys));
    let reload = Reload {
        config: Arc::clone(&config),
        state: state.clone(),
        tls: tls.clone(),
    };
    reload.on_hangup()?;
    let operators = match &config.server.metrics_address {
        Some(address) => Some(open_to_operators(address, state.clone()).await?),
        None => None,
    };
    // Health answers from here on; requests are told to come again until the model is loaded.
    let settings = listener_settings(&config, tls);
    let mut answering = tokio::spawn(answer(listener, state.clone(), settings, signals.clone()));

    if config.embeds && config.model.source == CheckpointSource::Embedded {
        summary::warn_of_embedded(config.telemetry.format);
    }
    let for_loading = Arc::clone(&config);
    let opening = tokio::task::spawn_blocking(move || loading::load(&for_loading));
    let loaded = tokio::select! {
        loaded = opening => loaded.context("loading the model panicked")??,
        _ = signals.changed() => {
            tracing::info!("stopped while the model was loading");
            return Ok(());
        }
    };
    announce(
        &config,
        &loaded,
        (keys.len(), sandbox),
        (address, operators),
    );
    let batcher = start(loaded.engine.clone(), config.batch);
    state.set_loaded(wire(&config, loaded, batcher.clone())?);
    summary::say(io::stdout(), &summary::url(&config.server, address));

    let finished = tokio::select! {
        finished = &mut answering => finished.context("the listener panicked")?,
        _ = signals.wait_for(|count| *count > 1) => false,
        () = batcher.lost() => {
            // Everybody has been told; what they were told is on its way to them.
            tokio::time::sleep(FAREWELL).await;
            return Err(EngineError::Stopped).context("the device is lost");
        }
    };
    batcher.close();
    if !finished {
        tracing::warn!("stopped before all requests were finished");
    }
    Ok(())
}

/// Which layers confine the decoders of videos; nothing when there are none, because FFmpeg is not installed or does not run so.
///
/// # Errors
/// When the sandbox is required and not complete.
fn check_video(media: &MediaSettings) -> anyhow::Result<Option<Layers>> {
    if !video::available(media) {
        return Ok(None);
    }
    judge(video::check_sandbox(media), media.require_sandbox)
}

/// Whether a server may run with what its sandbox was found to be.
fn judge(found: Result<Layers, MediaError>, required: bool) -> anyhow::Result<Option<Layers>> {
    match found {
        Ok(layers) if required && !layers.is_complete() => bail!(
            "media.require_sandbox is set, and this system cannot confine video decoders: {} missing",
            layers.missing().join(", ")
        ),
        Ok(layers) => Ok(Some(layers)),
        Err(error) if required => {
            Err(error).context("media.require_sandbox is set, and video decoders do not start")
        }
        Err(error) => {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            tracing::warn!(error = %error, source, "video files are refused");
            Ok(None)
        }
    }
}

/// What the wire allows, by the configuration.
fn api_settings(config: &Config, keys: &[Secret]) -> ApiSettings {
    ApiSettings {
        keys: ApiKeys::new(keys.iter().map(Secret::expose)),
        max_body_bytes: config.limits.max_body_bytes,
        max_held_bytes: config.limits.max_held_bytes,
        max_inputs: config.limits.max_inputs,
        max_input_tokens: config.limits.max_input_tokens,
        max_media_bytes: config.media.max_bytes,
        max_frames: config.media.max_frames,
        instructions: config.instructions.clone(),
        pixels: config.pixels,
        request_timeout: config.limits.request_timeout,
        body_timeout: config.server.body_timeout,
        max_connections: config.server.max_connections,
    }
}

/// Puts the stages together.
fn wire(config: &Config, loading: Loading, batcher: Batcher) -> anyhow::Result<Loaded> {
    telemetry::backlog::watch_batcher(batcher.watch());
    // One for both models: a key's tokens are the device's time, whatever they are for.
    let quota = TokenQuota::new(config.limits.tokens_per_minute).map(Arc::new);
    let loader = MediaLoader::new(&config.media).context("the HTTP client cannot be set up")?;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let background = Background::new(cores).context("there are no threads for decoding")?;
    let readers = background.others("reader");
    let readers = readers.context("there are no threads for reading")?;
    let stages = |processor| {
        let (loader, media) = (loader.clone(), config.media.clone());
        let shared = (batcher.clone(), quota.clone(), background.clone());
        Embedder::sharing((loader, media), processor, shared)
    };
    let loaded_at = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let embedder = loading.embedder.map(|model| Served {
        names: model.served_names,
        embedder: stages(model.processor),
        info: model.info,
        checkpoint: model.checkpoint.name,
        revision: model.checkpoint.revision,
        loaded_at,
        proof: model.proof,
    });
    let reranker = loading.reranker.map(|model| ServedReranker {
        names: model.served_names,
        reranker: Reranker::new(stages(model.processor), model.info.reuses_prefixes),
        info: model.info,
        checkpoint: model.checkpoint.name,
        revision: model.checkpoint.revision,
        loaded_at,
        proof: model.proof,
    });
    Ok(Loaded {
        batcher,
        embedder,
        reranker,
        readers,
    })
}

/// Serves metrics and health on a listener of their own, until the process ends. Returns where.
async fn open_to_operators(address: &str, state: ApiState) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address} (server.metrics_address)"))?;
    let bound = listener
        .local_addr()
        .context("the listener has no address")?;
    let settings = ListenerSettings {
        max_connections: MAX_OPERATORS,
        ..ListenerSettings::default()
    };
    let router = api::operator_router(state);
    tokio::spawn(api::serve(
        listener,
        router,
        settings,
        std::future::pending(),
    ));
    Ok(bound)
}

async fn bind(config: &Config) -> anyhow::Result<TcpListener> {
    let (host, port) = (config.server.host.as_str(), config.server.port);
    TcpListener::bind((host, port))
        .await
        .with_context(|| format!("cannot listen on {host}, port {port}"))
}

/// Tells people, or the log where it is JSON, what runs; but not the URL: that is printed when requests are welcome.
fn announce(
    config: &Config,
    loading: &Loading,
    (keys, sandbox): (usize, Option<Layers>),
    (address, operators): (SocketAddr, Option<SocketAddr>),
) {
    let facts = summary::Facts {
        embedder: loading.embedder.as_ref().map(facts_of),
        reranker: loading.reranker.as_ref().map(facts_of),
        keys,
        address,
        operators,
        ffmpeg: summary::find_program(&config.media.ffmpeg)
            .filter(|_| summary::find_program(&config.media.ffprobe).is_some()),
        sandbox,
    };
    summary::tell(config, &facts);
}

fn facts_of(model: &LoadedModel) -> summary::ModelFacts<'_> {
    summary::ModelFacts {
        served_names: &model.served_names,
        settings: &model.settings,
        revision: model.checkpoint.revision.as_deref(),
        info: &model.info,
        fingerprint: &model.proof.id,
    }
}

/// Raises the limit of open files as far as the system lets us: many shells set it to 1024 for programs that use `select`.
#[cfg(unix)]
fn allow_open_files(wanted: u64) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return;
    }
    let allowed = limit.maximum.map_or(wanted, |most| most.min(wanted));
    let raised = Rlimit {
        current: Some(allowed),
        maximum: limit.maximum,
    };
    if setrlimit(Resource::Nofile, raised).is_err() || allowed < wanted {
        tracing::warn!(
            allowed,
            wanted,
            "fewer files may be open than server.max_connections needs"
        );
    }
}

#[cfg(not(unix))]
fn allow_open_files(_wanted: u64) {}

fn listener_settings(config: &Config, tls: Option<Tls>) -> ListenerSettings {
    let server = &config.server;
    ListenerSettings {
        max_connections: server.max_connections,
        idle_timeout: server.idle_timeout,
        max_header_bytes: server.max_header_bytes,
        max_streams: server.max_streams.into(),
        max_resets: server.max_resets.into(),
        drain_delay: server.drain_delay,
        drain_timeout: server.drain_timeout,
        tls,
    }
}

/// Answers until the first signal, then drains. Whether every accepted request was finished.
async fn answer(
    listener: TcpListener,
    state: ApiState,
    settings: ListenerSettings,
    mut signals: watch::Receiver<u32>,
) -> bool {
    let stop = {
        let state = state.clone();
        async move {
            // The sender lives as long as the process: an error here means that it is ending anyway.
            let _ = signals.wait_for(|count| *count > 0).await;
            tracing::info!("stopping: accepted requests are finished");
            state.set_draining();
        }
    };
    api::serve(listener, api::router(state), settings, stop).await
}

/// How many times the process was told to stop.
fn listen_for_signals() -> anyhow::Result<watch::Receiver<u32>> {
    let (sender, receiver) = watch::channel(0);
    #[cfg(unix)]
    let mut terminate = {
        use tokio::signal::unix::{SignalKind, signal};
        signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?
    };
    tokio::spawn(async move {
        loop {
            #[cfg(unix)]
            let told = tokio::select! {
                told = tokio::signal::ctrl_c() => told.is_ok(),
                told = terminate.recv() => told.is_some(),
            };
            #[cfg(not(unix))]
            let told = tokio::signal::ctrl_c().await.is_ok();
            if !told {
                return;
            }
            sender.send_modify(|count| *count += 1);
        }
    });
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use std::future::ready;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::process::{Command, Stdio};
    use std::time::Instant;

    use super::*;
    use crate::config::{ConfigArgs, Inputs};
    use crate::engine::Heartbeat;

    fn config(port: &str) -> Config {
        let inputs = Inputs {
            args: &ConfigArgs::default(),
            environment: vec![("MANIFOLD_PORT".into(), port.into())],
            file: None,
            is_directory: &|_| false,
        };
        Config::resolve(&inputs).expect("no fault")
    }

    #[tokio::test]
    async fn port_zero_is_a_free_one_and_a_taken_one_is_an_error_that_names_it() {
        let listener = bind(&config("0")).await.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        assert_ne!(port, 0);
        let fault = bind(&config(&port.to_string())).await.expect_err("taken");
        let expected = format!("cannot listen on 127.0.0.1, port {port}");
        assert_eq!(fault.to_string(), expected);
    }

    /// By this the test that follows knows that it is the server.
    const IS_SERVER: &str = "TEST_LOSES_ITS_DEVICE";

    /// A batcher before a device that is lost at the first pass.
    fn losing(_: Engine, policy: BatchPolicy) -> Batcher {
        Batcher::with_encoder(policy, Heartbeat::new(Duration::ZERO), |_| {
            let reason = "on purpose".to_owned();
            ready(Err(EngineError::Lost { reason }))
        })
    }

    #[test]
    fn a_process_that_lost_its_device_tells_who_waits_and_ends_with_70_within_a_second() {
        if std::env::var_os(IS_SERVER).is_some() {
            let error = run_with(config("0"), losing).expect_err("the device is lost");
            std::process::exit(super::super::exit_code(&error).into());
        }
        let name = "cli::serve::tests::a_process_that_lost_its_device_tells_who_waits_and_ends_with_70_within_a_second";
        let mut server = Command::new(std::env::current_exe().expect("this program"))
            .args([name, "--exact", "--nocapture"])
            .env(IS_SERVER, "1")
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program starts");
        let lines = BufReader::new(server.stdout.take().expect("its output")).lines();
        let address = lines
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("http://").map(str::to_owned))
            .expect("it says where it listens");
        let mut stream = std::net::TcpStream::connect(address).expect("a connection");
        let body = r#"{"input":"a"}"#;
        let length = body.len();
        write!(
            stream,
            "POST /v1/embeddings HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let answered = Instant::now();
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.contains("device_unavailable"), "{answer}");
        assert!(answer.contains("\r\nretry-after: "), "{answer}");
        let ended = server.wait().expect("its end");
        assert_eq!(ended.code(), Some(super::super::EXIT_DEVICE.into()));
        let took = answered.elapsed();
        assert!(took < Duration::from_secs(1), "{took:?}");
    }

    #[test]
    fn a_sandbox_that_lacks_a_layer_is_enough_only_where_it_is_not_required() {
        let whole = Layers {
            limits: true,
            no_new_privileges: true,
            network_namespace: true,
            landlock: true,
            seccomp: true,
        };
        let lacking = Layers {
            landlock: false,
            ..whole
        };
        assert_eq!(judge(Ok(whole), true).unwrap(), Some(whole));
        assert_eq!(judge(Ok(lacking), false).unwrap(), Some(lacking));
        let words = judge(Ok(lacking), true).unwrap_err().to_string();
        assert!(words.contains("media.require_sandbox"), "{words}");
        assert!(words.contains("Landlock missing"), "{words}");
        let broken = || Err(MediaError::Internal(std::io::Error::other("no exec")));
        assert_eq!(judge(broken(), false).unwrap(), None);
        assert!(judge(broken(), true).is_err());
    }
}
