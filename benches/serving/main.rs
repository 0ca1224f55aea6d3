//! The server under load, from a second process over loopback: `cargo bench --bench serving -- <scenario> [--option value]…`.
//!
//! Scenarios: `concurrency` (64 clients, each asks when it was answered), `throughput` (32 with 128 tokens, in turn with the bare encoder in
//! this process), `overload` (ten times the rate that can be sustained, in bursts of `--burst-ms 10`), `slow-connections` (2,000 that send
//! next to nothing), `mixed` (70 % of what can be sustained, for long), `flood` (one key sends the largest images, another short texts). All
//! but the first two are open loop: requests are sent at a fixed rate, and a latency counts from when its request was due, so that a server
//! that stalls cannot hide it.
//!
//! The bench starts its own server of the embedded model, or of `--model DIRECTORY`; `--binary FILE` takes another build of it. Each
//! scenario ends with an error when what it claims does not hold, and those under load compare the vectors of two fixed inputs, bit by bit.

mod bare;
mod client;
mod load;
mod scenarios;
mod server;

use std::collections::BTreeMap;
use std::process::ExitCode;

/// `--name value` pairs.
pub(crate) struct Options(BTreeMap<String, String>);

impl Options {
    fn parse(words: impl Iterator<Item = String>) -> Result<(String, Self), String> {
        let mut scenario = String::new();
        let mut options = BTreeMap::new();
        // `cargo bench` adds a flag of its own.
        let mut words = words.filter(|word| word != "--bench");
        while let Some(word) = words.next() {
            match word.strip_prefix("--") {
                Some(name) => {
                    let value = words.next().ok_or(format!("--{name} needs a value"))?;
                    options.insert(name.to_owned(), value);
                }
                None => scenario = word,
            }
        }
        Ok((scenario, Options(options)))
    }

    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// A number, or what stands for it.
    pub(crate) fn number(&self, name: &str, default: f64) -> f64 {
        let Some(text) = self.text(name) else {
            return default;
        };
        text.parse()
            .unwrap_or_else(|_| panic!("--{name} is {text:?}, it must be a number"))
    }
}

fn main() -> ExitCode {
    let (scenario, options) = match Options::parse(std::env::args().skip(1)) {
        Ok(parsed) => parsed,
        Err(fault) => {
            eprintln!("{fault}");
            return ExitCode::from(2);
        }
    };
    // One thread: what the client takes from the server's cores is bounded, and told.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let held = runtime.block_on(async {
        match scenario.as_str() {
            "concurrency" | "" => scenarios::concurrency(&options).await,
            "throughput" => scenarios::throughput(&options).await,
            "overload" => scenarios::overload(&options).await,
            "slow-connections" => scenarios::slow_connections(&options).await,
            "mixed" => scenarios::mixed(&options).await,
            "flood" => scenarios::flood(&options).await,
            other => Err(format!("{other:?} is no scenario")),
        }
    });
    match held {
        Ok(()) => ExitCode::SUCCESS,
        Err(broken) => {
            eprintln!("does not hold: {broken}");
            ExitCode::FAILURE
        }
    }
}
