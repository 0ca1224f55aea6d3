//! What a video decoder that has been taken over can do: nothing. A program that tries to escape is put in FFmpeg's place, in the very
//! sandbox the server starts FFmpeg in.
//!
//! These tests compile that program (`escape.c`) with `cc`, and hold where the kernel has Landlock and seccomp; elsewhere they say that
//! they were skipped.

use std::fs;
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use manifold::media::video::{VideoFile, check_sandbox};
use manifold::media::{MediaError, MediaSettings};
use serde_json::json;

use crate::clips;
use crate::server::{Server, skipped};

const ATTEMPTS: [&str; 7] = [
    "open", "connect", "fork", "exec", "write", "allocate", "harm",
];
/// Longest a child may live beyond its deadline.
const GRACE: Duration = Duration::from_millis(100);

/// The escape artist, and what it must not reach.
struct Prisoner {
    program: PathBuf,
    secret: PathBuf,
    /// The one file it may read.
    input: PathBuf,
    markers: PathBuf,
    listener: TcpListener,
    _home: tempfile::TempDir,
}

impl Prisoner {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let (secret, markers) = (home.path().join("secret"), home.path().join("markers"));
        fs::create_dir(&markers).unwrap();
        let input = home.path().join("input");
        fs::write(&input, "a video").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let program = home.path().join("escape-artist");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/integration/escape.c");
        let compiled = Command::new("cc")
            .args(["-O1", "-o", program.to_str().unwrap()])
            .arg(format!("-DSECRET={secret:?}"))
            .arg(format!("-DMARKER={markers:?}"))
            .arg(format!("-DPORT={}", listener.local_addr().unwrap().port()))
            .arg(source)
            .status();
        assert!(compiled.unwrap().success(), "cc compiles {source}");
        Prisoner {
            program,
            secret,
            input,
            markers,
            listener,
            _home: home,
        }
    }

    /// Puts everything in order, runs one attempt, and tells how it ended and what was said.
    fn run(&self, command: &mut Command, attempt: &str) -> (Option<i32>, String) {
        fs::write(&self.secret, "secret").unwrap();
        let output = command
            .arg(attempt)
            .stdin(fs::File::open(&self.input).unwrap())
            .stdout(Stdio::piped())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    }

    /// The server's settings, with this program as FFmpeg.
    fn settings(&self, time: Duration) -> MediaSettings {
        MediaSettings {
            ffmpeg: self.program.clone(),
            ffprobe: self.program.clone(),
            video_timeout: time,
            max_decoder_bytes: 1 << 30,
            ..clips::settings()
        }
    }

    /// Whether nothing was reached: nobody connected, nothing was written, nothing is gone.
    fn assert_untouched(&self, when: &str) {
        let visitor = self.listener.accept();
        assert!(visitor.is_err(), "{when}: somebody connected");
        let made: Vec<_> = fs::read_dir(&self.markers).unwrap().collect();
        assert!(made.is_empty(), "{when}: {made:?} was made");
        assert_eq!(fs::read(&self.secret).unwrap(), b"secret", "{when}");
    }

    /// Whether a process runs it.
    fn is_running(&self) -> bool {
        let program = fs::canonicalize(&self.program).unwrap();
        let runs =
            |process: PathBuf| fs::read_link(process.join("exe")).is_ok_and(|exe| exe == program);
        fs::read_dir("/proc")
            .unwrap()
            .any(|entry| runs(entry.unwrap().path()))
    }
}

/// Whether this kernel has what the sandbox is made of; says so when not.
fn can_confine() -> bool {
    let layers = check_sandbox(&clips::settings()).unwrap();
    if !layers.is_complete() {
        let missing = layers.missing().join(", ");
        skipped(&format!(
            "this system lacks {missing}, so decoders are confined by: {layers}"
        ));
    }
    layers.is_complete()
}

fn confined(prisoner: &Prisoner, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_manifold"));
    command
        .args([
            "decode-video",
            "--memory-bytes=1073741824",
            "--require-sandbox",
        ])
        .args(more)
        .arg("--")
        .arg(&prisoner.program);
    command
}

#[test]
fn nothing_a_taken_over_decoder_tries_comes_through() {
    if !can_confine() {
        return;
    }
    let prisoner = Prisoner::new();
    for attempt in ATTEMPTS {
        let mut command = confined(&prisoner, &["--cpu-seconds=60"]);
        let (code, said) = prisoner.run(&mut command, attempt);
        assert_eq!(code, Some(42), "{attempt}: {said}");
        assert!(!said.contains("CAME THROUGH"), "{attempt}: {said}");
        assert!(said.lines().count() > 1, "{attempt}: {said}");
        prisoner.assert_untouched(attempt);
    }
}

/// The same attempts without the sandbox: were they no real attempts, the test above would show nothing.
#[test]
fn outside_the_sandbox_every_attempt_comes_through() {
    let prisoner = Prisoner::new();
    for attempt in ATTEMPTS {
        let mut command = Command::new(&prisoner.program);
        command.env("OUTSIDE", "1");
        let (code, said) = prisoner.run(&mut command, attempt);
        assert_eq!(code, Some(0), "{attempt}: {said}");
    }
    assert!(prisoner.listener.accept().is_ok());
    assert!(prisoner.markers.join("child").exists());
}

#[test]
fn a_decoder_that_spins_is_killed_by_the_kernel_when_its_cpu_time_is_over() {
    const SIGKILL: i32 = 9;
    let prisoner = Prisoner::new();
    fs::write(&prisoner.secret, "secret").unwrap();
    let began = Instant::now();
    let mut command = confined(&prisoner, &["--cpu-seconds=1"]);
    command.args(["spin"]).stdin(Stdio::null());
    let status = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .status();
    assert_eq!(status.unwrap().signal(), Some(SIGKILL));
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(900), "{took:?}");
    assert!(took < Duration::from_secs(30), "{took:?}");
    // By way of the server it is that limit that the client is told of.
    let hurried = MediaSettings {
        max_decoder_seconds: 1,
        ..prisoner.settings(Duration::from_secs(60))
    };
    let result = VideoFile::open(clips::clip(), &hurried);
    assert!(
        matches!(
            result,
            Err(MediaError::TooCostly {
                limit: 1,
                setting: "media.max_decoder_seconds",
                ..
            })
        ),
        "{result:?}"
    );
    assert!(!prisoner.is_running(), "it lives on");
}

#[test]
fn a_decoder_that_spins_is_gone_a_tenth_of_a_second_after_its_deadline() {
    if !can_confine() {
        return;
    }
    let prisoner = Prisoner::new();
    fs::write(&prisoner.secret, "secret").unwrap();
    let time = Duration::from_millis(400);
    // A machine under load may start the clock late; the sandbox is not to blame for that three times.
    let lateness = (0..3).map(|_| {
        let began = Instant::now();
        let result = VideoFile::open(clips::clip(), &prisoner.settings(time));
        let late = began.elapsed().saturating_sub(time);
        assert!(
            matches!(
                result,
                Err(MediaError::TooCostly {
                    limit: 400,
                    setting: "media.video_timeout_ms",
                    ..
                })
            ),
            "{result:?}"
        );
        assert!(!prisoner.is_running(), "it lives on");
        late
    });
    let least = lateness.min().unwrap();
    assert!(least <= GRACE, "{least:?} late");
    prisoner.assert_untouched("by way of VideoFile");
}

/// All attempts, one after another, and then spinning: while a server waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_unharmed_by_what_its_decoders_try() {
    if !can_confine() {
        return;
    }
    let prisoner = Prisoner::new();
    fs::write(&prisoner.secret, "secret").unwrap();
    let program = prisoner.program.to_str().unwrap();
    let server = Server::start(
        &[
            "--media-ffmpeg",
            program,
            "--media-ffprobe",
            program,
            "--media-video-timeout-ms",
            "600",
            "--media-max-decoder-bytes",
            "1073741824",
        ],
        &[],
    );
    let text = json!({ "input": "a cat" });
    let before = server.vectors(&text).await;
    let body = json!({ "input": { "video": BASE64_STANDARD.encode(clips::clip()) } });
    for _ in 0..3 {
        let answer = server.post(&body).await;
        assert_eq!(answer.status, 413, "{}", answer.json());
        assert_eq!(
            answer.json()["error"]["message"],
            "input.video: decoding the video takes more than 600 milliseconds, the limit of this server (media.video_timeout_ms)"
        );
        assert!(!prisoner.is_running(), "it lives on");
    }
    assert_eq!(server.vectors(&text).await, before);
    prisoner.assert_untouched("by way of the server");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decoder_goes_with_its_request_at_its_deadline_and_when_its_client_leaves() {
    if !can_confine() {
        return;
    }
    let prisoner = Prisoner::new();
    fs::write(&prisoner.secret, "secret").unwrap();
    let program = prisoner.program.to_str().unwrap();
    let arguments = ["--media-ffmpeg", program, "--media-ffprobe", program];
    // The decoder itself might spin for a minute of CPU time, and for half a minute by the clock.
    let server = Server::start(&arguments, &[]);
    let body = json!({ "input": { "video": BASE64_STANDARD.encode(clips::clip()) } }).to_string();
    let ask = |headers: &[(&'static str, &'static str)]| {
        let mut asked = reqwest::Client::new()
            .post(format!("{}/v1/embeddings", server.url))
            .header("content-type", "application/json")
            .body(body.clone());
        for (name, value) in headers {
            asked = asked.header(*name, *value);
        }
        asked.send()
    };
    let wait_until = async |running: bool, most: Duration| {
        let began = Instant::now();
        while prisoner.is_running() != running {
            assert!(began.elapsed() < most, "running is not {running}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    // How late a busy machine may be.
    let (start, slack) = (Duration::from_secs(20), Duration::from_secs(2));

    let began = Instant::now();
    let answer = ask(&[("x-request-timeout-ms", "1500")]).await.unwrap();
    let code = answer.json::<serde_json::Value>().await.unwrap()["error"]["code"].clone();
    assert_eq!(code, "deadline_exceeded");
    assert!(began.elapsed() < Duration::from_millis(1500) + slack);
    wait_until(false, slack).await;

    let asking = tokio::spawn(ask(&[]));
    wait_until(true, start).await;
    asking.abort();
    wait_until(false, slack).await;
    let text = server.post(&json!({ "input": "a cat" })).await;
    assert_eq!(text.status, 200);
}

/// A decoder is nobody's orphan: it goes with its server, however that ends.
#[test]
fn decoders_die_with_a_server_that_is_killed() {
    if !can_confine() {
        return;
    }
    let prisoner = Prisoner::new();
    let mut shell = Command::new("/bin/sh");
    // The shell is the server here: it starts the decoder and is killed while that spins.
    let decoder = format!(
        "{} decode-video --memory-bytes=1073741824 --cpu-seconds=60 -- {} spin & wait",
        env!("CARGO_BIN_EXE_manifold"),
        prisoner.program.display()
    );
    let mut server = shell.args(["-c", &decoder]).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let wait_until = |running: bool| {
        while prisoner.is_running() != running {
            assert!(Instant::now() < deadline, "running is not {running}");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    wait_until(true);
    server.kill().unwrap();
    server.wait().unwrap();
    wait_until(false);
}

#[test]
fn a_server_that_must_confine_and_cannot_does_not_start() {
    if !can_confine() {
        return;
    }
    let run = |program: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_manifold"));
        command
            .args([
                "serve",
                "--port",
                "0",
                "--require-sandbox",
                "--media-ffmpeg",
                program,
            ])
            .stdin(Stdio::null());
        command.output().unwrap()
    };
    // A script is no program that can be started by its descriptor, so it cannot be started confined.
    let home = tempfile::tempdir().unwrap();
    let script = home.path().join("ffmpeg");
    fs::write(&script, "#!/bin/sh\nexit 0\n").unwrap();
    Command::new("chmod")
        .args(["+x", script.to_str().unwrap()])
        .status()
        .unwrap();
    let output = run(script.to_str().unwrap());
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains("require_sandbox"), "{words}");
}
