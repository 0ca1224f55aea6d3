//! What the server tells about itself: logs, metrics, traces. In: [`TelemetrySettings`] and events. Out: lines on standard error,
//! coloured text on a terminal, plain text or JSON elsewhere; numbers for a scraper; spans for a collector.

pub mod backlog;
mod device_memory;
mod metric_names;
pub mod metrics;
mod process;
pub mod traces;

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub use device_memory::{DeviceMemory, set_device_memory};
pub use metrics::metrics;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people; coloured on a terminal.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What is logged, and how it looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TelemetrySettings {
    /// How lines look.
    pub format: LogFormat,
    /// A level, or directives such as `info,manifold::engine=debug`.
    pub filter: String,
    /// The OTLP collector that gets the spans of requests.
    pub otlp_endpoint: Option<String>,
}

impl Default for TelemetrySettings {
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            filter: "info".to_owned(),
            otlp_endpoint: None,
        }
    }
}

/// Why logging could not start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter cannot be read.
    #[error("log filter {filter:?} is not a level or a list of target=level directives")]
    Filter {
        /// As it was written.
        filter: String,
    },
    /// The collector's address cannot be used.
    #[error("spans cannot be sent to {endpoint:?}: {reason}")]
    Exporter {
        /// As it was written.
        endpoint: String,
        /// What the exporter says.
        reason: String,
    },
    /// The process already has a subscriber.
    #[error("logging is already set up")]
    AlreadySet,
}

/// Whether [`init`] would accept this filter.
pub fn check_filter(filter: &str) -> bool {
    // `EnvFilter` takes a lone word that is no level ("verbose") for a target, and nothing at all for "errors only": nobody
    // who wrote those meant that.
    let means_something = |directive: &str| {
        let directive = directive.trim();
        let level = directive.parse::<LevelFilter>().is_ok();
        directive.contains(['=', '[']) || (level && !directive.is_empty())
    };
    // ASCII: tracing-subscriber 0.3.23 panics on `é=info`, where it slices within a character.
    filter.is_ascii()
        && filter.split(',').all(means_something)
        && EnvFilter::try_new(filter).is_ok()
}

/// Whether [`init`] would accept this collector.
pub fn check_endpoint(endpoint: &str) -> bool {
    traces::traces_url(endpoint).is_some()
}

static EXPORTS_TRACES: AtomicBool = AtomicBool::new(false);

/// Whether spans go anywhere; what only an exporter needs is not computed without one.
fn exports_traces() -> bool {
    EXPORTS_TRACES.load(Ordering::Relaxed)
}

/// What must live as long as the process tells about itself; dropping it sends the last spans.
#[derive(Debug)]
pub struct Telemetry {
    exporter: Option<traces::Exporter>,
}

impl Telemetry {
    /// From now on the last spans have no more than this to reach the collector: the process is wanted gone.
    pub fn hurry(&mut self, last_export: Duration) {
        if let Some(exporter) = &mut self.exporter {
            exporter.last_export = last_export;
        }
    }
}

/// Starts logging and, where a collector is named, the export of spans. Call once, early: events before it are lost.
///
/// # Errors
/// [`TelemetryError`].
pub fn init(settings: &TelemetrySettings) -> Result<Telemetry, TelemetryError> {
    let filter = &settings.filter;
    let unreadable = || TelemetryError::Filter {
        filter: filter.clone(),
    };
    if !check_filter(filter) {
        return Err(unreadable());
    }
    let filter = EnvFilter::try_new(filter).map_err(|_| unreadable())?;
    // NO_COLOR: https://no-color.org
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match settings.format {
        LogFormat::Text => lines
            .with_ansi(colours)
            .with_target(false)
            .with_filter(filter)
            .boxed(),
        // The span a line stands in says the same as the list of all it stands in: there is one.
        LogFormat::Json => lines
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .with_filter(filter)
            .boxed(),
    };
    let mut layers: Vec<Box<dyn Layer<Registry> + Send + Sync>> = vec![lines];
    let mut exporter = None;
    if let Some(endpoint) = &settings.otlp_endpoint {
        let url = traces::traces_url(endpoint).ok_or_else(|| TelemetryError::Exporter {
            endpoint: endpoint.clone(),
            reason: "it is not an http(s) address".to_owned(),
        })?;
        let (spans, exports) = traces::layer(&url)?;
        layers.push(spans);
        exporter = Some(exports);
    }
    let started = tracing_subscriber::registry().with(layers).try_init();
    started.map_err(|_| TelemetryError::AlreadySet)?;
    EXPORTS_TRACES.store(exporter.is_some(), Ordering::Relaxed);
    Ok(Telemetry { exporter })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_levels_or_directives() {
        for right in ["info", "WARN", "info,manifold::engine=debug", "off"] {
            assert!(check_filter(right), "{right}");
        }
        for wrong in [
            "",
            " ",
            "verbose",
            "info,",
            "manifold=loud",
            "\u{e9}=info",
            "a=b=c",
        ] {
            assert!(!check_filter(wrong), "{wrong}");
        }
    }
}
