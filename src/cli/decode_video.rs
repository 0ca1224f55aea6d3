//! `manifold decode-video`: the child process a server decodes video files in; not for people. In: limits, and the FFmpeg program to
//! become. Out: that program, confined; or an exit code that says that it could not be.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::kernels::take_usual_turns;
use crate::media::video::sandbox::{self, Confinement, EXIT_UNCONFINED};

/// What the server says to its child.
#[derive(Debug, clap::Args)]
pub(super) struct DecodeVideoArgs {
    /// Most address space
    #[arg(long)]
    memory_bytes: u64,
    /// Most CPU time
    #[arg(long)]
    cpu_seconds: u64,
    /// Fail rather than run without Landlock or seccomp
    #[arg(long)]
    require_sandbox: bool,
    /// Only write which layers hold
    #[arg(long)]
    tell_layers: bool,
    /// The program, by its absolute path
    #[arg(required = true)]
    program: PathBuf,
    /// Its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Confines this process and becomes the program; returns only when that fails, or when there was only something to tell.
pub(super) fn run(args: DecodeVideoArgs) -> ExitCode {
    // A thread of the server's that has short turns started it.
    take_usual_turns();
    let confinement = Confinement {
        program: args.program,
        args: args.args,
        memory_bytes: args.memory_bytes,
        cpu_seconds: args.cpu_seconds,
        required: args.require_sandbox,
    };
    let failure = if args.tell_layers {
        let told =
            sandbox::layers(&confinement).and_then(|layers| write!(std::io::stdout(), "{layers}"));
        match told {
            Ok(()) => return ExitCode::SUCCESS,
            Err(error) => error,
        }
    } else {
        sandbox::enter(&confinement)
    };
    eprintln!("manifold decode-video: {failure}");
    ExitCode::from(EXIT_UNCONFINED)
}
