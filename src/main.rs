//! The `manifold` program: wiring only, the work is in [`manifold::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    manifold::cli::run()
}
