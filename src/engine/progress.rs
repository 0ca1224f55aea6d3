//! How far a download is, for people: a bar on a terminal, lines in a log.
//!
//! In: bytes as they arrive. Out: bytes there, bytes in all and the rate, on standard error or through `tracing`.

use std::cell::Cell;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{BinaryBytes, ProgressBar, ProgressStyle};

use super::download::RemoteFile;

/// How often progress is logged where there is no terminal to draw a bar on.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Shows how a download goes: a bar with bytes and rate where standard error is a terminal, else log lines.
pub(super) struct DownloadProgress {
    repository: String,
    bar: Option<ProgressBar>,
    total_bytes: Cell<u64>,
    have_bytes: Cell<u64>,
    arrived_bytes: Cell<u64>,
    started: Instant,
    logged: Cell<Instant>,
}

impl DownloadProgress {
    /// Starts to show the download of a repository.
    pub(super) fn start(repository: String) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template(
                "{msg} [{bar:30}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} eta {eta}",
            );
            ProgressBar::new(0)
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
                .with_message(repository.clone())
        });
        let now = Instant::now();
        let zero = || Cell::new(0);
        let logged = Cell::new(now);
        Self {
            repository,
            bar,
            total_bytes: zero(),
            have_bytes: zero(),
            arrived_bytes: zero(),
            started: now,
            logged,
        }
    }

    /// Adds files to what is to come.
    pub(super) fn expect(&self, files: &[RemoteFile]) {
        let bytes = files.iter().map(|file| file.size_bytes).sum();
        self.total_bytes
            .set(self.total_bytes.get().saturating_add(bytes));
        if let Some(bar) = &self.bar {
            bar.set_length(self.total_bytes.get());
        }
        tracing::info!(repository = self.repository, files = files.len(), size = %BinaryBytes(bytes), "fetching");
    }

    /// Bytes that were there already: they count towards the total, not towards the rate.
    pub(super) fn present(&self, bytes: u64) {
        self.have_bytes.set(self.have_bytes.get() + bytes);
        if let Some(bar) = &self.bar {
            bar.set_position(self.have_bytes.get());
            bar.reset_eta();
        }
    }

    /// Bytes that have to come again.
    pub(super) fn lost(&self, bytes: u64) {
        self.have_bytes
            .set(self.have_bytes.get().saturating_sub(bytes));
        if let Some(bar) = &self.bar {
            bar.set_position(self.have_bytes.get());
            bar.reset_eta();
        }
    }

    /// Bytes that have just arrived.
    pub(super) fn arrived(&self, bytes: u64) {
        self.have_bytes.set(self.have_bytes.get() + bytes);
        self.arrived_bytes.set(self.arrived_bytes.get() + bytes);
        if let Some(bar) = &self.bar {
            bar.set_position(self.have_bytes.get());
        } else if self.logged.get().elapsed() >= LOG_INTERVAL {
            self.logged.set(Instant::now());
            tracing::info!("{}", self.line("downloading"));
        }
    }

    /// Takes the bar away and logs the sum.
    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        tracing::info!("{}", self.line("downloaded"));
    }

    /// What a log line says: bytes there, bytes in all, bytes that came over the network and how fast.
    fn line(&self, verb: &str) -> String {
        let seconds = self.started.elapsed().as_secs_f64();
        let rate = if seconds > 0.0 {
            self.arrived_bytes.get() as f64 / seconds
        } else {
            0.0
        };
        format!(
            "{verb} {}: {} of {}, {} of it now in {seconds:.1} s, {}/s",
            self.repository,
            BinaryBytes(self.have_bytes.get()),
            BinaryBytes(self.total_bytes.get()),
            BinaryBytes(self.arrived_bytes.get()),
            BinaryBytes(rate as u64),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_counts_only_what_came_over_the_network() {
        let file = RemoteFile {
            name: "a".to_owned(),
            size_bytes: 4 << 20,
            key: "0".to_owned(),
            sha256: None,
        };
        let progress = DownloadProgress::start("owner/name@main".to_owned());
        progress.expect(&[file]);
        progress.present(3 << 20);
        progress.arrived(1 << 20);
        let line = progress.line("downloaded");
        assert!(
            line.starts_with(
                "downloaded owner/name@main: 4.00 MiB of 4.00 MiB, 1.00 MiB of it now in "
            ),
            "{line}"
        );
        assert!(line.ends_with("/s"), "{line}");
    }

    #[test]
    fn bytes_that_must_come_again_leave_the_sum() {
        let progress = DownloadProgress::start("owner/name@main".to_owned());
        progress.present(10);
        progress.lost(10);
        progress.arrived(3);
        assert_eq!(
            (progress.have_bytes.get(), progress.arrived_bytes.get()),
            (3, 3)
        );
    }
}
