//! What each subcommand does, one file each. In: the command line. Out: the exit code.

mod decode_video;
mod healthcheck;
mod loading;
mod reference_case;
mod reload;
mod serve;
mod summary;
mod verify;

use std::fmt;
use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::{Config, ConfigArgs, ConfigFault, Inputs, hide_sections};
use crate::engine::EngineError;

/// The process could not do what it was asked to.
const EXIT_FAILURE: u8 = 1;
/// The command line or the configuration is wrong; starting again changes nothing. As clap's own.
const EXIT_USAGE: u8 = 2;
/// The device is absent or broken; another machine may do better.
///
/// # Source
/// `EX_SOFTWARE` of BSD's `sysexits.h`.
const EXIT_DEVICE: u8 = 70;

/// Embedding server for Qwen3-VL-Embedding: text, images and video in, vectors out, over the OpenAI API.
#[derive(Debug, Parser)]
#[command(name = "manifold", version, arg_required_else_help = true)]
struct CommandLine {
    #[command(subcommand)]
    subcommand: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve the embeddings API
    Serve(ConfigArgs),
    /// Compute the built-in reference cases and print how far the results are from the reference
    Verify(verify::VerifyArgs),
    /// Ask the server on this machine whether it is ready: exit code 0 when it is, 1 when not
    Healthcheck(ConfigArgs),
    /// Become a confined FFmpeg program: what the server starts to decode a video file
    #[command(hide = true)]
    DecodeVideo(decode_video::DecodeVideoArgs),
}

/// The faults of a configuration, as one error.
#[derive(Debug)]
struct Misconfigured(Vec<ConfigFault>);

impl std::error::Error for Misconfigured {}

impl fmt::Display for Misconfigured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration is wrong:")?;
        self.0.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}

/// Parses the command line and runs the subcommand.
pub fn run() -> ExitCode {
    let parsed = command()
        .try_get_matches()
        .and_then(|matches| CommandLine::from_arg_matches(&matches));
    let line = match parsed {
        Ok(line) => line,
        // `--help` and `--version` come here too, with exit code 0.
        Err(error) => error.exit(),
    };
    if let Verb::DecodeVideo(args) = line.subcommand {
        return decode_video::run(args);
    }
    match dispatch(line.subcommand) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("manifold: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

fn dispatch(verb: Verb) -> anyhow::Result<()> {
    let args = match &verb {
        Verb::Serve(args) | Verb::Healthcheck(args) => args,
        Verb::Verify(verify) => &verify.config,
        Verb::DecodeVideo(_) => unreachable!("it has no configuration and has run by now"),
    };
    let inputs = Inputs::of_process(args).map_err(Misconfigured)?;
    if args.print_config {
        let text = Config::print(&inputs).map_err(Misconfigured)?;
        // Not `print!`, which panics when the reader has gone, as `head` does.
        return Ok(std::io::stdout().write_all(text.as_bytes())?);
    }
    let config = Config::resolve(&inputs).map_err(Misconfigured)?;
    match &verb {
        Verb::Serve(_) => serve::run(config),
        Verb::Verify(args) => verify::run(&config, args),
        Verb::Healthcheck(_) => healthcheck::run(&config.server),
        Verb::DecodeVideo(_) => Ok(()),
    }
}

/// The command line; in the help of a subcommand stand only the settings it heeds.
fn command() -> clap::Command {
    let unheeded = [
        "batch",
        "cache",
        "server",
        "limits",
        "auth",
        "prompt",
        "processor",
        "media",
    ];
    CommandLine::command()
        .mut_subcommand("verify", |verify| hide_sections(verify, &unheeded))
        .mut_subcommand("healthcheck", |check| {
            let all_but_server = unheeded.map(|name| if name == "server" { "model" } else { name });
            hide_sections(
                hide_sections(check, &all_but_server),
                &["reranker", "engine", "log"],
            )
        })
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<Misconfigured>() {
        return EXIT_USAGE;
    }
    match error.downcast_ref::<EngineError>() {
        Some(EngineError::Device { .. }) => EXIT_DEVICE,
        Some(error) if error.is_lasting() => EXIT_DEVICE,
        _ => EXIT_FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;
    use crate::config::Origin;

    #[test]
    fn the_command_line_is_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn exit_codes_tell_causes_apart() {
        let fault = ConfigFault {
            origin: Origin::Default,
            problem: "x".to_owned(),
        };
        let misconfigured = anyhow::Error::new(Misconfigured(vec![fault]));
        assert_eq!(exit_code(&misconfigured), EXIT_USAGE);
        let device = EngineError::Device {
            device: "cuda:0".to_owned(),
            reason: "absent".to_owned(),
        };
        let device = Err::<(), _>(device).context("cannot start the engine");
        assert_eq!(exit_code(&device.expect_err("an error")), EXIT_DEVICE);
        assert_eq!(exit_code(&anyhow::anyhow!("else")), EXIT_FAILURE);
    }

    #[test]
    fn every_fault_is_shown_on_its_own_line() {
        let fault = |problem: &str| ConfigFault {
            origin: Origin::Default,
            problem: problem.to_owned(),
        };
        let shown = Misconfigured(vec![fault("one"), fault("two")]).to_string();
        assert_eq!(
            shown,
            "the configuration is wrong:\n  default: one\n  default: two"
        );
    }

    #[test]
    fn the_help_of_verify_shows_only_what_it_heeds() {
        let mut command = command();
        let verify = command.find_subcommand_mut("verify").expect("it exists");
        let help = verify.render_long_help().to_string();
        assert!(help.contains("--model-id") && help.contains("--engine-dtype"));
        assert!(!help.contains("--server-port") && !help.contains("--media-ffmpeg"));
    }
}
