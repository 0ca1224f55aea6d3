//! Confines this process and turns it into a decoder: what the child `manifold decode-video` does.
//!
//! In: a program of FFmpeg's, its arguments and its limits; the video on standard input. Out: that program in this process's place,
//! with nothing but its standard streams.
//!
//! # Why a program and not a library
//!
//! FFmpeg's decoders are the largest body of C that meets a client's bytes, and its allow-lists have been passed by more than once
//! (CVE-2017-9993, CVE-2026-107697, CVE-2026-107698). Linking its libraries would put all of it, and the hundred shared objects a
//! distribution's build drags in, into the address space of weights and keys, and would tie this binary to one of FFmpeg's ABIs. A
//! program needs only `apt-get install ffmpeg` or its like, of any version; the kernel takes everything from it but reading its
//! input and writing frames; and when it falls, it falls alone.
//!
//! # The layers
//!
//! | layer | what it stops | where |
//! |---|---|---|
//! | resource limits | memory and CPU beyond the settings, files written, core dumps | Unix |
//! | no new privileges | set-user-id programs | Linux |
//! | network namespace | every network but an empty one | Linux, where user namespaces are allowed |
//! | Landlock | opening any file but FFmpeg, its libraries and the video; signals to others | Linux 5.13 and later, where enabled |
//! | seccomp | every system call a decoder does not need: sockets, processes, `execve`, `ptrace`, opening to write | Linux on x86-64, ARM64 and RISC-V |
//!
//! The program is started by the descriptor it was opened as, which closes with that, under a limit that no later descriptor can
//! reach its number: one start, and no other ever.

#[cfg(target_os = "linux")]
mod linux;

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::PathBuf;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Exit code of a child that could not be confined as was required; FFmpeg ends with 0, 1, 123 or 255.
pub const EXIT_UNCONFINED: u8 = 97;
/// Most files a decoder has open: its streams and one library after another.
const MAX_OPEN_FILES: u64 = 64;

/// What becomes of the process.
#[derive(Debug)]
pub struct Confinement {
    /// The program, by its absolute path.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Most address space, in bytes.
    pub memory_bytes: u64,
    /// Most CPU time of all its threads together.
    pub cpu_seconds: u64,
    /// Whether to fail rather than run without Landlock or seccomp.
    pub required: bool,
}

/// Which layers hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Layers {
    /// Resource limits.
    pub limits: bool,
    /// No new privileges.
    pub no_new_privileges: bool,
    /// A network namespace of its own, with nothing in it.
    pub network_namespace: bool,
    /// Landlock.
    pub landlock: bool,
    /// The filter of system calls.
    pub seccomp: bool,
}

impl Layers {
    /// Their names, and which hold.
    fn named(self) -> [(&'static str, bool); 5] {
        [
            ("limits", self.limits),
            ("no new privileges", self.no_new_privileges),
            ("network namespace", self.network_namespace),
            ("Landlock", self.landlock),
            ("seccomp", self.seccomp),
        ]
    }

    /// Whether nothing is left open: without the namespace sockets are still refused, so that one is spare.
    pub fn is_complete(self) -> bool {
        self.limits && self.no_new_privileges && self.landlock && self.seccomp
    }

    /// What [`fmt::Display`] wrote, read back.
    pub fn parse(text: &str) -> Self {
        let holds = |name: &str| text.split(", ").any(|word| word.trim() == name);
        Self {
            limits: holds("limits"),
            no_new_privileges: holds("no new privileges"),
            network_namespace: holds("network namespace"),
            landlock: holds("Landlock"),
            seccomp: holds("seccomp"),
        }
    }

    /// The names of those that do not hold.
    pub fn missing(self) -> Vec<&'static str> {
        let absent = self.named().into_iter().filter(|(_, holds)| !holds);
        absent.map(|(name, _)| name).collect()
    }
}

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let holding = self.named().into_iter().filter(|(_, holds)| *holds);
        let names: Vec<&str> = holding.map(|(name, _)| name).collect();
        f.write_str(&names.join(", "))
    }
}

/// Confines the process and becomes the program. Returns only when that fails.
///
/// Call it in a process of one thread: the layers hold for the thread that puts them on and what it becomes.
pub fn enter(confinement: &Confinement) -> io::Error {
    let entered = confine(confinement).and_then(|(layers, program)| {
        check(layers, confinement.required)?;
        Ok(program)
    });
    match entered {
        Ok(program) => program.become_it(&confinement.args),
        Err(error) => error,
    }
}

/// Refuses to go on without a layer where all are required.
fn check(layers: Layers, required: bool) -> io::Result<()> {
    if !required || layers.is_complete() {
        return Ok(());
    }
    let missing = layers.missing().join(", ");
    let reason = format!("the sandbox is not complete, it lacks: {missing}");
    Err(io::Error::other(reason))
}

/// Confines the process and tells which layers hold, without becoming anything.
///
/// # Errors
/// When the program cannot be opened or a limit not be set.
pub fn layers(confinement: &Confinement) -> io::Result<Layers> {
    confine(confinement).map(|(layers, _)| layers)
}

/// Limits every Unix has. Set for good: the process cannot raise them again.
fn limit_resources(confinement: &Confinement) -> io::Result<()> {
    for (resource, most) in [
        (Resource::As, confinement.memory_bytes),
        (Resource::Cpu, confinement.cpu_seconds),
        (Resource::Fsize, 0),
        (Resource::Core, 0),
        (Resource::Nofile, MAX_OPEN_FILES),
    ] {
        let hard = getrlimit(resource).maximum;
        let most = hard.map_or(most, |hard| hard.min(most));
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        match setrlimit(resource, limit) {
            Ok(()) => {}
            // macOS has no limit on address space.
            Err(_) if resource == Resource::As && cfg!(not(target_os = "linux")) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(target_os = "linux")]
use linux::confine;

/// A program that is about to take this process's place.
#[cfg(not(target_os = "linux"))]
struct Program(PathBuf);

#[cfg(not(target_os = "linux"))]
fn confine(confinement: &Confinement) -> io::Result<(Layers, Program)> {
    limit_resources(confinement)?;
    let layers = Layers {
        limits: true,
        ..Layers::default()
    };
    Ok((layers, Program(confinement.program.clone())))
}

#[cfg(not(target_os = "linux"))]
impl Program {
    fn become_it(&self, args: &[OsString]) -> io::Error {
        use std::os::unix::process::CommandExt;
        std::process::Command::new(&self.0)
            .args(args)
            .env_clear()
            .exec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_read_back_as_they_were_written() {
        let all = Layers {
            limits: true,
            no_new_privileges: true,
            network_namespace: true,
            landlock: true,
            seccomp: true,
        };
        let without = |change: fn(&mut Layers)| {
            let mut layers = all;
            change(&mut layers);
            layers
        };
        let some = [
            Layers::default(),
            all,
            without(|layers| layers.limits = false),
            without(|layers| layers.no_new_privileges = false),
            without(|layers| layers.network_namespace = false),
            without(|layers| layers.landlock = false),
            without(|layers| layers.seccomp = false),
        ];
        for layers in some {
            assert_eq!(Layers::parse(&layers.to_string()), layers);
        }
        let complete: Vec<bool> = some.into_iter().map(Layers::is_complete).collect();
        assert_eq!(
            complete,
            [false, true, false, false, true, false, false],
            "only the namespace may lack"
        );
        assert_eq!(some[5].missing(), ["Landlock"]);
        // What becomes of a decoder that must be confined.
        let refused = check(some[5], true).unwrap_err().to_string();
        assert!(refused.ends_with("it lacks: Landlock"), "{refused}");
        assert!(check(some[5], false).is_ok() && check(some[4], true).is_ok());
    }
}
