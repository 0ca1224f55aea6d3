//! A decoder in a child process that cannot outlive its time.
//!
//! In: a program, its arguments, the file it reads as its standard input. Out: what it writes to standard output, read by the
//! caller as it comes. The child has no environment, no terminal, `/` as its directory and a process group of its own; it is
//! killed at the deadline, or when nobody waits for it any more, and reaped on every path. What confines it is `sandbox`, which the
//! child puts on itself.
//!
//! # Which limit it was
//!
//! A child that came to a limit ends like one whose video is damaged: without its output. Time is ours to tell. At the limit on CPU time
//! the kernel kills, and so it does where the machine has no memory left: the time the child used decides, and the kernel's count of those it
//! killed for memory, which a child at its limit on time leaves as it was. Beyond the limit
//! on memory allocations fail, and FFmpeg ends of its own accord, of which it says why only where it looked: its words are looked through,
//! and go nowhere, and where they say nothing, it is what the child was last seen to hold that does.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use super::patience::{End, Patience};
use super::sandbox::EXIT_UNCONFINED;
use crate::media::{MediaError, MediaSettings};

/// How often an ending child is looked at.
const POLL: Duration = Duration::from_millis(2);
/// How often it is asked whether somebody still waits for a child.
const LOOK: Duration = Duration::from_millis(20);
/// How long the last words of a child that has ended are waited for.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// Most of a child's words that are looked through.
const MAX_WORDS_BYTES: u64 = 64 << 10;
/// What C libraries and FFmpeg say when memory, or a thread for want of memory, is refused.
const OUT_OF_MEMORY: [&str; 6] = [
    "allocate memory",
    "Failed to allocate",
    "Out of memory",
    "bad_alloc",
    "Resource temporarily unavailable",
    "thread_encoder_init failed",
];

/// One run of a program.
pub(super) struct Job<'a> {
    /// The program and its arguments.
    pub(super) command: Command,
    /// What it reads; from the beginning.
    pub(super) input: &'a File,
    /// How much time and CPU time it may take.
    pub(super) settings: &'a MediaSettings,
    /// Who waits for it.
    pub(super) patience: &'a Patience,
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
    /// The child was killed because it, or what it was asked for, took too long.
    TimedOut,
    /// The child was killed because nobody waited for it any more.
    Abandoned,
    /// The kernel killed the child when it had used up its CPU time.
    OutOfCpu,
    /// The child failed because it got no more memory.
    OutOfMemory,
}

impl<T> Ended<T> {
    /// Of what is broken off when its end has come: whose end that was.
    pub(super) fn at(end: End<'_>) -> Self {
        if end.patience.is_over() {
            Self::Abandoned
        } else {
            Self::TimedOut
        }
    }
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

    /// Waits until the child has exited or its end has come, when it is killed. Also returns the CPU time it used, where the system tells.
    fn wait(&self, end: &End<'_>) -> io::Result<(ExitStatus, Option<Duration>)> {
        loop {
            {
                let mut watched = self.lock();
                let id = watched.child.id();
                if has_exited(id) {
                    // Gone when it is reaped.
                    let used = cpu_time(id);
                    let status = watched.child.wait()?;
                    watched.reaped = true;
                    return Ok((status, used));
                }
            }
            if end.has_come() {
                self.kill();
            }
            std::thread::sleep(POLL);
        }
    }
}

/// Whether a child waits to be reaped, or cannot be waited for.
fn has_exited(id: u32) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let id = Pid::from_raw(id.cast_signed());
    id.is_none_or(|id| !matches!(waitid(WaitId::Pid(id), options), Ok(None)))
}

/// CPU time of a process, all its threads together, also when it waits to be reaped. Only Linux tells.
///
/// # Source
/// proc(5): fields 14 and 15 of `stat`, in hundredths of a second on every architecture.
fn cpu_time(id: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The second field is a name in brackets, which may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let fields = fields.split_whitespace().skip(11).take(2);
    let ticks: Vec<u64> = fields.filter_map(|field| field.parse().ok()).collect();
    Some(Duration::from_millis(10 * ticks.iter().sum::<u64>()))
}

/// How many processes the kernel has killed for want of memory, on the whole machine. Only Linux tells.
///
/// # Source
/// `oom_kill` in `/proc/vmstat`, since Linux 4.13; a kill for a control group's limit counts too.
fn killed_for_memory() -> Option<u64> {
    oom_kills(&std::fs::read_to_string("/proc/vmstat").ok()?)
}

fn oom_kills(vmstat: &str) -> Option<u64> {
    let mut counts = vmstat.lines().filter_map(|line| line.split_once(' '));
    let (_, count) = counts.find(|(name, _)| *name == "oom_kill")?;
    count.trim().parse().ok()
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
    let end = job.patience.end(job.settings.video_timeout);
    if job.patience.is_over() {
        return Ok(Ended::Abandoned);
    }
    let killed_before = killed_for_memory();
    let (child, mut stdout, words) = start(job.command, job.input)?;
    let (finished, watched) = mpsc::channel::<()>();
    let (result, (killed, seen_bytes)) = std::thread::scope(|scope| {
        // Reading blocks until the child writes or dies, so another thread keeps the time.
        let watchdog = scope.spawn(|| watch(&child, &end, watched));
        // Moved in, so that the watchdog wakes up even when `read` panics.
        let finished = finished;
        let result = read(&mut stdout);
        drop(finished);
        (result, watchdog.join().unwrap_or_default())
    });
    // A child that still writes would wait for a reader for ever.
    drop(stdout);
    if killed {
        return Ok(Ended::at(end));
    }
    let output = result?;
    let (status, used) = child.wait(&end).map_err(MediaError::Internal)?;
    if status.code() == Some(EXIT_UNCONFINED.into()) {
        let reason = "the decoder could not be confined or started";
        return Err(MediaError::Internal(io::Error::other(reason)));
    }
    match output {
        Some(output) if status.success() => return Ok(Ended::Well(output)),
        _ if end.has_come() => return Ok(Ended::at(end)),
        _ if status.success() => return Ok(Ended::Badly),
        _ => {}
    }
    let most = Duration::from_secs(job.settings.max_decoder_seconds);
    // Sampled: of one second at which the kernel had killed a child its own count said 0.84.
    let used_up = used.is_none_or(|used| used >= most * 3 / 4)
        && killed_for_memory().is_none_or(|now| Some(now) == killed_before);
    let signal = status.signal().and_then(Signal::from_named_raw);
    match signal {
        Some(Signal::XCPU) => Ok(Ended::OutOfCpu),
        Some(Signal::KILL) if used_up => Ok(Ended::OutOfCpu),
        _ if words.recv_timeout(LAST_WORDS) == Ok(true) => Ok(Ended::OutOfMemory),
        // What it asked for last was not given.
        None if seen_bytes > job.settings.max_decoder_bytes / 4 * 3 => Ok(Ended::OutOfMemory),
        Some(Signal::KILL) => {
            let reason =
                "the decoder was killed, and not for its own time: has the machine memory left?";
            Err(MediaError::Internal(io::Error::other(reason)))
        }
        _ => Ok(Ended::Badly),
    }
}

/// Starts a child on its input.
fn start(
    mut command: Command,
    input: &File,
) -> Result<(Guarded, ChildStdout, Receiver<bool>), MediaError> {
    let mut input = input.try_clone().map_err(MediaError::Internal)?;
    input.rewind().map_err(MediaError::Internal)?;
    let mut child = command
        .env_clear()
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::from(input))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(MediaError::Internal)?;
    let pipes = (child.stdout.take(), child.stderr.take());
    let child = Guarded::new(child);
    let (Some(stdout), Some(stderr)) = pipes else {
        return Err(MediaError::Internal(io::ErrorKind::BrokenPipe.into()));
    };
    let words = listen(stderr).map_err(MediaError::Internal)?;
    Ok((child, stdout, words))
}

/// Kills the child when its end comes before the channel's; whether it did, and the most address space it was seen to have, in bytes.
fn watch(child: &Guarded, end: &End<'_>, finished: Receiver<()>) -> (bool, u64) {
    let id = child.lock().child.id();
    let mut seen = 0;
    loop {
        let left = end.deadline.saturating_duration_since(Instant::now());
        if finished.recv_timeout(left.min(LOOK)) != Err(RecvTimeoutError::Timeout) {
            return (false, seen);
        }
        if end.has_come() {
            child.kill();
            return (true, seen);
        }
        seen = peak_bytes(id).unwrap_or(seen);
    }
}

/// The most address space a process has had. Only Linux tells.
///
/// # Source
/// proc(5): `VmPeak` in `status`, in KiB.
fn peak_bytes(id: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmPeak:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

/// Reads what a child complains of until it ends, and then tells whether it was for want of memory. On a thread of its own, which nobody
/// waits for: the pipe may be held by more than the child.
fn listen(stderr: ChildStderr) -> io::Result<Receiver<bool>> {
    let (tell, told) = mpsc::channel();
    let listening = move || {
        let mut words = Vec::new();
        let mut stderr = stderr.take(MAX_WORDS_BYTES);
        let read = stderr.read_to_end(&mut words);
        // A child whose words nobody takes would wait.
        let rest = io::copy(stderr.get_mut(), &mut io::sink());
        let words = String::from_utf8_lossy(&words);
        let said = OUT_OF_MEMORY.iter().any(|&these| words.contains(these));
        let _ = tell.send(said && read.is_ok() && rest.is_ok());
    };
    let thread = std::thread::Builder::new().name("decoder-words".to_owned());
    thread.spawn(listening)?;
    Ok(told)
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
        sh_for(script, input, time, &Patience::default())
    }

    fn sh_for(
        script: &str,
        input: &File,
        time: Duration,
        patience: &Patience,
    ) -> Result<Ended<Vec<u8>>, MediaError> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        let settings = MediaSettings {
            video_timeout: time,
            max_decoder_seconds: 1,
            ..MediaSettings::default()
        };
        let job = Job {
            command,
            input,
            settings: &settings,
            patience,
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
            settings: &MediaSettings::default(),
            patience: &Patience::default(),
        };
        let began = Instant::now();
        let result = run::<()>(job, |_| {
            Err(MediaError::Internal(io::ErrorKind::Other.into()))
        });
        assert!(matches!(result, Err(MediaError::Internal(_))));
        assert!(began.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_child_nobody_waits_for_any_more_is_killed() {
        for script in ["exec /bin/sleep 60", "exec >&-; exec /bin/sleep 60"] {
            let (waiter, patience) = Patience::until(Instant::now() + LONG);
            let leaving = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(200));
                drop(waiter);
            });
            let began = Instant::now();
            let ended = sh_for(script, &input(""), LONG, &patience).unwrap();
            assert!(matches!(ended, Ended::Abandoned), "{script}");
            assert!(began.elapsed() < LONG / 2, "{script}");
            leaving.join().unwrap();
            // The next step of the same request is not begun.
            let next = sh_for("exit 97", &input(""), LONG, &patience);
            assert!(matches!(next, Ok(Ended::Abandoned)));
        }
        let (_waiter, patience) = Patience::until(Instant::now() + Duration::from_millis(200));
        let began = Instant::now();
        let ended = sh_for("exec /bin/sleep 60", &input(""), LONG, &patience).unwrap();
        assert!(matches!(ended, Ended::Abandoned));
        assert!(began.elapsed() < LONG / 2);
    }

    #[test]
    fn the_limit_a_child_came_to_is_told() {
        let ended = |script: &str| sh(script, &input(""), LONG);
        // With limits of the shell's own, by which the kernel kills as it does with the sandbox's.
        let spun = ended("ulimit -t 1; while :; do :; done");
        assert!(matches!(spun, Ok(Ended::OutOfCpu)));
        // As FFmpeg says it; `clips` has FFmpeg itself say it.
        let refused = ended("echo 'get_buffer: Cannot allocate memory' >&2; exit 1");
        assert!(matches!(refused, Ok(Ended::OutOfMemory)));
        // Words without a failure, a failure without words, and more words than anybody reads.
        let warned = ended("echo Cannot allocate memory >&2");
        assert!(matches!(warned, Ok(Ended::Well(_))));
        let loud = ended("head -c 1000000 /dev/zero >&2; exit 1");
        assert!(matches!(loud, Ok(Ended::Badly)));
        assert!(matches!(ended("kill -SEGV $$"), Ok(Ended::Badly)));
        if cfg!(target_os = "linux") {
            // By somebody else, as by a kernel without memory: no fault of the video's.
            let killed = ended("kill -KILL $$");
            assert!(matches!(killed, Err(MediaError::Internal(_))));
        }
    }

    #[test]
    fn the_kernel_s_kills_for_memory_are_counted_where_it_tells() {
        let vmstat = "nr_free_pages 7\noom_killed 3\noom_kill 12\nnr_unstable 0\n";
        assert_eq!(oom_kills(vmstat), Some(12));
        for odd in ["", "oom_kill", "oom_kill x\n", "nr_free_pages 7\n"] {
            assert_eq!(oom_kills(odd), None, "{odd}");
        }
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
