//! What each subcommand does.

use std::process::ExitCode;

/// Parses the command line and runs the subcommand.
pub fn run() -> ExitCode {
    ExitCode::SUCCESS
}
