//! A decoder in a child process that cannot outlive its time.
//!
//! In: a program, its arguments, the file it reads as its standard input. Out: what it writes to standard output, read by the
//! caller as it comes. The child has no environment, no terminal, `/` as its directory and a process group of its own; it is
//! killed at the deadline and reaped on every path. What confines it is `sandbox`, which the child puts on itself.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::sandbox::EXIT_UNCONFINED;
use crate::media::{MediaError, MediaSettings};

/// How often an ending child is looked at.
const POLL: Duration = Duration::from_millis(2);

/// One run of a program.
pub(super) struct Job<'a> {
    /// The program and its arguments.
    pub(super) command: Command,
    /// What it reads; from the beginning.
    pub(super) input: &'a File,
    /// How long it may take.
    pub(super) time: Duration,
}

/// The command that runs one of FFmpeg's programs confined: this program again, which becomes that one.
///
/// # Errors
/// [`MediaError::Unsupported`] when the program is not installed.
pub(super) fn confined(
    program: &Path,
    args: Vec<String>,
    settings: &MediaSettings,
) -> Result<Command, MediaError> {
    let found = find(program).ok_or_else(|| not_installed(program))?;
    let mut command = ourselves(settings);
    if settings.require_sandbox {
        command.arg("--require-sandbox");
    }
    command.arg("--").arg(found).args(args);
    Ok(command)
}

/// The command that confines itself in the same way, and writes which layers hold.
///
/// # Errors
/// [`MediaError::Unsupported`] when FFmpeg is not installed.
pub(super) fn telling_layers(settings: &MediaSettings) -> Result<Command, MediaError> {
    let found = find(&settings.ffmpeg).ok_or_else(|| not_installed(&settings.ffmpeg))?;
    let mut command = ourselves(settings);
    command.arg("--tell-layers").arg("--").arg(found);
    Ok(command)
}

fn ourselves(settings: &MediaSettings) -> Command {
    let mut command = Command::new(&settings.decoder);
    command
        .arg("decode-video")
        .arg(format!("--memory-bytes={}", settings.max_decoder_bytes))
        .arg(format!("--cpu-seconds={}", settings.max_decoder_seconds));
    command
}

/// How a run ended, when nothing failed on our side.
pub(super) enum Ended<T> {
    /// The child exited with success, and the reader got this.
    Well(T),
    /// The child exited with a failure, or gave the reader too little.
    Badly,
    /// The child was killed at the deadline.
    TimedOut,
}

/// Kills and reaps its child when dropped, whatever happened before.
struct Guarded(Mutex<Watched>);

struct Watched {
    child: Child,
    /// Once reaped, the child's id may be another's and must not be killed.
    reaped: bool,
}

impl Guarded {
    fn new(child: Child) -> Self {
        Self(Mutex::new(Watched {
            child,
            reaped: false,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kills the child and whatever it started.
    fn kill(&self) {
        let watched = self.lock();
        // The child leads a group of its own, so the group has its id.
        let group = Pid::from_raw(watched.child.id().cast_signed());
        if let Some(group) = group.filter(|_| !watched.reaped) {
            // An error means that all of it is gone already.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    /// Waits until the child has exited or the deadline has passed, when it is killed.
    fn wait(&self, deadline: Instant) -> io::Result<ExitStatus> {
        loop {
            let status = {
                let mut watched = self.lock();
                let status = watched.child.try_wait()?;
                watched.reaped = status.is_some();
                status
            };
            if let Some(status) = status {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                self.kill();
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.kill();
        // Returns at once when it has been reaped.
        let _ = self.lock().child.wait();
    }
}

/// Runs a program and hands its output to `read`, which returns `Ok(None)` when there is too little of it.
///
/// # Errors
/// What `read` returns, [`MediaError::Internal`] when the child cannot be started, confined or waited for.
pub(super) fn run<T>(
    job: Job<'_>,
    read: impl FnOnce(&mut ChildStdout) -> Result<Option<T>, MediaError>,
) -> Result<Ended<T>, MediaError> {
    let mut command = job.command;
    let deadline = Instant::now() + job.time;
    let mut input = job.input.try_clone().map_err(MediaError::Internal)?;
    input.rewind().map_err(MediaError::Internal)?;
    let mut child = command
        .env_clear()
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::from(input))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(MediaError::Internal)?;
    let stdout = child.stdout.take();
    let child = Guarded::new(child);
    let mut stdout =
        stdout.ok_or_else(|| MediaError::Internal(io::ErrorKind::BrokenPipe.into()))?;

    let (finished, watched) = mpsc::channel::<()>();
    let (result, timed_out) = std::thread::scope(|scope| {
        // Reading blocks until the child writes or dies, so another thread keeps the time.
        let guarded = &child;
        let watchdog = scope.spawn(move || {
            let left = deadline.saturating_duration_since(Instant::now());
            let late = watched.recv_timeout(left) == Err(RecvTimeoutError::Timeout);
            if late {
                guarded.kill();
            }
            late
        });
        // Moved in, so that the watchdog wakes up even when `read` panics.
        let finished = finished;
        let result = read(&mut stdout);
        drop(finished);
        (result, watchdog.join().unwrap_or(false))
    });
    // A child that still writes would wait for a reader for ever.
    drop(stdout);
    if timed_out {
        return Ok(Ended::TimedOut);
    }
    let output = result?;
    let status = child.wait(deadline).map_err(MediaError::Internal)?;
    if status.code() == Some(EXIT_UNCONFINED.into()) {
        let reason = "the decoder could not be confined or started";
        return Err(MediaError::Internal(io::Error::other(reason)));
    }
    Ok(match output {
        Some(output) if status.success() => Ended::Well(output),
        _ if Instant::now() >= deadline => Ended::TimedOut,
        _ => Ended::Badly,
    })
}

/// Reads until the output ends, at most `limit` bytes: `None` when there is more.
pub(super) fn read_all(output: &mut impl Read, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    output.take(limit + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= limit).then_some(bytes))
}

/// Where a program is. We look it up ourselves: the child's environment is empty, also of `PATH`.
pub(super) fn find(program: &Path) -> Option<PathBuf> {
    let is_program = |path: &PathBuf| {
        std::fs::metadata(path)
            .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    if program.components().count() > 1 {
        return std::path::absolute(program).ok().filter(is_program);
    }
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|folder| folder.join(program))
        .filter(|path| path.is_absolute())
        .find(is_program)
}

fn not_installed(program: &Path) -> MediaError {
    MediaError::Unsupported {
        reason: format!(
            "this server cannot read video files, because FFmpeg ({}) is not installed on it: its operator can install it \
             (Debian and Ubuntu: apt-get install ffmpeg), or send the video as a list of frames",
            program.file_name().unwrap_or_default().display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn sh(script: &str, input: &File, time: Duration) -> Result<Ended<Vec<u8>>, MediaError> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        let job = Job {
            command,
            input,
            time,
        };
        run(job, |output| {
            read_all(output, 1000).map_err(MediaError::Internal)
        })
    }

    fn input(text: &str) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn a_child_sees_its_input_and_nothing_of_ours() {
        let file = input("hello");
        for _ in 0..2 {
            match sh(
                "/bin/cat; pwd; echo \"$HOME$CARGO_MANIFEST_DIR\"",
                &file,
                LONG,
            )
            .unwrap()
            {
                Ended::Well(output) => assert_eq!(output, b"hello/\n\n"),
                _ => panic!("the child failed"),
            }
        }
    }

    #[test]
    fn a_child_that_hangs_is_killed_at_the_deadline() {
        // With its output open, with its output closed, and with a process of its own that holds the output.
        for script in [
            "exec /bin/sleep 60",
            "exec >&-; exec /bin/sleep 60",
            "/bin/sleep 60 & wait",
            "/bin/sleep 60 & exit",
        ] {
            let began = Instant::now();
            let ended = sh(script, &input(""), Duration::from_millis(200)).unwrap();
            assert!(matches!(ended, Ended::TimedOut), "{script}");
            assert!(began.elapsed() < Duration::from_secs(10), "{script}");
        }
    }

    #[test]
    fn a_child_that_writes_too_much_is_stopped() {
        let ended = sh(
            "while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done",
            &input(""),
            LONG,
        )
        .unwrap();
        assert!(matches!(ended, Ended::Badly));
    }

    #[test]
    fn a_failing_child_is_a_failure_whatever_it_wrote() {
        assert!(matches!(
            sh("echo all is well; exit 3", &input(""), LONG).unwrap(),
            Ended::Badly
        ));
    }

    #[test]
    fn a_reader_that_gives_up_ends_the_child() {
        let file = input("");
        let mut command = Command::new("/bin/sleep");
        command.arg("60");
        let job = Job {
            command,
            input: &file,
            time: LONG,
        };
        let began = Instant::now();
        let result = run::<()>(job, |_| {
            Err(MediaError::Internal(io::ErrorKind::Other.into()))
        });
        assert!(matches!(result, Err(MediaError::Internal(_))));
        assert!(began.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_child_that_could_not_be_confined_is_our_fault() {
        let result = sh("exit 97", &input(""), LONG);
        assert!(matches!(result, Err(MediaError::Internal(_))));
    }

    #[test]
    fn a_missing_program_is_named_with_what_to_install() {
        let settings = MediaSettings::default();
        match confined(Path::new("no-such-ffmpeg"), Vec::new(), &settings) {
            Err(MediaError::Unsupported { reason }) => {
                assert!(reason.contains("no-such-ffmpeg") && reason.contains("install"))
            }
            _ => panic!("found"),
        }
    }
}
