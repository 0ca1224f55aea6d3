//! The server under test: a process of its own, and what Linux says about it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::Options;

/// A running server, stopped when it goes.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: String,
}

impl Server {
    /// Starts the binary on a free port and waits until it is ready.
    pub(crate) fn start(options: &Options, arguments: &[&str], key: Option<&str>) -> Self {
        let binary = options.text("binary");
        let binary = binary.unwrap_or(env!("CARGO_BIN_EXE_manifold"));
        let mut command = Command::new(binary);
        command.args(["serve", "--port", "0"]).args(arguments);
        if let Some(model) = options.text("model") {
            command.args(["--model", model]);
        }
        for option in ["threads", "dtype"] {
            if let Some(value) = options.text(option) {
                command.args([&format!("--{option}"), value]);
            }
        }
        if let Some(key) = key {
            command.env("MANIFOLD_API_KEY", key);
        }
        let log = options.text("log").map_or_else(Stdio::null, |path| {
            fs::File::create(path).expect("a log file").into()
        });
        let child = command.stdout(Stdio::piped()).stderr(log).spawn();
        let mut child = child.expect("the server starts");
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let url = lines
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("http://").map(str::to_owned));
        let address = url.expect("the server prints its URL when it is ready");
        Server { child, address }
    }

    /// CPU time so far.
    pub(crate) fn cpu(&self) -> Duration {
        cpu_of(&self.child.id().to_string())
    }

    /// Resident memory in bytes.
    pub(crate) fn memory(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(path).expect("the server's status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        1024 * kilobytes.expect("its resident memory")
    }

    /// Open file descriptors.
    pub(crate) fn files(&self) -> usize {
        let path = format!("/proc/{}/fd", self.child.id());
        fs::read_dir(path).expect("the server's files").count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU time of a process, `self` for this one: fields 14 and 15 of proc_pid_stat(5), in hundredths of a second.
pub(crate) fn cpu_of(process: &str) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).expect("a process");
    let (_, rest) = stat.rsplit_once(')').expect("a program's name");
    let ticks = rest.split_whitespace().skip(11).take(2);
    let ticks: u64 = ticks
        .map(|ticks| ticks.parse::<u64>().expect("ticks"))
        .sum();
    Duration::from_millis(10 * ticks)
}
