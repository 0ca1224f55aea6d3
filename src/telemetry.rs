//! Logs: the `tracing` subscriber the whole program writes through. In: [`TelemetrySettings`]. Out: lines on standard error,
//! coloured text on a terminal, plain text or JSON elsewhere.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

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
}

impl Default for TelemetrySettings {
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            filter: "info".to_owned(),
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

/// Starts logging. Call once, early: events before it are lost.
///
/// # Errors
/// [`TelemetryError`].
pub fn init(settings: &TelemetrySettings) -> Result<(), TelemetryError> {
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
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let started = match settings.format {
        LogFormat::Text => lines.with_ansi(colours).with_target(false).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    started.map_err(|_| TelemetryError::AlreadySet)
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
